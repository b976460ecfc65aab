"""Official checkpoints of other sizes, odd ones and hostile ones; the proof that a conversion is right."""

import os
import pickle
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining, ViTConfig, ViTForImageClassification

from hf_ssl import PatchMixConfig, PatchMixForPreTraining
from hf_ssl.models.patchmix.convert_patchmix import CheckpointError, convert, load_official, reference, to_official

from .test_patchmix import make_batch, perturb


CONVERT = Path(__file__).parents[2] / "training" / "convert.py"
SMALL = {"projection_dim": 12, "projection_hidden_dim": 20, "num_local_views": 0}


def make_model(heads=1, width=192, image_size=16, patch_size=4, **fields):
    torch.manual_seed(0)
    config = {"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": heads, "intermediate_size": 96}
    config |= {"image_size": image_size, "patch_size": patch_size, "layer_norm_eps": 1e-6, "pooler_act": "linear"}
    model = PatchMixForPreTraining(PatchMixConfig(backbone_config=ViTConfig(**config), **{**SMALL, **fields}))
    perturb(model)
    return model.eval()


def official(tmp_path, changes=(), wrap=lambda state: {"state_dict": state}, **fields):
    """An official-format file, and the model that it was made from."""
    model = make_model(**{"heads": 3, **fields})
    tensors = to_official(model.state_dict())
    for change in changes:
        change(tensors)
    path = tmp_path / "last.pth"
    torch.save(wrap(tensors), path)
    return path, model


def periodic(state):
    """As the authors write them: numpy's numbers among the optimizer's."""
    groups = [{"lr": np.float64(1e-3), "weight_decay": np.float32(0.04), "steps": np.int64(3), "params": [0]}]
    return {"epoch": 3, "arch": "vit-tiny", "state_dict": state, "optimizer": {"param_groups": groups}, "scaler": {}}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state},
        lambda state: state,
        periodic,
        lambda state: periodic({f"module.{name}": tensor for name, tensor in state.items()}),
    ],
    ids=["last", "bare", "periodic", "module"],
)
def test_forms_of_a_file(tmp_path, wrap):
    path, model = official(tmp_path, wrap=wrap)
    converted = convert(path)
    assert not converted.training
    assert converted.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name


def test_numpy_1_scalars(tmp_path):
    """Files written with numpy 1 name a module that numpy 2 has moved."""
    path, model = official(tmp_path, wrap=periodic)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    with torch.serialization.safe_globals([]), pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(path, weights_only=True)
    old = tmp_path / "old.pth"
    rewrite_pickle(path, old, b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert torch.equal(convert(old).predictor[0].weight, model.predictor[0].weight)


def rewrite_pickle(source, target, before, after):
    """Replace a name in the pickle of a zip file of torch.save."""
    import zipfile

    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for item in archive.infolist():
            data = archive.read(item)
            assert not item.filename.endswith("data.pkl") or before in data
            copy.writestr(item.filename, data.replace(before, after) if item.filename.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_teacher": False},
        {"num_projector_layers": 1, "num_predictor_layers": 3},
        {"num_projector_layers": 4, "num_predictor_layers": 1},
        {"num_projector_layers": 1, "num_predictor_layers": 1},
        {"width": 48, "heads": 4},
    ],
)
def test_other_models(tmp_path, fields):
    path, model = official(tmp_path, **fields)
    converted = convert(path, fields.get("heads"))
    for name in ("use_teacher", "projection_dim", "num_projector_layers", "num_predictor_layers"):
        assert getattr(converted.config, name) == getattr(model.config, name), name
    converted.config.num_local_views = 0
    batch = make_batch(model.config)
    assert torch.equal(converted(**batch).loss, model(**batch).loss)
    assert (converted.teacher is None) == (fields.get("use_teacher") is False)


def test_order_of_the_tensors_does_not_matter(tmp_path):
    path, model = official(tmp_path, wrap=lambda state: dict(reversed(state.items())))
    assert torch.equal(convert(path).predictor[3].weight, model.predictor[3].weight)


@pytest.mark.parametrize(("image_size", "num_local_views"), [(32, 0), (224, 8)])
def test_small_views_are_those_of_the_authors(tmp_path, image_size, num_local_views):
    """On CIFAR they use none."""
    path, _ = official(tmp_path, image_size=image_size, patch_size=image_size // 4)
    assert convert(path).config.num_local_views == num_local_views


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 12), (768, 12)])
def test_heads_of_official_sizes(tmp_path, width, heads):
    """vit-small has twelve, as MoCo v3's."""
    path, _ = official(tmp_path, width=width, heads=heads, projection_hidden_dim=8)
    assert convert(path).config.backbone_config.num_attention_heads == heads


def drop(*prefixes):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefixes)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("base_encoder."), "not of PatchMix: it has neither `base_encoder.`"),
        (drop("base_encoder.head."), "no projector"),
        (drop("predictor."), "no predictor"),
        (drop("base_encoder.blocks."), "does not fit"),
        (drop("momentum_encoder.blocks.1."), "does not fit"),
        (drop("base_encoder.head.4.running_mean"), "does not fit"),
        (drop("base_encoder.patch_embed"), "no ViT encoder"),
        (
            lambda t: t.update({"base_encoder.blocks.0.ls1.gamma": torch.zeros(2)}),
            "'base_encoder.blocks.0.ls1.gamma' is not",
        ),
        (lambda t: t.update({"queue": torch.zeros(2)}), "'queue' is not part of a PatchMix"),
        (lambda t: t.update({"base_encoder.norm.weight": torch.zeros(5)}), "does not fit"),
        (lambda t: t.update({7: torch.zeros(5)}), "no `state_dict` of tensors"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    path, _ = official(tmp_path, [change])
    with pytest.raises(CheckpointError, match=message):
        convert(path)


# ---- linear probes and fine-tuned classifiers ----


def make_classifier(heads=3, width=192, eps=1e-6, num_classes=7):
    """timm's, whose names theirs are, with an epsilon that shows."""
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=eps)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": width, "depth": 2, "num_heads": heads, "mlp_ratio": 2}
    module = VisionTransformer(**sizes, num_classes=num_classes, norm_layer=norm).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return module


def probe(state):
    """Of a linear probe or fine-tuning, as the authors write it after each epoch."""
    return periodic(state) | {"acc_best": np.float64(90.0)}


@pytest.mark.parametrize(
    "wrap",
    [probe, lambda state: state, lambda state: probe({f"module.{name}": t for name, t in state.items()})],
    ids=["periodic", "bare", "module"],
)
@pytest.mark.parametrize("width", [192, 384])
@torch.no_grad()
def test_classifiers(tmp_path, wrap, width):
    """Heads are those of the authors' models."""
    module, pixels = make_classifier({192: 3, 384: 12}[width], width), torch.randn(2, 3, 16, 16)
    torch.save(wrap(module.state_dict()), tmp_path / "checkpoint.pth")
    model = convert(tmp_path / "checkpoint.pth")
    assert isinstance(model, ViTForImageClassification) and not model.training
    assert model.config.num_labels == 7 and model.config.layer_norm_eps == 1e-6
    torch.testing.assert_close(model(pixels).logits, module(pixels), rtol=1e-5, atol=1e-5)
    logits = reference(tmp_path / "checkpoint.pth", pixels, model.config)
    torch.testing.assert_close(logits, module(pixels), rtol=1e-5, atol=1e-5)
    torch.save(wrap(make_classifier(heads=1, width=64).state_dict()), tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="give --num_attention_heads"):
        convert(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_pickled_modules(tmp_path, wrapped):
    """best.pth: heads and epsilon, which no tensor tells, are in it; no class in it is made."""
    module, pixels = make_classifier(heads=6, eps=1e-3), torch.randn(2, 3, 16, 16)
    torch.save(nn.DataParallel(module) if wrapped else module, tmp_path / "best.pth")
    model = convert(tmp_path / "best.pth")
    assert model.config.num_attention_heads == 6 and model.config.layer_norm_eps == 1e-3
    torch.testing.assert_close(model(pixels).logits, module(pixels), rtol=1e-5, atol=1e-5)
    assert convert(tmp_path / "best.pth", 6).config.num_attention_heads == 6
    with pytest.raises(CheckpointError, match="--num_attention_heads 3 contradicts the file, whose attention has 6"):
        convert(tmp_path / "best.pth", 3)


def test_pickled_modules_of_old_versions_of_torch(tmp_path):
    torch.save(make_classifier(), tmp_path / "best.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"an object of `timm\.[\w.]+`.* torch before 1.6.*save it again"
    ) as error:
        convert(tmp_path / "best.pth")
    assert "weights_only" not in str(error.value), "torch's advice to let it run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "neither `base_encoder.`.* nor `head.weight` and `head.bias`"),
        (lambda t: t.update({"head.weight": torch.ones(7, 5)}), "does not fit a PatchMix"),
        (
            lambda t: t.update({"head.weight": torch.ones(7, 192), "head.bias": torch.ones(6)}),
            "does not fit a PatchMix",
        ),
        (lambda t: t.update({"head.2.weight": torch.ones(7, 192)}), "does not fit a PatchMix"),
        (lambda t: t.update({"fc_norm.weight": torch.ones(192)}), "'fc_norm.weight' is not part of a ViT encoder"),
        (lambda t: t.pop("blocks.1.norm2.bias"), "does not fit a PatchMix"),
        (
            lambda t: t.update({"norm.weight": torch.full((192,), float("nan"))}),
            "'norm.weight' holds numbers that are not",
        ),
    ],
)
def test_classifiers_that_do_not_fit(tmp_path, change, message):
    state = make_classifier().state_dict()
    change(state)
    torch.save(probe(state), tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("heads", [0, -2, 5])
def test_wrong_number_of_heads(tmp_path, heads):
    path, _ = official(tmp_path)
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        convert(path, heads)


def test_heads_are_asked_for(tmp_path):
    path, _ = official(tmp_path, width=64, heads=1)
    with pytest.raises(CheckpointError, match="width 64 is not that of an official size: give --num_attention_heads"):
        convert(path)


def test_damaged_files(tmp_path):
    path, _ = official(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    for name in (path, tmp_path / "missing.pth", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read safely|no checkpoint file|is a folder"):
            convert(name)


def test_code_in_a_file_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for name, save in (
        ("a.pth", torch.save),
        ("b.pth", lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))),
    ):
        save({"state_dict": {"base_encoder.cls_token": Hostile()}}, tmp_path / name)
        with pytest.raises(CheckpointError, match=r"(asks for|holds an object of) `\w+\.system`"):
            load_official(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("encoder", ["auto", "student"])
def test_verify(tmp_path, monkeypatch, capsys, encoder):
    """The script's proof: stock transformers with the folder, timm with the file."""
    path, model = official(tmp_path)
    output = tmp_path / "out"
    flags = ["--method", "patchmix", "--checkpoint", path, "--output_dir", output, "--encoder", encoder, "--verify"]
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, flags)])
    script = runpy.run_path(str(CONVERT), run_name="__main__")
    assert "differ by" in capsys.readouterr().out
    branch = model.teacher if encoder == "auto" else model.student
    token = AutoModel.from_pretrained(output).embeddings.cls_token
    assert torch.equal(token, branch.backbone.embeddings.cls_token)
    assert isinstance(AutoModelForPreTraining.from_pretrained(output / "pretraining"), PatchMixForPreTraining)
    # Of the other branch, or with another epsilon, it would not pass.
    other = {"auto": "student", "student": "teacher"}[encoder]
    config = AutoModel.from_pretrained(output).config

    def verify(which):
        return script["verify"](
            output, False, lambda pixels: reference(path, pixels, model.config.backbone_config, which)
        )

    assert verify(other) > 1e-3 and verify(None if encoder == "auto" else encoder) < 1e-5
    config.layer_norm_eps = 1e-3
    config.save_pretrained(output)
    assert verify(None if encoder == "auto" else encoder) > 1e-5


def test_processor_is_that_of_the_authors(tmp_path, monkeypatch):
    """Bicubic; the shorter side becomes 256 / 224 of the crop, rounded down: 36 for images of 32."""
    from PIL import Image
    from torchvision.transforms import v2
    from transformers import AutoImageProcessor

    path, _ = official(tmp_path)
    flags = ["--method", "patchmix", "--checkpoint", path, "--output_dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, flags)])
    runpy.run_path(str(CONVERT), run_name="__main__")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    reference = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(int(16 / 224 * 256), interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(16),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    actual = processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert (actual - reference(image)).abs().max() < 0.02
