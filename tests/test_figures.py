import importlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl import figures
from hf_ssl.figures import plot_curves, plot_neighbors


def log_history():
    history = [{"step": 0, "knn_top1": 30.0, "knn_top1_pixels": 35.0}]
    for step in range(10, 60, 10):
        history.append({"step": step, "loss": 5 / step, "loss_relations": 3 / step, "learning_rate": 1e-4})
    return [*history, {"step": 50, "knn_top1": 45.0}, {"step": 50, "train_runtime": 1.0}]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(path, color):
    """Number of pixels of about this RGB color."""
    return int((np.abs(pixels(path) - np.array(color)).max(axis=2) < 12).sum())


RED, GREEN = (0xCC, 0x33, 0x11), (0x00, 0x9E, 0x73)


def test_curves(tmp_path):
    path = tmp_path / "figures" / "curves.png"
    plot_curves(log_history(), path, terms=["loss", "loss_relations"])
    full = pixels(path)
    assert full.shape[1] == 1280
    assert count(path, RED) > 50  # the mark of the value before training
    plot_curves([log for log in log_history() if "knn_top1" not in log], path, terms=["loss"])
    assert len(pixels(path)) < len(full)
    assert count(path, RED) == 0


def test_curves_of_a_single_log(tmp_path):
    plot_curves([{"step": 1, "loss": 2.0}], tmp_path / "curves.png", terms=["loss"])
    assert count(tmp_path / "curves.png", (0x00, 0x77, 0xBB)) > 10


def test_unknown_term(tmp_path):
    with pytest.raises(ValueError, match=r"\['loss_angles'\] are not in the log history, which has \["):
        plot_curves(log_history(), tmp_path / "curves.png", terms=["loss", "loss_angles"])


def neighbors_task():
    sizes = [(20, 20), (40, 10), (9, 30), (200, 150)]
    bank = [torch.full((3, *sizes[i % 4]), 40 * i, dtype=torch.uint8) for i in range(6)]
    return {
        "query_images": bank[:2],
        "bank_images": bank,
        "neighbors_before": torch.tensor([[0, 1, 2], [3, 4, 5]]),
        "neighbors_after": torch.tensor([[0, 2, 4], [1, 3, 5]]),
    }


def test_neighbors_with_frames(tmp_path):
    path = tmp_path / "figures" / "neighbors.png"
    bank_labels = torch.tensor([0, 1, 0, 1, 0, 1])
    plot_neighbors(path, **neighbors_task(), query_labels=[0, 1], bank_labels=bank_labels, class_names=["even", "odd"])
    # Before training 2 of 3 and 2 of 3 neighbors are right, afterwards all.
    assert 0.15 < count(path, RED) / count(path, GREEN) < 0.3
    plot_neighbors(path, **neighbors_task())
    assert count(path, RED) == count(path, GREEN) == 0


def test_neighbors_errors(tmp_path):
    task = neighbors_task()
    with pytest.raises(ValueError, match="both `query_labels` and `bank_labels`"):
        plot_neighbors(tmp_path / "x.png", **task, query_labels=[0, 1])
    with pytest.raises(ValueError, match=r"number of queries = 2, k\), got \(2, 3\) and \(1, 3\)"):
        plot_neighbors(tmp_path / "x.png", **(task | {"neighbors_after": torch.zeros(1, 3, dtype=torch.int64)}))


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    importlib.reload(figures)
    with pytest.raises(ImportError, match=r'pip install "hf_ssl\[viz\]"'):
        figures.plot_curves(log_history(), tmp_path / "curves.png", terms=["loss"])


def test_no_pyplot_state_is_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    figures.plot_curves(log_history(), tmp_path / "curves.png", terms=["loss"])
    figures.plot_neighbors(tmp_path / "neighbors.png", **neighbors_task())
