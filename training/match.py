"""See which patches of two photos an encoder takes for the same thing, or PW-Self, of two crops, for one place.

    python training/match.py test.png
    python training/match.py test.png --patch_size 16 --seed 3
    python training/match.py first.jpg second.jpg --model outputs/pw_self --ratio 0.9

With one photo, it cuts a large and a small view out of it, as PW-Self's pretraining does, draws both with their
patches numbered, and prints the numbers of the patches that match, in pairs. No encoder has a part in it.

With two photos, it draws pairs of patches of which each is the other's nearest, by the cosine similarity of the
encoder's tokens, and prints them as lines of a CSV file, the most similar pair first: centers of the patches in pixels
of the photos.
"""

import csv
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from transformers import HfArgumentParser, ViTConfig

from hf_ssl.data import ImageError, decode_rgb
from hf_ssl.evaluation import load_encoder, match_images
from hf_ssl.evaluation.arguments import ModelArguments, resized
from hf_ssl.figures import plot_image_matches, plot_matches, require_matplotlib
from hf_ssl.models.pw_self import PWSelfConfig, PWSelfViews, PWSelfViewsConfig
from hf_ssl.views import Draws


@dataclass(kw_only=True)
class MatchArguments(ModelArguments):
    """How to match; with two photos, the tokens of which encoder."""

    output: str = field(default="result.png", metadata={"help": "The PNG file to write."})
    patch_size: int = field(
        default=32,
        metadata={"help": "One photo: side of a patch, in pixels, 8, 16 or 32; the views have 224 and 96 pixels."},
    )
    seed: int = field(default=0, metadata={"help": "One photo: other seeds, other crops."})
    model: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Two photos: the encoder, a folder or an id of the Hub that AutoModel loads."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Two photos: side of the square that whole photos are resized to, in pixels; unset, photos are "
            "resized and cropped as the image processor says."
        },
    )
    ratio: float | None = field(
        default=None,
        metadata={
            "help": "Two photos: keep a pair only if its cosine distance is less than this share of that to the "
            "second nearest patch, in either photo (Lowe's ratio test; 0.9 is a mild one)."
        },
    )
    threshold: float | None = field(default=None, metadata={"help": "Two photos: least cosine similarity of a pair."})
    max_matches: int = field(default=50, metadata={"help": "Two photos: pairs that are kept, the most similar ones."})

    def __post_init__(self) -> None:
        if Path(self.output).suffix.lower() != ".png":
            raise ValueError(f"output={self.output!r} must be the name of a PNG file, such as result.png.")
        if self.patch_size not in (8, 16, 32):
            raise ValueError(f"patch_size={self.patch_size} must be 8, 16 or 32, to divide 224 and 96 and be seen.")
        if self.max_matches < 1:
            raise ValueError(f"max_matches={self.max_matches} must be at least 1.")

    def check(self, num_photos: int) -> None:
        """Refuse flags that have no meaning with so many photos."""
        if num_photos == 2 and self.model is None:
            raise ValueError("Two photos are matched by the tokens of an encoder: name it with --model.")
        views = ("patch_size", "seed")
        unused = [
            f"--{item.name}"
            for item in fields(self)
            if item.name != "output"
            and (item.name in views) == (num_photos == 2)
            and getattr(self, item.name) != item.default
        ]
        if unused and num_photos == 2:
            raise ValueError(f"Two photos are not cut into views: leave {', '.join(unused)} out.")
        if unused:
            raise ValueError(
                f"Views of one photo are matched without an encoder: leave {', '.join(unused)} out, or name a second "
                "photo."
            )


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


def match_views_of(photo: Image.Image, args: MatchArguments) -> None:
    """Draw the matches of two views of a photo, and print them."""
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


def match_photos(photos: list[Image.Image], args: MatchArguments) -> None:
    """Draw what an encoder takes for the same thing in two photos, and print it."""
    encoder = load_encoder(
        args.model, revision=args.revision, branch=args.encoder, trust_remote_code=args.trust_remote_code
    )
    if args.image_size is not None:
        encoder.processor = resized(encoder.processor, args.image_size, crop_ratio=1.0)
    encoder.to(PartialState().device)
    matches = match_images(encoder, *photos, ratio=args.ratio, threshold=args.threshold)
    kept = slice(args.max_matches)
    similarities, centers = matches.similarities[kept], matches.centers[kept]
    title = f"{len(similarities)} of {len(matches)} pairs of patches, each the other's nearest"
    plot_image_matches(
        args.output,
        images=tuple(pil_to_tensor(photo) for photo in photos),
        boxes=tuple(boxes[kept] for boxes in matches.boxes),
        similarities=similarities,
        areas=matches.areas,
        title=title,
    )
    # What is printed can be redirected into a file.
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["similarity", "first_x", "first_y", "second_x", "second_y"])
    for similarity, (first, second) in zip(similarities.tolist(), centers.flip(-1).tolist(), strict=True):
        writer.writerow([f"{similarity:.4f}", *(f"{place:.1f}" for place in (*first, *second))])
    print(f"{args.output}: {title}", file=sys.stderr)


def main() -> None:
    parser = HfArgumentParser(MatchArguments, description=__doc__)
    parser.add_argument("image", help="The photo.")
    parser.add_argument("second", nargs="?", help="A second photo, to be matched with the first by an encoder.")
    args, rest = parser.parse_args_into_dataclasses()
    paths = [rest.image] + [rest.second] * (rest.second is not None)
    args.check(len(paths))
    require_matplotlib()
    try:
        photos = [decode_rgb({"path": path, "bytes": None}) for path in paths]
    except ImageError as error:
        sys.exit(str(error))
    if len(photos) == 1:
        match_views_of(photos[0], args)
    else:
        match_photos(photos, args)


if __name__ == "__main__":
    main()
