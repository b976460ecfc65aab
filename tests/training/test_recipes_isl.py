"""ISL's recipes against the authors' settings."""

from pathlib import Path

import pytest

from hf_ssl.arguments import PretrainArguments, build_config, parse_with_recipe
from hf_ssl.backbones.modeling_alexnet import AlexNetConfig
from hf_ssl.backbones.modeling_cifar_resnet import CifarResNetConfig
from hf_ssl.data import DATASETS
from hf_ssl.models import get_method


RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SMALL = ["cifar10", "cifar100", "svhn"]
PHOTOS = ["imagenet-1k", "imagenet-1k_alexnet"]
OURS = ["cifar10_micro", "default", "digits"]


def parse(name, *flags):
    argv = ["--method", "isl", "--recipe", name, "--output_dir", "unused", *flags]
    args, training_args, model_args, views = parse_with_recipe(PretrainArguments, RECIPES, argv)
    config = build_config(args, model_args, type("Data", (), {"num_classes": 10})())
    return args, training_args, config, views


def test_names():
    assert sorted(path.stem for path in (RECIPES / "isl").glob("*.yaml")) == sorted(SMALL + PHOTOS + OURS)


@pytest.mark.parametrize("name", SMALL + PHOTOS + OURS)
def test_model_and_views(name):
    args, _, config, views_config = parse(name)
    method = get_method("isl")
    views = method.views_class(views_config, config)
    assert views.config.view.side == config.backbone_config.image_size == args.image_size
    if name in ("cifar10_micro", "digits"):
        method.model_class(config).make_bank(10)


@pytest.mark.parametrize("name", SMALL + PHOTOS)
def test_what_all_have(name):
    args, training, config, _ = parse(name)
    assert args.dataset == name.partition("_")[0] and args.dataset in DATASETS
    assert (config.projection_dim, config.bank_momentum, config.hard_positive_weight) == (128, 0.5, 0.5)
    assert (config.num_rounds, config.num_negatives, config.links_per_proxy) == (4, 4096, 10)
    assert (config.neighbors_per_round, config.gan_learning_rate, config.gan_betas) == (0.5, 1e-4, [0.9, 0.999])
    assert (config.gan_stop, config.gan_max_epochs) == ("quality", 200)
    # The authors' quirks.
    assert (config.hard_positive, config.positive_from, config.final_backbone_stage) == (
        "most_similar",
        "own_row",
        False,
    )
    assert (training.optim, training.optim_args, training.learning_rate) == ("sgd", "momentum=0.9", 0.03)
    assert training.weight_decay_rule == "all" and training.max_grad_norm == 0 and not training.dataloader_drop_last
    assert training.lr_scheduler_type == "reduce_lr_on_plateau" and training.warmup_steps == 0
    assert training.lr_scheduler_kwargs == {"mode": "max", "factor": 0.8, "patience": 1}
    assert (training.metric_for_best_model, training.greater_is_better) == ("knn_top1_train", True)
    assert args.knn_features == "projected" and args.knn_train_samples > 0 and not args.recompute
    assert args.knn_bank_samples > 1_281_167 and args.knn_temperature == config.temperature
    assert training.eval_strategy == "epoch" and (args.final_knn_k or args.knn_k) == 200


@pytest.mark.parametrize("name", SMALL)
def test_small_images(name):
    args, training, config, views = parse(name)
    assert isinstance(config.backbone_config, CifarResNetConfig) and config.backbone_config.depths == [2, 2, 2, 2]
    assert (config.temperature, config.score_threshold, config.similarity_threshold) == (0.1, 0.5, 0.6)
    assert (training.num_train_epochs, training.per_device_train_batch_size, training.weight_decay) == (800, 128, 5e-4)
    assert (training.eval_epochs, args.knn_k) == (5, 200)
    assert (views.image_mean, views.image_std) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    assert views.view.flip == 0 and not views.view.grayscale_first
    assert isinstance(parse(name, "--backbone", "alexnet")[2].backbone_config, AlexNetConfig)
    assert parse(name, "--backbone", "resnet50")[2].backbone_config.hidden_sizes == [256, 512, 1024, 2048]


@pytest.mark.parametrize("name", PHOTOS)
def test_photos(name):
    args, training, config, views = parse(name)
    is_alexnet = name.endswith("alexnet")
    assert args.image_size == (227 if is_alexnet else 224)
    assert config.backbone_config.model_type == ("alexnet_bn" if is_alexnet else "resnet")
    if is_alexnet:
        assert (config.backbone_config.stem_type, config.backbone_config.fc_width) == ("imagenet", 4096)
        assert config.backbone_config.map_size == 6
    assert (config.temperature, config.score_threshold, config.similarity_threshold) == (0.07, 0.3, 0.3)
    assert (training.num_train_epochs, training.per_device_train_batch_size, training.weight_decay) == (400, 256, 1e-4)
    assert (training.eval_epochs, args.knn_k, args.final_knn_k) == (2, 1, 200)
    assert (views.image_mean, views.image_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert views.view.flip == 0.5 and views.view.grayscale_first
    # Photos of 256 pixels, of which the middle is taken.
    ratio = get_method("isl").crop_ratio(args.image_size)
    assert round(args.image_size / (ratio or 0.875)) == 256


@pytest.mark.parametrize("name", SMALL + PHOTOS)
def test_view(name):
    view = vars(parse(name)[3].view)
    assert (view["crop"], view["scale"], view["ratio"]) == ("random_resized_crop", [0.2, 1.0], [3 / 4, 4 / 3])
    assert view["interpolation"] == "bilinear" and view["jitter"] == 1 and view["grayscale"] == 0.2
    assert [view[name] for name in ("brightness", "contrast", "saturation", "hue")] == [0.4] * 4
    assert not (view["blur"] or view["solarize"] or view["erase"])


def test_official_end_of_the_generators_training_is_an_option():
    assert parse("cifar10", "--gan_stop", "official")[2].gan_stop == "official"
    assert parse("cifar10", "--metric_for_best_model", "knn_top1")[1].metric_for_best_model == "knn_top1"


def test_default_needs_no_labels():
    args, training, _, _ = parse("default")
    assert training.lr_scheduler_type == "cosine" and args.knn_train_samples == 0
