"""Random numbers as a pure function of what they are for.

Every random decision of an augmentation is read from a counter-based generator (splitmix64, Steele et al., "Fast
splittable pseudorandom number generators", OOPSLA 2014), evaluated for a whole batch in int64 tensor arithmetic. There is
no state: the same key gives the same numbers whatever the batch, the worker, the process or the device.

Integer arithmetic, sums and products are the same everywhere. Logarithms, exponentials, cosines and even square roots are
not: their last bit may depend on the device, the CPU's model, and the place in the tensor (vector or scalar code). They
are computed in float64, where that bit changes a result rounded to float32, or the order of two keys, about once in 10^8
draws.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor


# The constants of splitmix64, as the signed integers that torch computes with (overflow wraps).
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)

# Stands for log(0) in `weighted_choice`: below every other logarithm (-745 at least) by more than two Gumbel numbers
# differ (41 at most).
_LOG_ZERO = -1000.0


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
    def for_samples(cls, seed: int, epoch: Tensor, index: Tensor, view: int | Tensor = 0) -> "Draws":
        """
        Per-sample draws: a row depends on nothing but (seed, epoch, sample index, view).

        Args:
            seed (`int`): The seed of the run.
            epoch (`torch.Tensor` of shape `(batch_size,)`, int64): The epoch each sample is drawn in.
            index (`torch.Tensor` of shape `(batch_size,)`, int64): The index of each sample in the dataset.
            view (`int` or `torch.Tensor` of shape `(batch_size,)`, int64, *optional*, defaults to 0):
                Which view of the sample is drawn: one for all, or one for each row. Other shapes that broadcast to one
                dimension will do, for `epoch` and `index` as well.
        """
        for name, numbers in (("epoch", epoch), ("index", index)):
            if numbers.dtype != torch.int64:
                raise TypeError(
                    f"{name} has dtype {numbers.dtype}; give torch.int64, as other keys give other numbers."
                )
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

    def to(self, device: torch.device) -> "Draws":
        """The same draws made on another device, which is not waited for."""
        return Draws(self.keys.to(device, non_blocking=True))

    def split(self, count: int) -> "Draws":
        """
        Every row becomes `count` rows with random numbers of their own, for example one for each view.

        Args:
            count (`int`): How many streams each row is split into.

        Returns:
            [`Draws`] of `count * num_rows` rows: all rows of stream 0 first, then all rows of stream 1, and so on. A
            stream does not depend on `count`.
        """
        # Random bits as keys absorb the name and then the number of the stream: two rounds, where the views of
        # `for_samples` take one.
        return Draws(self.bits("Draws.split", count).T.flatten())

    def bits(self, name: str, *shape: int) -> Tensor:
        """64 random bits each: int64 of shape `(num_rows, *shape)`."""
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, device=self.keys.device) * _GOLDEN_GAMMA
        stream = _absorb(self.keys, _name_to_int(name))
        return _mix(stream[:, None] + counter).view(len(stream), *shape)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """
        Uniform float32 in [low, high), with 24 random bits: shape `(num_rows, *shape)`. Where `low` is not 0, the sum
        may be rounded up to `high` itself.
        """
        unit = _shift_right(self.bits(name, *shape), 40).to(torch.float32) * 2.0**-24
        # Two operations, each rounded correctly. Where one is fused (addcmul, lerp) depends on the device.
        return unit * (high - low) + low

    def _unit(self, name: str, *shape: int) -> Tensor:
        """Uniform float64 in [0, 1), with 53 random bits: shape `(num_rows, *shape)`."""
        return _shift_right(self.bits(name, *shape), 11).double() * 2.0**-53

    def log_uniform(self, name: str, *shape: int, low: float, high: float) -> Tensor:
        """
        Float32 whose logarithm is uniform from log(low) to log(high): shape `(num_rows, *shape)`. Computed in float64
        (see the module).
        """
        logarithm = self._unit(name, *shape) * (math.log(high) - math.log(low)) + math.log(low)
        return logarithm.exp().float()

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
        """
        Standard normal float32 (Box-Muller transform): shape `(num_rows, *shape)`. Computed in float64 (see the
        module).
        """
        radius = (-2.0 * torch.log1p(-self._unit(f"{name}/radius", *shape))).sqrt()
        return (radius * torch.cos(self._unit(f"{name}/angle", *shape) * (2 * math.pi))).float()

    def weighted_choice(self, name: str, weights: Tensor, count: int) -> Tensor:
        """
        Draw without replacement: one item after the other, each in proportion to the weights of those that are left.

        The first `count` items by log-weight plus Gumbel noise have exactly this distribution, order included
        (Yellott, "The relationship between Luce's choice axiom, Thurstone's theory of comparative judgment, and the
        double exponential distribution", 1977; as exponential keys in Efraimidis and Spirakis, "Weighted random
        sampling with a reservoir", 2006), which makes it a batched operation without a loop. Items of weight 0 come
        last, in uniformly random order: they fill up the choice where fewer than `count` others exist.

        Args:
            name (`str`): The name of the draw.
            weights (`torch.Tensor` of shape `(num_rows, ..., num_items)`):
                Weights from 0 on, finite; they need not sum to 1. Only a CPU refuses others, since an accelerator
                would have to be waited for: there, items of negative, infinite or NaN weight come first.
            count (`int`): Items to draw.

        Returns:
            `torch.Tensor` of shape `(num_rows, ..., count)`, int64: the items in the order in which they are drawn.

        Raises:
            `ValueError`: if `count` is more than there are items, if `weights` has another number of rows than the
                draws, or, on a CPU, if a weight is negative, infinite or NaN.
        """
        if count > weights.shape[-1]:
            raise ValueError(f"count={count} items cannot be drawn from {weights.shape[-1]} without replacement.")
        if len(weights) != len(self.keys):  # broadcast, all rows would make the same choice
            raise ValueError(f"weights has {len(weights)} rows, the draws have {len(self.keys)}.")
        if weights.device.type == "cpu" and not ((weights >= 0) & (weights < math.inf)).all():
            raise ValueError("weights must be finite and not negative.")
        logits = weights.double().log().clamp(min=_LOG_ZERO)
        # The keys stay in float64: in float32 some would be equal, and their order would depend on the device.
        return (logits + self._gumbel(name, *weights.shape[1:])).topk(count).indices

    def _gumbel(self, name: str, *shape: int) -> Tensor:
        """Standard Gumbel float64, from 52 random bits, always finite: shape `(num_rows, *shape)`."""
        # bits >> 12 is uniform in -2**51 … 2**51 - 1; the halves keep `uniform` clear of 0 and of 1.
        uniform = ((self.bits(name, *shape) >> 12).double() + 0.5) * 2.0**-52 + 0.5
        return -(-uniform.log()).log()


@contextmanager
def seeded(bits: Sequence[int]) -> Iterator[None]:
    """
    A context for functions of others that draw from the global generators of Python and of numpy: inside, these are seeded;
    afterwards they are as they were.

    Args:
        bits (`Sequence[int]` of length 2): 64 random bits for each of the two, see [`Draws.bits`]. Seeded alike, both would
            yield the same numbers.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        random.seed(bits[0] % (1 << 64))  # which drops signs
        np.random.seed(np.array([bits[1]]).view(np.uint32))
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
