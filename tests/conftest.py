import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch


if TYPE_CHECKING:
    from .hub_server import Hub


# Tiny tensors: more threads than one only wait for each other. Hub and datasets are never asked for anything.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def pytest_collection_finish() -> None:
    """What was imported is there to stay: garbage collection, which the Trainer asks for, need not look through it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture
def hub() -> "Iterator[Hub]":
    """A new, empty Hub on loopback; see `tests/hub_server`."""
    from .hub_server import serve_hub

    with serve_hub() as served:
        yield served
