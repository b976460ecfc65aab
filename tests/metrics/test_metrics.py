import doctest
import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from hf_ssl.evaluation import classification_accuracy, knn_accuracy
from hf_ssl.evaluation.average_precision import mean_average_precision
from hf_ssl.metrics import METRICS, metric_path


@pytest.fixture(scope="module")
def metrics():
    return {name: evaluate.load(metric_path(name)) for name in METRICS}


def new_metric(name):
    """Of its own, as what a failed call has stored stays in it; in memory, as it keeps the lock of its file, too."""
    return evaluate.load(metric_path(name), keep_in_memory=True)


def run_examples(text, name):
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert test.examples
    output = []
    doctest.DocTestRunner().run(test, out=output.append)
    assert not output, "".join(output)


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_says_of_itself(metrics, name):
    metric = metrics[name]
    assert metric.name == name and metric.module_type == "metric"
    assert metric.description.strip() and metric.citation.strip().startswith("@")
    run_examples(metric.inputs_description, name)
    card = (Path(metric_path(name)) / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["evaluate", "metric"] and front["sdk"] == "static"
    (example,) = re.findall(r"```python\n(.*?)```", card, re.S)
    run_examples(example, name)


def test_examples_of_the_page():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    assert len(examples) >= len(METRICS)
    for example in examples:
        run_examples(example, page.name)


def test_metrics_have_a_folder_each():
    folders = {path.name for path in Path(metric_path("knn_accuracy")).parent.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(METRICS)
    with pytest.raises(ValueError, match=r"no metric 'accuracy': choose one of \['knn_accuracy', "):
        metric_path("accuracy")


def in_batches(metric, inputs, sizes):
    """What a metric gives if its inputs are added in several batches."""
    start = 0
    for size in sizes:
        metric.add_batch(**{name: values[start : start + size] for name, values in inputs.items()})
        start += size


def knn_task(queries=33, bank=120, dim=8, classes=7):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(queries, dim, generator=generator),
        torch.randint(classes, (queries,), generator=generator),
        torch.randn(bank, dim, generator=generator),
        torch.randint(classes, (bank,), generator=generator),
    )


def test_knn_accuracy(metrics):
    """The pure function's numbers from tensors, arrays, lists and batches; scikit-learn's accuracy."""
    x, y, bank, labels = knn_task()
    metric, options = metrics["knn_accuracy"], {"k": [5, 1, 20], "temperature": 0.1}
    expected = knn_accuracy(x, y, bank, labels, 7, **options)
    given_bank = {"bank_features": bank, "bank_labels": labels}
    assert metric.compute(predictions=x, references=y, **given_bank, **options) == expected
    assert metric.compute(predictions=x, references=y, **given_bank, **options, num_classes=9) == expected
    arrays = {"bank_features": bank.numpy(), "bank_labels": labels.numpy()}
    assert metric.compute(predictions=x.numpy(), references=y.numpy(), **arrays, **options) == expected
    lists = {"bank_features": bank.tolist(), "bank_labels": labels.tolist()}
    in_batches(metric, {"predictions": x.tolist(), "references": y.tolist()}, (10, 1, 22))
    assert metric.compute(**lists, **options) == expected
    for k in options["k"]:
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
        ).fit(bank.double().numpy(), labels.numpy())
        accuracy = 100 * reference.score(x.double().numpy(), y.numpy())
        assert expected[f"knn_top1_k{k}"] == pytest.approx(accuracy, abs=1e-9)


def test_knn_accuracy_of_unusual_inputs(metrics):
    """A class that the bank does not have is never found; bfloat16 is widened."""
    bank = {"bank_features": torch.eye(3).bfloat16(), "bank_labels": [0, 1, 1], "k": 1}
    result = metrics["knn_accuracy"].compute(predictions=torch.eye(3).bfloat16(), references=[0, 1, 9], **bank)
    assert result["knn_top1"] == pytest.approx(200 / 3)


def test_knn_accuracy_errors(metrics):
    x, y, bank, labels = knn_task()
    task = {"predictions": x, "references": y, "bank_features": bank, "bank_labels": labels}
    for change, message in (
        ({"predictions": [[1.0] * 8] * 32 + [[1.0]]}, r"features of one length, got lengths \[1, 8\]"),
        ({"predictions": [], "references": []}, "`queries` is empty"),
        ({"predictions": x[:, :3]}, "`queries` has 3 dimensions and `bank` has 8"),
        (
            {"bank_labels": labels.float()},
            "`bank_labels` must be the classes of the bank, as integers; got 120 of torch.fl",
        ),
        ({"bank_labels": []}, "`bank_labels` must be the classes of the bank"),
        ({"bank_labels": labels[:9]}, r"`bank_labels` must have one entry per image, shape \(120,\), got \(9,\)"),
        ({"num_classes": 3}, "must lie between 0 and num_classes - 1 = 2"),
        ({"k": 121}, "`k` must lie between 1 and the number of bank features"),
        ({"references": y[:4]}, r"Mismatch in the number of predictions \(33\) and references \(4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            new_metric("knn_accuracy").compute(**(task | change))


def slow_top_k(scores, labels, k):
    hits = 0
    for row, label in zip(scores, labels, strict=True):
        ranked = sorted(range(len(row)), key=lambda i: (-row[i], i))
        hits += label in ranked[:k]
    return 100 * hits / len(labels)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), images=st.integers(1, 12), classes=st.integers(1, 8))
def test_top_k_accuracy_of_any_scores(metrics, data, images, classes):
    """Whole numbers, so that many are equal, and infinities."""
    score = st.integers(-2, 2).map(float) | st.sampled_from([float("inf"), float("-inf")])
    scores = data.draw(st.lists(st.lists(score, min_size=classes, max_size=classes), min_size=images, max_size=images))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    ks = list(range(1, classes + 1))
    result = metrics["top_k_accuracy"].compute(predictions=scores, references=labels, k=ks)
    assert result == pytest.approx({f"top{k}": slow_top_k(scores, labels, k) for k in ks})
    assert result[f"top{classes}"] == 100 and sorted(result.values()) == list(result.values())


def test_top_k_accuracy(metrics):
    """As scikit-learn's, in any batches, and as that of classifiers in training."""
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)
    metric, ks = metrics["top_k_accuracy"], [1, 3, 5, 9]
    result = metric.compute(predictions=scores, references=labels, k=ks)
    for k in ks:
        share = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=range(10))
        assert result[f"top{k}"] == pytest.approx(100 * share)
    in_batches(metric, {"predictions": scores.numpy(), "references": labels.numpy()}, (7, 42, 1))
    assert metric.compute(k=ks) == result
    ours = classification_accuracy(scores, labels)
    assert (result["top1"], result["top5"]) == pytest.approx((ours["finetune_top1"], ours["finetune_top5"]))
    assert metric.compute(predictions=scores, references=labels) == {"top1": result["top1"]}
    # float64 scores keep differences that float32 does not have.
    assert metric.compute(predictions=[[0.5, 0.5 + 1e-12]], references=[1]) == {"top1": 100}


def test_top_k_accuracy_errors():
    task = {"predictions": [[0.1, 0.2, 0.3]] * 2, "references": [0, 2]}
    for change, message in (
        ({"predictions": [[0.1, 0.2], [0.1]]}, r"as many for each image; got lists of \[1, 2\]"),
        ({"predictions": [], "references": []}, r"got lists of \[\]"),
        ({"predictions": [[0.1, float("nan"), 1]] * 2}, "contains NaN"),
        ({"references": [0, 3]}, "`references` must lie between 0 and 2, .*got values from 0 to 3"),
        ({"references": [-1, 0]}, "got values from -1 to 0"),
        ({"k": 4}, r"`k` must lie between 1 and the number of classes \(3\), got 4"),
        ({"k": [1, 0]}, r"got \[1, 0\]"),
        ({"k": []}, r"got \[\]"),
        ({"predictions": [1, 2]}, "don't match the expected format"),
    ):
        with pytest.raises(ValueError, match=message):
            new_metric("top_k_accuracy").compute(**(task | change))


def test_retrieval_map(metrics):
    """As the pure function, in any batches, also with queries that have no positives or no junk."""
    generator = torch.Generator().manual_seed(0)
    rankings = torch.stack([torch.randperm(30, generator=generator) for _ in range(9)])
    positives = [rankings[i, torch.randperm(30, generator=generator)[:i]].tolist() for i in range(9)]
    junk = [[n for n in range(0, 30, 4) if n not in rows] if i % 3 else [] for i, rows in enumerate(positives)]
    metric = metrics["retrieval_map"]
    for options in ({}, {"junk": junk}, {"junk": junk, "k": [2, 30]}):
        expected = mean_average_precision(rankings, positives, **options)
        assert metric.compute(predictions=rankings, references=positives, **options) == expected
        in_batches(metric, {"predictions": rankings.numpy(), "references": positives}, (1, 5, 3))
        assert metric.compute(**options) == expected


def test_retrieval_map_errors():
    task = {"predictions": [[0, 1], [1, 0]], "references": [[0], [1]]}
    for change, message in (
        ({"predictions": [[0, 1], [1]]}, r"as many images for each query; got lists of \[1, 2\] images"),
        ({"predictions": [], "references": []}, r"got lists of \[\] images"),
        ({"predictions": [[], []]}, "not be empty"),
        ({"junk": [[1]]}, "`junk` must have one list for each of the 2 queries, got 1"),
        ({"references": [[], []]}, "None of the 2 queries has a positive image"),
    ):
        with pytest.raises(ValueError, match=message):
            new_metric("retrieval_map").compute(**(task | change))
