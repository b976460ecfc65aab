"""What a classifier is trained on: one view of each image and its label, or images that are mixed and the labels of both."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from torch import Tensor

from ...help import documented
from ...views import Draws, SingleView, View, seeded
from .configuration_classification import ClassificationConfig


# What timm would leave out without a word is no policy: options without a number, unknown sets of operations.
_POLICY = re.compile(r"(rand|augmix|v0|v0r|original|originalr|3a)(-t(weights|3a|3aw)|-(?!t)[a-z]+\d+(\.\d+)?)*")


@documented
@dataclass
class ClassificationViewsConfig:
    """
    The view of fine-tuning, and how images are mixed.

    Args:
        view ([`View`]):
            The view.
        auto_augment (`str`, *optional*):
            A policy of timm, such as `"rand-m9-mstd0.5-inc1"` (RandAugment), `"augmix-m5-w4-d2"` or `"original"`
            (AutoAugment), applied to the bytes of the cropped and mirrored image, where it is read. What moves pixels fills
            with the mean color, and interpolates as the view does.
        mixup (`float`, *optional*, defaults to 0.0):
            Both parameters of the beta distribution of mixup's shares; 0 leaves mixup out.
        cutmix (`float`, *optional*, defaults to 0.0):
            The same of CutMix.
        mixup_prob (`float`, *optional*, defaults to 1.0):
            Probability of mixing, by mixup or CutMix.
        mixup_switch_prob (`float`, *optional*, defaults to 0.5):
            Probability of CutMix, where there are both.
        mixup_mode (`str`, *optional*, defaults to `"batch"`):
            What shares its draws: all images of a `"batch"`, two that are mixed with each other (`"pair"`), or none
            (`"elem"`). The latter two go from image to image and wait for the device.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, in [0, 1]; unset, that of the encoder's own image processor.
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel, in [0, 1]; unset, as the mean.
    """

    view: View = field(default_factory=View)
    auto_augment: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    image_mean: list[float] | None = None
    image_std: list[float] | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must not be negative, nor infinite.")
        for name in ("mixup_prob", "mixup_switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability between 0 and 1.")
        if self.mixup_mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mixup_mode={self.mixup_mode!r} is unknown; use 'batch', 'pair' or 'elem'.")


class ClassificationViews(SingleView):
    """
    Turns a batch of images into what [`ClassifierForTraining`] is fed with.

    Args:
        config ([`ClassificationViewsConfig`]): The view, and how images are mixed.
        model_config ([`ClassificationConfig`]): Gives the image size and the number of classes.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    def __init__(self, config: ClassificationViewsConfig, model_config: ClassificationConfig, seed: int = 0):
        super().__init__(config, model_config.backbone_config.image_size, seed)
        self._augment = None if config.auto_augment is None else make_augmentation(self.config)
        self.crops_when_read = self._augment is not None
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                mode=config.mixup_mode,
                label_smoothing=0.0,  # that is the model's
                num_classes=model_config.num_labels,
            )
            self.needs_batch_draws = True
            self.batch_size_multiple = 2  # every image has a partner

    def augment_crops(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Apply the policy to rendered crops, where images are read.

        Args:
            batch (`dict[str, torch.Tensor]`):
                `pixel_values_crops`, uint8 of shape `(batch_size, 1, 3, image_size, image_size)`, with `index` and `epoch`
                (int64 of shape `(batch_size,)`), and anything else.

        Returns:
            `dict[str, torch.Tensor]`: the same with other pixels, which are functions of (seed, epoch, index) and the crop.
        """
        if self._augment is None:
            return batch
        bits = Draws.for_samples(self.seed, batch["epoch"], batch["index"]).bits("auto_augment", 2)
        crops = batch["pixel_values_crops"].clone()
        for crop, of_crop in zip(crops[:, 0], bits.tolist(), strict=True):
            image = Image.fromarray(crop.permute(1, 2, 0).numpy())
            with seeded(of_crop):
                image = self._augment(image)
            crop.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        return batch | {"pixel_values_crops": crops}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Any]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                As for [`~hf_ssl.views.SingleView`], with `labels` (int64 of shape `(batch_size,)`).
            draws ([`Draws`], *optional*):
                Per-batch draws, of one row; needed if images are mixed.

        Returns:
            `dict[str, torch.Tensor]`: the arguments of [`ClassifierForTraining`]: `pixel_values`, float32 of shape
            `(batch_size, 3, image_size, image_size)`, and `labels`; of mixed images float32 of shape `(batch_size,
            num_classes)`, the share of each class.

        Raises:
            `ValueError`: the images should have been cropped and augmented where they were read, or are mixed without draws.
        """
        if self._augment is not None and "images" in batch:
            raise ValueError(
                f"auto_augment={self.config.auto_augment!r} changes images where they are read: give the source the views "
                "(make_source)."
            )
        pixel_values, labels = super().__call__(batch)["pixel_values"], batch["labels"]
        if self._mixup is not None:
            with seeded(Draws(self._batch_keys(draws)).bits("mixup", 2)[0].tolist()):
                pixel_values, labels = self._mixup(pixel_values, labels)
        return {"pixel_values": pixel_values, "labels": labels}


def make_augmentation(config: ClassificationViewsConfig) -> Callable[[Image.Image], Image.Image]:
    """
    timm's transform of a policy, with the parameters that timm's own training gives it.

    Args:
        config ([`ClassificationViewsConfig`]): Names the policy; the size of its view is set.

    Returns:
        `Callable`: image to image, drawing from the global generators of Python and numpy.

    Raises:
        `ValueError`: timm has no such policy.
    """
    policy = str(config.auto_augment)
    problem: Any = "that is no policy with options that have numbers"
    if _POLICY.fullmatch(policy):
        try:
            _, augmentation, _ = create_transform(
                input_size=config.view.side,
                is_training=True,
                separate=True,
                auto_augment=policy,
                color_jitter=None,  # type: ignore[arg-type]  # that is the view's
                interpolation=config.view.interpolation,
                mean=tuple(config.image_mean or ()),
            )
        except (AssertionError, ValueError) as error:
            problem = error
        else:
            _mend(augmentation.transforms[0])
            return augmentation  # type: ignore[no-any-return]
    raise ValueError(
        f"auto_augment={policy!r} is not understood: {problem}. Use a policy of timm, such as 'rand-m9-mstd0.5-inc1'."
    )


def _mend(policy: Any) -> None:
    """From the largest magnitude on an image keeps no bits, and is black; Pillow 13 refuses to make it so."""
    for operation in chain.from_iterable(getattr(policy, "policy", None) or [policy.ops]):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return Image.new(image.mode, image.size) if bits < 1 else auto_augment.posterize(image, bits)  # type: ignore[no-any-return]


__all__ = ["ClassificationViews", "ClassificationViewsConfig"]
