"""The cards under `model_cards/`, one for each method: whole, and what the code of today would write."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hf_ssl import METHODS

from .test_every_card import FURTHER, check_text, publish_run, sections_of


ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
KILOBYTE = 1024


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def card(method):
    return ModelCard.load(CARDS / method / "README.md")


def test_text(card, method):
    check_text(card, CARDS / method, sections_of(method, *FURTHER, "Training", "Results", "Evaluation", "Pictures"))
    assert METHODS[method].summary in card.text and METHODS[method].citation in card.text
    assert "path/to/this/folder" not in card.text
    assert not re.search(r"(?<![\w.:/])/\w+/", str(card)), "an absolute path"


def test_numbers(card, method):
    """Of the run itself, and of the evaluation after it; the same in the metadata and in the text."""
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-feature-extraction",
    )
    assert METHODS[method].title.lower() in data.tags and card.text.startswith(f"\n# {data.model_name}\n")
    names = {result.metric_name for result in data.eval_results}
    assert {"kNN top-1 (%)", "kNN, k = 20, top-1 (%)", "linear probe, top-1 (%)"} <= names
    for result in data.eval_results:
        row = (
            rf"\| {re.escape(result.metric_name)} \| {result.dataset_name}, {result.dataset_split} \| \*\*([\d.]+)\*\*"
        )
        assert float(re.search(row, card.text)[1]) == result.metric_value
        assert result.metric_args["protocol"].split(";")[0][1:] in card.text


def test_how_to_use_it_is_up_to_date(card, method, tmp_path):
    """Another model of the method gets the same text today."""
    (location,) = set(re.findall(r'from_pretrained\("(.*?)"', card.text))
    parts = {}
    for name, text in (("ours", card.text), ("new", publish_run(method, tmp_path / "run").card.text)):
        parts[name] = re.search(r"## How to use it\n(.*?)\n## Training\n", text, re.DOTALL)[1]
        # What a run's own numbers were measured with: ISL's recipe projects.
        parts[name] = parts[name].replace(
            "measured with what the pretraining model projects of it", "measured with it"
        )
    assert location.startswith("outputs/")
    assert parts["ours"] == parts["new"].replace("path/to/this/folder", location)


def test_settings_are_up_to_date(card, method, tmp_path):
    """Those that any run has."""
    rows = {}
    for name, text in (("ours", card.text), ("new", publish_run(method, tmp_path / "run").card.text)):
        table = re.search(r"\| setting \| value \|\n\|---\|---\|\n(.*?)\n\n", text, re.DOTALL)[1]
        rows[name] = [row.removeprefix("| ").split(" | ")[0] for row in table.splitlines()]
    end = rows["new"].index("seed") + 1
    assert rows["ours"][:end] == rows["new"][:end]


def test_files(card, method):
    """Pictures are small, and there is nothing that the card does not show."""
    found = {str(path.relative_to(CARDS / method)): path for path in (CARDS / method).rglob("*") if path.is_file()}
    links = re.findall(r"\]\(([^)\s]+)\)", card.text)
    assert found.keys() == {"README.md", *(link for link in links if not link.startswith("https://"))}
    assert {"figures/curves.png", "figures/neighbors.png", "pretraining/views.json"} <= found.keys()
    for name in (name for name in found if name.endswith(".png")):
        with Image.open(found[name]) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 100
        assert found[name].stat().st_size < 150 * KILOBYTE, name


def test_all_cards_are_small():
    assert sum(path.stat().st_size for path in CARDS.rglob("*") if path.is_file()) < 2 * KILOBYTE**2
