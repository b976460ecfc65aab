import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics.pairwise import cosine_similarity

from hf_ssl.evaluation import instance_similarity


def random_features(seed, queries, keys, dim):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(queries, dim, generator=generator), torch.randn(keys, dim, generator=generator)


@pytest.mark.parametrize("queries, keys, dim", [(1, 1, 3), (6, 10, 36), (40, 7, 384)])
def test_equals_scikit_learn_and_scipy(queries, keys, dim):
    x, y = (3 * features.double() for features in random_features(0, queries, keys, dim))
    expected = cosine_similarity(x.numpy(), y.numpy())
    np.testing.assert_allclose(instance_similarity(x, y).numpy(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(instance_similarity(x.float(), y.float()).numpy(), expected, rtol=1e-4, atol=1e-6)
    for temperature in (0.05, 0.2, 1.0):
        np.testing.assert_allclose(
            instance_similarity(x, y, temperature).numpy(), special.softmax(expected / temperature, axis=1), rtol=1e-10
        )


def test_values_by_hand():
    queries, keys = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0], [-3.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(instance_similarity(queries, keys), torch.tensor([[1.0, 0.0, -1.0, 0.5**0.5]]))
    expected = torch.tensor([[4.0, 1.0]]) / 5
    torch.testing.assert_close(instance_similarity(queries, keys[:2], temperature=1 / np.log(4)), expected)


tasks = st.tuples(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12), st.integers(1, 20))
scales = st.floats(1e-3, 1e3)
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(tasks, scales)
def test_range(task, scale):
    x, y = random_features(*task)
    for keys in (y, x, -x):
        assert instance_similarity(x, scale * keys).abs().max() <= 1


@few
@given(tasks)
def test_an_image_compared_with_itself(task):
    x, _ = random_features(*task)
    similarities = instance_similarity(x.double(), x.double())
    torch.testing.assert_close(similarities, similarities.T)
    torch.testing.assert_close(similarities.diagonal(), torch.ones(len(x), dtype=torch.float64))


@few
@given(tasks, scales, scales, st.sampled_from([None, 0.1, 1.0]))
def test_length_of_the_features_does_not_matter(task, query_scale, key_scale, temperature):
    x, y = (features.double() for features in random_features(*task))
    expected = instance_similarity(x, y, temperature)
    torch.testing.assert_close(instance_similarity(query_scale * x, key_scale * y, temperature), expected)


@few
@given(tasks, st.floats(1e-3, 100))
def test_shares(task, temperature):
    """They sum to 1, and the more similar key has the larger share."""
    x, y = (features.double() for features in random_features(*task))
    shares = instance_similarity(x, y, temperature)
    assert shares.shape == (len(x), len(y)) and shares.min() >= 0
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(x), dtype=torch.float64))
    order = instance_similarity(x, y).argsort(dim=1)
    assert (shares.gather(1, order).diff(dim=1) >= 0).all()


@few
@given(tasks, st.randoms(use_true_random=False))
def test_order_of_the_keys(task, random):
    x, y = random_features(*task)
    order = list(range(len(y)))
    random.shuffle(order)
    for temperature in (None, 0.2):
        expected = instance_similarity(x, y, temperature)[:, order]
        torch.testing.assert_close(instance_similarity(x, y[order], temperature), expected)


def test_zero_features_are_like_nothing():
    x, y = random_features(1, 3, 4, 5)
    x[1] = 0
    assert torch.equal(instance_similarity(x, y)[1], torch.zeros(4))
    assert torch.equal(instance_similarity(x, y, 0.1)[1], torch.full((4,), 0.25))


@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision(dtype, temperature):
    """In float32 or wider, whatever autocast says."""
    x, y = (features.to(dtype) for features in random_features(2, 5, 6, 64))
    wide = torch.promote_types(dtype, torch.float32)
    expected = instance_similarity(x.to(wide), y.to(wide), temperature)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarities = instance_similarity(x, y, temperature)
    assert similarities.dtype == wide
    assert torch.equal(similarities, expected)
    exact = instance_similarity(x.double(), y.double(), temperature)
    torch.testing.assert_close(similarities.double(), exact, rtol=1e-5, atol=1e-6)


def test_unequal_types():
    x, y = random_features(3, 2, 3, 4)
    torch.testing.assert_close(instance_similarity(x.half(), y.double()).float(), instance_similarity(x.half(), y))


def test_features_are_left_alone():
    x, y = random_features(4, 2, 3, 4)
    x.requires_grad_()
    copies = x.detach().clone(), y.clone()
    assert not instance_similarity(x, y, 0.1).requires_grad
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"queries": torch.ones(6)}, r"`queries` must have shape \(number of images, dim\), got \(6,\)"),
        ({"keys": torch.ones(2, 3, 6)}, r"`keys` must have shape \(number of images, dim\), got \(2, 3, 6\)"),
        ({"keys": torch.ones(4, 7)}, "6 dimensions and `keys` has 7: extract both with the same encoder"),
        ({"queries": torch.full((5, 6), torch.nan)}, "`queries` contains NaN or infinite values"),
        ({"keys": torch.full((4, 6), torch.inf)}, "`keys` contains NaN or infinite values"),
        ({"temperature": 0.0}, "`temperature` must be positive, or None .*, got 0.0"),
        ({"temperature": -0.1}, "`temperature` must be positive, .*, got -0.1"),
        ({"temperature": float("nan")}, "`temperature` must be positive, .*, got nan"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        instance_similarity(**{"queries": torch.ones(5, 6), "keys": torch.ones(4, 6), **change})
