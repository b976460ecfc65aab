"""APS's recipes against the authors' tables."""

from pathlib import Path

import pytest

from hf_ssl.arguments import PretrainArguments, build_config, parse_with_recipe
from hf_ssl.data import DATASETS
from hf_ssl.models import get_method


RECIPES = Path(__file__).parents[2] / "training" / "recipes"

# By encoder: base learning rate for 256 images, and heads.
ENCODERS = {"tiny": (1e-3, 3), "small": (5e-4, 6), "base": (5e-4, 12)}
CIFAR = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def parse(name):
    argv = ["--method", "aps", "--recipe", name, "--output_dir", "unused"]
    args, training_args, model_args, views = parse_with_recipe(PretrainArguments, RECIPES, argv)
    config = build_config(args, model_args, type("Data", (), {"num_classes": 10})())
    return args, training_args, config, views


def check_method(config, views):
    """What is the same on all data."""
    encoder = config.backbone_config
    assert encoder.layer_norm_eps == 1e-5 and not encoder.qkv_bias and encoder.hidden_dropout_prob == 0
    assert (config.sampling_ratio, config.num_samplings, config.sampling_power) == (0.25, 4, 3.0)
    assert (config.temperature, config.projection_dim, config.projection_hidden_dim) == (0.1, 128, 512)
    assert config.feature == "class_token"
    common = {"scale": [0.15, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": "bilinear", "flip": 0.5, "jitter": 0.8}
    common |= {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2, "blur": 0.0}
    common |= {"solarize": 0.0, "erase": 0.0, "crop": "random_resized_crop", "grayscale_first": False}
    assert {name: getattr(views.view, name) for name in common} == common
    get_method("aps").views_class(views, config, 0)


def check_optimizer(training_args):
    assert (training_args.weight_decay, training_args.weight_decay_rule) == (0.05, "all")
    assert training_args.max_grad_norm == 0 and training_args.final_weight_decay is None
    betas = training_args.adam_beta1, training_args.adam_beta2, training_args.adam_epsilon
    assert betas == (0.9, 0.999, 1e-8) and training_args.optim == "adamw_torch_fused"
    assert (training_args.schedule, training_args.min_learning_rate) == ("warmup_under_cosine", 0.0)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("size", ENCODERS)
@pytest.mark.parametrize("epochs", [1600, 3200])
def test_cifar(dataset, size, epochs):
    name = f"{dataset}{'' if size == 'small' else f'_{size}'}{'' if epochs == 1600 else '_3200'}"
    args, training_args, config, views = parse(name)
    rate, heads = ENCODERS[size]
    assert args.dataset == dataset and dataset in DATASETS and args.backbone == f"vit-{size}"
    encoder = config.backbone_config
    assert (encoder.image_size, encoder.patch_size, encoder.num_attention_heads) == (32, 2, heads)
    assert not config.flip_aware
    check_method(config, views)
    assert (views.image_mean, views.image_std) == CIFAR
    check_optimizer(training_args)
    assert training_args.per_device_train_batch_size == 512 and training_args.dataloader_drop_last
    assert training_args.learning_rate == pytest.approx(rate * 512 / 256, rel=1e-12)
    assert training_args.num_train_epochs == epochs and training_args.schedule_unit == "epoch"
    steps_per_epoch = 50_000 // 512 * config.num_samplings
    assert steps_per_epoch == 388
    # As the trainer does.
    assert int(steps_per_epoch * epochs * training_args.warmup_steps / steps_per_epoch) == 20


@pytest.mark.parametrize("size", ["small", "base"])
def test_imagenet(size):
    """The authors' encoder and epochs; all else is inferred, and the recipe says so."""
    name = "imagenet-1k" if size == "small" else "imagenet-1k_base"
    assert "INFERRED" in (RECIPES / "aps" / f"{name}.yaml").read_text().splitlines()[0]
    args, training_args, config, views = parse(name)
    assert (args.dataset, args.backbone, training_args.num_train_epochs) == ("imagenet-1k", f"vit-{size}", 300)
    assert config.grid == (14, 14) and config.num_sampled_patches == 49
    check_method(config, views)
    assert (views.image_mean, views.image_std) == IMAGENET
    check_optimizer(training_args)
    batch = training_args.per_device_train_batch_size
    assert training_args.learning_rate == pytest.approx(5e-4 * batch / 256, rel=1e-12)
    steps_per_epoch = 1_281_167 // batch * config.num_samplings
    assert int(steps_per_epoch * 300 * training_args.warmup_steps / steps_per_epoch) == 20


def test_default_accounts_for_mirrored_views():
    _, training_args, config, views = parse("default")
    assert config.flip_aware and training_args.schedule_unit == "step"
    check_method(config, views)
    check_optimizer(training_args)


def test_reported_numbers():
    """What the card quotes, against the authors' table."""
    reported = get_method("aps").reported
    tables = """
        CIFAR-10 ViT-T/2 1600: 97.2
        CIFAR-10 ViT-S/2 1600: 98.1
        CIFAR-10 ViT-B/2 1600: 98.2
        CIFAR-10 ViT-T/2 3200: 97.5
        CIFAR-10 ViT-S/2 3200: 98.2
        CIFAR-10 ViT-B/2 3200: 98.3
        CIFAR-100 ViT-T/2 1600: 83.4
        CIFAR-100 ViT-S/2 1600: 84.9
        CIFAR-100 ViT-B/2 1600: 85.9
        CIFAR-100 ViT-T/2 3200: 83.4
        CIFAR-100 ViT-S/2 3200: 85.3
        CIFAR-100 ViT-B/2 3200: 86.0
        ImageNet-1K ViT-S/16 300: 82.1
        ImageNet-1K ViT-B/16 300: 84.2
    """
    rows = [f"{row[0].replace(',', '').replace(' epochs', '')}: {' '.join(row[1:])}" for row in reported.rows]
    assert rows == [line.strip() for line in tables.strip().splitlines()]
    assert reported.weights_license == "cc-by-nc-4.0"
