"""What linear probes are trained on: features of one augmented view of each image."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...help import documented
from ...views import Draws, SingleView, View


@documented
@dataclass
class LinearProbeViewsConfig:
    """
    The view of linear probing.

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


class LinearProbeViews(SingleView):
    """
    Turns a batch of images into features of one view of each.

    Args:
        config ([`LinearProbeViewsConfig`]): The view.
        image_size (`int`): Side of the encoder's images, in pixels.
        encode (`Callable`): Makes features `(batch_size, feature_size)` of pixel values.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    def __init__(
        self,
        config: LinearProbeViewsConfig,
        image_size: int,
        encode: Callable[[Tensor], Tensor],
        seed: int = 0,
    ):
        super().__init__(config, image_size, seed)
        self.encode = encode

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Any]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                As for [`~hf_ssl.views.SingleView`], with `labels` (int64 of shape `(batch_size,)`).
            draws ([`Draws`], *optional*):
                Not used: all draws are the samples' own.

        Returns:
            `dict[str, torch.Tensor]`: `features`, float32 of shape `(batch_size, feature_size)`, and `labels`.
        """
        return {"features": self.encode(super().__call__(batch)["pixel_values"]), "labels": batch["labels"]}


__all__ = ["LinearProbeViews", "LinearProbeViewsConfig"]
