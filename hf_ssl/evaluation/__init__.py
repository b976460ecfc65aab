"""Evaluation of frozen encoders, one protocol per file."""

from .classification import AccuracyMonitor, classification_accuracy
from .features import POOLINGS, extract_features, pixel_features, pool_features
from .knn import knn_accuracy, knn_votes, nearest_neighbors
from .losses import LossMonitor
from .monitor import NUM_QUERIES_SHOWN, KNNMonitor, evenly_spaced
from .patch_retrieval import match_ranks, patch_retrieval
from .similarity import instance_similarity


__all__ = [
    "NUM_QUERIES_SHOWN",
    "POOLINGS",
    "AccuracyMonitor",
    "KNNMonitor",
    "LossMonitor",
    "classification_accuracy",
    "evenly_spaced",
    "extract_features",
    "instance_similarity",
    "knn_accuracy",
    "knn_votes",
    "match_ranks",
    "nearest_neighbors",
    "patch_retrieval",
    "pixel_features",
    "pool_features",
]
