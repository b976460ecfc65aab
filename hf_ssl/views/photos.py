"""The second renderer of boxes: photo by photo, for sources of unequal size that are cropped where they are decoded."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .resample import Interpolation, resample_each


def resized_crop(photo: Image.Image, box: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """
    Cut a box out of a photo, resize it to a square and mirror it where the box says so. What lies outside of the photo is
    black.

    Args:
        photo (`PIL.Image.Image`):
            A decoded RGB photo.
        box (`torch.Tensor` of shape `(5,)`, int64):
            `(top, left, height, width, flip)`, see [`hf_ssl.views.boxes`].
        size (`int`):
            Side of the result, in pixels.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"` or `"bicubic"`, antialiased.

    Returns:
        `torch.Tensor` of shape `(3, size, size)`, uint8.
    """
    top, left, height, width, flip = box.tolist()
    # torch resizes bytes several times as fast as PIL, to the same values but for one level of 255 (bicubic: two).
    crop = torch.from_numpy(np.array(photo.crop((left, top, left + width, top + height)))).permute(2, 0, 1)
    return resample_each(crop[None], torch.tensor([[0, 0, height, width, flip]]), size, interpolation)[0]
