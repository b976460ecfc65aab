"""A method's own losses on images that it was not trained on."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.data import TensorSource
from hf_ssl.distributed import close_process_group
from hf_ssl.evaluation import AccuracyMonitor, LossMonitor
from hf_ssl.models.relvit import RelViTViews, RelViTViewsConfig
from hf_ssl.models.relvit.views_relvit import mega_patches

from ..processes import run_ranks
from ..training.common import make_backbone, make_model
from .test_classification import IMAGES, LABELS, PROCESSOR, make_classifier


TASKS = ["relations", "positions", "distances", "angles"]


def make(**overrides):
    """A model in training, but for a part, with dropout; and its views."""
    torch.manual_seed(0)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=make_backbone(hidden_dropout_prob=0.3), **overrides))
    model.train()
    model.student.layers[1].eval()
    return model, RelViTViews(RelViTViewsConfig(), model.config, 5)


def processed():
    return PROCESSOR(images=list(IMAGES.images), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("tasks", [["relations", "positions"], TASKS, ["classification", *TASKS]])
def test_any_batch_size(tasks):
    """The model's own forward pass over all images, unaugmented, in eval mode; accuracies are in percent."""
    model, views = make(tasks=tasks, num_labels=10, relation_label_smoothing=0.1, relation_loss_dropout=0.5)
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    assert True in modes and False in modes
    monitors = [LossMonitor(PROCESSOR, IMAGES, views, *args) for args in ((7,), (64,), (256,), (7, 1))]
    measured = [monitor(model) for monitor in monitors]
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    labels = {"labels": LABELS} if "classification" in tasks else {}
    with torch.no_grad():
        output = model.eval()(processed(), **labels)
    expected = {"validation_loss": output.loss}
    expected |= {f"validation_loss_{name}": value for name, value in output.losses.items()}
    expected |= {f"validation_{name}": 100 * value for name, value in output.metrics.items()}
    assert len(expected) == 1 + len(tasks) + len(set(tasks) - {"distances", "angles"})
    for monitor, each in zip(monitors, measured, strict=True):
        assert each == monitor.last == pytest.approx({n: v.item() for n, v in expected.items()}, rel=1e-5)
        assert all(type(value) is float for value in each.values())


@pytest.mark.parametrize("independent", [False, True])
def test_mega_patches_are_cut_alike_in_every_call(independent):
    """Whatever the batch is; differently for each image, and for another seed."""
    model = make_model(mega_patches=3)
    config = RelViTViewsConfig(mega_independent_cuts=independent, shuffle_patches=True)
    views = RelViTViews(config, model.config, 5)
    measured = []
    for batch_size in (7, 64, 64):
        monitor = LossMonitor(PROCESSOR, IMAGES, views, batch_size)
        measured += [monitor(model), monitor(model)]
    assert all(each == pytest.approx(measured[0], rel=1e-6) for each in measured)
    other = LossMonitor(PROCESSOR, IMAGES, RelViTViews(config, model.config, 6))(model)
    assert other["validation_loss"] != pytest.approx(measured[0]["validation_loss"], rel=1e-5)

    same = processed()[:1].expand(20, -1, -1, -1)
    batch = {"pixel_values": same, "index": torch.arange(20)}
    inputs = views.validation_inputs(batch)
    assert inputs.keys() == {"pixel_values"} and inputs["pixel_values"].shape == (20, 3, 12, 12)
    assert len(inputs["pixel_values"].unique(dim=0)) > 1
    cuts = [torch.tensor([pair]) for pair in ((1, 2), (1, 3), (2, 3))]
    possible = [mega_patches(same[:1], rows, columns, 4) for rows in cuts for columns in cuts]
    for image in inputs["pixel_values"]:
        assert any(torch.allclose(image, other[0], atol=1e-6) for other in possible)
    assert torch.equal(views.validation_inputs(batch)["pixel_values"], inputs["pixel_values"])


def test_whole_images_are_left_as_they_are():
    model, _ = make(tasks=["classification", "relations"], num_labels=10)
    views = RelViTViews(RelViTViewsConfig(shuffle_patches=True), model.config, 5)
    images = processed()[:4]
    batch = {"pixel_values": images, "index": torch.arange(4), "labels": LABELS[:4]}
    inputs = views.validation_inputs(batch)
    assert inputs.keys() == {"pixel_values", "labels"}
    assert torch.equal(inputs["pixel_values"], images) and torch.equal(inputs["labels"], LABELS[:4])


def measure(num_images: int) -> dict[str, float]:
    """Both monitors, in this process or with others."""
    PartialState(cpu=True)
    images = TensorSource(IMAGES.images[:num_images], LABELS[:num_images])
    model = make_model(mega_patches=3)
    views = RelViTViews(RelViTViewsConfig(), model.config, 5)
    measured = LossMonitor(PROCESSOR, images, views, 8)(model)
    measured |= AccuracyMonitor(PROCESSOR, images, 8)(make_classifier())
    return measured


def measure_in_rank() -> list[dict[str, float]]:
    """More images than one batch; an odd number of them; and one, with which the second process has nothing to do."""
    measured = [measure(count) for count in (70, 23, 1)]
    close_process_group()
    return measured


def test_two_processes_measure_what_one_does():
    first, second = run_ranks(measure_in_rank, 2)
    assert first == second
    for count, measured in zip((70, 23, 1), first, strict=True):
        assert measured == pytest.approx(measure(count), rel=1e-5)


# ---- in a run ----


SCRIPT = Path(__file__).parents[2] / "training" / "pretrain.py"
RUN = [
    "--max_steps",
    "6",
    "--eval_steps",
    "2",
    "--logging_steps",
    "2",
    "--save_strategy",
    "steps",
    "--save_steps",
    "2",
]
RUN += ["--knn_bank_samples", "50", "--knn_query_samples", "20", "--max_train_samples", "256"]
RUN += ["--validation_samples", "50", "--load_best_model_at_end", "true"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "name", "values", "best"),
    [
        ("upstream", "validation_loss", [9.0, 3.0, 1.0, 2.0], 4),
        ("joint", "validation_accuracy_classification", [9.0, 3.0, 20.0, 10.0], 4),
    ],
)
def test_best_model_of_a_run(tmp_path, monkeypatch, mode, name, values, best):
    """Upstream, the lowest loss chooses; joint, the highest accuracy. The values here are set; the first is of before."""
    values, measured = iter(values), []
    monitor_call = LossMonitor.__call__

    def call(monitor, model):
        assert len(monitor.images) == 50
        monitor_call(monitor, model)
        measured.append(dict(monitor.last))
        monitor.last[name] = next(values, monitor.last[name])
        return monitor.last

    monkeypatch.setattr(LossMonitor, "__call__", call)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--mode", mode, "--output_dir", str(tmp_path / "run"), *RUN])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best and state["best_metric"] == {"upstream": 1.0, "joint": 20.0}[mode]
    published = load_file(tmp_path / "run" / "pretraining" / "model.safetensors")
    kept = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(tensor, kept[key]) for key, tensor in published.items())
    logged = [entry for entry in state["log_history"] if f"eval_{name}" in entry]
    assert [entry["step"] for entry in logged][:4] == [0, 2, 4, 6]
    assert all(f"eval_{key}" in logged[0] for key in measured[0]) and "eval_knn_top1" in logged[0]
    # The best one is measured again, by the same images.
    assert len(measured) == 5 and measured[4] == pytest.approx(measured[2], rel=1e-6)
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert {key: results[key] for key in measured[4]} == measured[4]

    monkeypatch.undo()
    monkeypatch.setattr(
        sys,
        "argv",
        ["pretrain.py", "--mode", mode, "--output_dir", str(tmp_path / "run"), *RUN, "--do_train", "false"],
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    again = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert {key: again[key] for key in measured[4]} == pytest.approx(measured[4], rel=1e-5)
    assert again["num_steps"] == 6


def test_best_model_needs_test_images(tmp_path, monkeypatch):
    flags = [*RUN, "--validation_samples", "0", "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *flags])
    with pytest.raises(
        ValueError, match=r"chosen by validation_loss, and there are no test images.*--validation_samples"
    ):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_what_chooses():
    """What is asked for, or else the method's own; nothing where the last model is kept."""
    choose = runpy.run_path(str(SCRIPT))["check_selection"]

    def chosen(config, measures, num_classes=3, **given):
        args = {"load_best_model_at_end": True, "metric_for_best_model": None, "greater_is_better": None, **given}
        args = SimpleNamespace(**args)
        script = SimpleNamespace(dataset="photos", knn_train_samples=0)
        choose(script, args, config, measures, SimpleNamespace(num_classes=num_classes))
        return args.metric_for_best_model, args.greater_is_better

    upstream = make_model().config
    joint = make_model(tasks=["classification", "relations"], num_labels=3).config
    monitor = LossMonitor(PROCESSOR, IMAGES, None)
    assert chosen(upstream, monitor) == ("validation_loss", False)
    assert chosen(upstream, monitor, metric_for_best_model="loss") == ("validation_loss", False)
    assert chosen(joint, monitor) == ("validation_accuracy_classification", True)
    asked = {"metric_for_best_model": "knn_top1", "greater_is_better": True}
    assert chosen(upstream, None, **asked) == ("knn_top1", True)
    assert chosen(upstream, None, load_best_model_at_end=False) == (None, None)
    for name in ("validation_loss", "eval_validation_accuracy_relations"):
        with pytest.raises(ValueError, match=f"chosen by {name.removeprefix('eval_')}, and there are no test"):
            chosen(upstream, None, metric_for_best_model=name)
    with pytest.raises(ValueError, match="chosen by knn_top1, and photos has no labels"):
        chosen(upstream, None, num_classes=None, metric_for_best_model="knn_top1")
