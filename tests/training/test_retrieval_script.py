"""`training/retrieval.py` from its command line to the numbers and pictures that it writes."""

import csv
import json
import math
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModel

from hf_ssl.hub import evaluation_processor, export_run

from ..data.miniatures import make_revisited
from ..models.test_patchmix import perturb
from ..processes import run_ranks
from .common import make_patchmix


SCRIPT = Path(__file__).parents[2] / "training" / "retrieval.py"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SETUPS = ("easy", "medium", "hard")


@pytest.fixture(autouse=True)
def own_caches(monkeypatch, tmp_path, tmp_path_factory):
    """No test writes into those of whoever runs it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
    monkeypatch.setattr("hf_ssl.evaluation.feature_cache.DEFAULT_FOLDER", tmp_path / "default")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run's folder, with a card."""
    folder = tmp_path_factory.mktemp("model") / "run"
    torch.manual_seed(0)
    pretrained = make_patchmix()
    perturb(pretrained)
    export_run(pretrained, evaluation_processor(16, MEAN, STD), folder)
    ModelCard("---\nlicense: apache-2.0\n---\n# A run\n\n## Limitations\n\nMany.\n").save(folder / "README.md")
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_revisited(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def retrieve(monkeypatch, tmp_path, model):
    """Runs the script; what it writes."""

    def run(*flags, folder=None):
        folder = folder or tmp_path / "report"
        flags = ["--model", model, "--cache_dir", tmp_path / "cache", "--output_dir", folder, *flags]
        monkeypatch.setattr(sys, "argv", ["retrieval.py", *map(str, flags)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return json.loads((folder / "all_results.json").read_text())

    return run


# ---- another way to the same numbers ----


@torch.no_grad()
def features_of(model, photos, size, scales=(1.0,)):
    """Class tokens, one photo at a time."""
    encoder, rows = AutoModel.from_pretrained(model).eval(), []
    for photo in photos:
        photo = photo.convert("RGB")
        photo.thumbnail((size, size), Image.LANCZOS)
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        total = 0
        for scale in scales:
            scaled = pixels if scale == 1 else F.interpolate(pixels, scale_factor=scale, mode="bilinear")
            total = total + encoder(pixel_values=scaled, interpolate_pos_encoding=True).last_hidden_state[0, 0]
        rows.append(total / total.norm())
    return torch.stack(rows).double().numpy()


def scores_of(similarities, positives, junk):
    """Average precision and precision at 1, 5 and 10 of one query, as the protocol's words have it."""
    ranking = [i for i in np.argsort(-similarities, kind="stable") if i not in junk]
    ranks = [rank for rank, image in enumerate(ranking) if image in positives]
    if not ranks:
        return [math.nan] * 4
    area = 0.0
    for found, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else found / rank
        area += (before + (found + 1) / (rank + 1)) / 2 / len(ranks)
    at_k = []
    for k in (1, 5, 10):
        looked_at = min(ranks[-1] + 1, k)
        at_k.append(sum(rank < looked_at for rank in ranks) / looked_at)
    return [area, *at_k]


def expected_of(benchmark, queries, database, setup):
    truth = pickle.loads((benchmark / f"gnd_{benchmark.name}.pkl").read_bytes())["gnd"]
    rows = []
    for similarities, own in zip(queries @ database.T, truth, strict=True):
        kinds = {name: set(map(int, own[name])) for name in ("easy", "hard", "junk")}
        positives = {"easy": kinds["easy"], "hard": kinds["hard"], "medium": kinds["easy"] | kinds["hard"]}[setup]
        rows.append(scores_of(similarities, positives, (kinds["easy"] | kinds["hard"] | kinds["junk"]) - positives))
    return 100 * np.array(rows)


def names_of(benchmark, kind):
    return pickle.loads((benchmark / f"gnd_{benchmark.name}.pkl").read_bytes())[kind]


def photos_of(benchmark, kind):
    return [Image.open(benchmark / "jpg" / f"{name}.jpg") for name in names_of(benchmark, kind)]


# ---- the benchmark ----


@pytest.mark.parametrize(
    ("flags", "scales", "crops"),
    [
        ([], (1.0,), False),
        (["--multi_scale", "true", "--crop_queries", "true", "--batch_size", "7"], (1.0, 2**-0.5, 0.5), True),
    ],
)
def test_numbers_are_those_of_the_protocol(benchmark, model, retrieve, tmp_path, flags, scales, crops):
    results = retrieve("--benchmark", benchmark, "--image_size", "48", *flags)
    queries = photos_of(benchmark, "qimlist")
    if crops:
        truth = pickle.loads((benchmark / f"gnd_{benchmark.name}.pkl").read_bytes())["gnd"]
        # As the authors of the benchmark: the part is shrunk by the factor of the whole photo.
        parts = [
            photo.convert("RGB").crop([round(x) for x in own["bbx"]])
            for photo, own in zip(queries, truth, strict=True)
        ]
        for part, photo in zip(parts, queries, strict=True):
            side = 48 * max(part.size) / max(photo.size)
            part.thumbnail((side, side), Image.LANCZOS)
        queries = parts
    rows = features_of(model, queries, 48, scales), features_of(model, photos_of(benchmark, "imlist"), 48, scales)
    stem = f"figures/run/retrieval-{benchmark.name}" + "-cropped-scales" * crops
    with (tmp_path / "report" / f"{stem}.csv").open() as file:
        written = list(csv.DictReader(file))
    for setup in SETUPS:
        expected = expected_of(benchmark, *rows, setup)
        names = [f"mAP_{setup}", *(f"mP@{k}_{setup}" for k in (1, 5, 10))]
        assert [results[name] for name in names] == pytest.approx(np.nanmean(expected, 0).tolist(), abs=1e-6)
        of_setup = [row for row in written if row["setup"] == setup]
        assert [row["query"] for row in of_setup] == [f"jpg/{name}.jpg" for name in names_of(benchmark, "qimlist")]
        for row, of_query in zip(of_setup, expected, strict=True):
            numbers = [float(row[name] or "nan") for name in ("AP", "P@1", "P@5", "P@10")]
            assert numbers == pytest.approx(of_query.tolist(), abs=1e-4, nan_ok=True)
    protocol = results["retrieval_protocol"]
    assert protocol["cropped_queries"] is crops and protocol["image_processor"]["longest_side"] == 48
    assert ("scales 1, 0.707, 0.5" in protocol["feature"]) is crops
    assert Image.open(tmp_path / "report" / f"{stem}.png").width > 1000
    table = (tmp_path / "report" / "evaluation.md").read_text()
    assert f"| mAP, medium (%) | miniature, queries | **{results['mAP_medium']:.2f}** |" in table
    words = "queries, cut out of their photos" if crops else "whole photos as queries (boxes are not used)"
    assert words in table and f"](figures/run/{Path(stem).name}.png)" in table
    assert str(tmp_path) not in table + json.dumps(results)


def test_distractors_are_images_like_others(benchmark, retrieve, tmp_path):
    """As if the benchmark's own list ended with them."""
    for i in range(3):
        photo = Image.open(sorted((benchmark / "jpg").iterdir())[i]).rotate(180)
        (tmp_path / "others" / str(i)).mkdir(parents=True)
        photo.save(tmp_path / "others" / str(i) / "photo.png")
    size = ["--image_size", "48"]
    results = retrieve("--benchmark", benchmark, "--distractors", tmp_path / "others", *size)
    copy = shutil.copytree(benchmark, tmp_path / "copy" / benchmark.name)
    annotations = copy / f"gnd_{benchmark.name}.pkl"
    content = pickle.loads(annotations.read_bytes())
    for i in range(3):
        Image.open(tmp_path / "others" / str(i) / "photo.png").save(copy / "jpg" / f"other{i}.png")
        (copy / "jpg" / f"other{i}.png").rename(copy / "jpg" / f"other{i}.jpg")
    content["imlist"] = [*content["imlist"], *(f"other{i}" for i in range(3))]
    annotations.write_bytes(pickle.dumps(content))
    expected = retrieve("--benchmark", copy, *size, folder=tmp_path / "expected")
    assert {name: results[name] for name in results if name.startswith("mAP")} == {
        name: expected[name] for name in expected if name.startswith("mAP")
    }
    assert results["retrieval_protocol"]["num_distractors"] == 3


def test_own_processor(benchmark, retrieve):
    """Without --image_size, photos are shown as the encoder wants them."""
    results = retrieve("--benchmark", benchmark)
    assert results["retrieval_protocol"]["image_processor"]["size"] == {"height": 16, "width": 16}
    larger = retrieve("--benchmark", benchmark, "--image_size", "48")
    assert results["mAP_hard"] != larger["mAP_hard"]


def test_own_card(benchmark, model, retrieve, tmp_path):
    """In the folder of the model, its card gets the numbers, beside those that are there."""
    folder = shutil.copytree(model, tmp_path / "run")
    retrieve("--model", folder, "--benchmark", benchmark, "--image_size", "32", folder=folder)
    retrieve("--model", folder, *make_pairs(tmp_path), folder=folder)
    card = ModelCard.load(folder / "README.md")
    assert {(entry.dataset_name, entry.metric_name) for entry in card.data.eval_results} >= {
        ("miniature", "mAP, easy (%)"),
        ("pairs", "mAP (%)"),
    }
    assert "figures/retrieval-miniature.png" in card.text and "figures/retrieval-pairs.png" in card.text
    assert card.text.index("## Evaluation") < card.text.index("## Limitations")


# ---- anyone's images ----


def make_pairs(folder):
    """Digits of two classes, and two pairs of them."""
    digits = load_digits()
    (folder / "pairs" / "more").mkdir(parents=True)
    for i in range(12):
        image = Image.fromarray((digits.images[i] * 15).astype(np.uint8)).resize((24, 20 + i))
        image.save(folder / "pairs" / ("more" if i % 2 else ".") / f"{i:02}.png")
    (folder / "pairs.csv").write_text("query,positive\n00.png,10.png\n00.png,more/01.png\nmore/03.png,02.png\n")
    return ["--images", folder / "pairs", "--pairs", folder / "pairs.csv", "--image_size", "24"]


def test_pairs(model, retrieve, tmp_path):
    """A query is no answer to itself."""
    results = retrieve(*make_pairs(tmp_path))
    files = sorted(path.relative_to(tmp_path / "pairs").as_posix() for path in (tmp_path / "pairs").rglob("*.png"))
    rows = features_of(model, [Image.open(tmp_path / "pairs" / name) for name in files], 24)
    place = files.index
    wanted = [("00.png", ["10.png", "more/01.png"]), ("more/03.png", ["02.png"])]
    expected = [
        scores_of(rows @ rows[place(query)], {place(name) for name in positives}, {place(query)})
        for query, positives in wanted
    ]
    assert [results[name] for name in ("mAP", "mP@1", "mP@5", "mP@10")] == pytest.approx(
        (100 * np.mean(expected, 0)).tolist(), abs=1e-6
    )


def test_images_of_the_same_class(model, retrieve, tmp_path):
    results = retrieve("--max_train_samples", "80", "--max_test_samples", "20", "--num_shown", "2")
    assert results["retrieval_protocol"]["dataset"] == "digits" and 0 < results["mAP"] < 100
    with (tmp_path / "report" / "figures" / "run" / "retrieval-digits.csv").open() as file:
        numbers = [float(row["AP"]) for row in csv.DictReader(file)]
    assert len(numbers) == 20 and np.mean(numbers) == pytest.approx(results["mAP"], abs=1e-4)
    protocol = results["retrieval_protocol"]
    assert (protocol["split"], protocol["seed"], protocol["num_train_images"]) == ("test", 0, 80)
    assert "of images of the query's class" in protocol["text"]


def test_benchmark_behind_a_link(benchmark, retrieve, tmp_path):
    """It is called by the name of the link."""
    (tmp_path / "store").mkdir()
    shutil.copytree(benchmark, tmp_path / "store" / "abc")
    (tmp_path / "store" / benchmark.name).symlink_to(tmp_path / "store" / "abc")
    results = retrieve("--benchmark", tmp_path / "store" / benchmark.name, "--image_size", "32", "--num_shown", "1")
    assert results["retrieval_protocol"]["dataset"] == benchmark.name


def test_photo_that_fills_no_patch(benchmark, retrieve, tmp_path):
    """Its place is told."""
    (tmp_path / "others").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "others" / "a.png")
    Image.new("RGB", (600, 20)).save(tmp_path / "others" / "b.png")
    with pytest.raises(ValueError, match="Image 1 of 2: An image of 1 x 32 pixels does not fill one patch of 4"):
        retrieve("--benchmark", benchmark, "--image_size", "32", "--distractors", tmp_path / "others")
    assert not (tmp_path / "report").exists()


# ---- what may go wrong ----


@pytest.fixture
def damaged(benchmark, tmp_path):
    return shutil.copytree(benchmark, tmp_path / "damaged" / benchmark.name)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def with_a_malicious_pickle(folder):
    (folder / "gnd_miniature.pkl").write_bytes(pickle.dumps({"gnd": Malicious(folder / "touched")}))


def with_a_truncated_photo(folder):
    photo = sorted((folder / "jpg").iterdir())[5]
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])


def without_a_photo(folder):
    sorted((folder / "jpg").iterdir())[5].unlink()


def with_a_truncated_pickle(folder):
    path = folder / "gnd_miniature.pkl"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_a_malicious_pickle, "gnd_miniature.pkl"),
        (with_a_truncated_photo, "jpg"),
        (without_a_photo, "1 images of 'miniature' are missing"),
        (with_a_truncated_pickle, "gnd_miniature.pkl"),
    ],
)
def test_damaged_benchmarks(damage, message, damaged, retrieve, tmp_path):
    """A clear error, and no result."""
    damage(damaged)
    with pytest.raises((ValueError, OSError), match=message):
        retrieve("--benchmark", damaged, "--image_size", "32")
    assert not (tmp_path / "report").exists() and not (damaged / "touched").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmark", "{folder}", "--images", "x", "--pairs", "y"], "set one of them"),
        (["--images", "x"], "set both"),
        (["--crop_queries", "true", "--max_train_samples", "20"], "only a benchmark tells where"),
        (["--benchmark", "{folder}", "--image_size", "32", "--eval_crop_ratio", "0.9"], "nothing is cropped"),
        (["--benchmark", "/no/such/benchmark"], "There is no file"),
        (["--benchmark", "{folder}", "--dataset", "cifar10"], "all of them count: leave --dataset out"),
        (["--benchmark", "{folder}", "--skip_bad_images", "true"], "leave --skip_bad_images out"),
        (["--benchmark", "{folder}", "--num_shown", "0"], "--num_shown 0 must be at least 1"),
        (["--benchmark", "{folder}", "--distractors", "/no/such/folder"], "There is no folder"),
    ],
)
def test_mistakes_are_explained(flags, message, benchmark, retrieve, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        retrieve(*(flag.format(folder=benchmark) for flag in flags))
    assert not (tmp_path / "report").exists()


def on_a_rank(folder, model, benchmark):
    with pytest.MonkeyPatch.context() as monkeypatch:
        flags = ["--model", model, "--benchmark", benchmark, "--image_size", "32", "--batch_size", "9"]
        flags += ["--cache_dir", f"{folder}/cache", "--output_dir", f"{folder}/report"]
        monkeypatch.setattr(sys, "argv", ["retrieval.py", *flags])
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_two_processes(benchmark, model, retrieve, tmp_path):
    run_ranks(on_a_rank, 2, str(tmp_path / "two"), str(model), str(benchmark))
    results = json.loads((tmp_path / "two" / "report" / "all_results.json").read_text())
    alone = retrieve("--benchmark", benchmark, "--image_size", "32")
    assert {k: v for k, v in results.items() if k.startswith("m")} == {
        k: v for k, v in alone.items() if k.startswith("m")
    }
