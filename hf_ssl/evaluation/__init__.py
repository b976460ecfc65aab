"""Evaluation of frozen encoders, one protocol per file."""

from .arguments import EncoderArguments, EvaluationArguments, normalization, processor_protocol
from .average_precision import average_precision, mean_average_precision
from .class_ranks import class_ranks
from .classification import AccuracyMonitor, classification_accuracy
from .encoders import FeatureSpec, LoadedEncoder, load_encoder
from .feature_cache import cached_features
from .features import POOLINGS, extract_features, pixel_features, pool_features, random_projection
from .knn import knn_accuracy, knn_votes, nearest_neighbors
from .linear import FeatureSource, ProbeMonitor, choose_probe
from .losses import LossMonitor
from .monitor import NUM_QUERIES_SHOWN, KNNMonitor, evenly_spaced, evenly_spaced_indices
from .patch_retrieval import match_ranks, patch_retrieval
from .similarity import instance_similarity


__all__ = [
    "NUM_QUERIES_SHOWN",
    "POOLINGS",
    "AccuracyMonitor",
    "EncoderArguments",
    "EvaluationArguments",
    "FeatureSource",
    "FeatureSpec",
    "KNNMonitor",
    "LoadedEncoder",
    "LossMonitor",
    "ProbeMonitor",
    "average_precision",
    "cached_features",
    "choose_probe",
    "class_ranks",
    "classification_accuracy",
    "evenly_spaced",
    "evenly_spaced_indices",
    "extract_features",
    "instance_similarity",
    "knn_accuracy",
    "knn_votes",
    "load_encoder",
    "match_ranks",
    "mean_average_precision",
    "nearest_neighbors",
    "normalization",
    "patch_retrieval",
    "pixel_features",
    "pool_features",
    "processor_protocol",
    "random_projection",
]
