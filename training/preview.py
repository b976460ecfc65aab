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
from torch import Tensor

from hf_ssl.arguments import PretrainArguments, build_inputs, dataset_name, parse_with_recipe
from hf_ssl.figures import plot_views, require_matplotlib
from hf_ssl.models import get_method
from hf_ssl.view_pictures import picture_views
from hf_ssl.views import Draws


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
    draws = Draws.for_batch(training_args.seed, step=0)
    pictures = picture_views(views, batch, [source[row]["image"] for row in rows], draws)
    title = f"{method.title} ({args.mode}) on {dataset_name(args.dataset)}, epoch {args.epoch}"
    plot_views(
        args.output,
        sources=pictures.sources,
        views=list(pictures.views.values()),
        boxes=pictures.boxes,
        names=list(pictures.views),
        title=title,
        frames=pictures.frames,
        without_box=pictures.without_box,
    )
    print(f"{args.output}\n{title}: {describe(pictures.sources, pictures.views, len(source))}")


if __name__ == "__main__":
    main()
