"""Loss and kNN curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import BLUE, GRAY, RED, new_figure, save, style_axes


if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    figure = new_figure(8, 2.7 * rows + 3.4 * knn_rows)
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
    save(figure, path)


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


def _series(log_history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    logs = [log for log in log_history if name in log]
    return [log["step"] for log in logs], [log[name] for log in logs]


def _style(axes: Axes, title: str, title_pad: float = 6) -> None:
    style_axes(axes, title, title_pad)
    axes.set_xlabel("optimizer step", fontsize=11)
    axes.locator_params(axis="x", nbins=5, integer=True)
