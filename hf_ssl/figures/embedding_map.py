"""Features of many images as points of a plane."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch.nn.functional as F
from sklearn.decomposition import PCA

from .common import new_figure, save


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor


# The first ten classes have a color each, the next ten the same colors and another marker.
_COLORS = (
    "#0077BB", "#E69F00", "#009E73", "#CC79A7", "#CC3311", "#56B4E9", "#8C564B", "#7B3FA0", "#444444", "#9ACD32"
)  # fmt: skip
_MARKERS = "o^sDvP*X<>"


def require_umap() -> None:
    """
    Checks that maps can be drawn by UMAP, so that a long run can find out before it starts.

    Raises:
        `ImportError`: If the package `umap-learn` is not installed.
    """
    try:
        from umap import UMAP  # noqa: F401
    except ImportError as error:
        raise ImportError('A map by UMAP needs umap-learn: run `pip install "hf_ssl[umap]"`.') from error


def plot_embedding_map(
    features: Tensor,
    labels: Sequence[int] | Tensor,
    class_names: Sequence[str],
    path: str | Path,
    *,
    method: Literal["pca", "umap"] = "pca",
    seed: int = 0,
) -> None:
    """
    Draws a map of features: each image a point, with the color and the marker of its class. Features are L2-normalized, so
    that the map compares them as kNN does, by their cosine similarity.

    Args:
        features (`torch.Tensor` of shape `(num_images, dim)`): Features of the images.
        labels (`Sequence[int]` or `torch.Tensor` of shape `(num_images,)`): Classes of the images.
        class_names (`Sequence[str]`): Names of all classes, at most 100.
        path (`str` or `Path`): PNG file to write.
        method (`str`, *optional*, defaults to `"pca"`):
            `"pca"`: the two first principal components, which tell how far apart classes are. `"umap"`: a map that keeps
            neighbors together, where distances between groups mean little; needs the package `umap-learn`.
        seed (`int`, *optional*, defaults to 0): Of the map by UMAP, and of the order in which points are drawn.

    Raises:
        `ImportError`: If matplotlib, or for UMAP `umap-learn`, is not installed.
        `ValueError`: If shapes do not fit, features are not finite, a class has no name, or the method is unknown.
    """
    classes = np.asarray(labels)
    _check(features, classes, class_names)
    normalized = F.normalize(features.detach().float().cpu(), dim=1).numpy()
    points, axis_names = _project(normalized, method, seed)
    present = np.unique(classes).tolist()
    columns = ceil(len(present) / 25)
    longest = max(len(class_names[i]) for i in present)
    # As high as the map is beside its width, and as the names need.
    height = 6.2 * float(np.clip(np.divide(*np.ptp(points, axis=0)[::-1]), 0.75, 1.1))
    figure = new_figure(6.8 + columns * (0.35 + 0.075 * min(longest, 22)), height + 0.6)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    _draw_points(axes, points, classes, seed)
    axes.set(xticks=[], yticks=[], xlabel=axis_names[0], ylabel=axis_names[1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#cccccc")
    title = f"{method.upper()} of {len(points):,} features of {features.shape[1]:,} dimensions"
    axes.set_title(title, fontsize=13, loc="left")
    _name_classes(figure, present, class_names, columns)
    save(figure, path)


def _check(features: Tensor, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if features.ndim != 2 or min(features.shape) < 3:
        raise ValueError(
            f"`features` must have shape (number of images, dim), both at least 3; got {tuple(features.shape)}."
        )
    if not features.isfinite().all():
        raise ValueError("`features` contains NaN or infinite values: check the encoder's weights and its inputs.")
    if labels.shape != (len(features),):
        raise ValueError(f"`labels` must have one class for each of the {len(features)} features, got {labels.shape}.")
    if len(class_names) > len(_COLORS) * len(_MARKERS):
        raise ValueError(f"{len(class_names)} classes cannot be told apart: choose the images of at most 100 classes.")
    if not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(
            f"`labels` must lie between 0 and {len(class_names) - 1}, as there are {len(class_names)} `class_names`; got "
            f"values from {labels.min()} to {labels.max()}."
        )


def _project(features: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """Points in the plane, and what its axes are."""
    if method == "pca":
        # Of the smaller side: a covariance of thousands of dimensions takes seconds.
        pca = PCA(2, svd_solver="covariance_eigh" if len(features) > features.shape[1] else "full")
        points = pca.fit_transform(features)
        first, second = (
            f"component {i + 1}, {100 * pca.explained_variance_ratio_[i]:.0f}% of the variance" for i in (0, 1)
        )
        return points, (first, second)
    if method != "umap":
        raise ValueError(f"`method` must be 'pca' or 'umap', got {method!r}.")
    require_umap()
    from umap import UMAP

    # A seed and several threads do not go together.
    return UMAP(metric="cosine", random_state=seed, n_jobs=1).fit_transform(features), ("", "")


def _draw_points(axes: Axes, points: np.ndarray, labels: np.ndarray, seed: int) -> None:
    """In random order, so that no class covers another one."""
    order = np.random.default_rng(seed).permutation(len(points))
    points, labels = points[order], labels[order]
    size = min(40, max(4, 20_000 / len(points)))
    for i, marker in enumerate(_MARKERS):
        chosen = labels // len(_COLORS) == i
        colors = [_COLORS[label % len(_COLORS)] for label in labels[chosen]]
        axes.scatter(points[chosen, 0], points[chosen, 1], s=size, c=colors, marker=marker, alpha=0.75, linewidths=0)


def _name_classes(figure: Figure, classes: Sequence[int], class_names: Sequence[str], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for i in classes:
        name = class_names[i] if len(class_names[i]) <= 22 else f"{class_names[i][:21]}…"
        handle = Line2D([], [], color=_COLORS[i % len(_COLORS)], marker=_MARKERS[i // len(_COLORS)], linewidth=0)
        handle.set_label(name)
        handles.append(handle)
    figure.legend(
        handles=handles,
        loc="outside right upper",
        ncols=columns,
        fontsize=11 if len(classes) <= 20 else 9,
        frameon=False,
        handletextpad=0.1,
        columnspacing=0.8,
    )
