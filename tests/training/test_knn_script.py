"""`training/knn.py` from its command line to the numbers that it writes."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTModel

from hf_ssl.data import load_image_data, make_source
from hf_ssl.evaluation import KNNMonitor, extract_features, knn_accuracy, load_encoder
from hf_ssl.hub import evaluation_processor, export_run

from ..models.test_patchmix import perturb
from ..processes import run_ranks
from .common import make_backbone, make_patchmix


SCRIPTS = Path(__file__).parents[2] / "training"
SMALL = ["--max_train_samples", "150", "--max_test_samples", "60"]


@pytest.fixture(autouse=True)
def own_caches(monkeypatch, tmp_path, tmp_path_factory):
    """No test writes into those of whoever runs it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
    monkeypatch.setattr("hf_ssl.evaluation.feature_cache.DEFAULT_FOLDER", tmp_path / "default")


def run(monkeypatch, name, *flags):
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def results_of(folder):
    return json.loads((folder / "all_results.json").read_text())


@pytest.fixture
def knn(monkeypatch, tmp_path, patchmix):
    """Runs the script on a few digits; what it writes."""

    def measure(*flags, small=SMALL):
        flags = ["--model", patchmix, *small, *flags, "--cache_dir", tmp_path / "cache"]
        run(monkeypatch, "knn.py", *flags, "--output_dir", tmp_path / "report")
        return results_of(tmp_path / "report")

    return measure


@pytest.fixture(scope="module")
def patchmix(tmp_path_factory):
    """A run's folder, whose teacher is not its student."""
    folder = tmp_path_factory.mktemp("patchmix") / "run"
    model = make_patchmix()
    perturb(model)
    export_run(model, evaluation_processor(16, [0.3] * 3, [0.25] * 3), folder)
    return folder


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, "pretrain.py", "--max_steps", "2", "--knn_k", "7", "--output_dir", folder)
    return folder


def monitored(folder, **options):
    """What the monitor of pretraining says of the same few digits."""
    encoder = load_encoder(str(folder), projects=True)
    data = load_image_data("digits", max_train_samples=150, max_test_samples=60)
    sources = make_source(data.train), make_source(data.test)
    processor = options.pop("processor", encoder.processor)
    return KNNMonitor(processor, *sources, data.num_classes, **options)(encoder.pretraining)


def accuracies(results):
    return results["knn_top1"], results["knn_top5"]


# ---- what is measured ----


def test_as_pretraining_measured(digits_run, tmp_path, monkeypatch):
    before = results_of(digits_run)
    run(monkeypatch, "knn.py", "--model", digits_run, "--k", "7", "--output_dir", tmp_path / "report")
    results = results_of(tmp_path / "report")
    assert accuracies(results) == accuracies(before) and results_of(digits_run) == before
    assert (results["k"], results["temperature"]) == (7, 0.07) == (before["k"], before["temperature"])
    assert results["knn_protocol"]["feature"] == "mean of the patch tokens"


def test_what_is_written(knn, patchmix, tmp_path, capsys):
    results = knn("--k", "5", "--temperature", "0.1")
    assert results == json.loads(capsys.readouterr().out)
    protocol = results.pop("knn_protocol")
    assert results.keys() == {"knn_top1", "knn_top5", "k", "temperature"} and results["temperature"] == 0.1
    assert accuracies(results) == accuracies(monitored(patchmix, k=5, temperature=0.1))
    data = load_image_data("digits", max_train_samples=150, max_test_samples=60)
    assert protocol == {
        "model": "run",
        "encoder": "auto",
        "encoder_fingerprint": load_encoder(str(patchmix)).fingerprint()[:16],
        "dataset": "digits",
        "split": "test",
        "num_classes": 10,
        "num_train_images": 150,
        "num_test_images": 60,
        "train_fingerprint": make_source(data.train).fingerprint()[:16],
        "test_fingerprint": make_source(data.test).fingerprint()[:16],
        "image_processor": {
            "do_resize": True,
            "do_center_crop": False,
            "do_rescale": True,
            "do_normalize": True,
            "size": {"height": 16, "width": 16},
            "resample": 2,
            "image_mean": [0.3] * 3,
            "image_std": [0.25] * 3,
        },
        "feature": "class token",
        "precision": "fp32",
        "seed": 0,
    }


def test_several_k(knn):
    results = knn("--k", "5", "1", "20")
    assert results["k"] == 5 and results["knn_top1"] == results["knn_top1_k5"]
    for k in (1, 5, 20):
        alone = knn("--k", str(k))
        assert accuracies(alone) == (results[f"knn_top1_k{k}"], results[f"knn_top5_k{k}"])


@pytest.mark.parametrize("branch", ["auto", "student", "teacher"])
@pytest.mark.parametrize("features", ["encoder", "projected"])
def test_branches(branch, features, knn, patchmix):
    results = knn("--encoder", branch, "--features", features)
    which = None if branch == "auto" else branch
    assert accuracies(results) == accuracies(monitored(patchmix, which=which, projected=features == "projected"))
    protocol = results["knn_protocol"]
    assert protocol["encoder"] == branch
    assert protocol["feature"] == "class token" + ", projected" * (features == "projected")


@pytest.mark.parametrize(
    ("pooling", "words"), [("patch_mean", "mean of the patch tokens"), ("pooled", "pooled output")]
)
def test_pooling(pooling, words, knn, patchmix):
    encoder = load_encoder(str(patchmix), projects=True)
    encoder.pretraining.config.feature = pooling
    data = load_image_data("digits", max_train_samples=150, max_test_samples=60)
    expected = KNNMonitor(encoder.processor, make_source(data.train), make_source(data.test), data.num_classes)
    results = knn("--pooling", pooling)
    assert accuracies(results) == accuracies(expected(encoder.pretraining))
    assert results["knn_protocol"]["feature"] == words


@pytest.mark.parametrize(("flags", "ratio"), [([], None), (["--eval_crop_ratio", "0.5"], 0.5)])
def test_image_size(flags, ratio, knn, patchmix):
    """With positions as in pretraining."""
    model = load_encoder(str(patchmix), projects=True).pretraining.teacher.backbone
    processor = evaluation_processor(24, [0.3] * 3, [0.25] * 3, ratio)

    data, rows = load_image_data("digits", max_train_samples=150, max_test_samples=60), []
    for images in (make_source(data.test), make_source(data.train)):
        pixel_values = processor(images=[images[i]["image"] for i in range(len(images))], return_tensors="pt")
        with torch.no_grad():
            rows += [model(pixel_values["pixel_values"])[:, 0], torch.as_tensor(images.labels)]
    results = knn("--image_size", "24", *flags)
    assert accuracies(results) == accuracies(knn_accuracy(*rows, 10))
    words = results["knn_protocol"]["image_processor"]
    assert words.get("crop_size") == ({"height": 24, "width": 24} if flags else None)
    assert words["size"] == ({"shortest_edge": 48} if flags else {"height": 24, "width": 24})


def test_random_projection(knn, patchmix):
    encoder = load_encoder(str(patchmix))
    data = load_image_data("digits", max_train_samples=150, max_test_samples=60, seed=4)
    torch.manual_seed(4)
    layer = torch.nn.Linear(36, 8, bias=False)
    torch.manual_seed(4)
    torch.nn.init.xavier_uniform_(layer.weight)
    rows = []
    for images in (make_source(data.test), make_source(data.train)):
        features, labels = extract_features(encoder.model, encoder.processor, images, pooling="class_token")
        rows += [layer(features).detach(), labels]
    results = knn("--random_projection", "8", "--seed", "4")
    assert accuracies(results) == accuracies(knn_accuracy(*rows, 10))
    assert results["knn_protocol"]["random_projection"] == 8 and results["knn_protocol"]["seed"] == 4


def test_photos(knn, tmp_path):
    """A folder of unequal ones, read in workers; a tenth of them is held out."""
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = tmp_path / "photos" / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (20 + i, 80 - i, 3), dtype=np.uint8) + 150 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    results = knn("--dataset", tmp_path / "photos", "--k", "3", "--num_workers", "2", small=[])
    assert accuracies(results) == (100, 100), "dark dogs and bright cats"
    protocol = results["knn_protocol"]
    assert (protocol["dataset"], protocol["split"]) == ("photos", "held-out")
    assert (protocol["num_train_images"], protocol["num_test_images"]) == (54, 6)
    assert str(tmp_path) not in (tmp_path / "report" / "all_results.json").read_text()


# ---- files ----


def test_only_asked_folders_are_written(knn, patchmix, tmp_path, monkeypatch):
    def files():
        return {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}

    in_model = sorted(patchmix.rglob("*"))
    knn()
    assert files() == {"cache", "report"} and [p.name for p in (tmp_path / "report").iterdir()] == ["all_results.json"]
    run(monkeypatch, "knn.py", "--model", patchmix, *SMALL)
    assert files() == {"cache", "report", "default"}
    assert sorted(patchmix.rglob("*")) == in_model


def test_features_are_computed_once(knn, monkeypatch):
    first = knn("--k", "3")

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr("hf_ssl.evaluation.LoadedEncoder.features", refuse)
    assert knn("--k", "3") == first
    knn("--k", "9", "--temperature", "0.2", "--random_projection", "5", "--batch_size", "7")
    with pytest.raises(AssertionError, match="computed again"):
        knn("--bf16", "true")


def test_numbers_of_the_run_stay(digits_run, tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "all_results.json").write_text('{"num_steps": 4, "knn_top1": 1.0}')
    run(monkeypatch, "knn.py", "--model", digits_run, *SMALL, "--output_dir", tmp_path / "report")
    results = results_of(tmp_path / "report")
    assert results["num_steps"] == 4 and results["knn_top1"] > 1 and results["knn_protocol"]["model"] == "run"


# ---- mistakes ----


@pytest.fixture
def unlabeled(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / "unlabeled" / split).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "unlabeled" / split / f"{i}.png")
    return tmp_path / "unlabeled"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "200"], "--k 200 must lie between 1 and the 150 training images"),
        (["--k", "5", "0"], "--k 5 0 must lie between 1 and"),
        (["--temperature", "0.001"], "--temperature 0.001 must be at least 0.0125"),
        (["--random_projection", "0"], "--random_projection 0 must be at least 1"),
        (["--model", "/no/such/folder"], "/no/such/folder cannot be evaluated"),
        (["--dataset", "{unlabeled}"], "unlabeled has no labels, and so there is no accuracy to measure"),
        (["--eval_crop_ratio", "0.9"], "--eval_crop_ratio 0.9 goes with --image_size"),
        (["--model", "pixels", "--random_weights", "true"], "leave --random_weights out"),
        (["--model", "pixels", "--pooling", "pooled", "--encoder", "student"], "leave --encoder, --pooling out"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--max_train_samples", "0"], "`max_train_samples` is 0"),
    ],
)
def test_mistakes_are_explained(flags, message, knn, unlabeled, tmp_path):
    """Before anything is computed or written."""
    with pytest.raises(ValueError, match=message):
        knn(*(flag.format(unlabeled=unlabeled) for flag in flags))
    assert [path.name for path in tmp_path.iterdir()] == ["unlabeled"]


def test_a_feature_that_it_does_not_have(knn, patchmix, tmp_path):
    """Known at the first image."""
    ViTModel(make_backbone(), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    evaluation_processor(16, [0.3] * 3, [0.25] * 3).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="no `pooler_output`"):
        knn("--model", tmp_path / "vit", "--pooling", "pooled")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


# ---- several processes ----


def on_a_rank(folder, model):
    with pytest.MonkeyPatch.context() as monkeypatch:
        flags = ["--model", model, *SMALL, "--cache_dir", f"{folder}/cache", "--output_dir", f"{folder}/report"]
        run(monkeypatch, "knn.py", *flags)


def test_two_processes(knn, patchmix, tmp_path):
    """The first one measures and writes."""
    run_ranks(on_a_rank, 2, str(tmp_path / "two"), str(patchmix))
    assert results_of(tmp_path / "two" / "report") == knn()
