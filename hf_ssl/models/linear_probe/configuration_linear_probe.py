"""Configuration of linear classifiers that are trained side by side."""

import math
from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from ..base import SSLConfig


@strict
class LinearProbeConfig(SSLConfig):
    """
    Configuration of [`LinearProbesForTraining`].

    Args:
        learning_rates (`list[float]`, *optional*, defaults to `[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]`):
            Peak learning rates for 256 images in a step; one classifier is trained with each of them.
        initialization (`str`, *optional*, defaults to `"uniform"`):
            What the classifiers begin with: `"uniform"` as PyTorch's linear layers, or `"normal"` with standard deviation
            0.01 and biases of 0.
        feature_size (`int`):
            Numbers in a feature.
        encoder_fingerprint (`str`, *optional*):
            A name for the encoder that computes them, with which alone a run is resumed.
        num_labels (`int`):
            Classes.
    """

    model_type = "hf_ssl_linear_probe"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {}

    learning_rates: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
    initialization: Literal["uniform", "normal"] = "uniform"
    feature_size: int = 1
    encoder_fingerprint: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        rates = self.learning_rates
        names = {f"{rate:g}" for rate in rates}  # of a report
        if not rates or not all(0 < rate < math.inf for rate in rates) or len(names) < len(rates):
            raise ValueError(f"learning_rates={rates} must be positive numbers, each once, to six digits.")


__all__ = ["LinearProbeConfig"]
