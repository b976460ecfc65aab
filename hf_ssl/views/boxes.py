"""Where a view lies in its source image.

A box is five int64 numbers, `(top, left, height, width, flip)`: the crop in source pixels, and 1 where it is then mirrored
left to right. A box may stick out of the source; what lies outside is zero (padding).
"""

import torch
from torch import Tensor

from .random import Draws


_TRIES = 10


def random_flip(draws: Draws, p: float = 0.5) -> Tensor:
    """1 with probability `p`, else 0: int64 of shape `(batch_size,)`."""
    return draws.bernoulli("flip", p=p).long()


def random_resized_crop(
    draws: Draws,
    sizes: Tensor,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
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
    area = (source_height * source_width).float()[:, None] * draws.uniform(
        "crop/area", _TRIES, low=scale[0], high=scale[1]
    )
    aspect = draws.log_uniform("crop/ratio", _TRIES, low=ratio[0], high=ratio[1])
    widths = (area * aspect).sqrt().round().long()
    heights = (area / aspect).sqrt().round().long()
    valid = (widths > 0) & (widths <= source_width[:, None]) & (heights > 0) & (heights <= source_height[:, None])
    first = valid.int().argmax(1, keepdim=True)
    fallback = ~valid.any(1)
    fallback_width, fallback_height = _largest_within_ratio(source_height, source_width, ratio)
    height = torch.where(fallback, fallback_height, heights.gather(1, first)[:, 0])
    width = torch.where(fallback, fallback_width, widths.gather(1, first)[:, 0])

    top = torch.where(
        fallback, (source_height - height) // 2, draws.integers("crop/top", high=source_height - height + 1)
    )
    left = torch.where(
        fallback, (source_width - width) // 2, draws.integers("crop/left", high=source_width - width + 1)
    )
    return torch.stack([top, left, height, width, random_flip(draws, flip)], dim=1)


def _largest_within_ratio(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Width and height of the largest box whose aspect ratio is within the limits; each of shape `(batch_size,)`."""
    aspect = width / height
    too_narrow, too_wide = aspect < ratio[0], aspect > ratio[1]
    fitted_height = torch.where(too_narrow, (width / ratio[0]).round().long(), height)
    fitted_width = torch.where(too_wide, (height * ratio[1]).round().long(), width)
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
