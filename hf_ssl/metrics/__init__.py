"""Metrics for `evaluate`: folders that `evaluate.load` reads, or that are pushed to the Hub as they are."""

from pathlib import Path


METRICS = ("knn_accuracy", "retrieval_map", "top_k_accuracy")


def metric_path(name: str) -> str:
    """
    Where a metric of this library is installed.

    Args:
        name (`str`): `"knn_accuracy"`, `"retrieval_map"` or `"top_k_accuracy"`.

    Returns:
        `str`: the folder, for `evaluate.load`.

    Raises:
        `ValueError`: If there is no such metric.

    Example:

    ```python
    >>> import evaluate
    >>> from hf_ssl.metrics import metric_path
    >>> metric = evaluate.load(metric_path("top_k_accuracy"))
    ```
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}: choose one of {list(METRICS)}.")
    return str(Path(__file__).parent / name)


__all__ = ["METRICS", "metric_path"]
