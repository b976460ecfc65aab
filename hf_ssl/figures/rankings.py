"""What a search found for some queries, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .common import GRAY, GREEN, RED, draw_tile, new_figure, save


if TYPE_CHECKING:
    from torch import Tensor


FRAMES = {True: GREEN, False: RED, None: GRAY}
WORDS = {True: "green: should be found", False: "red: should not", None: "gray: does not count"}


@dataclass
class Ranking:
    """
    A query, and what was found for it.

    Args:
        query (`torch.Tensor` of shape `(3, height, width)`): The query, uint8.
        found (`Sequence[torch.Tensor]`): Images of any sizes, uint8 of shape `(3, height, width)`, the best first.
        title (`str`): What stands beside the query, such as its average precision.
        captions (`Sequence[str]`): What stands below each of the images that were found, such as their similarity.
        is_right (`Sequence[bool | None]`, *optional*):
            Whether each of them should be found; None for those that do not count. Unset, they have no frames.
    """

    query: Tensor
    found: Sequence[Tensor]
    title: str
    captions: Sequence[str]
    is_right: Sequence[bool | None] | None = None


def plot_rankings(
    path: str | Path, rankings: Sequence[Ranking], headings: tuple[str, str] = ("query", "found, best first")
) -> None:
    """
    Draws, one row per query, what was found: framed green if it should be, red if not, gray if it does not count.

    Args:
        path (`str` or `Path`): PNG file to write.
        rankings (`Sequence[Ranking]`): The queries.
        headings (`tuple[str, str]`, *optional*): What stands over the queries, and over what was found.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If there is no query, or captions or frames of another number than images.
    """
    if not rankings:
        raise ValueError("There is no query to draw.")
    for ranking in rankings:
        given = {len(ranking.found), len(ranking.captions), len(ranking.is_right or ranking.found)}
        if len(given) > 1:
            raise ValueError(f"{ranking.title!r} has images, captions and frames of different numbers: {given}.")
    # Lengths in units of one tile: query, gap, what was found.
    gap, pitch, height = 0.35, 1.1, 1.3
    left, right = -0.3, pitch + gap + max(len(ranking.found) for ranking in rankings) * pitch
    inch = (right - left) / 12
    top, bottom = -0.4 * inch, len(rankings) * height + 0.35 * inch
    figure = new_figure(12, (bottom - top) / inch)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(0.5, -0.1 * inch, headings[0], fontsize=13, ha="center")
    axes.text(pitch + gap, -0.1 * inch, headings[1], fontsize=13)
    for row, ranking in enumerate(rankings):
        y = row * height
        draw_tile(axes, ranking.query, 0, y)
        axes.text(-0.05, y + 0.5, ranking.title, fontsize=10, rotation=90, ha="right", va="center")
        for column, (image, caption) in enumerate(zip(ranking.found, ranking.captions, strict=True)):
            x = pitch + gap + column * pitch
            draw_tile(axes, image, x, y, frame=None if ranking.is_right is None else FRAMES[ranking.is_right[column]])
            axes.text(x + 0.5, y + 1.03, caption, fontsize=9, ha="center", va="top")
    kinds = {kind for ranking in rankings for kind in ranking.is_right or ()}
    for i, kind in enumerate(kind for kind in WORDS if kind in kinds):
        axes.text(
            pitch + gap + 3.3 * i, bottom - 0.1 * inch, WORDS[kind], color=FRAMES[kind], fontsize=11, va="bottom"
        )
    # After the images, which set limits of their own.
    axes.set(xlim=(left, right), ylim=(bottom, top))
    save(figure, path)
