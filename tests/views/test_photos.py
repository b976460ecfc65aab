import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.transforms import InterpolationMode

from hf_ssl.views.photos import resized_crop


def photo(height=75, width=101):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "filters",
    [
        (Image.Resampling.BILINEAR, InterpolationMode.BILINEAR),
        (Image.Resampling.BICUBIC, InterpolationMode.BICUBIC),
    ],
    ids=["bilinear", "bicubic"],
)
@pytest.mark.parametrize("size", [33, 8, 128])
@pytest.mark.parametrize("box", [(0, 0, 75, 101), (3, 40, 60, 61), (70, 0, 5, 7), (74, 100, 1, 1), (0, 90, 75, 3)])
def test_equals_torchvision(box, size, filters):
    expected = TF.pil_to_tensor(TF.resized_crop(photo(), *box, [size, size], filters[1]))
    for flip in (0, 1):
        view = resized_crop(photo(), torch.tensor([*box, flip]), size, filters[0])
        assert view.shape == (3, size, size) and view.dtype == torch.uint8
        assert torch.equal(view, expected.flip(-1) if flip else expected)


def test_bilinear_unless_told_otherwise():
    box = torch.tensor([1, 2, 50, 40, 0])
    expected = TF.pil_to_tensor(TF.resized_crop(photo(), 1, 2, 50, 40, [20, 20], InterpolationMode.BILINEAR))
    assert torch.equal(resized_crop(photo(), box, 20), expected)


def test_photo_stays_as_it_is():
    original = photo()
    resized_crop(original, torch.tensor([1, 2, 50, 40, 1]), 20)
    assert original == photo()
