"""The cross-entropy between the scores of matched tokens, teacher against student, without ever holding all scores.

The scores of a token are its products with K prototypes, and K may be 65,536. A block of images at a time is scored, and the
gradient is computed in the same pass; what is left of a block are numbers of the width of a token.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...views import full_precision
from .token_pairs import TokenPairs


class _MatchedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor,
        teacher: Tensor,
        teacher_prototypes: Tensor,
        center: Tensor,
        pairs: TokenPairs,
        temperatures: tuple[float, float],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        student_temperature, teacher_temperature = temperatures
        # Tokens are divided by the temperatures, and not their scores, which are many more.
        rows, teacher_rows = (student / student_temperature).to(dtype), (teacher / teacher_temperature).to(dtype)
        columns, teacher_columns = prototypes.to(dtype), teacher_prototypes.to(dtype)
        entropies = student.new_empty(len(student), 2)
        grad_student, grad_prototypes = torch.empty_like(student), torch.zeros_like(prototypes)
        # The largest weight becomes 1 while gradients are computed: in float16 they would be too small.
        weights = pairs.weights.to(torch.promote_types(dtype, torch.float32))
        scale = weights.amax().clamp(min=torch.finfo(weights.dtype).tiny)
        weights = weights / scale
        for of_student, of_teacher in pairs.blocks:
            expected = _upcast(teacher_rows[of_teacher] @ teacher_columns.T)
            expected = expected.sub_(center[pairs.positions[of_teacher]], alpha=1 / teacher_temperature).softmax(1)
            gradient = _compare(
                rows[of_student] @ columns.T,
                expected,
                (pairs.targets[of_student] - of_teacher.start).clamp(min=0),
                weights[of_student],
                entropies[of_student],
            ).to(dtype)
            grad_student[of_student] = (gradient @ columns).to(student.dtype)
            grad_prototypes += gradient.T @ rows[of_student]
        grad_student.mul_(scale / student_temperature)
        grad_prototypes.mul_(scale)
        ctx.save_for_backward(grad_student, grad_prototypes)
        ctx.mark_non_differentiable(entropies)
        return (entropies * pairs.weights.to(entropies)).sum(), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_student, grad_prototypes = ctx.saved_tensors
        return grad_student * grad, grad_prototypes * grad, *[None] * 6


def _compare(scores: Tensor, expected: Tensor, targets: Tensor, weights: Tensor, entropies: Tensor) -> Tensor:
    """
    Write the cross-entropies of a block of tokens to `entropies`, and return the gradient of their weighted sum by the
    student's scores: its distribution minus what the teacher wants.
    """
    scores = _upcast(scores).log_softmax(1)
    gradient, of_view = scores.exp().mul_(weights.sum(1, keepdim=True)), torch.empty_like(scores)
    for view in (0, 1):
        torch.index_select(expected, 0, targets[:, view], out=of_view)
        gradient.addcmul_(of_view, weights[:, view : view + 1], value=-1)
        entropies[:, view] = of_view.mul_(scores).sum(1).neg_()
    return gradient


def _upcast(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the same is true of the tokens that are compared
def matched_cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    center: Tensor,
    pairs: TokenPairs,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor]:
    """
    The weighted sum of the cross-entropies of all pairs of tokens (Javidani et al., arXiv 2310.18651): from the teacher's
    distribution over the prototypes, centered and sharpened, to the student's.

    Beside the prototypes' gradient, it takes the memory of the scores of a block of images, a few times over.

    Args:
        student (`torch.Tensor` of shape `(num_student_tokens, dim)`):
            What the student's head makes of its tokens, those of `pairs.student_rows`.
        prototypes (`torch.Tensor` of shape `(num_prototypes, dim)`):
            The student's.
        teacher (`torch.Tensor` of shape `(num_teacher_tokens, dim)`):
            What the teacher's head makes of its tokens, those of `pairs.teacher_rows`; it gets no gradient.
        teacher_prototypes (`torch.Tensor` of shape `(num_prototypes, dim)`):
            The teacher's.
        center (`torch.Tensor` of shape `(num_positions, num_prototypes)`):
            What is subtracted from the teacher's scores, for each place in a view.
        pairs ([`TokenPairs`]):
            What is compared with what.
        student_temperature (`float`): What the student's scores are divided by.
        teacher_temperature (`float`): What the teacher's scores are divided by, less the center.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the loss, of shape `()`; and each cross-entropy, of shape
        `(num_student_tokens, 2)`, without gradient and of no meaning where there is no comparison.
    """
    device, dtype = student.device.type, student.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with full_precision(student.device):
        student = _upcast(student)
        loss, entropies = _MatchedCrossEntropy.apply(
            student,
            prototypes,
            teacher,
            teacher_prototypes,
            center,
            pairs,
            (student_temperature, teacher_temperature),
            dtype,
        )
    return loss, entropies
