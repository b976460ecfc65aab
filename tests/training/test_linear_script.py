"""`training/linear.py` from its command line to the numbers that it writes."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from transformers import ViTModel

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.data import load_image_data, make_source
from hf_ssl.evaluation import FeatureSpec, LoadedEncoder, ProbeMonitor, cached_features, load_encoder
from hf_ssl.hub import evaluation_processor, export_run, save_published
from hf_ssl.models.linear_probe import LinearProbeViews
from hf_ssl.trainer import SSLTrainer

from .common import make_backbone


SCRIPT = Path(__file__).parents[2] / "training" / "linear.py"
PATCH_MEAN = FeatureSpec("patch_mean")  # RelViT's own
RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]  # of the default recipe
SMALL = ["--max_train_samples", "400", "--max_test_samples", "120", "--per_device_train_batch_size", "60"]
# Six steps in an epoch.
EPOCHS = [*SMALL, "--num_train_epochs", "10", "--eval_epochs", "3"]
BRIEF = [*SMALL, "--max_steps", "2", "--eval_strategy", "no"]


@pytest.fixture(autouse=True)
def default_folder(monkeypatch, tmp_path):
    """No test writes into the cache of whoever runs it."""
    monkeypatch.setattr("hf_ssl.evaluation.feature_cache.DEFAULT_FOLDER", tmp_path / "default")


@pytest.fixture(scope="module")
def functions():
    """What the script defines."""
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """What pretraining leaves behind; in train mode it would drop activations."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("upstream") / "vit"
    model = RelViTForPreTraining(RelViTConfig(backbone_config=make_backbone(hidden_dropout_prob=0.3)))
    export_run(model, evaluation_processor(16, [0.3, 0.4, 0.5], [0.25, 0.26, 0.27]), folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


class Recorded:
    """What the monitor is given, and at each evaluation the classifiers and their optimizer."""

    def __init__(self, monkeypatch):
        self.classifiers, self.optimizers = [], []
        measure, make = ProbeMonitor.__call__, SSLTrainer.__init__

        def init(trainer, *args, **kwargs):
            self.trainer = trainer
            make(trainer, *args, **kwargs)

        def call(monitor, model):
            self.splits, self.config = monitor.splits, model.config
            self.classifiers.append((model.weight.detach().clone(), model.bias.detach().clone()))
            self.optimizers.append(dict(self.trainer.optimizer.param_groups[0]))
            return measure(monitor, model)

        monkeypatch.setattr(ProbeMonitor, "__call__", call)
        monkeypatch.setattr(SSLTrainer, "__init__", init)


def probe(upstream, cache, folder, *flags):
    """Run the script; what its monitor was given, and what it wrote."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorded = Recorded(monkeypatch)
        argv = ["linear.py", "--model", upstream, "--cache_dir", cache, "--output_dir", folder, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return recorded, json.loads((folder / "all_results.json").read_text())


@pytest.fixture(scope="module")
def probed(upstream, cache, tmp_path_factory):
    """The default recipe, but short: evaluated after epochs 3, 6, 9 and 10."""
    return probe(upstream, cache, tmp_path_factory.mktemp("probed"), *EPOCHS)


def images():
    data = load_image_data("digits", max_train_samples=400, max_test_samples=120, seed=0)
    return make_source(data.train), make_source(data.test)


def features_of(upstream, cache, spec=PATCH_MEAN):
    """Features and labels of the two splits, which are read from the cache alone."""
    encoder = load_encoder(str(upstream))
    encoder.outputs = None
    return [(cached_features(encoder, source, [spec], folder=cache)[0], source.labels) for source in images()]


def accuracies(classifiers, features, labels):
    """Top-1 and top-5, by evaluation and learning rate."""
    table = []
    for weight, bias in classifiers:
        scores = torch.einsum("nd,rcd->rnc", features.double(), weight.double()) + bias.double()[:, None]
        order = scores.argsort(dim=2, descending=True) == labels[None, :, None]
        table.append(torch.stack([100 * order[..., :k].any(2).double().mean(1) for k in (1, 5)], dim=1))
    return torch.stack(table)


# ---- the default recipe ----


def test_what_is_written(probed, upstream):
    recorded, results = probed
    names = {"top1", "top5", "epoch", "learning_rate", "top1_last", "learning_rate_last", "protocol"}
    assert results.keys() == {f"linear_{name}" for name in names}
    train, test = images()
    assert results["linear_protocol"] == {
        "model": "vit",
        "encoder": "auto",
        "encoder_fingerprint": load_encoder(str(upstream)).fingerprint()[:16],
        "dataset": "digits",
        "split": "test",
        "num_classes": 10,
        "num_train_images": 400,
        "num_test_images": 120,
        "train_fingerprint": train.fingerprint()[:16],
        "test_fingerprint": test.fingerprint()[:16],
        "image_processor": {
            "do_resize": True,
            "do_center_crop": False,
            "do_rescale": True,
            "do_normalize": True,
            "size": {"height": 16, "width": 16},
            "resample": 2,
            "image_mean": [0.3, 0.4, 0.5],
            "image_std": [0.25, 0.26, 0.27],
        },
        "feature": "mean of the patch tokens",
        "precision": "fp32",
        "seed": 0,
        "num_trained_on": 360,
        "selected_by": "40 held-out training images",
        "epochs": 10,
        "images_per_step": 60,
        "learning_rates_for_256_images": RATES,
        "augmented": False,
    }
    assert len(recorded.classifiers) == 4 and recorded.config.learning_rates == RATES
    for optimizer, epoch in zip(recorded.optimizers, (3, 6, 9), strict=False):  # that begins
        assert optimizer["lr"] == pytest.approx(60 / 256 * (1 + np.cos(np.pi * epoch / 10)) / 2)
        assert optimizer["momentum"] == 0.9 and optimizer["weight_decay"] == 0


def test_numbers_are_those_of_the_cached_features(probed, functions, upstream, cache):
    """Held-out images choose among all epochs and learning rates; other code finds the same numbers."""
    recorded, results = probed
    (features, labels), (test_features, test_labels) = features_of(upstream, cache)
    _, held_out = functions.split(functions.LinearArguments(model="vit"), 400, 0)
    assert torch.equal(recorded.splits["held_out"][0], features[held_out])
    choosing = accuracies(recorded.classifiers, features[held_out], labels[held_out])[:, :, 0]
    measured = accuracies(recorded.classifiers, test_features, test_labels)
    best = int(choosing.flatten().argmax())
    evaluation, rate = divmod(best, len(RATES))
    assert results["linear_epoch"] == [3, 6, 9, 10][evaluation] and results["linear_learning_rate"] == RATES[rate]
    found = [results["linear_top1"], results["linear_top5"]]
    assert found == pytest.approx(measured[evaluation, rate].tolist(), abs=1e-9)
    last = int(choosing[-1].argmax())
    assert results["linear_learning_rate_last"] == RATES[last]
    assert results["linear_top1_last"] == pytest.approx(measured[-1, last, 0].item(), abs=1e-9)


@pytest.mark.slow
def test_it_learns(cache, tmp_path):
    """As much as scikit-learn's classifier of the same features, within a few points."""
    torch.manual_seed(0)
    model = ViTModel(make_backbone(patch_size=16), add_pooling_layer=False)
    model.embeddings.patch_embeddings.projection.weight.data.normal_(std=0.1)  # of pixels, a random projection
    save_published(model, evaluation_processor(16, [0.3] * 3, [0.25] * 3), tmp_path / "vit")
    _, results = probe(tmp_path / "vit", cache, tmp_path / "run", *EPOCHS, "--pooling", "patch_mean")
    (features, labels), (test_features, test_labels) = features_of(tmp_path / "vit", cache)
    reference = LogisticRegression(max_iter=1000).fit(features, labels)
    expected = 100 * reference.score(test_features, test_labels)
    assert expected > 70 and results["linear_top1"] == pytest.approx(expected, abs=7)
    assert results["linear_top5"] > 95


def test_printed_and_kept(upstream, cache, tmp_path, capsys):
    """With the numbers that other evaluations of the folder have left; without evaluations, the end is measured."""
    (tmp_path / "all_results.json").write_text(json.dumps({"knn_top1": 50.0, "linear_top1": 1.0}))
    recorded, results = probe(upstream, cache, tmp_path, *BRIEF, "--held_out_samples", "30")
    assert results.pop("knn_top1") == 50.0 and results["linear_top1"] != 1.0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("\n{\n") :]) == results
    assert len(recorded.classifiers) == 1 and results["linear_epoch"] == pytest.approx(2 / 6, abs=0.01)
    assert results["linear_protocol"]["selected_by"] == "30 held-out training images"
    assert results["linear_protocol"]["num_trained_on"] == 370
    assert not list(tmp_path.rglob("*.safetensors"))


def test_test_images_choose(upstream, cache, tmp_path):
    """As in the code of most authors."""
    flags = [*SMALL, "--num_train_epochs", "3", "--eval_epochs", "1", "--select_on", "test"]
    recorded, results = probe(upstream, cache, tmp_path, *flags)
    assert recorded.splits.keys() == {"test"}
    measured = accuracies(recorded.classifiers, *features_of(upstream, cache)[1])
    assert results["linear_top1"] == pytest.approx(measured[..., 0].max().item(), abs=1e-9)
    assert results["linear_top1_last"] == pytest.approx(measured[-1, :, 0].max().item(), abs=1e-9)
    protocol = results["linear_protocol"]
    assert protocol["selected_by"] == "test images" and protocol["num_trained_on"] == 400


def test_resume(upstream, cache, tmp_path):
    """Epochs before the interruption may be chosen as well."""
    flags = [*SMALL, "--num_train_epochs", "4", "--eval_epochs", "1", "--save_strategy", "epoch"]
    whole = probe(upstream, cache, tmp_path, *flags)[1]
    for step in (18, 24):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    recorded, resumed = probe(upstream, cache, tmp_path, *flags, "--resume_from_checkpoint", "true")
    assert len(recorded.classifiers) == 2 and resumed == whole


def test_other_features_are_not_resumed(upstream, cache, tmp_path, capsys):
    flags = [*SMALL, "--num_train_epochs", "2", "--save_strategy", "epoch", "--eval_strategy", "no"]
    probe(upstream, cache, tmp_path, *flags)
    with pytest.raises(SystemExit):
        probe(upstream, cache, tmp_path, *flags, "--resume_from_checkpoint", "true", "--pooling", "class_token")
    assert "other" in capsys.readouterr().err


# ---- features ----


@pytest.mark.parametrize(
    "flags, spec, size, words",
    [
        (["--num_blocks", "2"], FeatureSpec("class_token", 2), 72, "class tokens of the last 2 blocks"),
        (
            ["--average_pool", "true"],
            FeatureSpec("class_token", 1, True),
            72,
            "class token and mean of the patch tokens",
        ),
        ([], FeatureSpec("class_token"), 36, "class token"),
    ],
    ids=["blocks", "average", "class token"],
)
def test_features(upstream, cache, tmp_path, flags, spec, size, words):
    recorded, results = probe(upstream, cache, tmp_path, *BRIEF, *flags, "--pooling", "class_token")
    expected = features_of(upstream, cache, spec)[1][0]
    assert torch.equal(recorded.splits["test"][0], expected) and expected.shape == (120, size)
    assert recorded.config.feature_size == size and results["linear_protocol"]["feature"] == words


class Views:
    """What the classifiers are trained on, when it is new in each epoch; and how the encoder is then."""

    def __init__(self, monkeypatch):
        self.features, self.training, self.encoders, self.config = {}, [], [], None
        make, encode = LinearProbeViews.__call__, LoadedEncoder.features

        def call(views, batch, draws=None):
            made = make(views, batch, draws)
            self.config = views.config
            for epoch, index, row in zip(
                batch["epoch"].tolist(), batch["index"].tolist(), made["features"], strict=True
            ):
                self.features.setdefault(epoch, {})[index] = row
            return made

        def features(encoder, *args, **kwargs):
            self.encoders.append(encoder)
            self.training.append(any(module.training for module in encoder.model.modules()))
            return encode(encoder, *args, **kwargs)

        monkeypatch.setattr(LinearProbeViews, "__call__", call)
        monkeypatch.setattr(LoadedEncoder, "features", features)


AUGMENTED = [*SMALL, "--num_train_epochs", "2", "--eval_epochs", "1", "--augment", "true"]
AUGMENTED += ["--learning_rates", "0.1", "1", "--dataloader_drop_last", "false"]


def test_augmented(upstream, cache, tmp_path, monkeypatch):
    """Each epoch has features of new views; the encoder stays what it is."""
    seen = Views(monkeypatch)
    _, results = probe(upstream, cache, tmp_path, *AUGMENTED, "--view_scale", "0.3", "1")
    assert results["linear_protocol"]["augmented"] and results["linear_protocol"]["num_trained_on"] == 360
    assert results["linear_protocol"]["learning_rates_for_256_images"] == [0.1, 1.0]
    first, second = seen.features[0], seen.features[1]
    assert first.keys() == second.keys() == set(range(360))
    same = [torch.allclose(first[i], second[i], atol=1e-4) for i in range(360)]
    assert np.mean(same) < 0.02
    assert seen.config.view.scale == [0.3, 1.0] and seen.config.view.size == 16
    assert (seen.config.image_mean, seen.config.image_std) == ([0.3, 0.4, 0.5], [0.25, 0.26, 0.27])
    assert not any(seen.training) and len({id(encoder) for encoder in seen.encoders}) == 1
    before = load_encoder(str(upstream)).model.state_dict()
    after = seen.encoders[0].model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_views_that_change_nothing(upstream, cache, tmp_path, functions, monkeypatch):
    """Their features are those of the cache, image by image."""
    seen = Views(monkeypatch)
    flags = ["--view_crop", "resize", "--view_flip", "0", "--max_steps", "3"]
    probe(upstream, cache, tmp_path, *AUGMENTED, *flags)
    rest, _ = functions.split(functions.LinearArguments(model="vit"), 400, 0)
    expected = features_of(upstream, cache)[0][0][rest]
    assert len(seen.features[0]) == 180
    for index, row in seen.features[0].items():
        torch.testing.assert_close(row.cpu(), expected[index], rtol=0.02, atol=0.02)


# ---- the parts ----


def test_split(functions):
    """Held-out images are not trained on, whatever the seed."""

    def split(seed=0, count=50, **args):
        return functions.split(functions.LinearArguments(model="vit", **args), count, seed)

    for seed in range(3):
        rest, held_out = split(seed, held_out_samples=20)
        assert len(held_out) == 20 and sorted([*rest, *held_out]) == list(range(50)) and rest == sorted(rest)
    assert split(0) == split(0) != split(1) and split(held_out_samples=20)[1] != list(range(20))
    assert len(split()[1]) == 5 and len(split(count=200_000)[1]) == 10_000
    assert split(select_on="test") == (list(range(50)), [])


# ---- mistakes ----


@pytest.fixture
def unlabeled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabeled") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


SGD = "by SGD, without weight decay and clipping: set --optim sgd"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--push_to_hub", "true"], "leave --push_to_hub out"),
        (["--optim", "adamw_torch"], SGD),
        (["--weight_decay", "0.1"], SGD),
        (["--max_grad_norm", "1"], SGD),
        (["--learning_rate", "0.1"], "--learning_rate 0.1 is not used: set --learning_rates"),
        (["--learning_rates", "0.1", "0.1"], "must be positive numbers, each once"),
        (["--held_out_samples", "400"], "--held_out_samples 400 must lie between 1 and 399"),
        (["--held_out_samples", "0"], "--held_out_samples 0 must lie between 1 and 399"),
        (["--held_out_samples", "5", "--select_on", "test"], "--held_out_samples 5 has no use with --select_on test"),
        (["--view_flip", "0"], "--view_flip: there are views with --augment true only"),
        (["--dataset", "{unlabeled}"], "photos has no labels"),
        (["--model", "{upstream}/nothing"], "nothing cannot be evaluated"),
        (["--num_blocks", "3", "--pooling", "class_token"], "vit has 2 blocks, not 3"),
        (["--num_blocks", "2"], "pooling='patch_mean' is another feature"),
        (["--method", "simclr"], "methods are"),
        (["--method", "relvit"], "There are no recipes for relvit/linear yet"),
        (["--recipe", "no-such"], "no recipe 'no-such' for linear.*default"),
    ],
)
def test_mistakes_are_explained(upstream, unlabeled, tmp_path, flags, message):
    """Before anything is written."""
    flags = [flag.format(upstream=upstream, unlabeled=unlabeled) for flag in flags]
    with pytest.raises(ValueError, match=message):
        probe(upstream, tmp_path / "cache", tmp_path / "run", *SMALL, *flags)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_mistake_that_is_found_late(upstream, cache, tmp_path):
    """When features are in the cache already."""
    with pytest.raises(ValueError, match="view_size=32 is not the image_size=16"):
        probe(upstream, cache, tmp_path / "run", *SMALL, "--augment", "true", "--view_size", "32")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_small_data_make_small_steps(upstream, cache, tmp_path):
    """Of 400 images 360 are trained on."""
    flags = ["--num_train_epochs", "2", "--per_device_train_batch_size", "1000"]
    results = probe(upstream, cache, tmp_path / "run", *SMALL, *flags)[1]
    assert results["linear_protocol"]["images_per_step"] == 360
