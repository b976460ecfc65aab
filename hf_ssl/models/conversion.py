"""What the converters of official checkpoints share: the names of a ViT, models that are filled with tensors, the proofs.

The authors' encoders are timm's ViT, or have its names: one matrix for queries, keys and values, which transformers keeps
as three.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedConfig, PreTrainedModel, ViTConfig

from .official_files import CheckpointError, State, under


Model = TypeVar("Model", bound=nn.Module)

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
            raise CheckpointError(f"The tensor {prefix + name!r} is not part of a ViT encoder.")
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


def filled(
    model_class: type[Model], config: PreTrainedConfig, weights: Mapping[str, Tensor], fresh: tuple[str, ...] = ()
) -> Model:
    """
    A model with the tensors of a file. Memory is asked for only when they have proved to fit: the sizes of a model are read
    off a few shapes, and may contradict the others.

    Args:
        model_class (`type`): Its class.
        config (`PreTrainedConfig`): Its configuration.
        weights (`Mapping[str, torch.Tensor]`): Its state dict.
        fresh (`tuple[str, ...]`, *optional*): How names of tensors begin that the file lacks, and that stay as they are
            initialized.

    Returns:
        `torch.nn.Module`: in eval mode.
    """
    with torch.device("meta"):
        _fill(model_class(config), {name: tensor.to("meta") for name, tensor in weights.items()}, fresh)
    return _fill(model_class(config), weights, fresh).eval()


def _fill(model: Model, weights: Mapping[str, Tensor], fresh: tuple[str, ...]) -> Model:
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(fresh)}
    model.load_state_dict({**own, **weights}, strict=True)
    return model


def make_classifier(
    config: PreTrainedConfig, encoder: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> PreTrainedModel:
    """
    The classifier that transformers has of an encoder.

    Args:
        config (`PreTrainedConfig`): Configuration of the encoder; the number of classes is set in it.
        encoder (`Mapping[str, torch.Tensor]`): The encoder's tensors, under the names of transformers.
        head (`Mapping[str, torch.Tensor]`): `weight` and `bias` of the linear layer on top.

    Returns:
        `transformers.PreTrainedModel`: in eval mode.
    """
    config.num_labels = len(head["weight"])
    model_class: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    weights = {f"{model_class.base_model_prefix}.{name}": tensor for name, tensor in encoder.items()}
    weights |= {f"classifier.{name}": tensor for name, tensor in head.items()}
    model: PreTrainedModel = filled(model_class, config, weights)
    return model


def vit_classifier(state: Mapping[str, Tensor], num_attention_heads: int | None, **options: Any) -> PreTrainedModel:
    """
    An official classifier with a ViT.

    Args:
        state (`Mapping[str, torch.Tensor]`): Its tensors under the names of timm, with `head.weight` and `head.bias`.
        num_attention_heads (`int`, *optional*): As for [`vit_config_from_official`].
        options: Other arguments of [`vit_config_from_official`].

    Returns:
        `transformers.ViTForImageClassification`: in eval mode.
    """
    encoder = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    config = vit_config_from_official(encoder, num_attention_heads, **options)
    return make_classifier(config, vit_from_official(encoder), under(state, "head."))


def vit_classifier_to_official(model: PreTrainedModel) -> State:
    """The inverse of [`vit_classifier`]."""
    encoder, head = vit_to_official(under(model.state_dict(), "vit.")), under(model.state_dict(), "classifier.")
    return encoder | {f"head.{name}": tensor for name, tensor in head.items()}


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
    except (
        *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
        StrictDataclassError,
    ) as error:
        reason = str(error) if len(str(error)) < 1500 else f"{str(error)[:1500]} …"  # torch lists every tensor
        raise CheckpointError(f"{path} does not fit {title} of the sizes read off its tensors: {reason}") from error


def check_round_trip(expected: Mapping[str, Tensor], restored: Mapping[str, Tensor]) -> None:
    """
    Every tensor of a file can be had back from the model, equal, and no other.

    Args:
        expected (`Mapping[str, torch.Tensor]`): The tensors of the file.
        restored (`Mapping[str, torch.Tensor]`): Those of the model, by official names.

    Raises:
        [`CheckpointError`]: a tensor is missing or differs, or is of a training that has diverged.
    """
    differing = [n for n, tensor in expected.items() if n not in restored or not _equal(restored[n], tensor)]
    if differing or len(restored) != len(expected):
        raise CheckpointError(
            f"These tensors have no place in the model, or were not carried over exactly: "
            f"{differing or 'more than the file holds'}."
        )
    diverged = [name for name, tensor in expected.items() if not tensor.isfinite().all()]
    if diverged:
        raise CheckpointError(
            f"The tensor {diverged[0]!r} holds numbers that are not finite ({len(diverged)} of {len(expected)} tensors do): "
            "the training has diverged, or the file is damaged."
        )


def _equal(restored: Tensor, tensor: Tensor) -> bool:
    """Equal after conversion to float32, not-a-number where the file has it."""
    if tensor.is_complex():
        return False
    return torch.allclose(restored.float(), tensor.float(), rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def reference_vit(state: Mapping[str, Tensor], config: Any, pixel_values: Tensor) -> Tensor:
    """
    What timm's ViT computes with the tensors of an official checkpoint, as they stand in the file.

    Args:
        state (`Mapping[str, torch.Tensor]`): The encoder's tensors, under the names of timm; of a classifier, with
            `head.weight` and `head.bias`.
        config (`transformers.ViTConfig`): Tells what no tensor does: heads of the attention, epsilon of the LayerNorms.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images of the native size.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1 + num_patches, width)`: the tokens; of a classifier the logits, of shape
        `(batch_size, num_classes)`.
    """
    head = under(state, "head.")
    encoder = {name: tensor.float() for name, tensor in state.items() if not name.startswith("head.")}
    width, _, patch_size, _ = encoder["patch_embed.proj.weight"].shape
    model = VisionTransformer(
        img_size=pixel_values.shape[-1],
        patch_size=patch_size,
        num_classes=0,
        embed_dim=width,
        depth=len({name.split(".")[1] for name in encoder if name.startswith("blocks.")}),
        num_heads=config.num_attention_heads,
        mlp_ratio=len(encoder["blocks.0.mlp.fc1.weight"]) / width,
        qkv_bias="blocks.0.attn.qkv.bias" in encoder,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
    )
    model.load_state_dict(encoder, strict=True)
    tokens: Tensor = model.eval().forward_features(pixel_values)
    return F.linear(tokens[:, 0], head["weight"].float(), head["bias"].float()) if head else tokens


__all__ = [
    "CheckpointError",
    "check_round_trip",
    "filled",
    "make_classifier",
    "must_fit",
    "reference_vit",
    "vit_classifier",
    "vit_classifier_to_official",
    "vit_config_from_official",
    "vit_from_official",
    "vit_to_official",
]
