"""What a classifier is trained on: timm's policies image by image, timm's mixing of a batch, and their draws."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import DataLoader
from transformers import ViTConfig

from hf_ssl.data import EpochSampler, PhotoSource, TensorSource, collate, make_source
from hf_ssl.models.classification import ClassificationConfig, ClassificationViews, ClassificationViewsConfig
from hf_ssl.views import Draws, View, seeded


POLICY = "rand-m9-mstd0.5-inc1"
COUNT, SIDE = 12, 16
MEAN, STD = [0.2, 0.4, 0.6], [0.229, 0.224, 0.225]


def make_views(seed=3, mode="batch", num_labels=5, **options):
    view = View(crop="padded_crop", padding=2, interpolation="bicubic", erase=options.pop("erase", 0.0))
    config = ClassificationViewsConfig(view=view, mixup_mode=mode, image_mean=MEAN, image_std=STD, **options)
    encoder = ViTConfig(image_size=SIDE, patch_size=4, pooler_act="linear")
    return ClassificationViews(config, ClassificationConfig(backbone_config=encoder, num_labels=num_labels), seed)


@pytest.fixture(scope="module")
def pictures():
    """Smooth waves of color."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.rand(COUNT, 3, 3, 1, 1, generator=generator) * 9
    y, x = torch.linspace(0, 1, SIDE)[:, None], torch.linspace(0, 1, SIDE)
    return ((torch.sin(waves[:, 0] * y + waves[:, 1] * x + waves[:, 2]) + 1) * 127).to(torch.uint8)


def read(views, pictures, keys):
    return TensorSource(pictures, torch.arange(COUNT) % 5, views).__getitems__(keys)


def crops_of(batch):
    return batch["pixel_values_crops"]


KEYS = [(epoch, index) for epoch in range(3) for index in range(COUNT)]


class TestPolicy:
    def test_equals_timms_own_call(self, pictures):
        """On the crop, with the fill, the interpolation and the seeds that belong to the image."""
        plain, augmented = (crops_of(read(make_views(auto_augment=name), pictures, KEYS)) for name in (None, POLICY))
        own = rand_augment_transform(
            POLICY,
            {"translate_const": int(SIDE * 0.45), "img_mean": (51, 102, 153), "interpolation": PILImage.BICUBIC},
        )
        epoch, index = torch.tensor(KEYS).unbind(1)
        for crop, found, bits in zip(
            plain, augmented, Draws.for_samples(3, epoch, index).bits("auto_augment", 2), strict=True
        ):
            random.seed(int(np.uint64(bits[0].item() % 2**64)))
            np.random.seed([bits[1].item() % 2**32, bits[1].item() % 2**64 >> 32])
            expected = own(PILImage.fromarray(crop[0].permute(1, 2, 0).numpy()))
            np.testing.assert_array_equal(found[0].permute(1, 2, 0), np.asarray(expected))
        changed = (plain != augmented).flatten(1).any(1).float().mean()
        assert 0.5 < changed < 1, "each of two operations is left out half of the time"

    def test_largest_magnitude(self, pictures):
        """Posterized to no bits an image is black, whatever Pillow thinks of it."""
        views = make_views(auto_augment="rand-m10-inc1-p1-n1")
        crops = crops_of(read(views, pictures, [(epoch, 0) for epoch in range(100)]))
        assert 1 <= (crops == 0).flatten(1).all(1).sum() < 20  # one of 15 operations

    def test_generators_draw_different_numbers(self):
        with seeded([5, 5]):
            assert random.random() != np.random.random()
            numbers = random.random(), np.random.random()
        with seeded([-5, 5]):
            random.random(), np.random.random()
            assert random.random() != numbers[0] and np.random.random() == numbers[1]

    def test_image_alone_is_what_it_is_in_a_batch(self, pictures):
        views = make_views(auto_augment=POLICY)
        batch = crops_of(read(views, pictures, KEYS))
        for row in (0, 17, 30):
            assert torch.equal(crops_of(read(views, pictures, [KEYS[row]]))[0], batch[row])
        assert not torch.equal(batch[:COUNT], batch[COUNT : 2 * COUNT]), "other epochs are others"
        assert not torch.equal(crops_of(read(make_views(4, auto_augment=POLICY), pictures, KEYS)), batch)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_workers_and_global_generators(self, pictures, num_workers):
        views = make_views(auto_augment=POLICY)
        expected = crops_of(read(views, pictures, [(0, i) for i in range(COUNT)]))
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        source, sampler = TensorSource(pictures, torch.arange(COUNT), views), EpochSampler(COUNT, 1)
        loader = DataLoader(
            source,
            batch_size=5,
            sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            generator=torch.Generator(),
        )
        found = {int(i): crop for batch in loader for i, crop in zip(batch["index"], crops_of(batch), strict=True)}
        assert all(torch.equal(found[i], expected[i]) for i in range(COUNT))
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

    def test_photos_go_the_same_way(self, pictures):
        """As images of one size do."""
        views = make_views(auto_augment=POLICY)
        images = [PILImage.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
        features = Features({"image": Image(decode=False), "label": Value("int64")})
        dataset = Dataset.from_dict({"image": images, "label": list(range(COUNT))}, features=features)
        batch = PhotoSource(dataset, views).__getitems__(KEYS)
        expected = make_source(dataset, views).__getitems__(KEYS)
        assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)
        assert isinstance(make_source(dataset, views), TensorSource)
        assert "images" in make_source(dataset, make_views()).__getitems__(KEYS), "else the device crops"

    def test_device_normalizes_and_erases(self, pictures):
        views = make_views(auto_augment=POLICY, erase=1.0)
        batch = read(views, pictures, KEYS)
        pixels = views(batch)["pixel_values"]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        expected = (crops_of(batch)[:, 0] / 255 - mean) / std
        kept = torch.isclose(pixels, expected, atol=1e-5)
        assert 0.6 < kept.float().mean() < 0.98 and torch.equal(kept.all(1), kept.any(1))

    def test_images_that_were_not_read_with_it(self, pictures):
        batch = read(None, pictures, KEYS)
        with pytest.raises(ValueError, match="changes images where they are read: give the source the views"):
            make_views(auto_augment=POLICY)(batch)

    @pytest.mark.parametrize("policy", ["augmix-m5-w4-d2", "original-mstd0.5", "3a", "rand-m9-n3-tweights"])
    def test_other_policies_of_timm(self, pictures, policy):
        views = make_views(auto_augment=policy)
        assert len(views._augment.transforms) == 1, "colors are the view's"
        first, second = (crops_of(read(views, pictures, KEYS)) for _ in range(2))
        assert torch.equal(first, second) and not torch.equal(
            first, crops_of(read(make_views(auto_augment=None), pictures, KEYS))
        )

    @pytest.mark.parametrize("policy", ["", "rand-m9-inc", "rand-q3", "rand-m9-tmine", "m9", "rand-m9-", "randm9"])
    def test_what_timm_would_not_understand(self, policy):
        with pytest.raises(ValueError, match=f"auto_augment='{policy}' is not understood.*such as 'rand-m9"):
            make_views(auto_augment=policy)


def mixed(views, pictures, step=0, count=8):
    batch = TensorSource(pictures, torch.arange(COUNT) % 5).__getitems__([(0, i) for i in range(count)])
    return views(batch, Draws.for_batch(3, step))


class TestMixing:
    @pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
    @pytest.mark.parametrize(
        "options", [{"mixup": 0.8, "cutmix": 1.0}, {"mixup": 0.3}, {"cutmix": 1.0, "mixup_prob": 0.5}]
    )
    def test_equals_timms_own_call(self, pictures, mode, options):
        views, plain = make_views(mode=mode, **options), mixed(make_views(), pictures)
        own = Mixup(
            options.get("mixup", 0),
            options.get("cutmix", 0),
            None,
            options.get("mixup_prob", 1),
            0.5,
            mode,
            True,
            0,
            5,
        )
        shares = set()
        for step in range(12):
            found = mixed(views, pictures, step)
            bits = Draws.for_batch(3, step).split(1).bits("mixup", 2)[0, 1].item() % 2**64
            np.random.seed([bits % 2**32, bits >> 32])
            pixels, targets = own(plain["pixel_values"].clone(), plain["labels"])
            assert torch.equal(found["pixel_values"], pixels) and torch.equal(found["labels"], targets)
            assert found["labels"].shape == (8, 5) and found["labels"].dtype == torch.float32
            torch.testing.assert_close(found["labels"].sum(1), torch.ones(8))
            shares |= set(targets.max(1).values.tolist())
        assert len(shares) > 3

    def test_share_is_that_of_the_pasted_area(self):
        """Also where the box was cut off at the border."""
        views, white = make_views(cutmix=1.0), torch.full((COUNT, 3, SIDE, SIDE), 255, dtype=torch.uint8)
        white[4:] = 0
        views.config.view.crop = "resize"
        for step in range(10):
            found = mixed(views, white, step)
            share = (found["pixel_values"][0, 0] > 0).float().mean().item()
            assert found["labels"][0, 0].item() == pytest.approx(share, abs=1e-6)  # of the labels 0 and 2

    def test_draws_are_those_of_the_step(self, pictures):
        views = make_views(mixup=0.8, cutmix=1.0)
        random.seed(1), np.random.seed(1)
        first, state = mixed(views, pictures), np.random.get_state()[1].tolist()
        random.seed(2), np.random.seed(1)
        assert torch.equal(first["pixel_values"], mixed(views, pictures)["pixel_values"])
        assert np.random.get_state()[1].tolist() == state
        assert not torch.equal(first["pixel_values"], mixed(views, pictures, step=1)["pixel_values"])
        assert views.needs_batch_draws and not make_views().needs_batch_draws
        with pytest.raises(ValueError, match="give `draws`"):
            views({**read(None, pictures, KEYS[:4])})

    def test_no_value_is_read(self):
        """On tensors without values, but for the draws, which are the host's."""
        views, index = make_views(mixup=0.8, cutmix=1.0, erase=0.5), torch.arange(8, device="meta")
        images = torch.empty(8, 3, SIDE, SIDE, dtype=torch.uint8, device="meta")
        batch = {"images": images, "index": index, "epoch": index, "labels": index}
        for step in range(6):
            assert views(batch, Draws.for_batch(0, step))["labels"].shape == (8, 5)


@pytest.mark.parametrize(
    "options",
    [{"mixup": -0.1}, {"cutmix": float("inf")}, {"mixup_prob": 1.1}, {"mixup_switch_prob": -1}, {"mixup_mode": "all"}],
)
def test_options_that_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ClassificationViewsConfig(**options)
