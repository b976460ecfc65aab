"""The authors' PatchMix checkpoints, pretrained, probed and fine-tuned, to this library's model and to stock transformers,
and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from .configuration_patchmix import PatchMixConfig
from .modeling_patchmix import PatchMixForPreTraining


# Heads of the authors' models by width: those of vit-small are MoCo v3's.
_OFFICIAL_HEADS = {192: 3, 384: 12, 768: 12}
_LAYER_NORM_EPS = 1e-6
_BRANCHES = {"base_encoder.": "student.", "momentum_encoder.": "teacher."}


def load_official(path: str | Path) -> OfficialCheckpoint:
    """
    Read an official file without running any code that it may contain.

    Args:
        path (`str` or `Path`):
            Of pretraining, or of a linear probe or fine-tuning: a periodic file, the last one, only its `state_dict`, or a
            whole pickled module (of which only tensors and numbers are read). Names may begin with `module.`.

    Returns:
        [`~hf_ssl.models.official_files.OfficialCheckpoint`]: the tensors, without `module.`.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, or neither a pretraining nor a classifier of PatchMix.
    """
    checkpoint = read_official(path)
    if not any(name.startswith("base_encoder.") for name in checkpoint.tensors) and not _is_classifier(
        checkpoint.tensors
    ):
        raise CheckpointError(
            f"{path} is not of PatchMix: it has neither `base_encoder.`, as what pretraining leaves, nor `head.weight` and "
            "`head.bias`, as what a linear probe and fine-tuning do."
        )
    return checkpoint


def _is_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether it is an encoder and a linear layer on its class token."""
    return {"cls_token", "head.weight", "head.bias"} <= state.keys()


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors under this library's names.

    Args:
        state (`Mapping[str, torch.Tensor]`): The tensors of a pretraining, see [`load_official`].

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
            raise CheckpointError(f"The tensor {name!r} is not part of a PatchMix.")
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
    result = {name: tensor for name, tensor in state.items() if name.startswith("predictor.")}
    for official, ours in _BRANCHES.items():
        encoder = vit_to_official(under(state, f"{ours}backbone."))
        result |= {official + name: tensor for name, tensor in encoder.items()}
        result |= {f"{official}head.{name}": t for name, t in under(state, f"{ours}projector.").items()}
    return result


def config_from_official(checkpoint: OfficialCheckpoint, num_attention_heads: int | None = None) -> PatchMixConfig:
    """
    Read the architecture off the shapes of an official checkpoint of a pretraining. What no shape tells (temperature, group
    size, smoothing, small views) has the authors' values.

    Args:
        checkpoint ([`~hf_ssl.models.official_files.OfficialCheckpoint`]):
            The checkpoint.
        num_attention_heads (`int`, *optional*):
            Heads of the attention; unset, those of the authors' model of this width.

    Returns:
        [`PatchMixConfig`].

    Raises:
        [`CheckpointError`]: there is no ViT encoder, or the heads cannot be told.
    """
    state = checkpoint.tensors
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
        under(state, "base_encoder."), checkpoint.heads(num_attention_heads), **_untold(checkpoint)
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


def _untold(checkpoint: OfficialCheckpoint) -> dict[str, Any]:
    """What no tensor tells."""
    return {"official_heads": _OFFICIAL_HEADS, "layer_norm_eps": checkpoint.layer_norm_eps or _LAYER_NORM_EPS}


def convert(path: str | Path, num_attention_heads: int | None = None) -> PreTrainedModel:
    """
    An official checkpoint as a model.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where neither the file nor its width tells them.

    Returns:
        `transformers.PreTrainedModel`: a [`PatchMixForPreTraining`]; of a linear probe or a fine-tuned file a
        `transformers.ViTForImageClassification`. In eval mode, every weight and statistic taken from the checkpoint.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit a PatchMix to the last tensor.
    """
    checkpoint = load_official(path)
    state = checkpoint.tensors
    model: PreTrainedModel
    with must_fit(path, "a PatchMix"):
        if _is_classifier(state):
            model = vit_classifier(state, checkpoint.heads(num_attention_heads), **_untold(checkpoint))
            restored = vit_classifier_to_official(model)
        else:
            config = config_from_official(checkpoint, num_attention_heads)
            model = filled(PatchMixForPreTraining, config, from_official(state))
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
        which (`str`, *optional*): `"student"` or `"teacher"`; unset, the teacher if there is one.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1 + num_patches, width)`: the tokens; of a classifier the logits, of shape
        `(batch_size, num_classes)`.
    """
    state = load_official(path).tensors
    if not _is_classifier(state):
        teacher = under(state, "momentum_encoder.")
        branch = teacher if teacher and which != "student" else under(state, "base_encoder.")
        state = {name: tensor for name, tensor in branch.items() if not name.startswith("head.")}
    return reference_vit(state, config, pixel_values)


__all__ = [
    "CheckpointError",
    "config_from_official",
    "convert",
    "from_official",
    "load_official",
    "reference",
    "to_official",
]
