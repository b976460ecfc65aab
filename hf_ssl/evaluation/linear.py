"""Linear probing: how well a linear classifier of frozen features tells the class of an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import collate
from ..models import SSLPreTrainedModel
from .class_ranks import class_ranks


class FeatureSource(torch.utils.data.Dataset[dict[str, Any]]):
    """
    Features of a dataset in the place of its images, for training.

    Args:
        features (`torch.Tensor` of shape `(num_images, dim)`): Features, which may be memory-mapped: a batch of them is read.
        labels (`torch.Tensor` of shape `(num_images,)`): Classes, int64.
        rows (`torch.Tensor` of shape `(num_samples,)`): Which of them are trained on, int64.
        name (`str`): A name for what they are features of.
    """

    collate = staticmethod(collate)

    def __init__(self, features: Tensor, labels: Tensor, rows: Tensor, name: str):
        self.features, self.labels, self.rows, self.name = features, labels, rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """A name for this content."""
        return self.name

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """
        Args:
            keys (`Sequence[tuple[int, int]]` of length `batch_size`): Pairs of epoch and index.

        Returns:
            `dict[str, torch.Tensor]`: `features` of shape `(batch_size, dim)`; `labels`, `index` and `epoch` of shape
            `(batch_size,)`, int64.
        """
        epoch, index = torch.tensor(keys).unbind(dim=1)
        rows = self.rows[index]
        return {"features": self.features[rows], "labels": self.labels[rows], "index": index, "epoch": epoch}


class ProbeMonitor:
    """
    Accuracy of linear classifiers that are trained side by side, by the split and by their learning rates.

    Args:
        splits (`Mapping[str, tuple[torch.Tensor, torch.Tensor]]`):
            Features `(num_images, dim)` and labels `(num_images,)` of each split, by its name.
        chunk_size (`int`, *optional*, defaults to 4096): Images that are classified at a time.
    """

    def __init__(self, splits: Mapping[str, tuple[Tensor, Tensor]], chunk_size: int = 4096):
        self.splits, self.chunk_size = splits, chunk_size

    @torch.no_grad()
    def __call__(self, model: SSLPreTrainedModel) -> dict[str, float]:
        """
        Measure the classifiers.

        Args:
            model ([`~hf_ssl.models.linear_probe.LinearProbesForTraining`]): The classifiers.

        Returns:
            `dict[str, float]`: in percent, for each split and learning rate such as `test` and 0.1, `test_top1_lr0.1` and
            `test_top5_lr0.1` (of fewer than five classes, the top five are all).
        """
        results: dict[str, float] = {}
        for split, (features, labels) in self.splits.items():
            rates = model.config.learning_rates
            hits = torch.zeros(len(rates), 2, dtype=torch.float64, device=model.device)
            for part, truth in zip(features.split(self.chunk_size), labels.split(self.chunk_size), strict=True):
                scores = model(part.to(model.device)).logits["classification"]
                ranks = class_ranks(scores, truth.to(model.device)[:, None].expand(-1, len(rates)))
                hits += torch.stack([(ranks < k).sum(0) for k in (1, 5)], dim=1)
            for rate, (top1, top5) in zip(rates, (100 * hits / len(labels)).tolist(), strict=True):
                results |= {f"{split}_top1_lr{rate:g}": top1, f"{split}_top5_lr{rate:g}": top5}
        return results


def choose_probe(history: Sequence[Mapping[str, Any]], learning_rates: Sequence[float], split: str) -> dict[str, Any]:
    """
    The classifier that is reported: the best one by its accuracy on one split, over all evaluations and learning rates; of
    equal ones the earliest, and of these the one with the smallest learning rate. And, for comparison, the best one of the
    last evaluation.

    Args:
        history (`Sequence[Mapping[str, Any]]`): Evaluations in their order: `epoch`, and numbers of [`ProbeMonitor`].
        learning_rates (`Sequence[float]`): The learning rates.
        split (`str`): The split that chooses.

    Returns:
        `dict[str, Any]`: `linear_top1`, `linear_top5`, `linear_epoch` and `linear_learning_rate` of the best one;
        `linear_top1_last` and `linear_learning_rate_last` of the best one of the last evaluation. Accuracies are those on the
        split `test`, in percent.
    """
    rates = sorted(learning_rates)

    def best(evaluations: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], float]:
        found = max(evaluations, key=lambda log: max(log[f"{split}_top1_lr{rate:g}"] for rate in rates))
        return found, max(rates, key=lambda rate: found[f"{split}_top1_lr{rate:g}"])

    (chosen, rate), (last, last_rate) = best(history), best(history[-1:])
    return {
        "linear_top1": chosen[f"test_top1_lr{rate:g}"],
        "linear_top5": chosen[f"test_top5_lr{rate:g}"],
        "linear_epoch": chosen["epoch"],
        "linear_learning_rate": rate,
        "linear_top1_last": last[f"test_top1_lr{last_rate:g}"],
        "linear_learning_rate_last": last_rate,
    }
