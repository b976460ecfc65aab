"""Patches of two views, or of two images, that show the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .common import BLUE, draw_pixels, new_figure, require_matplotlib, save


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patheffects import AbstractPathEffect
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


def plot_image_matches(
    path: str | Path,
    *,
    images: tuple[Tensor, Tensor],
    boxes: tuple[Tensor, Tensor],
    similarities: Tensor,
    areas: tuple[Tensor, Tensor] | None = None,
    title: str | None = None,
) -> None:
    """
    Draws two images side by side, with lines between the patches that an encoder takes for the same thing. Colors tell
    how similar their tokens are.

    Args:
        path (`str` or `Path`): PNG file to write.
        images (`tuple[torch.Tensor, torch.Tensor]` of shape `(3, height, width)`, uint8): The images, of any sizes.
        boxes (`tuple[torch.Tensor, torch.Tensor]` of shape `(num_pairs, 4)`):
            The patches of either image, in pairs: `(top, left, height, width)` in its pixels.
        similarities (`torch.Tensor` of shape `(num_pairs,)`): Cosine similarity of each pair.
        areas (`tuple[torch.Tensor, torch.Tensor]` of shape `(4,)`, *optional*):
            What the encoder sees of either image, as such a box; the rest is drawn pale.
        title (`str`, *optional*): Unset, the number of pairs.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If the numbers of boxes and similarities differ.
    """
    counts = {len(boxes[0]), len(boxes[1]), len(similarities)}
    if len(counts) > 1:
        raise ValueError(
            f"Pairs have a box in either image and a similarity; got {len(boxes[0])} and {len(boxes[1])} `boxes` and "
            f"{len(similarities)} `similarities`."
        )
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import ConnectionPatch, Rectangle
    from matplotlib.patheffects import withStroke

    side, margin, gap, top = 5.0, 0.2, 0.5, 0.6
    scales = [side / max(image.shape[1:]) for image in images]  # inches for a pixel
    sizes = [(image.shape[2] * scale, image.shape[1] * scale) for image, scale in zip(images, scales, strict=True)]
    bar = 1.1 if len(similarities) else 0.0  # for the colors
    tallest = max(height for _, height in sizes)
    width, height = sum(wide for wide, _ in sizes) + gap + 2 * margin + bar, top + tallest + margin
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(margin, 0.35, title or f"{len(similarities)} pairs of patches", fontsize=12)
    low, high = (float(similarities.min()), float(similarities.max())) if bar else (0.0, 1.0)
    norm = Normalize(min(low, high - 0.05), high)  # so that similar pairs have similar colors
    colors = colormaps["plasma"](norm(similarities.double().numpy()))
    # To be seen on any background.
    outlined: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="#00000080")]
    left, ends = margin, []
    for i, (image, (wide, tall)) in enumerate(zip(images, sizes, strict=True)):
        y = top + (tallest - tall) / 2
        draw_pixels(axes, image if areas is None else _pale_outside(image, areas[i]), left, y, wide, tall)
        placed = boxes[i].double().numpy() * scales[i] + np.array([y, left, 0, 0])
        for (box_top, box_left, box_height, box_width), color in zip(placed, colors, strict=True):
            box = Rectangle((box_left, box_top), box_width, box_height, fill=False, edgecolor=color, linewidth=1.4)
            box.set_path_effects(outlined)
            axes.add_patch(box)
        ends.append(placed[:, [1, 0]] + placed[:, [3, 2]] / 2)
        left += wide + gap
    # The most similar pairs come out on top.
    for i in similarities.argsort(stable=True).tolist():
        line = ConnectionPatch(ends[0][i], ends[1][i], "data", "data", color=colors[i], linewidth=1.1)
        line.set_path_effects(outlined)
        axes.add_patch(line)
    # After the images, which set limits of their own.
    axes.set(xlim=(0, width), ylim=(height, 0))
    if bar:
        place = ((left - gap + 0.25) / width, 1 - (top + tallest) / height, 0.15 / width, tallest / height)
        scale = figure.add_axes(place)
        figure.colorbar(
            ScalarMappable(norm, "plasma"), cax=scale, label="cosine similarity of the tokens", format="%.2f"
        )
    save(figure, path)


def _pale_outside(image: Tensor, area: Tensor) -> Tensor:
    """Mixes white into what lies outside of a box."""
    top, left, height, width = area.tolist()
    ends = (top, top + height, image.shape[1]), (left, left + width, image.shape[2])
    (y0, y1), (x0, x1) = (sorted(min(max(round(end), 0), side) for end in (a, b)) for a, b, side in ends)
    pale = 255 - (255 - image) // 3
    pale[:, y0:y1, x0:x1] = image[:, y0:y1, x0:x1]
    return pale
