"""Top-k accuracy of class scores, as a metric for `evaluate`."""

# `evaluate` reads the imports itself, and understands one a line.
import datasets
import evaluate
import torch

from hf_ssl.evaluation import class_ranks


_DESCRIPTION = """
The share of images whose class is among the k classes with the highest scores. Classes with equal scores rank in the order
of their index.
"""

_CITATION = """
@article{russakovsky2015imagenet,
  title={{ImageNet} Large Scale Visual Recognition Challenge},
  author={Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
    Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and Fei-Fei, Li},
  journal={International Journal of Computer Vision},
  volume={115},
  number={3},
  pages={211--252},
  year={2015}
}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): For each image the scores of all classes, such as logits or probabilities.
    references (`list[int]`): Classes of the images.
    k (`int` or `list[int]`, *optional*, defaults to 1): How many classes with the highest scores are looked at.

Returns:
    `dict[str, float]`: `top{k}` for each `k`, in percent.

Example:
    >>> import evaluate
    >>> from hf_ssl.metrics import metric_path
    >>> metric = evaluate.load(metric_path("top_k_accuracy"))
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]
    >>> metric.compute(predictions=scores, references=[1, 2, 2, 2], k=[1, 2])
    {'top1': 50.0, 'top2': 75.0}
"""


class TopKAccuracy(evaluate.Metric):
    """Top-k accuracy; see its `description` and `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.List(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://huggingface.co/papers/1409.0575"],
        )

    def _compute(
        self, *, predictions: list[list[float]], references: list[int], k: int | list[int] = 1
    ) -> dict[str, float]:
        counts = sorted({len(row) for row in predictions})
        if len(counts) != 1:
            raise ValueError(
                f"`predictions` must have the scores of all classes, as many for each image; got lists of {counts}."
            )
        num_classes = counts[0]
        scores, labels = torch.tensor(predictions, dtype=torch.float64), torch.tensor(references)
        if scores.isnan().any():
            raise ValueError("`predictions` contains NaN, which cannot be ranked: check the classifier.")
        if not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"`references` must lie between 0 and {num_classes - 1}, as `predictions` has scores of {num_classes} "
                f"classes; got values from {labels.min()} to {labels.max()}."
            )
        ks = [k] if isinstance(k, int) else list(k)
        if not ks or not 1 <= min(ks) <= max(ks) <= num_classes:
            raise ValueError(f"`k` must lie between 1 and the number of classes ({num_classes}), got {k}.")
        ranks = class_ranks(scores, labels)
        return {f"top{n}": 100 * (ranks < n).double().mean().item() for n in ks}
