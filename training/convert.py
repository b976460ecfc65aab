"""Turn an official checkpoint of a method's authors into a folder that transformers loads.

python training/convert.py --checkpoint best.ckpt --output_dir relvit-vit-small --verify
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, HfArgumentParser

from hf_ssl.hub import (
    evaluation_processor,
    export_run,
    find_checkpoint,
    is_classifier,
    save_published,
    whole_folder,
    write_conversion_card,
)
from hf_ssl.models import METHODS, Method, SSLPreTrainedModel, get_method, recognize_checkpoint
from hf_ssl.models.conversion import must_fit


IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TOLERANCE = 1e-5


@dataclass
class ConvertArguments:
    """What to convert, and where to."""

    checkpoint: str = field(
        metadata={
            "help": "The authors' file, or one of the Hub: org/name/path/in/it, org/name@revision/path/in/it. It is read "
            "without running any code in it."
        }
    )
    output_dir: str = field(metadata={"help": "Folder of the converted model: a new one, or an earlier conversion."})
    method: str | None = field(
        default=None,
        metadata={"help": f"The method: {', '.join(METHODS)}. Unset, it is recognized by the names in the file."},
    )
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
            "help": "Compute tokens (of a classifier, logits; of a ConvNet, pooled features) with the result, and with the "
            "file's own tensors in another implementation: timm's, torchvision's, or plain torch. Stop if they differ."
        },
    )


def choose_method(name: str | None, path: Path) -> Method:
    """The method of this name, or the one that the file is recognized to be of; they must not contradict each other."""
    given = None if name is None else get_method(name)
    recognized = recognize_checkpoint(path)
    if given is None and len(recognized) != 1:
        raise ValueError(
            f"{path} is not recognized as the checkpoint of a method: say which authors it is of, --method "
            f"{'|'.join(recognized or METHODS)}."
        )
    if given is not None and recognized and name not in recognized:
        raise ValueError(
            f"{path} is a checkpoint of {get_method(recognized[0]).title}, and not of {given.title}: --method "
            f"{recognized[0]}."
        )
    return given or get_method(recognized[0])


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


@torch.no_grad()
def verify(folder: Path, is_classifier: bool, reference: Callable[[Tensor], Tensor]) -> float:
    """
    Compute something of random pixels twice: with the folder that was written, by the Auto classes of transformers; and with
    the tensors of the authors' file, in another implementation.

    Args:
        folder (`Path`): The folder.
        is_classifier (`bool`): Whether it holds a classifier.
        reference (`Callable`): Images to logits, if it does, else to tokens or pooled features.

    Returns:
        `float`: the largest difference, over the largest value.
    """
    model: Any = (AutoModelForImageClassification if is_classifier else AutoModel).from_pretrained(folder)
    size = model.config.image_size
    pixel_values = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    output, expected = model(pixel_values), reference(pixel_values)
    if is_classifier:
        actual = output.logits
    else:
        actual = output.last_hidden_state if expected.ndim == 3 else output.pooler_output.flatten(1)
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def convert(args: ConvertArguments) -> None:
    """Write the folder, or nothing."""
    which = None if args.encoder == "auto" else args.encoder
    with whole_folder(args.output_dir) as folder:
        checkpoint = find_checkpoint(args.checkpoint)
        with must_fit(checkpoint.path, "any method"):
            method = choose_method(args.method, checkpoint.path)
        with must_fit(checkpoint.path, method.title):
            model = method.convert(checkpoint.path, args.num_attention_heads)
        processor = make_processor(args, method, model)
        if isinstance(model, SSLPreTrainedModel):
            export_run(model, processor, folder, which)
            content = "the encoder and, in pretraining/, the whole model"
        elif which is not None:
            raise ValueError(f"{args.checkpoint} holds one encoder: leave --encoder {which} out.")
        else:
            save_published(model, processor, folder)
            content = (
                "the classifier" if is_classifier(model) else "the encoder; the file holds no heads of a pretraining"
            )
        print(f"{checkpoint.name} was read as a file of {method.title}; every tensor was carried over.")
        error = None
        if args.verify:
            config = getattr(model.config, "backbone_config", model.config)
            reference = partial(method.reference, checkpoint.path, config=config, which=which)
            error = verify(folder, is_classifier(model), reference)
            print(
                f"What the result and what the file's own tensors compute differ by {error:.1e} of the largest value."
            )
            if not error < TOLERANCE:
                raise ValueError(
                    f"That is more than {TOLERANCE:.0e}: the conversion is wrong, or the file is not what it seems."
                )
        card = write_conversion_card(folder, method, model, checkpoint, which, error)
    print(f"{args.output_dir} holds {content}.")
    print(f"{args.output_dir}/README.md is the model card. License of the weights: {card.data.license}.")


def main() -> None:
    (args,) = HfArgumentParser(ConvertArguments).parse_args_into_dataclasses()
    try:
        convert(args)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
