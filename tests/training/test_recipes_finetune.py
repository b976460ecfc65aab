"""Recipes for fine-tuning: every one of every method can be run, and PatchMix's and APS's are the authors'."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_ssl.data import TensorSource
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models.classification import ClassificationConfig, ClassificationViews, ClassifierForTraining
from hf_ssl.views import Draws

from .common import make_aps, make_patchmix


TRAINING = Path(__file__).parents[2] / "training"
NAMES = [(path.parts[-3], path.stem) for path in sorted((TRAINING / "recipes").glob("*/finetune/*.yaml"))]
STATISTICS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# By method and encoder: base learning rate, the batch it is for, and heads.
ENCODERS = {
    ("patchmix", "tiny"): (1e-3, 256, 3),
    ("patchmix", "small"): (5e-4, 256, 12),
    ("patchmix", "base"): (5e-4, 256, 12),
    ("aps", "tiny"): (2e-3, 512, 3),
    ("aps", "small"): (1e-3, 512, 6),
    ("aps", "base"): (5e-4, 512, 12),
}
# By method and dataset: image and patch size, images in a step, training images.
DATA = {
    ("patchmix", "imagenet-1k"): (224, 16, 1024, 1_281_167),
    ("patchmix", "cifar10"): (32, 2, 256, 50_000),
    ("patchmix", "cifar100"): (32, 2, 256, 50_000),
    ("aps", "cifar10"): (32, 2, 128, 50_000),
    ("aps", "cifar100"): (32, 2, 128, 50_000),
}
OF_AUTHORS = [(method, data, size) for method, data in DATA for size in ("tiny", "small", "base")]


@pytest.fixture(scope="module")
def script():
    """What `training/finetune.py` defines."""
    return SimpleNamespace(**runpy.run_path(str(TRAINING / "finetune.py")))


@pytest.fixture
def parse(script, monkeypatch):
    def parsed(method, name, model="none"):
        argv = ["--method", method, "--recipe", name, "--output_dir", "unused", "--model", str(model)]
        monkeypatch.setattr(sys, "argv", ["finetune.py", *argv])
        args, training_args, model_args, views = script.parse()
        encoder = script.encoder_config(args)
        config = ClassificationConfig(backbone_config=encoder, num_labels=10, **vars(model_args))
        return args, training_args, config, script.with_statistics(views, str(model))

    return parsed


@pytest.mark.parametrize(("method", "name"), NAMES)
def test_every_recipe_makes_a_batch(method, name, parse):
    """That suits its model, of which only shapes are computed."""
    args, training_args, config, views_config = parse(method, name)
    padded, side = views_config.view.crop == "padded_crop", config.backbone_config.image_size
    images = torch.randint(0, 256, (2, 3, *[side if padded else 48] * 2), dtype=torch.uint8)
    views = ClassificationViews(views_config, config)
    source = TensorSource(images, torch.arange(2), views if views.crops_when_read else None)
    inputs = views(source.__getitems__([(0, 0), (0, 1)]), Draws.for_batch(0, 0))
    assert inputs["pixel_values"].shape == (2, 3, side, side) and inputs["pixel_values"].isfinite().all()
    with torch.device("meta"):
        model = ClassifierForTraining(config)
    output = model(inputs["pixel_values"].to("meta"), inputs["labels"].to("meta"))
    assert output.logits["classification"].shape == (2, 10) and output.loss.shape == ()
    assert training_args.per_device_train_batch_size % getattr(views, "batch_size_multiple", 1) == 0


def test_there_are_recipes():
    assert {method for method, _ in NAMES} == {"relvit", "patchmix", "aps"}
    ours = {(method, name) for method in ("patchmix", "aps") for name in ("default", "digits")}
    named = {(m, data if size == "small" else f"{data}_{size}") for m, data, size in OF_AUTHORS}
    assert {entry for entry in NAMES if entry[0] != "relvit"} == named | ours


@pytest.mark.parametrize(("method", "data", "size"), OF_AUTHORS)
def test_settings_of_the_authors(method, data, size, parse):
    args, training_args, config, views = parse(method, data if size == "small" else f"{data}_{size}")
    rate, of_batch, heads = ENCODERS[method, size]
    image_size, patch_size, batch, num_images = DATA[method, data]
    encoder = config.backbone_config
    assert args.dataset == data and args.backbone == f"vit-{size}" and args.validation_samples == 0
    assert (encoder.image_size, encoder.patch_size, encoder.num_attention_heads) == (image_size, patch_size, heads)
    assert encoder.layer_norm_eps == (1e-6 if method == "patchmix" else 1e-5)
    assert encoder.qkv_bias == (method == "patchmix")
    assert training_args.per_device_train_batch_size == batch and training_args.gradient_accumulation_steps == 1
    assert training_args.learning_rate == pytest.approx(rate * batch / of_batch, rel=1e-12)
    schedule = ("warmup_in_cosine", "epoch", 1, 1e-6, 1e-5)
    names = ("schedule", "schedule_unit", "schedule_lag", "warmup_learning_rate", "min_learning_rate")
    assert tuple(getattr(training_args, name) for name in names) == schedule
    steps_per_epoch = num_images // batch
    warmup = steps_per_epoch * 100 * training_args.warmup_steps / steps_per_epoch  # as the trainer does
    assert training_args.num_train_epochs == 100 and int(warmup) == (10 if method == "patchmix" else 5)
    assert (training_args.weight_decay, training_args.weight_decay_rule) == (0.05, "layer_matrices")
    assert training_args.layer_decay == (0.75 if method == "patchmix" else 1.0) and training_args.max_grad_norm == 0
    betas = training_args.adam_beta1, training_args.adam_beta2, training_args.adam_epsilon
    assert betas == (0.9, 0.999, 1e-8) and training_args.optim == "adamw_torch_fused"
    assert (
        training_args.load_best_model_at_end and training_args.eval_strategy == training_args.save_strategy == "epoch"
    )

    assert config.label_smoothing == 0.1 and config.drop_path_rate == (0.1 if method == "patchmix" else 0)
    assert config.ema_decay is None, "theirs is neither evaluated nor saved"
    assert views.auto_augment == "rand-m9-mstd0.5-inc1" and (views.image_mean, views.image_std) == STATISTICS
    assert (views.mixup, views.cutmix, views.mixup_prob, views.mixup_switch_prob) == (0.8, 1.0, 1.0, 0.5)
    view = views.view
    assert views.mixup_mode == "batch" and (view.flip, view.erase, view.interpolation) == (0.5, 0.25, "bicubic")
    assert view.jitter == view.grayscale == view.blur == view.solarize == 0, "off where a policy is on"
    if image_size == 224:
        assert (view.crop, view.scale, view.ratio) == ("random_resized_crop", [0.08, 1.0], [3 / 4, 4 / 3])
        assert args.eval_crop_ratio == 224 / 256
    else:
        assert (view.crop, view.padding, args.eval_crop_ratio) == ("padded_crop", 4, 1.0)


@pytest.mark.parametrize("method", ["patchmix", "aps"])
def test_encoder_of_a_folder_is_what_it_is(method, parse, tmp_path):
    """Heads, epsilon and biases come from it, not from the method; so do size and statistics that a recipe leaves open."""
    pretrained = make_patchmix() if method == "patchmix" else make_aps()
    export_run(pretrained, evaluation_processor(16, [0.3] * 3, [0.4] * 3), tmp_path)
    _, training_args, config, views = parse(method, "default", tmp_path)
    assert not training_args.load_best_model_at_end, "test images would choose"
    own = pretrained.config.backbone_config
    names = ("num_attention_heads", "layer_norm_eps", "qkv_bias", "image_size", "patch_size", "hidden_size")
    assert all(getattr(config.backbone_config, name) == getattr(own, name) for name in names)
    assert (views.image_mean, views.image_std) == ([0.3] * 3, [0.4] * 3)
    ClassifierForTraining(config).load_encoder(tmp_path)
