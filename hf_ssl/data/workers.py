"""Processes that read data."""

import signal


def start_worker(worker_id: int) -> None:
    """
    What a `DataLoader`'s worker does first (`worker_init_fn`): it leaves Ctrl-C and SIGTERM, which reach all processes of
    a terminal or a job, to the main process, and lives on until that has written its checkpoint.

    Args:
        worker_id (`int`): Number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
