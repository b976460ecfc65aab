"""Encoders for training."""

from .vit import (
    VIT_SIZES,
    ViTTrunk,
    check_vit_config,
    interpolate_positions,
    publish_vit,
    stochastic_depth_rates,
    vit_config,
)


__all__ = [
    "VIT_SIZES",
    "ViTTrunk",
    "check_vit_config",
    "interpolate_positions",
    "publish_vit",
    "stochastic_depth_rates",
    "vit_config",
]
