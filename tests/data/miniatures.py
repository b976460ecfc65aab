"""Miniatures of the retrieval and copy detection benchmarks, made of scikit-learn's two photographs."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_image


Box = tuple[int, int, int, int]

JPEG_QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
CROPPED_PERCENTS = (10, 15, 20, 30, 40, 50, 60, 70, 80)


def make_revisited(folder: Path, name: str = "miniature", seed: int = 0) -> Path:
    """
    Writes a miniature in the form of revisited Oxford: 12 landmarks, of each a query and 7 images in the database.

    A query shows the surroundings of its landmark too, and has a box around it. Names tell what is true:
    `china_0_easy_1` is an easy image of landmark `china_0`, whose query is `china_0_query`.

    Returns the folder of the benchmark, with `gnd_NAME.pkl` and `jpg/`.
    """
    root = folder / name
    (root / "jpg").mkdir(parents=True)
    images: dict[str, PILImage.Image] = {}
    landmarks, boxes = [], []
    for photo_name, photo in _photos().items():
        for i, region in enumerate(_regions(photo, rows=2, columns=3, margin=12)):
            landmark = f"{photo_name}_{i}"
            landmarks.append(landmark)
            for label, edits in (("easy", EASY), ("hard", HARD), ("junk", JUNK)):
                for j, edit in enumerate(edits):
                    images[f"{landmark}_{label}_{j}"] = edit(photo.crop(region))
            left, top, right, bottom = _grow(region, 30, photo.size)
            photo.crop((left, top, right, bottom)).save(root / f"jpg/{landmark}_query.jpg", quality=90)
            boxes.append([float(region[k] - (left, top)[k % 2]) for k in range(4)])
    order = np.random.default_rng(seed).permutation(len(images))
    names = [list(images)[i] for i in order]
    for i, image_name in enumerate(names):
        images[image_name].save(root / f"jpg/{image_name}.jpg", quality=(95, 75, 50)[i % 3])

    def places(landmark: str, label: str) -> list[int]:
        return [i for i, image_name in enumerate(names) if image_name.startswith(f"{landmark}_{label}_")]

    gnd = [
        {"bbx": box, **{label: places(landmark, label) for label in ("easy", "hard", "junk")}}
        for landmark, box in zip(landmarks, boxes, strict=True)
    ]
    content = {"imlist": names, "qimlist": [f"{landmark}_query" for landmark in landmarks], "gnd": gnd}
    (root / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return root


def make_copydays(folder: Path) -> Path:
    """
    Writes a miniature of Copydays: 24 originals, 18 blocks of one copy of each, and 36 strong copies.

    Original `200500.jpg` has the strong copies `200501.jpg` and, where its number is even, `200502.jpg`.

    Returns the folder.
    """
    for block in _copydays_blocks():
        (folder / block).mkdir(parents=True)
    regions = [
        photo.crop(region) for photo in _photos().values() for region in _regions(photo, rows=3, columns=4, margin=4)
    ]
    for i, original in enumerate(regions):
        name = f"20{i:02}00.jpg"
        original.save(folder / "original" / name, quality=92)
        for quality in JPEG_QUALITIES:
            original.save(folder / f"jpegqual/{quality}" / name, quality=quality)
        for percent in CROPPED_PERCENTS:
            _keep(original, 1 - percent / 100).save(folder / f"crops/{percent}" / name, quality=92)
        _rotate_and_blur(original).save(folder / f"strong/20{i:02}01.jpg", quality=60)
        if i % 2 == 0:
            _write_over(original).save(folder / f"strong/20{i:02}02.jpg", quality=60)
    return folder


def _copydays_blocks() -> list[str]:
    jpegs, crops = [f"jpegqual/{q}" for q in JPEG_QUALITIES], [f"crops/{p}" for p in CROPPED_PERCENTS]
    return ["original", "strong", *jpegs, *crops]


def _photos() -> dict[str, PILImage.Image]:
    return {name: PILImage.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}


def _regions(photo: PILImage.Image, rows: int, columns: int, margin: int) -> list[Box]:
    """Parts of a photo side by side, with a gap between them."""
    height, width = photo.height // rows, photo.width // columns
    return [
        (
            column * width + margin,
            row * height + margin,
            (column + 1) * width - margin,
            (row + 1) * height - margin,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def _grow(box: Box, pixels: int, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return (
        max(left - pixels, 0),
        max(top - pixels, 0),
        min(right + pixels, size[0]),
        min(bottom + pixels, size[1]),
    )


def _keep(image: PILImage.Image, part: float, x: float = 0.5, y: float = 0.5) -> PILImage.Image:
    """Crops to a part of the area, at a place from 0 (left, top) to 1."""
    width, height = round(image.width * part**0.5), round(image.height * part**0.5)
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def _tilt(image: PILImage.Image) -> PILImage.Image:
    """As seen from the side."""
    width, height = image.size
    corners = (width * 0.2, height * 0.25, 0, height, width, height * 0.85, width * 0.9, 0)
    tilted = image.transform(image.size, PILImage.Transform.QUAD, corners, PILImage.Resampling.BILINEAR)
    return ImageEnhance.Brightness(tilted).enhance(0.6)


def _rotate_and_blur(image: PILImage.Image) -> PILImage.Image:
    rotated = image.rotate(25, PILImage.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    return rotated.filter(ImageFilter.GaussianBlur(1.5))


def _write_over(image: PILImage.Image) -> PILImage.Image:
    written = ImageEnhance.Contrast(_keep(image, 0.6, 0.2, 0.8)).enhance(0.5)
    draw = ImageDraw.Draw(written)
    draw.rectangle((0, written.height // 2 - 12, written.width, written.height // 2 + 12), fill=(250, 240, 40))
    draw.text((8, written.height // 2 - 6), "a copy of a copy", fill=(20, 20, 120))
    return written


EASY: list[Callable[[PILImage.Image], PILImage.Image]] = [
    lambda image: _keep(image, 0.85, 0.3, 0.7),
    lambda image: ImageEnhance.Brightness(image).enhance(1.2).resize((150, 140)),
    lambda image: image.resize((image.width * 5 // 4, image.height)),
]
HARD: list[Callable[[PILImage.Image], PILImage.Image]] = [
    lambda image: _keep(image, 0.3, 0.5, 0.4).resize((120, 90)),
    lambda image: _tilt(image),
    lambda image: _rotate_and_blur(image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)).resize((96, 128)),
]
JUNK: list[Callable[[PILImage.Image], PILImage.Image]] = [
    lambda image: _keep(image, 0.02, 1, 1).resize((100, 100)),
]
