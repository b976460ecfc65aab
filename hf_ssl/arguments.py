"""Command lines made of dataclasses, with a recipe file underneath."""

import sys
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .models.auto import Method, get_method, model_arguments
from .training_args import SSLTrainingArguments


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
    Parse the command line of a training script. What a method's mode sets counts least, then comes the recipe, and
    flags win.

    Args:
        script_arguments (`type`):
            The script's dataclass; it has the fields `method`, `mode`, `recipe` and `dataset`.
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
    mode = first.mode or recipe.get("mode") or next(iter(method.config_class.modes))
    parser = _parser(script_arguments, method)
    values = _checked(parser, {**_mode_values(method, mode), **recipe, "mode": mode})
    # The recipe is read as if its values were typed first: types and choices are checked, and what is typed later wins.
    argv = [*_as_flags(values), *argv]
    known = parser.parse_known_args(argv)[0]
    if known.output_dir is None:
        argv += ["--output_dir", f"outputs/{known.method}-{dataset_name(known.dataset)}"]
    script_args, training_args, model_args, views_config = parser.parse_args_into_dataclasses(argv)
    return script_args, training_args, model_args, views_config


def dataset_name(dataset: str) -> str:
    """What a dataset is called for short: the last part of its id, or the name of its folder."""
    return Path(dataset).expanduser().resolve().name


def _as_flags(values: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def _parser(script_arguments: Any, method: Method) -> HfArgumentParser:
    groups: Any = (
        script_arguments,
        SSLTrainingArguments,
        model_arguments(method.config_class),
        method.views_config_class,
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
