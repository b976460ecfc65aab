import random

import pytest
import timm
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomCrop, RandomErasing, RandomResizedCrop

from hf_ssl.views import (
    Draws,
    center_crop,
    random_erasing,
    random_flip,
    random_padded_crop,
    random_resized_crop,
    random_square_crop,
    resample,
    resample_each,
    whole_image,
)


SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
ERASED, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's


def draws(count, seed=0):
    index = torch.arange(count)
    return Draws.for_samples(seed, torch.zeros_like(index), index)


def sizes(count, height, width):
    return torch.tensor([[height, width]]).expand(count, 2)


def torchvision_boxes(count, height, width, scale=SCALE, ratio=RATIO):
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    params = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    return torch.tensor(params)


def statistics(boxes, height, width):
    top, left, h, w = boxes[:, :4].double().unbind(1)
    # Positions as shares of the free room; boxes that fill the image have none.
    return {
        "area": h * w / (height * width),
        "ratio": w / h,
        "height": h,
        "width": w,
        "top": top,
        "left": left,
        "bottom": top + h,
        "right": left + w,
        "place": (top / (height - h))[h < height],
    }


@pytest.mark.parametrize(
    "height,width,scale,ratio",
    [
        (300, 200, SCALE, RATIO),
        (224, 224, SCALE, RATIO),
        (150, 500, (0.3, 1.0), RATIO),  # most tries fail: the ratio of the image is out of reach
        (200, 300, (0.05, 0.4), (0.5, 2.0)),
    ],
)
def test_distribution_is_that_of_torchvision(height, width, scale, ratio):
    count = 4000
    ours = random_resized_crop(draws(count), sizes(count, height, width), scale, ratio)
    theirs = torchvision_boxes(count, height, width, scale, ratio)
    expected = statistics(theirs, height, width)
    for name, values in statistics(ours, height, width).items():
        assert stats.ks_2samp(values.numpy(), expected[name].numpy()).pvalue > 1e-3, name


def test_area_and_position_are_independent_draws():
    boxes = random_resized_crop(draws(5000), sizes(5000, 1000, 1000), (0.1, 0.2)).double()
    place = boxes[:, :2] / (1000 - boxes[:, 2:4])
    share, ratio = boxes[:, 2] * boxes[:, 3], boxes[:, 3] / boxes[:, 2]
    correlations = torch.corrcoef(torch.stack([place[:, 0], place[:, 1], share, ratio, boxes[:, 4]]))
    assert (correlations - torch.eye(5)).abs().max() < 5 / 5000**0.5


SIDES = st.one_of(st.integers(1, 4), st.integers(1, 64), st.integers(1, 3000))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    SIDES, SIDES, st.sampled_from([SCALE, (0.01, 0.02), (1.0, 1.0)]), st.sampled_from([RATIO, (1.0, 1.0), (0.1, 10.0)])
)
def test_boxes_lie_inside_the_image(height, width, scale, ratio):
    boxes = random_resized_crop(draws(100), sizes(100, height, width), scale, ratio)
    top, left, h, w, flip = boxes.unbind(1)
    assert boxes.dtype == torch.int64 and boxes.shape == (100, 5)
    assert (h >= 1).all() and (w >= 1).all()
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    assert ((flip == 0) | (flip == 1)).all()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(SIDES, SIDES, st.sampled_from([RATIO, (1.0, 1.0), (0.5, 2.0)]))
def test_fallback_is_that_of_torchvision(height, width, ratio):
    scale = (4.0, 4.0)  # four times the image: every try fails
    expected = torchvision_boxes(1, height, width, scale, ratio)
    assert torch.equal(
        random_resized_crop(draws(3), sizes(3, height, width), scale, ratio)[:, :4], expected.expand(3, 4)
    )


@pytest.mark.parametrize("height,width", [(1, 500), (500, 1), (2, 999), (1, 1), (1, 2)])
def test_very_elongated_images(height, width):
    ours = random_resized_crop(draws(200), sizes(200, height, width))[:, :4].unique(dim=0)
    assert torch.equal(ours, torchvision_boxes(200, height, width).unique(dim=0))


def test_each_image_has_its_own_size():
    mixed = torch.tensor([[40, 30], [5, 800], [1, 1], [300, 300]]).repeat(50, 1)
    boxes = random_resized_crop(draws(200), mixed)
    for i in range(200):
        alone = random_resized_crop(Draws(draws(200).keys[i : i + 1]), mixed[i : i + 1])
        assert torch.equal(boxes[i : i + 1], alone)


def test_flip():
    flips = random_flip(draws(20_000))
    assert flips.dtype == torch.int64
    assert stats.binomtest(int(flips.sum()), 20_000, 0.5).pvalue > 1e-3
    assert (random_flip(draws(100), 0.0) == 0).all() and (random_flip(draws(100), 1.0) == 1).all()
    for boxes in (random_resized_crop, lambda d, s, flip: random_padded_crop(d, s, 4, flip)):
        assert (boxes(draws(50), sizes(50, 9, 9), flip=1.0)[:, 4] == 1).all()
        assert (boxes(draws(50), sizes(50, 9, 9), flip=0.0)[:, 4] == 0).all()
        assert boxes(draws(2000), sizes(2000, 9, 9), flip=0.25)[:, 4].double().mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_padded_crop(padding):
    boxes = random_padded_crop(draws(8100), sizes(8100, 32, 28), padding)
    assert (boxes[:, 2:4] == torch.tensor([32, 28])).all()
    torch.manual_seed(0)
    padded = torch.empty(1, 32 + 2 * padding, 28 + 2 * padding)
    theirs = torch.tensor([RandomCrop.get_params(padded, (32, 28))[:2] for _ in range(2000)]) - padding
    assert set(map(tuple, boxes[:, :2].tolist())) == set(map(tuple, theirs.tolist()))
    cell = (boxes[:, 0] + padding) * (2 * padding + 1) + boxes[:, 1] + padding
    counts = torch.bincount(cell)
    assert len(counts) == (2 * padding + 1) ** 2
    if padding:
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("size,crop,offset", [(8, 7, 0), (7, 6, 1), (4, 4, 0), (9, 5, 3)])
def test_square_crop(size, crop, offset):
    boxes = random_square_crop(draws(500), size, crop, count=16, offset=offset)
    assert boxes.shape == (500, 16, 5) and boxes.dtype == torch.int64
    assert (boxes[..., 2:4] == crop).all() and (boxes[..., 4] == 0).all()
    places = size - crop + 1
    cell = (boxes[..., 0] - offset) * places + boxes[..., 1] - offset
    assert boxes[..., :2].min() == offset and boxes[..., :2].max() == offset + size - crop
    counts = torch.bincount(cell.flatten())
    assert len(counts) == places**2
    if places > 1:
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


# Larger, equal, smaller by even and odd numbers of pixels; on one axis or on both.
@pytest.mark.parametrize("height,width", [(33, 47), (32, 32), (40, 9), (9, 40), (8, 7), (1, 1), (1, 64), (5, 12)])
@pytest.mark.parametrize("size", [1, 8, 9, 32, 33, 41])
def test_center_crop(size, height, width):
    images = torch.randint(
        0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    boxes = center_crop(sizes(2, height, width), size)
    assert boxes.shape == (2, 5) and boxes.dtype == torch.int64
    expected = TF.center_crop(images, [size, size])
    padding = max(0, size - min(height, width))
    assert torch.equal(resample(images, boxes, size, padding=padding), expected.float())
    assert torch.equal(resample_each(images, boxes, size, padding=padding), expected)


def test_center_crop_of_each_image():
    mixed = torch.tensor([[33, 47], [8, 7], [32, 32], [1, 64]])
    assert torch.equal(center_crop(mixed, 9), torch.cat([center_crop(one[None], 9) for one in mixed]))


def test_whole_image():
    mixed = torch.tensor([[33, 47], [1, 7], [32, 1]])
    assert whole_image(mixed).tolist() == [[0, 0, 33, 47, 0], [0, 0, 1, 7, 0], [0, 0, 32, 1, 0]]
    flipped = whole_image(mixed, torch.tensor([1, 0, 1]))
    assert torch.equal(flipped[:, :4], whole_image(mixed)[:, :4]) and flipped[:, 4].tolist() == [1, 0, 1]
    assert flipped.dtype == torch.int64
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    views = resample(images, whole_image(sizes(2, 8, 8), torch.tensor([0, 1])), 8)
    assert torch.equal(views[0], images[0]) and torch.equal(views[1], images[1].flip(-1))


def torchvision_erasings(count, height, width, scale=ERASED, ratio=ERASED_RATIO):
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    boxes = [RandomErasing.get_params(image, list(scale), list(ratio), value=[0.0])[:4] for _ in range(count)]
    # All of the image stands for none: it is replaced by itself.
    return torch.tensor([(0, 0, 0, 0) if box[2:] == (height, width) else box for box in boxes])


# In small images many of the boxes are rounded to no pixels, in elongated ones most tries fail.
@pytest.mark.parametrize(
    "height,width,scale,ratio",
    [
        (32, 32, ERASED, ERASED_RATIO),
        (224, 200, ERASED, ERASED_RATIO),
        (16, 150, ERASED, ERASED_RATIO),
        (150, 16, (0.1, 0.5), (0.5, 3.0)),
        (4, 5, ERASED, ERASED_RATIO),
        (3, 3, (0.01, 0.1), ERASED_RATIO),
    ],
)
def test_erasing_has_the_distribution_of_torchvision(height, width, scale, ratio):
    count = 3000
    boxes = random_erasing(draws(count), sizes(count, height, width), scale, ratio)
    assert boxes.shape == (count, 5) and boxes.dtype == torch.int64 and (boxes[:, 4] == 0).all()
    ours, theirs = (
        of[of[:, 2:4].prod(1) > 0] for of in (boxes, torchvision_erasings(count, height, width, scale, ratio))
    )
    table = [[len(found), count - len(found)] for found in (ours, theirs)]
    assert len(ours) == len(theirs) == count or stats.fisher_exact(table).pvalue > 1e-3
    assert len(ours) > 300
    expected = statistics(theirs, height, width)
    for name, values in statistics(ours, height, width).items():
        assert stats.ks_2samp(values.numpy(), expected[name].numpy()).pvalue > 1e-3, name


def timm_erasings(count, height, width):
    random.seed(0)
    erase = timm.data.random_erasing.RandomErasing(1.0, mode="pixel", device="cpu")
    places = (erase(torch.full((3, height, width), 9.0)) != 9 for _ in range(count))
    boxes = []
    for erased in places:
        rows, columns = erased[0].any(1).nonzero()[:, 0].tolist(), erased[0].any(0).nonzero()[:, 0].tolist()
        boxes.append((rows[0], columns[0], len(rows), len(columns)) if rows else (0, 0, 0, 0))
        assert len(rows) * len(columns) == erased[0].sum() and erased[0].equal(erased[2])
    return torch.tensor(boxes)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (12, 60)])
def test_erasing_as_it_is_has_the_limits_of_timm(height, width):
    count = 2000
    ours, theirs = random_erasing(draws(count), sizes(count, height, width)), timm_erasings(count, height, width)
    ours, theirs = (statistics(boxes[boxes[:, 2:4].prod(1) > 0], height, width) for boxes in (ours, theirs))
    for name, values in ours.items():
        assert stats.ks_2samp(values.numpy(), theirs[name].numpy()).pvalue > 1e-3, name
    if (height, width) == (224, 224):  # hardly any rounding
        for limits in (ours, theirs):
            assert limits["area"].min() < 0.022 and 0.331 < limits["area"].max() < 0.336
            assert 0.29 < limits["ratio"].min() < 0.302 and 3.305 < limits["ratio"].max() < 3.4


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    SIDES,
    SIDES,
    st.sampled_from([ERASED, (0.01, 0.02), (1.0, 1.0)]),
    st.sampled_from([ERASED_RATIO, (1.0, 1.0), (0.01, 100.0)]),
)
def test_erased_boxes_lie_inside_the_image(height, width, scale, ratio):
    top, left, h, w, _ = random_erasing(draws(100), sizes(100, height, width), scale, ratio).unbind(1)
    assert (h >= 0).all() and (h < height).all() and (w >= 0).all() and (w < width).all()
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


@pytest.mark.parametrize(
    "height,width,scale",
    [
        (1, 1, ERASED),
        (1, 500, ERASED),
        (500, 1, ERASED),
        (3, 2000, ERASED),
        (30, 30, (1.0, 1.0)),
        (40, 25, (1.0, 1.0)),
    ],
)
def test_nothing_is_erased_where_no_box_fits(height, width, scale):
    boxes = random_erasing(draws(500), sizes(500, height, width), scale)
    assert (boxes[:, 2:4].prod(1) == 0).all()
    assert (torchvision_erasings(500, height, width, scale)[:, 2:].prod(1) == 0).all()


def test_erasing_is_independent_of_the_batch_and_of_the_crop():
    mixed = torch.tensor([[40, 30], [5, 80], [1, 1], [300, 300]]).repeat(20, 1)
    boxes = random_erasing(draws(80), mixed)
    for i in range(80):
        assert torch.equal(boxes[i : i + 1], random_erasing(Draws(draws(80).keys[i : i + 1]), mixed[i : i + 1]))
    erased, crops = (of(draws(3000), sizes(3000, 1000, 1000))[:, :4] for of in (random_erasing, random_resized_crop))
    correlations = torch.corrcoef(torch.cat([erased, crops], dim=1).double().T)[:4, 4:]
    assert correlations.abs().max() < 5 / 3000**0.5
