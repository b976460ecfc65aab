"""Similarities of some images to others, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .common import BLUE, GRAY, GREEN, LIGHT_GRAY, draw_tile, new_figure, save


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


def plot_similarities(
    path: str | Path,
    *,
    query_images: Sequence[Tensor],
    key_images: Sequence[Tensor],
    similarities: Tensor,
    similarities_before: Tensor | None = None,
    query_labels: Sequence[int] | Tensor | None = None,
    key_labels: Sequence[int] | Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """
    Draws, one row per query, its similarity to each key as a bar above the key, in the manner of
    [PatchMix](https://huggingface.co/papers/2306.12243).

    Args:
        path (`str` or `Path`): PNG file to write.
        query_images (`Sequence[torch.Tensor]`): `Q` uint8 images of shape `(3, height, width)`, of any sizes.
        key_images (`Sequence[torch.Tensor]`): `K` images that the queries are compared with.
        similarities (`torch.Tensor` of shape `(Q, K)`):
            Heights of the bars, see [`~hf_ssl.evaluation.similarity.instance_similarity`]. The axis runs from 0 to 1:
            where a value lies outside, the bar ends with the axis, and the number above it tells the value.
        similarities_before (`torch.Tensor` of shape `(Q, K)`, *optional*): The same before training, as gray bars.
        query_labels (`Sequence[int]` or `torch.Tensor` of shape `(Q,)`, *optional*):
            With `key_labels`, colors tell whether a key has the query's class.
        key_labels (`Sequence[int]` or `torch.Tensor` of shape `(K,)`, *optional*): Classes of `key_images`.
        class_names (`Sequence[str]`, *optional*): With labels, names queries and keys.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If shapes do not fit, or only one of the two label lists is given.
    """
    if (query_labels is None) != (key_labels is None):
        raise ValueError("Colors compare classes: give both `query_labels` and `key_labels`, or none of them.")
    shape = (len(query_images), len(key_images))
    if not all(shape):
        raise ValueError(f"There is nothing to compare in {shape[0]} `query_images` and {shape[1]} `key_images`.")
    _check_shape("similarities", similarities, shape)
    _check_shape("similarities_before", similarities_before, shape)
    _check_shape("query_labels", query_labels, shape[:1])
    _check_shape("key_labels", key_labels, shape[1:])
    labels = None
    if query_labels is not None and key_labels is not None:
        labels = [int(i) for i in query_labels], [int(i) for i in key_labels]
    has_legend = labels is not None or similarities_before is not None
    chart = _Chart(*shape, named=labels is not None and class_names is not None, legend=has_legend)
    figure = new_figure(chart.width, chart.height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, query_image in enumerate(query_images):
        draw_tile(axes, query_image, *chart.query(row), side=chart.query_side)
        _draw_scale(axes, chart, row)
        for column, key_image in enumerate(key_images):
            color = GREEN if labels is not None and labels[0][row] == labels[1][column] else BLUE
            before = None if similarities_before is None else float(similarities_before[row, column])
            _draw_bars(axes, chart, row, column, float(similarities[row, column]), before, color)
            draw_tile(axes, key_image, *chart.key(row, column), side=chart.tile)
    if labels is not None and class_names is not None:
        _name_images(axes, chart, [class_names[i] for i in labels[0]], [class_names[i] for i in labels[1]])
    left, top = chart.query(0)
    axes.text(left + chart.query_side / 2, top - 0.08, "query", fontsize=13, ha="center")
    if has_legend:
        _draw_bar_legend(axes, chart, labeled=labels is not None, before=similarities_before is not None)
    # After the images, which set limits of their own.
    axes.set(xlim=(0, chart.width), ylim=(chart.height, 0))
    save(figure, path)


def _check_shape(name: str, values: Sequence[int] | Tensor | None, shape: tuple[int, ...]) -> None:
    if values is not None and np.shape(values) != shape:
        raise ValueError(f"`{name}` must have shape {shape} to fit the images, got {tuple(np.shape(values))}.")


class _Chart:
    """Where things lie in `plot_similarities`, in inches; rows are as wide as all of their keys."""

    margin, query_side, bar_height, line, start = 0.2, 1.25, 1.2, 0.2, 2.15

    def __init__(self, num_queries: int, num_keys: int, *, named: bool, legend: bool) -> None:
        # Few keys are drawn larger.
        self.pitch = min(1.4, max(0.78, 7.8 / num_keys))
        self.tile = 0.86 * self.pitch
        self.end = self.start + num_keys * self.pitch
        self.row_height = 2 * self.line + self.bar_height + self.tile + named * self.line
        self.top = 2.2 * self.line if legend else 0.5 * self.line
        # The legend is wider than a few bars.
        self.width = max(7.2 if legend else 0, self.end + self.margin)
        self.height = self.top + num_queries * self.row_height

    def base(self, row: int) -> float:
        """Where the bars of a row stand."""
        return self.top + row * self.row_height + self.line + self.bar_height

    def query(self, row: int) -> tuple[float, float]:
        """Left and top of a query, beside the middle of its bars and keys."""
        middle = self.base(row) + (self.tile - self.bar_height) / 2
        return self.margin, middle - self.query_side / 2

    def key(self, row: int, column: int) -> tuple[float, float]:
        """Left and top of a key."""
        return self.start + column * self.pitch + (self.pitch - self.tile) / 2, self.base(row) + 0.07


def _draw_scale(axes: Axes, chart: _Chart, row: int) -> None:
    """Draws the axis from 0 to 1 beside the bars of a row, and lines behind them."""
    base = chart.base(row)
    for value in (0, 0.5, 1):
        y = base - value * chart.bar_height
        axes.plot((chart.start, chart.end), (y, y), color="#e6e6e6" if value else GRAY, linewidth=0.8, zorder=-1)
        axes.text(chart.start - 0.06, y, f"{value:g}", fontsize=9, color=GRAY, ha="right", va="center")
    middle = base - chart.bar_height / 2
    axes.text(chart.start - 0.4, middle, "similarity", fontsize=10, color=GRAY, rotation=90, ha="center", va="center")


def _draw_bars(
    axes: Axes, chart: _Chart, row: int, column: int, value: float, before: float | None, color: str
) -> None:
    """Draws the bar of a key with its number and, on its left, a thin one for the value before training."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    width = min(0.5 * chart.pitch, 0.45)
    thin = 0 if before is None else 0.3 * width
    left = chart.start + (column + 0.5) * chart.pitch - (width + thin) / 2
    base = chart.base(row)
    if before is not None:
        height = min(max(before, 0), 1) * chart.bar_height
        axes.add_patch(Rectangle((left, base - height), thin, height, color=LIGHT_GRAY, linewidth=0))
    height = min(max(value, 0), 1) * chart.bar_height
    axes.add_patch(Rectangle((left + thin, base - height), width, height, color=color, linewidth=0))
    # "z": a tiny negative number is written without its sign.
    number = axes.text(left + thin + width / 2, base - height - 0.04, f"{value:z.2f}", fontsize=9, ha="center")
    number.set_path_effects([withStroke(linewidth=2, foreground="white")])  # against the lines behind


def _name_images(axes: Axes, chart: _Chart, query_names: Sequence[str], key_names: Sequence[str]) -> None:
    """Writes names below queries and keys, cut where there is no room for them."""
    for row, query_name in enumerate(query_names):
        left, top = chart.query(row)
        _write_name(axes, query_name, left, top, chart.query_side, fontsize=11)
        for column, key_name in enumerate(key_names):
            _write_name(axes, key_name, *chart.key(row, column), chart.tile, fontsize=9)


def _write_name(axes: Axes, name: str, left: float, top: float, side: float, fontsize: int) -> None:
    room = int(side * 72 / fontsize / 0.56)  # letters are this wide, about
    short = name if len(name) <= room else f"{name[: room - 1]}…"
    axes.text(left + side / 2, top + side + 0.04, short, fontsize=fontsize, ha="center", va="top")


def _draw_bar_legend(axes: Axes, chart: _Chart, *, labeled: bool, before: bool) -> None:
    """Tells what colors mean, above the first row."""
    from matplotlib.patches import Patch

    colors = {GREEN: "class of the query", BLUE: "another class"} if labeled else {BLUE: "after training"}
    if before:
        colors[LIGHT_GRAY] = "before training"
    axes.legend(
        handles=[Patch(color=color, label=label) for color, label in colors.items()],
        fontsize=11,
        frameon=False,
        ncols=len(colors),
        loc="center left",
        bbox_to_anchor=(chart.start - 0.1, 0.25),
        bbox_transform=axes.transData,
        handlelength=1,
        columnspacing=1.6,
        borderpad=0,
    )
