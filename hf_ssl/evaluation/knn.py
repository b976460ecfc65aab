"""Weighted k-nearest-neighbor classification on frozen features.

The protocol of [Unsupervised Feature Learning via Non-Parametric Instance Discrimination](https://huggingface.co/papers/1805.01978)
(Wu et al., 2018), also used by DINO: features are L2-normalized, and each of the `k` most similar training images
votes for its class with weight `exp(cosine similarity / temperature)`. Nothing is trained.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


# exp(1 / temperature) must stay finite in float32.
MIN_TEMPERATURE = 0.0125


def _normalize(features: Tensor, name: str) -> Tensor:
    """L2-normalizes the rows in float32 or wider, after checking that they can be compared at all."""
    if features.ndim != 2:
        raise ValueError(f"`{name}` must have shape (number of images, dim), got {tuple(features.shape)}.")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if not features.isfinite().all():
        raise ValueError(f"`{name}` contains NaN or infinite values: check the encoder's weights and its inputs.")
    return F.normalize(features, dim=1)


def normalize_pair(queries: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Features with unit rows, of one dtype that is float32 or wider; `name` is what a message calls the others."""
    queries, others = _normalize(queries, "queries"), _normalize(others, name)
    if queries.shape[1] != others.shape[1]:
        raise ValueError(
            f"`queries` has {queries.shape[1]} dimensions and `{name}` has {others.shape[1]}: extract both with the same "
            "encoder and pooling."
        )
    dtype = torch.promote_types(queries.dtype, others.dtype)
    return queries.to(dtype), others.to(dtype)


def _top_k(queries: Tensor, bank: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities `(Q, k)`, in descending order, and indices `(Q, k)` of the nearest bank features."""
    queries, bank = normalize_pair(queries, bank, "bank")
    if not 1 <= k <= len(bank):
        raise ValueError(f"`k` must lie between 1 and the number of bank features ({len(bank)}), got {k}.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    similarities = queries.new_empty(len(queries), k)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        similarities[rows], indices[rows] = (queries[rows] @ bank.T).topk(k)
    return similarities, indices


def _check_labels(labels: Tensor, count: int, num_classes: int, name: str) -> None:
    if labels.shape != (count,):
        raise ValueError(f"`{name}` must have one entry per image, shape ({count},), got {tuple(labels.shape)}.")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"`{name}` must lie between 0 and num_classes - 1 = {num_classes - 1}, got values from "
            f"{int(labels.min())} to {int(labels.max())}."
        )


@torch.no_grad()
def nearest_neighbors(queries: Tensor, bank: Tensor, k: int, *, chunk_size: int = 256) -> Tensor:
    """
    Finds the most similar bank features by cosine similarity, exactly.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Query features; need not be normalized.
        bank (`torch.Tensor` of shape `(N, D)`): Features to search, on the same device.
        k (`int`): Number of neighbors.
        chunk_size (`int`, *optional*, defaults to 256):
            Number of queries compared at a time; bounds the memory to about `4 * chunk_size * N` bytes beyond the
            features.

    Returns:
        `torch.Tensor` of shape `(Q, k)`: int64 indices into `bank`, most similar first.

    Raises:
        `ValueError`: If shapes do not fit, features are not finite, or `k` is larger than the bank.
    """
    return _top_k(queries, bank, k, chunk_size)[1]


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
            Number of queries compared at a time; bounds the memory to about `4 * chunk_size * N` bytes beyond the
            features.

    Returns:
        `torch.Tensor` of shape `(Q, num_classes)`, or `(len(k), Q, num_classes)` for a list of `k`: the votes; a class
        without a neighbor has exactly 0.

    Raises:
        `ValueError`: If shapes do not fit, features are not finite, a label is out of range, `k` is larger than the
            bank, or the temperature is too small for float32.
    """
    _check_labels(bank_labels, len(bank), num_classes, "bank_labels")
    if temperature < MIN_TEMPERATURE:
        raise ValueError(
            f"`temperature` must be at least {MIN_TEMPERATURE}, so that votes do not overflow, got {temperature}."
        )
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or min(ks) < 1:
        raise ValueError(f"`k` must be a positive integer or a list of positive integers, got {k}.")
    similarities, indices = _top_k(queries, bank, max(ks), chunk_size)
    weights = (similarities / temperature).exp()
    classes = bank_labels.to(indices.device)[indices]
    votes = weights.new_zeros(len(ks), len(queries), num_classes)
    for row, neighbors in zip(votes, ks, strict=True):
        row.scatter_add_(1, classes[:, :neighbors], weights[:, :neighbors])
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
        chunk_size (`int`, *optional*, defaults to 256): Number of queries compared at a time.

    Returns:
        `dict[str, float]`: `knn_top1` and `knn_top5` in percent (top 5 is top `num_classes` where there are fewer than
        5 classes), `k` and `temperature`; for a list of `k` also `knn_top1_k10`, `knn_top5_k10`, … for every entry.

    Raises:
        `ValueError`: As [`knn_votes`]; also if there are no queries or `query_labels` do not fit them.
    """
    if not len(queries):
        raise ValueError("`queries` is empty: there is nothing to classify.")
    _check_labels(query_labels, len(queries), num_classes, "query_labels")
    ks = [k] if isinstance(k, int) else list(k)
    all_votes = knn_votes(
        queries, bank, bank_labels, num_classes, k=ks, temperature=temperature, chunk_size=chunk_size
    )
    truth = query_labels.to(all_votes.device)[:, None]
    by_k = {}
    for neighbors, votes in zip(ks, all_votes, strict=True):
        # A stable sort, because `topk` leaves the order of equal votes open.
        ranked_votes, ranked_classes = votes.sort(dim=1, descending=True, stable=True)
        hits = (ranked_classes == truth) & (ranked_votes > 0)
        by_k[neighbors] = {f"knn_top{n}": 100 * hits[:, :n].any(dim=1).double().mean().item() for n in (1, 5)}
    results: dict[str, float] = {**by_k[ks[0]], "k": ks[0], "temperature": temperature}
    if not isinstance(k, int):
        results |= {f"{name}_k{n}": value for n in ks for name, value in by_k[n].items()}
    return results
