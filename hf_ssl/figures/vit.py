"""What a ViT has learned about places and pixels: its position embeddings, and the filters that patches are projected by."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ViTModel

from .common import new_figure, save


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from torch import Tensor
    from torch.nn import Module


NUM_FILTERS = 28
_MAX_PLACES = 8  # on a side; of larger grids, every so many
_SIDE = 0.9  # of an image in a grid; the rest is between it and the next


def draw_vit(encoder: Module, folder: Path) -> dict[str, str]:
    """
    Of a ViT, draws what it has learned about pixels and, if it has positions, about places.

    Args:
        encoder (`torch.nn.Module`): Any encoder; of one that is no ViT, nothing is drawn.
        folder (`Path`): Where the PNG files are written.

    Returns:
        `dict[str, str]`: captions by the names of the files.
    """
    if not isinstance(encoder, ViTModel):
        return {}
    embeddings: Any = encoder.embeddings
    plot_patch_filters(embeddings.patch_embeddings.projection.weight, folder / "filters.png")
    captions = {
        "filters.png": "Principal components of the filters that patches are projected by, the strongest first."
    }
    if embeddings.position_embeddings.any():
        plot_position_similarity(embeddings.position_embeddings, folder / "positions.png")
        captions["positions.png"] = "Similarity of each patch's position embedding to those of all others."
    return captions


def plot_position_similarity(table: Tensor, path: str | Path) -> None:
    """
    Draws how similar the position embedding of each patch is to those of all others: a small map of the whole grid for each
    place of the grid (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, figure 7).

    Args:
        table (`torch.Tensor` of shape `(1, 1 + side * side, dim)`): Position embeddings, class token first.
        path (`str` or `Path`): PNG file to write.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If the grid is not square.
    """
    vectors = F.normalize(table[0, 1:].detach().float().cpu(), dim=-1)
    side = round(len(vectors) ** 0.5)
    if side * side != len(vectors):
        raise ValueError(f"`table` has {len(vectors)} patches, which make no square grid.")
    similarity = (vectors @ vectors.T).view(side, side, side, side).numpy()
    shown = range(0, side, ceil(side / _MAX_PLACES))
    figure = new_figure(7.4, 6.8)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    maps = [similarity[row, column] for row in shown for column in shown]
    image = _draw_grid(axes, maps, columns=len(shown), vmin=-1, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    figure.suptitle("position embedding of each patch, compared with all others", fontsize=13)
    save(figure, path)


def plot_patch_filters(weight: Tensor, path: str | Path) -> None:
    """
    Draws the principal components of the filters that patches are projected by, the strongest first (Dosovitskiy et al.,
    figure 7). Each is scaled to the colors from black to white; its sign says nothing.

    Args:
        weight (`torch.Tensor` of shape `(dim, 3, patch_size, patch_size)`): Weights of the projection.
        path (`str` or `Path`): PNG file to write.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    components = filter_components(weight)
    low, high = components.amin((1, 2, 3), keepdim=True), components.amax((1, 2, 3), keepdim=True)
    images = ((components - low) / (high - low).clamp_min(1e-12)).permute(0, 2, 3, 1).numpy()
    columns = 7
    figure = new_figure(7.4, 0.5 + 1.05 * ceil(len(images) / columns))
    figure.set_layout_engine("constrained")
    _draw_grid(figure.add_subplot(), images, columns=columns)
    figure.suptitle("principal components of the patch filters", fontsize=13)
    save(figure, path)


def _draw_grid(axes: Axes, images: Iterable[np.ndarray], columns: int, **options: Any) -> AxesImage:
    """Draws small images in rows, all into one pair of axes, as axes take longer to draw than images; returns the last."""
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        place = (column, column + _SIDE, row + _SIDE, row)
        drawn = axes.imshow(image, extent=place, interpolation="nearest", **options)
    axes.set(xlim=(0, columns - 1 + _SIDE), ylim=(row + _SIDE, 0))
    axes.set_axis_off()
    return drawn


def filter_components(weight: Tensor) -> Tensor:
    """
    The strongest principal components of filters.

    Args:
        weight (`torch.Tensor` of shape `(dim, 3, patch_size, patch_size)`): The filters.

    Returns:
        `torch.Tensor` of shape `(count, 3, patch_size, patch_size)`, float32: unit vectors, the strongest first; 28, or as
        many as there can be.
    """
    filters = weight.detach().float().cpu().flatten(1)
    components = torch.linalg.svd(filters - filters.mean(0), full_matrices=False).Vh
    return components[:NUM_FILTERS].unflatten(1, weight.shape[1:])
