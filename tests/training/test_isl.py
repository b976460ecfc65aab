"""ISL through the trainer and the script: rounds, their ends, the monitor, and the folder that is left."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from hf_ssl.data import TensorSource
from hf_ssl.evaluation import KNNMonitor
from hf_ssl.hub import evaluation_processor
from hf_ssl.models.isl import rounds_isl
from hf_ssl.models.isl.proxy_training import ProxyTraining

from ..processes import run_ranks
from .common import IMAGES, losses, make_isl, make_trainer
from .test_pretrain import pretrain, results_of


SMALL = ["--method", "isl", "--backbone", "resnet-micro", "--max_train_samples", "150", "--num_train_epochs", "2"]
SMALL += ["--per_device_train_batch_size", "50", "--logging_steps", "1", "--eval_epochs", "1", "--gan_max_epochs", "2"]
SMALL += ["--knn_query_samples", "40", "--num_negatives", "16", "--score_threshold", "0.1", "--image_size", "16"]


def extra_batches(folder, first=0):
    trainer = make_trainer(folder, make_isl(), per_device_train_batch_size=4)
    trainer.get_train_dataloader()
    found = [
        [(b["epoch"].unique().tolist(), b["index"].tolist()) for b in trainer.extra_batches(e, first)[1]]
        for e in (7, 8)
    ]
    trainer.close()
    return found


def test_extra_batches(tmp_path):
    """Every image once, in an order, and with the number, of the epoch that is asked for."""
    seventh, eighth = extra_batches(tmp_path)
    assert all(epoch == [7] for epoch, _ in seventh) and all(epoch == [8] for epoch, _ in eighth)
    orders = [sum((index for _, index in batches), []) for batches in (seventh, eighth)]
    assert all(sorted(order) == list(range(len(IMAGES))) for order in orders) and orders[0] != orders[1]
    assert extra_batches(tmp_path, first=3) == [seventh[3:], eighth[3:]]
    shares = run_ranks(extra_batches, 2, str(tmp_path))
    for number, batches in enumerate((seventh, eighth)):
        assert [share[number] for share in shares] == [batches[::2], batches[1::2]]


class Follow(TrainerCallback):
    """The epoch and the share of images with neighbors at each of Trainer's epoch ends."""

    def __init__(self, trainer):
        self.trainer, self.rounds = trainer, []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rounds.append(self.trainer.method_callback.progress.round)


def train_rounds(folder, num_epochs, request_after=(), **options):
    trainer = make_trainer(folder, make_isl(gan_max_epochs=2, **options), max_steps=5 * num_epochs, optim="sgd")
    follow = Follow(trainer)
    trainer.add_callback(follow)
    for epoch in request_after:

        class Request(TrainerCallback):
            wanted = epoch

            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 5 * self.wanted:
                    (trainer.output_dir / rounds_isl.NEXT_STAGE_NAME).touch()

        trainer.add_callback(Request())
    trainer.train()
    return trainer, follow.rounds


@pytest.mark.parametrize(
    ("num_epochs", "options", "rounds"),
    [
        (4, {"num_rounds": 2}, [0, 0, 1, 1]),
        (5, {"num_rounds": 3}, [0, 0, 1, 1, 2]),
        (3, {"num_rounds": 3}, [0, 1, 2]),
        (4, {"num_rounds": 1, "final_backbone_stage": True}, [0, 0, 1, 1]),
    ],
)
def test_epochs_are_shared_out(tmp_path, num_epochs, options, rounds):
    """No round is left out; each is mined once, and the last training of an additional one is not followed by any."""
    trainer, seen = train_rounds(tmp_path, num_epochs, **options)
    assert seen == rounds
    reports = trainer.method_callback.results()["rounds"]
    assert [report["round"] for report in reports] == list(range(1, options["num_rounds"] + 1))
    assert trainer.method_callback.progress.stage == "done"
    neighbors = [report["neighbors_per_image"] for report in reports]
    assert neighbors == sorted(neighbors) and neighbors[0] > 0


def test_report_of_labels(tmp_path):
    trainer = make_trainer(tmp_path, make_isl(), max_steps=10)
    trainer.train_dataset.labels = labels = torch.arange(len(IMAGES)) % 4
    trainer.train()
    links = trainer.model.bank.neighbors.links.tolist()
    agreeing = [labels[link // len(IMAGES)] == labels[link % len(IMAGES)] for link in links]
    (_, last) = trainer.method_callback.results()["rounds"]
    assert last["label_agreement"] == pytest.approx(sum(agreeing).item() / len(links)) and len(links) > 20
    assert last["neighbors_per_image"] == len(links) / len(IMAGES)


def test_too_few_epochs(tmp_path):
    with pytest.raises(ValueError, match="2 epochs are too few for 3 trainings.*--num_train_epochs.*--num_rounds"):
        train_rounds(tmp_path, 2, num_rounds=3)


@pytest.mark.parametrize(("asked_in", "rounds"), [(0, [0, 1, 1, 1]), (2, [0, 0, 0, 1, 1, 1]), (3, [0, 0, 0, 1])])
def test_next_stage_by_hand(tmp_path, asked_in, rounds):
    """The training in progress ends with its epoch, and nothing else; in its last epoch that makes no difference."""
    trainer, seen = train_rounds(tmp_path, 6, [asked_in], num_rounds=2)
    assert seen == rounds and trainer.state.global_step == 5 * len(rounds)
    assert [report["gan_end"] for report in trainer.method_callback.results()["rounds"]] == ["gan_max_epochs"] * 2
    assert not (tmp_path / rounds_isl.NEXT_STAGE_NAME).exists()


def test_next_stage_in_the_generators_training(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, make_isl(num_rounds=1, gan_max_epochs=9), max_steps=5)
    step = ProxyTraining.step

    def request(proxies, triplets):
        if trainer.method_callback.progress.gan_steps == 7:
            (tmp_path / rounds_isl.NEXT_STAGE_NAME).touch()
        return step(proxies, triplets)

    monkeypatch.setattr(ProxyTraining, "step", request)
    trainer.train()
    (report,) = trainer.method_callback.results()["rounds"]
    assert (report["gan_epochs"], report["gan_end"]) == (2, "by hand")
    assert report["mining_end"] == "enough neighbors" and not (tmp_path / rounds_isl.NEXT_STAGE_NAME).exists()


def test_request_of_an_earlier_run_is_forgotten(tmp_path):
    (tmp_path / rounds_isl.NEXT_STAGE_NAME).touch()
    assert train_rounds(tmp_path, 4, num_rounds=2)[1] == [0, 0, 1, 1]


def test_best_generator_is_restored(tmp_path, monkeypatch):
    """By quality: the second of four epochs is made the best one; otherwise the last weights are used."""
    for stop, used in (("quality", 2), ("epochs", 4)):
        model = make_isl(num_rounds=1, gan_max_epochs=4, gan_stop=stop)
        trainer = make_trainer(tmp_path / stop, model, max_steps=5)
        rounds, weights = trainer.method_callback, []
        measure = rounds._measure

        def measured(*args, measure=measure, weights=weights, model=model):
            weights.append({name: tensor.clone() for name, tensor in model.generator.state_dict().items()})
            result = measure(*args)
            result.quality = float(len(weights) == 2)
            return result

        monkeypatch.setattr(rounds, "_measure", measured)
        trainer.train()
        (report,) = rounds.results()["rounds"]
        assert report["gan_epoch_used"] == used and len(weights) == 4
        for name, tensor in model.generator.state_dict().items():
            assert torch.equal(tensor, weights[used - 1][name]), name
            assert not tensor.requires_grad and getattr(model.generator, name.partition(".")[0]).weight.grad is None


@pytest.mark.slow
def test_torch_compile(tmp_path):
    """Compiled graphs do not keep the bank, which changes in each step."""
    settings = {"max_steps": 14, "optim": "sgd", "learning_rate": 0.03}
    expected = make_trainer(tmp_path / "plain", make_isl(), **settings)
    compiled = make_trainer(
        tmp_path / "compiled", make_isl(), torch_compile=True, torch_compile_backend="aot_eager", **settings
    )
    for trainer in (expected, compiled):
        trainer.train()
    torch.testing.assert_close(torch.tensor(losses(compiled)), torch.tensor(losses(expected)), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_bank_votes(tmp_path):
    """Features are computed before training; then what the bank holds votes, if it may."""
    labels = torch.arange(len(IMAGES)) % 4
    source = TensorSource(IMAGES, labels)
    processor = evaluation_processor(16, [0.5] * 3, [0.5] * 3)
    monitors = [
        KNNMonitor(
            processor, source, TensorSource(IMAGES[:9], labels[:9]), 4, k=5, projected=True, recompute=recompute
        )
        for recompute in (True, False)
    ]
    model = make_isl()
    model.make_bank(len(IMAGES))
    for monitor in monitors:
        monitor(model)
        assert monitor.settings["knn_bank"] == "computed"
    trainer = make_trainer(tmp_path, model, max_steps=10, images=IMAGES)
    trainer.train()
    assert [monitor(model)["knn_top1"] >= 0 and monitor.settings["knn_bank"] for monitor in monitors] == [
        "computed",
        "held by the model",
    ]
    queries, _ = monitors[0]._features(model, model.export_encoder(), monitors[0].queries)
    nearest = (queries / queries.norm(dim=1, keepdim=True)) @ model.bank.rows.T
    assert torch.equal(monitors[1].last_neighbors[:, 0], nearest[: len(monitors[1].last_neighbors)].argmax(1))


def test_training_images_as_queries():
    """They do not vote for themselves: with labels at random, they are right by chance."""
    labels = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(0))
    source = TensorSource(IMAGES, labels)
    processor = evaluation_processor(16, [0.5] * 3, [0.5] * 3)
    monitor = KNNMonitor(processor, source, source, 4, k=1, num_train_queries=20)
    measured = monitor(make_isl())
    assert measured["knn_top1"] == 100 and measured["knn_top1_train"] < 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isl") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, *SMALL, "--output_dir", folder, "--knn_train_samples", "50")
    return folder


def test_folder(run):
    """Loads where this library is unknown, with the code that lies beside it; the card says so."""
    results = results_of(run)
    assert (
        len(results["rounds"]) == 2 and {"neighbors_per_image", "gan_end", "mining_end"} <= results["rounds"][0].keys()
    )
    assert results["knn_features"] == "projected" and results["knn_bank"] == "computed"
    assert {"knn_top1", "knn_top1_train", "knn_top1_before"} <= results.keys()
    card = (run / "README.md").read_text()
    assert (run / "figures" / "rounds.png").is_file() and "(figures/rounds.png)" in card
    assert (
        "trust_remote_code=True" in card and "ResNet-18 of widths 16, 32, 64, 128 with a stem for small images" in card
    )
    assert "as the loss projects it" in card and "what the pretraining model projects of it" in card
    code = (
        "import sys; from transformers import AutoModel, AutoImageProcessor\n"
        f"model = AutoModel.from_pretrained({str(run)!r}, trust_remote_code=True)\n"
        f"inputs = AutoImageProcessor.from_pretrained({str(run)!r})(__import__('PIL.Image').Image.new('RGB', (8, 8)))\n"
        "assert not any(name.split('.')[0] == 'hf_ssl' for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=run)


def test_measured_again(run, monkeypatch, capsys):
    """With the bank's votes or with computed features, but with no other images than its own."""
    for recompute, votes in (("false", "held by the model"), ("true", "computed")):
        flags = ["--output_dir", run, "--do_train", "false", "--recompute", recompute]
        pretrain(monkeypatch, *SMALL, *flags)
        assert results_of(run)["knn_bank"] == votes
    others = [*SMALL, "--output_dir", run, "--do_train", "false", "--seed", "1"]
    with pytest.raises(ValueError, match="150 other images than these 150.*--recompute true"):
        pretrain(monkeypatch, *others)
    pretrain(monkeypatch, *others, "--recompute", "true")


def test_learning_rate_needs_an_accuracy(tmp_path, monkeypatch):
    for i in range(6):
        Image.fromarray(np.full((16, 16, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    plateau = ["--lr_scheduler_type", "reduce_lr_on_plateau", "--metric_for_best_model", "knn_top1_train"]
    with pytest.raises(ValueError, match="has no labels: set --lr_scheduler_type cosine"):
        pretrain(monkeypatch, *SMALL, *plateau, "--dataset", tmp_path, "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match="set --knn_train_samples"):
        pretrain(monkeypatch, *SMALL, *plateau, "--output_dir", tmp_path / "run")


@pytest.mark.parametrize(("method", "backbone"), [("isl", "vit-tiny"), ("relvit", "resnet18")])
def test_encoders_of_other_methods(tmp_path, monkeypatch, method, backbone):
    with pytest.raises(ValueError, match=f"does not train --backbone {backbone}; use one of"):
        pretrain(monkeypatch, "--method", method, "--backbone", backbone, "--output_dir", tmp_path)


def test_evaluation_every_few_epochs(tmp_path):
    trainer = make_trainer(
        tmp_path, make_isl(), lambda model: {"knn_top1": 1.0}, max_steps=25, eval_strategy="epoch", eval_epochs=2
    )
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "eval_knn_top1" in e] == [10, 20, 25]


def test_state_of_a_run_is_json(tmp_path):
    """What a stage leaves beside a checkpoint can be read without this library."""
    from safetensors import safe_open

    trainer = make_trainer(tmp_path, make_isl(), max_steps=10, save_strategy="epoch")
    trainer.train()
    with safe_open(tmp_path / "checkpoint-10" / rounds_isl.STAGE_NAME, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        assert file.get_tensor("links").dtype == torch.int64
    assert progress["stage"] == "done" and len(progress["reports"]) == 2


def test_step_reads_no_value():
    """Losses over the bank, with neighbors, and its update, on tensors without values, where reading one is an error."""
    model = make_isl()
    model.make_bank(len(IMAGES))
    model.bank.neighbors.add(torch.arange(20), torch.arange(20, 40))
    model.bank.neighbors._most_slots(8)  # read once after neighbors were mined
    device = torch.device("meta")
    model.to(device).train()
    index = torch.arange(8, device=device)
    outputs = model(torch.empty(8, 3, 16, 16, device=device), index)
    outputs.loss.backward()
    with pytest.raises(RuntimeError, match="meta"):
        outputs.loss.item()
