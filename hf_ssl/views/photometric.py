"""Photometric operations with one set of parameters for each image of a batch.

Each function equals its torchvision functional, image by image, on float images. An operation that is not applied to an
image leaves it bit for bit as it is. Nothing here is for gradients.

On a CPU the images that an operation is applied to are picked out first, and arithmetic stands in for comparisons and
`torch.where`, which are not vectorized there. An accelerator computes all images and selects: picking would have to wait
for the number of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor


# The order of the columns of `factors` and the meaning of the numbers in `order` of [`color_jitter`].
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_FEW_PIXELS = 256


def apply_where(
    operation: Callable[..., Tensor], images: Tensor, apply: Tensor, *parameters: Tensor, inplace: bool = False
) -> Tensor:
    """
    `operation(images, *parameters)` for some images of a batch.

    Args:
        operation (`Callable`): Keeps the shape of the images.
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images.
        apply (`torch.Tensor` of shape `(batch_size,)`, bool): The images that it is applied to.
        parameters (`torch.Tensor` of shape `(batch_size, ...)`): Parameters of each image.
        inplace (`bool`, *optional*, defaults to `False`): Whether `images` may be overwritten, which saves a copy.

    Returns:
        `torch.Tensor` of the shape of `images`; the other images are as they were.
    """
    if not _picks(images):
        return torch.where(_per_image(apply), operation(images, *parameters), images)
    chosen = apply.nonzero()[:, 0]
    if len(chosen) == 0:
        return images
    changed = operation(images[chosen], *(values[chosen] for values in parameters))
    return _put(images, chosen, changed, inplace)


def _put(images: Tensor, rows: Tensor, changed: Tensor, inplace: bool) -> Tensor:
    return (images if inplace else images.clone()).index_copy_(0, rows, changed)


def _picks(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def grayscale(images: Tensor) -> Tensor:
    """Luma of RGB images (ITU-R 601-2: 0.2989, 0.587, 0.114): `(batch_size, 3, h, w)` to `(batch_size, 1, h, w)`."""
    return _luma(images.split(1, dim=1))


def _luma(channels: tuple[Tensor, ...] | Tensor) -> Tensor:
    red, green, blue = channels
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def random_grayscale(images: Tensor, apply: Tensor, inplace: bool = False) -> Tensor:
    """Grayscale, still with three channels, where `apply` (bool of shape `(batch_size,)`) is true."""
    return apply_where(lambda chosen: grayscale(chosen).expand_as(chosen), images, apply, inplace=inplace)


def solarize(images: Tensor, apply: Tensor, threshold: float = 128 / 255, inplace: bool = False) -> Tensor:
    """
    Invert the values at or above `threshold`, as `torchvision.transforms.functional.solarize` does.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images in [0, 1].
        apply (`torch.Tensor` of shape `(batch_size,)`, bool): Images that are solarized.
        threshold (`float`, *optional*, defaults to 128 / 255): PIL's 128 of 255.
        inplace (`bool`, *optional*, defaults to `False`): Whether `images` may be overwritten, which saves a copy.

    Returns:
        `torch.Tensor` of the shape of `images`.
    """

    def invert(images: Tensor) -> Tensor:
        return torch.where(images >= threshold, 1 - images, images)

    return apply_where(invert, images, apply, inplace=inplace)


def normalize(images: Tensor, mean: list[float], std: list[float], out: Tensor | None = None) -> Tensor:
    """
    `(images - mean) / std` for each channel of `(batch_size, channels, height, width)` images in [0, 1]; written into
    `out`, if given.
    """
    # Built by fills rather than copied from the host, which would wait for an accelerator.
    values = [torch.full((1, 1, 1, 1), v, device=images.device, dtype=images.dtype) for v in (*mean, *std)]
    return torch.sub(images, torch.cat(values[: len(mean)], 1), out=out).div_(torch.cat(values[len(mean) :], 1))


def erase(images: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
    """
    Replace a box of each image, as `torchvision.transforms.functional.erase` does.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images.
        boxes (`torch.Tensor` of shape `(batch_size, 5)`, int64): See [`hf_ssl.views.boxes`]; an empty one erases nothing.
        noise (`torch.Tensor` of the shape of `images`): What comes in their place.

    Returns:
        `torch.Tensor` of the shape of `images`.
    """
    start, size = boxes[:, :2, None], boxes[:, 2:4, None]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    inside_rows = (rows >= start[:, 0]) & (rows < start[:, 0] + size[:, 0])
    inside_columns = (columns >= start[:, 1]) & (columns < start[:, 1] + size[:, 1])
    return torch.where((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], noise, images)


@torch.no_grad()
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
    planes = _planes(images, torch.arange(len(images), device=images.device))
    _turn_hue_(planes, shift)
    return _images(planes, images)


@torch.no_grad()
def color_jitter(images: Tensor, factors: Tensor, order: Tensor, apply: Tensor, inplace: bool = False) -> Tensor:
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
        inplace (`bool`, *optional*, defaults to `False`):
            Whether `images` may be overwritten, which saves a copy.

    Returns:
        `torch.Tensor` of shape `(batch_size, 3, height, width)`.
    """
    hue_place = (order == HUE).int().argmax(1)
    before: list[slice | Tensor]
    after: list[slice | Tensor]
    if _picks(images):
        # Sorted by the place of their hue, the images whose i-th blend comes before their hue are one slice.
        chosen = apply.nonzero()[:, 0]
        hue_place, by_place = hue_place[chosen].sort()
        chosen = chosen[by_place]
        ends = torch.searchsorted(hue_place, torch.arange(3), right=True).tolist()
        before, after = [slice(end, None) for end in ends], [slice(end) for end in ends]
    else:
        chosen = torch.arange(len(images), device=images.device)
        before, after = [i < hue_place for i in range(3)], [i >= hue_place for i in range(3)]

    order, factors = order[chosen], factors[chosen]
    slot = torch.arange(3, device=order.device)
    blends = order.gather(1, slot + (slot >= hue_place[:, None]))
    keep = factors.gather(1, blends)
    to_mean, to_gray = ((1 - keep) * (blends == operation) for operation in (CONTRAST, SATURATION))
    planes = _planes(images, chosen)
    # Hue, the costly one, is computed once for all images, between the blends before it and those after it.
    for i, rows in enumerate(before):
        _blend_(planes, keep[:, i, None], to_mean[:, i, None], to_gray[:, i, None], rows)
    _turn_hue_(planes, factors[:, HUE])
    for i, rows in enumerate(after):
        _blend_(planes, keep[:, i, None], to_mean[:, i, None], to_gray[:, i, None], rows)
    jittered = _images(planes, images)
    if _picks(images):
        return _put(images, chosen, jittered, inplace)
    return torch.where(_per_image(apply), jittered, images)


def _planes(images: Tensor, rows: Tensor) -> Tensor:
    """
    A copy of some images as three planes, one for each color: `(3, num_rows, num_pixels)`. Very small images (RelViT's
    patches) are kept with `num_rows` innermost in memory, so that there too arithmetic runs over long contiguous rows.
    """
    planes = images.flatten(2).transpose(0, 1).index_select(1, rows)
    if planes.shape[2] < _FEW_PIXELS:
        planes = planes.transpose(1, 2).contiguous().transpose(1, 2)
    return planes


def _images(planes: Tensor, like: Tensor) -> Tensor:
    return planes.transpose(0, 1).reshape(-1, *like.shape[1:])


def _blend_(planes: Tensor, keep: Tensor, to_mean: Tensor, to_gray: Tensor, rows: slice | Tensor) -> None:
    """
    Brightness, contrast and saturation are one operation: away from black, from the mean gray, or from the gray image,
    then clamped to [0, 1]; in place.

    Args:
        planes (`torch.Tensor` of shape `(3, num_rows, num_pixels)`): Images.
        keep (`torch.Tensor` of shape `(num_rows, 1)`): How much of the image is kept.
        to_mean (`torch.Tensor` of shape `(num_rows, 1)`): How much of the mean gray is added.
        to_gray (`torch.Tensor` of shape `(num_rows, 1)`): How much of the gray image is added.
        rows (`slice`, or `torch.Tensor` of shape `(num_rows,)`, bool): The images that are blended.
    """
    if isinstance(rows, slice):
        planes, keep, to_mean, to_gray = planes[:, rows], keep[rows], to_mean[rows], to_gray[rows]
        if planes.numel() == 0:
            return
    else:
        rows = rows[:, None]
        keep, to_mean, to_gray = torch.where(rows, keep, 1.0), to_mean * rows, to_gray * rows
    origin = _luma(planes.unbind())
    mean = origin.mean(1, keepdim=True)
    origin.mul_(to_gray).add_(mean.mul_(to_mean))
    planes.mul_(keep).add_(origin)
    if isinstance(rows, slice):
        planes.clamp_(0, 1)
    else:
        planes.clamp_(torch.where(rows, 0.0, -torch.inf), torch.where(rows, 1.0, torch.inf))


def _turn_hue_(planes: Tensor, shift: Tensor) -> None:
    """
    [`adjust_hue`] on `(3, num_rows, num_pixels)` planes, in place and in arithmetic without comparisons.

    With large and small the larger and the smaller of green and blue, the hue in turns is
    `|(min(red, large) - small) / (6 chroma) + base|`, where base is 0 or -1 for red as the largest color (green above blue
    or not), -1/3 for green and 2/3 for blue.
    """
    red, green, blue = planes.unbind()
    large, small = torch.maximum(green, blue), torch.minimum(green, blue)
    value, middle = torch.maximum(red, large), torch.minimum(red, large)
    lowest = torch.minimum(middle, small)
    chroma = value - lowest
    green_first = (green - small).sign_()
    red_first = torch.sub(value, large, out=large).sign_()
    base = 2 / 3 - green_first
    base.addcmul_(base, red_first, value=-2).sub_(red_first, alpha=1 / 3)
    # Of a gray pixel the numerator is 0, and its hue of no consequence.
    hue = base.addcdiv_(middle.sub_(small), chroma.clamp(min=torch.finfo(planes.dtype).tiny), value=1 / 6).abs_()
    hue.add_(1 + shift[:, None]).frac_()

    # Over the hue a color follows a trapezoid between lowest and value, by its distance from half a turn (red), a third
    # (green) or two thirds (blue): between a sixth and a third of a turn it goes up (red) or down.
    in_range = _picks(planes) and lowest.numel() > 0 and bool((lowest.min() >= 0) & (value.max() <= 1))
    low, high = lowest.sub_(chroma), value + chroma
    for plane, center, start, slope in zip(
        planes.unbind(), (1 / 2, 1 / 3, 2 / 3), (low, high, high), (6, -6, -6), strict=True
    ):
        torch.addcmul(start, chroma, (hue - center).abs_().clamp_(1 / 6, 1 / 3), value=slope, out=plane)
    if not in_range:
        # All colors are clamped but the largest, which torchvision leaves as it is.
        is_largest = (planes - planes.amax(0)).sign_().add_(1)
        planes.clamp_(0, 1).addcmul_(value - value.clamp(0, 1), is_largest)
