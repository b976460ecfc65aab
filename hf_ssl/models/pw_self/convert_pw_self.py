"""The authors' PW-Self checkpoints to this library's model, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from ..conversion import (
    check_round_trip,
    filled,
    must_fit,
    reference_vit,
    vit_config_from_official,
    vit_from_official,
    vit_to_official,
)
from ..official_files import CheckpointError, StandIn, load_checkpoint, tensors_of, under
from .configuration_pw_self import PWSelfConfig
from .modeling_pw_self import PWSelfForPreTraining


@dataclass(frozen=True)
class OfficialCheckpoint:
    """
    What is read from an official file.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            Its tensors: those of the `student.` and the `teacher.`, without `module.`, and the `center`.
        arguments (`dict[str, Any]`):
            Arguments of the authors' script, by name; they tell what no tensor does.
    """

    tensors: dict[str, Tensor]
    arguments: dict[str, Any]


def load_official(path: str | Path) -> OfficialCheckpoint:
    """
    Read an official file without running any code that it may contain.

    Args:
        path (`str` or `Path`): A checkpoint of the pretraining.

    Returns:
        [`OfficialCheckpoint`]: its content.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, holds other objects, or is not of a pretraining.
    """
    content = load_checkpoint(path)
    if isinstance(content, dict) and "best_acc" in content:
        raise CheckpointError(
            f"{path} is of PW-Self's linear evaluation, and holds a linear layer without an encoder: give the checkpoint of "
            "the pretraining (checkpoint.pth, checkpoint0020.pth, …)."
        )
    if not isinstance(content, dict) or "teacher" not in content:
        raise CheckpointError(
            f"{path} is not of a PW-Self pretraining: it has no `teacher`. Give a checkpoint that pretraining has written "
            "(checkpoint.pth, checkpoint0020.pth, …)."
        )
    tensors: dict[str, Tensor] = {}
    for branch in ("student", "teacher"):
        # A file that was cut down to the teacher is as good: the student starts from it.
        state = tensors_of(content.get(branch, content["teacher"]), path)
        tensors |= {f"{branch}.{name}": tensor for name, tensor in state.items()}
    loss = content.get("dino_loss")
    if isinstance(loss, dict) and loss.get("center") is not None:
        tensors |= tensors_of({"center": loss["center"]}, path)
    arguments = content.get("args") or {}
    if isinstance(arguments, StandIn):  # an argparse.Namespace
        arguments = arguments.__dict__
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path} holds a {type(arguments).__name__} as `args`, not the arguments of a script.")
    return OfficialCheckpoint(tensors, arguments)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors under this library's names.

    Args:
        state (`Mapping[str, torch.Tensor]`): The tensors of an [`OfficialCheckpoint`].

    Returns:
        `dict[str, torch.Tensor]`: the state dict of a [`PWSelfForPreTraining`].

    Raises:
        [`CheckpointError`]: a tensor has no place in the model.
    """
    converted = {"center": state["center"][0]} if "center" in state else {}
    for branch in ("student.", "teacher."):
        encoder = vit_from_official(under(state, f"{branch}backbone."), f"{branch}backbone.")
        converted |= {f"{branch}backbone.{name}": tensor for name, tensor in encoder.items()}
        converted |= {f"{branch}head.{name}": tensor for name, tensor in under(state, f"{branch}head.").items()}
    for name in state:
        if name != "center" and not name.startswith(
            ("student.backbone.", "student.head.", "teacher.backbone.", "teacher.head.")
        ):
            raise CheckpointError(f"The tensor {name!r} is not part of a PW-Self.")
    return converted


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    The inverse of [`from_official`]. It takes any tensors that have the shapes of the weights (gradients, updated weights)
    and any subset of whole layers.

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors by this library's names.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    result = {"center": state["center"][None]} if "center" in state else {}
    for branch in ("student.", "teacher."):
        encoder = vit_to_official(under(state, f"{branch}backbone."))
        result |= {f"{branch}backbone.{name}": tensor for name, tensor in encoder.items()}
        result |= {f"{branch}head.{name}": tensor for name, tensor in under(state, f"{branch}head.").items()}
    return result


# Their arguments and our options.
_OPTIONS = {
    "local_crops_number": "num_local_views",
    "norm_last_layer": "norm_last_layer",
    "teacher_temp": "teacher_temperature",
    "warmup_teacher_temp": "warmup_teacher_temperature",
    "warmup_teacher_temp_epochs": "teacher_temperature_warmup_epochs",
    "momentum_teacher": "teacher_momentum",
    "freeze_last_layer": "frozen_last_layer_epochs",
    "drop_path_rate": "drop_path_rate",
}


def config_from_official(checkpoint: OfficialCheckpoint, num_attention_heads: int | None = None) -> PWSelfConfig:
    """
    Read the architecture off the shapes of an official checkpoint, and what no shape tells off its arguments.

    Args:
        checkpoint ([`OfficialCheckpoint`]): The checkpoint.
        num_attention_heads (`int`, *optional*): Heads of the attention; unset, width / 64, as in the authors' models.

    Returns:
        [`PWSelfConfig`].

    Raises:
        [`CheckpointError`]: there is no ViT encoder, no head, or the heads of the attention cannot be told.
    """
    state = checkpoint.tensors
    if "teacher.head.last_layer.weight_v" not in state or "teacher.head.mlp.0.weight" not in state:
        raise CheckpointError("The checkpoint holds no head (`head.mlp`, `head.last_layer.weight_v`).")
    prototypes = state["teacher.head.last_layer.weight_v"]
    return PWSelfConfig(
        backbone_config=vit_config_from_official(under(state, "teacher.backbone."), num_attention_heads),
        num_prototypes=len(prototypes),
        head_bottleneck_dim=prototypes.shape[1],
        head_hidden_dim=len(state["teacher.head.mlp.0.weight"]),
        **{ours: checkpoint.arguments[theirs] for theirs, ours in _OPTIONS.items() if theirs in checkpoint.arguments},
    )


def convert(path: str | Path, num_attention_heads: int | None = None) -> PWSelfForPreTraining:
    """
    An official checkpoint as a model of this library.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the width does not tell them.

    Returns:
        [`PWSelfForPreTraining`]: in eval mode, every weight, and the center if there is one, taken from the checkpoint.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit a PW-Self to the last tensor.
    """
    checkpoint = load_official(path)
    fresh = () if "center" in checkpoint.tensors else ("center",)
    with must_fit(path, "a PW-Self"):
        config = config_from_official(checkpoint, num_attention_heads)
        model = filled(PWSelfForPreTraining, config, from_official(checkpoint.tensors), fresh)
    restored = to_official(model.state_dict())
    check_round_trip(checkpoint.tensors, {name: tensor for name, tensor in restored.items() if name not in fresh})
    return model


def reference(path: str | Path, pixel_values: Tensor, config: PreTrainedConfig, which: str | None = None) -> Tensor:
    """
    The tokens that timm computes with the tensors of an official file, as they stand in it.

    Args:
        path (`str` or `Path`): The authors' file.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images.
        config (`transformers.ViTConfig`): Configuration of the converted encoder, see
            [`~hf_ssl.models.conversion.reference_vit`].
        which (`str`, *optional*): `"student"` or `"teacher"`; unset, the teacher.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1 + num_patches, width)`.
    """
    return reference_vit(under(load_official(path).tensors, f"{which or 'teacher'}.backbone."), config, pixel_values)


__all__ = [
    "CheckpointError",
    "OfficialCheckpoint",
    "config_from_official",
    "convert",
    "from_official",
    "load_official",
    "reference",
    "to_official",
]
