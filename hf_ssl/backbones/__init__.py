"""Encoders for training."""

from .convnets import CONVNETS, convnet_config
from .filling import fill_from
from .published import ENCODERS, describe_encoder, feature_size, publish
from .swin import SWIN_SIZES, SwinTrunk, check_swin_config, publish_swin, swin_config
from .t2t_vit import T2T_SIZES, t2t_vit_config
from .timm_encoders import TIMM_PREFIX, TimmEncoder, timm_config
from .vit import (
    VIT_SIZES,
    PositionInterpolation,
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
    "SWIN_SIZES",
    "T2T_SIZES",
    "TIMM_PREFIX",
    "VIT_SIZES",
    "PositionInterpolation",
    "SwinTrunk",
    "TimmEncoder",
    "ViTTrunk",
    "check_swin_config",
    "check_vit_config",
    "convnet_config",
    "describe_encoder",
    "feature_size",
    "fill_from",
    "interpolate_positions",
    "publish",
    "publish_swin",
    "publish_vit",
    "stochastic_depth_rates",
    "swin_config",
    "t2t_vit_config",
    "timm_config",
    "vit_config",
]
