"""ISL's views. What crops, colors and normalization do to pixels is tested against torchvision in tests/views."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl import ISLConfig
from hf_ssl.backbones.modeling_cifar_resnet import CifarResNetConfig
from hf_ssl.models.isl import ISLViews, ISLViewsConfig
from hf_ssl.views import Draws, View


SMALL = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def make_views(seed=0, config=None, image_size=16):
    backbone = CifarResNetConfig(**SMALL, image_size=image_size)
    return ISLViews(config or ISLViewsConfig(), ISLConfig(backbone_config=backbone), seed)


def make_batch(size=6, epoch=0, height=24, width=20):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8, generator=generator)
    return {"images": images, "index": torch.arange(size), "epoch": torch.full((size,), epoch)}


def colors_of(views):
    """Without their normalization."""
    return views * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def test_augmentations_are_those_of_the_original():
    config = ISLViewsConfig()
    expected = {"crop": "random_resized_crop", "scale": [0.2, 1.0], "ratio": [3 / 4, 4 / 3], "flip": 0.0}
    expected |= {"interpolation": "bilinear", "jitter": 1.0, "grayscale": 0.2, "grayscale_first": False}
    expected |= {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4}
    expected |= {"blur": 0.0, "solarize": 0.0, "erase": 0.0, "size": None}
    assert {name: getattr(config.view, name) for name in expected} == expected
    assert config.image_mean == MEAN and config.image_std == STD
    assert ISLViewsConfig().view is not config.view


@pytest.mark.parametrize(("size", "image_size"), [((24, 20), 16), ((32, 32), 32), ((9, 40), 24)])
def test_shape(size, image_size):
    inputs = make_views(image_size=image_size)(make_batch(5, height=size[0], width=size[1]))
    assert list(inputs) == ["pixel_values"]
    assert inputs["pixel_values"].shape == (5, 3, image_size, image_size)
    assert inputs["pixel_values"].dtype == torch.float32 and inputs["pixel_values"].is_contiguous()


def test_views_are_functions_of_seed_epoch_and_index():
    views, batch = make_views(), make_batch()
    found = views(batch)["pixel_values"]
    assert torch.equal(make_views()(make_batch())["pixel_values"], found)
    others = [make_views(seed=1)(batch), views(make_batch(epoch=1)), views(batch | {"index": batch["index"] + 6})]
    for other in others:
        assert (other["pixel_values"] != found).flatten(1).any(-1).all()


def test_images_have_draws_of_their_own():
    batch = make_batch()
    batch["images"] = batch["images"][:1].expand(6, -1, -1, -1)
    assert len(make_views()(batch)["pixel_values"].unique(dim=0)) == 6


def test_batches_do_not_matter():
    views, batch = make_views(), make_batch()
    batch["epoch"][3:] = 1
    expected = views(batch)["pixel_values"]
    for order in (torch.tensor([4, 0, 5, 2, 1, 3]), torch.tensor([5, 2]), torch.tensor([3])):
        found = views({name: values[order] for name, values in batch.items()})["pixel_values"]
        torch.testing.assert_close(found, expected[order], rtol=0, atol=1e-5)


def test_nothing_is_mirrored():
    """What grows brighter to the right does so in every view; with a flip, not in half of them."""
    ramp = torch.linspace(0, 255, 24).to(torch.uint8).expand(200, 3, 24, 24)
    batch = make_batch(200, height=24, width=24) | {"images": ramp}

    def brighter_to_the_right(config):
        columns = make_views(config=config)(batch)["pixel_values"].mean((1, 2))
        return (columns[:, -1] > columns[:, 0]).float().mean().item()

    assert brighter_to_the_right(ISLViewsConfig()) == 1
    flipped = ISLViewsConfig(View(scale=[0.2, 1.0], flip=0.5, jitter=1.0))
    assert 0.35 < brighter_to_the_right(flipped) < 0.65


def test_colors():
    """All are changed, in every way; a fifth of the images lose them."""
    color = torch.tensor([200, 120, 40], dtype=torch.uint8).view(3, 1, 1)
    batch = make_batch(1000) | {"images": color.expand(1000, 3, 24, 20)}
    found = colors_of(make_views()(batch)["pixel_values"])
    torch.testing.assert_close(found, found[..., :1, :1].expand_as(found), rtol=0, atol=1e-5)
    found = found[..., 0, 0]
    assert ((found - color.flatten() / 255).abs().amax(1) > 1e-4).all()
    gray = (found.amax(1) - found.amin(1)) < 1e-5
    assert gray.float().mean().item() == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 1000) ** 0.5)
    colored = found[~gray]
    # A hue turned by up to 0.4 makes each channel the strongest of some images, and the weakest.
    assert (colored.argmax(1).bincount(minlength=3) > 80).all() and (
        colored.argmin(1).bincount(minlength=3) > 80
    ).all()


def test_brightness():
    """The one change of colors that a plain gray image shows: a factor of 0.6 to 1.4, uniformly."""
    batch = make_batch(1000) | {"images": torch.full((1000, 3, 24, 20), 100, dtype=torch.uint8)}
    factors = colors_of(make_views()(batch)["pixel_values"])[:, 0, 0, 0] * 2.55
    assert 0.6 - 1e-3 < factors.min() < 0.61 and 1.39 < factors.max() < 1.4 + 1e-3
    assert factors.mean().item() == pytest.approx(1, abs=5 * 0.8 / 12**0.5 / 1000**0.5)
    assert factors.std().item() == pytest.approx(0.8 / 12**0.5, rel=0.05)


def test_normalization():
    """Black stays black, whatever its colors are multiplied by."""
    batch = make_batch() | {"images": torch.zeros(6, 3, 24, 20, dtype=torch.uint8)}
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    expected = black.view(3, 1, 1).expand(6, 3, 16, 16)
    torch.testing.assert_close(make_views()(batch)["pixel_values"], expected, rtol=1e-5, atol=1e-6)
    config = ISLViewsConfig(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    assert torch.equal(make_views(config=config)(batch)["pixel_values"], torch.full((6, 3, 16, 16), -2.0))


def test_photos():
    """Crops that workers cut out of photos of several sizes are those of the same photos as sources, in whole numbers."""
    views, sizes = make_views(), torch.tensor([[24, 20], [40, 31], [17, 50]])
    epoch, index = torch.full((3,), 2), torch.tensor([7, 0, 3])
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes.tolist()]
    boxes = views.boxes(epoch, index, sizes)
    crops = [views.render(Image.fromarray(photo), box) for photo, box in zip(photos, boxes, strict=True)]
    crops = torch.stack([crop["pixel_values_crops"] for crop in crops])
    found = views({"pixel_values_crops": crops, "boxes": boxes, "index": index, "epoch": epoch})
    assert list(found) == ["pixel_values"]
    for i, photo in enumerate(photos):
        images = torch.from_numpy(photo).permute(2, 0, 1)[None]
        alone = views({"images": images, "index": index[i : i + 1], "epoch": epoch[i : i + 1]})["pixel_values"]
        assert (found["pixel_values"][i : i + 1] - alone).abs().mean() < 0.02


def test_mixed_precision_changes_nothing():
    views, batch = make_views(), make_batch(64)
    expected = views(batch)["pixel_values"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = views(batch)["pixel_values"]
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_global_generators_are_not_touched():
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    make_views()(make_batch())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_draws_of_the_batch_are_not_needed():
    """Workers can make the views; draws that are given change nothing."""
    views, batch = make_views(), make_batch()
    assert not views.needs_batch_draws
    assert torch.equal(views(batch)["pixel_values"], views(batch, Draws.for_batch(0, 3))["pixel_values"])


def test_batches_of_one_image_are_refused():
    """Batch norm has no variance of them. The trainer asks before the first step."""
    assert make_views().min_batch_size == 2


def test_size_comes_from_the_model():
    config = ISLViewsConfig()
    views = make_views(config=config)
    assert views.config.view.size == 16 and config.view.size is None
    assert make_views(config=ISLViewsConfig(View(size=16))).config.view.size == 16
    for size in (8, 15, 32):
        with pytest.raises(ValueError, match=f"view_size={size} is not the image_size=16"):
            make_views(config=ISLViewsConfig(View(size=size)))


def test_pictures():
    """The view itself, under its number."""
    views = make_views()
    inputs = views(make_batch())
    pictures, numbers = views.pictures(inputs)
    assert list(pictures) == ["view"] and pictures["view"] is inputs["pixel_values"] and numbers == [0]
    assert views.num_views == 1 and "view" in views.pictures_show
