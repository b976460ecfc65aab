"""Turn an official checkpoint of a method's authors into a folder that stock transformers loads.

python training/convert.py --method relvit --checkpoint best.ckpt --output_dir relvit-vit-small --verify
"""

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModel, HfArgumentParser

from hf_ssl.hub import evaluation_processor, export_run, write_conversion_card
from hf_ssl.models import METHODS, get_method
from hf_ssl.models.conversion import reference_tokens


TOLERANCE = 1e-5


@dataclass
class ConvertArguments:
    """What to convert, and where to."""

    checkpoint: str = field(metadata={"help": "The authors' file. It is read without running any code in it."})
    output_dir: str = field(metadata={"help": "Folder of the converted model."})
    method: str = field(default="relvit", metadata={"help": f"The method: {', '.join(METHODS)}."})
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Heads of the attention, where the checkpoint's sizes do not tell them."}
    )
    image_mean: list[float] = field(
        default_factory=lambda: [0.485, 0.456, 0.406], metadata={"help": "Mean the model was trained with."}
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.229, 0.224, 0.225], metadata={"help": "Standard deviation it was trained with."}
    )
    eval_crop_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the shorter side that the evaluation's central crop keeps; 1 resizes the whole image. Unset, "
            "that of the method (PatchMix: 0.875), or else 0.875 from 128 pixels on and 1 below."
        },
    )
    encoder: str = field(
        default="auto", metadata={"help": "Which encoder to publish.", "choices": ["auto", "student", "teacher"]}
    )
    verify: bool = field(
        default=False,
        metadata={
            "help": "Compute tokens with the result, and with the file's own tensors in timm; stop if they differ."
        },
    )


def verify(encoder_dir: str, official: dict[str, Tensor]) -> float:
    """
    Compute tokens twice: with the folder that was written, by stock transformers; and with the tensors of the authors' file,
    by timm.

    Args:
        encoder_dir (`str`): The folder.
        official (`dict[str, torch.Tensor]`): The encoder's tensors in the file, under the names of timm's ViT.

    Returns:
        `float`: the largest difference, over the largest value.
    """
    encoder = AutoModel.from_pretrained(encoder_dir)
    size = encoder.config.image_size
    pixel_values = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = reference_tokens(official, encoder.config.num_attention_heads, pixel_values)
    with torch.no_grad():
        tokens = encoder(pixel_values).last_hidden_state
    return ((tokens - expected).abs().max() / expected.abs().max()).item()


def main() -> None:
    (args,) = HfArgumentParser(ConvertArguments).parse_args_into_dataclasses()
    method, which = get_method(args.method), None if args.encoder == "auto" else args.encoder
    model = method.convert(args.checkpoint, args.num_attention_heads)
    processor = evaluation_processor(
        model.config.backbone_config.image_size,
        args.image_mean,
        args.image_std,
        method.eval_crop_ratio if args.eval_crop_ratio is None else args.eval_crop_ratio,
        method.eval_interpolation,
    )
    export_run(model, processor, args.output_dir, which)
    print(f"{args.output_dir} holds the encoder and, in pretraining/, the whole model; every tensor was carried over.")
    error = None
    if args.verify:
        error = verify(args.output_dir, method.official_encoder(args.checkpoint, which))
        print(
            f"Tokens of stock transformers from {args.output_dir} and of timm from the file differ by {error:.1e} of "
            "the largest."
        )
        if not error < TOLERANCE:
            sys.exit(f"That is more than {TOLERANCE:.0e}: the conversion is wrong, or the file is not what it seems.")
    card = write_conversion_card(args.output_dir, method, model, args.checkpoint, which, error)
    print(f"{args.output_dir}/README.md is the model card. License of the weights: {card.data.license}.")


if __name__ == "__main__":
    main()
