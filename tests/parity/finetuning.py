"""The learning rates that the trainer sets in fine-tuning."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_ssl.data import TensorSource
from hf_ssl.models.classification import ClassificationConfig, ClassifierForTraining
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments


STEPS_PER_EPOCH = 3


def rates_of_fine_tuning(encoder: PreTrainedConfig, folder: Path, epochs: int, **args: Any) -> Tensor:
    """
    Rates of the lowest and of the top level in each epoch, of shape `(epochs, 2)`, float64; all steps of an epoch have to
    have the same.
    """
    model = ClassifierForTraining(ClassificationConfig(backbone_config=encoder, num_labels=5))
    args = {"schedule": "warmup_in_cosine", "schedule_unit": "epoch", "max_steps": STEPS_PER_EPOCH * epochs, **args}
    training_args = SSLTrainingArguments(str(folder), use_cpu=True, per_device_train_batch_size=1, **args)
    source = TensorSource(torch.zeros(STEPS_PER_EPOCH, 3, 4, 4, dtype=torch.uint8))
    trainer = SSLTrainer(model, training_args, source, views=lambda batch, draws: batch)
    trainer.get_train_dataloader()
    trainer.create_optimizer_and_scheduler(training_args.max_steps)
    rates = []
    for _ in range(training_args.max_steps):
        groups = trainer.optimizer.param_groups
        rates.append([groups[-1]["lr"], groups[0]["lr"]])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    of_epochs = torch.tensor(rates, dtype=torch.float64).view(epochs, STEPS_PER_EPOCH, 2)
    assert (of_epochs == of_epochs[:, :1]).all()
    return of_epochs[:, 0]
