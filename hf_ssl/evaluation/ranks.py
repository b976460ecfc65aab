"""Where some images stand in the ranking of a database, without ranking it.

Retrieval benchmarks have a few images to find among many: their ranks follow from how many images are more similar to
the query, which one pass through the database counts, whatever its size. Similarities are those of `search.py`,
without rounding errors, so that ranks depend on the features alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .search import check_features, unit_rows


# Queries that are compared with a chunk of the database at a time.
NUM_QUERIES = 128


class _Wanted:
    """
    Counts how many database images lie between the wanted images of some queries, of which there are W at most.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Rows as of [`unit_rows`].
        database (`torch.Tensor` of shape `(N, D)`): Features, on any device.
        wanted (`list[torch.Tensor]`): For each query indices of database images.
        chunk_size (`int`): Number of database images compared at a time.
    """

    def __init__(self, queries: Tensor, database: Tensor, wanted: list[Tensor], chunk_size: int) -> None:
        self.lengths = [len(row) for row in wanted]
        self.opposites = -queries.double()  # products with these are smaller for what is more similar
        self.size = len(database)
        # Rows are sorted by product, and of equal ones by index; padding comes last.
        indices, order = pad_sequence(wanted, batch_first=True, padding_value=self.size).sort(dim=1)
        products = torch.full(indices.shape, torch.inf, dtype=torch.float64, device=queries.device)
        present, which = indices[indices < self.size].unique(return_inverse=True)
        query, place = (indices < self.size).nonzero(as_tuple=True)
        for start in range(0, len(present), chunk_size):
            rows = database[present[start : start + chunk_size].to(database.device)].to(queries.device)
            of_rows = self.opposites @ unit_rows(rows, "database").double().T
            here = (which >= start) & (which < start + chunk_size)
            products[query[here], place[here]] = of_rows[query[here], which[here] - start]
        self.products, by_product = products.sort(dim=1, stable=True)
        self.order = order.gather(1, by_product)
        # The first of those with the same product, counted through all queries, and the index are one sorted number.
        self.firsts = torch.searchsorted(self.products, self.products)
        self.firsts += self.firsts.shape[1] * torch.arange(len(queries), device=queries.device)[:, None]
        self.keys = (self.firsts * (self.size + 1) + indices.gather(1, by_product)).flatten()
        self.counts = torch.zeros_like(F.pad(self.firsts, (0, 1)))

    def add(self, rows: Tensor, start: int) -> None:
        """
        Args:
            rows (`torch.Tensor` of shape `(C, D)`, float64): Database images, as of [`unit_rows`].
            start (`int`): The index of the first one.
        """
        products = self.opposites @ rows.T
        # How many of the wanted images rank before each of these images, itself included.
        before = torch.searchsorted(self.products, products, right=True)
        equal = F.pad(self.products, (1, 0), value=torch.nan).gather(1, before) == products
        query, row = equal.nonzero(as_tuple=True)
        keys = self.firsts[query, before[query, row] - 1] * (self.size + 1) + (row + start)
        before[query, row] = torch.searchsorted(self.keys, keys, right=True) - query * self.products.shape[1]
        num_queries, num_places = self.counts.shape
        before += num_places * torch.arange(num_queries, device=before.device)[:, None]
        self.counts += before.flatten().bincount(minlength=self.counts.numel()).view_as(self.counts)

    def ranks(self) -> list[Tensor]:
        """For each query those of the wanted images, as they were given."""
        ranks = torch.empty_like(self.order).scatter_(1, self.order, self.counts.cumsum(1)[:, :-1])
        return [row[:length] for row, length in zip(ranks, self.lengths, strict=True)]


@torch.no_grad()
def ranks_of(
    queries: Tensor, database: Tensor, wanted: Sequence[Sequence[int] | Tensor], *, chunk_size: int = 8192
) -> list[Tensor]:
    """
    Ranks that some images of a database have for each query, by descending cosine similarity, exactly.

    Nothing is sorted but the wanted images: the cost grows with Q · N · (D + log W) for W wanted images of a query.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Query features; need not be normalized.
        database (`torch.Tensor` of shape `(N, D)`):
            Features to rank. They may lie on another device than the queries, or in a file that is mapped into memory:
            each is read once, and the wanted ones once more.
        wanted (`Sequence[Sequence[int]]`): For each query the indices of database images whose ranks are wanted.
        chunk_size (`int`, *optional*, defaults to 8192):
            Number of database images compared at a time, on the queries' device, with 128 queries. It bounds the
            memory, and does not change the result.

    Returns:
        `list[torch.Tensor]`: For each query int64 ranks from 0 on, in the order of `wanted`; equally similar images
        rank in the order of the database.

    Raises:
        `ValueError`: If shapes do not fit, features are not finite, or an index is not in the database.
    """
    check_features(queries, database, "database")
    if len(wanted) != len(queries):
        raise ValueError(f"`wanted` must have one list for each of the {len(queries)} queries, got {len(wanted)}.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    queries = queries.cpu() if queries.device.type == "mps" else queries  # has no float64
    indices = [torch.as_tensor(row, dtype=torch.int64, device=queries.device) for row in wanted]
    for query, row in enumerate(indices):
        outside = row[(row < 0) | (row >= len(database))].tolist()
        if outside:
            raise ValueError(
                f"`wanted` of query {query} must hold indices of {len(database)} database images, got {outside[0]}."
            )
    unit = unit_rows(queries, "queries")
    groups = [
        _Wanted(unit[start : start + NUM_QUERIES], database, indices[start : start + NUM_QUERIES], chunk_size)
        for start in range(0, len(unit), NUM_QUERIES)
    ]
    for start in range(0, len(database), chunk_size):
        rows = unit_rows(database[start : start + chunk_size].to(queries.device), "database").double()
        for group in groups:
            group.add(rows, start)
    return [ranks for group in groups for ranks in group.ranks()]


__all__ = ["ranks_of"]
