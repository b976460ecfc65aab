"""The authors' PatchMix checkpoints to this library's model, and back."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray
from torch import Tensor

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
from .configuration_patchmix import PatchMixConfig
from .modeling_patchmix import PatchMixForPreTraining


# Heads of the authors' models by width: those of vit-small are MoCo v3's.
_OFFICIAL_HEADS = {192: 3, 384: 12, 768: 12}
_BRANCHES = {"base_encoder.": "student.", "momentum_encoder.": "teacher."}
# Learning rates in periodic files are numpy's numbers, whose module numpy 2 has renamed.
_NUMPY_SCALARS = [
    (multiarray.scalar, "numpy._core.multiarray.scalar"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]


def load_official(path: str | Path) -> dict[str, Tensor]:
    """
    The tensors of an official file of a pretraining, read without running any code it may contain.

    Args:
        path (`str` or `Path`): A periodic file, the last one, or only its `state_dict`; names may begin with `module.`.

    Returns:
        `dict[str, torch.Tensor]`: the tensors, without `module.`.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, holds other objects than tensors (as a whole pickled module does),
            or is not of a pretraining.
    """
    checkpoint = load_checkpoint(path, _NUMPY_SCALARS)
    if isinstance(checkpoint, dict) and "state_dict" in checkpoint:
        checkpoint = checkpoint["state_dict"]
    state = tensors_of(checkpoint, path)
    if all(name.startswith("module.") for name in state):
        state = under(state, "module.")
    if not any(name.startswith("base_encoder.") for name in state):
        kind = "a linear probe or a fine-tuned classifier" if "head.weight" in state else "something else"
        raise CheckpointError(
            f"{path} is not of a PatchMix pretraining: it has no `base_encoder.`, so it is {kind}. Give the file that the "
            "pretraining has written (last.pth, or one of its periodic checkpoints)."
        )
    return state


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors under this library's names.

    Args:
        state (`dict[str, torch.Tensor]`): The tensors of an official file, see [`load_official`].

    Returns:
        `dict[str, torch.Tensor]`: the state dict of a [`PatchMixForPreTraining`].

    Raises:
        [`CheckpointError`]: a tensor has no place in the model.
    """
    converted = {name: tensor for name, tensor in state.items() if name.startswith("predictor.")}
    for official, ours in _BRANCHES.items():
        branch = under(state, official)
        head = under(branch, "head.")
        converted |= {f"{ours}projector.{name}": tensor for name, tensor in head.items()}
        encoder = {name: tensor for name, tensor in branch.items() if not name.startswith("head.")}
        converted |= {
            f"{ours}backbone.{name}": tensor for name, tensor in vit_from_official(encoder, official).items()
        }
    for name in state:
        if not name.startswith(("predictor.", *_BRANCHES)):
            raise CheckpointError(
                f"The tensor {name!r} is not part of a PatchMix. If the checkpoint is another method's, name it with "
                "--method."
            )
    return converted


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    The inverse of [`from_official`]. It takes any tensors that have the shapes of the weights (gradients, updated weights)
    and any subset of whole layers.

    Args:
        state (`dict[str, torch.Tensor]`): Tensors by this library's names.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    result = {name: tensor for name, tensor in state.items() if name.startswith("predictor.")}
    for official, ours in _BRANCHES.items():
        encoder = vit_to_official(under(state, f"{ours}backbone."))
        result |= {official + name: tensor for name, tensor in encoder.items()}
        result |= {f"{official}head.{name}": t for name, t in under(state, f"{ours}projector.").items()}
    return result


def config_from_official(state: dict[str, Tensor], num_attention_heads: int | None = None) -> PatchMixConfig:
    """
    Read the architecture off the shapes of an official checkpoint. What no shape tells (temperature, group size, smoothing,
    small views) has the authors' values.

    Args:
        state (`dict[str, torch.Tensor]`):
            The tensors of an official file, see [`load_official`].
        num_attention_heads (`int`, *optional*):
            Heads of the attention; unset, those of the authors' model of this width.

    Returns:
        [`PatchMixConfig`].

    Raises:
        [`CheckpointError`]: there is no ViT encoder, or the heads cannot be told.
    """
    projector, predictor = (_linear_layers(under(state, prefix)) for prefix in ("base_encoder.head.", "predictor."))
    if not projector or not predictor:
        raise CheckpointError(
            "The checkpoint holds no projector or no predictor (`base_encoder.head.`, `predictor.`)."
        )
    fields: dict[str, Any] = {}
    hidden = [weights[0] for weights in (projector, predictor) if len(weights) > 1]
    if hidden:
        fields["projection_hidden_dim"] = len(hidden[0])
    backbone_config = vit_config_from_official(
        under(state, "base_encoder."), num_attention_heads, official_heads=_OFFICIAL_HEADS
    )
    return PatchMixConfig(
        backbone_config=backbone_config,
        num_local_views=0 if backbone_config.image_size == 32 else 8,  # none on CIFAR
        use_teacher=any(name.startswith("momentum_encoder.") for name in state),
        projection_dim=len(projector[-1]),
        num_projector_layers=len(projector),
        num_predictor_layers=len(predictor),
        **fields,
    )


def _linear_layers(head: dict[str, Tensor]) -> list[Tensor]:
    """The weights of a head's linear layers, in their order."""
    weights = {int(name.split(".")[0]): t for name, t in head.items() if name.endswith(".weight") and t.ndim == 2}
    return [weights[index] for index in sorted(weights)]


def convert(path: str | Path, num_attention_heads: int | None = None) -> PatchMixForPreTraining:
    """
    An official checkpoint as a model of this library.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the width does not tell them.

    Returns:
        [`PatchMixForPreTraining`]: in eval mode, every weight and statistic taken from the checkpoint.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit a PatchMix to the last tensor.
    """
    state = load_official(path)
    with must_fit(path, "a PatchMix"):
        model = PatchMixForPreTraining(config_from_official(state, num_attention_heads))
        model.load_state_dict(from_official(state), strict=True)
    check_round_trip(state, to_official(model.state_dict()))
    return model.eval()


def official_encoder(path: str | Path, which: str | None = None) -> dict[str, Tensor]:
    """
    An encoder's tensors as they stand in an official file, under the names of timm's ViT.

    Args:
        path (`str` or `Path`): The authors' file.
        which (`str`, *optional*): `"student"` or `"teacher"`; unset, the teacher if there is one.

    Returns:
        `dict[str, torch.Tensor]`: the tensors.
    """
    state = load_official(path)
    teacher = under(state, "momentum_encoder.")
    encoder = teacher if teacher and which != "student" else under(state, "base_encoder.")
    return {name: tensor for name, tensor in encoder.items() if not name.startswith("head.")}


__all__ = [
    "CheckpointError",
    "config_from_official",
    "convert",
    "from_official",
    "load_official",
    "official_encoder",
    "to_official",
]
