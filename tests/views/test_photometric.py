import math
from functools import cache
from itertools import permutations

import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import ImageOps
from torch.nn import functional as F

from hf_ssl.views import adjust_hue, color_jitter, erase, grayscale, normalize, random_grayscale, solarize
from hf_ssl.views.photometric import _planes


JITTER_ATOL = 5e-6  # of the range of values; four operations, the hue among them
HUE_ATOL = 5e-6  # of the range of values; torchvision turns the hue of all images in float32, by another formula
GRAYSCALE_ATOL = 1e-6  # a sum of three products, in another order
NORMALIZE_ATOL = 1e-6
PATHS_ATOL = 2e-6  # between what a CPU and what an accelerator computes
# An image in another batch: at another place in memory (vector or scalar code), and clamped after the hue is turned or,
# where all values of the batch lie in [0, 1], not.
BATCH_ATOL = 1e-6

JITTERS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
ORDERS = list(permutations(range(4)))
COUNT = 2 * len(ORDERS)
VALUES = {"inside": (0.0, 1.0), "outside": (-2.0, 2.5)}  # outside: as after normalization
SIZES = {"small": 6, "large": 19}  # below and above 256 pixels, where the layout in memory changes
SOME = torch.arange(COUNT) % 3 == 0
EVERYBODY = torch.ones(COUNT, dtype=torch.bool)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=COUNT, values="inside", size=6, dtype=torch.float32):
    low, high = VALUES[values]
    return torch.rand(count, 3, size, size, generator=generator(), dtype=dtype) * (high - low) + low


FACTORS = torch.cat(
    [torch.rand(COUNT, 3, generator=generator(1)) * 0.8 + 0.6, torch.rand(COUNT, 1, generator=generator(2)) - 0.5], 1
)

# Called with images, the ones of them that are changed, and the rows of their parameters.
OPERATIONS = {
    "jitter": lambda x, apply, rows=slice(None), **options: color_jitter(
        x, FACTORS[rows], torch.tensor(ORDERS * 2)[rows], apply, **options
    ),
    "hue": lambda x, apply, rows=slice(None): torch.where(
        apply[:, None, None, None], adjust_hue(x, FACTORS[rows, 3]), x
    ),
    "grayscale": lambda x, apply, rows=slice(None), **options: random_grayscale(x, apply, **options),
    "solarize": lambda x, apply, rows=slice(None), **options: solarize(x, apply, **options),
}


@pytest.fixture(params=["picks", "selects"])
def path(request, monkeypatch):
    """What a CPU does, and what an accelerator does."""
    if request.param == "selects":
        select(monkeypatch)
    return request.param


def select(monkeypatch):
    monkeypatch.setattr("hf_ssl.views.photometric._picks", lambda images: False)


each_path = pytest.mark.usefixtures("path")
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
each_range = pytest.mark.parametrize("values", VALUES)
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def torchvision_jitter(image, values, order):
    for operation in order:
        image = JITTERS[operation](image, values[operation])
    return image


@cache
def torchvision_jitters(values, size):
    cases = zip(pictures(values=values, size=size), FACTORS.tolist(), ORDERS * 2, strict=True)
    return torch.stack([torchvision_jitter(*case) for case in cases])


def assert_close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0, equal_nan=True)


def of_range(atol, values):
    low, high = VALUES[values]
    return atol * (high - low)


def test_small_images_are_computed_with_the_batch_innermost():
    for size, innermost in ((6, 1), (15, 1), (16, 2), (19, 2)):
        assert _planes(pictures(size=size), torch.arange(COUNT)).stride(innermost) == 1


# Against torchvision


@each_path
@each_size
@each_range
def test_jitter_in_every_order(values, size):
    images = pictures(values=values, size=size)
    jittered = OPERATIONS["jitter"](images, EVERYBODY)
    assert_close(jittered, torchvision_jitters(values, size), of_range(JITTER_ATOL, values))


@each_path
@each_range
@pytest.mark.parametrize("operation", range(4))
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.9])
def test_single_operation(operation, values, factor):
    images = pictures(8, values)
    factor = factor / 4 if operation == 3 else factor
    amounts = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(8, 1)
    amounts[:, operation] = factor
    expected = torch.stack([JITTERS[operation](image, factor) for image in images])
    order = torch.tensor([operation, *(i for i in range(4) if i != operation)]).repeat(8, 1)
    jittered = color_jitter(images, amounts, order, EVERYBODY[:8])
    # The other three operations do nothing but clamp (and the hue leaves the largest channel as it is).
    expected = [torchvision_jitter(e, amounts[0].tolist(), order[0, 1:].tolist()) for e in expected]
    assert_close(jittered, torch.stack(expected), of_range(JITTER_ATOL, values))


@each_path
@each_size
@each_range
@pytest.mark.parametrize("shift", [-0.5, -0.31, 0.0, 0.08, 0.5])
def test_hue(shift, values, size):
    images = pictures(8, values, size)
    expected = torch.stack([TF.adjust_hue(image, shift) for image in images])
    assert_close(adjust_hue(images, torch.full((8,), shift)), expected, of_range(HUE_ATOL, values))


@each_path
def test_hue_of_grays_and_pure_colors():
    colors = torch.cartesian_prod(*[torch.tensor([0.0, 0.4, 1.0])] * 3)  # grays, primaries, ties of two channels
    images = colors[:, :, None, None].expand(-1, -1, 2, 2)
    for shift in (0.0, 0.13, -0.4):
        turned = adjust_hue(images, torch.full((len(images),), shift))
        assert_close(turned, torch.stack([TF.adjust_hue(image, shift) for image in images]), HUE_ATOL)
        gray = (colors == colors[:, :1]).all(1)
        assert torch.equal(turned[gray], images[gray])


@each_path
def test_hue_of_normalized_values_is_finite():
    # The largest channel is exactly 0, the others are negative: a saturation would be infinite.
    images = torch.tensor([0.0, -0.5, -1.0])[None, :, None, None].repeat(1, 1, 2, 2)
    assert torch.equal(adjust_hue(images, torch.tensor([0.1])), torch.zeros(1, 3, 2, 2))


@each_path
@each_size
def test_each_image_has_its_own_shift(size):
    images, shifts = pictures(9, size=size), torch.linspace(-0.5, 0.5, 9)
    expected = [TF.adjust_hue(image, shift) for image, shift in zip(images, shifts.tolist(), strict=True)]
    assert_close(adjust_hue(images, shifts), torch.stack(expected), HUE_ATOL)


@each_path
@each_size
@each_range
def test_grayscale(values, size):
    images = pictures(values=values, size=size)
    expected = TF.rgb_to_grayscale(images, num_output_channels=3)
    assert_close(grayscale(images), expected[:, :1], of_range(GRAYSCALE_ATOL, values))
    gray = random_grayscale(images, SOME)
    assert_close(gray[SOME], expected[SOME], of_range(GRAYSCALE_ATOL, values))
    assert torch.equal(gray[:, 0][SOME], gray[:, 2][SOME]) and torch.equal(gray[~SOME], images[~SOME])


@each_path
@each_size
@each_range
def test_solarize(values, size):
    images = pictures(values=values, size=size)
    assert torch.equal(solarize(images, EVERYBODY), TF.solarize(images, 128 / 255))
    assert torch.equal(solarize(images, EVERYBODY, 0.9), TF.solarize(images, 0.9))


@each_path
def test_solarize_around_the_threshold():
    threshold = torch.tensor(128 / 255)
    below, above = (torch.nextafter(threshold, torch.tensor(end)) for end in (0.0, 1.0))
    images = torch.stack([below, threshold, above]).expand(1, 3, 1, 3)
    assert torch.equal(solarize(images, EVERYBODY[:1]), TF.solarize(images, 128 / 255))
    assert torch.equal(solarize(images, EVERYBODY[:1])[0, 0, 0], torch.stack([below, 1 - threshold, 1 - above]))


@each_path
def test_solarize_inverts_the_levels_that_pil_inverts():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    expected = TF.pil_to_tensor(ImageOps.solarize(TF.to_pil_image(levels), threshold=128))
    solarized = solarize(levels[None] / 255, EVERYBODY[:1])[0]
    assert torch.equal((solarized * 255).round(), expected.float())


def random_boxes(count, height, width):
    """One of them all of the image, one a pixel, one a row; and four that are empty on one axis or both."""
    tops, lefts = (torch.randint(0, side, (count,), generator=generator(side)) for side in (height, width))
    unit = torch.rand(2, count, generator=generator(3))
    sizes = (unit * torch.stack([height - tops, width - lefts])).long() + 1
    boxes = torch.stack([tops, lefts, *sizes, torch.zeros_like(tops)], dim=1)
    boxes[:3, :4] = torch.tensor([[0, 0, height, width], [height - 1, width - 1, 1, 1], [2, 0, 1, width]])
    boxes[3:7, :4] = torch.tensor([[0, 0, 0, 0], [3, 4, 0, 5], [3, 4, 5, 0], [height, width, 0, 0]])
    return boxes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("height,width", [(13, 9), (20, 31)])
def test_erase(height, width, dtype):
    images, noise = torch.randn(2, 40, 3, height, width, generator=generator(), dtype=dtype)
    boxes = random_boxes(40, height, width)
    expected = [
        TF.erase(image, top, left, h, w, new[:, top : top + h, left : left + w])
        for image, new, (top, left, h, w, _) in zip(images, noise, boxes.tolist(), strict=True)
    ]
    erased = erase(images, boxes, noise)
    assert torch.equal(erased, torch.stack(expected))
    assert torch.equal(erased[0], noise[0]) and torch.equal(erased[3:7], images[3:7])


def test_erase_covers_nan_and_does_not_spread_it():
    images, noise = pictures(2, size=5), torch.zeros(2, 3, 5, 5)
    images[0, :, 1, 1] = math.nan
    noise[1] = math.nan
    erased = erase(images, torch.tensor([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]), noise)
    assert not erased.isnan().any() and torch.equal(erased[1], images[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize(dtype):
    images, mean, std = pictures(4, dtype=dtype), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalized = normalize(images, mean, std)
    assert_close(normalized, TF.normalize(images, mean, std), NORMALIZE_ATOL)
    assert torch.equal(images, pictures(4, dtype=dtype))
    assert_close(normalize(images[:, :1], mean[:1], std[:1]), normalized[:, :1], 0)
    out = torch.empty(2, *images.shape, dtype=dtype)[1]
    for target in (out, out.contiguous(memory_format=torch.channels_last), images.clone()):
        assert normalize(images, mean, std, out=target) is target and torch.equal(target, normalized)
    own = images.clone()
    assert torch.equal(normalize(own, mean, std, out=own), normalized)
    assert_close(normalize(images.contiguous(memory_format=torch.channels_last), mean, std), normalized, 0)


# What all of them promise


@each_operation
@each_size
@each_range
def test_both_paths_agree(values, size, operation, monkeypatch):
    images = pictures(values=values, size=size)
    picked = operation(images, SOME)
    select(monkeypatch)
    assert_close(operation(images, SOME), picked, of_range(PATHS_ATOL, values))


@each_path
@each_operation
@each_size
@each_range
def test_images_that_are_not_chosen_stay_as_they_are(values, size, operation):
    images = pictures(values=values, size=size)
    changed = operation(images, SOME)
    assert torch.equal(changed[~SOME], images[~SOME])
    assert ((changed - images).abs().amax((1, 2, 3)) > 1e-3).equal(SOME)
    assert torch.equal(operation(images, ~EVERYBODY), images)


@each_path
@each_operation
@each_size
@each_range
def test_an_image_looks_the_same_in_every_batch(values, size, operation):
    images = pictures(values=values, size=size)
    everywhere = operation(images, EVERYBODY)
    atol = of_range(BATCH_ATOL, values)
    assert_close(operation(images, SOME)[SOME], everywhere[SOME], atol)
    for rows in (slice(1), slice(5, 22)):
        assert_close(operation(images[rows], EVERYBODY[rows], rows), everywhere[rows], atol)


@each_path
@each_operation
@each_size
def test_the_input_is_left_alone(size, operation):
    images = pictures(size=size)
    for apply in (SOME, EVERYBODY, ~EVERYBODY):
        operation(images, apply)
        assert torch.equal(images, pictures(size=size))


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "columns first": lambda x: x.mT.contiguous().mT,
    "part of a larger tensor": lambda x: F.pad(x, (1, 2, 3, 4, 1, 0), value=9.0)[:, 1:, 3:-4, 1:-2],
}


@each_path
@each_operation
@each_size
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(layout, size, operation):
    images = pictures(size=size)
    moved = layout(images)
    assert torch.equal(moved, images) and not moved.is_contiguous()
    changed = operation(moved, SOME)
    assert_close(changed, operation(images, SOME), BATCH_ATOL)
    assert torch.equal(changed[~SOME], images[~SOME]) and torch.equal(moved, images)


@each_path
@each_size
@pytest.mark.parametrize("operation", ["jitter", "grayscale", "solarize"])
def test_the_input_may_be_overwritten(operation, size):
    operation = OPERATIONS[operation]
    for apply in (SOME, EVERYBODY, ~EVERYBODY):
        expected = operation(pictures(size=size), apply)
        assert torch.equal(operation(pictures(size=size), apply, inplace=True), expected)
        for layout in LAYOUTS.values():
            assert_close(operation(layout(pictures(size=size)), apply, inplace=True), expected, BATCH_ATOL)


def test_a_cpu_overwrites_the_input():
    for name in ("jitter", "grayscale", "solarize"):
        images = pictures()
        assert OPERATIONS[name](images, SOME, inplace=True) is images


@each_path
@each_operation
@each_size
def test_one_image_that_is_expanded_to_a_batch(size, operation):
    image = pictures(1, size=size)
    changed = operation(image.expand(COUNT, -1, -1, -1), SOME)
    assert_close(changed, operation(image.repeat(COUNT, 1, 1, 1), SOME), BATCH_ATOL)
    assert torch.equal(image, pictures(1, size=size))


@each_path
@each_operation
@each_size
@each_range
def test_float64(values, size, operation):
    images = pictures(values=values, size=size)
    changed = operation(images.double(), SOME)
    assert changed.dtype == torch.float64 and torch.equal(changed[~SOME], images[~SOME].double())
    assert_close(changed.float(), operation(images, SOME), of_range(JITTER_ATOL, values))


@each_path
@each_operation
@each_size
def test_empty_batch(size, operation):
    nobody = slice(0, 0)
    changed = operation(torch.zeros(0, 3, size, size), EVERYBODY[nobody], nobody)
    assert changed.shape == (0, 3, size, size) and changed.dtype == torch.float32


@each_operation
@each_size
@each_range
def test_nan_stays_in_its_image(values, size, operation, path):
    images = pictures(values=values, size=size)
    broken = images.clone()
    broken[6:8, 1, 2, 3] = math.nan
    assert SOME[6] and not SOME[7]
    changed, expected = operation(broken, SOME), operation(images, SOME)
    assert changed[6, 1, 2, 3].isnan()
    assert_close(changed[~SOME], broken[~SOME], 0)
    others = SOME & (torch.arange(COUNT) != 6)
    # A CPU looks whether all values of the batch lie in [0, 1], and clamps where they do not.
    exact = values == "outside" or path == "selects"
    assert_close(changed[others], expected[others], 0 if exact else BATCH_ATOL)
