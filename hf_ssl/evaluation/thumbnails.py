"""Photos in their own shape: how benchmarks of retrieval show them to an encoder."""

from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize, pil_to_tensor, to_pil_image


class ThumbnailProcessor:
    """
    Shrinks photos, if they are larger, until their longer side has this many pixels. They keep their shape: a batch of them
    is a list, and no tensor.

    Args:
        size (`int`): The longest side, in pixels.
        mean (`list[float]`): Mean of each channel, in [0, 1].
        std (`list[float]`): Standard deviation of each channel, in [0, 1].
    """

    def __init__(self, size: int, mean: list[float], std: list[float]):
        if size < 1:
            raise ValueError(f"Photos cannot be shrunk to {size} pixels: give at least 1.")
        self.size, self.image_mean, self.image_std = size, mean, std

    def __call__(self, images: Any, return_tensors: str | None = None) -> dict[str, list[Tensor]]:
        """
        Args:
            images (`PIL.Image.Image`, `torch.Tensor` of shape `(3, height, width)`, uint8, or a list of these):
                Photos.
            return_tensors (`str`, *optional*):
                As of the processors of transformers; not used.

        Returns:
            `dict[str, list[torch.Tensor]]`: `pixel_values`, float32 of shape `(3, height, width)` for each.
        """
        return {"pixel_values": [self._one(image) for image in (images if isinstance(images, list) else [images])]}

    def _one(self, image: PIL.Image.Image | Tensor) -> Tensor:
        photo = to_pil_image(image) if isinstance(image, Tensor) else image.convert("RGB")
        photo.thumbnail((self.size, self.size), PIL.Image.Resampling.LANCZOS)
        return normalize(pil_to_tensor(photo).to(torch.float32) / 255, self.image_mean, self.image_std)

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: its settings.
        """
        return {"longest_side": self.size, "image_mean": self.image_mean, "image_std": self.image_std}


__all__ = ["ThumbnailProcessor"]
