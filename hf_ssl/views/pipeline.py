"""Boxes first, then pixels: the views of a whole batch.

A method says what it trains on by a [`View`] for each of its views. [`MultiViewPipeline`] draws boxes and colors from the
keys of the samples, renders the crops, by one batched matrix product for each axis or image by image where that is faster,
and changes their colors, in blocks of images that suit a processor's caches.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from . import boxes as box_functions
from .colors import apply_colors, draw_colors
from .photometric import apply_where, erase, normalize
from .photos import resized_crop
from .random import Draws
from .resample import canvas_weights, resample, resample_each
from .view import View


# Numbers in a block of images: on a CPU few enough for its caches, and enough to make up for the cost of calling an
# operation; elsewhere they bound the memory that is needed.
_BLOCK_ON_CPU, _BLOCK = 1 << 19, 1 << 23
# From this product of source side and view side on, a CPU is faster image by image than by matrix products.
_LARGE = 64 * 64


def blocks(num_images: int, numbers_per_image: int, device: torch.device) -> Iterator[slice]:
    """
    Cut a batch into blocks, for functions that make many passes over their images.

    Args:
        num_images (`int`): Images in the batch.
        numbers_per_image (`int`): Size of an image: channels times height times width.
        device (`torch.device`): Where the images are.

    Yields:
        `slice`: the images of a block.
    """
    size = max(1, _block_size(device) // numbers_per_image)
    for start in range(0, num_images, size):
        yield slice(start, min(start + size, num_images))


def _block_size(device: torch.device) -> int:
    return _BLOCK_ON_CPU if device.type == "cpu" else _BLOCK


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast, under which products of matrices would be rounded to the precision of the training."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def draw_boxes(view: View, draws: Draws, sizes: Tensor) -> Tensor:
    """
    Draw where a view lies in each image.

    Args:
        view ([`View`]): Says how it is cropped and flipped.
        draws ([`Draws`]): One row for each image.
        sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source image, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, 5)`, int64: see [`hf_ssl.views.boxes`].
    """
    if view.crop == "random_resized_crop":
        return box_functions.random_resized_crop(draws, sizes, view.scale, view.ratio, view.flip)
    if view.crop == "padded_crop":
        return box_functions.random_padded_crop(draws, sizes, view.padding, view.flip)
    flip = box_functions.random_flip(draws, view.flip)
    if view.crop == "center_crop":
        return torch.cat([box_functions.center_crop(sizes, view.side)[:, :4], flip[:, None]], dim=1)
    return box_functions.whole_image(sizes, flip)


def render(images: Tensor, boxes: Tensor, view: View, canvas: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """
    Cut the boxes of a view out of images of one size.

    Args:
        images (`torch.Tensor` of shape `(batch_size, 3, height, width)`, uint8): The sources.
        boxes (`torch.Tensor` of shape `(batch_size, 5)` or `(1, 5)`, int64): A box for each image, or one for all.
        view ([`View`]): Says the size and how pixels are interpolated.
        canvas (`tuple[torch.Tensor, torch.Tensor]`, *optional*): Weights that resize the images before they are cut, see
            [`~hf_ssl.views.canvas_weights`].

    Returns:
        `torch.Tensor` of shape `(batch_size, 3, size, size)`, float32 in [0, 1].
    """
    source = images.shape[-2:] if canvas is None else [weights.shape[1] for weights in canvas]
    padding = _padding(view, source[0], source[1])
    if canvas is None and _is_large(view, images):
        return resample_each(images, boxes, view.side, view.interpolation, padding).to(torch.float32).div_(255)
    rendered = resample(images, boxes, view.side, view.interpolation, padding=padding, canvas=canvas).div_(255)
    # A bicubic kernel overshoots.
    return rendered.clamp_(0, 1) if view.interpolation == "bicubic" else rendered


def _is_large(view: View, images: Tensor) -> bool:
    """Whether a view is faster made image by image."""
    return images.device.type == "cpu" and view.side * max(images.shape[-2:]) >= _LARGE


def render_photo(photo: Image.Image, box: Tensor, view: View) -> Tensor:
    """
    Cut the box of a view out of a photo of any size.

    Args:
        photo (`PIL.Image.Image`): The decoded photo, RGB.
        box (`torch.Tensor` of shape `(5,)`, int64): See [`hf_ssl.views.boxes`].
        view ([`View`]): Says the size and how pixels are interpolated.

    Returns:
        `torch.Tensor` of shape `(3, size, size)`, uint8.

    Raises:
        `ValueError`: the view is a padded crop, which needs images of its size.
    """
    _padding(view, photo.height, photo.width)
    return resized_crop(photo, box, view.side, view.interpolation)


def _padding(view: View, height: int, width: int) -> int:
    """How far the boxes of a view may stick out of their sources."""
    if view.crop == "padded_crop":
        if (height, width) != (view.side, view.side):
            remedy = f", or views of {height} pixels" if height == width else ", or resize the images first (canvas)"
            raise ValueError(
                f"crop='padded_crop' needs images of {view.side}x{view.side} pixels, these have {height}x{width}; use "
                f"'random_resized_crop'{remedy}."
            )
        return view.padding
    return max(0, view.side - min(height, width)) if view.crop == "center_crop" else 0


@dataclass(frozen=True)
class _Run:
    """Equal views that follow each other: their group, place in the group, number among all views, and how many."""

    group: str
    place: int
    number: int
    count: int
    view: View


def _parts(
    num_views: int, num_images: int, numbers_per_image: int, device: torch.device
) -> Iterator[tuple[slice, slice]]:
    """Cut equal views of a batch into blocks: several whole views, or a part of one; which views, and which images."""
    views_at_once = _block_size(device) // max(1, num_images * numbers_per_image)
    if views_at_once > 1:
        for start in range(0, num_views, views_at_once):
            yield slice(start, min(start + views_at_once, num_views)), slice(0, num_images)
    else:
        for view in range(num_views):
            for rows in blocks(num_images, numbers_per_image, device):
                yield slice(view, view + 1), rows


class MultiViewPipeline:
    """
    Turns a batch of images into a tensor of views for each resolution, and says where the views lie in their images.

    Boxes and colors of a sample are functions of (seed, epoch, index, view), whatever batch, worker, process or device it
    meets; those of two views of an image are independent.

    Args:
        views (`dict[str, list[View]]`):
            The views by the name of the tensor that holds them; those of a tensor have one size.
        image_mean (`list[float]`):
            Mean of each channel, in [0, 1].
        image_std (`list[float]`):
            Standard deviation of each channel, in [0, 1].
        seed (`int`, *optional*, defaults to 0):
            The seed of the run.
        canvas (`int`, *optional*):
            Side of the square that images are resized to before anything is cut out of them; boxes then lie in it.
        shared_boxes (`bool`, *optional*, defaults to `False`):
            Whether all images of a batch are cut and flipped alike. The boxes are then per-batch draws.
        shared_colors (`bool`, *optional*, defaults to `False`):
            Whether the colors of all images of a batch are changed alike, by per-batch draws too.
    """

    def __init__(
        self,
        views: dict[str, list[View]],
        image_mean: list[float],
        image_std: list[float],
        seed: int = 0,
        canvas: int | None = None,
        shared_boxes: bool = False,
        shared_colors: bool = False,
    ):
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if len(values) != 3:
                raise ValueError(f"{name}={values} must hold three numbers, for red, green and blue.")
        if min(image_std) <= 0:
            raise ValueError(f"image_std={image_std} must be positive.")
        if not views:
            raise ValueError("There are no views to make; give at least one.")
        for name, group in views.items():
            if len({view.side for view in group}) != 1:
                raise ValueError(
                    f"The views of {name!r} have the sizes {[v.side for v in group]}; one tensor holds one."
                )
        self.views = views
        self.image_mean, self.image_std = image_mean, image_std
        self.seed, self.canvas = seed, canvas
        self.shared_boxes, self.shared_colors = shared_boxes, shared_colors
        self.needs_batch_draws = shared_boxes or shared_colors
        self.num_views = sum(map(len, views.values()))
        self._runs: list[_Run] = []
        number = 0
        for name, group in views.items():
            place = 0
            for _, equal in groupby(group):
                run = list(equal)
                self._runs.append(_Run(name, place, number, len(run), run[0]))
                place, number = place + len(run), number + len(run)

    def boxes(self, epoch: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
        """
        The boxes that are cut out of photos in data-loading workers: those of the views, or with a canvas all of the photo.

        Args:
            epoch (`torch.Tensor` of shape `(batch_size,)`, int64): Epoch of each sample.
            index (`torch.Tensor` of shape `(batch_size,)`, int64): Index of each sample.
            sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source, in pixels.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_views, 5)`, int64: see [`hf_ssl.views.boxes`].
        """
        if self.canvas is not None:
            return box_functions.whole_image(sizes)[:, None]
        if self.shared_boxes:
            raise ValueError("Photos of unequal sizes can share their boxes only on a canvas: give `canvas`.")
        return self.view_boxes(epoch, index, sizes)

    def view_boxes(self, epoch: Tensor, index: Tensor, sizes: Tensor, draws: Draws | None = None) -> Tensor:
        """
        Where the views lie in their sources, or in the canvas.

        Args:
            epoch (`torch.Tensor` of shape `(batch_size,)`, int64): Epoch of each sample.
            index (`torch.Tensor` of shape `(batch_size,)`, int64): Index of each sample.
            sizes (`torch.Tensor` of shape `(batch_size, 2)`, int64): Height and width of each source, in pixels.
            draws ([`Draws`], *optional*): Per-batch draws, of one row; needed if the images of a batch share their boxes.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_views, 5)`, int64: see [`hf_ssl.views.boxes`]. Shared boxes are where
            the draws are.
        """
        if self.canvas is not None:
            sizes = torch.full_like(sizes, self.canvas)
        if not self.shared_boxes:
            drawn = [
                draw_boxes(run.view, self._draws(run, epoch, index), sizes.repeat(run.count, 1)).unflatten(
                    0, (run.count, -1)
                )
                for run in self._runs
            ]
            return torch.cat(drawn).transpose(0, 1)
        if len(index) == 0:
            return sizes.new_zeros(0, self.num_views, 5)
        keys = self._batch_keys(draws)
        size = sizes[:1].to(keys.device) if self.canvas is None else keys.new_full((1, 2), self.canvas)
        drawn = [
            draw_boxes(run.view, Draws(keys[run.number : run.number + run.count]), size.expand(run.count, -1))
            for run in self._runs
        ]
        return torch.cat(drawn).expand(len(index), -1, -1)

    def _batch_keys(self, draws: Draws | None) -> Tensor:
        """Per-batch draws of each view."""
        if draws is None:
            raise ValueError(
                "The images of a batch share random draws, which are made for the batch: give `draws` (Draws.for_batch). "
                "Data-loading workers do not know the step: use --augment_on device."
            )
        return draws.split(self.num_views).keys

    def _draws(self, run: _Run, epoch: Tensor, index: Tensor) -> Draws:
        """Per-sample draws of the views of a run: a row for each image of the first view, then of the second, …"""
        numbers = torch.arange(run.number, run.number + run.count, device=index.device)
        return Draws.for_samples(
            self.seed, epoch.repeat(run.count), index.repeat(run.count), numbers.repeat_interleave(len(index))
        )

    def render(self, photo: Image.Image, boxes: Tensor) -> dict[str, Tensor]:
        """
        Cut the views out of a photo, in a data-loading worker.

        Args:
            photo (`PIL.Image.Image`): The decoded photo, RGB.
            boxes (`torch.Tensor` of shape `(num_boxes, 5)`, int64): What [`~MultiViewPipeline.boxes`] drew for it.

        Returns:
            `dict[str, torch.Tensor]`: uint8 crops of shape `(num_views, 3, size, size)` under the name of each tensor and
            `_crops`; or, with a canvas, `images`: the photo resized to it.
        """
        if self.canvas is not None:
            return {"images": resized_crop(photo, boxes[0], self.canvas)}
        crops: dict[str, Tensor] = {}
        of_group = boxes.split([len(group) for group in self.views.values()])
        for (name, group), group_boxes in zip(self.views.items(), of_group, strict=True):
            cut = [render_photo(photo, box, view) for view, box in zip(group, group_boxes, strict=True)]
            crops[f"{name}_crops"] = torch.stack(cut)
        return crops

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                `index` and `epoch` (int64 of shape `(batch_size,)`), and either sources of one size, `images` (uint8 of
                shape `(batch_size, 3, height, width)`), or `boxes` and the crops that [`~MultiViewPipeline.render`] made.
            draws ([`Draws`], *optional*):
                Per-batch draws, of one row; needed if the images of a batch share their boxes or their colors.

        Returns:
            `dict[str, torch.Tensor]`: normalized float32 tensors of shape `(num_views, batch_size, 3, size, size)`, and
            `boxes`, int64 of shape `(batch_size, num_views, 5)`; shared ones are where the draws are.

        Raises:
            `TypeError`: the images are not uint8.
            `ValueError`: they have another shape, or not the size that a padded crop needs.
        """
        with full_precision(batch["index"].device):
            return self._make_views(batch, draws)

    def _make_views(self, batch: dict[str, Tensor], draws: Draws | None) -> dict[str, Tensor]:
        epoch, index, images, canvas = batch["epoch"], batch["index"], batch.get("images"), None
        if images is None:
            boxes = batch["boxes"]
        else:
            check_images(images)
            boxes = self.view_boxes(epoch, index, sizes_of(images), draws)
            # Of shared boxes one row is enough, and on the device it is not waited for.
            places = boxes[:1].to(index.device, non_blocking=True) if self.shared_boxes else boxes
            images, canvas = self._resize_to_canvas(images)
        outputs = {
            name: torch.empty(
                len(group), len(index), 3, group[0].side, group[0].side, dtype=torch.float32, device=index.device
            )
            for name, group in self.views.items()
        }
        for run in self._runs:
            views = outputs[run.group][run.place : run.place + run.count]
            draws_of_run = self._draws(run, epoch, index)
            if self.shared_colors:
                keys = self._batch_keys(draws)[run.number : run.number + run.count].to(index.device, non_blocking=True)
                draws_of_run = Draws(keys.repeat_interleave(len(index)))
            colors = draw_colors(run.view, draws_of_run)
            size = views.shape[2:].numel()
            if images is not None and images.device.type != "cpu":
                size = max(size, images.shape[1:].numel())  # products of matrices convert their sources
            for part, rows in _parts(run.count, len(index), size, index.device):
                if images is None:
                    crops = batch[f"{run.group}_crops"][:, run.place : run.place + run.count]
                    crops = crops[rows, part].transpose(0, 1).flatten(0, 1).to(torch.float32).div_(255)
                else:
                    of_part = places[:, run.number + part.start : run.number + part.stop]
                    of_part = of_part if self.shared_boxes else of_part[rows]
                    cut = [render(images[rows], of_view, run.view, canvas) for of_view in of_part.unbind(1)]
                    crops = cut[0] if len(cut) == 1 else torch.cat(cut)
                own = slice(part.start * len(index) + rows.start, (part.stop - 1) * len(index) + rows.stop)
                crops = apply_colors(crops, colors[own], run.view, inplace=True)
                target = views[part, rows].view(crops.shape)
                normalize(crops, self.image_mean, self.image_std, out=target)
                if run.view.erase:
                    target.copy_(random_erase(target, Draws(draws_of_run.keys[own]), run.view.erase))
        return outputs | {"boxes": boxes}

    def _resize_to_canvas(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The images on the canvas, or as they are with the weights that put them there."""
        if self.canvas is None or images.shape[-2:] == (self.canvas, self.canvas):
            return images, None
        if any(_is_large(run.view, images) for run in self._runs):
            return resample_each(images, box_functions.whole_image(sizes_of(images[:1])), self.canvas), None
        return images, canvas_weights(images.shape[-2], images.shape[-1], self.canvas, images.device)


def random_erase(images: Tensor, draws: Draws, p: float) -> Tensor:
    """
    Replace a rectangle of some images by noise, as `timm.data.random_erasing.RandomErasing(p, mode="pixel")` does.

    Args:
        images (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Normalized images.
        draws ([`Draws`]): One row for each image.
        p (`float`): Probability of being erased.

    Returns:
        `torch.Tensor` of the shape of `images`.
    """

    def replace(images: Tensor, boxes: Tensor, keys: Tensor) -> Tensor:
        return erase(images, boxes, Draws(keys).normal("erase/noise", *images.shape[1:]).to(images.dtype))

    boxes = box_functions.random_erasing(draws, sizes_of(images))
    return apply_where(replace, images, draws.bernoulli("erase", p=p), boxes, draws.keys)


def sizes_of(images: Tensor) -> Tensor:
    """Height and width of each image of a batch: int64 of shape `(batch_size, 2)`."""
    height, width = images.shape[-2:]
    # Filled rather than copied from the host, which would wait for an accelerator.
    sizes = [torch.full((len(images),), side, device=images.device) for side in (height, width)]
    return torch.stack(sizes, dim=1)


def check_images(images: Tensor) -> None:
    """Raise `TypeError` or `ValueError` unless these are uint8 images of shape `(batch_size, 3, height, width)`."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images have dtype {images.dtype}; give torch.uint8, with values from 0 to 255.")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images have shape {tuple(images.shape)}; give (batch_size, 3, height, width).")
