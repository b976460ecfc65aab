"""Photos that keep their shape."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from hf_ssl.evaluation import ThumbnailProcessor


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CHINA = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427


@pytest.mark.parametrize(("size", "expected"), [(224, (149, 224)), (640, (427, 640)), (1000, (427, 640)), (7, (5, 7))])
@pytest.mark.parametrize("upright", [False, True])
def test_as_pillow_and_torchvision(size, expected, upright):
    """It only shrinks."""
    photo = CHINA.rotate(90, expand=True) if upright else CHINA
    tensor = v2.functional.pil_to_tensor(photo)
    small = photo.copy()
    small.thumbnail((size, size), Image.LANCZOS)
    by_torchvision = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])(small)
    from_pixels, from_photo = ThumbnailProcessor(size, MEAN, STD)([tensor, photo], "pt")["pixel_values"]
    assert torch.equal(from_pixels, from_photo)
    assert from_pixels.shape[1:] == (expected[::-1] if upright else expected)
    torch.testing.assert_close(from_pixels, torch.as_tensor(by_torchvision))
    assert photo.size == ((427, 640) if upright else (640, 427)), "the photo itself stays what it is"


def test_one_photo_and_gray_ones():
    (pixels,) = ThumbnailProcessor(64, [0.5] * 3, [0.5] * 3)(CHINA.convert("L"))["pixel_values"]
    assert pixels.shape == (3, 43, 64) and torch.equal(pixels[0], pixels[2])


def test_settings():
    settings = {"longest_side": 64, "image_mean": MEAN, "image_std": STD}
    assert ThumbnailProcessor(64, MEAN, STD).to_dict() == settings
    with pytest.raises(ValueError, match="to 0 pixels"):
        ThumbnailProcessor(0, MEAN, STD)
