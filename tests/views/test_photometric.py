from itertools import permutations

import pytest
import torch
import torchvision.transforms.functional as TF

from hf_ssl.views import adjust_hue, batch_innermost, color_jitter, grayscale, normalize, random_grayscale


OPERATIONS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
ORDERS = list(permutations(range(4)))
VALUES = {"inside": (0.0, 1.0), "outside": (-2.0, 2.5)}  # outside: as after normalization


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, values="inside", size=6):
    low, high = VALUES[values]
    return torch.rand(count, 3, size, size, generator=generator()) * (high - low) + low


def factors(count):
    unit = torch.rand(count, 4, generator=generator(1))
    return torch.cat([unit[:, :3] * 0.8 + 0.6, unit[:, 3:] - 0.5], dim=1)


def torchvision_jitter(image, values, order):
    for operation in order:
        image = OPERATIONS[operation](image, values[operation])
    return image


def assert_close(actual, expected, atol=5e-6):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("layout", ["plain", "batch innermost"])
@pytest.mark.parametrize("values", VALUES)
def test_jitter_in_every_order(values, layout):
    count = 4 * len(ORDERS)
    images, amounts, orders = pictures(count, values), factors(count), ORDERS * 4
    expected = [torchvision_jitter(*case) for case in zip(images, amounts.tolist(), orders, strict=True)]
    images = batch_innermost(images) if layout != "plain" else images
    jittered = color_jitter(images, amounts, torch.tensor(orders), torch.ones(count, dtype=torch.bool))
    assert_close(jittered, torch.stack(expected))


@pytest.mark.parametrize("values", VALUES)
def test_images_that_are_not_jittered_stay_as_they_are(values):
    count = len(ORDERS)
    images, amounts, apply = pictures(count, values), factors(count), torch.arange(count) % 3 == 0
    jittered = color_jitter(images, amounts, torch.tensor(ORDERS), apply)
    assert torch.equal(jittered[~apply], images[~apply])
    everywhere = color_jitter(images, amounts, torch.tensor(ORDERS), torch.ones(count, dtype=torch.bool))
    assert torch.equal(jittered[apply], everywhere[apply])
    assert ((jittered - images).abs().amax((1, 2, 3)) > 1e-3).equal(apply)


def test_jitter_leaves_its_input_alone():
    images = pictures(len(ORDERS))
    color_jitter(images, factors(len(ORDERS)), torch.tensor(ORDERS), torch.ones(len(ORDERS), dtype=torch.bool))
    assert torch.equal(images, pictures(len(ORDERS)))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("operation", range(4))
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.9])
def test_single_operation(operation, values, factor):
    images = pictures(8, values)
    factor = factor / 4 if operation == 3 else factor
    amounts = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(8, 1)
    amounts[:, operation] = factor
    expected = torch.stack([OPERATIONS[operation](image, factor) for image in images])
    order = torch.tensor([operation, *(i for i in range(4) if i != operation)]).repeat(8, 1)
    jittered = color_jitter(images, amounts, order, torch.ones(8, dtype=torch.bool))
    # The other three operations do nothing but clamp (and the hue leaves the largest channel as it is).
    assert_close(
        jittered, torch.stack([torchvision_jitter(e, amounts[0].tolist(), order[0, 1:].tolist()) for e in expected])
    )


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("shift", [-0.5, -0.31, 0.0, 0.08, 0.5])
def test_hue(values, shift):
    images = pictures(8, values)
    expected = torch.stack([TF.adjust_hue(image, shift) for image in images])
    assert_close(adjust_hue(images, torch.full((8,), shift)), expected)


def test_hue_of_grays_and_pure_colors():
    colors = torch.cartesian_prod(*[torch.tensor([0.0, 0.4, 1.0])] * 3)  # grays, primaries, ties of two channels
    images = colors[:, :, None, None].expand(-1, -1, 2, 2)
    for shift in (0.0, 0.13, -0.4):
        turned = adjust_hue(images, torch.full((len(images),), shift))
        assert_close(turned, torch.stack([TF.adjust_hue(image, shift) for image in images]))
        gray = (colors == colors[:, :1]).all(1)
        assert torch.equal(turned[gray], images[gray])


def test_hue_of_normalized_values_is_finite():
    # The largest channel is exactly 0, the others are negative: a saturation would be infinite.
    images = torch.tensor([0.0, -0.5, -1.0])[None, :, None, None].repeat(1, 1, 2, 2)
    assert torch.equal(adjust_hue(images, torch.tensor([0.1])), torch.zeros(1, 3, 2, 2))


def test_each_image_has_its_own_shift():
    images, shifts = pictures(9), torch.linspace(-0.5, 0.5, 9)
    expected = [TF.adjust_hue(image, shift) for image, shift in zip(images, shifts.tolist(), strict=True)]
    assert_close(adjust_hue(images, shifts), torch.stack(expected))


@pytest.mark.parametrize("values", VALUES)
def test_grayscale(values):
    images = pictures(6, values)
    assert_close(grayscale(images), TF.rgb_to_grayscale(images), 1e-6)
    apply = torch.tensor([True, False, True, False, False, True])
    mixed = random_grayscale(images, apply)
    assert_close(mixed[apply], TF.rgb_to_grayscale(images[apply], num_output_channels=3), 1e-6)
    assert torch.equal(mixed[~apply], images[~apply])


def test_normalize():
    images, mean, std = pictures(4), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert_close(normalize(images, mean, std), TF.normalize(images, mean, std), 1e-6)


def test_batch_innermost():
    images = pictures(5)
    moved = batch_innermost(images)
    assert torch.equal(moved, images)
    assert moved.stride(0) == 1 and images.stride(-1) == 1
    assert color_jitter(moved, factors(5), torch.tensor(ORDERS[:5]), torch.ones(5, dtype=torch.bool)).stride(0) == 1
    for operation in (
        grayscale,
        lambda x: normalize(x, [0.5] * 3, [0.2] * 3),
        lambda x: adjust_hue(x, torch.ones(5) / 9),
    ):
        assert torch.equal(operation(moved), operation(images))
