"""Weighted k-nearest-neighbor accuracy of features, as a metric for `evaluate`."""

# `evaluate` reads the imports itself, and understands one a line.
from typing import Any

import datasets
import evaluate
import torch

from hf_ssl.evaluation import knn_accuracy


_DESCRIPTION = """
Classifies images by a weighted vote of their nearest neighbors. Features are L2-normalized, and each of the k most similar
images of a labeled bank votes for its class with the weight exp(cosine similarity / temperature). Nothing is trained.
"""

_CITATION = """
@inproceedings{wu2018unsupervised,
  title={Unsupervised Feature Learning via Non-Parametric Instance Discrimination},
  author={Wu, Zhirong and Xiong, Yuanjun and Yu, Stella X. and Lin, Dahua},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2018}
}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): Features of the images to classify; compared in float32.
    references (`list[int]`): Their classes.
    bank_features (`list[list[float]]`, array or tensor of shape `(N, dim)`):
        Features of labeled images. The search runs on the device of this tensor.
    bank_labels (`list[int]`, array or tensor of shape `(N,)`): Classes of the labeled images.
    k (`int` or `list[int]`, *optional*, defaults to 20): Number of neighbors that vote.
    temperature (`float`, *optional*, defaults to 0.07): Softness of the votes.
    num_classes (`int`, *optional*): Number of classes. Unset, one more than the highest class in bank and references.

Returns:
    `dict[str, float]`: `knn_top1` and `knn_top5` in percent, `k` and `temperature`; for a list of `k`, whose first entry is
    the main one, also `knn_top1_k10`, `knn_top5_k10`, and so on. A class without a vote never counts as predicted.

Example:
    >>> import evaluate
    >>> from hf_ssl.metrics import metric_path
    >>> metric = evaluate.load(metric_path("knn_accuracy"))
    >>> bank = {"bank_features": [[1.0, 0.0], [0.0, 1.0], [0.1, 0.9]], "bank_labels": [0, 1, 1]}
    >>> metric.compute(predictions=[[0.9, 0.2], [0.3, 0.8]], references=[0, 0], **bank, k=2)
    {'knn_top1': 50.0, 'knn_top5': 50.0, 'k': 2, 'temperature': 0.07}
"""


class KNNAccuracy(evaluate.Metric):
    """Weighted k-nearest-neighbor accuracy; see its `description` and `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.List(datasets.Value("float32")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://huggingface.co/papers/1805.01978"],
        )

    def _compute(
        self,
        *,
        predictions: list[list[float]],
        references: list[int],
        bank_features: Any,
        bank_labels: Any,
        k: int | list[int] = 20,
        temperature: float = 0.07,
        num_classes: int | None = None,
    ) -> dict[str, float]:
        dims = sorted({len(row) for row in predictions})
        if len(dims) > 1:
            raise ValueError(f"`predictions` must be features of one length, got lengths {dims}.")
        bank = torch.as_tensor(bank_features, dtype=torch.float32)
        classes = torch.as_tensor(bank_labels)
        if classes.is_floating_point() or not classes.numel():
            raise ValueError(
                f"`bank_labels` must be the classes of the bank, as integers; got {classes.numel()} of {classes.dtype}."
            )
        if num_classes is None:
            num_classes = 1 + max([*references, int(classes.max())])
        queries = torch.tensor(predictions, dtype=torch.float32, device=bank.device)
        return knn_accuracy(
            queries, torch.tensor(references), bank, classes, num_classes, k=k, temperature=temperature
        )
