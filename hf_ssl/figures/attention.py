"""What the class token of a vision transformer looks at, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from .common import GRAY, draw_pixels, new_figure, save
from .patch_colors import patch_colors


if TYPE_CHECKING:
    from torch import Tensor


def plot_attention(
    attention: Tensor,
    masks: Tensor,
    images: Sequence[Tensor],
    path: str | Path,
    *,
    tokens: Tensor | None = None,
    max_heads: int = 6,
) -> None:
    """
    Draws, for each image, the attention of the class token to its patches: the mean over all heads, and head by head.
    Below, the patches that get most of it: of a head bright or dark, and under the mean the brighter, the more heads
    keep them.

    Args:
        attention (`torch.Tensor` of shape `(num_images, heads, rows, columns)`):
            Weights, see [`~hf_ssl.evaluation.attention_maps`]. Colors run from the smallest to the largest weight of a
            map.
        masks (`torch.Tensor` of shape `(num_images, heads, rows, columns)`, bool):
            Patches that are kept, see [`~hf_ssl.evaluation.attention_masks`].
        images (`Sequence[torch.Tensor]`):
            `num_images` uint8 images of shape `(3, height, width)`, which the patches cover.
        path (`str` or `Path`): PNG file to write.
        tokens (`torch.Tensor` of shape `(num_images, rows, columns, dim)`, *optional*):
            Tokens of the patches, whose principal components are drawn below the images, see
            [`~hf_ssl.figures.plot_patch_colors`].
        max_heads (`int`, *optional*, defaults to 6): Heads that are drawn, the first ones.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If shapes do not fit.
    """
    count, heads = attention.shape[:2]
    if masks.shape != attention.shape or len(images) != count:
        raise ValueError(
            "`attention` and `masks` must have one shape, (num_images, heads, rows, columns), with an image for each; "
            f"got {tuple(attention.shape)}, {tuple(masks.shape)} and {len(images)} `images`."
        )
    if tokens is not None and len(tokens) != count:
        raise ValueError(f"`tokens` are of {len(tokens)} images, and there are {count} `images`: give one each.")
    colors = None if tokens is None else patch_colors(tokens)
    maps = torch.cat([attention.mean(1, keepdim=True), attention[:, :max_heads]], dim=1).detach().float().cpu()
    kept = torch.cat([masks.float().mean(1, keepdim=True), masks[:, :max_heads].float()], dim=1).cpu()
    side, gap, margin, top, between = 1.7, 0.08, 0.2, 0.95, 0.25
    tall = side * max(image.shape[1] / image.shape[2] for image in images)
    columns = 1 + maps.shape[1]
    width = 2 * margin + columns * (side + gap) - gap
    height = top + count * (2 * tall + gap + between) - between + margin
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    shown = f"{heads} heads" if maps.shape[1] > heads else f"the first {max_heads} of {heads} heads"
    below = "" if colors is None else "; principal components of their tokens"
    axes.text(margin, 0.28, f"attention of the class token, {shown}", fontsize=11)
    axes.text(margin, 0.5, f"below: the patches that get most of it{below}", fontsize=9, color=GRAY)
    names = ["image", "mean of heads", *(f"head {i + 1}" for i in range(maps.shape[1] - 1))]
    for column, name in enumerate(names):
        axes.text(margin + column * (side + gap), top - 0.1, name, fontsize=10)
    for i, image in enumerate(images):
        size = (side, side * image.shape[1] / image.shape[2])
        y = top + i * (2 * tall + gap + between)
        draw_pixels(axes, image, margin, y, *size)
        if colors is not None:
            draw_pixels(axes, colors[i], margin, y + tall + gap, *size)
        for column, (weights, share) in enumerate(zip(maps[i], kept[i], strict=True), start=1):
            left = margin + column * (side + gap)
            draw_pixels(axes, heat_colors(weights), left, y, *size)
            draw_pixels(axes, light_up(image, share), left, y + tall + gap, *size)
    # After the images, which set limits of their own.
    axes.set(xlim=(0, width), ylim=(height, 0))
    save(figure, path)


def heat_colors(weights: Tensor) -> Tensor:
    """
    Colors from dark, the smallest weight of a map, to bright, its largest.

    Args:
        weights (`torch.Tensor` of shape `(rows, columns)`): A map, float, on the CPU.

    Returns:
        `torch.Tensor` of shape `(3, rows, columns)`, uint8.
    """
    from matplotlib import colormaps

    low, high = weights.aminmax()
    rgba = colormaps["inferno"](((weights - low) / (high - low).clamp_min(1e-12)).numpy(), bytes=True)
    return torch.from_numpy(np.ascontiguousarray(rgba[..., :3])).permute(2, 0, 1)


def light_up(image: Tensor, share: Tensor) -> Tensor:
    """
    Darken the patches of an image that are not kept.

    Args:
        image (`torch.Tensor` of shape `(3, height, width)`, uint8): The image, which the patches cover.
        share (`torch.Tensor` of shape `(rows, columns)`): Of each patch, float: as it is at 1, and dark at 0.

    Returns:
        `torch.Tensor` of shape `(3, height, width)`, uint8.
    """
    light = F.interpolate(share[None, None], size=image.shape[1:], mode="nearest-exact")[0]
    return (image * (0.2 + 0.8 * light)).round().byte()
