import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomCrop, RandomResizedCrop

from hf_ssl.views import Draws, random_flip, random_padded_crop, random_resized_crop, random_square_crop


SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


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


@settings(deadline=None, max_examples=30)
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


@settings(deadline=None, max_examples=30)
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
