"""`training/evaluate.py`: several protocols of an encoder, one pass of features, a report."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
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


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """No test writes into that of whoever runs it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))


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


# ---- a report grows ----


@pytest.fixture
def again(folder, monkeypatch, tmp_path):
    """Evaluates a copy of the folder, and gives the report as it is then."""
    copy = tmp_path / "run"
    shutil.copytree(folder[0], copy)

    def run(*flags, model=copy, small=FLAGS):
        flags = ["--model", model, "--output_dir", copy, "--cache_dir", folder[0].parent / "cache", *small, *flags]
        evaluate(monkeypatch, *flags)
        return (copy / "evaluation.md").read_text()

    run.folder = copy
    return run


def make_photos(folder, classes, counts):
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(classes):
            (folder / split / f"class {i}").mkdir(parents=True)
            for j in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class {i}" / f"{j}.png")
    return folder


def rows_of(text):
    return [line.split(" | ")[:3] for line in text.splitlines() if line.startswith("| ")][1:]


def test_other_protocols_and_data_stay(again, tmp_path, caplog):
    """In the report and in the card; of a few images, as many neighbors vote as there are."""
    before = rows_of((again.folder / "evaluation.md").read_text())
    photos = make_photos(tmp_path / "photos", 3, {"train": 4, "test": 2})
    text = again("--dataset", photos, "--protocols", "knn", small=["--k", "5", "13"])
    assert rows_of(text) == [*before, ["| run", "kNN, k = 5, top-1 (%)", "photos, test"]]
    assert "only 12 training images: --k 13 is left out" in caplog.text
    text = again("--protocols", "linear,knn", "--k", "20")
    assert len(rows_of(text)) == 7 + 2, "the probe is of another feature here"
    card = (again.folder / "README.md").read_text()
    assert all(line in card for line in text.splitlines() if line.startswith("| "))
    entries = ModelCard.load(again.folder / "README.md").data.eval_results
    assert len(entries) == 9 and {entry.dataset_name for entry in entries} == {"digits", "photos"}
    assert "knn_top1_k5" not in results_of(again.folder)


def test_fewer_images_than_neighbors(again, tmp_path, caplog):
    photos = make_photos(tmp_path / "photos", 3, {"train": 4, "test": 2})
    text = again("--dataset", photos, "--protocols", "knn", small=["--k", "20"])
    assert rows_of(text)[-1] == ["| run", "kNN, k = 12, top-1 (%)", "photos, test"]
    assert "--k 20 is left out, and kNN is measured with k = 12" in caplog.text


def test_another_model_beside(again):
    """It gets into the report, with pictures of its own, and not into the model's card."""
    own = [again.folder / "README.md", *sorted((again.folder / "figures").glob("*.png"))]
    before = [path.read_bytes() for path in own]
    for flags, name in ((("--random_weights", "true"), "run with random weights"), ((), "pixels")):
        text = again(*flags, "--protocols", "knn", model="pixels" if name == "pixels" else again.folder)
        assert [f"| {name}", "kNN, k = 5, top-1 (%)", "digits, test"] in rows_of(text)
        place = f"figures/{name.replace(' ', '-')}/map.png"
        assert f"]({place})" in text and (again.folder / place).is_file()
    assert len(rows_of(text)) == 6 + 4 + 4
    assert [path.read_bytes() for path in own] == before
    text = again("--protocols", "knn")
    assert "random" in text and "random" not in (again.folder / "README.md").read_text()


# ---- pictures ----


def figures_of(folder):
    return {path.name for path in (folder / "figures").glob("*.png")}


def test_only_the_probe(again):
    """There is no picture of kNN then, and none of an earlier run is left."""
    text = again("--protocols", "linear")
    assert figures_of(again.folder) == {"map.png", "nearest.png", "patches.png"}
    for report in (text, (again.folder / "README.md").read_text()):
        assert "map.png" in report and "confusion.png" not in report


def test_many_classes(again, tmp_path, caplog):
    photos = make_photos(tmp_path / "photos", 101, {"train": 1, "test": 1})
    text = again("--dataset", photos, "--protocols", "knn", small=["--k", "5"])
    assert figures_of(again.folder) == {"nearest.png", "patches.png"}
    assert "101 classes are too many for pictures" in caplog.text
    assert "nearest.png" in text and "map.png" not in text and "confusion.png" not in text


def test_without_matplotlib(again, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = again("--protocols", "knn", "--seed", "1")
    assert "seed 1" in text and "](figures" not in text and not figures_of(again.folder)
    assert [record.levelname for record in caplog.records if "hf_ssl[viz]" in record.message] == ["WARNING"]


def test_map_by_umap(again, monkeypatch):
    class UMAP:
        def __init__(self, **options):
            pass

        def fit_transform(self, features):
            return features[:, :2]

    package = ModuleType("umap")
    package.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", package)
    before = (again.folder / "figures" / "map.png").read_bytes()
    assert "a map by UMAP" in again("--map", "umap", "--protocols", "knn")
    assert (again.folder / "figures" / "map.png").read_bytes() != before
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r'pip install "hf_ssl\[umap\]"'):
        again("--map", "umap", "--protocols", "knn")


# ---- what an encoder should be better than ----


def test_pixels(monkeypatch, tmp_path):
    flags = ["--model", "pixels", "--output_dir", tmp_path / "report", "--cache_dir", tmp_path / "cache"]
    evaluate(monkeypatch, *flags, *FLAGS, "--protocols", "knn")
    results = results_of(tmp_path / "report")
    assert results["knn_protocol"]["model"] == "pixels"
    assert results["knn_top1_k5"] > 80, "digits are told by their pixels"
    assert not list((tmp_path / "report").glob("**/patches.png"))


def test_random_weights(folder, monkeypatch, tmp_path):
    """Of the same architecture, and the same ones every time."""
    found = []
    for name in ("first", "second"):
        flags = ["--model", folder[0], "--random_weights", "true", "--cache_dir", tmp_path / name]
        evaluate(monkeypatch, *flags, "--output_dir", tmp_path / name, *FLAGS, "--protocols", "knn")
        found.append(results_of(tmp_path / name))
    assert found[0] == found[1] and found[0]["knn_protocol"]["model"] == "run with random weights"
