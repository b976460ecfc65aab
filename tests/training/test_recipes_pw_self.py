"""PW-Self's recipes against the authors' defaults and commands."""

from pathlib import Path

import pytest
import torch

from hf_ssl import PWSelfForPreTraining
from hf_ssl.arguments import PretrainArguments, build_config, parse_with_recipe
from hf_ssl.data import DATASETS
from hf_ssl.models import get_method
from hf_ssl.views import Draws


RECIPES = Path(__file__).parents[2] / "training" / "recipes"
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Training images of each dataset. The authors have one set of values for all; a batch is 6 images on each of 4 GPUs.
DATA = {"cifar10": 50_000, "imagenet100": 126_689, "imagenet-1k": 1_281_167}
BATCH = 24
# By recipe: epochs, the teacher's temperature and the epochs of its warm-up, whether prototypes keep length 1.
KINDS = {"": (100, 0.04, 0, True), "_boosted": (300, 0.07, 30, False)}
OURS = ["cifar10_32", "default", "digits"]


def parse(name):
    argv = ["--method", "pw_self", "--recipe", name, "--output_dir", "unused"]
    args, training_args, model_args, views = parse_with_recipe(PretrainArguments, RECIPES, argv)
    config = build_config(args, model_args, type("Data", (), {"num_classes": 10})())
    return args, training_args, config, views


def check_views(views):
    """The table of operations: probabilities, strengths, sizes of crops."""
    common = {"crop": "random_resized_crop", "interpolation": "bicubic", "flip": 0.5, "ratio": [3 / 4, 4 / 3]}
    common |= {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2}
    common |= {"grayscale_first": False, "blur_sigma": [0.1, 2.0], "erase": 0.0}
    own = {
        "global1": {"scale": [0.4, 1.0], "blur": 1.0, "solarize": 0.0, "size": None},
        "global2": {"scale": [0.4, 1.0], "blur": 0.1, "solarize": 0.2, "size": None},
        "local": {"scale": [0.05, 0.4], "blur": 0.5, "solarize": 0.0, "size": 96},
    }
    for view, values in own.items():
        found = vars(getattr(views, view))
        assert {key: found[key] for key in common | values} == common | values, view
    assert views.canvas == 256 and (views.image_mean, views.image_std) == IMAGENET


def check_optimizer(training_args):
    betas = training_args.adam_beta1, training_args.adam_beta2, training_args.adam_epsilon
    assert betas == (0.9, 0.999, 1e-8) and training_args.optim == "adamw_torch_fused"
    assert (training_args.schedule, training_args.schedule_unit) == ("warmup_cosine", "step")
    assert training_args.min_learning_rate == 1e-6
    assert (training_args.weight_decay, training_args.weight_decay_rule) == (0.04, "matrices")
    assert (training_args.gradient_clipping, training_args.max_grad_norm) == ("per_parameter", 3.0)
    assert training_args.gradient_accumulation_steps == 1 and not (training_args.bf16 or training_args.fp16)


def check_loss(config):
    """What is the same in all of the authors' runs, and in ours that are named after them."""
    assert (config.head_hidden_dim, config.head_bottleneck_dim, config.num_prototypes) == (2048, 256, 10_000)
    assert (config.student_temperature, config.warmup_teacher_temperature, config.center_momentum) == (0.1, 0.04, 0.9)
    assert (config.teacher_momentum, config.frozen_last_layer_epochs, config.drop_path_rate) == (0.996, 1, 0.1)
    assert config.class_loss_weight is None and config.num_local_views == 8
    assert config.position_interpolation == "scale_factor" and config.feature == "class_token"


def check_encoder(config, patch_size):
    encoder = config.backbone_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads) == (384, 12, 6)
    assert (encoder.intermediate_size, encoder.image_size, encoder.patch_size) == (1536, 224, patch_size)
    assert encoder.layer_norm_eps == 1e-6 and encoder.qkv_bias and encoder.hidden_act == "gelu"
    assert encoder.hidden_dropout_prob == encoder.attention_probs_dropout_prob == 0


def without_memory(config):
    """A model whose tensors have shapes and no values."""
    with torch.device("meta"):
        return PWSelfForPreTraining(config)


def warmup_steps(training_args, num_steps):
    """As the trainer does: a share of the steps is rounded down."""
    return int(num_steps * training_args.warmup_steps)


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_authors_runs(dataset, kind):
    args, training_args, config, views = parse(f"{dataset}{kind}")
    epochs, temperature, temperature_epochs, norm_last_layer = KINDS[kind]
    assert args.dataset == dataset and dataset in DATASETS and args.backbone == "vit-small"
    check_encoder(config, patch_size=8)
    check_loss(config)
    check_views(views)
    check_optimizer(training_args)
    assert (config.geometry, views.shared_colors, config.strict_correspondences) == ("batch", False, False)
    assert (config.teacher_temperature, config.teacher_temperature_warmup_epochs) == (temperature, temperature_epochs)
    assert config.norm_last_layer == norm_last_layer
    assert training_args.per_device_train_batch_size == BATCH and training_args.num_train_epochs == epochs
    assert training_args.learning_rate == pytest.approx(5e-4 * BATCH / 256, rel=1e-12)
    assert training_args.final_weight_decay == 0.4
    steps_per_epoch = DATA[dataset] // BATCH
    assert warmup_steps(training_args, steps_per_epoch * epochs) == 10 * steps_per_epoch
    crops = get_method("pw_self").views_class(views, config, 0)
    assert (crops.grid, crops.local_grid, crops.num_views) == ((28, 28), (12, 12), 10)
    assert args.eval_crop_ratio is None, "the method's own: 256 / 224 of the crop"


@pytest.mark.parametrize("dataset", DATA)
def test_schedules(dataset):
    """The first epochs of the boosted run: a warmer teacher every epoch, prototypes that wait for one."""
    config = parse(f"{dataset}_boosted")[2]
    steps_per_epoch = DATA[dataset] // BATCH
    schedules = without_memory(config).schedules(300 * steps_per_epoch, steps_per_epoch)
    for epoch, temperature in enumerate(torch.linspace(0.04, 0.07, 30, dtype=torch.float64).tolist() + [0.07] * 5):
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            assert schedules["teacher_temperature"](step) == pytest.approx(temperature, rel=1e-12)
            assert schedules["last_layer_frozen"](step) == (epoch == 0)
    assert schedules["momentum"](0) == 0.996 and 1 - 1e-9 < schedules["momentum"](300 * steps_per_epoch - 1) <= 1


def test_default():
    """The authors' loss, colors and crops, with what the recipe says is ours."""
    args, training_args, config, views = parse("default")
    assert args.backbone == "vit-small" and config.geometry == "sample" and config.norm_last_layer
    check_encoder(config, patch_size=16)
    check_loss(config)
    assert config.teacher_temperature == 0.04 and config.teacher_temperature_warmup_epochs == 0
    check_views(views)
    check_optimizer(training_args)
    batch = training_args.per_device_train_batch_size
    assert training_args.learning_rate == pytest.approx(5e-4 * batch / 256, rel=1e-12)
    assert (training_args.num_train_epochs, training_args.final_weight_decay) == (100, 0.4)
    assert warmup_steps(training_args, 100 * 1000) == 10 * 1000
    assert not get_method("pw_self").views_class(views, config, 0).needs_batch_draws


@pytest.mark.parametrize("name", ["cifar10_32", "digits"])
def test_small_runs(name):
    """One batch of two images, from the views to the gradient: sizes fit together."""
    _, training_args, config, views = parse(name)
    check_optimizer(training_args)
    torch.manual_seed(0)
    model = PWSelfForPreTraining(config)
    side = config.backbone_config.image_size
    assert side == views.canvas, "images are taken as they are"
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crops = get_method("pw_self").views_class(views, config, 0)
    inputs = crops({"images": images, "index": torch.arange(2), "epoch": torch.zeros(2, dtype=torch.int64)})
    output = model(**inputs)
    output.loss.backward()
    assert output.loss.isfinite() and len(output.num_matches) == 2 + 2 * config.num_local_views
    assert output.num_matches.mean() > 1, "patches are matched"
    assert model.student.head.last_layer.weight_v.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [*(f"{dataset}{kind}" for dataset in DATA for kind in KINDS), *OURS])
def test_every_recipe_makes_a_model(name):
    """Shapes of the head, of the center, and of the position table; and what its crops depend on."""
    _, training_args, config, views = parse(name)
    model = without_memory(config)
    count = config.grid[0] ** 2 + 1
    assert model.center.shape == (count, config.num_prototypes)
    assert model.student.backbone.embeddings.position_embeddings.shape[1] == count
    assert model.student.head.last_layer.weight_v.shape == (config.num_prototypes, config.head_bottleneck_dim)
    assert model.student.head.last_layer.weight_g.requires_grad != config.norm_last_layer
    crops = get_method("pw_self").views_class(views, config, training_args.seed)
    assert crops.needs_batch_draws == (config.geometry == "batch")
    index = torch.arange(3)
    boxes = crops.view_boxes(index, index, torch.tensor([[40, 50]] * 3), Draws.for_batch(0, 0))
    assert boxes.shape == (3, 2 + config.num_local_views, 5)
    assert (boxes[:, 0] == boxes[:1, 0]).all() == (config.geometry == "batch")


def test_there_are_no_others():
    """Of a recipe that is added, the numbers are checked here."""
    names = {f"{dataset}{kind}" for dataset in DATA for kind in KINDS} | set(OURS)
    assert {path.stem for path in (RECIPES / "pw_self").glob("*.yaml")} == names


@pytest.mark.parametrize("name", OURS)
def test_what_is_ours_is_said(name):
    lines = (RECIPES / "pw_self" / f"{name}.yaml").read_text().splitlines()
    comments = " ".join(line for line in lines if line.startswith("#"))
    assert "Ours" in comments


def test_nothing_is_reported():
    """The authors' repository has no table of results, and no weights."""
    assert get_method("pw_self").reported is None
