"""See which patches of two crops of an image PW-Self takes for the same place.

    python training/match.py test.png
    python training/match.py test.png --patch_size 16 --seed 3

It cuts a large and a small view out of the image, as PW-Self's pretraining does, draws both with their patches numbered, and
prints the numbers of the patches that match, in pairs.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import HfArgumentParser, ViTConfig

from hf_ssl.data import ImageError, decode_rgb
from hf_ssl.figures import plot_matches, require_matplotlib
from hf_ssl.models.pw_self import PWSelfConfig, PWSelfViews, PWSelfViewsConfig
from hf_ssl.views import Draws


@dataclass
class MatchArguments:
    """How to cut."""

    output: str = field(default="result.png", metadata={"help": "The PNG file to write."})
    patch_size: int = field(
        default=32,
        metadata={"help": "Side of a patch, in pixels: 8, 16 or 32; the views have 224 and 96 pixels."},
    )
    seed: int = field(default=0, metadata={"help": "Other seeds, other crops."})

    def __post_init__(self) -> None:
        if Path(self.output).suffix.lower() != ".png":
            raise ValueError(f"output={self.output!r} must be the name of a PNG file, such as result.png.")
        if self.patch_size not in (8, 16, 32):
            raise ValueError(f"patch_size={self.patch_size} must be 8, 16 or 32, to divide 224 and 96 and be seen.")


def make_views(photo: Image.Image, patch_size: int, seed: int) -> tuple[PWSelfViews, dict[str, Tensor]]:
    """One large and one small view of a photo, with their matches; half of the views are gray, as in the authors' demo."""
    model_config = PWSelfConfig(backbone_config=ViTConfig(image_size=224, patch_size=patch_size), num_local_views=1)
    config = PWSelfViewsConfig()
    gray = {name: replace(getattr(config, name), grayscale=0.5) for name in ("global1", "local")}
    views = PWSelfViews(replace(config, **gray), model_config, seed)
    first = torch.zeros(1, dtype=torch.int64)
    whole = views.boxes(first, first, torch.tensor([[photo.height, photo.width]]))
    images = views.render(photo, whole[0])["images"][None]
    return views, views({"images": images, "index": first, "epoch": first}, Draws.for_batch(seed, step=0))


def main() -> None:
    parser = HfArgumentParser(MatchArguments, description=__doc__)
    parser.add_argument("image", help="The photo.")
    args, rest = parser.parse_args_into_dataclasses()
    require_matplotlib()
    try:
        photo = decode_rgb({"path": rest.image, "bytes": None})
    except ImageError as error:
        sys.exit(str(error))
    views, inputs = make_views(photo, args.patch_size, args.seed)
    matches = inputs["local_matches"][0, 0, 0]
    matches = matches[matches[:, 0] >= 0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (views.image_mean, views.image_std))
    large, small = (
        ((inputs[name][0, 0] * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        for name in ("pixel_values", "local_pixel_values")
    )
    plot_matches(args.output, first=large, second=small, grids=(views.grid, views.local_grid), matches=matches)
    # As the authors' script: the class token, 0, and then patches from 1 on.
    print(args.output)
    for name, patches in zip(("large view", "small view"), matches.unbind(1), strict=True):
        print(f"{name}: {[0, *(patches + 1).tolist()]}")
    if not len(matches):
        print("The two views have no patch in common: only their class tokens are compared. Try another --seed.")


if __name__ == "__main__":
    main()
