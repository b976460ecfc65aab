"""What the training scripts share: where a run starts, and how it ends."""

import copy
import sys
from pathlib import Path

from transformers.trainer_utils import TrainOutput

from .checkpoints import CheckpointError
from .hub_errors import HubError
from .stopping import TrainingInterrupted
from .trainer import NonFiniteLossError, SSLTrainer
from .training_args import SSLTrainingArguments


def train(trainer: SSLTrainer, resume: str | bool | None) -> TrainOutput:
    """
    Train; a run that has to stop ends the process with a message in the place of a traceback.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer.
        resume (`str` or `bool`, *optional*): As for [`~hf_ssl.trainer.SSLTrainer.train`].

    Returns:
        `TrainOutput`.
    """
    try:
        return trainer.train(resume_from_checkpoint=resume)
    except (TrainingInterrupted, CheckpointError, NonFiniteLossError) as error:
        if trainer.is_world_process_zero():
            sys.stderr.write(f"\n{error}\n")
        if not isinstance(error, CheckpointError):  # the others are raised by all processes, in the same step
            trainer.close()
        sys.exit(getattr(error, "exit_code", 1))


def resume_point(training_args: SSLTrainingArguments) -> str | bool | None:
    """
    What `--resume_from_checkpoint` means.

    Args:
        training_args ([`~hf_ssl.training_args.SSLTrainingArguments`]): The arguments.

    Returns:
        `str` or `bool`, *optional*: a folder; True for the last checkpoint; nothing for a new run.
    """
    value = training_args.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(value).lower(), value)


def choose_best_by(training_args: SSLTrainingArguments, metric: str) -> None:
    """
    Settle by which metric a run's best model is chosen, and whether more of it is better: not of a loss. (transformers looks
    at the end of the name alone, and a recipe's word may be about another metric.)

    Args:
        training_args ([`~hf_ssl.training_args.SSLTrainingArguments`]): The arguments; changed in place.
        metric (`str`): The metric, if none was asked for.
    """
    if training_args.metric_for_best_model in (None, "loss"):  # transformers' own default
        training_args.metric_for_best_model = metric
    training_args.greater_is_better = "loss" not in str(training_args.metric_for_best_model).split("_")


def starting_point(model: str | None, revision: str | None) -> str | None:
    """
    Where a run's first weights come from, for its checkpoints.

    Args:
        model (`str`, *optional*): What `--model` says: a folder, an id of the Hub, or `"none"`.
        revision (`str`, *optional*): Branch, tag or commit of the Hub.

    Returns:
        `str` or `None`: None for random weights.
    """
    if model in (None, "none"):
        return None
    folder = Path(str(model)).expanduser()
    return str(folder.resolve()) if folder.exists() else f"{model}@{revision or 'main'}"


def push_and_close(trainer: SSLTrainer) -> None:
    """
    End a run: push its folder, if `--push_to_hub` asks for it. A push that fails ends the process with a message, which says
    how to push the folder later.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer, whose folder is finished.
    """
    trainer.close()  # first: the other processes would wait for the first one's push, and give up
    if not trainer.args.push_to_hub:
        return
    try:
        report = trainer.push_to_hub()
    except (ValueError, HubError) as error:
        branch = f" --revision {trainer.args.hub_revision}" if trainer.args.hub_revision else ""
        sys.exit(
            f"{error}\n{trainer.output_dir} is finished, and nothing of it is lost. To push it later: "
            f"hf-ssl push {trainer.output_dir} {trainer.hub_model_id}{branch}"
        )
    if report is not None:
        sys.stdout.write(f"\n{report}\n")


def save_trainer_state(trainer: SSLTrainer) -> None:
    """
    Write `trainer_state.json` into the output folder, without the paths of this machine.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer, after training.
    """
    state = copy.copy(trainer.state)
    if state.best_model_checkpoint is not None:
        state.best_model_checkpoint = Path(state.best_model_checkpoint).name
    state.save_to_json(str(trainer.output_dir / "trainer_state.json"))
