"""Crop, resize and mirror a batch as two batched matrix products, `Wy @ image @ Wxᵀ`.

Each axis of each sample has its own small matrix of interpolation weights, so every image of a batch can be cropped
differently in one call, on any device, and gradients are not needed. On a CPU [`resample_each`] is faster for large images.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


Interpolation = Literal["bilinear", "bicubic"]


def _bilinear(x: Tensor) -> Tensor:
    return 1 - x.clamp_(max=1)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, as PIL and torch use when they antialias; both parts are 0 at 1 and at 2."""
    near, far = x.clamp(max=1), x.clamp_(1, 2)
    near = (1.5 * near).sub_(2.5).mul_(near).mul_(near).add_(1)
    return near.add_((-0.5 * far).add_(2.5).mul_(far).sub_(4).mul_(far).add_(2))


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
    filled: Tensor | None = None,
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
        filled (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*):
            How much of the source axis each image fills, where images of unequal sizes lie in one tensor; the positions
            beyond count as zeros.

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
    width = step.clamp(min=1) if antialias else torch.ones_like(step)
    center = (position + 0.5) * (step / width)[:, None]
    source_position = torch.arange(-padding, source_size + padding, device=device)
    source = source_position - start[:, None]
    inside = (source >= 0) & (source < length[:, None])
    # What lies outside of the crop is put out of reach of the kernel.
    source = torch.where(inside, (source + 0.5) / width[:, None], -1e6)
    weights = _KERNELS[interpolation]((source[:, None] - center[:, :, None]).abs_())
    weights.mul_(1 / weights.sum(-1, keepdim=True))
    if filled is not None:
        weights = weights * (source_position < filled[:, None])[:, None]
    return weights[..., padding : padding + source_size]


def apply_weights(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """
    `rows @ images @ columnsᵀ` for each sample and channel.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): uint8 or float.
        rows (`torch.Tensor` of shape `(batch_size, new_height, height)`): Weights of the vertical axis; one for all
            images, if its first dimension is 1.
        columns (`torch.Tensor` of shape `(batch_size, new_width, width)`): Weights of the horizontal axis, likewise.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, new_height, new_width)`, the dtype of the weights.
    """
    batch, channels, height, width = images.shape
    rows, columns = rows.expand(batch, -1, -1), columns.expand(batch, -1, -1)
    # Channels between the two axes: each product is then one plain batched matrix product, and the conversion from
    # uint8 is the only copy of the sources.
    images = images.transpose(1, 2).to(rows.dtype, memory_format=torch.contiguous_format)
    images = images.reshape(batch, height * channels, width)
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
    sizes: Tensor | None = None,
    canvas: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """
    Cut each box out of its image, resize it to a square and mirror it where the box says so. Equal to torchvision's
    `resized_crop(antialias=True)` on float images to 1e-4 of their range.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            Sources, uint8 or float.
        boxes (`torch.Tensor` of shape `(batch_size, 5)` or `(1, 5)`, int64):
            `(top, left, height, width, flip)`, see [`hf_ssl.views.boxes`]; a single one is that of all images.
        size (`int`):
            Side of the result, in pixels.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"` or `"bicubic"`.
        antialias (`bool`, *optional*, defaults to `True`):
            Widen the kernel when shrinking.
        padding (`int`, *optional*, defaults to 0):
            How far boxes may stick out of the image; zeros there.
        sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64, *optional*):
            Height and width of each image, where images of unequal sizes lie in the upper left corner of `images`.
        canvas (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            What [`canvas_weights`] returned: the images are first resized to a square, in which the boxes then lie. The
            square itself is never made, as two linear maps after each other are one. Not together with `sizes`.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, size, size)`, float32, in the value range of `images`.
    """
    if sizes is not None and canvas is not None:
        raise ValueError("`sizes` and `canvas` cannot be given together: resize images of unequal sizes one by one.")
    top, left, box_height, box_width, flip = boxes.unbind(-1)
    heights, widths = (None, None) if sizes is None else sizes.unbind(-1)
    height, width = images.shape[-2:] if canvas is None else (weights.shape[1] for weights in canvas)
    rows = resize_weights(top, box_height, height, size, None, interpolation, antialias, padding, heights)
    columns = resize_weights(left, box_width, width, size, flip, interpolation, antialias, padding, widths)
    if canvas is not None:
        rows, columns = rows @ canvas[0], columns @ canvas[1]
    return apply_weights(images, rows, columns)


def canvas_weights(height: int, width: int, canvas: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """
    Weights that resize whole images to a square, bilinear and antialiased.

    Args:
        height (`int`): Height of the images.
        width (`int`): Width of the images.
        canvas (`int`): Side of the square.
        device (`torch.device`): Where the weights are made.

    Returns:
        `tuple` of two `torch.Tensor` of shapes `(1, canvas, height)` and `(1, canvas, width)`, float32: for rows and columns.
    """

    def weights(side: int) -> Tensor:
        length = torch.full((1,), side, device=device)
        return resize_weights(torch.zeros_like(length), length, side, canvas)

    return weights(height), weights(width)


def resample_each(
    images: Tensor, boxes: Tensor, size: int, interpolation: Interpolation = "bilinear", padding: int = 0
) -> Tensor:
    """
    [`resample`] image by image, with torch's 8-bit resizing, which follows PIL's arithmetic: on a CPU much faster for
    large images, and rounded to 8 bits as PIL's results are.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`, uint8):
            Sources; fastest in channels-last order.
        boxes (`torch.Tensor` of shape `(batch_size, 5)` or `(1, 5)`, int64):
            See [`hf_ssl.views.boxes`]; a single one is that of all images.
        size (`int`):
            Side of the result, in pixels.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"` or `"bicubic"`, antialiased.
        padding (`int`, *optional*, defaults to 0):
            How far boxes may stick out of the image; zeros there.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, size, size)`, uint8.
    """
    if len(boxes) not in (1, len(images)):
        raise ValueError(f"There are {len(boxes)} boxes for {len(images)} images; give one for each, or one for all.")
    if padding:
        images = F.pad(images, [padding] * 4)
    views = torch.empty(len(images), images.shape[1], size, size, dtype=torch.uint8, memory_format=torch.channels_last)
    size_of_part = 1 if len(boxes) == len(images) else max(1, len(images))
    parts, targets = images.split(size_of_part), views.split(size_of_part)
    for part, view, box in zip(parts, targets, boxes.tolist(), strict=False):  # no images: an empty part, and no box
        top, left, height, width, flip = box
        crop = part[..., top + padding : top + padding + height, left + padding : left + padding + width]
        # In this order, that of the results, torch needs not repack them; in the other it fails on results of one pixel.
        crop = crop.contiguous(memory_format=torch.channels_last)
        resized = F.interpolate(crop, (size, size), mode=interpolation, antialias=True)
        view.copy_(resized.flip(-1) if flip else resized)
    return views
