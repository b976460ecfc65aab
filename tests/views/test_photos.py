import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.transforms import InterpolationMode

from hf_ssl.views.photos import resized_crop


MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
# Levels of 255. PIL rounds after each axis as torch does, but takes the axes in the other order.
ATOL = {"bilinear": 1, "bicubic": 2}
# All of the photo, a larger and a smaller part, a pixel, and parts that are thin.
BOXES = [(0, 0, 75, 101), (3, 40, 60, 61), (70, 0, 5, 7), (74, 100, 1, 1), (0, 90, 75, 3), (40, 0, 2, 101)]
STICKING_OUT = [(-5, -9, 85, 120), (-20, 30, 40, 50), (60, 80, 40, 30), (75, 0, 20, 20), (-30, -30, 20, 20)]


def noise(height=75, width=101):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(height=75, width=101):
    """Noise clips a bicubic kernel's overshoots after the first axis, which is another one in PIL."""
    return noise(7, 9).resize((width, height), Image.Resampling.BICUBIC)


PHOTOS = {"bilinear": noise, "bicubic": smooth}


def on_black(photo, margin=40):
    canvas = Image.new("RGB", (photo.width + 2 * margin, photo.height + 2 * margin))
    canvas.paste(photo, (margin, margin))
    return canvas


def pil_view(photo, box, size, interpolation="bilinear"):
    return TF.pil_to_tensor(TF.resized_crop(photo, *box, [size, size], MODES[interpolation]))


def assert_close(view, expected, atol):
    assert view.shape == expected.shape and view.dtype == torch.uint8
    assert (view.int() - expected.int()).abs().max() <= atol


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [33, 8, 1, 128])
@pytest.mark.parametrize("box", BOXES)
def test_close_to_pil(box, size, interpolation):
    photo = PHOTOS[interpolation]()
    expected = pil_view(photo, box, size, interpolation)
    for flip in (0, 1):
        view = resized_crop(photo, torch.tensor([*box, flip]), size, interpolation)
        assert_close(view, expected.flip(-1) if flip else expected, ATOL[interpolation])


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [33, 128])
@pytest.mark.parametrize("box", STICKING_OUT)
def test_black_outside_of_the_photo(box, size, interpolation):
    photo = PHOTOS[interpolation]()
    top, left, height, width = box
    expected = pil_view(on_black(photo), (top + 40, left + 40, height, width), size, interpolation)
    view = resized_crop(photo, torch.tensor([*box, 0]), size, interpolation)
    assert_close(view, expected, ATOL[interpolation])


def test_cut_without_resizing_is_exact():
    photo = noise()
    pixels = TF.pil_to_tensor(on_black(photo))
    for top, left in ((0, 0), (30, 60), (-8, 5), (60, 90)):
        expected = pixels[:, top + 40 : top + 72, left + 40 : left + 72]
        assert torch.equal(resized_crop(photo, torch.tensor([top, left, 32, 32, 0]), 32), expected)
        assert torch.equal(resized_crop(photo, torch.tensor([top, left, 32, 32, 1]), 32), expected.flip(-1))


def test_bilinear_unless_told_otherwise():
    box = torch.tensor([1, 2, 50, 40, 0])
    view = resized_crop(noise(), box, 20)
    assert torch.equal(view, resized_crop(noise(), box, 20, "bilinear"))
    assert not torch.equal(view, resized_crop(noise(), box, 20, "bicubic"))


def test_photo_of_one_pixel():
    photo = Image.new("RGB", (1, 1), (10, 200, 77))
    expected = torch.tensor([10, 200, 77], dtype=torch.uint8)[:, None, None]
    for interpolation in MODES:
        view = resized_crop(photo, torch.tensor([0, 0, 1, 1, 1]), 5, interpolation)
        assert torch.equal(view, expected.expand(3, 5, 5))


def test_photo_stays_as_it_is():
    original = noise()
    resized_crop(original, torch.tensor([1, 2, 50, 40, 1]), 20)
    assert original == noise()
