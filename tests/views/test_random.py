import hashlib
import math
import random
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_ssl.views import Draws

from ..device import DEVICE


MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


# How far a mean may lie from its expectation, in standard errors; and the least p-value. Good random numbers fail each
# about once in 10,000 times; all seeds are fixed.
SIGMAS = 3.9
P_VALUE = 1e-4


def rows(count, seed=3, epoch=2, view=0, start=0, device="cpu"):
    index = torch.arange(start, start + count, device=device)
    return Draws.for_samples(seed, torch.full_like(index, epoch), index, view)


# Every kind of draw, a few numbers for each row.
WEIGHTS = [0.1, 0.0, 0.3, 1e-9, 0.2, 0.0, 0.4]
KINDS = {
    "bits": lambda d: d.bits("x", 3),
    "uniform": lambda d: d.uniform("x", 3, low=-0.3, high=1.7),
    "log_uniform": lambda d: d.log_uniform("x", 3, low=0.1, high=3),
    "bernoulli": lambda d: d.bernoulli("x", 3, p=0.3),
    "integers": lambda d: d.integers("x", 3, high=1000),
    "integers below a tensor": lambda d: d.integers("x", 3, high=torch.arange(2, 5, device=d.keys.device)),
    "permutation": lambda d: d.permutation("x", 7, 3),
    "normal": lambda d: d.normal("x", 3),
    "gumbel": lambda d: d._gumbel("x", 3).float(),  # only the order of the float64 keys matters
    "weighted_choice": lambda d: d.weighted_choice(
        "x", torch.ones_like(d.keys)[:, None, None] * torch.tensor(WEIGHTS).expand(3, -1).to(d.keys.device), 5
    ),
    "split": lambda d: d.split(3).keys.view(3, -1).T,
}


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
    assert unsigned(draws.split(4).keys) == stream(mix(key), "Draws.split", 4)


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
    choice = draws.weighted_choice("x", torch.ones(4, *shape, 5), 2)
    assert choice.shape == (4, *shape, 2) and choice.dtype == torch.int64
    assert draws.split(3).keys.shape == (12,) and draws.split(0).keys.shape == (0,)
    for none in (rows(0), draws.split(0)):
        assert none.uniform("x", *shape).shape == (0, *shape)
    assert draws.permutation("x", 0, *shape).shape == (4, *shape, 0)


# What is drawn, with its distribution. A weighted choice without replacement is tested at length below.
DISTRIBUTIONS = {
    "bits": (lambda d, *n: d.bits("x", *n) * 2.0**-64, stats.uniform(-0.5, 1)),
    "lower bits": (lambda d, *n: (d.bits("x", *n) & (2**32 - 1)) * 2.0**-32, stats.uniform()),
    "uniform": (lambda d, *n: d.uniform("x", *n), stats.uniform()),
    "uniform with limits": (lambda d, *n: d.uniform("x", *n, low=-3, high=5), stats.uniform(-3, 8)),
    "log_uniform": (lambda d, *n: d.log_uniform("x", *n, low=0.25, high=4), stats.loguniform(0.25, 4)),
    "bernoulli": (lambda d, *n: d.bernoulli("x", *n, p=0.3), stats.bernoulli(0.3)),
    "integers below 2": (lambda d, *n: d.integers("x", *n, high=2), stats.randint(0, 2)),
    "integers below 7": (lambda d, *n: d.integers("x", *n, high=7), stats.randint(0, 7)),
    "integers below 100": (lambda d, *n: d.integers("x", *n, high=100), stats.randint(0, 100)),
    "integers below 2**31": (lambda d, *n: d.integers("x", *n, high=2**31) * 2.0**-31, stats.uniform()),
    "first of a permutation": (lambda d, *n: d.permutation("x", 5, *n)[..., 0], stats.randint(0, 5)),
    "last of a permutation": (lambda d, *n: d.permutation("x", 5, *n)[..., 4], stats.randint(0, 5)),
    "normal": (lambda d, *n: d.normal("x", *n), stats.norm()),
    "gumbel": (lambda d, *n: d._gumbel("x", *n), stats.gumbel_r()),
    "weighted_choice": (
        lambda d, *n: d.weighted_choice("x", torch.tensor([1.0, 2, 3, 4]).expand(len(d.keys), *n, 4), 1),
        stats.rv_discrete(values=([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])),
    ),
    "split": (lambda d, *n: d.split(4).uniform("x", *n), stats.uniform()),
}
LAYOUTS = {"one sample, many numbers": (1, 100_000), "many samples, one number": (100_000,), "both": (250, 400)}


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # scipy's, far outside the Gumbel distribution
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_distribution(kind, layout):
    """The first four moments, and Kolmogorov-Smirnov or chi-square tests of the whole distribution."""
    draw, distribution = DISTRIBUTIONS[kind]
    count, *shape = LAYOUTS[layout]
    values = draw(rows(count), *shape).flatten().double().numpy()
    lowest, highest = distribution.support()
    assert values.min() >= lowest and values.max() <= highest

    mean = distribution.mean()
    for order in (1, 2, 3, 4):
        moment, square = (distribution.expect(lambda x, k=k: (x - mean) ** k) for k in (order, 2 * order))
        error = ((values - mean) ** order).mean() - moment
        assert abs(error) < SIGMAS * math.sqrt(max(square - moment**2, 1e-30) / len(values)), order

    if hasattr(distribution, "pmf"):
        outcomes = np.arange(lowest, highest + 1)
        found = np.bincount((values - lowest).astype(int), minlength=len(outcomes))
        assert stats.chisquare(found, distribution.pmf(outcomes) * len(values)).pvalue > P_VALUE
    else:
        assert stats.kstest(values, distribution.cdf).pvalue > P_VALUE
        assert stats.chisquare(np.histogram(distribution.cdf(values), 256, (0, 1))[0]).pvalue > P_VALUE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bit_is_fair(layout):
    count, *shape = LAYOUTS[layout]
    bits = rows(count).bits("x", *shape).flatten()
    ones = torch.stack([((bits >> i) & 1).sum() for i in range(64)]).double()
    sigmas = (ones / len(bits) - 0.5) * 2 * math.sqrt(len(bits))
    assert sigmas.abs().max() < 4.5  # 64 of them
    assert stats.chi2(64).sf((sigmas**2).sum()) > P_VALUE


def test_pairs_of_bits_are_independent():
    bits = rows(500).bits("x", 200).flatten()
    signs = torch.stack([((bits >> i) & 1) * 2.0 - 1 for i in range(64)])
    sigmas = (signs @ signs.T / math.sqrt(len(bits)))[torch.ones(64, 64).triu(1).bool()]
    assert sigmas.abs().max() < 5  # 2016 of them
    assert stats.kstest(sigmas.numpy(), "norm").pvalue > P_VALUE


MANY = 100_000
STEPS = torch.arange(MANY)  # in place of one step: a row for each
BATCH = Draws.for_batch(3, 7)

# Pairs of draws whose keys differ in one part, next to each other: (rows, numbers for each row), then the two.
NEIGHBORS = {
    "seed": ((MANY,), rows(MANY), rows(MANY, seed=4)),
    "epoch": ((MANY,), rows(MANY), rows(MANY, epoch=3)),
    "index": ((MANY,), rows(MANY), rows(MANY, start=1)),
    "far index": ((MANY,), rows(MANY), rows(MANY, start=2**32)),
    "view": ((MANY,), rows(MANY), rows(MANY, view=1)),
    "stream": ((MANY,), *(Draws(keys) for keys in rows(MANY).split(2).keys.chunk(2))),
    "stream 0 and view 0": ((MANY,), rows(MANY).split(1), rows(MANY)),
    "batch seed": ((MANY,), Draws.for_batch(3, STEPS), Draws.for_batch(4, STEPS)),
    "step": ((MANY,), Draws.for_batch(3, STEPS), Draws.for_batch(3, STEPS + 1)),
    "micro-batch": ((MANY,), Draws.for_batch(3, STEPS), Draws.for_batch(3, STEPS, micro_batch=1)),
    "rank": ((MANY,), Draws.for_batch(3, STEPS), Draws.for_batch(3, STEPS, rank=1)),
    "stream of a batch": ((MANY,), *(Draws(keys) for keys in Draws.for_batch(3, STEPS).split(2).keys.chunk(2))),
    "sample and batch": ((MANY,), Draws.for_samples(3, STEPS, STEPS * 0), Draws.for_batch(3, STEPS)),
    "one row, epoch": ((1, MANY), rows(1), rows(1, epoch=3)),
    "one row, index": ((1, MANY), rows(1), rows(1, start=1)),
    "one row, view": ((1, MANY), rows(1), rows(1, view=1)),
    "one row, step": ((1, MANY), BATCH, Draws.for_batch(3, 8)),
    "one row, micro-batch": ((1, MANY), BATCH, Draws.for_batch(3, 7, micro_batch=1)),
    "one row, rank": ((1, MANY), BATCH, Draws.for_batch(3, 7, rank=1)),
    "one row, batch seed": ((1, MANY), BATCH, Draws.for_batch(4, 7)),
    "one row, stream": ((1, MANY), *(Draws(key) for key in BATCH.split(2).keys.chunk(2))),
    "one row, swapped epoch and index": ((1, MANY), rows(1, epoch=5, start=6), rows(1, epoch=6, start=5)),
    "one row, sample and batch": ((1, MANY), rows(1, epoch=7, start=0), BATCH),
}


def assert_independent(first, second):
    """Of two sets of 64-bit words: correlation, contingency tables of four bits each, and the number of equal bits."""
    size = first.numel()
    a, b = (bits.flatten().double().numpy() for bits in (first, second))
    assert abs(np.corrcoef(a, b)[0, 1]) < SIGMAS / math.sqrt(size)
    for shift1 in (0, 30, 60):
        for shift2 in (0, 30, 60):
            codes = ((first >> shift1) & 15) * 16 + ((second >> shift2) & 15)
            table = torch.bincount(codes.flatten(), minlength=256).view(16, 16).numpy()
            assert stats.chi2_contingency(table).pvalue > P_VALUE, (shift1, shift2)
    differing = (first ^ second).flatten()
    ones = sum(((differing >> i) & 1).sum().item() for i in range(64)) / size
    assert abs(ones - 32) < SIGMAS * 4 / math.sqrt(size)


@pytest.mark.parametrize("part", NEIGHBORS)
def test_neighboring_keys_are_independent(part):
    (_, *shape), first, second = NEIGHBORS[part]
    assert_independent(first.bits("x", *shape), second.bits("x", *shape))


@pytest.mark.parametrize("names", [("crop", "crop/1"), ("a", "b"), ("", "x"), ("Draws.split", "split")])
def test_draws_of_different_names_are_independent(names):
    for draws, shape in ((rows(MANY), ()), (BATCH, (MANY,))):
        assert_independent(*(draws.bits(name, *shape) for name in names))


@pytest.mark.parametrize("distance", [1, 2, 8])
def test_neighboring_positions_are_independent(distance):
    pairs = rows(MANY).bits("x", distance + 1)
    assert_independent(pairs[:, 0], pairs[:, distance])
    pairs = BATCH.bits("x", 2 * MANY).view(-1, 2, distance)
    assert_independent(pairs[:, 0], pairs[:, 1])


def test_views_of_each_row():
    view = torch.arange(5)
    index, epoch = torch.tensor([3, 3, 4, 4, 9]), torch.tensor([0, 1, 0, 1, 2])
    together = Draws.for_samples(1, epoch, index, view).keys
    for i in range(5):
        alone = Draws.for_samples(1, epoch[i : i + 1], index[i : i + 1], i)
        assert torch.equal(alone.keys, together[i : i + 1])
    same = Draws.for_samples(1, epoch, index, torch.tensor(2))
    assert torch.equal(same.keys, Draws.for_samples(1, epoch, index, 2).keys)
    all_views = Draws.for_samples(1, epoch[:1], index[:1], view)
    assert torch.equal(all_views.keys, Draws.for_samples(1, epoch[:1].expand(5), index[:1].expand(5), view).keys)


def test_streams():
    draws = rows(4)
    keys = draws.split(5).keys.view(5, 4)  # all rows of stream 0 first
    for count in (1, 2, 17):
        shared = min(count, 5)
        assert torch.equal(draws.split(count).keys.view(count, 4)[:shared], keys[:shared])
    for row in range(4):
        assert torch.equal(Draws(draws.keys[row : row + 1]).split(5).keys, keys[:, row])
    numbers = draws.split(5).uniform("x", 2)
    assert torch.equal(numbers[4:8], Draws(keys[1]).uniform("x", 2))
    assert not torch.equal(draws.split(2).split(2).keys, draws.split(4).keys)


def test_one_draw_leaves_the_others_alone():
    expected = rows(10).uniform("b", 3)
    draws = rows(10)
    draws.uniform("a", 100)
    draws.permutation("c", 4)
    assert torch.equal(draws.uniform("b", 3), expected)


def test_more_numbers_begin_with_the_same_ones():
    assert torch.equal(rows(10).bits("a", 9)[:, :4], rows(10).bits("a", 4))


def test_no_repeats():
    """Eight million words: a repeat among as many random ones has a probability of 2e-6."""
    epoch, index = torch.arange(10).repeat_interleave(50_000), torch.arange(50_000).repeat(10)
    words = []
    for view in range(3):
        draws = Draws.for_samples(0, epoch, index, view)
        words += [draws.keys, *(draws.bits(name) for name in ("x", "y", "crop", "crop/1"))]
    one_epoch = rows(25_000, seed=0, epoch=0)
    words += [one_epoch.bits("many", 4), rows(1, seed=0, epoch=0).bits("still more", 50_000)]
    words += [one_epoch.split(4).keys, one_epoch.split(4).bits("x"), one_epoch.split(2).split(2).keys]
    steps = Draws.for_batch(0, STEPS // 4, STEPS % 4 // 2, STEPS % 2)
    words += [steps.keys, steps.bits("x"), steps.split(2).keys, Draws.for_batch(0, 0).bits("many", 50_000)]
    everything = torch.cat([word.flatten() for word in words])
    assert len(everything) > 8_000_000
    ordered = everything.sort().values
    assert (ordered[1:] != ordered[:-1]).all()


BATCH_SIZES = (1, 3, 7, 8, 17, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_the_batch(kind):
    """Bit for bit: the vector and the scalar code of a CPU must not show."""
    whole = KINDS[kind](rows(1000))
    for size in BATCH_SIZES:
        parts = [KINDS[kind](Draws(keys)) for keys in rows(1000).keys.split(size)[:150]]
        assert torch.equal(torch.cat(parts), whole[: 150 * size]), size
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(KINDS[kind](Draws(rows(1000).keys[order])), whole[order])


def test_rounded_once_from_float64():
    """Logarithms, exponentials, cosines and roots of float32 would depend on the device."""
    draws = rows(1000)

    def unit(name):
        return (draws.bits(name, 30).numpy().view(np.uint64) >> np.uint64(11)) * 2.0**-53

    expected = np.exp(unit("x") * (math.log(3) - math.log(0.1)) + math.log(0.1)).astype(np.float32)
    np.testing.assert_array_equal(draws.log_uniform("x", 30, low=0.1, high=3), expected)
    expected = np.sqrt(-2 * np.log1p(-unit("x/radius"))) * np.cos(unit("x/angle") * (2 * math.pi))
    np.testing.assert_array_equal(draws.normal("x", 30), expected.astype(np.float32))
    assert draws._gumbel("x", 30).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_devices_draw_the_same(kind):
    """Bit for bit, on the device of the tests."""
    for size in (1, 33, 30_000):
        expected = KINDS[kind](rows(size))
        drawn = KINDS[kind](rows(size, device=DEVICE))
        assert drawn.device.type == torch.device(DEVICE).type and torch.equal(drawn.cpu(), expected)
    drawn = KINDS[kind](Draws.for_batch(5, 2**40, 3, 1, device=DEVICE))
    assert torch.equal(drawn.cpu(), KINDS[kind](Draws.for_batch(5, 2**40, 3, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_back_from_the_device(kind):
    """Tensors of the meta device have no values: reading one is an error."""
    assert KINDS[kind](rows(4, device="meta")).shape == KINDS[kind](rows(4)).shape


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_permutations(n):
    orders = rows(50).permutation("p", n, 4)
    assert torch.equal(orders.sort(-1).values, torch.arange(n).expand(50, 4, n))


def test_all_orders_are_equally_likely():
    orders = rows(12_000).permutation("p", 4, 2).flatten(0, 1)
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > P_VALUE


def test_integers_with_a_high_for_each_row():
    high = torch.arange(1, 301).repeat(200)
    values = rows(60_000).integers("i", high=high)
    assert (values >= 0).all() and (values < high).all()
    assert (values[high == 1] == 0).all()
    for n in (2, 5, 10):
        counts = torch.bincount(values[high == n], minlength=n)
        assert len(counts) == n and stats.chisquare(counts.numpy()).pvalue > P_VALUE
    shares = (values[high > 50] + 0.5) / high[high > 50]
    assert stats.kstest(shares.numpy(), "uniform").pvalue > P_VALUE


def test_certain_draws():
    draws = rows(10_000)
    assert not draws.bernoulli("b", p=0.0).any() and draws.bernoulli("b", p=1.0).all()
    assert not draws.integers("i", high=1).any()


def test_global_generators_are_not_touched():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    draws = rows(8)
    for draw in KINDS.values():
        draw(draws)
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


class Fixed(Draws):
    """Draws whose random bits are given: keys of shape `(num_rows, numbers)`."""

    def bits(self, name, *shape):
        return self.keys.view(-1, *shape)


EXTREMES = Fixed(torch.tensor([[-(2**63), 2**63 - 1, 0, -1]]))


def test_extreme_random_bits():
    assert EXTREMES.uniform("x", 4).tolist() == [[0.5, 0.5 - 2**-24, 0, 1 - 2**-24]]
    assert EXTREMES.log_uniform("x", 4, low=0.25, high=4).tolist() == [[1, 1, 0.25, 4]]
    assert EXTREMES.integers("x", 4, high=2**31).tolist() == [[2**30, 2**30 - 1, 0, 2**31 - 1]]
    normal = EXTREMES.normal("x", 4)
    assert normal.isfinite().all() and normal[0, 2] == 0
    assert normal[0, 3] == pytest.approx(math.sqrt(2 * 53 * math.log(2)))
    assert EXTREMES.weighted_choice("x", torch.tensor([[0.25, 0.25, 0.25, 0.25]]), 4).tolist() == [[1, 2, 3, 0]]
    assert EXTREMES.weighted_choice("x", torch.tensor([[0, 0, 5e-324, 0]], dtype=torch.float64), 4)[0, 0] == 2


# Weighted choice


def successive(weights, count):
    """The exact probability of each ordered choice."""
    exact = {}
    for order in permutations(range(len(weights)), count):
        left, share = sum(weights), 1.0
        for item in order:
            share *= weights[item] / left if left > 1e-12 else 0.0
            left -= weights[item]
        exact[order] = share
    return exact


def counts_of(choices, orders):
    """How often each of the orders, all there are, is found in choices of shape `(size, count)`."""
    digits = 10 ** torch.arange(choices.shape[1])
    counts = torch.bincount((choices * digits).sum(1), minlength=10 ** choices.shape[1])
    counts = counts[(torch.tensor(list(orders)) * digits).sum(1)]
    assert counts.sum() == len(choices)
    return counts.numpy()


@pytest.mark.parametrize(
    "weights,count",
    [
        ([0.1, 0.2, 0.3, 0.4], 2),
        ([0.7, 0.1, 0.1, 0.05, 0.05], 3),
        ([0.5, 0.3, 0.2], 3),
        ([0.9, 0.02, 0.08], 1),
        ([2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 4),
        ([1.0, 1.0, 1.0, 1.0, 4.0, 9.0, 16.0], 2),
    ],
)
def test_choice_is_successive_sampling(weights, count):
    size = 50_000
    choices = rows(size).weighted_choice("x", torch.tensor(weights, dtype=torch.float64).expand(size, -1), count)
    assert choices.shape == (size, count) and choices.dtype == torch.int64
    exact = successive(weights, count)
    expected = np.array(list(exact.values())) * size
    assert expected.min() > 5
    assert stats.chisquare(counts_of(choices, exact), expected).pvalue > P_VALUE

    for item in range(len(weights)):
        inclusion = sum(share for order, share in exact.items() if item in order)
        included = (choices == item).any(1).double().mean().item()
        assert abs(included - inclusion) < SIGMAS * (inclusion * (1 - inclusion) / size) ** 0.5 + 1e-12

    items = range(len(weights))
    for pair in permutations(items, 2):  # both drawn, in this order, whatever comes between and around them
        share = sum(p for order, p in exact.items() if [i for i in order if i in pair] == list(pair))
        place = [torch.where(choices == item, torch.arange(count), count).amin(1) for item in pair]
        found = ((place[0] < place[1]) & (place[1] < count)).double().mean().item()
        assert abs(found - share) < SIGMAS * (share * (1 - share) / size) ** 0.5 + 1e-12


def test_choice_has_the_distribution_of_numpy():
    probabilities, count, size = [0.05, 0.15, 0.3, 0.5], 2, 10_000
    generator = np.random.RandomState(0)
    theirs = [generator.choice(4, count, replace=False, p=probabilities) for _ in range(size)]
    ours = rows(size).weighted_choice("x", torch.tensor([probabilities]).expand(size, -1), count)
    orders = list(permutations(range(4), count))
    table = np.stack([counts_of(torch.tensor(np.array(theirs)), orders), counts_of(ours, orders)])
    assert stats.chi2_contingency(table).pvalue > P_VALUE


WEIGHTED_NEIGHBORS = {
    "index": lambda: rows(100_000).keys.view(-1, 2).T,
    "epoch": lambda: (rows(50_000).keys, rows(50_000, epoch=3).keys),
    "view": lambda: (rows(50_000).keys, rows(50_000, view=1).keys),
    "stream": lambda: rows(50_000).split(2).keys.view(2, -1),
    "step": lambda: Draws.for_batch(3, STEPS).keys.view(-1, 2).T,
}


def assert_independent_choices(first, second):
    """Of two sets of choices of 2 items of 4: the contingency table of their 12 orders."""
    orders = list(permutations(range(4), 2))
    both = counts_of(torch.cat([first, second], dim=1), [(*one, *other) for one in orders for other in orders])
    assert stats.chi2_contingency(both.reshape(12, 12)).pvalue > P_VALUE


@pytest.mark.parametrize("part", WEIGHTED_NEIGHBORS)
def test_choices_of_neighboring_keys_are_independent(part):
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(50_000, -1)
    assert_independent_choices(*(Draws(keys).weighted_choice("x", weights, 2) for keys in WEIGHTED_NEIGHBORS[part]()))


def test_choices_of_one_row_are_independent():
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert_independent_choices(*rows(50_000).weighted_choice("x", weights.expand(50_000, 2, -1), 2).unbind(1))
    assert_independent_choices(*BATCH.weighted_choice("x", weights.expand(1, 50_000, 2, -1), 2)[0].unbind(1))


def test_too_few_positive_weights_are_filled_up_uniformly():
    size = 12_000
    weights = torch.tensor([0.0, 0.2, 0.0, 0.0, 0.8, 0.0], dtype=torch.float64).expand(size, -1)
    choices = rows(size).weighted_choice("x", weights, 4)
    assert torch.equal(choices[:, :2].sort(1).values, torch.tensor([1, 4]).expand(size, -1))
    filled = counts_of(choices[:, 2:], permutations([0, 2, 3, 5], 2))
    assert stats.chisquare(filled).pvalue > P_VALUE
    first = (choices[:, 0] == 4).double().mean().item()
    assert abs(first - 0.8) < SIGMAS * (0.16 / size) ** 0.5


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from([0.0, 5e-324, 1e-300, 1e-18, 0.3, 1.0]), min_size=1, max_size=12),
    st.integers(0, 12),
    st.integers(0, 2**31),
)
def test_choices_are_distinct_and_zeros_come_last(weights, count, seed):
    count = min(count, len(weights))
    weights = torch.tensor(weights, dtype=torch.float64)
    choices = rows(20, seed).weighted_choice("x", weights.expand(20, 3, -1), count)
    assert choices.shape == (20, 3, count)
    assert all(len(set(choice)) == count for choice in choices.flatten(0, 1).tolist())
    taken = (weights[choices] > 0).sum(-1)
    assert (taken == min(count, int((weights > 0).sum()))).all()
    assert (weights[choices][..., : int(taken.max())] > 0).all()


def test_choices_are_a_function_of_the_draws():
    weights = torch.rand(50, 4, 16, generator=torch.Generator().manual_seed(0)) ** 3
    whole = rows(50).weighted_choice("x", weights, 5)
    assert torch.equal(rows(50).weighted_choice("x", weights, 5), whole)
    assert torch.equal(rows(50).weighted_choice("x", weights, 9)[..., :5], whole)
    some = torch.tensor([40, 3, 17])
    assert torch.equal(Draws(rows(50).keys[some]).weighted_choice("x", weights[some], 5), whole[some])
    assert not torch.equal(rows(50).weighted_choice("other", weights, 5), whole)
    assert not torch.equal(rows(50, seed=1).weighted_choice("x", weights, 5), whole)
    assert not torch.equal(whole[:, 0], whole[:, 1])
    rounded = weights.repeat(1, 9, 1).half()
    assert torch.equal(rows(50).weighted_choice("x", rounded, 5), rows(50).weighted_choice("x", rounded.double(), 5))


def test_refused_weights():
    with pytest.raises(ValueError, match="count=4 items cannot be drawn from 3 without replacement"):
        rows(1).weighted_choice("x", torch.ones(1, 3), 4)
    with pytest.raises(ValueError, match="weights has 2 rows, the draws have 1"):
        rows(1).weighted_choice("x", torch.ones(2, 3), 1)
    for wrong in (-1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            rows(1).weighted_choice("x", torch.tensor([[1.0, wrong]]), 1)
