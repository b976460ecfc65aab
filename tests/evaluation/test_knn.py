import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from hf_ssl.evaluation.knn import knn_accuracy, knn_votes, nearest_neighbors


def random_task(seed, queries, bank, dim, classes):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, dim, generator=generator),
        torch.randint(classes, (queries,), generator=generator),
        torch.randn(bank, dim, generator=generator),
        torch.randint(classes, (bank,), generator=generator),
    )


@pytest.mark.parametrize(
    "queries, bank, dim, classes, k, temperature",
    [(7, 30, 5, 3, 4, 0.07), (50, 400, 16, 10, 20, 0.07), (33, 257, 64, 40, 1, 0.1), (20, 60, 8, 7, 60, 0.5)],
)
def test_votes_equal_scikit_learn(queries, bank, dim, classes, k, temperature):
    x, _, y, labels = random_task(0, queries, bank, dim, classes)
    labels[:classes] = torch.arange(classes)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(y.double().numpy(), labels.numpy())
    votes = knn_votes(x.double(), y.double(), labels, classes, k=k, temperature=temperature, chunk_size=16)
    probabilities = votes / votes.sum(dim=1, keepdim=True)
    np.testing.assert_allclose(probabilities.numpy(), reference.predict_proba(x.double().numpy()), rtol=1e-9)
    np.testing.assert_array_equal(votes.argmax(dim=1).numpy(), reference.predict(x.double().numpy()))
    single = knn_votes(x, y, labels, classes, k=k, temperature=temperature)
    torch.testing.assert_close(single.double(), votes, rtol=1e-4, atol=1e-4)


def test_neighbors_equal_scikit_learn():
    x, _, y, _ = random_task(1, 40, 300, 12, 2)
    reference = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(y.numpy())
    expected = reference.kneighbors(x.numpy(), return_distance=False)
    np.testing.assert_array_equal(nearest_neighbors(x, y, 9, chunk_size=7).numpy(), expected)


tasks = st.tuples(st.integers(0, 10_000), st.integers(1, 12), st.integers(6, 40), st.integers(2, 9), st.integers(1, 6))
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(tasks, st.integers(1, 6), st.randoms(use_true_random=False))
def test_order_of_the_bank_does_not_matter(task, k, random):
    x, _, y, labels = random_task(*task)
    order = list(range(len(y)))
    random.shuffle(order)
    votes = knn_votes(x.double(), y.double(), labels, task[-1], k=k)
    torch.testing.assert_close(knn_votes(x.double(), y.double()[order], labels[order], task[-1], k=k), votes)


@few
@given(tasks, st.integers(1, 6), st.integers(1, 13))
def test_chunk_size_does_not_matter(task, k, chunk_size):
    x, _, y, labels = random_task(*task)
    votes = knn_votes(x.double(), y.double(), labels, task[-1], k=k)
    torch.testing.assert_close(knn_votes(x.double(), y.double(), labels, task[-1], k=k, chunk_size=chunk_size), votes)


@few
@given(tasks, st.integers(1, 6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_length_of_the_features_does_not_matter(task, k, query_scale, bank_scale):
    x, _, y, labels = random_task(*task)
    votes = knn_votes(x.double(), y.double(), labels, task[-1], k=k)
    scaled = knn_votes(query_scale * x.double(), bank_scale * y.double(), labels, task[-1], k=k)
    torch.testing.assert_close(scaled, votes)


@few
@given(tasks, st.integers(1, 6), st.integers(2, 4))
def test_duplicates_vote_once_each(task, k, copies):
    x, _, y, labels = random_task(*task)
    votes = knn_votes(x.double(), y.double(), labels, task[-1], k=k)
    repeated = knn_votes(x.double(), y.double().repeat(copies, 1), labels.repeat(copies), task[-1], k=k * copies)
    torch.testing.assert_close(repeated, copies * votes)


def test_list_of_k_equals_separate_calls():
    x, truth, y, labels = random_task(2, 30, 100, 6, 8)
    votes = knn_votes(x, y, labels, 8, k=[10, 1, 30])
    assert votes.shape == (3, 30, 8)
    for row, k in zip(votes, [10, 1, 30], strict=True):
        torch.testing.assert_close(row, knn_votes(x, y, labels, 8, k=k))
    results = knn_accuracy(x, truth, y, labels, 8, k=[10, 1, 30])
    for k in (10, 1, 30):
        alone = knn_accuracy(x, truth, y, labels, 8, k=k)
        assert set(alone) == {"knn_top1", "knn_top5", "k", "temperature"}
        assert results[f"knn_top1_k{k}"] == alone["knn_top1"]
        assert results[f"knn_top5_k{k}"] == alone["knn_top5"]
    assert (results["knn_top1"], results["k"]) == (results["knn_top1_k10"], 10)


def test_accuracy_is_in_percent():
    bank = torch.eye(4)
    labels = torch.arange(4)
    results = knn_accuracy(bank, torch.tensor([0, 1, 2, 0]), bank, labels, 4, k=1, temperature=0.1)
    assert results == {"knn_top1": 75.0, "knn_top5": 75.0, "k": 1, "temperature": 0.1}


def test_top5_counts_the_five_best_voted_classes():
    # Similarity falls with the class index, one neighbor per class.
    angles = torch.linspace(0, 1.5, 8)
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    query = torch.tensor([[1.0, 0.0]]).expand(8, 2)
    results = knn_accuracy(query, torch.arange(8), bank, torch.arange(8), 8, k=8)
    assert (results["knn_top1"], results["knn_top5"]) == (100 / 8, 500 / 8)


def test_classes_without_votes_do_not_count_as_predicted():
    bank = torch.eye(3)
    results = knn_accuracy(bank, torch.tensor([1, 2, 0]), bank, torch.tensor([0, 1, 2]), 3, k=1)
    assert (results["knn_top1"], results["knn_top5"]) == (0.0, 0.0)


def test_equal_votes_rank_by_class_index():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    results = knn_accuracy(bank, torch.tensor([1, 3]), bank, torch.tensor([3, 1]), 4, k=2)
    assert (results["knn_top1"], results["knn_top5"]) == (50.0, 100.0)


def test_half_precision_features_vote_in_float32():
    x, _, y, labels = random_task(3, 5, 40, 6, 3)
    votes = knn_votes(x.half(), y.half(), labels, 3)
    assert votes.dtype == torch.float32
    torch.testing.assert_close(votes, knn_votes(x.half().float(), y.half().float(), labels, 3))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 41}, r"number of bank features \(40\), got 41"),
        ({"k": [5, 41]}, "got 41"),
        ({"k": 0}, "positive integer"),
        ({"k": []}, "positive integer"),
        ({"temperature": 0.0}, "at least 0.0125"),
        ({"chunk_size": 0}, "`chunk_size`"),
        ({"num_classes": 2}, "must lie between 0 and num_classes - 1 = 1"),
        ({"bank_labels": torch.zeros(39, dtype=torch.int64)}, r"shape \(40,\), got \(39,\)"),
        ({"bank": torch.randn(40, 7)}, "6 dimensions and `bank` has 7"),
        ({"bank": torch.full((40, 6), torch.nan)}, "`bank` contains NaN"),
        ({"queries": torch.randn(6)}, r"`queries` must have shape .* got \(6,\)"),
    ],
)
def test_vote_errors(change, message):
    x, _, y, labels = random_task(4, 5, 40, 6, 3)
    arguments = {"queries": x, "bank": y, "bank_labels": labels, "num_classes": 3} | change
    with pytest.raises(ValueError, match=message):
        knn_votes(**arguments)


def test_accuracy_errors():
    x, truth, y, labels = random_task(5, 5, 40, 6, 3)
    with pytest.raises(ValueError, match="empty"):
        knn_accuracy(x[:0], truth[:0], y, labels, 3)
    with pytest.raises(ValueError, match="`query_labels` must have one entry"):
        knn_accuracy(x, truth[:4], y, labels, 3)
