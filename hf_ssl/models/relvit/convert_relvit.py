"""The authors' RelViT checkpoints (of PyTorch Lightning 1.3.1) to this library's model and to stock transformers, and back.

The authors' class for each relation has its own projections; here they are joined. Value projections of the pair heads are
dropped: the authors' code never reads their result, and they are never trained.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...backbones import SwinTrunk, ViTTrunk, publish, publish_swin, publish_vit
from ...backbones.modeling_t2t_vit import T2TViTModel
from ..conversion import (
    check_round_trip,
    filled,
    make_classifier,
    must_fit,
    reference_vit,
    vit_config_from_official,
    vit_from_official,
    vit_to_official,
)
from ..official_files import CheckpointError, State, load_checkpoint, tensors_of, under
from .configuration_relvit import RelViTConfig
from .convert_encoders import SWIN, T2T_VIT, swin_config_from_official, t2t_config_from_official, token_module
from .modeling_relvit import NUM_RELATIONS, RelViTForPreTraining
from .reference_relvit import swin_tokens, t2t_tokens


_TASKS = {"relations": "rel_head.", "positions": "abs_pos_head.", "distances": "dist_head.", "angles": "angle_head."}
_TASK_HEADS = tuple(_TASKS.values())
_PAIR_HEADS = {"rel_head": "relation_head", "dist_head": "distance_head", "angle_head": "angle_head"}
_SCORER = re.compile(rf"({'|'.join(_PAIR_HEADS)})\.heads\.\d+\.[qkv]_lin\.weight")
_UNUSED = re.compile(rf"({'|'.join(_PAIR_HEADS)})\.heads\.\d+\.v_lin\.weight")


@dataclass(frozen=True)
class _Encoder:
    """What is known of an encoder in the authors' files: how tensors are renamed, there and back, its sizes, its class."""

    from_official: Callable[..., State]
    to_official: Callable[..., State]
    config: Callable[[State, int | None], PreTrainedConfig]
    network: type[Any]
    publish: Callable[[Any], PreTrainedModel]
    # The authors' name of the class head, and of tensors that are made anew here, or read by nothing.
    classifier: str = "clf_head"
    unused: Callable[[str], bool] = lambda name: False
    drop_path_rate: float = 0.0


_VIT = _Encoder(vit_from_official, vit_to_official, vit_config_from_official, network=ViTTrunk, publish=publish_vit)
_SWIN = _Encoder(
    *(SWIN.from_official, SWIN.to_official, lambda state, heads: swin_config_from_official(state)),
    network=SwinTrunk,
    publish=publish_swin,
    classifier="backbone.head",  # and their `clf_head` is left as it was initialized
    unused=SWIN.is_unused,
    drop_path_rate=0.1,
)
_T2T_VIT = {
    kind: _Encoder(
        *(names.from_official, names.to_official, t2t_config_from_official),
        network=T2TViTModel,
        publish=publish,
        unused=names.is_unused,
    )
    for kind, names in T2T_VIT.items()
}


def _encoder_of(official: Mapping[str, Tensor]) -> _Encoder:
    """By the tensors of an encoder, under official names."""
    if any(name.startswith("tokens_to_token.") for name in official):
        return _T2T_VIT[token_module(official)]
    return _SWIN if any(".blocks." in name for name in official) else _VIT


def load_official(path: str | Path) -> State:
    """
    The tensors of an official file, read without running any code it may contain.

    Args:
        path (`str` or `Path`):
            A Lightning `.ckpt`/`.pth` file, upstream, joint or downstream; or one of the files of an encoder that the
            authors' fine-tuning takes instead: its tensors, those under `model` (as in the release of Swin), or those under
            the file's only key.

    Returns:
        `dict[str, torch.Tensor]`: the file's `state_dict`; of an encoder, as it would be in one (`backbone.…`).

    Raises:
        [`CheckpointError`]: the file is missing, damaged, or holds something else.
    """
    content = load_checkpoint(path)
    state = tensors_of(_state_dict(content), path)
    if not any(name.startswith(("backbone.", "patch_embed.", "tokens_to_token.")) for name in state):
        raise CheckpointError(
            f"{path} is not of RelViT: it has neither `backbone.`, as what the authors' training leaves, nor the tensors of "
            "an encoder alone (`patch_embed.`, `tokens_to_token.`)."
        )
    return state


def _state_dict(content: Any) -> Any:
    """What a file has under `state_dict` or `model`, or under its only key; or the file itself."""
    if not isinstance(content, dict):
        return content
    inner = content.get("state_dict", content.get("model"))
    if inner is None and len(content) == 1:
        (inner,) = content.values()
    return inner if isinstance(inner, dict) else content


def _backbone(state: Mapping[str, Tensor]) -> State:
    """The encoder's tensors, whether it is alone in its file or not."""
    if any(name.startswith("backbone.") for name in state):
        return under(state, "backbone.")
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def _is_downstream(state: Mapping[str, Tensor]) -> bool:
    """Whether the encoder was fine-tuned for classification, and for nothing else."""
    return "clf_head.weight" in state and not any(name.startswith(_TASK_HEADS) for name in state)


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
            raise CheckpointError(f"The tensor {name!r} is not part of a RelViT.")
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
    if not any(name.startswith((*_TASK_HEADS, "clf_head.")) for name in state):
        raise CheckpointError(
            "The checkpoint holds an encoder without any of RelViT's heads; there is no loss to rebuild."
        )
    tasks = [task for task, head in _TASKS.items() if any(name.startswith(head) for name in state)]
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


def convert(path: str | Path, num_attention_heads: int | None = None) -> PreTrainedModel:
    """
    An official checkpoint as a model.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the width does not tell them.

    Returns:
        `transformers.PreTrainedModel`: a [`RelViTForPreTraining`]; of a downstream file the classifier that transformers has
        of the encoder, and of an encoder alone that encoder. In eval mode, every weight taken from the checkpoint.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit a RelViT to the last tensor.
    """
    state = load_official(path)
    model: PreTrainedModel
    with must_fit(path, "a RelViT"):
        backbone = _backbone(state)
        encoder = _encoder_of(backbone)
        if not any(name.startswith("backbone.") for name in state):
            network = filled(
                encoder.network, encoder.config(backbone, num_attention_heads), encoder.from_official(backbone)
            )
            model, restored = encoder.publish(network), encoder.to_official(network.state_dict())
        elif _is_downstream(state):
            head = under(state, f"{encoder.classifier}.")
            config = encoder.config(backbone, num_attention_heads)
            model = make_classifier(config, encoder.from_official(backbone, "backbone."), head)
            restored = _classifier_to_official(model, encoder)
        else:
            config = config_from_official(state, num_attention_heads)
            model = filled(RelViTForPreTraining, config, from_official(state))
            restored = to_official(model.state_dict())
    classifier = (f"{encoder.classifier}.",) if "clf_head.weight" in state else ()
    used = {name: t for name, t in state.items() if name.startswith(classifier) or not _is_unused(name, encoder)}
    check_round_trip(used, restored)
    return model


def _classifier_to_official(model: PreTrainedModel, encoder: _Encoder) -> State:
    weights = model.state_dict()
    backbone = encoder.to_official(under(weights, f"{model.base_model_prefix}."))
    return {
        **{f"backbone.{name}": tensor for name, tensor in backbone.items()},
        **{f"{encoder.classifier}.{name}": tensor for name, tensor in under(weights, "classifier.").items()},
    }


def _is_unused(name: str, encoder: _Encoder) -> bool:
    """Whether nothing is computed with a tensor of a file, unless it is that of the classifier."""
    in_encoder = encoder.unused(name.removeprefix("backbone."))
    return in_encoder or name.startswith(("head.", "clf_head.")) or _UNUSED.fullmatch(name) is not None


@torch.no_grad()
def reference(path: str | Path, pixel_values: Tensor, config: Any, which: str | None = None) -> Tensor:
    """
    What another implementation computes with the tensors of an official file, as they stand in it: timm's ViT and Swin, or
    the T2T-ViT of `reference_relvit`.

    Args:
        path (`str` or `Path`): The authors' file.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images.
        config (`PreTrainedConfig`): Configuration of the converted encoder or classifier; of it, heads of the attention and
            a ViT's epsilon are used, which no tensor tells.
        which (`str`, *optional*): RelViT has one encoder, the student.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, width)`: the tokens; of a classifier the logits, of shape
        `(batch_size, num_classes)`.
    """
    state = load_official(path)
    backbone = _backbone(state)
    encoder = _encoder_of(backbone)
    head = under(state, f"{encoder.classifier}.") if _is_downstream(state) else {}
    if encoder is _VIT:
        if any(name.startswith(_TASK_HEADS) for name in state) and "clf_head.weight" not in state:  # upstream
            backbone["pos_embed"] = torch.zeros_like(backbone["pos_embed"])
        return reference_vit(
            backbone | {f"head.{name}": tensor for name, tensor in head.items()}, config, pixel_values
        )
    if encoder is _SWIN:
        tokens = swin_tokens(backbone, pixel_values)
        pooled = tokens.mean(1)
    else:
        tokens = t2t_tokens(backbone, config.num_attention_heads, pixel_values)
        pooled = tokens[:, 0]
    return F.linear(pooled, head["weight"].float(), head["bias"].float()) if head else tokens


__all__ = [
    "CheckpointError",
    "config_from_official",
    "convert",
    "from_official",
    "load_official",
    "reference",
    "to_official",
]
