"""`training/preview.py` from its command line to the picture."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.figures import DPI


SCRIPT = Path(__file__).parents[2] / "training" / "preview.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def preview(monkeypatch, tmp_path, capsys):
    """Run the script; the size of its picture in pixels, the pixels, and what it printed."""

    def preview(*flags):
        output = tmp_path / "sheets" / "views.png"
        monkeypatch.setattr(sys, "argv", ["preview.py", "--output", str(output), *map(str, flags)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        path, line = capsys.readouterr().out.splitlines()
        assert path == str(output)
        with Image.open(output) as image:
            assert image.format == "PNG"
            return image.size, np.asarray(image), line

    return preview


@pytest.fixture
def photos(tmp_path):
    """Photos of unequal size, without labels."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(6):
        pixels = rng.integers(0, 256, (30 + 10 * i, 90 - 10 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_digits(preview):
    size, first, line = preview()
    # Two stacks of four rows; a source and a view of 1.5 inches in each.
    assert size == pytest.approx((7.1 * DPI, (0.73 + 4 * 1.7 + 0.3) * DPI), abs=1)
    assert line == ("RelViT (upstream) on digits, epoch 0: 8 of 1,437 images (8x8 px), 1 view of each (16 px)")
    again, later, other_run = preview()[1], preview("--epoch", 1)[1], preview("--seed", 7)[1]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later) and not np.array_equal(first, other_run)


def test_photos(preview, photos):
    flags = ["--dataset", photos, "--image_size", 32, "--patch_size", 4, "--mega_patches", 5, "--num_images", 20]
    size, _, line = preview(*flags)
    assert size[0] == round(7.1 * DPI)  # the six there are, in two stacks of three
    assert line == ("RelViT (upstream) on photos, epoch 0: 6 of 6 images (of several sizes), 1 view of each (20 px)")


def test_recipe_and_mode(preview):
    """A recipe that a run is trained with, all of its names included."""
    flags = ["--recipe", "cifar10", "--dataset", "digits", "--mode", "joint", "--image_size", 8, "--patch_size", 2]
    line = preview(*flags, "--num_images", 3)[2]
    assert line.startswith("RelViT (joint) on digits, epoch 0: 3 of 1,437 images (8x8 px), 1 view of each (8 px)")


def test_aps(preview, photos):
    """What the encoder sees in each step is shown beside the views."""
    _, pixels, line = preview("--method", "aps", "--num_images", 2)
    assert line.endswith("digits, epoch 0: 2 of 1,437 images (8x8 px), 6 views of each (16 px)")
    assert not np.array_equal(pixels, preview("--method", "aps", "--num_images", 2, "--sampling_power", 0)[1])
    flags = ["--method", "aps", "--dataset", photos, "--image_size", 32, "--patch_size", 8, "--num_samplings", 1]
    assert preview(*flags)[2].endswith("6 of 6 images (of several sizes), 4 views of each (32 px)")


def test_patchmix(preview, photos):
    """Mixed images are shown beside the views that they are made of, and small views in the lines below."""
    line = preview("--method", "patchmix")[2]
    assert line.endswith("digits, epoch 0: 8 of 1,437 images (8x8 px), 4 views of each (16 px)")
    small = ["--num_local_views", 2, "--local_size", 8]
    flags = ["--method", "patchmix", "--dataset", photos, "--image_size", 32, "--patch_size", 4, *small]
    line = preview(*flags)[2]
    assert line.endswith("6 of 6 images (of several sizes), 8 views of each (4 of 32 px, 4 of 8 px)")
    with pytest.raises(ValueError, match="num_images=2 is too few: views of PatchMix are made of 3"):
        preview(*flags, "--num_images", 2)


def test_pw_self(preview, photos):
    """Every view is shown twice: as it is, and in the colors of the first view's patches that its own are matched with."""
    _, pixels, line = preview("--method", "pw_self", "--num_images", 2)
    assert line.endswith("digits, epoch 0: 2 of 1,437 images (16x16 px), 8 views of each (4 of 16 px, 4 of 8 px)")
    # Shared boxes are drawn for the batch.
    other = preview("--method", "pw_self", "--num_images", 2, "--geometry", "batch")[1]
    assert not np.array_equal(pixels, other)
    flags = ["--method", "pw_self", "--dataset", photos, "--image_size", 32, "--patch_size", 8, "--num_local_views", 0]
    for geometry in ("batch", "sample"):
        line = preview(*flags, "--canvas", 40, "--geometry", geometry)[2]
        assert line.endswith("6 of 6 images (40x40 px), 4 views of each (32 px)")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_images", "0"], "num_images=0 must be at least 1"),
        (["--epoch", "-1"], "epoch=-1 must not be negative"),
        (["--output", "views.jpg"], "output='views.jpg' must be the name of a PNG file"),
        (["--dataset", "cifra10"], "cifar10"),
        (["--method", "simclr"], "methods are relvit"),
        (["--image_augmentation", "padded_crop"], "16x16"),
    ],
)
def test_mistakes_are_explained(preview, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        preview(*flags)


def test_matplotlib_is_asked_for_first(preview, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hf_ssl\[viz\]"):
        preview("--dataset", "cifra10")


def test_description(script):
    images = [torch.zeros(3, 8, 10)] * 4
    views = {name: torch.zeros(4, 3, side, side) for name, side in (("view 1", 8), ("local 1", 4), ("local 2", 4))}
    described = script["describe"](images, views, 50)
    assert described == "4 of 50 images (10x8 px), 3 views of each (1 of 8 px, 2 of 4 px)"
