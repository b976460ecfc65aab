"""The second renderer of boxes: PIL, photo by photo, for sources of unequal size that are cropped where they are decoded.

On a CPU at photo sizes PIL's resize beats dense matrix products; both renderers work from the same boxes.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resized_crop(photo: Image.Image, box: Tensor, size: int, resample: int = Image.Resampling.BILINEAR) -> Tensor:
    """
    Cut a box out of a photo, resize it to a square and mirror it where the box says so.

    Args:
        photo (`PIL.Image.Image`):
            A decoded RGB photo.
        box (`torch.Tensor` of shape `(5,)`, int64):
            `(top, left, height, width, flip)`, see [`hf_ssl.views.boxes`].
        size (`int`):
            Side of the result, in pixels.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BILINEAR`):
            PIL's filter, antialiased.

    Returns:
        `torch.Tensor` of shape `(3, size, size)`, uint8.
    """
    top, left, height, width, flip = box.tolist()
    # Cropped first: `resize(box=...)` would let pixels outside the box into its border.
    view = photo.crop((left, top, left + width, top + height)).resize((size, size), resample)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(view)).permute(2, 0, 1)
