"""The order of the samples of an epoch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """
    Yields `(epoch, index)` for every sample, in an order that depends on the seed and the epoch alone.

    Args:
        num_samples (`int`):
            Number of samples in the dataset.
        seed (`int`):
            Seed of the order, not negative.
        shuffle (`bool`, defaults to `True`):
            Whether to shuffle; otherwise the order is that of the dataset in every epoch.
    """

    def __init__(self, num_samples: int, seed: int, shuffle: bool = True) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """
        Chooses the epoch that the next iteration yields.

        Args:
            epoch (`int`):
                Number of the epoch, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        if self.shuffle:
            # SeedSequence mixes the two numbers, so that (seed 0, epoch 1) and (seed 1, epoch 0) are unrelated.
            (mixed,) = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(mixed))
            order = torch.randperm(self.num_samples, generator=generator).tolist()
        else:
            order = list(range(self.num_samples))
        for index in order:
            yield epoch, index
