"""Exact search for the most similar features by cosine similarity.

What it finds depends on the features alone, not on chunks, blocks, or the precision of a product:

* The numbers of a feature of length 1 are rounded to float32 and to multiples of 2^-26, which moves a similarity by about
  1e-8. Products of such numbers, and their sums for two features, fit the 53 bits of float64: a similarity in float64 has no
  rounding error, in whatever order it is summed up. Of equal ones, as of images that are twice in the bank, the one with
  the lower index comes first.
* A matrix product in float32 or bfloat16 only proposes candidates, whose similarities are then computed in float64. The
  bound of the product's error tells how similar the others can be at most. A query whose k-th neighbor is not more similar
  than that is searched again: after bfloat16 in float32, after that in float64.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


# Bank features that are compared at a time.
BLOCK_SIZE = 65536
# Candidates beyond those that are needed.
NUM_SPARE = 16
# Numbers that are converted or gathered at a time: on a CPU what its caches hold.
NUM_AT_ONCE, NUM_AT_ONCE_ACCELERATOR = 2**18, 2**24


def check_features(queries: Tensor, others: Tensor, name: str) -> None:
    for each, features in (("queries", queries), (name, others)):
        if features.ndim != 2:
            raise ValueError(f"`{each}` must have shape (number of images, dim), got {tuple(features.shape)}.")
    if queries.shape[1] != others.shape[1]:
        raise ValueError(
            f"`queries` has {queries.shape[1]} dimensions and `{name}` has {others.shape[1]}: extract both with the same "
            "encoder and pooling."
        )


def check_finite(features: Tensor, name: str) -> None:
    if not features.isfinite().all():
        raise ValueError(f"`{name}` contains NaN or infinite values: check the encoder's weights and its inputs.")


def normalize_pair(queries: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Features with unit rows, of one dtype that is float32 or wider; `name` is what a message calls the others."""
    check_features(queries, others, name)
    check_finite(queries, "queries")
    check_finite(others, name)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, others.dtype), torch.float32)
    return F.normalize(queries.to(dtype), dim=1), F.normalize(others.to(dtype), dim=1)


def row_parts(count: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Rows of this many numbers each that are worked on at a time."""
    step = max(1, (NUM_AT_ONCE if device.type == "cpu" else NUM_AT_ONCE_ACCELERATOR) // max(1, numbers))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _lengths(rows: Tensor) -> Tensor:
    """Of each row, `(rows, 1)`; a sum by halves, as that of torch depends on the number of rows or their layout."""
    sums = rows.square()
    while sums.shape[1] > 1:
        half = (sums.shape[1] + 1) // 2
        sums[:, : sums.shape[1] - half] += sums[:, half:]
        sums = sums[:, :half]
    return sums.sqrt()


def unit_rows(features: Tensor, name: str, out: Tensor | None = None) -> Tensor:
    """Rows of length 1 in float32, of multiples of 2^-26; of a row always the same, whatever the others are."""
    out = torch.empty(features.shape, device=features.device) if out is None else out
    for rows in row_parts(len(features), features.shape[1], features.device):
        part = features[rows].double()
        lengths = _lengths(part)
        check_finite(lengths, name)
        part /= lengths.clamp_min(1e-12)
        # Of float32 numbers, which have 24 bits: rounded to such multiples at once, large ones would need 26.
        out[rows].copy_(part).mul_(2.0**26).round_().mul_(2.0**-26)
    return out


def _loss(exact: Tensor, rounded: Tensor) -> float:
    """The greatest length that a row lost."""
    parts = row_parts(len(exact), exact.shape[1], exact.device)
    lengths = [(exact[rows] - rounded[rows].float()).norm(dim=1).max().item() for rows in parts]
    return max(lengths, default=0.0)


class _Block(NamedTuple):
    """A part of the bank: the first `size` rows of tiles `(tiles, rows of a tile, D)`; zeros fill up the last one."""

    size: int
    tiles: Tensor
    products: Tensor | None = None  # memory for those in float32, because new pages take a CPU longer than `topk` does
    rounded: Tensor | None = None  # tiles in bfloat16
    loss: float = 0.0  # of that


def _make_block(bank: Tensor, k: int, chunk_size: int, bfloat16: bool) -> _Block:
    size, dim = bank.shape
    # So many that the two calls of `topk` in `_candidates` see rows of about the same length.
    num_tiles = max(1, math.isqrt(size // (2 * k + NUM_SPARE)))
    length = -(-size // (16 * num_tiles)) * 16  # products of such lengths are faster
    num_tiles = -(-size // length)
    rows = torch.zeros(num_tiles * length, dim, device=bank.device)
    unit_rows(bank, "bank", rows[:size])
    block = _Block(size, rows.view(num_tiles, length, dim))
    if not bfloat16:
        return block._replace(products=rows.new_empty(len(rows) * chunk_size))
    rounded = rows.bfloat16()
    return block._replace(rounded=rounded.view_as(block.tiles), loss=_loss(rows, rounded))


def _keeps_float32() -> bool:
    """Whether torch must not compute products of float32 matrices in TF32 or bfloat16."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # backends have settings of their own
        return False


def _products(queries: Tensor, block: _Block, bfloat16: bool) -> tuple[Tensor, float]:
    """
    Similarities `(tiles, queries, rows of a tile)` by a product of matrices, and their largest error.

    A dot product of vectors of length 1 that is summed up in float32, in whatever order, is off by D * 2^-24 at most; 1% more
    is for terms of higher order. Units for smaller types may cut sums off instead of rounding them, hence four times as much.
    To this add the lengths that the vectors lost before.
    """
    num_tiles, length, dim = block.tiles.shape
    if not bfloat16:
        error = 1.01 * dim * 2.0**-24 if _keeps_float32() else 2.02 * 2.0**-8 + dim * 2.0**-22
        out = block.products
        if out is not None:
            out = out[: num_tiles * len(queries) * length].view(num_tiles, -1, length)
        return torch.bmm(queries.expand(num_tiles, -1, -1), block.tiles.mT, out=out), error
    assert block.rounded is not None
    rounded = queries.bfloat16()
    error = 1.01 * (_loss(queries, rounded) + block.loss) + dim * 2.0**-22
    factors = rounded.expand(num_tiles, -1, -1), block.rounded.mT
    # Products in bfloat16 may be sums of parts that were rounded to bfloat16 as well, on CUDA.
    return torch.bmm(*factors, out_dtype=torch.float32) if queries.is_cuda else torch.bmm(*factors), error


def _candidates(queries: Tensor, block: _Block, k: int, bfloat16: bool) -> tuple[Tensor, Tensor | None]:
    """Rows of the block `(queries, candidates)`, and what the similarity of no other row exceeds `(queries,)`."""
    precise = not bfloat16 and _keeps_float32()
    count = min(block.size, (k if precise else 2 * k) + NUM_SPARE)
    products, error = _products(queries, block, bfloat16)
    num_tiles, _, length = products.shape
    products[-1, :, length - (num_tiles * length - block.size) :] = -torch.inf
    # The largest ones are in those places whose largest value over the tiles is among the largest: `topk` sees short rows.
    places = products.amax(0).topk(count, sorted=False).indices
    products = products.gather(2, places.expand(num_tiles, -1, -1)).transpose(0, 1).flatten(1)
    values, chosen = products.topk(count, sorted=False)
    rows = places.gather(1, chosen % count) + chosen // count * length
    least = values.amin(1).double()
    if products.dtype == torch.bfloat16:
        least += 1.01 * 2.0**-8 * least.abs()
    return rows, None if count == block.size else least + error


def _similarities(queries: Tensor, block: _Block, rows: Tensor) -> Tensor:
    """Of each query with its rows of the block, `(queries, rows)`, exactly."""
    found = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    bank = block.tiles.flatten(0, 1)
    for some in row_parts(len(rows), rows.shape[1] * queries.shape[1], rows.device):
        features = bank.index_select(0, rows[some].flatten()).double().view(*rows[some].shape, -1)
        found[some] = features.mul_(queries[some, None].double()).sum(2)
    return found


def _first_largest(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of each row and their places, in descending order; of equal ones the first."""
    least = similarities.topk(k).values[:, -1:]
    larger, equal = similarities > least, similarities == least
    missing = k - larger.sum(1, keepdim=True)
    chosen = larger | equal & (equal.cumsum(1, dtype=torch.int32) <= missing)
    places = chosen.nonzero()[:, 1].view(-1, k)
    values, order = similarities.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def _search_in_float64(queries: Tensor, block: _Block, k: int) -> tuple[Tensor, Tensor]:
    found = []
    for some in queries.double().split(len(queries) // 4 + 1):  # each takes up several times as much as in float32
        similarities = torch.cat([some @ tile.double().T for tile in block.tiles], dim=1)
        found.append(_first_largest(similarities[:, : block.size], k))
    similarities, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return similarities, rows


def _search_block(queries: Tensor, block: _Block, k: int, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Similarities `(queries, k)`, float64, in descending order, and rows of the block."""
    rows, others = _candidates(queries, block, k, bfloat16)
    rows = rows.sort(dim=1).values
    similarities, order = _similarities(queries, block, rows).sort(dim=1, descending=True, stable=True)
    similarities, rows = similarities[:, :k], rows.gather(1, order)[:, :k]
    if others is not None:
        unsure = (similarities[:, -1] <= others).nonzero()[:, 0]
        if len(unsure):
            again = queries[unsure]
            better = _search_block(again, block, k, False) if bfloat16 else _search_in_float64(again, block, k)
            similarities[unsure], rows[unsure] = better
    return similarities, rows


def _merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest similarities of two parts of the bank; of equal ones those of the first."""
    if not first[0].shape[1]:
        return second
    similarities, indices = (torch.cat(parts, dim=1) for parts in zip(first, second, strict=True))
    similarities, order = similarities.sort(dim=1, descending=True, stable=True)
    return similarities[:, :k], indices.gather(1, order)[:, :k]


def _has_bfloat16_units(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster, and can be summed up in float32."""
    if device.type != "cuda" or torch.version.hip or "dtype" not in torch.ops.aten.bmm.overloads():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def top_k(queries: Tensor, bank: Tensor, k: int, chunk_size: int, bfloat16: bool | None) -> tuple[Tensor, Tensor]:
    """Cosine similarities `(Q, k)`, float64, in descending order, and indices `(Q, k)` of the nearest bank features."""
    check_features(queries, bank, "bank")
    if not 1 <= k <= len(bank):
        raise ValueError(f"`k` must lie between 1 and the number of bank features ({len(bank)}), got {k}.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    if queries.device.type == "mps":  # has no float64
        queries, bank = queries.cpu(), bank.cpu()
    if bfloat16 is None:
        bfloat16 = _has_bfloat16_units(queries.device)
    chunks = queries.split(chunk_size)
    found = [
        (chunk.new_empty(len(chunk), 0, dtype=torch.float64), chunk.new_empty(len(chunk), 0).long())
        for chunk in chunks
    ]
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(bank), BLOCK_SIZE):
            part = bank[start : start + BLOCK_SIZE]
            block = _make_block(part, min(k, len(part)), min(chunk_size, len(queries)), bfloat16)
            for i, chunk in enumerate(chunks):
                unit = unit_rows(chunk, "queries")
                similarities, rows = _search_block(unit, block, min(k, len(part)), bfloat16)
                found[i] = _merge(found[i], (similarities, rows + start), k)
    similarities, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return similarities, indices


@torch.no_grad()
def nearest_neighbors(
    queries: Tensor, bank: Tensor, k: int, *, chunk_size: int = 256, bfloat16: bool | None = None
) -> Tensor:
    """
    Finds the most similar bank features by cosine similarity, exactly.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Query features; need not be normalized.
        bank (`torch.Tensor` of shape `(N, D)`): Features to search, on the same device.
        k (`int`): Number of neighbors.
        chunk_size (`int`, *optional*, defaults to 256):
            Number of queries compared at a time, with 65,536 bank features (all, if they are fewer). Their similarities, of 4
            bytes each, and a copy of these features in float32 bound the memory. Does not change the result.
        bfloat16 (`bool`, *optional*):
            Whether to look for candidates in bfloat16, by default where a GPU multiplies matrices in it. Does not change the
            result: what is not certain to be the nearest is looked for again, more precisely.

    Returns:
        `torch.Tensor` of shape `(Q, k)`: int64 indices into `bank`, most similar first; of equally similar ones the lower
        index.

    Raises:
        `ValueError`: If shapes do not fit, features are not finite, or `k` is larger than the bank.
    """
    return top_k(queries, bank, k, chunk_size, bfloat16)[1]


__all__ = ["nearest_neighbors"]
