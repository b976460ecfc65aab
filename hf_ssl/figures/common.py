"""What all figures share: colors, a figure without pyplot, images in it."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps
from transformers.utils import logging

from ..distributed import rank


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor


logger = logging.get_logger(__name__)

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


def can_draw() -> bool:
    """Whether figures can be drawn; if not, a warning tells what is missing. For scripts to which pictures are an extra."""
    try:
        require_matplotlib()
    except ImportError as error:
        if rank() == 0:
            logger.warning(f"There will be no pictures. {error}")
        return False
    return True


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own (inches), so that no pyplot state is touched."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white")


def style_axes(axes: Axes, title: str, title_pad: float = 6) -> None:
    """A chart with a title, a light grid and no box."""
    axes.set_title(title, fontsize=13, loc="left", pad=title_pad)
    axes.tick_params(labelsize=11)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_tile(
    axes: Axes, image: Tensor, left: float, top: float, *, side: float = 1, frame: str | None = None
) -> None:
    """Draws a uint8 image `(3, height, width)`, whole and undistorted, into a square."""
    from matplotlib.patches import Rectangle

    tile = ImageOps.pad(Image.fromarray(image.permute(1, 2, 0).numpy()), (128, 128), color="white")
    axes.imshow(np.asarray(tile), extent=(left, left + side, top + side, top))
    if frame is not None:
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=frame, linewidth=3.5))


def draw_pixels(axes: Axes, image: Tensor, left: float, top: float, width: float, height: float) -> None:
    """Draws a uint8 image `(3, height, width)`: with sharp pixels if it is enlarged, smoothly if it is reduced."""
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    shown = max(1, round(width * DPI)), max(1, round(height * DPI))
    repeats = max(1, ceil(shown[0] / photo.width), ceil(shown[1] / photo.height))
    photo = photo.resize((photo.width * repeats, photo.height * repeats), Image.Resampling.NEAREST)
    pixels = np.asarray(photo.resize(shown, Image.Resampling.BOX))
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest")
