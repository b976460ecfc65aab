"""Encoders of timm, in transformers' wrapper, which loads their folders without this library."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperModel


TIMM_PREFIX = "timm/"


class TimmEncoder(TimmWrapperModel):
    """
    A `transformers.TimmWrapperModel` that begins with timm's own initialization: the wrapper's is meant for models that are
    loaded.

    Args:
        config (`transformers.TimmWrapperConfig`): Made by [`timm_config`].
    """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # What has no weights may still have buffers that are not saved.
        if hasattr(module, "init_non_persistent_buffers") or next(module.parameters(recurse=False), None) is None:
            super()._init_weights(module)


def timm_config(name: str, image_size: int) -> TimmWrapperConfig:
    """
    The configuration of an encoder of timm, without its classifier and with random weights.

    Args:
        name (`str`): `timm/` and the name of an architecture, as in `timm/vit_tiny_patch16_224` or `timm/resnet18`.
        image_size (`int`): Side of the images, in pixels.

    Returns:
        `transformers.TimmWrapperConfig`: and, read off the model, `image_size`, `num_features` (width), `num_prefix_tokens`,
        and `patch_size`, if it computes a square grid of tokens row by row, else `None`.

    Raises:
        `ValueError`: timm does not have it, or it does not take images of this size.
    """
    architecture = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(TIMM_PREFIX + match for match in close)}?" if close else "."
        raise ValueError(f"timm {timm.__version__} has no model {architecture!r}{hint}")
    model_args: dict[str, Any] = {"img_size": image_size}
    try:
        with torch.device("meta"):
            try:
                model: Any = timm.create_model(architecture, num_classes=0, **model_args)
            except TypeError:  # a convolutional network takes images of any size
                model, model_args = timm.create_model(architecture, num_classes=0), {}
            tokens = model.eval().forward_features(torch.empty(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"timm's {architecture} does not take images of {image_size} pixels: {error}") from error
    num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    side = round((tokens.shape[1] - num_prefix_tokens) ** 0.5) if tokens.ndim == 3 else 0
    has_grid = side > 0 and side**2 + num_prefix_tokens == tokens.shape[1] and image_size % side == 0
    fields: dict[str, Any] = {
        "num_labels": 0,
        "image_size": image_size,
        "patch_size": image_size // side if has_grid else None,
        "num_features": model.num_features,
        "num_prefix_tokens": num_prefix_tokens,
    }
    return TimmWrapperConfig(architecture=architecture, model_args=model_args or None, **fields)
