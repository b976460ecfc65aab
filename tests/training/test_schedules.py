from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler

from hf_ssl.schedules import (
    SCHEDULES,
    cosine,
    lagged,
    linear_then_constant,
    per_epoch,
    quarter_cosine,
    warmup_cosine,
    warmup_in_cosine,
    warmup_under_cosine,
)
from hf_ssl.training_args import SSLTrainingArguments


VALUES = st.floats(1e-6, 10)
STEPS = st.integers(1, 300)


def values(schedule, num_steps):
    return [schedule(step) for step in range(num_steps)]


def half_wave(start, end, num_steps):
    return end + (start - end) / 2 * (1 + np.cos(np.pi * np.arange(num_steps) / num_steps))


def is_monotone(sequence, rising):
    return all(a <= b if rising else a >= b for a, b in pairwise(sequence))


# ---- against numpy ----


@pytest.mark.parametrize("num_warmup_steps", [0, 1, 2, 3, 10, 99])
@pytest.mark.parametrize(("peak", "end"), [(2e-3, 1e-6), (1.0, 0.0), (0.3, 0.3)])
def test_warmup_cosine_is_linspace_and_half_a_wave(peak, end, num_warmup_steps):
    warmup = np.linspace(0, peak, num_warmup_steps)
    expected = np.concatenate([warmup, half_wave(peak, end, 100 - num_warmup_steps)])
    actual = values(warmup_cosine(peak, end, 100, num_warmup_steps), 100)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * peak)


@pytest.mark.parametrize("num_warmup_steps", [20, 21, 1000])
def test_warmup_that_fills_the_run(num_warmup_steps):
    """The run sees the beginning of the warm-up, and then nothing else."""
    schedule = warmup_cosine(1e-3, 1e-6, 20, num_warmup_steps)
    expected = np.linspace(0, 1e-3, num_warmup_steps)[:20]
    np.testing.assert_allclose(values(schedule, 20), expected, rtol=0, atol=1e-15)
    assert schedule(500) == schedule(19)


@pytest.mark.parametrize(("start", "end"), [(0.04, 0.4), (0.996, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 1000])
def test_cosine_is_half_a_wave(start, end, num_steps):
    expected = half_wave(start, end, num_steps)
    np.testing.assert_allclose(values(cosine(start, end, num_steps), num_steps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_warmup_values", [0, 1, 2, 3, 30])
@pytest.mark.parametrize("steps_per_value", [1, 2, 5])
def test_linear_then_constant_is_linspace(num_warmup_values, steps_per_value):
    schedule = linear_then_constant(0.04, 0.07, num_warmup_values, steps_per_value)
    expected = np.append(np.linspace(0.04, 0.07, num_warmup_values), [0.07] * 5).repeat(steps_per_value)
    np.testing.assert_allclose(values(schedule, len(expected)), expected, rtol=0, atol=1e-15)
    assert schedule(10**6) == 0.07


def test_lag():
    schedule = warmup_in_cosine(1e-3, 1e-5, 10, 3, start=1e-6)
    assert values(lagged(schedule, 2), 10) == [schedule(0)] * 2 + values(schedule, 8)
    assert values(lagged(schedule, 0), 10) == values(schedule, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule_lag": 1, "schedule": "warmup_in_cosine"}, "number of epochs: set --schedule_unit epoch"),
        ({"schedule_lag": -1}, "schedule_lag=-1 must not be negative"),
        ({"warmup_learning_rate": 1e-6}, "only the warm-up of --schedule warmup_in_cosine"),
        (
            {"warmup_learning_rate": 1e-6, "schedule": "warmup_cosine"},
            "only the warm-up of --schedule warmup_in_cosine",
        ),
        ({"warmup_learning_rate": -1e-6, "schedule": "warmup_in_cosine"}, "must not be negative"),
    ],
)
def test_where_there_is_no_such_thing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SSLTrainingArguments(str(tmp_path), use_cpu=True, **options)


# ---- against the originals ----


def test_recorded_patchmix():
    """Recorded from the authors' code, golden cases `momentum` and `no_momentum_multi_crop`: 6 epochs of 4 steps."""
    recorded = [0.0, 0.00014285714285714287, 0.00028571428571428574, 0.0004285714285714286, 0.0005714285714285715]
    recorded += [0.0007142857142857144, 0.0008571428571428572, 0.001, 0.001, 0.0009904022475614137]
    recorded += [0.0009619778264893878, 0.0009158190713451216, 0.0008536998372026805, 0.0007780073313932914]
    recorded += [0.0006916503744663625, 0.0005979476158470562, 0.0005005000000000001, 0.00040305238415294404]
    recorded += [0.00030934962553363774, 0.00022299266860670885, 0.00014730016279731955, 8.51809286548786e-05]
    recorded += [3.902217351061228e-05, 1.0597752438586402e-05]
    assert values(warmup_cosine(1e-3, 1e-6, 24, 8), 24) == pytest.approx(recorded, rel=0, abs=1e-12)

    weight_decay = [0.03999999999999998, 0.04153992495271408, 0.04613335126796769, 0.05370168414796839]
    assert values(cosine(0.04, 0.4, 24), 4) == pytest.approx(weight_decay, rel=0, abs=1e-12)
    assert cosine(0.04, 0.4, 24)(23) == pytest.approx(0.39846007504728587, rel=0, abs=1e-12)

    momentum = [0.996, 0.9960171102772524, 0.9960681483474219, 0.9961522409349775]
    assert values(cosine(0.996, 1.0, 24), 4) == pytest.approx(momentum, rel=0, abs=1e-12)
    assert cosine(0.996, 1.0, 24)(23) == pytest.approx(0.9999828897227476, rel=0, abs=1e-12)


def test_recorded_patchmix_step():
    """
    Recorded from the authors' code: what the optimizer step of golden case `momentum` used (epoch 4 of 10, one step
    per epoch), whose teacher momentum is that of an epoch later.
    """
    assert warmup_cosine(0.002 * 6 / 8, 1e-6, 10, 2)(4) == pytest.approx(0.0012804765324993174, rel=0, abs=1e-12)
    assert cosine(0.04, 0.4, 10)(4) == pytest.approx(0.16437694101250946, rel=0, abs=1e-12)
    assert cosine(0.9, 1.0, 10)(5) == pytest.approx(0.95, rel=0, abs=1e-12)


def test_recorded_pw_self():
    """Recorded from the authors' code, golden case `even_grid`: 4 epochs of 2 steps, one of them warm-up."""
    rate = [0.0, 0.0011718750000000002, 0.0011718750000000002, 0.0010934412473280525]
    rate += [0.0008791562500000003, 0.0005864375000000002, 0.0002937187500000002, 7.943375267194767e-05]
    assert values(warmup_cosine(0.05 * 6 / 256, 1e-6, 8, 2), 8) == pytest.approx(rate, rel=0, abs=1e-12)

    weight_decay = [0.03999999999999998, 0.05370168414796839, 0.09272077938642143, 0.15111698217428382]
    weight_decay += [0.22, 0.2888830178257161, 0.3472792206135786, 0.3862983158520316]
    assert values(cosine(0.04, 0.4, 8), 8) == pytest.approx(weight_decay, rel=0, abs=1e-12)

    momentum = [0.95, 0.9519030116872178, 0.9573223304703363, 0.9654329141908727]
    momentum += [0.975, 0.9845670858091272, 0.9926776695296636, 0.9980969883127822]
    assert values(cosine(0.95, 1.0, 8), 8) == pytest.approx(momentum, rel=0, abs=1e-12)

    assert values(linear_then_constant(0.04, 0.04, 0, 2), 8) == [0.04] * 8


# ---- laws ----


@settings(deadline=None)
@given(VALUES, VALUES, STEPS, STEPS)
def test_warmup_cosine_laws(peak, end, num_steps, num_warmup_steps):
    sequence = values(warmup_cosine(peak, end, num_steps, num_warmup_steps), num_steps)
    warmup, wave = sequence[:num_warmup_steps], sequence[num_warmup_steps:]
    assert sequence[0] == 0
    assert is_monotone(warmup, rising=True)
    assert is_monotone(wave, rising=end > peak)
    assert all(0 <= value <= peak for value in warmup)
    assert all(min(peak, end) <= value <= max(peak, end) for value in wave)
    if wave:
        assert wave[0] == peak
        if num_warmup_steps > 1:
            assert warmup[-1] == peak


@settings(deadline=None)
@given(VALUES, VALUES, STEPS)
def test_cosine_laws(start, end, num_steps):
    schedule = cosine(start, end, num_steps)
    sequence = values(schedule, num_steps)
    assert sequence[0] == start
    assert is_monotone(sequence, rising=end > start)
    assert all(min(start, end) <= value <= max(start, end) for value in sequence)
    # The wave is point-symmetric about its middle, so that its end lies one step after the last.
    assert start + end - sequence[-1] == pytest.approx(schedule(1) if num_steps > 1 else end, abs=1e-12)


@settings(deadline=None)
@given(VALUES, VALUES, st.integers(0, 40), st.integers(1, 9))
def test_linear_then_constant_laws(start, end, num_warmup_values, steps_per_value):
    schedule = linear_then_constant(start, end, num_warmup_values, steps_per_value)
    sequence = values(schedule, (num_warmup_values + 2) * steps_per_value)
    assert sequence[0] == (start if num_warmup_values else end)
    assert sequence[-1] == end
    assert is_monotone(sequence, rising=end > start)
    assert all(min(start, end) <= value <= max(start, end) for value in sequence)
    assert all(sequence[step] == sequence[step - step % steps_per_value] for step in range(len(sequence)))
    if num_warmup_values > 1:  # no jump where the constant begins
        assert schedule((num_warmup_values - 1) * steps_per_value) == end


@settings(deadline=None)
@given(VALUES, VALUES, STEPS, st.integers(0, 300))
def test_quarter_cosine_laws(peak, end, num_steps, num_warmup_steps):
    sequence = values(quarter_cosine(peak, end, num_steps, num_warmup_steps), num_steps)
    warmup, wave = sequence[:num_warmup_steps], sequence[num_warmup_steps:]
    assert sequence[0] == (0 if num_warmup_steps else peak)
    assert all(a < b for a, b in pairwise(warmup))
    assert wave == pytest.approx(sorted(wave, reverse=end < peak), rel=1e-12)
    assert all(value <= peak for value in warmup)


@pytest.mark.parametrize(("num_steps", "warmup", "start"), [(20, 5, 1e-6), (20, 0, 0.0), (7, 7, 0.0), (50, 1, 1e-4)])
def test_warmup_in_cosine_is_that_of_timm(num_steps, warmup, start):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=num_steps, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=start)
    expected = []
    for step in range(num_steps):
        theirs.step(step)
        expected.append(optimizer.param_groups[0]["lr"])
    actual = values(warmup_in_cosine(1e-3, 1e-5, num_steps, warmup, start), num_steps)
    assert actual == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(VALUES, STEPS, st.integers(0, 300))
def test_warmup_under_cosine_laws(peak, num_steps, num_warmup_steps):
    sequence = values(warmup_under_cosine(peak, 0.0, num_steps, num_warmup_steps), num_steps)
    wave = values(cosine(peak, 0.0, num_steps), num_steps)
    assert all(value <= of_wave for value, of_wave in zip(sequence, wave, strict=True))
    first = min(1, 1 / num_warmup_steps) if num_warmup_steps else 1
    assert sequence[0] == pytest.approx(peak * first, rel=2e-8)
    turn = sequence.index(max(sequence))
    assert is_monotone(sequence[: turn + 1], rising=True) and is_monotone(sequence[turn:], rising=False)
    assert num_warmup_steps > 1 or sequence == pytest.approx(wave, rel=2e-8)


def test_per_epoch():
    schedule = per_epoch(cosine(1.0, 0.0, 4), 3)
    assert values(schedule, 12) == [value for value in values(cosine(1.0, 0.0, 4), 4) for _ in range(3)]
    assert schedule(50) == schedule(11)


@pytest.mark.parametrize("name", SCHEDULES)
def test_registry(name):
    """All have the signature of the learning-rate schedules, and the value of the last step after it."""
    schedule = SCHEDULES[name](1e-3, 1e-6, 100, 10)
    assert schedule(0) == (pytest.approx(1e-4) if name == "warmup_under_cosine" else 0)
    assert max(values(schedule, 100)) == pytest.approx(1e-3, rel=0.03)
    assert 1e-6 < schedule(99) < 2e-5
    assert schedule(100) == schedule(10**9) == schedule(99)


def test_errors():
    for make in (quarter_cosine, warmup_cosine, warmup_in_cosine, warmup_under_cosine):
        with pytest.raises(ValueError, match="num_steps=0; check --max_steps"):
            make(1.0, 0.0, 0, 0)
        with pytest.raises(ValueError, match="num_warmup_steps=-1 is negative; 0 means"):
            make(1.0, 0.0, 10, -1)
    with pytest.raises(ValueError, match="num_steps=-3; check --max_steps"):
        cosine(1.0, 0.0, -3)
    with pytest.raises(ValueError, match="num_warmup_values=-1 is negative; 0 leaves"):
        linear_then_constant(0.0, 1.0, -1)
    with pytest.raises(ValueError, match="steps_per_value=0 must be at least 1"):
        linear_then_constant(0.0, 1.0, 3, 0)
