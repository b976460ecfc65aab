"""`training/export.py` from its command line to what onnxruntime computes."""

import importlib.util
import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)

from hf_ssl import cli
from hf_ssl.backbones.modeling_alexnet import AlexNetConfig, AlexNetModel
from hf_ssl.evaluation import load_encoder
from hf_ssl.hub import evaluation_processor, export_onnx, export_run, save_published
from hf_ssl.hub_errors import HubError
from training import export

from ..marks import slow
from ..models.test_patchmix import perturb
from .common import make_backbone, make_isl, make_patchmix, make_t2t, make_timm


STATISTICS = [0.3, 0.4, 0.5], [0.25, 0.26, 0.27]
SWIN = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 2, "patch_size": 2}  # windows are shifted
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
OF_TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
# What a user needs beside the folder: neither torch nor transformers.
WITHOUT_TORCH = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image

folder, photo = sys.argv[1:]
with open(f"{folder}/preprocessor_config.json") as file:
    processor = json.load(file)
size = (processor["size"]["width"], processor["size"]["height"])
pixels = np.asarray(Image.open(photo).convert("RGB").resize(size, processor["resample"]), np.float32) / 255
pixels = (pixels - np.float32(processor["image_mean"])) / np.float32(processor["image_std"])
session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx")
outputs = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None]})
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(json.dumps({node.name: values.tolist() for node, values in zip(session.get_outputs(), outputs)}))
"""


def save(model, folder, size=16):
    save_published(model, evaluation_processor(size, *STATISTICS), folder)


def save_run(model, folder, size=16):
    export_run(model, evaluation_processor(size, *STATISTICS), folder)


def random(model_class, config, **options):
    torch.manual_seed(0)
    return model_class(config, **options)


# How a folder of it is made; side of its images; names and shapes of its outputs, of one image.
ENCODERS = {
    "vit of others, without pooler": (
        lambda folder: save(random(ViTModel, make_backbone(), add_pooling_layer=False), folder),
        16,
        {"tokens": (17, 36)},
    ),
    "swin": (
        lambda folder: save(random(SwinModel, SwinConfig(**SWIN, image_size=8)), folder, 8),
        8,
        {"tokens": (16, 12), "pooled": (12,)},
    ),
    "t2t-vit": (lambda folder: save_run(make_t2t(), folder, 64), 64, {"tokens": (17, 24), "pooled": (24,)}),
    "timm": (lambda folder: save_run(make_timm(), folder), 16, {"tokens": (16, 24), "pooled": (24,)}),
    "resnet": (
        lambda folder: save(random(ResNetModel, ResNetConfig(**RESNET)), folder, 64),
        64,
        {"tokens": (16, 2, 2), "pooled": (16,)},
    ),
    "resnet for small images": (
        lambda folder: save_run(make_isl(), folder),
        16,
        {"tokens": (16, 2, 2), "pooled": (16,)},
    ),
    "alexnet": (
        lambda folder: save(random(AlexNetModel, AlexNetConfig(image_size=32, fc_width=24)), folder, 32),
        32,
        {"tokens": (256, 4, 4), "pooled": (24,)},
    ),
}
OF_CONVOLUTIONS = ("resnet for small images", "alexnet")  # one ResNet stands for all
NAMES = {"tokens": "last_hidden_state", "pooled": "pooler_output"}


def of_onnxruntime(path, pixel_values):
    session = onnxruntime.InferenceSession(path)
    values = session.run(None, {"pixel_values": pixel_values.numpy()})
    return {node.name: value for node, value in zip(session.get_outputs(), values, strict=True)}


def relative(actual, expected):
    expected = expected.detach().numpy()
    return np.abs(actual - expected).max() / np.abs(expected).max()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a teacher that is not its student; what was there before it was exported, and what was told."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    model = make_patchmix()
    perturb(model)
    save_run(model, folder)
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}
    with redirect_stdout(StringIO()) as told:
        exported = export.main(["--model", str(folder)])
    return folder, before, exported, told.getvalue()


@pytest.fixture
def run_folder(run):
    return run[0]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(load_sample_image("china.jpg")).save(path)
    return path


# ---- what is exported ----


@pytest.mark.parametrize("name", [slow(name) if name in OF_CONVOLUTIONS else name for name in ENCODERS])
def test_encoders(name, tmp_path, capsys):
    make, size, shapes = ENCODERS[name]
    make(tmp_path / "model")
    exported = export.main(["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "onnx folder")])
    assert exported.path == tmp_path / "onnx folder" / "onnx" / "model.onnx"
    assert exported.inputs == {"pixel_values": ["batch_size", 3, size, size]}
    assert exported.outputs == {NAMES[kind]: ["batch_size", *shape] for kind, shape in shapes.items()}
    assert exported.error < 1e-5 and f"{exported.error:.1e}" in capsys.readouterr().out

    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    pixel_values = torch.randn(4, 3, size, size)  # a size of batch that was not looked at
    with torch.no_grad():
        expected = model(pixel_values)
    for output, values in of_onnxruntime(exported.path, pixel_values).items():
        reference = expected[output].flatten(1) if output == "pooler_output" else expected[output]
        assert values.shape == reference.shape and relative(values, reference) < 1e-5
    assert files_in(tmp_path / "onnx folder") == ["config.json", "onnx/model.onnx", "preprocessor_config.json"]
    for file in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "onnx folder" / file).read_text() == (tmp_path / "model" / file).read_text()


@pytest.mark.parametrize("kind", ["vit", slow("timm")])
def test_classifiers(kind, tmp_path):
    labels = {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    if kind == "vit":
        config = ViTConfig(**{**make_backbone().to_diff_dict(), **labels})
        model = random(ViTForImageClassification, config)
    else:
        architecture = "vit_little_patch16_reg4_gap_256"
        config = TimmWrapperConfig(architecture=architecture, model_args=OF_TIMM, **labels)
        model = random(TimmWrapperForImageClassification, config)
    save(model, tmp_path / "model")
    exported = export.main(["--model", str(tmp_path / "model")])
    assert exported.outputs == {"logits": ["batch_size", 3]}
    pixel_values = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(tmp_path / "model")(pixel_values).logits
    assert relative(of_onnxruntime(exported.path, pixel_values)["logits"], expected) < 1e-5


def test_encoder_of_a_classifier(tmp_path):
    save(random(ViTForImageClassification, make_backbone()), tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--task", "image-feature-extraction"]
    exported = export.main([*flags, "--output_dir", str(tmp_path / "features")])
    assert exported.outputs == {"last_hidden_state": ["batch_size", 17, 36]}  # a pooler would be random


def test_without_torch(run_folder, photo):
    """A photo through numpy, PIL and onnxruntime gives the features of the pipeline."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(run_folder), str(photo)]
    outputs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name, pool in (("pooler_output", True), ("last_hidden_state", False)):
        extract = pipeline("image-feature-extraction", model=str(run_folder), device="cpu", pool=pool)
        # Pixels of the two resizings differ by rounding, one in 255 at most.
        assert relative(np.array(outputs[name]), torch.tensor(extract(str(photo)))) < 0.01
        small = Image.open(photo).resize((16, 16), Image.Resampling.BILINEAR)
        assert relative(np.array(outputs[name]), torch.tensor(extract(small))) < 1e-5


def test_what_is_written(run):
    """The folder gets the file and keeps its others; it is valid ONNX, in float32, whose opset is told."""
    folder, before, exported, told = run
    assert files_in(folder) == sorted([*before, "onnx/model.onnx"]) and exported.path == folder / "onnx" / "model.onnx"
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert exported.outputs == {"last_hidden_state": ["batch_size", 17, 36], "pooler_output": ["batch_size", 36]}
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", exported.opset)]
    weights = onnx.TensorProto
    assert {weight.data_type for weight in model.graph.initializer} <= {weights.FLOAT, weights.INT64, weights.BOOL}
    content = exported.path.read_bytes()
    assert not any(text in content for text in (b"stack_trace", b".py", str(Path.home()).encode(), b"hf_ssl"))
    assert f"opset {exported.opset}" in told and "The feature of an image: class token." in told


def test_student(run_folder, tmp_path):
    exported = export.main(["--model", str(run_folder), "--encoder", "student", "--output_dir", str(tmp_path)])
    pixel_values = torch.randn(2, 3, 16, 16)
    values = of_onnxruntime(exported.path, pixel_values)["pooler_output"]
    error = {
        name: relative(values, load_encoder(str(run_folder), branch=name).outputs(pixel_values).pooler_output)
        for name in ("student", "teacher")
    }
    assert error["student"] < 1e-5 and error["teacher"] > 1e-2


def test_image_size(run_folder, tmp_path):
    """Positions are resized as its pretraining did; the processor makes images of that size."""
    exported = export.main(["--model", str(run_folder), "--image_size", "24", "--output_dir", str(tmp_path / "24")])
    assert exported.inputs == {"pixel_values": ["batch_size", 3, 24, 24]}
    encoder = load_encoder(str(run_folder))
    assert encoder.position_interpolation == "scale_factor"
    pixel_values = torch.randn(2, 3, 24, 24)
    outputs = of_onnxruntime(exported.path, pixel_values)
    assert relative(outputs["last_hidden_state"], encoder.outputs(pixel_values).last_hidden_state) < 1e-5
    processor = AutoImageProcessor.from_pretrained(tmp_path / "24")
    assert processor(images=Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"].shape == (1, 3, 24, 24)


# ---- what is refused ----


def refused(message, *flags):
    with pytest.raises(ValueError, match=message):
        export.main([*map(str, flags)])


def test_wrong_arguments(run_folder, tmp_path):
    with pytest.raises(HubError, match="someone/nothing cannot be exported"):
        export.main(["--model", "someone/nothing", "--output_dir", str(tmp_path / "other")])
    for flags in (["--encoder", "student"], ["--image_size", 24, "--output_dir", run_folder]):
        refused("set --output_dir to another one", "--model", run_folder, *flags)
    refused("does not fill one patch of 4", "--model", run_folder, "--image_size", 2, "--output_dir", tmp_path / "2")
    save(random(ViTForImageClassification, make_backbone()), tmp_path / "classifier")
    refused(
        "set --output_dir to another one",
        *("--model", tmp_path / "classifier", "--task", "image-feature-extraction"),
    )
    for flags in (["--encoder", "teacher"], ["--image_size", 24]):
        refused(
            "leave --encoder and --image_size out",
            *("--model", tmp_path / "classifier", "--output_dir", tmp_path / "other", *flags),
        )
    untrained = ["--model", run_folder, "--task", "image-classification"]
    refused("is no trained classifier: classifier.bias", *untrained, "--output_dir", tmp_path / "other")
    assert not (tmp_path / "2").exists() and not (tmp_path / "other").exists()


def test_missing_packages(run_folder, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find_spec(name))
    with pytest.raises(ImportError, match=r'needs onnx, onnxscript, onnxruntime: run `pip install "hf_ssl\[onnx\]"`'):
        export.main(["--model", str(run_folder)])


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (
            lambda images: {"pooler_output": images.flatten(1)[:, :8] + torch.rand(8)},
            "something else with onnxruntime",
        ),
        (
            lambda images: {"pooler_output": torch.stack([image.flatten() for image in images])},
            "cannot follow its code for batches of any size.*conflicts",
        ),
        slow(lambda images: {"pooler_output": torch.linalg.svdvals(images[:, 0])}, "ONNX lacks an operation.*svd"),
    ],
    ids=["random", "fixed batch", "no ONNX"],
)
def test_what_cannot_be_exported(compute, message, tmp_path):
    """Nothing is written, and an earlier file is kept."""
    model = random(ViTModel, make_backbone()).eval()
    with pytest.raises(ValueError, match=message):
        export_onnx(model, compute, (3, 16, 16), tmp_path / "new" / "model.onnx")
    assert not (tmp_path / "new").exists()
    (tmp_path / "model.onnx").write_text("earlier")
    with pytest.raises(ValueError, match=message):
        export_onnx(model, compute, (3, 16, 16), tmp_path / "model.onnx")
    assert files_in(tmp_path) == ["model.onnx"] and (tmp_path / "model.onnx").read_text() == "earlier"


def test_large_models(tmp_path, monkeypatch):
    """Weights beyond what fits into one file lie beside it."""
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    model = random(ViTModel, make_backbone()).eval()
    exported = export_onnx(model, model, (3, 16, 16), tmp_path / "onnx" / "model.onnx")
    assert files_in(tmp_path) == ["onnx/model.onnx", "onnx/model.onnx.data"]
    moved = tmp_path / "onnx"
    moved.rename(tmp_path / "elsewhere")
    pixel_values = torch.randn(3, 3, 16, 16)
    values = of_onnxruntime(tmp_path / "elsewhere" / exported.path.name, pixel_values)
    assert relative(values["pooler_output"], model(pixel_values).pooler_output) < 1e-5


def test_hub_model(monkeypatch):
    """What comes from the Hub needs a folder to go to."""
    monkeypatch.setattr(export, "task_of", lambda args: export.FEATURES)
    refused("someone/encoder is no folder that ONNX could be added to: set --output_dir", "--model", "someone/encoder")


def test_command_line(monkeypatch, capsys):
    """`hf-ssl export`."""
    monkeypatch.setattr(sys, "argv", ["hf-ssl", "export", "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "--format {onnx}" in capsys.readouterr().out
