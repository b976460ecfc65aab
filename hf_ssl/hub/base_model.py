"""What a model that a training began with tells about itself: for the card of what came of it."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from huggingface_hub.constants import REPOCARD_NAME
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from ..models import SSLConfig, get_method
from .model_card import method_info


def license_of(model: str, revision: str | None = None) -> str:
    """
    The license of a model, by its card.

    Args:
        model (`str`): A folder, or an id of the Hub.
        revision (`str`, *optional*): Branch, tag or commit of the Hub.

    Returns:
        `str`: an identifier of the Hub; `"unknown"`, if there is no card, or none that a program can read.
    """
    found = _beside(model, REPOCARD_NAME, revision)
    try:
        named = (metadata_load(found) or {}).get("license") if found else None
    except (ValueError, yaml.YAMLError):
        named = None
    return named if isinstance(named, str) else "unknown"


def pretraining_of(model: str, revision: str | None = None) -> dict[str, Any]:
    """
    The method that an encoder was pretrained with, if `pretraining/` lies beside it.

    Args:
        model (`str`): A folder, or an id of the Hub.
        revision (`str`, *optional*): Branch, tag or commit of the Hub.

    Returns:
        `dict[str, Any]`: arguments of [`ModelCardInfo`]; none, if the method is not known.
    """
    found = _beside(model, "pretraining/config.json", revision)
    config = None if found is None else AutoConfig.from_pretrained(Path(found).parent)
    return method_info(get_method(str(config.model_type)), config) if isinstance(config, SSLConfig) else {}


def _beside(model: str, name: str, revision: str | None) -> str | None:
    """A file of a model's folder, or of its repository, if it is there."""
    if_there = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
    path: str | None = cached_file(
        str(Path(model).expanduser()), name, revision=revision, **dict.fromkeys(if_there, False)
    )
    return path


__all__ = ["license_of", "pretraining_of"]
