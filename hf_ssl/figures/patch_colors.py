"""What an encoder tells apart within images: its patch tokens as colors."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .common import draw_pixels, new_figure, save


if TYPE_CHECKING:
    from torch import Tensor


def plot_patch_colors(tokens: Tensor, images: Sequence[Tensor], path: str | Path) -> None:
    """
    Draws each image beside the colors of its patches: the first three principal components of the patch tokens of all shown
    images as red, green and blue, in the manner of [DINOv2](https://huggingface.co/papers/2304.07193). Patches of one color
    have similar tokens, in all images.

    Args:
        tokens (`torch.Tensor` of shape `(num_images, rows, columns, dim)`): Tokens of the patches, row by row.
        images (`Sequence[torch.Tensor]`): `num_images` uint8 images of shape `(3, height, width)`, of any sizes.
        path (`str` or `Path`): PNG file to write.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If shapes do not fit or tokens are not finite.
    """
    colors = patch_colors(tokens)
    if len(images) != len(colors):
        raise ValueError(f"`tokens` are of {len(colors)} images, and there are {len(images)} `images`: give one each.")
    side, gap, margin, top = 2.2, 0.06, 0.2, 0.5
    sizes = [(side * image.shape[2] / max(image.shape), side * image.shape[1] / max(image.shape)) for image in images]
    columns = min(2, len(images))
    pitch, row_height = 2 * side + gap + margin, max(height for _, height in sizes) + margin
    width, height = columns * pitch + margin, top + ceil(len(images) / columns) * row_height
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, (image, patches, size) in enumerate(zip(images, colors, sizes, strict=True)):
        left = margin + i % columns * pitch + side - size[0]
        y = top + i // columns * row_height + (row_height - margin - size[1]) / 2
        draw_pixels(axes, image, left, y, *size)
        draw_pixels(axes, patches, left + size[0] + gap, y, *size)
    axes.text(margin, 0.3, "images, and the principal components of their patches", fontsize=11)
    # After the images, which set limits of their own.
    axes.set(xlim=(0, width), ylim=(height, 0))
    save(figure, path)


def patch_colors(tokens: Tensor) -> Tensor:
    """
    Colors of patches: the first three principal components of all tokens together, each scaled from dark to bright.

    Args:
        tokens (`torch.Tensor` of shape `(num_images, rows, columns, dim)`): Tokens of the patches.

    Returns:
        `torch.Tensor` of shape `(num_images, 3, rows, columns)`, uint8: the colors. The sign of a component is chosen so that
        its largest weight is positive; its lowest hundredth is 0, its highest hundredth 255.

    Raises:
        `ValueError`: If there are less than three patches or dimensions, or tokens are not finite.
    """
    if tokens.ndim != 4 or tokens.shape[3] < 3 or tokens.shape[:3].numel() < 3:
        raise ValueError(
            "`tokens` must have shape (num_images, rows, columns, dim), with at least three patches and dimensions; got "
            f"{tuple(tokens.shape)}."
        )
    if not tokens.isfinite().all():
        raise ValueError("`tokens` contains NaN or infinite values: check the encoder's weights and its inputs.")
    flat = tokens.detach().double().cpu().flatten(0, 2)
    centered = flat - flat.mean(0)
    if len(centered) < centered.shape[1]:  # where the way below would take seconds
        axes = torch.linalg.svd(centered, full_matrices=False).Vh[:3].T
    else:
        axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -3:].flip(1)
    components = centered @ (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign())
    low, high = components.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    scaled = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return (255 * scaled).round().byte().view(*tokens.shape[:3], 3).permute(0, 3, 1, 2)
