"""APS's views, and its sampling of patches."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTConfig

from hf_ssl import APSConfig, sample_patches
from hf_ssl.models.aps import APSViews, APSViewsConfig
from hf_ssl.views import Draws, MultiViewPipeline, View, overlap_ratio


# How far a frequency may lie from its expectation, in standard errors; all seeds are fixed.
SIGMAS = 5


def rows(count, seed=0, kind=Draws, device="cpu"):
    index = torch.arange(count, device=device)
    return kind(Draws.for_samples(seed, torch.zeros_like(index), index, view=2).keys)


class Spy(Draws):
    """Draws that keep the weights that they choose by."""

    def weighted_choice(self, name, weights, count):
        self.weights = weights
        return super().weighted_choice(name, weights, count)


# ---- sampling ----


@st.composite
def inside(draw, top, left, height, width):
    """A box within another, without its flip."""
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    return [top + draw(st.integers(0, height - h)), left + draw(st.integers(0, width - w)), h, w]


@st.composite
def pairs(draw):
    """Two boxes of an image: any two, equal ones, one inside of the other, or two far apart; mirrored or not."""
    first = draw(inside(0, 0, 40, 40))
    kinds = [inside(0, 0, 40, 40), st.just(first), inside(*first), inside(0, 60, 40, 40)]
    boxes = draw(st.permutations([first, draw(draw(st.sampled_from(kinds)))]))
    return [[*box, draw(st.integers(0, 1))] for box in boxes]


SIDES = st.integers(2, 10)
POWERS = st.sampled_from([0, 1, 3, 6]) | st.floats(0, 6)


@st.composite
def problems(draw, max_size=4):
    """The arguments of `sample_patches` but the draws, and a seed for them."""
    boxes = torch.tensor(draw(st.lists(pairs(), min_size=1, max_size=max_size)))
    grid, samplings = (draw(SIDES), draw(SIDES)), draw(st.integers(1, 4))
    most = grid[0] * grid[1] // samplings
    count = draw(st.just(most) | st.integers(1, most))
    return (boxes, grid, samplings, count, draw(POWERS), draw(st.booleans())), draw(st.integers(0, 2**31))


def sample(problem, draws):
    boxes, *others = problem
    return sample_patches(boxes, draws, *others)


def cells(box, grid, flip_aware):
    """The rectangles of a view's patches, in whole numbers: units of 1/rows and 1/columns of a pixel."""
    (top, left, height, width, flip), (grid_rows, columns) = box, grid
    for row in range(grid_rows):
        for column in range(columns):
            place = columns - 1 - column if flip and flip_aware else column
            y, x = top * grid_rows + row * height, left * columns + place * width
            yield y, x, y + height, x + width


def slow_uncovered(boxes, selected, grid, flip_aware):
    """The definition, rectangle by rectangle: the share of each second patch outside of the selected first ones."""
    first, second = (list(cells(box, grid, flip_aware)) for box in boxes)
    shares = []
    for top, left, bottom, right in second:
        area = rest = (bottom - top) * (right - left)
        for k in selected:
            height = min(bottom, first[k][2]) - max(top, first[k][0])
            width = min(right, first[k][3]) - max(left, first[k][1])
            rest -= max(height, 0) * max(width, 0)
        shares.append(rest / area)
    return shares


def slow_probabilities(boxes, selected, grid, power, flip_aware):
    weights = [share**power for share in slow_uncovered(boxes, selected, grid, flip_aware)]
    return [weight / (sum(weights) or 1) for weight in weights]


@settings(deadline=None, max_examples=60)
@given(problems())
def test_samplings_of_the_first_view_are_disjoint(problem):
    (boxes, grid, samplings, count, *_), seed = problem
    untouched = boxes.clone()
    patches = sample(problem[0], rows(len(boxes), seed))
    assert patches.shape == (samplings, 2, len(boxes), count) and patches.dtype == torch.int64
    assert patches.min() >= 0 and patches.max() < grid[0] * grid[1]
    ordered = patches.sort(-1).values
    assert (ordered[..., 1:] > ordered[..., :-1]).all(), "no patch twice"
    for of_image in patches[:, 0].unbind(1):
        assert len(of_image.unique()) == samplings * count  # all there are, if they are that many
    assert torch.equal(sample(problem[0], rows(len(boxes), seed)), patches)
    assert torch.equal(boxes, untouched)


@settings(deadline=None, max_examples=60)
@given(problems(max_size=2))
def test_second_view_is_chosen_by_what_is_uncovered(problem):
    """Patches of no uncovered share are chosen where there are too few others, and these are then all chosen."""
    (boxes, grid, samplings, count, power, flip_aware), seed = problem
    draws = rows(len(boxes), seed, Spy)
    patches = sample(problem[0], draws)
    for image in range(len(boxes)):
        for t in range(samplings):
            first, second = patches[t, :, image].tolist()
            expected = slow_probabilities(boxes[image].tolist(), first, grid, power, flip_aware)
            weights = draws.weights[image, t]
            torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
            positive = sum(p > 0 for p in expected)
            assert sum(expected[k] > 0 for k in second) == min(count, positive)


@pytest.mark.parametrize("count", [8, 11, 16])
def test_too_few_uncovered_patches(count):
    """Of equal boxes, those are uncovered that were not selected; any of the others fill up the choice."""
    boxes = torch.tensor([3, 5, 17, 22, 0]).expand(500, 2, 5)
    first, second = sample_patches(boxes, rows(500), (4, 4), 1, count, 3.0)[0]
    selected, chosen = (torch.zeros(500, 16).scatter_(1, index, 1.0) for index in (first, second))
    assert ((selected + chosen) >= 1).all()
    again = (selected * chosen).sum(1)
    assert (again == 2 * count - 16).all()
    if 8 < count < 16:
        share = (selected * chosen).sum(0) / selected.sum(0)
        error = ((2 * count - 16) / count * (16 - count) / count / selected.sum(0)) ** 0.5
        assert ((share - (2 * count - 16) / count).abs() < SIGMAS * error).all()


def test_all_is_covered():
    """The second view lies within one patch of the first: where that is selected, nothing is left to choose by."""
    boxes = torch.tensor([[0, 0, 40, 40, 0], [12, 22, 6, 7, 1]]).expand(400, 2, 5)
    draws = rows(400, kind=Spy)
    patches = sample_patches(boxes, draws, (4, 4), 4, 4, 3.0)
    covered = (patches[:, 0] == 6).any(-1).T
    assert (covered.sum(1) == 1).all() and torch.equal(draws.weights.sum(-1) == 0, covered)
    filled = torch.bincount(patches[:, 1].transpose(0, 1)[covered].flatten(), minlength=16) / 400
    assert ((filled - 0.25).abs() < SIGMAS * (0.25 * 0.75 / 400) ** 0.5).all()


def test_rounding_leaves_nothing_uncovered():
    """The second view's patches are larger: the shares of several of the first add up to 1 but for rounding."""
    boxes, draws = [[5, 17, 35, 30, 0], [0, 0, 60, 60, 0]], rows(1, kind=Spy)
    sample_patches(torch.tensor([boxes]), draws, (10, 10), 1, 100, 1.0)
    uncovered = torch.tensor(slow_uncovered(boxes, range(100), (10, 10), False))
    assert torch.equal(draws.weights[0, 0] > 0, uncovered > 0)
    assert 10 < (uncovered == 0).sum() < 90


@settings(deadline=None, max_examples=40)
@given(problems(), st.data())
def test_rows_do_not_depend_on_the_batch(problem, data):
    (boxes, *others), seed = problem
    draws = rows(len(boxes), seed)
    patches = sample_patches(boxes, draws, *others)
    order = torch.tensor(data.draw(st.permutations(range(len(boxes)))))
    assert torch.equal(sample_patches(boxes[order], Draws(draws.keys[order]), *others), patches[:, :, order])
    guests = torch.tensor(data.draw(st.lists(pairs(), min_size=1, max_size=3)))
    keys = torch.cat([rows(len(guests), seed + 1).keys, draws.keys])
    together = sample_patches(torch.cat([guests, boxes]), Draws(keys), *others)
    assert torch.equal(together[:, :, len(guests) :], patches)
    assert torch.equal(sample_patches(boxes[:1], Draws(draws.keys[:1]), *others), patches[:, :, :1])


class Mirrored(Spy):
    """The same draws, but that first views are cut into patches from right to left where `mirrored` says so."""

    def permutation(self, name, n, *shape):
        order = super().permutation(name, n, *shape)
        across = order + self.columns - 1 - 2 * (order % self.columns)
        return torch.where(self.mirrored[:, None], across, order)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_flip_aware_is_mirroring_twice(problem):
    """Columns of the selection where the first view is mirrored, columns of the result where the second one is."""
    (boxes, grid, samplings, count, power, _), seed = problem
    draws, mirrored = rows(len(boxes), seed, Spy), rows(len(boxes), seed, Mirrored)
    sample_patches(boxes, draws, grid, samplings, count, power, flip_aware=True)
    mirrored.columns, (flip1, flip2) = grid[1], (boxes[..., 4] == 1).unbind(1)
    mirrored.mirrored = flip1
    sample_patches(boxes * torch.tensor([1, 1, 1, 1, 0]), mirrored, grid, samplings, count, power)
    expected = mirrored.weights.unflatten(-1, grid)
    expected = torch.where(flip2[:, None, None, None], expected.flip(-1), expected).flatten(-2)
    torch.testing.assert_close(draws.weights, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(problems())
def test_flips_are_ignored_unless_told_otherwise(problem):
    (boxes, *others, _), seed = problem
    expected = sample_patches(boxes, rows(len(boxes), seed), *others, flip_aware=False)
    for flips in ([0, 0], [0, 1], [1, 0], [1, 1]):
        boxes = torch.cat([boxes[..., :4], torch.tensor(flips).expand(len(boxes), 2)[..., None]], -1)
        assert torch.equal(sample_patches(boxes, rows(len(boxes), seed), *others), expected)


def members(patches, count):
    """Which patches are among the sampled ones: float64 of shape `(..., count)`."""
    return torch.zeros(*patches.shape[:-1], count, dtype=torch.float64).scatter_(-1, patches, 1.0)


def assert_same_frequencies(found, expected, size):
    """Frequencies in `size` trials against a probability, or against those in as many other trials."""
    p, counted = (expected, 1) if isinstance(expected, float) else ((found + expected) / 2, 2)
    error = torch.as_tensor(counted * p * (1 - p) / size).sqrt()
    assert ((found - expected).abs() <= SIGMAS * error).all()


def test_distribution_is_that_of_numpy():
    """How often each pair of patches is sampled, one of each view; the authors choose with `numpy.random.choice`."""
    boxes, grid, count, size = [[0, 0, 24, 24, 1], [6, 3, 20, 17, 0]], (3, 4), 4, 8_000
    ours = sample_patches(torch.tensor(boxes).expand(size, 2, 5), rows(size), grid, 2, count, 3.0, flip_aware=True)
    ours = ours.transpose(1, 2).flatten(0, 1)  # (samplings of all rows, views, patches)
    covered = 1 - np.array([slow_uncovered(boxes, [k], grid, True) for k in range(12)])
    weights = (1 - covered[ours[:, 0].numpy()].sum(1)).clip(1e-12) ** 3
    generator = np.random.RandomState(0)
    theirs = [generator.choice(12, count, replace=False, p=w / w.sum()) for w in weights]
    first, second, expected = (members(x, 12) for x in (*ours.unbind(1), torch.from_numpy(np.array(theirs))))
    assert_same_frequencies(second.mean(0), expected.mean(0), 2 * size)
    assert_same_frequencies(first.T @ second / (2 * size), first.T @ expected / (2 * size), 2 * size)


def test_first_view_is_sampled_uniformly():
    boxes, size = torch.tensor([[0, 0, 24, 24, 0], [6, 3, 20, 17, 0]]), 20_000
    first = members(sample_patches(boxes.expand(size, 2, 5), rows(size), (3, 4), 3, 4, 3.0)[:, 0], 12)
    assert_same_frequencies(first.mean(1), 1 / 3, size)
    off_diagonal = ~torch.eye(12, dtype=torch.bool)
    for of_sampling in first:
        assert_same_frequencies((of_sampling.T @ of_sampling / size)[off_diagonal], 4 / 12 * 3 / 11, size)


def test_samplings_are_independent():
    """Of boxes that are apart, second views are sampled uniformly, whatever the first view and the other samplings."""
    boxes, size = torch.tensor([[0, 0, 24, 24, 0], [30, 30, 20, 17, 0]]), 20_000
    patches = sample_patches(boxes.expand(size, 2, 5), rows(size), (3, 4), 3, 4, 3.0)
    first, second = members(patches, 12).unbind(1)
    for t in range(3):
        assert_same_frequencies(second[t].mean(0), 1 / 3, size)
        for other in (first[t], first[t - 1], second[t - 1]):
            assert_same_frequencies(second[t].T @ other / size, 1 / 9, size)


def test_little_is_covered():
    """With the authors' settings for CIFAR; by their code, 3.9 % of a chosen patch are covered, and 16.4 % of any."""
    config = APSConfig(backbone_config=ViTConfig(image_size=32, patch_size=2))
    views, size = APSViews(APSViewsConfig(), config), 500
    index = torch.arange(size)
    boxes = views.view_boxes(torch.zeros_like(index), index, torch.tensor([[32, 32]]).expand(size, 2))
    chosen = {}
    for power in (0, 1, config.sampling_power, 6):
        first, second = sample_patches(boxes, rows(size), (16, 16), 4, 64, power).permute(1, 2, 0, 3)
        covered = 1 - overlap_ratio(boxes[:, :1], boxes[:, 1:], first, (16, 16))
        chosen[power] = covered.gather(-1, second).mean()
    assert chosen[3] < 0.06 and 0.12 < covered.mean() < 0.2
    assert (chosen[0] - covered.mean()).abs() < 0.005
    assert chosen[0] > chosen[1] > chosen[3] > chosen[6]


def test_no_images():
    assert sample_patches(torch.zeros(0, 2, 5, dtype=torch.int64), rows(0), (2, 3), 2, 3, 3.0).shape == (2, 2, 0, 3)


def test_nothing_is_read_back_from_the_device():
    """Tensors of the meta device have no values: reading one is an error."""
    boxes = torch.zeros(5, 2, 5, dtype=torch.int64, device="meta")
    patches = sample_patches(boxes, rows(5, device="meta"), (2, 3), 2, 3, 3.0, flip_aware=True)
    assert patches.device.type == "meta" and patches.shape == (2, 2, 5, 3)


# ---- views ----


def model_config(**overrides):
    backbone = ViTConfig(image_size=16, patch_size=4, hidden_size=12, num_attention_heads=2, num_hidden_layers=1)
    return APSConfig(backbone_config=backbone, **overrides)


def make_views(seed=0, config=None, **overrides):
    return APSViews(config or APSViewsConfig(), model_config(**overrides), seed)


def make_source_batch(size=6, epoch=0, height=24, width=20):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8, generator=generator)
    return {"images": images, "index": torch.arange(size), "epoch": torch.full((size,), epoch)}


@pytest.mark.parametrize(
    ("overrides", "samplings", "count"),
    [
        ({}, 4, 4),
        ({"sampling_ratio": 0.45, "num_samplings": 2}, 2, 7),
        ({"sampling_ratio": 1, "num_samplings": 1}, 1, 16),
    ],
)
def test_shapes(overrides, samplings, count):
    inputs = make_views(**overrides)(make_source_batch())
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in inputs.items()} == {
        "pixel_values": (torch.float32, (2, 6, 3, 16, 16)),
        "patch_indices": (torch.int64, (samplings, 2, 6, count)),
    }


def test_pixels_are_those_of_the_pipeline():
    views, batch = make_views(seed=3), make_source_batch()
    plain = MultiViewPipeline({"pixel_values": [views.config.view] * 2}, views.image_mean, views.image_std, seed=3)
    assert torch.equal(views(batch)["pixel_values"], plain(batch)["pixel_values"])


@pytest.mark.parametrize("flip_aware", [False, True])
def test_patches_are_sampled_for_the_boxes_of_the_views(flip_aware):
    """With draws of their own: views 0 and 1 of a sample are its pictures."""
    options = {"sampling_ratio": 0.45, "num_samplings": 2, "sampling_power": 1.5}
    views, batch = make_views(seed=3, **options, flip_aware=flip_aware), make_source_batch(40, epoch=5)
    boxes = views.view_boxes(batch["epoch"], batch["index"], torch.tensor([[24, 20]]).expand(40, 2))
    draws = Draws.for_samples(3, batch["epoch"], batch["index"], view=2)
    expected = sample_patches(boxes, draws, (4, 4), 2, 7, 1.5, flip_aware)
    found = views(batch)["patch_indices"]
    assert torch.equal(found, expected)
    assert not torch.equal(found, sample_patches(boxes, draws, (4, 4), 2, 7, 1.5, not flip_aware))


def numbered_patches(size):
    """Images of 4 x 4 patches, each of one shade of gray that tells its number."""
    numbers = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(size, 3, -1, -1)
    return 10 * numbers.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("flip_aware", [False, True])
def test_pixels_seen_in_both_views(flip_aware):
    """
    Of two views of the whole image, one half each, nothing is seen twice; told by what is to be seen in the patches.
    If mirrored views are not accounted for, that holds where both are mirrored or none.
    """
    config = APSViewsConfig(View(crop="resize"), image_mean=[0.0] * 3, image_std=[1 / 25.5] * 3)
    views = make_views(config=config, sampling_ratio=0.5, num_samplings=2, flip_aware=flip_aware)
    batch = make_source_batch(64) | {"images": numbered_patches(64)}
    inputs = views(batch)
    numbers = inputs["pixel_values"][:, :, 0, ::4, ::4].round().long().flatten(2)
    seen = numbers.expand(2, -1, -1, -1).gather(-1, inputs["patch_indices"])
    both = seen.transpose(1, 2).flatten(2).sort(-1).values  # (samplings, images, patches of two views)
    nothing_twice = (both == torch.arange(16)).all(-1).all(0)
    mirrored = numbers[:, :, 0] == 3
    alike = mirrored[0] == mirrored[1]
    assert all(20 < mask.sum() < 44 for mask in (*mirrored, alike))
    if flip_aware:
        assert nothing_twice.all()
    else:
        assert nothing_twice[alike].all() and nothing_twice[~alike].float().mean() < 0.2


def test_epochs_and_seeds_differ():
    """And not by the boxes alone: how first views are sampled does not depend on these."""
    views = make_views()
    found = views(make_source_batch())
    assert all(torch.equal(tensor, found[name]) for name, tensor in make_views()(make_source_batch()).items())
    for other in (views(make_source_batch(epoch=1)), make_views(seed=1)(make_source_batch())):
        assert (other["patch_indices"] != found["patch_indices"]).any(-1).any(0).all(), "of each view of each image"
        assert (other["pixel_values"] != found["pixel_values"]).flatten(2).any(-1).all()
    first = found["patch_indices"][:, 0].transpose(0, 1).flatten(1)
    assert len(first.unique(dim=0)) == 6, "each image has its own order"


def test_batches_do_not_matter():
    views, batch = make_views(), make_source_batch()
    batch["epoch"][3:] = 1
    expected = views(batch)
    for order in (torch.tensor([4, 0, 5, 2, 1, 3]), torch.tensor([5, 2]), torch.tensor([3])):
        found = views({name: values[order] for name, values in batch.items()})
        for name, tensor in found.items():
            own = expected[name].index_select(1 if name == "pixel_values" else 2, order)
            torch.testing.assert_close(tensor, own, rtol=0, atol=1e-4)


def test_photos():
    """Crops that workers cut out of photos of several sizes have the patches of the same photos as sources."""
    views, sizes = make_views(flip_aware=True), torch.tensor([[24, 20], [40, 31], [17, 50]])
    epoch, index = torch.full((3,), 2), torch.tensor([7, 0, 3])
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes.tolist()]
    boxes = views.boxes(epoch, index, sizes)
    crops = [views.render(Image.fromarray(photo), box) for photo, box in zip(photos, boxes, strict=True)]
    crops = torch.stack([crop["pixel_values_crops"] for crop in crops])
    found = views({"pixel_values_crops": crops, "boxes": boxes, "index": index, "epoch": epoch})
    assert list(found) == ["pixel_values", "patch_indices"]
    for i, photo in enumerate(photos):
        images = torch.from_numpy(photo).permute(2, 0, 1)[None]
        alone = views({"images": images, "index": index[i : i + 1], "epoch": epoch[i : i + 1]})
        assert torch.equal(found["patch_indices"][:, :, i], alone["patch_indices"][:, :, 0])


def test_mixed_precision_changes_nothing():
    views, batch = make_views(), make_source_batch(64)
    expected = views(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = views(batch)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_global_generators_are_not_touched():
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    make_views()(make_source_batch())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_draws_of_the_batch_are_not_needed():
    """Workers can make the views; draws that are given change nothing."""
    views, batch = make_views(), make_source_batch()
    assert not views.needs_batch_draws
    expected, found = views(batch), views(batch, Draws.for_batch(0, 3))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_batches_of_one_image_are_refused():
    """Batch norm has no variance of them. The trainer asks before the first step."""
    assert make_views().min_batch_size == 2


def test_size_comes_from_the_model():
    config = APSViewsConfig()
    views = make_views(config=config)
    assert views.config.view.size == 16 and config.view.size is None
    assert make_views(config=APSViewsConfig(View(size=16))).config.view.size == 16
    for size in (8, 15, 32):
        with pytest.raises(ValueError, match=f"view_size={size} is not the image_size=16"):
            make_views(config=APSViewsConfig(View(size=size)))


def test_augmentations_are_those_of_the_original():
    config = APSViewsConfig()
    expected = {"crop": "random_resized_crop", "scale": [0.15, 1.0], "ratio": [3 / 4, 4 / 3], "flip": 0.5}
    expected |= {"interpolation": "bilinear", "jitter": 0.8, "grayscale": 0.2, "grayscale_first": False}
    expected |= {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    expected |= {"blur": 0.0, "solarize": 0.0, "erase": 0.0, "size": None}
    assert {name: getattr(config.view, name) for name in expected} == expected
    assert config.image_mean == [0.4914, 0.4822, 0.4465] and config.image_std == [0.2023, 0.1994, 0.2010]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_samplings": 3, "num_sampled_patches": 6},
            "3 disjoint samplings of 6 patches cannot be made of the 4x4",
        ),
        ({"num_samplings": 0}, "0 disjoint samplings"),
        ({"num_sampled_patches": 0}, "samplings of 0 patches"),
        ({"power": -1.0}, "power=-1.0 must not be negative"),
        ({"boxes": torch.zeros(2, 2, 5, dtype=torch.int64)}, r"shape \(2, 2, 5\); 3 images need \(3, 2, 5\)"),
    ],
)
def test_arguments_of_sample_patches(changes, message):
    arguments = {
        "boxes": torch.tensor([[0, 0, 8, 8, 0]] * 2).expand(3, 2, 5),
        "draws": Draws(torch.arange(3)),
        "grid": (4, 4),
        "num_samplings": 2,
        "num_sampled_patches": 4,
        "power": 3.0,
    }
    assert sample_patches(**arguments).shape == (2, 2, 3, 4)
    with pytest.raises(ValueError, match=message):
        sample_patches(**arguments | changes)
