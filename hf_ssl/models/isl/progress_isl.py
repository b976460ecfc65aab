"""Where a run of ISL is between and within its stages, and the file that keeps it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .stage_ends import GANEpoch


@dataclass
class Progress:
    """
    Where a run is, and how it came there.

    Args:
        round (`int`): The round, from 0.
        stage (`str`): `"backbone"`, `"gan"`, `"mining"`, or `"done"` after the last one.
        first_epoch (`int`): Epoch of the encoder's training that the round began with.
        images_per_batch (`int`): Images of a batch, of all processes together.
        batch (`int`): Batches done of an unfinished epoch of the generator, or an unfinished pass of mining.
        sums (`list[float]`): Sums over those: the two losses and the images, of each process; or the new links.
        gan_steps (`int`): Steps of the generator, over all rounds.
        forfeited_steps (`int`): Steps of the encoder's training that were left out by hand.
        gan_epochs (`list[GANEpoch]`): The epochs of this round's generator.
        new_links (`list[int]`): Links that each pass of this round's mining has added.
        reports (`list[dict[str, Any]]`): What came of each round.
        logs (`list[dict[str, Any]]`): Entries of Trainer's log since the last checkpoint.
    """

    round: int = 0
    stage: str = "backbone"
    first_epoch: int = 0
    images_per_batch: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=list)
    gan_steps: int = 0
    forfeited_steps: int = 0
    gan_epochs: list[GANEpoch] = field(default_factory=list)
    new_links: list[int] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """The inverse of `json.dumps(asdict(progress))`."""
        values = json.loads(text)
        values["gan_epochs"] = [GANEpoch(**epoch) for epoch in values["gan_epochs"]]
        return cls(**values)


def write_state(path: Path, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """
    Write where a run is.

    Args:
        path (`Path`): A safetensors file.
        progress ([`Progress`]): Where the run is; in the file's metadata.
        tensors (`dict[str, torch.Tensor]`): What belongs to it.
    """
    text = json.dumps(asdict(progress))
    save_file(tensors, path, metadata={"progress": text, "sha256": _digest(tensors, text)})


def read_state(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """
    Read what [`write_state`] wrote.

    Args:
        path (`Path`): The file.

    Returns:
        `tuple[Progress, dict[str, torch.Tensor]]`: where the run was, and tensors by name, on the CPU.

    Raises:
        `ValueError`, `KeyError`, `TypeError`, `safetensors.SafetensorError`: the file is damaged.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    if _digest(tensors, metadata["progress"]) != metadata["sha256"]:
        raise ValueError("it does not have the content that was written")
    return Progress.from_json(metadata["progress"]), tensors


def _digest(tensors: dict[str, Tensor], progress: str) -> str:
    """A hash of what is written, by which damage is found."""
    digest = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


__all__ = ["Progress", "read_state", "write_state"]
