"""The views that a method trains on, and where they lie in their images."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from .common import GRAY, VIEW_COLORS, draw_pixels, new_figure, save


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


def plot_views(
    path: str | Path,
    *,
    sources: Sequence[Tensor],
    views: Sequence[Tensor],
    boxes: Tensor,
    names: Sequence[str],
    title: str,
    frames: Sequence[int] | None = None,
    without_box: str = "made of several images",
) -> None:
    """
    Draws, one row per image, the source with the boxes of its views, and the views. If rows are short, the sheet has
    several columns of them.

    Args:
        path (`str` or `Path`): PNG file to write.
        sources (`Sequence[torch.Tensor]`): `B` uint8 images of shape `(3, height, width)`, of any sizes.
        views (`Sequence[torch.Tensor]`): `V` views of all images, each uint8 of shape `(B, 3, side, side)`.
        boxes (`torch.Tensor` of shape `(B, U, 5)`, int64): Where `U` views lie in sources, see [`hf_ssl.views.boxes`].
        names (`Sequence[str]`): `V` names, such as `["global 1", "global 2"]`.
        title (`str`): A line above all.
        frames (`Sequence[int]`, *optional*): For each view the number of its frame; the first view that has frame `u < U`
            lies in box `u`. Unset, each has its own, and the first `U` views have boxes.
        without_box (`str`, *optional*, defaults to `"made of several images"`): What views without a box are.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If shapes do not fit.
    """
    fit = boxes.ndim == 3 and boxes.shape[::2] == (len(sources), 5) and boxes.shape[1] <= len(views)
    if not fit or len(names) != len(views) or {len(view) for view in views} != {len(sources)}:
        raise ValueError(
            f"{len(sources)} `sources` with {len(views)} `views` need `boxes` of shape {(len(sources), len(views), 5)} (or "
            f"fewer), a name for each view and a view of each source; got {tuple(boxes.shape)}, the names {list(names)} and "
            f"views of {[len(view) for view in views]} sources."
        )
    sheet = _Sheet(len(sources), len(views))
    figure = new_figure(sheet.width, sheet.height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    tags = view_tags(names)
    frames = range(len(views)) if frames is None else frames
    of_boxes = [tags[list(frames).index(u)] for u in range(boxes.shape[1])]
    overhang = max(_overhang(image, image_boxes) for image, image_boxes in zip(sources, boxes, strict=True))
    for i, image in enumerate(sources):
        _draw_source(axes, image, boxes[i].tolist(), of_boxes, sheet.source(i), sheet.side, overhang)
        for v, view in enumerate(views):
            left, top = sheet.view(i, v)
            draw_pixels(axes, view[i], left, top, sheet.tile, sheet.tile)
            _draw_frame(axes, frames[v], left, top, sheet.tile, sheet.tile)
            _draw_tag(axes, frames[v], tags[v], left, top)
    _label_views(axes, sheet, sources, [f"{n}, {view.shape[-1]} px" for n, view in zip(names, views, strict=True)])
    axes.text(sheet.margin, 0.3, title, fontsize=11)
    notes = ["↔ mirrored left to right"] * bool(boxes[..., 4].any())
    notes += ["hatched: outside of the source"] * (overhang > 0)
    notes += [f"without a box: {without_box}"] * (boxes.shape[1] < len(views))
    axes.text(sheet.margin, sheet.bottom, "    ".join(notes), fontsize=9, color=GRAY, va="top")
    # After the images, which set limits of their own.
    axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    save(figure, path)


class _Sheet:
    """Where things lie in `plot_views`, in inches. Many views take several lines, beside a source as high as all."""

    gap, line, margin = 0.1, 0.18, 0.3

    def __init__(self, num_images: int, num_views: int) -> None:
        self.lines = ceil(num_views / 5)
        self.columns = ceil(num_views / self.lines)
        self.tile = 1.5 if self.lines == 1 else 1.2
        self.side = self.lines * (self.tile + self.gap) - self.gap
        self.row_width = self.margin + self.side + self.gap + self.columns * (self.tile + self.gap)
        self.row_height = self.side + 2 * self.gap
        # About as wide as high, and at most 12 inches wide.
        wanted = round((num_images * self.row_height / self.row_width) ** 0.5)
        self.rows = ceil(num_images / max(1, min(wanted, int(12 / self.row_width))))
        self.stacks = ceil(num_images / self.rows)
        self.top = 0.55 + self.lines * self.line
        self.bottom = self.top + self.rows * self.row_height
        # Title and notes are wider than one row.
        self.width, self.height = max(4.2, self.stacks * self.row_width + self.gap), self.bottom + 0.3

    def source(self, image: int) -> tuple[float, float]:
        """Left and top of a source."""
        stack, row = divmod(image, self.rows)
        return stack * self.row_width + self.margin, self.top + row * self.row_height

    def view(self, image: int, view: int) -> tuple[float, float]:
        """Left and top of a view."""
        (left, top), (line, column) = self.source(image), divmod(view, self.columns)
        pitch = self.tile + self.gap
        return left + self.side + 2 * self.gap + column * pitch, top + line * pitch


def _label_views(axes: Axes, sheet: _Sheet, sources: Sequence[Tensor], headers: Sequence[str]) -> None:
    """Writes headers above each stack of rows, and beside the rows the sizes of the sources if they differ."""
    sizes = [f"{image.shape[2]}×{image.shape[1]}" for image in sources]
    source_header = "source"
    if len(set(sizes)) == 1:
        source_header = f"source, {sizes[0]} px"
    else:
        for i, size in enumerate(sizes):
            left, top = sheet.source(i)
            axes.text(
                left - 0.05, top + sheet.side / 2, size, fontsize=8, color=GRAY, rotation=90, ha="right", va="center"
            )
    size_of_text = 9 if max(map(len, headers)) < 20 or sheet.lines == 1 else 8
    for first in range(0, len(sources), sheet.rows):
        left, top = sheet.source(first)
        axes.text(left, top - sheet.gap, source_header, fontsize=size_of_text)
        for v, header in enumerate(headers):
            lines_below = sheet.lines - 1 - v // sheet.columns
            place = sheet.view(first, v)[0], top - sheet.gap - lines_below * sheet.line
            axes.text(*place, header, fontsize=size_of_text)


def view_tags(names: Sequence[str]) -> list[str]:
    """What is written on boxes and views: `"G1"` for `"global 1"`, `"ML2"` for `"mixed local 2"`; nothing for one alone."""
    if len(names) == 1:
        return [""]
    tags = ["".join(word if word[-1].isdigit() else word[0].upper() for word in name.split()) for name in names]
    return tags if len(set(tags)) == len(tags) else [str(v + 1) for v in range(len(names))]


def _overhang(image: Tensor, boxes: Tensor) -> float:
    """How far boxes stick out of an image, as a share of its longer side."""
    image_height, image_width = image.shape[1:]
    top, left, height, width, _ = boxes.unbind(1)
    distances = [-top, -left, top + height - image_height, left + width - image_width]
    return max(0, *(int(distance.max()) for distance in distances)) / max(image_height, image_width)


def _draw_source(
    axes: Axes,
    image: Tensor,
    boxes: Sequence[Sequence[int]],
    tags: Sequence[str],
    corner: tuple[float, float],
    side: float,
    overhang: float,
) -> None:
    """Draws a source centered in a square of the given side, with room around it for boxes that stick out."""
    from matplotlib.patches import Rectangle

    image_height, image_width = image.shape[1:]
    scale = side / (max(image_height, image_width) * (1 + 2 * overhang))
    left = corner[0] + (side - image_width * scale) / 2
    top = corner[1] + (side - image_height * scale) / 2
    draw_pixels(axes, image, left, top, image_width * scale, image_height * scale)
    for v, (y, x, height, width, flip) in enumerate(boxes):
        box = left + x * scale, top + y * scale, width * scale, height * scale
        # Below the image, so that it is seen only outside.
        outside = Rectangle(box[:2], *box[2:], facecolor="white", edgecolor="#bbbbbb", hatch="//////", linewidth=0)
        axes.add_patch(outside).set_zorder(-1)
        _draw_frame(axes, v, *box)
        # In four corners by turns: tags of views that cover the same place would hide each other.
        right, low = v % 4 in (1, 2), v % 4 in (2, 3)
        _draw_tag(
            axes, v, f"{tags[v]} ↔" if flip else tags[v], box[0] + box[2] * right, box[1] + box[3] * low, right, low
        )


def _draw_frame(axes: Axes, view: int, left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    color, style = VIEW_COLORS[view % len(VIEW_COLORS)], "-" if view < len(VIEW_COLORS) else (0, (4, 1))
    frame = Rectangle((left, top), width, height, fill=False, edgecolor=color, linewidth=1.5, linestyle=style)
    # A thin white line on both sides: seen on any photo. Unsnapped, for both lines have to keep their places.
    frame.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    frame.set_snap(False)
    axes.add_patch(frame)


def _draw_tag(axes: Axes, view: int, text: str, x: float, y: float, right: bool = False, low: bool = False) -> None:
    if text:
        box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": VIEW_COLORS[view % len(VIEW_COLORS)]}
        ha, va = "right" if right else "left", "bottom" if low else "top"
        axes.text(x, y, text.strip(), fontsize=7, ha=ha, va=va, bbox=box)
