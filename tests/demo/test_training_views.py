"""The training views of a photo: those that `hf-ssl preview` draws, with boxes where they lie."""

import runpy
import sys
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageChops
from torchvision.transforms.functional import to_pil_image

from hf_ssl.data import ImageData
from hf_ssl.demo import Collection
from hf_ssl.demo.photos import Photo
from hf_ssl.demo.training_views import draw_boxes, draw_views, method_views, picture_photos, show_training_views
from hf_ssl.figures.common import VIEW_COLORS
from hf_ssl.models import METHODS
from hf_ssl.view_pictures import ViewPictures


SCRIPT = Path(__file__).parents[2] / "training" / "preview.py"


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photos of three sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate(((70, 50), (40, 60), (30, 30))):
        noise(*size, i).save(folder / f"{i}.png")
    return folder


def collection_of(images, folder):
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    paths = [str(path) for path in sorted(folder.glob("*.png"))]
    train = Dataset.from_dict({"image": paths}, features=Features({"image": ImageFeature(decode=False)}))
    return Collection(ImageData("noise", train, None, None, None, "test"))


@pytest.fixture
def collection(tmp_path):
    """Two white images."""
    return collection_of([Image.new("RGB", (20, 30), "white")] * 2, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_views_are_those_of_a_preview(method, photos, monkeypatch, tmp_path):
    """Of the first three images of a run on photos, in its first epoch."""
    drawn = {}
    monkeypatch.setattr("hf_ssl.figures.plot_views", lambda path, **what: drawn.update(what))
    flags = [
        "--method",
        method,
        "--recipe",
        "default",
        "--dataset",
        photos,
        "--seed",
        5,
        "--output",
        tmp_path / "x.png",
    ]
    monkeypatch.setattr(sys, "argv", ["preview.py", *map(str, flags)])
    runpy.run_path(str(SCRIPT), run_name="__main__")

    found = picture_photos(
        method_views(method, 5), [Image.open(path) for path in sorted(photos.glob("*.png"))], seed=5
    )
    assert list(found.views) == drawn["names"] and found.frames == drawn["frames"]
    assert found.without_box == drawn["without_box"]
    assert torch.equal(found.boxes, drawn["boxes"])
    for ours, theirs in ((found.sources, drawn["sources"]), (list(found.views.values()), drawn["views"])):
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_shown(method, collection):
    """Names, sizes and mirrored views in captions; frames have the color of their box; a seed gives the same again."""
    photo = Photo(noise(70, 50), "")
    boxes, gallery, words = show_training_views(collection, photo, method, 3)
    pictures = picture_photos(method_views(method, 3), [photo.image, *[collection.image(0)] * 2], 3)
    assert METHODS[method].summary in words
    if len(pictures.views) > pictures.boxes.shape[1]:
        assert words.endswith(f"Further pictures: {pictures.without_box}.")
    else:
        assert "Further" not in words
    assert boxes.size == ((512, 512) if method == "pw_self" else (490, 350))
    others = gallery[: len(gallery) - len(pictures.views)]
    assert [caption for _, caption in others] == ["mixed with this image"] * (method == "patchmix")
    for (picture, caption), (name, view), frame in zip(
        gallery[len(others) :], pictures.views.items(), pictures.frames, strict=True
    ):
        has_box = frame < pictures.boxes.shape[1]
        is_mirrored = has_box and bool(pictures.boxes[0, frame, 4])
        assert caption == f"{name}{' ↔' * is_mirrored}, {view.shape[-1]} px"
        corner = "#{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0)))
        if has_box:
            assert corner.upper() == VIEW_COLORS[frame % len(VIEW_COLORS)].upper()
            picture = picture.crop((6, 6, picture.width - 6, picture.height - 6))
        small = np.asarray(picture.resize(view.shape[-2:], Image.Resampling.BOX)).astype(int)
        if "mixed" not in name:  # with another image of the collection
            assert np.abs(small - view[0].permute(1, 2, 0).numpy()).mean() < 12
    again, other = (show_training_views(collection, photo, method, seed) for seed in (3, 4))
    assert again[0] == boxes and again[1] == gallery
    assert other[0] != boxes


def test_images_of_the_collection_are_mixed_in(collection):
    """White ones into half of the patches of a black photo."""
    _, gallery, _ = show_training_views(collection, Photo(Image.new("RGB", (50, 50)), ""), "patchmix", 0)
    assert set(np.asarray(gallery[0][0]).flatten()) == {255} and gallery[0][1] == "mixed with this image"
    (mixed,) = (picture for picture, caption in gallery if caption == "mixed 1, 224 px")
    patches = np.asarray(mixed.resize((14, 14), Image.Resampling.BOX)).max(-1)
    assert (patches > 60).sum() == (patches < 20).sum() == 98


def changed(source, picture):
    """Bounding box (left, top, right, bottom) of what was drawn over a source of one color."""
    return ImageChops.difference(picture, Image.new("RGB", picture.size, source.getpixel((0, 0)))).getbbox()


@pytest.mark.parametrize(
    ("size", "box", "edges"),
    [
        ((100, 60), [10, 20, 20, 40, 0], (100, 50, 300, 150)),  # drawn five times as large
        ((8, 8), [0, 4, 4, 4, 1], (256, 0, 512, 256)),
        ((2048, 1024), [100, 200, 400, 800, 0], (50, 25, 250, 125)),
        ((1000, 26), [0, 800, 26, 200, 0], (410, 0, 512, 13)),  # the height is rounded
    ],
)
def test_boxes_are_drawn_where_they_lie(size, box, edges):
    source = Image.new("RGB", size, "gray")
    picture = draw_boxes(source, torch.tensor([box]), [""])
    assert changed(source, picture) == edges
    left, top, right, bottom = edges
    assert picture.getpixel((left, top)) == picture.getpixel((right - 1, bottom - 1)) == (255, 255, 255)
    color = tuple(bytes.fromhex(VIEW_COLORS[0][1:]))
    assert picture.getpixel((left + 2, top + 2)) == picture.getpixel((right - 3, bottom - 3)) == color
    assert picture.getpixel(((left + right) // 2, (top + bottom) // 2)) == (128, 128, 128)


def test_tags_stand_in_corners_by_turns():
    source, box = Image.new("RGB", (512, 512), "gray"), [100, 100, 300, 300, 0]
    for number, corner in enumerate([(103, 103), (360, 103), (360, 370), (103, 370), (103, 103)]):
        boxes = torch.tensor([[0, 0, 1, 1, 0]] * number + [box])
        tags = [""] * number + ["V1"]
        with_tag, without = (draw_boxes(source, boxes, texts) for texts in (tags, [""] * (number + 1)))
        left, top, right, bottom = ImageChops.difference(with_tag, without).getbbox()
        assert corner[0] - 5 <= left and right <= corner[0] + 42
        assert corner[1] - 5 <= top and bottom <= corner[1] + 32
        assert right - left > 20 and bottom - top > 12


def test_tags_are_those_of_the_views_in_the_boxes():
    """Of views in one box the first has a name there."""
    views = {name: torch.zeros(1, 3, 8, 8, dtype=torch.uint8) for name in ("view 1", "step 1 view 1", "view 2")}
    source = torch.full((3, 512, 512), 128, dtype=torch.uint8)
    boxes = torch.tensor([[[10, 10, 200, 200, 0], [250, 250, 200, 200, 1]]])
    pictures = ViewPictures([source], views, boxes, [0, 0, 1], without_box="")
    drawn, gallery = draw_views(pictures, 1)
    assert drawn == draw_boxes(to_pil_image(source), boxes[0], ["V1", "V2"])
    assert [caption for _, caption in gallery] == ["view 1, 8 px", "step 1 view 1, 8 px", "view 2 ↔, 8 px"]


def test_collections_of_one_image_and_of_gray_ones(tmp_path):
    collection = collection_of([noise(9, 8).convert("L")], tmp_path)
    _, gallery, _ = show_training_views(collection, Photo(noise(1, 1), ""), "patchmix", 2**31 - 1)
    assert len(gallery) == 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photo": None}, "There is no photo yet"),
        *(({"method": method}, "one of relvit, patchmix") for method in (None, "simclr", "RelViT", 3, ["aps"], {})),
        *(
            ({"seed": seed}, "whole number from 0 to 2147483647")
            for seed in (None, "3", True, -1, 1.5, 2**31, 1e300, np.nan, np.inf, [1])
        ),
    ],
)
def test_refusals(change, message, collection):
    wanted = {"photo": Photo(noise(9, 8), ""), "method": "relvit", "seed": 0} | change
    with pytest.raises(gr.Error, match=message):
        show_training_views(collection, **wanted)


def test_whole_numbers_of_any_type(collection):
    """Gradio's numbers are floats."""
    photo = Photo(noise(9, 8), "")
    assert show_training_views(collection, photo, "isl", 2.0) == show_training_views(collection, photo, "isl", 2)
