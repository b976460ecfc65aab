"""Look at what a method is trained on: some source images, the boxes of their views, and the views.

    python training/preview.py --method relvit --dataset path/to/photos
    python training/preview.py --method relvit --recipe cifar10 --dataset cifar10 --num_images 12 --epoch 3

It takes the flags and recipes of `pretrain.py`; with those of a run it shows the views of that run. Boxes that the images of
a batch share are those of the first step, and images that are mixed are mixed with others of those that are shown. Where an
encoder is shown some patches of a view only, the others are blank; where patches of two views are compared, they have
one color. Like a run it opens all images first: their sizes decide how they are read.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_ssl.arguments import PretrainArguments, build_inputs, dataset_name, parse_with_recipe
from hf_ssl.figures import plot_views, require_matplotlib
from hf_ssl.models import get_method
from hf_ssl.views import Draws, resized_crop


@dataclass
class PreviewArguments(PretrainArguments):
    """What to look at, beside everything that says what to pretrain."""

    num_images: int = field(default=8, metadata={"help": "Images shown, evenly spaced over the training images."})
    epoch: int = field(default=0, metadata={"help": "The epoch whose views are shown; the first is 0."})
    output: str = field(default="preview.png", metadata={"help": "The PNG file to write."})

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images={self.num_images} must be at least 1.")
        if self.epoch < 0:
            raise ValueError(f"epoch={self.epoch} must not be negative; the first epoch is 0.")
        if Path(self.output).suffix.lower() != ".png":
            raise ValueError(f"output={self.output!r} must be the name of a PNG file, such as preview.png.")


def image_views(outputs: dict[str, Tensor], mean: list[float], std: list[float]) -> dict[str, Tensor]:
    """
    The images among what views returned, in pixels again; what is darker than black or brighter than white is clipped.

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
        pixels = tensor.cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        images = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
        title = name.removesuffix("pixel_values").replace("_", " ").strip() or "view"
        numbered = images.ndim == 5 and len(images) > 1
        for i, image in enumerate(images if images.ndim == 5 else [images], 1):
            views[f"{title} {i}" if numbered else title] = image
    return views


def view_boxes(
    views: Any, batch: dict[str, Tensor], outputs: dict[str, Tensor], sources: list[Tensor], draws: Draws
) -> Tensor:
    """Where the views of a batch lie in their sources: int64 of shape `(batch_size, num_views, 5)`."""
    sizes = torch.tensor([image.shape[1:] for image in sources])
    if "boxes" in outputs:
        return outputs["boxes"].cpu()
    if getattr(views, "canvas", None) is not None:
        # The boxes of the batch are those that workers cut out of photos, not those of the views.
        return views.view_boxes(batch["epoch"], batch["index"], sizes, draws)
    if "boxes" in batch:
        return batch["boxes"].cpu()
    return views.boxes(batch["epoch"], batch["index"], sizes)


def on_canvas(image: Tensor, canvas: int | None) -> Tensor:
    """A source, `(3, height, width)`, as the views see it: resized to a square, if they crop from one."""
    if canvas is None:
        return image
    whole = torch.tensor([0, 0, *image.shape[1:], 0])
    return resized_crop(Image.fromarray(image.permute(1, 2, 0).numpy()), whole, canvas)


def describe(sources: list[Tensor], views: dict[str, Tensor], num_images: int) -> str:
    """How many images and views there are, and how large."""
    sizes = {f"{image.shape[2]}x{image.shape[1]} px" for image in sources}
    sides = [images.shape[-1] for images in views.values()]
    counts = [f"{sides.count(side)} of {side} px" for side in dict.fromkeys(sides)]
    if len(counts) == 1:
        counts = [f"{sides[0]} px"]
    return (
        f"{len(sources)} of {num_images:,} images ({sizes.pop() if len(sizes) == 1 else 'of several sizes'}), "
        f"{len(views)} view{'s' * (len(views) > 1)} of each ({', '.join(counts)})"
    )


def main() -> None:
    args, training_args, model_args, views_config = parse_with_recipe(
        PreviewArguments, Path(__file__).parent / "recipes"
    )
    require_matplotlib()
    method = get_method(args.method)
    # Of all images, though few are shown: whether they have one size decides how they are read and cropped.
    _, _, views, source = build_inputs(args, model_args, views_config, training_args.seed)
    smallest = getattr(views, "min_batch_size", 1)
    if min(args.num_images, len(source)) < smallest:
        raise ValueError(
            f"num_images={args.num_images} is too few: views of {method.title} are made of {smallest} or more."
        )
    rows = np.linspace(0, len(source) - 1, min(args.num_images, len(source))).astype(int).tolist()
    batch: Any = source.__getitems__([(args.epoch, row) for row in rows])
    sources = [on_canvas(source[row]["image"], getattr(views, "canvas", None)) for row in rows]
    draws = Draws.for_batch(training_args.seed, step=0)
    outputs, frames = views(batch, draws), None
    if hasattr(views, "pictures"):
        outputs, frames = views.pictures(outputs)
    shown = image_views(outputs, views_config.image_mean, views_config.image_std)
    title = f"{method.title} ({args.mode}) on {dataset_name(args.dataset)}, epoch {args.epoch}"
    plot_views(
        args.output,
        sources=sources,
        views=list(shown.values()),
        boxes=view_boxes(views, batch, outputs, sources, draws),
        names=list(shown),
        title=title,
        frames=frames,
        without_box=getattr(views, "pictures_show", "made of several images"),
    )
    print(f"{args.output}\n{title}: {describe(sources, shown, len(source))}")


if __name__ == "__main__":
    main()
