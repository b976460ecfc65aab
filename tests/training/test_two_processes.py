"""Two processes on a CPU do what one does with twice the batch, and accumulation does what a larger batch does."""

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_ssl.data import TensorSource
from hf_ssl.evaluation import KNNMonitor
from hf_ssl.hub import evaluation_processor

from ..marks import slow
from ..processes import run_ranks
from .common import (
    IMAGES,
    make_aps,
    make_isl,
    make_model,
    make_patchmix,
    make_pw_self,
    make_swin,
    make_t2t,
    make_timm,
    make_toy,
    make_trainer,
)


SETTINGS = {"max_steps": 8, "optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 1.0}


def make_monitor(image_size: int) -> KNNMonitor:
    labels = torch.arange(len(IMAGES)) % 4
    bank, queries = TensorSource(IMAGES[:25], labels[:25]), TensorSource(IMAGES[25:], labels[25:])
    return KNNMonitor(evaluation_processor(image_size, [0.5] * 3, [0.5] * 3), bank, queries, num_classes=4, k=5)


def train(folder: str, kind: str, **args: Any) -> dict[str, Any]:
    """Logs, weights, and what each evaluation read, of this process."""
    if kind == "patchmix":  # groups of one image: those of two processes are no others than those of one
        model: Any = make_patchmix(group_size=1)
    elif kind == "aps":
        model = make_aps()
    elif kind == "isl":
        model = make_isl()
    elif kind == "swin":
        model = make_swin()
    elif kind == "timm":
        model = make_timm()
    elif kind == "t2t":  # without dropout, which differs between processes
        model = make_t2t(dropout=0.0)
    elif kind == "pw_self":  # with crops of each image: those of a batch are drawn by each process
        model = make_pw_self(geometry="sample")
    else:
        model = make_model() if kind == "relvit" else make_toy(dropout=0.0, contrastive=kind == "contrastive")
    monitor = make_monitor(model.config.backbone_config.image_size)
    trainer = make_trainer(folder, model, monitor, eval_strategy="steps", eval_steps=4, **{**SETTINGS, **args})
    trainer.train()
    result = {
        "logs": [e for e in trainer.state.log_history if "loss" in e],
        "monitor": [e for e in trainer.state.log_history if "eval_knn_top1" in e],
        "neighbors": monitor.last_neighbors.tolist(),
        "weights": {
            name: tensor.clone().numpy()
            for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items()
        },
    }
    trainer.close()
    return result


def train_rank(folder: str, kind: str, args: dict[str, Any]) -> dict[str, Any]:
    return train(folder, kind, **args)


def assert_equal_runs(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert len(first["logs"]) == len(second["logs"]) == 8
    for a, b in zip(first["logs"], second["logs"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-5, abs=2e-6), (name, a["epoch"])
    for name, tensor in first["weights"].items():
        torch.testing.assert_close(
            torch.from_numpy(tensor), torch.from_numpy(second["weights"][name]), rtol=1e-4, atol=1e-5, msg=name
        )


@pytest.mark.parametrize(
    "kind", ["relvit", "isl", *map(slow, ["patchmix", "swin", "t2t", "timm", "contrastive", "aps", "pw_self"])]
)
def test_two_processes_equal_one(tmp_path, kind):
    """Stochastic depth is drawn for each image, batch statistics and negatives come from all processes."""
    one = train(str(tmp_path / "one"), kind, per_device_train_batch_size=8)
    two = run_ranks(train_rank, 2, str(tmp_path / "two"), kind, {"per_device_train_batch_size": 4})
    assert two[0]["logs"] == two[1]["logs"] and two[0]["monitor"] == two[1]["monitor"]
    for name, tensor in two[0]["weights"].items():
        assert (tensor == two[1]["weights"][name]).all(), f"{name} differs between the processes"
    assert_equal_runs(one, two[0])
    assert [e["epoch"] for e in one["monitor"]] == [e["epoch"] for e in two[0]["monitor"]]
    assert one["neighbors"] == two[0]["neighbors"] == two[1]["neighbors"]


def test_accumulation_equals_a_larger_batch(tmp_path):
    """4 x 16 images are 1 x 64 where the loss is a mean over images, stochastic depth included."""
    images = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    runs = [
        train_on(
            tmp_path / name, make_model(), images, per_device_train_batch_size=size, gradient_accumulation_steps=n
        )
        for name, size, n in (("one", 64, 1), ("four", 16, 4))
    ]
    assert_equal_runs(*runs)


def train_on(folder: Any, model: Any, images: torch.Tensor, **args: Any) -> dict[str, Any]:
    trainer = make_trainer(folder, model, images=images, dataloader_drop_last=True, **{**SETTINGS, **args})
    trainer.train()
    logs = [e for e in trainer.state.log_history if "loss" in e]
    return {"logs": logs, "weights": {n: t.clone().numpy() for n, t in model.state_dict().items()}, "trainer": trainer}


def test_accumulation_with_batch_statistics(tmp_path):
    """Batch norm sees micro-batches, so 4 x 16 is not 1 x 64 there; the docs say so."""
    images = torch.randint(0, 256, (192, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    one, four = (
        train_on(
            tmp_path / str(n),
            make_toy(dropout=0.0),
            images,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=n,
        )
        for size, n in ((64, 1), (16, 4))
    )
    assert one["logs"][0]["loss"] == pytest.approx(four["logs"][0]["loss"], rel=0.05)
    assert one["logs"][0]["loss"] != pytest.approx(four["logs"][0]["loss"], rel=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_teacher_moves_once_for_each_optimizer_step(tmp_path, micro_batches):
    model = make_toy(momentum=0.9)
    trainer = make_trainer(
        tmp_path, model, per_device_train_batch_size=8 // micro_batches, gradient_accumulation_steps=micro_batches
    )
    teacher = {name: p.clone() for name, p in model.teacher.named_parameters()}
    schedule = model.schedules(6, 5)["momentum"]
    seen = []

    class Follow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            momentum = schedule(state.global_step - 1)
            seen.append(momentum)
            for name, student in model.student.named_parameters():
                teacher[name].mul_(momentum).add_(student.detach(), alpha=1 - momentum)

    trainer.add_callback(Follow())
    trainer.train()
    assert model.num_updates == 6 and seen[0] == 0.9 and seen == sorted(seen)
    for name, parameter in model.teacher.named_parameters():
        torch.testing.assert_close(parameter, teacher[name], rtol=0, atol=0)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["momentum"] for entry in logs] == seen
    assert [entry["temperature"] for entry in logs] == [0.5] * 5 + [pytest.approx(0.35)]
