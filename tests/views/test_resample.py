import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF2

from hf_ssl.views import apply_weights, canvas_weights, resample, resample_each, resize_weights


MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
ATOL = 1e-4  # of the range of values, here 1
SAME_ATOL = 2e-6  # of the range of values: the same products, summed in another order
# Levels of 255 between float results and torch's bytes, which are rounded after each axis. A bicubic kernel overshoots, and
# bytes are clipped after the first axis as well: compared on smooth images.
BYTES_ATOL = 1.2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, height, width, channels=3, seed=0):
    return torch.rand(count, channels, height, width, generator=generator(seed))


def byte_pictures(count, height, width, channels=3):
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator())


def smooth_pictures(count, height, width):
    coarse = pictures(count, 4, 5)
    return (F.interpolate(coarse, size=(height, width), mode="bilinear") * 255).round().byte()


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
    images = byte_pictures(len(BOXES), 47, 61)
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


@settings(deadline=None, max_examples=30, derandomize=True)
@given(crops(), st.integers(1, 50), st.sampled_from(sorted(MODES)))
def test_any_box_equals_torchvision(crop, size, interpolation):
    shape, box = crop
    images = pictures(1, *shape)
    expected = torchvision_views(images, box, size, interpolation)
    assert_close(resample(images, box, size, interpolation), expected)


@settings(deadline=None, max_examples=30, derandomize=True)
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
    images = byte_pictures(2, 32, 32)
    views = resample(images, torch.tensor([[-4, 2, 32, 32, 0], [4, -3, 32, 32, 1]]), 32, padding=4)
    padded = F.pad(images, [4] * 4)
    assert torch.equal(views[0], padded[0, :, 0:32, 6:38].float())
    assert torch.equal(views[1], padded[1, :, 8:40, 1:33].flip(-1).float())


@settings(deadline=None, max_examples=20, derandomize=True)
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


def test_images_of_a_batch_do_not_mix():
    images = pictures(len(BOXES), 47, 61)
    changed = images.clone()
    changed[4] = 0
    views, others = resample(images, BOXES, 33), resample(changed, BOXES, 33)
    assert (others[4] == 0).all()
    kept = torch.arange(len(BOXES)) != 4
    assert torch.equal(views[kept], others[kept])


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "columns first": lambda x: x.mT.contiguous().mT,
    "batch innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "part of a larger tensor": lambda x: F.pad(x, (1, 2, 3, 4, 1, 0), value=9)[:, 1:, 3:-4, 1:-2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(layout):
    images, bytes_ = pictures(len(BOXES), 47, 61), byte_pictures(len(BOXES), 47, 61)
    assert not layout(images).is_contiguous()
    assert torch.equal(resample(layout(images), BOXES, 33), resample(images, BOXES, 33))
    assert torch.equal(resample(layout(bytes_), BOXES, 33), resample(bytes_, BOXES, 33))
    assert torch.equal(resample_each(layout(bytes_), BOXES, 33), resample_each(bytes_, BOXES, 33))
    assert torch.equal(resample_each(layout(bytes_), BOXES[:1], 33), resample_each(bytes_, BOXES[:1], 33))


def test_float64_sources():
    images = pictures(len(BOXES), 47, 61)
    views = resample(images.double(), BOXES, 33)
    assert views.dtype == torch.float32 and torch.equal(views, resample(images, BOXES, 33))


def test_nan_stays_in_its_image():
    images = pictures(len(BOXES), 47, 61)
    broken = images.clone()
    broken[7, 1, 5, 6] = torch.nan
    views, expected = resample(broken, BOXES, 33), resample(images, BOXES, 33)
    others = torch.arange(len(BOXES)) != 7
    assert views[7].isnan().any() and torch.equal(views[others], expected[others])


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
    images = byte_pictures(4, 4, 5)
    rows, columns = (torch.rand(4, *shape, generator=generator(1)) for shape in ((6, 4), (7, 5)))
    for i, j in ((4, 4), (1, 4), (1, 1)):  # a single one serves all images
        each = rows[:i].expand(4, -1, -1).double(), columns[:j].expand(4, -1, -1).double()
        expected = torch.einsum("bih,bchw,bjw->bcij", each[0], images.double(), each[1])
        assert_close(apply_weights(images, rows[:i], columns[:j]).double(), expected, 1e-2)


# Images of unequal sizes in one tensor

OWN = torch.tensor([[40, 36], [40, 11], [9, 36], [17, 23], [1, 1], [33, 29]])


def inside(sizes):
    """A box within each image: all of it, its lower right quarter, and a pixel, in turns; every other one flipped."""
    height, width = sizes.unbind(1)
    whole = torch.stack([height * 0, width * 0, height, width], dim=1)
    quarter = torch.stack([height // 2, width // 2, (height + 1) // 2, (width + 1) // 2], dim=1)
    pixel = torch.stack([height - 1, width - 1, height * 0 + 1, width * 0 + 1], dim=1)
    boxes = torch.stack([whole, quarter, pixel])[torch.arange(len(sizes)) % 3, torch.arange(len(sizes))]
    return torch.cat([boxes, torch.arange(len(sizes))[:, None] % 2], dim=1)


def sticking_out(sizes):
    """A box that is 5 pixels larger than each image on every side, and boxes that lie beside it but for a pixel."""
    larger = torch.cat([torch.full_like(sizes, -5), sizes + 10, torch.zeros_like(sizes[:, :1])], dim=1)
    beside = torch.cat([sizes - 1, torch.full_like(sizes, 6), torch.ones_like(sizes[:, :1])], dim=1)
    return torch.where(torch.arange(len(sizes))[:, None] % 2 == 0, larger, beside)


def padded(images, sizes, beyond):
    """The images, with what lies beyond their own sizes replaced."""
    rows, columns = (torch.arange(side) for side in images.shape[-2:])
    own = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
    return torch.where(own[:, None], images, beyond)


def each_alone(function, images, boxes, sizes):
    """`function(image, box)` for each image, cut to its own size."""
    cases = zip(images.split(1), boxes.split(1), sizes.tolist(), strict=True)
    return torch.cat([function(image[..., :height, :width], box) for image, box, (height, width) in cases])


UNEQUAL = pytest.mark.parametrize("boxes,padding", [(inside(OWN), 0), (sticking_out(OWN), 5)], ids=["inside", "out"])


@UNEQUAL
@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [7, 33])
def test_images_of_unequal_sizes(size, interpolation, boxes, padding):
    images = pictures(len(OWN), 40, 36)
    views = resample(images, boxes, size, interpolation, padding=padding, sizes=OWN)
    alone = each_alone(lambda x, box: resample(x, box, size, interpolation, padding=padding), images, boxes, OWN)
    assert_close(views, alone, SAME_ATOL)
    expected = each_alone(lambda x, box: torchvision_views(x, box, size, interpolation, padding), images, boxes, OWN)
    assert_close(views, expected)


@UNEQUAL
def test_what_lies_beyond_an_image_does_not_leak_in(boxes, padding):
    images = pictures(len(OWN), 40, 36)
    views = [
        resample(padded(images, OWN, beyond), boxes, 9, padding=padding, sizes=OWN) for beyond in (0.0, 1e4, -3.0)
    ]
    assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])


# One box for all images

SIX = torch.tensor(
    [[0, 0, 36, 36, 0], [3, 5, 7, 5, 1], [10, 0, 5, 31, 0], [0, 13, 36, 3, 1], [35, 35, 1, 1, 0], [1, 2, 33, 33, 1]]
)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("interpolation", MODES)
def test_one_box_for_all(number, interpolation):
    images, bytes_, box = pictures(6, 36, 36), byte_pictures(6, 36, 36), SIX[number : number + 1]
    each = box.expand(6, -1)
    views = resample(images, box, 23, interpolation)
    assert_close(views, resample(images, each, 23, interpolation), SAME_ATOL)
    assert_close(views, torchvision_views(images, each, 23, interpolation))
    expected = torchvision_bytes(bytes_, each, 23, interpolation)
    assert torch.equal(resample_each(bytes_, box, 23, interpolation), expected)


def test_one_box_for_images_of_unequal_sizes():
    images = pictures(len(OWN), 40, 36)
    views = resample(images, SIX[:1], 7, padding=36, sizes=OWN)
    assert_close(views, resample(images, SIX[:1].expand(len(OWN), -1), 7, padding=36, sizes=OWN), SAME_ATOL)


def test_boxes_for_some_images_are_refused():
    with pytest.raises(ValueError, match="There are 3 boxes for 6 images; give one for each, or one for all"):
        resample_each(byte_pictures(6, 36, 36), SIX[:3], 7)
    with pytest.raises(RuntimeError):
        resample(byte_pictures(6, 36, 36), SIX[:3], 7)


# Resized to a square first

CANVAS_BOXES = torch.tensor(
    [[0, 0, 24, 24, 0], [0, 0, 24, 24, 1], [3, 5, 17, 9, 1], [23, 23, 1, 1, 0], [11, 0, 13, 24, 0]]
)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("height,width", [(47, 61), (24, 24), (24, 31), (9, 13), (1, 1)])
@pytest.mark.parametrize("size", [7, 33])
def test_canvas(size, height, width, interpolation):
    images = pictures(len(CANVAS_BOXES), height, width)
    resized = F.interpolate(images, size=(24, 24), mode="bilinear", antialias=True)
    expected = torchvision_views(resized, CANVAS_BOXES, size, interpolation)
    canvas = canvas_weights(height, width, 24, images.device)
    assert_close(resample(images, CANVAS_BOXES, size, interpolation, canvas=canvas), expected)
    for box in CANVAS_BOXES[:, None]:
        expected = torchvision_views(resized, box.expand(len(images), -1), size, interpolation)
        assert_close(resample(images, box, size, interpolation, canvas=canvas), expected)


def test_canvas_with_padding():
    images = pictures(2, 47, 31)
    resized = F.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    boxes = torch.tensor([[-4, 2, 32, 32, 0], [4, -3, 32, 32, 1]])
    views = resample(images, boxes, 32, padding=4, canvas=canvas_weights(47, 31, 32, images.device))
    assert_close(views, torchvision_views(resized, boxes, 32, padding=4))


def test_canvas_of_images_of_unequal_sizes_is_refused():
    canvas = canvas_weights(40, 36, 24, torch.device("cpu"))
    with pytest.raises(ValueError, match="`sizes` and `canvas` cannot be given together"):
        resample(pictures(len(OWN), 40, 36), CANVAS_BOXES[:1], 9, sizes=OWN, canvas=canvas)


# Image by image


def torchvision_bytes(images, boxes, size, interpolation="bilinear", padding=0):
    views = []
    for image, (top, left, height, width, flip) in zip(F.pad(images, [padding] * 4), boxes.tolist(), strict=True):
        place = (top + padding, left + padding, height, width)
        view = TF2.resized_crop(image, *place, [size, size], MODES[interpolation], antialias=True)
        views.append(TF2.horizontal_flip(view) if flip else view)
    return torch.stack(views)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [33, 47, 7, 5, 2])
def test_each_equals_torchvision_on_bytes(size, interpolation):
    images = byte_pictures(len(BOXES), 47, 61)
    views = resample_each(images, BOXES, size, interpolation)
    assert views.shape == (len(BOXES), 3, size, size) and views.dtype == torch.uint8
    assert torch.equal(views, torchvision_bytes(images, BOXES, size, interpolation))


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [33, 47, 5, 1])
def test_each_is_close_to_the_matrix_products(size, interpolation):
    images = (byte_pictures if interpolation == "bilinear" else smooth_pictures)(len(BOXES), 47, 61)
    expected = resample(images, BOXES, size, interpolation).clamp(0, 255)
    assert_close(resample_each(images, BOXES, size, interpolation).float(), expected, BYTES_ATOL)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [32, 24, 47])
def test_each_with_padding(size, interpolation):
    images = byte_pictures(9, 32, 32)
    offset = torch.tensor([[i, j] for i in (-4, 0, 3) for j in (-4, -1, 4)])
    boxes = torch.cat([offset, torch.full((9, 2), 32), torch.arange(9)[:, None] % 2], dim=1)
    views = resample_each(images, boxes, size, interpolation, padding=4)
    assert torch.equal(views, torchvision_bytes(images, boxes, size, interpolation, padding=4))
    alone = resample_each(images[:1], boxes[:1], size, interpolation, padding=4)
    assert torch.equal(alone, views[:1])


# Sources in both orders, since torch fails to make one pixel of some plain ones.
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("height,width", [(5, 6), (5, 1), (1, 6), (1, 1)])
@pytest.mark.parametrize("size", [1, 4])
def test_each_of_tiny_images(size, height, width, memory_format):
    images = byte_pictures(2, height, width).contiguous(memory_format=memory_format)
    box = torch.tensor([[0, 0, height, width, 1]])
    expected = resample(images, box, size)
    for boxes in (box, box.expand(2, -1)):
        assert_close(resample_each(images, boxes, size).float(), expected, BYTES_ATOL)


@pytest.mark.parametrize("channels", [1, 4])
def test_each_of_other_channel_counts(channels):
    images = byte_pictures(len(BOXES), 47, 61, channels)
    assert torch.equal(resample_each(images, BOXES, 7), torchvision_bytes(images, BOXES, 7))


def test_each_leaves_its_input_alone():
    images = byte_pictures(len(BOXES), 47, 61)
    for boxes in (BOXES, BOXES[:1]):
        resample_each(images, boxes, 33, padding=2)
        assert torch.equal(images, byte_pictures(len(BOXES), 47, 61))


@pytest.mark.parametrize("num_boxes", [0, 1])
def test_empty_batch(num_boxes):
    images, boxes = torch.zeros(0, 3, 9, 8, dtype=torch.uint8), torch.tensor([[0, 0, 9, 8, 0]])[:num_boxes]
    for padding in (0, 2):
        assert resample_each(images, boxes, 7, padding=padding).shape == (0, 3, 7, 7)
        assert resample(images, boxes, 7, padding=padding).shape == (0, 3, 7, 7)
    no_sizes = torch.zeros(0, 2, dtype=torch.int64)
    assert resample(images, boxes, 7, sizes=no_sizes).shape == (0, 3, 7, 7)


def test_errors():
    images, boxes = pictures(1, 8, 8), torch.tensor([[0, 0, 8, 8, 0]])
    with pytest.raises(ValueError, match="interpolation='nearest' is unknown; use one of"):
        resample(images, boxes, 4, "nearest")
    with pytest.raises(ValueError, match="only available with antialias=True"):
        resample(images, boxes, 4, "bicubic", antialias=False)
