import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from hf_ssl.evaluation import knn_accuracy, knn_votes, nearest_neighbors, search

from .test_search import LargestTensor, large_task, make_features


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
    np.testing.assert_allclose(probabilities.numpy(), reference.predict_proba(x.double().numpy()), rtol=2e-6)
    np.testing.assert_array_equal(votes.argmax(dim=1).numpy(), reference.predict(x.double().numpy()))
    single = knn_votes(x, y, labels, classes, k=k, temperature=temperature)
    torch.testing.assert_close(single, votes, rtol=2e-6, atol=0)


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


def obvious(queries, bank, labels, num_classes, k, temperature=0.07):
    """Neighbors and votes, one at a time in float64, of features that are rounded as documented."""

    def unit(row):
        length = max(np.sqrt((row.astype(np.float64) ** 2).sum()), 1e-12)
        return np.round((row.astype(np.float64) / length).astype(np.float32).astype(np.float64) * 2**26) / 2**26

    neighbors, votes = [], np.zeros((len(queries), num_classes))
    bank_rows = [unit(row) for row in bank.numpy()]
    for i, query in enumerate(unit(row) for row in queries.numpy()):
        similarities = [sum(float(a) * float(b) for a, b in zip(query, row, strict=True)) for row in bank_rows]
        order = sorted(range(len(bank)), key=lambda j: (-similarities[j], j))[:k]
        neighbors.append(order)
        for j in order:
            votes[i, labels[j]] += np.exp(similarities[j] / temperature)
    return torch.tensor(neighbors), torch.from_numpy(votes).float()


@few
@given(
    st.integers(0, 10_000),
    st.integers(1, 7),
    st.integers(1, 60),
    st.integers(1, 9),
    st.sampled_from(["random", "alike", "coarse"]),
    st.data(),
)
def test_equals_an_obvious_loop(seed, num_queries, num_bank, dim, kind, data):
    """Neighbors with ties, votes and both accuracies, whatever the chunks, the blocks and the precision."""
    generator = torch.Generator().manual_seed(seed)
    queries, bank = (make_features(generator, count, dim, kind) for count in (num_queries, num_bank))
    labels = torch.randint(3, (num_bank,), generator=generator) * 2  # of seven classes, four have no votes
    truth = torch.randint(7, (num_queries,), generator=generator)
    k = data.draw(st.sampled_from([1, num_bank, max(1, num_bank // 2)]))
    options = {"chunk_size": data.draw(st.integers(1, 8)), "bfloat16": data.draw(st.booleans())}
    neighbors, votes = obvious(queries, bank, labels, 7, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK_SIZE", data.draw(st.sampled_from([1, 7, 30, 100])))
        patch.setattr(search, "NUM_SPARE", data.draw(st.sampled_from([0, 2, 16])))
        assert torch.equal(nearest_neighbors(queries, bank, k, **options), neighbors)
        torch.testing.assert_close(knn_votes(queries, bank, labels, 7, k=k, **options), votes, rtol=1e-6, atol=0)
        measured = knn_accuracy(queries, truth, bank, labels, 7, k=k, **options)
    for name, best in (("knn_top1", 1), ("knn_top5", 5)):
        ranked = [sorted(range(7), key=lambda c: (-row[c], c))[:best] for row in votes.tolist()]
        hits = [t in row and v[t] > 0 for t, row, v in zip(truth.tolist(), ranked, votes.tolist(), strict=True)]
        assert measured[name] == pytest.approx(100 * sum(hits) / num_queries)


@pytest.mark.parametrize("change", [{"chunk_size": 1}, {"chunk_size": 33}, {"bfloat16": True}, {"block": 700}])
def test_nothing_changes_a_bit(monkeypatch, change):
    queries, bank, labels = large_task()
    expected = [nearest_neighbors(queries, bank, 30), knn_votes(queries, bank, labels, 10, k=30)]
    options = dict(change)
    monkeypatch.setattr(search, "BLOCK_SIZE", options.pop("block", search.BLOCK_SIZE))
    assert torch.equal(nearest_neighbors(queries, bank, 30, **options), expected[0])
    assert torch.equal(knn_votes(queries, bank, labels, 10, k=30, **options), expected[1])


@pytest.mark.parametrize("queries", [slice(0, 1), slice(7, 8), slice(3, 40)])
def test_other_queries_do_not_matter(queries):
    x, y, labels = large_task()
    assert torch.equal(knn_votes(x[queries], y, labels, 10, k=30), knn_votes(x, y, labels, 10, k=30)[queries])


def test_autocast_changes_nothing():
    """Also not where queries are searched again in float32."""
    *features, labels = large_task()
    x, y = (1 + 0.1 * rows for rows in features)
    expected = knn_votes(x, y, labels, 10, k=30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn_votes(x, y, labels, 10, k=30), expected)
        assert torch.equal(knn_votes(x, y, labels, 10, k=30, bfloat16=True), expected)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_memory_is_bounded(monkeypatch, scale):
    """No tensor is larger than the similarities of a chunk and a block, or than the block; also if all are alike."""
    monkeypatch.setattr(search, "BLOCK_SIZE", 1000)
    monkeypatch.setattr(search, "NUM_AT_ONCE", 4096)
    generator = torch.Generator().manual_seed(0)
    x, y = (1 + scale * torch.randn(count, 12, generator=generator) for count in (100, 7000))
    labels = torch.arange(7000) % 10
    with LargestTensor() as largest:
        knn_accuracy(x, labels[:100], y, labels, 10, k=5, chunk_size=50)
    assert 50 * 1000 * 4 <= largest.bytes <= 1.1 * 50 * 1000 * 4


@few
@given(tasks, st.integers(1, 6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_length_of_the_features_does_not_matter(task, k, query_scale, bank_scale):
    x, _, y, labels = random_task(*task)
    votes = knn_votes(x.double(), y.double(), labels, task[-1], k=k)
    scaled = knn_votes(query_scale * x.double(), bank_scale * y.double(), labels, task[-1], k=k)
    torch.testing.assert_close(scaled, votes, rtol=5e-6, atol=0)


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
