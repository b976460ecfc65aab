"""Pairs and groups of images that are nearly the same."""

from importlib import import_module

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from hf_ssl.evaluation import groups_of, near_duplicates


def features_of(count, seed):
    """Some in bundles."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, 8, generator=generator)
    return centers[torch.randint(5, (count,), generator=generator)] + 0.3 * torch.randn(count, 8, generator=generator)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 9), st.floats(-0.9, 0.999), st.integers(1, 50))
def test_all_pairs(count, seed, threshold, chunk_size):
    features = features_of(count, seed)
    similarities = torch.from_numpy(cosine_similarity(features.numpy().astype("float64")))
    pairs, scores = near_duplicates(features, threshold, chunk_size=chunk_size)
    found = {(a, b): score for (a, b), score in zip(pairs.tolist(), scores.tolist(), strict=True)}
    assert len(found) == len(pairs) and scores.tolist() == sorted(scores.tolist(), reverse=True)
    for a in range(count):
        for b in range(a + 1, count):
            if abs(similarities[a, b] - threshold) > 1e-5:
                assert ((a, b) in found) == (similarities[a, b] > threshold)
    for (a, b), score in found.items():
        assert a < b and score == pytest.approx(similarities[a, b].item(), abs=1e-5)
    expected = nx.connected_components(nx.Graph(found.keys()))
    groups = groups_of(pairs, count)
    assert {tuple(group) for group in groups} == {tuple(sorted(group)) for group in expected}
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)


@pytest.mark.parametrize(
    ("features", "threshold", "message"),
    [
        (torch.ones(3, 2), 1.1, "threshold=1.1 must lie between -1 and 1"),
        (torch.ones(3, 2), -1.0, "threshold=-1.0 must lie"),
        (torch.full((3, 2), torch.nan), 0.5, "NaN or infinite"),
    ],
)
def test_mistakes_are_explained(features, threshold, message):
    with pytest.raises(ValueError, match=message):
        near_duplicates(features, threshold)


def test_too_many_pairs(monkeypatch):
    monkeypatch.setattr(import_module("hf_ssl.evaluation.near_duplicates"), "MAX_PAIRS", 100)
    with pytest.raises(ValueError, match="More than 100 pairs are as similar as 0.5: raise the threshold"):
        near_duplicates(torch.ones(40, 2), 0.5, chunk_size=8)


@pytest.mark.parametrize("threshold", [1.0, 0.9999999])
def test_equal_images_are_found(threshold):
    """Whatever the rounding of a product."""
    features = torch.randn(200, 384, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    features[200:] *= 3
    pairs, similarities = near_duplicates(features, threshold, chunk_size=64)
    assert {tuple(pair) for pair in pairs.tolist()} == {(i, i + 200) for i in range(200)}
    assert similarities.max() <= 1
