"""Batches that come several times."""

import pytest
import torch
from torch.utils.data import DataLoader

from hf_ssl.data import EpochSampler, RepeatedBatches, TensorSource, collate
from hf_ssl.data.repeat import only


class Counting(TensorSource):
    """Images that know how often they were read."""

    def __init__(self, count):
        super().__init__(torch.zeros(count, 3, 2, 2, dtype=torch.uint8))
        self.reads = []

    def __getitems__(self, keys):
        self.reads.append([index for _, index in keys])
        return super().__getitems__(keys)


def make(count=14, batch_size=2, times=3, group_size=1, **options):
    source = Counting(count)
    sampler = EpochSampler(count, seed=0)
    loader = DataLoader(source, batch_size, sampler=sampler, collate_fn=collate, **options)
    return RepeatedBatches(loader, times, group_size), source, sampler


def numbers(batches, rows=None):
    return [tuple(batches[row]["index"].tolist()) for row in (range(len(batches)) if rows is None else rows)]


@pytest.mark.parametrize("group_size", [1, 2, 3, 7])
@pytest.mark.parametrize("times", [1, 3])
def test_order(times, group_size):
    batches, source, sampler = make(times=times, group_size=group_size)
    order = [index for _, index in sampler]
    once = list(zip(order[::2], order[1::2], strict=True))
    groups = [once[start : start + group_size] for start in range(0, 7 // group_size * group_size, group_size)]
    expected = [batch for group in groups for _ in range(times) for batch in group]
    assert len(batches) == len(expected)
    assert numbers(batches) == expected
    assert source.reads == [list(batch) for group in groups for batch in group], "each batch is loaded once"


@pytest.mark.parametrize("group_size", [1, 2])
def test_begins_anywhere(group_size):
    """What comes before is not loaded."""
    expected = numbers(make(group_size=group_size)[0])
    for first in range(len(expected)):
        batches, source, _ = make(group_size=group_size)
        assert numbers(batches, range(first, len(expected))) == expected[first:]
        assert len(source.reads) == (len(expected) - first + 3 * group_size - 1) // (3 * group_size) * group_size


def test_a_loader_of_it():
    """As the trainer reads it: the same dictionaries, not copies."""
    batches, _, _ = make()
    loaded = list(DataLoader(batches, collate_fn=only))
    assert len(loaded) == 21
    assert all(loaded[i] is loaded[i - i % 3] for i in range(21))
    assert loaded[0] is not loaded[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs(workers):
    batches, _, sampler = make(num_workers=workers, persistent_workers=bool(workers))
    epochs = []
    for epoch in (0, 1, 1):
        sampler.set_epoch(epoch)
        batches.set_epoch(epoch)
        assert {batches[row]["epoch"].unique().item() for row in range(3)} == {epoch}
        batches.set_epoch(epoch)  # begun again, in the middle
        epochs.append(numbers(batches))
    assert epochs[0] != epochs[1] == epochs[2]


def test_last_batch_may_be_smaller():
    batches, _, _ = make(count=5)
    assert [len(batch) for batch in numbers(batches)] == [2] * 6 + [1] * 3


def test_errors():
    with pytest.raises(ValueError, match="7 batches, and an optimizer step gradient_accumulation_steps=8"):
        make(group_size=8)
    batches, _, _ = make()
    assert batches[0] is batches[2]
    with pytest.raises(IndexError, match="Batch 9 was asked for out of order"):
        batches[9]
