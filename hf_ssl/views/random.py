"""Random numbers as a pure function of what they are for.

Every random decision of an augmentation is read from a counter-based generator (splitmix64, Steele et al., "Fast
splittable pseudorandom number generators", OOPSLA 2014), evaluated for a whole batch in int64 tensor arithmetic. There is
no state: the same key gives the same numbers whatever the batch, the worker, the process or the device.
"""

import hashlib
import math
from functools import cache

import torch
from torch import Tensor


# The constants of splitmix64, as the signed integers that torch computes with (overflow wraps).
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's `>>` copies the sign bit of an int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _absorb(key: Tensor, value: Tensor | int) -> Tensor:
    offset = (value + 1) * _GOLDEN_GAMMA
    if isinstance(offset, int):  # Python's integers do not wrap
        offset = (offset + (1 << 63)) % (1 << 64) - (1 << 63)
    return _mix(key + offset)


@cache
def _name_to_int(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


class Draws:
    """
    Random numbers for the rows of a batch. Each draw has a name; draws of different names are independent, and drawing
    one leaves the others as they are.

    Args:
        keys (`torch.Tensor` of shape `(num_rows,)`, int64):
            One key for each row. Use [`Draws.for_samples`] or [`Draws.for_batch`] to make them.
    """

    def __init__(self, keys: Tensor):
        self.keys = keys

    @classmethod
    def for_samples(cls, seed: int, epoch: Tensor, index: Tensor, view: int = 0) -> "Draws":
        """
        Per-sample draws: a row depends on nothing but (seed, epoch, sample index, view).

        Args:
            seed (`int`): The seed of the run.
            epoch (`torch.Tensor` of shape `(batch_size,)`, int64): The epoch each sample is drawn in.
            index (`torch.Tensor` of shape `(batch_size,)`, int64): The index of each sample in the dataset.
            view (`int`, *optional*, defaults to 0): Which view of the sample is drawn.
        """
        key = torch.full_like(index, seed)
        for value in (epoch, index, view):
            key = _absorb(key, value)
        return cls(key)

    @classmethod
    def for_batch(
        cls, seed: int, step: int, micro_batch: int = 0, rank: int = 0, device: torch.device | str = "cpu"
    ) -> "Draws":
        """
        Per-batch draws (one row): a function of (seed, optimizer step, micro-batch, process rank).

        Args:
            seed (`int`): The seed of the run.
            step (`int`): The optimizer step.
            micro_batch (`int`, *optional*, defaults to 0): The micro-batch within the step, under accumulation.
            rank (`int`, *optional*, defaults to 0): The process.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the numbers are made.
        """
        # A fill, not a copy of a host tensor: no synchronization with an accelerator.
        key = torch.full((1,), seed, dtype=torch.int64, device=device)
        for value in (step, micro_batch, rank):
            key = _absorb(key, value)
        return cls(_mix(key))  # one more round than `for_samples`: other keys from the same four numbers

    def bits(self, name: str, *shape: int) -> Tensor:
        """64 random bits each: int64 of shape `(num_rows, *shape)`."""
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, device=self.keys.device) * _GOLDEN_GAMMA
        stream = _absorb(self.keys, _name_to_int(name))
        return _mix(stream[:, None] + counter).view(-1, *shape)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform float32 in [low, high), with 24 random bits: shape `(num_rows, *shape)`."""
        unit = _shift_right(self.bits(name, *shape), 40).to(torch.float32) * 2.0**-24
        return unit * (high - low) + low

    def log_uniform(self, name: str, *shape: int, low: float, high: float) -> Tensor:
        """Float32 whose logarithm is uniform in [log(low), log(high)): shape `(num_rows, *shape)`."""
        return self.uniform(name, *shape, low=math.log(low), high=math.log(high)).exp()

    def bernoulli(self, name: str, *shape: int, p: float) -> Tensor:
        """True with probability `p`: bool of shape `(num_rows, *shape)`."""
        return self.uniform(name, *shape) < p

    def integers(self, name: str, *shape: int, high: int | Tensor) -> Tensor:
        """
        Uniform int64 in [0, high): shape `(num_rows, *shape)`. `high` is at most 2**31 and may be a tensor that
        broadcasts to that shape. (Multiply-and-shift on 32 bits: the bias is below high / 2**32.)
        """
        return (_shift_right(self.bits(name, *shape), 32) * high) >> 32

    def permutation(self, name: str, n: int, *shape: int) -> Tensor:
        """Uniform permutations of 0 … n-1: int64 of shape `(num_rows, *shape, n)`."""
        return self.bits(name, *shape, n).argsort(-1)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal float32 (Box-Muller transform): shape `(num_rows, *shape)`."""
        radius = (-2.0 * torch.log1p(-self.uniform(f"{name}/radius", *shape))).sqrt()
        return radius * torch.cos(self.uniform(f"{name}/angle", *shape, high=2 * math.pi))
