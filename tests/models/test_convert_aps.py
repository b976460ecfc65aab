"""Official checkpoints of APS: other sizes, other forms of files, odd ones and hostile ones."""

import os
import re
import subprocess
import sys
import types
from collections import OrderedDict

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_ssl import APSConfig, APSForPreTraining
from hf_ssl.models.aps.convert_aps import CheckpointError, convert, load_official, reference, to_official

from .test_aps import make_batch, perturb


def make_model(heads=3, width=192, image_size=16, patch_size=4, **fields):
    torch.manual_seed(0)
    config = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": heads, "intermediate_size": 96}
    config |= {"image_size": image_size, "patch_size": patch_size, "layer_norm_eps": 1e-5, "qkv_bias": False}
    small = {"projection_dim": 12, "projection_hidden_dim": 20}
    backbone = ViTConfig(**config, pooler_act="linear")
    model = APSForPreTraining(APSConfig(backbone_config=backbone, **{**small, **fields}))
    perturb(model)
    return model.eval()


def official(tmp_path, wrap=lambda state: state, changes=(), **fields):
    """An official-format file, and the model that it was made from."""
    model = make_model(**fields)
    tensors = to_official(model.state_dict())
    for change in changes:
        change(tensors)
    path = tmp_path / "last.pth"
    torch.save(wrap(tensors), path)
    return path, model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: dict(reversed(state.items())),
    ],
    ids=["bare", "ordered", "module", "nested", "other order"],
)
def test_forms_of_a_file(tmp_path, wrap):
    path, model = official(tmp_path, wrap)
    converted = convert(path)
    assert not converted.training
    assert converted.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, None),
        ({"width": 384, "heads": 6}, None),
        ({"width": 48, "heads": 4}, 4),
        ({"image_size": 24, "patch_size": 2, "projection_dim": 7, "projection_hidden_dim": 9}, None),
    ],
)
def test_other_sizes(tmp_path, fields, given):
    path, model = official(tmp_path, **fields)
    converted = convert(path, given)
    for name in ("projection_dim", "projection_hidden_dim", "sampling_ratio", "num_samplings", "temperature"):
        assert getattr(converted.config, name) == getattr(model.config, name), name
    encoder = converted.config.backbone_config
    assert encoder.layer_norm_eps == 1e-5 and not encoder.qkv_bias
    for name in ("num_attention_heads", "image_size", "patch_size", "intermediate_size"):
        assert getattr(encoder, name) == getattr(model.config.backbone_config, name), name
    batch = make_batch(model.config)
    assert torch.equal(converted(**batch).loss, model(**batch).loss)


def test_position_of_the_class_token(tmp_path):
    """Official files have none; ours is zero, whatever the model held there."""
    path, model = official(tmp_path)
    assert load_official(path).tensors["base_encoder.pos_embedding"].shape == (16, 1, 192)
    table = convert(path).student.backbone.embeddings.position_embeddings
    assert not table[:, 0].any()
    assert torch.equal(table[:, 1:], model.student.backbone.embeddings.position_embeddings[:, 1:])


def drop(name):
    return lambda state: state.pop(name)


def put(name, tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("base_encoder.fc.0.weight"), "'base_encoder.fc.0.weight' is missing"),
        (drop("predictor.6.weight"), "'predictor.6.weight' is missing"),
        (drop("base_encoder.transformer.1.norm1.weight"), "does not fit an APS"),
        (drop("base_encoder.pos_embedding"), "holds no ViT encoder"),
        (put("base_encoder.extra", torch.ones(1)), "'base_encoder.extra' is not part of a ViT encoder"),
        (put("queue", torch.ones(1)), "'queue' is not part of an APS"),
        (put("base_encoder.layer_norm.weight", torch.ones(3)), "does not fit an APS"),
        (put("base_encoder.fc.9.weight", torch.ones(3)), "does not fit an APS"),
        (put("base_encoder.pos_embedding", torch.ones(17, 1, 192)), "does not fit an APS"),
        (
            put("predictor.6.weight", torch.ones(12, 20).to_sparse()),
            "'predictor.6.weight', but does not hold its numbers",
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    path, _ = official(tmp_path, changes=[change])
    with pytest.raises(CheckpointError, match=message):
        convert(path)


def test_heads(tmp_path):
    path, _ = official(tmp_path, width=48, heads=4)
    with pytest.raises(CheckpointError, match="give --num_attention_heads"):
        convert(path)
    with pytest.raises(CheckpointError, match="5 does not divide the width 48"):
        convert(path, 5)


def test_another_method(tmp_path):
    torch.save({"encoder.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="neither `base_encoder.`, as what pretraining leaves, nor `fc.weight`"):
        convert(tmp_path / "other.pth")


# ---- classifiers: whole modules ----


class Vit(nn.Module):
    """With the names of the authors' class, and timm's blocks."""

    def __init__(self, width=48, heads=4, depth=2, num_classes=7, eps=1e-5, grid=4, patch_size=4):
        super().__init__()
        reference = VisionTransformer(
            img_size=grid * patch_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            qkv_bias=False,
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.randn(grid**2, 1, width))
        self.patchify = nn.Conv2d(3, width, patch_size, patch_size)
        self.transformer = nn.Sequential(*reference.blocks)
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        for block in self.transformer:
            block.norm1.eps = block.norm2.eps = eps
        self.fc = nn.Linear(width, num_classes)

    def forward(self, pixels):
        """The tokens; the class token has no position."""
        patches = self.patchify(pixels).flatten(2).transpose(1, 2) + self.pos_embedding.transpose(0, 1)
        return self.layer_norm(self.transformer(torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1)))


@pytest.fixture
def authors_module(monkeypatch):
    """The authors' module path, while a file is written; it is gone when the file is read."""
    names = {"module": types.ModuleType("module"), "module.model": types.ModuleType("module.model")}
    names["module.model"].Vit = Vit
    monkeypatch.setattr(Vit, "__module__", "module.model")

    def write(module, path):
        for name, content in names.items():
            sys.modules[name] = content
        try:
            torch.save(module, path)
        finally:
            for name in names:
                del sys.modules[name]

    return write


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_whole_module(tmp_path, authors_module, eps, wrapped):
    """Heads and epsilon are in the file; no class in it is needed, and none is made."""
    torch.manual_seed(0)
    module = Vit(eps=eps)
    path = tmp_path / "best.pth"
    authors_module(nn.DataParallel(module) if wrapped else module, path)
    checkpoint = load_official(path)
    assert checkpoint.num_attention_heads == 4 and checkpoint.layer_norm_eps == eps
    assert checkpoint.tensors.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(checkpoint.tensors[name], tensor), name
    model = convert(path)
    assert isinstance(model, ViTForImageClassification) and model.config.layer_norm_eps == eps
    pixels = torch.randn(2, 3, 16, 16)
    tokens = module(pixels)
    torch.testing.assert_close(model.vit(pixels).last_hidden_state, tokens, rtol=1e-5, atol=1e-5)
    logits = reference(path, pixels, model.config)
    torch.testing.assert_close(logits, module.fc(tokens[:, 0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(pixels).logits, logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="--num_attention_heads 6 contradicts the file, whose attention has 4"):
        convert(path, 6)
    assert convert(path, 4).config.num_attention_heads == 4


def test_classifier_as_tensors(tmp_path):
    """They do not tell the heads, and the epsilon is taken to be the authors'."""
    torch.save(Vit().state_dict(), tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match="give --num_attention_heads"):
        convert(tmp_path / "best.pth")
    config = convert(tmp_path / "best.pth", 4).config
    assert (config.num_labels, config.num_attention_heads, config.layer_norm_eps) == (7, 4, 1e-5)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["module", "dictionary", "attribute"])
@pytest.mark.parametrize("function", ["os.mkdir", "exec", "subprocess.call"])
def test_no_code_is_run(tmp_path, place, function, authors_module):
    """torch itself refuses the first function by its name, and no other."""
    sprung, path = str(tmp_path / "sprung"), tmp_path / "best.pth"
    trap = {
        "os.mkdir": Trap(os.mkdir, sprung),
        "exec": Trap(exec, f"import os; os.mkdir({sprung!r})"),
        "subprocess.call": Trap(subprocess.call, ["mkdir", sprung]),
    }[function]
    if place == "dictionary":
        torch.save({"base_encoder.cls_token": torch.ones(1), "trap": trap}, path)
    else:
        module = Vit()
        module.__dict__["trap"] = trap
        if place == "module":
            module._modules["trap"] = trap
        authors_module(module, path)
    try:
        convert(path, 4)
    except CheckpointError as error:
        assert re.search(r"`posix.mkdir`|an object of `\w+\.(exec|call)`", str(error)), error
    assert not (tmp_path / "sprung").exists()
    spring, arguments = trap.call
    spring(*arguments)
    assert (tmp_path / "sprung").exists(), "the trap would have shown"


def test_whole_module_of_a_pretraining(tmp_path, authors_module):
    """Heads and epsilon are read from its encoder."""
    model = make_model(heads=4, width=48)
    whole = nn.Module.__new__(Vit)
    nn.Module.__init__(whole)
    whole.base_encoder, whole.predictor = Vit(eps=1e-6), model.predictor
    whole.base_encoder.fc = nn.Sequential(*model.student.projector)
    authors_module(whole, tmp_path / "last.pth")
    checkpoint = load_official(tmp_path / "last.pth")
    assert (checkpoint.num_attention_heads, checkpoint.layer_norm_eps) == (4, 1e-6)
    converted = convert(tmp_path / "last.pth")
    assert isinstance(converted, APSForPreTraining)
    encoder = converted.config.backbone_config
    assert (encoder.num_attention_heads, encoder.layer_norm_eps) == (4, 1e-6)


def test_files_of_old_versions_of_torch(tmp_path):
    """They are no zip files; of tensors they are read."""
    path, model = official(tmp_path)
    torch.save(to_official(model.state_dict()), path, _use_new_zipfile_serialization=False)
    assert torch.equal(convert(path).predictor[0].weight, model.predictor[0].weight)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"cls_token": torch.ones(1, 1, 4)}, "neither `base_encoder.`, .* nor `fc.weight` and `fc.bias`"),
        (
            {"cls_token": torch.ones(1), "fc.weight": torch.ones(2, 0), "fc.bias": torch.ones(2)},
            "holds no ViT encoder",
        ),
    ],
)
def test_encoders_without_a_head(tmp_path, tensors, message):
    torch.save(tensors, tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "best.pth", 2)


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_complex_tensors(tmp_path):
    path, _ = official(
        tmp_path, changes=[lambda state: state.update({"predictor.0.weight": state["predictor.0.weight"] + 0j})]
    )
    with pytest.raises(CheckpointError, match="not carried over exactly: .'predictor.0.weight'"):
        convert(path)


def test_damaged_files(tmp_path):
    path, _ = official(tmp_path)
    content = path.read_bytes()
    for damaged in (b"", b"not a checkpoint", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read safely|is empty"):
            convert(path)
    with pytest.raises(CheckpointError, match="There is no checkpoint file"):
        convert(tmp_path / "missing.pth")


def test_modules_in_circles(tmp_path, authors_module):
    module = Vit()
    module._modules["again"] = module
    authors_module(module, tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match="no module, or only a part of one"):
        convert(tmp_path / "best.pth")
