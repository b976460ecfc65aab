"""What APS trains on: two views of each image, and the patches of each that the encoder is shown.

The sampling is a function of its own, [`sample_patches`], for use elsewhere too.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...help import documented
from ...views import Draws, MultiViewPipeline, View, overlap_ratio, sampling_probabilities
from .configuration_aps import APSConfig


def sample_patches(
    boxes: Tensor,
    draws: Draws,
    grid: tuple[int, int],
    num_samplings: int,
    num_sampled_patches: int,
    power: float,
    flip_aware: bool = False,
) -> Tensor:
    """
    Sample patches of two views that have little in common (Shen et al., arXiv 2306.02854): those of the first view
    uniformly ("sparse sampling"), disjoint from one sampling to the next; those of the second view without replacement, in
    proportion to a power of the share that the first view's sampled patches leave uncovered ("selective sampling"). Where
    fewer patches than needed have an uncovered share, the rest is drawn uniformly from those that have none; with a power of
    0, all are drawn uniformly.

    Args:
        boxes (`torch.Tensor` of shape `(batch_size, 2, 5)`, int64):
            Where the two views lie in each image, `(top, left, height, width, flip)` in source pixels.
        draws ([`Draws`]):
            One row for each image.
        grid (`tuple[int, int]`):
            Rows and columns of the patches of a view.
        num_samplings (`int`):
            How many samplings to make.
        num_sampled_patches (`int`):
            Patches in a sampling of a view.
        power (`float`):
            How strongly uncovered patches are preferred.
        flip_aware (`bool`, *optional*, defaults to `False`):
            Whether to account for mirrored views. The authors' code does not.

    Returns:
        `torch.Tensor` of shape `(num_samplings, 2, batch_size, num_sampled_patches)`, int64: patches, row by row from 0.

    Raises:
        `ValueError`: there are no samplings or not so many disjoint ones, the power is negative, or the boxes do not fit the
            draws.
    """
    if boxes.shape != (len(draws.keys), 2, 5):
        raise ValueError(
            f"boxes has the shape {tuple(boxes.shape)}; {len(draws.keys)} images need {(len(draws.keys), 2, 5)}."
        )
    if min(num_samplings, num_sampled_patches) < 1 or num_samplings * num_sampled_patches > grid[0] * grid[1]:
        raise ValueError(
            f"{num_samplings} disjoint samplings of {num_sampled_patches} patches cannot be made of the {grid[0]}x{grid[1]} "
            "patches of a view."
        )
    if power < 0:
        raise ValueError(f"power={power} must not be negative; 0 draws uniformly.")
    order = draws.permutation("sparse_sampling", grid[0] * grid[1])
    first = order[:, : num_samplings * num_sampled_patches].unflatten(1, (num_samplings, num_sampled_patches))
    uncovered = overlap_ratio(boxes[:, :1], boxes[:, 1:], first, grid, flip_aware)
    second = draws.weighted_choice("selective_sampling", sampling_probabilities(uncovered, power), num_sampled_patches)
    return torch.stack([first, second]).permute(2, 0, 1, 3)


@documented
@dataclass
class APSViewsConfig:
    """
    The views of APS; the defaults are the authors' for CIFAR.

    Args:
        view ([`View`]):
            Both views.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, in [0, 1].
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel, in [0, 1].
    """

    view: View = field(default_factory=lambda: View(scale=[0.15, 1.0], jitter=0.8, grayscale=0.2))
    image_mean: list[float] = field(default_factory=lambda: [0.4914, 0.4822, 0.4465])
    image_std: list[float] = field(default_factory=lambda: [0.2023, 0.1994, 0.2010])


class APSViews(MultiViewPipeline):
    """
    Turns a batch of images into what [`APSForPreTraining`] is fed with.

    Args:
        config ([`APSViewsConfig`]): The views.
        model_config ([`APSConfig`]): Gives image size, patch size, and how patches are sampled.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    pictures_show = "the patches that the encoder sees, step by step"

    def __init__(self, config: APSViewsConfig, model_config: APSConfig, seed: int = 0):
        image_size: int = model_config.backbone_config.image_size
        view = replace(config.view, size=config.view.size or image_size)
        if view.side != image_size:
            raise ValueError(
                f"view_size={view.side} is not the image_size={image_size} that patches are sampled from; leave it out."
            )
        self.config = replace(config, view=view)
        self.model_config = model_config
        super().__init__({"pixel_values": [view, view]}, config.image_mean, config.image_std, seed)
        self.min_batch_size = 2  # batch norm has no variance of one image

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                `index` and `epoch` (int64 of shape `(batch_size,)`), and either sources of one size, `images` (uint8 of
                shape `(batch_size, 3, height, width)`), or `boxes` and the crops that [`~APSViews.render`] made.
            draws ([`Draws`], *optional*):
                Not used: all draws are the samples' own.

        Returns:
            `dict[str, torch.Tensor]`: the arguments of [`APSForPreTraining`]: `pixel_values`, float32 of shape
            `(2, batch_size, 3, image_size, image_size)`, and `patch_indices`, int64 of shape
            `(num_samplings, 2, batch_size, num_sampled_patches)`.
        """
        inputs, config = super().__call__(batch), self.model_config
        inputs["patch_indices"] = sample_patches(
            inputs.pop("boxes"),
            Draws.for_samples(self.seed, batch["epoch"], batch["index"], view=2),  # 0 and 1 are the views themselves
            config.grid,
            config.num_samplings,
            config.num_sampled_patches,
            config.sampling_power,
            config.flip_aware,
        )
        return inputs

    def pictures(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
        """
        What the encoder is shown, for the eye.

        Args:
            inputs (`dict[str, torch.Tensor]`): What the views of a batch are, as they are returned.

        Returns:
            `tuple[dict[str, torch.Tensor], list[int]]`: `view 1`, then `step 1 view 1`, … where the patches that the encoder
            does not see in this step have the mean color; then the second view; each of shape
            `(batch_size, 3, image_size, image_size)`; and the number of the view that each is of, from 0.
        """
        views, patches = inputs["pixel_values"], inputs["patch_indices"]
        rows, columns = self.model_config.grid
        shown = views.new_zeros(*patches.shape[:-1], rows * columns).scatter_(-1, patches, 1.0)
        mask = shown.unflatten(-1, (rows, columns))[..., None, :, :]
        size: int = self.model_config.backbone_config.patch_size
        mask = mask.repeat_interleave(size, -2).repeat_interleave(size, -1)
        pictures, numbers = {}, []
        for number, view in enumerate(views, 1):
            pictures[f"view {number}"] = view
            for step, shown_in_step in enumerate(mask[:, number - 1], 1):
                pictures[f"step {step} view {number}"] = view * shown_in_step
            numbers += [number - 1] * (1 + len(patches))
        return pictures, numbers


__all__ = ["APSViews", "APSViewsConfig", "sample_patches"]
