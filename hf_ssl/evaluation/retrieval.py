"""Retrieval: how early images of the same thing come when a database is ranked by its similarity to a query."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ..data import Relevance
from .average_precision import average_precision_of_ranks, means_of_queries
from .ranks import ranks_of


MAX_QUERIES = 512  # whose wanted images are looked at at a time: of a class, there may be thousands
K = (1, 5, 10)


class CroppedImages(torch.utils.data.Dataset[dict[str, Any]]):
    """
    Parts of photos in their place.

    Args:
        images (`torch.utils.data.Dataset`): A source of `hf_ssl.data`.
        boxes (`Sequence[tuple[float, float, float, float]]`): Left, top, right and bottom of each part, in pixels.
        longest_side (`int`, *optional*):
            Longer side that whole photos are shrunk to, in pixels: parts are shrunk by the same factor, so that things are as
            large in them as in the photos of the database. Unset, they keep their size.
    """

    def __init__(
        self, images: Any, boxes: Sequence[tuple[float, float, float, float]], longest_side: int | None = None
    ):
        if len(boxes) != len(images):
            raise ValueError(f"There are {len(images)} images but {len(boxes)} boxes: give one box for each image.")
        self.images, self.boxes, self.longest_side = images, boxes, longest_side

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """A name for this content, as of the sources."""
        return hashlib.sha256(
            f"{self.images.fingerprint()} {list(self.boxes)} {self.longest_side}".encode()
        ).hexdigest()

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
        if self.longest_side is None:
            return {**sample, "image": part}
        side = self.longest_side * max(part.shape[1:]) / max(sample["image"].shape[1:])
        photo = to_pil_image(part)
        photo.thumbnail((max(1, side), max(1, side)), PIL.Image.Resampling.LANCZOS)
        return {**sample, "image": pil_to_tensor(photo)}


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
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {setup: [] for setup in relevance}
    for start in range(0, len(queries), MAX_QUERIES):
        some = slice(start, start + MAX_QUERIES)
        # Setups tell the same images apart in other ways: their ranks are found once.
        wanted = [_union(rows) for rows in zip(*(lists[some] for lists in _lists(relevance)), strict=True)]
        ranks = [row.cpu() for row in ranks_of(queries[some], database, wanted)]
        for setup, lists in relevance.items():
            of_kinds = (
                [_pick(*row) for row in zip(wanted, ranks, rows[some], strict=True)]
                for rows in (lists.positives, lists.junk)
            )
            parts[setup].append(average_precision_of_ranks(*of_kinds, k=K))
    return {
        setup: QueryScores(*(torch.cat(columns) for columns in zip(*of_setup, strict=True)))
        for setup, of_setup in parts.items()
    }


def _lists(relevance: Mapping[str, Relevance]) -> list[list[list[int]]]:
    return [rows for lists in relevance.values() for rows in (lists.positives, lists.junk)]


def _union(rows: Sequence[list[int]]) -> Tensor:
    """Places of all images that matter to a query, in ascending order."""
    return torch.cat([torch.as_tensor(row, dtype=torch.int64) for row in rows]).unique()


def _pick(wanted: Tensor, ranks: Tensor, places: list[int]) -> Tensor:
    """The ranks of some of the images that matter to a query."""
    return ranks[torch.searchsorted(wanted, torch.as_tensor(places, dtype=torch.int64))]


def mean_scores(scores: Mapping[str, QueryScores]) -> dict[str, float]:
    """
    Means over the queries that have images to find.

    Args:
        scores (`Mapping[str, QueryScores]`): What [`retrieval_scores`] returns.

    Returns:
        `dict[str, float]`: in percent, `mAP_easy`, `mP@1_easy`, `mP@5_easy`, `mP@10_easy`, and so on for each setup; of a
        single one called `all`, `mAP`, `mP@1`, and so on. A setup in which no query has an image to find is left out.

    Raises:
        `ValueError`: no query has an image to find in any setup.
    """
    means: dict[str, float] = {}
    counted = {setup: of for setup, of in scores.items() if not of.average_precision.isnan().all()}
    if not counted:
        raise ValueError("No query has an image to find: there is nothing to measure.")
    for setup, of_queries in counted.items():
        ending = "" if setup == "all" else f"_{setup}"
        values = means_of_queries(of_queries.average_precision, of_queries.precision, K)
        means |= {f"{name}{ending}": value for name, value in values.items()}
    return means


__all__ = ["CroppedImages", "QueryScores", "mean_scores", "retrieval_scores"]
