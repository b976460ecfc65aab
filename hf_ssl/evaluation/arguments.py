"""What the scripts that evaluate an encoder have in common: their arguments, and what these mean."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.image_utils import PILImageResampling, SizeDict

from ..arguments import DataArguments, dataset_name
from ..data import ImageData, load_image_data
from ..hub.export import evaluation_processor
from .baselines import pixels
from .encoders import Branch, FeatureSpec, Interpolation, LoadedEncoder, load_encoder
from .feature_cache import cached_features
from .features import LARGEST_PIXELS
from .thumbnails import ThumbnailProcessor


_SIZES = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
_OF_ENCODERS = ("revision", "encoder", "random_weights", "pooling", "eval_crop_ratio", "position_interpolation")
OF_DATASETS = ("dataset", "dataset_revision", "max_train_samples", "max_test_samples", "skip_bad_images")
_VALUES = ("do_rescale", "do_normalize", "image_mean", "image_std")


@dataclass(kw_only=True)
class ModelArguments:
    """Which encoder."""

    model: str = field(
        metadata={"help": "The encoder: a folder or an id of the Hub that AutoModel loads, whoever trained it."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    encoder: Branch = field(
        default="auto",
        metadata={"help": "Which encoder of a folder of hf_ssl: the published one (auto), student or teacher."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether code that lies beside the model's weights may be run."}
    )


@dataclass(kw_only=True)
class EncoderArguments(ModelArguments, DataArguments):
    """Which encoder is evaluated, on what (images with labels), and by which feature."""

    model: str = field(
        metadata={
            "help": "The encoder: a folder or an id of the Hub that AutoModel loads, whoever trained it; or pixels, for the "
            "pixels themselves in the place of features."
        }
    )
    random_weights: bool = field(
        default=False,
        metadata={
            "help": "Random weights in the place of the encoder's own: what its architecture is worth untrained."
        },
    )
    pooling: Literal["auto", "class_token", "patch_mean", "pooled"] = field(
        default="auto",
        metadata={
            "help": "The feature of an image; auto: what the method names in pretraining/config.json, else the class token "
            "of a transformer that ends with a LayerNorm, and the pooled output of other encoders."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images, in pixels; unset, what the image processor says."}
    )
    eval_crop_ratio: float | None = field(
        default=None,
        metadata={
            "help": "With --image_size, the share of the shorter side that the central crop keeps; 1 resizes the whole "
            "image. Unset, 0.875 from 128 pixels on and 1 below."
        },
    )
    position_interpolation: Interpolation = field(
        default="auto",
        metadata={
            "help": "How a ViT's positions are resized for other image sizes than its own: as transformers does (size), as "
            "the originals do (scale_factor), or as in its pretraining, if the folder tells it (auto)."
        },
    )
    max_test_samples: int | None = field(default=None, metadata={"help": "A random subset of the test images."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where features are kept; unset, hf_ssl/features in the folder HF_HOME."}
    )

    def load_encoder(self, seed: int, projects: bool = False) -> LoadedEncoder:
        """
        Load the encoder, with the image processor that the arguments ask for, on this process's device.

        Args:
            seed (`int`): Seed of random weights.
            projects (`bool`, *optional*, defaults to `False`): Whether its features are to be projected.

        Returns:
            [`LoadedEncoder`]

        Raises:
            `ValueError`: it cannot be loaded, or what is asked for does not go together.
        """
        if self.model == "pixels":
            self.refuse(_OF_ENCODERS, "Pixels have no weights, positions or crops")
            return pixels(self.image_size or LARGEST_PIXELS).to(PartialState().device)
        encoder = load_encoder(
            self.model,
            revision=self.revision,
            branch=self.encoder,
            projects=projects,
            position_interpolation=self.position_interpolation,
            trust_remote_code=self.trust_remote_code,
        )
        if self.random_weights:
            encoder.reset(seed)
        if self.image_size is not None:
            try:
                encoder.processor = resized(encoder.processor, self.image_size, self.eval_crop_ratio)
            except ValueError as error:
                raise ValueError(f"--image_size {self.image_size} cannot be set for {self.model}. {error}") from error
        elif self.eval_crop_ratio is not None:
            raise ValueError(f"--eval_crop_ratio {self.eval_crop_ratio} goes with --image_size: set both, or neither.")
        return encoder.to(PartialState().device)

    def refuse(self, names: Iterable[str], why: str) -> None:
        """
        Refuse arguments that would have no effect.

        Args:
            names (`Iterable[str]`): Their names.
            why (`str`): What makes them useless, for the message.

        Raises:
            `ValueError`: one of them was set.
        """
        defaults = {item.name: item.default for item in fields(self)}
        useless = [f"--{name}" for name in names if getattr(self, name) != defaults[name]]
        if useless:
            raise ValueError(f"{why}: leave {', '.join(useless)} out.")

    def load_data(self, seed: int) -> ImageData:
        """
        Load the images.

        Args:
            seed (`int`): Seed of subsets.

        Returns:
            [`~hf_ssl.data.ImageData`]: with labels and a test split.
        """
        data = load_image_data(
            self.dataset,
            revision=self.dataset_revision,
            max_train_samples=self.max_train_samples,
            max_test_samples=self.max_test_samples,
            seed=seed,
            skip_bad_images=self.skip_bad_images,
        )
        if data.num_classes is None:
            raise ValueError(f"{self.dataset} has no labels, and so there is no accuracy to measure.")
        if data.test is None:
            raise ValueError(f"{self.dataset} has a single image, and none to test with.")
        return data

    def feature(self, encoder: LoadedEncoder, projected: bool = False) -> FeatureSpec:
        """The feature that the arguments ask for."""
        return FeatureSpec(encoder.feature if self.pooling == "auto" else self.pooling, projected=projected)

    def protocol(self, encoder: LoadedEncoder, data: ImageData, train: Any, test: Any) -> dict[str, Any]:
        """
        What was measured, for a report.

        Args:
            encoder ([`LoadedEncoder`]): The encoder.
            data ([`~hf_ssl.data.ImageData`]): The images.
            train (`torch.utils.data.Dataset`): The source of the training images.
            test (`torch.utils.data.Dataset`): The source of the test images.

        Returns:
            `dict[str, Any]`: names and plain values.
        """
        return {
            **self.encoder_protocol(encoder),
            "dataset": dataset_name(self.dataset),
            **({"dataset_revision": data.revision} if data.revision else {}),
            "split": data.test_name,
            "num_classes": data.num_classes,
            "num_train_images": len(train),
            "num_test_images": len(test),
            # What images these are, see `fingerprint` of the sources.
            "train_fingerprint": train.fingerprint()[:16],
            "test_fingerprint": test.fingerprint()[:16],
        }

    def encoder_protocol(self, encoder: LoadedEncoder) -> dict[str, Any]:
        """
        Which encoder was measured, and how it was shown images.

        Args:
            encoder ([`LoadedEncoder`]): The encoder.

        Returns:
            `dict[str, Any]`: names and plain values.
        """
        return {
            "model": encoder.name,
            **({"model_revision": encoder.revision} if encoder.revision else {}),
            "encoder": encoder.branch,
            "encoder_fingerprint": encoder.fingerprint()[:16],
            "image_processor": processor_protocol(encoder.processor),
            **({"position_interpolation": encoder.position_interpolation} if self.image_size else {}),
        }


@dataclass
class EvaluationArguments(EncoderArguments):
    """The same, for a script that trains nothing by itself."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder whose all_results.json gets the numbers; unset, they are printed only."},
    )
    batch_size: int = field(default=256, metadata={"help": "Images in a forward pass."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read the images."})
    bf16: bool = field(default=False, metadata={"help": "Compute features in bfloat16."})
    seed: int = field(default=0, metadata={"help": "Seed of the subsets, and of all that is drawn."})

    def cached(self, encoder: LoadedEncoder, images: Any, specs: list[FeatureSpec]) -> list[Tensor]:
        """Features of images, computed or read as the arguments say, see [`cached_features`]."""
        return cached_features(
            encoder,
            images,
            specs,
            folder=self.cache_dir,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            bf16=self.bf16,
        )

    def is_own_folder(self) -> bool:
        """Whether results are written into the folder of the model that they are about."""
        folders = {Path(path).expanduser().resolve() for path in (self.model, str(self.output_dir))}
        return len(folders) == 1 and not self.random_weights

    def figures_folder(self, encoder: LoadedEncoder) -> str:
        """Where pictures are, in the output folder: those of another model must not get into a model's card."""
        return "figures" if self.is_own_folder() else "figures/" + re.sub(r"[^\w.-]+", "-", encoder.name)


def normalization(processor: Any) -> tuple[list[float], list[float]]:
    """
    What an image processor of transformers, or of timm, normalizes pixels with.

    Args:
        processor (`BaseImageProcessor`): The processor.

    Returns:
        `tuple[list[float], list[float]]`: mean and standard deviation of each channel, in [0, 1].

    Raises:
        `ValueError`: it does not normalize, or does other things to the pixels as well.
    """
    of_timm = getattr(processor, "data_config", {})
    mean, std = (getattr(processor, f"image_{name}", None) or of_timm.get(name) for name in ("mean", "std"))
    if not mean or not std or getattr(processor, "do_normalize", True) is False:
        raise ValueError("The image processor does not normalize.")
    plain = {"do_rescale": True, "rescale_factor": 1 / 255, "rescale_offset": False, "do_flip_channel_order": False}
    for name, usual in plain.items():
        value = getattr(processor, name, None)
        if value is not None and value != usual:
            raise ValueError(f"Its image processor does more than to resize, crop and normalize: {name} is {value}.")
    return list(mean), list(std)


def resized(processor: Any, image_size: int, crop_ratio: float | None = None) -> BaseImageProcessor:
    """
    The evaluation transform at another image size, with the normalization and the kind of resizing that a processor has.

    Args:
        processor (`BaseImageProcessor`): A processor of transformers, or of timm.
        image_size (`int`): Side of the images, in pixels.
        crop_ratio (`float`, *optional*): See [`~hf_ssl.hub.evaluation_processor`].

    Returns:
        `BaseImageProcessor`

    Raises:
        `ValueError`: it does more to an image than to resize, crop and normalize, or resizes in another way.
    """
    mean, std = normalization(processor)
    kind: Any = getattr(processor, "data_config", {}).get("interpolation")
    if kind is None:
        resample = getattr(processor, "resample", None)
        kind = "bilinear" if resample is None else PILImageResampling(resample).name.lower()
    if kind not in ("bilinear", "bicubic"):
        raise ValueError(f"Its image processor resizes by {kind}, and only bilinear and bicubic are known here.")
    return evaluation_processor(image_size, mean, std, crop_ratio, kind)


def processor_protocol(processor: Any) -> dict[str, Any]:
    """What an image processor does to an image, in plain values: of timm's, what its `data_config` says."""
    if isinstance(processor, ThumbnailProcessor):
        return processor.to_dict()
    if hasattr(processor, "data_config"):
        return dict(processor.data_config)
    values = {name: getattr(processor, name, None) for name in (*_SIZES, *_VALUES)}
    if not values["do_center_crop"]:
        del values["crop_size"]
    return {name: dict(value) if isinstance(value, SizeDict) else value for name, value in values.items()}
