"""The whole model that an earlier run left in `pretraining/`, to train on from it."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import IMAGE_PROCESSOR_NAME
from transformers.utils.hub import cached_file

from .hub_errors import clear_errors
from .models.auto import Method, model_arguments
from .models.base import SSLConfig, SSLPreTrainedModel


SUBFOLDER = "pretraining"


def pretrained_config(model: str, revision: str | None, method: Method) -> SSLConfig:
    """
    The configuration of a whole model.

    Args:
        model (`str`): A folder that a run or a conversion left, or an id of the Hub.
        revision (`str`, *optional*): Branch, tag or commit of the Hub.
        method ([`~hf_ssl.models.Method`]): The method that is to train on.

    Returns:
        [`SSLConfig`]: of the method's own class.

    Raises:
        `ValueError`: there is no such model, it holds an encoder alone, or it is another method's.
        [`~hf_ssl.hub_errors.HubError`]: the Hub does not give it.
    """
    what = f"--model {model} cannot be trained on: it has no {SUBFOLDER}/ that can be read, with a whole model."
    with clear_errors(what, model, revision):
        config = AutoConfig.from_pretrained(model, subfolder=SUBFOLDER, revision=revision)
    if not isinstance(config, method.config_class):
        raise ValueError(f"--model {model} is a model of type {config.model_type}: set --method {config.model_type}.")
    return config


def pretrained_values(model: str, revision: str | None, config: SSLConfig) -> dict[str, Any]:
    """
    What a whole model says about the arguments of a run.

    Args:
        model (`str`): As for [`pretrained_config`].
        revision (`str`, *optional*): As for [`pretrained_config`].
        config ([`SSLConfig`]): Its configuration.

    Returns:
        `dict[str, Any]`: values of arguments by name: the mode, the method's own options, the sizes of the encoder's images
        and patches, how its images are normalized and cropped in evaluations, and the views that it was trained on, where
        they were recorded.

    Raises:
        `ValueError`: a file cannot be read.
        [`~hf_ssl.hub_errors.HubError`]: the Hub does not give it.
    """
    options = {item.name: getattr(config, item.name) for item in fields(model_arguments(type(config)))}
    encoder: Any = config.backbone_config
    sizes = {"image_size": encoder.image_size, "patch_size": getattr(encoder, "patch_size", None)}
    if encoder.model_type == "vit":
        sizes |= {"dropout": encoder.hidden_dropout_prob, "attention_dropout": encoder.attention_probs_dropout_prob}
    has_labels = "classification" in options.get("tasks", ())
    mode = next(name for name, own in config.modes.items() if ("classification" in own.get("tasks", ())) == has_labels)
    processor, views = (_read_json(model, name, revision) for name in (IMAGE_PROCESSOR_NAME, "views.json"))
    transform: dict[str, Any] = {name: processor[name] for name in ("image_mean", "image_std") if name in processor}
    if processor:
        crops = processor.get("do_center_crop", False)
        transform["eval_crop_ratio"] = encoder.image_size / processor["size"]["shortest_edge"] if crops else 1.0
    return {**options, **sizes, **transform, **views, "mode": mode}


def _read_json(model: str, name: str, revision: str | None) -> dict[str, Any]:
    """A file of `pretraining/`, if there is one."""
    with clear_errors(f"--model {model} cannot be trained on.", model, revision):
        path = cached_file(
            model, name, subfolder=SUBFOLDER, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    return {} if path is None else json.loads(Path(path).read_text())


def load_pretrained(model: str, revision: str | None, config: SSLConfig, method: Method) -> SSLPreTrainedModel:
    """
    A whole model with its weights: student, teacher, heads.

    Args:
        model (`str`): As for [`pretrained_config`].
        revision (`str`, *optional*): As for [`pretrained_config`].
        config ([`SSLConfig`]): Its configuration; options that change no weight may have other values.
        method ([`~hf_ssl.models.Method`]): The method.

    Returns:
        [`SSLPreTrainedModel`]: in float32.

    Raises:
        `ValueError`: the weights are not those of the configuration.
    """
    try:
        with clear_errors(f"--model {model} cannot be trained on.", model, revision):
            loaded, info = method.model_class.from_pretrained(
                model,
                subfolder=SUBFOLDER,
                revision=revision,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except RuntimeError as error:  # other shapes
        raise ValueError(f"--model {model} does not fit the options of this run. {error}") from error
    others = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if others:
        raise ValueError(
            f"--model {model} does not have the parts that this run asks for; {', '.join(others[:3])} differ. Leave out the "
            "flags that change them."
        )
    return loaded  # type: ignore[no-any-return]


__all__ = ["load_pretrained", "pretrained_config", "pretrained_values"]
