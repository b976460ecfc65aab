"""Processes that read data."""

import multiprocessing
import os
import signal
import sys
from functools import cache
from multiprocessing.util import Finalize


def start_worker(worker_id: int) -> None:
    """
    What a `DataLoader`'s worker does first (`worker_init_fn`): it leaves Ctrl-C and SIGTERM, which reach all processes of
    a terminal or a job, to the main process, and lives on until that has written its checkpoint. The main process has to
    call [`prepare_for_workers`].

    Args:
        worker_id (`int`): Number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def prepare_for_workers() -> None:
    """
    What a process has to do once before it starts workers that call [`start_worker`]:

    - Kill those that are left when it exits. Python would send them SIGTERM, which they ignore, and wait for them forever.
    - Wait for a thread that is changing the interpreter's list of threads before a worker is forked. CPython 3.11 hangs in a
      child that was forked meanwhile, and threads of a process group (gloo) change it whenever they let go of a tensor. What
      is left is the moment between the wait and the fork.
    """
    _kill_at_exit(os.getpid())
    _wait_for_threads_at_fork()


@cache
def _kill_at_exit(pid: int) -> None:
    """Once for each process: a forked one has its parent's memory, but not what its parent does at exit."""
    Finalize(None, _kill_workers, exitpriority=100)


def _kill_workers() -> None:
    # torch watches for workers that are killed, and would raise; these are.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:  # Python ends these at exit, and no others
            process.kill()


@cache
def _wait_for_threads_at_fork() -> None:
    # It takes the lock of that list and gives it back.
    os.register_at_fork(before=lambda: sys._current_frames())
