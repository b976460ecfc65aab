"""The page asked by programs: neighbors are those of an independent search, whoever else asks at the same time."""

import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from hf_ssl.demo.retrieval import HEADERS, MAX_NEIGHBORS

from .conftest import CLASSES
from .server import Demo, Refused


@pytest.fixture(scope="module")
def client(demo: Demo) -> Client:
    return demo.client()


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    """The images that are found, as their places count them."""
    return [photos / "train" / name / f"{i}.png" for name in CLASSES for i in range(10)]


@pytest.fixture(scope="module")
def queries(photos: Path) -> list[Path]:
    return sorted((photos / "test").rglob("*.png"))


@pytest.fixture(scope="module")
def expected(encoder: Path, files: list[Path], queries: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Similarities and places of all neighbors of each query, by the trained and by the untrained encoder."""
    processor = AutoImageProcessor.from_pretrained(encoder)
    torch.manual_seed(0)
    found = []
    for model in (AutoModel.from_pretrained(encoder), AutoModel.from_config(AutoConfig.from_pretrained(encoder))):
        model.eval()

        def features(paths: list[Path], model: torch.nn.Module = model) -> np.ndarray:
            with torch.no_grad():
                images = [Image.open(path).convert("RGB") for path in paths]
                return model(**processor(images=images, return_tensors="pt")).last_hidden_state[:, 0].numpy()

        search = NearestNeighbors(n_neighbors=len(files), metric="cosine").fit(features(files))
        distances, places = search.kneighbors(features(queries))
        found.append((1 - distances, places))
    return found


def columns(numbers: dict) -> dict[str, list]:
    return {name: [row[i] for row in numbers["data"]] for i, name in enumerate(numbers["headers"])}


def test_neighbors(demo, queries, files, expected):
    for number, query in enumerate(queries):
        *galleries, words, numbers = demo.ask("retrieve", demo.upload(query), 12, query.parent.name, "tiny")
        assert numbers["headers"] == HEADERS and len(numbers["data"]) == 12
        found = columns(numbers)
        assert found["rank"] == list(range(1, 13))
        hits = []
        for prefix, gallery, (similarities, places) in zip(("", "untrained: "), galleries, expected, strict=True):
            assert found[f"{prefix}image"] == places[number, :12].tolist()
            np.testing.assert_allclose(found[f"{prefix}similarity"], similarities[number, :12], atol=6e-5)
            classes = [files[place].parent.name for place in places[number, :12]]
            assert found[f"{prefix}class"] == classes
            marks = ["✓" if name == query.parent.name else "✗" for name in classes]
            shown = [picture["caption"].replace("·", "").split() for picture in gallery]
            assert [(name, mark) for mark, _, name in shown] == list(zip(classes, marks, strict=True))
            np.testing.assert_allclose([float(parts[1]) for parts in shown], similarities[number, :12], atol=6e-4)
            hits.append(marks.count("✓"))
        assert words == (
            f"Of the 12 nearest of 20 images, **{hits[0]}** are of the class *{query.parent.name}* to the trained encoder, "
            f"and **{hits[1]}** to the untrained one."
        )
        assert found["image"] != found["untrained: image"]


def test_pictures_of_neighbors(client, queries, files, expected):
    """As gradio_client brings them."""
    *galleries, _, _ = client.predict(handle_file(queries[0]), 3, None, None, api_name="/retrieve")
    for gallery, (_, places) in zip(galleries, expected, strict=True):
        for picture, place in zip(gallery, places[0, :3], strict=True):
            np.testing.assert_array_equal(
                np.asarray(Image.open(picture["image"])), np.asarray(Image.open(files[place]))
            )


def test_a_query_of_the_collection_finds_itself(demo, files):
    for place in (0, 13):
        *_, numbers = demo.ask("retrieve", demo.upload(files[place]), 1, None, None)
        assert numbers["data"] == [[1, place, files[place].parent.name, 1.0, place, files[place].parent.name, 1.0]]


def test_count_and_label(demo, files):
    photo = demo.upload(files[3])
    for count in (1, 5, MAX_NEIGHBORS):  # there are 20 images
        trained, untrained, _, numbers = demo.ask("retrieve", photo, count, None, None)
        assert len(trained) == len(untrained) == len(numbers["data"]) == min(count, 20)
    for label in (None, "unknown"):
        trained, _, words, _ = demo.ask("retrieve", photo, 2, label, None)
        assert words == "The nearest of 20 images of photos."
        assert trained[0]["caption"] == "1.000 · flowers"


@pytest.mark.parametrize("name", [None, "", "tiny", " tiny "])
def test_names_of_encoders(demo, name):
    assert demo.ask("describe", name) == ["**tiny**: vit, 21.8 thousand parameters; feature: class token"]


def test_bars(demo, client, queries, tmp_path):
    pictures = {}
    for label in (None, "temples"):
        path = client.predict(handle_file(queries[0]), label, None, api_name="/similarity_bars")
        picture = Image.open(path)
        assert picture.mode == "RGB" and 300 < picture.width < 3000 and 100 < picture.height < 2000
        pictures[label] = picture.tobytes()
    assert pictures[None] != pictures["temples"]
    (again,) = demo.ask("similarity_bars", demo.upload(queries[0]), None, None)
    assert Image.open(BytesIO(demo.download(again))).tobytes() == pictures[None]
    with pytest.raises(Refused, match="There is no query yet"):
        demo.ask("similarity_bars", None, None, None)


def test_pictures_that_are_shown_come_back_as_queries(demo, files):
    """As when a visitor picks one of the examples."""
    trained, *_ = demo.ask("retrieve", demo.upload(files[5]), 1, None, None)
    again, *_ = demo.ask("retrieve", trained[0]["image"], 1, None, None)
    assert again[0]["caption"] == trained[0]["caption"] == "1.000 · flowers"


def test_concurrent_answers_are_those_of_one_at_a_time(demo, files):
    def answer(place: int) -> str:
        *_, words, numbers = demo.ask(
            "retrieve", demo.upload(files[place]), 1 + place % 4, files[place].parent.name, None
        )
        return json.dumps([words, numbers["data"]])

    places = [0, 7, 11, 19]
    alone = [answer(place) for place in places]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, places * 4)) == alone * 4


def test_errors_of_the_client(client, queries):
    """gradio_client raises them with the server's words."""
    with pytest.raises(AppError, match="The number of neighbors is a whole number from 1 to 24"):
        client.predict(handle_file(queries[0]), 2.5, None, None, api_name="/retrieve")


def test_what_is_told_to_programs(client):
    """`/gradio_api/info` lists what programs may call, and no more."""
    told = client.view_api(return_format="dict")
    assert {"/retrieve", "/similarity_bars", "/describe"} <= set(told["named_endpoints"]) and not told[
        "unnamed_endpoints"
    ]
    parameters = told["named_endpoints"]["/retrieve"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == ["query", "k", "label", "encoder"]
