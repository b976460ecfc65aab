"""Command lines made of dataclasses, with a recipe file underneath."""

import sys
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from transformers import HfArgumentParser, PreTrainedConfig

from .backbones import (
    SWIN_SIZES,
    T2T_SIZES,
    TIMM_PREFIX,
    VIT_SIZES,
    convnet_config,
    swin_config,
    t2t_vit_config,
    timm_config,
    vit_config,
)
from .data import ImageData, PhotoSource, TensorSource, load_image_data, make_source
from .models.auto import METHODS, Method, get_method, model_arguments
from .models.base import SSLConfig
from .pretrained import pretrained_config, pretrained_values
from .training_args import SSLTrainingArguments


@dataclass
class DataArguments:
    """Which images."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits (embedded), a registry name (cifar10, cifar100, svhn, flowers102, tiny-imagenet, imagenet100, "
            "imagenet-1k), a Hub id, a folder of images or a folder of parquet files."
        },
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "A random subset of the training images."})
    skip_bad_images: bool = field(default=False, metadata={"help": "Leave unreadable images out instead of stopping."})


@dataclass
class PretrainArguments(DataArguments):
    """What to pretrain, and on what."""

    method: str = field(default="relvit", metadata={"help": f"The method: {', '.join(METHODS)}."})
    mode: str | None = field(
        default=None, metadata={"help": "A mode of the method; unset, its first (RelViT: upstream)."}
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "Name of a recipe or path of a yaml file; unset, the dataset's own recipe, else 'default'."},
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Train on from the whole model in pretraining/ of this folder or Hub id (student, teacher, heads): its "
            "encoder, options and views count more than a recipe's, and flags win; unset, from random weights. ISL's memory "
            "bank begins anew."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of --model on the Hub."})
    backbone: str = field(
        default="vit-tiny",
        metadata={
            "help": "The encoder: vit-micro, vit-tiny, vit-small, vit-base; for RelViT also swin-tiny, t2t-vit-7, -10, -12, "
            "-14, -19, -24, -t-14, -t-19, -t-24, -14-resnext, -14-wide; for ISL resnet18, resnet50, resnet-micro, alexnet, "
            "whose first layers are those for small images below 128 pixels; for both timm/NAME (for RelViT, one with a "
            "square grid of tokens)."
        },
    )
    image_size: int = field(default=224, metadata={"help": "Side of the model's images, in pixels."})
    patch_size: int = field(default=16, metadata={"help": "Side of a patch of a ViT, in pixels."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout in the encoder (a ViT)."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of the attention weights."})
    eval_crop_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the shorter side that the evaluation's central crop keeps; 1 resizes the whole image. Unset, "
            "that of the method (PatchMix, PW-Self: 0.875), or else 0.875 from 128 pixels on and 1 below."
        },
    )
    knn_bank_samples: int = field(default=5000, metadata={"help": "Training images that vote in the kNN monitor."})
    knn_query_samples: int = field(default=2000, metadata={"help": "Test images that the kNN monitor classifies."})
    knn_train_samples: int = field(
        default=0,
        metadata={
            "help": "Training images that the kNN monitor classifies as well, among the others (knn_top1_train): by it a "
            "learning rate can follow the accuracy without a look at test images."
        },
    )
    knn_k: int = field(default=20, metadata={"help": "Neighbors that vote in the kNN monitor."})
    final_knn_k: int | None = field(
        default=None, metadata={"help": "Neighbors that vote after training; unset, --knn_k."}
    )
    knn_temperature: float = field(default=0.07, metadata={"help": "Softness of their votes."})
    knn_features: str = field(
        default="encoder",
        metadata={
            "help": "What the kNN monitor compares: features of the encoder, or what the method's loss makes of them.",
            "choices": ["encoder", "projected"],
        },
    )
    recompute: bool = field(
        default=False,
        metadata={
            "help": "Of a method with a memory bank, and projected features: compute those of the training images anew each "
            "time, not only before and after training; else the bank votes. With --do_train false it says which of the two."
        },
    )
    validation_samples: int = field(
        default=10000,
        metadata={
            "help": "Test images that the method's own losses and accuracies are measured on whenever the kNN monitor runs "
            "(RelViT; 0: none)."
        },
    )
    encoder: str = field(
        default="auto", metadata={"help": "Which encoder to publish.", "choices": ["auto", "student", "teacher"]}
    )


def build_config(args: PretrainArguments, model_args: Any, data: ImageData) -> SSLConfig:
    """
    Put the configuration of a method's model together.

    Args:
        args ([`PretrainArguments`]): Names the method, and the encoder with its sizes.
        model_args (`Any`): The method's own options, an instance of what [`~hf_ssl.models.auto.model_arguments`] made.
        data ([`~hf_ssl.data.ImageData`]): Tells the number of classes, if there are labels.

    Returns:
        [`SSLConfig`]: of the method's own class.
    """
    method = get_method(args.method)
    if data.num_classes is None and "classification" in getattr(model_args, "tasks", ()):
        raise ValueError(
            f"The task 'classification' needs labels, and --dataset {args.dataset} has none: give it some (subfolders are "
            "classes), or leave the task out (--mode upstream)."
        )
    backbone_config = backbone_of_model(args, method) if args.model else build_backbone_config(args, method)
    labels: dict[str, Any] = {"num_labels": data.num_classes} if data.num_classes else {}
    return method.config_class(backbone_config=backbone_config, **vars(model_args), **labels)


def build_backbone_config(args: PretrainArguments, method: Method) -> PreTrainedConfig:
    """
    The configuration of the encoder that is named on the command line.

    Args:
        args ([`PretrainArguments`]): Names the encoder, with its sizes.
        method ([`~hf_ssl.models.Method`]): Says which ones it trains, and fixes details of a ViT.

    Returns:
        `PreTrainedConfig`.

    Raises:
        `ValueError`: the method does not train it, or there is none of these sizes.
    """
    name = args.backbone
    if ("timm/NAME" if name.startswith(TIMM_PREFIX) else name) not in method.backbones:
        raise ValueError(f"{method.title} does not train --backbone {name}; use one of {', '.join(method.backbones)}.")
    if name in VIT_SIZES:
        heads = method.attention_heads.get(name)
        return vit_config(
            name,
            **({} if heads is None else {"num_attention_heads": heads}),
            image_size=args.image_size,
            patch_size=args.patch_size,
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.attention_dropout,
            **method.backbone_overrides,
        )
    if args.dropout or args.attention_dropout:
        raise ValueError(f"--backbone {name} has no dropout: leave --dropout and --attention_dropout out.")
    if name.startswith(TIMM_PREFIX):
        return timm_config(name, args.image_size)
    if name in SWIN_SIZES:
        return swin_config(name, image_size=args.image_size)
    if name in T2T_SIZES:
        return t2t_vit_config(name, args.image_size)
    return convnet_config(name, args.image_size)


def backbone_of_model(args: PretrainArguments, method: Method) -> PreTrainedConfig:
    """
    The configuration of the encoder that `--model` brings, with the dropout of the command line.

    Args:
        args ([`PretrainArguments`]): Names the model.
        method ([`~hf_ssl.models.Method`]): The method.

    Returns:
        `PreTrainedConfig`.

    Raises:
        `ValueError`: there is no such model, or flags ask for another encoder.
    """
    assert args.model is not None
    encoder: Any = pretrained_config(args.model, args.revision, method).backbone_config
    sizes = {"image_size": encoder.image_size, "patch_size": getattr(encoder, "patch_size", args.patch_size)}
    for name, value in {"backbone": args.model, **sizes}.items():
        if getattr(args, name) != value:
            raise ValueError(
                f"--{name} {getattr(args, name)}: --model {args.model} brings its own encoder; leave it out."
            )
    if encoder.model_type == "vit":
        encoder.hidden_dropout_prob, encoder.attention_probs_dropout_prob = args.dropout, args.attention_dropout
    elif args.dropout or args.attention_dropout:
        raise ValueError(
            f"The encoder of --model {args.model} has no dropout: leave --dropout and --attention_dropout out."
        )
    return encoder  # type: ignore[no-any-return]


def build_inputs(
    args: PretrainArguments, model_args: Any, views_config: Any, seed: int
) -> tuple[ImageData, SSLConfig, Any, TensorSource | PhotoSource]:
    """
    Everything between a command line and a model's inputs: the same for a run and for a look at what it would train on.

    Args:
        args ([`PretrainArguments`]): Names the method and the data.
        model_args (`Any`): The method's own options.
        views_config (`Any`): The configuration of its views.
        seed (`int`): The seed of the run.

    Returns:
        `tuple`: the data, the configuration of the model, the views, and the source of the training images.
    """
    data = load_image_data(
        args.dataset,
        max_train_samples=args.max_train_samples,
        seed=seed,
        skip_bad_images=args.skip_bad_images,
        revision=args.dataset_revision,
    )
    config = build_config(args, model_args, data)
    views = get_method(args.method).views_class(views_config, config, seed)
    return data, config, views, make_source(data.train, views)


def read_recipe(recipes: Path, method: str, name: str | None, dataset: str) -> dict[str, Any]:
    """
    Read a recipe.

    Args:
        recipes (`Path`):
            The folder of the recipes, with a folder for each method.
        method (`str`):
            The method.
        name (`str`, *optional*):
            A recipe's name or the path of a yaml file. Unset, the recipe that is called like the dataset, else
            `default`.
        dataset (`str`):
            What `--dataset` says.

    Returns:
        `dict[str, Any]`: values of command-line arguments by name, and `recipe`, the name.

    Raises:
        `ValueError`: there is no such recipe, or the file is not a mapping.
    """
    available = {path.stem: path for path in sorted((recipes / method).glob("*.yaml"))}
    if name is None:
        name = dataset if dataset in available else "default"
    path = available.get(name, Path(name))
    if not path.is_file():
        if not available:
            raise ValueError(f"There are no recipes for {method} yet: give the path of a yaml file with --recipe.")
        raise ValueError(
            f"There is no recipe {name!r} for {method}: give the path of a yaml file, or one of "
            f"{', '.join(available)}."
        )
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path} must be a mapping of argument names to values.")
    return {**values, "recipe": name}


def parse_with_recipe(
    script_arguments: Any, recipes: Path, argv: Sequence[str] | None = None
) -> tuple[Any, SSLTrainingArguments, Any, Any]:
    """
    Parse the command line of a training script. What a method's mode sets counts least, then comes the recipe, then what
    `--model` brings, and flags win.

    Args:
        script_arguments (`type`):
            The script's dataclass, a [`PretrainArguments`].
        recipes (`Path`):
            The folder of the recipes.
        argv (`Sequence[str]`, *optional*):
            The command line; unset, that of the process.

    Returns:
        `tuple`: the script's arguments, the [`SSLTrainingArguments`], the method's model arguments and the
        configuration of its views.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    (first,) = HfArgumentParser(script_arguments, add_help=False).parse_args_into_dataclasses(
        argv, return_remaining_strings=True
    )[:1]
    method = get_method(first.method)
    recipe = read_recipe(recipes, first.method, first.recipe, first.dataset)
    model, revision = first.model or recipe.get("model"), first.revision or recipe.get("revision")
    if model is not None and first.mode is not None:
        raise ValueError(f"--mode {first.mode}: --model {model} brings what it learns; leave --mode out.")
    if model is None and revision is not None:
        raise ValueError(f"--revision {revision} is that of a --model, and none is given.")
    mode = first.mode or recipe.get("mode") or next(iter(method.config_class.modes))
    mode_values, recipe = (flat_values(method.views_config_class, v) for v in (_mode_values(method, mode), recipe))
    values = {**mode_values, **recipe, "mode": mode}
    if model is not None:
        config = pretrained_config(model, revision, method)
        of_model = pretrained_values(model, revision, config)
        values |= {**flat_values(method.views_config_class, of_model), "backbone": model}
    return parse_over(values, script_arguments, method.config_class, method.views_config_class, first.method, argv)


def parse_over(
    values: dict[str, Any],
    script_arguments: Any,
    config_class: type[SSLConfig],
    views_config_class: type,
    run_name: str,
    argv: Sequence[str],
) -> tuple[Any, SSLTrainingArguments, Any, Any]:
    """
    Parse a command line over the values of a recipe.

    Args:
        values (`dict[str, Any]`): Values of arguments by name, flat.
        script_arguments (`type`): The script's dataclass; it has a field `dataset`.
        config_class (`type`): The [`SSLConfig`] whose fields are arguments.
        views_config_class (`type`): The configuration of the views, whose fields are arguments.
        run_name (`str`): What the output folder is called by, with the dataset, if none is given.
        argv (`Sequence[str]`): The command line.

    Returns:
        `tuple`: as of [`parse_with_recipe`].
    """
    parser = _parser(script_arguments, config_class, views_config_class)
    # The recipe is read as if its values were typed first: types and choices are checked, and what is typed later wins.
    argv = [*_as_flags(_checked(parser, values)), *argv]
    known = parser.parse_known_args(argv)[0]
    if known.output_dir is None:
        argv += ["--output_dir", f"outputs/{run_name}-{dataset_name(known.dataset)}"]
    script_args, training_args, model_args, views_args = parser.parse_args_into_dataclasses(argv)
    return script_args, training_args, model_args, from_flat_values(views_config_class, vars(views_args))


def dataset_name(dataset: str) -> str:
    """What a dataset is called for short: the last part of its id, or the name of its folder."""
    return Path(dataset).expanduser().resolve().name


def flat_arguments(config_class: type) -> type:
    """
    The fields of a configuration as a dataclass of command-line arguments. Where a field is a dataclass itself, such as
    a view, each of its fields is an argument: field `blur` of the view `local` is `local_blur`.

    Args:
        config_class (`type`): A dataclass.

    Returns:
        `type`: a dataclass that checks nothing; [`from_flat_values`] makes the configuration of what was parsed.
    """
    arguments = _flat_fields(config_class)
    return make_dataclass(f"{config_class.__name__}Arguments", arguments, kw_only=True)


def flat_values(config_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Spell nested values flat: `{"local": {"blur": 0.5}}` as `{"local_blur": 0.5}`.

    Args:
        config_class (`type`): The dataclass that knows which fields are dataclasses themselves.
        values (`Mapping[str, Any]`): Values by name; other names than those of its fields may be among them.

    Returns:
        `dict[str, Any]`: values by the names that [`flat_arguments`] gives to arguments.

    Raises:
        `ValueError`: a value is given in both forms.
    """
    nested = _nested_types(config_class)
    flat: dict[str, Any] = {}
    for name, value in values.items():
        entries = {name: value}
        if name in nested and isinstance(value, dict):
            entries = {f"{name}_{key}": inner for key, inner in flat_values(nested[name], value).items()}
        for key in entries:
            if key in flat:
                raise ValueError(f"The recipe sets {key!r} twice, flat and in a mapping; leave one of the two out.")
        flat |= entries
    return flat


def from_flat_values(config_class: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """
    Make a configuration of flat values.

    Args:
        config_class (`type`): The dataclass.
        values (`Mapping[str, Any]`): A value for each argument of [`flat_arguments`].
        prefix (`str`, *optional*, defaults to `""`): What the names of its arguments begin with.

    Returns:
        `Any`: an instance of the dataclass.

    Raises:
        `ValueError`: it, or a dataclass in it, refuses a value; the message begins with the latter's name.
    """
    nested, own = _nested_types(config_class), {}
    for name in _types(config_class):
        if name not in nested:
            own[name] = values[prefix + name]
            continue
        try:
            own[name] = from_flat_values(nested[name], values, f"{prefix}{name}_")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return config_class(**own)


def _types(config_class: type) -> dict[str, Any]:
    """The type of each field that is an argument of the class."""
    types = get_type_hints(config_class)
    return {item.name: types[item.name] for item in fields(config_class) if item.init}


def _nested_types(config_class: type) -> dict[str, Any]:
    """The type of each field that is a dataclass itself."""
    return {name: field_type for name, field_type in _types(config_class).items() if is_dataclass(field_type)}


def _flat_fields(config_class: type, defaults: Any = MISSING, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Name, type and field of each argument; the defaults are those of an instance, if one is given."""
    types, nested = _types(config_class), _nested_types(config_class)
    arguments: list[tuple[str, Any, Any]] = []
    for item in fields(config_class):
        if item.name not in types:
            continue
        name = prefix + item.name
        default = _default(item) if defaults is MISSING else getattr(defaults, item.name)
        if item.name in nested:
            arguments += _flat_fields(nested[item.name], default, f"{name}_")
        else:
            arguments.append((name, types[item.name], _argument(item, default, prefix)))
    return arguments


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _argument(item: Field[Any], default: Any, prefix: str) -> Any:
    metadata = dict(item.metadata)
    if prefix and "help" in metadata:
        metadata["help"] = f"{prefix.removesuffix('_')}: {metadata['help']}"
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def _as_flags(values: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def _parser(script_arguments: Any, config_class: type[SSLConfig], views_config_class: type) -> HfArgumentParser:
    groups: Any = (
        script_arguments,
        SSLTrainingArguments,
        model_arguments(config_class),
        flat_arguments(views_config_class),
    )
    return HfArgumentParser(groups, formatter_class=ArgumentDefaultsHelpFormatter)


def _mode_values(method: Method, mode: str) -> dict[str, Any]:
    modes = method.config_class.modes
    if mode not in modes:
        raise ValueError(f"{method.title} has no mode {mode!r}; its modes are {', '.join(modes)}.")
    return modes[mode]


def _checked(parser: HfArgumentParser, values: dict[str, Any]) -> dict[str, Any]:
    """The values, if every name is an argument; the parser itself would keep an unknown one without a word."""
    known = {action.dest for action in parser._actions}
    for name in values:
        if name not in known:
            close = get_close_matches(name, known, n=3)
            raise ValueError(
                f"The recipe sets {name!r}, which is no argument of this method"
                + (f"; did you mean {' or '.join(close)}?" if close else ".")
            )
    return values
