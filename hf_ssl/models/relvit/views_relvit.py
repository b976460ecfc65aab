"""What RelViT trains on: one view of each image, whose patches are augmented one by one and may be shuffled.

An image goes through: crop and flip, normalization, (mega-patches), cutting into patches, augmentation of each patch,
(shuffling), and is put together again. All random numbers of a sample are drawn from its own key first, see
[`hf_ssl.views.Draws`].
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from ...help import documented
from ...views import (
    Colors,
    Draws,
    View,
    apply_colors,
    apply_weights,
    blocks,
    check_images,
    draw_boxes,
    draw_colors,
    full_precision,
    join_patches,
    normalize,
    permute_patches,
    random_square_crop,
    render,
    render_photo,
    resample,
    resize_weights,
    sizes_of,
    split_patches,
)
from .configuration_relvit import RelViTConfig


logger = logging.get_logger(__name__)

# Which no training reaches.
_VALIDATION_EPOCH = 1_000_000

PATCH_OPERATIONS = {"centCrop": None, "colJitter": 0.8, "grayScale": 0.2, "randomNoise": 0.2}
# A patch is cropped to 1 / 1.15 of its side and resized back.
_CROP_RATIO = 1.15


@documented
@dataclass
class RelViTViewsConfig:
    """
    The views of RelViT.

    Args:
        image_augmentation (`str`, *optional*, defaults to `"random_resized_crop"`):
            `"random_resized_crop"`, or `"padded_crop"` (shifts of up to 4 pixels, for images of the model's size); both
            with a random flip.
        patch_augmentation (`str`, *optional*, defaults to `"colJitter:0.8-grayScale:0.2"`):
            The original's notation: operations of colJitter, grayScale, randomNoise and centCrop joined by "-", each
            with an optional probability after ":"; every patch is also cropped and resized. "none" leaves patches alone.
        patch_augmentation_space (`str`, *optional*, defaults to `"normalized"`):
            Where patches are jittered. `"normalized"` is the original's order, normalization first: jittered values are
            then clamped to [0, 1], which loses all that is darker than the mean or more than one standard deviation
            brighter. `"pixel"` jitters before normalization.
        mega_independent_cuts (`bool`, *optional*, defaults to `False`):
            Cut rows and columns independently. The original uses one list of cuts for both.
        mega_antialias (`bool`, *optional*, defaults to `False`):
            Antialias when rectangles are resized. The original, on torchvision 0.9, does not.
        shuffle_patches (`bool`, *optional*, defaults to `False`):
            Put the patches in a random order. An encoder without positions cannot tell the difference.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, in [0, 1].
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel, in [0, 1].
    """

    image_augmentation: Literal["random_resized_crop", "padded_crop"] = "random_resized_crop"
    patch_augmentation: str = "colJitter:0.8-grayScale:0.2"
    patch_augmentation_space: Literal["normalized", "pixel"] = "normalized"
    mega_independent_cuts: bool = False
    mega_antialias: bool = False
    shuffle_patches: bool = False
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def __post_init__(self) -> None:
        for name, allowed in (
            ("image_augmentation", ("random_resized_crop", "padded_crop")),
            ("patch_augmentation_space", ("normalized", "pixel")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}.")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}={getattr(self, name)} must hold three numbers, for red, green and blue.")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std={self.image_std} must be positive.")
        parse_patch_augmentation(self.patch_augmentation)


def parse_patch_augmentation(notation: str) -> dict[str, float | None]:
    """
    Read the original's notation of patch augmentations.

    Args:
        notation (`str`): For example `"colJitter:0.8-grayScale:0.2"`, or `"none"`.

    Returns:
        `dict[str, float | None]`: probability of each operation by name (None for `centCrop`, which always applies);
        empty for `"none"`.

    Raises:
        `ValueError`: an operation is unknown, or a probability is not a number in [0, 1].
    """
    if notation.lower() == "none":
        return {}
    operations: dict[str, float | None] = {}
    for part in notation.split("-"):
        name, _, number = part.partition(":")
        if name not in PATCH_OPERATIONS:
            raise ValueError(
                f"patch_augmentation={notation!r} names {name!r}; the operations are {', '.join(PATCH_OPERATIONS)}, or "
                "'none' alone."
            )
        default = PATCH_OPERATIONS[name]
        try:
            operations[name] = default if default is None or not number else float(number)
        except ValueError:
            operations[name] = math.nan
        probability = operations[name]
        if probability is not None and not 0 <= probability <= 1:
            raise ValueError(f"patch_augmentation={notation!r}: {number!r} is not a probability between 0 and 1.")
    return operations


@dataclass
class PatchAugmentation:
    """
    The random decisions for a stack of patches.

    Args:
        crop (`torch.Tensor` of shape `(num_patches, 5)`, int64): Box inside each patch, as in [`hf_ssl.views.boxes`].
        colors ([`~hf_ssl.views.Colors`]): What happens to the colors of each patch.
        noise_apply (`torch.Tensor` of shape `(num_patches,)`, bool, *optional*): Patches that are replaced by noise.
        noise (`torch.Tensor` of shape `(num_patches, 3, patch_size, patch_size)`, *optional*): The noise, standard
            normal.
    """

    crop: Tensor
    colors: Colors = field(default_factory=Colors)
    noise_apply: Tensor | None = None
    noise: Tensor | None = None


def draw_patch_augmentation(
    draws: Draws, operations: dict[str, float | None], num_patches: int, patch_size: int
) -> PatchAugmentation:
    """
    Draw the augmentation of every patch of a batch.

    Args:
        draws ([`Draws`]): One row for each image.
        operations (`dict[str, float | None]`): Probabilities, see [`parse_patch_augmentation`].
        num_patches (`int`): Patches of an image.
        patch_size (`int`): Side of a patch, in pixels.

    Returns:
        [`PatchAugmentation`]: for `batch_size * num_patches` patches, image by image.
    """
    if "centCrop" in operations:
        # A box of 0.85 of the area inside the central square, as RandomResizedCrop(scale=(0.85, 0.85), ratio=(1, 1)).
        square = math.ceil(patch_size / _CROP_RATIO)
        offset = int(round((patch_size - square) / 2.0))
        crop = random_square_crop(draws, square, round((0.85 * square * square) ** 0.5), num_patches, offset)
    else:
        crop = random_square_crop(draws, patch_size, round(patch_size / _CROP_RATIO), num_patches)
    view = View(jitter=operations.get("colJitter") or 0.0, grayscale=operations.get("grayScale") or 0.0)
    augmentation = PatchAugmentation(crop.flatten(0, 1), draw_colors(view, draws, num_patches))
    if p := operations.get("randomNoise"):
        augmentation.noise_apply = draws.bernoulli("noise", num_patches, p=p).flatten()
        augmentation.noise = draws.normal("noise/values", num_patches, 3, patch_size, patch_size).flatten(0, 1)
    return augmentation


def augment_patches(patches: Tensor, augmentation: PatchAugmentation) -> Tensor:
    """
    Crop and resize each patch, then jitter its colors and turn it gray, in that order.

    Args:
        patches (`torch.Tensor` of shape `(num_patches, 3, patch_size, patch_size)`): Patches of any number of images.
        augmentation ([`PatchAugmentation`]): What is done to each.

    Returns:
        `torch.Tensor` of the shape of `patches`.
    """
    augmented = torch.empty_like(patches)
    for rows in blocks(len(patches), patches.shape[1:].numel(), patches.device):
        cropped = resample(patches[rows], augmentation.crop[rows], patches.shape[-1])
        augmented[rows] = apply_colors(cropped, augmentation.colors[rows], View(), inplace=True)
    return augmented


def replace_by_noise(patches: Tensor, augmentation: PatchAugmentation) -> Tensor:
    """The last operation: some of the normalized patches, `(num_patches, 3, patch_size, patch_size)`, become noise."""
    if augmentation.noise_apply is None or augmentation.noise is None:
        return patches
    return torch.where(augmentation.noise_apply.view(-1, 1, 1, 1), augmentation.noise, patches)


def mega_patch_bands(cuts: Tensor, cells: int, patch_size: int) -> tuple[Tensor, Tensor]:
    """
    Start and length of the bands between cuts.

    Args:
        cuts (`torch.Tensor` of shape `(batch_size, bands - 1)`, int64): Interior grid lines, in any order.
        cells (`int`): Cells on a side of the source grid.
        patch_size (`int`): Side of a cell, in pixels.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: start and length of each band in pixels, int64 of shape
        `(batch_size, bands)`.
    """
    lines = cuts.sort(1).values
    ends = [torch.zeros_like(lines[:, :1]), lines, torch.full_like(lines[:, :1], cells)]
    edges = torch.cat(ends, dim=1) * patch_size
    return edges[:, :-1], edges.diff(dim=1)


def mega_patches(
    images: Tensor, row_cuts: Tensor, column_cuts: Tensor, patch_size: int, antialias: bool = False
) -> Tensor:
    """
    Cut images into rectangles of whole patches and resize each to one patch (paper, section 3.3).

    Args:
        images (`torch.Tensor` of shape `(batch_size, 3, size, size)`): Square images.
        row_cuts (`torch.Tensor` of shape `(batch_size, bands - 1)`, int64): Interior grid lines between the rows.
        column_cuts (`torch.Tensor` of shape `(batch_size, bands - 1)`, int64): The same between the columns.
        patch_size (`int`): Side of a patch, in pixels.
        antialias (`bool`, *optional*, defaults to `False`): Antialias the resizing.

    Returns:
        `torch.Tensor` of shape `(batch_size, 3, bands * patch_size, bands * patch_size)`.
    """
    size = images.shape[-1]

    def weights(cuts: Tensor) -> Tensor:
        start, length = mega_patch_bands(cuts, size // patch_size, patch_size)
        bands = resize_weights(start.flatten(), length.flatten(), size, patch_size, antialias=antialias)
        return bands.view(len(cuts), -1, size)

    return apply_weights(images, weights(row_cuts), weights(column_cuts))


class RelViTViews:
    """
    Turns a batch of images into what [`RelViTForPreTraining`] is fed with.

    Args:
        config ([`RelViTViewsConfig`]): The views.
        model_config ([`RelViTConfig`]): Gives image size, patch size, mega-patches and tasks.
        seed (`int`): The seed of the run.
    """

    def __init__(self, config: RelViTViewsConfig, model_config: RelViTConfig, seed: int = 0):
        self.config = config
        self.seed = seed
        self.image_size: int = model_config.backbone_config.image_size
        self.patch_size = model_config.cell_size
        self.mega_patches = model_config.mega_patches
        self.with_labels = "classification" in model_config.tasks
        self.operations = parse_patch_augmentation(config.patch_augmentation)
        self.view = View(size=self.image_size, crop=config.image_augmentation)
        if model_config.use_position_embeddings and not self.with_labels and not config.shuffle_patches:
            logger.warning(
                "The encoder knows where a patch lies by its position embeddings, so that what is asked of it can be told "
                "without a look at the image: consider --shuffle_patches true. (The authors' code does not shuffle.)"
            )

    def draws(self, epoch: Tensor, index: Tensor) -> Draws:
        """Per-sample draws of the single view; `epoch` and `index` of shape `(batch_size,)`, int64."""
        return Draws.for_samples(self.seed, epoch, index)

    def boxes(self, epoch: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
        """
        Where the views lie in their sources.

        Args:
            epoch (`torch.Tensor` of shape `(batch_size,)`, int64): Epoch of each sample.
            index (`torch.Tensor` of shape `(batch_size,)`, int64): Index of each sample.
            sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source, in pixels.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, 5)`, int64: one box for each image.
        """
        return draw_boxes(self.view, self.draws(epoch, index), sizes)[:, None]

    def render(self, photo: Image.Image, boxes: Tensor) -> dict[str, Tensor]:
        """
        Cut the view out of a photo, in a data-loading worker.

        Args:
            photo (`PIL.Image.Image`): The decoded photo, RGB.
            boxes (`torch.Tensor` of shape `(1, 5)`, int64): Its box.

        Returns:
            `dict[str, torch.Tensor]`: `crops`, uint8 of shape `(3, image_size, image_size)`.
        """
        return {"crops": render_photo(photo, boxes[0], self.view)}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], batch_draws: Draws | None = None) -> dict[str, Tensor]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                `index` and `epoch` (int64 of shape `(batch_size,)`), `labels` if known, and either sources of one size,
                `images` (uint8 of shape `(batch_size, 3, height, width)`), or `crops` that [`~RelViTViews.render`] made.
            batch_draws ([`Draws`], *optional*):
                Per-batch draws; RelViT has none.

        Returns:
            `dict[str, torch.Tensor]`: the arguments of [`RelViTForPreTraining`]: `pixel_values` (float32 of shape
            `(batch_size, 3, side, side)`), `patch_order` (int64 of shape `(batch_size, num_patches)`) if patches are
            shuffled, `labels` if the model classifies.
        """
        index = batch["index"]
        if "images" in batch:
            check_images(batch["images"])
        # Some hundred passes follow, with a dozen numbers for each of the pixels: block by block, they fit into a cache.
        numbers = 3 * self.image_size**2 * 3 // 2
        with full_precision(index.device):
            parts = [
                self._make_views({name: values[rows] for name, values in batch.items()})
                for rows in list(blocks(len(index), numbers, index.device)) or [slice(0, 0)]
            ]
        inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]
        if self.with_labels and "labels" in batch:
            inputs["labels"] = batch["labels"]
        return inputs

    @torch.no_grad()
    def validation_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        What the model is validated with: whole images, without augmentation and unshuffled. Mega-patches are cut for each
        image as in every other validation.

        Args:
            batch (`dict[str, torch.Tensor]`):
                Normalized `pixel_values` of shape `(batch_size, 3, image_size, image_size)`, `index` (int64 of shape
                `(batch_size,)`), and `labels`, if known.

        Returns:
            `dict[str, torch.Tensor]`: the arguments of [`RelViTForPreTraining`].
        """
        images, index = batch["pixel_values"], batch["index"]
        if self.mega_patches is not None:
            draws = Draws.for_samples(self.seed, torch.full_like(index, _VALIDATION_EPOCH), index)
            images = self._cut_mega_patches(images, draws, self.mega_patches)
        has_labels = self.with_labels and "labels" in batch
        return {"pixel_values": images, **({"labels": batch["labels"]} if has_labels else {})}

    def _make_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        draws = self.draws(batch["epoch"], batch["index"])
        images = self._crop(batch)
        in_pixels = self.config.patch_augmentation_space == "pixel"
        if not in_pixels:
            images = self._normalize(images)
        if self.mega_patches is not None:
            images = self._cut_mega_patches(images, draws, self.mega_patches)
        patches = split_patches(images, self.patch_size)
        shape = patches.shape[:2]
        patches = patches.flatten(0, 1)
        if self.operations:
            augmentation = draw_patch_augmentation(draws, self.operations, shape[1], self.patch_size)
            patches = augment_patches(patches, augmentation)
        if in_pixels:
            patches = self._normalize(patches)
        if self.operations:
            patches = replace_by_noise(patches, augmentation)
        patches = patches.unflatten(0, shape)
        inputs: dict[str, Tensor] = {}
        if self.config.shuffle_patches:
            inputs["patch_order"] = draws.permutation("shuffle", shape[1])
            patches = permute_patches(patches, inputs["patch_order"])
        inputs["pixel_values"] = join_patches(patches)
        return inputs

    def _crop(self, batch: dict[str, Tensor]) -> Tensor:
        """The cropped and mirrored images in [0, 1], float32 of shape `(batch_size, 3, image_size, image_size)`."""
        if "crops" in batch:
            return batch["crops"] / 255
        images = batch["images"]
        boxes = self.boxes(batch["epoch"], batch["index"], sizes_of(images))[:, 0]
        return render(images, boxes, self.view)

    def _normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.config.image_mean, self.config.image_std)

    def _cut_mega_patches(self, images: Tensor, draws: Draws, bands: int) -> Tensor:
        cells = self.image_size // self.patch_size
        row_cuts = draws.permutation("mega/rows", cells - 1)[:, : bands - 1] + 1
        column_cuts = row_cuts
        if self.config.mega_independent_cuts:
            column_cuts = draws.permutation("mega/columns", cells - 1)[:, : bands - 1] + 1
        return mega_patches(images, row_cuts, column_cuts, self.patch_size, self.config.mega_antialias)


__all__ = [
    "PatchAugmentation",
    "RelViTViews",
    "RelViTViewsConfig",
    "augment_patches",
    "draw_patch_augmentation",
    "mega_patch_bands",
    "mega_patches",
    "parse_patch_augmentation",
    "replace_by_noise",
]
