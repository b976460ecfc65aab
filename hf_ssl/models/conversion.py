"""What the converters of official checkpoints share: reading a file safely, the names of a ViT, and the proofs.

The authors' encoders are timm's ViT, or have its names: one matrix for queries, keys and values, which transformers keeps
as three.
"""

import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import ViTConfig


State = dict[str, Tensor]

_TENSORS = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
_MODULES = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
_LAYER_MODULES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PARTS = ("q", "k", "v")


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message says why and what would help."""


class StandIn:
    """In the place of an object whose class is not to be trusted: its attributes, and nothing that runs."""

    def __new__(cls, *args: Any) -> "StandIn":
        return super().__new__(cls)


def load_checkpoint(path: str | Path, safe_globals: Iterable[Any] = (), use_stand_ins: bool = False) -> Any:
    """
    Read a file of `torch.save` without running any code that it may contain.

    Args:
        path (`str` or `Path`): The file.
        safe_globals (`Iterable`, *optional*): Names in the file that are needed to read it and do no harm, as for
            `torch.serialization.safe_globals`.
        use_stand_ins (`bool`, *optional*, defaults to `False`): Put a [`StandIn`] in the place of every object that is not
            a tensor, a number, a string or a container; otherwise such files are refused.

    Returns:
        `Any`: its content, with tensors on the CPU.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, or holds unexpected objects.
    """
    try:
        allowed = list(safe_globals)
        if use_stand_ins and zipfile.is_zipfile(path):  # files of torch before 1.6 do not tell what they need
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            allowed += [(type("StandIn", (StandIn,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint file at {path}.") from error
    except pickle.UnpicklingError as error:
        # The unpickler names the first thing that it refuses to make; the rest of its message advises to let it.
        if refused := re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds an object of `{refused[1]}`, and is not read: making other things than tensors may run code. "
                "Whole pickled models, such as best.pth of some evaluations, are such files. Give the checkpoint of the "
                "pretraining; or, where you trust the file, load it with the authors' code and save "
                "`{'state_dict': model.state_dict()}`."
            ) from error
        raise CheckpointError(f"{path} cannot be read safely; it is damaged, or no file of torch.save.") from error
    except Exception as error:  # zip and OS errors of many classes; all end here, with their cause
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read safely: {reason}. It is damaged, or no file of torch.save."
        ) from error


def tensors_of(state: Any, path: str | Path) -> State:
    """`state`, if it is a dictionary of tensors by name; else a [`CheckpointError`]."""
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} has no `state_dict` of tensors, as the authors' checkpoints do.")
    return state


def module_tensors(module: Any, path: str | Path) -> State:
    """
    The parameters and buffers of a module that was pickled whole, as its `state_dict` would name them.

    Args:
        module ([`StandIn`]): What [`load_checkpoint`] put in its place.
        path (`str` or `Path`): The file; for messages.

    Returns:
        `dict[str, torch.Tensor]`: the tensors.

    Raises:
        [`CheckpointError`]: it is no module.
    """
    tensors: State = {}
    waiting, seen = [("", module)], set()
    while waiting:
        prefix, part = waiting.pop()
        members: list[Any] = [getattr(part, kind, None) for kind in ("_parameters", "_buffers", "_modules")]
        if id(part) in seen or not isinstance(part, StandIn) or not all(isinstance(kind, dict) for kind in members):
            raise CheckpointError(f"{path} holds an object that is no module, or only a part of one.")
        seen.add(id(part))
        parameters, buffers, modules = members
        own = {f"{prefix}{name}": tensor for name, tensor in (parameters | buffers).items() if tensor is not None}
        tensors |= tensors_of({name: getattr(tensor, "data", tensor) for name, tensor in own.items()}, path)
        waiting += [(f"{prefix}{name}.", child) for name, child in modules.items() if child is not None]
    return tensors


def under(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def vit_from_official(state: Mapping[str, Tensor], prefix: str = "") -> State:
    """
    The tensors of a ViT under the names of [`~hf_ssl.backbones.ViTTrunk`] and `transformers.ViTModel`.

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors by official names (`blocks.0.attn.qkv.weight`, …), of any number
            of whole layers.
        prefix (`str`, *optional*, defaults to `""`): What these names began with; for messages.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by their new names; queries, keys and values apart.

    Raises:
        [`CheckpointError`]: a tensor has no place in a ViT.
    """
    converted: State = {}
    for name, tensor in state.items():
        layer = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        module, _, kind = name.rpartition(".")
        if name in _TENSORS:
            converted[_TENSORS[name]] = tensor
        elif module in _MODULES and kind in ("weight", "bias"):
            converted[f"{_MODULES[module]}.{kind}"] = tensor
        elif layer and layer[2] in _LAYER_MODULES:
            converted[f"layers.{layer[1]}.{_LAYER_MODULES[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "attn.qkv":
            for part, value in zip(_PARTS, tensor.chunk(3), strict=True):
                converted[f"layers.{layer[1]}.attention.{part}_proj.{layer[3]}"] = value
        else:
            raise CheckpointError(
                f"The tensor {prefix + name!r} is not part of a ViT encoder. If the checkpoint is another method's, name it "
                "with --method."
            )
    return converted


def vit_to_official(state: Mapping[str, Tensor]) -> State:
    """
    The inverse of [`vit_from_official`]. It takes any tensors that have the shapes of the weights (gradients, updated
    weights) and any subset of whole layers.

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors by the names of [`~hf_ssl.backbones.ViTTrunk`].

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    tensors = {ours: official for official, ours in _TENSORS.items()}
    modules = {ours: official for official, ours in _MODULES.items()}
    layer_modules = {ours: official for official, ours in _LAYER_MODULES.items()}
    result: State = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
        if name in tensors:
            result[tensors[name]] = tensor
        elif module in modules:
            result[f"{modules[module]}.{kind}"] = tensor
        elif layer and layer[2] in layer_modules:
            result[f"blocks.{layer[1]}.{layer_modules[layer[2]]}.{kind}"] = tensor
        elif layer and layer[2] == "attention.q_proj":
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in _PARTS]
            result[f"blocks.{layer[1]}.attn.qkv.{kind}"] = torch.cat(parts)
    return result


def vit_config_from_official(
    state: Mapping[str, Tensor],
    num_attention_heads: int | None,
    official_heads: Mapping[int, int] | None = None,
    layer_norm_eps: float = 1e-6,
) -> ViTConfig:
    """
    Read the architecture off the shapes of a ViT.

    Args:
        state (`Mapping[str, torch.Tensor]`):
            Its tensors by official names.
        num_attention_heads (`int`, *optional*):
            Heads of the attention, which no shape tells.
        official_heads (`Mapping[int, int]`, *optional*):
            What they are by width in the authors' models; unset, width / 64.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the LayerNorms, which no shape tells either.

    Returns:
        `transformers.ViTConfig`: with an identity pooler.

    Raises:
        [`CheckpointError`]: there is no ViT, or the heads cannot be told.
    """
    for name in ("patch_embed.proj.weight", "pos_embed"):
        if name not in state:
            raise CheckpointError("The checkpoint holds no ViT encoder (`patch_embed.proj`, `pos_embed`).")
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    if num_attention_heads is None:
        known = official_heads if official_heads is not None else {width: width // 64} if width % 64 == 0 else {}
        if width not in known:
            raise CheckpointError(
                f"The number of attention heads is not recorded in the checkpoint, and its width {width} is not that of "
                "an official size: give --num_attention_heads."
            )
        num_attention_heads = known[width]
    if num_attention_heads < 1 or width % num_attention_heads:
        raise CheckpointError(f"--num_attention_heads {num_attention_heads} does not divide the width {width}.")
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}),
        num_attention_heads=num_attention_heads,
        intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
        image_size=patch_size * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch_size,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        layer_norm_eps=layer_norm_eps,
        pooler_act="linear",
    )


@contextmanager
def must_fit(path: str | Path, title: str) -> Iterator[None]:
    """
    What goes wrong inside, where a model is made of a file's sizes and filled with its tensors, is the file's fault.

    Args:
        path (`str` or `Path`): The file.
        title (`str`): The method, with its article.

    Raises:
        [`CheckpointError`]: sizes contradict each other, tensors are missing, or the like.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, StrictDataclassError) as error:
        raise CheckpointError(f"{path} does not fit {title} of the sizes read off its tensors: {error}") from error


def check_round_trip(expected: Mapping[str, Tensor], restored: Mapping[str, Tensor]) -> None:
    """
    Every tensor of a file can be had back from the model, equal, and no other.

    Args:
        expected (`Mapping[str, torch.Tensor]`): The tensors of the file.
        restored (`Mapping[str, torch.Tensor]`): Those of the model, by official names.

    Raises:
        [`CheckpointError`]: a tensor is missing or differs.
    """
    differing = [n for n, tensor in expected.items() if n not in restored or not _equal(restored[n], tensor)]
    if differing or len(restored) != len(expected):
        raise CheckpointError(
            f"These tensors were not carried over exactly: {differing or 'more than the file holds'}."
        )


def _equal(restored: Tensor, tensor: Tensor) -> bool:
    """Equal after conversion to float32, not-a-number where the file has it."""
    if tensor.is_complex():
        return False
    return torch.allclose(restored.float(), tensor.float(), rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def reference_tokens(
    state: Mapping[str, Tensor], num_attention_heads: int, layer_norm_eps: float, pixel_values: Tensor
) -> Tensor:
    """
    The tokens that timm's ViT computes with the tensors of an official checkpoint, as they stand in the file.

    Args:
        state (`Mapping[str, torch.Tensor]`): The encoder's tensors, under the names of timm.
        num_attention_heads (`int`): Heads of the attention.
        layer_norm_eps (`float`): Epsilon of the LayerNorms.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images of the native size.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1 + num_patches, width)`.
    """
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    model = VisionTransformer(
        img_size=pixel_values.shape[-1],
        patch_size=patch_size,
        num_classes=0,
        embed_dim=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=num_attention_heads,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        norm_layer=partial(nn.LayerNorm, eps=layer_norm_eps),
    )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    tokens: Tensor = model.eval().forward_features(pixel_values)
    return tokens


__all__ = [
    "CheckpointError",
    "StandIn",
    "check_round_trip",
    "load_checkpoint",
    "module_tensors",
    "must_fit",
    "reference_tokens",
    "tensors_of",
    "under",
    "vit_config_from_official",
    "vit_from_official",
    "vit_to_official",
]
