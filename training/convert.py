"""Turn an official checkpoint of a method's authors into a folder that stock transformers loads.

python training/convert.py --method relvit --checkpoint best.ckpt --output_dir relvit-vit-small --verify
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, HfArgumentParser

from hf_ssl.hub import evaluation_processor, export_run, write_conversion_card
from hf_ssl.models import METHODS, Method, SSLPreTrainedModel, get_method
from hf_ssl.models.conversion import reference_tokens


IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


TOLERANCE = 1e-5
REFERENCES = {"swin": "timm", "t2t_vit": "timm's layers", "alexnet_bn": "plain torch layers"}


@dataclass
class ConvertArguments:
    """What to convert, and where to."""

    checkpoint: str = field(metadata={"help": "The authors' file. It is read without running any code in it."})
    output_dir: str = field(metadata={"help": "Folder of the converted model."})
    method: str = field(default="relvit", metadata={"help": f"The method: {', '.join(METHODS)}."})
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Heads of the attention, where the checkpoint's sizes do not tell them."}
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean the model was trained with; unset, the authors' for images of this size (APS pretrains at 32 "
            "pixels with CIFAR's), or else ImageNet's."
        },
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation it was trained with; unset, as --image_mean."}
    )
    eval_crop_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the shorter side that the evaluation's central crop keeps; 1 resizes the whole image. Unset, "
            "that of the method (PatchMix, PW-Self: 0.875), or else 0.875 from 128 pixels on and 1 below."
        },
    )
    encoder: str = field(
        default="auto", metadata={"help": "Which encoder to publish.", "choices": ["auto", "student", "teacher"]}
    )
    verify: bool = field(
        default=False,
        metadata={
            "help": "Compute tokens (of a classifier, logits; of encoders that are no ViT, features) with the result, and "
            "with the file's own tensors in timm or torchvision; stop if they differ."
        },
    )


@torch.no_grad()
def verify(folder: str, official: dict[str, Tensor], layer_norm_eps: float) -> float:
    """
    Compute tokens twice: with the folder that was written, by stock transformers; and with the tensors of the authors' file,
    by timm. Of a classifier, logits.

    Args:
        folder (`str`): The folder.
        official (`dict[str, torch.Tensor]`): The encoder's tensors in the file, under the names of timm's ViT, and those of
            a classifier (`head.weight`, `head.bias`), if it is one.
        layer_norm_eps (`float`): Epsilon of the LayerNorms.

    Returns:
        `float`: the largest difference, over the largest value.
    """
    head = {name: official.pop(f"head.{name}") for name in ("weight", "bias") if f"head.{name}" in official}
    model = (AutoModelForImageClassification if head else AutoModel).from_pretrained(folder)
    size, heads = model.config.image_size, model.config.num_attention_heads
    pixel_values = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, output = reference_tokens(official, heads, layer_norm_eps, pixel_values), model(pixel_values)
    actual = output.logits if head else output.last_hidden_state
    expected = F.linear(expected[:, 0], **head) if head else expected
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def verify_features(folder: str, method: Method, checkpoint: str, num_attention_heads: int | None) -> float:
    """
    Compute pooled features twice: with the folder that was written, by `AutoModel`; and with the tensors of the authors'
    file, in an independent implementation.

    Args:
        folder (`str`): The folder.
        method ([`~hf_ssl.models.Method`]): The method.
        checkpoint (`str`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the checkpoint's sizes do not tell them.

    Returns:
        `float`: the largest difference, over the largest value.
    """
    assert method.reference_features is not None
    model = AutoModel.from_pretrained(folder)
    size = model.config.image_size
    pixel_values = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = method.reference_features(checkpoint, pixel_values, num_attention_heads)
    actual = model(pixel_values).pooler_output.flatten(1)
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def make_processor(args: ConvertArguments, method: Method, model: Any) -> Any:
    """The evaluation transform; what the arguments leave open is as the authors have it."""
    pretrained = isinstance(model, SSLPreTrainedModel)
    size = (model.config.backbone_config if pretrained else model.config).image_size
    mean, std = method.image_statistics.get(size, IMAGENET) if pretrained else IMAGENET
    return evaluation_processor(
        size,
        mean if args.image_mean is None else args.image_mean,
        std if args.image_std is None else args.image_std,
        method.crop_ratio(size, args.eval_crop_ratio),
        method.eval_interpolation,
    )


def main() -> None:
    (args,) = HfArgumentParser(ConvertArguments).parse_args_into_dataclasses()
    method, which = get_method(args.method), None if args.encoder == "auto" else args.encoder
    model = method.convert(args.checkpoint, args.num_attention_heads)
    processor = make_processor(args, method, model)
    if isinstance(model, SSLPreTrainedModel):
        export_run(model, processor, args.output_dir, which)
        content, compared = "the encoder and, in pretraining/, the whole model", "Tokens"
    else:
        if which is not None:
            sys.exit(f"{args.checkpoint} is a classifier, which has one encoder: leave --encoder {which} out.")
        model.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        content, compared = "the classifier", "Logits"
    print(f"{args.output_dir} holds {content}; every tensor was carried over.")
    error = None
    if args.verify:
        reference, encoder = "timm", getattr(model.config, "backbone_config", model.config)
        if encoder.model_type == "vit" and method.official_encoder is not None:
            error = verify(args.output_dir, method.official_encoder(args.checkpoint, which), encoder.layer_norm_eps)
        else:
            error = verify_features(args.output_dir, method, args.checkpoint, args.num_attention_heads)
            compared, reference = "Features", REFERENCES.get(encoder.model_type, "torchvision")
        print(
            f"{compared} of transformers from {args.output_dir} and of {reference} from the file differ by {error:.1e} of "
            "the largest."
        )
        if not error < TOLERANCE:
            sys.exit(f"That is more than {TOLERANCE:.0e}: the conversion is wrong, or the file is not what it seems.")
    card = write_conversion_card(args.output_dir, method, model, args.checkpoint, which, error)
    print(f"{args.output_dir}/README.md is the model card. License of the weights: {card.data.license}.")


if __name__ == "__main__":
    main()
