"""The names and sizes of Swin and T2T-ViT in the authors' checkpoints. (ViT's are every method's: `..conversion`.)"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import SwinConfig

from ...backbones.modeling_t2t_vit import T2TViTConfig
from ..official_files import CheckpointError, State


@dataclass(frozen=True)
class Names:
    """
    What the modules of an encoder are called by its authors, and here. `*` stands for a number.

    Args:
        title (`str`): The encoder; for messages.
        renamed (`dict[str, str]`): Modules, or single tensors, by the authors' names.
        fused (`dict[str, tuple[str, ...]]`): Linear layers of the authors that are several here, in the order of their rows.
        unused (`tuple[str, ...]`): Tensors that nothing is computed with, or that are made anew.
    """

    title: str
    renamed: dict[str, str]
    fused: dict[str, tuple[str, ...]]
    unused: tuple[str, ...] = field(default=())

    @cached_property
    def _from_official(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        targets = {name: (ours,) for name, ours in self.renamed.items()} | self.fused
        return [(_pattern(name), ours) for name, ours in targets.items()]

    @cached_property
    def _to_official(self) -> list[tuple[re.Pattern[str], str, tuple[str, ...]]]:
        whole = [(_pattern(ours), name, ()) for name, ours in self.renamed.items()]
        return whole + [(_pattern(parts[0]), name, parts) for name, parts in self.fused.items()]

    def is_unused(self, name: str) -> bool:
        """Whether the tensor of this official name has no place here."""
        return any(_pattern(unused).fullmatch(name) for unused in self.unused)

    def from_official(self, state: Mapping[str, Tensor], prefix: str = "") -> State:
        """
        Official tensors under our names.

        Args:
            state (`Mapping[str, torch.Tensor]`): Tensors by official names.
            prefix (`str`, *optional*, defaults to `""`): What these names began with; for messages.

        Returns:
            `dict[str, torch.Tensor]`: without those that are not used.

        Raises:
            [`CheckpointError`]: a tensor has no place in the encoder.
        """
        converted: State = {}
        for name, tensor in state.items():
            if self.is_unused(name):
                continue
            for pattern, targets in self._from_official:
                if match := pattern.fullmatch(name):
                    numbers, kind = match.groups()[:-1], match.groups()[-1]
                    parts = tensor.chunk(len(targets)) if len(targets) > 1 else (tensor,)
                    converted |= {_fill(t, numbers, kind): part for t, part in zip(targets, parts, strict=True)}
                    break
            else:
                raise CheckpointError(f"The tensor {prefix + name!r} is not part of a {self.title}.")
        return converted

    def to_official(self, state: Mapping[str, Tensor]) -> State:
        """
        The inverse; it takes any tensors that have the shapes of the weights, and any subset of whole layers.

        Args:
            state (`Mapping[str, torch.Tensor]`): Tensors by our names.

        Returns:
            `dict[str, torch.Tensor]`: by official names.
        """
        result: State = {}
        for name, tensor in state.items():
            for pattern, official, parts in self._to_official:
                if match := pattern.fullmatch(name):
                    numbers, kind = match.groups()[:-1], match.groups()[-1]
                    whole = [state[_fill(part, numbers, kind)] for part in parts] or [tensor]
                    result[_fill(official, numbers, kind)] = torch.cat(whole) if parts else tensor
                    break
        return result


def _pattern(name: str) -> re.Pattern[str]:
    """Matches a tensor of the module, or the tensor itself; groups are the numbers, and `.weight`, `.bias` or nothing."""
    return re.compile(re.escape(name).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias|)")


def _fill(name: str, numbers: tuple[str, ...], kind: str) -> str:
    for number in numbers:
        name = name.replace("*", number, 1)
    return name + kind


_IN_A_BLOCK = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_QKV = ("q_proj", "k_proj", "v_proj")

SWIN = Names(
    title="Swin",
    renamed={
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "patch_embed.norm": "embeddings.norm",
        **{f"layers.*.blocks.*.{name}": f"encoder.layers.*.blocks.*.{ours}" for name, ours in _IN_A_BLOCK.items()},
        "layers.*.blocks.*.attn.proj": "encoder.layers.*.blocks.*.attention.o_proj",
        "layers.*.blocks.*.attn.relative_position_bias_table": (
            "encoder.layers.*.blocks.*.attention.relative_position_bias.relative_position_bias_table"
        ),
        "layers.*.downsample.reduction": "encoder.layers.*.downsample.reduction",
        "layers.*.downsample.norm": "encoder.layers.*.downsample.norm",
        "norm": "layernorm",
    },
    fused={
        "layers.*.blocks.*.attn.qkv": tuple(f"encoder.layers.*.blocks.*.attention.{part}" for part in _QKV),
    },
    unused=("head", "layers.*.blocks.*.attn.relative_position_index", "layers.*.blocks.*.attn_mask"),
)

_OF_TOKENS, _TOKENS = "tokens_to_token.attention*", "embeddings.token_attention*"
_T2T = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    f"{_OF_TOKENS}.norm1": f"{_TOKENS}.layernorm_before",
    f"{_OF_TOKENS}.norm2": f"{_TOKENS}.layernorm_after",
    "tokens_to_token.project": "embeddings.projection",
    **{f"blocks.*.{name}": f"layers.*.{ours}" for name, ours in _IN_A_BLOCK.items()},
    "blocks.*.attn.proj": "layers.*.attention.o_proj",
    "norm": "layernorm",
}
_T2T_FUSED = {"blocks.*.attn.qkv": tuple(f"layers.*.attention.{part}" for part in _QKV)}
# By the kind of the modules that make the tokens.
T2T_VIT = {
    "performer": Names(
        title="T2T-ViT",
        renamed={
            **_T2T,
            f"{_OF_TOKENS}.w": f"{_TOKENS}.random_features",
            f"{_OF_TOKENS}.proj": f"{_TOKENS}.o_proj",
            f"{_OF_TOKENS}.mlp.0": f"{_TOKENS}.mlp.fc1",
            f"{_OF_TOKENS}.mlp.2": f"{_TOKENS}.mlp.fc2",
        },
        fused={
            **_T2T_FUSED,
            f"{_OF_TOKENS}.kqv": tuple(f"{_TOKENS}.{part}" for part in ("k_proj", "q_proj", "v_proj")),
        },
        unused=("head",),
    ),
    "transformer": Names(
        title="T2T-ViT",
        renamed={
            **_T2T,
            f"{_OF_TOKENS}.attn.proj": f"{_TOKENS}.o_proj",
            f"{_OF_TOKENS}.mlp.fc1": f"{_TOKENS}.mlp.fc1",
            f"{_OF_TOKENS}.mlp.fc2": f"{_TOKENS}.mlp.fc2",
        },
        fused={**_T2T_FUSED, f"{_OF_TOKENS}.attn.qkv": tuple(f"{_TOKENS}.{part}" for part in _QKV)},
        unused=("head",),
    ),
}


def swin_config_from_official(state: Mapping[str, Tensor]) -> SwinConfig:
    """
    Read the architecture off the shapes of a Swin.

    Args:
        state (`Mapping[str, torch.Tensor]`): Its tensors by official names.

    Returns:
        `transformers.SwinConfig`.
    """
    embed_dim, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    layers = {(int(m[1]), int(m[2])) for name in state if (m := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name))}
    depths = [sum(stage == i for stage, _ in layers) for i in range(len({stage for stage, _ in layers}))]
    tables = [state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(depths))]
    window = (round(len(tables[0]) ** 0.5) + 1) // 2
    # Every other layer of a stage has a mask for each of its windows, unless one window is the whole image.
    sides = [
        round((len(mask) * mask.shape[1]) ** 0.5) * 2 ** int(match[1])
        for name, mask in state.items()
        if (match := re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn_mask", name))
    ]
    side = sides[0] if sides else window * 2 ** (len(depths) - 1)
    return SwinConfig(
        image_size=side * patch_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=window,
        mlp_ratio=len(state["layers.0.blocks.0.mlp.fc1.weight"]) / embed_dim,
    )


def t2t_config_from_official(state: Mapping[str, Tensor], num_attention_heads: int | None) -> T2TViTConfig:
    """
    Read the architecture off the shapes of a T2T-ViT.

    Args:
        state (`Mapping[str, torch.Tensor]`): Its tensors by official names.
        num_attention_heads (`int`, *optional*):
            Heads of the attention; unset, width / 64, which holds for every official size but `14_resnext`.

    Returns:
        [`T2TViTConfig`].

    Raises:
        [`CheckpointError`]: the heads cannot be told.
    """
    _, positions, width = state["pos_embed"].shape
    if num_attention_heads is None and width % 64:
        raise CheckpointError(
            f"The number of attention heads is not recorded in the checkpoint, and its width {width} is not that of an "
            "official size: give --num_attention_heads."
        )
    heads = width // 64 if num_attention_heads is None else num_attention_heads
    if heads < 1 or width % heads:
        raise CheckpointError(f"--num_attention_heads {heads} does not divide the width {width}.")
    return T2TViTConfig(
        image_size=16 * round((positions - 1) ** 0.5),
        token_module=token_module(state),
        token_dim=len(state["tokens_to_token.attention1.norm2.weight"]),
        hidden_size=width,
        num_hidden_layers=len({m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}),
        num_attention_heads=heads,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
    )


def token_module(state: Mapping[str, Tensor]) -> Literal["performer", "transformer"]:
    """The kind of the modules that make the tokens of a T2T-ViT with these official tensors."""
    return "performer" if "tokens_to_token.attention1.w" in state else "transformer"


__all__ = ["SWIN", "T2T_VIT", "Names", "swin_config_from_official", "t2t_config_from_official", "token_module"]
