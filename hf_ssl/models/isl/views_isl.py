"""What ISL trains on: one view of each image."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...help import documented
from ...views import Draws, MultiViewPipeline, View
from .configuration_isl import ISLConfig


@documented
@dataclass
class ISLViewsConfig:
    """
    The view of ISL; the defaults are the authors' for CIFAR and SVHN.

    Args:
        view ([`View`]):
            The view.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, in [0, 1].
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel, in [0, 1].
    """

    view: View = field(default_factory=lambda: View(scale=[0.2, 1.0], flip=0.0, jitter=1.0, hue=0.4, grayscale=0.2))
    image_mean: list[float] = field(default_factory=lambda: [0.4914, 0.4822, 0.4465])
    image_std: list[float] = field(default_factory=lambda: [0.2023, 0.1994, 0.2010])


class ISLViews(MultiViewPipeline):
    """
    Turns a batch of images into what [`ISLForPreTraining`] is fed with.

    Args:
        config ([`ISLViewsConfig`]): The view.
        model_config ([`ISLConfig`]): Gives the image size.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    pictures_show = "the view that the encoder is trained on"

    def __init__(self, config: ISLViewsConfig, model_config: ISLConfig, seed: int = 0):
        image_size: int = model_config.backbone_config.image_size
        view = replace(config.view, size=config.view.size or image_size)
        if view.side != image_size:
            raise ValueError(f"view_size={view.side} is not the image_size={image_size} of the encoder; leave it out.")
        self.config = replace(config, view=view)
        super().__init__({"pixel_values": [view]}, config.image_mean, config.image_std, seed)
        self.min_batch_size = 2  # batch norm has no variance of one image

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                `index` and `epoch` (int64 of shape `(batch_size,)`), and either sources of one size, `images` (uint8 of
                shape `(batch_size, 3, height, width)`), or `boxes` and the crops that [`~ISLViews.render`] made.
            draws ([`Draws`], *optional*):
                Not used: all draws are the samples' own.

        Returns:
            `dict[str, torch.Tensor]`: an argument of [`ISLForPreTraining`]: `pixel_values`, float32 of shape
            `(batch_size, 3, image_size, image_size)`.
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


__all__ = ["ISLViews", "ISLViewsConfig"]
