"""What the teacher's update and the clipping of each parameter cost beside a Python loop over the parameters.

    python benchmarks/ema_and_clipping.py

The ratio is that of two times measured in turn in one process, in CPU-seconds, which other programs on the machine
hardly disturb: the library's functions, which hand all tensors to torch at once, over the loops of the originals.
Gradients are clipped at a norm that all of them exceed, and at one that none does, where the loop multiplies nothing:
it looks at every norm, which on a GPU is a wait.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from hf_ssl.backbones import ViTTrunk, vit_config
from hf_ssl.clipping import clip_per_parameter_
from hf_ssl.models.momentum import update_teacher


# Backbone and calls that are timed together.
SETTINGS = [("vit-micro", 20), ("vit-tiny", 5), ("vit-small", 2)]

Function = Callable[[], object]


@torch.no_grad()
def update_in_a_loop(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The teacher's update as the originals write it."""
    for k, q in zip(teacher.parameters(), student.parameters(), strict=True):
        k.mul_(momentum).add_((1 - momentum) * q)


@torch.no_grad()
def clip_in_a_loop(model: nn.Module, max_norm: float) -> None:
    """The clipping as the originals write it, but of query, key and value each on its own."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            factor = max_norm / (parameter.grad.norm() + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)


def functions(backbone: str) -> Iterator[tuple[str, Function, Function, Function]]:
    """Name, what has to be done before each call, the library's function, and the loop."""
    student = ViTTrunk(vit_config(backbone, image_size=32, patch_size=4))
    teacher = copy.deepcopy(student).requires_grad_(False)

    def set_gradients() -> None:
        for parameter in student.parameters():
            parameter.grad = torch.ones_like(parameter)

    yield (
        "teacher",
        lambda: None,
        lambda: update_teacher(teacher, student, 0.996),
        lambda: update_in_a_loop(teacher, student, 0.996),
    )
    for name, max_norm in (("clip all", 1e-2), ("clip none", 1e6)):
        yield (
            name,
            set_gradients,
            lambda max_norm=max_norm: clip_per_parameter_(student.named_parameters(), max_norm),
            lambda max_norm=max_norm: clip_in_a_loop(student, max_norm),
        )


def seconds(function: Function, before: Function, repeat: int) -> float:
    """CPU-seconds of one call, the mean of `repeat`."""
    total = 0.0
    for _ in range(repeat):
        before()
        start = time.process_time()
        function()
        total += time.process_time() - start
    return total / repeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(f"float32 on cpu, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(f"{'encoder':<10} {'function':<10} {'ours ms':>9} {'loop ms':>9} {'ratio':>7} {'spread':>13}")
    for backbone, repeat in SETTINGS:
        for name, before, ours, loop in functions(backbone):
            for function in (ours, loop):
                seconds(function, before, 3)  # warm up
            pairs = [[seconds(function, before, repeat) for function in (ours, loop)] for _ in range(args.rounds)]
            ratios = sorted(a / b for a, b in pairs)
            ours_time, loop_time = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"{backbone:<10} {name:<10} {ours_time * 1e3:>9.2f} {loop_time * 1e3:>9.2f} "
                f"{statistics.median(ratios):>7.3f} {ratios[0]:>6.3f}–{ratios[-1]:.3f}"
            )


if __name__ == "__main__":
    main()
