"""What a classifier is trained on: one view of each image, and its label."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...help import documented
from ...views import Draws, SingleView, View
from .configuration_classification import ClassificationConfig


@documented
@dataclass
class ClassificationViewsConfig:
    """
    The view of fine-tuning.

    Args:
        view ([`View`]):
            The view.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, in [0, 1]; unset, that of the encoder's own image processor.
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel, in [0, 1]; unset, as the mean.
    """

    view: View = field(default_factory=View)
    image_mean: list[float] | None = None
    image_std: list[float] | None = None


class ClassificationViews(SingleView):
    """
    Turns a batch of images into what [`ClassifierForTraining`] is fed with.

    Args:
        config ([`ClassificationViewsConfig`]): The view.
        model_config ([`ClassificationConfig`]): Gives the image size.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    def __init__(self, config: ClassificationViewsConfig, model_config: ClassificationConfig, seed: int = 0):
        super().__init__(config, model_config.backbone_config.image_size, seed)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Any]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                As for [`~hf_ssl.views.SingleView`], with `labels` (int64 of shape `(batch_size,)`).
            draws ([`Draws`], *optional*):
                Not used: all draws are the samples' own.

        Returns:
            `dict[str, torch.Tensor]`: the arguments of [`ClassifierForTraining`]: `pixel_values`, float32 of shape
            `(batch_size, 3, image_size, image_size)`, and `labels`.
        """
        return {**super().__call__(batch), "labels": batch["labels"]}


__all__ = ["ClassificationViews", "ClassificationViewsConfig"]
