"""What the class token of a vision transformer looks at."""

from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .encoders import LoadedEncoder
from .features import has_class_token, num_prefix_tokens
from .matching import patch_size


_NAME = "hf_ssl_class_token"
# The class token's weights of the blocks so far, where they are asked for.
_weights: ContextVar[list[Tensor] | None] = ContextVar("weights", default=None)
# A model whose attention was switched back by another thread would go on without being listened to.
_lock = Lock()


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """
    Fused attention, which gives no weights, and those of the first token beside it: the weights of all tokens in all
    blocks would take gigabytes at the image sizes that make good pictures.
    """
    weights = _weights.get()
    if weights is not None and query.shape[2] == key.shape[2]:
        scores = query[:, :, :1] @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        for bias in (attention_mask, options.get("position_bias")):
            if bias is not None:
                scores = scores + bias[..., :1, :]
        weights.append(scores.float().softmax(-1)[:, :, 0])
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


AttentionInterface.register(_NAME, _attend)


def attention_maps(encoder: LoadedEncoder, pixel_values: Tensor) -> Tensor:
    """
    Attention of the class token to the patches in the last block, for each head.

    Args:
        encoder ([`LoadedEncoder`]):
            A vision transformer with a class token: a ViT, DeiT, DINOv2, CLIP, … of transformers, or this library's
            T2T-ViT.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
            Processed images, of any size that the encoder takes; what is left over of a patch at the bottom and at the
            right is cut off, see [`crop_to_patches`].

    Returns:
        `torch.Tensor` of shape `(batch_size, heads, rows, columns)`: weights after the softmax, float32. They sum up
        to less than 1, as the class token also looks at itself and at registers.

    Raises:
        `ValueError`: the encoder has no class token, or its attention cannot be read.
    """
    model: Any = encoder.model
    kind = model.config.model_type
    if not has_class_token(model):
        raise ValueError(f"{encoder.name}, of type {kind}, has no class token, whose attention could be looked at.")
    unreadable = (
        f"The attention of {encoder.name}, of type {kind}, cannot be read: use a vision transformer of transformers."
    )
    if kind == "timm_wrapper":
        raise ValueError(unreadable)
    cropped = crop_to_patches(encoder, pixel_values)
    weights = (_t2t_weights if kind == "t2t_vit" else _last_weights)(encoder, cropped)
    sides, prefix = patch_size(encoder) or (1, 1), num_prefix_tokens(model)
    rows, columns = (side // of_patch for side, of_patch in zip(cropped.shape[-2:], sides, strict=True))
    if weights is None or weights.shape[-1] != prefix + rows * columns:
        raise ValueError(unreadable)
    return weights[:, :, prefix:].unflatten(2, (rows, columns))


def crop_to_patches(encoder: LoadedEncoder, pixel_values: Tensor) -> Tensor:
    """
    Cut off what is left over of a patch at the bottom and at the right.

    Args:
        encoder ([`LoadedEncoder`]): The encoder.
        pixel_values (`torch.Tensor` of shape `(..., height, width)`): Images.

    Returns:
        `torch.Tensor` of shape `(..., rows * patch_height, columns * patch_width)`.

    Raises:
        `ValueError`: the encoder's configuration has no patch size, or an image is smaller than a patch.
    """
    sides = patch_size(encoder)
    if sides is None:
        raise ValueError(f"{encoder.name}, of type {encoder.model.config.model_type}, has no patches.")
    height, width = (side - side % of_patch for side, of_patch in zip(pixel_values.shape[-2:], sides, strict=True))
    if not height or not width:
        raise ValueError(
            f"An image of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels is smaller than a patch of "
            f"{sides[0]} x {sides[1]}: use larger ones."
        )
    return pixel_values[..., :height, :width]


def _last_weights(encoder: LoadedEncoder, pixel_values: Tensor) -> Tensor | None:
    """Of the class token in the last block, `(batch_size, heads, tokens)`, if its attention can be exchanged."""
    model: Any = encoder.model
    with _lock:
        usual, found = model.config._attn_implementation, _weights.set([])
        try:
            model.set_attn_implementation(_NAME)
            encoder.outputs(pixel_values)
            weights = _weights.get()
        finally:
            model.set_attn_implementation(usual)
            _weights.reset(found)
    return weights[-1] if weights else None


@torch.no_grad()
def _t2t_weights(encoder: LoadedEncoder, pixel_values: Tensor) -> Tensor:
    """The same of a T2T-ViT, which is a file of its own without exchangeable attention."""
    model: Any = encoder.model
    attention, seen = model.layers[-1].attention, []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        encoder.outputs(pixel_values)
    finally:
        hook.remove()
    query, key = (
        projection(tokens).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection, tokens in ((attention.q_proj, seen[0][:, :1]), (attention.k_proj, seen[0]))
    )
    return (query @ key.mT / query.shape[-1] ** 0.5).float().softmax(-1)[:, :, 0]


def attention_masks(attention: Tensor, mass: float = 0.6) -> Tensor:
    """
    The patches that get most of the attention, as DINO's and PW-Self's authors draw them: as few as hold a share of
    it.

    Args:
        attention (`torch.Tensor` of shape `(..., rows, columns)`):
            Attention to patches; each map is looked at by itself.
        mass (`float`, *optional*, defaults to 0.6): The share, in (0, 1].

    Returns:
        `torch.Tensor` of shape `(..., rows, columns)`, bool: the patches left when the least ones, which hold at most
        `1 - mass` of the map's sum together, are taken away. Of equal ones, the first go first.

    Raises:
        `ValueError`: the share is out of range, or a map is negative, not finite or zero everywhere.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass={mass} must lie in (0, 1].")
    maps = attention.flatten(-2)
    if not maps.isfinite().all() or (maps < 0).any() or not (maps.sum(-1) > 0).all():
        raise ValueError("`attention` must be finite, nowhere negative, and positive somewhere in each map.")
    ascending = maps.sort(dim=-1, stable=True)
    kept = (ascending.values / ascending.values.sum(-1, keepdim=True)).cumsum(-1) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, ascending.indices, kept).view(attention.shape)


__all__ = ["attention_maps", "attention_masks", "crop_to_patches"]
