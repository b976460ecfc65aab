import hashlib
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_ssl.views import Draws


MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def rows(count, seed=3, epoch=2, view=0, start=0):
    index = torch.arange(start, start + count)
    return Draws.for_samples(seed, torch.full_like(index, epoch), index, view)


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def splitmix64(seed, count):
    """The published generator: the first `count` outputs."""
    return [mix((seed + i * GAMMA) & MASK) for i in range(1, count + 1)]


def absorb(key, value):
    """Output number `value` of the generator seeded with `key`."""
    return mix((key + (value + 1) * GAMMA) & MASK)


def stream(key, name, count):
    hashed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return splitmix64(absorb(key, hashed), count)


def unsigned(bits):
    return [value & MASK for value in bits.tolist()]


def test_reference_generator():
    # Published outputs of splitmix64 for the seed 1234567: they check this file's own reference.
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**31),
    st.integers(0, 2**40),
    st.integers(0, 100),
    st.text(max_size=8),
)
def test_sample_bits_are_splitmix64(seed, epoch, index, view, name):
    key = seed & MASK
    for value in (epoch, index, view):
        key = absorb(key, value)
    draws = Draws.for_samples(seed, torch.tensor([epoch]), torch.tensor([index]), view)
    assert unsigned(draws.bits(name, 2, 3).flatten()) == stream(key, name, 6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**62), st.integers(0, 2**31), st.integers(0, 64), st.integers(0, 4096))
def test_batch_bits_are_splitmix64(seed, step, micro_batch, rank):
    key = seed
    for value in (step, micro_batch, rank):
        key = absorb(key, value)
    draws = Draws.for_batch(seed, step, micro_batch, rank)
    assert unsigned(draws.bits("x", 4).flatten()) == stream(mix(key), "x", 4)


def test_uniform_takes_the_upper_bits():
    draws = rows(5)
    expected = [[(bits >> 40) / 2**24 for bits in row] for row in (unsigned(r) for r in draws.bits("x", 7))]
    assert draws.uniform("x", 7).tolist() == expected


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_shapes_and_types(shape):
    draws = rows(4)
    for name, values, dtype in (
        ("bits", draws.bits("x", *shape), torch.int64),
        ("uniform", draws.uniform("x", *shape), torch.float32),
        ("log_uniform", draws.log_uniform("x", *shape, low=0.5, high=2), torch.float32),
        ("bernoulli", draws.bernoulli("x", *shape, p=0.5), torch.bool),
        ("integers", draws.integers("x", *shape, high=9), torch.int64),
        ("normal", draws.normal("x", *shape), torch.float32),
    ):
        assert values.shape == (4, *shape), name
        assert values.dtype == dtype, name
    assert draws.permutation("x", 5, *shape).shape == (4, *shape, 5)
    assert rows(0).uniform("x", *shape).shape == (0, *shape)


@pytest.mark.parametrize("layout", ["one sample, many numbers", "many samples, one number"])
def test_uniform(layout):
    values = rows(1).uniform("u", 200_000) if layout.startswith("one") else rows(200_000).uniform("u")
    values = values.flatten().double().numpy()
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / len(values))
    assert abs(values.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / len(values))
    assert stats.chisquare(np.histogram(values, bins=256, range=(0, 1))[0]).pvalue > 1e-3
    pairs = np.histogram2d(values[:-1:2], values[1::2], bins=16, range=[(0, 1), (0, 1)])[0]
    assert stats.chisquare(pairs.flatten()).pvalue > 1e-3


def test_uniform_limits():
    values = rows(1000).uniform("u", 50, low=-3, high=5)
    assert values.min() >= -3 and values.max() < 5
    assert stats.kstest(values.flatten().numpy(), stats.uniform(-3, 8).cdf).pvalue > 1e-3


def test_log_uniform():
    values = rows(1000).log_uniform("u", 50, low=0.25, high=4)
    assert values.min() >= 0.2499 and values.max() <= 4.0001
    logs = values.log().flatten().numpy()
    assert stats.kstest(logs, stats.uniform(math.log(0.25), math.log(16)).cdf).pvalue > 1e-3


def test_every_bit_is_fair():
    bits = rows(2000).bits("x", 20).flatten()
    share = torch.stack([((bits >> i) & 1).double().mean() for i in range(64)])
    assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(bits))


NEIGHBORS = {
    "epoch": (lambda: rows(100_000), lambda: rows(100_000, epoch=3)),
    "index": (lambda: rows(100_000), lambda: rows(100_000, start=1)),
    "view": (lambda: rows(100_000), lambda: rows(100_000, view=1)),
    "seed": (lambda: rows(100_000), lambda: rows(100_000, seed=4)),
    "step": (lambda: Draws.for_batch(3, 7), lambda: Draws.for_batch(3, 8)),
    "micro-batch": (lambda: Draws.for_batch(3, 7), lambda: Draws.for_batch(3, 7, micro_batch=1)),
    "rank": (lambda: Draws.for_batch(3, 7), lambda: Draws.for_batch(3, 7, rank=1)),
    "batch seed": (lambda: Draws.for_batch(3, 7), lambda: Draws.for_batch(4, 7)),
    "swapped epoch and index": (lambda: rows(1, epoch=5, start=6), lambda: rows(1, epoch=6, start=5)),
    "sample and batch": (lambda: rows(1, epoch=7, start=0), lambda: Draws.for_batch(3, 7)),
}


@pytest.mark.parametrize("what", NEIGHBORS)
def test_neighboring_keys_are_independent(what):
    first, second = (make() for make in NEIGHBORS[what])
    count = 1 if len(first.keys) > 1 else 100_000
    a, b = (draws.uniform("x", count).flatten().double().numpy() for draws in (first, second))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))
    assert (a == b).mean() < 1e-4
    differing = first.bits("x", count) ^ second.bits("x", count)
    ones = sum(((differing >> i) & 1).double().mean().item() for i in range(64))
    assert abs(ones - 32) < 5 * 4 / math.sqrt(len(a))


def test_draws_of_different_names_are_independent():
    draws = rows(100_000)
    a, b = (draws.uniform(name).double().numpy() for name in ("crop", "crop/1"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))


def test_one_draw_leaves_the_others_alone():
    expected = rows(10).uniform("b", 3)
    draws = rows(10)
    draws.uniform("a", 100)
    draws.permutation("c", 4)
    assert torch.equal(draws.uniform("b", 3), expected)


def test_more_numbers_begin_with_the_same_ones():
    assert torch.equal(rows(10).bits("a", 9)[:, :4], rows(10).bits("a", 4))


@pytest.mark.parametrize("samples,numbers", [(1, 10**6), (1000, 1000), (10**6, 1)])
def test_no_repeats(samples, numbers):
    assert len(rows(samples).bits("x", numbers).unique()) == 10**6


def test_no_repeats_over_epochs_and_steps():
    epoch, index = torch.arange(1000).repeat_interleave(1000), torch.arange(1000).repeat(1000)
    assert len(Draws.for_samples(0, epoch, index).bits("x").unique()) == 10**6
    keys = [
        Draws.for_batch(0, step, micro, rank).keys.item()
        for step in range(20)
        for micro in range(10)
        for rank in range(10)
    ]
    assert len(set(keys)) == 2000


@pytest.mark.parametrize(
    "draw",
    [
        lambda d: d.bits("x", 5),
        lambda d: d.uniform("x", 5),
        lambda d: d.log_uniform("x", 5, low=0.1, high=3),
        lambda d: d.bernoulli("x", 5, p=0.3),
        lambda d: d.integers("x", 5, high=100),
        lambda d: d.permutation("x", 6, 2),
        lambda d: d.normal("x", 33),
    ],
)
def test_rows_do_not_depend_on_the_batch(draw):
    epoch, index = torch.arange(50) % 3, torch.arange(50) * 7
    whole = draw(Draws.for_samples(1, epoch, index))
    for chosen in (
        torch.randperm(50, generator=torch.Generator().manual_seed(0)),
        torch.tensor([4]),
        torch.arange(9, 30),
    ):
        assert torch.equal(draw(Draws.for_samples(1, epoch[chosen], index[chosen])), whole[chosen])


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_permutations(n):
    orders = rows(50).permutation("p", n, 4)
    assert torch.equal(orders.sort(-1).values, torch.arange(n).expand(50, 4, n))


def test_all_orders_are_equally_likely():
    orders = rows(12_000).permutation("p", 4, 2).flatten(0, 1)
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 2, 7, 100])
def test_integers(high):
    values = rows(20_000).integers("i", 2, high=high)
    counts = torch.bincount(values.flatten(), minlength=high)
    assert len(counts) == high and values.min() >= 0
    if high > 1:
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_integers_up_to_the_largest_high():
    values = rows(100_000).integers("i", high=2**31)
    assert values.min() >= 0 and values.max() < 2**31
    assert stats.kstest(values.numpy() / 2**31, "uniform").pvalue > 1e-3


def test_integers_with_a_high_for_each_row():
    high = torch.arange(1, 301).repeat(200)
    values = rows(60_000).integers("i", high=high)
    assert (values >= 0).all() and (values < high).all()
    assert (values[high == 1] == 0).all()
    for n in (2, 5, 10):
        counts = torch.bincount(values[high == n], minlength=n)
        assert len(counts) == n and stats.chisquare(counts.numpy()).pvalue > 1e-3
    shares = (values[high > 50] + 0.5) / high[high > 50]
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 1e-3


def test_normal():
    values = rows(2000).normal("n", 100).flatten().double().numpy()
    count = len(values)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(count)


def test_bernoulli():
    draws = rows(100_000)
    assert not draws.bernoulli("b", p=0.0).any()
    assert draws.bernoulli("b", p=1.0).all()
    share = draws.bernoulli("b", p=0.3).double().mean().item()
    assert abs(share - 0.3) < 5 * math.sqrt(0.21 / 100_000)


def test_global_generators_are_not_touched():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    draws = rows(8)
    draws.bits("a", 3)
    draws.uniform("a", 3)
    draws.log_uniform("a", 3, low=1, high=2)
    draws.bernoulli("a", 3, p=0.5)
    draws.integers("a", 3, high=9)
    draws.permutation("a", 3)
    draws.normal("a", 3)
    Draws.for_batch(0, 0).uniform("a", 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])
    assert np.random.get_state()[2] == before[3]


def test_global_seeds_change_nothing():
    torch.manual_seed(0)
    first = rows(8).uniform("a", 3)
    torch.manual_seed(1)
    assert torch.equal(rows(8).uniform("a", 3), first)
