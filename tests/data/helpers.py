"""Small images and folders of them."""

from io import BytesIO
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage


def pixels(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth colors with some noise, so that JPEG changes them little and every seed differs."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.stack([rows * 200 / height, columns * 200 / width, (rows + columns) * 100 / (height + width)], axis=-1)
    return np.clip(ramp + rng.integers(0, 40, size=3) + rng.integers(0, 4, ramp.shape), 0, 255).astype(np.uint8)


def picture(height: int = 24, width: int = 32, seed: int = 0) -> PILImage.Image:
    return PILImage.fromarray(pixels(height, width, seed))


def encoded(image: PILImage.Image, format: str = "PNG", **options) -> dict:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def save(image: PILImage.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def make_folder(folder: Path, files: dict[str, int]) -> Path:
    """Writes 8x8 pictures: {relative path: seed}."""
    for name, seed in files.items():
        save(picture(8, 8, seed), folder / name)
    return folder


def make_dataset(images: list[PILImage.Image], labels: list[int] | None = None, num_classes: int = 3) -> Dataset:
    columns: dict = {"image": [encoded(image) for image in images]}
    features = Features({"image": Image(decode=False)})
    if labels is not None:
        columns["label"] = labels
        features["label"] = ClassLabel(names=[f"class {i}" for i in range(num_classes)])
    return Dataset.from_dict(columns, features=features)
