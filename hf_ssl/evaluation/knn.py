"""Weighted k-nearest-neighbor classification on frozen features.

The protocol of [Unsupervised Feature Learning via Non-Parametric Instance Discrimination](https://huggingface.co/papers/1805.01978)
(Wu et al., 2018), also used by DINO: features are L2-normalized, and each of the `k` most similar training images
votes for its class with weight `exp(cosine similarity / temperature)`. Nothing is trained. The search is exact, see
`search.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .class_ranks import class_ranks
from .search import top_k


# exp(1 / temperature) must stay finite in float32.
MIN_TEMPERATURE = 0.0125


def _check_labels(labels: Tensor, count: int, num_classes: int, name: str) -> None:
    if labels.shape != (count,):
        raise ValueError(f"`{name}` must have one entry per image, shape ({count},), got {tuple(labels.shape)}.")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"`{name}` must lie between 0 and num_classes - 1 = {num_classes - 1}, got values from "
            f"{int(labels.min())} to {int(labels.max())}."
        )


def _check_votes(
    bank: Tensor, bank_labels: Tensor, num_classes: int, k: int | Sequence[int], temperature: float
) -> list[int]:
    """The numbers of neighbors that vote."""
    _check_labels(bank_labels, len(bank), num_classes, "bank_labels")
    if temperature < MIN_TEMPERATURE:
        raise ValueError(
            f"`temperature` must be at least {MIN_TEMPERATURE}, so that votes do not overflow, got {temperature}."
        )
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or min(ks) < 1:
        raise ValueError(f"`k` must be a positive integer or a list of positive integers, got {k}.")
    return ks


def _votes(similarities: Tensor, classes: Tensor, num_classes: int, ks: list[int], temperature: float) -> Tensor:
    """Votes `(len(ks), queries, num_classes)`; summed up in float64, so that their order does not show in float32."""
    weights = (similarities / temperature).exp()
    votes = weights.new_zeros(len(ks), len(weights), num_classes)
    for row, neighbors in zip(votes, ks, strict=True):
        row.scatter_add_(1, classes[:, :neighbors], weights[:, :neighbors])
    return votes.float()


def _ranks(votes: Tensor, truth: Tensor) -> Tensor:
    """How many classes rank before the true one, `(len(ks), queries)`; infinitely many if it has no vote."""
    truth = truth.expand(len(votes), -1)
    own = votes.gather(2, truth[:, :, None])[:, :, 0]
    return class_ranks(votes, truth).float().masked_fill(own == 0, torch.inf)


@torch.no_grad()
def knn_votes(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    chunk_size: int = 256,
    bfloat16: bool | None = None,
) -> Tensor:
    """
    Sums the neighbors' votes `exp(cosine similarity / temperature)` for each class
    ([Wu et al., 2018](https://huggingface.co/papers/1805.01978)).

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Features to classify; need not be normalized.
        bank (`torch.Tensor` of shape `(N, D)`): Features of the labeled images, on the same device.
        bank_labels (`torch.Tensor` of shape `(N,)`): int64 class indices of the bank.
        num_classes (`int`): Number of classes.
        k (`int` or `Sequence[int]`, *optional*, defaults to 20):
            Number of neighbors that vote. A list computes the votes for all its entries from one search.
        temperature (`float`, *optional*, defaults to 0.07): Softness of the votes.
        chunk_size (`int`, *optional*, defaults to 256):
            Number of queries compared at a time, with 65,536 bank features (all, if they are fewer). Their similarities, of 4
            bytes each, and a copy of these features in float32 bound the memory. Does not change the result.
        bfloat16 (`bool`, *optional*):
            Whether to look for candidates in bfloat16, by default where a GPU multiplies matrices in it. Does not change the
            result: what is not certain to be the nearest is looked for again, more precisely.

    Returns:
        `torch.Tensor` of shape `(Q, num_classes)`, or `(len(k), Q, num_classes)` for a list of `k`: the votes in
        float32; a class without a neighbor has exactly 0.

    Raises:
        `ValueError`: If shapes do not fit, features are not finite, a label is out of range, `k` is larger than the
            bank, or the temperature is too small for float32.
    """
    ks = _check_votes(bank, bank_labels, num_classes, k, temperature)
    similarities, indices = top_k(queries, bank, max(ks), chunk_size, bfloat16)
    votes = similarities.new_empty(len(ks), len(queries), num_classes, dtype=torch.float32)
    classes = bank_labels.to(indices.device)[indices]
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        votes[:, rows] = _votes(similarities[rows], classes[rows], num_classes, ks, temperature)
    return votes[0] if isinstance(k, int) else votes


@torch.no_grad()
def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    chunk_size: int = 256,
    bfloat16: bool | None = None,
) -> dict[str, float]:
    """
    Classifies `queries` by [`knn_votes`] and compares with their labels.

    Classes with equal votes rank in the order of their index. A class without a single vote never counts as predicted,
    so that the top-5 accuracy on few classes cannot gain from arbitrary ranks.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Features to classify; need not be normalized.
        query_labels (`torch.Tensor` of shape `(Q,)`): int64 true classes.
        bank (`torch.Tensor` of shape `(N, D)`): Features of the labeled images, on the same device.
        bank_labels (`torch.Tensor` of shape `(N,)`): int64 class indices of the bank.
        num_classes (`int`): Number of classes.
        k (`int` or `Sequence[int]`, *optional*, defaults to 20):
            Number of neighbors that vote. With a list, the first entry is the main one.
        temperature (`float`, *optional*, defaults to 0.07): Softness of the votes.
        chunk_size (`int`, *optional*, defaults to 256): As of [`knn_votes`].
        bfloat16 (`bool`, *optional*): As of [`knn_votes`].

    Returns:
        `dict[str, float]`: `knn_top1` and `knn_top5` in percent (top 5 is top `num_classes` where there are fewer than
        5 classes), `k` and `temperature`; for a list of `k` also `knn_top1_k10`, `knn_top5_k10`, … for every entry.

    Raises:
        `ValueError`: As [`knn_votes`]; also if there are no queries or `query_labels` do not fit them.
    """
    if not len(queries):
        raise ValueError("`queries` is empty: there is nothing to classify.")
    _check_labels(query_labels, len(queries), num_classes, "query_labels")
    ks = _check_votes(bank, bank_labels, num_classes, k, temperature)
    similarities, indices = top_k(queries, bank, max(ks), chunk_size, bfloat16)
    classes, truth = bank_labels.to(indices.device)[indices], query_labels.to(indices.device)
    ranks = []
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        votes = _votes(similarities[rows], classes[rows], num_classes, ks, temperature)
        ranks.append(_ranks(votes, truth[rows]))
    by_k = {}
    for neighbors, of_truth in zip(ks, torch.cat(ranks, dim=1), strict=True):
        by_k[neighbors] = {f"knn_top{n}": 100 * (of_truth < n).double().mean().item() for n in (1, 5)}
    results: dict[str, float] = {**by_k[ks[0]], "k": ks[0], "temperature": temperature}
    if not isinstance(k, int):
        results |= {f"{name}_k{n}": value for n in ks for name, value in by_k[n].items()}
    return results


__all__ = ["MIN_TEMPERATURE", "knn_accuracy", "knn_votes"]
