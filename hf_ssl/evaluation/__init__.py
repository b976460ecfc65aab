"""Evaluation of frozen encoders, one protocol per file."""

from .arguments import EncoderArguments, EvaluationArguments, normalization, processor_protocol
from .attention import attention_maps, attention_masks, crop_to_patches
from .average_precision import (
    average_precision,
    average_precision_of_ranks,
    mean_average_precision,
    means_of_queries,
)
from .class_ranks import class_ranks
from .classification import AccuracyMonitor, classification_accuracy
from .copy_detection import CopyBlock, CopyResult, copy_detection
from .encoders import FeatureSpec, LoadedEncoder, load_encoder
from .feature_cache import cached_features
from .features import POOLINGS, extract_features, pixel_features, pool_features, random_projection
from .knn import knn_accuracy, knn_votes
from .linear import FeatureSource, ProbeMonitor, choose_probe
from .losses import LossMonitor
from .matching import (
    ImagePatches,
    PatchMatches,
    grid_tokens,
    image_patches,
    match_boxes,
    match_images,
    mutual_nearest_patches,
    similarity_map,
)
from .monitor import NUM_QUERIES_SHOWN, KNNMonitor, evenly_spaced, evenly_spaced_indices
from .near_duplicates import groups_of, near_duplicates
from .patch_retrieval import match_ranks, patch_retrieval
from .ranks import ranks_of
from .retrieval import CroppedImages, QueryScores, mean_scores, retrieval_scores
from .search import nearest_neighbors
from .similarity import instance_similarity
from .thumbnails import ThumbnailProcessor
from .whitening import Whitening


__all__ = [
    "NUM_QUERIES_SHOWN",
    "POOLINGS",
    "AccuracyMonitor",
    "CopyBlock",
    "CopyResult",
    "CroppedImages",
    "EncoderArguments",
    "EvaluationArguments",
    "FeatureSource",
    "FeatureSpec",
    "ImagePatches",
    "KNNMonitor",
    "LoadedEncoder",
    "LossMonitor",
    "PatchMatches",
    "ProbeMonitor",
    "QueryScores",
    "ThumbnailProcessor",
    "Whitening",
    "attention_maps",
    "attention_masks",
    "average_precision",
    "average_precision_of_ranks",
    "cached_features",
    "choose_probe",
    "class_ranks",
    "classification_accuracy",
    "copy_detection",
    "crop_to_patches",
    "evenly_spaced",
    "evenly_spaced_indices",
    "extract_features",
    "grid_tokens",
    "groups_of",
    "image_patches",
    "instance_similarity",
    "knn_accuracy",
    "knn_votes",
    "load_encoder",
    "match_boxes",
    "match_images",
    "match_ranks",
    "mean_average_precision",
    "mean_scores",
    "means_of_queries",
    "mutual_nearest_patches",
    "near_duplicates",
    "nearest_neighbors",
    "normalization",
    "patch_retrieval",
    "pixel_features",
    "pool_features",
    "processor_protocol",
    "random_projection",
    "ranks_of",
    "retrieval_scores",
    "similarity_map",
]
