"""One view of an image, as data that a recipe can override."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..help import documented
from .resample import Interpolation


Crop = Literal["random_resized_crop", "padded_crop", "center_crop", "resize"]


@documented
@dataclass
class View:
    """
    How one view of an image is made: crop, flip, color jitter, grayscale, blur, solarization, normalization, erasing.

    Args:
        size (`int`, *optional*):
            Side of the view, in pixels; unset, that of the model's images.
        crop (`str`, *optional*, defaults to `"random_resized_crop"`):
            `"random_resized_crop"`; `"padded_crop"` (shifts of up to `padding` pixels, for images of the view's size);
            `"center_crop"` (the middle, unscaled); `"resize"` (all of the image).
        scale (`list[float]`, *optional*, defaults to `[0.08, 1.0]`):
            Limits of the share of the area that a random resized crop keeps.
        ratio (`list[float]`, *optional*, defaults to `[3 / 4, 4 / 3]`):
            Limits of width / height of a random resized crop.
        padding (`int`, *optional*, defaults to 4):
            Largest shift of a padded crop, in pixels.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"` or `"bicubic"`, both antialiased.
        flip (`float`, *optional*, defaults to 0.5):
            Probability of mirroring left to right.
        jitter (`float`, *optional*, defaults to 0.0):
            Probability of color jitter.
        brightness (`float`, *optional*, defaults to 0.4):
            Jitter: the factor is within 1 ± this.
        contrast (`float`, *optional*, defaults to 0.4):
            Jitter: the factor is within 1 ± this.
        saturation (`float`, *optional*, defaults to 0.4):
            Jitter: the factor is within 1 ± this.
        hue (`float`, *optional*, defaults to 0.1):
            Jitter: the turn is within ± this, in whole turns.
        grayscale (`float`, *optional*, defaults to 0.0):
            Probability of losing all color.
        grayscale_first (`bool`, *optional*, defaults to `False`):
            Whether color is lost before the jitter.
        blur (`float`, *optional*, defaults to 0.0):
            Probability of a Gaussian blur.
        blur_sigma (`list[float]`, *optional*, defaults to `[0.1, 2.0]`):
            Limits of its standard deviation (PIL's radius), in pixels.
        solarize (`float`, *optional*, defaults to 0.0):
            Probability of inverting all values from 128 of 255 on.
        erase (`float`, *optional*, defaults to 0.0):
            Probability of replacing a rectangle by noise, after normalization.
    """

    size: int | None = None
    crop: Crop = "random_resized_crop"
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    padding: int = 4
    interpolation: Interpolation = "bilinear"
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.0
    grayscale_first: bool = False
    blur: float = 0.0
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 2.0])
    solarize: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("crop", ("random_resized_crop", "padded_crop", "center_crop", "resize")),
            ("interpolation", ("bilinear", "bicubic")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}.")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1 pixel.")
        if self.padding < 0:
            raise ValueError(f"padding={self.padding} must not be negative.")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability between 0 and 1.")
        for name in ("scale", "ratio", "blur_sigma"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1] < math.inf:
                raise ValueError(f"{name}={limits} must be two positive numbers, the smaller one first.")
        if self.scale[1] > 1:
            raise ValueError(f"scale={self.scale} must not exceed 1: a crop lies inside of its image.")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative, nor infinite.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue={self.hue} must lie between 0 and 0.5, half a turn.")

    @property
    def side(self) -> int:
        """The size, where it has to be known."""
        if self.size is None:
            raise ValueError("The size of a view is not set; give it, in pixels.")
        return self.size


def save_views(config: Any, folder: str | Path) -> None:
    """
    Write what a model was trained on beside it.

    Args:
        config (`Any`): A [`View`], or the dataclass of a method's views.
        folder (`str` or `Path`): Where `views.json` is written.
    """
    Path(folder, "views.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
