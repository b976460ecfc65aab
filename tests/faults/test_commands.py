"""The commands that a person types, hit from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from hf_ssl.checkpoints import list_checkpoints

from ..processes import free_port


SCRIPT = Path(__file__).parents[2] / "training" / "pretrain.py"
FLAGS = [
    *("--method", "relvit", "--max_steps", "120", "--logging_steps", "50", "--learning_rate", "1e-3"),
    *("--knn_bank_samples", "60", "--knn_query_samples", "20", "--dataloader_num_workers", "1"),
    *("--save_strategy", "steps", "--save_steps", "20", "--save_total_limit", "1"),
]


def one() -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, str(SCRIPT), *FLAGS, "--per_device_train_batch_size", "16"]


def two() -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    return [*launcher, str(free_port()), str(SCRIPT), *FLAGS, "--per_device_train_batch_size", "8"]


def launch(command: list[str], folder: Path, *flags: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*command, "--output_dir", str(folder), *flags]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]
    return output


def last_step(folder: Path) -> int:
    found = list_checkpoints(folder)
    return int(found[0].name.rpartition("-")[2]) if found else 0


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, after: int) -> None:
    for _ in range(1200):
        if last_step(folder) > after:
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    raise TimeoutError("no checkpoint in a minute")


def trainers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train: children of the launcher."""
    return [child for child in psutil.Process(process.pid).children() if str(SCRIPT) in child.cmdline()]


def outcome(folder: Path) -> dict[str, Any]:
    state = json.loads((folder / "trainer_state.json").read_text())
    logs = [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in state["log_history"]
    ]
    results = json.loads((folder / "all_results.json").read_text())
    weights = (folder / "pretraining" / "model.safetensors").read_bytes()
    encoder = (folder / "model.safetensors").read_bytes()
    measured = {name: value for name, value in results.items() if name.startswith(("knn", "loss"))}
    return {"logs": logs, "weights": hash(weights), "encoder": hash(encoder), "results": measured}


def stop_launcher(process: subprocess.Popen[str], running: list[psutil.Process]) -> None:
    """`accelerate launch` dies of SIGTERM and leaves its process alone, torchrun hands it on: either way the run stops."""
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output.count("Stopped by SIGTERM after step") == 1 and "--resume_from_checkpoint true" in output
    assert 'pretrain.py", line' not in output, "a traceback of the script in the place of a message"


def kill_process(process: subprocess.Popen[str], running: list[psutil.Process]) -> None:
    """One of two: the other one and the launcher end too."""
    running[-1].send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "faults"), [(one, [stop_launcher]), (two, [stop_launcher, kill_process])])
def test_stopped_and_killed(tmp_path, command, faults):
    """A run that is stopped, resumed, killed and resumed ends as one that nothing happens to."""
    finish(launch(command(), tmp_path / "whole"))
    folder, flags = tmp_path / "run", []
    for fault in faults:
        step = last_step(folder)
        process = launch(command(), folder, *flags)
        wait_for_checkpoint(process, folder, after=step)
        running = trainers(process)
        fault(process, running)
        assert process.returncode not in (0, None)
        _, alive = psutil.wait_procs(running, timeout=30)
        assert not alive
        assert step < last_step(folder) < 120
        flags = ["--resume_from_checkpoint", "true"]
    finish(launch(command(), folder, *flags))
    assert outcome(folder) == outcome(tmp_path / "whole")
