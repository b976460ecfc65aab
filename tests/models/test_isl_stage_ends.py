"""When the stages of ISL's rounds end."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_ssl import ISLConfig
from hf_ssl.models.isl.stage_ends import (
    GANEpoch,
    best_epoch,
    epochs_without_gain,
    has_enough_neighbors,
    official_gan_stop,
    smoothed_quality,
    why_gan_ends,
    why_mining_ends,
)

from .test_isl import BACKBONES


def config(**options):
    return ISLConfig(backbone_config=BACKBONES["cifar_resnet"], **options)


def epochs(qualities, discriminator_loss=0.7, generator_loss=0.7, links=0.5, agreement=0.9, alignments=None):
    """Epochs of these qualities; what else they are is the same, or what a list says."""
    count = len(qualities)
    columns = [discriminator_loss, generator_loss, alignments or 0.0, links, agreement]
    columns = [column if isinstance(column, list) else [column] * count for column in columns]
    return [GANEpoch(*row) for row in zip(*columns, qualities, strict=True)]


# ---- the authors' rule ----


def pseudo_code(losses, is_first_round):
    """As the specification has it."""
    last, n, lowest = losses[-1], len(losses), min(losses)
    if (is_first_round and (n < 10 or last > 1)) or lowest > 1 or last == min(losses[-3:]):
        return False
    return lowest not in losses[-3:]


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.25, 1.5]), min_size=1, max_size=16), st.booleans())
@example([0.5] + [1.0] * 7 + [0.75, 1.0], True)
@example([0.5] + [1.0] * 7 + [0.75, 1.25], True)
def test_official_rule_is_the_pseudo_code(losses, is_first_round):
    assert official_gan_stop(losses, is_first_round) == pseudo_code(losses, is_first_round)


@pytest.mark.parametrize(
    ("losses", "first", "later"),
    [
        ([0.5], False, False),
        ([0.5, 0.75, 0.8], False, False),  # the lowest is among the last three
        ([0.5, 0.75, 0.8, 0.9], False, True),
        ([0.5, 0.75, 0.9, 0.8], False, True),
        ([0.5, 0.9, 0.8, 0.75], False, False),  # still falling
        ([0.5, 0.75, 0.5, 0.9], False, False),  # the lowest comes again
        ([0.5, 0.8, 0.8, 0.8], False, False),  # the last is one of the lowest of three
        ([1.1, 1.2, 1.3, 1.4], False, False),  # never below 1
        ([1.0, 1.2, 1.3, 1.4], False, True),  # 1 itself is
        ([0.5] + [0.8] * 7 + [0.7, 0.9], True, True),  # ten epochs
        ([0.5] + [0.8] * 6 + [0.7, 0.9], False, True),  # nine
        ([0.5] + [0.8] * 7 + [0.7, 1.0], True, True),
        ([0.5] + [0.8] * 7 + [0.7, 1.1], False, True),  # the last is above 1
    ],
)
def test_official_rule(losses, first, later):
    assert official_gan_stop(losses, True) is first and official_gan_stop(losses, False) is later
    told = config(gan_stop="official", gan_patience=1, gan_min_steps=0)
    for is_first_round, ends in ((True, first), (False, later)):
        # Qualities that would have ended it long ago are of no account.
        run = epochs([0.5] * len(losses), generator_loss=losses)
        assert why_gan_ends(run, is_first_round, 10**6, told) == ("the authors' rule" if ends else None)


# ---- quality ----


def test_quality():
    """Links per image, no more than are aimed at, times agreement."""
    assert smoothed_quality(None, 0.25, 0.5, aim=0.5) == 0.125
    assert smoothed_quality(None, 4.0, 0.5, aim=0.5) == 0.25
    assert smoothed_quality(None, 0.0, 0.0, aim=0.5) == 0.0
    previous = epochs([0.2])[0]
    assert smoothed_quality(previous, 0.25, 0.5, aim=0.5) == pytest.approx(0.6 * 0.2 + 0.4 * 0.125, rel=1e-12)
    assert smoothed_quality(previous, 9.0, 1.0, aim=2.0) == pytest.approx(0.6 * 0.2 + 0.4 * 2.0, rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0.1, 2))
def test_smoothing_over_epochs(measured, aim):
    """The weights that are written out: 0.6 to the power of the age, and 0.4 but for the first epoch."""
    previous = None
    for links, agreement in measured:
        previous = epochs([smoothed_quality(previous, links, agreement, aim)])[0]
    raw = [min(links, aim) * agreement for links, agreement in measured]
    weights = [(0.4 if number else 1.0) * 0.6 ** (len(raw) - 1 - number) for number in range(len(raw))]
    assert sum(weights) == pytest.approx(1)
    expected = sum(weight * quality for weight, quality in zip(weights, raw, strict=True))
    assert previous.quality == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_best_epoch():
    assert best_epoch(epochs([0.3])) == 0
    assert best_epoch(epochs([0.1, 0.4, 0.2], alignments=[0.9, 0.1, 0.8])) == 1
    assert best_epoch(epochs([0.4, 0.1, 0.4, 0.4], alignments=[0.2, 0.9, 0.5, 0.3])) == 2
    assert best_epoch(epochs([0.0, 0.0], alignments=[-0.5, -0.2])) == 1
    assert best_epoch(epochs([0.4, 0.4], alignments=[0.2, 0.2])) == 0, "nothing tells them apart: the first"


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [
        ([0.5], 0),
        ([0.5, 0.5], 1),
        ([0.5, 0.509], 1),  # less than 2 %
        ([0.5, 0.51], 1),  # 2 %, not more
        ([0.5, 0.5101], 0),
        ([0.5, 0.509, 0.512], 0),  # slowly, but more than 2 % since the last gain
        ([0.5, 0.6, 0.55, 0.61, 0.611], 3),
        ([0.0, 0.0, 0.0], 2),
        ([0.0, 0.0, 1e-9], 0),
        ([0.5, 0.4, 0.3, 0.2], 3),
    ],
)
def test_epochs_without_gain(qualities, expected):
    assert epochs_without_gain(epochs(qualities)) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=12))
def test_gains_are_a_chain(hundredths):
    """From the first epoch on, to the next one that is more than 2 % better, and so on; in whole numbers."""
    last = 0
    while following := [i for i in range(last + 1, len(hundredths)) if 50 * hundredths[i] > 51 * hundredths[last]]:
        last = following[0]
    # 0.02 is no binary number, so equality may go either way.
    if not any(50 * a == 51 * b and a for a in hundredths for b in hundredths):
        assert epochs_without_gain(epochs([float(h) for h in hundredths])) == len(hundredths) - 1 - last


# ---- the rule by quality ----


def ends(run, is_first_round=False, steps=10**6, **options):
    return why_gan_ends(run, is_first_round, steps, config(**options))


@pytest.mark.parametrize("patience", [1, 5])
@pytest.mark.parametrize("is_first_round", [True, False])
def test_patience(patience, is_first_round):
    """Of the epochs after the last gain, and not before there are enough epochs."""
    fewest = 10 if is_first_round else 3
    rising = [0.1 * 1.1**number for number in range(12)]
    for extra in range(patience + 2):
        run = epochs(rising + [rising[-1]] * extra)
        expected = "no better quality" if extra >= patience else None
        assert ends(run, is_first_round, gan_patience=patience) == expected
    for count in range(1, 14):
        expected = "no better quality" if count >= fewest and count - 1 >= patience else None
        assert ends(epochs([0.5] * count), is_first_round, gan_patience=patience) == expected


def test_fewest_steps():
    """They count over all rounds."""
    run = epochs([0.5] * 20)
    assert ends(run, True, steps=2999) is None and ends(run, True, steps=3000) == "no better quality"
    assert ends(run, steps=99, gan_min_steps=100) is None
    assert ends(run, steps=100, gan_min_steps=100) == "no better quality"
    assert ends(run, steps=0, gan_min_steps=0) == "no better quality"


@pytest.mark.parametrize(
    ("links", "agreement", "aim", "expected"),
    [
        (0.05, 0.5, 0.5, True),  # exactly a tenth of the aim, and a half
        (0.0499, 0.9, 0.5, False),
        (0.05, 0.4999, 0.5, False),
        (0.1, 0.9, 2.0, False),
        (0.2, 0.9, 2.0, True),
        (0.0, 0.9, 0.0, True),
    ],
)
def test_links_must_be_sound(links, agreement, aim, expected):
    run = epochs([0.5] * 20, links=links, agreement=agreement)
    assert (ends(run, neighbors_per_round=aim) == "no better quality") == expected


def test_it_is_the_best_epoch_that_must_be_sound():
    """And no other."""
    good, bad = [0.5] + [0.0] * 19, [0.0] + [0.5] * 19
    qualities = [0.5] + [0.4] * 19
    assert ends(epochs(qualities, links=good)) == "no better quality" and ends(epochs(qualities, links=bad)) is None
    good, bad = [0.6] + [0.1] * 19, [0.1] + [0.6] * 19
    assert ends(epochs(qualities, agreement=good)) == "no better quality"
    assert ends(epochs(qualities, agreement=bad)) is None


def test_discriminator_that_has_won():
    """Ten epochs in a row, however early, and however good."""
    won = "the discriminator has won"
    assert ends(epochs([0.0] * 10, discriminator_loss=0.049), True, steps=10) == won
    assert ends(epochs([0.0] * 9, discriminator_loss=0.049), steps=10) is None
    assert ends(epochs([0.0] * 10, discriminator_loss=0.05), steps=10) is None
    interrupted = [0.04] * 9 + [0.06] + [0.04] * 9
    assert ends(epochs([0.0] * 19, discriminator_loss=interrupted), steps=10) is None
    assert ends(epochs([0.0] * 20, discriminator_loss=[*interrupted, 0.04]), steps=10) == won
    rising = [0.1 * 1.1**number for number in range(10)]
    assert ends(epochs(rising, discriminator_loss=0.01)) == won
    for rule in ("official", "epochs"):
        assert ends(epochs([0.0] * 10, discriminator_loss=0.049), gan_stop=rule) is None


@pytest.mark.parametrize("rule", ["quality", "official", "epochs"])
@pytest.mark.parametrize("is_first_round", [True, False])
def test_most_epochs(rule, is_first_round):
    """In any case, and with `epochs` in no other."""
    rising = [0.1 * 1.1**number for number in range(12)]
    run = epochs(rising, generator_loss=rising[::-1])
    for most in (1, 5, 12):
        for count in range(1, most + 1):
            expected = "gan_max_epochs" if count == most else None
            assert ends(run[:count], is_first_round, steps=count, gan_stop=rule, gan_max_epochs=most) == expected
    over = epochs([0.5] * 30, generator_loss=[0.5, *[0.9, 0.8] * 14, 0.9], discriminator_loss=0.01)
    assert (ends(over, is_first_round, gan_stop=rule, gan_max_epochs=31) is None) == (rule == "epochs")


# ---- mining ----


def test_enough_neighbors():
    """More than the aim, which grows from round to round."""
    assert not has_enough_neighbors(10, 20, 0, 0.5) and has_enough_neighbors(11, 20, 0, 0.5)
    assert not has_enough_neighbors(20, 20, 1, 0.5) and has_enough_neighbors(21, 20, 1, 0.5)
    assert not has_enough_neighbors(40, 20, 3, 0.5) and has_enough_neighbors(41, 20, 3, 0.5)
    assert not has_enough_neighbors(0, 20, 0, 0) and has_enough_neighbors(1, 20, 0, 0)


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 64), st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]))
def test_aim(num_links, num_images, round_number, per_round):
    """In whole numbers, for aims that are binary fractions."""
    expected = 4 * num_links > (round_number + 1) * int(4 * per_round) * num_images
    assert has_enough_neighbors(num_links, num_images, round_number, per_round) == expected


def mining_ends(new_links, num_links, round_number=0, num_images=10_000, **options):
    return why_mining_ends(new_links, num_links, num_images, round_number, config(**options))


def test_mining_ends():
    assert mining_ends([3000], 3000) is None
    assert mining_ends([5001], 5001) == "enough neighbors" and mining_ends([5000], 5000) is None
    assert mining_ends([5001], 5001, round_number=1) is None
    assert mining_ends([0], 20_001, round_number=3) == "enough neighbors", "nothing new, but nothing is missing"


def test_hardly_any_new_links():
    """Less than a thousandth of all there are; of the last pass."""
    assert mining_ends([2000, 3], 2003) is None
    assert mining_ends([2000, 2], 3002) == "hardly any new links"
    assert mining_ends([0], 0) == "hardly any new links"
    assert mining_ends([0, 2000], 2000) is None


def test_most_passes():
    passes = [100] * 19
    assert mining_ends(passes, 1900) is None
    assert mining_ends([*passes, 100], 2000) == "mining_max_passes"
    assert mining_ends([100], 100, mining_max_passes=1) == "mining_max_passes"
    assert mining_ends([6000], 6000, mining_max_passes=1) == "enough neighbors"
    assert mining_ends([1000, 0], 1000, mining_max_passes=2) == "hardly any new links"


def test_mining_comes_to_an_end():
    """Whatever the passes find: at least one, at most as many as are allowed."""
    for found in ([1], [0], [7, 3, 1, 1], [math.ceil(1000 / 2**n) for n in range(12)]):
        passes = []
        while True:
            passes.append(found[len(passes) % len(found)])
            if mining_ends(passes, sum(passes), mining_max_passes=6):
                break
        assert 1 <= len(passes) <= 6
