"""One view of each image."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .pipeline import MultiViewPipeline
from .random import Draws


class SingleView(MultiViewPipeline):
    """
    Turns a batch of images into one view of each.

    Args:
        config (`Any`): A dataclass with `view` ([`View`]), `image_mean` and `image_std`.
        image_size (`int`): Side of the model's images, in pixels.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    pictures_show = "the view that the encoder is trained on"

    def __init__(self, config: Any, image_size: int, seed: int = 0):
        view = replace(config.view, size=config.view.size or image_size)
        if view.side != image_size:
            raise ValueError(f"view_size={view.side} is not the image_size={image_size} of the encoder; leave it out.")
        self.config = replace(config, view=view)
        super().__init__({"pixel_values": [view]}, config.image_mean, config.image_std, seed)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Any]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                `index` and `epoch` (int64 of shape `(batch_size,)`), and either sources of one size, `images` (uint8 of
                shape `(batch_size, 3, height, width)`), or `boxes` and the crops that [`~SingleView.render`] made.
            draws ([`Draws`], *optional*):
                Not used: all draws are the samples' own.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values`, float32 of shape `(batch_size, 3, image_size, image_size)`.
        """
        return {"pixel_values": super().__call__(batch)["pixel_values"][0]}

    def pictures(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
        """
        The view, for the eye.

        Args:
            inputs (`dict[str, torch.Tensor]`): What the views of a batch are, as they are returned.

        Returns:
            `tuple[dict[str, torch.Tensor], list[int]]`: `view`, of shape `(batch_size, 3, image_size, image_size)`, and the
            number of the view that it is of.
        """
        return {"view": inputs["pixel_values"]}, [0]
