"""Write an encoder, or a classifier, as ONNX: for onnxruntime, browsers and whatever else runs it without torch.

    python training/export.py --model outputs/quickstart
    python training/export.py --model facebook/dino-vits16 --output_dir dino-onnx

The file, onnx/model.onnx, takes pixel_values in batches of any size. Of an encoder it gives last_hidden_state and, where
there is one, pooler_output; of a classifier, logits. It is checked with onnxruntime before it is written.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    HfArgumentParser,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME, cached_file

from hf_ssl.evaluation import FeatureSpec, load_encoder
from hf_ssl.evaluation.arguments import ModelArguments, resized
from hf_ssl.hub import OnnxFile, export_onnx, require_onnx
from hf_ssl.hub.onnx_export import CHECKED_BATCHES
from hf_ssl.hub_errors import clear_errors


FEATURES: Literal["image-feature-extraction"] = "image-feature-extraction"
CLASSIFICATION: Literal["image-classification"] = "image-classification"
Compute = Callable[[Tensor], Mapping[str, Any]]


@dataclass(kw_only=True)
class ExportArguments(ModelArguments):
    """What to export, and where to."""

    model: str = field(
        metadata={"help": "A folder or an id of the Hub: an encoder that AutoModel loads, or a classifier of images."}
    )
    format: Literal["onnx"] = field(default="onnx", metadata={"help": "The format to write."})
    task: Literal["auto", "image-feature-extraction", "image-classification"] = field(
        default="auto",
        metadata={
            "help": "What it is to be used for; auto: classification, if the model says that it is a classifier."
        },
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder that gets onnx/model.onnx, configuration and image processor; unset, that of the model."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Of an encoder, side of the images in pixels; unset, what its processor says."}
    )


def main(argv: Sequence[str] | None = None) -> OnnxFile:
    """Export, check, and write."""
    (args,) = HfArgumentParser(ExportArguments).parse_args_into_dataclasses(argv)
    require_onnx()
    published_task = task_of(args)
    args = replace(args, task=published_task if args.task == "auto" else args.task)
    folder = output_folder(args, published_task)
    model, compute, processor, feature = load_classifier(args) if args.task == CLASSIFICATION else load_features(args)
    gray = processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    exported = export_onnx(model, compute, tuple(gray.shape[1:]), folder / "onnx" / "model.onnx")
    if not is_own_folder(args):
        copy_settings(args, folder)
        if args.image_size is not None:
            processor.save_pretrained(folder)
    inputs, outputs = (
        ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in shapes.items())
        for shapes in (exported.inputs, exported.outputs)
    )
    print(f"{exported.path} (opset {exported.opset}, float32) turns {inputs} into {outputs}.")
    print(
        f"onnxruntime and torch differ by {exported.error:.1e} of the largest value at most, in batches of "
        f"{', '.join(map(str, CHECKED_BATCHES))} images."
    )
    if feature is not None:
        print(f"The feature of an image: {FeatureSpec(feature)}.")
    return exported


def task_of(args: ExportArguments) -> Literal["image-feature-extraction", "image-classification"]:
    """What the model is for, by what its configuration says."""
    with clear_errors(f"{args.model} cannot be exported.", args.model, args.revision):
        config = AutoConfig.from_pretrained(
            args.model, revision=args.revision, trust_remote_code=args.trust_remote_code
        )
    architectures = getattr(config, "architectures", None) or ()
    return CLASSIFICATION if any(name.endswith("ForImageClassification") for name in architectures) else FEATURES


def output_folder(args: ExportArguments, published_task: str) -> Path:
    """Where to write. What is exported has to go with the other files there."""
    if args.output_dir is None and not Path(args.model).expanduser().is_dir():
        raise ValueError(f"{args.model} is no folder that ONNX could be added to: set --output_dir.")
    is_published = args.encoder == "auto" and args.image_size is None and args.task == published_task
    if is_own_folder(args) and not is_published:
        raise ValueError(
            "The other files of this folder are about the published model at its own image size: with another --encoder, "
            "--image_size or --task, set --output_dir to another one."
        )
    folder = Path(args.output_dir or args.model).expanduser()
    if not is_own_folder(args) and (folder / SAFE_WEIGHTS_NAME).is_file():
        raise ValueError(f"--output_dir {folder} holds another model, whose files would be mixed with this one's.")
    return folder


def is_own_folder(args: ExportArguments) -> bool:
    """Whether the folder of the model is written to."""
    folders = (Path(path).expanduser().resolve() for path in (args.output_dir or args.model, args.model))
    return len(set(folders)) == 1


def copy_settings(args: ExportArguments, folder: Path) -> None:
    """Configuration and image processor, as they are published."""
    for name in (CONFIG_NAME, IMAGE_PROCESSOR_NAME):
        file = cached_file(args.model, name, revision=args.revision, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            shutil.copyfile(file, folder / name)


def load_features(args: ExportArguments) -> tuple[PreTrainedModel, Compute, BaseImageProcessor, str | None]:
    """An encoder, what is exported of it, its image processor, and what its feature of an image is."""
    encoder = load_encoder(
        args.model, revision=args.revision, branch=args.encoder, trust_remote_code=args.trust_remote_code
    )
    if args.image_size is not None:
        encoder.processor = resized(encoder.processor, args.image_size)
    return encoder.model, encoder.outputs, encoder.processor, encoder.feature


def load_classifier(args: ExportArguments) -> tuple[PreTrainedModel, Compute, BaseImageProcessor, str | None]:
    """The same of a classifier, which has no feature to tell of."""
    if args.encoder != "auto" or args.image_size is not None:
        raise ValueError("A classifier is exported as it is published: leave --encoder and --image_size out.")
    source: dict[str, Any] = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    with clear_errors(f"{args.model} cannot be exported.", args.model, args.revision):
        model, info = AutoModelForImageClassification.from_pretrained(
            args.model, **source, dtype=torch.float32, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(args.model, **source)
    if info["missing_keys"]:
        raise ValueError(
            f"{args.model} is no trained classifier: {', '.join(sorted(info['missing_keys'])[:3])} would be random."
        )
    return model.eval(), model, processor, None


if __name__ == "__main__":
    main()
