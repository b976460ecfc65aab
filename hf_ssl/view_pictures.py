"""The views of a batch for the eye: in pixels again, beside their sources and the boxes that say where they lie."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .views import Draws, resized_crop


@dataclass(frozen=True)
class ViewPictures:
    """
    What the views of a batch look like; made by [`picture_views`], and drawn by [`~hf_ssl.figures.plot_views`].

    Args:
        sources (`list[torch.Tensor]`): `B` images as they are cropped, uint8 of shape `(3, height, width)`.
        views (`dict[str, torch.Tensor]`): `V` views of all images by name, each uint8 of shape `(B, 3, side, side)`.
        boxes (`torch.Tensor` of shape `(B, U, 5)`, int64): Where `U` views lie in the sources, see [`hf_ssl.views.boxes`].
        frames (`list[int]`): For each view the number of its frame; one that has frame `u < U` lies in box `u`.
        without_box (`str`): What views without a box are.
    """

    sources: list[Tensor]
    views: dict[str, Tensor]
    boxes: Tensor
    frames: list[int]
    without_box: str


def picture_views(views: Any, batch: dict[str, Tensor], images: list[Tensor], draws: Draws) -> ViewPictures:
    """
    Make the views of a batch, and pictures of them.

    Args:
        views (`Any`): The views of a method, see [`~hf_ssl.models.Method`].
        batch (`dict[str, torch.Tensor]`): A training batch of `B` images, as a source reads it.
        images (`list[torch.Tensor]`): The images themselves, uint8 of shape `(3, height, width)`.
        draws ([`~hf_ssl.views.Draws`]): Per-batch draws, of one row.

    Returns:
        [`ViewPictures`]
    """
    sources = [on_canvas(image, getattr(views, "canvas", None)) for image in images]
    outputs = views(batch, draws)
    boxes = view_boxes(views, batch, outputs, sources, draws)
    frames = None
    if hasattr(views, "pictures"):
        outputs, frames = views.pictures(outputs)
    shown = image_views(outputs, views.config.image_mean, views.config.image_std)
    return ViewPictures(
        sources,
        shown,
        boxes,
        list(range(len(shown))) if frames is None else frames,
        getattr(views, "pictures_show", "made of several images"),
    )


def image_views(outputs: dict[str, Tensor], mean: list[float], std: list[float]) -> dict[str, Tensor]:
    """
    The images among what views returned, in pixels again, see [`in_pixels`].

    Args:
        outputs (`dict[str, torch.Tensor]`): Normalized images are floats of shape `(batch_size, 3, side, side)`, or
            `(num_views, batch_size, 3, side, side)`; tensors of other shapes are something else.
        mean (`list[float]`): Mean of each channel that was subtracted.
        std (`list[float]`): Standard deviation of each channel that was divided by.

    Returns:
        `dict[str, torch.Tensor]`: uint8 images of shape `(batch_size, 3, side, side)` by the name of the view, such as
        `"view"`, or `"local 2"` for the second of `local_pixel_values`.
    """
    views = {}
    for name, tensor in outputs.items():
        if not tensor.is_floating_point() or tensor.ndim not in (4, 5) or tensor.shape[-3] != 3:
            continue
        images = in_pixels(tensor.cpu(), mean, std)
        title = name.removesuffix("pixel_values").replace("_", " ").strip() or "view"
        numbered = images.ndim == 5 and len(images) > 1
        for i, image in enumerate(images if images.ndim == 5 else [images], 1):
            views[f"{title} {i}" if numbered else title] = image
    return views


def in_pixels(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """
    Undo the normalization of images; what is darker than black or brighter than white is clipped.

    Args:
        images (`torch.Tensor` of shape `(..., 3, height, width)`): Normalized images, on the CPU.
        mean (`list[float]`): Mean of each channel that was subtracted.
        std (`list[float]`): Standard deviation of each channel that was divided by.

    Returns:
        `torch.Tensor` of the shape of `images`, uint8.
    """
    pixels = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def view_boxes(
    views: Any, batch: dict[str, Tensor], outputs: dict[str, Tensor], sources: list[Tensor], draws: Draws
) -> Tensor:
    """Where the views of a batch lie in their sources: int64 of shape `(batch_size, num_views, 5)`."""
    sizes = torch.tensor([image.shape[1:] for image in sources])
    if "boxes" in outputs:
        return outputs["boxes"].cpu()
    if getattr(views, "canvas", None) is not None:
        # The boxes of the batch are those that workers cut out of photos, not those of the views.
        return views.view_boxes(batch["epoch"], batch["index"], sizes, draws)  # type: ignore[no-any-return]
    if "boxes" in batch:
        return batch["boxes"].cpu()
    return views.boxes(batch["epoch"], batch["index"], sizes)  # type: ignore[no-any-return]


def on_canvas(image: Tensor, canvas: int | None) -> Tensor:
    """A source, `(3, height, width)`, as the views see it: resized to a square, if they crop from one."""
    if canvas is None:
        return image
    whole = torch.tensor([0, 0, *image.shape[1:], 0])
    return resized_crop(Image.fromarray(image.permute(1, 2, 0).numpy()), whole, canvas)
