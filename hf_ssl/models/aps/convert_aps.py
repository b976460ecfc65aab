"""The authors' APS checkpoints, pretrained and fine-tuned, to this library's model and to stock transformers, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification

from ..conversion import (
    CheckpointError,
    StandIn,
    check_round_trip,
    load_checkpoint,
    module_tensors,
    must_fit,
    tensors_of,
    under,
    vit_config_from_official,
    vit_from_official,
    vit_to_official,
)
from .configuration_aps import APSConfig
from .modeling_aps import APSForPreTraining


# Their names of a ViT's parts and timm's.
_TIMM_NAMES = {"patchify.": "patch_embed.proj.", "transformer.": "blocks.", "layer_norm.": "norm."}
_APS_NAMES = {timms: theirs for theirs, timms in _TIMM_NAMES.items()}
_ENCODER, _PROJECTOR, _PREDICTOR = "base_encoder.", "base_encoder.fc.", "predictor."


@dataclass(frozen=True)
class OfficialCheckpoint:
    """
    What is read from an official file.

    Args:
        tensors (`dict[str, torch.Tensor]`): Its tensors by official names.
        num_attention_heads (`int`, *optional*): Heads of the attention; only files of whole modules tell them.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the LayerNorms; 1e-5 is that of timm 0.6.11.
    """

    tensors: dict[str, Tensor]
    num_attention_heads: int | None = None
    layer_norm_eps: float = 1e-5

    @property
    def is_classifier(self) -> bool:
        """Whether it was fine-tuned: an encoder and a linear layer on its class token."""
        return "cls_token" in self.tensors


def load_official(path: str | Path) -> OfficialCheckpoint:
    """
    Read an official file without running any code that it may contain.

    Args:
        path (`str` or `Path`):
            The `state_dict` that pretraining leaves; or what fine-tuning leaves, a whole pickled module (of which only
            tensors and numbers are read) or its `state_dict`. Names may begin with `module.`.

    Returns:
        [`OfficialCheckpoint`]: the tensors, without `module.`.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, or neither a pretraining nor a classifier of APS.
    """
    content = load_checkpoint(path, use_stand_ins=True)
    settings: dict[str, Any] = {}
    if isinstance(content, StandIn):
        state, settings = module_tensors(content, path), _settings(content)
    else:
        if isinstance(content, dict) and "state_dict" in content:
            content = content["state_dict"]
        state = tensors_of(content, path)
    if all(name.startswith("module.") for name in state):
        state = under(state, "module.")
    checkpoint = OfficialCheckpoint(state, **settings)
    if not any(name.startswith(_ENCODER) for name in state) and not checkpoint.is_classifier:
        raise CheckpointError(
            f"{path} is not of APS: it has neither `base_encoder.`, as what pretraining leaves, nor `cls_token`, as what "
            "fine-tuning does. If the checkpoint is another method's, name it with --method."
        )
    return checkpoint


def _settings(module: StandIn) -> dict[str, Any]:
    """What a whole module tells beside its tensors."""

    def find(part: Any, *names: str) -> Any:
        for name in names:
            part = part.__dict__.get("_modules", {}).get(name) if isinstance(part, StandIn) else None
        return part

    model = find(module, "module") or module
    block = find(find(model, "base_encoder") or model, "transformer", "0")
    heads = getattr(find(block, "attn"), "num_heads", None)
    eps = getattr(find(block, "norm1"), "eps", None)
    settings: dict[str, Any] = {}
    if type(heads) is int:  # a bool is none
        settings["num_attention_heads"] = heads
    if isinstance(eps, float) and 0 < eps < 1:
        settings["layer_norm_eps"] = eps
    return settings


def encoder_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    An encoder's official tensors under the names of timm's ViT, whose class token has a position as well: zero.

    Args:
        state (`Mapping[str, torch.Tensor]`): The encoder's tensors, without `base_encoder.`.

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
            raise CheckpointError(
                f"The tensor {name!r} is not part of an APS. If the checkpoint is another method's, name it with --method."
            )
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


def _heads(checkpoint: OfficialCheckpoint, given: int | None) -> int | None:
    """What the file tells, or the user."""
    told = checkpoint.num_attention_heads
    if told is not None and given not in (None, told):
        raise CheckpointError(f"--num_attention_heads {given} contradicts the file, whose attention has {told}.")
    return given if told is None else told


def config_from_official(checkpoint: OfficialCheckpoint, num_attention_heads: int | None = None) -> APSConfig:
    """
    Read the architecture off the shapes of an official checkpoint of a pretraining. What no shape tells (temperature, the
    sampling of patches) has the authors' values.

    Args:
        checkpoint ([`OfficialCheckpoint`]):
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
            _heads(checkpoint, num_attention_heads),
            layer_norm_eps=checkpoint.layer_norm_eps,
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
    with must_fit(path, "an APS"):
        if checkpoint.is_classifier:
            return _convert_classifier(checkpoint, num_attention_heads).eval()
        model = APSForPreTraining(config_from_official(checkpoint, num_attention_heads))
        model.load_state_dict(from_official(checkpoint.tensors), strict=True)
    check_round_trip(checkpoint.tensors, to_official(model.state_dict()))
    return model.eval()


def _convert_classifier(checkpoint: OfficialCheckpoint, num_attention_heads: int | None) -> ViTForImageClassification:
    state = checkpoint.tensors
    if not {"fc.weight", "fc.bias"} <= state.keys():
        raise CheckpointError(
            "The file has an encoder, but neither the heads of a pretraining (`base_encoder.fc.`, `predictor.`) nor a "
            "classifier (`fc.weight`, `fc.bias`): give the file that pretraining or fine-tuning has written."
        )
    encoder = encoder_from_official({name: t for name, t in state.items() if not name.startswith("fc.")})
    config = vit_config_from_official(
        encoder, _heads(checkpoint, num_attention_heads), layer_norm_eps=checkpoint.layer_norm_eps
    )
    config.num_labels = len(state["fc.weight"])
    model = ViTForImageClassification(config)
    weights = {f"vit.{name}": tensor for name, tensor in vit_from_official(encoder).items()}
    weights |= {f"classifier.{name}": tensor for name, tensor in under(state, "fc.").items()}
    model.load_state_dict(weights, strict=True)
    saved = model.state_dict()
    restored = encoder_to_official(vit_to_official(under(saved, "vit.")))
    check_round_trip(state, restored | {f"fc.{name}": t for name, t in under(saved, "classifier.").items()})
    return model


def official_encoder(path: str | Path, which: str | None = None) -> dict[str, Tensor]:
    """
    An encoder's tensors as they stand in an official file, under the names of timm's ViT.

    Args:
        path (`str` or `Path`): The authors' file.
        which (`str`, *optional*): APS has one encoder, the student.

    Returns:
        `dict[str, torch.Tensor]`: the tensors; `head.weight` and `head.bias` are a classifier's.
    """
    checkpoint = load_official(path)
    state = checkpoint.tensors if checkpoint.is_classifier else under(checkpoint.tensors, _ENCODER)
    encoder = encoder_from_official({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
    head = under(state, "fc.") if checkpoint.is_classifier else {}
    return encoder | {f"head.{name}": tensor for name, tensor in head.items()}


__all__ = [
    "CheckpointError",
    "OfficialCheckpoint",
    "config_from_official",
    "convert",
    "encoder_from_official",
    "encoder_to_official",
    "from_official",
    "load_official",
    "official_encoder",
    "to_official",
]
