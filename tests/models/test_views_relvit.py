import random
from itertools import combinations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from transformers import ViTConfig

from hf_ssl.models.relvit.configuration_relvit import RelViTConfig
from hf_ssl.models.relvit.views_relvit import (
    PatchAugmentation,
    RelViTViews,
    RelViTViewsConfig,
    augment_patches,
    draw_patch_augmentation,
    mega_patch_bands,
    mega_patches,
    parse_patch_augmentation,
    replace_by_noise,
)
from hf_ssl.views import Draws


ALL_OPERATIONS = "colJitter:0.8-grayScale:0.3-randomNoise:0.3"
OPERATIONS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
MEAN, STD = [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2761]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_views(seed=5, patch_size=8, model=None, **config):
    backbone = ViTConfig(
        hidden_size=36,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=patch_size,
    )
    return RelViTViews(RelViTViewsConfig(**config), RelViTConfig(backbone_config=backbone, **(model or {})), seed)


def pictures(count, height=32, width=32):
    """Smooth color gradients with noise: unlike pure noise they stay apart when shrunk."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    waves = torch.rand(count, 3, 3, 1, 1, generator=generator()) * 9
    images = (torch.sin(waves[:, 0] * y + waves[:, 1] * x + waves[:, 2]) + 1) * 110
    return (images + torch.rand(images.shape, generator=generator(1)) * 35).to(torch.uint8)


def make_batch(count=6, height=40, width=47, epoch=3):
    images = pictures(count, height, width)
    return {"images": images, "index": torch.arange(count) * 10 + 7, "epoch": torch.full((count,), epoch)}


def draws(count, seed=0):
    index = torch.arange(count)
    return Draws.for_samples(seed, torch.zeros_like(index), index)


def cut(image, size):
    """The patches of an image, row by row."""
    rows, columns = range(0, image.shape[-2], size), range(0, image.shape[-1], size)
    return [image[:, y : y + size, x : x + size] for y in rows for x in columns]


def paste(patches, columns):
    lines = [torch.cat(patches[i : i + columns], dim=2) for i in range(0, len(patches), columns)]
    return torch.cat(lines, dim=1)


def augment_one(patch, augmentation, i):
    """One patch by torchvision."""
    side = patch.shape[-1]
    top, left, height, width, flip = augmentation.crop[i].tolist()
    assert not flip
    patch = TF.resized_crop(patch, top, left, height, width, [side, side], antialias=True)
    if augmentation.colors.jitter_apply is not None and augmentation.colors.jitter_apply[i]:
        factors = augmentation.colors.jitter_factors[i].tolist()
        for operation in augmentation.colors.jitter_order[i].tolist():
            patch = OPERATIONS[operation](patch, factors[operation])
    if augmentation.colors.gray_apply is not None and augmentation.colors.gray_apply[i]:
        patch = TF.rgb_to_grayscale(patch, num_output_channels=3)
    return patch


def mega_one(image, row_cuts, column_cuts, size, antialias):
    """Mega-patches of one image: every rectangle is sliced and resized on its own."""
    tiles = []
    row_lines = [0, *sorted(c * size for c in row_cuts), image.shape[-2]]
    column_lines = [0, *sorted(c * size for c in column_cuts), image.shape[-1]]
    for top, bottom in zip(row_lines, row_lines[1:], strict=False):
        for left, right in zip(column_lines, column_lines[1:], strict=False):
            rectangle = image[None, :, top:bottom, left:right]
            tiles += F.interpolate(
                rectangle, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias
            )
    return paste(tiles, len(column_lines) - 1)


def assert_close(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_same(actual, expected):
    """The same dict of tensors, bit for bit."""
    assert actual.keys() == expected.keys()
    for name in actual:
        assert torch.equal(actual[name], expected[name]), name


class TestNotation:
    def test_reads(self):
        assert parse_patch_augmentation("colJitter:0.8-grayScale:0.2") == {"colJitter": 0.8, "grayScale": 0.2}
        assert parse_patch_augmentation("grayScale-randomNoise:1-colJitter") == {
            "grayScale": 0.2,
            "randomNoise": 1.0,
            "colJitter": 0.8,
        }
        assert parse_patch_augmentation("centCrop-grayScale:0") == {"centCrop": None, "grayScale": 0.0}
        assert parse_patch_augmentation("none") == parse_patch_augmentation("None") == {}

    @pytest.mark.parametrize("notation", ["blur", "colJitter:0.8-blur:0.1", "", "coljitter", "none-colJitter"])
    def test_unknown_operations(self, notation):
        with pytest.raises(
            ValueError, match="the operations are centCrop, colJitter, grayScale, randomNoise, or 'none'"
        ):
            parse_patch_augmentation(notation)

    @pytest.mark.parametrize("number", ["1.5", "x", "nan", "0.8:0.2", "inf"])
    def test_bad_probabilities(self, number):
        with pytest.raises(ValueError, match=f"'{number}' is not a probability between 0 and 1"):
            parse_patch_augmentation(f"colJitter:{number}")


@pytest.mark.parametrize(
    "field,value,message",
    [
        (
            "image_augmentation",
            "crop",
            "image_augmentation='crop' is unknown; use one of random_resized_crop, padded_crop",
        ),
        ("patch_augmentation_space", "lab", "patch_augmentation_space='lab' is unknown; use one of normalized, pixel"),
        ("patch_augmentation", "blur", "names 'blur'"),
        ("image_mean", [0.5], "image_mean=.* must hold three numbers"),
        ("image_std", [0.5] * 4, "image_std=.* must hold three numbers"),
    ],
)
def test_config_errors(field, value, message):
    with pytest.raises(ValueError, match=message):
        RelViTViewsConfig(**{field: value})


class TestDraws:
    @pytest.mark.parametrize("size,side", [(2, 2), (4, 3), (8, 7), (16, 14), (32, 28)])
    def test_crops(self, size, side):
        crop = draw_patch_augmentation(draws(200), {"grayScale": 0.2}, num_patches=9, patch_size=size).crop
        assert crop.shape == (1800, 5)
        assert (crop[:, 2:4] == side).all() and (crop[:, 4] == 0).all()
        for axis in (0, 1):
            assert crop[:, axis].unique().tolist() == list(range(size - side + 1))
        assert len(crop.unique(dim=0)) == (size - side + 1) ** 2

    @pytest.mark.parametrize(
        "size,square,offset", [(2, 2, 0), (4, 4, 0), (8, 7, 0), (16, 14, 1), (28, 25, 2), (32, 28, 2)]
    )
    def test_central_crops(self, size, square, offset):
        image = torch.empty(1, size, size)
        reference = TF.center_crop(torch.arange(size * size).view(1, size, size), [square, square])
        assert reference[0, 0, 0] == offset * size + offset  # torchvision's central square begins at the offset
        side = RandomResizedCrop.get_params(image[:, :square, :square], [0.85, 0.85], [1.0, 1.0])[2]
        crop = draw_patch_augmentation(draws(400), {"centCrop": None}, num_patches=4, patch_size=size).crop
        assert (crop[:, 2:4] == side).all() and (crop[:, 4] == 0).all()
        for axis in (0, 1):
            assert crop[:, axis].unique().tolist() == list(range(offset, offset + square - side + 1))

    def test_probabilities(self):
        operations = parse_patch_augmentation("colJitter:0.7-grayScale:0.1-randomNoise:0.4")
        augmentation = draw_patch_augmentation(draws(2000), operations, num_patches=16, patch_size=2)
        masks = torch.stack(
            [augmentation.colors.jitter_apply, augmentation.colors.gray_apply, augmentation.noise_apply]
        )
        for mask, p in zip(masks, (0.7, 0.1, 0.4), strict=True):
            assert stats.binomtest(int(mask.sum()), len(mask), p).pvalue > 1e-3
        assert (torch.corrcoef(masks.double()) - torch.eye(3)).abs().max() < 5 / masks.shape[1] ** 0.5

    @pytest.mark.parametrize("p", [0, 1])
    def test_never_and_always(self, p):
        operations = parse_patch_augmentation(f"colJitter:{p}-grayScale:{p}-randomNoise:{p}")
        augmentation = draw_patch_augmentation(draws(50), operations, num_patches=16, patch_size=4)
        for mask in (augmentation.colors.jitter_apply, augmentation.colors.gray_apply, augmentation.noise_apply):
            assert mask is None if p == 0 else mask.shape == (800,) and mask.all()

    def test_operations_that_are_not_named_are_not_drawn(self):
        augmentation = draw_patch_augmentation(draws(5), {"grayScale": 0.5}, num_patches=4, patch_size=4)
        assert augmentation.colors.jitter_apply is None and augmentation.noise_apply is None

    def test_jitter_and_noise(self):
        operations = parse_patch_augmentation(ALL_OPERATIONS)
        augmentation = draw_patch_augmentation(draws(1000), operations, num_patches=16, patch_size=2)
        factors = augmentation.colors.jitter_factors.double().numpy()
        for column, low, width in ((0, 0.6, 0.8), (1, 0.6, 0.8), (2, 0.6, 0.8), (3, -0.1, 0.2)):
            assert stats.kstest(factors[:, column], stats.uniform(low, width).cdf).pvalue > 1e-3
        assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 5 / len(factors) ** 0.5
        counts = augmentation.colors.jitter_order.unique(dim=0, return_counts=True)[1]
        assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > 1e-3
        assert augmentation.noise.shape == (16_000, 3, 2, 2)
        assert stats.kstest(augmentation.noise.flatten().numpy(), "norm").pvalue > 1e-3


class TestAugmentPatches:
    @pytest.mark.parametrize("values", ["pixels", "normalized"])
    @pytest.mark.parametrize("size", [4, 8, 14])
    @pytest.mark.parametrize("notation", [ALL_OPERATIONS, "colJitter:1", "grayScale:0.5", "centCrop-colJitter:0.5"])
    def test_equals_torchvision(self, notation, size, values):
        patches = torch.rand(64, 3, size, size, generator=generator())
        if values == "normalized":
            patches = TF.normalize(patches, MEAN, STD)
        augmentation = draw_patch_augmentation(draws(4), parse_patch_augmentation(notation), 16, size)
        expected = torch.stack([augment_one(patch, augmentation, i) for i, patch in enumerate(patches)])
        assert_close(augment_patches(patches, augmentation), expected, 5e-6)

    def test_noise(self):
        patches, noise = torch.zeros(4, 3, 2, 2), torch.randn(4, 3, 2, 2, generator=generator())
        crop = torch.tensor([[0, 0, 2, 2, 0]] * 4)
        assert replace_by_noise(patches, PatchAugmentation(crop)) is patches
        apply = torch.tensor([True, False, False, True])
        replaced = replace_by_noise(patches, PatchAugmentation(crop, noise_apply=apply, noise=noise))
        assert torch.equal(replaced[apply], noise[apply]) and (replaced[~apply] == 0).all()


class TestMegaPatches:
    @pytest.mark.parametrize("antialias", [False, True])
    def test_equals_a_loop(self, antialias):
        images = TF.normalize(torch.rand(4, 3, 28, 28, generator=generator()), MEAN, STD)
        rows = torch.tensor([[1, 2, 3], [6, 1, 4], [5, 2, 6], [3, 4, 1]])
        columns = torch.tensor([[2, 4, 6], [1, 2, 5], [6, 5, 4], [3, 4, 1]])
        cut_up = mega_patches(images, rows, columns, 4, antialias)
        assert cut_up.shape == (4, 3, 16, 16)
        for i in range(4):
            expected = mega_one(images[i], rows[i].tolist(), columns[i].tolist(), 4, antialias)
            assert_close(cut_up[i], expected, 1e-5)

    def test_as_many_bands_as_cells_changes_nothing(self):
        images = torch.rand(1, 3, 12, 12, generator=generator())
        assert_close(mega_patches(images, *torch.tensor([[[2, 1]]] * 2), 4), images, 1e-6)

    def test_bands_fill_the_image(self):
        cuts = draws(100).permutation("cuts", 8)[:, :4] + 1
        start, length = mega_patch_bands(cuts, cells=9, patch_size=5)
        assert start.shape == length.shape == (100, 5)
        assert (length.sum(1) == 45).all() and (length > 0).all() and (length % 5 == 0).all()
        assert (start[:, 0] == 0).all() and torch.equal(start[:, 1:], length.cumsum(1)[:, :-1])
        assert torch.equal(start[:, 1:], cuts.sort(1).values * 5)

    @pytest.mark.parametrize("bands", [2, 3, 7, 8])
    @pytest.mark.parametrize("independent", [False, True])
    def test_drawn_cuts(self, bands, independent):
        """The cuts are read off images whose values are coordinates: a tile's mean is its rectangle's center."""
        views = make_views(
            patch_size=4,
            model={"mega_patches": bands},
            patch_augmentation="none",
            mega_independent_cuts=independent,
            image_mean=[0, 0, 0],
            image_std=[1 / 255] * 3,
        )
        count = 600
        ramp = torch.arange(32, dtype=torch.uint8)
        crop = torch.stack([ramp[:, None].expand(32, 32), ramp.expand(32, 32), torch.zeros(32, 32, dtype=torch.uint8)])
        batch = {
            "crops": crop.expand(count, 3, 32, 32),
            "index": torch.arange(count),
            "epoch": torch.zeros(count).long(),
        }
        view = views(batch)["pixel_values"]
        assert view.shape == (count, 3, 4 * bands, 4 * bands)
        centers = {
            "rows": view[:, 0].view(count, bands, 4, -1).mean((2, 3)),
            "columns": view[:, 1].view(count, -1, bands, 4).mean((1, 3)),
        }
        lines = {}
        for name, center in centers.items():
            edges = [torch.zeros(count)]
            for band in range(bands):
                edges.append(2 * (center[:, band] + 0.5) - edges[-1])
            cells = torch.stack(edges, 1) / 4
            assert_close(cells, cells.round(), 1e-3)  # on grid lines
            lines[name] = cells.round().long()
            assert (lines[name].diff(dim=1) > 0).all()  # distinct, interior
            assert (lines[name][:, -1] == 8).all()  # the bands fill the image
            cuts, counts = lines[name][:, 1:-1].unique(dim=0, return_counts=True)
            assert cuts.tolist() == [list(c) for c in combinations(range(1, 8), bands - 1)]
            if len(counts) > 1:
                assert stats.chisquare(counts.numpy()).pvalue > 1e-3
        same = (lines["rows"] == lines["columns"]).all(1).double().mean()
        assert same == 1 if not independent or bands == 8 else same < 0.3

    @pytest.mark.parametrize("antialias", [False, True])
    def test_antialias_option(self, antialias):
        views = make_views(
            patch_size=4,
            model={"mega_patches": 2},
            patch_augmentation="none",
            mega_antialias=antialias,
            image_mean=MEAN,
            image_std=STD,
        )
        crops = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=generator())
        view = views({"crops": crops, "index": torch.arange(9), "epoch": torch.zeros(9).long()})["pixel_values"]
        for image, result in zip(TF.normalize(crops / 255, MEAN, STD), view, strict=True):
            candidates = [mega_one(image, [c], [c], 4, antialias) for c in range(1, 8)]
            assert min((candidate - result).abs().max() for candidate in candidates) < 1e-4


def reference(views, batch):
    """The whole pipeline by torchvision, image by image, given the drawn parameters."""
    config, results = views.config, []
    sizes = torch.tensor([batch["images"].shape[-2:]] * len(batch["index"]))
    boxes = views.boxes(batch["epoch"], batch["index"], sizes)[:, 0].tolist()
    cells = 32 // views.patch_size
    for i, (top, left, height, width, flip) in enumerate(boxes):
        image = F.pad(batch["images"][i].float(), [4] * 4) / 255
        image = TF.resized_crop(image, top + 4, left + 4, height, width, [32, 32], antialias=True)
        image = TF.hflip(image) if flip else image
        if config.patch_augmentation_space == "normalized":
            image = TF.normalize(image, config.image_mean, config.image_std)
        patches = cut(image, views.patch_size)
        augmentation = draw_patch_augmentation(
            views.draws(batch["epoch"][i : i + 1], batch["index"][i : i + 1]),
            parse_patch_augmentation(config.patch_augmentation),
            len(patches),
            views.patch_size,
        )
        for j, patch in enumerate(patches):
            patch = augment_one(patch, augmentation, j)
            if config.patch_augmentation_space == "pixel":
                patch = TF.normalize(patch, config.image_mean, config.image_std)
            if augmentation.noise_apply is not None and augmentation.noise_apply[j]:
                patch = augmentation.noise[j]
            patches[j] = patch
        results.append(paste(patches, cells))
    return torch.stack(results)


class TestPipeline:
    @pytest.mark.parametrize("space", ["normalized", "pixel"])
    @pytest.mark.parametrize("crop", ["random_resized_crop", "padded_crop"])
    @pytest.mark.parametrize("notation", ["colJitter:0.8-grayScale:0.2", ALL_OPERATIONS, "centCrop-grayScale:0.5"])
    def test_equals_torchvision(self, notation, crop, space):
        views = make_views(
            patch_augmentation=notation,
            image_augmentation=crop,
            patch_augmentation_space=space,
            image_mean=MEAN,
            image_std=STD,
        )
        batch = make_batch(height=32, width=32) if crop == "padded_crop" else make_batch()
        inputs = views(batch)
        assert inputs.keys() == {"pixel_values"}
        assert inputs["pixel_values"].dtype == torch.float32
        assert_close(inputs["pixel_values"], reference(views, batch))

    def test_no_patch_augmentation(self):
        views = make_views(patch_augmentation="none", image_mean=MEAN, image_std=STD)
        batch = make_batch()
        boxes = views.boxes(batch["epoch"], batch["index"], torch.tensor([[40, 47]] * 6))
        assert boxes.shape == (6, 1, 5)
        for image, box, result in zip(
            batch["images"], boxes[:, 0].tolist(), views(batch)["pixel_values"], strict=True
        ):
            expected = TF.resized_crop(image.float() / 255, *box[:4], [32, 32], antialias=True)
            expected = TF.normalize(TF.hflip(expected) if box[4] else expected, MEAN, STD)
            assert_close(result, expected)

    def test_normalized_space_loses_what_is_darker_than_the_mean(self):
        options = {"patch_augmentation": "colJitter:1", "image_mean": MEAN, "image_std": STD}
        faithful = make_views(**options)(make_batch())["pixel_values"]
        assert faithful.min() == 0 and faithful.max() <= 1
        assert make_views(**options, patch_augmentation_space="pixel")(make_batch())["pixel_values"].min() < -0.5

    def test_statistics(self):
        batch = make_batch()
        plain = make_views(patch_augmentation="none", image_mean=[0, 0, 0], image_std=[1, 1, 1])(batch)["pixel_values"]
        assert plain.min() >= 0 and plain.max() <= 1 and plain.max() > 0.5
        other = make_views(patch_augmentation="none", image_mean=MEAN, image_std=STD)(batch)["pixel_values"]
        assert_close(other, TF.normalize(plain, MEAN, STD), 1e-5)

    def test_labels_only_where_the_model_classifies(self):
        batch = {**make_batch(), "labels": torch.arange(6)}
        assert "labels" not in make_views()(batch)
        views = make_views(model={"tasks": ["classification", "relations"], "num_labels": 6})
        assert torch.equal(views(batch)["labels"], batch["labels"])
        assert "labels" not in views(make_batch())

    def test_shuffle(self):
        batch = make_batch(12)
        options = {"patch_augmentation": ALL_OPERATIONS}
        plain, shuffled = make_views(**options)(batch), make_views(**options, shuffle_patches=True)(batch)
        assert "patch_order" not in plain
        orders = shuffled["patch_order"]
        assert orders.dtype == torch.int64
        assert torch.equal(orders.sort(1).values, torch.arange(16).expand(12, 16))
        assert len(orders.unique(dim=0)) == 12
        for before, after, order in zip(plain["pixel_values"], shuffled["pixel_values"], orders.tolist(), strict=True):
            patches = cut(before, 8)
            assert torch.equal(after, paste([patches[i] for i in order], 4))

    @pytest.mark.parametrize("augmentation", ["none", "colJitter-grayScale"])
    def test_shuffled_mega_patches(self, augmentation):
        options = {"patch_size": 4, "model": {"mega_patches": 3}, "patch_augmentation": augmentation}
        plain = make_views(**options)(make_batch())["pixel_values"]
        shuffled = make_views(**options, shuffle_patches=True)(make_batch())
        assert shuffled["patch_order"].shape == (6, 9)
        for before, after, order in zip(
            plain, shuffled["pixel_values"], shuffled["patch_order"].tolist(), strict=True
        ):
            patches = cut(before, 4)
            assert torch.equal(after, paste([patches[i] for i in order], 3))

    def test_empty_batch(self):
        assert make_views(patch_augmentation=ALL_OPERATIONS)(make_batch(0))["pixel_values"].shape == (0, 3, 32, 32)


SETTINGS = [
    {"patch_augmentation": ALL_OPERATIONS, "shuffle_patches": True},
    {"patch_augmentation": "centCrop-colJitter", "patch_augmentation_space": "pixel"},
    {"patch_size": 4, "model": {"mega_patches": 5}, "mega_independent_cuts": True, "shuffle_patches": True},
    {"image_augmentation": "padded_crop"},
]


@pytest.mark.parametrize("options", SETTINGS)
class TestReproducibility:
    def batch(self, options, **kwargs):
        side = {"height": 32, "width": 32} if "image_augmentation" in options else {}
        return make_batch(24, **side, **kwargs)

    def test_sample_does_not_depend_on_its_batch(self, options):
        batch = self.batch(options)
        batch["epoch"] = torch.arange(24) // 8
        whole = make_views(**options)(batch)
        sizes = torch.tensor([batch["images"].shape[-2:]] * 24)
        boxes = make_views(**options).boxes(batch["epoch"], batch["index"], sizes)
        for chosen in (torch.randperm(24, generator=generator()), torch.tensor([3]), torch.arange(5, 16)):
            sub = {name: values[chosen] for name, values in batch.items()}
            part = make_views(**options)(sub)
            assert part.keys() == whole.keys()
            # Decisions are equal bit for bit, pixels up to the rounding of vectorized arithmetic.
            assert torch.equal(make_views(**options).boxes(sub["epoch"], sub["index"], sizes[chosen]), boxes[chosen])
            if "patch_order" in whole:
                assert torch.equal(part["patch_order"], whole["patch_order"][chosen])
            assert_close(part["pixel_values"], whole["pixel_values"][chosen], 1e-5)

    def test_same_batch_gives_the_same_bits(self, options):
        assert_same(make_views(**options)(self.batch(options)), make_views(**options)(self.batch(options)))

    def test_epoch_and_seed_change_every_view(self, options):
        first = make_views(**options)(self.batch(options))["pixel_values"]
        later = make_views(**options)(self.batch(options, epoch=4))["pixel_values"]
        seeded = make_views(seed=6, **options)(self.batch(options))["pixel_values"]
        for other in (later, seeded):
            assert ((first - other).abs().amax((1, 2, 3)) > 0.1).all()

    def test_same_image_at_another_index_gets_another_view(self, options):
        batch = self.batch(options)
        batch["images"] = batch["images"][:1].expand_as(batch["images"])
        views = make_views(**options)(batch)["pixel_values"]
        assert len(views.flatten(1).unique(dim=0)) == 24

    def test_global_generators_are_not_touched(self, options):
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
        first = make_views(**options)(self.batch(options))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        np.testing.assert_array_equal(np.random.get_state()[1], before[2])
        assert np.random.get_state()[2] == before[3]
        torch.manual_seed(1)
        assert_same(make_views(**options)(self.batch(options)), first)

    def test_batch_is_left_alone(self, options):
        batch = self.batch(options)
        make_views(**options)(batch)
        assert_same(batch, self.batch(options))


class TestRenderers:
    @pytest.mark.parametrize("height,width", [(40, 47), (90, 64), (20, 20), (7, 130)])
    def test_renderers_agree(self, height, width):
        views = make_views(patch_augmentation="none", image_mean=[0, 0, 0], image_std=[1, 1, 1])
        batch = make_batch(12, height, width)
        on_device = views(batch)["pixel_values"]
        boxes = views.boxes(batch["epoch"], batch["index"], torch.tensor([[height, width]] * 12))
        photos = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch["images"]]
        rendered = [views.render(photo, box) for photo, box in zip(photos, boxes, strict=True)]
        assert all(crop.keys() == {"crops"} and crop["crops"].dtype == torch.uint8 for crop in rendered)
        crops = torch.stack([crop["crops"] for crop in rendered])
        assert crops.shape == (12, 3, 32, 32)
        in_worker = views({"crops": crops, "index": batch["index"], "epoch": batch["epoch"]})["pixel_values"]
        # Crops made in a worker are rounded to whole numbers after each of the two axes.
        assert_close(on_device, in_worker, 1.2 / 255)
        assert (on_device - in_worker).abs().mean() < 0.5 / 255

    def test_crops_are_augmented_like_images(self):
        views = make_views(patch_augmentation=ALL_OPERATIONS, patch_augmentation_space="pixel", shuffle_patches=True)
        index, epoch = torch.arange(3), torch.ones(3).long()
        flat = torch.tensor([40, 120, 200], dtype=torch.uint8)[None, :, None, None].expand(3, 3, 32, 32)
        first = views({"crops": flat, "index": index, "epoch": epoch})
        second = views({"images": flat, "index": index, "epoch": epoch})
        assert torch.equal(first["patch_order"], second["patch_order"])
        assert_close(first["pixel_values"], second["pixel_values"])

    def test_padded_crop_wants_images_of_the_models_size(self):
        views = make_views(image_augmentation="padded_crop")
        with pytest.raises(ValueError, match="needs images of 32x32 pixels, these have 40x47"):
            views(make_batch())
        with pytest.raises(ValueError, match="needs images of 32x32 pixels, these have 40x47"):
            views.render(Image.new("RGB", (47, 40)), torch.zeros(1, 5, dtype=torch.int64))

    def test_other_images_are_refused(self):
        batch = make_batch()
        with pytest.raises(TypeError, match="images have dtype torch.float32; give torch.uint8"):
            make_views()(batch | {"images": batch["images"].float()})
        with pytest.raises(ValueError, match=r"images have shape \(6, 1, 40, 47\)"):
            make_views()(batch | {"images": batch["images"][:, :1]})

    @pytest.mark.parametrize("images_in_a_block", [1, 4, 5, 6])
    def test_blocks(self, images_in_a_block, monkeypatch):
        views = make_views(patch_augmentation=ALL_OPERATIONS, shuffle_patches=True, model={"mega_patches": 3})
        expected = views(make_batch())
        monkeypatch.setattr("hf_ssl.views.pipeline._BLOCK_ON_CPU", images_in_a_block * 3 * 40 * 47)
        found = views(make_batch())
        assert torch.equal(found["patch_order"], expected["patch_order"])
        assert_close(found["pixel_values"], expected["pixel_values"], 1e-5)

    def test_autocast_changes_nothing(self):
        expected = make_views()(make_batch())
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(make_views()(make_batch()), expected)

    def test_padded_boxes(self):
        batch = make_batch(300, 32, 32)
        boxes = make_views(image_augmentation="padded_crop").boxes(
            batch["epoch"], batch["index"], torch.tensor([[32, 32]] * 300)
        )[:, 0]
        assert boxes[:, :2].unique().tolist() == list(range(-4, 5))
        assert (boxes[:, 2:4] == 32).all() and boxes[:, 4].unique().tolist() == [0, 1]


def test_no_draw_is_used_twice(monkeypatch):
    """Two decisions that read the same name of the same key would be the same numbers."""
    from hf_ssl.views import Draws

    names = []
    bits = Draws.bits
    monkeypatch.setattr(Draws, "bits", lambda self, name, *shape: names.append(name) or bits(self, name, *shape))
    backbone = ViTConfig(
        hidden_size=36, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
    )
    for crop in ("padded_crop", "random_resized_crop"):
        names.clear()
        config = RelViTViewsConfig(
            image_augmentation=crop,
            patch_augmentation="colJitter-grayScale-randomNoise",
            shuffle_patches=True,
            mega_independent_cuts=True,
        )
        views = RelViTViews(config, RelViTConfig(backbone_config=backbone, mega_patches=3))
        index = torch.arange(3)
        views({"images": torch.zeros(3, 3, 32, 32, dtype=torch.uint8), "index": index, "epoch": index * 0})
        assert len(names) > 8 and len(set(names)) == len(names)
