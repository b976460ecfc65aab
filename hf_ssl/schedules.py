"""Values that change with every optimizer step."""

import math
from collections.abc import Callable
from typing import Literal


ScheduleName = Literal["quarter_cosine"]
Schedule = Callable[[int], float]


def quarter_cosine(peak: float, end: float, num_steps: int, num_warmup_steps: int) -> Schedule:
    """
    RelViT's learning rate: linear from 0 during the warm-up, then a quarter of a cosine wave.

    The wave is measured from step 0 rather than from the end of the warm-up, so there is a small jump where it begins,
    and most of the decay comes late.

    Args:
        peak (`float`): Value that the warm-up rises to.
        end (`float`): Value at the last step.
        num_steps (`int`): Optimizer steps of the run.
        num_warmup_steps (`int`): Optimizer steps of the warm-up; the first step has the value 0.

    Returns:
        `Callable[[int], float]`: the value at each step.

    Raises:
        `ValueError`: there are no steps.
    """

    if num_steps < 1:
        raise ValueError(f"A schedule needs at least one step, got num_steps={num_steps}; check --max_steps.")

    def value(step: int) -> float:
        if step < num_warmup_steps:
            return peak * step / num_warmup_steps
        progress = 1 - math.cos(step / num_steps * math.pi / 2)
        return progress * end + (1 - progress) * peak

    return value


SCHEDULES: dict[str, Callable[[float, float, int, int], Schedule]] = {"quarter_cosine": quarter_cosine}
