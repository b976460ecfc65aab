import functools

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_ssl.evaluation import nearest_neighbors, search


def make_features(generator, count, dim, kind):
    """Random ones, some of them twice; or all nearly equal; or of few numbers, so that many similarities are equal."""
    features = torch.randn(count, dim, generator=generator)
    if kind == "alike":
        features = 1 + 1e-5 * features
    elif kind == "coarse":
        features = features.round()
    copied = torch.randint(count, (count // 3,), generator=generator)
    features[torch.randperm(count, generator=generator)[: len(copied)]] = features[copied]
    return features


@functools.cache
def large_task():
    """Enough for several tiles; a third of the bank is there twice."""
    generator = torch.Generator().manual_seed(0)
    bank = make_features(generator, 3000, 24, "random")
    return torch.cat([bank[:20], torch.randn(50, 24, generator=generator)]), bank, torch.arange(3000) % 10


class LargestTensor(TorchDispatchMode):
    """The most memory that a new tensor takes up."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {
            tensor.untyped_storage().data_ptr() for tensor in tree_leaves(args) if isinstance(tensor, torch.Tensor)
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_neighbors_equal_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(count, 12, generator=generator) for count in (40, 300))
    reference = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(y.numpy())
    expected = reference.kneighbors(x.numpy(), return_distance=False)
    np.testing.assert_array_equal(nearest_neighbors(x, y, 9, chunk_size=7).numpy(), expected)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_equally_similar_ones_are_in_the_order_of_the_bank(bfloat16):
    bank = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).repeat(2000, 1)
    neighbors = nearest_neighbors(bank[:2], bank, 100, bfloat16=bfloat16)
    assert torch.equal(neighbors, torch.stack([torch.arange(0, 200, 2), torch.arange(1, 201, 2)]))


def searches(monkeypatch, name):
    """How many queries a function gets, in all."""
    counts = []
    function = getattr(search, name)
    monkeypatch.setattr(search, name, lambda queries, *args: counts.append(len(queries)) or function(queries, *args))
    return counts


def test_float64_is_the_exception(monkeypatch):
    counts = searches(monkeypatch, "_search_in_float64")
    nearest_neighbors(*large_task()[:2], 30)
    assert sum(counts) == 0
    nearest_neighbors(1 + 1e-6 * large_task()[0], 1 + 1e-6 * large_task()[1], 30)
    assert sum(counts) == 70


@pytest.mark.parametrize("kind", ["random", "alike", "coarse"])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_products_are_within_their_error(kind, bfloat16, precision, monkeypatch):
    """And of what is no candidate, none is more similar than is said."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    generator = torch.Generator().manual_seed(1)
    x, y = (make_features(generator, count, 40, kind) for count in (9, 2000))
    queries = search.unit_rows(x, "queries")
    block = search._make_block(y, 5, 16, bfloat16)
    exact = search._similarities(queries, block, torch.arange(2000).expand(9, -1))
    rows, others = search._candidates(queries, block, 5, bfloat16)
    assert (exact.scatter(1, rows, -2.0).amax(1) <= others).all()
    products, error = search._products(queries, block, bfloat16)
    products = products.transpose(0, 1).flatten(1)[:, :2000].double()
    rounding = 2.0**-8 * products.abs() if products.dtype == torch.bfloat16 else 0
    assert ((products - exact).abs() <= error + rounding + (2.0**-8 if bfloat16 else 0)).all()
    assert error < 3 * (2.0**-8 if bfloat16 or precision == "high" else 40 * 2.0**-24)


def test_imprecise_products_are_found_out(monkeypatch):
    """Products of float32 as a GPU computes them in TF32, here as in bfloat16."""
    task = [1 + 0.1 * features for features in large_task()[:2]]
    expected = nearest_neighbors(*task, 30)
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b, out=None: bmm(a.bfloat16().float(), b.bfloat16().float(), out=out))
    assert not torch.equal(nearest_neighbors(*task, 30), expected)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert torch.equal(nearest_neighbors(*task, 30), expected)


def test_similarities_do_not_depend_on_the_order_of_sums():
    x, y = (search.unit_rows(features, "features") for features in large_task()[:2])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x.double() @ y.double().T, x[:, order].double() @ y[:, order].double().T)


@pytest.mark.parametrize("dim", [1, 2, 7, 385])
def test_neither_other_rows_nor_the_layout_change_a_row(dim):
    """Lengths are summed up in one order; torch's own sum takes others for a transposed matrix, or on a GPU."""
    rows = torch.randn(500, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = search.unit_rows(rows, "features")
    assert torch.equal(search.unit_rows(rows.T.contiguous().T, "features"), unit)
    assert torch.equal(torch.cat([search.unit_rows(row, "features") for row in rows.split(1)]), unit)
    assert torch.equal(search._lengths(rows), search._lengths(rows.T.contiguous().T))
    torch.testing.assert_close(search._lengths(rows), rows.norm(dim=1, keepdim=True), rtol=1e-14, atol=0)
