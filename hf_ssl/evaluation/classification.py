"""How many images a classifier gets right."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..models import SSLPreTrainedModel
from .class_ranks import class_ranks
from .features import evaluation_mode, extract


def classification_accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """
    Accuracy and cross-entropy of a classifier's answers.

    Args:
        logits (`torch.Tensor` of shape `(num_images, num_classes)`): Its answers.
        labels (`torch.Tensor` of shape `(num_images,)`, int64): Classes.

    Returns:
        `dict[str, float]`: `finetune_top1` and `finetune_top5` in percent (of fewer than five classes, all of them), and
        `finetune_loss`.
    """
    ranks = class_ranks(logits, labels)
    return {
        "finetune_top1": 100 * (ranks < 1).double().mean().item(),
        "finetune_top5": 100 * (ranks < 5).double().mean().item(),
        "finetune_loss": F.cross_entropy(logits, labels).item(),
    }


class AccuracyMonitor:
    """
    Accuracy of a classifier, in training or as it is published, on the same images at every call; of one in training that has
    a teacher, the teacher's beside it.

    Args:
        processor (`BaseImageProcessor`): The evaluation transform.
        images (`torch.utils.data.Dataset`): Items `{"image": uint8 tensor (3, height, width), "label": int}`.
        batch_size (`int`, *optional*, defaults to 256): Images in a forward pass.
        num_workers (`int`, *optional*, defaults to 0): Processes that read the images.
    """

    def __init__(self, processor: BaseImageProcessor, images: Any, batch_size: int = 256, num_workers: int = 0):
        self.processor, self.images = processor, images
        self.batch_size, self.num_workers = batch_size, num_workers

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """
        Measure a model.

        Args:
            model ([`~hf_ssl.models.classification.ClassifierForTraining`] or `PreTrainedModel`):
                A classifier in training, or one of transformers; it is left as it is.

        Returns:
            `dict[str, float]`: see [`classification_accuracy`]; of a teacher `finetune_ema_top1` and so on.

        Raises:
            `ValueError`: the images have no labels.
        """

        teacher = getattr(model, "teacher", None)
        models = [model] if teacher is None else [model, teacher]

        def answer(batch: dict[str, Tensor]) -> Tensor:
            pixel_values = batch["pixel_values"].to(model.device, model.dtype)
            with torch.inference_mode():
                logits = [one(pixel_values=pixel_values).logits for one in models]
            return torch.cat(
                [of["classification"] if isinstance(model, SSLPreTrainedModel) else of for of in logits], 1
            )

        with evaluation_mode(model):
            logits, labels = extract(answer, self.processor, self.images, self.batch_size, self.num_workers)
        if labels is None:
            raise ValueError("The images have no labels: there is no accuracy to measure.")
        measured = [classification_accuracy(of_one, labels) for of_one in logits.chunk(len(models), 1)]
        average = {name.replace("finetune_", "finetune_ema_"): value for name, value in measured[-1].items()}
        return measured[0] if teacher is None else measured[0] | average
