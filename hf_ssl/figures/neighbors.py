"""Nearest images of some images, by one encoder or by several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .common import GREEN, RED, draw_tile, new_figure, save


if TYPE_CHECKING:
    from torch import Tensor


def plot_neighbors(
    path: str | Path,
    *,
    query_images: Sequence[Tensor],
    bank_images: Sequence[Tensor],
    neighbors: Mapping[str, Tensor],
    query_labels: Sequence[int] | Tensor | None = None,
    bank_labels: Sequence[int] | Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """
    Draws, one row per query, its nearest neighbors; those by several encoders, such as before and after training, side by
    side.

    Args:
        path (`str` or `Path`): PNG file to write.
        query_images (`Sequence[torch.Tensor]`): `Q` uint8 images of shape `(3, height, width)`, of any sizes.
        bank_images (`Sequence[torch.Tensor]`): Images the neighbors were searched in; only those shown are read.
        neighbors (`Mapping[str, torch.Tensor]` of shape `(Q, k)`): Indices into `bank_images`, most similar first, by what
            is written over them; see [`~hf_ssl.evaluation.nearest_neighbors`].
        query_labels (`Sequence[int]` or `torch.Tensor` of shape `(Q,)`, *optional*):
            With `bank_labels`, frames tell whether a neighbor has the query's class.
        bank_labels (`Sequence[int]` or `torch.Tensor` of shape `(N,)`, *optional*): Classes of `bank_images`.
        class_names (`Sequence[str]`, *optional*): With labels, names the queries.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If shapes do not fit, or only one of the two label lists is given.
    """
    count = len(query_images)
    shapes = {tuple(indices.shape) for indices in neighbors.values()}
    if len(shapes) != 1 or {shape[:1] for shape in shapes} != {(count,)} or {len(shape) for shape in shapes} != {2}:
        raise ValueError(
            f"All `neighbors` must have one shape, (number of queries = {count}, k), got {sorted(shapes)}."
        )
    if (query_labels is None) != (bank_labels is None):
        raise ValueError("Frames compare classes: give both `query_labels` and `bank_labels`, or none of them.")
    k = next(iter(shapes))[1]
    # Lengths in units of one tile: query, then for each group a gap and k neighbors.
    gap, pitch = 0.35, 1.1
    starts = {title: (1 + i * k) * pitch + (i + 1) * gap for i, title in enumerate(neighbors)}
    left, right, bottom = -0.45, (1 + len(starts) * k) * pitch + len(starts) * gap, count * pitch
    inch = (right - left) / 10
    top, end = -0.4 * inch, bottom + (0.35 * inch if query_labels is not None else 0)
    figure = new_figure(10, (end - top) / inch)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row in range(count):
        y = row * pitch
        draw_tile(axes, query_images[row], 0, y)
        if query_labels is not None and class_names is not None:
            name = class_names[int(query_labels[row])]
            axes.text(-0.08, y + 0.5, name, fontsize=12, rotation=90, ha="right", va="center")
        for title, indices in neighbors.items():
            for column, index in enumerate(indices[row].tolist()):
                frame = None
                if query_labels is not None and bank_labels is not None:
                    frame = GREEN if int(bank_labels[index]) == int(query_labels[row]) else RED
                draw_tile(axes, bank_images[index], starts[title] + column * pitch, y, frame=frame)
    axes.text(0.5, -0.1 * inch, "query", fontsize=13, ha="center")
    for title, start in starts.items():
        axes.text(start, -0.1 * inch, title, fontsize=13)
    if query_labels is not None:
        start = pitch + gap
        axes.text(start, bottom, "green frame: class of the query", color=GREEN, fontsize=12, va="top")
        axes.text((start + right) / 2, bottom, "red frame: another class", color=RED, fontsize=12, va="top")
    # After the images, which set limits of their own.
    axes.set(xlim=(left, right), ylim=(end, top))
    save(figure, path)
