"""`training/attention.py` from its command line to the picture."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessor, ViTModel

from hf_ssl.hub import evaluation_processor


SCRIPT = Path(__file__).parents[2] / "training" / "attention.py"
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for i, size in enumerate(((50, 70), (90, 61))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    return paths


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    ViTModel(ViTConfig(**VIT, image_size=32, patch_size=8)).save_pretrained(tmp_path / "model")
    evaluation_processor(32, [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def attend(monkeypatch, tmp_path, capsys, folder):
    """Run the script; the picture's pixels, and what was drawn."""

    def attend(*flags):
        output = tmp_path / "pictures" / "attention.png"
        drawn = {}
        script = runpy.run_path(str(SCRIPT))
        plot = script["plot_attention"]

        def record(attention, masks, images, path, *, tokens):
            drawn.update(attention=attention, masks=masks, images=images, tokens=tokens)
            plot(attention, masks, images, path, tokens=tokens)

        script["main"].__globals__["plot_attention"] = record
        flags = [*flags, "--model", folder, "--output", output]
        monkeypatch.setattr(sys, "argv", ["attention.py", *map(str, flags)])
        script["main"]()
        assert capsys.readouterr().out.splitlines() == [str(output)]
        with Image.open(output) as image:
            return np.asarray(image), drawn

    return attend


def test_photos(attend, photos):
    one, drawn = attend(photos[0])
    assert drawn["attention"].shape == drawn["masks"].shape == (1, 2, 4, 4) and drawn["tokens"].shape == (1, 4, 4, 24)
    two, drawn = attend(*photos)
    assert drawn["attention"].shape == (2, 2, 4, 4) and len(two) > 1.5 * len(one)
    assert drawn["masks"].dtype == torch.bool and 0.3 < drawn["masks"].float().mean() < 0.7
    larger, drawn = attend(*photos, "--image_size", "60", "--mass", "0.1")
    assert drawn["attention"].shape == (2, 2, 7, 7) and drawn["masks"].float().mean() < 0.12
    assert drawn["images"][0].shape == (3, 56, 56), "without what is left over of a patch"
    assert not np.array_equal(larger, two)


def test_images_are_what_the_encoder_sees(attend, photos):
    _, drawn = attend(photos[0], "--image_size", "40")
    resized = ViTImageProcessor(size={"height": 40, "width": 40}, do_normalize=False, resample=2)
    with Image.open(photos[0]) as photo:
        expected = resized(images=[photo], return_tensors="pt")["pixel_values"][0] * 255
    assert torch.equal(drawn["images"][0], expected.round().byte())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "attention.jpg"], "output='attention.jpg' must be the name of a PNG file"),
        (["--mass", "60"], r"mass=60.0 must lie in \(0, 1\]"),
    ],
)
def test_wrong_flags(monkeypatch, photos, flags, message):
    monkeypatch.setattr(sys, "argv", ["attention.py", *photos, "--model", "absent", *flags])
    with pytest.raises(ValueError, match=message):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_wrong_photos_and_encoders(attend, photos, folder, tmp_path):
    with pytest.raises(SystemExit, match=r"Cannot read .*absent.png"):
        attend(photos[0], tmp_path / "absent.png")
    ViTImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"different sizes, \[\(32, 44\), \(47, 32\)\]: set --image_size"):
        attend(*photos)
    attend(*photos, "--image_size", "32")
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    with pytest.raises(ValueError, match="model, of type resnet, has no class token"):
        attend(photos[0])
