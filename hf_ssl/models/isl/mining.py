"""Which images become neighbors: triplets are made of the memory bank, and proxies are looked up in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...views import Draws
from .memory_bank import MemoryBank, bank_blocks


# Up to this many rows for each that is drawn, a product with all of them is faster than a look at those.
_ROWS_PER_CANDIDATE = 32
# Numbers of drawn rows that are looked at in a time: few enough for the caches of a CPU; elsewhere they bound the memory.
_DRAWN_ON_CPU, _DRAWN = 1 << 17, 1 << 24


@dataclass
class Triplets:
    """
    What generator and discriminator are given.

    Args:
        anchor (`torch.Tensor` of shape `(batch_size, dim)`): Features of the images.
        positive (`torch.Tensor` of shape `(batch_size, dim)`): What the bank holds of the positives.
        negative (`torch.Tensor` of shape `(batch_size, dim)`): What it holds of the negatives.
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.anchor, self.positive, self.negative))


@dataclass
class Links:
    """
    What mining found for a batch of images.

    Args:
        similarity (`torch.Tensor` of shape `(batch_size, count)`): Of the images next to each proxy, in descending order.
        neighbors (`torch.Tensor` of shape `(batch_size, count)`, int64): Which images these are.
        radius (`torch.Tensor` of shape `(batch_size,)`): Similarity that had to be exceeded; -1 where the proxy was not
            accepted.
        kept (`torch.Tensor` of shape `(batch_size, count)`, bool): Which of them become neighbors.
    """

    similarity: Tensor
    neighbors: Tensor
    radius: Tensor
    kept: Tensor


def hardest(anchor: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
    """
    The most similar of some rows of a bank.

    Args:
        anchor (`torch.Tensor` of shape `(batch_size, dim)`): What rows are compared with.
        rows (`torch.Tensor` of shape `(num_images, dim)`): The bank.
        candidates (`torch.Tensor` of shape `(batch_size, count)`, int64): Rows to choose from, for each anchor.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, int64: the chosen row.
    """
    if len(rows) <= _ROWS_PER_CANDIDATE * candidates.shape[1]:
        products = (anchor @ rows.T).gather(1, candidates)
        return candidates.gather(1, products.argmax(1, keepdim=True))[:, 0]
    drawn = _DRAWN_ON_CPU if rows.device.type == "cpu" else _DRAWN
    at_once = max(1, drawn // (candidates.shape[1] * rows.shape[1]))
    best = [
        torch.bmm(rows[some], of[:, :, None])[:, :, 0].argmax(1, keepdim=True)
        for some, of in zip(candidates.split(at_once), anchor.split(at_once), strict=True)
    ]
    return candidates.gather(1, torch.cat(best))[:, 0]


def draw_triplets(
    bank: MemoryBank,
    anchor: Tensor,
    index: Tensor,
    draws: Draws,
    num_negatives: int,
    positive_from_neighbors: bool = False,
) -> Triplets:
    """
    Make triplets: the positive is the image's own row of the bank, the negative the most similar of some rows that are drawn
    among those of images that are not its neighbors.

    Args:
        bank ([`MemoryBank`]): The bank.
        anchor (`torch.Tensor` of shape `(batch_size, dim)`): Features of the images.
        index (`torch.Tensor` of shape `(batch_size,)`, int64): Which images these are.
        draws ([`Draws`]): One row for each.
        num_negatives (`int`): Rows that are drawn for each.
        positive_from_neighbors (`bool`, *optional*, defaults to `False`): Take a neighbor's row instead, if there is one.

    Returns:
        [`Triplets`].
    """
    positive = bank.neighbors.draw_neighbor(index, draws) if positive_from_neighbors else index
    candidates = bank.neighbors.draw_others(index, draws, num_negatives)
    return Triplets(anchor, bank.rows[positive], bank.rows[hardest(anchor, bank.rows, candidates)])


def nearest_rows(queries: Tensor, rows: Tensor, count: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """
    The rows of a bank with the greatest scalar products, exactly.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, dim)`): What rows are compared with.
        rows (`torch.Tensor` of shape `(num_images, dim)`): The bank.
        count (`int`): How many to find.
        own (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*): For each query a row whose product counts as -1.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `(batch_size, count)`: products in descending order, and which rows.
    """
    best = queries.new_empty(len(queries), 0)
    numbers = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    start = 0
    for block in bank_blocks(rows, len(queries)):
        products = queries @ block.T
        if own is not None:
            place = own - start
            inside = (place >= 0) & (place < len(block))
            place = place.clamp(0, len(block) - 1)[:, None]
            products.scatter_(1, place, torch.where(inside[:, None], -1.0, products.gather(1, place)))
        found = products.topk(min(count, len(block)))
        best, numbers = torch.cat([best, found.values], 1), torch.cat([numbers, found.indices + start], 1)
        kept = best.topk(min(count, best.shape[1]))
        best, numbers = kept.values, numbers.gather(1, kept.indices)
        start += len(block)
    return best, numbers


def propose_links(
    rows: Tensor,
    proxies: Tensor,
    scores: Tensor,
    index: Tensor,
    score_threshold: float,
    similarity_threshold: float,
    count: int,
) -> Links:
    """
    Look proxies up in the bank. A proxy is accepted if its score exceeds the threshold; the less it is, the nearer a row has
    to be: r = R + (1 - score) (1 - R).

    Args:
        rows (`torch.Tensor` of shape `(num_images, dim)`): The bank.
        proxies (`torch.Tensor` of shape `(batch_size, dim)`): Proxies.
        scores (`torch.Tensor` of shape `(batch_size,)`): What the discriminator says of them.
        index (`torch.Tensor` of shape `(batch_size,)`, int64): Images that they were made for.
        score_threshold (`float`): To be exceeded by the score.
        similarity_threshold (`float`): R, to be exceeded by the similarity to the proxy where the score is 1.
        count (`int`): Rows next to a proxy that are considered.

    Returns:
        [`Links`].
    """
    accepted = scores > score_threshold
    radius = torch.where(accepted, similarity_threshold + (1 - scores) * (1 - similarity_threshold), -1.0)
    similarity, neighbors = nearest_rows(proxies, rows, min(count, len(rows)), own=index)
    return Links(similarity, neighbors, radius, (similarity > radius[:, None]) & accepted[:, None])
