"""What measures and chooses linear classifiers, and what they are trained on."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from transformers import ViTModel

from hf_ssl.data import TensorSource
from hf_ssl.evaluation import FeatureSource, FeatureSpec, LoadedEncoder, ProbeMonitor, choose_probe
from hf_ssl.hub import evaluation_processor
from hf_ssl.models.linear_probe import (
    LinearProbeConfig,
    LinearProbesForTraining,
    LinearProbeViews,
    LinearProbeViewsConfig,
)
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments

from ..device import DEVICE
from ..marks import slow
from ..processes import run_ranks
from ..training.common import IMAGES, make_backbone, outcome


RATES = [0.01, 0.1, 0.5]
LABELS = torch.arange(40) * 7 % 10
BRIGHT = IMAGES // 8 + 22 * LABELS[:, None, None, None].to(torch.uint8)  # by their class
STATISTICS = [0.5] * 3, [0.25] * 3


def make_probes(feature_size=36, num_labels=10, **overrides):
    torch.manual_seed(0)
    fields = {"learning_rates": RATES, "feature_size": feature_size, "num_labels": num_labels}
    return LinearProbesForTraining(LinearProbeConfig(**{**fields, **overrides}))


# ---- accuracies ----


def perturbed(probes):
    """Classifiers that differ."""
    with torch.no_grad():
        for parameter in probes.parameters():
            parameter.normal_()
    return probes.to(DEVICE)


def features_of(count, num_labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 36, generator=generator), torch.randint(num_labels, (count,), generator=generator)


@pytest.mark.parametrize("num_labels", [2, 4, 5, 6, 30])
def test_accuracies_equal_scikit_learn(num_labels):
    probes = perturbed(make_probes(num_labels=num_labels))
    splits = {"test": features_of(90, num_labels), "held_out": features_of(37, num_labels, seed=1)}
    measured = ProbeMonitor(splits)(probes)
    assert len(measured) == 2 * 2 * 3
    for split, (features, labels) in splits.items():
        for i, name in enumerate(("0.01", "0.1", "0.5")):
            scores = F.linear(features, probes.weight[i].cpu(), probes.bias[i].cpu()).detach().double()
            for k in (1, 5):
                expected = 100.0
                if k < num_labels:
                    scores_of = scores[:, 1] if num_labels == 2 else scores  # as scikit-learn wants them
                    threshold = scores[:, 0] if num_labels == 2 else 0
                    expected = 100 * top_k_accuracy_score(
                        labels.numpy(), (scores_of - threshold).numpy(), k=k, labels=list(range(num_labels))
                    )
                assert measured[f"{split}_top{k}_lr{name}"] == pytest.approx(expected, abs=1e-9)


def test_any_chunk_size():
    probes, split = perturbed(make_probes()), features_of(90, 10)
    measured = [ProbeMonitor({"test": split}, *size)(probes) for size in ((), (1,), (7,), (45,), (89,), (90,))]
    assert all(each == measured[0] for each in measured)
    assert 0 < measured[0]["test_top1_lr0.5"] < measured[0]["test_top5_lr0.5"] < 100


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(training):
    probes = perturbed(make_probes()).train(training)
    probes(*(x.to(DEVICE) for x in features_of(5, 10))).loss.backward()
    before, state = copy.deepcopy(probes), torch.get_rng_state()
    ProbeMonitor({"test": features_of(9, 10)})(probes)
    assert probes.training == training and torch.equal(torch.get_rng_state(), state)
    for parameter, expected in zip(probes.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, expected) and parameter.requires_grad
    assert probes.weight.grad is not None and torch.get_default_dtype() == torch.float32


# ---- the classifier that is reported ----


def history_of(**splits):
    """Evaluations in epochs 5, 10, …; of each split, top-1 accuracies by evaluation and learning rate (0.1, 1, 10)."""
    logs = [{"epoch": 5.0 * (i + 1)} for i in range(len(next(iter(splits.values()))))]
    for split, table in splits.items():
        for log, row in zip(logs, table, strict=True):
            for name, value in zip(("0.1", "1", "10"), row, strict=True):
                log |= {f"{split}_top1_lr{name}": value, f"{split}_top5_lr{name}": value / 2 + 50}
    return logs


CHOICES = {
    "best of all epochs": ([[1, 2, 3], [9, 4, 5], [6, 8, 7]], (10.0, 0.1), 1.0),
    "last": ([[1, 2, 3], [3, 2, 1], [4, 5, 6]], (15.0, 10.0), 10.0),
    "earliest of equal ones": ([[1, 2, 3], [4, 5, 9], [9, 8, 9], [1, 9, 2]], (10.0, 10.0), 1.0),
    "smallest rate of equal ones": ([[1, 2, 3], [8, 9, 9], [7, 7, 7]], (10.0, 1.0), 0.1),
    "one evaluation": ([[3, 7, 5]], (5.0, 1.0), 1.0),
}


@pytest.mark.parametrize("order", [[0.1, 1.0, 10.0], [10.0, 0.1, 1.0]], ids=str)
@pytest.mark.parametrize("table, chosen, last_rate", CHOICES.values(), ids=CHOICES)
def test_choice(table, chosen, last_rate, order):
    """In whatever order the learning rates are given."""
    found = choose_probe(history_of(test=table), order, "test")
    epoch, rate = chosen
    top1 = table[int(epoch / 5) - 1][[0.1, 1.0, 10.0].index(rate)]
    assert found == {
        "linear_top1": top1,
        "linear_top5": top1 / 2 + 50,
        "linear_epoch": epoch,
        "linear_learning_rate": rate,
        "linear_top1_last": max(table[-1]),
        "linear_learning_rate_last": last_rate,
    }


@pytest.mark.parametrize("table, chosen, last_rate", CHOICES.values(), ids=CHOICES)
def test_no_test_label_chooses(table, chosen, last_rate):
    """Held-out images do, and what is reported is the accuracy on the test images."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        test = rng.permutation(100)[: 3 * len(table)].reshape(-1, 3).tolist()
        found = choose_probe(history_of(held_out=table, test=test), [0.1, 1.0, 10.0], "held_out")
        assert (found["linear_epoch"], found["linear_learning_rate"]) == chosen
        assert found["linear_learning_rate_last"] == last_rate
        epoch, rate = chosen
        top1 = test[int(epoch / 5) - 1][[0.1, 1.0, 10.0].index(rate)]
        assert (found["linear_top1"], found["linear_top5"]) == (top1, top1 / 2 + 50)
        assert found["linear_top1_last"] == test[-1][[0.1, 1.0, 10.0].index(last_rate)]


# ---- features in the place of images ----


def test_source():
    features = torch.arange(12.0).reshape(4, 3)
    source = FeatureSource(features, torch.tensor([5, 6, 7, 8]), torch.tensor([1, 2, 3]), "these")
    assert len(source) == 3 and source.fingerprint() == "these"
    batch = source.__getitems__([(2, 2), (2, 0), (3, 2)])
    assert torch.equal(batch["features"], features[[3, 1, 3]]) and batch["labels"].tolist() == [8, 6, 8]
    assert batch["index"].tolist() == [2, 0, 2] and batch["epoch"].tolist() == [2, 2, 3]
    assert source.collate(batch) is batch


def make_encoder():
    torch.manual_seed(1)
    model = ViTModel(make_backbone(), add_pooling_layer=False)
    return LoadedEncoder(model, evaluation_processor(16, *STATISTICS), "vit").to(DEVICE)


def encoded(encoder, pixel_values):
    return encoder.features(pixel_values, [FeatureSpec("class_token")])[0]


def make_trainer(folder, augment, views=None, **args):
    """Five steps an epoch; on features of the images, or of one view of each, that is another one in each epoch."""
    encoder = make_encoder()
    pixel_values = encoder.processor(images=list(BRIGHT), return_tensors="pt")["pixel_values"]
    features = encoded(encoder, pixel_values).cpu()
    if augment:
        source = TensorSource(BRIGHT, LABELS)
        config = LinearProbeViewsConfig(image_mean=STATISTICS[0], image_std=STATISTICS[1])
        views = views or LinearProbeViews(config, 16, lambda pixels: encoded(encoder, pixels), seed=42)
    else:
        source = FeatureSource(features, LABELS, torch.arange(len(LABELS)), "features")
        views = views or only_inputs
    settings = {"max_steps": 13, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.5}
    settings |= {"optim_args": "momentum=0.9", "schedule": "warmup_in_cosine", "schedule_unit": "epoch"}
    settings |= {"logging_steps": 3, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "no"}
    settings |= {"augment_on": "device", "disable_tqdm": True, "use_cpu": DEVICE == "cpu"}
    training_args = SSLTrainingArguments(output_dir=str(folder), **{**settings, **args})
    return SSLTrainer(make_probes(), training_args, source, views, ProbeMonitor({"test": (features + 0.01, LABELS)}))


def only_inputs(batch, draws=None):
    return {"features": batch["features"], "labels": batch["labels"]}


def test_a_run_is_that_of_each_alone(tmp_path):
    """The library's trainer, optimizer and schedule, against loops of torch."""
    batches = []

    def recorded(batch, draws=None):
        batches.append((batch["features"].clone(), batch["labels"].clone()))
        return only_inputs(batch)

    args = {"optim_args": "momentum=0.9,nesterov=true", "max_steps": 15}
    trainer = make_trainer(tmp_path, augment=False, views=recorded, **args)
    trainer.train()
    assert len(batches) == 15
    for i, rate in enumerate(RATES):
        begun = make_probes()
        layer = nn.Linear(36, 10).to(DEVICE)
        layer.load_state_dict({"weight": begun.weight[i], "bias": begun.bias[i]})
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9, nesterov=True)
        for step, (features, labels) in enumerate(batches):
            share = (1 + np.cos(np.pi * (step // 5) / 3)) / 2
            optimizer.param_groups[0]["lr"] = 0.5 * rate * share
            optimizer.zero_grad()
            F.cross_entropy(layer(features), labels).backward()
            optimizer.step()
        for name in ("weight", "bias"):
            expected, found = getattr(layer, name), getattr(trainer.model, name)[i]
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), (name, rate)


@pytest.mark.parametrize("augment", [False, True])
def test_resume_in_the_middle_of_an_epoch(tmp_path, augment):
    """Step 8 lies in epoch 1, between two logs."""
    whole = make_trainer(tmp_path / "whole", augment)
    whole.train()
    make_trainer(tmp_path / "cut", augment, save_strategy="steps", save_steps=8).train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "cut", augment)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert outcome(resumed) == outcome(whole)
    logs = [set(log) for log in whole.state.log_history]
    assert sum("eval_test_top1_lr0.5" in log for log in logs) == 4


def test_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, augment=False, save_strategy="steps", save_steps=13)
    trainer.train()
    folder = tmp_path / "checkpoint-13"
    assert load_file(folder / "model.safetensors").keys() == {"weight", "bias"}
    loaded = LinearProbesForTraining.from_pretrained(folder).to(DEVICE)
    resumed = make_trainer(tmp_path, augment=False)
    resumed._load_from_checkpoint(str(folder))
    for model in (loaded, resumed.model):
        assert model.config.learning_rates == RATES and torch.equal(model.weight, trainer.model.weight)
        assert torch.equal(model.bias, trainer.model.bias)
        assert torch.equal(model.learning_rates, trainer.model.learning_rates)
    assert not torch.equal(trainer.model.weight, make_probes().to(DEVICE).weight)


@pytest.mark.parametrize("augment", [False, True])
def test_workers_change_nothing(tmp_path, augment):
    outcomes = []
    for num_workers in (0, 2):
        trainer = make_trainer(tmp_path / str(num_workers), augment, dataloader_num_workers=num_workers)
        trainer.train()
        outcomes.append(outcome(trainer))
    assert outcomes[0] == outcomes[1]


def test_features_in_workers(tmp_path):
    """Where there is no accelerator, batches are made there, unless the encoder is needed for them."""
    trainer = make_trainer(tmp_path, augment=False, dataloader_num_workers=1, augment_on="workers")
    trainer.train()
    expected = make_trainer(tmp_path, augment=False)
    expected.train()
    assert outcome(trainer) == outcome(expected)


def run(folder, augment, batch_size):
    """Weights and logs of this process."""
    trainer = make_trainer(folder, augment, per_device_train_batch_size=batch_size, logging_steps=1)
    trainer.train()
    result = {
        "weights": {name: tensor.cpu().numpy() for name, tensor in trainer.model.state_dict().items()},
        "accuracies": [log for log in trainer.state.log_history if "eval_test_top1_lr0.5" in log],
        "losses": [log["loss_classification"] for log in trainer.state.log_history if "loss_classification" in log],
    }
    trainer.close()
    return result


@pytest.mark.parametrize("augment", [slow(False), True])
def test_two_processes_equal_one(tmp_path, augment):
    one = run(tmp_path / "one", augment, 8)
    two = run_ranks(run, 2, tmp_path / "two", augment, 4)
    for name, expected in one["weights"].items():
        np.testing.assert_allclose(two[0]["weights"][name], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(two[0]["weights"][name], two[1]["weights"][name])
    assert two[0]["losses"] == two[1]["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert len(one["accuracies"]) == 4
    assert two[0]["accuracies"] == two[1]["accuracies"] == one["accuracies"]
