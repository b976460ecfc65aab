"""Copy detection: does a changed copy of an image find its original among the originals and many other images?

The protocol of DINO and PW-Self on Copydays ([Douze et al., 2009](https://lear.inrialpes.fr/pubs/2009/DJSAS09/)):
blocks of copies, which were changed in one way each, are searched in a database of the originals and of distractors by
the cosine similarity of features, perhaps whitened ones. What is not among the first 20 counts as never found.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .average_precision import average_precision_of_ranks, means_of_queries
from .search import nearest_neighbors
from .whitening import Whitening


class CopyBlock(NamedTuple):
    """
    Queries of one kind.

    Args:
        features (`torch.Tensor` of shape `(Q, D)`): Features of the copies; need not be normalized.
        originals (`Sequence[Sequence[int]]`): For each copy the indices of its originals in the database.
    """

    features: Tensor
    originals: Sequence[Sequence[int] | Tensor]


class CopyResult(NamedTuple):
    """
    What the queries of a block found.

    Args:
        mean_average_precision (`float`): Over the queries that have originals, in percent.
        average_precision (`torch.Tensor` of shape `(Q,)`, float64):
            Of each query, between 0 and 1; NaN where the database has no original of it.
        neighbors (`torch.Tensor` of shape `(Q, k)`, int64): Indices of the nearest database images, the best first.
    """

    mean_average_precision: float
    average_precision: Tensor
    neighbors: Tensor


@torch.no_grad()
def copy_detection(
    database: Tensor,
    blocks: Mapping[str, CopyBlock],
    *,
    whitening: Whitening | None = None,
    k: int = 20,
    chunk_size: int = 256,
) -> dict[str, CopyResult]:
    """
    Searches copies in a database of originals and distractors, and measures how early they find their originals.

    Args:
        database (`torch.Tensor` of shape `(N, D)`):
            Features of the originals, then of distractors; need not be normalized.
        blocks (`Mapping[str, CopyBlock]`): Queries of each kind, on the same device, and what they should find.
        whitening (`Whitening`, *optional*): Applied to all features, before they are normalized.
        k (`int`, *optional*, defaults to 20): Neighbors that are ranked; all, if the database has fewer images.
        chunk_size (`int`, *optional*, defaults to 256): Queries compared at a time, see [`nearest_neighbors`].

    Returns:
        `dict[str, CopyResult]`: For each block its mean average precision in percent, and the numbers of each query.

    Raises:
        `ValueError`: If shapes do not fit, features are not finite, an original is not in the database, or no query of
            a block has one.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    database = database if whitening is None else whitening.apply(database)
    wanted = {}
    for name, (features, originals) in blocks.items():
        if len(originals) != len(features):
            raise ValueError(
                f"Block {name!r} must have one list of originals for each of its {len(features)} queries, got "
                f"{len(originals)}."
            )
        own = [torch.as_tensor(row, dtype=torch.int64, device=features.device).unique() for row in originals]
        present = torch.cat(own) if own else torch.empty(0)
        if not len(present):
            raise ValueError(f"Block {name!r} has no query with an original: there is nothing to find.")
        if present.min() < 0 or present.max() >= len(database):
            raise ValueError(
                f"Originals of block {name!r} must be indices of the {len(database)} database images, got values from "
                f"{int(present.min())} to {int(present.max())}."
            )
        wanted[name] = own
    # All at once, as the database is prepared for each search.
    copies = torch.cat([features for features, _ in blocks.values()])
    copies = copies if whitening is None else whitening.apply(copies)
    found = nearest_neighbors(copies, database, min(k, len(database)), chunk_size=chunk_size)
    results = {}
    for (name, own), neighbors in zip(wanted.items(), found.split(list(map(len, wanted.values()))), strict=True):
        ranks = [
            torch.isin(row, places.to(row.device)).nonzero()[:, 0] for row, places in zip(neighbors, own, strict=True)
        ]
        average, precision = average_precision_of_ranks(ranks, num_positives=[len(row) for row in own], k=[k])
        results[name] = CopyResult(means_of_queries(average, precision, [k])["mAP"], average, neighbors)
    return results


__all__ = ["CopyBlock", "CopyResult", "copy_detection"]
