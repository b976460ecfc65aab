"""Where a view lies in its source image.

A box is five int64 numbers, `(top, left, height, width, flip)`: the crop in source pixels, and 1 where it is then mirrored
left to right. A box may stick out of the source; what lies outside is zero (padding).
"""

import torch
from torch import Tensor

from .random import Draws


_TRIES = 10

Range = tuple[float, float] | list[float]


def random_flip(draws: Draws, p: float = 0.5) -> Tensor:
    """1 with probability `p`, else 0: int64 of shape `(batch_size,)`."""
    return draws.bernoulli("flip", p=p).long()


def random_resized_crop(
    draws: Draws,
    sizes: Tensor,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Tensor:
    """
    Boxes with the distribution of `torchvision.transforms.RandomResizedCrop`: area and log aspect ratio uniform, ten
    tries, then the largest central box within the ratio limits.

    Args:
        draws ([`Draws`]): One row for each image.
        sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source image, in pixels.
        scale (`tuple[float, float]`): Limits of the crop's share of the area.
        ratio (`tuple[float, float]`): Limits of width / height.
        flip (`float`, *optional*, defaults to 0.5): Probability of mirroring left to right.

    Returns:
        `torch.Tensor` of shape `(batch_size, 5)`, int64: the boxes.
    """
    source_height, source_width = sizes.unbind(-1)
    height, width, found = _first_that_fits(draws, "crop", sizes.prod(1), 1, sizes, scale, ratio)
    fallback_width, fallback_height = _largest_within_ratio(source_height, source_width, ratio)
    height = torch.where(found, height, fallback_height)
    width = torch.where(found, width, fallback_width)
    central = (sizes - torch.stack([height, width], dim=1)) // 2
    top = torch.where(found, draws.integers("crop/top", high=source_height - height + 1), central[:, 0])
    left = torch.where(found, draws.integers("crop/left", high=source_width - width + 1), central[:, 1])
    return torch.stack([top, left, height, width, random_flip(draws, flip)], dim=1)


def _first_that_fits(
    draws: Draws, name: str, area: Tensor, least: int, limits: Tensor, scale: Range, ratio: Range
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The first of ten boxes of random area and aspect ratio (width / height) whose sides are at least `least` and within
    `limits`, `(batch_size, 2)`: height, width, and whether there is one, each of shape `(batch_size,)`.
    """
    # In float64, so that a square root's last bit, which differs between devices, decides over no pixel.
    area = area[:, None] * draws.uniform(f"{name}/area", _TRIES, low=scale[0], high=scale[1]).double()
    aspect = draws.log_uniform(f"{name}/ratio", _TRIES, low=ratio[0], high=ratio[1]).double()
    widths = (area * aspect).sqrt().round().long()
    heights = (area / aspect).sqrt().round().long()
    fits = (widths >= least) & (widths <= limits[:, 1:]) & (heights >= least) & (heights <= limits[:, :1])
    first = fits.int().argmax(1, keepdim=True)
    return heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0], fits.any(1)


def _largest_within_ratio(height: Tensor, width: Tensor, ratio: Range) -> tuple[Tensor, Tensor]:
    """Width and height of the largest box whose aspect ratio is within the limits; each of shape `(batch_size,)`."""
    aspect = width / height
    too_narrow, too_wide = aspect < ratio[0], aspect > ratio[1]
    fitted_height = torch.where(too_narrow, (width / ratio[0]).round().long().clamp(min=1), height)
    fitted_width = torch.where(too_wide, (height * ratio[1]).round().long().clamp(min=1), width)
    return fitted_width, fitted_height


def random_padded_crop(draws: Draws, sizes: Tensor, padding: int, flip: float = 0.5) -> Tensor:
    """
    Boxes of the source's own size, shifted by up to `padding` pixels each way: the distribution of
    `torchvision.transforms.RandomCrop(size, padding=padding)` on images of that size.

    Args:
        draws ([`Draws`]): One row for each image.
        sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source image, in pixels.
        padding (`int`): Largest shift, in pixels.
        flip (`float`, *optional*, defaults to 0.5): Probability of mirroring left to right.

    Returns:
        `torch.Tensor` of shape `(batch_size, 5)`, int64: the boxes.
    """
    offset = draws.integers("crop/offset", 2, high=2 * padding + 1) - padding
    return torch.cat([offset, sizes, random_flip(draws, flip)[:, None]], dim=1)


def center_crop(sizes: Tensor, size: int) -> Tensor:
    """
    Boxes of `size` × `size` pixels in the middle, as `torchvision.transforms.CenterCrop` cuts them; from a smaller image
    they stick out.

    Args:
        sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source image, in pixels.
        size (`int`): Side of the boxes.

    Returns:
        `torch.Tensor` of shape `(batch_size, 5)`, int64: the boxes, not flipped.
    """
    room = sizes - size
    # Halves are rounded to the even number, of a missing margin too; torchvision pads the smaller half first.
    place = torch.where(room >= 0, (room.double() / 2).round().long(), -(-room).div(2, rounding_mode="floor"))
    return torch.cat([place, torch.full_like(sizes, size), torch.zeros_like(sizes[:, :1])], dim=1)


def whole_image(sizes: Tensor, flip: Tensor | None = None) -> Tensor:
    """
    Boxes that hold all of each image, to resize it.

    Args:
        sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source image, in pixels.
        flip (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*): 1 where the image is then mirrored.

    Returns:
        `torch.Tensor` of shape `(batch_size, 5)`, int64: the boxes.
    """
    flip = torch.zeros_like(sizes[:, 0]) if flip is None else flip
    return torch.cat([torch.zeros_like(sizes), sizes, flip[:, None]], dim=1)


def random_erasing(
    draws: Draws,
    sizes: Tensor,
    scale: Range = (0.02, 1 / 3),
    ratio: Range = (0.3, 1 / 0.3),
) -> Tensor:
    """
    Boxes with the distribution of `timm.data.random_erasing.RandomErasing`, which is torchvision's with other limits: area
    uniform, log aspect ratio (height / width) uniform, smaller than the image on both axes, ten tries; then empty.

    Args:
        draws ([`Draws`]): One row for each image.
        sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each image, in pixels.
        scale (`tuple[float, float]`): Limits of the box's share of the area.
        ratio (`tuple[float, float]`): Limits of height / width.

    Returns:
        `torch.Tensor` of shape `(batch_size, 5)`, int64: the boxes, never flipped.
    """
    # Here the ratio is height to width, and a box as long as a side of the image does not fit; one that is rounded to no
    # pixels does.
    width, height, found = _first_that_fits(draws, "erase", sizes.prod(1), 0, sizes.flip(1) - 1, scale, ratio)
    size = torch.where(found[:, None], torch.stack([height, width], dim=1), 0)
    place = draws.integers("erase/place", 2, high=sizes - size + 1)
    return torch.cat([place, size, torch.zeros_like(size[:, :1])], dim=1)


def random_square_crop(draws: Draws, size: int, crop: int, count: int, offset: int = 0) -> Tensor:
    """
    `count` boxes of `crop` × `crop` pixels at random places inside a square of `size` pixels, for each row.

    Args:
        draws ([`Draws`]): One row for each image.
        size (`int`): Side of the square that holds the boxes.
        crop (`int`): Side of the boxes.
        count (`int`): Boxes for each row (RelViT draws one for each patch).
        offset (`int`, *optional*, defaults to 0): Place of the square's first pixel in the source, the same on both axes.

    Returns:
        `torch.Tensor` of shape `(batch_size, count, 5)`, int64: the boxes, never flipped.
    """
    place = draws.integers("square/offset", count, 2, high=size - crop + 1) + offset
    side = torch.full_like(place, crop)
    return torch.cat([place, side, torch.zeros_like(place[..., :1])], dim=-1)
