"""What came of the rounds of ISL: the generator's training, and the neighbors that were mined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .common import VIEW_COLORS, new_figure, save, style_axes


def plot_rounds(
    log_history: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]], path: str | Path
) -> None:
    """
    Draws, for each round, how good the generator was after each of its epochs, and what was mined with it.

    Args:
        log_history (`Sequence[Mapping[str, Any]]`):
            `trainer.state.log_history`: `gan_quality` and `gan_agreement` of each epoch of the generator.
        rounds (`Sequence[Mapping[str, Any]]`):
            What [`~hf_ssl.models.isl.rounds_isl.Rounds.results`] tells of each round.
        path (`str` or `Path`): PNG file to write.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If no round was ended.
    """
    if not rounds:
        raise ValueError("No round was ended: there is nothing to draw.")
    epochs = [log for log in log_history if "gan_quality" in log]
    figure = new_figure(8, 5.8)
    figure.set_layout_engine("constrained")
    (quality, agreement), (neighbors, labels) = figure.subplots(2, 2)
    for axes, name in ((quality, "gan_quality"), (agreement, "gan_agreement")):
        style_axes(axes, "quality of the generator" if axes is quality else "links that agree with distances")
        axes.set_xlabel("epoch of the generator", fontsize=11)
        start = 0
        for i, report in enumerate(rounds):
            values = [log[name] for log in epochs[start : start + report["gan_epochs"]]]
            start += report["gan_epochs"]
            color, used = VIEW_COLORS[i % len(VIEW_COLORS)], report["gan_epoch_used"]
            axes.plot(range(1, len(values) + 1), values, color=color, linewidth=1.6, label=f"round {report['round']}")
            axes.plot(used, values[used - 1], "o", color=color, markersize=7)  # the weights that mining used
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", nbins=6, integer=True)
    quality.legend(fontsize=11, frameon=False)
    _bars(neighbors, rounds, "neighbors_per_image", "neighbors of an image, mean", 1)
    _bars(labels, rounds, "label_agreement", "neighbors with the same label (%)", 100)
    save(figure, path)


def _bars(axes: Any, rounds: Sequence[Mapping[str, Any]], name: str, title: str, scale: float) -> None:
    style_axes(axes, title)
    known = [(report["round"], scale * report[name]) for report in rounds if name in report]
    colors = [VIEW_COLORS[(number - 1) % len(VIEW_COLORS)] for number, _ in known]
    bars = axes.bar([number for number, _ in known], [value for _, value in known], 0.6, color=colors)
    axes.bar_label(bars, fmt="%.1f", fontsize=11, padding=2)
    axes.set_xlabel("round", fontsize=11)
    axes.set_xticks([report["round"] for report in rounds])
    axes.set_xlim(0.4, len(rounds) + 0.6)
    axes.margins(y=0.15)
    if not known:
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", fontsize=11)
