from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_ssl.hub import evaluation_processor, export_run

from ..training.common import make_patchmix
from .server import Demo, serve_demo


CLASSES = ("flowers", "temples")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published encoder of 16-pixel images, with random weights."""
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    export_run(make_patchmix(), evaluation_processor(16, [0.5] * 3, [0.5] * 3), folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A dataset of parts of two photos: `train/temples/0.png` to `9.png`, `train/flowers/…` likewise, and `test/…` with two more
    of each class.
    """
    folder, generator = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    images = load_sample_images()
    for path, pixels in zip(images.filenames, images.images, strict=True):
        photo, name = Image.fromarray(pixels), "temples" if "china" in path else "flowers"
        for i in range(12):
            left, top = (int(generator.integers(side - 100)) for side in photo.size)
            target = folder / ("train" if i < 10 else "test") / name / f"{i}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((left, top, left + 100, top + 100)).save(target)
    return folder


@pytest.fixture(scope="session")
def demo(encoder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The page for `encoder`, called "tiny", and `photos`."""
    with serve_demo(tmp_path_factory.mktemp("demo"), "--model", encoder, "--dataset", photos) as served:
        yield served
