"""Encoders of timm, in transformers' wrapper, which loads their folders without this library."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import TimmWrapperConfig, TimmWrapperModel
from transformers import initialization as init


TIMM_PREFIX = "timm/"


class TimmEncoder(TimmWrapperModel):
    """
    A `transformers.TimmWrapperModel` that begins with timm's own initialization: the wrapper's is meant for models that are
    loaded.

    Args:
        config (`transformers.TimmWrapperConfig`): Made by [`timm_config`].
    """

    # Made without weights, to be loaded.
    _is_loaded = False

    def __init__(self, config: TimmWrapperConfig):
        if config._attn_implementation == "eager":  # it is timm that chooses, and the wrapper would warn of that
            config._attn_implementation = "sdpa"
        super().__init__(config)
        self._is_loaded = any(parameter.is_meta for parameter in self.parameters())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if self._is_loaded:
            self._fill_missing()
        # What has no weights may still have buffers that are not saved.
        if hasattr(module, "init_non_persistent_buffers") or next(module.parameters(recurse=False), None) is None:
            super()._init_weights(module)

    def _fill_missing(self) -> None:
        """What a file lacks is taken from a new model of timm."""
        tensors = self.timm_model.state_dict(keep_vars=True)
        missing = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        new = _make_model(self.config).state_dict() if missing else {}
        for name in missing:
            init.copy_(tensors[name], new[name])
            tensors[name]._is_hf_initialized = True  # type: ignore[attr-defined]

    def pooling_parameters(self) -> list[nn.Parameter]:
        """
        Of the pooling alone: parameters that no token depends on.

        Returns:
            `list[torch.nn.Parameter]`: they get no gradient where the pooled feature is not used.
        """
        with torch.device("meta"), torch.enable_grad():
            model = _make_model(self.config).eval()
            tokens = model.forward_features(torch.empty(1, 3, self.config.image_size, self.config.image_size))
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(tokens.sum(), parameters, allow_unused=True)
        unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
        return [self.timm_model.get_parameter(name) for name in unused]


def _make_model(config: TimmWrapperConfig) -> Any:
    return timm.create_model(config.architecture, num_classes=0, **(config.model_args or {}))


def timm_config(name: str, image_size: int) -> TimmWrapperConfig:
    """
    The configuration of an encoder of timm, without its classifier and with random weights.

    Args:
        name (`str`): `timm/` and the name of an architecture, as in `timm/vit_tiny_patch16_224` or `timm/resnet18`.
        image_size (`int`): Side of the images, in pixels.

    Returns:
        `transformers.TimmWrapperConfig`: and, read off the model, `image_size`, `num_features` (width), `num_prefix_tokens`,
        and `patch_size`, if it computes a square grid of tokens row by row that covers the image, else `None`.

    Raises:
        `ValueError`: timm does not have it, or it does not take images of this size.
    """
    architecture = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(TIMM_PREFIX + match for match in close)}?" if close else "."
        raise ValueError(f"timm {timm.__version__} has no model {architecture!r}{hint}")
    plain, _, tag = architecture.partition(".")
    if tag:
        raise ValueError(
            f"{name} stands for the pretrained weights {tag!r}, but the encoder begins with random ones: name it "
            f"{TIMM_PREFIX}{plain}."
        )
    model_args: dict[str, Any] = {"img_size": image_size}
    try:
        with torch.device("meta"):
            try:
                model: Any = timm.create_model(architecture, num_classes=0, **model_args)
            except TypeError:  # a convolutional network takes images of any size
                model, model_args = timm.create_model(architecture, num_classes=0), {}
            tokens = model.eval().forward_features(torch.empty(1, 3, image_size, image_size))
            # Some networks widen the feature after the pooling.
            feature = model.forward_head(tokens) if isinstance(tokens, Tensor) else None
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"timm's {architecture} does not take images of {image_size} pixels: {reason}") from error
    if not isinstance(feature, Tensor):
        raise ValueError(f"timm's {architecture} has no single feature map or feature of an image; use another one.")
    num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    side = round((tokens.shape[1] - num_prefix_tokens) ** 0.5) if tokens.ndim == 3 else 0
    patch_size = (
        model.feature_info[-1]["reduction"] if getattr(model, "feature_info", None) else image_size // max(side, 1)
    )
    has_grid = side**2 + num_prefix_tokens == tokens.shape[1] and side * patch_size == image_size
    fields: dict[str, Any] = {
        "num_labels": 0,
        "image_size": image_size,
        "patch_size": patch_size if has_grid and tokens.shape[2] == feature.shape[1] else None,
        "num_features": feature.shape[1],
        "num_prefix_tokens": num_prefix_tokens,
    }
    return TimmWrapperConfig(architecture=architecture, model_args=model_args or None, **fields)
