"""Arguments of a pretraining run: those of transformers with our defaults, and a few more."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .schedules import SCHEDULES


@dataclass
class SSLTrainingArguments(TrainingArguments):
    """
    All of [`~transformers.TrainingArguments`]; these defaults differ: no gradient clipping (`max_grad_norm=0`), no filter
    on non-finite losses (`logging_nan_inf_filter=False`: they stop the run), no columns removed, incomplete batches
    dropped, `do_train=True`, and pushes only at the end of a run (`hub_strategy="end"`).

    Args:
        schedule (`str`, *optional*):
            The method's own learning-rate schedule, a name of `hf_ssl.schedules.SCHEDULES`. Unset, `lr_scheduler_type`
            of transformers is used.
        min_learning_rate (`float`, *optional*, defaults to 0.0):
            Where `schedule` ends.
        weight_decay_rule (`str`, *optional*, defaults to `"matrices"`):
            Which parameters decay: `"matrices"`, those of two or more dimensions that are not biases; `"all"`.
    """

    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the global gradient norm; 0 does not clip."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has to stay off: batches are tensors."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Has to stay off: see the non-finite stop."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, incomplete batch of an epoch."})
    do_train: bool = field(
        default=True, metadata={"help": "Train; when off, only the evaluation of output_dir/pretraining is run."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "Only 'end': one push, of the finished folder."})
    schedule: str | None = field(
        default=None,
        metadata={
            "help": "The method's learning-rate schedule, per step; unset, --lr_scheduler_type.",
            "choices": list(SCHEDULES),
        },
    )
    min_learning_rate: float = field(default=0.0, metadata={"help": "Where --schedule ends."})
    weight_decay_rule: str = field(
        default="matrices",
        metadata={
            "help": "Which parameters decay: those of two or more dimensions that are not biases, or all.",
            "choices": ["matrices", "all"],
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
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown; use one of {', '.join(SCHEDULES)}.")
        if self.schedule is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        if self.weight_decay_rule not in ("matrices", "all"):
            raise ValueError(f"weight_decay_rule={self.weight_decay_rule!r} is unknown; use 'matrices' or 'all'.")
        if self.logging_nan_inf_filter or self.remove_unused_columns:
            raise ValueError("logging_nan_inf_filter and remove_unused_columns have to stay off.")
        if self.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy={self.hub_strategy!r}: a push in mid-run would put the pretraining model where the encoder "
                "belongs; only 'end' is supported."
            )
