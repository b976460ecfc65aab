"""What a run or a conversion leaves behind: a folder that is ready for the Hub."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    BaseImageProcessor,
    BitImageProcessor,
    PreTrainedModel,
    TimmWrapperPreTrainedModel,
    ViTImageProcessor,
)
from transformers.image_utils import PILImageResampling

from ..models import SSLPreTrainedModel


# From this size on images are photos, and the border that a center crop leaves out rarely matters.
_CENTER_CROP_FROM = 128
_CENTER_CROP_RATIO = 0.875


def evaluation_processor(
    image_size: int,
    mean: list[float],
    std: list[float],
    crop_ratio: float | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> ViTImageProcessor | BitImageProcessor:
    """
    The evaluation transform as an image processor of stock transformers, 4 or 5.

    Args:
        image_size (`int`):
            Side of the model's images, in pixels.
        mean (`list[float]`):
            Mean of each channel, in [0, 1].
        std (`list[float]`):
            Standard deviation of each channel, in [0, 1].
        crop_ratio (`float`, *optional*):
            Share of the shorter side that a central crop keeps: 0.875 resizes the shorter side to 256 for a crop of
            224, and to 36 (rounded down) for one of 32. 1 resizes the whole image to a square. Unset, 0.875 from 128
            pixels on, else 1.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            `"bilinear"` or `"bicubic"`.

    Returns:
        `transformers.ViTImageProcessor`; with a crop, `transformers.BitImageProcessor`: in transformers 4 the former
        resizes to squares only.

    Raises:
        `ValueError`: the ratio is not in (0, 1].
    """
    if crop_ratio is None:
        crop_ratio = _CENTER_CROP_RATIO if image_size >= _CENTER_CROP_FROM else 1.0
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"crop_ratio={crop_ratio} must lie in (0, 1].")
    square = {"height": image_size, "width": image_size}
    shared: dict[str, Any] = {
        "do_convert_rgb": True,
        "resample": getattr(PILImageResampling, interpolation.upper()),
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if crop_ratio == 1:
        return ViTImageProcessor(size=square, do_center_crop=False, **shared)
    shorter_side = {"shortest_edge": int(image_size / crop_ratio + 1e-6)}
    return BitImageProcessor(size=shorter_side, crop_size=square, **shared)


def timm_transform(processor: Any) -> dict[str, Any]:
    """
    An evaluation transform in timm's words, for those who load the encoder with timm.

    Args:
        processor (`BaseImageProcessor`): Made by [`evaluation_processor`].

    Returns:
        `dict[str, Any]`: a `pretrained_cfg`.
    """
    crop, size = processor.crop_size, processor.size
    side = crop["height"] if processor.do_center_crop else size["height"]
    ratio = side / size["shortest_edge"] if processor.do_center_crop else 1.0
    if processor.do_center_crop and int(side / ratio) < size["shortest_edge"]:  # timm divides, and rounds down
        ratio = math.nextafter(ratio, 0.0)
    return {
        "input_size": [3, side, side],
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": PILImageResampling(processor.resample).name.lower(),
        "crop_pct": ratio,
        "crop_mode": "center" if processor.do_center_crop else "squash",
    }


def save_published(model: PreTrainedModel, processor: BaseImageProcessor, folder: str | Path) -> None:
    """
    Write a model of stock transformers and its processor; one of timm in a folder that timm loads as well.

    Args:
        model (`transformers.PreTrainedModel`): An encoder or a classifier.
        processor (`BaseImageProcessor`): The evaluation transform.
        folder (`str` or `Path`): The folder; made if there is none.
    """
    state_dict = None
    if isinstance(model, TimmWrapperPreTrainedModel):
        num_classes = model.config.num_labels
        timm_model: Any = model.timm_model
        # What timm looks up to change the channels or the classes.
        layers = {name: timm_model.pretrained_cfg.get(name) for name in ("first_conv", "classifier")}
        model.config.pretrained_cfg = layers | timm_transform(processor) | {"num_classes": num_classes}
        model.config.label_names = list((model.config.id2label or {}).values()) if num_classes else []
        model.config.model_args = model.config.model_args or {}  # timm stops at null
        state_dict = timm_model.state_dict()
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)


def export_run(
    model: SSLPreTrainedModel,
    processor: BaseImageProcessor,
    output_dir: str | Path,
    which: Literal["student", "teacher"] | None = None,
) -> None:
    """
    Write the encoder and its processor into `output_dir`, in the format of stock transformers, and the whole
    pretraining model into `output_dir/pretraining`.

    Args:
        model ([`SSLPreTrainedModel`]):
            The trained model.
        processor (`BaseImageProcessor`):
            The evaluation transform.
        output_dir (`str` or `Path`):
            The folder; made if there is none.
        which (`str`, *optional*):
            `"student"` or `"teacher"`; unset, the encoder that the method recommends.
    """
    output_dir = Path(output_dir)
    save_published(model.export_encoder(which), processor, output_dir)
    model.save_pretrained(output_dir / "pretraining", save_original_format=False)
    model.save_state(output_dir / "pretraining")
    processor.save_pretrained(output_dir / "pretraining")


def clear_earlier_model(folder: str | Path) -> None:
    """
    Delete what is about the model that a folder held before: its card first, so that a run that is cut off never looks
    finished; then reports, pictures and ONNX files. Files that the new model replaces anyway, and all others, stay.

    Args:
        folder (`str` or `Path`): The folder of a run.
    """
    of_a_model = ("README.md", "evaluation.md", "figures/**/*.png", "figures/**/*.csv", "onnx/model.onnx*")
    for path in (path for pattern in of_a_model for path in sorted(Path(folder).glob(pattern))):
        path.unlink()


def published_branch(
    model: SSLPreTrainedModel, which: Literal["student", "teacher"] | None = None
) -> Literal["student", "teacher"]:
    """
    Which of a model's two encoders is published.

    Args:
        model ([`SSLPreTrainedModel`]): A model with a teacher.
        which (`str`, *optional*): As for [`export_run`]; unset, the one that the method recommends is found by its weights.

    Returns:
        `str`: `"student"` or `"teacher"`.
    """
    if which is not None:
        return which
    recommended, student = (model.export_encoder(branch).state_dict() for branch in (None, "student"))
    is_student = all(torch.equal(tensor, student[name]) for name, tensor in recommended.items())
    return "student" if is_student else "teacher"


def write_results(
    output_dir: str | Path, results: dict[str, Any], update: bool = False, replaces: str | None = None
) -> None:
    """
    Write `all_results.json`.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.
        results (`dict[str, Any]`):
            Numbers and settings by name.
        update (`bool`, *optional*, defaults to `False`):
            Keep numbers that are already there under other names: those of the run that is evaluated again.
        replaces (`str`, *optional*):
            With `update`, a regular expression of the beginnings of names that are not kept: those of the same protocol.
    """
    path = Path(output_dir) / "all_results.json"
    earlier = json.loads(path.read_text()) if update and path.is_file() else {}
    kept = {name: value for name, value in earlier.items() if replaces is None or not re.match(replaces, name)}
    write_atomically(path, json.dumps(kept | results, indent=2, sort_keys=True) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """
    Write a file, so that it is never seen in part; its folder is made if need be.

    Args:
        path (`Path`): The file.
        text (`str`): What it is to hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8", newline="")
    part.replace(path)


def csv_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """
    A table as a csv.

    Args:
        header (`Sequence[str]`): Names of the columns.
        rows (`Iterable[Sequence[Any]]`): Their values.

    Returns:
        `str`
    """
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    return table.getvalue()
