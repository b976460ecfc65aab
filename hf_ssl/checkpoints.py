"""Checkpoints that are either whole or not there.

A checkpoint is written into a folder aside, flushed to the disk, described by a manifest with the size and the hash of
every file, and only then renamed to `checkpoint-<step>`. So whatever interrupts the writing, a folder of that name is
whole; and what happens to it later (a lost file, a flipped bit) is found by its manifest before anything is loaded.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import logging


logger = logging.get_logger(__name__)

MANIFEST_NAME = "manifest.json"
UNFINISHED = "_unfinished"  # where checkpoints are written before they are renamed


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or is not what was written."""


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies once it is whole."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, the one of the highest step first; they may be damaged."""
    return [Path(path) for path in reversed(sort_checkpoints(str(output_dir)))]


def publish_checkpoint(folder: Path, target: Path, run: dict[str, Any]) -> None:
    """
    Make a fully written folder a checkpoint: flush it, describe it, rename it. An earlier checkpoint of that name is
    replaced.

    Args:
        folder (`Path`):
            The written folder, on the same file system as `target`.
        target (`Path`):
            Its final name.
        run (`dict[str, Any]`):
            What the run was, for the manifest: see [`read_manifest`].

    Raises:
        `OSError`: the disk is full, or not writable; `target` is then as it was.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": _hash(path)} for path in files}
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"run": run, "files": described}, indent=2) + "\n")
    for path in [*files, manifest, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(path)
    replaced = folder.with_name(f"replaced-{target.name}")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    try:
        folder.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    _flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """
    Write a file aside, flush it and rename it: whatever interrupts this, a file of that name is whole.

    Args:
        path (`Path`): The file.
        write (`Callable[[Path], None]`): Writes it to the path that it is given.
    """
    aside = path.with_name(f"{path.name}.unfinished")
    write(aside)
    _flush(aside)
    aside.rename(path)
    _flush(path.parent)


def read_manifest(checkpoint: str | Path) -> dict[str, Any]:
    """
    Check a checkpoint against its manifest.

    Args:
        checkpoint (`str` or `Path`): The checkpoint's folder.

    Returns:
        `dict[str, Any]`: what the run was that wrote it: `step`, `dataset` (its fingerprint), `num_train_images`,
            `save_only_model`, and what a run should be resumed with as it was started (`seed`, `num_processes`, …).

    Raises:
        [`CheckpointError`]: a file is missing or is not what was written; the message names it.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.")
    try:
        return _checked(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}.") from error


def _checked(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST_NAME).read_bytes())
        run, files = dict(content["run"]), dict(content["files"])
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST_NAME}: it was never finished.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST_NAME} cannot be read: {error}.") from error
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes; {size:,} were written.")
        if _hash(path) != digest:
            raise CheckpointError(f"{path} does not have the content that was written (its hash differs).")
    return run


def find_start(output_dir: str | Path, resume: str | bool | None, expected: dict[str, Any]) -> str | None:
    """
    Find out what a run starts from.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.
        resume (`str` or `bool`, *optional*):
            A checkpoint's folder, or `True` for the last whole one; otherwise the run starts anew.
        expected (`dict[str, Any]`):
            What this run is, as in the manifest.

    Returns:
        `str`, *optional*: the checkpoint; None for a new run.

    Raises:
        [`CheckpointError`]: there is no such checkpoint, it is of a run on other images, or the folder holds those of
            another run.
    """
    if not resume:
        _finish_renaming(Path(output_dir))
        if earlier := list_checkpoints(output_dir):
            raise CheckpointError(
                f"{output_dir} holds checkpoints of an earlier run ({earlier[0].name}). Continue that run with "
                "--resume_from_checkpoint true, or choose another --output_dir."
            )
        return None
    if resume is True:
        path, run = last_whole_checkpoint(output_dir)
    else:
        path, run = Path(resume), read_manifest(resume)
    _check_run(path, run, expected)
    if resume is not True:
        _set_later_checkpoints_aside(output_dir, path)
    return str(path)


def _check_run(path: Path, run: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a checkpoint of a run on other images, and say what else is different."""
    if run["dataset"] != expected["dataset"]:
        raise CheckpointError(
            f"{path} was trained on other images ({run['num_train_images']:,} of them; there are "
            f"{expected['num_train_images']:,} now). Resume with the same --dataset and --max_train_samples, or start "
            "a new run in another --output_dir."
        )
    began = [values.get("began_with") for values in (run, expected)]
    if began[0] != began[1]:  # the card would name the wrong model, and its license
        earlier, now = (where or "random weights" for where in began)
        raise CheckpointError(
            f"{path} is of a run that began with {earlier}, and this one begins with {now}. Resume with the same --model, or "
            "start a new run in another --output_dir."
        )
    if run["save_only_model"]:
        raise CheckpointError(f"{path} holds no optimizer: it was written with --save_only_model.")
    before, after = _flat(run), _flat(expected)
    for name in after.keys() - {"step", "dataset", "num_train_images", "save_only_model"}:
        if before.get(name) != after[name]:
            logger.warning(
                f"{path.name} was written with {name} = {before.get(name)}, now it is {after[name]}: the run goes on, but "
                "not as it would have."
            )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names: `{"views": {"flip": 0.5}}` as `{"views.flip": 0.5}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def last_whole_checkpoint(output_dir: str | Path) -> tuple[Path, dict[str, Any]]:
    """
    Find the last whole checkpoint of a run. Damaged ones that come after it are named in a warning and set aside
    (renamed to `damaged-checkpoint-<step>`).

    Args:
        output_dir (`str` or `Path`): The run's folder.

    Returns:
        `tuple[Path, dict[str, Any]]`: the checkpoint's folder, and what [`read_manifest`] says of it.

    Raises:
        [`CheckpointError`]: there is none.
    """
    _finish_renaming(Path(output_dir))
    damaged = []
    for checkpoint in list_checkpoints(output_dir):
        try:
            run = read_manifest(checkpoint)
        except CheckpointError as error:
            damaged.append((checkpoint, error))
            continue
        for bad, problem in damaged:
            logger.warning(
                f"{problem} It is set aside as {_set_aside(bad, 'damaged').name}; {checkpoint.name} is used instead."
            )
        return checkpoint, run
    if damaged:
        problems = " ".join(str(problem) for _, problem in damaged)
        raise CheckpointError(
            f"No checkpoint in {output_dir} is whole. {problems} Nothing was changed. Start anew in another --output_dir, "
            "without --resume_from_checkpoint."
        )
    raise CheckpointError(
        f"There is no checkpoint in {output_dir} to resume from. Check --output_dir, or start without "
        "--resume_from_checkpoint."
    )


def _set_later_checkpoints_aside(output_dir: str | Path, checkpoint: Path) -> None:
    """Rename the checkpoints after the one that the run goes on from: they are not of what follows."""
    there = list_checkpoints(output_dir)
    places = [i for i, path in enumerate(there) if path.resolve() == checkpoint.resolve()]
    if there and not places:
        raise CheckpointError(
            f"{output_dir} holds checkpoints of another run ({there[0].name}) than {checkpoint}; choose another "
            "--output_dir."
        )
    for later in there[: places[0]] if places else []:
        logger.warning(
            f"{later.name} comes after {checkpoint.name}; it is set aside as {_set_aside(later, 'abandoned').name}."
        )


def _finish_renaming(output_dir: Path) -> None:
    """Put a checkpoint in its place that was whole when the run was killed, and only not yet renamed."""
    for folder in (output_dir / UNFINISHED).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        target = output_dir / folder.name
        if (folder / MANIFEST_NAME).is_file() and not target.exists():
            try:
                read_manifest(folder)
            except CheckpointError:  # not whole: it is left aside, and removed at the next save
                continue
            folder.rename(target)


def _set_aside(checkpoint: Path, reason: str) -> Path:
    names = (f"{reason}-{checkpoint.name}{suffix}" for suffix in chain([""], (f"-{i}" for i in count(2))))
    return checkpoint.rename(next(path for name in names if not (path := checkpoint.with_name(name)).exists()))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
