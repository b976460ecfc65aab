"""`training/preview.py` from its command line to the picture."""

import runpy
import sys
import types
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


# ---- several views ----


def test_image_views(script):
    """One view or several in a tensor, normalization undone, other tensors left alone."""
    images = torch.rand(10, 4, 3, 8, 8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normalized = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    outputs = {
        "pixel_values": normalized[:2],
        "boxes": torch.zeros(4, 10, 5, dtype=torch.int64),
        "local_pixel_values": normalized[2:, ..., :4, :4],
        "teacher_images": normalized[0] * 100,
        "weights": torch.rand(4, 16),
        "masks": torch.rand(4, 1, 8, 8),
    }
    views = script["image_views"](outputs, mean, std)
    assert list(views) == ["view 1", "view 2", *(f"local {i}" for i in range(1, 9)), "teacher images"]
    assert all(view.dtype == torch.uint8 and len(view) == 4 for view in views.values())
    assert (views["view 2"] - images[1] * 255).abs().max() < 0.51
    assert (
        views["local 8"].shape == (4, 3, 4, 4) and (views["local 8"] - images[9, ..., :4, :4] * 255).abs().max() < 0.51
    )
    assert set(views["teacher images"].unique().tolist()) >= {0, 255}
    assert list(script["image_views"]({"pixel_values": normalized[:1]}, mean, std)) == ["view"]
    sides = script["describe"](
        [images[0, 0]] * 4, {name: views[name] for name in ("view 1", "local 1", "local 2")}, 50
    )
    assert sides == "4 of 50 images (8x8 px), 3 views of each (1 of 8 px, 2 of 4 px)"


def test_boxes_are_those_of_the_views(script):
    """What the views return, else what lies on the canvas, else what workers cut out, else what is drawn for the sources."""
    asked, draws = [], object()

    def boxes(epoch, index, sizes):
        asked.append(sizes)
        return "drawn"

    views, sources = types.SimpleNamespace(boxes=boxes), [torch.zeros(3, 4, 6), torch.zeros(3, 5, 7)]
    batch = {"epoch": torch.tensor([0, 0]), "index": torch.tensor([0, 1])}
    returned, cut = torch.zeros(2, 3, 5), torch.ones(2, 1, 5)
    assert script["view_boxes"](views, batch | {"boxes": cut}, {"boxes": returned}, sources, draws) is returned
    assert script["view_boxes"](views, batch | {"boxes": cut}, {}, sources, draws) is cut
    assert script["view_boxes"](views, batch, {}, sources, draws) == "drawn"
    assert torch.equal(asked[0], torch.tensor([[4, 6], [5, 7]]))
    views.canvas, views.view_boxes = 8, lambda epoch, index, sizes, draws: (epoch, index, sizes, draws)
    on_canvas = script["view_boxes"](views, batch | {"boxes": cut}, {}, sources, draws)
    assert on_canvas[:2] == (batch["epoch"], batch["index"]) and on_canvas[3] is draws


def test_canvas(script):
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[0, :, 15:] = 200
    assert script["on_canvas"](image, None) is image
    shown = script["on_canvas"](image, 24)
    assert shown.shape == (3, 24, 24) and shown[0, 0, 5] == 0 and shown[0, 20, 20] == 200
