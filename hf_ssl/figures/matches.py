"""Patches of two views that show the same place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import BLUE, draw_pixels, new_figure, save


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


def plot_matches(
    path: str | Path,
    *,
    first: Tensor,
    second: Tensor,
    grids: tuple[tuple[int, int], tuple[int, int]],
    matches: Tensor,
) -> None:
    """
    Draws two views side by side, on one scale, with their patches numbered row by row from 1 on. Patches that match have a
    frame and a number of one color, which no other pair beside them has.

    Args:
        path (`str` or `Path`): PNG file to write.
        first (`torch.Tensor` of shape `(3, height1, width1)`, uint8): The first view.
        second (`torch.Tensor` of shape `(3, height2, width2)`, uint8): The second view.
        grids (`tuple[tuple[int, int], tuple[int, int]]`): Rows and columns of the patches of either view.
        matches (`torch.Tensor` of shape `(num_pairs, 2)`, int64): Patches of the first and the second view, from 0.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If a match is not among the patches.
    """
    counts = [rows * columns for rows, columns in grids]
    if any(
        len(of_view) and not 0 <= of_view.min() <= of_view.max() < n
        for of_view, n in zip(matches.T, counts, strict=True)
    ):
        raise ValueError(f"`matches` must be patches of grids of {grids}, counted from 0; got {matches.tolist()}.")
    from matplotlib import colormaps

    # The larger view is 5 inches wide.
    scale, margin, gap, top = 5 / max(first.shape[2], second.shape[2]), 0.2, 0.5, 0.6
    widths, heights = ([view.shape[axis] * scale for view in (first, second)] for axis in (2, 1))
    width, height = sum(widths) + gap + 2 * margin, top + max(heights) + margin
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    colors = [colormaps["hsv"](0.9 * i / max(1, len(matches))) for i in range(len(matches))]
    left = margin
    for number, (name, view, grid) in enumerate(zip(("large", "small"), (first, second), grids, strict=True)):
        y = top + (max(heights) - heights[number]) / 2
        box = (left, y, widths[number], heights[number])
        axes.text(left, y - 0.1, f"{name} view, {view.shape[2]}×{view.shape[1]} px", fontsize=11)
        draw_pixels(axes, view, *box)
        _draw_grid(axes, grid, box, dict(zip(matches[:, number].tolist(), colors, strict=True)))
        left += widths[number] + gap
    axes.text(margin, 0.25, f"{len(matches)} pairs of patches show the same place", fontsize=12, color=BLUE)
    # After the images, which set limits of their own.
    axes.set(xlim=(0, width), ylim=(height, 0))
    save(figure, path)


def _draw_grid(
    axes: Axes, grid: tuple[int, int], box: tuple[float, float, float, float], colors: dict[int, tuple[float, ...]]
) -> None:
    """Draws numbered cells; those of `colors` stand out."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    left, top, width, height = box[0], box[1], box[2] / grid[1], box[3] / grid[0]
    for cell in range(grid[0] * grid[1]):
        x, y = left + cell % grid[1] * width, top + cell // grid[1] * height
        matched, size = cell in colors, 72 * min(width, height)
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="white", linewidth=0.4, alpha=0.6))
        if matched:
            inner = Rectangle((x, y), width, height, facecolor=(*colors[cell][:3], 0.35), edgecolor=colors[cell])
            inner.set_linewidth(max(0.8, 0.04 * size))
            axes.add_patch(inner)
        text = axes.text(x + width / 2, y + height / 2, str(cell + 1), ha="center", va="center", fontsize=0.3 * size)
        text.set(color="white" if matched else "#dddddd", fontweight="bold" if matched else "normal")
        text.set_path_effects([withStroke(linewidth=0.06 * size, foreground="black")])
