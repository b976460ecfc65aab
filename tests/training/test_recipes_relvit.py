"""RelViT's recipes, for pretraining and for fine-tuning, against the authors' tables."""

import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from hf_ssl.arguments import PretrainArguments, build_config, parse_with_recipe
from hf_ssl.data import DATASETS
from hf_ssl.models import get_method
from hf_ssl.models.classification import ClassificationConfig, ClassificationViews, ClassifierForTraining
from hf_ssl.schedules import SCHEDULES


TRAINING = Path(__file__).parents[2] / "training"
RECIPES = TRAINING / "recipes"

# Image size, patch size and cells on a side of the grid; mean and standard deviation; what the evaluation does with images:
# all of each is resized, or the shorter side is resized to 256 pixels and the central 224 are kept.
TABLE = """
    cifar10            32   4  8  .4914 .4822 .4465  .2470 .2435 .2616  all
    cifar10_14         14   2  7  .4913 .4820 .4463  .2275 .2244 .2442  all
    cifar10_28         28   4  7  .4916 .4824 .4467  .2394 .2360 .2547  all
    cifar10_36         36   4  9  .4917 .4824 .4468  .2411 .2376 .2563  all
    cifar10_56         56   8  7  .4917 .4824 .4468  .2411 .2377 .2563  all
    cifar10_112       112  16  7  .4917 .4824 .4468  .2411 .2377 .2563  all
    cifar10_224       224  32  7  .4914 .4822 .4465  .2413 .2378 .2564  all
    cifar10_224_swin  224  32  7  .4914 .4822 .4465  .2413 .2378 .2564  all
    cifar10_224_t2t   224  32  7  .4914 .4822 .4465  .2413 .2378 .2564  all
    cifar100           32   4  8  .5071 .4866 .4409  .2673 .2564 .2761  all
    cifar100_224      224  32  7  .5070 .4865 .4409  .2622 .2513 .2714  all
    tiny-imagenet      64   8  8  .4802 .4481 .3975  .2770 .2691 .2821  all
    tiny-imagenet_224 224  32  7  .4805 .4484 .3978  .2667 .2584 .2722  all
    flowers102        224  32  7  .5115 .4160 .3410  .2951 .2488 .2882  center
    flowers102_112    112  16  7  .5115 .4160 .3410  .2951 .2488 .2882  all
    flowers102_56      56   8  7  .5136 .4163 .3426  .2887 .2414 .2831  all
    svhn               32   4  8  .4378 .4439 .4729  .1981 .2011 .1970  all
    svhn_224          224  32  7  .4377 .4438 .4728  .1960 .1989 .1955  all
    imagenet100       224  32  7  .4595 .4520 .3900  .2547 .2385 .2548  center
    imagenet100_112   112  16  7  .4583 .4505 .3889  .2512 .2347 .2510  all
    imagenet100_56     56   8  7  .4581 .4503 .3886  .2511 .2345 .2509  all
    imagenet100_28     28   4  7  .4582 .4504 .3887  .2512 .2345 .2508  all
    imagenet-1k       224  32  7  .485  .456  .406   .229  .224  .225   center
"""
ROWS = {row.split()[0]: row.split()[1:] for row in TABLE.strip().splitlines()}
# Shifted by up to four pixels; all others are cropped and resized.
PADDED = ("cifar10", "cifar100", "tiny-imagenet", "svhn")
OTHER_ENCODERS = {"cifar10_224_swin": "swin", "cifar10_224_t2t": "t2t_vit"}
OURS = {"default", "digits"}
LABELS = type("Data", (), {"num_classes": 10})()


def expected(name):
    size, patch, cells, *statistics, evaluation = ROWS[name]
    numbers = [float(number) for number in statistics]
    return int(size), int(patch), int(cells), numbers[:3], numbers[3:], evaluation


def parse(name, *flags):
    argv = ["--method", "relvit", "--recipe", name, "--output_dir", "unused", *flags]
    args, training_args, model_args, views = parse_with_recipe(PretrainArguments, RECIPES, argv)
    return args, training_args, build_config(args, model_args, LABELS), views


@pytest.fixture(scope="module")
def script():
    """What `training/finetune.py` defines."""
    return SimpleNamespace(**runpy.run_path(str(TRAINING / "finetune.py")))


def parse_finetune(script, monkeypatch, name, *flags):
    argv = ["--method", "relvit", "--recipe", name, "--output_dir", "unused", "--model", "none", *flags]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *argv])
    args, training_args, model_args, views = script.parse()
    config = ClassificationConfig(backbone_config=script.encoder_config(args), num_labels=10, **vars(model_args))
    return args, training_args, config, script.with_statistics(views, "none")


def images_of(name, size):
    """Two images of the data set."""
    side = size if name in PADDED else 48
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    index = torch.arange(2)
    return {"images": images, "index": index, "epoch": torch.zeros_like(index), "labels": index}


def check_optimizer(training_args, batch_size):
    """Section "Optimisation"; the README's commands, where the script's defaults differ."""
    betas = training_args.adam_beta1, training_args.adam_beta2, training_args.adam_epsilon
    assert betas == (0.9, 0.999, 1e-8) and training_args.optim == "adamw_torch_fused"
    assert (training_args.weight_decay, training_args.weight_decay_rule) == (0.1, "all")
    assert (training_args.learning_rate, training_args.min_learning_rate) == (5e-4, 1.25e-6)
    assert (training_args.schedule, training_args.schedule_unit) == ("quarter_cosine", "step")
    assert training_args.warmup_steps == 0.1 and training_args.final_weight_decay is None
    assert (training_args.max_grad_norm, training_args.gradient_clipping) == (1.0, "global")
    assert training_args.num_train_epochs == 100 and training_args.max_steps == -1
    assert training_args.per_device_train_batch_size == batch_size and training_args.gradient_accumulation_steps == 1
    assert training_args.layer_decay == 1 and not training_args.bf16 and not training_args.fp16


def check_data(name, args, image_mean, image_std):
    size, _, _, mean, std, evaluation = expected(name)
    assert args.image_size == size and args.dataset == name.partition("_")[0] and args.dataset in DATASETS
    assert (image_mean, image_std) == (mean, std)
    assert args.eval_crop_ratio == (1.0 if evaluation == "all" else 224 / 256)


def test_recipes_are_those_of_the_table():
    """One for pretraining and one for fine-tuning; mega-patches are for pretraining only."""
    upstream = {path.stem for path in (RECIPES / "relvit").glob("*.yaml")}
    finetune = {path.stem for path in (RECIPES / "relvit" / "finetune").glob("*.yaml")}
    assert upstream == {*ROWS, *OURS, "imagenet100_mega"} and finetune == {*ROWS, *OURS}


@pytest.mark.parametrize("name", ROWS)
def test_upstream(name):
    args, training_args, config, views = parse(name)
    size, patch, cells, *_ = expected(name)
    kind = OTHER_ENCODERS.get(name, "vit")
    assert args.mode == "upstream" and config.tasks == ["relations", "positions"]
    encoder = config.backbone_config
    assert encoder.model_type == kind and encoder.image_size == size
    assert (config.cell_size, config.grid_size) == (patch, cells)
    if kind == "vit":
        assert args.backbone == "vit-small" and encoder.patch_size == patch and encoder.layer_norm_eps == 1e-6
        assert encoder.hidden_dropout_prob == encoder.attention_probs_dropout_prob == 0
    assert config.use_position_embeddings == (kind != "vit")
    assert config.drop_path_rate == (0.0 if kind == "t2t_vit" else 0.1)
    assert config.mega_patches is None and config.attention_pattern == "full"
    assert config.projection_dropout == config.relation_label_smoothing == config.relation_loss_dropout == 0
    assert not config.add_class_token_to_patches
    check_data(name, args, views.image_mean, views.image_std)
    assert views.image_augmentation == ("padded_crop" if name in PADDED else "random_resized_crop")
    assert views.patch_augmentation == "colJitter:0.8-grayScale:0.2" and not views.shuffle_patches
    assert views.patch_augmentation_space == "normalized"
    check_optimizer(training_args, 256 if kind == "vit" else 64)
    assert training_args.load_best_model_at_end and training_args.metric_for_best_model in (None, "loss")
    assert training_args.eval_strategy == training_args.save_strategy == "epoch"
    assert config.selection_metric == "validation_loss"


@pytest.mark.parametrize("name", ROWS)
def test_upstream_makes_a_step(name):
    """Views of two images suit the model, of which only shapes are computed."""
    _, _, config, views_config = parse(name)
    method = get_method("relvit")
    inputs = method.views_class(views_config, config, 0)(images_of(name, config.backbone_config.image_size))
    size, _, cells, *_ = expected(name)
    assert inputs["pixel_values"].shape == (2, 3, size, size) and inputs["pixel_values"].isfinite().all()
    with torch.device("meta"):
        model = method.model_class(config)
    output = model(inputs["pixel_values"].to("meta"))
    assert output.logits["positions"].shape == (2, cells**2, cells**2)
    assert output.logits["relations"].shape == (2, 9, cells**2, cells**2)


def test_mega_patches():
    args, training_args, config, views = parse("imagenet100_mega")
    plain = parse("imagenet100")
    assert config.mega_patches == config.grid_size == 6 and config.cell_size == 32
    assert config.to_dict() == {**plain[2].to_dict(), "mega_patches": 6} and views == plain[3]
    assert not views.mega_independent_cuts and not views.mega_antialias
    check_data("imagenet100", args, views.image_mean, views.image_std)
    check_optimizer(training_args, 256)
    inputs = get_method("relvit").views_class(views, config, 0)(images_of("imagenet100", 224))
    assert inputs["pixel_values"].shape == (2, 3, 192, 192)


@pytest.mark.parametrize("name", ["cifar10", "cifar10_224_swin", "cifar10_224_t2t"])
def test_joint_mode(name):
    """A class and both puzzles, with positions, without augmentation of patches; the accuracy chooses."""
    _, training_args, config, views = parse(name, "--mode", "joint")
    assert sorted(config.tasks) == ["classification", "positions", "relations"] and config.num_labels == 10
    assert config.use_position_embeddings and views.patch_augmentation == "none"
    assert config.selection_metric == "validation_accuracy_classification"
    check_optimizer(training_args, 64 if name in OTHER_ENCODERS else 256)


@pytest.mark.parametrize("name", ROWS)
def test_fine_tuning(name, script, monkeypatch):
    args, training_args, config, views = parse_finetune(script, monkeypatch, name)
    kind, size = OTHER_ENCODERS.get(name, "vit"), expected(name)[0]
    check_data(name, args, views.image_mean, views.image_std)
    check_optimizer(training_args, 64 if name in OTHER_ENCODERS else 256)
    assert config.drop_path_rate == (0.0 if kind == "t2t_vit" else 0.1)
    assert not config.freeze_encoder and config.label_smoothing == 0 and args.dropout == args.attention_dropout == 0
    view = views.view
    assert view.crop == ("padded_crop" if name in PADDED else "random_resized_crop")
    if name in PADDED:
        assert view.padding == 4
    else:
        assert (view.scale, view.ratio, view.interpolation) == ([0.08, 1.0], [3 / 4, 4 / 3], "bilinear")
    assert view.flip == 0.5 and view.jitter == view.grayscale == view.blur == view.solarize == view.erase == 0
    assert training_args.load_best_model_at_end and args.validation_samples == 0
    assert training_args.metric_for_best_model in (None, "loss")  # the script's own, then: finetune_top1
    assert training_args.eval_strategy == training_args.save_strategy == "epoch"

    inputs = ClassificationViews(views, config, 0)(images_of(name, size))
    assert inputs["pixel_values"].shape == (2, 3, size, size) and inputs["labels"].tolist() == [0, 1]
    with torch.device("meta"):
        model = ClassifierForTraining(config)
    assert model(inputs["pixel_values"].to("meta")).logits["classification"].shape == (2, 10)


@pytest.mark.parametrize("name", ROWS)
def test_fine_tuning_agrees_with_pretraining(name, script, monkeypatch):
    """The same encoder, data, statistics and evaluation: one follows on the other."""
    upstream, finetune = parse(name), parse_finetune(script, monkeypatch, name)
    assert upstream[2].backbone_config.to_dict() == finetune[2].backbone_config.to_dict() | (
        {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    )
    for option in ("dataset", "backbone", "image_size", "patch_size", "eval_crop_ratio"):
        assert getattr(upstream[0], option) == getattr(finetune[0], option), option
    assert (upstream[3].image_mean, upstream[3].image_std) == (finetune[3].image_mean, finetune[3].image_std)
    for option in ("per_device_train_batch_size", "num_train_epochs", "learning_rate", "dataloader_num_workers"):
        assert getattr(upstream[1], option) == getattr(finetune[1], option), option


def test_default_follows_the_encoder(script, monkeypatch):
    """Neither size nor statistics are set: they are the encoder's own."""
    for part in ("", "finetune"):
        recipe = yaml.safe_load((RECIPES / "relvit" / part / "default.yaml").read_text())
        assert "dataset" not in recipe and recipe["drop_path_rate"] == 0.1
        assert ("image_size" in recipe) == ("image_mean" in recipe) == (part == "")
    args, training_args, _, views = parse("default")
    assert (args.backbone, args.image_size, args.patch_size) == ("vit-small", 224, 32)
    assert (views.image_mean, views.image_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert not training_args.load_best_model_at_end, "there may be no test images"
    check_optimizer(training_args, 256)
    args, training_args, _, _ = parse_finetune(script, monkeypatch, "default")
    assert (args.image_size, args.patch_size) == (224, 32)
    assert not training_args.load_best_model_at_end, "test images would choose"
    check_optimizer(training_args, 256)


def test_schedule_is_the_authors():
    """From nothing up to the learning rate, then a quarter of a cosine wave, measured from step 0."""
    schedule = SCHEDULES["quarter_cosine"](5e-4, 1.25e-6, 1000, 100)
    assert schedule(0) == 0 and schedule(50) == pytest.approx(2.5e-4)
    for step in (100, 400, 999):
        share = 1 - math.cos(step / 1000 * math.pi / 2)
        assert schedule(step) == pytest.approx(share * 1.25e-6 + (1 - share) * 5e-4)
