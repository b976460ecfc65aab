"""Mean average precision of image retrieval, as a metric for `evaluate`."""

# `evaluate` reads the imports itself, and understands one a line.
import datasets
import evaluate
import torch

from hf_ssl.evaluation.average_precision import mean_average_precision


_DESCRIPTION = """
How well rankings of a database find the images that a query should find, by the protocol of the revisited Oxford and Paris
benchmarks. Average precision is the area below the precision-recall curve, by the trapezoidal rule. Junk images count as if
the database did not have them, positives that are not ranked as never found, and queries without positives are left out.
Precision at k looks at the first k images, or at fewer if all positives come earlier.
"""

_CITATION = """
@inproceedings{radenovic2018revisiting,
  title={Revisiting {Oxford} and {Paris}: Large-Scale Image Retrieval Benchmarking},
  author={Radenovi{\\'c}, Filip and Iscen, Ahmet and Tolias, Giorgos and Avrithis, Yannis and Chum, Ond{\\v{r}}ej},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2018}
}
"""

_INPUTS = """
Args:
    predictions (`list[list[int]]`):
        For each query the indices of database images, the best first: of all images, or of as many for each query.
    references (`list[list[int]]`): For each query its positives, the indices it should find.
    junk (`list[list[int]]`, *optional*):
        For each query, in the order in which the queries were added, the indices to leave out.
    k (`list[int]`, *optional*, defaults to `[1, 5, 10]`): Where precision is measured.

Returns:
    `dict[str, float]`: `mAP` and, for each `k`, `mP@{k}`, in percent.

Example:
    >>> import evaluate
    >>> from hf_ssl.metrics import metric_path
    >>> metric = evaluate.load(metric_path("retrieval_map"))
    >>> rankings = [[2, 0, 1, 3], [3, 1, 0, 2]]
    >>> metric.compute(predictions=rankings, references=[[0, 1], [1]], junk=[[2], []], k=[1, 2])
    {'mAP': 62.5, 'mP@1': 50.0, 'mP@2': 75.0}
"""


class RetrievalMAP(evaluate.Metric):
    """Mean average precision of image retrieval; see its `description` and `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        indices = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": indices, "references": indices}),
            reference_urls=["https://huggingface.co/papers/1803.11285"],
        )

    def _compute(
        self,
        *,
        predictions: list[list[int]],
        references: list[list[int]],
        junk: list[list[int]] | None = None,
        k: tuple[int, ...] | list[int] = (1, 5, 10),
    ) -> dict[str, float]:
        lengths = sorted({len(row) for row in predictions})
        if len(lengths) != 1:
            raise ValueError(f"`predictions` must rank as many images for each query; got lists of {lengths} images.")
        return mean_average_precision(torch.tensor(predictions), references, junk, k=k)
