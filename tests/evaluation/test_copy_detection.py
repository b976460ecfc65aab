import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.evaluation import CopyBlock, Whitening, copy_detection

from .test_average_precision import slow_average_precision
from .test_retrieval_metrics import slow_rankings


def make_task(seed, num_originals, num_distractors, num_copies, noise=0.5, dim=8):
    """Features of a database and of copies, and the originals of the copies."""
    generator = torch.Generator().manual_seed(seed)
    database = torch.randn(num_originals + num_distractors, dim, generator=generator)
    own = torch.randint(num_originals, (num_copies,), generator=generator)
    return database, database[own] + noise * torch.randn(num_copies, dim, generator=generator), own


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 999),
    st.integers(1, 6),
    st.integers(0, 30),
    st.integers(1, 6),
    st.integers(1, 25),
    st.booleans(),
    st.data(),
)
def test_equals_a_loop(seed, num_originals, num_distractors, num_copies, k, whiten, data):
    database, copies, _ = make_task(seed, num_originals, num_distractors, num_copies)
    images = st.lists(st.integers(0, num_originals - 1), max_size=4)
    originals = [data.draw(images) for _ in range(num_copies - 1)] + [[0]]
    whitening = (
        Whitening.fit(torch.randn(40, 8, generator=torch.Generator().manual_seed(seed + 1))) if whiten else None
    )
    (result,) = copy_detection(database, {"some": CopyBlock(copies, originals)}, whitening=whitening, k=k).values()
    if whitening:
        copies, database = whitening.apply(copies), whitening.apply(database)
    averages = []
    for query, ranking in enumerate(slow_rankings(copies, database)):
        assert result.neighbors[query].tolist() == ranking[:k]
        own = set(originals[query])
        if not own:
            assert result.average_precision[query].isnan()
            continue
        averages.append(slow_average_precision(ranking[:k], own, [], [1])[0])
        assert result.average_precision[query].item() == pytest.approx(averages[-1], abs=1e-12)
    assert result.mean_average_precision == pytest.approx(100 * sum(averages) / len(averages))


def test_blocks():
    """Each by itself; images find themselves, and what is beyond the first 20 is not found."""
    database, copies, own = make_task(0, 30, 200, 50, noise=2)
    far = -database[:30]
    blocks = {
        "original": CopyBlock(database[:30], [[n] for n in range(30)]),
        "strong": CopyBlock(copies, own[:, None]),
        "opposite": CopyBlock(far, [[n] for n in range(30)]),
    }
    results = copy_detection(database, blocks)
    assert list(results) == list(blocks)
    assert results["original"].mean_average_precision == 100
    assert 0 < results["strong"].mean_average_precision < 100
    assert results["opposite"].mean_average_precision == 0
    assert results["strong"].neighbors.shape == (50, 20)
    for name, block in blocks.items():
        alone = copy_detection(database, {name: block}, chunk_size=7)[name]
        assert torch.equal(alone.neighbors, results[name].neighbors)
        assert torch.equal(alone.average_precision, results[name].average_precision)


def test_a_database_of_fewer_images_than_are_ranked():
    database, copies, own = make_task(0, 5, 0, 6)
    result = copy_detection(database, {"some": CopyBlock(copies, own[:, None])})["some"]
    assert result.neighbors.shape == (6, 5)
    assert (result.average_precision > 0).all()


def test_errors():
    database, copies, own = make_task(0, 5, 20, 3)
    block = CopyBlock(copies, own[:, None])
    for change, message in (
        ({"k": 0}, "`k` must be at least 1, got 0"),
        ({"blocks": {"a": CopyBlock(copies, [[0]])}}, "Block 'a' must have one list .* each of its 3 queries, got 1"),
        ({"blocks": {"a": CopyBlock(copies, [[], [], []])}}, "Block 'a' has no query with an original"),
        ({"blocks": {"a": CopyBlock(copies[:0], [])}}, "Block 'a' has no query with an original"),
        ({"blocks": {"a": CopyBlock(copies, [[0], [25], [1]])}}, "indices of the 25 database images, got .* 0 to 25"),
        ({"blocks": {"a": CopyBlock(copies, [[0], [-1], [1]])}}, "got values from -1 to 1"),
        ({"blocks": {"a": block._replace(features=copies[:, :4])}}, "4 dimensions"),
        ({"database": database * torch.nan}, "NaN"),
        ({"whitening": Whitening.fit(database[:, :4])}, r"\(number of images, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_detection(**({"database": database, "blocks": {"a": block}} | change))
