"""Batched augmentation: parameters are drawn first, as tensors, then applied to the whole batch."""

from .boxes import random_flip, random_padded_crop, random_resized_crop, random_square_crop
from .patches import join_patches, permute_patches, split_patches
from .photometric import adjust_hue, batch_innermost, color_jitter, grayscale, normalize, random_grayscale
from .random import Draws
from .resample import apply_weights, resample, resize_weights


__all__ = [
    "Draws",
    "adjust_hue",
    "apply_weights",
    "batch_innermost",
    "color_jitter",
    "grayscale",
    "join_patches",
    "normalize",
    "permute_patches",
    "random_flip",
    "random_grayscale",
    "random_padded_crop",
    "random_resized_crop",
    "random_square_crop",
    "resample",
    "resize_weights",
    "split_patches",
]
