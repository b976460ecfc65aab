import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

from hf_ssl.views import apply_weights, resample, resize_weights


MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
ATOL = 1e-4  # of the range of values, here 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, height, width, channels=3, seed=0):
    return torch.rand(count, channels, height, width, generator=generator(seed))


def torchvision_views(images, boxes, size, interpolation="bilinear", padding=0):
    views = []
    for image, (top, left, height, width, flip) in zip(F.pad(images, [padding] * 4), boxes.tolist(), strict=True):
        view = TF.resized_crop(
            image, top + padding, left + padding, height, width, [size, size], MODES[interpolation], antialias=True
        )
        views.append(TF.hflip(view) if flip else view)
    return torch.stack(views)


def assert_close(actual, expected, atol=ATOL):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# Upscaling, downscaling by little and by much, one axis of each, one pixel, the whole image; flips.
BOXES = torch.tensor(
    [
        [0, 0, 47, 61, 0],
        [0, 0, 47, 61, 1],
        [3, 5, 7, 5, 0],
        [40, 56, 7, 5, 1],
        [10, 0, 5, 61, 1],
        [0, 13, 47, 3, 0],
        [46, 60, 1, 1, 1],
        [1, 2, 33, 33, 1],
        [11, 17, 29, 31, 0],
    ]
)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [33, 47, 7, 5, 1])
def test_equals_torchvision(interpolation, size):
    images = pictures(len(BOXES), 47, 61)
    views = resample(images, BOXES, size, interpolation)
    assert views.shape == (len(BOXES), 3, size, size) and views.dtype == torch.float32
    assert_close(views, torchvision_views(images, BOXES, size, interpolation))


def test_bytes():
    images = torch.randint(0, 256, (len(BOXES), 3, 47, 61), dtype=torch.uint8, generator=generator())
    views = resample(images, BOXES, 33)
    assert views.dtype == torch.float32
    assert_close(views, torchvision_views(images.float(), BOXES, 33), 255 * ATOL)
    assert_close(views, resample(images.float(), BOXES, 33), 0)


@st.composite
def crops(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    return (height, width), torch.tensor([[top, left, h, w, draw(st.integers(0, 1))]])


@settings(deadline=None, max_examples=30)
@given(crops(), st.integers(1, 50), st.sampled_from(sorted(MODES)))
def test_any_box_equals_torchvision(crop, size, interpolation):
    shape, box = crop
    images = pictures(1, *shape)
    expected = torchvision_views(images, box, size, interpolation)
    assert_close(resample(images, box, size, interpolation), expected)


@settings(deadline=None, max_examples=30)
@given(crops(), st.integers(1, 50))
def test_without_antialias_equals_interpolate(crop, size):
    shape, box = crop
    images = pictures(1, *shape)
    top, left, height, width, flip = box[0].tolist()
    source = images[:, :, top : top + height, left : left + width]
    expected = F.interpolate(source, size=(size, size), mode="bilinear", align_corners=False, antialias=False)
    expected = expected.flip(-1) if flip else expected
    assert_close(resample(images, box, size, antialias=False), expected)


def test_antialias_matters_only_when_shrinking():
    images = pictures(1, 40, 40)
    box = torch.tensor([[0, 0, 40, 40, 0]])
    difference = (resample(images, box, 7) - resample(images, box, 7, antialias=False)).abs().max()
    assert difference > 0.1
    assert_close(resample(images, box, 47), resample(images, box, 47, antialias=False), 1e-6)


@pytest.mark.parametrize("size", [32, 24, 47])
@pytest.mark.parametrize("interpolation", MODES)
def test_padding_equals_padding_first(size, interpolation):
    images = pictures(9, 32, 32)
    offset = torch.tensor([[i, j] for i in (-4, 0, 3) for j in (-4, -1, 4)])
    boxes = torch.cat([offset, torch.full((9, 2), 32), torch.arange(9)[:, None] % 2], dim=1)
    views = resample(images, boxes, size, interpolation, padding=4)
    assert_close(views, torchvision_views(images, boxes, size, interpolation, padding=4))


def test_shifts_are_exact():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator())
    views = resample(images, torch.tensor([[-4, 2, 32, 32, 0], [4, -3, 32, 32, 1]]), 32, padding=4)
    padded = F.pad(images, [4] * 4)
    assert torch.equal(views[0], padded[0, :, 0:32, 6:38].float())
    assert torch.equal(views[1], padded[1, :, 8:40, 1:33].flip(-1).float())


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**31),
    st.floats(-3, 3, width=32),
    st.floats(-3, 3, width=32),
    st.sampled_from(sorted(MODES)),
    st.sampled_from([5, 33, 61]),
)
def test_linear(seed, a, b, interpolation, size):
    x, y = pictures(len(BOXES), 47, 61, seed=seed), pictures(len(BOXES), 47, 61, seed=seed + 1)
    views = [resample(images, BOXES, size, interpolation) for images in (x, y, a * x + b * y)]
    assert_close(views[2], a * views[0] + b * views[1], 1e-5)


@pytest.mark.parametrize("interpolation", MODES)
def test_flat_images_stay_flat(interpolation):
    for size in (5, 33, 61):
        assert_close(
            resample(torch.full((9, 1, 47, 61), 0.7), BOXES, size, interpolation),
            torch.full((9, 1, size, size), 0.7),
            1e-6,
        )


@pytest.mark.parametrize("interpolation", MODES)
def test_one_pixel_images(interpolation):
    images = pictures(2, 1, 1)
    boxes = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]])
    assert_close(resample(images, boxes, 6, interpolation), images.expand(2, 3, 6, 6), 1e-6)


def test_empty_batch():
    views = resample(torch.zeros(0, 3, 9, 8, dtype=torch.uint8), torch.zeros(0, 5, dtype=torch.int64), 7)
    assert views.shape == (0, 3, 7, 7)


def test_images_of_a_batch_do_not_mix():
    images = pictures(len(BOXES), 47, 61)
    changed = images.clone()
    changed[4] = 0
    views, others = resample(images, BOXES, 33), resample(changed, BOXES, 33)
    assert (others[4] == 0).all()
    kept = torch.arange(len(BOXES)) != 4
    assert torch.equal(views[kept], others[kept])


def test_channels_last_sources():
    images = pictures(len(BOXES), 47, 61)
    views = resample(images.contiguous(memory_format=torch.channels_last), BOXES, 33)
    assert torch.equal(views, resample(images, BOXES, 33))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts(channels):
    images = pictures(len(BOXES), 47, 61, channels)
    assert_close(resample(images, BOXES, 7), torchvision_views(images, BOXES, 7))


def test_weights_are_a_plain_matrix():
    start, length, flip = torch.tensor([2, 0]), torch.tensor([9, 13]), torch.tensor([0, 1])
    weights = resize_weights(start, length, 13, 6, flip=flip)
    assert weights.shape == (2, 6, 13)
    line = pictures(1, 1, 13)[0, :, 0]
    for i in range(2):
        source = line[:, start[i] : start[i] + length[i]]
        expected = TF.resize(source[:, None], [1, 6], antialias=True)[:, 0]
        assert_close(line @ weights[i].T, expected.flip(-1) if flip[i] else expected)
    outside = (torch.arange(13) < 2) | (torch.arange(13) >= 11)
    assert (weights[0][:, outside] == 0).all()


def test_apply_weights():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=generator())
    rows, columns = (torch.rand(2, *shape, generator=generator(1)) for shape in ((6, 4), (7, 5)))
    expected = torch.einsum("bih,bchw,bjw->bcij", rows.double(), images.double(), columns.double())
    assert_close(apply_weights(images, rows, columns).double(), expected, 1e-2)


def test_errors():
    images, boxes = pictures(1, 8, 8), torch.tensor([[0, 0, 8, 8, 0]])
    with pytest.raises(ValueError, match="interpolation='nearest' is unknown; use one of"):
        resample(images, boxes, 4, "nearest")
    with pytest.raises(ValueError, match="only available with antialias=True"):
        resample(images, boxes, 4, "bicubic", antialias=False)
