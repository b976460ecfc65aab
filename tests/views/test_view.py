import math
import re
from dataclasses import fields
from functools import cache, partial

import pytest
import torch
import torchvision.transforms.functional as TF
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms import ColorJitter

from hf_ssl.views import Colors, Draws, View, apply_colors, draw_colors


COUNT = 20_000
P_VALUE = 1e-3
COLORS_ATOL = 5e-6  # that of the jitter; what follows it averages
BATCH_ATOL = 1e-6  # an image in another batch: at another place in memory, vector or scalar code
THRESHOLD = 128 / 255


def draws(count=COUNT, seed=0):
    index = torch.arange(count)
    return Draws.for_samples(seed, torch.zeros_like(index), index)


# What a view refuses

PROBABILITIES = ("flip", "jitter", "grayscale", "blur", "solarize", "erase")
LIMITS = ("scale", "ratio", "blur_sigma")
STRENGTHS = ("brightness", "contrast", "saturation")
BAD_LIMITS = ([0.5], [], [0.2, 0.5, 0.8], [0.0, 0.5], [-0.1, 0.5], [0.6, 0.5], [math.nan, 0.5], [0.1, math.nan])
BAD = [
    *(
        (name, value, "is unknown; use one of random_resized_crop")
        for name in ["crop"]
        for value in ("zoom", "", None)
    ),
    *(("interpolation", value, "is unknown; use one of bilinear, bicubic.") for value in ("nearest", 2, None)),
    *(("size", value, "must be at least 1 pixel") for value in (0, -3)),
    ("padding", -1, "must not be negative"),
    *((name, value, "is not a probability") for name in PROBABILITIES for value in (-0.01, 1.01, math.nan, math.inf)),
    *((name, value, "must be two positive numbers") for name in LIMITS for value in BAD_LIMITS),
    ("scale", [0.5, 1.01], "must not exceed 1"),
    *((name, -0.01, "must not be negative") for name in STRENGTHS),
    *(("hue", value, "must lie between 0 and 0.5") for value in (-0.01, 0.51, math.nan)),
]
GOOD = [
    *(("crop", value) for value in ("random_resized_crop", "padded_crop", "center_crop", "resize")),
    *(("interpolation", value) for value in ("bilinear", "bicubic")),
    *((name, value) for name in PROBABILITIES for value in (0, 1, 0.0, 0.3, 1.0)),
    *((name, value) for name in LIMITS for value in ([0.5, 0.5], [1e-6, 1.0], (0.1, 0.2))),
    ("ratio", [3.0, 5.0]),
    ("blur_sigma", [3.0, 5.0]),
    *((name, value) for name in STRENGTHS for value in (0, 0.8, 1.5)),
    *(("hue", value) for value in (0, 0.5)),
    *(("size", value) for value in (1, 518)),
    *(("padding", value) for value in (0, 30)),
    *(("grayscale_first", value) for value in (False, True)),
]


@pytest.mark.parametrize("name,value,reason", BAD, ids=lambda value: str(value)[:20])
def test_bad_values_are_named(name, value, reason):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} {reason}")):
        View(**{name: value})


@pytest.mark.parametrize("name,value", GOOD, ids=str)
def test_good_values(name, value):
    view = View(**{name: value})
    assert getattr(view, name) == value
    defaults = View()
    assert all(getattr(view, f.name) == getattr(defaults, f.name) for f in fields(View) if f.name != name)


def test_every_field_has_bad_values_or_none():
    assert {name for name, *_ in BAD} | {"grayscale_first"} == {f.name for f in fields(View)}


def test_views_do_not_share_their_lists():
    View().scale[0] = 0.9
    assert View().scale == [0.08, 1.0]


# What is drawn


def assert_probability(apply, p):
    assert apply.dtype == torch.bool and apply.shape == (COUNT,)
    assert stats.binomtest(int(apply.sum()), COUNT, p).pvalue > P_VALUE


def assert_uniform(values, low, high):
    # Up to a rounding of float32.
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    assert stats.kstest(values.double().numpy(), stats.uniform(low, high - low).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_probabilities(p):
    colors = draw_colors(View(jitter=p, grayscale=p, blur=p, solarize=p), draws())
    applied = [colors.jitter_apply, colors.gray_apply, colors.blur_apply, colors.solarize_apply]
    for apply in applied:
        assert_probability(apply, p)
    correlations = torch.corrcoef(torch.stack(applied).double())
    assert (correlations - torch.eye(4)).abs().max() < 5 / COUNT**0.5


def test_always_and_never():
    always = draw_colors(View(jitter=1.0, grayscale=1.0, blur=1.0, solarize=1.0), draws(500))
    assert all(getattr(always, f.name).all() for f in fields(Colors) if f.name.endswith("_apply"))
    assert draw_colors(View(), draws(500)) == Colors()
    only_blur = draw_colors(View(blur=0.5), draws(500))
    assert [f.name for f in fields(Colors) if getattr(only_blur, f.name) is not None] == ["blur_apply", "blur_sigma"]


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.2, 0.1), (0.8, 0.3, 1.0, 0.5), (1.5, 2.0, 1.1, 0.0)])
def test_ranges_of_the_jitter_are_those_of_torchvision(strengths):
    colors = draw_colors(View(**dict(zip((*STRENGTHS, "hue"), strengths, strict=True)), jitter=0.8), draws())
    assert colors.jitter_factors.shape == (COUNT, 4) and colors.jitter_factors.dtype == torch.float32
    theirs = ColorJitter(*strengths)
    # Beyond a strength of 1, factors start at 0.
    for values, name in zip(colors.jitter_factors.unbind(1), (*STRENGTHS, "hue"), strict=True):
        limits = getattr(theirs, name)
        if limits is None:
            assert (values == 0).all()
        else:
            assert_uniform(values, *limits)
    assert_probability(colors.jitter_apply, 0.8)


def test_parts_of_the_jitter_are_independent():
    colors = draw_colors(View(jitter=0.5, blur=0.5, hue=0.2), draws())
    values = torch.cat([colors.jitter_factors, colors.blur_sigma[:, None], colors.jitter_order[:, :3]], dim=1)
    correlations = torch.corrcoef(torch.cat([values, colors.jitter_apply[:, None]], dim=1).double().T)
    # Of the order's places each excludes the others.
    correlations[5:8, 5:8] = torch.eye(3)
    assert (correlations - torch.eye(9)).abs().max() < 5 / COUNT**0.5


def test_every_order_of_the_jitter_is_as_likely():
    order = draw_colors(View(jitter=0.5), draws()).jitter_order
    assert order.shape == (COUNT, 4) and torch.equal(order.sort(1).values, torch.arange(4).expand(COUNT, 4))
    counts = (order * torch.tensor([64, 16, 4, 1])).sum(1).bincount()
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > P_VALUE and (counts > 0).sum() == 24


@pytest.mark.parametrize("limits", [[0.1, 2.0], [0.5, 0.6], [1.5, 1.5]])
def test_sigma_of_the_blur(limits):
    sigma = draw_colors(View(blur=0.5, blur_sigma=limits), draws()).blur_sigma
    assert sigma.shape == (COUNT,)
    if limits[0] < limits[1]:
        assert_uniform(sigma, *limits)
    else:
        assert (sigma == limits[0]).all()


EVERYTHING = View(jitter=0.7, grayscale=0.4, blur=0.6, solarize=0.5)


def equal(first, second):
    return all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(Colors))


def test_colors_of_an_image_do_not_depend_on_the_batch():
    rows = draws(50)
    colors = draw_colors(EVERYTHING, rows)
    assert equal(draw_colors(EVERYTHING, Draws(rows.keys[20:30])), colors[20:30])
    assert not equal(draw_colors(EVERYTHING, draws(50, seed=1)), colors)
    assert torch.equal(draw_colors(View(solarize=0.5), rows).solarize_apply, colors.solarize_apply)


def test_parts_of_an_image_have_colors_of_their_own():
    colors = draw_colors(EVERYTHING, draws(50), 4)
    assert colors.jitter_factors.shape == colors.jitter_order.shape == (200, 4)
    assert colors.blur_sigma.shape == colors.jitter_apply.shape == colors.solarize_apply.shape == (200,)
    assert len(colors.jitter_factors.unique(dim=0)) == len(colors.blur_sigma.unique()) == 200
    # Image by image.
    assert equal(draw_colors(EVERYTHING, Draws(draws(50).keys[10:12]), 4), colors[40:48])


def test_slices():
    colors = draw_colors(EVERYTHING, draws(10))
    for rows in (slice(2, 5), slice(0, 0), slice(None), slice(None, None, 3)):
        part = colors[rows]
        assert isinstance(part, Colors)
        for f in fields(Colors):
            assert torch.equal(getattr(part, f.name), getattr(colors, f.name)[rows])
    assert Colors()[2:5] == Colors()
    part = Colors(gray_apply=torch.tensor([True, False, True]))[1:]
    assert part.gray_apply.tolist() == [False, True] and part.jitter_apply is part.blur_sigma is None


# What is done

IMAGES, SIDE, REACH = 48, 13, 12
JITTERS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


@cache
def pictures(count=IMAGES):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def torchvision_blur(image, sigma):
    padded = F.pad(image[None], [2 * REACH] * 4, mode="replicate")
    blurred = TF.gaussian_blur(padded, [2 * REACH + 1] * 2, [sigma, sigma])[0]
    return blurred[:, 2 * REACH : -2 * REACH, 2 * REACH : -2 * REACH]


def unsolarized(image, colors, i, grayscale_first):
    """One image after another, with torchvision's functions."""
    operations = []
    if colors.jitter_apply[i]:
        factors = colors.jitter_factors[i].tolist()
        operations += [lambda x, k=k: JITTERS[k](x, factors[k]) for k in colors.jitter_order[i].tolist()]
    if colors.gray_apply[i]:
        gray = partial(TF.rgb_to_grayscale, num_output_channels=3)
        operations.insert(0 if grayscale_first else len(operations), gray)
    if colors.blur_apply[i]:
        operations.append(lambda x: torchvision_blur(x, colors.blur_sigma[i].item()))
    for operation in operations:
        image = operation(image)
    return image


@pytest.mark.parametrize("grayscale_first", [False, True])
def test_operations_and_their_order(grayscale_first):
    view = View(jitter=0.7, grayscale=0.4, blur=0.6, solarize=0.5, hue=0.3, grayscale_first=grayscale_first)
    colors = draw_colors(view, draws(IMAGES))
    applied = torch.stack([colors.jitter_apply, colors.gray_apply, colors.blur_apply, colors.solarize_apply], dim=1)
    assert len(applied.unique(dim=0)) >= 12  # of the 16 ways to choose
    before = torch.stack([unsolarized(pictures()[i], colors, i, grayscale_first) for i in range(IMAGES)])
    solarized = colors.solarize_apply[:, None, None, None]
    expected = torch.where(solarized, TF.solarize(before, THRESHOLD), before)
    # Where a value is as good as the threshold, a rounding error decides whether it is inverted.
    undecided = solarized & ((before - THRESHOLD).abs() < COLORS_ATOL)
    assert undecided.float().mean() < 1e-3
    difference = (apply_colors(pictures(), colors, view) - expected).abs()
    assert difference[~undecided].max() <= COLORS_ATOL
    untouched = ~applied.any(1)
    assert untouched.any() and (difference[untouched] == 0).all()


def test_it_matters_whether_grayscale_comes_first():
    views = [View(jitter=1.0, grayscale=1.0, grayscale_first=first) for first in (False, True)]
    colors = draw_colors(views[0], draws(IMAGES))
    late, early = (apply_colors(pictures(), colors, view) for view in views)
    assert ((late - early).abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.9


def test_nothing_is_done_without_colors():
    images = pictures().clone()
    assert torch.equal(apply_colors(images, Colors(), EVERYTHING), images)
    nobody = draw_colors(EVERYTHING, draws(IMAGES))
    for name in ("jitter_apply", "gray_apply", "blur_apply", "solarize_apply"):
        setattr(nobody, name, torch.zeros(IMAGES, dtype=torch.bool))
    assert torch.equal(apply_colors(images, nobody, EVERYTHING), images)
    assert torch.equal(images, pictures())


def test_the_input_may_be_overwritten():
    colors, images = draw_colors(EVERYTHING, draws(IMAGES)), pictures().clone()
    expected = apply_colors(images, colors, EVERYTHING)
    assert torch.equal(images, pictures())
    assert apply_colors(images, colors, EVERYTHING, inplace=True) is images
    assert torch.equal(images, expected)


def test_an_image_looks_the_same_in_every_batch():
    view = View(jitter=0.7, grayscale=0.4, blur=0.6)  # all that is continuous
    colors = draw_colors(view, draws(IMAGES))
    everywhere = apply_colors(pictures(), colors, view)
    for rows in (slice(1), slice(7, 30)):
        some = apply_colors(pictures()[rows], colors[rows], view)
        torch.testing.assert_close(some, everywhere[rows], atol=BATCH_ATOL, rtol=0)
    assert torch.equal(pictures(), pictures.__wrapped__())
