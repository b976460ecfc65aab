"""Which classes a classifier takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .common import new_figure, save


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


_MAX_NUMBERED = 20  # classes; of more, cells have no room for numbers
_MAX_NAME = 22  # letters


def plot_confusion(
    labels: Sequence[int] | Tensor, predictions: Sequence[int] | Tensor, class_names: Sequence[str], path: str | Path
) -> None:
    """
    Draws the confusion matrix: how the images of each class, a row, share out among the predicted classes. Up to 20 classes
    the shares are written as numbers, in percent; of more classes the colors tell them.

    Args:
        labels (`Sequence[int]` or `torch.Tensor` of shape `(num_images,)`): Classes of the images.
        predictions (`Sequence[int]` or `torch.Tensor` of shape `(num_images,)`): Classes that a model takes them for.
        class_names (`Sequence[str]`): Names of all classes.
        path (`str` or `Path`): PNG file to write.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If shapes do not fit, there are no images, or a class has no name.
    """
    shares, accuracy = _row_shares(np.asarray(labels), np.asarray(predictions), len(class_names))
    count = len(class_names)
    cell = min(1.6, max(0.13, 3.6 / count, min(0.8, 8 / count)))
    size = min(11, 0.75 * 72 * cell)
    names = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in class_names]
    side, right, top = count * cell, 1.1, 0.45
    room = 0.55 + 0.62 * size / 72 * max(map(len, names))  # for names and what they are
    width, height = room + side + right, room + side + top
    figure = new_figure(width, height)
    axes = figure.add_axes((room / width, room / height, side / width, side / height))
    image = _draw_shares(axes, shares)
    axes.set_xticks(range(count), names, fontsize=size, rotation=90)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class", fontsize=12)
    axes.set_ylabel("class", fontsize=12)
    figure.text(
        0.1 / width, 1 - 0.3 / height, f"{accuracy:.1f}% of {len(labels):,} images are recognized", fontsize=13
    )
    bar = figure.add_axes(((room + side + 0.15) / width, room / height, 0.15 / width, side / height))
    figure.colorbar(image, cax=bar, label="percent of the images of a class", ticks=[0, 5, 20, 50, 100])
    save(figure, path)


def _row_shares(labels: np.ndarray, predictions: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """The matrix in percent of its rows, NaN where a class has no images, and the accuracy in percent."""
    if labels.ndim != 1 or labels.shape != predictions.shape or not labels.size:
        raise ValueError(
            "`labels` and `predictions` must have one class for each image, and not be empty; got shapes "
            f"{labels.shape} and {predictions.shape}."
        )
    for name, classes in (("labels", labels), ("predictions", predictions)):
        if not 0 <= classes.min() <= classes.max() < count:
            raise ValueError(
                f"`{name}` must lie between 0 and {count - 1}, as there are {count} `class_names`; got values from "
                f"{classes.min()} to {classes.max()}."
            )
    matrix = np.zeros((count, count))
    np.add.at(matrix, (labels, predictions), 1)
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(100 * matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    return shares, 100 * float(matrix.trace() / matrix.sum())


def _draw_shares(axes: Axes, shares: np.ndarray) -> Any:
    """Colors, and in few classes numbers."""
    from matplotlib.colors import PowerNorm

    # Not linear, for confusions of a few percent have to be seen too.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_facecolor("#e6e6e6")
    if len(shares) <= _MAX_NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                color = "white" if share > 40 else "black"
                axes.text(column, row, f"{share:.0f}", fontsize=11, color=color, ha="center", va="center")
    return image
