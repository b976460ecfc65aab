"""Gradient clipping of each parameter on its own."""

import re
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn


_SPLIT_ATTENTION = re.compile(r"(?<![^.])[qkv]_proj(?=\.(?:weight|bias)$)")


@torch.no_grad()
def clip_per_parameter_(named_parameters: Iterable[tuple[str, nn.Parameter]], max_norm: float) -> Tensor:
    """
    Clip the gradient of every parameter to a norm of its own, in place, as DINO and PW-Self do.

    A gradient of norm `n` is multiplied with `max_norm / (n + 1e-6)` where that is less than 1. The query, key and
    value weights of an attention module are clipped by their joint norm, and so are their biases, because in the
    originals they are one tensor. The host never waits for the device.

    Args:
        named_parameters (`Iterable[tuple[str, torch.nn.Parameter]]`):
            Parameters with their names, as of `model.named_parameters()`; those without a gradient are skipped.
        max_norm (`float`):
            Largest norm, above 0.

    Returns:
        `torch.Tensor` of shape `()`: norm of all gradients together before clipping; 0 if there are none.

    Raises:
        `ValueError`: `max_norm` is not positive.
    """
    if not max_norm > 0:
        raise ValueError(
            f"max_norm={max_norm} must be positive; to train without clipping, do not call this function."
        )
    clipped_together: dict[str, list[Tensor]] = {}
    for name, parameter in named_parameters:
        if parameter.grad is not None:
            clipped_together.setdefault(_SPLIT_ATTENTION.sub("qkv_proj", name), []).append(parameter.grad)
    if not clipped_together:
        return torch.zeros(())

    grads = [grad for group in clipped_together.values() for grad in group]
    sizes = [len(group) for group in clipped_together.values()]
    # Norms of 16-bit gradients are added up and kept in float32.
    dtype = reduce(torch.promote_types, (grad.dtype for grad in grads), torch.float32)
    norms = torch.stack([norm.to(grads[0].device) for norm in torch._foreach_norm(grads, dtype=dtype)])
    joint_norms = torch.stack(torch._foreach_norm(norms.split(sizes)))
    factors = (max_norm / (joint_norms + 1e-6)).clamp(max=1).unbind()
    repeated = [factor for factor, size in zip(factors, sizes, strict=True) for _ in range(size)]
    torch._foreach_mul_(grads, [factor.to(grad.device) for factor, grad in zip(repeated, grads, strict=True)])
    return torch.linalg.vector_norm(norms)
