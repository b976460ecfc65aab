"""Official checkpoints of PW-Self: other forms of files, other sizes, odd ones and hostile ones."""

import argparse
import os
import re
import subprocess
from collections import OrderedDict

import pytest
import torch
from torch import nn
from transformers import ViTConfig

from hf_ssl import PWSelfConfig, PWSelfForPreTraining
from hf_ssl.models.official_files import load_checkpoint
from hf_ssl.models.pw_self.convert_pw_self import (
    CheckpointError,
    convert,
    from_official,
    load_official,
    reference,
    to_official,
)

from .test_pw_self import make_batch


SMALL = {"head_hidden_dim": 20, "head_bottleneck_dim": 12, "num_prototypes": 30, "num_local_views": 2}


def make_model(heads=3, width=192, image_size=16, patch_size=4, **fields):
    """Every tensor with values of its own, so that mistakes show."""
    config = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": heads, "intermediate_size": 96}
    config |= {"image_size": image_size, "patch_size": patch_size, "layer_norm_eps": 1e-6, "pooler_act": "linear"}
    model = PWSelfForPreTraining(PWSelfConfig(backbone_config=ViTConfig(**config), **{**SMALL, **fields}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not (name.endswith("weight_g") and model.config.norm_last_layer):
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


# What the authors' script was called with; `arch` and the like are for nobody here.
ARGUMENTS = {
    "arch": "vit_small",
    "patch_size": 4,
    "out_dim": 30,
    "use_bn_in_head": False,
    "norm_last_layer": True,
    "local_crops_number": 2,
    "momentum_teacher": 0.99,
    "warmup_teacher_temp": 0.03,
    "teacher_temp": 0.06,
    "warmup_teacher_temp_epochs": 7,
    "freeze_last_layer": 2,
    "drop_path_rate": 0.2,
    "global_crops_scale": (0.4, 1.0),
    "batch_size_per_gpu": 6,
}
READ = {
    "num_local_views": 2,
    "norm_last_layer": True,
    "teacher_momentum": 0.99,
    "warmup_teacher_temperature": 0.03,
    "teacher_temperature": 0.06,
    "teacher_temperature_warmup_epochs": 7,
    "frozen_last_layer_epochs": 2,
    "drop_path_rate": 0.2,
}


def authors_file(tensors, student="module.", teacher="", arguments=None):
    """What their script writes: a student of several processes, a teacher of one."""
    names = {"student": student, "teacher": teacher}
    content = {
        branch: {
            prefix + name.removeprefix(f"{branch}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{branch}.")
        }
        for branch, prefix in names.items()
    }
    groups = [{"lr": 1e-3, "weight_decay": 0.04, "params": [0]}]
    content |= {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": groups}, "epoch": 3}
    content["args"] = argparse.Namespace(**ARGUMENTS) if arguments is None else arguments
    return content | {"dino_loss": OrderedDict(center=tensors["center"]), "fp16_scaler": {"scale": 65536.0}}


def official(tmp_path, wrap=authors_file, changes=(), **fields):
    """An official-format file, and the model that it was made from."""
    model = make_model(**fields)
    tensors = to_official(model.state_dict())
    for change in changes:
        change(tensors)
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(tensors), path)
    return path, model


def called_with(**changes):
    """A file of their script, called with other arguments."""
    return lambda tensors: authors_file(tensors, arguments=argparse.Namespace(**ARGUMENTS | changes))


def without(*keys):
    def wrap(tensors):
        return {key: value for key, value in authors_file(tensors).items() if key not in keys}

    return wrap


FORMS = {
    "authors": authors_file,
    "one process": lambda tensors: authors_file(tensors, student=""),
    "batch norm": lambda tensors: authors_file(tensors, teacher="module."),
    "dictionary": lambda tensors: authors_file(tensors, arguments=dict(ARGUMENTS)),
    "no optimizer": without("optimizer", "fp16_scaler", "epoch"),
    "other order": lambda tensors: authors_file(dict(reversed(tensors.items()))),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_file(tmp_path, form):
    path, model = official(tmp_path, FORMS[form])
    converted = convert(path)
    assert not converted.training
    assert converted.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    assert {name: getattr(converted.config, name) for name in READ} == READ
    assert not any(p.requires_grad for p in converted.teacher.parameters())


@pytest.mark.parametrize(
    "wrap", [without("args"), lambda tensors: authors_file(tensors) | {"args": None}], ids=["left out", "none"]
)
def test_without_arguments(tmp_path, wrap):
    """What no tensor tells is then what our configuration has."""
    path, model = official(tmp_path, wrap)
    converted = convert(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    defaults = PWSelfConfig()
    assert {name: getattr(converted.config, name) for name in READ} == {name: getattr(defaults, name) for name in READ}


@pytest.mark.parametrize("left_out", [("student",), ("student", "dino_loss", "args", "optimizer")])
def test_file_of_the_teacher(tmp_path, left_out):
    """The student starts from it; without a center, as if nothing had been seen yet."""
    path, model = official(tmp_path, without(*left_out))
    converted = convert(path)
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(converted.teacher.state_dict()[name], tensor), name
        assert torch.equal(converted.student.state_dict()[name], tensor), name
    center = torch.zeros_like(model.center) if "dino_loss" in left_out else model.center
    assert torch.equal(converted.center, center)
    assert converted.student.head.mlp[0].weight.requires_grad


@pytest.mark.parametrize("loss", [{}, {"center": None}, None, "lost"])
def test_no_center(tmp_path, loss):
    path, model = official(tmp_path, lambda tensors: authors_file(tensors) | {"dino_loss": loss})
    converted = convert(path)
    assert not converted.center.any() and converted.center.shape == model.center.shape
    assert torch.equal(converted.student.head.last_layer.weight_v, model.student.head.last_layer.weight_v)


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, None),
        ({"width": 384, "heads": 6}, None),
        ({"width": 48, "heads": 4}, 4),
        ({"image_size": 24, "patch_size": 2}, None),
        ({"image_size": 15, "patch_size": 5}, None),
        ({"num_prototypes": 7, "head_hidden_dim": 9, "head_bottleneck_dim": 5}, None),
        ({"norm_last_layer": False}, None),
        ({"num_local_views": 0}, None),
    ],
)
def test_other_sizes(tmp_path, fields, given):
    arguments = {
        "norm_last_layer": fields.get("norm_last_layer", True),
        "local_crops_number": fields.get("num_local_views", 2),
    }
    path, model = official(tmp_path, called_with(**arguments), **fields)
    converted = convert(path, given)
    sizes = "num_prototypes", "head_hidden_dim", "head_bottleneck_dim", "num_local_views", "norm_last_layer", "grid"
    for name in sizes:
        assert getattr(converted.config, name) == getattr(model.config, name), name
    encoder = converted.config.backbone_config
    assert encoder.layer_norm_eps == 1e-6 and encoder.qkv_bias
    for name in ("num_attention_heads", "image_size", "patch_size", "intermediate_size", "num_hidden_layers"):
        assert getattr(encoder, name) == getattr(model.config.backbone_config, name), name
    lengths = converted.student.head.last_layer.weight_g
    assert lengths.requires_grad != converted.config.norm_last_layer
    assert torch.equal(lengths, model.student.head.last_layer.weight_g)
    assert (lengths == 1).all() == converted.config.norm_last_layer
    generator = torch.Generator().manual_seed(0)
    side = encoder.image_size
    pixel_values = torch.randn(2, 3, 3, side, side, generator=generator)
    place = torch.arange(converted.config.grid[0] ** 2)
    inputs = {"global_matches": torch.stack([place, place.flip(0)], dim=-1).expand(2, 1, -1, -1)}
    losses = [m(pixel_values, **inputs, teacher_temperature=0.05).loss for m in (converted, model)]
    assert torch.equal(*losses)


def test_trained_lengths_of_prototypes_need_no_arguments(tmp_path):
    """They are carried over, whatever the arguments say of their training."""
    path, model = official(tmp_path, norm_last_layer=False)
    assert torch.equal(convert(path).student.head.last_layer.weight_g, model.student.head.last_layer.weight_g)


@torch.no_grad()
@pytest.mark.parametrize(("which", "branch"), [(None, "teacher"), ("teacher", "teacher"), ("student", "student")])
def test_encoder_is_that_of_the_file(tmp_path, which, branch):
    """By timm, with the tensors as they stand in the file; in the model, and published."""
    path, _ = official(tmp_path)
    model = convert(path)
    pixel_values = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = reference(path, pixel_values, model.config.backbone_config, which)
    for tokens in (
        getattr(model, branch).backbone(pixel_values),
        model.export_encoder(which)(pixel_values).last_hidden_state,
    ):
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_scores_are_those_of_the_authors_head(tmp_path):
    """Their layers, with the tensors of the file: an MLP, vectors of length 1, and torch's own weight normalization."""
    path, _ = official(tmp_path, norm_last_layer=False)
    tensors = {name: t for name, t in load_checkpoint(path)["teacher"].items() if "head." in name}
    mlp = nn.Sequential(nn.Linear(192, 20), nn.GELU(), nn.Linear(20, 20), nn.GELU(), nn.Linear(20, 12))
    mlp.load_state_dict({name.removeprefix("head.mlp."): t for name, t in tensors.items() if ".mlp." in name})
    last = nn.utils.parametrizations.weight_norm(nn.Linear(12, 30, bias=False))
    last.parametrizations.weight.original0.copy_(tensors["head.last_layer.weight_g"])
    last.parametrizations.weight.original1.copy_(tensors["head.last_layer.weight_v"])
    assert len(tensors) == 8
    tokens = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(0))
    expected = last(nn.functional.normalize(mlp(tokens), dim=-1))
    torch.testing.assert_close(convert(path).teacher.head(tokens), expected, rtol=1e-5, atol=1e-6)


# ---- names, there and back ----


def test_names():
    """Those of the authors: every one has its place, and the shapes are theirs."""
    state = to_official(make_model().state_dict())
    branch = {
        name.removeprefix("teacher."): tuple(t.shape) for name, t in state.items() if name.startswith("teacher.")
    }
    layer = {"norm1": (192,), "attn.qkv": (576, 192), "attn.proj": (192, 192), "norm2": (192,)}
    layer |= {"mlp.fc1": (96, 192), "mlp.fc2": (192, 96)}
    modules = {f"backbone.blocks.{i}.{name}": shape for i in (0, 1) for name, shape in layer.items()}
    modules |= {"backbone.patch_embed.proj": (192, 3, 4, 4), "backbone.norm": (192,)}
    modules |= {"head.mlp.0": (20, 192), "head.mlp.2": (20, 20), "head.mlp.4": (12, 20)}
    expected = {f"{name}.weight": shape for name, shape in modules.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in modules.items()}
    expected |= {"backbone.cls_token": (1, 1, 192), "backbone.pos_embed": (1, 17, 192)}
    expected |= {"head.last_layer.weight_g": (30, 1), "head.last_layer.weight_v": (30, 12)}
    assert branch == expected
    assert state["center"].shape == (1, 17, 30) and len(state) == 2 * len(branch) + 1


def test_there_and_back(tmp_path):
    path, model = official(tmp_path)
    tensors = load_official(path).tensors
    again = to_official(from_official(tensors))
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], t) for name, t in tensors.items())
    assert from_official(tensors).keys() == model.state_dict().keys()


def test_gradients_and_parts_have_official_names():
    """Of one layer, of one branch, or without a center."""
    model = make_model()
    batch = make_batch(model.config)
    model(**batch).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = to_official(gradients)
    assert all(name.startswith("student.") for name in names)
    layer = model.student.backbone.layers[1].attention
    parts = [getattr(layer, f"{part}_proj").weight.grad for part in "qkv"]
    assert torch.equal(names["student.backbone.blocks.1.attn.qkv.weight"], torch.cat(parts))
    back = from_official(names)
    assert back.keys() == gradients.keys() and all(torch.equal(back[name], t) for name, t in gradients.items())
    assert from_official({}) == to_official({}) == {}


# ---- heads of the attention ----


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12)])
def test_heads_of_official_sizes(tmp_path, width, heads):
    path, _ = official(tmp_path, width=width, heads=heads)
    assert convert(path).config.backbone_config.num_attention_heads == heads


def test_heads_are_asked_for(tmp_path):
    path, _ = official(tmp_path, width=48, heads=4)
    with pytest.raises(CheckpointError, match="width 48 is not that of an official size: give --num_attention_heads"):
        convert(path)
    for heads in (0, -2, 5):
        with pytest.raises(CheckpointError, match=f"num_attention_heads {heads} does not divide the width 48"):
            convert(path, heads)
    assert convert(path, 12).config.backbone_config.num_attention_heads == 12


# ---- files that do not fit ----


def drop(*prefixes):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefixes)]


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("teacher.head.last_layer"), "holds no head"),
        (drop("teacher.head.mlp.0.weight"), "holds no head"),
        (drop("teacher.head.mlp.4.bias"), r"does not fit a PW-Self.*teacher\.head\.mlp\.4\.bias"),
        (drop("student.head.last_layer.weight_g"), r"does not fit.*student\.head\.last_layer\.weight_g"),
        (drop("student.head."), r"does not fit.*student\.head\.mlp\.0\.weight"),
        (
            drop("student.backbone.blocks.1.norm2.bias"),
            r"does not fit.*student\.backbone\.layers\.1\.layernorm_after\.bias",
        ),
        (drop("teacher.backbone.blocks."), "does not fit a PW-Self.*blocks.0"),
        (drop("teacher.backbone.pos_embed"), "holds no ViT encoder"),
        (drop("teacher.backbone.patch_embed"), "holds no ViT encoder"),
        (
            put("student.backbone.blocks.0.ls1.gamma", torch.ones(2)),
            r"'student\.backbone\.blocks\.0\.ls1\.gamma' is not part",
        ),
        (put("teacher.queue", torch.ones(2)), r"'teacher\.queue' is not part of a PW-Self"),
        (put("student.head.mlp.1.running_mean", torch.ones(20)), r"does not fit.*student\.head\.mlp\.1\.running_mean"),
        (put("teacher.backbone.norm.weight", torch.ones(5)), r"does not fit.*teacher\.backbone\.layernorm\.weight"),
        (
            put("student.head.last_layer.weight_v", torch.ones(31, 12)),
            r"does not fit.*student\.head\.last_layer\.weight_v",
        ),
        (put("student.backbone.blocks.0.attn.qkv.bias", torch.ones(4)), "does not fit a PW-Self"),
        (put("teacher.backbone.pos_embed", torch.ones(1, 18, 192)), "does not fit a PW-Self"),
        (put("center", torch.zeros(1, 10, 30)), "does not fit a PW-Self.*center"),
        (put("center", torch.zeros(1, 30)), "does not fit a PW-Self.*center"),  # DINO's, one for all places
        (put("center", torch.zeros(())), "does not fit a PW-Self"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    """What is missing, left over, or of another size is named."""
    path, _ = official(tmp_path, changes=[change])
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        convert(path)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"encoder.weight": torch.ones(2)}},
        {name: torch.ones(2) for name in ("cls_token", "pos_embed")},  # DINO's encoders, which evaluations once took
        [torch.ones(2)],
        torch.ones(2),
    ],
    ids=["another method", "encoder", "list", "tensor"],
)
def test_other_files(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not of a PW-Self pretraining: it has no `teacher`.*checkpoint0020.pth"):
        convert(tmp_path / "other.pth")


@pytest.mark.parametrize("teacher", [None, 3, argparse.Namespace(weight=1), {7: torch.ones(2)}, {"weight": "lost"}])
def test_teacher_that_is_none(tmp_path, teacher):
    for branch in ("teacher", "student"):
        path, _ = official(tmp_path, lambda tensors, branch=branch: authors_file(tensors) | {branch: teacher})
        with pytest.raises(CheckpointError, match="no `state_dict` of tensors|in the place of a `state_dict`"):
            convert(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("teacher_temp", -1.0), ("teacher_temp", "hot"), ("local_crops_number", 2.5), ("drop_path_rate", 1.0)],
)
def test_arguments_that_make_no_sense(tmp_path, name, value):
    path, _ = official(tmp_path, called_with(**{name: value}))
    with pytest.raises(CheckpointError, match="does not fit a PW-Self"):
        convert(path)


@pytest.mark.parametrize("arguments", [3, "--arch vit_small", ["--arch"]])
def test_arguments_of_another_kind(tmp_path, arguments):
    """Nothing is read from them, or the file is refused; it does not end in a traceback of ours."""
    path, model = official(tmp_path, lambda tensors: authors_file(tensors, arguments=arguments))
    try:
        converted = convert(path)
    except CheckpointError as error:
        assert "checkpoint.pth" in str(error)
    else:
        assert torch.equal(converted.center, model.center)


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_complex_tensors(tmp_path):
    path, _ = official(tmp_path, changes=[lambda t: t.update({"student.head.mlp.0.weight": 1j * torch.ones(20, 192)})])
    with pytest.raises(CheckpointError, match=r"not carried over exactly: .'student\.head\.mlp\.0\.weight'"):
        convert(path)


@torch.no_grad()
def test_half_precision(tmp_path):
    path, _ = official(tmp_path, changes=[lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()})])
    written, converted = load_official(path).tensors, convert(path)
    assert written["teacher.backbone.cls_token"].dtype == torch.float16
    for name, tensor in to_official(converted.state_dict()).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, written[name].float()), name


def test_damaged_files(tmp_path):
    path, _ = official(tmp_path)
    content = path.read_bytes()
    for damaged in (b"", b"not a checkpoint", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read safely|is empty"):
            convert(path)
    for name in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(CheckpointError, match="There is no checkpoint file|is a folder"):
            convert(name)


# ---- hostile files ----


class Trap:
    """Does something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def in_arguments(content, trap):
    content["args"].trap = trap


def in_teacher(content, trap):
    content["teacher"]["trap"] = trap


def in_optimizer(content, trap):
    content["optimizer"]["state"][0]["step"] = trap


def in_loss(content, trap):
    content["dino_loss"]["center"] = trap


@pytest.mark.parametrize("place", [in_arguments, in_teacher, in_optimizer, in_loss])
@pytest.mark.parametrize("function", ["os.mkdir", "exec", "subprocess.call"])
def test_no_code_is_run(tmp_path, place, function):
    """Where the place is not looked at, nothing is missing; torch itself refuses the first function by its name."""
    sprung = str(tmp_path / "sprung")
    trap = {
        "os.mkdir": Trap(os.mkdir, sprung),
        "exec": Trap(exec, f"import os; os.mkdir({sprung!r})"),
        "subprocess.call": Trap(subprocess.call, ["mkdir", sprung]),
    }[function]
    path, model = official(tmp_path)
    content = authors_file(to_official(make_model().state_dict()))
    place(content, trap)
    for zipped in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        try:
            converted = convert(path)
        except CheckpointError as error:
            assert re.search(r"(asks for|an object of) `[\w.]*(mkdir|exec|call|Namespace)`", str(error)), error
            assert "weights_only" not in str(error), "torch's advice to let it run"
        else:
            assert zipped and function != "os.mkdir" and place in (in_arguments, in_optimizer)
            assert torch.equal(converted.center, model.center) and converted.config.num_local_views == 2
    assert not (tmp_path / "sprung").exists()
    spring, arguments = trap.call
    spring(*arguments)
    assert (tmp_path / "sprung").exists(), "the trap would have shown"


def test_pickled_modules_are_named(tmp_path):
    torch.save({"teacher": nn.Sequential(nn.Linear(2, 2))}, tmp_path / "whole.pth")
    with pytest.raises(
        CheckpointError, match=r"an object of `torch\.nn\.modules[\w.]+` in the place of a `state_dict`"
    ):
        convert(tmp_path / "whole.pth")


def test_linear_layers_of_evaluations_are_named(tmp_path):
    state = {"module.linear.weight": torch.ones(10, 192), "module.linear.bias": torch.ones(10)}
    torch.save(
        {"epoch": 3, "state_dict": state, "optimizer": {}, "scheduler": {}, "best_acc": 70.0}, tmp_path / "c.pth"
    )
    with pytest.raises(
        CheckpointError, match="PW-Self's linear evaluation, and holds a linear layer without an encoder"
    ):
        convert(tmp_path / "c.pth")


def test_what_is_let_in_is_let_in_for_one_file_only(tmp_path):
    """What is read later has to ask for it again."""
    path, _ = official(tmp_path)
    before = torch.serialization.get_safe_globals()
    convert(path)
    assert torch.serialization.get_safe_globals() == before
