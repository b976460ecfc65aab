"""PatchMix's recipes against the authors' tables."""

from pathlib import Path

import pytest

from hf_ssl.arguments import PretrainArguments, build_config, parse_with_recipe
from hf_ssl.data import DATASETS
from hf_ssl.models import get_method


RECIPES = Path(__file__).parents[2] / "training" / "recipes"

# By encoder: base learning rate for 256 images, weight decay at first and at last, teacher, heads.
ENCODERS = {
    "vit-tiny": (2e-3, 0.02, 0.2, False, 3),
    "vit-small": (5e-4, 0.04, 0.4, True, 12),
    "vit-base": (7.5e-4, 0.04, 0.4, True, 12),
}
# By dataset: image and patch size, images in a step, epochs, of these in the warm-up, training images, scales of large crops.
DATA = {
    "imagenet-1k": (224, 16, 1024, 300, 10, 1_281_167, [0.35, 1.0]),
    "cifar10": (32, 2, 512, 800, 100, 50_000, [0.1, 1.0]),
    "cifar100": (32, 2, 512, 800, 100, 50_000, [0.1, 1.0]),
}


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("backbone", ENCODERS)
def test_recipe(dataset, backbone):
    size = backbone.removeprefix("vit-")
    name = dataset if size == "small" else f"{dataset}_{size}"
    argv = ["--method", "patchmix", "--recipe", name, "--output_dir", "unused"]
    args, training_args, model_args, views = parse_with_recipe(PretrainArguments, RECIPES, argv)
    config = build_config(args, model_args, type("Data", (), {"num_classes": 10})())
    rate, decay, last_decay, use_teacher, heads = ENCODERS[backbone]
    image_size, patch_size, batch, epochs, warmup, num_images, scale = DATA[dataset]

    assert args.dataset == dataset and dataset in DATASETS and args.backbone == backbone
    encoder = config.backbone_config
    assert (encoder.image_size, encoder.patch_size, encoder.num_attention_heads) == (image_size, patch_size, heads)
    assert encoder.layer_norm_eps == 1e-6 and encoder.qkv_bias and encoder.hidden_dropout_prob == 0
    assert (config.use_teacher, config.group_size, config.temperature) == (use_teacher, 2, 0.2)
    assert not use_teacher or config.teacher_momentum == 0.996
    assert (config.projection_dim, config.projection_hidden_dim) == (256, 4096)
    assert (config.num_projector_layers, config.num_predictor_layers) == (3, 2)
    assert (config.plain_smoothing, config.mix_smoothing, config.drop_path_rate) == (0.1, 0.0, 0.1)
    assert config.position_interpolation == "scale_factor" and config.feature == "class_token"

    assert training_args.per_device_train_batch_size == batch
    assert training_args.learning_rate == pytest.approx(rate * batch / 256, rel=1e-12)
    assert (training_args.schedule, training_args.min_learning_rate) == ("warmup_cosine", 1e-6)
    assert (training_args.weight_decay, training_args.final_weight_decay) == (decay, last_decay)
    assert training_args.weight_decay_rule == "matrices" and training_args.max_grad_norm == 0
    betas = training_args.adam_beta1, training_args.adam_beta2, training_args.adam_epsilon
    assert betas == (0.9, 0.999, 1e-8) and training_args.optim == "adamw_torch_fused"
    steps_per_epoch = num_images // batch
    assert training_args.num_train_epochs == epochs
    assert int(steps_per_epoch * epochs * training_args.warmup_steps) == warmup * steps_per_epoch

    common = {"interpolation": "bicubic", "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4}
    common |= {"saturation": 0.2, "hue": 0.1, "grayscale": 0.2, "blur_sigma": [0.1, 2.0], "ratio": [3 / 4, 4 / 3]}
    own = {
        "global1": {"scale": scale, "blur": 1.0, "solarize": 0.0, "size": None},
        "global2": {"scale": scale, "blur": 0.1, "solarize": 0.2, "size": None},
        "local": {"blur": 0.5, "solarize": 0.0, "size": 96 if image_size == 224 else 14},
    }
    own["local"]["scale"] = [0.05, 0.35] if image_size == 224 else [0.1, 0.35]
    for view, values in own.items():
        found = vars(getattr(views, view))
        assert {key: found[key] for key in common | values} == common | values, view
    assert config.num_local_views == (8 if image_size == 224 else 0)
    assert (views.image_mean, views.image_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    get_method("patchmix").views_class(views, config, 0)
    assert args.eval_crop_ratio is None, "the method's own: 256 / 224 of the crop"


def test_reported_numbers():
    """What the card quotes, against the authors' tables."""
    reported = get_method("patchmix").reported
    tables = """
        ImageNet-1K ViT-S/16 300: 73.3 77.4 82.8
        ImageNet-1K ViT-B/16 300: 76.2 80.2 84.1
        CIFAR-10 ViT-T/2 800: 92.9 94.4 97.5
        CIFAR-10 ViT-S/2 800: 94.6 96.0 98.1
        CIFAR-10 ViT-B/2 800: 95.8 96.6 98.3
        CIFAR-100 ViT-T/2 800: 68.8 74.7 84.9
        CIFAR-100 ViT-S/2 800: 75.4 78.7 86.0
        CIFAR-100 ViT-B/2 800: 75.7 79.7 86.0
    """
    rows = [f"{row[0].replace(',', '').replace(' epochs', '')}: {' '.join(row[1:])}" for row in reported.rows]
    assert rows == [line.strip() for line in tables.strip().splitlines()]
    assert reported.weights_license == "cc-by-nc-4.0"
    for numbers in ("74.3 / 77.9 / 83.4", "76.5 / 79.3 / 84.3", "72.8 / 78.3 / 85.6", "73.4 / 79.7 / 86.0"):
        assert numbers in reported.note
