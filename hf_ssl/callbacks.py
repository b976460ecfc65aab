"""What happens around a step: what a person sees of it, and what the trainer does once for each."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


if TYPE_CHECKING:
    from .trainer import SSLTrainer


class ImagesPerSecondCallback(ProgressCallback):
    """Trainer's progress bar, with images per second and one readable line for each log."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.bar_start = (time.monotonic(), state.global_step)
        if self.training_bar is not None:
            self.training_bar.set_description("pretraining")
            if not sys.stderr.isatty():
                self.training_bar.mininterval = 30.0  # seconds: a log file is not redrawn, it grows
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            start, first_step = self.bar_start
            rate = (state.global_step - first_step) * self.images_per_step / (time.monotonic() - start)
            self.training_bar.set_postfix_str(f"{rate:,.0f} images/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs:
            numbers = {name: value for name, value in logs.items() if isinstance(value, float) and name != "epoch"}
            hidden = ("total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second")
            parts = [f"{name} {value:.4g}" for name, value in numbers.items() if name not in hidden]
            self.training_bar.write(f"step {state.global_step:>6} | " + " | ".join(parts))


class StepCallback(TrainerCallback):
    """
    Tells the trainer where an optimizer step begins and ends, however many micro-batches it has.

    Args:
        trainer ([`SSLTrainer`]): The trainer.
    """

    def __init__(self, trainer: "SSLTrainer"):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_training()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_epoch()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.before_optimizer()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.end_step()


class MethodCallback(TrainerCallback):
    """What a method does in a run beside its steps; its state is part of the checkpoints."""

    def after_epoch(self) -> None:
        """Called when an epoch is over: what there was to log, to measure and to save is done."""

    def save_state(self, folder: Path) -> None:
        """
        Write its state into a checkpoint; called on all processes.

        Args:
            folder (`Path`): The checkpoint's folder, where it is written.
        """

    def results(self) -> dict[str, Any]:
        """Numbers of the run for a report, by name."""
        return {}

    def draw_figures(self, folder: Path) -> dict[str, str]:
        """
        Draw what came of it, at the end of a run.

        Args:
            folder (`Path`): Where the pictures are written.

        Returns:
            `dict[str, str]`: captions by file name.
        """
        return {}
