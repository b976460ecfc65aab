"""Retrieval: how early images of the same thing come when a database is ranked by its similarity to a query."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Relevance
from .average_precision import average_precision_of_ranks, means_of_queries
from .ranks import ranks_of


NUM_QUERIES = 512  # whose wanted images are looked at at a time: of a class, there may be thousands
K = (1, 5, 10)


class CroppedImages(torch.utils.data.Dataset[dict[str, Any]]):
    """
    Parts of images in their place.

    Args:
        images (`torch.utils.data.Dataset`): A source of `hf_ssl.data`.
        boxes (`Sequence[tuple[float, float, float, float]]`): Left, top, right and bottom of each part, in pixels.
    """

    def __init__(self, images: Any, boxes: Sequence[tuple[float, float, float, float]]):
        if len(boxes) != len(images):
            raise ValueError(f"There are {len(images)} images but {len(boxes)} boxes: give one box for each image.")
        self.images, self.boxes = images, boxes

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """A name for this content, as of the sources."""
        return hashlib.sha256(f"{self.images.fingerprint()} {list(self.boxes)}".encode()).hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Args:
            index (`int`): Index of the image.

        Returns:
            `dict[str, Any]`: `image`, a uint8 tensor of shape `(3, height, width)`, and what else the source knows of it.
        """
        sample = self.images[index]
        left, top, right, bottom = (max(0, round(edge)) for edge in self.boxes[index])
        part = sample["image"][:, top:bottom, left:right]
        if not part.numel():
            raise ValueError(
                f"Box {self.boxes[index]} of image {index} lies outside of it: {tuple(sample['image'].shape)}."
            )
        return {**sample, "image": part}


@dataclass
class QueryScores:
    """
    How well each query found its images.

    Args:
        average_precision (`torch.Tensor` of shape `(num_queries,)`): In [0, 1]; NaN for queries without images to find.
        precision (`torch.Tensor` of shape `(num_queries, 3)`): Among the first 1, 5 and 10; NaN likewise.
    """

    average_precision: Tensor
    precision: Tensor


def retrieval_scores(queries: Tensor, database: Tensor, relevance: Mapping[str, Relevance]) -> dict[str, QueryScores]:
    """
    Rank a database for each query, and see where the images are that should be found.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Features of the queries.
        database (`torch.Tensor` of shape `(N, D)`): Features of the database, on any device.
        relevance (`Mapping[str, Relevance]`): What should be found, and what does not count, by setup.

    Returns:
        `dict[str, QueryScores]`: by setup, on the CPU.
    """
    scores = {}
    for setup, wanted in relevance.items():
        parts = []
        for start in range(0, len(queries), NUM_QUERIES):
            some = slice(start, start + NUM_QUERIES)
            positives, junk = wanted.positives[some], wanted.junk[some]
            ranks = ranks_of(
                queries[some], database, [[*own, *rest] for own, rest in zip(positives, junk, strict=True)]
            )
            of_positives = [row[: len(own)] for row, own in zip(ranks, positives, strict=True)]
            of_junk = [row[len(own) :] for row, own in zip(ranks, positives, strict=True)]
            parts.append(average_precision_of_ranks(of_positives, of_junk, k=K))
        average, precision = (torch.cat(columns).cpu() for columns in zip(*parts, strict=True))
        scores[setup] = QueryScores(average, precision)
    return scores


def mean_scores(scores: Mapping[str, QueryScores]) -> dict[str, float]:
    """
    Means over the queries that have images to find.

    Args:
        scores (`Mapping[str, QueryScores]`): What [`retrieval_scores`] returns.

    Returns:
        `dict[str, float]`: in percent, `mAP_easy`, `mP@1_easy`, `mP@5_easy`, `mP@10_easy`, and so on for each setup; of a
        single one called `all`, `mAP`, `mP@1`, and so on.

    Raises:
        `ValueError`: there is a setup in which no query has an image to find.
    """
    means: dict[str, float] = {}
    for setup, of_queries in scores.items():
        ending = "" if setup == "all" else f"_{setup}"
        values = means_of_queries(of_queries.average_precision, of_queries.precision, K)
        means |= {f"{name}{ending}": value for name, value in values.items()}
    return means


__all__ = ["CroppedImages", "QueryScores", "mean_scores", "retrieval_scores"]
