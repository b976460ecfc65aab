"""Pictures of a run: views it trains on, loss and kNN curves, neighbors and similarities before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

# Told apart with any kind of color vision.
BLUE, GREEN, RED, GRAY, LIGHT_GRAY = "#0077BB", "#009E73", "#CC3311", "#555555", "#BBBBBB"
VIEW_COLORS = (BLUE, "#E69F00", GREEN, "#CC79A7", "#D55E00", "#56B4E9")

DPI = 160


def require_matplotlib() -> None:
    """
    Checks that figures can be drawn, so that a long run can find out before it starts.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('Figures need matplotlib: run `pip install "hf_ssl[viz]"`.') from error


def _new_figure(width: float, height: float) -> Figure:
    """A figure of its own (inches), so that no pyplot state is touched."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white")


def _series(log_history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    logs = [log for log in log_history if name in log]
    return [log["step"] for log in logs], [log[name] for log in logs]


def _style(axes: Axes, title: str, title_pad: float = 6) -> None:
    axes.set_title(title, fontsize=13, loc="left", pad=title_pad)
    axes.set_xlabel("optimizer step", fontsize=11)
    axes.tick_params(labelsize=11)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5, integer=True)


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: str | Path, *, terms: Sequence[str]) -> None:
    """
    Draws the curves of a training run as small multiples: kNN accuracy if monitored, loss terms, learning rate.

    Args:
        log_history (`Sequence[Mapping[str, Any]]`):
            `trainer.state.log_history`: dictionaries with `step` and metrics. `knn_top1` (percent) becomes a panel of
            its own, with its value at step 0 marked as the state before training and the last `knn_top1_pixels` as
            reference line; `learning_rate` too.
        path (`str` or `Path`): PNG file to write.
        terms (`Sequence[str]`): Metrics to draw, one panel each, such as `["loss", "loss_relations"]`.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If a term was never logged.
    """
    logged = {name for log in log_history for name in log}
    missing = [term for term in terms if term not in logged]
    if missing:
        raise ValueError(
            f"`terms` {missing} are not in the log history, which has {sorted(logged)}: use these names, and train "
            "for at least `logging_steps` steps."
        )
    panels = [*terms, *(["learning_rate"] if "learning_rate" in logged else [])]
    rows, knn_rows = ceil(len(panels) / 2), int("knn_top1" in logged)
    figure = _new_figure(8, 2.7 * rows + 3.4 * knn_rows)
    figure.set_layout_engine("constrained")
    grid = figure.add_gridspec(rows + knn_rows, 2, height_ratios=[3.4] * knn_rows + [2.7] * rows)
    if knn_rows:
        _plot_knn(figure.add_subplot(grid[0, :]), log_history)
    for i, name in enumerate(panels):
        axes = figure.add_subplot(grid[knn_rows + i // 2, i % 2])
        _style(axes, name.removeprefix("loss_").replace("_", " ") + (" loss" if name.startswith("loss_") else ""))
        steps, values = _series(log_history, name)
        axes.plot(steps, values, color=BLUE, linewidth=1.6, marker="o" if len(steps) == 1 else None)
        if name == "learning_rate":
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter("{x:g}")
    _save(figure, path)


def _plot_knn(axes: Axes, log_history: Sequence[Mapping[str, Any]]) -> None:
    _style(axes, "kNN top-1 accuracy (percent)", title_pad=26)
    steps, values = _series(log_history, "knn_top1")
    axes.plot(
        steps, values, color=BLUE, linewidth=2, marker="o", markersize=4, label=f"encoder, last: {values[-1]:.1f}"
    )
    if steps[0] == 0:
        axes.plot(0, values[0], "D", color=RED, markersize=8, label=f"before training: {values[0]:.1f}", clip_on=False)
    pixels = _series(log_history, "knn_top1_pixels")[1]
    if pixels:
        axes.axhline(pixels[-1], color=GRAY, linestyle="--", linewidth=1.4, label=f"raw pixels: {pixels[-1]:.1f}")
    axes.margins(y=0.12)
    # Between title and plot, where it cannot cover a curve.
    axes.legend(fontsize=11, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 0.98), columnspacing=1.4)


def plot_neighbors(
    path: str | Path,
    *,
    query_images: Sequence[Tensor],
    bank_images: Sequence[Tensor],
    neighbors_before: Tensor,
    neighbors_after: Tensor,
    query_labels: Sequence[int] | Tensor | None = None,
    bank_labels: Sequence[int] | Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """
    Draws, one row per query, its nearest neighbors before and after training side by side.

    Args:
        path (`str` or `Path`): PNG file to write.
        query_images (`Sequence[torch.Tensor]`): `Q` uint8 images of shape `(3, height, width)`, of any sizes.
        bank_images (`Sequence[torch.Tensor]`): Images the neighbors were searched in; only those shown are read.
        neighbors_before (`torch.Tensor` of shape `(Q, k)`): Indices into `bank_images`, most similar first, by the
            features before training; see [`~hf_ssl.evaluation.knn.nearest_neighbors`].
        neighbors_after (`torch.Tensor` of shape `(Q, k)`): The same, after training.
        query_labels (`Sequence[int]` or `torch.Tensor` of shape `(Q,)`, *optional*):
            With `bank_labels`, frames tell whether a neighbor has the query's class.
        bank_labels (`Sequence[int]` or `torch.Tensor` of shape `(N,)`, *optional*): Classes of `bank_images`.
        class_names (`Sequence[str]`, *optional*): With labels, names the queries.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If shapes do not fit, or only one of the two label lists is given.
    """
    count = len(query_images)
    if neighbors_before.shape != neighbors_after.shape or neighbors_before.ndim != 2 or len(neighbors_before) != count:
        raise ValueError(
            f"`neighbors_before` and `neighbors_after` must both have shape (number of queries = {count}, k), got "
            f"{tuple(neighbors_before.shape)} and {tuple(neighbors_after.shape)}."
        )
    if (query_labels is None) != (bank_labels is None):
        raise ValueError("Frames compare classes: give both `query_labels` and `bank_labels`, or none of them.")
    k = neighbors_before.shape[1]
    # Lengths in units of one tile: query, gap, k neighbors, gap, k neighbors.
    gap, pitch = 0.35, 1.1
    starts = {"before": pitch + gap, "after": (1 + k) * pitch + 2 * gap}
    left, right, bottom = -0.45, (1 + 2 * k) * pitch + 2 * gap, count * pitch
    inch = (right - left) / 10
    top, end = -0.4 * inch, bottom + (0.35 * inch if query_labels is not None else 0)
    figure = _new_figure(10, (end - top) / inch)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row in range(count):
        y = row * pitch
        _draw_tile(axes, query_images[row], 0, y)
        if query_labels is not None and class_names is not None:
            name = class_names[int(query_labels[row])]
            axes.text(-0.08, y + 0.5, name, fontsize=12, rotation=90, ha="right", va="center")
        for when, neighbors in (("before", neighbors_before), ("after", neighbors_after)):
            for column, index in enumerate(neighbors[row].tolist()):
                frame = None
                if query_labels is not None and bank_labels is not None:
                    frame = GREEN if int(bank_labels[index]) == int(query_labels[row]) else RED
                _draw_tile(axes, bank_images[index], starts[when] + column * pitch, y, frame=frame)
    axes.text(0.5, -0.1 * inch, "query", fontsize=13, ha="center")
    for when, start in starts.items():
        axes.text(start, -0.1 * inch, f"neighbors {when} training", fontsize=13)
    if query_labels is not None:
        axes.text(starts["before"], bottom, "green frame: class of the query", color=GREEN, fontsize=12, va="top")
        axes.text(starts["after"], bottom, "red frame: another class", color=RED, fontsize=12, va="top")
    # After the images, which set limits of their own.
    axes.set(xlim=(left, right), ylim=(end, top))
    _save(figure, path)


def _draw_tile(
    axes: Axes, image: Tensor, left: float, top: float, *, side: float = 1, frame: str | None = None
) -> None:
    """Draws a uint8 image `(3, height, width)`, whole and undistorted, into a square."""
    from matplotlib.patches import Rectangle

    tile = ImageOps.pad(Image.fromarray(image.permute(1, 2, 0).numpy()), (128, 128), color="white")
    axes.imshow(np.asarray(tile), extent=(left, left + side, top + side, top))
    if frame is not None:
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=frame, linewidth=3.5))


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
    figure = _new_figure(chart.width, chart.height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, query_image in enumerate(query_images):
        _draw_tile(axes, query_image, *chart.query(row), side=chart.query_side)
        _draw_scale(axes, chart, row)
        for column, key_image in enumerate(key_images):
            color = GREEN if labels is not None and labels[0][row] == labels[1][column] else BLUE
            before = None if similarities_before is None else float(similarities_before[row, column])
            _draw_bars(axes, chart, row, column, float(similarities[row, column]), before, color)
            _draw_tile(axes, key_image, *chart.key(row, column), side=chart.tile)
    if labels is not None and class_names is not None:
        _name_images(axes, chart, [class_names[i] for i in labels[0]], [class_names[i] for i in labels[1]])
    left, top = chart.query(0)
    axes.text(left + chart.query_side / 2, top - 0.08, "query", fontsize=13, ha="center")
    if has_legend:
        _draw_bar_legend(axes, chart, labeled=labels is not None, before=similarities_before is not None)
    # After the images, which set limits of their own.
    axes.set(xlim=(0, chart.width), ylim=(chart.height, 0))
    _save(figure, path)


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
    figure = _new_figure(sheet.width, sheet.height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    tags = _view_tags(names)
    frames = range(len(views)) if frames is None else frames
    of_boxes = [tags[list(frames).index(u)] for u in range(boxes.shape[1])]
    overhang = max(_overhang(image, image_boxes) for image, image_boxes in zip(sources, boxes, strict=True))
    for i, image in enumerate(sources):
        _draw_source(axes, image, boxes[i].tolist(), of_boxes, sheet.source(i), sheet.side, overhang)
        for v, view in enumerate(views):
            left, top = sheet.view(i, v)
            _draw_pixels(axes, view[i], left, top, sheet.tile, sheet.tile)
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
    _save(figure, path)


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


def _view_tags(names: Sequence[str]) -> list[str]:
    """What is written on boxes and views: `"G1"` for `"global 1"`, `"ML2"` for `"mixed local 2"`; nothing for one alone."""
    if len(names) == 1:
        return [""]
    tags = ["".join(word if word.isdigit() else word[0].upper() for word in name.split()) for name in names]
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
    _draw_pixels(axes, image, left, top, image_width * scale, image_height * scale)
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


def _draw_pixels(axes: Axes, image: Tensor, left: float, top: float, width: float, height: float) -> None:
    """Draws a uint8 image `(3, height, width)`: with sharp pixels if it is enlarged, smoothly if it is reduced."""
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    shown = max(1, round(width * DPI)), max(1, round(height * DPI))
    repeats = max(1, ceil(shown[0] / photo.width), ceil(shown[1] / photo.height))
    photo = photo.resize((photo.width * repeats, photo.height * repeats), Image.Resampling.NEAREST)
    pixels = np.asarray(photo.resize(shown, Image.Resampling.BOX))
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest")


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
