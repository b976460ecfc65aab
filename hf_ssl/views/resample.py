"""Crop, resize and mirror a batch as two batched matrix products, `Wy @ image @ Wxᵀ`.

Each axis of each sample has its own small matrix of interpolation weights, so every image of a batch can be cropped
differently in one call, on any device, and gradients are not needed.
"""

from typing import Literal

import torch
from torch import Tensor


Interpolation = Literal["bilinear", "bicubic"]


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_(min=0)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, as PIL and torch use when they antialias."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


_KERNELS = {"bilinear": _bilinear, "bicubic": _bicubic}


def resize_weights(
    start: Tensor,
    length: Tensor,
    source_size: int,
    size: int,
    flip: Tensor | None = None,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
    padding: int = 0,
) -> Tensor:
    """
    Weights that resize the source positions `start … start + length - 1` to `size` positions along one axis, as
    `torch.nn.functional.interpolate(crop, size, antialias=True, align_corners=False)` does after cropping.

    Args:
        start (`torch.Tensor` of shape `(batch_size,)`, int64):
            First source position of each crop; from `-padding` on.
        length (`torch.Tensor` of shape `(batch_size,)`, int64):
            Length of each crop.
        source_size (`int`):
            Length of the source axis.
        size (`int`):
            Length of the result.
        flip (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Nonzero where the result is reversed.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"` or `"bicubic"`.
        antialias (`bool`, *optional*, defaults to `True`):
            Widen the kernel when shrinking. Without it, only `"bilinear"` is available.
        padding (`int`, *optional*, defaults to 0):
            How far a crop may stick out of the source; the positions outside count as zeros.

    Returns:
        `torch.Tensor` of shape `(batch_size, size, source_size)`, float32: the weights.
    """
    if interpolation not in _KERNELS:
        raise ValueError(f"interpolation={interpolation!r} is unknown; use one of {sorted(_KERNELS)}.")
    if interpolation == "bicubic" and not antialias:
        raise ValueError("interpolation='bicubic' is only available with antialias=True.")
    device = start.device
    position = torch.arange(size, device=device).expand(len(start), -1)
    if flip is not None:
        position = torch.where(flip[:, None] != 0, size - 1 - position, position)
    step = length.float() / size
    center = (position + 0.5) * step[:, None]
    source = torch.arange(-padding, source_size + padding, device=device) - start[:, None]
    inside = (source >= 0) & (source < length[:, None])

    width = step.clamp(min=1) if antialias else torch.ones_like(step)
    distance = (source[:, None] + 0.5 - center[:, :, None]) / width[:, None, None]
    weights = _KERNELS[interpolation](distance) * inside[:, None]
    weights = weights / weights.sum(-1, keepdim=True)
    return weights[..., padding : padding + source_size]


def apply_weights(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """
    `rows @ images @ columnsᵀ` for each sample and channel.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): uint8 or float.
        rows (`torch.Tensor` of shape `(batch_size, new_height, height)`): Weights of the vertical axis.
        columns (`torch.Tensor` of shape `(batch_size, new_width, width)`): Weights of the horizontal axis.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, new_height, new_width)`, the dtype of the weights.
    """
    batch, channels, height, width = images.shape
    # Channels between the two axes: each product is then one plain batched matrix product, and the conversion from
    # uint8 is the only copy of the sources.
    images = images.transpose(1, 2).to(rows.dtype).reshape(batch, height * channels, width)
    images = torch.bmm(images, columns.mT).view(batch, height, channels * columns.shape[1])
    images = torch.bmm(rows, images).view(batch, rows.shape[1], channels, columns.shape[1])
    return images.transpose(1, 2)


def resample(
    images: Tensor,
    boxes: Tensor,
    size: int,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
    padding: int = 0,
) -> Tensor:
    """
    Cut each box out of its image, resize it to a square and mirror it where the box says so. Equal to torchvision's
    `resized_crop(antialias=True)` on float images to 1e-4 of their range.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            Sources, uint8 or float.
        boxes (`torch.Tensor` of shape `(batch_size, 5)`, int64):
            `(top, left, height, width, flip)`, see [`hf_ssl.views.boxes`].
        size (`int`):
            Side of the result, in pixels.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"` or `"bicubic"`.
        antialias (`bool`, *optional*, defaults to `True`):
            Widen the kernel when shrinking.
        padding (`int`, *optional*, defaults to 0):
            How far boxes may stick out of the image; zeros there.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, size, size)`, float32, in the value range of `images`.
    """
    top, left, height, width, flip = boxes.unbind(-1)
    rows = resize_weights(top, height, images.shape[-2], size, None, interpolation, antialias, padding)
    columns = resize_weights(left, width, images.shape[-1], size, flip, interpolation, antialias, padding)
    return apply_weights(images, rows, columns)
