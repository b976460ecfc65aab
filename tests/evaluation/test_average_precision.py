import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.evaluation import average_precision, mean_average_precision


def test_a_case_by_hand():
    """Positives at places 0, 2, 4 and 7 of what is no junk."""
    average, precision = average_precision(torch.arange(10)[None], [[1, 4, 6, 9]], [[0, 2]])
    areas = [1, (1 / 2 + 2 / 3) / 2, (1 / 2 + 3 / 5) / 2, (3 / 7 + 1 / 2) / 2]
    assert average.item() == pytest.approx(sum(areas) / 4, rel=1e-14)
    assert precision.tolist() == [[1, 3 / 5, 4 / 8]]


def slow_average_precision(ranking, positives, junk, ks):
    """Along the curve of precision and recall, image by image."""
    ranking = [image for image in ranking if image not in junk]
    area, hits, precision_before = 0.0, 0, 1.0
    for place, image in enumerate(ranking):
        hits += image in positives
        precision = hits / (place + 1)
        if image in positives:
            area += (precision_before + precision) / 2 / len(positives)
        precision_before = precision
    found = [place + 1 for place, image in enumerate(ranking) if image in positives]
    last = max(found) if len(found) == len(positives) else len(ranking) + max(ks)
    at_k = [sum(place <= k for place in found) / min(k, last) for k in ks]
    return area, at_k


@st.composite
def tasks(draw, min_positives=0):
    """Rankings, perhaps cut short, of a database; positives and junk of each query."""
    size, queries = draw(st.integers(2, 16)), draw(st.integers(1, 4))
    length = draw(st.integers(1, size))
    rankings, positives, junk = [], [], []
    for _ in range(queries):
        rankings.append(draw(st.permutations(range(size)))[:length])
        images = draw(st.permutations(range(size)))
        first = draw(st.integers(min_positives, size))
        positives.append(images[:first])
        junk.append(images[first : draw(st.integers(first, size))])
    return torch.tensor(rankings), positives, junk


@settings(max_examples=200, deadline=None)
@given(task=tasks())
def test_equals_a_slow_one(task):
    ks = (1, 2, 3, 16)
    average, precision = average_precision(*task, k=ks)
    for query, (ranking, own, left_out) in enumerate(zip(task[0].tolist(), *task[1:], strict=True)):
        if not own:
            assert average[query].isnan() and precision[query].isnan().all()
            continue
        area, at_k = slow_average_precision(ranking, own, left_out, ks)
        assert average[query].item() == pytest.approx(area, abs=1e-12)
        assert precision[query].tolist() == pytest.approx(at_k, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(task=tasks(), seed=st.integers(0, 99))
def test_names_of_images_say_nothing(task, seed):
    rankings, positives, junk = task
    new = np.random.default_rng(seed).permutation(40)
    renamed = [[new[image] for image in row] for row in positives], [[new[image] for image in row] for row in junk]
    for before, after in zip(
        average_precision(*task), average_precision(torch.tensor(new[rankings.numpy()]), *renamed), strict=True
    ):
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=50, deadline=None)
@given(task=tasks(), data=st.data())
def test_junk_says_nothing(task, data):
    """Neither more of it, anywhere, nor whether it is ranked at all."""
    rankings, positives, junk = task
    rows, more = [], [list(row) for row in junk]
    for ranking, row in zip(rankings.tolist(), more, strict=True):
        for image in (50, 51, 52):
            ranking.insert(data.draw(st.integers(0, len(ranking))), image)
        row += [50, 51, 52, 53]
        rows.append(ranking)
    for before, after in zip(
        average_precision(*task), average_precision(torch.tensor(rows), positives, more), strict=True
    ):
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(task=tasks(min_positives=1))
def test_one_if_and_only_if_all_positives_come_first(task):
    rankings, positives, junk = task
    for value, ranking, own, left_out in zip(
        average_precision(*task)[0], rankings.tolist(), positives, junk, strict=True
    ):
        first = [image for image in ranking if image not in left_out][: len(own)]
        assert 0 <= value <= 1 + 1e-12
        assert (abs(value - 1) < 1e-12) == (set(first) == set(own))
        assert (value == 0) == (not set(own) & set(ranking))


@settings(max_examples=50, deadline=None)
@given(task=tasks(min_positives=1), place=st.integers(0, 14))
def test_an_earlier_positive_is_better(task, place):
    rankings, positives, _ = task
    if place + 1 >= rankings.shape[1]:
        return
    swapped = rankings.clone()
    swapped[:, [place, place + 1]] = rankings[:, [place + 1, place]]
    before, after = average_precision(rankings, positives)[0], average_precision(swapped, positives)[0]
    for query, own in enumerate(positives):
        gain = int(swapped[query, place] in own) - int(rankings[query, place] in own)
        assert (after[query] - before[query]).sign() == gain


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), junk=st.integers(0, 5), k=st.integers(1, 10))
def test_precision_needs_only_the_first_k(seed, junk, k):
    """Precision at k of a ranking that ends after k images that are no junk is that of the whole one."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(20))[None]
    positives, left_out = [list(range(5, 12))], [list(range(junk))]
    end = int((order[0] >= junk).cumsum(0).tolist().index(k)) + 1
    whole, part = (average_precision(rows, positives, left_out, k=[k])[1] for rows in (order, order[:, :end]))
    assert part.item() == pytest.approx(whole.item(), abs=1e-15)


@settings(max_examples=30, deadline=None)
@given(task=tasks())
def test_queries_do_not_mix(task):
    rankings, positives, junk = task
    together = average_precision(*task)
    for query in range(len(rankings)):
        alone = average_precision(rankings[query : query + 1], positives[query : query + 1], junk[query : query + 1])
        for all_, one in zip(together, alone, strict=True):
            torch.testing.assert_close(one[0], all_[query], rtol=0, atol=0, equal_nan=True)


def test_means_leave_out_queries_without_positives():
    rankings = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 2, 0]])
    results = mean_average_precision(rankings, [[0], [], [2]], k=[1, 3])
    assert results == pytest.approx({"mAP": 100 * (1 + 0.25) / 2, "mP@1": 50, "mP@3": 75})
    # Twice the same positive is one; tensors are as good as lists.
    assert mean_average_precision(rankings, [torch.tensor([0, 0]), [], torch.tensor([2])], k=[1, 3]) == results


def test_errors():
    rankings = torch.tensor([[0, 1, 2], [2, 1, 0]])
    task = {"rankings": rankings, "positives": [[0], [1]], "junk": [[], [0]]}
    for change, message in (
        ({"k": []}, r"`k` must be positive integers, got \[\]"),
        ({"k": [5, 0]}, r"`k` must be positive integers, got \[5, 0\]"),
        ({"rankings": rankings[0]}, r"`rankings` must hold integers, shape .*got \(3,\), torch.int64"),
        ({"rankings": rankings.double()}, r"got \(2, 3\), torch.float64"),
        ({"rankings": rankings[:, :0]}, r"not be empty; got \(2, 0\)"),
        ({"rankings": rankings - 1}, "`rankings` must hold indices of database images, from 0 on, got -1"),
        ({"positives": [[0], [-3]]}, "`positives` must hold indices of database images, from 0 on, got -3"),
        ({"positives": [[0]]}, "`positives` must have one list for each of the 2 queries, got 1"),
        ({"junk": [[]] * 3}, "`junk` must have one list for each of the 2 queries, got 3"),
        ({"rankings": torch.tensor([[0, 1, 2], [2, 1, 2]])}, "`rankings` of query 1 has an image twice"),
        ({"junk": [[], [1]]}, "Image 1 is in `positives` and in `junk` of query 1"),
        ({"positives": [[], []]}, "None of the 2 queries has a positive image"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_average_precision(**(task | change))
