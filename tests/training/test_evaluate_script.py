"""`training/evaluate.py`: several protocols of an encoder, one pass of features, a report."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hf_ssl.evaluation import LoadedEncoder
from hf_ssl.hub import evaluation_processor, export_run

from .common import make_patchmix


SCRIPTS = Path(__file__).parents[2] / "training"
FLAGS = ["--max_train_samples", "300", "--max_test_samples", "60", "--k", "5", "20"]


def evaluate(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
    runpy.run_path(str(SCRIPTS / "evaluate.py"), run_name="__main__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder with a card, evaluated twice."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    export_run(make_patchmix(), evaluation_processor(16, [0.3] * 3, [0.25] * 3), folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# run\n\nText.\n\n## Limitations\n\nSome.\n")
    (folder / "all_results.json").write_text('{"loss": 1.5, "knn_top1_k7": 3.0}')
    passes = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        features = LoadedEncoder.features
        monkeypatch.setattr(
            LoadedEncoder, "features", lambda self, *args: passes.append(len(args[0])) or features(self, *args)
        )
        for _ in range(2):
            flags = [
                "--model",
                folder,
                "--output_dir",
                folder,
                "--cache_dir",
                folder.parent / "cache",
                "--num_blocks",
                "2",
            ]
            evaluate(monkeypatch, *flags, *FLAGS)
    return folder, passes


def results_of(folder):
    return json.loads((folder / "all_results.json").read_text())


def test_one_pass(folder):
    """For both protocols, though their features differ; and none the second time. One image tells the sizes."""
    assert sorted(folder[1]) == [1, 1, 44, 60, 256]


def test_numbers(folder):
    results = results_of(folder[0])
    assert results["loss"] == 1.5, "what others wrote is kept"
    assert "knn_top1_k7" not in results, "but no numbers of another k"
    assert {"knn_top1_k5", "knn_top5_k20", "linear_top1", "linear_top1_last"} <= results.keys()
    assert results["knn_protocol"]["feature"] == "class token"
    assert results["linear_protocol"]["feature"] == "class tokens of the last 2 blocks"


def test_table(folder):
    results, text = results_of(folder[0]), (folder[0] / "evaluation.md").read_text()
    for name, key in (("kNN, k = 5, top-1 (%)", "knn_top1_k5"), ("linear probe, top-5 (%)", "linear_top5")):
        assert f"| {name} | digits, test | **{results[key]:.2f}** |" in text
    assert "temperature 0.07" in text and "30 held-out training images" in text and "resized to 16 x 16" in text


def test_card(folder):
    """The second run's section takes the place of the first one's, before the limitations."""
    card = ModelCard.load(folder[0] / "README.md")
    assert card.text.count("## Evaluation") == 1
    assert card.text.index("Text.") < card.text.index("## Evaluation") < card.text.index("## Limitations")
    assert "Some." in card.text
    names = [result.metric_name for result in card.data.eval_results]
    assert len(names) == len(set(names)) == 6 and "kNN, k = 20, top-5 (%)" in names
    assert card.data.license == "apache-2.0"


def test_pictures(folder):
    text = (folder[0] / "README.md").read_text()
    for name in ("confusion", "map", "nearest", "patches"):
        with Image.open(folder[0] / "figures" / f"{name}.png") as image:
            assert min(image.size) > 200
        assert f"](figures/{name}.png)" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocols", "knn", "magic"], "--protocols knn magic must name some of knn, linear"),
        ([], "Where is the report to be written"),
    ],
)
def test_mistakes_are_explained(flags, message, folder, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate(monkeypatch, "--model", folder[0], "--cache_dir", tmp_path, *flags)


# ---- what an encoder should be better than ----


def test_pixels(monkeypatch, tmp_path):
    flags = ["--model", "pixels", "--output_dir", tmp_path / "report", "--cache_dir", tmp_path / "cache"]
    evaluate(monkeypatch, *flags, *FLAGS, "--protocols", "knn")
    results = results_of(tmp_path / "report")
    assert results["knn_protocol"]["model"] == "pixels"
    assert results["knn_top1_k5"] > 80, "digits are told by their pixels"
    assert not (tmp_path / "report" / "figures" / "patches.png").exists()


def test_random_weights(folder, monkeypatch, tmp_path):
    """Of the same architecture, and the same ones every time."""
    found = []
    for name in ("first", "second"):
        flags = ["--model", folder[0], "--random_weights", "true", "--cache_dir", tmp_path / name]
        evaluate(monkeypatch, *flags, "--output_dir", tmp_path / name, *FLAGS, "--protocols", "knn")
        found.append(results_of(tmp_path / name))
    assert found[0] == found[1] and found[0]["knn_protocol"]["model"] == "run with random weights"
