"""How well a ranking of a database finds the images that a query should find.

The protocol of [Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking](https://huggingface.co/papers/1803.11285)
(Radenović et al., 2018): average precision is the area below the precision-recall curve, by the trapezoidal rule, and junk
images count as if the database did not have them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def average_precision(
    rankings: Tensor,
    positives: Sequence[Sequence[int] | Tensor],
    junk: Sequence[Sequence[int] | Tensor] | None = None,
    *,
    k: Sequence[int] = (1, 5, 10),
) -> tuple[Tensor, Tensor]:
    """
    Average precision and precision at `k` of each query.

    A positive image that the ranking does not have counts as never found. Precision at `k` looks at the first `k` images
    that are no junk, or at fewer if all positives come earlier, so that a query with less than `k` positives can reach 1.

    Args:
        rankings (`torch.Tensor` of shape `(Q, L)`):
            Indices of database images, the best first; of the whole database or of its first `L`.
        positives (`Sequence[Sequence[int]]`): For each query the indices it should find.
        junk (`Sequence[Sequence[int]]`, *optional*): For each query the indices to leave out.
        k (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): Where precision is measured.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: average precision of shape `(Q,)` and precision of shape `(Q, len(k))`, both
        float64 between 0 and 1; NaN for a query without positives.

    Raises:
        `ValueError`: If shapes do not fit, an index is negative or ranked twice, an image is both positive and junk, or `k`
            is not positive.
    """
    if not k or min(k) < 1:
        raise ValueError(f"`k` must be positive integers, got {list(k)}.")
    is_positive, is_junk = _membership(rankings, positives, [()] * len(rankings) if junk is None else junk)
    skipped = is_junk.gather(1, rankings)
    queries, places = is_positive.gather(1, rankings).nonzero(as_tuple=True)
    # From 0 on; a positive is no junk, so all junk up to its place lies before it.
    ranks = places - skipped.cumsum(1, dtype=torch.int32)[queries, places]
    counts = queries.bincount(minlength=len(rankings))
    earlier = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    precision_before = torch.where(ranks == 0, 1.0, earlier.double() / ranks)
    precision_after = (earlier + 1).double() / (ranks + 1)
    num_positives = is_positive.sum(1)

    def per_query(values: Tensor) -> Tensor:
        return torch.zeros_like(counts, dtype=torch.float64).index_add_(0, queries, values.double())

    average = per_query((precision_before + precision_after) / 2) / num_positives
    last = torch.zeros_like(counts).scatter_reduce_(0, queries, ranks + 1, "amax")
    # A positive that was not found lies beyond the end of the ranking.
    last[counts < num_positives] = max(k)
    return average, torch.stack([per_query(ranks < n) / last.clamp(max=n) for n in k], dim=1)


def mean_average_precision(
    rankings: Tensor,
    positives: Sequence[Sequence[int] | Tensor],
    junk: Sequence[Sequence[int] | Tensor] | None = None,
    *,
    k: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """
    Means of [`average_precision`] over the queries that have positives.

    Args:
        rankings (`torch.Tensor` of shape `(Q, L)`): Indices of database images, the best first.
        positives (`Sequence[Sequence[int]]`): For each query the indices it should find.
        junk (`Sequence[Sequence[int]]`, *optional*): For each query the indices to leave out.
        k (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): Where precision is measured.

    Returns:
        `dict[str, float]`: `mAP` and `mP@{k}` for each `k`, in percent.

    Raises:
        `ValueError`: As [`average_precision`]; also if no query has a positive.
    """
    average, precision = average_precision(rankings, positives, junk, k=k)
    counted = ~average.isnan()
    if not counted.any():
        raise ValueError(f"None of the {len(average)} queries has a positive image: there is nothing to find.")
    means = (100 * precision[counted].mean(0)).tolist()
    return {"mAP": 100 * average[counted].mean().item()} | {f"mP@{n}": mean for n, mean in zip(k, means, strict=True)}


def _membership(
    rankings: Tensor, positives: Sequence[Sequence[int] | Tensor], junk: Sequence[Sequence[int] | Tensor]
) -> tuple[Tensor, Tensor]:
    """Which database images are positives, and which are junk, of each query: two bool tensors `(Q, database)`."""
    if rankings.ndim != 2 or rankings.is_floating_point() or not rankings.numel():
        raise ValueError(
            "`rankings` must hold integers, shape (number of queries, number of ranked images), and not be empty; got "
            f"{tuple(rankings.shape)}, {rankings.dtype}."
        )
    named = {"positives": positives, "junk": junk}
    indices = {
        name: [torch.as_tensor(row, dtype=torch.int64, device=rankings.device) for row in rows]
        for name, rows in named.items()
    }
    size = 0
    for name, rows in ({"rankings": list(rankings)} | indices).items():
        if len(rows) != len(rankings):
            raise ValueError(f"`{name}` must have one list for each of the {len(rankings)} queries, got {len(rows)}.")
        present = torch.cat(rows)
        if len(present) and present.min() < 0:
            raise ValueError(f"`{name}` must hold indices of database images, from 0 on, got {int(present.min())}.")
        size = max(size, int(present.max()) + 1) if len(present) else size
    tables = {name: rankings.new_zeros(len(rankings), size, dtype=torch.bool) for name in ("rankings", *indices)}
    if tables["rankings"].scatter_(1, rankings, True).sum() != rankings.numel():
        query = int((tables["rankings"].sum(1) != rankings.shape[1]).nonzero()[0])
        raise ValueError(f"`rankings` of query {query} has an image twice: rank each database image once.")
    for name, rows in indices.items():
        for table_row, row in zip(tables[name], rows, strict=True):
            table_row[row] = True
    both = (tables["positives"] & tables["junk"]).nonzero()
    if len(both):
        query, index = both[0].tolist()
        raise ValueError(
            f"Image {index} is in `positives` and in `junk` of query {query}: it can only be one of them."
        )
    return tables["positives"], tables["junk"]
