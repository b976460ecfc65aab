"""A disk that is full, and one that has become read-only: a file system of their own, mounted by the process itself."""

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hf_ssl.checkpoints import CheckpointError, last_whole_checkpoint

from .runs import At, run, start


LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
READ_ONLY, REMOUNT, PRIVATE = 1, 32, 0x44000  # MS_RDONLY, MS_REMOUNT, MS_REC | MS_PRIVATE


def mount(target: str, flags: int, options: str) -> None:
    if LIBC.mount(b"tmpfs", target.encode(), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def own_mounts() -> bool:
    """Mounts of this process that no other sees; False where the machine does not allow that."""
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(NEW_MOUNTS):
        if LIBC.unshare(NEW_MOUNTS | NEW_USER):
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    LIBC.mount(b"none", b"/", None, PRIVATE, None)
    return True


def full_disk(folder: str, size: str) -> Any:
    """A disk with room for one checkpoint and a half; afterwards there is more."""
    if not own_mounts():
        return None
    mount(folder, 0, f"size={size}")
    with pytest.raises(CheckpointError) as error:
        run(folder, "trunk")
    left, (whole, _) = sorted(os.listdir(folder)), last_whole_checkpoint(folder)
    mount(folder, REMOUNT, "size=16m")
    return str(error.value), left, whole.name, run(folder, "trunk", True)


def read_only_disk(folder: str) -> Any:
    if not own_mounts():
        return None
    mount(folder, 0, "size=16m")

    def place(trainer: Any, action: Any) -> None:
        trainer.add_callback(At("on_step_begin", 6, action))

    with pytest.raises(CheckpointError) as error:
        run(folder, "trunk", False, place, lambda: mount(folder, REMOUNT | READ_ONLY, ""))
    mount(folder, REMOUNT, "")
    left, (whole, _) = sorted(os.listdir(folder)), last_whole_checkpoint(folder)
    return str(error.value), left, whole.name, run(folder, "trunk", True)


@pytest.mark.parametrize("size", ["420k", "560k"])
def test_full_disk(tmp_path, whole, size):
    result = start_in_process(full_disk, str(tmp_path), size)
    message, left, last, outcome = result
    assert "checkpoint of step 8 could not be written" in message and re.search(r"with [\d,]+ bytes free", message)
    assert "checkpoint-4 is as it was" in message and "resume_from_checkpoint true" in message
    assert left == ["_unfinished", "checkpoint-4"] and last == "checkpoint-4"
    assert outcome == whole("trunk")


def test_read_only_disk(tmp_path, whole):
    message, left, last, outcome = start_in_process(read_only_disk, str(tmp_path))
    assert "checkpoint of step 8 could not be written" in message and "Read-only file system" in message
    assert "checkpoint-4 is as it was" in message
    assert "checkpoint-4" in left and "checkpoint-8" not in left and last == "checkpoint-4"
    assert outcome == whole("trunk")


def start_in_process(function: Any, *args: Any) -> Any:
    from ..processes import Running

    result = Running(function, *args).result()
    if result is None:
        pytest.skip("this machine does not let a process mount file systems of its own")
    return result


def test_output_folder_cannot_be_made(tmp_path):
    """Known before the first step."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ChildProcessError, match="NotADirectoryError|FileExistsError"):
        start(str(tmp_path / "file" / "run"), "trunk").result()
