"""Batched augmentation: parameters are drawn first, as tensors, then applied to the whole batch."""

from .blur import blur_weights, gaussian_blur
from .boxes import (
    center_crop,
    random_erasing,
    random_flip,
    random_padded_crop,
    random_resized_crop,
    random_square_crop,
    whole_image,
)
from .colors import Colors, apply_colors, draw_colors
from .geometry import (
    correspondences,
    intersection,
    overlap_ratio,
    patch_centers,
    patch_edges,
    sampling_probabilities,
)
from .patches import join_patches, permute_patches, split_patches
from .photometric import adjust_hue, color_jitter, erase, grayscale, normalize, random_grayscale, solarize
from .photos import resized_crop
from .pipeline import (
    MultiViewPipeline,
    blocks,
    check_images,
    draw_boxes,
    full_precision,
    random_erase,
    render,
    render_photo,
    sizes_of,
)
from .random import Draws, seeded
from .resample import apply_weights, canvas_weights, resample, resample_each, resize_weights
from .single import SingleView
from .view import View, save_views


__all__ = [
    "Colors",
    "Draws",
    "MultiViewPipeline",
    "SingleView",
    "View",
    "adjust_hue",
    "apply_colors",
    "apply_weights",
    "blocks",
    "blur_weights",
    "canvas_weights",
    "center_crop",
    "check_images",
    "color_jitter",
    "correspondences",
    "draw_boxes",
    "draw_colors",
    "erase",
    "full_precision",
    "gaussian_blur",
    "grayscale",
    "intersection",
    "join_patches",
    "normalize",
    "overlap_ratio",
    "patch_centers",
    "patch_edges",
    "permute_patches",
    "random_erase",
    "random_erasing",
    "random_flip",
    "random_grayscale",
    "random_padded_crop",
    "random_resized_crop",
    "random_square_crop",
    "render",
    "render_photo",
    "resample",
    "resample_each",
    "resize_weights",
    "resized_crop",
    "sampling_probabilities",
    "save_views",
    "seeded",
    "sizes_of",
    "solarize",
    "split_patches",
    "whole_image",
]
