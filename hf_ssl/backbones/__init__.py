"""Encoders for training."""

from .convnets import CONVNETS, ENCODERS, convnet_config, describe_convnet, feature_size, publish_convnet
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
    "CONVNETS",
    "ENCODERS",
    "VIT_SIZES",
    "ViTTrunk",
    "check_vit_config",
    "convnet_config",
    "describe_convnet",
    "feature_size",
    "interpolate_positions",
    "publish_convnet",
    "publish_vit",
    "stochastic_depth_rates",
    "vit_config",
]
