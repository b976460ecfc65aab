"""The teacher as a moving average of the student."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """
    Move the teacher's parameters towards the student's: `momentum * teacher + (1 - momentum) * student`.

    This is the momentum encoder of MoCo (He et al., "Momentum Contrast for Unsupervised Visual Representation
    Learning", CVPR 2020). Buffers, such as the statistics of batch normalization, are not averaged. With momentum 1
    the teacher stays as it is and with momentum 0 it becomes the student, exactly.

    Args:
        teacher (`torch.nn.Module`):
            The moving average; changed in place.
        student (`torch.nn.Module`):
            A module with parameters of the same names and shapes.
        momentum (`float`):
            Share of the teacher that is kept, in [0, 1].

    Raises:
        `ValueError`: the momentum is out of range, or the parameters do not match.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must be in [0, 1].")
    kept, new = _match(teacher.named_parameters(), student.named_parameters())
    # Multiplying and adding rounds as the originals do; lerp_ rounds once less, but a quarter of the results differ.
    torch._foreach_mul_(kept, momentum)
    torch._foreach_add_(kept, new, alpha=1 - momentum)


@torch.no_grad()
def copy_to_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """
    Make the teacher a frozen copy of the student: the parameters and the buffers.

    Args:
        teacher (`torch.nn.Module`): Changed in place.
        student (`torch.nn.Module`): A module with parameters and buffers of the same names and shapes.

    Raises:
        `ValueError`: the parameters or the buffers do not match.
    """
    old, new = _match(
        chain(teacher.named_parameters(), teacher.named_buffers()),
        chain(student.named_parameters(), student.named_buffers()),
    )
    for target, source in zip(old, new, strict=True):
        target.copy_(source)
    teacher.requires_grad_(False)


def _match(
    teacher: Iterable[tuple[str, Tensor]], student: Iterable[tuple[str, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of both, paired by name."""
    ours, theirs = dict(teacher), dict(student)
    for name in ours | theirs:
        for role, tensors in (("teacher", ours), ("student", theirs)):
            if name not in tensors:
                raise ValueError(f"The {role} has no {name!r}; build teacher and student from the same configuration.")
        shapes = [tuple(tensors[name].shape) for tensors in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name!r} has the shape {shapes[0]} in the teacher and {shapes[1]} in the student; build both from "
                "the same configuration."
            )
    return list(ours.values()), [theirs[name] for name in ours]
