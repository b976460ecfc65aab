"""transformers' Trainer with what self-supervised pretraining adds: views made on the device, the methods' schedules and
teachers, every loss term in the log, a kNN monitor in the place of evaluation, a stop on non-finite losses, and
checkpoints that are whole and restore a run exactly.

All private methods of Trainer that have to be overridden are overridden here; each has a test.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate import skip_first_batches
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, ProgressCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from .callbacks import ImagesPerSecondCallback, StepCallback
from .checkpoints import (
    UNFINISHED,
    CheckpointError,
    checkpoint_path,
    find_start,
    list_checkpoints,
    publish_checkpoint,
    read_manifest,
)
from .clipping import clip_per_parameter_
from .data import AugmentedSource, EpochSampler, RepeatedBatches, collate, prepare_for_workers, start_worker
from .data.repeat import only
from .distributed import close_process_group
from .loss_log import LossLog, NonFiniteLoss
from .models import SSLPreTrainedModel, Step
from .parameter_groups import parameter_groups
from .schedules import SCHEDULES, Schedule, cosine, lagged, per_epoch
from .stopping import EpochEndCallback, StopCallback, TrainingInterrupted
from .training_args import SSLTrainingArguments
from .views import Draws, save_views


if TYPE_CHECKING:
    from .hub.push import PushReport

logger = logging.get_logger(__name__)

Batch = dict[str, Tensor]

# Arguments that a run should be resumed with as it was started.
COMPARED_ARGUMENTS = (
    *("data_seed", "gradient_accumulation_steps", "learning_rate", "weight_decay", "max_steps", "num_train_epochs"),
    *("schedule", "schedule_unit", "schedule_lag", "warmup_steps", "warmup_learning_rate", "min_learning_rate"),
    *("final_weight_decay", "max_grad_norm"),
)


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became infinite or not a number; nothing was saved after it did."""


class SSLTrainer(Trainer):
    """
    Trains a [`SSLPreTrainedModel`].

    Args:
        model ([`SSLPreTrainedModel`]):
            The method's model.
        args ([`SSLTrainingArguments`]):
            Arguments of the run.
        train_dataset (`torch.utils.data.Dataset`):
            A source of `hf_ssl.data`, whose batches are flat dictionaries of tensors with `index` and `epoch`; its
            `fingerprint()` names its content.
        views (`Callable[[dict[str, Tensor], Draws | None], dict[str, Tensor]]`):
            Turns such a batch into the arguments of `model.forward`, where `augment_on` says; its second argument are the
            draws of the batch (on the CPU) or None in a worker. What is done is saved beside checkpoints if `views.config`, a
            dataclass, tells it.
        monitor (`Callable[[SSLPreTrainedModel], dict[str, float]]`, *optional*):
            Measures the model in mid-run (see [`hf_ssl.evaluation.KNNMonitor`]); called by `evaluate`, so that
            `eval_strategy`, `eval_steps`, `eval_on_start` and `metric_for_best_model` mean what they always mean.
        began_with (`str`, *optional*):
            The published model whose weights the run begins with; a checkpoint is only resumed by a run that began alike.
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
        views: Callable[[Batch, Draws | None], Batch],
        monitor: Callable[[SSLPreTrainedModel], dict[str, float]] | None = None,
        began_with: str | None = None,
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            raise ValueError(f"One process has {args.n_gpu} GPUs; start one for each, with accelerate launch.")
        if not hasattr(train_dataset, "fingerprint"):
            raise TypeError(f"{type(train_dataset).__name__} has no fingerprint(); use a source of hf_ssl.data.")
        needed = args.train_batch_size * args.world_size
        if args.dataloader_drop_last and len(train_dataset) < needed:
            raise ValueError(
                f"{len(train_dataset)} training images do not fill one batch of {needed}. Use more images, a smaller "
                "--per_device_train_batch_size, or --dataloader_drop_last false."
            )
        self._check_batch_size(args, len(train_dataset), views)
        # Trainer insists on an evaluation dataset when asked to evaluate; the monitor holds its own.
        eval_dataset = train_dataset if monitor is not None else None
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        del model.config.use_cache  # Trainer sets it, for language models; it would be saved
        self.views, self.began_with = views, began_with
        self._views_config: Any = getattr(views, "config", None)
        if not is_dataclass(self._views_config):
            self._views_config = None
        self._augments_in_workers = self._find_where_to_augment() == "workers"
        self.monitor = monitor
        self.model.freeze()
        self.last_evaluated_step = -1
        self.evaluation_seconds = self.data_seconds = 0.0
        self.between_epochs_seconds = 0.0
        self.num_skipped_steps = 0
        self._micro_batch = 0  # number of the next one in its step
        self._loss_log = self._new_loss_log()
        self._is_step_skipped = False
        self._loss_scale = 1.0  # of float16
        self._checkpoint: str | None = None  # that the run is resumed from
        self._schedules: dict[str, Schedule] = {}
        self._values: dict[str, float] = {}
        self._buffers: dict[str, Tensor] = {}  # those of before the step, where steps may be skipped
        self._steps_per_epoch = 0  # known when there is a data loader
        self._repeated: RepeatedBatches | None = None
        self._extra_loader: Any = None
        self._repeated_views: dict[int, Batch] = {}  # by micro-batch, where a batch is trained several steps
        self._is_writing_aside = False
        self._last_saved_step = -1
        self._fingerprint: str | None = None
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ImagesPerSecondCallback())
        self.stop_callback = StopCallback()
        self.method_callback = model.training_callback(self)
        callbacks = (StepCallback(self), self.stop_callback, EpochEndCallback(), self.method_callback)
        for callback in filter(None, callbacks):
            self.add_callback(callback)

    @staticmethod
    def _check_batch_size(args: SSLTrainingArguments, num_images: int, views: Any) -> None:
        """Refuse batches that the views cannot be made of, before the run meets them."""
        smallest, multiple = getattr(views, "min_batch_size", 1), getattr(views, "batch_size_multiple", 1)
        needs = f"at least {smallest} images" if multiple == 1 else f"a multiple of {multiple} images"
        last = 0 if args.dataloader_drop_last else num_images % args.train_batch_size
        if args.train_batch_size < smallest or args.train_batch_size % multiple:
            wrong = "is too small" if args.train_batch_size < smallest else "does not do"
            raise ValueError(f"per_device_train_batch_size={args.train_batch_size} {wrong}: these views need {needs}.")
        if 0 < last < smallest or last % multiple:
            raise ValueError(
                f"The last batch of an epoch has {last} of {num_images} images, and these views need {needs}: set "
                "--dataloader_drop_last true, or another --per_device_train_batch_size."
            )

    def _find_where_to_augment(self) -> str:
        """What `augment_on` says; "auto" takes the workers' time, if there are any, where there is no accelerator."""
        where, needs_batch_draws = self.args.augment_on, getattr(self.views, "needs_batch_draws", False)
        if where == "workers" and needs_batch_draws:
            raise ValueError(
                "augment_on='workers' is not possible with these views: the images of a batch share random draws that are "
                "made for the optimizer step, which a worker does not know. Use 'device'."
            )
        if where != "auto":
            return where
        has_idle_workers = self.args.device.type == "cpu" and self.args.dataloader_num_workers > 0
        return "workers" if has_idle_workers and not needs_batch_draws else "device"

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

    # ---- beginning and end ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """
        Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder, or `True` for the last whole one in the run's folder; damaged ones after it are
                named and set aside. The run goes on as if it had not been interrupted, bit for bit at the same number
                of processes.

        Returns:
            `TrainOutput`: steps done, mean loss and metrics.

        Raises:
            [`CheckpointError`]: there is no whole checkpoint to resume from, it is of a run on other data, or one cannot
                be written.
            [`NonFiniteLossError`]: the loss is not finite.
            [`TrainingInterrupted`]: the run was stopped by Ctrl-C or SIGTERM; a checkpoint was written.
        """
        prepare_for_workers()
        self.model.prepare_training(self.num_train_images, self.args.seed, self._run()["dataset"])
        self._checkpoint = self._agree_on_start(resume_from_checkpoint)
        if self._checkpoint is not None:
            self.args.eval_on_start = False
        try:
            return super().train(self._checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.stop_callback.restore()
            self._repeated_views.clear()
            if self._repeated is not None:
                self._repeated.close()  # or its workers would wait for the rest of an epoch

    def _agree_on_start(self, resume: str | bool | None) -> str | None:
        """The first process finds the checkpoint to start from, or the reason why there is none, and tells the others."""
        found: list[str | None] = [None, None]
        if self.is_world_process_zero():
            try:
                found[0] = find_start(self.output_dir, resume, self._run())
            except (CheckpointError, OSError) as error:
                found[1] = str(error)
        checkpoint, problem = broadcast_object_list(found)
        if problem is not None:
            raise CheckpointError(problem)
        return checkpoint

    def _run(self) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run."""
        if self._fingerprint is None:
            self._fingerprint = self.train_dataset.fingerprint()  # type: ignore[union-attr]
        return {
            "step": self.state.global_step,
            "dataset": self._fingerprint,
            "num_train_images": self.num_train_images,
            "began_with": self.began_with,
            "seed": self.args.seed,
            "num_processes": self.args.world_size,
            "images_per_step": self.images_per_step,
            **{name: getattr(self.args, name) for name in COMPARED_ARGUMENTS},
            **({} if self._views_config is None else {"views": asdict(self._views_config)}),
            "model": self._model_options(),
            "save_only_model": self.args.save_only_model,
        }

    def _model_options(self) -> dict[str, Any]:
        """The method's own options; sizes need not be compared, with others the weights do not fit."""
        config = self.model.config
        own = {item.name for item in fields(config)} - {item.name for item in fields(PreTrainedConfig)}
        return {name: getattr(config, name) for name in sorted(own - {"backbone_config"})}

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)
            if self.method_callback is not None:
                self.method_callback.after_epoch()
            return None
        # Resumed after its last step, in the middle of an epoch: Trainer would do one step more.
        self.control.should_training_stop = True
        return None

    def _finalize_training(self, trial: Any, num_train_samples: float, start_time: float) -> TrainOutput:
        self._stop_if_not_finite()
        if not self.stop_callback.agreed_signal or self.state.global_step >= self.state.max_steps:
            best = self.state.best_model_checkpoint
            if best is not None and (self.args.load_best_model_at_end or self.args.save_total_limit == 1):
                read_manifest(best)  # before Trainer deletes the others
            result = super()._finalize_training(trial, num_train_samples, start_time)
            self._non_finite_file.unlink(missing_ok=True)  # of an earlier attempt
            return result._replace(training_loss=result.metrics["train_loss"])
        # Trainer would now load the best model and delete checkpoints, as after a whole run.
        if self._last_saved_step != self.state.global_step:  # an evaluation in that step found it not to be the best
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return self.interrupt()

    def interrupt(self) -> NoReturn:
        """End the run here, after the checkpoint of this step is written, because all processes know of a signal."""
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        path = checkpoint_path(self.output_dir, self.state.global_step)
        raise TrainingInterrupted(self.stop_callback.agreed_signal, self.state.global_step, str(path))

    def close(self) -> None:
        """End the process group, at the end of a script; see [`~hf_ssl.distributed.close_process_group`]."""
        self.accelerator.free_memory()
        self.model_wrapped = self.callback_handler.model = self.model
        self.optimizer = self.lr_scheduler = None
        close_process_group()

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """
        Batches of the source, in the order of an [`EpochSampler`]; of several processes, each gets its share. Where the
        method trains a batch for several steps, it comes several times.
        """
        args, self._extra_loader = self.args, None
        self._sampler = self._new_sampler()
        loader = self._new_loader(self._sampler, args.dataloader_drop_last)
        micro_batches, self._repeated = args.gradient_accumulation_steps, None
        if self.model.steps_per_batch > 1:
            self._repeated = RepeatedBatches(loader, self.model.steps_per_batch, micro_batches)
            loader = DataLoader(self._repeated, collate_fn=only, generator=torch.Generator())
        self._steps_per_epoch = math.ceil(len(loader) / micro_batches)
        return loader

    def _new_sampler(self) -> EpochSampler:
        args = self.args
        return EpochSampler(self.num_train_images, args.seed if args.data_seed is None else args.data_seed)

    def _new_loader(self, sampler: EpochSampler, drop_last: bool) -> DataLoader[Any]:
        args, source = self.args, self.train_dataset
        loader: DataLoader[Any] = DataLoader(
            AugmentedSource(source, self.views) if self._augments_in_workers else source,  # type: ignore[arg-type]
            batch_size=self._train_batch_size,
            sampler=sampler,
            collate_fn=collate,  # type: ignore[arg-type]
            drop_last=drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; known when training begins."""
        return self._steps_per_epoch

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that the run is resumed from."""
        return self._checkpoint

    def extra_batches(self, epoch: int, first: int = 0) -> tuple[int, Iterator[Batch]]:
        """
        All training images once, augmented, outside of the epochs that Trainer counts. Each process gets its share of the
        batches; the last one is complete in no other way than by images of the first.

        Args:
            epoch (`int`): Number that their order and their augmentation are drawn with.
            first (`int`, *optional*, defaults to 0): Batches to leave out.

        Returns:
            `tuple[int, Iterator[dict[str, torch.Tensor]]]`: how many batches an epoch has, without any left out; and batches
            of views, with `index` and `epoch`, on the device.
        """
        if self._extra_loader is None:  # one for the run: accelerate keeps all that it has prepared
            self._extra_loader = self._new_loader(self._new_sampler(), drop_last=False)
        loader = self._extra_loader
        loader.set_epoch(epoch)  # accelerate's: it would tell the sampler that this is its first
        total = len(loader)
        return total, self._extra_batches(skip_first_batches(loader, first) if first else loader)

    def _extra_batches(self, loader: DataLoader[Any]) -> Iterator[Batch]:
        for batch in loader:
            views = batch if self._augments_in_workers else self.views(batch, None)
            yield {**views, "index": batch["index"], "epoch": batch["epoch"]}

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Images of an epoch, for Trainer's own statistics; each counts as often as it is trained on."""
        return self.num_train_images * self.model.steps_per_batch

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Trainer's; the time spent waiting here is `data_seconds`."""
        start = time.perf_counter()
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.data_seconds += time.perf_counter() - start
        return samples

    # ---- the step ----

    def begin_training(self) -> None:
        """Called by [`StepCallback`] before the first step: make the schedules."""
        wrapped = getattr(self.model_wrapped, "_orig_mod", self.model_wrapped)  # inside of what torch.compile made
        if isinstance(wrapped, DistributedDataParallel) and self.args.ddp_broadcast_buffers is None:
            # Buffers are the same on all processes (see SSLPreTrainedModel): no need to send them around in every step.
            wrapped.broadcast_buffers = False
        self._loss_log = self._new_loss_log()
        self._last_saved_step, self.num_skipped_steps, self.data_seconds = -1, 0, 0.0
        if self._checkpoint is not None:
            self._load_progress(self._checkpoint)
            if self.state.global_step >= self.state.max_steps:
                self._load_rng_state(self._checkpoint)  # Trainer does so before the next step, and there is none
        num_steps = self.state.max_steps
        self._schedules = self.model.schedules(num_steps, self._steps_per_epoch)
        if self.args.final_weight_decay is not None:
            self._schedules["weight_decay"] = cosine(self.args.weight_decay, self.args.final_weight_decay, num_steps)

    def _new_loss_log(self) -> LossLog:
        return LossLog(self.args.gradient_accumulation_steps, self._train_batch_size, self.args.device)

    def begin_epoch(self) -> None:
        """Called by [`StepCallback`] before the first batch of an epoch: accelerate's wrappers may not reach the sampler."""
        epoch = self.state.global_step // self._steps_per_epoch
        self._sampler.set_epoch(epoch)
        if self._repeated is not None:
            self._repeated.set_epoch(epoch)

    def begin_step(self) -> None:
        """Called by [`StepCallback`] before the first micro-batch of an optimizer step."""
        self._micro_batch = 0
        self._values = {name: schedule(self.state.global_step) for name, schedule in self._schedules.items()}
        if "weight_decay" in self._values:
            for group in self.optimizer.param_groups:  # type: ignore[union-attr]
                if group["weight_decay"]:
                    group["weight_decay"] = self._values["weight_decay"]
        if self.args.max_skipped_steps:
            self._buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.model.on_step_begin(self._values)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The views of a batch and the model's loss on them."""
        args, number, epoch, index = self.args, self.state.global_step, inputs["epoch"], inputs["index"]
        draws = Draws.for_batch(args.seed, number, self._micro_batch, args.process_index)
        samples = Draws.for_samples(args.seed, epoch, index, view=-1)  # no view has that number
        repetition = number % self.model.steps_per_batch
        step = Step(draws.to(args.device), samples, self._values, repetition, index)
        outputs = model(**self._make_views(inputs, draws, repetition), **self.model.step_inputs(step))
        loss = outputs["loss"]
        finite = self._loss_log.add(outputs, index, number + 1, self._micro_batch)
        self._micro_batch += 1
        if args.max_skipped_steps:
            loss = torch.where(finite, loss, torch.zeros_like(loss))  # a skipped step must not spoil Trainer's sum
        return (loss, outputs) if return_outputs else loss

    def _make_views(self, inputs: Batch, draws: Draws, repetition: int) -> Batch:
        """The views of a batch, made on the device unless a worker has made them; once, for all steps that it is trained."""
        if self._augments_in_workers:
            return {name: value for name, value in inputs.items() if name not in ("epoch", "index")}
        if repetition and self._micro_batch in self._repeated_views:
            return self._repeated_views[self._micro_batch]
        if repetition:  # resumed between two steps of a batch: made again, with the draws of its first
            args, first_step = self.args, self.state.global_step - repetition
            draws = Draws.for_batch(args.seed, first_step, self._micro_batch, args.process_index)
        self._repeated_views.pop(self._micro_batch, None)  # the last batch's, before there are others
        views = self.views(inputs, draws)
        if self.model.steps_per_batch > 1:
            self._repeated_views[self._micro_batch] = views
        return views

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        if self.args.gradient_clipping == "global":
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return clip_per_parameter_(self.model.named_parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # With float16 infinite gradients are nothing unusual: the loss scaler skips the step.
        if isinstance(norm, Tensor) and self.accelerator.scaler is None:
            self._loss_log.check_gradient(norm.detach(), self.state.global_step + 1)
        return norm

    def before_optimizer(self) -> None:
        """Called by [`StepCallback`] when the gradients are complete, before the optimizer's step."""
        self._skip_bad_step()
        self._loss_scale = self._current_loss_scale()
        if not self._is_step_skipped:
            self.model.on_gradients(self._values)

    def _skip_bad_step(self) -> None:
        """Leave a non-finite step out, where that was asked for."""
        self._is_step_skipped = False
        if not self.args.max_skipped_steps:
            return
        found = self._loss_log.non_finite(self.accelerator)
        if found is None:
            return
        if self.num_skipped_steps == self.args.max_skipped_steps:
            self._stop_for(found)
        self._is_step_skipped = True
        self.num_skipped_steps += 1
        logger.warning(f"Step {found.step} is skipped: {found.terms[0]}, samples {found.samples}.")
        self._loss_log.clear_non_finite()
        self.optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffers[name])

    def end_step(self) -> None:
        """Called by [`StepCallback`] after the optimizer's step, if it made one."""
        # Float16's loss scaler makes its scale smaller when it skips a step; of a fused optimizer accelerate does not notice.
        if not self._is_step_skipped and self._current_loss_scale() >= self._loss_scale:
            self.model.on_optimizer_step(self._values)

    def _current_loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _stop_if_not_finite(self) -> None:
        """Stop all processes if the loss of any of them was not finite; reads from the device."""
        found = self._loss_log.non_finite(self.accelerator)
        if found is not None:
            self._stop_for(found)

    def _stop_for(self, found: NonFiniteLoss) -> None:
        path = self._non_finite_file
        if self.is_world_process_zero():
            content = {**asdict(found), "terms": [{n: str(value) for n, value in t.items()} for t in found.terms]}
            path.write_text(json.dumps(content, indent=2) + "\n")
        raise NonFiniteLossError(
            f"The loss or its gradient is not finite since step {found.step}: {found.terms[0]}. Nothing was saved after it. "
            f"The images of that step are named in {path}. Look at them, lower --learning_rate, clip gradients "
            "(--max_grad_norm 1) or leave such steps out (--max_skipped_steps 10); then resume with "
            "--resume_from_checkpoint true."
        )

    @property
    def _non_finite_file(self) -> Path:
        return self.output_dir / "non_finite_loss.json"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms, averaged since the last time, and the scheduled values to what Trainer logs."""
        if "loss" in logs:
            self._stop_if_not_finite()
            terms = self._loss_log.means(self.accelerator)
            if self.args.max_skipped_steps:
                logs |= {"loss": terms["loss"], "skipped_steps": self.num_skipped_steps}
            logs |= {name: value for name, value in terms.items() if name != "loss"} | self._values
        if "train_loss" in logs:  # that of the whole run, also if it was resumed
            num_steps = self.state.global_step - self.num_skipped_steps
            logs["train_loss"] = self._total_loss_scalar / max(num_steps, 1)
        super().log(logs, start_time)

    # ---- optimizer, schedule ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `optim` names, over the groups of [`parameter_groups`]."""
        if self.optimizer is None:
            args, model = self.args, self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.model)
            if not isinstance(optimizer_class, type) or options.keys() & {"params", "model", "optimizer_dict"}:
                raise ValueError(
                    f"optim={args.optim!r} chooses its parameters itself; use adamw_torch_fused or another."
                )
            groups = parameter_groups(
                model, args.learning_rate, args.weight_decay, args.weight_decay_rule, args.layer_decay
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The method's schedule if there is one, else that of `lr_scheduler_type`."""
        args, optimizer = self.args, optimizer or self.optimizer
        if args.schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        # A share of the steps is rounded down, as the originals do.
        warmup = args.warmup_steps if args.warmup_steps >= 1 else num_training_steps * args.warmup_steps
        unit = 1 if args.schedule_unit == "step" else self._steps_per_epoch
        if not unit:
            raise ValueError(
                "schedule_unit='epoch' needs the length of an epoch, which is known when training begins."
            )
        if warmup and not int(warmup / unit):
            logger.warning(
                f"There is no warm-up: its {warmup:g} steps are less than {'an epoch' if unit > 1 else 'one'}. Set "
                f"--warmup_steps{' (in steps), or --schedule_unit step' if unit > 1 else ''}."
            )
        start = {"start": args.warmup_learning_rate} if args.warmup_learning_rate else {}
        schedule = SCHEDULES[args.schedule](
            args.learning_rate,
            args.min_learning_rate,
            math.ceil(num_training_steps / unit),
            int(warmup / unit),
            **start,
        )
        schedule = per_epoch(lagged(schedule, args.schedule_lag), unit)
        self.lr_scheduler = LambdaLR(optimizer, lambda step: schedule(step) / args.learning_rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's; but learning rates and weight decay are those of the arguments, which may have been changed."""
        groups = self.optimizer.param_groups  # type: ignore[union-attr]
        scheduler: Any = self.lr_scheduler
        if not isinstance(scheduler, LambdaLR):  # its learning rate is what it has come to
            return super()._load_optimizer_and_scheduler(checkpoint)
        wanted = [(group["initial_lr"], group["weight_decay"]) for group in groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler.base_lrs = [rate for rate, _ in wanted]
        step = scheduler.last_epoch
        rates = [rate * factor(step) for (rate, _), factor in zip(wanted, scheduler.lr_lambdas, strict=True)]
        groups = self.optimizer.param_groups  # type: ignore[union-attr]
        for group, (initial, decay), rate in zip(groups, wanted, rates, strict=True):
            group |= {"initial_lr": initial, "weight_decay": decay, "lr": rate}
        scheduler._last_lr = rates

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
        """Write the checkpoint aside; when all processes are done, the first one makes it known by its name."""
        self._stop_if_not_finite()
        target = checkpoint_path(self.output_dir, self.state.global_step)
        folder = target.parent / UNFINISHED / target.name
        try:
            if self.args.should_save:
                shutil.rmtree(folder.parent, ignore_errors=True)
                folder.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._is_writing_aside = True
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self.model.save_state(folder)
            if self.method_callback is not None:
                self.method_callback.save_state(folder)
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(target)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                publish_checkpoint(folder, target, self._run())
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # not torch's file writer
                raise
            shutil.rmtree(folder, ignore_errors=True)
            kept = list_checkpoints(self.output_dir)
            raise CheckpointError(
                f"The checkpoint of step {self.state.global_step} could not be written to {self.output_dir}, with "
                f"{shutil.disk_usage(self.output_dir).free:,} bytes free: {error}. "
                + (f"{kept[0].name} is as it was. " if kept else "There is no earlier one. ")
                + "Make room, or the folder writable, and resume with --resume_from_checkpoint true."
            ) from error
        finally:
            self._is_writing_aside = False
        self._last_saved_step = self.state.global_step
        if self.args.should_save:
            with suppress(OSError):  # something else lies there
                folder.parent.rmdir()
            rotate_checkpoints(
                str(self.output_dir), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=False
            )
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_writing_aside else folder

    def _save_rng_state(self, output_dir: str) -> None:
        """The state of this process: random generators, and the sums that the next log is made of."""
        super()._save_rng_state(output_dir)
        progress = {
            "loss_since_last_log": self._tr_loss.item(),
            "last_logged_step": self._globalstep_last_logged,
            "total_loss": self._total_loss_scalar,
            "terms": self._loss_log.state_dict(),
            "num_skipped_steps": self.num_skipped_steps,
        }
        self._progress_file(output_dir).write_text(json.dumps(progress))

    def _load_progress(self, checkpoint: str) -> None:
        path = self._progress_file(checkpoint)
        if not path.is_file():  # of a process that there was not when the checkpoint was written
            return
        progress = json.loads(path.read_text())
        self._tr_loss = torch.tensor(progress["loss_since_last_log"], device=self.args.device)
        self._globalstep_last_logged = progress["last_logged_step"]
        self._total_loss_scalar = progress["total_loss"]
        self._loss_log.load_state_dict(progress["terms"])
        self.num_skipped_steps = progress["num_skipped_steps"]

    def _progress_file(self, folder: str) -> Path:
        return Path(folder) / f"progress_{self.args.process_index}.json"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the pretraining model.

        Args:
            output_dir (`str`, *optional*): Folder; unset, `pretraining/` in the run's folder, whose root is the encoder's.
        """
        # Trainer would push after a call from outside: the folder is only pushed when all of it is there.
        super().save_model(output_dir or str(self.output_dir / "pretraining"), _internal_call=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the whole pretraining model under its own parameter names, which resuming needs; no pickled arguments."""
        folder = Path(output_dir or self.output_dir)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(
            folder, state_dict=state_dict, is_main_process=self.args.should_save, save_original_format=False
        )
        if self.args.should_save and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        if self.args.should_save and self._views_config is not None:
            save_views(self._views_config, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load every tensor, or fail; Trainer's own method would leave renamed tensors at their initial values."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # they have files of their own, under the model's names
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        target = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
        try:
            target.load_state_dict(load_file(path, device="cpu"), strict=True)
            target.load_state(resume_from_checkpoint)
        except RuntimeError as error:
            raise CheckpointError(
                f"{resume_from_checkpoint} is of another model than this command makes; resume with the same --method, "
                f"--backbone, sizes and options of the model. {error}"
            ) from error

    def _init_training_state(self, *args: Any) -> Any:
        """Trainer's; the best checkpoint is looked for where the run's folder is now."""
        result = super()._init_training_state(*args)
        state = self.state
        if state.best_global_step and self._checkpoint is not None:
            places = (checkpoint_path(self.output_dir, state.best_global_step), state.best_model_checkpoint)
            found = next((str(path) for path in places if path is not None and Path(path).is_dir()), None)
            state.best_model_checkpoint = found
            if found is None:
                logger.warning(
                    f"The best checkpoint, of step {state.best_global_step} ({state.best_metric}), is gone; the best one "
                    "is now looked for among those that follow."
                )
                state.best_global_step = state.best_metric = None
        return result

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        logger.info(f"Loading the best model, {best} ({self.state.best_metric}).")
        self._load_from_checkpoint(best)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: in mid-run it would put the pretraining model where the encoder belongs."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Make the repository if there is none, and find out before training whether the push at its end would be refused.

        Args:
            token (`str`, *optional*): Unset, `hub_token`.
            private (`bool`, *optional*): Whether a new repository is private; unset, `hub_private_repo`.

        Raises:
            [`~hf_ssl.hub_errors.HubError`]: it would be refused.
        """
        from .hub.push import open_repository  # the other modules of hub import this one

        if self.is_world_process_zero():
            target = open_repository(
                self.args.hub_model_id or self.output_dir.resolve().name,
                private=self.args.hub_private_repo if private is None else private,
                revision=self.args.hub_revision,
                token=token or self.args.hub_token,
            )
            self.hub_model_id = target.repo_id  # type: ignore[assignment]

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str = "End of training", revision: str | None = None
    ) -> "PushReport | None":
        """
        Push the finished `output_dir`, see [`~hf_ssl.hub.push_folder`].

        Args:
            commit_message (`str`, *optional*): Message of the one commit.
            revision (`str`, *optional*): Branch; unset, `hub_revision`.

        Returns:
            [`~hf_ssl.hub.PushReport`], or None on processes other than the first.

        Raises:
            `ValueError`: the folder is not whole, or holds something that must not be public.
            [`~hf_ssl.hub_errors.HubError`]: the Hub does not take it.
        """
        from .hub.push import push_folder

        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo()
        return push_folder(
            self.output_dir,
            str(self.hub_model_id),
            private=self.args.hub_private_repo,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=self.args.hub_token,
        )
