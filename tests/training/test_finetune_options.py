"""Fine-tuning with everything that PatchMix's and APS's authors do in it: policies of timm, erasing, mixing, stochastic
depth, decay by layers, a schedule that comes late, and a moving average of the weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ResNetConfig

from hf_ssl.data import TensorSource
from hf_ssl.evaluation import AccuracyMonitor
from hf_ssl.hub import evaluation_processor
from hf_ssl.models.classification import (
    ClassificationConfig,
    ClassificationViews,
    ClassificationViewsConfig,
    ClassifierForTraining,
)
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import View

from ..marks import slow
from ..processes import run_ranks
from .common import IMAGES, make_backbone, outcome
from .test_finetune import finetune, history_of, results_of


LABELS = torch.arange(len(IMAGES)) % 4
POLICY, STATISTICS = "rand-m9-mstd0.5-inc1", ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
EVERYTHING = [
    *("--auto_augment", POLICY, "--view_erase", "0.25", "--view_interpolation", "bicubic"),
    *("--mixup", "0.8", "--cutmix", "1", "--label_smoothing", "0.1", "--drop_path_rate", "0.1", "--dropout", "0.1"),
    *("--layer_decay", "0.75", "--weight_decay_rule", "layer_matrices", "--ema_decay", "0.6"),
    *("--schedule", "warmup_in_cosine", "--schedule_unit", "epoch", "--schedule_lag", "1", "--warmup_steps", "5"),
    *("--warmup_learning_rate", "1e-4", "--min_learning_rate", "1e-5", "--learning_rate", "3e-3"),
    *("--max_train_samples", "160", "--max_test_samples", "60", "--per_device_train_batch_size", "16"),
    *("--gradient_accumulation_steps", "2", "--logging_steps", "1", "--num_train_epochs", "3", "--max_steps", "-1"),
    *("--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end", "true"),
]


def make_trainer(
    folder: Any, ema_decay: float | None = 0.6, model: Any = None, mixing: bool = True, **args: Any
) -> SSLTrainer:
    torch.manual_seed(0)
    if model is None:
        config = ClassificationConfig(
            backbone_config=make_backbone(), num_labels=4, ema_decay=ema_decay, drop_path_rate=0.2
        )
        model = ClassifierForTraining(config)
    mix = {"mixup": 0.8, "cutmix": 1.0} if mixing else {}
    view = View(crop="padded_crop", interpolation="bicubic", erase=0.25)
    mean, std = STATISTICS
    views_config = ClassificationViewsConfig(view=view, auto_augment=POLICY, image_mean=mean, image_std=std, **mix)
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "use_cpu": True,
    }
    settings |= {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "optim": "sgd"}
    training_args = SSLTrainingArguments(output_dir=str(folder), **{**settings, **args})
    views = ClassificationViews(views_config, model.config, training_args.seed)
    return SSLTrainer(model, training_args, TensorSource(IMAGES, LABELS, views), views)


# ---- the moving average ----


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_average_is_made_once_for_each_step(tmp_path, kind, monkeypatch):
    """Against a loop by hand, with two micro-batches in a step: parameters are averaged, batch statistics are the model's."""
    model = None
    if kind == "resnet":
        sizes = {"layer_type": "basic", "embedding_size": 4, "hidden_sizes": [4, 4, 4, 8], "depths": [1, 1, 1, 1]}
        backbone = ResNetConfig(**sizes, image_size=16)
        model = ClassifierForTraining(ClassificationConfig(backbone_config=backbone, num_labels=4, ema_decay=0.6))
    trainer = make_trainer(tmp_path, model=model, gradient_accumulation_steps=2, max_steps=4)
    model, states = trainer.model, []
    states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    step = model.on_optimizer_step
    monkeypatch.setattr(
        model,
        "on_optimizer_step",
        lambda values: [step(values), states.append({n: t.clone() for n, t in model.state_dict().items()})],
    )
    trainer.train()
    assert len(states) == 5
    parameters = dict(model.named_parameters())
    for name in [name for name in states[0] if not name.startswith("teacher.")]:
        expected = states[0][name].double()
        for state in states:
            of_average = state[f"teacher.{name}"]
            expected = 0.6 * expected + 0.4 * state[name] if name in parameters else state[name].double()
            torch.testing.assert_close(of_average.double(), expected, rtol=1e-5, atol=1e-6)
    moved = [name for name in parameters if name.startswith("teacher.")]
    assert all(not torch.equal(states[0][name], states[-1][name]) for name in moved)
    assert not any(parameters[name].requires_grad for name in moved)


def test_average_leaves_the_training_as_it_is(tmp_path):
    first, second = (make_trainer(tmp_path / str(decay), decay) for decay in (None, 0.9))
    for trainer in (first, second):
        trainer.train()
    state = second.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.model.state_dict().items())
    assert len(state) == 2 * len(first.model.state_dict())


def test_both_are_measured(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    monitor = AccuracyMonitor(evaluation_processor(16, *STATISTICS), TensorSource(IMAGES, LABELS), batch_size=16)
    measured, model = monitor(trainer.model), trainer.model
    for which, prefix in (("student", "finetune_"), ("teacher", "finetune_ema_")):
        alone = monitor(model.export_classifier(which=which))
        assert len(alone) == 3
        for name, value in alone.items():
            assert measured[name.replace("finetune_", prefix)] == pytest.approx(value, rel=1e-5)
    assert measured["finetune_loss"] != measured["finetune_ema_loss"] and len(measured) == 6
    weights = [model.export_classifier(which=which).classifier.weight for which in ("student", "teacher", None)]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


# ---- runs ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three epochs with everything on."""
    folder = tmp_path_factory.mktemp("everything") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        finetune(monkeypatch, "--model", "none", "--output_dir", folder, *EVERYTHING)
    return folder


def test_what_a_run_leaves(whole):
    """The average, both numbers, the epoch that is the best by the average, and words for it."""
    results = results_of(whole)
    evaluations = [log for log in history_of(whole) if "eval_finetune_ema_top1" in log]
    assert len(evaluations) == 3 and all("eval_finetune_top1" in log for log in evaluations)
    best = max(evaluations, key=lambda log: log["eval_finetune_ema_top1"])
    assert results["encoder"] == "teacher"
    for name in ("finetune_top1", "finetune_ema_top1", "finetune_ema_loss"):
        assert results[name] == pytest.approx(best[f"eval_{name}"])
    assert results["last_epoch_top1"] == pytest.approx(evaluations[-1]["eval_finetune_ema_top1"])
    published = AutoModelForImageClassification.from_pretrained(whole).classifier.weight
    saved = load_file(whole / f"checkpoint-{best['step']}" / "model.safetensors")
    assert torch.equal(published, saved["teacher.classifier.weight"])
    assert not torch.equal(published, saved["classifier.weight"])
    card = ModelCard.load(whole / "README.md")
    text = " ".join(card.text.split())
    assert "the moving average of the trained weights; the best of all epochs" in text
    assert f"the weights themselves have {results['finetune_top1']:.2f} % top-1." in text
    assert "chosen by the accuracy on these same images" in text
    assert card.data.eval_results[0].metric_value == round(results["finetune_ema_top1"], 2)
    for row in ("moving average | decay 0.6", f"augmentation | {POLICY}", "mixup | 0.8", "CutMix | 1.0"):
        assert f"| {row} |" in text
    assert "| schedule | warmup_in_cosine, changed once in an epoch, 1 epoch late |" in text


def test_schedule_of_the_run(whole):
    """Epochs of five steps; the rate that is logged is that of the top level."""
    rates = [log["learning_rate"] for log in history_of(whole) if "learning_rate" in log]
    # The warm-up is the first of three epochs, and comes twice.
    expected = [1e-4] * 10 + [1e-5 + (3e-3 - 1e-5) * 0.75] * 5
    assert rates == pytest.approx(expected, rel=1e-9)


def test_evaluation_only_measures_what_was_published(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    before = results_of(folder)
    samples = ["--max_train_samples", "160", "--max_test_samples", "60"]
    finetune(monkeypatch, "--do_train", "false", "--output_dir", folder, *samples)
    after = results_of(folder)
    assert after == {
        name: pytest.approx(value, rel=1e-4) if "loss" in name else value for name, value in before.items()
    }


def test_weights_in_the_place_of_their_average(tmp_path, monkeypatch):
    flags = ["--encoder", "student", "--num_train_epochs", "1", "--output_dir", tmp_path / "run"]
    finetune(monkeypatch, "--model", "none", *EVERYTHING, *flags)
    saved = load_file(tmp_path / "run" / "checkpoint-5" / "model.safetensors")
    published = AutoModelForImageClassification.from_pretrained(tmp_path / "run").classifier.weight
    assert torch.equal(published, saved["classifier.weight"]) and results_of(tmp_path / "run")["encoder"] == "student"
    text = (tmp_path / "run" / "README.md").read_text()
    assert "repository; the trained weights; " in text and "he moving average of the weights has " in text
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(results_of(tmp_path / "run")["finetune_top1"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume(tmp_path, num_workers):
    """In the middle of an epoch, with other global states: every bit is that of the whole run, the average's too."""
    settings = {"max_steps": 7, "gradient_accumulation_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
    settings |= {
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_steps": 100,
    }
    settings |= {
        "schedule": "warmup_in_cosine",
        "schedule_unit": "epoch",
        "schedule_lag": 1,
        "warmup_learning_rate": 1e-5,
    }
    first = make_trainer(tmp_path, **settings)
    first.train()
    second = make_trainer(tmp_path, dataloader_num_workers=num_workers, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert outcome(first) == outcome(second)
    assert any(name.startswith("teacher.") for name in outcome(first)["weights"])


def train(folder: str, **settings: Any) -> dict[str, Any]:
    trainer = make_trainer(folder, **settings)
    trainer.train()
    weights = {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()}
    result = {"losses": [log["loss"] for log in trainer.state.log_history if "loss" in log], "weights": weights}
    trainer.close()
    return result


def train_rank(folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    return train(folder, **settings)


@pytest.mark.parametrize("mixing", [slow(False), True])
def test_two_processes(tmp_path, mixing):
    """They end with the same weights, and without mixing, which each does in its own batch, with those of one process."""
    settings = {"mixing": mixing, "per_device_train_batch_size": 4}
    two = run_ranks(train_rank, 2, str(tmp_path / "two"), settings)
    for name, tensor in two[0]["weights"].items():
        assert (tensor == two[1]["weights"][name]).all(), name
    if not mixing:
        one = train(str(tmp_path / "one"), mixing=False)
        assert one["losses"] == pytest.approx(two[0]["losses"], rel=2e-5)
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(
                torch.from_numpy(tensor), torch.from_numpy(two[0]["weights"][name]), rtol=1e-4, atol=1e-5
            )


# ---- mistakes ----


def test_batches_of_which_one_image_has_no_partner(tmp_path):
    with pytest.raises(ValueError, match="batch_size=5 does not do: these views need a multiple of 2 images"):
        make_trainer(tmp_path, per_device_train_batch_size=5)
    with pytest.raises(ValueError, match="last batch of an epoch has 3 of 43 images.*a multiple of 2"):
        SSLTrainer._check_batch_size(
            SSLTrainingArguments(
                str(tmp_path), per_device_train_batch_size=8, dataloader_drop_last=False, use_cpu=True
            ),
            43,
            make_trainer(tmp_path).views,
        )
    make_trainer(tmp_path, mixing=False, per_device_train_batch_size=5)


def test_mixing_in_workers(tmp_path):
    with pytest.raises(ValueError, match="augment_on='workers' is not possible"):
        make_trainer(tmp_path, augment_on="workers")
    assert make_trainer(tmp_path, mixing=False, augment_on="workers")._augments_in_workers


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder", "teacher"], "no moving average of the weights; set --ema_decay"),
        (["--ema_decay", "1"], "ema_decay=1.0 must lie in"),
        (["--auto_augment", "rand-m9-inc"], "auto_augment='rand-m9-inc' is not understood"),
        (["--mixup", "0.8", "--per_device_train_batch_size", "31"], "need a multiple of 2 images"),
        (["--schedule_lag", "1"], "schedule_lag=1 is a number of epochs: set --schedule_unit epoch"),
        (["--warmup_learning_rate", "1e-6"], "only the warm-up of --schedule warmup_in_cosine"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, flags, message):
    with pytest.raises(Exception, match=message):
        finetune(monkeypatch, "--model", "none", "--max_steps", "2", "--output_dir", tmp_path / "run", *flags)
    assert not list(Path(tmp_path / "run").rglob("*.safetensors"))
