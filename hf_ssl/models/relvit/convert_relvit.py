"""The authors' RelViT checkpoints (PyTorch Lightning 1.3.1 files) to this library's model, and back.

The authors' class for each relation has its own projections; here they are joined. Value projections of the pair heads are
dropped: the authors' code never reads their result, and they are never trained.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..conversion import (
    CheckpointError,
    check_round_trip,
    load_checkpoint,
    must_fit,
    tensors_of,
    under,
    vit_config_from_official,
    vit_from_official,
    vit_to_official,
)
from .configuration_relvit import RelViTConfig
from .convert_encoders import SWIN, T2T_VIT, swin_config_from_official, t2t_config_from_official, token_module
from .modeling_relvit import NUM_RELATIONS, RelViTForPreTraining
from .reference_relvit import swin_tokens, t2t_tokens


_PAIR_HEADS = {"rel_head": "relation_head", "dist_head": "distance_head", "angle_head": "angle_head"}
_SCORER = re.compile(rf"({'|'.join(_PAIR_HEADS)})\.heads\.\d+\.[qkv]_lin\.weight")
_UNUSED = re.compile(rf"({'|'.join(_PAIR_HEADS)})\.heads\.\d+\.v_lin\.weight")


@dataclass(frozen=True)
class _Encoder:
    """What is known of an encoder in the authors' files: how tensors are renamed, there and back, and its sizes."""

    from_official: Callable[..., dict[str, Tensor]]
    to_official: Callable[..., dict[str, Tensor]]
    config: Callable[[dict[str, Tensor], int | None], PreTrainedConfig]
    # The authors' name of the class head, and of tensors that are made anew here, or read by nothing.
    classifier: str = "clf_head"
    unused: Callable[[str], bool] = lambda name: False
    drop_path_rate: float = 0.0


_VIT = _Encoder(vit_from_official, vit_to_official, vit_config_from_official)
_SWIN = _Encoder(
    *(SWIN.from_official, SWIN.to_official, lambda state, heads: swin_config_from_official(state)),
    classifier="backbone.head",  # and their `clf_head` is left as it was initialized
    unused=SWIN.is_unused,
    drop_path_rate=0.1,
)
_T2T_VIT = {
    kind: _Encoder(names.from_official, names.to_official, t2t_config_from_official, unused=names.is_unused)
    for kind, names in T2T_VIT.items()
}


def _encoder_of(official: dict[str, Tensor]) -> _Encoder:
    """By the tensors of an encoder, under official names."""
    if any(name.startswith("tokens_to_token.") for name in official):
        return _T2T_VIT[token_module(official)]
    return _SWIN if any(".blocks." in name for name in official) else _VIT


def load_official(path: str | Path) -> dict[str, Tensor]:
    """
    The tensors of an official file, read without running any code it may contain.

    Args:
        path (`str` or `Path`): A Lightning `.ckpt`/`.pth` file.

    Returns:
        `dict[str, torch.Tensor]`: the file's `state_dict`.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, holds unexpected objects, or no `state_dict`.
    """

    # Lightning keys its callbacks by this class, which the unpickler refuses unless it is named. An empty stand-in
    # is all that reading needs.
    class ModelCheckpoint:
        pass

    dotted_name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    checkpoint = load_checkpoint(path, [(ModelCheckpoint, dotted_name)])
    return tensors_of(checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None, path)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors under this library's names.

    Args:
        state (`dict[str, torch.Tensor]`): The `state_dict` of an official checkpoint.

    Returns:
        `dict[str, torch.Tensor]`: the state dict of a [`RelViTForPreTraining`].

    Raises:
        [`CheckpointError`]: a tensor has no place in the model.
    """
    backbone = under(state, "backbone.")
    encoder = _encoder_of(backbone)
    converted = {f"student.{name}": tensor for name, tensor in encoder.from_official(backbone, "backbone.").items()}
    heads = {"abs_pos_head": "position_head"}
    if "clf_head.weight" in state:
        heads[encoder.classifier] = "classifier"
    for name, tensor in state.items():
        head, _, kind = name.rpartition(".")
        if head in heads and kind in ("weight", "bias"):
            converted[f"{heads[head]}.{kind}"] = tensor
        elif head != "clf_head" and not name.startswith("backbone.") and not _SCORER.fullmatch(name):
            raise CheckpointError(
                f"The tensor {name!r} is not part of a RelViT. If the checkpoint is another method's, name it with --method."
            )
    for official, ours in _PAIR_HEADS.items():
        count = sum(name.startswith(f"{official}.") and name.endswith(".q_lin.weight") for name in state)
        for short, long in (("q", "query"), ("k", "key")) if count else ():
            scorers = [state[f"{official}.heads.{i}.{short}_lin.weight"] for i in range(count)]
            converted[f"{ours}.{long}.weight"] = torch.cat(scorers)
    return converted


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    The inverse of [`from_official`], without what is unused. It accepts any tensors that have the shapes of the weights
    (gradients, updated weights) and any subset of whole layers.

    Args:
        state (`dict[str, torch.Tensor]`): Tensors by this library's names.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    if any(name.startswith("student.encoder.") for name in state):
        encoder = _SWIN
    elif any(name.startswith("student.embeddings.token_attention") for name in state):
        has_biases = "student.embeddings.token_attention1.q_proj.bias" in state  # the performer's
        encoder = _T2T_VIT["performer" if has_biases else "transformer"]
    else:
        encoder = _VIT
    result = {f"backbone.{name}": tensor for name, tensor in encoder.to_official(under(state, "student.")).items()}
    linear_heads = {"position_head": "abs_pos_head", "classifier": encoder.classifier}
    pair_heads = {ours: official for official, ours in _PAIR_HEADS.items()}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in linear_heads:
            result[f"{linear_heads[module]}.{kind}"] = tensor
        elif (head := module.partition(".")[0]) in pair_heads:
            scorers = tensor.chunk(NUM_RELATIONS if head == "relation_head" else 1)
            short = {"query": "q", "key": "k"}[module.rpartition(".")[2]]
            result |= {f"{pair_heads[head]}.heads.{i}.{short}_lin.weight": w for i, w in enumerate(scorers)}
    return result


def config_from_official(state: dict[str, Tensor], num_attention_heads: int | None = None) -> RelViTConfig:
    """
    Read the architecture and the tasks off the shapes of an official checkpoint.

    Args:
        state (`dict[str, torch.Tensor]`):
            The `state_dict` of an official checkpoint.
        num_attention_heads (`int`, *optional*):
            Heads of the attention (a Swin's are recorded); unset, width / 64, which holds for every official size but
            T2T-ViT's `14_resnext`.

    Returns:
        [`RelViTConfig`]: a checkpoint with a class head is taken for a joint model (positions on), others for an
        upstream model (positions off).

    Raises:
        [`CheckpointError`]: there is no encoder, or the heads cannot be told.
    """
    backbone = under(state, "backbone.")
    encoder = _encoder_of(backbone)
    backbone_config = encoder.config(backbone, num_attention_heads)
    if not any(
        name.startswith(("rel_head.", "abs_pos_head.", "dist_head.", "angle_head.", "clf_head.")) for name in state
    ):
        raise CheckpointError(
            "The checkpoint holds an encoder without any of RelViT's heads; there is no loss to rebuild."
        )
    heads = {"relations": "rel_head", "positions": "abs_pos_head", "distances": "dist_head", "angles": "angle_head"}
    tasks = [task for task, head in heads.items() if any(name.startswith(f"{head}.") for name in state)]
    is_joint = "clf_head.weight" in state
    fields: dict[str, Any] = {
        "backbone_config": backbone_config,
        "tasks": (["classification"] if is_joint else []) + tasks,
        "drop_path_rate": encoder.drop_path_rate,
    }
    config = RelViTConfig(**fields)
    if "positions" in tasks and (places := len(state["abs_pos_head.weight"])) != config.grid_size**2:
        if encoder is not _VIT:
            raise CheckpointError(
                f"`abs_pos_head` tells {places} places, but the encoder's images have {config.grid_size**2} patches."
            )
        config = RelViTConfig(**fields, mega_patches=round(places**0.5))
    if is_joint:
        config.num_labels = len(state[f"{encoder.classifier}.weight"])
    return config


def convert(path: str | Path, num_attention_heads: int | None = None) -> RelViTForPreTraining:
    """
    An official checkpoint as a model of this library.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the width does not tell them.

    Returns:
        [`RelViTForPreTraining`]: in eval mode, every weight taken from the checkpoint.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit a RelViT to the last tensor.
    """
    state = load_official(path)
    with must_fit(path, "a RelViT"):
        model = RelViTForPreTraining(config_from_official(state, num_attention_heads))
        model.load_state_dict(from_official(state), strict=True)
    restored = to_official(model.state_dict())
    check_round_trip({n: t for n, t in state.items() if not _is_unused(n, state)}, restored)
    return model.eval()


def _is_unused(name: str, state: dict[str, Tensor]) -> bool:
    """Whether nothing is computed with a tensor of a file."""
    encoder = _encoder_of(under(state, "backbone."))
    if "clf_head.weight" in state and name.startswith(f"{encoder.classifier}."):
        return False
    in_encoder = name.startswith("backbone.") and encoder.unused(name.removeprefix("backbone."))
    return in_encoder or name.startswith("clf_head.") or _UNUSED.fullmatch(name) is not None


def official_encoder(path: str | Path, which: str | None = None) -> dict[str, Tensor]:
    """
    The encoder's tensors as they stand in an official file, under the names of timm's ViT.

    Args:
        path (`str` or `Path`): The authors' file.
        which (`str`, *optional*): RelViT has one encoder; it is ignored.

    Returns:
        `dict[str, torch.Tensor]`: the tensors; without positions, a table of zeros, if the encoder was trained so.
    """
    state = load_official(path)
    encoder = under(state, "backbone.")
    if "clf_head.weight" not in state:  # upstream
        encoder["pos_embed"] = torch.zeros_like(encoder["pos_embed"])
    return encoder


@torch.no_grad()
def reference_features(path: str | Path, pixel_values: Tensor, num_attention_heads: int | None = None) -> Tensor:
    """
    The pooled features that another implementation computes with the tensors of a Swin or a T2T-ViT, as they stand in an
    official file: the mean of the tokens, or the class token.

    Args:
        path (`str` or `Path`): The authors' file.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the width does not tell them.

    Returns:
        `torch.Tensor` of shape `(batch_size, width)`.
    """
    state = under(load_official(path), "backbone.")
    if _encoder_of(state) is _SWIN:
        return swin_tokens(state, pixel_values).mean(1)
    return t2t_tokens(state, num_attention_heads, pixel_values)[:, 0]


__all__ = [
    "CheckpointError",
    "config_from_official",
    "convert",
    "from_official",
    "load_official",
    "official_encoder",
    "reference_features",
    "to_official",
]
