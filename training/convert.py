"""Turn an official checkpoint of a method's authors into a folder that stock transformers loads.

python training/convert.py --method relvit --checkpoint best.ckpt --output_dir relvit-vit-small
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models import METHODS, get_method


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
            "0.875 from 128 pixels on, else 1."
        },
    )
    encoder: str = field(
        default="auto", metadata={"help": "Which encoder to publish.", "choices": ["auto", "student", "teacher"]}
    )


def main() -> None:
    (args,) = HfArgumentParser(ConvertArguments).parse_args_into_dataclasses()
    model = get_method(args.method).convert(args.checkpoint, args.num_attention_heads)
    processor = evaluation_processor(
        model.config.backbone_config.image_size, args.image_mean, args.image_std, args.eval_crop_ratio
    )
    export_run(model, processor, args.output_dir, None if args.encoder == "auto" else args.encoder)
    print(f"{args.output_dir} holds the encoder and, in pretraining/, the whole model; every tensor was carried over.")


if __name__ == "__main__":
    main()
