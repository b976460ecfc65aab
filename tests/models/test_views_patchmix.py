"""PatchMix's views, and its mixing of patches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViTConfig

from hf_ssl import PatchMixConfig, mix_patches
from hf_ssl.models.patchmix import PatchMixViews, PatchMixViewsConfig
from hf_ssl.models.patchmix.views_patchmix import mix_images, mixing_targets
from hf_ssl.views import Draws, MultiViewPipeline, View

from ..training.common import make_trainer


# ---- mixing ----


@st.composite
def mixtures(draw):
    """Group size, batch size, patch size, rows and columns that fit together, and a seed."""
    group = draw(st.integers(1, 5))
    batch = draw(st.integers(2 * group - 1, 2 * group + 4))
    rows = draw(st.integers(1, 5))
    columns = draw(st.integers(math.ceil(group / rows), 6))
    return group, batch, draw(st.integers(1, 3)), rows, columns, draw(st.integers(0, 2**31))


def make(batch, patch, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, rows * patch, columns * patch, generator=generator)
    return images, torch.randperm(rows * columns, generator=generator)


def mix_slowly(images, permutation, group, patch):
    """The definition, patch by patch: shuffle, take equal parts from the images that follow, undo the shuffling."""
    columns = images.shape[-1] // patch
    count = len(permutation) // group
    mixed = images.clone()
    for i in range(len(images)):
        for slot in range(count * group):
            source = (i + slot // count) % len(images)
            place = permutation[slot].item()
            top, left = place // columns * patch, place % columns * patch
            window = (slice(None), slice(top, top + patch), slice(left, left + patch))
            mixed[i][window] = images[source][window]
    return mixed


@settings(deadline=None, max_examples=60)
@given(mixtures())
def test_mixing_is_its_definition(mixture):
    group, batch, patch, rows, columns, seed = mixture
    images, permutation = make(batch, patch, rows, columns, seed)
    untouched = images.clone()
    mixed, to_images, to_mixed = mix_patches(images, permutation, group, patch)
    assert torch.equal(mixed, mix_slowly(images, permutation, group, patch))
    assert torch.equal(images, untouched)
    assert to_images.shape == to_mixed.shape == (batch, batch)
    # Over the batch every place has the same patches as before.
    torch.testing.assert_close(mixed.sort(0).values, images.sort(0).values, rtol=0, atol=0)


@settings(deadline=None, max_examples=60)
@given(mixtures())
def test_targets_are_what_images_share(mixture):
    """Counted in mixed images whose patches are the numbers of their images; left-over patches are not counted."""
    group, batch, _, rows, columns, seed = mixture
    numbers = torch.arange(batch).view(-1, 1, 1, 1).expand(-1, 1, rows, columns)
    _, permutation = make(batch, 1, rows, columns, seed)
    mixed, to_images, to_mixed = mix_patches(numbers, permutation, group, 1)
    counted = rows * columns // group * group
    patches = mixed.flatten(1)[:, permutation[:counted]]
    shares = torch.nn.functional.one_hot(patches, batch).float().mean(1)
    torch.testing.assert_close(to_images, shares, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(to_mixed, shares @ shares.T, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(mixtures(), st.floats(0, 0.9), st.integers(1, 4), st.data())
def test_targets_of_several_processes(mixture, smoothing, processes, data):
    group, batch = mixture[:2]
    process = data.draw(st.integers(0, processes - 1))
    keys = processes * batch
    own = slice(process * batch, (process + 1) * batch)
    plain = mixing_targets(batch, group)
    for targets, local in zip(mixing_targets(batch, group, smoothing, keys, own.start), plain, strict=True):
        assert targets.shape == (batch, keys) and targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(batch))
        expected = torch.full((batch, keys), smoothing / keys)
        expected[:, own] += (1 - smoothing) * local
        torch.testing.assert_close(targets, expected)


def test_published_weights():
    """The numbers in the paper's terms: ¼, ½, ¼ for pairs; 1/9, 2/9, 3/9, 2/9, 1/9 for three."""
    assert mixing_targets(5, 2)[1][2].tolist() == [0, 0.25, 0.5, 0.25, 0]
    assert mixing_targets(6, 3)[1][2].tolist() == pytest.approx([1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9, 0])
    assert mixing_targets(5, 2)[0][4].tolist() == [0.5, 0, 0, 0, 0.5]
    for targets in mixing_targets(4, 1, 0.1):
        torch.testing.assert_close(targets, 0.9 * torch.eye(4) + 0.025)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bfloat16])
def test_mixing_of_other_dtypes(dtype):
    images, permutation = make(4, 2, 3, 3, 0)
    images = (255 * images).to(dtype)
    mixed = mix_patches(images, permutation, 2, 2)[0]
    assert mixed.dtype == dtype and torch.equal(mixed, mix_slowly(images, permutation, 2, 2))


def test_mixing_passes_gradients():
    images, permutation = make(4, 2, 3, 3, 0)
    images.requires_grad_()
    mix_patches(images, permutation, 2, 2)[0].sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))


def test_each_view_is_mixed_on_its_own():
    images = torch.rand(3, 5, 3, 8, 8)
    orders = torch.stack([torch.randperm(16) for _ in range(3)])
    mixed = mix_images(images, orders, 2, 2)
    for view in range(3):
        assert torch.equal(mixed[view], mix_images(images[view], orders[view], 2, 2))


@pytest.mark.parametrize(
    ("batch", "side", "patches", "group", "message"),
    [
        (4, 9, 4, 2, "9x9 pixels cannot be cut into patches of 4"),
        (4, 8, 5, 2, r"shape \(5,\); 2x2 patches need \(4,\)"),
        (4, 8, 4, 0, "group_size=0 must be at least 1"),
        (4, 8, [0, 1, 1, 3], 2, r"permutation=\[0, 1, 1, 3\] does not name each of the 4 patches once"),
        (4, 8, 4, 3, "batch of 4 images is too small.*group_size=3.*at least 5 images"),
        (9, 8, 4, 5, "2x2 patches cannot be shared among group_size=5 images"),
    ],
)
def test_mistakes_are_explained(batch, side, patches, group, message):
    with pytest.raises(ValueError, match=message):
        order = torch.tensor(patches) if isinstance(patches, list) else torch.arange(patches)
        mix_patches(torch.zeros(batch, 3, side, side), order, group, 4)


def test_images_of_other_shapes():
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\); give \(batch_size"):
        mix_patches(torch.zeros(3, 8, 8), torch.arange(4), 2, 4)
    with pytest.raises(ValueError, match="8x8 pixels cannot be cut into patches of 0"):
        mix_patches(torch.zeros(3, 3, 8, 8), torch.arange(4), 2, 0)


def test_groups_of_one_are_copies():
    images = torch.rand(2, 3, 8, 8)
    mixed, to_images, _ = mix_patches(images, torch.randperm(4), 1, 4)
    assert torch.equal(mixed, images) and mixed.data_ptr() != images.data_ptr()
    assert torch.equal(to_images, torch.eye(2))


# ---- views ----


def model_config(**overrides):
    backbone = ViTConfig(image_size=16, patch_size=4, hidden_size=12, num_attention_heads=2, num_hidden_layers=1)
    return PatchMixConfig(backbone_config=backbone, **{"num_local_views": 3, **overrides})


def make_views(seed=0, **overrides):
    config = PatchMixViewsConfig()
    config.local.size = 8
    return PatchMixViews(config, model_config(**overrides), seed)


def make_source_batch(size=6, epoch=0):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, 24, 20), dtype=torch.uint8, generator=generator)
    return {"images": images, "index": torch.arange(size), "epoch": torch.full((size,), epoch)}


def test_shapes():
    inputs = make_views()(make_source_batch(), Draws.for_batch(0, 0))
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    large, small = (2, 6, 3, 16, 16), (3, 6, 3, 8, 8)
    assert shapes == {
        "pixel_values": large,
        "mixed_pixel_values": large,
        "local_pixel_values": small,
        "mixed_local_pixel_values": small,
    }
    assert all(tensor.dtype == torch.float32 for tensor in inputs.values())
    inputs = make_views(num_local_views=0)(make_source_batch(), Draws.for_batch(0, 0))
    assert list(inputs) == ["pixel_values", "mixed_pixel_values"]


def test_unmixed_views_are_those_of_the_pipeline():
    """They do not depend on the step; the mixed ones are theirs, mixed by a permutation of each view."""
    views, batch = make_views(), make_source_batch()
    inputs = views(batch, Draws.for_batch(0, 3))
    plain = MultiViewPipeline(views.views, views.image_mean, views.image_std, 0)(batch)
    for name in ("pixel_values", "local_pixel_values"):
        assert torch.equal(inputs[name], plain[name])
        for view, mixed in zip(inputs[name], inputs[f"mixed_{name}"], strict=True):
            sources = torch.stack([view, view.roll(-1, 0)])
            same = (mixed == sources).all(2)
            share = same.flatten(2).float().mean(-1)
            assert ((same[0] | same[1]).all()) and (share >= 0.5).all(), "half of each image, half of the next"


def permutations(inputs, name):
    """Which patches stay, in each view: `(num_views, rows * columns)`."""
    stays = (inputs[name] == inputs[f"mixed_{name}"]).all(2).all(1)
    return stays[:, ::4, ::4].flatten(1)


def test_permutations_differ_between_views_and_steps():
    views, batch = make_views(), make_source_batch()
    steps = [views(batch, Draws.for_batch(0, *place)) for place in ((0,), (0,), (1,), (0, 1), (0, 0, 1))]
    found = [permutations(inputs, "pixel_values") for inputs in steps]
    assert torch.equal(found[0], found[1]), "the same step is mixed the same way"
    assert all(not torch.equal(found[0], other) for other in found[2:]), "step, micro-batch, process"
    assert not torch.equal(found[0][0], found[0][1]), "each view has its own"
    assert found[0].sum(1).tolist() == [8, 8]
    local = permutations(steps[0], "local_pixel_values")
    assert not torch.equal(local[0], local[1]) or not torch.equal(local[0], local[2])


def test_all_places_are_as_likely():
    views, batch = make_views(num_local_views=0), make_source_batch(3)
    stays = torch.stack([permutations(views(batch, Draws.for_batch(0, s)), "pixel_values") for s in range(300)])
    assert (stays.float().mean((0, 1)) - 0.5).abs().max() < 5 * (0.25 / 600) ** 0.5


def test_draws_of_the_batch_are_needed(tmp_path):
    views = make_views()
    with pytest.raises(ValueError, match="give `draws`"):
        views(make_source_batch())
    with pytest.raises(ValueError, match="augment_on='workers' is not possible"):
        make_trainer(tmp_path, views=views, augment_on="workers", dataloader_num_workers=1)


def test_a_batch_that_is_too_small(tmp_path):
    """Said before the first step, the last batch of an epoch included."""
    views = make_views(group_size=3)
    with pytest.raises(ValueError, match=r"batch of 2 images is too small.*at least 5"):
        views(make_source_batch(2), Draws.for_batch(0, 0))
    with pytest.raises(ValueError, match="per_device_train_batch_size=4 is too small: these views need at least 5"):
        make_trainer(tmp_path, views=views, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match="last batch of an epoch has 4 of 40 images.*--dataloader_drop_last true"):
        make_trainer(tmp_path, views=views, per_device_train_batch_size=9, dataloader_drop_last=False)
    make_trainer(tmp_path, views=views, per_device_train_batch_size=9)
    make_trainer(tmp_path, views=views, per_device_train_batch_size=7, dataloader_drop_last=False)  # the last has 5


def test_sizes_come_from_the_model():
    views = make_views()
    assert views.config.global1.size == views.config.global2.size == 16 and views.config.local.size == 8
    config = PatchMixViewsConfig(global1=View(size=12), global2=View(size=12))
    assert PatchMixViews(config, model_config(num_local_views=0)).views["pixel_values"][0].size == 12


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (
            PatchMixViewsConfig(),
            {},
            "Small views of 96 pixels are larger than the large ones, of 16: set --local_size",
        ),
        (PatchMixViewsConfig(local=View()), {}, None),
        (PatchMixViewsConfig(local=View(size=10)), {}, "local view of 10 pixels.*patch_size=4.*--local_size"),
        (PatchMixViewsConfig(local=View(size=4)), {}, "local view of 4 pixels.*group_size=2"),
        (PatchMixViewsConfig(global2=View(size=12), local=View(size=8)), {}, r"sizes \[16, 12\]"),
        (PatchMixViewsConfig(local=View(size=10)), {"num_local_views": 0}, None),
        (
            PatchMixViewsConfig(global1=View(size=10), global2=View(size=10)),
            {"num_local_views": 0},
            "global view of 10",
        ),
    ],
)
def test_sizes_have_to_fit(config, overrides, message):
    if message is None:
        PatchMixViews(config, model_config(**overrides))
    else:
        with pytest.raises(ValueError, match=message):
            PatchMixViews(config, model_config(**overrides))


def test_augmentations_are_those_of_the_original():
    """The table of operations: probabilities, strengths, sizes of crops."""
    config = PatchMixViewsConfig()
    common = {"crop": "random_resized_crop", "interpolation": "bicubic", "flip": 0.5, "ratio": [3 / 4, 4 / 3]}
    common |= {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2}
    common |= {"grayscale_first": False, "blur_sigma": [0.1, 2.0], "erase": 0.0}
    own = {
        "global1": {"scale": [0.35, 1.0], "blur": 1.0, "solarize": 0.0, "size": None},
        "global2": {"scale": [0.35, 1.0], "blur": 0.1, "solarize": 0.2, "size": None},
        "local": {"scale": [0.05, 0.35], "blur": 0.5, "solarize": 0.0, "size": 96},
    }
    for name, values in own.items():
        found = vars(getattr(config, name))
        for key, value in {**common, **values}.items():
            assert found[key] == value, (name, key)
