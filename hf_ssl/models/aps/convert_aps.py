"""The authors' APS checkpoints, pretrained and fine-tuned, to this library's model and to stock transformers, and back."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..conversion import (
    check_round_trip,
    filled,
    must_fit,
    reference_vit,
    vit_classifier,
    vit_classifier_to_official,
    vit_config_from_official,
    vit_from_official,
    vit_to_official,
)
from ..official_files import CheckpointError, OfficialCheckpoint, read_official, under
from .configuration_aps import APSConfig
from .modeling_aps import APSForPreTraining


# Their names of a ViT's parts and timm's; `fc` is a classifier.
_TIMM_NAMES = {"patchify.": "patch_embed.proj.", "transformer.": "blocks.", "layer_norm.": "norm.", "fc.": "head."}
_APS_NAMES = {timms: theirs for theirs, timms in _TIMM_NAMES.items()}
_ENCODER, _PROJECTOR, _PREDICTOR = "base_encoder.", "base_encoder.fc.", "predictor."
_LAYER_NORM_EPS = 1e-5  # that of timm 0.6.11


def load_official(path: str | Path) -> OfficialCheckpoint:
    """
    Read an official file without running any code that it may contain.

    Args:
        path (`str` or `Path`):
            The `state_dict` that pretraining leaves; or what fine-tuning leaves, a whole pickled module (of which only
            tensors and numbers are read) or its `state_dict`. Names may begin with `module.`.

    Returns:
        [`~hf_ssl.models.official_files.OfficialCheckpoint`]: the tensors, without `module.`.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, or neither a pretraining nor a classifier of APS.
    """
    checkpoint = read_official(path)
    if not any(name.startswith(_ENCODER) for name in checkpoint.tensors) and not _is_classifier(checkpoint.tensors):
        raise CheckpointError(
            f"{path} is not of APS: it has neither `base_encoder.`, as what pretraining leaves, nor `fc.weight` and "
            "`fc.bias`, as what fine-tuning does."
        )
    return checkpoint


def _is_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether it was fine-tuned: an encoder and a linear layer on its class token."""
    return {"cls_token", "fc.weight", "fc.bias"} <= state.keys()


def encoder_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    An encoder's official tensors under the names of timm's ViT, whose class token has a position as well: zero.

    Args:
        state (`Mapping[str, torch.Tensor]`): The encoder's tensors, without `base_encoder.`; of a classifier, with `fc.`.

    Returns:
        `dict[str, torch.Tensor]`: the tensors.
    """
    renamed = {}
    for name, tensor in state.items():
        if name == "pos_embedding":
            positions = tensor.transpose(0, 1)
            renamed["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
            continue
        renamed[_rename(name, _TIMM_NAMES)] = tensor
    return renamed


def encoder_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    The inverse of [`encoder_from_official`]; the class token's position is left out, whatever it is.

    Args:
        state (`Mapping[str, torch.Tensor]`): The encoder's tensors, under the names of timm's ViT.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    renamed = {}
    for name, tensor in state.items():
        if name == "pos_embed":
            renamed["pos_embedding"] = tensor[:, 1:].transpose(0, 1)
            continue
        renamed[_rename(name, _APS_NAMES)] = tensor
    return renamed


def _rename(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with another beginning, if it has one that is known."""
    for before, after in prefixes.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors of a pretraining under this library's names.

    Args:
        state (`Mapping[str, torch.Tensor]`): The tensors of an official file, see [`load_official`].

    Returns:
        `dict[str, torch.Tensor]`: the state dict of an [`APSForPreTraining`].

    Raises:
        [`CheckpointError`]: a tensor has no place in the model.
    """
    for name in state:
        if not name.startswith((_ENCODER, _PREDICTOR)):
            raise CheckpointError(f"The tensor {name!r} is not part of an APS.")
    encoder = {name: tensor for name, tensor in under(state, _ENCODER).items() if not name.startswith("fc.")}
    encoder = vit_from_official(encoder_from_official(encoder), _ENCODER)
    return {
        **{f"student.backbone.{name}": tensor for name, tensor in encoder.items()},
        **{f"student.projector.{name}": tensor for name, tensor in under(state, _PROJECTOR).items()},
        **{name: tensor for name, tensor in state.items() if name.startswith(_PREDICTOR)},
    }


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    The inverse of [`from_official`]. It takes any tensors that have the shapes of the weights (gradients, updated weights)
    and any subset of whole layers.

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors by this library's names.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    encoder = encoder_to_official(vit_to_official(under(state, "student.backbone.")))
    return {
        **{_ENCODER + name: tensor for name, tensor in encoder.items()},
        **{_PROJECTOR + name: tensor for name, tensor in under(state, "student.projector.").items()},
        **{name: tensor for name, tensor in state.items() if name.startswith(_PREDICTOR)},
    }


def config_from_official(checkpoint: OfficialCheckpoint, num_attention_heads: int | None = None) -> APSConfig:
    """
    Read the architecture off the shapes of an official checkpoint of a pretraining. What no shape tells (temperature, the
    sampling of patches) has the authors' values.

    Args:
        checkpoint ([`~hf_ssl.models.official_files.OfficialCheckpoint`]):
            The checkpoint.
        num_attention_heads (`int`, *optional*):
            Heads of the attention; unset, those of the authors' model of this width.

    Returns:
        [`APSConfig`].

    Raises:
        [`CheckpointError`]: there is no ViT encoder, no projector, or the heads cannot be told.
    """
    state = checkpoint.tensors
    for name in ("base_encoder.fc.0.weight", "base_encoder.fc.6.weight", "predictor.6.weight"):
        if name not in state:
            raise CheckpointError(f"The checkpoint holds no projector or no predictor: {name!r} is missing.")
    return APSConfig(
        backbone_config=vit_config_from_official(
            encoder_from_official(under(state, _ENCODER)),
            checkpoint.heads(num_attention_heads),
            layer_norm_eps=checkpoint.layer_norm_eps or _LAYER_NORM_EPS,
        ),
        projection_dim=len(state["base_encoder.fc.6.weight"]),
        projection_hidden_dim=len(state["base_encoder.fc.0.weight"]),
    )


def convert(path: str | Path, num_attention_heads: int | None = None) -> PreTrainedModel:
    """
    An official checkpoint as a model.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where neither the file nor its width tells them.

    Returns:
        `transformers.PreTrainedModel`: an [`APSForPreTraining`]; of a fine-tuned file a
        `transformers.ViTForImageClassification`. In eval mode, every weight and statistic taken from the checkpoint.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit an APS to the last tensor.
    """
    checkpoint = load_official(path)
    state = checkpoint.tensors
    model: PreTrainedModel
    with must_fit(path, "an APS"):
        if _is_classifier(state):
            tensors, eps = encoder_from_official(state), checkpoint.layer_norm_eps or _LAYER_NORM_EPS
            model = vit_classifier(tensors, checkpoint.heads(num_attention_heads), layer_norm_eps=eps)
            restored = encoder_to_official(vit_classifier_to_official(model))
        else:
            config = config_from_official(checkpoint, num_attention_heads)
            model = filled(APSForPreTraining, config, from_official(state))
            restored = to_official(model.state_dict())
    check_round_trip(state, restored)
    return model


def reference(path: str | Path, pixel_values: Tensor, config: PreTrainedConfig, which: str | None = None) -> Tensor:
    """
    What timm computes with the tensors of an official file, as they stand in it.

    Args:
        path (`str` or `Path`): The authors' file.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images.
        config (`transformers.ViTConfig`): Configuration of the converted encoder or classifier, see
            [`~hf_ssl.models.conversion.reference_vit`].
        which (`str`, *optional*): APS has one encoder, the student.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1 + num_patches, width)`: the tokens; of a classifier the logits, of shape
        `(batch_size, num_classes)`.
    """
    state = load_official(path).tensors
    if not _is_classifier(state):
        state = {name: tensor for name, tensor in under(state, _ENCODER).items() if not name.startswith("fc.")}
    return reference_vit(encoder_from_official(state), config, pixel_values)


__all__ = [
    "CheckpointError",
    "config_from_official",
    "convert",
    "encoder_from_official",
    "encoder_to_official",
    "from_official",
    "load_official",
    "reference",
    "to_official",
]
