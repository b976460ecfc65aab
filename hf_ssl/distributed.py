"""What the methods need from the other processes of a run: their rows, with gradient, and a clean end."""

import gc
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among those that train together; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty((world_size() * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty((len(grad) // world_size(), *grad.shape[1:]))
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own


def all_gather(x: Tensor) -> Tensor:
    """
    Concatenate the rows of all processes.

    It is differentiable: a process's rows get the sum over the processes of the gradients that arrive there, which is
    the derivative of the sum of the processes' losses. `DistributedDataParallel` averages the parameters' gradients,
    so that they become the derivative of the mean loss.

    Every process has to make the same calls in the same order, and for all or for none of them `x` needs a gradient;
    otherwise they wait for each other. Backward communicates only where `x` needs a gradient: detached keys cost
    nothing there.

    Args:
        x (`torch.Tensor` of shape `(rows, ...)`):
            Rows of this process; shape and dtype are the same in every process.

    Returns:
        `torch.Tensor` of shape `(world_size * rows, ...)`: the rows in the order of the ranks; `x` itself in a single
        process or without a process group.
    """
    # apply() is untyped.
    gathered: Tensor = x if world_size() == 1 else _AllGather.apply(x)
    return gathered


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if world_size() > 1:
        dist.barrier()


def close_process_group() -> None:
    """
    End the process group, as the last thing a process does with it. Without a group there is nothing to do.

    A process that exits while its group still exists may abort under gloo ("terminate called without an active
    exception"), although its work is done. `DistributedDataParallel` keeps the group alive: drop every reference to
    the wrapped model first (and to a trainer or accelerator that holds it).
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    # No process leaves while another still works with it.
    dist.barrier()
    # A wrapped model is part of reference cycles, and has to be gone before its group is.
    gc.collect()
    dist.destroy_process_group()
