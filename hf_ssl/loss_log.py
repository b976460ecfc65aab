"""What is known of the loss between two logs, kept on the device: the sums of its terms, and the first one that is not
finite. Nothing is read back in a step."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass
class NonFiniteLoss:
    """
    Where the loss, or its gradient, first was infinite or not a number.

    Args:
        step (`int`): The optimizer step, from 1.
        terms (`list[dict[str, float]]`): The loss and its terms in that micro-batch, for each process that met it.
        samples (`list[int]`):
            Indices of the images of the micro-batch; of all micro-batches of the step if only the gradient is not finite.
    """

    step: int
    terms: list[dict[str, float]]
    samples: list[int]


class LossLog:
    """
    Sums of the loss and its terms over micro-batches, and the first non-finite one.

    Args:
        num_micro_batches (`int`): Micro-batches of an optimizer step, at most.
        batch_size (`int`): Images of a micro-batch, at most.
        device (`torch.device`): Where losses are computed.
    """

    def __init__(self, num_micro_batches: int, batch_size: int, device: torch.device):
        self.names: list[str] = []
        self._sums = torch.zeros(0, device=device)
        self._last = self._sums  # the terms of the last micro-batch
        self._count = torch.zeros((), device=device)
        # The images of the step, by micro-batch; -1 where there is none.
        self._indices = torch.full((num_micro_batches, batch_size), -1, dtype=torch.int64, device=device)
        self.clear_non_finite()

    def clear_non_finite(self) -> None:
        """Forget the non-finite loss that was met."""
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=self._indices.device)
        self._bad_indices = torch.full_like(self._indices, -1)
        self._bad_terms = torch.zeros_like(self._last)

    def add(self, outputs: Any, index: Tensor, step: int, micro_batch: int = 0) -> Tensor:
        """
        Take note of a micro-batch.

        Args:
            outputs ([`SSLOutput`]): What the model returned.
            index (`torch.Tensor` of shape `(batch_size,)`, int64): Indices of the images.
            step (`int`): The optimizer step that it belongs to, from 1.
            micro_batch (`int`, *optional*, defaults to 0): Its number in the step.

        Returns:
            `torch.Tensor` of shape `()`, bool: whether the loss is finite.
        """
        terms = {"loss": outputs["loss"]}
        terms |= {f"loss_{name}": value for name, value in outputs["losses"].items()} | (outputs.get("metrics") or {})
        if not self.names:
            self.names = list(terms)
            self._sums, self._bad_terms = (torch.zeros(len(terms), device=index.device) for _ in range(2))
        self._last = torch.stack([value.detach().float() for value in terms.values()])
        if micro_batch == 0:
            self._indices.fill_(-1)
        self._indices[micro_batch, : len(index)] = index
        finite = self._last[0].isfinite()
        self._sums += torch.where(finite, self._last, 0.0)
        self._count += finite
        own = torch.full_like(self._indices, -1)
        own[micro_batch] = self._indices[micro_batch]
        self._check(finite, step, own)
        return finite

    def check_gradient(self, norm: Tensor, step: int) -> None:
        """
        Take note of a gradient; one that is not finite spoils the weights although the loss was finite.

        Args:
            norm (`torch.Tensor` of shape `()`): Its norm.
            step (`int`): The optimizer step, from 1.
        """
        self._check(norm.isfinite(), step, self._indices)

    def _check(self, finite: Tensor, step: int, indices: Tensor) -> None:
        is_first = ~finite & (self._bad_step < 0)
        self._bad_step.masked_fill_(is_first, step)
        torch.where(is_first, indices, self._bad_indices, out=self._bad_indices)
        torch.where(is_first, self._last, self._bad_terms, out=self._bad_terms)

    def non_finite(self, accelerator: Accelerator) -> NonFiniteLoss | None:
        """The first non-finite loss of any process, if there was one; all processes have to ask. Waits for the device."""
        steps = accelerator.gather(self._bad_step[None])
        if (steps < 0).all():
            return None
        terms, indices = accelerator.gather(self._bad_terms[None]), accelerator.gather(self._bad_indices[None])
        step = int(steps[steps >= 0].min())
        met = (steps == step).cpu()
        return NonFiniteLoss(
            step,
            [dict(zip(self.names, values, strict=True)) for values in terms.cpu()[met].tolist()],
            [index for index in indices.cpu()[met].flatten().tolist() if index >= 0],
        )

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means of the terms since the last call, over all processes; all of them have to ask. Waits for the device."""
        sums = accelerator.reduce(torch.cat([self._sums, self._count[None]]), reduction="sum")
        values = (sums[:-1] / sums[-1].clamp(min=1)).tolist()
        self._sums.zero_()
        self._count.zero_()
        return dict(zip(self.names, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums, in plain numbers that restore them exactly."""
        return {"names": self.names, "sums": self._sums.tolist(), "count": self._count.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums."""
        device = self._indices.device
        self.names = list(state["names"])
        self._sums = torch.tensor(state["sums"], dtype=torch.float32, device=device)
        self._count = torch.tensor(state["count"], dtype=torch.float32, device=device)
        self._bad_terms = torch.zeros_like(self._sums)
