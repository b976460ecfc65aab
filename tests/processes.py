"""Real processes for tests. They are forked from a server that has imported the heavy packages once, so that each starts
in a fraction of a second, and can be killed by their pid."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import psutil


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_ssl.trainer", "hf_ssl.models.relvit", "hf_ssl.evaluation", "hf_ssl.hub"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun sets for one of several processes of one machine, and what keeps accelerate on the CPU."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def _call(connection: Any, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    # As in a run that a person starts: data workers are forked from the run, not from the test's server.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        result = function(*args)
    except BaseException:
        connection.send((False, traceback.format_exc()))
        raise
    connection.send((True, result))


class Running:
    """A started process: `process` (with its `pid` and `exitcode`), and what its function returns."""

    def __init__(self, function: Callable[..., Any], *args: Any, environment: dict[str, str] | None = None):
        self._connection, theirs = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_call, args=(theirs, environment or {}, function, args))
        self.process.start()
        theirs.close()

    def result(self, timeout: float = 120.0) -> Any:
        """What the function returned; raises with the process's traceback if it failed, or if it died."""
        try:
            if not self._connection.poll(timeout):
                self._kill()
                raise TimeoutError(f"Process {self.process.pid} said nothing in {timeout} seconds.")
            worked, value = self._connection.recv()
        except EOFError:
            self._join()
            raise ChildProcessError(
                f"Process {self.process.pid} died with exit code {self.process.exitcode}."
            ) from None
        self._join()
        if not worked:
            raise ChildProcessError(value)
        return value

    def _join(self) -> None:
        """Wait for the end; a process that does not exit is killed with its children, and that is an error."""
        self.process.join(30)
        if self.process.exitcode is None:
            self._kill()
            raise TimeoutError(f"Process {self.process.pid} was done, but did not exit in 30 seconds.")

    def _kill(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()
        self.process.kill()


def start_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Running]:
    """Start `function(*args)` in each of several processes that form one process group (gloo)."""
    port = free_port()
    return [
        Running(function, *args, environment=rank_environment(rank, world_size, port)) for rank in range(world_size)
    ]


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Run `function(*args)` in several processes; what each returned, by rank. All have to end with exit code 0."""
    running = start_ranks(function, world_size, *args)
    results = [process.result(timeout) for process in running]
    codes = [process.process.exitcode for process in running]
    assert codes == [0] * world_size, f"exit codes {codes}"
    return results
