"""Photometric operations with one set of parameters for each image of a batch.

Each function equals its torchvision functional, image by image. Results keep the memory order of their input: a stack of
very small images (RelViT's patches) is fastest with the batch innermost, see [`batch_innermost`].
"""

import torch
from torch import Tensor


# The order of the columns of `factors` and the meaning of the numbers in `order` of [`color_jitter`].
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def batch_innermost(images: Tensor) -> Tensor:
    """
    The same `(batch_size, channels, height, width)` tensor with the batch as the innermost dimension in memory, so that
    elementwise operations with per-image parameters run over long contiguous rows even when the images are tiny.
    """
    return images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def grayscale(images: Tensor) -> Tensor:
    """Luma of RGB images (ITU-R 601-2: 0.2989, 0.587, 0.114): `(batch_size, 3, h, w)` to `(batch_size, 1, h, w)`."""
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def random_grayscale(images: Tensor, apply: Tensor) -> Tensor:
    """Grayscale, still with three channels, where `apply` (bool of shape `(batch_size,)`) is true."""
    return torch.where(_per_image(apply), grayscale(images), images)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """
    Turn the hue of RGB images, as `torchvision.transforms.functional.adjust_hue` does on float images, including its
    behavior on values outside [0, 1].

    Args:
        images (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Float images.
        shift (`torch.Tensor` of shape `(batch_size,)`): Turn, in whole turns: 0.5 gives the complementary color.

    Returns:
        `torch.Tensor` of shape `(batch_size, 3, height, width)`.
    """
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    gray = chroma == 0
    saturation = chroma / torch.where(gray, 1.0, value)
    # The hue in sixths of a turn, counted from the color of the largest channel.
    is_red = value == red
    is_green = (value == green) & ~is_red
    numerator = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    origin = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))
    hue = numerator / torch.where(gray, 1.0, chroma) + origin
    hue = (hue / 6 + _per_image(shift)).remainder_(1.0).mul_(6)

    sector = hue.floor()
    fraction = hue - sector
    # Channel n follows the trapezoid 1 - saturation · clamp(min(k, 4 - k), 0, 1) over k = hue + n (mod 6). Where k ≥ 4
    # the channel is the value itself, which torchvision leaves unclamped.
    channel = torch.tensor([5.0, 3.0, 1.0], device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    k = (sector + channel).remainder_(6.0) + fraction
    lowered = (value - value * saturation * torch.minimum(k, 4 - k).clamp_(max=1.0)).clamp_(0.0, 1.0)
    return torch.where(k >= 4, value, lowered)


def _blend(images: Tensor, operation: Tensor, factor: Tensor, apply: Tensor) -> Tensor:
    """
    Brightness, contrast and saturation are one operation: away from black, from the mean gray, or from the gray image,
    then clamped to [0, 1]. `operation`, `factor` and `apply` have shape `(batch_size,)`.
    """
    operation, apply = _per_image(operation), _per_image(apply)
    gray = grayscale(images)
    origin = torch.where(operation == CONTRAST, gray.mean((-2, -1), keepdim=True), gray)
    origin = torch.where(operation == BRIGHTNESS, 0.0, origin)
    blended = torch.lerp(origin, images, torch.where(apply, _per_image(factor), 1.0))
    infinity = torch.full((), torch.inf, device=images.device, dtype=images.dtype)
    return blended.clamp_(torch.where(apply, 0.0, -infinity), torch.where(apply, 1.0, infinity))


def color_jitter(images: Tensor, factors: Tensor, order: Tensor, apply: Tensor) -> Tensor:
    """
    Brightness, contrast, saturation and hue in a given order, each image with its own factors and its own order.

    Args:
        images (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
            Float images.
        factors (`torch.Tensor` of shape `(batch_size, 4)`):
            Factors of brightness, contrast and saturation (1 keeps the image) and turn of the hue (0 keeps it).
        order (`torch.Tensor` of shape `(batch_size, 4)`, int64):
            Which operation comes at each place: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        apply (`torch.Tensor` of shape `(batch_size,)`, bool):
            Images that are jittered; the others are returned as they are.

    Returns:
        `torch.Tensor` of shape `(batch_size, 3, height, width)`.
    """
    # Hue, the costly one, is computed once for all images, between the blends that precede and those that follow it.
    hue_place = (order == HUE).int().argmax(1)
    place = torch.arange(3, device=order.device)
    blends = order.gather(1, place + (place >= hue_place[:, None]))
    blend_factors = factors.gather(1, blends)
    for i in range(3):
        images = _blend(images, blends[:, i], blend_factors[:, i], apply & (i < hue_place))
    images = torch.where(_per_image(apply), adjust_hue(images, factors[:, HUE]), images)
    for i in range(3):
        images = _blend(images, blends[:, i], blend_factors[:, i], apply & (i >= hue_place))
    return images


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """`(images - mean) / std` for each channel of `(batch_size, channels, height, width)` images in [0, 1]."""
    # Built by fills rather than copied from the host, which would wait for an accelerator.
    values = [torch.full((1, 1, 1, 1), v, device=images.device, dtype=images.dtype) for v in (*mean, *std)]
    return (images - torch.cat(values[: len(mean)], 1)) / torch.cat(values[len(mean) :], 1)
