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
        rows, columns, teacher_columns = student.to(dtype), prototypes.to(dtype), teacher_prototypes.to(dtype)
        entropies = student.new_empty(len(student), 2)
        grad_student, grad_prototypes = torch.empty_like(student), torch.zeros_like(prototypes)
        # The largest weight becomes 1 while gradients are computed: in float16 they would be too small.
        all_weights = pairs.weights.to(torch.promote_types(dtype, torch.float32))
        scale = all_weights.amax()
        for of_student, of_teacher in pairs.blocks:
            expected = _upcast(teacher[of_teacher].to(dtype) @ teacher_columns.T)
            expected = expected.sub_(center[pairs.positions[of_teacher]]).div_(teacher_temperature).softmax(1)
            scores = _upcast(rows[of_student] @ columns.T).div_(student_temperature)
            log_sum = scores.logsumexp(1, keepdim=True)
            weights = all_weights[of_student] / scale
            targets = (pairs.targets[of_student] - of_teacher.start).clamp(min=0)
            wanted = torch.zeros_like(scores)
            for view in (0, 1):
                of_view = expected[targets[:, view]]
                entropies[of_student, view] = log_sum[:, 0] - (of_view * scores).sum(1)
                wanted.addcmul_(of_view, weights[:, view : view + 1])
            # The loss's gradient by the scores: the student's distribution minus what the teacher wants.
            gradient = scores.sub_(log_sum).exp_().mul_(weights.sum(1, keepdim=True)).sub_(wanted)
            gradient = gradient.to(dtype)
            grad_student[of_student] = (gradient @ columns).to(student.dtype)
            grad_prototypes += gradient.T @ rows[of_student]
        for gradient in (grad_student, grad_prototypes):
            gradient.mul_(scale / student_temperature)
        ctx.save_for_backward(grad_student, grad_prototypes)
        ctx.mark_non_differentiable(entropies)
        return (entropies * pairs.weights.to(entropies)).sum(), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_student, grad_prototypes = ctx.saved_tensors
        return grad_student * grad, grad_prototypes * grad, *[None] * 6


def _upcast(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


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
