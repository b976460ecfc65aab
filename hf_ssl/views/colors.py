"""What happens to the colors of a batch of images: drawn first, then applied."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .blur import gaussian_blur
from .photometric import color_jitter, random_grayscale, solarize
from .random import Draws
from .view import View


@dataclass
class Colors:
    """
    What happens to the colors of a stack of images; an operation that no image undergoes has None.

    Args:
        jitter_apply (`torch.Tensor` of shape `(num_images,)`, bool): Images whose colors are jittered.
        jitter_factors (`torch.Tensor` of shape `(num_images, 4)`): See [`~hf_ssl.views.color_jitter`].
        jitter_order (`torch.Tensor` of shape `(num_images, 4)`, int64): See [`~hf_ssl.views.color_jitter`].
        gray_apply (`torch.Tensor` of shape `(num_images,)`, bool): Images that turn gray.
        blur_apply (`torch.Tensor` of shape `(num_images,)`, bool): Images that are blurred.
        blur_sigma (`torch.Tensor` of shape `(num_images,)`): Their standard deviations, in pixels.
        solarize_apply (`torch.Tensor` of shape `(num_images,)`, bool): Images that are solarized.
    """

    jitter_apply: Tensor | None = None
    jitter_factors: Tensor | None = None
    jitter_order: Tensor | None = None
    gray_apply: Tensor | None = None
    blur_apply: Tensor | None = None
    blur_sigma: Tensor | None = None
    solarize_apply: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Colors":
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        return Colors(**{name: None if value is None else value[rows] for name, value in values.items()})


def draw_colors(view: View, draws: Draws, *shape: int) -> Colors:
    """
    Draw what happens to the colors of each image, or of each of its parts.

    Args:
        view ([`View`]): Probabilities and strengths.
        draws ([`Draws`]): One row for each image.
        shape (`int`): Parts of an image that are treated on their own (RelViT's patches); none for whole images.

    Returns:
        [`Colors`]: of `num_rows` times the number of parts, image by image.
    """
    colors = Colors()
    if view.jitter:
        colors.jitter_apply = draws.bernoulli("jitter", *shape, p=view.jitter).flatten()
        unit = draws.uniform("jitter/blends", *shape, 3)
        blends = []
        for i, strength in enumerate((view.brightness, view.contrast, view.saturation)):
            low, high = max(0.0, 1 - strength), 1 + strength
            blends.append(unit[..., i] * (high - low) + low)
        hue = draws.uniform("jitter/hue", *shape, low=-view.hue, high=view.hue)
        colors.jitter_factors = torch.stack([*blends, hue], dim=-1).view(-1, 4)
        colors.jitter_order = draws.permutation("jitter/order", 4, *shape).view(-1, 4)
    if view.grayscale:
        colors.gray_apply = draws.bernoulli("gray", *shape, p=view.grayscale).flatten()
    if view.blur:
        colors.blur_apply = draws.bernoulli("blur", *shape, p=view.blur).flatten()
        low, high = view.blur_sigma
        colors.blur_sigma = draws.uniform("blur/sigma", *shape, low=low, high=high).flatten()
    if view.solarize:
        colors.solarize_apply = draws.bernoulli("solarize", *shape, p=view.solarize).flatten()
    return colors


def apply_colors(images: Tensor, colors: Colors, view: View, inplace: bool = False) -> Tensor:
    """
    Jitter, grayscale, blur and solarization, in that order (or grayscale first, where the view says so).

    Args:
        images (`torch.Tensor` of shape `(num_images, 3, height, width)`): Float images.
        colors ([`Colors`]): What is done to each.
        view ([`View`]): Says in which order.
        inplace (`bool`, *optional*, defaults to `False`): Whether `images` may be overwritten, which saves a copy.

    Returns:
        `torch.Tensor` of the shape of `images`.
    """
    if view.grayscale_first and colors.gray_apply is not None:
        images = random_grayscale(images, colors.gray_apply, inplace)
    if colors.jitter_apply is not None:
        assert colors.jitter_factors is not None and colors.jitter_order is not None
        images = color_jitter(images, colors.jitter_factors, colors.jitter_order, colors.jitter_apply, inplace)
    if not view.grayscale_first and colors.gray_apply is not None:
        images = random_grayscale(images, colors.gray_apply, inplace)
    if colors.blur_apply is not None:
        assert colors.blur_sigma is not None
        images = gaussian_blur(images, colors.blur_sigma, colors.blur_apply, view.blur_sigma[1], inplace)
    if colors.solarize_apply is not None:
        images = solarize(images, colors.solarize_apply, inplace=inplace)
    return images
