"""See what the class token of a vision transformer looks at.

    python training/attention.py photo.jpg --model outputs/pw_self
    python training/attention.py *.jpg --model facebook/dino-vits16 --image_size 480 --output dino.png

It draws, for each photo, the attention of the class token to the patches in the last block, head by head, the patches
that get most of it, and the principal components of the patches' tokens as colors.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from hf_ssl.data import ImageError, decode_rgb
from hf_ssl.evaluation import (
    attention_maps,
    attention_masks,
    crop_to_patches,
    grid_tokens,
    load_encoder,
    normalization,
)
from hf_ssl.evaluation.arguments import ModelArguments, resized
from hf_ssl.figures import plot_attention, require_matplotlib
from hf_ssl.view_pictures import in_pixels


@dataclass(kw_only=True)
class AttentionArguments(ModelArguments):
    """What to look at, of which encoder: one with a class token."""

    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square that whole photos are resized to, in pixels, such as 480; unset, photos are "
            "resized and cropped as the image processor says."
        },
    )
    mass: float = field(default=0.6, metadata={"help": "Share of the attention that the patches of a mask hold."})
    output: str = field(default="attention.png", metadata={"help": "The PNG file to write."})

    def __post_init__(self) -> None:
        if Path(self.output).suffix.lower() != ".png":
            raise ValueError(f"output={self.output!r} must be the name of a PNG file, such as attention.png.")
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass={self.mass} must lie in (0, 1].")


def main() -> None:
    parser = HfArgumentParser(AttentionArguments, description=__doc__)
    parser.add_argument("images", nargs="+", help="The photos.")
    args, rest = parser.parse_args_into_dataclasses()
    require_matplotlib()
    try:
        photos = [decode_rgb({"path": path, "bytes": None}) for path in rest.images]
    except ImageError as error:
        sys.exit(str(error))
    encoder = load_encoder(
        args.model, revision=args.revision, branch=args.encoder, trust_remote_code=args.trust_remote_code
    )
    if args.image_size is not None:
        encoder.processor = resized(encoder.processor, args.image_size, crop_ratio=1.0)
    encoder.to(PartialState().device)
    processed = [encoder.processor(images=[photo], return_tensors="pt")["pixel_values"] for photo in photos]
    sizes = {tuple(pixels.shape[-2:]) for pixels in processed}
    if len(sizes) > 1:
        raise ValueError(f"The image processor makes images of different sizes, {sorted(sizes)}: set --image_size.")
    attention = attention_maps(encoder, torch.cat(processed))
    pixel_values = crop_to_patches(encoder, torch.cat(processed))
    plot_attention(
        attention,
        attention_masks(attention, args.mass),
        list(in_pixels(pixel_values, *normalization(encoder.processor))),
        args.output,
        tokens=grid_tokens(encoder, pixel_values),
    )
    print(args.output)


if __name__ == "__main__":
    main()
