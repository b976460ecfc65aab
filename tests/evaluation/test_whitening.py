import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.evaluation import Whitening, instance_similarity, search


few = settings(max_examples=40, deadline=None, derandomize=True)


def make_features(seed, count, dim):
    """Neither centered nor alike in all directions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) @ torch.randn(dim, dim, generator=generator) + 0.5


def slow_whitening(features, center_covariance):
    """As the original writes it, in numpy."""
    features = features.double().numpy()
    mean = features.mean(0)
    moments = np.zeros((features.shape[1],) * 2)
    for row in features - mean if center_covariance else features:
        moments += np.outer(row, row) / len(features)
    values, vectors = np.linalg.eigh(moments)
    values[values < 1e-5 * values.max()] = 1e-5 * values.max()
    order = np.argsort(-values)
    return mean, np.diag(values[order] ** -0.5) @ vectors[:, order].T


@few
@given(st.integers(0, 999), st.integers(2, 60), st.integers(1, 12), st.booleans(), st.sampled_from([1, 7, 100, 2**18]))
def test_equals_a_slow_one(seed, count, dim, center, numbers_at_once):
    """Up to the sign of each direction, and however many images are looked at at a time."""
    features, others = make_features(seed, count, dim), make_features(seed + 1, 9, dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "NUM_AT_ONCE", numbers_at_once)
        whitening = Whitening.fit(features, center_covariance=center)
        whitened = whitening.apply(others)
    mean, projection = slow_whitening(features, center)
    np.testing.assert_allclose(whitening.mean, mean, rtol=1e-12, atol=1e-12)
    # Directions of equal variances, here of those that were raised, may be any; products of features say the same.
    expected = (others.double().numpy() - mean) @ projection.T
    scale = np.abs(expected @ expected.T).max()
    np.testing.assert_allclose(whitened @ whitened.T, expected @ expected.T, rtol=0, atol=1e-5 * scale)


@few
@given(st.integers(0, 999), st.integers(1, 10))
def test_what_it_was_fitted_on_is_white(seed, dim):
    features = make_features(seed, 40 + dim, dim).double()
    values = torch.linalg.eigvalsh((features - features.mean(0)).T @ (features - features.mean(0)))
    whitened = Whitening.fit(features, center_covariance=True).apply(features)
    covariance = whitened.T @ whitened / len(features)
    raised = (values.flip(0) / (1e-5 * values.max())).clamp(max=1)
    torch.testing.assert_close(covariance, raised.diag(), rtol=0, atol=1e-8)
    torch.testing.assert_close(whitened.mean(0), torch.zeros_like(whitened[0]), rtol=0, atol=1e-8)


def test_second_moments_of_features_as_they_are():
    """The default: those that the projection makes white are not centered, those that it is applied to are."""
    features = make_features(0, 200, 6).double() + 3
    whitening = Whitening.fit(features)
    projected = features @ whitening.projection.T
    torch.testing.assert_close(projected.T @ projected / 200, torch.eye(6).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(whitening.apply(features), projected - whitening.projection @ features.mean(0))
    spread = whitening.apply(features).square().mean(0)
    assert spread[0] < 0.5  # along the mean
    torch.testing.assert_close(
        Whitening.fit(features, center_covariance=True).apply(features).square().mean(0), torch.ones(6).double()
    )


@pytest.mark.parametrize("center", [False, True])
def test_rotations_change_no_similarity(center):
    features, others = make_features(1, 100, 8).double(), make_features(2, 10, 8).double()
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    similarities = []
    for turn in (torch.eye(8).double(), rotation):
        whitened = Whitening.fit(features @ turn, center_covariance=center).apply(others @ turn)
        similarities.append(instance_similarity(whitened, whitened))
    torch.testing.assert_close(*similarities, rtol=0, atol=1e-10)


def test_linear_maps_change_no_similarity():
    """Of centered features; second moments of other ones depend on where they are."""
    features, others = make_features(1, 100, 5).double(), make_features(2, 10, 5).double()
    change = torch.eye(5).double() + 0.3 * make_features(3, 5, 5).double()
    similarities = {}
    for center in (False, True):
        before, after = (
            Whitening.fit(maps(features), center_covariance=center).apply(maps(others))
            for maps in (lambda x: x, lambda x: x @ change + 7)
        )
        similarities[center] = instance_similarity(before, before) - instance_similarity(after, after)
    assert similarities[True].abs().max() < 1e-8 < 1e-2 < similarities[False].abs().max()


def test_features_in_a_file(tmp_path):
    features = make_features(0, 300, 7)
    features.numpy().tofile(tmp_path / "features")
    mapped = torch.from_file(str(tmp_path / "features"), size=features.numel()).view(features.shape)
    for name in ("mean", "projection"):
        assert torch.equal(getattr(Whitening.fit(mapped), name), getattr(Whitening.fit(features), name))


def test_types():
    features = make_features(0, 20, 4)
    whitening = Whitening.fit(features.half())
    assert whitening.mean.dtype == whitening.projection.dtype == torch.float64
    assert whitening.apply(features.half()).dtype == whitening.apply(features).dtype == torch.float32
    assert whitening.apply(features.double()).dtype == torch.float64
    assert whitening.apply(features[:0]).shape == (0, 4)


def test_errors():
    features = make_features(0, 20, 4)
    for bad, message in (
        (features[0], r"`features` must have shape \(number of images, dim\), got \(4,\)"),
        (features[:1], "at least 2 images, better of many more than 4; got 1"),
        (features / 0, "`features` contains NaN or infinite"),
        (torch.zeros(5, 4), "5 images are all the same"),
    ):
        with pytest.raises(ValueError, match=message):
            Whitening.fit(bad)
    with pytest.raises(ValueError, match="all the same"):
        Whitening.fit(features[:1].repeat(30, 1), center_covariance=True)
    whitening = Whitening.fit(features)
    with pytest.raises(ValueError, match=r"\(number of images, 4\), as those .* got \(20, 3\)"):
        whitening.apply(features[:, :3])
    with pytest.raises(ValueError, match="`features` contains NaN"):
        whitening.apply(features * torch.nan)
