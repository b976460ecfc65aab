"""`pretrain.py --model`: training on from the whole model that an earlier run published."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForPreTraining

from hf_ssl.arguments import PretrainArguments, build_inputs, parse_with_recipe
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models import METHODS, get_method
from hf_ssl.pretrained import load_pretrained
from hf_ssl.views import save_views

from .common import make_aps, make_isl, make_model, make_patchmix, make_pw_self, make_swin
from .test_pretrain import RECIPES, pretrain, results_of


JOINT = {"tasks": ["classification", "relations"], "num_labels": 10}
# Options that no recipe has, so that it shows where values come from.
MODELS = {
    "relvit": lambda: make_model(drop_path_rate=0.23),
    "relvit, joint": lambda: make_model(**JOINT),
    "relvit, swin": make_swin,
    "patchmix": lambda: make_patchmix(temperature=0.31),
    "aps": lambda: make_aps(temperature=0.17),
    "pw_self": lambda: make_pw_self(teacher_temperature=0.055),
    "isl": lambda: make_isl(temperature=0.13),
}


def published(folder, name):
    """What a run leaves of a model, every tensor with values of its own; its views are normalized in an unusual way."""
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    export_run(model, evaluation_processor(16, [0.21] * 3, [0.32] * 3, 0.8), folder)
    views = parse_with_recipe(PretrainArguments, RECIPES, ["--method", name.partition(",")[0]])[3]  # those of digits
    views.image_mean, views.image_std = [0.21] * 3, [0.32] * 3
    save_views(views, folder / "pretraining")
    return model


def parsed(folder, name, *flags):
    argv = ["--method", name.partition(",")[0], "--model", str(folder), "--output_dir", "unused", *flags]
    return parse_with_recipe(PretrainArguments, RECIPES, argv)


def settings(config):
    """A configuration without what says how and where it was saved; digits have classes, whether they are used or not."""
    of_file = ("id2label", "label2id", "architectures", "transformers_version", "_name_or_path", "dtype")
    values = {name: value for name, value in config.to_dict().items() if name not in of_file}
    return values | {"backbone_config": {k: v for k, v in values["backbone_config"].items() if k not in of_file}}


@pytest.mark.parametrize("name", MODELS)
def test_model_is_that_of_the_folder(tmp_path, name):
    model = published(tmp_path, name)
    args, _, model_args, views_config = parsed(tmp_path, name)
    _, config, views, _ = build_inputs(args, model_args, views_config, 0)
    assert args.mode == ("joint" if "joint" in name else next(iter(config.modes)))
    assert settings(config) == settings(AutoModelForPreTraining.from_pretrained(tmp_path / "pretraining").config)
    assert views.config.image_mean == [0.21] * 3 and views.config.image_std == [0.32] * 3
    assert args.eval_crop_ratio == pytest.approx(16 / 20)
    loaded = load_pretrained(args.model, None, config, get_method(args.method))
    states = loaded.state_dict(), model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    trained = {key for key, parameter in loaded.named_parameters() if parameter.requires_grad}
    model.freeze()
    assert trained == {key for key, parameter in model.named_parameters() if parameter.requires_grad}


def test_flags_win(tmp_path):
    published(tmp_path, "patchmix")
    args, _, model_args, views_config = parsed(
        tmp_path, "patchmix", "--temperature", "0.5", "--image_mean", "0.4", "0.4", "0.4", "--dropout", "0.2"
    )
    assert model_args.temperature == 0.5 and model_args.projection_dim == 8
    assert views_config.image_mean == [0.4] * 3 and views_config.image_std == [0.32] * 3
    _, config, _, _ = build_inputs(args, model_args, views_config, 0)
    assert config.temperature == 0.5 and config.backbone_config.hidden_dropout_prob == 0.2


def test_run(tmp_path, monkeypatch):
    """A step so small that it changes nothing: what is published is what it began with, and what it was before."""
    published(tmp_path / "first", "patchmix")
    flags = ["--max_steps", "1", "--learning_rate", "1e-30", "--min_learning_rate", "0", "--weight_decay", "0"]
    flags += ["--knn_query_samples", "50", "--per_device_train_batch_size", "8", "--teacher_momentum", "1"]
    run = tmp_path / "second"
    earlier = [run / "onnx/model.onnx.data", run / "evaluation.md", run / "figures/report/map.png", run / "notes.md"]
    for path in earlier:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of an earlier model")
    pretrain(monkeypatch, "--method", "patchmix", "--model", tmp_path / "first", "--output_dir", run, *flags)
    first, second = (
        AutoModelForPreTraining.from_pretrained(folder / "pretraining").state_dict()
        for folder in (tmp_path / "first", run)
    )
    for key, tensor in first.items():
        if "running_" not in key and "num_batches" not in key:
            torch.testing.assert_close(second[key], tensor, msg=lambda text, key=key: f"{key}: {text}")
    assert results_of(run)["knn_top1_before"] == results_of(run)["knn_top1"]
    assert json.loads((run / "pretraining/views.json").read_text())["image_mean"] == [0.21] * 3
    assert [path.exists() for path in earlier] == [False, False, False, True]
    assert not list(Path(".").glob("unused*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "vit-small"], "--backbone vit-small: --model .* brings its own encoder"),
        (["--image_size", "32"], "--image_size 32: --model"),
        (["--patch_size", "2"], "--patch_size 2: --model"),
        (["--mode", "joint"], "--mode joint: --model .* leave --mode out"),
        (["--projection_dim", "16"], "does not fit the options of this run"),
        (["--use_teacher", "false"], "parts that this run asks for; teacher"),
    ],
)
def test_flags_that_ask_for_another_model(tmp_path, flags, message):
    published(tmp_path, "patchmix")
    with pytest.raises(ValueError, match=message):
        args, _, model_args, views_config = parsed(tmp_path, "patchmix", *flags)
        config = build_inputs(args, model_args, views_config, 0)[1]
        load_pretrained(args.model, None, config, get_method("patchmix"))


def test_without_recorded_views(tmp_path):
    """What a conversion leaves: images are normalized as its processor does, not as a recipe says."""
    published(tmp_path, "aps")
    (tmp_path / "pretraining/views.json").unlink()
    assert parsed(tmp_path, "aps")[3].image_mean == [0.21] * 3


def test_named_in_a_recipe(tmp_path):
    published(tmp_path / "model", "aps")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {tmp_path / 'model'}\nlearning_rate: 1.0e-4\n")
    argv = ["--method", "aps", "--recipe", str(recipe), "--output_dir", "unused"]
    args, training_args, model_args, _ = parse_with_recipe(PretrainArguments, RECIPES, argv)
    assert args.model == args.backbone == str(tmp_path / "model") and training_args.learning_rate == 1e-4
    assert model_args.temperature == 0.17
    with pytest.raises(ValueError, match="--revision v1 is that of a --model"):
        parse_with_recipe(PretrainArguments, RECIPES, ["--method", "aps", "--revision", "v1"])


def test_the_folder_itself_is_not_replaced(tmp_path, monkeypatch):
    published(tmp_path, "patchmix")
    with pytest.raises(ValueError, match=r"--output_dir is --model, \S+: the new model would replace it"):
        pretrain(monkeypatch, "--method", "patchmix", "--model", tmp_path, "--output_dir", tmp_path)


def test_measuring_again_is_of_the_output_folder(tmp_path, monkeypatch):
    published(tmp_path / "first", "patchmix")
    flags = ["--model", tmp_path / "first", "--output_dir", tmp_path / "second", "--do_train", "false"]
    with pytest.raises(ValueError, match="--do_train false measures the model in --output_dir"):
        pretrain(monkeypatch, "--method", "patchmix", *flags)


def test_another_method(tmp_path):
    published(tmp_path, "aps")
    with pytest.raises(ValueError, match="is a model of type aps: set --method aps"):
        parsed(tmp_path, "patchmix")


def test_encoder_alone(tmp_path):
    published(tmp_path, "aps")
    (tmp_path / "pretraining").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="has no pretraining/ that can be read"):
        parsed(tmp_path, "aps")


def test_all_methods_are_tried():
    assert {name.partition(",")[0] for name in MODELS} == set(METHODS)
