"""Features of a dataset, computed once and kept in files."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
from torch import Tensor
from tqdm.auto import tqdm

from ..distributed import barrier, rank, world_size
from .encoders import FeatureSpec, LoadedEncoder
from .features import processed_batches


DEFAULT_FOLDER = Path(HF_HOME) / "hf_ssl" / "features"
BLOCK_SIZE = 1024  # images after which a run that is stopped goes on
_VERSION = 1  # of what is computed under the same key


def cached_features(
    encoder: LoadedEncoder,
    images: Any,
    specs: list[FeatureSpec],
    *,
    folder: str | Path | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    bf16: bool = False,
) -> list[Tensor]:
    """
    Features of all images of a dataset. They are read from files, if they were computed before, and otherwise computed in one
    pass and written there, block by block: a run that was stopped goes on where it was. Of several processes, each computes
    its share of the blocks.

    The files are found by what the features depend on: the content of the weights and of the images, the image processor, and
    what is computed. The size of the batches and the number of processes are no part of it; they change features by rounding
    alone.

    Args:
        encoder ([`LoadedEncoder`]): The encoder.
        images (`torch.utils.data.Dataset`): A source of `hf_ssl.data`.
        specs (`list[FeatureSpec]`): What is computed of each image.
        folder (`str` or `Path`, *optional*): Where the files are kept; unset, `hf_ssl/features` in the folder `HF_HOME`.
        batch_size (`int`, *optional*, defaults to 256): Images in a forward pass.
        num_workers (`int`, *optional*, defaults to 0): Processes that read the images.
        bf16 (`bool`, *optional*, defaults to `False`): Whether the encoder computes in bfloat16.

    Returns:
        `list[torch.Tensor]` of shape `(num_images, dim)`: float32, memory-mapped, one for each of `specs`.

    Raises:
        `OSError`: the files cannot be written, or not all processes see them.
    """
    if not len(images):
        raise ValueError("There are no images to compute features of.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    shared = _protocol(encoder, images, bf16)
    stores = [
        _Store(Path(folder or DEFAULT_FOLDER), {**shared, **_spec(encoder, spec)}, len(images)) for spec in specs
    ]
    wanted = [i for i, store in enumerate(stores) if not store.is_complete()]
    if world_size() > 1:  # the first process decides for all, as files may come and go
        decided = [wanted]
        dist.broadcast_object_list(decided, src=0)
        (wanted,) = decided
    if wanted:
        _compute(
            encoder, images, [specs[i] for i in wanted], [stores[i] for i in wanted], batch_size, num_workers, bf16
        )
    for store in stores:
        store.check_visible()
    return [store.read() for store in stores]


def _spec(encoder: LoadedEncoder, spec: FeatureSpec) -> dict[str, str]:
    """What is computed; branches may differ in nothing but what projects their features."""
    return {"feature": repr(spec)} | ({"branch": encoder.branch} if spec.projected else {})


def _protocol(encoder: LoadedEncoder, images: Any, bf16: bool) -> dict[str, Any]:
    processor = encoder.processor.to_dict()
    for name in ("_processor_class", "name_or_path"):
        processor.pop(name, None)
    return {
        "version": _VERSION,
        "encoder": encoder.fingerprint(),
        "images": images.fingerprint(),
        "processor": processor,
        "precision": "bf16" if bf16 else str(encoder.model.dtype).removeprefix("torch."),
        "position_interpolation": encoder.position_interpolation,
    }


def _compute(
    encoder: LoadedEncoder,
    images: Any,
    specs: list[FeatureSpec],
    stores: list["_Store"],
    batch_size: int,
    num_workers: int,
    bf16: bool,
) -> None:
    """Fill what is missing in the stores, in one pass."""
    ((_, first),), _ = next(iter(processed_batches(images, encoder.processor, [[0]], 0)))
    dims = [rows.shape[1] for rows in encoder.features(first, specs, bf16)]
    if rank() == 0:
        for store, dim in zip(stores, dims, strict=True):
            store.create(dim)
    barrier()
    for store in stores:
        store.check_visible()
    rows = [store.open() for store in stores]
    todo = sorted(set().union(*(store.missing_blocks() for store in stores)))[rank() :: world_size()]
    barrier()  # all of them have seen what is missing before one begins to fill it
    batches = [batch for block in todo for batch in _batches(block, len(images), batch_size)]
    loader = processed_batches(images, encoder.processor, batches, num_workers)
    # The bar appears only when there is something to wait for, and leaves no line behind.
    with tqdm(
        total=sum(map(len, batches)), desc="features", unit=" images", delay=5, leave=False, disable=None
    ) as bar:
        for batch, (groups, _) in zip(batches, loader, strict=True):
            for places, pixel_values in groups:
                where = batch.start + places.numpy()
                try:
                    computed = encoder.features(pixel_values, specs, bf16)
                except ValueError as error:
                    raise ValueError(f"Image {where[0]} of {len(images)}: {error}") from error
                for target, features in zip(rows, computed, strict=True):
                    target[where] = features.cpu().numpy()
            if batch.stop % BLOCK_SIZE == 0 or batch.stop == len(images):
                for store, target in zip(stores, rows, strict=True):
                    target.flush()
                    store.finish_block(batch.start // BLOCK_SIZE)
            bar.update(len(batch))
    barrier()


def _batches(block: int, num_images: int, batch_size: int) -> list[range]:
    end = min((block + 1) * BLOCK_SIZE, num_images)
    return [range(i, min(i + batch_size, end)) for i in range(block * BLOCK_SIZE, end, batch_size)]


class _Store:
    """The files of one kind of feature of one dataset: rows, which blocks of them are done, and what they are."""

    def __init__(self, folder: Path, protocol: dict[str, Any], num_images: int):
        text = json.dumps(protocol, sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.protocol, self.num_images = protocol, num_images
        self.num_blocks = -(-num_images // BLOCK_SIZE)

    @property
    def _rows(self) -> Path:
        return self.folder / "features.npy"

    def create(self, dim: int) -> None:
        """Make the files, if they are not there; the space is claimed now, as a full disk would kill a writer later."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.folder / "lock"):  # another run may begin with the same features
            if self._rows.exists():
                return
            for done in self.folder.glob("done-*"):  # of rows that someone has deleted
                done.unlink()
            (self.folder / "protocol.json").write_text(
                json.dumps(self.protocol, indent=2, sort_keys=True, default=str) + "\n"
            )
            part = self._rows.with_suffix(".part")
            try:
                np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(self.num_images, dim))
                if hasattr(os, "posix_fallocate"):
                    with part.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            except OSError:
                part.unlink(missing_ok=True)
                raise
            part.rename(self._rows)

    def check_visible(self) -> None:
        """Refuse a folder that only some of the processes see, each node its own."""
        if not self._rows.exists():
            raise OSError(
                f"{self._rows} was made by the first process, and process {rank()} does not see it: choose a folder for the "
                "features that all nodes share (--cache_dir)."
            )

    def open(self) -> Any:
        """The rows, to be written."""
        return np.lib.format.open_memmap(self._rows, mode="r+")

    def read(self) -> Tensor:
        """The rows; nothing is read before it is used."""
        return torch.from_numpy(np.lib.format.open_memmap(self._rows, mode="c"))

    def finish_block(self, block: int) -> None:
        """Note that a block is done, and on disk."""
        (self.folder / f"done-{block}").touch()

    def missing_blocks(self) -> set[int]:
        """Blocks that are not done."""
        return {block for block in range(self.num_blocks) if not (self.folder / f"done-{block}").exists()}

    def is_complete(self) -> bool:
        """Whether all blocks are done."""
        return self._rows.exists() and not self.missing_blocks()
