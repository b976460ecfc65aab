"""`training/copy_detection.py` from its command line to the numbers and pictures that it writes."""

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hf_ssl.hub import evaluation_processor, export_run

from ..data.miniatures import make_copydays
from ..marks import slow
from ..models.test_patchmix import perturb
from ..processes import run_ranks
from .common import make_patchmix
from .test_retrieval_script import MEAN, STD, own_caches


SCRIPT = Path(__file__).parents[2] / "training" / "copy_detection.py"
COUNTS = ["--other_counts", "true", "--image_size", "32"]
own_caches = own_caches


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "run"
    torch.manual_seed(0)
    pretrained = make_patchmix()
    perturb(pretrained)
    export_run(pretrained, evaluation_processor(16, MEAN, STD), folder)
    return folder


@pytest.fixture(scope="module")
def copydays(tmp_path_factory):
    return make_copydays(tmp_path_factory.mktemp("copydays"))


@pytest.fixture
def detect(monkeypatch, tmp_path, model):
    """Runs the script; what it writes."""

    def run(*flags):
        flags = ["--model", model, "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "report", *flags]
        monkeypatch.setattr(sys, "argv", ["copy_detection.py", *map(str, flags)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        path = tmp_path / "report" / "all_results.json"
        return json.loads(path.read_text()) if path.is_file() else None

    return run


# ---- another way to the same numbers ----


@torch.no_grad()
def features_of(model, folder):
    """Class token and generalized mean of the patch tokens, one photo at a time."""
    encoder, rows = AutoModel.from_pretrained(model).eval(), []
    processor = AutoImageProcessor.from_pretrained(model)
    processor.size, processor.resample, processor.do_center_crop = {"height": 32, "width": 32}, 3, False
    for path in sorted(folder.rglob("*.jpg")):
        pixels = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        tokens = encoder(**pixels, interpolate_pos_encoding=True).last_hidden_state[0].double()
        rows.append(torch.cat([tokens[0], tokens[1:].clamp(min=1e-6).pow(4).mean(0) ** 0.25]))
    return torch.stack(rows).numpy()


def expected_of(database, queries, positives, whiten=None):
    """Mean average precision within the first 20."""
    if whiten is not None:
        mean, projection = whiten
        database, queries = (database - mean) @ projection.T, (queries - mean) @ projection.T
    database, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (database, queries))
    scores = []
    for row, own in zip(queries @ database.T, positives, strict=True):
        ranking = np.argsort(-row, kind="stable")[:20].tolist()
        area = 0.0
        for found, rank in enumerate(sorted(ranking.index(i) for i in own if i in ranking)):
            area += ((1.0 if rank == 0 else found / rank) + (found + 1) / (rank + 1)) / 2
        scores.append(area / len(own))
    return 100 * np.mean(scores)


def whitening_of(rows, centered):
    mean = rows.mean(0)
    moments = np.cov(rows.T, bias=True) if centered else rows.T @ rows / len(rows)
    values, vectors = np.linalg.eigh(moments)
    values = np.maximum(values, 1e-5 * values.max())[::-1]
    return mean, vectors[:, ::-1].T / np.sqrt(values)[:, None]


def names_of(folder):
    return [path.name for path in sorted(folder.glob("*.jpg"))]


# ---- Copydays ----


@pytest.mark.parametrize("whitening", [None, slow("second moments"), "covariance"])
def test_numbers_are_those_of_the_protocol(whitening, copydays, model, detect, tmp_path):
    flags, whiten = [], None
    if whitening:
        rows = features_of(model, copydays / "crops")  # more images than dimensions
        flags = ["--whitening", copydays / "crops", "--center_covariance", whitening == "covariance"]
        whiten = whitening_of(rows, whitening == "covariance")
    blocks = ["strong", "jpegqual/3", "crops/70"]
    results = detect("--copydays", copydays, *COUNTS, "--blocks", *blocks, *flags)
    originals, database = names_of(copydays / "original"), features_of(model, copydays / "original")
    for block in blocks:
        positives = [[i] for i in range(len(originals))]
        if block == "strong":
            copies = names_of(copydays / "strong")
            positives = [[i for i, name in enumerate(originals) if name[:4] == copy[:4]] for copy in copies]
        expected = expected_of(database, features_of(model, copydays / block), positives, whiten)
        assert results[f"mAP_{block}"] == pytest.approx(expected, abs=0.05), block
    assert ("whitened" in results["copy_detection_protocol"]["text"]) == (whitening is not None)
    with (tmp_path / "report" / "figures" / "run" / "copydays.csv").open() as file:
        rows = list(csv.DictReader(file))
    strong = [float(row["AP"]) for row in rows if row["copy"].startswith("strong/")]
    assert np.mean(strong) == pytest.approx(results["mAP_strong"], abs=1e-4)
    assert Image.open(tmp_path / "report" / "figures" / "run" / "copydays.png").width > 1000
    assert f"| mAP, strong (%) | {copydays.name}, copies |" in (tmp_path / "report" / "evaluation.md").read_text()


def test_all_blocks(copydays, detect):
    """Originals find themselves."""
    results = detect("--copydays", copydays, *COUNTS)
    assert sum(name.startswith("mAP_") for name in results) == 20 and results["mAP_original"] == 100
    assert results["mAP_jpegqual/75"] > results["mAP_jpegqual/3"]


def test_distractors(copydays, detect, tmp_path):
    """They are nobody's originals."""
    few = ["--blocks", "strong"]
    alone = detect("--copydays", copydays, *COUNTS, *few)
    (tmp_path / "others").mkdir()
    for path in (copydays / "strong").iterdir():
        shutil.copy(path, tmp_path / "others" / path.name)
    results = detect("--copydays", copydays, *COUNTS, *few, "--distractors", tmp_path / "others")
    assert results["mAP_strong"] < alone["mAP_strong"], "each copy finds itself first"
    assert "36 distractors" in results["copy_detection_protocol"]["text"]


def test_wrong_counts_are_refused(copydays, detect, tmp_path):
    with pytest.raises(ValueError, match="original has 24, not 157.*strong has 36, not 229"):
        detect("--copydays", copydays)
    assert not (tmp_path / "report").exists()


def test_truncated_photo(copydays, detect, tmp_path):
    copy = shutil.copytree(copydays, tmp_path / "copy")
    photo = sorted((copy / "strong").iterdir())[3]
    photo.write_bytes(photo.read_bytes()[:200])
    with pytest.raises(ValueError, match=photo.name):
        detect("--copydays", copy, *COUNTS, "--blocks", "strong")
    assert not (tmp_path / "report").exists()


# ---- near duplicates ----


@pytest.fixture
def photos(copydays, tmp_path):
    """Originals, and JPEGs of some of them in a subfolder."""
    folder = shutil.copytree(copydays / "original", tmp_path / "photos")
    (folder / "copies").mkdir()
    for name in ("200400.jpg", "200500.jpg"):
        shutil.copy(copydays / "jpegqual" / "75" / name, folder / "copies" / name)
    return folder


def test_near_duplicates(photos, detect, tmp_path, capsys):
    detect("--near_duplicates", photos, "--threshold", "0.999")
    with (tmp_path / "report" / "near_duplicates.csv").open() as file:
        rows = {(row["first"], row["second"]): float(row["similarity"]) for row in csv.DictReader(file)}
    assert {("200400.jpg", "copies/200400.jpg"), ("200500.jpg", "copies/200500.jpg")} <= rows.keys()
    assert list(rows.values()) == sorted(rows.values(), reverse=True) and min(rows.values()) >= 0.999
    printed = capsys.readouterr().out
    printed = json.loads(printed[printed.index("{\n") :])
    assert printed["num_near_duplicate_pairs"] == len(rows)
    assert json.loads((tmp_path / "report" / "all_results.json").read_text())["near_duplicates"] == printed
    assert Image.open(tmp_path / "report" / "near_duplicates.png").width > 1000
    for path in (photos / "copies").iterdir():  # nothing is left of an earlier picture
        path.unlink()
    for path in sorted(photos.glob("*.jpg"))[1:]:
        path.unlink()
    detect("--near_duplicates", photos)
    assert not (tmp_path / "report" / "near_duplicates.png").exists()


def test_no_near_duplicates(photos, detect, tmp_path):
    shutil.rmtree(photos / "copies")
    for path in sorted(photos.iterdir())[1:]:
        path.unlink()
    detect("--near_duplicates", photos)
    assert (tmp_path / "report" / "near_duplicates.csv").read_text() == "first,second,similarity\n"
    assert not (tmp_path / "report" / "near_duplicates.png").exists()


# ---- what may go wrong ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Set either --copydays or --near_duplicates"),
        (["--copydays", "x", "--near_duplicates", "y"], "Set either --copydays or --near_duplicates"),
        (["--copydays", "{folder}", *COUNTS, "--blocks", "weak"], "`blocks` names 'weak'"),
        (["--copydays", "{folder}", *COUNTS, "--eval_crop_ratio", "0.9"], "resized whole, not cropped"),
        (
            ["--copydays", "{folder}", *COUNTS, "--threshold", "0.5"],
            "There is no --near_duplicates: leave --threshold",
        ),
        (["--copydays", "{folder}", *COUNTS, "--center_covariance", "true"], "There is no --whitening"),
        (["--copydays", "{folder}", *COUNTS, "--num_shown", "0"], "--num_shown 0 must be at least 1"),
        (["--near_duplicates", "{folder}", "--whitening", "x"], "There is no --copydays: leave --whitening out"),
        (["--near_duplicates", "{folder}", "--dataset", "x"], "leave --dataset out"),
        (["--copydays", "{folder}", *COUNTS, "--whitening", "/no/such/folder"], "There is no folder"),
        (["--near_duplicates", "{folder}", "--threshold", "1.5"], "threshold=1.5 must lie between"),
    ],
)
def test_mistakes_are_explained(flags, message, copydays, detect, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        detect(*(flag.format(folder=copydays) for flag in flags))
    assert not (tmp_path / "report").exists()


def on_a_rank(folder, model, copydays):
    with pytest.MonkeyPatch.context() as monkeypatch:
        flags = ["--model", model, "--copydays", copydays, *COUNTS, "--blocks", "strong", "--batch_size", "9"]
        flags += ["--cache_dir", f"{folder}/cache", "--output_dir", f"{folder}/report"]
        monkeypatch.setattr(sys, "argv", ["copy_detection.py", *flags])
        runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.slow
def test_two_processes(copydays, model, detect, tmp_path):
    run_ranks(on_a_rank, 2, str(tmp_path / "two"), str(model), str(copydays))
    results = json.loads((tmp_path / "two" / "report" / "all_results.json").read_text())
    assert results["mAP_strong"] == detect("--copydays", copydays, *COUNTS, "--blocks", "strong")["mAP_strong"]
