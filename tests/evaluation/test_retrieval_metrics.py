"""From features to ranks, average precision, precision at k and their means, against what their definitions say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from hf_ssl.evaluation import average_precision_of_ranks, means_of_queries, nearest_neighbors, ranks, ranks_of

from ..device import DEVICE
from .test_average_precision import slow_average_precision
from .test_search import LargestTensor, make_features


KS = (1, 2, 5, 10)
few = settings(max_examples=40, deadline=None, derandomize=True)
kinds, distinct = st.sampled_from(["random", "alike", "coarse"]), st.just("distinct")


def scores(queries, database, positives, junk, chunk_size=8192):
    """Average precision and precision at k of each query, through the public functions."""
    wanted = [[*own, *left_out] for own, left_out in zip(positives, junk, strict=True)]
    rows = ranks_of(queries, database, wanted, chunk_size=chunk_size)
    parts = [row.split([len(own), len(left_out)]) for row, own, left_out in zip(rows, positives, junk, strict=True)]
    return average_precision_of_ranks([own for own, _ in parts], [left_out for _, left_out in parts], k=KS)


def slow_rankings(queries, database):
    """The database in the order of its similarity to each query, of features that are rounded as documented."""

    def unit(row):
        length = max(np.sqrt((row.astype(np.float64) ** 2).sum()), 1e-12)
        return np.round((row.astype(np.float64) / length).astype(np.float32).astype(np.float64) * 2**26) / 2**26

    rankings, rows = [], [unit(row).tolist() for row in database.numpy()]
    for query in (unit(row).tolist() for row in queries.numpy()):
        similarities = [sum(a * b for a, b in zip(query, row, strict=True)) for row in rows]
        rankings.append(sorted(range(len(database)), key=lambda image: (-similarities[image], image)))
    return rankings


@st.composite
def tasks(draw, kinds=distinct, min_positives=0):
    """Queries, a database, which of its images are positives and junk; `distinct` ones are never equally similar."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    kind, dim = draw(kinds), draw(st.integers(2, 9))
    counts = draw(st.integers(1, 7)), draw(st.integers(2, 40))
    if kind == "distinct":
        queries, database = (torch.randn(count, dim, generator=generator) for count in counts)
    else:
        queries, database = (make_features(generator, count, dim, kind) for count in counts)
    positives, junk = [], []
    for _ in queries:
        images = torch.randperm(len(database), generator=generator).tolist()
        first = draw(st.integers(min_positives, len(images)))
        positives.append(images[:first])
        junk.append(images[first : draw(st.integers(first, len(images)))])
    return queries, database, positives, junk


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# ---- by hand ----


@pytest.mark.parametrize(
    "positives, junk, average, precision",
    [
        ((1, 4), (0, 2, 6, 9), (1 + (1 / 2 + 2 / 3) / 2) / 2, (1, 2 / 3, 2 / 3)),
        (
            (1, 4, 6, 9),
            (0, 2),
            (1 + (1 / 2 + 2 / 3) / 2 + (1 / 2 + 3 / 5) / 2 + (3 / 7 + 1 / 2) / 2) / 4,
            (1, 3 / 5, 4 / 8),
        ),
        ((6, 9), (0, 1, 2, 4), ((0 / 2 + 1 / 3) / 2 + (1 / 5 + 2 / 6) / 2) / 2, (0, 1 / 5, 2 / 6)),
    ],
    ids=["easy", "medium", "hard"],
)
def test_a_query_of_three_settings(positives, junk, average, precision):
    """Ten images, ranked 0 to 9: easy ones are 1 and 4, hard ones 6 and 9, junk 0 and 2."""
    found = average_precision_of_ranks([positives], [junk])
    assert found[0].item() == pytest.approx(average, rel=1e-14)
    assert found[1][0].tolist() == pytest.approx(precision, rel=1e-14)


def test_a_circle_of_images():
    """The query looks to the right; images every 30°, so that those at 30° and -30° are equally similar."""
    angles = torch.tensor([0, 30, -30, 60, -60, 90, 180]).double() * np.pi / 180
    database = torch.stack([angles.cos(), angles.sin()], dim=1)
    query = torch.tensor([[2.0, 0.0]]).double()
    (found,) = ranks_of(query, database, [[6, 2, 1, 0, 4, 3]])
    assert found.tolist() == [6, 2, 1, 0, 4, 3]
    average, precision = scores(query, database, [[0, 3]], [[1]])  # found at places 0 and 2 of what is no junk
    assert average.item() == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert precision[0].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 2 / 3])


def test_what_has_no_rank_was_never_found():
    average, precision = average_precision_of_ranks([[0], [0], []], num_positives=[1, 2, 1], k=[1, 4])
    assert average.tolist() == [1, 0.5, 0]
    assert precision.tolist() == [[1, 1], [1, 1 / 4], [0, 0]]


# ---- against loops ----


@few
@given(tasks(kinds), st.integers(1, 50), st.integers(1, 8))
def test_ranks_equal_a_sorted_list(task, chunk_size, num_queries):
    queries, database, positives, junk = task
    wanted = [
        own + left_out + own[:1] for own, left_out in zip(positives, junk, strict=True)
    ]  # in any order, some twice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "NUM_QUERIES", num_queries)
        found = ranks_of(queries, database, wanted, chunk_size=chunk_size)
    for row, images, ranking in zip(found, wanted, slow_rankings(queries, database), strict=True):
        assert row.dtype == torch.int64
        assert row.tolist() == [ranking.index(image) for image in images]


@few
@given(tasks(kinds))
def test_scores_equal_the_curve_of_a_sorted_list(task):
    queries, database, positives, junk = task
    average, precision = scores(*task)
    values = []
    for query, ranking in enumerate(slow_rankings(queries, database)):
        if not positives[query]:
            assert average[query].isnan() and precision[query].isnan().all()
            continue
        area, at_k = slow_average_precision(ranking, positives[query], junk[query], KS)
        assert average[query].item() == pytest.approx(area, abs=1e-12)
        assert precision[query].tolist() == pytest.approx(at_k, abs=1e-12)
        values.append([area, *at_k])
    if values:
        means = means_of_queries(average, precision, KS)
        assert list(means) == ["mAP", *(f"mP@{k}" for k in KS)]
        expected = [100 * sum(column) / len(values) for column in zip(*values, strict=True)]
        assert list(means.values()) == pytest.approx(expected, abs=1e-10)


@few
@given(tasks(kinds))
def test_ranks_agree_with_the_search(task):
    queries, database, *_ = task
    count = len(database)
    found = torch.stack(ranks_of(queries, database, [range(count)] * len(queries)))
    assert torch.equal(found.argsort(1), nearest_neighbors(queries, database, count))


@few
@given(tasks(min_positives=1))
def test_area_equals_scikit_learn(task):
    """
    Of a ranking without junk, average precision is scikit-learn's area under the precision-recall curve by trapezoids.
    It is not its `average_precision_score`: that has a step where the curve has a trapezoid, the precision after a
    positive alone, not the mean of that before and after it.
    """
    queries, database, positives, junk = task
    average, _ = scores(queries, database, positives, [[] for _ in junk])
    for query, ranking in enumerate(slow_rankings(queries, database)):
        is_positive = [image in positives[query] for image in ranking]
        order = -np.arange(len(ranking))
        precision, recall, _ = precision_recall_curve(is_positive, order)
        assert average[query].item() == pytest.approx(auc(recall, precision), abs=1e-12)
        places = [place for place, found in enumerate(is_positive) if found]
        before = [n / place if place else 1 for n, place in enumerate(places)]
        steps = average_precision_score(is_positive, order)
        assert average[query].item() == pytest.approx((steps + sum(before) / len(before)) / 2, abs=1e-12)


# ---- what changes nothing ----


@few
@given(tasks(), st.randoms(use_true_random=False))
def test_order_of_the_database(task, random):
    queries, database, *wanted = task
    order = list(range(len(database)))
    random.shuffle(order)
    moved = [[[order.index(image) for image in images] for images in kind] for kind in wanted]
    assert_same(scores(queries, database[order], *moved), scores(*task))


@few
@given(tasks(kinds), st.integers(1, 9), st.integers(0, 999))
def test_more_junk(task, count, seed):
    """Similar or not, also copies of positives."""
    queries, database, positives, junk = task
    more = make_features(torch.Generator().manual_seed(seed), count, queries.shape[1], "coarse")
    more = torch.cat([more, queries[:1], database[:3]])
    new = range(len(database), len(database) + len(more))
    left_out = [[*row, *new] for row in junk]
    assert_same(scores(queries, torch.cat([database, more]), positives, left_out), scores(*task))


@few
@given(tasks(kinds), st.integers(1, 5))
def test_more_images_below_all_positives(task, copies):
    """What looks away from the query, at the end of the database."""
    queries, database, positives, junk = task
    before = scores(*task)
    for query in range(len(queries)):
        some = slice(query, query + 1)
        longer = torch.cat([database, -queries[some].repeat(copies, 1)])
        after = scores(queries[some], longer, positives[some], junk[some])
        assert_same(after, [values[some] for values in before])


@few
@given(tasks(kinds), st.integers(0, 999))
def test_lengths_of_features(task, seed):
    """Powers of two change no bit; other factors do, by less than the similarities differ."""
    queries, database, *wanted = task
    generator = torch.Generator().manual_seed(seed)
    factors = [2.0 ** torch.randint(-20, 20, (len(rows), 1), generator=generator) for rows in (queries, database)]
    assert_same(scores(factors[0] * queries, factors[1] * database, *wanted), scores(*task))


@few
@given(tasks(), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_any_lengths_of_distinct_features(task, of_queries, of_database):
    queries, database, *wanted = task
    assert_same(scores(of_queries * queries.double(), of_database * database.double(), *wanted), scores(*task))


@few
@given(tasks(), st.integers(2, 4))
def test_copies_rank_one_after_the_other(task, copies):
    queries, database, positives, _ = task
    once = ranks_of(queries, database, positives)
    size = len(database)
    wanted = [[image + copy * size for copy in range(copies) for image in images] for images in positives]
    found = ranks_of(queries, database.repeat(copies, 1), wanted)
    for row, first in zip(found, once, strict=True):
        assert row.tolist() == [copies * rank + copy for copy in range(copies) for rank in first.tolist()]


@few
@given(tasks(kinds, min_positives=1))
def test_queries_without_positives(task):
    queries, database, positives, junk = task
    means = means_of_queries(*scores(*task), KS)
    more = torch.cat([queries, database[:2]]), database, [*positives, [], []], [*junk, [0], []]
    assert means_of_queries(*scores(*more), KS) == means


@few
@given(tasks(kinds))
def test_other_queries(task):
    queries, database, positives, junk = task
    together = scores(*task)
    for query in range(len(queries)):
        some = slice(query, query + 1)
        assert_same(scores(queries[some], database, positives[some], junk[some]), [v[some] for v in together])


@pytest.fixture(scope="module")
def large_task():
    """More queries than are compared at a time; a third of the database is there twice."""
    generator = torch.Generator().manual_seed(0)
    database = make_features(generator, 3000, 24, "random")
    queries = torch.cat([database[:20], torch.randn(180, 24, generator=generator)])
    wanted = [torch.randperm(3000, generator=generator)[: query % 40] for query in range(200)]
    return queries, database, wanted


@pytest.mark.parametrize("change", ["chunks", "small chunks", "column by column", "float64", "file", "device"])
def test_nothing_changes_a_bit(large_task, change, tmp_path):
    queries, database, wanted = large_task
    expected = ranks_of(queries, database, wanted)
    chunk_size = {"chunks": 1000, "small chunks": 17}.get(change, 8192)
    if change == "column by column":
        database = database.T.contiguous().T
    elif change == "float64":
        database = database.double()
    elif change == "file":
        database.numpy().tofile(tmp_path / "features")
        database = torch.from_file(str(tmp_path / "features"), size=database.numel()).view(database.shape)
    elif change == "device":
        queries = queries.to(DEVICE)
    for one, other in zip(ranks_of(queries, database, wanted, chunk_size=chunk_size), expected, strict=True):
        assert one.device == queries.device
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_memory_is_bounded_by_the_chunk(scale):
    """No tensor is larger than the similarities of a chunk, or than their places, of two numbers, if all are equal."""
    generator = torch.Generator().manual_seed(0)
    queries, database = (1 + scale * torch.randn(count, 12, generator=generator) for count in (100, 9000))
    with LargestTensor() as largest:
        ranks_of(queries, database, [range(query % 7) for query in range(100)], chunk_size=50)
    bound = 1.1 * 100 * 50 * 8 * (1 if scale else 2)
    assert bound / 2 <= largest.bytes <= bound < database.nbytes / 4


# ---- errors ----


def test_errors_of_ranks():
    features = torch.randn(5, 3)
    task = {"queries": features[:2], "database": features, "wanted": [[0], [4, 1]]}
    for change, message in (
        ({"queries": features[0]}, r"`queries` must have shape \(number of images, dim\), got \(3,\)"),
        ({"database": features[:, :2]}, "`queries` has 3 dimensions and `database` has 2"),
        ({"wanted": [[0]]}, "`wanted` must have one list for each of the 2 queries, got 1"),
        ({"wanted": [[0], [5]]}, "`wanted` of query 1 must hold indices of 5 database images, got 5"),
        ({"wanted": [[-1], [0]]}, "`wanted` of query 0 must hold indices of 5 database images, got -1"),
        ({"chunk_size": 0}, "`chunk_size` must be at least 1, got 0"),
        ({"queries": features[:2] * torch.nan}, "`queries` contains NaN"),
        ({"database": features / 0}, "`database` contains NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            ranks_of(**(task | change))


def test_errors_of_average_precision():
    for arguments, options, message in (
        (([[0]],), {"k": [0]}, r"`k` must be positive integers, got \[0\]"),
        (([],), {}, "`positive_ranks` is empty"),
        (([[0], [1]], [[]]), {}, "`junk_ranks` must have one list for each of the 2 queries, got 1"),
        (([[0], [-1]],), {}, "`positive_ranks` must hold ranks, from 0 on, got -1"),
        (([[0], [3, 3]],), {}, "Rank 3 of query 1 is given twice"),
        (([[2], [1, 4]], [[1], [0, 4]]), {}, "Rank 4 of query 1 is given twice"),
        (([[0], [1, 2]],), {"num_positives": [1, 1]}, r"the number of its positive ranks, \[1, 2\]; got \[1, 1\]"),
        (([[0], [1, 2]],), {"num_positives": [3]}, "for each of the 2 queries"),
    ):
        with pytest.raises(ValueError, match=message):
            average_precision_of_ranks(*arguments, **options)
    with pytest.raises(ValueError, match="None of the 2 queries has a positive"):
        means_of_queries(*average_precision_of_ranks([[], []]), (1, 5, 10))
