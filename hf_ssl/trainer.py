"""transformers' Trainer with what self-supervised pretraining adds: views made on the device, the methods' schedules,
every loss term in the log, a kNN monitor in the place of evaluation, and a stop on non-finite losses.

All private methods of Trainer that have to be overridden are overridden here; each has a test.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, upload_folder
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import ProgressCallback, Trainer
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from .callbacks import ImagesPerSecondCallback
from .data import EpochSampler, collate
from .models import SSLPreTrainedModel
from .schedules import SCHEDULES
from .training_args import SSLTrainingArguments
from .views import Draws


logger = logging.get_logger(__name__)

Batch = dict[str, Tensor]


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or not a number; nothing was saved after it did."""


class SSLTrainer(Trainer):
    """
    Trains a [`SSLPreTrainedModel`].

    Args:
        model ([`SSLPreTrainedModel`]):
            The method's model.
        args ([`SSLTrainingArguments`]):
            Arguments of the run.
        train_dataset (`torch.utils.data.Dataset`):
            A source of `hf_ssl.data`, whose batches are flat dictionaries of tensors with `index` and `epoch`.
        views (`Callable[[dict[str, Tensor]], dict[str, Tensor]]`):
            Turns such a batch into the arguments of `model.forward`, on the device.
        monitor (`Callable[[SSLPreTrainedModel], dict[str, float]]`, *optional*):
            Measures the model in mid-run (see [`hf_ssl.evaluation.KNNMonitor`]); called by `evaluate`, so that
            `eval_strategy`, `eval_steps`, `eval_on_start` and `metric_for_best_model` mean what they always mean.
        kwargs:
            Other arguments of [`~transformers.Trainer`].
    """

    args: SSLTrainingArguments
    model: SSLPreTrainedModel

    def __init__(
        self,
        model: SSLPreTrainedModel,
        args: SSLTrainingArguments,
        train_dataset: Any,
        views: Callable[[Batch], Batch],
        monitor: Callable[[SSLPreTrainedModel], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        needed = args.train_batch_size * args.world_size
        if args.dataloader_drop_last and len(train_dataset) < needed:
            raise ValueError(
                f"{len(train_dataset)} training images do not fill one batch of {needed}. Use more images, a smaller "
                "--per_device_train_batch_size, or --dataloader_drop_last false."
            )
        # Trainer insists on an evaluation dataset when asked to evaluate; the monitor holds its own.
        eval_dataset = train_dataset if monitor is not None else None
        super().__init__(
            model,
            args,
            data_collator=collate,  # type: ignore[arg-type]
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        del model.config.use_cache  # Trainer sets it, for language models; it would be saved
        self.views = views
        self.monitor = monitor
        self.model.freeze()
        self.last_evaluated_step = -1
        self.evaluation_seconds = 0.0
        self._draws_at = (-1, -1)  # optimizer step and micro-batch of the last per-batch draws
        self._terms: dict[str, Tensor] = {}
        self._num_terms = 0
        self._first_bad_step: Tensor | None = None
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ImagesPerSecondCallback())

    @property
    def images_per_step(self) -> int:
        """Images of an optimizer step, over all processes and micro-batches."""
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def first_step(self) -> int:
        """Step that the last call of `train` began at: 0, or that of the checkpoint."""
        return self._initial_global_step

    @property
    def num_train_images(self) -> int:
        """Size of the training dataset."""
        return len(self.train_dataset)  # type: ignore[arg-type]

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.args.output_dir or ".")

    # ---- the step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The views of a batch, made on the device, and the model's loss on them."""
        index = inputs["index"]
        model_inputs = self.views(inputs)
        model_inputs |= self.model.step_draws(self._batch_draws(), len(index))
        outputs = model(**model_inputs)
        self._record(outputs, index)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _batch_draws(self) -> Draws:
        """Per-batch draws of this micro-batch, the same when a run is resumed."""
        step, micro_batch = self.state.global_step, 0
        if self._draws_at[0] == step:
            micro_batch = self._draws_at[1] + 1
        self._draws_at = (step, micro_batch)
        return Draws.for_batch(self.args.seed, step, micro_batch, self.args.process_index, self.args.device)

    def _record(self, outputs: Any, index: Tensor) -> None:
        """Add the loss terms up, and remember the first non-finite loss; all on the device."""
        terms = {f"loss_{name}": value for name, value in outputs["losses"].items()} | (outputs["metrics"] or {})
        for name, value in terms.items():
            value = value.detach().float()
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        self._num_terms += 1

        loss = outputs["loss"].detach()
        if self._first_bad_step is None:
            self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=loss.device)
            self._bad_index = torch.full(
                (max(len(index), self._train_batch_size),), -1, dtype=torch.int64, device=loss.device
            )
        is_first = ~loss.isfinite() & (self._first_bad_step < 0)
        self._first_bad_step.masked_fill_(is_first, self.state.global_step + 1)
        rows = self._bad_index[: len(index)]
        rows.copy_(torch.where(is_first, index, rows))

    def _stop_if_not_finite(self) -> None:
        """Raise on all processes if the loss of any of them was not finite; reads from the device."""
        if self._first_bad_step is None:
            return
        bad_steps = self.accelerator.gather(self._first_bad_step[None])
        bad_samples = self.accelerator.gather(self._bad_index)
        if (bad_steps < 0).all():
            return
        step = int(bad_steps[bad_steps >= 0].min())
        samples = bad_samples[bad_samples >= 0].tolist()
        raise NonFiniteLossError(
            f"The loss is not finite since step {step}; the samples of that batch are {samples}. Nothing was saved after "
            "it. Lower --learning_rate, clip gradients (--max_grad_norm 1), or look at those samples; then resume with "
            "--resume_from_checkpoint true."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms, averaged since the last time, to what Trainer logs of the training loss."""
        if "loss" in logs and self._num_terms:
            self._stop_if_not_finite()
            names = sorted(self._terms)
            values = torch.stack([self._terms[name] for name in names]) / self._num_terms
            values = self.accelerator.reduce(values, reduction="mean").tolist()
            logs |= dict(zip(names, values, strict=True))
            self._terms, self._num_terms = {}, 0
        super().log(logs, start_time)

    # ---- order, optimizer, schedule ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSampler(self.num_train_images, seed)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay, by `weight_decay_rule`."""
        everything = self.args.weight_decay_rule == "all"
        return [n for n, p in model.named_parameters() if everything or (p.ndim > 1 and not n.endswith(".bias"))]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The method's schedule if there is one, else that of `lr_scheduler_type`."""
        args, optimizer = self.args, optimizer or self.optimizer
        if args.schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        # A share of the steps is rounded down, as the originals do.
        warmup = args.warmup_steps if args.warmup_steps >= 1 else num_training_steps * args.warmup_steps
        schedule = SCHEDULES[args.schedule](
            args.learning_rate, args.min_learning_rate, num_training_steps, int(warmup)
        )
        self.lr_scheduler = LambdaLR(optimizer, lambda step: schedule(step) / args.learning_rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- evaluation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Run the monitor on the model as it is now.

        Returns:
            `dict[str, float]`: its numbers, each name after `eval_`.
        """
        if self.monitor is None:
            raise ValueError("There is nothing to evaluate with: the trainer was made without a monitor.")
        self._stop_if_not_finite()
        self.last_evaluated_step = self.state.global_step
        start = time.monotonic()
        measured = self.monitor(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.evaluation_seconds += time.monotonic() - start
        if metrics:
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- saving and loading ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stop_if_not_finite()
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the pretraining model.

        Args:
            output_dir (`str`, *optional*): Folder; unset, `pretraining/` in the run's folder, whose root is the encoder's.
        """
        super().save_model(output_dir or str(self.output_dir / "pretraining"), _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the whole pretraining model under its own parameter names, which resuming needs; no pickled arguments."""
        folder = Path(output_dir or self.output_dir)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(
            folder, state_dict=state_dict, is_main_process=self.args.should_save, save_original_format=False
        )
        if self.args.should_save and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load every tensor, or fail; Trainer's own method would leave renamed tensors at their initial values."""
        path = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        if not path.is_file():
            raise FileNotFoundError(f"There is no {SAFE_WEIGHTS_NAME} in {resume_from_checkpoint} to resume from.")
        target = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        target.load_state_dict(load_file(path, device="cpu"), strict=True)

    def _load_best_model(self) -> None:
        logger.info(f"Loading the best model, {self.state.best_model_checkpoint} ({self.state.best_metric}).")
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: in mid-run it would put the pretraining model where the encoder belongs."""

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str = "End of training", **kwargs: Any
    ) -> CommitInfo | None:
        """
        Upload `output_dir` as it is, without checkpoints.

        Args:
            commit_message (`str`, *optional*): Message of the one commit.

        Returns:
            `huggingface_hub.CommitInfo`, or None on processes other than the first.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo()
        return upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=self.output_dir,
            commit_message=commit_message,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            ignore_patterns=["checkpoint-*", "runs/*", "_*"],
        )
