"""The methods by name."""

import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, Union, get_args, get_origin

from transformers import AutoConfig, AutoModelForPreTraining

from ..help import help_from_docstring
from .base import SSLConfig, SSLPreTrainedModel
from .relvit import RelViTConfig, RelViTForPreTraining, RelViTViews, RelViTViewsConfig
from .relvit.convert_relvit import convert as convert_relvit


@dataclass(frozen=True)
class Method:
    """
    What makes a method.

    Args:
        config_class (`type`): Its [`SSLConfig`].
        model_class (`type`): Its [`SSLPreTrainedModel`].
        views_class (`type`): Turns a batch of images into the model's inputs.
        views_config_class (`type`): Dataclass of the options of the views.
        convert (`Callable`): Official checkpoint to model.
        backbone_overrides (`dict`): What the method fixes in the configuration of a ViT.
        title (`str`): Name for people.
        summary (`str`): What it trains an encoder to do, in a sentence.
        paper (`str`): Title of the paper.
        arxiv (`str`): Number of the paper on arXiv.
        citation (`str`): BibTeX entry.
    """

    config_class: type[SSLConfig]
    model_class: type[SSLPreTrainedModel]
    views_class: type
    views_config_class: type
    convert: Callable[..., SSLPreTrainedModel]
    backbone_overrides: dict[str, Any]
    title: str
    summary: str
    paper: str
    arxiv: str
    citation: str


METHODS: dict[str, Method] = {
    "relvit": Method(
        config_class=RelViTConfig,
        model_class=RelViTForPreTraining,
        views_class=RelViTViews,
        views_config_class=RelViTViewsConfig,
        convert=convert_relvit,
        backbone_overrides={"layer_norm_eps": 1e-6},
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
        if item.name not in config_class.__annotations__ or item.name in ("model_type", "modes", "backbone_config"):
            continue
        default = {"default_factory": item.default_factory} if item.default is MISSING else {"default": item.default}
        metadata = {"help": help_texts[item.name]}
        arguments.append((item.name, _argument_type(item.type), field(**default, metadata=metadata)))
    return make_dataclass(f"{config_class.__name__.removesuffix('Config')}ModelArguments", arguments)


__all__ = ["METHODS", "Method", "get_method", "model_arguments"]
