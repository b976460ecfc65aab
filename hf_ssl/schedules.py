"""Values that change with every optimizer step: learning rate, weight decay, teacher momentum, temperature.

A schedule is a function of the step, counted from 0. Steps after the last one have the value of the last.
"""

import math
from collections.abc import Callable
from typing import Literal


ScheduleName = Literal["quarter_cosine", "warmup_cosine", "warmup_in_cosine", "warmup_under_cosine"]
Schedule = Callable[[int], float]


def quarter_cosine(peak: float, end: float, num_steps: int, num_warmup_steps: int) -> Schedule:
    """
    RelViT's learning rate: linear from 0 during the warm-up, then a quarter of a cosine wave.

    The wave is measured from step 0 rather than from the end of the warm-up, so there is a small jump where it begins,
    and most of the decay comes late.

    Args:
        peak (`float`): Value that the warm-up rises to.
        end (`float`): Value that the wave falls to; one step after the last it would be reached.
        num_steps (`int`): Optimizer steps of the run.
        num_warmup_steps (`int`): Optimizer steps of the warm-up; the first step has the value 0.

    Returns:
        `Callable[[int], float]`: the value at each step.

    Raises:
        `ValueError`: there are no steps, or the warm-up is negative.
    """
    _check(num_steps, num_warmup_steps)

    def value(step: int) -> float:
        step = min(step, num_steps - 1)
        if step < num_warmup_steps:
            return peak * step / num_warmup_steps
        progress = 1 - math.cos(step / num_steps * math.pi / 2)
        return progress * end + (1 - progress) * peak

    return value


def warmup_cosine(peak: float, end: float, num_steps: int, num_warmup_steps: int) -> Schedule:
    """
    The learning rate of PatchMix and PW-Self: linear from 0 during the warm-up, then half a cosine wave.

    Both 0 and the peak are values of the warm-up, as in `numpy.linspace(0, peak, num_warmup_steps)`; the step after it
    has the peak once more.

    Args:
        peak (`float`): Value that the warm-up rises to.
        end (`float`): Value that the wave falls to; one step after the last it would be reached.
        num_steps (`int`): Optimizer steps of the run.
        num_warmup_steps (`int`):
            Optimizer steps of the warm-up; a warm-up of one step has the value 0, and a run that is shorter than its
            warm-up does not reach the peak.

    Returns:
        `Callable[[int], float]`: the value at each step.

    Raises:
        `ValueError`: there are no steps, or the warm-up is negative.
    """
    _check(num_steps, num_warmup_steps)
    wave = cosine(peak, end, max(num_steps - num_warmup_steps, 1))

    def value(step: int) -> float:
        step = min(step, num_steps - 1)
        if step < num_warmup_steps:
            return _linspace(0.0, peak, num_warmup_steps, step)
        return wave(step - num_warmup_steps)

    return value


def warmup_in_cosine(peak: float, end: float, num_steps: int, num_warmup_steps: int, start: float = 0.0) -> Schedule:
    """
    timm's cosine, with which PatchMix fine-tunes: half a cosine wave over the whole run; the warm-up replaces its beginning.

    Args:
        peak (`float`): Value that the warm-up rises to, and that the wave starts from.
        end (`float`): Value that the wave falls to; one step after the last it would be reached.
        num_steps (`int`): Optimizer steps of the run.
        num_warmup_steps (`int`): Optimizer steps of the warm-up.
        start (`float`, *optional*, defaults to 0.0): Value of the first step of the warm-up.

    Returns:
        `Callable[[int], float]`: the value at each step.

    Raises:
        `ValueError`: there are no steps, or the warm-up is negative.
    """
    _check(num_steps, num_warmup_steps)
    wave = cosine(peak, end, num_steps)

    def value(step: int) -> float:
        step = min(step, num_steps - 1)
        if step < num_warmup_steps:
            return start + (peak - start) * step / num_warmup_steps
        return wave(step)

    return value


def warmup_under_cosine(peak: float, end: float, num_steps: int, num_warmup_steps: int) -> Schedule:
    """
    The learning rate of APS: the smaller one of a linear warm-up and of half a cosine wave over the whole run.

    The first step has a share of the peak, and the peak itself is not reached: where the two meet, the wave has fallen.
    The authors count in epochs, see [`per_epoch`].

    Args:
        peak (`float`): Value that the warm-up rises to, and that the wave starts from.
        end (`float`): Value that the wave falls to; one step after the last it would be reached.
        num_steps (`int`): Optimizer steps of the run.
        num_warmup_steps (`int`): Optimizer steps of the warm-up.

    Returns:
        `Callable[[int], float]`: the value at each step.

    Raises:
        `ValueError`: there are no steps, or the warm-up is negative.
    """
    _check(num_steps, num_warmup_steps)
    wave = cosine(peak, end, num_steps)

    def value(step: int) -> float:
        step = min(step, num_steps - 1)
        # The authors' guard against a warm-up of no steps; it is why this is not exactly (step + 1) / num_warmup_steps.
        return min(peak * (step + 1) / (num_warmup_steps + 1e-8), wave(step))

    return value


def per_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    """
    A schedule that counts epochs, as one of steps: it changes when an epoch begins.

    Args:
        schedule (`Callable[[int], float]`): The value in each epoch, counted from 0.
        steps_per_epoch (`int`): Optimizer steps of an epoch.

    Returns:
        `Callable[[int], float]`: the value at each step.
    """
    return lambda step: schedule(step // steps_per_epoch)


def lagged(schedule: Schedule, lag: int) -> Schedule:
    """
    A schedule that comes late: its first value is used `lag` times more, and its last ones not at all.

    The authors of PatchMix and APS tell timm's schedule in fine-tuning which epoch is over, so that each epoch has the
    value of the one before, and the first two have the same.

    Args:
        schedule (`Callable[[int], float]`): The value in each epoch, or at each step, counted from 0.
        lag (`int`): By how many of these it comes late; 0 leaves it as it is.

    Returns:
        `Callable[[int], float]`: the value in each epoch, or at each step.
    """
    return lambda step: schedule(max(step - lag, 0))


def cosine(start: float, end: float, num_steps: int) -> Schedule:
    """
    Half a cosine wave: PatchMix's and PW-Self's weight decay (0.04 to 0.4) and teacher momentum (0.996 to 1).

    Args:
        start (`float`): Value of the first step.
        end (`float`): Value that the wave goes to; one step after the last it would be reached.
        num_steps (`int`): Optimizer steps of the run.

    Returns:
        `Callable[[int], float]`: the value at each step.

    Raises:
        `ValueError`: there are no steps.
    """
    _check(num_steps)

    def value(step: int) -> float:
        progress = (1 - math.cos(math.pi * min(step, num_steps - 1) / num_steps)) / 2
        return start + (end - start) * progress

    return value


def linear_then_constant(start: float, end: float, num_warmup_values: int, steps_per_value: int = 1) -> Schedule:
    """
    A ramp and then a constant: PW-Self's teacher temperature, which changes once per epoch.

    Args:
        start (`float`): First value.
        end (`float`): Last value of the ramp, and the constant.
        num_warmup_values (`int`):
            Values of the ramp, start and end included, as in `numpy.linspace(start, end, num_warmup_values)`; a ramp
            of one value is the start, and 0 leaves it out.
        steps_per_value (`int`, *optional*, defaults to 1):
            Optimizer steps that each value of the ramp lasts: those of an epoch if the ramp is given in epochs.

    Returns:
        `Callable[[int], float]`: the value at each step.

    Raises:
        `ValueError`: the ramp is negative, or its values last no step.
    """
    if num_warmup_values < 0:
        raise ValueError(f"num_warmup_values={num_warmup_values} is negative; 0 leaves the ramp out.")
    if steps_per_value < 1:
        raise ValueError(f"steps_per_value={steps_per_value} must be at least 1, or the number of steps in an epoch.")

    def value(step: int) -> float:
        index = step // steps_per_value
        return _linspace(start, end, num_warmup_values, index) if index < num_warmup_values else end

    return value


def _check(num_steps: int, num_warmup_steps: int = 0) -> None:
    if num_steps < 1:
        raise ValueError(f"A schedule needs at least one step, got num_steps={num_steps}; check --max_steps.")
    if num_warmup_steps < 0:
        raise ValueError(f"num_warmup_steps={num_warmup_steps} is negative; 0 means no warm-up: check --warmup_steps.")


def _linspace(start: float, end: float, num: int, index: int) -> float:
    """`numpy.linspace(start, end, num)[index]`, exact at both ends."""
    if 0 < index == num - 1:
        return end
    return start + (end - start) * (index / max(num - 1, 1))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "quarter_cosine": quarter_cosine,
    "warmup_cosine": warmup_cosine,
    "warmup_in_cosine": warmup_in_cosine,
    "warmup_under_cosine": warmup_under_cosine,
}
