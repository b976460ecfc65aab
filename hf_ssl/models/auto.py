"""The methods by name."""

import re
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor
from transformers import AutoConfig, AutoModelForPreTraining, PreTrainedModel

from ..backbones import CONVNETS, SWIN_SIZES, T2T_SIZES, VIT_SIZES
from ..help import help_from_docstring
from .aps import APSConfig, APSForPreTraining, APSViews, APSViewsConfig, convert_aps
from .base import SSLConfig, SSLPreTrainedModel
from .isl import ISLConfig, ISLForPreTraining, ISLViews, ISLViewsConfig, convert_isl
from .official_files import load_checkpoint, names_in
from .patchmix import PatchMixConfig, PatchMixForPreTraining, PatchMixViews, PatchMixViewsConfig, convert_patchmix
from .pw_self import PWSelfConfig, PWSelfForPreTraining, PWSelfViews, PWSelfViewsConfig, convert_pw_self
from .relvit import RelViTConfig, RelViTForPreTraining, RelViTViews, RelViTViewsConfig, convert_relvit
from .reported import ReportedResults


# Fields of configurations that are known from something else.
_NO_ARGUMENTS = ("model_type", "modes", "backbone_config", "feature_size", "encoder_fingerprint")


@dataclass(frozen=True)
class Method:
    """
    What makes a method.

    Args:
        config_class (`type`): Its [`SSLConfig`].
        model_class (`type`): Its [`SSLPreTrainedModel`].
        views_class (`type`): Turns a batch of images into the model's inputs.
        views_config_class (`type`): Dataclass of the options of the views.
        convert (`Callable`): Official checkpoint to model; of a fine-tuned one to a classifier of transformers, of an encoder
            alone to that.
        reference (`Callable`): Official checkpoint, images and what is published of it to what the file's own tensors compute
            in another implementation: tokens or pooled features, or logits.
        checkpoint_names (`str`): Regular expression of names that official checkpoints of this method have, and of no other,
            see [`~hf_ssl.models.official_files.names_in`].
        title (`str`): Name for people.
        summary (`str`): What it trains an encoder to do, in a sentence.
        paper (`str`): Title of the paper.
        arxiv (`str`): Number of the paper on arXiv.
        citation (`str`): BibTeX entry.
        backbone_overrides (`dict`, *optional*): What the method fixes in the configuration of a ViT.
        backbones (`tuple[str, ...]`, *optional*): Names of the encoders that it trains; ViTs, where it is unset. `timm/NAME`
            stands for those of timm.
        attention_heads (`dict[str, int]`, *optional*): Heads of a backbone, by name, where the method's differ.
        eval_crop_ratio (`float`, *optional*): Crop of the authors' evaluation, see [`~hf_ssl.hub.evaluation_processor`].
        eval_crop_ratios (`dict[int, float]`, *optional*): The same by image size, where it differs.
        eval_interpolation (`str`, *optional*, defaults to `"bilinear"`): How it resizes, or `"bicubic"`.
        image_statistics (`dict[int, tuple[list[float], list[float]]]`, *optional*): Mean and standard deviation that the
            authors pretrained with, by image size, where they are not ImageNet's.
        reported ([`ReportedResults`], *optional*): What the authors report.
    """

    config_class: type[SSLConfig]
    model_class: type[SSLPreTrainedModel]
    views_class: type
    views_config_class: type
    convert: Callable[..., PreTrainedModel]
    reference: Callable[..., Tensor]
    checkpoint_names: str
    title: str
    summary: str
    paper: str
    arxiv: str
    citation: str
    backbone_overrides: dict[str, Any] = field(default_factory=dict)
    backbones: tuple[str, ...] = tuple(VIT_SIZES)
    attention_heads: dict[str, int] = field(default_factory=dict)
    eval_crop_ratio: float | None = None
    eval_crop_ratios: dict[int, float] = field(default_factory=dict)
    eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    image_statistics: dict[int, tuple[list[float], list[float]]] = field(default_factory=dict)
    reported: ReportedResults | None = None

    def crop_ratio(self, image_size: int, given: float | None = None) -> float | None:
        """The crop of evaluations for images of this size: the given one, or else the authors'."""
        return self.eval_crop_ratios.get(image_size, self.eval_crop_ratio) if given is None else given


METHODS: dict[str, Method] = {
    "relvit": Method(
        config_class=RelViTConfig,
        model_class=RelViTForPreTraining,
        views_class=RelViTViews,
        views_config_class=RelViTViewsConfig,
        convert=convert_relvit.convert,
        reference=convert_relvit.reference,
        checkpoint_names=r"(^|\.)(rel_head|abs_pos_head|dist_head|angle_head|clf_head)\.",
        backbone_overrides={"layer_norm_eps": 1e-6},
        backbones=(*VIT_SIZES, *SWIN_SIZES, *T2T_SIZES, "timm/NAME"),
        title="RelViT",
        summary=(
            "Every patch of an image learns to tell in which direction each other patch lies, and which place of the image "
            "it comes from itself."
        ),
        paper="Where are my Neighbors? Exploiting Patches Relations in Self-Supervised Vision Transformer",
        arxiv="2206.00481",
        citation="""@inproceedings{Camporese2022WhereAM,
  title     = {Where are my Neighbors? Exploiting Patches Relations in Self-Supervised Vision Transformer},
  author    = {Camporese, Guglielmo and Izzo, Elena and Ballan, Lamberto},
  booktitle = {British Machine Vision Conference (BMVC)},
  year      = {2022}
}""",
    ),
    "patchmix": Method(
        config_class=PatchMixConfig,
        model_class=PatchMixForPreTraining,
        views_class=PatchMixViews,
        views_config_class=PatchMixViewsConfig,
        convert=convert_patchmix.convert,
        reference=convert_patchmix.reference,
        checkpoint_names=r"(^|\.)base_encoder\.patch_embed\.|^acc_best$|^\(module\)\.patch_embed\.",
        backbone_overrides={"layer_norm_eps": 1e-6},
        attention_heads={"vit-small": 12},  # as in MoCo v3
        eval_crop_ratio=0.875,
        eval_interpolation="bicubic",
        title="PatchMix",
        summary=(
            "Images whose patches come from several images learn to be as similar to each of these, and to each other, as "
            "the share that they have in common."
        ),
        paper="Inter-Instance Similarity Modeling for Contrastive Learning",
        arxiv="2306.12243",
        citation="""@article{shen2023inter,
  title   = {Inter-Instance Similarity Modeling for Contrastive Learning},
  author  = {Shen, Chengchao and Liu, Dawei and Tang, Hao and Qu, Zhe and Wang, Jianxin},
  journal = {arXiv preprint arXiv:2306.12243},
  year    = {2023}
}""",
        reported=ReportedResults(
            columns=("data, encoder", "kNN top-1 (%)", "linear top-1 (%)", "fine-tuned top-1 (%)"),
            rows=(
                ("ImageNet-1K, ViT-S/16, 300 epochs", "73.3", "77.4", "82.8"),
                ("ImageNet-1K, ViT-B/16, 300 epochs", "76.2", "80.2", "84.1"),
                ("CIFAR-10, ViT-T/2, 800 epochs", "92.9", "94.4", "97.5"),
                ("CIFAR-10, ViT-S/2, 800 epochs", "94.6", "96.0", "98.1"),
                ("CIFAR-10, ViT-B/2, 800 epochs", "95.8", "96.6", "98.3"),
                ("CIFAR-100, ViT-T/2, 800 epochs", "68.8", "74.7", "84.9"),
                ("CIFAR-100, ViT-S/2, 800 epochs", "75.4", "78.7", "86.0"),
                ("CIFAR-100, ViT-B/2, 800 epochs", "75.7", "79.7", "86.0"),
            ),
            source="the current README of the [authors' repository](https://github.com/visresearch/patchmix)",
            note=(
                "The repository's first README has other numbers for ImageNet-1K (ViT-S 74.3 / 77.9 / 83.4, ViT-B 76.5 / "
                "79.3 / 84.3) and CIFAR-100 (ViT-S 72.8 / 78.3 / 85.6, ViT-B 73.4 / 79.7 / 86.0). The authors' kNN works on "
                "a random projection of the class token to 1,000 numbers, and their linear and fine-tuned numbers are the "
                "best of all epochs on the images that they are measured on."
            ),
            weights_license="cc-by-nc-4.0",
        ),
    ),
    "aps": Method(
        config_class=APSConfig,
        model_class=APSForPreTraining,
        views_class=APSViews,
        views_config_class=APSViewsConfig,
        convert=convert_aps.convert,
        reference=convert_aps.reference,
        checkpoint_names=r"(^|\.)patchify\.",
        backbone_overrides={"layer_norm_eps": 1e-5, "qkv_bias": False},
        image_statistics={32: ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])},  # CIFAR
        title="APS",
        summary=(
            "Two views of an image learn to be alike while the encoder sees a quarter of each, of patches that have little "
            "in common."
        ),
        paper="Asymmetric Patch Sampling for Contrastive Learning",
        arxiv="2306.02854",
        citation="""@article{shen2023asymmetric,
  title   = {Asymmetric Patch Sampling for Contrastive Learning},
  author  = {Shen, Chengchao and Chen, Jianzhong and Wang, Shu and Kuang, Hulin and Liu, Jin and Wang, Jianxin},
  journal = {arXiv preprint arXiv:2306.02854},
  year    = {2023}
}""",
        reported=ReportedResults(
            columns=("data, encoder", "fine-tuned top-1 (%)"),
            rows=(
                ("CIFAR-10, ViT-T/2, 1600 epochs", "97.2"),
                ("CIFAR-10, ViT-S/2, 1600 epochs", "98.1"),
                ("CIFAR-10, ViT-B/2, 1600 epochs", "98.2"),
                ("CIFAR-10, ViT-T/2, 3200 epochs", "97.5"),
                ("CIFAR-10, ViT-S/2, 3200 epochs", "98.2"),
                ("CIFAR-10, ViT-B/2, 3200 epochs", "98.3"),
                ("CIFAR-100, ViT-T/2, 1600 epochs", "83.4"),
                ("CIFAR-100, ViT-S/2, 1600 epochs", "84.9"),
                ("CIFAR-100, ViT-B/2, 1600 epochs", "85.9"),
                ("CIFAR-100, ViT-T/2, 3200 epochs", "83.4"),
                ("CIFAR-100, ViT-S/2, 3200 epochs", "85.3"),
                ("CIFAR-100, ViT-B/2, 3200 epochs", "86.0"),
                ("ImageNet-1K, ViT-S/16, 300 epochs", "82.1"),
                ("ImageNet-1K, ViT-B/16, 300 epochs", "84.2"),
            ),
            source="the README of the [authors' repository](https://github.com/visresearch/aps)",
            note=(
                "Models were pretrained and then fine-tuned for 100 epochs on the same data. The numbers on CIFAR are, by "
                "the authors' code, the best of all epochs on the images that they are measured on; no code for ImageNet "
                "was released. The authors report neither kNN nor linear probes."
            ),
            weights_license="cc-by-nc-4.0",
        ),
    ),
    "pw_self": Method(
        config_class=PWSelfConfig,
        model_class=PWSelfForPreTraining,
        views_class=PWSelfViews,
        views_config_class=PWSelfViewsConfig,
        convert=convert_pw_self.convert,
        reference=convert_pw_self.reference,
        checkpoint_names=r"^(teacher|student)\.backbone\.|^dino_loss\.|^best_acc$",
        backbone_overrides={"layer_norm_eps": 1e-6},
        eval_crop_ratio=0.875,
        eval_interpolation="bicubic",
        title="PW-Self",
        summary=(
            "A student learns to say of an image, and of every patch, what its teacher says of it in another crop: patches "
            "of two crops are compared where they show the same place."
        ),
        paper="PW-Self: Patch-Wise Self-Supervised Visual Representation Learning",
        arxiv="2310.18651",
        citation="""@misc{javidani2023pwself,
  title         = {PW-Self: Patch-Wise Self-Supervised Visual Representation Learning},
  author        = {Javidani, Ali and Sadeghi, Mohammad Amin and Araabi, Babak Nadjar},
  year          = {2023},
  eprint        = {2310.18651},
  archivePrefix = {arXiv},
  primaryClass  = {cs.CV}
}""",
    ),
    "isl": Method(
        config_class=ISLConfig,
        model_class=ISLForPreTraining,
        views_class=ISLViews,
        views_config_class=ISLViewsConfig,
        convert=convert_isl.convert,
        reference=convert_isl.reference,
        checkpoint_names=r"^net\.",
        backbones=(*CONVNETS, "timm/NAME"),
        eval_crop_ratios={227: 227 / 256},  # AlexNet's images are cut out of photos of 256 pixels too
        image_statistics={32: ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])},  # for SVHN as well
        title="ISL",
        summary=(
            "Every image learns to be told from all others; then images that a generator finds to be like it become its "
            "neighbors, and it learns to be told with them from the rest."
        ),
        paper="Instance Similarity Learning for Unsupervised Feature Representation",
        arxiv="2108.02721",
        citation="""@inproceedings{wang2021instance,
  title     = {Instance Similarity Learning for Unsupervised Feature Representation},
  author    = {Wang, Ziwei and Wang, Yunsong and Wu, Ziyi and Lu, Jiwen and Zhou, Jie},
  booktitle = {International Conference on Computer Vision (ICCV)},
  year      = {2021}
}""",
    ),
}

for _method in METHODS.values():
    AutoConfig.register(_method.config_class.model_type, _method.config_class)
    AutoModelForPreTraining.register(_method.config_class, _method.model_class)


def get_method(name: str) -> Method:
    """
    Look a method up.

    Args:
        name (`str`): Its name, as in `--method`.

    Returns:
        [`Method`].

    Raises:
        `ValueError`: there is no method of that name.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}; the methods are {', '.join(METHODS)}.")
    return METHODS[name]


def recognize_checkpoint(path: str | Path) -> list[str]:
    """
    The methods that a file of their authors may be of, by the names in it.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `list[str]`: names of methods.

    Raises:
        [`~hf_ssl.models.official_files.CheckpointError`]: it cannot be read safely.
    """
    names = names_in(load_checkpoint(path, map_location="meta"))
    return [
        method for method, entry in METHODS.items() if any(re.search(entry.checkpoint_names, name) for name in names)
    ]


def _argument_type(annotation: Any) -> Any:
    """`float | int` becomes `float`: an argument on the command line has one type."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if set(members) == {float, int}:
            return float | None if type(None) in get_args(annotation) else float
    return annotation


def model_arguments(config_class: type[SSLConfig]) -> type:
    """
    The fields of a method's configuration as a dataclass of command-line arguments, so that they are declared once.

    Args:
        config_class (`type`): A subclass of [`SSLConfig`].

    Returns:
        `type`: a dataclass with the fields that the subclass declares or overrides, without `backbone_config`.
    """
    help_texts = help_from_docstring(SSLConfig.__doc__) | help_from_docstring(config_class.__doc__)
    arguments = []
    for item in fields(config_class):
        if item.name not in config_class.__annotations__ or item.name in _NO_ARGUMENTS:
            continue
        default = {"default_factory": item.default_factory} if item.default is MISSING else {"default": item.default}
        metadata = {"help": help_texts[item.name]}
        arguments.append((item.name, _argument_type(item.type), field(**default, metadata=metadata)))
    return make_dataclass(f"{config_class.__name__.removesuffix('Config')}ModelArguments", arguments)


__all__ = ["METHODS", "Method", "get_method", "model_arguments", "recognize_checkpoint"]
