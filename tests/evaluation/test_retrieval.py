"""What queries find, by setup, and parts of photos in their place."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.data import Relevance, TensorSource
from hf_ssl.evaluation import CroppedImages, QueryScores, average_precision, mean_scores, retrieval_scores


def test_scores_are_those_of_whole_rankings(monkeypatch):
    """Of setups that tell the same images apart in other ways."""
    monkeypatch.setattr("hf_ssl.evaluation.retrieval.MAX_QUERIES", 3)
    generator = torch.Generator().manual_seed(0)
    queries, database = torch.randn(7, 6, generator=generator), torch.randn(40, 6, generator=generator)
    kinds = [torch.randperm(40, generator=generator)[:9].split(3) for _ in range(7)]
    easy, hard, junk = ([rows[i].tolist() for rows in kinds] for i in range(3))
    hard[2] = []
    both = [a + b for a, b in zip(junk, hard, strict=True)]
    relevance = {"easy": Relevance(easy, both), "hard": Relevance(hard, junk), "none": Relevance([[]] * 7, junk)}
    unit = [torch.nn.functional.normalize(rows.double()) for rows in (queries, database)]
    rankings = (unit[0] @ unit[1].T).argsort(dim=1, descending=True)
    scores = retrieval_scores(queries, database, relevance)
    for setup, lists in relevance.items():
        average, precision = average_precision(rankings, lists.positives, lists.junk)
        torch.testing.assert_close(scores[setup].average_precision, average, equal_nan=True)
        torch.testing.assert_close(scores[setup].precision, precision, equal_nan=True)
    means = mean_scores(scores)
    assert means.keys() == {
        f"{name}_{setup}" for name in ("mAP", "mP@1", "mP@5", "mP@10") for setup in ("easy", "hard")
    }
    assert means["mAP_hard"] == pytest.approx(100 * scores["hard"].average_precision.nanmean().item())


def test_nothing_to_find():
    nothing = QueryScores(torch.full((2,), math.nan), torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match="No query has an image to find"):
        mean_scores({"all": nothing})


@pytest.mark.parametrize(("side", "expected"), [(None, (30, 40)), (50, (15, 20)), (200, (30, 40)), (1, (1, 1))])
def test_parts_are_shrunk_as_their_photos(side, expected):
    """A photo of 100 x 60 pixels, shrunk to 50, is half as large, and so is its part."""
    photo = torch.randint(256, (3, 60, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = CroppedImages(TensorSource(photo[None]), [(10.4, 5.0, 50.4, 34.6)], side)
    part = parts[0]["image"]
    assert len(parts) == 1 and part.shape[1:] == expected
    whole = Image.fromarray(photo.permute(1, 2, 0).numpy()).crop((10, 5, 50, 35))
    if side == 50:
        whole.thumbnail((20, 20), Image.LANCZOS)
    if side != 1:
        assert np.array_equal(part.permute(1, 2, 0).numpy(), np.asarray(whole))


def test_boxes_that_do_not_fit():
    source = TensorSource(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="There are 1 images but 2 boxes"):
        CroppedImages(source, [(0, 0, 4, 4)] * 2)
    with pytest.raises(ValueError, match="lies outside"):
        CroppedImages(source, [(9, 0, 12, 4)])[0]
    a, b = (CroppedImages(source, [(0, 0, 4, 4)], side).fingerprint() for side in (None, 4))
    assert a != b != source.fingerprint()
