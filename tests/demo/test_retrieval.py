"""Retrieval as functions: what is found, counted and said. `test_api.py` asks the page."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from hf_ssl.data import load_image_data
from hf_ssl.demo import Collection, EncoderShelf
from hf_ssl.demo import collection as collection_module
from hf_ssl.demo.collection import Neighbors, nearest
from hf_ssl.demo.encoders import feature_of
from hf_ssl.demo.photos import Photo
from hf_ssl.demo.retrieval import (
    MAX_NEIGHBORS,
    NUM_EXAMPLES,
    captions,
    check_query,
    example_places,
    retrieve,
    similarity_bars,
    summary,
    table,
    thumbnail,
)
from hf_ssl.evaluation import load_encoder


@pytest.fixture(scope="module")
def shelf(encoder: Path) -> EncoderShelf:
    return EncoderShelf([str(encoder)])


@pytest.fixture
def collection(photos: Path, tmp_path: Path) -> Collection:
    return Collection(load_image_data(str(photos)), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def unlabeled(photos: Path, tmp_path: Path) -> Collection:
    (tmp_path / "images").mkdir()
    for place in range(10):
        (tmp_path / f"images/{place}.png").write_bytes((photos / f"train/temples/{place}.png").read_bytes())
    return Collection(load_image_data(str(tmp_path / "images")), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def query(photos: Path) -> Photo:
    return Photo(Image.open(photos / "test/flowers/10.png").convert("RGB"), "query")


def silent(share: float) -> None:
    """Nobody is told."""


CHOICES = st.sampled_from([-1, 0, 0.5, 1])


@given(arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=CHOICES), st.integers(1, 40))
def test_nearest(features, k):
    """As a stable sort: of equally similar ones the first come first."""
    query = np.linspace(-1, 1, features.shape[1], dtype=np.float32)
    found = nearest(torch.from_numpy(features), torch.from_numpy(query), k)
    similarities = (torch.from_numpy(features) @ torch.from_numpy(query)).numpy()
    order = np.argsort(-similarities, kind="stable")[:k]
    assert found.places.tolist() == order.tolist()
    np.testing.assert_array_equal(found.similarities.numpy(), np.clip(similarities[order], -1, 1))


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(1, 700))
def test_thumbnails(width, height):
    image = Image.new("RGB", (width, height))
    small = thumbnail(image)
    assert image.size == (width, height)
    assert max(small.size) <= 320 and (max(small.size) >= 96 or max(width, height) > 64)
    if max(width, height) <= 64:
        assert small.width % width == small.height % height == 0 and small.width // width == small.height // height
    elif max(width, height) <= 320:
        assert small.size == image.size


def test_queries(collection, query):
    assert check_query(collection, query, 3, None) == (query, 3, None)
    assert check_query(collection, query, 3.0, "unknown") == (query, 3, None)
    assert check_query(collection, query, MAX_NEIGHBORS, "flowers") == (query, len(collection), "flowers")
    for k in (0, -1, 1.5, float("nan"), float("inf"), MAX_NEIGHBORS + 1, None, "3", [3], True, np.float32(2)):
        with pytest.raises(gr.Error, match="a whole number from 1 to 24"):
            check_query(collection, query, k, None)
    for label in ("cats", 3, ["flowers"], {}):
        with pytest.raises(gr.Error, match="The collection photos has no class of this name: leave it out"):
            check_query(collection, query, 3, label)
    with pytest.raises(gr.Error, match="There is no query yet"):
        check_query(collection, None, 3, None)


def test_words(collection):
    found = (Neighbors(torch.tensor([0, 11, 3]), torch.tensor([0.98768, 0.5, -1.0])),
             Neighbors(torch.tensor([12, 11, 10]), torch.tensor([1.0, 0.25, 0.0])))  # fmt: skip
    assert captions(collection, found[0], None) == ["0.988 · flowers", "0.500 · temples", "-1.000 · flowers"]
    assert captions(collection, found[0], "temples") == [
        "✗ 0.988 · flowers",
        "✓ 0.500 · temples",
        "✗ -1.000 · flowers",
    ]
    assert table(collection, found) == [
        [1, 0, "flowers", 0.9877, 12, "temples", 1.0],
        [2, 11, "temples", 0.5, 11, "temples", 0.25],
        [3, 3, "flowers", -1.0, 10, "temples", 0.0],
    ]
    assert summary(collection, found, None) == "The nearest of 20 images of photos."
    assert "**1** are of the class *temples* to the trained encoder, and **3** to the untrained" in summary(
        collection, found, "temples"
    )


def test_without_labels(shelf, unlabeled, query):
    assert unlabeled.classes == [] and unlabeled.class_of(0) is None and unlabeled.labels is None
    assert unlabeled.queries is unlabeled.source and unlabeled.example(0)[1] is None
    trained, untrained, words, rows = retrieve(shelf, unlabeled, query, 4, None, None, silent)
    assert [line.count("·") for _, line in trained + untrained] == [0] * 8
    assert words == "The nearest of 10 images of images." and [row[2] + row[5] for row in rows] == [""] * 4
    assert similarity_bars(shelf, unlabeled, query, None, None).mode == "RGB"


def test_examples(collection):
    pages = [example_places(collection, page) for page in range(6)]
    assert all(len(set(page)) == len(page) == min(NUM_EXAMPLES, 4) for page in pages)
    assert len(set(map(tuple, pages))) > 1 and pages == [example_places(collection, page) for page in range(6)]


def test_features_are_computed_once(shelf, collection, photos):
    shown, shares = shelf.get(None), []
    first = collection.features(shown, shares.append)
    assert shares[:40] == [number / 40 for number in range(1, 41)] and max(shares) == 1
    count = len(shares)
    assert collection.features(shown, shares.append) is first
    again = Collection(load_image_data(str(photos)), cache_dir=collection.cache_dir).features(shown, shares.append)
    assert len(shares) == count  # they were in files
    for encoder, of_all, found in zip(shown, first, again, strict=True):
        torch.testing.assert_close(found, of_all, rtol=0, atol=0)
        torch.testing.assert_close(of_all.norm(dim=1), torch.ones(20))
        of_one = feature_of(encoder, collection.image(7), shown.spec)
        torch.testing.assert_close(of_all[7], of_one, rtol=0, atol=1e-5)


def test_all_who_wait_see_the_progress(shelf, collection):
    others_were_told, seen = Event(), []

    def first(share: float) -> None:
        assert others_were_told.wait(60)  # no earlier than that does the work go on

    def other(share: float) -> None:
        if share > 0:
            seen.append(share)
            others_were_told.set()

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(collection.features, shelf.get(None), told) for told in (first, other)]
        assert waiting[0].result() is waiting[1].result()
    assert min(seen) == 1 / 40 and max(seen) <= 1


def test_encoders_that_differ_in_their_feature_alone(encoder, photos, query, tmp_path):
    """Their weights are the same, and so would be the index of whoever is asked first."""
    shutil.copytree(encoder, tmp_path / "other")
    settings = json.loads((encoder / "pretraining/config.json").read_text())
    assert load_encoder(str(encoder)).feature == "class_token"
    (tmp_path / "other/pretraining/config.json").write_text(json.dumps(settings | {"feature": "patch_mean"}))
    assert load_encoder(str(tmp_path / "other")).feature == "patch_mean"
    shelf, found = EncoderShelf([str(encoder), str(tmp_path / "other")]), []
    for names in (("tiny", "other"), ("other", "tiny")):
        collection = Collection(load_image_data(str(photos)), cache_dir=str(tmp_path / names[0]))
        found.append({name: retrieve(shelf, collection, query, 3, None, name, silent)[3] for name in names})
    assert found[0] == found[1] and found[0]["tiny"] != found[0]["other"]


def test_what_takes_too_long(shelf, collection, query, monkeypatch):
    """An encoder that a visitor has named does not occupy the machine; the operator's may."""
    monkeypatch.setattr(collection_module, "MAX_SECONDS", -1.0)
    shown = shelf.get(None)
    assert len(collection.features(shown, silent)[0]) == 20
    named = SimpleNamespace(get=lambda _: replace(shown, is_named=True, fingerprint="of a visitor"))
    with pytest.raises(gr.Error, match="too long to look at all 20 images. Choose a smaller encoder"):
        retrieve(named, collection, query, 3, None, None, silent)


def test_classes_of_queries_alone(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(photos / "train/flowers", tmp_path / "photos/train/zebras")
    shutil.copytree(photos / "test/flowers", tmp_path / "photos/test/zebras")
    collection = Collection(load_image_data(str(tmp_path / "photos"), max_train_samples=2))
    assert collection.classes == ["flowers", "temples", "zebras"] and len(set(collection.labels.tolist())) < 3
