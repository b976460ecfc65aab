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
    return _select(apply, grayscale(images), images)


def _select(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """
    `chosen` where `condition`, of shape `(batch_size,)`, is true, else `other`, bit for bit (for finite values). On a CPU
    `torch.where` is not vectorized and takes several times as long.
    """
    return torch.lerp(other, chosen, _per_image(condition).to(other.dtype))


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
    # Which channel is the largest, as 0 or 1 (on a CPU, arithmetic takes a fraction of the time of comparisons); red
    # before green before blue where they are equal.
    is_red = 1 - (value - red).sign_()
    is_green = (1 - is_red) * (1 - (value - green).sign_())
    is_blue = 1 - is_red - is_green
    # The hue, first in sixths of a turn; that of a gray pixel is 0 (its numerator is 0).
    offset = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    hue = offset / chroma.clamp(min=torch.finfo(images.dtype).tiny) + (2 * is_green + 4 * is_blue)
    hue = hue / 6 + _per_image(shift)
    hue = (hue - hue.floor()) * 6

    sector = hue.floor()
    # Channel n follows the trapezoid value - chroma · clamp(min(k, 4 - k), 0, 1) over k = hue + n (mod 6). Where k ≥ 4
    # the channel is the value itself, which torchvision leaves unclamped. (torchvision divides chroma by value and
    # multiplies again, which gives NaN where the value is 0 and another channel is negative.)
    whole = sector + torch.arange(5, 0, -2, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    whole = whole - 6 * (whole / 6).floor_()
    k = whole + (hue - sector)
    unbounded = (whole - 3).clamp_(0.0, 1.0) * torch.finfo(images.dtype).max
    lowered = value - chroma * torch.minimum(k, 4 - k).clamp_(0.0, 1.0)
    return torch.minimum(torch.maximum(lowered, -unbounded), 1 + unbounded)


def _blend(images: Tensor, operation: Tensor, factor: Tensor, apply: Tensor) -> Tensor:
    """
    Brightness, contrast and saturation are one operation: away from black, from the mean gray, or from the gray image,
    then clamped to [0, 1]. `operation`, `factor` and `apply` have shape `(batch_size,)`.
    """
    operation, apply = _per_image(operation), _per_image(apply)
    gray = grayscale(images)
    mean = gray.mean((-2, -1), keepdim=True) * (operation == CONTRAST)
    origin = torch.addcmul(mean, gray, (operation == SATURATION).to(images.dtype))
    blended = torch.lerp(origin, images, torch.where(apply, _per_image(factor), 1.0))
    lower, upper = torch.where(apply, 0.0, -torch.inf), torch.where(apply, 1.0, torch.inf)
    return torch.minimum(torch.maximum(blended, lower), upper)


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
    images = _select(apply, adjust_hue(images, factors[:, HUE]), images)
    for i in range(3):
        images = _blend(images, blends[:, i], blend_factors[:, i], apply & (i >= hue_place))
    return images


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """`(images - mean) / std` for each channel of `(batch_size, channels, height, width)` images in [0, 1]."""
    # Built by fills rather than copied from the host, which would wait for an accelerator.
    values = [torch.full((1, 1, 1, 1), v, device=images.device, dtype=images.dtype) for v in (*mean, *std)]
    return (images - torch.cat(values[: len(mean)], 1)) / torch.cat(values[len(mean) :], 1)
