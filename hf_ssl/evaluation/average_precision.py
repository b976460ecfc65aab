"""How well a ranking of a database finds the images that a query should find.

The protocol of [Revisiting Oxford and Paris](https://huggingface.co/papers/1803.11285) (Radenović et al., 2018):
average precision is the area below the precision-recall curve, by the trapezoidal rule, and junk images count as if
the database did not have them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average_precision_of_ranks(
    positive_ranks: Sequence[Sequence[int] | Tensor],
    junk_ranks: Sequence[Sequence[int] | Tensor] | None = None,
    *,
    num_positives: Sequence[int] | Tensor | None = None,
    k: Sequence[int] = (1, 5, 10),
) -> tuple[Tensor, Tensor]:
    """
    Average precision and precision at `k` of each query, by the ranks of what it should find, see [`ranks_of`].

    Precision at `k` looks at the first `k` images that are no junk, or at fewer if all positives come earlier, so that
    a query with less than `k` positives can reach 1.

    Args:
        positive_ranks (`Sequence[Sequence[int]]`):
            For each query the ranks, from 0 on and in any order, of the images it should find.
        junk_ranks (`Sequence[Sequence[int]]`, *optional*): For each query the ranks of the images to leave out.
        num_positives (`Sequence[int]`, *optional*):
            For each query the number of images it should find, where some have no rank: these count as never found.
        k (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): Where precision is measured.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: average precision of shape `(Q,)` and precision of shape `(Q, len(k))`,
        both float64 between 0 and 1; NaN for a query without positives.

    Raises:
        `ValueError`: If there are no queries, lengths do not fit, a rank is negative or given twice, a query has fewer
            positives than ranks of them, or `k` is not positive.
    """
    if not k or min(k) < 1:
        raise ValueError(f"`k` must be positive integers, got {list(k)}.")
    if not len(positive_ranks):
        raise ValueError("`positive_ranks` is empty: there are no queries.")
    junk_ranks = [()] * len(positive_ranks) if junk_ranks is None else junk_ranks
    rows = _index_rows({"positive_ranks": positive_ranks, "junk_ranks": junk_ranks}, len(positive_ranks), "ranks")
    ranks = torch.cat([*rows["positive_ranks"], *rows["junk_ranks"]])
    counts, junk_counts = (
        torch.tensor([len(row) for row in of_kind], device=ranks.device) for of_kind in rows.values()
    )
    queries = torch.arange(len(counts), device=ranks.device).repeat(2)
    queries = queries.repeat_interleave(torch.cat([counts, junk_counts]))
    # All in the order of the queries, those of a query in the order of their ranks.
    keys, order = (queries * (int(ranks.max()) + 1 if len(ranks) else 1) + ranks).sort()
    is_junk, queries, ranks = order >= counts.sum(), queries[order], ranks[order]
    twice = (keys[1:] == keys[:-1]).nonzero()[:1, 0].tolist()
    if twice:
        raise ValueError(
            f"Rank {int(ranks[twice[0]])} of query {int(queries[twice[0]])} is given twice, in `positive_ranks` and "
            "`junk_ranks` together: each image has a rank of its own."
        )
    ranks = ranks - is_junk.cumsum(0) + (junk_counts.cumsum(0) - junk_counts)[queries]
    queries, ranks = queries[~is_junk], ranks[~is_junk]
    earlier = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    precision_before = torch.where(ranks == 0, 1.0, earlier.double() / ranks)
    precision_after = (earlier + 1).double() / (ranks + 1)
    totals = counts if num_positives is None else torch.as_tensor(num_positives, device=counts.device)
    if totals.shape != counts.shape or (totals < counts).any():
        raise ValueError(
            f"`num_positives` must have, for each of the {len(counts)} queries, at least the number of its positive "
            f"ranks, {counts.tolist()[:20]}; got {totals.tolist()[:20]}."
        )

    def per_query(values: Tensor) -> Tensor:
        return torch.zeros_like(counts, dtype=torch.float64).index_add_(0, queries, values.double())

    average = per_query((precision_before + precision_after) / 2) / totals
    last = torch.zeros_like(counts).scatter_reduce_(0, queries, ranks + 1, "amax")
    # A positive that was not found lies beyond the end of the ranking.
    last[counts < totals] = max(k)
    return average, torch.stack([per_query(ranks < n) / last.clamp(max=n) for n in k], dim=1)


def average_precision(
    rankings: Tensor,
    positives: Sequence[Sequence[int] | Tensor],
    junk: Sequence[Sequence[int] | Tensor] | None = None,
    *,
    k: Sequence[int] = (1, 5, 10),
) -> tuple[Tensor, Tensor]:
    """
    Average precision and precision at `k` of each query, by rankings, see [`average_precision_of_ranks`].

    A positive image that the ranking does not have counts as never found.

    Args:
        rankings (`torch.Tensor` of shape `(Q, L)`):
            Indices of database images, the best first; of the whole database or of its first `L`.
        positives (`Sequence[Sequence[int]]`): For each query the indices it should find.
        junk (`Sequence[Sequence[int]]`, *optional*): For each query the indices to leave out.
        k (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): Where precision is measured.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: average precision of shape `(Q,)` and precision of shape `(Q, len(k))`,
        both float64 between 0 and 1; NaN for a query without positives.

    Raises:
        `ValueError`: If shapes do not fit, an index is negative or ranked twice, an image is both positive and junk,
            or `k` is not positive.
    """
    if rankings.ndim != 2 or rankings.is_floating_point() or not rankings.numel():
        raise ValueError(
            "`rankings` must hold integers, shape (number of queries, number of ranked images), and not be empty; got "
            f"{tuple(rankings.shape)}, {rankings.dtype}."
        )
    junk = [()] * len(rankings) if junk is None else junk
    named = {"rankings": list(rankings), "positives": positives, "junk": junk}
    rows = _index_rows(named, len(rankings), "indices of database images")
    ranks: dict[str, list[Tensor]] = {"positives": [], "junk": []}
    for query, (ranking, own, left_out) in enumerate(zip(*rows.values(), strict=True)):
        if len(ranking.unique()) < len(ranking):
            raise ValueError(f"`rankings` of query {query} has an image twice: rank each database image once.")
        both = own[torch.isin(own, left_out)].tolist()
        if both:
            raise ValueError(
                f"Image {both[0]} is in `positives` and in `junk` of query {query}: it can only be one of them."
            )
        for name, indices in (("positives", own), ("junk", left_out)):
            ranks[name].append(torch.isin(ranking, indices).nonzero()[:, 0])
    num_positives = [len(row.unique()) for row in rows["positives"]]
    return average_precision_of_ranks(ranks["positives"], ranks["junk"], num_positives=num_positives, k=k)


def means_of_queries(average: Tensor, precision: Tensor, k: Sequence[int]) -> dict[str, float]:
    """
    Means over the queries that have positives.

    Args:
        average (`torch.Tensor` of shape `(Q,)`): Average precision of each query, NaN where it has no positives.
        precision (`torch.Tensor` of shape `(Q, len(k))`): Precision at each `k`.
        k (`Sequence[int]`): Where precision was measured.

    Returns:
        `dict[str, float]`: `mAP` and `mP@{k}` for each `k`, in percent.

    Raises:
        `ValueError`: If no query has a positive.
    """
    counted = ~average.isnan()
    if not counted.any():
        raise ValueError(f"None of the {len(average)} queries has a positive image: there is nothing to find.")
    means = (100 * precision[counted].mean(0)).tolist()
    return {"mAP": 100 * average[counted].mean().item()} | {f"mP@{n}": mean for n, mean in zip(k, means, strict=True)}


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
    return means_of_queries(*average_precision(rankings, positives, junk, k=k), k)


def _index_rows(
    named: Mapping[str, Sequence[Sequence[int] | Tensor]], num_queries: int, what: str
) -> dict[str, list[Tensor]]:
    """A tensor of int64 for each query, all on one device."""
    tensors = (row for rows in named.values() for row in rows if isinstance(row, Tensor))
    device = next((row.device for row in tensors), torch.device("cpu"))
    made = {}
    for name, rows in named.items():
        if len(rows) != num_queries:
            raise ValueError(f"`{name}` must have one list for each of the {num_queries} queries, got {len(rows)}.")
        made[name] = [torch.as_tensor(row, dtype=torch.int64, device=device) for row in rows]
        present = torch.cat(made[name])
        if (present < 0).any():
            raise ValueError(f"`{name}` must hold {what}, from 0 on, got {int(present.min())}.")
    return made


__all__ = ["average_precision", "average_precision_of_ranks", "mean_average_precision", "means_of_queries"]
