"""Arguments of a pretraining run: those of transformers with our defaults, and a few more."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from transformers import TrainingArguments

from .parameter_groups import WeightDecayRule
from .schedules import SCHEDULES


@dataclass
class SSLTrainingArguments(TrainingArguments):
    """
    All of [`~transformers.TrainingArguments`]; these defaults differ: no gradient clipping (`max_grad_norm=0`), no filter
    on non-finite losses (`logging_nan_inf_filter=False`: they stop the run), no columns removed, incomplete batches
    dropped, `do_train=True`, and pushes only at the end of a run (`hub_strategy="end"`).

    Args:
        eval_epochs (`int`, *optional*, defaults to 1):
            With `eval_strategy="epoch"`, how many epochs lie between two evaluations.
        schedule (`str`, *optional*):
            The method's own learning-rate schedule, a name of `hf_ssl.schedules.SCHEDULES`. Unset, `lr_scheduler_type`
            of transformers is used.
        schedule_unit (`str`, *optional*, defaults to `"step"`):
            What `schedule` counts: every `"step"`, or every `"epoch"`, whose steps then have one learning rate.
        schedule_lag (`int`, *optional*, defaults to 0):
            Epochs that `schedule` comes late: with 1, the first two have its first value. For `schedule_unit="epoch"`.
        warmup_learning_rate (`float`, *optional*, defaults to 0.0):
            The first value of the warm-up, of the schedule `"warmup_in_cosine"`.
        min_learning_rate (`float`, *optional*, defaults to 0.0):
            Where `schedule` ends.
        weight_decay_rule (`str`, *optional*, defaults to `"matrices"`):
            Which parameters decay: `"matrices"`, those of two or more dimensions that are not biases; `"layer_matrices"`,
            the same without tokens and position tables; `"all"`.
        final_weight_decay (`float`, *optional*):
            Where the weight decay ends, on a half cosine wave over the run. Unset, it stays as it is.
        layer_decay (`float`, *optional*, defaults to 1.0):
            What the learning rate is multiplied with from each layer to the one below it.
        gradient_clipping (`str`, *optional*, defaults to `"global"`):
            What `max_grad_norm` bounds: the `"global"` norm of all gradients, or the norm of each parameter's
            (`"per_parameter"`; queries, keys and values of a layer count as one).
        max_skipped_steps (`int`, *optional*, defaults to 0):
            Optimizer steps with a non-finite loss or gradient that are left out before the run stops. Looking for them in
            every step costs one synchronization with the device.
        augment_on (`str`, *optional*, defaults to `"auto"`):
            Where views are made: on the training `"device"`, a batch at a time, from images that travel as bytes; or on a
            CPU in the data-loading `"workers"`. `"auto"` takes the workers, if there are any, where there is no
            accelerator. Photos of unequal sizes are always decoded and cropped in the workers.
    """

    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the global gradient norm; 0 does not clip."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has to stay off: batches are tensors."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Has to stay off: see the non-finite stop."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, incomplete batch of an epoch."})
    do_train: bool = field(
        default=True, metadata={"help": "Train; when off, the model in output_dir is measured again."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume callbacks, such as early stopping, where they were."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "Only 'end': one push, of the finished folder."})
    eval_epochs: int = field(
        default=1, metadata={"help": "Epochs between two evaluations, with --eval_strategy epoch."}
    )
    schedule: str | None = field(
        default=None,
        metadata={
            "help": "The method's learning-rate schedule; unset, --lr_scheduler_type.",
            "choices": list(SCHEDULES),
        },
    )
    schedule_unit: Literal["step", "epoch"] = field(
        default="step", metadata={"help": "Whether --schedule changes the learning rate in every step or every epoch."}
    )
    schedule_lag: int = field(
        default=0,
        metadata={
            "help": "Epochs that --schedule comes late, with --schedule_unit epoch: 1 gives the first two its first value."
        },
    )
    warmup_learning_rate: float = field(
        default=0.0, metadata={"help": "First value of the warm-up, with --schedule warmup_in_cosine."}
    )
    min_learning_rate: float = field(default=0.0, metadata={"help": "Where --schedule ends."})
    weight_decay_rule: WeightDecayRule = field(
        default="matrices",
        metadata={
            "help": "Which parameters decay: those of two or more dimensions that are not biases (matrices), the same "
            "without tokens and position tables (layer_matrices), or all."
        },
    )
    final_weight_decay: float | None = field(
        default=None, metadata={"help": "Where the weight decay ends, on a half cosine wave; unset, it is constant."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "The learning rate's factor from each layer to the one below it."}
    )
    gradient_clipping: Literal["global", "per_parameter"] = field(
        default="global",
        metadata={"help": "What --max_grad_norm bounds: the norm of all gradients together, or of each parameter's."},
    )
    max_skipped_steps: int = field(
        default=0, metadata={"help": "Steps with a non-finite loss that are left out before the run stops."}
    )
    augment_on: Literal["auto", "device", "workers"] = field(
        default="auto",
        metadata={
            "help": "Where views are made: on the training device, or in the data-loading workers; auto takes the workers, "
            "if there are any, where there is no accelerator."
        },
    )

    def __post_init__(self) -> None:
        # Otherwise transformers refuses bf16 on a machine without an accelerator, where it works.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        # Every trainable parameter gets a gradient in every step, so DDP need not look for those that do not.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        # Pinned memory is for copies to an accelerator; without one, torch warns at every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        # Otherwise every batch would wait for the device.
        self.accelerator_config.non_blocking = self.dataloader_pin_memory  # type: ignore[union-attr]
        if self.eval_epochs < 1:
            raise ValueError(f"eval_epochs={self.eval_epochs} must be at least 1.")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown; use one of {', '.join(SCHEDULES)}.")
        if self.schedule is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        if self.schedule_unit not in ("step", "epoch"):
            raise ValueError(f"schedule_unit={self.schedule_unit!r} is unknown; use 'step' or 'epoch'.")
        if self.schedule_unit == "epoch" and self.schedule is None:
            raise ValueError(
                "schedule_unit='epoch' says how often a schedule changes, and none is set: set --schedule."
            )
        if self.schedule_lag < 0:
            raise ValueError(f"schedule_lag={self.schedule_lag} must not be negative.")
        if self.schedule_lag and self.schedule_unit != "epoch":
            raise ValueError(f"schedule_lag={self.schedule_lag} is a number of epochs: set --schedule_unit epoch.")
        if self.warmup_learning_rate < 0:
            raise ValueError(f"warmup_learning_rate={self.warmup_learning_rate} must not be negative.")
        if self.warmup_learning_rate and self.schedule != "warmup_in_cosine":
            raise ValueError(
                f"warmup_learning_rate={self.warmup_learning_rate}: only the warm-up of --schedule warmup_in_cosine has a "
                "first value of one's own; set that schedule, or leave it out."
            )
        rules = get_args(WeightDecayRule)
        if self.weight_decay_rule not in rules:
            raise ValueError(
                f"weight_decay_rule={self.weight_decay_rule!r} is unknown; use one of {', '.join(rules)}."
            )
        if self.augment_on not in ("auto", "device", "workers"):
            raise ValueError(f"augment_on={self.augment_on!r} is unknown; use 'auto', 'device' or 'workers'.")
        if self.gradient_clipping not in ("global", "per_parameter"):
            raise ValueError(
                f"gradient_clipping={self.gradient_clipping!r} is unknown; use 'global' or 'per_parameter'."
            )
        if self.gradient_clipping == "per_parameter" and self.max_grad_norm <= 0:
            raise ValueError("gradient_clipping='per_parameter' needs a positive max_grad_norm.")
        if self.final_weight_decay is not None and self.weight_decay <= 0:
            raise ValueError(f"final_weight_decay needs a weight_decay to start from; it is {self.weight_decay}.")
        unsupported = self.auto_find_batch_size or self.ignore_data_skip or self.save_on_each_node
        if unsupported or self.train_sampling_strategy != "random":
            raise ValueError(
                "auto_find_batch_size, ignore_data_skip, train_sampling_strategy and save_on_each_node are not supported: a "
                "run is resumed with the batches that it had, from a file system that all processes share."
            )
        if self.enable_jit_checkpoint:
            raise ValueError("enable_jit_checkpoint is not needed: SIGTERM and Ctrl-C always write a checkpoint here.")
        if self.logging_nan_inf_filter or self.remove_unused_columns:
            raise ValueError("logging_nan_inf_filter and remove_unused_columns have to stay off.")
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor is not used: the losses are the models' own. Set --label_smoothing in fine-tuning."
            )
        if self.push_to_hub and not self.do_train:
            raise ValueError(
                "push_to_hub is for what was trained; a folder that is there is pushed with `hf-ssl push FOLDER NAME`."
            )
        if self.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy={self.hub_strategy!r}: a push in mid-run would put the pretraining model where the encoder "
                "belongs; only 'end' is supported."
            )
