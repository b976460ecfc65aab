"""Batches that are trained on several times in a row."""

from collections.abc import Iterator
from typing import Any

from accelerate import skip_first_batches
from torch.utils.data import DataLoader, Dataset


Batch = dict[str, Any]


class RepeatedBatches(Dataset[Batch]):
    """
    The batches of a data loader by number, each group of them several times in a row: 0 1 0 1 0 1, 2 3 2 3 2 3, … for groups
    of two and three times. A batch is loaded once.

    The loader is one that is already sharded, so that a process repeats its own batches. Numbers have to be asked for in
    order, from any one on: what comes before it is skipped without being loaded.

    Args:
        loader (`torch.utils.data.DataLoader`):
            The batches of an epoch, of this process.
        times (`int`):
            How often each batch is yielded.
        group_size (`int`, *optional*, defaults to 1):
            Batches of a group: the micro-batches of an optimizer step. The last batches of an epoch that do not fill a group
            are left out.

    Raises:
        `ValueError`: an epoch has no group.
    """

    def __init__(self, loader: DataLoader[Any], times: int, group_size: int = 1):
        if len(loader) < group_size:
            raise ValueError(
                f"An epoch has {len(loader)} batches, and an optimizer step gradient_accumulation_steps={group_size}: use "
                "more images, smaller batches, or fewer of them in a step."
            )
        self.loader = loader
        self.times = times
        self.group_size = group_size
        self.close()

    def set_epoch(self, epoch: int) -> None:
        """
        Begin an epoch; nothing is loaded before its first batch is asked for.

        Args:
            epoch (`int`): Number of the epoch, from 0.
        """
        self.close()
        # A loader of accelerate counts the epochs that it has been read to the end, which this one never is, and tells its
        # sampler.
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)

    def close(self) -> None:
        """Let go of what is loaded, and of the workers that load more."""
        self._batches: Iterator[Batch] | None = None
        self._group = -1
        self._loaded: list[Batch] = []

    def __len__(self) -> int:
        return len(self.loader) // self.group_size * self.group_size * self.times

    def __getitem__(self, number: int) -> Batch:
        """
        Args:
            number (`int`): Number of the batch; the next one, or, at the beginning of an epoch, any.

        Returns:
            `dict[str, Any]`: the batch; the same object each time that it comes.

        Raises:
            `IndexError`: it is not its turn.
        """
        group, place = divmod(number, self.group_size * self.times)
        if group != self._group:
            if self._batches is None:
                loader = self.loader
                if group:
                    loader = skip_first_batches(loader, group * self.group_size)
                self._batches, self._group = iter(loader), group - 1
            if group != self._group + 1:
                raise IndexError(f"Batch {number} was asked for out of order.")
            self._loaded = []  # before others are loaded
            self._loaded = [next(self._batches) for _ in range(self.group_size)]
            self._group = group
        return self._loaded[place % self.group_size]


def only(batches: list[Batch]) -> Batch:
    """The one batch that a loader of batches collates."""
    (batch,) = batches
    return batch
