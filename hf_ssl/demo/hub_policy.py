"""Encoders of the Hub that visitors name: what is fetched, and what is refused before it costs memory or runs code."""

from __future__ import annotations

import json
import re
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import PIL.Image
import timm
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch import Tensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING_NAMES

from ..backbones.published import ENCODERS
from ..hub_errors import HubError, clear_errors
from ..models import METHODS
from .photos import MAX_RATIO


MAX_WEIGHTS = 1_000_000_000  # bytes
MAX_TEXT = 10_000_000  # bytes of all configurations
MAX_PARAMETERS = 250_000_000
MAX_MODULES = 5000
MAX_NUMBER = 100_000  # of widths, layers, classes
MAX_SIDE = 1024  # pixels
MAX_OPERATIONS = 300 * 10**9  # for an image: those of a ViT-B/16 of 600 pixels
MAX_VALUES = 2**26  # of a tensor that is computed

POLICY = (
    f"Of the Hub, weights in safetensors of up to {MAX_WEIGHTS // 10**9} GB are loaded, of public repositories and for "
    "architectures that transformers, timm or hf_ssl know. No code of a repository is run."
)

_WEIGHTS = re.compile(r"model[\w.-]*\.safetensors")
_INDEX = "model.safetensors.index.json"
_PRETRAINING = "pretraining/config.json"  # of ours: the feature
_TEXTS = ("config.json", "preprocessor_config.json", "processor_config.json", _INDEX, _PRETRAINING)
# Encoders of images alone. Those that are made of several models bring the others along by name.
_KINDS = {
    kind for kind in (*MODEL_FOR_IMAGE_MAPPING_NAMES, "clip_vision_model") if not CONFIG_MAPPING[kind].sub_configs
}
_KINDS = _KINDS - {"timm_backbone"} | set(ENCODERS)
# What has other files, or code, fetched and read.
_REFUSED_KEYS = (
    *("backbone", "quantization_config", "attn_implementation", "experts_implementation"),
    *("checkpoint_path", "pretrained_cfg_overlay", "transformers_weights"),
)
# Resized like these are photos of any size, and of any shape that is taken.
_SIZES = ((64, 64), (512, 512), (64 * MAX_RATIO, 64), (64, 64 * MAX_RATIO))


@contextmanager
def in_words(name: str, folder: Path) -> Iterator[None]:
    """
    Say why files that a visitor has named are not loaded, whatever transformers raises at them.

    Args:
        name (`str`): The id on the Hub.
        folder (`Path`): Where they are; it is not told to the visitor.

    Raises:
        `ValueError`: they are not loaded; [`~hf_ssl.hub_errors.HubError`]: the Hub does not give them.
    """
    try:
        with clear_errors(f"{name} is not loaded.", name):
            try:
                yield
            except GatedRepoError:
                raise ValueError("It is gated, and only what is public is shown here.") from None
            except RepositoryNotFoundError:
                raise ValueError("The Hub shows no public model of this name: check it.") from None
    except HubError:
        raise
    except Exception as error:
        reason = str(error).replace(str(folder), name)
        for known in (f"{name} is not loaded. ", f"{name} cannot be evaluated. "):
            reason = reason.removeprefix(known)
        raise ValueError(f"{name} is not loaded. {textwrap.shorten(reason or type(error).__name__, 300)}") from error


def download(name: str, folder: Path) -> None:
    """
    Fetch an encoder that a visitor has named. The operator's token has no part in it: a visitor is shown nothing that is not
    public.

    Args:
        name (`str`): The id on the Hub.
        folder (`Path`): Where its files are put.

    Raises:
        `ValueError`: it has no weights in safetensors, or too large ones.
    """
    info = HfApi().model_info(name, files_metadata=True, token=False)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    weights = sum(size for file, size in sizes.items() if _WEIGHTS.fullmatch(file))
    texts = sum(sizes.get(file, 0) for file in _TEXTS)
    if not any(map(_WEIGHTS.fullmatch, sizes)):
        raise ValueError("It has no weights in safetensors, the format that is read here.")
    if weights > MAX_WEIGHTS:
        raise ValueError(f"Its weights have {weights / 1e9:.1f} GB; the limit is {MAX_WEIGHTS / 1e9:.0f} GB.")
    if texts > MAX_TEXT:
        raise ValueError(f"Its configuration has {texts / 1e6:.0f} MB; the limit is {MAX_TEXT / 1e6:.0f} MB.")
    wanted = [file for file in sizes if _WEIGHTS.fullmatch(file) or file in _TEXTS]
    snapshot_download(name, revision=info.sha, allow_patterns=wanted, local_dir=folder, token=False)


def check(folder: Path) -> None:
    """
    Refuse what would need code or other files, or a lot of memory or time: a small file may describe a large model.

    Args:
        folder (`Path`): Where [`download`] has put the files.

    Raises:
        `ValueError`: it is refused. Transformers may raise anything else at files that are not of its making.
    """
    texts = {name: _read(folder / name) for name in _TEXTS if (folder / name).exists()}
    if "config.json" not in texts:
        raise ValueError("It has no config.json.")
    _check_kind(texts["config.json"])
    if _PRETRAINING in texts:
        _check_method(texts[_PRETRAINING])
    for name, text in texts.items():
        if name != _INDEX:
            _check_entries(text, MAX_SIDE if "processor" in name else MAX_NUMBER)
    weights = set(texts.get(_INDEX, {}).get("weight_map", {}).values())
    if not all((folder / file).is_file() and _WEIGHTS.fullmatch(file) for file in weights):
        raise ValueError(f"Its {_INDEX} names files that are not beside it.")
    with _bounded(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    _check_cost(model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"Its {path.name} is damaged.")
    return value


def _check_kind(config: dict[str, Any]) -> None:
    kind = str(config.get("model_type", "timm_wrapper" if "architecture" in config else None))
    if kind not in _KINDS:
        raise ValueError(
            f"Its architecture, {kind}, is no encoder of images alone that is known here; no code of a repository is run."
        )
    if kind == "timm_wrapper" and not timm.is_model(str(config.get("architecture"))):
        raise ValueError(f"timm knows no {config.get('architecture')}.")


def _check_method(config: dict[str, Any]) -> None:
    if config.get("model_type") not in METHODS:
        raise ValueError(f"Its {_PRETRAINING} is not one of hf_ssl.")
    _check_kind(config.get("backbone_config", {}))


def _check_entries(value: Any, limit: int, key: str = "") -> None:
    """All entries of a configuration, however deep they lie."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if inner is not None and name.endswith(_REFUSED_KEYS):
                raise ValueError(f"Its configuration has {name}, which is not read here.")
            _check_entries(inner, MAX_SIDE if name == "pretrained_cfg" else limit, name)  # which is timm's processor
    elif isinstance(value, list):
        for inner in value:
            _check_entries(inner, limit, key)
    elif isinstance(value, (int, float)):
        least = 0.25 if key.endswith("crop_pct") else -limit  # images are enlarged by its inverse
        most = MAX_NUMBER if key == "num_classes" else limit
        if not least <= value <= most:
            raise ValueError(f"Its configuration has {key}={value}, which is not between {least} and {most}.")


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop the building of a model, in this thread, as soon as it is too large."""
    thread, counts = threading.get_ident(), {"parameters": 0, "modules": 0}

    def count(what: str, number: int, limit: int) -> None:
        if threading.get_ident() == thread:
            counts[what] += number
            if counts[what] > limit:
                raise ValueError(f"It has more than {limit:,} {what}, which is the limit.")

    hooks = [
        register_module_parameter_registration_hook(
            lambda module, name, parameter: count(
                "parameters", 0 if parameter is None else parameter.numel(), MAX_PARAMETERS
            )
        ),
        register_module_module_registration_hook(lambda module, name, inner: count("modules", 1, MAX_MODULES)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Cost(TorchDispatchMode):
    """Floating-point operations of what is computed, and the number of values of its largest tensor."""

    operations, values = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, count = func(*args, **(kwargs or {})), flop_registry.get(func.overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        if isinstance(result, Tensor):
            self.values = max(self.values, result.numel())
        return result


def _check_cost(model: PreTrainedModel, processor: Any) -> None:
    """Refuse what takes long, or a lot of memory, for an image; found without computing anything, on the meta device."""
    shapes = [
        processor(images=PIL.Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape for size in _SIZES
    ]
    if shapes[0] != shapes[1]:
        raise ValueError("Its image processor does not bring all images to one size.")
    options = (
        {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in signature(model.forward).parameters else {}
    )
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0
    for shape in set(shapes):
        with torch.no_grad(), torch.device("meta"), _Cost() as cost:
            model.eval()(pixel_values=torch.empty(shape), **options)
        if cost.operations > MAX_OPERATIONS or cost.values > MAX_VALUES:
            raise ValueError(
                f"It computes too much for an image of {shape[-1]} x {shape[-2]} pixels to be shown here."
            )
