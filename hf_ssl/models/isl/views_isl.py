"""What ISL trains on: one view of each image."""

from dataclasses import dataclass, field

from ...help import documented
from ...views import SingleView, View
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


class ISLViews(SingleView):
    """
    Turns a batch of images into what [`ISLForPreTraining`] is fed with.

    Args:
        config ([`ISLViewsConfig`]): The view.
        model_config ([`ISLConfig`]): Gives the image size.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    min_batch_size = 2  # batch norm has no variance of one image

    def __init__(self, config: ISLViewsConfig, model_config: ISLConfig, seed: int = 0):
        super().__init__(config, model_config.backbone_config.image_size, seed)


__all__ = ["ISLViews", "ISLViewsConfig"]
