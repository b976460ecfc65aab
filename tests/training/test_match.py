"""`training/match.py` from its command line to the picture."""

import ast
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    ],
)
def test_wrong_flags(monkeypatch, photo, flags, message):
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
