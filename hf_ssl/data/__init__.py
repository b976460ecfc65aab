"""Datasets: the registry of names, loading, decoding, verification, sources and sampler of training, benchmarks."""

from .copydays import COPYDAYS_SIZES, CopyDays, load_copydays, originals_of
from .images import MAX_PIXELS, ImageError, decode_rgb, image_size
from .loading import ImageData, load_image_data
from .plain_pickle import PlainPickleError, load_plain_pickle
from .registry import DATASETS, DatasetInfo
from .repeat import RepeatedBatches
from .retrieval import Relevance, RetrievalTask, find_images, load_pairs, load_revisited, same_class_task
from .sampler import EpochSampler
from .sources import AugmentedSource, PhotoSource, PhotoViews, TensorSource, collate, make_source, render_photos
from .verify import verify_images
from .workers import prepare_for_workers, start_worker


__all__ = [
    "COPYDAYS_SIZES",
    "DATASETS",
    "MAX_PIXELS",
    "AugmentedSource",
    "CopyDays",
    "DatasetInfo",
    "EpochSampler",
    "ImageData",
    "ImageError",
    "PhotoSource",
    "PhotoViews",
    "PlainPickleError",
    "Relevance",
    "RepeatedBatches",
    "RetrievalTask",
    "TensorSource",
    "collate",
    "decode_rgb",
    "find_images",
    "image_size",
    "load_copydays",
    "load_image_data",
    "load_pairs",
    "load_plain_pickle",
    "load_revisited",
    "make_source",
    "originals_of",
    "prepare_for_workers",
    "render_photos",
    "same_class_task",
    "start_worker",
    "verify_images",
]
