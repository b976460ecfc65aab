"""`training/pretrain.py` from its command line to the folder it leaves behind."""

import json
import logging
import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from hf_ssl import RelViTConfig, RelViTForPreTraining, cli
from hf_ssl.arguments import PretrainArguments, build_config, flat_values, parse_with_recipe, read_recipe
from hf_ssl.evaluation import pool_features
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models import METHODS, get_method

from ..marks import slow
from .common import make_backbone


SCRIPTS = Path(__file__).parents[2] / "training"
RECIPES = SCRIPTS / "recipes"
TINY = ["--backbone", "vit-micro", "--image_size", "16", "--patch_size", "4", "--per_device_train_batch_size", "8"]
SHORT = ["--max_steps", "4", "--logging_steps", "2", "--eval_steps", "2"]
SHORT += ["--knn_query_samples", "50", "--knn_bank_samples", "300", "--validation_samples", "50"]


def pretrain(monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, flags)])
    runpy.run_path(str(SCRIPTS / "pretrain.py"), run_name="__main__")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, *SHORT, "--output_dir", folder, "--save_strategy", "steps", "--save_steps", "2")
    return folder


def test_layout(digits_run):
    files = {str(path.relative_to(digits_run)) for path in digits_run.rglob("*") if path.is_file()}
    wanted = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "all_results.json"}
    wanted |= {"trainer_state.json"} | {
        f"figures/{name}.png" for name in ("curves", "filters", "neighbors", "similarities")
    }
    wanted |= {f"pretraining/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
    wanted |= {"pretraining/views.json"}
    assert wanted <= files
    left_over = {name for name in files - wanted if not name.startswith("checkpoint-")}
    assert not left_over
    assert "training_args.bin" not in {Path(name).name for name in files}


def test_results(digits_run):
    results = results_of(digits_run)
    assert results["num_steps"] == 4 and results["num_train_images"] == 1437
    assert results["k"] == 20 and results["temperature"] == 0.07 and results["feature"] == "patch_mean"
    assert 10 < results["knn_top1_before"] < 90 and 10 < results["knn_top1"] <= results["knn_top5"] <= 100
    assert results["knn_top1_pixels"] > 80
    history = json.loads((digits_run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_knn_top1" in entry] == [0, 2, 4]


def test_loads_in_stock_transformers(digits_run, caplog):
    """Without a warning, as the class that config.json names, with the features of `export_encoder()`."""
    assert json.loads((digits_run / "config.json").read_text())["architectures"] == ["ViTModel"]
    with caplog.at_level(logging.WARNING):
        encoder, info = AutoModel.from_pretrained(digits_run, output_loading_info=True)
    assert not caplog.records
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model = AutoModelForPreTraining.from_pretrained(digits_run / "pretraining")
    processor = AutoImageProcessor.from_pretrained(digits_run)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
    inputs = processor(images=image, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    with torch.no_grad():
        outputs, expected = encoder(**inputs), model.export_encoder()(**inputs)
    assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    assert torch.equal(pool_features(outputs, model.config.feature), outputs.last_hidden_state[:, 1:].mean(1))


def test_card(digits_run):
    card = ModelCard.load(digits_run / "README.md")
    assert card.data.library_name == "transformers" and "relvit" in card.data.tags
    (result,) = [r for r in card.data.eval_results if r.metric_name == "kNN top-1 (%)"]
    assert result.metric_value == pytest.approx(results_of(digits_run)["knn_top1"], abs=0.01)
    assert "figures/curves.png" in card.text and "figures/similarities.png" in card.text and "2206.00481" in card.text
    assert str(digits_run.parent) not in card.content


def test_validation_only(digits_run, monkeypatch):
    before = results_of(digits_run)
    pretrain(monkeypatch, *SHORT, "--output_dir", digits_run, "--do_train", "false")
    after = results_of(digits_run)
    assert after["knn_top1"] == pytest.approx(before["knn_top1"])
    assert after["num_steps"] == 4


@pytest.mark.parametrize(
    ("mode", "num_labels", "fits"), [("joint", 10, False), ("joint", 2, True), ("upstream", 10, True)]
)
def test_validation_on_other_classes(photos, tmp_path, monkeypatch, mode, num_labels, fits):
    """A model that tells ten classes is not measured on two; one that tells none is."""
    folder = tmp_path / "run"
    config = RelViTConfig(
        backbone_config=make_backbone(), num_labels=num_labels, tasks=RelViTConfig.modes[mode]["tasks"]
    )
    export_run(RelViTForPreTraining(config), evaluation_processor(16, [0.5] * 3, [0.5] * 3), folder)
    flags = ["--do_train", "false", "--mode", mode, "--dataset", photos, "--output_dir", folder, *TINY]
    message = r"pretraining tells 10 classes, and --dataset \S*photos has 2\."
    with nullcontext() if fits else pytest.raises(ValueError, match=message):
        pretrain(monkeypatch, *flags)
    assert (folder / "all_results.json").exists() == fits


def test_resume_from_the_last_checkpoint(digits_run, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "run"
    (folder / "checkpoint-2").parent.mkdir()
    shutil.copytree(digits_run / "checkpoint-2", folder / "checkpoint-2")
    flags = [*SHORT, "--output_dir", folder, "--save_strategy", "steps", "--save_steps", "2"]
    pretrain(monkeypatch, *flags, "--resume_from_checkpoint", "true")
    resumed, whole = (AutoModelForPreTraining.from_pretrained(run / "pretraining") for run in (folder, digits_run))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert results_of(folder)["knn_top1_before"] == results_of(digits_run)["knn_top1_before"]


@pytest.fixture
def photos(tmp_path):
    """Photos of unequal size, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "photos" / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 50 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def unlabeled(photos, tmp_path):
    """The same without classes."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        path.rename(flat / path.name)
    return flat


def test_photos(photos, tmp_path, monkeypatch):
    output = tmp_path / "run"
    flags = ["--dataset", photos, "--output_dir", output, *TINY, *SHORT, "--dataloader_num_workers", "2"]
    pretrain(monkeypatch, *flags)
    results = results_of(output)
    # Four of the forty are held out for the kNN number.
    assert results["num_train_images"] == 36 and results["num_query_images"] == 4
    assert "pretrained without labels on photos" in (output / "README.md").read_text()


def test_photos_without_labels(unlabeled, tmp_path, monkeypatch):
    output = tmp_path / "run"
    pretrain(monkeypatch, "--dataset", unlabeled, "--output_dir", output, *TINY, *SHORT)
    assert "knn_top1" not in results_of(output)
    assert (output / "figures" / "neighbors.png").is_file() and (output / "figures" / "similarities.png").is_file()
    assert "of a few images to those of some training images; gray: before" in (output / "README.md").read_text()
    AutoModel.from_pretrained(output)


def test_photos_without_labels_in_a_run_that_logs_nothing(unlabeled, tmp_path, monkeypatch):
    output = tmp_path / "run"
    flags = ["--max_steps", "2", "--logging_steps", "10", "--eval_steps", "2"]
    pretrain(monkeypatch, "--dataset", unlabeled, "--output_dir", output, *TINY, *flags)
    figures, card = {path.name for path in (output / "figures").iterdir()}, (output / "README.md").read_text()
    assert figures == {"filters.png", "neighbors.png", "similarities.png"}
    assert "curves.png" not in card and all(f"figures/{name}" in card for name in figures)


def test_bad_photos(photos, tmp_path, monkeypatch):
    (photos / "cats" / "broken.png").write_bytes(b"not an image")
    flags = ["--dataset", photos, "--output_dir", tmp_path / "run", *TINY, *SHORT]
    with pytest.raises(ValueError, match=r"broken\.png[\s\S]*skip_bad_images"):
        pretrain(monkeypatch, *flags)
    pretrain(monkeypatch, *flags, "--skip_bad_images", "true")
    assert results_of(tmp_path / "run")["num_train_images"] == 36


def test_aps(photos, tmp_path, monkeypatch):
    """Photos of unequal size, cropped in workers; every batch is trained four times."""
    output = tmp_path / "run"
    flags = ["--method", "aps", "--dataset", photos, "--output_dir", output, *TINY, *SHORT]
    pretrain(monkeypatch, *flags, "--projection_hidden_dim", "32", "--dataloader_num_workers", "2")
    results = results_of(output)
    assert results["num_train_images"] == 36 and results["feature"] == "class_token"
    model = AutoModelForPreTraining.from_pretrained(output / "pretraining")
    encoder, info = AutoModel.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(encoder.layernorm.weight, model.student.backbone.layernorm.weight)
    assert not encoder.embeddings.position_embeddings[:, 0].any()
    assert encoder.config.layer_norm_eps == 1e-5 and not encoder.config.qkv_bias
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert any("loss_view1_to_view2" in entry and "similarity" in entry for entry in history)
    card = (output / "README.md").read_text()
    assert "2306.02854" in card and "| sampling power | 3 |" in card
    assert "License of the authors' own weights: `cc-by-nc-4.0`" in card and "license: apache-2.0" in card


def test_patchmix(photos, tmp_path, monkeypatch):
    """Photos of unequal size, cropped in workers; views are mixed on the device, small ones too."""
    output = tmp_path / "run"
    small = ["--num_local_views", "2", "--local_size", "8", "--projection_hidden_dim", "32", "--projection_dim", "16"]
    flags = ["--method", "patchmix", "--dataset", photos, "--output_dir", output, *TINY, *SHORT, *small]
    pretrain(monkeypatch, *flags, "--dataloader_num_workers", "2")
    results = results_of(output)
    assert results["num_train_images"] == 36 and results["feature"] == "class_token"
    model = AutoModelForPreTraining.from_pretrained(output / "pretraining")
    encoder = AutoModel.from_pretrained(output)
    assert torch.equal(encoder.layernorm.bias, model.teacher.backbone.layernorm.bias)
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 18} and processor["resample"] == 3, "256 / 224 of 16, bicubic"
    views = json.loads((output / "pretraining" / "views.json").read_text())
    assert views["global1"]["size"] == 16 and views["local"]["size"] == 8 and views["local"]["scale"] == [0.05, 0.35]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert any("loss_mixed_local" in entry and "momentum" in entry for entry in history)
    card = (output / "README.md").read_text()
    assert "2306.12243" in card and "The repository's first README has other numbers" in card
    assert "License of the authors' own weights: `cc-by-nc-4.0`" in card and "license: apache-2.0" in card
    assert "of the projections of a few images" in card
    assert not [r for r in ModelCard.load(output / "README.md").data.eval_results if r.metric_value in (73.3, 94.6)]


@pytest.mark.parametrize("geometry", ["sample", slow("batch")])
def test_pw_self(photos, tmp_path, monkeypatch, geometry):
    """Photos of unequal size, put on the canvas in workers; images have crops of their own, or those of their batch."""
    output = tmp_path / "run"
    small = ["--num_local_views", "2", "--local_size", "8", "--canvas", "24", "--num_prototypes", "48"]
    small += ["--head_hidden_dim", "32", "--head_bottleneck_dim", "16", "--geometry", geometry]
    flags = ["--method", "pw_self", "--dataset", photos, "--output_dir", output, *TINY, *SHORT, *small]
    pretrain(monkeypatch, *flags, "--dataloader_num_workers", "2")
    results = results_of(output)
    assert results["num_train_images"] == 36 and results["feature"] == "class_token"
    model = AutoModelForPreTraining.from_pretrained(output / "pretraining")
    assert model.config.geometry == geometry and model.center.shape == (17, 48) and model.center.any()
    encoder, info = AutoModel.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(encoder.layernorm.bias, model.teacher.backbone.layernorm.bias)
    assert not torch.equal(encoder.layernorm.bias, model.student.backbone.layernorm.bias)
    assert encoder.config.layer_norm_eps == 1e-6 and encoder.config.qkv_bias
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 18} and processor["resample"] == 3, "256 / 224 of 16, bicubic"
    views = json.loads((output / "pretraining" / "views.json").read_text())
    assert views["global1"]["size"] == 16 and views["local"]["size"] == 8 and views["local"]["scale"] == [0.05, 0.4]
    assert views["canvas"] == 24 and not views["shared_colors"]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logged = {"loss_class_token", "loss_patches", "matches", "momentum", "teacher_temperature", "last_layer_frozen"}
    assert any(logged <= entry.keys() for entry in history)
    card = (output / "README.md").read_text()
    assert "2310.18651" in card and "javidani2023pwself" in card and "license: apache-2.0" in card
    assert "of the projections of a few images" in card and str(tmp_path) not in card


def test_joint_mode(tmp_path, monkeypatch):
    pretrain(monkeypatch, *SHORT, "--mode", "joint", "--output_dir", tmp_path / "run")
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "run" / "pretraining")
    assert model.config.tasks == ["classification", "relations", "positions"]
    assert model.config.num_labels == 10 and model.config.use_position_embeddings
    assert AutoModel.from_pretrained(tmp_path / "run").embeddings.position_embeddings.any()
    assert results_of(tmp_path / "run")["feature"] == "class_token"
    assert "pretrained with labels" in (tmp_path / "run" / "README.md").read_text()


def test_joint_mode_needs_labels(unlabeled, tmp_path, monkeypatch):
    message = r"task 'classification' needs labels, and --dataset \S*flat has none: .*--mode upstream"
    with pytest.raises(ValueError, match=message):
        pretrain(
            monkeypatch, "--dataset", unlabeled, "--mode", "joint", "--output_dir", tmp_path / "run", *TINY, *SHORT
        )
    assert not (tmp_path / "run").exists()


def test_joint_mode_leaves_patches_alone():
    """With every recipe, as in the original's scripts."""
    for path in sorted((RECIPES / "relvit").glob("*.yaml")):
        for mode, expected in (("joint", "none"), ("upstream", "colJitter:0.8-grayScale:0.2")):
            argv = ["--method", "relvit", "--recipe", path.stem, "--mode", mode]
            views_config = parse_with_recipe(PretrainArguments, RECIPES, argv)[3]
            assert views_config.patch_augmentation == expected, path.stem


def test_best_model_is_measured_and_published(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    flags = [*SHORT, "--output_dir", folder, "--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "0.3"]
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "knn_top1"]
    pretrain(monkeypatch, *flags, *best)
    reported = results_of(folder)
    state = json.loads((folder / "trainer_state.json").read_text())
    step = state["best_global_step"]
    assert (reported["selected_by"], reported["best_step"]) == ("knn_top1", step)
    row = f"| published model | step {step}, the best by knn top1 on test images |"
    assert row in (folder / "README.md").read_text().splitlines()
    pretrain(monkeypatch, *flags, "--do_train", "false")
    assert results_of(folder)["knn_top1"] == pytest.approx(reported["knn_top1"])
    assert reported["knn_top1"] == pytest.approx(state["best_metric"])


def test_last_model_is_published(digits_run):
    """Where no best one was asked for, nothing is said of a choice."""
    assert not {"selected_by", "best_step"} & results_of(digits_run).keys()
    assert "published model" not in (digits_run / "README.md").read_text()


def test_output_folder_is_used_again(unlabeled, tmp_path, monkeypatch):
    """No number of the run before is left behind."""
    folder = tmp_path / "run"
    pretrain(monkeypatch, *TINY, *SHORT, "--output_dir", folder)
    pretrain(monkeypatch, "--dataset", unlabeled, "--output_dir", folder, *TINY, *SHORT)
    assert not [name for name in results_of(folder) if name.startswith("knn_top")]


def test_dataset_in_the_home_folder(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pretrain(monkeypatch, "--dataset", "~/photos", "--output_dir", tmp_path / "run", *TINY, *SHORT)
    assert "on photos" in (tmp_path / "run" / "README.md").read_text()


def test_subset_that_lacks_classes(tmp_path, monkeypatch):
    """Integer labels without names: the classes are counted before the subset is taken."""
    import datasets

    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 30)):
        images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
        data = datasets.Dataset.from_dict({"image": images, "label": [i % 30 for i in range(count)]})
        data.cast_column("image", datasets.Image()).to_parquet(tmp_path / "data" / f"{split}.parquet")
    flags = ["--dataset", tmp_path / "data", "--output_dir", tmp_path / "run", "--max_train_samples", "10"]
    pretrain(monkeypatch, *flags, *TINY, *SHORT)
    assert results_of(tmp_path / "run")["num_train_images"] == 10


def test_teacher_is_refused_before_training(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no teacher"):
        pretrain(monkeypatch, *SHORT, "--output_dir", tmp_path / "run", "--encoder", "teacher")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_divergence_is_named(tmp_path, monkeypatch, capsys):
    """Also where the next evaluation comes before the next log."""
    flags = ["--learning_rate", "1e25", "--max_grad_norm", "0", "--logging_steps", "100", "--max_steps", "6"]
    with pytest.raises(SystemExit) as stopped:
        pretrain(monkeypatch, *flags, "--eval_steps", "3", "--output_dir", tmp_path / "run", "--warmup_steps", "0")
    assert stopped.value.code == 1 and "not finite since step" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("line", ["mega_patches: many", "save_strategy: no", "learning_rate: fast", "encoder: both"])
def test_recipe_with_a_wrong_value(tmp_path, monkeypatch, capsys, line):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(line + "\n")
    with pytest.raises(SystemExit):
        pretrain(monkeypatch, "--recipe", recipe, "--output_dir", tmp_path / "run")
    assert re.search(rf"argument --{line.partition(':')[0]}\b.*: invalid", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("vit-huge", "use one of vit-micro, .*timm/NAME"),
        ("timm/resnet_18", "timm/resnet18"),
        ("swin-tiny", "--image_size 224"),
    ],
)
def test_unknown_backbone(tmp_path, monkeypatch, backbone, message):
    with pytest.raises(ValueError, match=message):
        pretrain(monkeypatch, "--backbone", backbone, "--output_dir", tmp_path / "run")


@pytest.mark.slow
def test_mega_patches(tmp_path, monkeypatch):
    pretrain(monkeypatch, *SHORT, "--mega_patches", "3", "--output_dir", tmp_path / "run")
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "run" / "pretraining")
    assert model.config.grid_size == 3 and model.position_head.out_features == 9
    assert AutoModel.from_pretrained(tmp_path / "run").config.image_size == 16


@pytest.mark.slow
def test_bfloat16(tmp_path, monkeypatch):
    pretrain(monkeypatch, *TINY, *SHORT, "--bf16", "true", "--output_dir", tmp_path / "run")
    assert AutoModel.from_pretrained(tmp_path / "run").dtype == torch.float32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "cifra10"], "cifar10"),
        (["--recipe", "no-such-recipe"], "no recipe 'no-such-recipe'.*digits"),
        (["--method", "simclr"], "methods are relvit"),
        (["--mode", "sideways"], "upstream, joint"),
        (["--patch_augmentation", "blur"], "colJitter, grayScale"),
        (["--image_size", "18"], "multiple of patch_size"),
        (["--max_train_samples", "4"], "do not fill one batch of 128"),
        (["--dataset", "digits", "--image_augmentation", "padded_crop"], "16x16"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain(monkeypatch, *SHORT, "--output_dir", tmp_path / "run", *flags)


# ---- recipes ----


@pytest.mark.parametrize(
    "path",
    sorted(path for path in RECIPES.glob("*/*.yaml") if path.parent.name in METHODS),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_recipes_make_a_model(path):
    """Every recipe parses to the last key, and its model and views fit together."""
    method = path.parent.name
    argv = ["--method", method, "--recipe", path.stem, "--output_dir", "unused"]
    args, training_args, model_args, views_config = parse_with_recipe(PretrainArguments, RECIPES, argv)
    views_values = flat_values(type(views_config), asdict(views_config))
    parsed = vars(args) | vars(training_args) | vars(model_args) | views_values
    recipe = yaml.safe_load(path.read_text())
    for name, value in flat_values(type(views_config), recipe).items():
        actual = parsed[name]
        value = json.loads(value) if name == "lr_scheduler_kwargs" else value
        assert actual == value or str(getattr(actual, "value", actual)) == str(value), name
    data = type("Data", (), {"num_classes": 10})()
    config = build_config(args, model_args, data)
    get_method(method).views_class(views_config, config, 0)


def test_flags_win_over_the_recipe_and_the_recipe_over_the_mode(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("mode: joint\nlearning_rate: 1.0e-4\nfeature: patch_mean\nimage_size: 32\n")
    argv = ["--recipe", str(recipe), "--image_size", "64"]
    args, training_args, model_args, views_config = parse_with_recipe(PretrainArguments, RECIPES, argv)
    assert args.mode == "joint" and args.image_size == 64 and args.recipe == str(recipe)
    assert training_args.learning_rate == 1e-4 and training_args.output_dir == "outputs/relvit-digits"
    assert model_args.feature == "patch_mean" and "classification" in model_args.tasks
    assert views_config.patch_augmentation == "none"


def test_unknown_keys_of_a_recipe_are_refused(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rte: 1.0e-4\n")
    with pytest.raises(ValueError, match="'learning_rte'.*learning_rate"):
        parse_with_recipe(PretrainArguments, RECIPES, ["--recipe", str(recipe)])


def test_recipe_of_a_dataset():
    for method in METHODS:
        assert read_recipe(RECIPES, method, None, "digits")["recipe"] == "digits"
        assert read_recipe(RECIPES, method, None, "path/to/photos")["recipe"] == "default"


# ---- the other way in ----


def test_console_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-ssl"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    usage = capsys.readouterr().out
    assert all(name in usage for name in ("pretrain", "convert", "demo"))
    command = [sys.executable, "-c", "from hf_ssl.cli import main; main()", "pretrain", "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert helped.returncode == 0, helped.stderr
    assert "--patch_augmentation" in helped.stdout and "--max_train_samples" in helped.stdout


def test_convert(tmp_path, monkeypatch, capsys):
    checkpoint = Path(__file__).parents[1] / "fixtures/golden/relvit/vit/checkpoint_pl_class_key.ckpt"
    argv = ["convert.py", "--method", "relvit", "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*argv, "--num_attention_heads", "4", "--verify"])
    runpy.run_path(str(SCRIPTS / "convert.py"), run_name="__main__")
    assert "differ by" in capsys.readouterr().out
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_attention_heads == 4
    AutoModelForPreTraining.from_pretrained(tmp_path / "out" / "pretraining")
    monkeypatch.setattr(sys, "argv", [*argv[:-1], str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="--num_attention_heads"):
        runpy.run_path(str(SCRIPTS / "convert.py"), run_name="__main__")


def test_accuracy_among_training_images_is_not_measured(tmp_path, monkeypatch):
    flags = ["--load_best_model_at_end", "true", "--metric_for_best_model", "knn_top1_train"]
    flags += ["--eval_strategy", "epoch", "--save_strategy", "epoch"]
    with pytest.raises(ValueError, match="knn_top1_train is to be looked at: set --knn_train_samples"):
        pretrain(monkeypatch, "--output_dir", tmp_path / "run", *TINY, *SHORT, *flags)
    assert not (tmp_path / "run").exists()
