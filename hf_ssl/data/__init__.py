"""Datasets: the registry of names, loading, decoding, verification, and the sources and the sampler of training."""

from .images import MAX_PIXELS, ImageError, decode_rgb, image_size
from .loading import ImageData, load_image_data
from .registry import DATASETS, DatasetInfo
from .repeat import RepeatedBatches
from .sampler import EpochSampler
from .sources import AugmentedSource, PhotoSource, PhotoViews, TensorSource, collate, make_source
from .verify import verify_images
from .workers import prepare_for_workers, start_worker


__all__ = [
    "DATASETS",
    "MAX_PIXELS",
    "AugmentedSource",
    "DatasetInfo",
    "EpochSampler",
    "ImageData",
    "ImageError",
    "PhotoSource",
    "PhotoViews",
    "RepeatedBatches",
    "TensorSource",
    "collate",
    "decode_rgb",
    "image_size",
    "load_image_data",
    "make_source",
    "prepare_for_workers",
    "start_worker",
    "verify_images",
]
