"""Stopping a run from outside: Ctrl-C, SIGTERM, or a launcher that is gone. The step is finished, a checkpoint is written,
and the run ends with a message."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy


SECONDS_OF_ONE_SIGNAL = 2.0  # a launcher hands on the Ctrl-C that the terminal has already sent to all processes
LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch", "torch.distributed.run"}


class TrainingInterrupted(KeyboardInterrupt):
    """
    Training was stopped by a signal, after a checkpoint was written.

    Args:
        signal_number (`int`): The signal.
        step (`int`): Optimizer steps done.
        checkpoint (`str`): The checkpoint that was written.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: str):
        super().__init__(
            f"Stopped by {signal.Signals(signal_number).name} after step {step}. {checkpoint} is written; the same command "
            "with --resume_from_checkpoint true goes on from there."
        )
        self.exit_code = 128 + signal_number


class StopCallback(TrainerCallback):
    """
    Turns Ctrl-C and SIGTERM into a checkpoint at the end of the step, and the end of training. Several processes agree on
    the step through a group of their own, on the CPU, one step later: no process waits for another, or for its device.
    """

    def __init__(self) -> None:
        self.agreed_signal = 0  # 0 as long as training goes on
        self._received = 0
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}
        self._launcher: int | None = None
        self._group: Any = None
        self._question: tuple[torch.Tensor, dist.Work] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.agreed_signal = self._received = 0
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.signal(number, self._receive)
                self._previous.setdefault(number, previous)
        self._launcher = _find_launcher()
        if args.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def _receive(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
            # Not print: a signal may arrive in the middle of one.
            with suppress(OSError):  # nobody may be listening anymore
                os.write(
                    2, b"\nStopping: this step is finished and a checkpoint written. Ctrl-C again stops at once.\n"
                )
        elif number == signal.SIGINT and now - self._received_at > SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt("Stopped at once; no checkpoint was written.")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._look_for_launcher()
        self.agreed_signal = self._received if self._group is None else self._agree()
        if self.agreed_signal:
            control.should_training_stop = control.should_save = True

    def poll(self) -> int:
        """
        Ask all processes at once, between two steps.

        Returns:
            `int`: the signal that some process has received until now; 0 if none has.
        """
        self._look_for_launcher()
        self.agreed_signal = self._received
        if self._group is not None:
            flag = torch.tensor([self._received])
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            self.agreed_signal = int(flag.item())
        return self.agreed_signal

    def _look_for_launcher(self) -> None:
        # `accelerate launch` does not hand SIGTERM on: its process would go on training alone.
        if self._launcher is not None and os.getppid() != self._launcher and not self._received:
            self._received = signal.SIGTERM

    def _agree(self) -> int:
        """The signal that some process had received when the last step ended, the same on all."""
        if self._question is not None:
            asked, work = self._question
            work.wait()
            self._question = None
            if asked.item():
                return int(asked.item())
        flag = torch.tensor([self._received])
        self._question = flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return 0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Trainer comes here from the middle of an epoch too, when it stops: that epoch is not at its end.
        if self.agreed_signal and not at_epoch_end(state):
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._question is not None:  # asked in the last step, by all
            self._question[1].wait()
            self._question = None
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class EpochEndCallback(TrainerCallback):
    """
    Moves the evaluation and the checkpoint of an epoch's last step to the epoch's end, behind what is logged and measured
    there: a run that is resumed from the checkpoint would miss it. Of evaluations at the end of each epoch, it lets every
    `eval_epochs`-th pass.
    """

    def __init__(self) -> None:
        self._evaluate = self._save = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if at_epoch_end(state):
            self._evaluate, self._save = control.should_evaluate, control.should_save
            control.should_evaluate = control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        epochs: int = getattr(args, "eval_epochs")  # noqa: B009 (a field of SSLTrainingArguments)
        is_due = at_epoch_end(state) and round(state.epoch or 0) % epochs == 0
        if args.eval_strategy == IntervalStrategy.EPOCH and not is_due and state.global_step < state.max_steps:
            control.should_evaluate = False
        control.should_evaluate |= self._evaluate
        control.should_save |= self._save
        self._evaluate = self._save = False


def at_epoch_end(state: TrainerState) -> bool:
    """Whether the last step was an epoch's last."""
    return state.epoch is not None and state.epoch == int(state.epoch)


def _find_launcher() -> int | None:
    """The pid of the parent process if it is a launcher, and not, say, a shell that may end before the run."""
    try:
        parent = psutil.Process().parent()
        # The interpreter, its options, and the program or `-m` and the module.
        command = {Path(word).name for word in parent.cmdline()[:4]} if parent is not None else set()
    except psutil.Error:
        return None
    return parent.pid if parent is not None and command & LAUNCHERS else None
