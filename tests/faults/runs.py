"""A run of the trainer in a process of its own, and the places where it can be hit."""

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_ssl import checkpoints
from hf_ssl.data import TensorSource
from hf_ssl.evaluation import KNNMonitor
from hf_ssl.hub import evaluation_processor
from hf_ssl.trainer import SSLTrainer

from ..processes import Running
from ..training.common import (
    IMAGES,
    make_aps,
    make_isl,
    make_model,
    make_patchmix,
    make_pw_self,
    make_toy,
    make_trainer,
    outcome,
)


# Five steps an epoch: step 8 lies in the middle of epoch 1. Logs, evaluations and checkpoints come at different steps.
RUN = {
    "max_steps": 13,
    "logging_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 7,
    "save_strategy": "steps",
    "save_steps": 4,
    "save_total_limit": 1,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "trunk": {"make": make_model, "dataloader_num_workers": 0},
    "stock": {"make": make_toy, "dataloader_num_workers": 2, "bf16": True},
    "trunk bf16": {"make": make_model, "bf16": True},
    "stock fp32": {"make": make_toy},
    "patchmix": {"make": make_patchmix, "bf16": True},
    "pw_self": {"make": make_pw_self, "bf16": True},
    "aps": {"make": make_aps, "bf16": True, "dataloader_num_workers": 1, "save_steps": 6},
    "isl": {
        "make": make_isl,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.03,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"mode": "max", "factor": 0.8, "patience": 0},
        "metric_for_best_model": "knn_top1",
        "eval_steps": 3,
        "logging_steps": 1,
        "max_grad_norm": 1.0,
    },
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate_group() -> None:
    """What a terminal or a job scheduler does: all processes of the run, data workers too, get the signal."""
    os.killpg(0, signal.SIGTERM)


class At(TrainerCallback):
    """Does something at an event of a step."""

    def __init__(self, event: str, step: int, action: Callable[[], None]):
        def do(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                action()

        setattr(self, event, do)


# The places: each puts `action` somewhere into the run.


def step_begin(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    trainer.add_callback(At("on_step_begin", 8, action))


def early(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    trainer.add_callback(At("on_step_begin", 3, action))


def after_optimizer(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    """The weights have changed, the counters have not."""
    trainer.add_callback(At("on_optimizer_step", 7, action))


def step_end(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    """Too late for this step to notice: the run stops after the next."""
    trainer.add_callback(At("on_step_end", 7, action))


def last_of_epoch(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    trainer.add_callback(At("on_optimizer_step", 9, action))


def in_monitor(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    monitor = trainer.monitor

    def hit(model: Any) -> dict[str, float]:
        if trainer.state.global_step == 7:
            action()
        return monitor(model)

    trainer.monitor = hit


def writing_tensors(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    """In the second checkpoint: the model is written, the optimizer half."""
    save = trainer._save_optimizer_and_scheduler

    def half(folder: str) -> None:
        save(folder)
        if trainer.state.global_step == 8:
            os.truncate(Path(folder) / "optimizer.pt", 1000)
            action()

    trainer._save_optimizer_and_scheduler = half


def flushing(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    """In the second checkpoint: all is written and described, and not yet renamed."""
    flush = checkpoints._flush

    def hit(path: Path) -> None:
        flush(path)
        if path.name == "checkpoint-8":
            action()

    checkpoints._flush = hit


def rotating(trainer: SSLTrainer, action: Callable[[], None]) -> None:
    """The second checkpoint has its name; the first is about to be deleted."""
    flush = checkpoints._flush

    def hit(path: Path) -> None:
        flush(path)
        if (Path(trainer.args.output_dir) / "checkpoint-8").exists():
            action()

    checkpoints._flush = hit


def falling(model: Any) -> dict[str, float]:
    return {"knn_top1": 1.0}


def run(
    folder: str,
    setting: str,
    resume: bool | str = False,
    place: Callable[..., None] | None = None,
    action: Callable[[], None] = kill,
    close: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Train in this process; what came of it."""
    if place is not None:
        os.setpgid(0, 0)  # a process group of its own, to be signaled
    args = {**RUN, **SETTINGS[setting], **changes}
    labels = torch.arange(len(IMAGES)) % 4
    bank, queries = TensorSource(IMAGES[:24], labels[:24]), TensorSource(IMAGES[24:], labels[24:])
    monitor = KNNMonitor(evaluation_processor(16, [0.5] * 3, [0.5] * 3), bank, queries, num_classes=4, k=5)
    patience = args.pop("patience", None)
    if patience is not None:
        args |= {"metric_for_best_model": "knn_top1", "load_best_model_at_end": True}
        monitor = falling  # never better than at first
    trainer = make_trainer(folder, args.pop("make")(), monitor, **args)
    if patience is not None:
        trainer.add_callback(EarlyStoppingCallback(patience))
    if place is not None:
        place(trainer, action)
    trainer.train(resume_from_checkpoint=resume)
    result = outcome(trainer)
    if close:
        trainer.close()
    return result


def start(*args: Any, **changes: Any) -> Running:
    return Running(_run, args, changes)


def _run(args: tuple[Any, ...], changes: dict[str, Any]) -> dict[str, Any]:
    return run(*args, **changes)


@cache
def uninterrupted(setting: str, folder: Path) -> dict[str, Any]:
    """The outcome of the run that nothing happens to."""
    return start(str(folder / f"whole {setting}"), setting).result()
