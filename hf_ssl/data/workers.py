"""Processes that read data."""

import multiprocessing
import os
import signal
from functools import cache
from multiprocessing.util import Finalize


def start_worker(worker_id: int) -> None:
    """
    What a `DataLoader`'s worker does first (`worker_init_fn`): it leaves Ctrl-C and SIGTERM, which reach all processes of
    a terminal or a job, to the main process, and lives on until that has written its checkpoint. The main process has to
    call [`end_workers_at_exit`].

    Args:
        worker_id (`int`): Number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_workers_at_exit() -> None:
    """
    Let the process that starts workers kill those that are left when it exits. Python would send them SIGTERM, which
    they ignore, and wait for them forever.
    """
    _register(os.getpid())


@cache
def _register(pid: int) -> None:
    """Once for each process: a forked one has its parent's memory, but not what its parent does at exit."""
    Finalize(None, _kill_workers, exitpriority=100)


def _kill_workers() -> None:
    # torch watches for workers that are killed, and would raise; these are.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:  # Python ends these at exit, and no others
            process.kill()
