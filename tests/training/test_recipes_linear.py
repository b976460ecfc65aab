"""Recipes of linear probing: the one for any encoder, and those of the methods against the authors' values."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_ssl.data import DATASETS
from hf_ssl.schedules import SCHEDULES


TRAINING = Path(__file__).parents[2] / "training"
RECIPES = TRAINING / "recipes"
# By encoder: PatchMix's learning rate for 256 images, whatever the dataset.
PATCHMIX = {"tiny": 0.05, "small": 0.02, "base": 0.01}
DATA = {
    "cifar10": (256, 384),
    "cifar100": (256, 384),
    "imagenet-1k": (1024, 256),
}  # images in a step, in an evaluation


@pytest.fixture(scope="module")
def parse():
    functions = SimpleNamespace(**runpy.run_path(str(TRAINING / "linear.py")))

    def parsed(*flags):
        args, training_args, model_args, views = functions.parse(["--model", "vit", "--output_dir", "unused", *flags])
        functions.check(training_args)
        return args, training_args, model_args, views

    return parsed


def check_shared(training_args, nesterov):
    """SGD without weight decay, and half a cosine wave by the epoch, from the first one to 0."""
    options = "momentum=0.9,nesterov=true" if nesterov else "momentum=0.9"
    assert (training_args.optim, training_args.optim_args) == ("sgd", options)
    assert training_args.weight_decay == 0 and training_args.max_grad_norm == 0
    assert (training_args.schedule, training_args.schedule_unit) == ("warmup_in_cosine", "epoch")
    assert training_args.warmup_steps == 0 and training_args.min_learning_rate == 0
    assert training_args.num_train_epochs == 100 and training_args.gradient_accumulation_steps == 1
    assert training_args.eval_strategy == "epoch" and not (training_args.bf16 or training_args.fp16)
    assert SCHEDULES[training_args.schedule](1.0, 0.0, 100, 0)(50) == pytest.approx(0.5)


def check_view(views, interpolation):
    view = {"crop": "random_resized_crop", "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "flip": 0.5, "size": None}
    view |= {
        "interpolation": interpolation,
        "jitter": 0.0,
        "grayscale": 0.0,
        "blur": 0.0,
        "solarize": 0.0,
        "erase": 0.0,
    }
    found = vars(views.view)
    assert {name: found[name] for name in view} == view
    assert views.image_mean is None and views.image_std is None, "of the encoder"


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("size", PATCHMIX)
def test_patchmix(parse, dataset, size):
    name = dataset if size == "small" else f"{dataset}_{size}"
    args, training_args, model_args, views = parse("--method", "patchmix", "--recipe", name)
    assert args.dataset == dataset and dataset in DATASETS
    check_shared(training_args, nesterov=True)
    check_view(views, "bicubic")
    assert training_args.schedule_lag == 1
    assert model_args.learning_rates == [PATCHMIX[size]] and model_args.initialization == "uniform"
    batches = training_args.per_device_train_batch_size, training_args.per_device_eval_batch_size
    assert batches == DATA[dataset] and training_args.eval_epochs == 1
    assert args.augment and args.pooling == "auto" and args.num_blocks == 1 and not args.average_pool
    assert args.select_on == "held-out", "ours: theirs is --select_on test"


def test_recipe_of_the_dataset(parse):
    args, training_args, model_args, _ = parse("--method", "patchmix", "--dataset", "imagenet-1k")
    assert args.recipe == "imagenet-1k" and model_args.learning_rates == [0.02]
    assert training_args.per_device_train_batch_size == 1024


@pytest.mark.parametrize("name, num_blocks, average_pool", [("default", 4, False), ("base", 1, True)])
def test_pw_self(parse, name, num_blocks, average_pool):
    """The feature is DINO's, by the size of the encoder."""
    args, training_args, model_args, views = parse("--method", "pw_self", "--recipe", name)
    check_shared(training_args, nesterov=False)
    check_view(views, "bilinear")
    assert model_args.learning_rates == [0.001] and model_args.initialization == "normal"
    assert training_args.per_device_train_batch_size == 1500 and training_args.eval_epochs == 1
    assert (args.pooling, args.num_blocks, args.average_pool) == ("class_token", num_blocks, average_pool)
    assert args.augment and args.select_on == "held-out"


def test_default(parse):
    """On features that are computed once."""
    args, training_args, model_args, _ = parse()
    check_shared(training_args, nesterov=False)
    assert not args.augment and args.method is None and args.recipe == "default"
    assert model_args.learning_rates == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert model_args.initialization == "uniform" and training_args.per_device_train_batch_size == 256
    assert (args.pooling, args.num_blocks, args.select_on) == ("auto", 1, "held-out")
    assert training_args.save_strategy == "no", "a run takes minutes"


def test_flags_win(parse):
    args, training_args, model_args, views = parse(
        *("--method", "pw_self", "--learning_rates", "0.1", "1", "--view_flip", "0", "--num_blocks", "2"),
        *("--num_train_epochs", "7", "--initialization", "uniform"),
    )
    assert model_args.learning_rates == [0.1, 1.0] and model_args.initialization == "uniform"
    assert views.view.flip == 0 and views.view.scale == [0.08, 1.0]
    assert args.num_blocks == 2 and training_args.num_train_epochs == 7


@pytest.mark.parametrize(
    "folder, names",
    [
        ("linear", {"default"}),
        ("pw_self/linear", {"default", "base"}),
        ("patchmix/linear", {f"{d}{s}" for d in DATA for s in ("", "_tiny", "_base")}),
    ],
)
def test_there_are_no_others(folder, names):
    """Of a recipe that is added, the numbers are checked here."""
    assert {path.stem for path in (RECIPES / folder).glob("*.yaml")} == names
