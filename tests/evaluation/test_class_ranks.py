"""Where the true class stands."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import top_k_accuracy_score

from hf_ssl.evaluation import class_ranks


NAN = float("nan")


@pytest.mark.parametrize(
    "scores, label, rank",
    [
        ([1, 3, 2], 1, 0),
        ([1, 3, 2], 0, 2),
        ([2, 2, 2], 0, 0),
        ([2, 2, 2], 2, 2),
        ([2, 3, 2], 2, 2),
        ([NAN, 3, 2], 1, 1),
        ([NAN, 3, 2], 0, 3),
        ([NAN] * 3, 0, 3),
    ],
)
def test_by_hand(scores, label, rank):
    assert class_ranks(torch.tensor(scores, dtype=torch.float32), torch.tensor(label)).item() == rank


@given(hnp.arrays(np.float32, (7, 2, 5), elements=st.floats(-4, 4, width=16)), st.integers(0, 4))
def test_place_in_a_stable_sort(scores, label):
    labels = torch.full((7, 2), label)
    order = np.argsort(-scores, axis=-1, kind="stable")
    assert np.array_equal(class_ranks(torch.from_numpy(scores), labels), (order == label).argmax(-1))


def test_accuracy_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 9, generator=generator), torch.randint(9, (200,), generator=generator)
    for k in range(1, 9):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(9))
        assert (class_ranks(scores, labels) < k).double().mean().item() == pytest.approx(expected)
