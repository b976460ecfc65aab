"""How well a method's own task is solved on images that it was not trained on."""

from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from ..models import SSLPreTrainedModel
from .features import evaluation_mode, extract


class LossMonitor:
    """
    Losses and accuracies of a method that can be evaluated on images without augmentation, the same at every call.

    Args:
        processor (`BaseImageProcessor`): The evaluation transform.
        images (`torch.utils.data.Dataset`): Items `{"image": uint8 tensor (3, height, width), "label": int}`.
        views (`Any`):
            The method's views; their `validation_inputs` makes the arguments of the model, of processed images.
        batch_size (`int`, *optional*, defaults to 256): Images in a forward pass.
        num_workers (`int`, *optional*, defaults to 0): Processes that read the images.
    """

    def __init__(
        self, processor: BaseImageProcessor, images: Any, views: Any, batch_size: int = 256, num_workers: int = 0
    ):
        self.processor, self.images, self.views = processor, images, views
        self.batch_size, self.num_workers = batch_size, num_workers
        self.last: dict[str, float] = {}

    def __call__(self, model: SSLPreTrainedModel) -> dict[str, float]:
        """
        Measure a model.

        Args:
            model ([`SSLPreTrainedModel`]): The model; it is left as it is.

        Returns:
            `dict[str, float]`: `validation_loss`, `validation_loss_<term>` and, in percent, `validation_<metric>`: means over
            the images. They are kept in `last`.
        """
        names: list[str] = []

        def measure(batch: dict[str, Tensor]) -> Tensor:
            counts = batch["index"] < len(self.images)  # the others make the shares of several processes equal
            if not counts.any():
                counts = ~counts  # of a process with nothing else to do: rows are cut off, but have to be as wide
            inputs = self.views.validation_inputs({name: tensor[counts] for name, tensor in batch.items()})
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            with torch.inference_mode():
                output = model(**inputs)
            values = {"loss": output.loss}
            values |= {f"loss_{name}": value for name, value in output.losses.items()}
            values |= {name: 100 * value for name, value in output.metrics.items()}
            names[:] = values
            return torch.stack(list(values.values())).float().expand(len(counts), -1)

        with evaluation_mode(model):
            rows, _ = extract(measure, self.processor, self.images, self.batch_size, self.num_workers)
        means = rows.double().mean(0).tolist()
        self.last = {f"validation_{name}": value for name, value in zip(names, means, strict=True)}
        return self.last
