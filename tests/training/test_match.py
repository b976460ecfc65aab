"""`training/match.py` from its command line to the picture."""

import ast
import csv
import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_ssl.data import decode_rgb
from hf_ssl.evaluation import load_encoder, match_images
from hf_ssl.figures import plot_matches


SCRIPT = Path(__file__).parents[2] / "training" / "match.py"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "test.png")
    return str(tmp_path / "test.png")


@pytest.fixture
def match(monkeypatch, tmp_path, capsys):
    """Run the script; the picture's pixels, and the numbers of the patches of either view."""

    def match(*flags):
        output = tmp_path / "pictures" / "result.png"
        monkeypatch.setattr(sys, "argv", ["match.py", *map(str, flags), "--output", str(output)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        path, large, small, *more = capsys.readouterr().out.splitlines()
        assert path == str(output) and large.startswith("large view: [0") and small.startswith("small view: [0")
        lists = [ast.literal_eval(line.partition(": ")[2]) for line in (large, small)]
        with Image.open(output) as image:
            return np.asarray(image), *lists, more

    return match


def test_matches(match, photo):
    found = {seed: match(photo, "--seed", seed) for seed in range(4)}
    for _, large, small, more in found.values():
        assert len(large) == len(small) == len(set(large)) == len(set(small))
        assert max(large) <= 49 and max(small) <= 9
        assert bool(more) == (len(large) == 1)
    assert len({str(lists[1:3]) for lists in found.values()}) == 4, "other seeds, other crops"
    assert np.array_equal(match(photo, "--seed", 2)[0], found[2][0])
    _, large, small, _ = match(photo, "--patch_size", 8, "--seed", 2)
    assert len(large) > len(found[2][1]) and max(large) > 49 and max(small) > 9


def test_views_are_those_of_the_pretraining(photo):
    """Half of them gray; the boxes are the ones that the matches come from."""
    script = runpy.run_path(str(SCRIPT))
    opened, gray = Image.open(photo).convert("RGB"), 0
    for seed in range(20):
        _, inputs = script["make_views"](opened, 32, seed)
        assert inputs["pixel_values"].shape == (2, 1, 3, 224, 224)
        assert inputs["local_pixel_values"].shape == (1, 1, 3, 96, 96)
        pixels = inputs["pixel_values"][0, 0] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        pixels = pixels + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        gray += bool((pixels[0] - pixels[1]).abs().max() < 1e-5)
    assert 4 <= gray <= 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--patch_size", "7"], "patch_size=7 must be 8, 16 or 32"),
        (["--output", "result.jpg"], "output='result.jpg' must be the name of a PNG file"),
        (["--max_matches", "0"], "max_matches=0 must be at least 1"),
        (["PHOTO"], "Two photos are matched by the tokens of an encoder: name it with --model"),
        (["PHOTO", "--model", "x", "--seed", "1"], "Two photos are not cut into views: leave --seed out"),
        (
            ["--model", "x"],
            "Views of one photo are matched without an encoder: leave --model out, or name a second photo",
        ),
        (["--ratio", "0.9", "--image_size", "64"], "leave --image_size, --ratio out"),
    ],
)
def test_wrong_flags(monkeypatch, photo, flags, message):
    flags = [photo if flag == "PHOTO" else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", ["match.py", photo, *flags])
    with pytest.raises(ValueError, match=message):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_no_photo(monkeypatch, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("absent.png", "text.png"):
        monkeypatch.setattr(sys, "argv", ["match.py", str(tmp_path / name)])
        with pytest.raises(SystemExit, match=f"Cannot read .*{name}"):
            runpy.run_path(str(SCRIPT), run_name="__main__")


def test_figure(tmp_path):
    """Views of any shape; matched cells have colors, and patches that are not there are refused."""
    first, second = (torch.full((3, *size), 128, dtype=torch.uint8) for size in ((40, 60), (20, 20)))
    task = {"first": first, "second": second, "grids": ((4, 6), (2, 2))}
    pixels = {}
    for name, matches in (("none", torch.zeros(0, 2, dtype=torch.int64)), ("two", torch.tensor([[0, 3], [23, 1]]))):
        plot_matches(tmp_path / f"{name}.png", **task, matches=matches)
        with Image.open(tmp_path / f"{name}.png") as image:
            pixels[name] = np.asarray(image.convert("RGB")).astype(int)
    assert pixels["none"].shape == pixels["two"].shape
    colored = {name: ((x.max(-1) - x.min(-1)) > 60)[110:].mean() for name, x in pixels.items()}
    assert colored["none"] == 0 < colored["two"]
    for wrong in ([[24, 0]], [[0, 4]], [[-1, 0]]):
        with pytest.raises(ValueError, match="`matches` must be patches of grids"):
            plot_matches(tmp_path / "x.png", **task, matches=torch.tensor(wrong))


# ---- two photos ----


@pytest.fixture
def folder(tmp_path):
    """An encoder that tells colors apart, and knows no places."""
    torch.manual_seed(0)
    config = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**config, image_size=32, patch_size=4))
    torch.nn.init.zeros_(model.embeddings.position_embeddings)
    torch.nn.init.normal_(model.embeddings.patch_embeddings.projection.weight)
    model.save_pretrained(tmp_path / "model")
    size = {"height": 32, "width": 32}
    ViTImageProcessor(size=size, do_center_crop=True, crop_size=size).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def pair(tmp_path):
    """Blocks of colors, and a part of them."""
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    first = Image.fromarray(colors.repeat(10, 0).repeat(15, 1))
    first.save(tmp_path / "first.png")
    first.crop((60, 20, 120, 60)).save(tmp_path / "second.png")
    return [str(tmp_path / f"{name}.png") for name in ("first", "second")]


@pytest.fixture
def match_photos(monkeypatch, tmp_path, capsys, pair, folder):
    """Run the script on two photos; what it prints as a table, the last line on the terminal, the picture's pixels."""

    def match_photos(*flags):
        output = tmp_path / "matches.png"
        flags = [*pair, "--model", folder, "--output", str(output), *flags]
        monkeypatch.setattr(sys, "argv", ["match.py", *flags])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        printed = capsys.readouterr()
        with Image.open(output) as image:
            return list(csv.DictReader(io.StringIO(printed.out))), printed.err.splitlines()[-1], np.asarray(image)

    return match_photos


def test_photos(match_photos, pair, folder):
    """As the library has it, the most similar pairs first."""
    photos = [decode_rgb({"path": path, "bytes": None}) for path in pair]
    matches = match_images(load_encoder(folder), *photos)
    rows, last, picture = match_photos()
    assert len(rows) == min(50, len(matches))
    assert last.endswith(f"matches.png: {len(rows)} of {len(matches)} pairs of patches, each the other's nearest")
    for row, similarity, (first, second) in zip(rows, matches.similarities, matches.centers.tolist(), strict=False):
        found = [float(row[name]) for name in ("similarity", "first_y", "first_x", "second_y", "second_x")]
        np.testing.assert_allclose(found, [similarity, *first, *second], atol=0.051)
    few, last, other = match_photos("--max_matches", "3")
    assert few == rows[:3] and f"3 of {len(matches)} pairs" in last
    assert other.shape == picture.shape and not np.array_equal(other, picture)
    assert match_photos("--ratio", "0.5")[0] != rows
    limit = rows[5]["similarity"]
    assert len(match_photos("--threshold", limit)[0]) in (5, 6, 7)  # which is printed with four digits


def test_image_size(match_photos):
    """Blocks of the first photo are patches then: those that the second one shows as well are found."""
    rows, *_ = match_photos("--image_size", "32", "--threshold", "0.9", "--max_matches", "1000")
    assert len(rows) > 10
    places = torch.tensor(
        [[float(row[name]) for name in ("first_x", "first_y", "second_x", "second_y")] for row in rows]
    )
    assert (places[:, 0].remainder(15) - 7.5).abs().max() < 0.1 and (places[:, 1].remainder(10) - 5).abs().max() < 0.1
    shifts = places[:, :2] - places[:, 2:]
    is_right = (shifts[:, 0] - 60).abs().le(7.5) & (shifts[:, 1] - 20).abs().le(5)
    assert is_right.float().mean() > 0.6  # by chance, about a tenth


def test_wrong_photos_and_encoders(match_photos, pair, folder, tmp_path):
    with pytest.raises(ValueError, match="threshold=50.0 must be a cosine similarity"):
        match_photos("--threshold", "50")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match="model cannot be evaluated"):
        match_photos()
    Path(pair[1]).write_text("no picture")
    with pytest.raises(SystemExit, match=r"Cannot read .*second.png"):
        match_photos()
