"""What is published, in the last transformers 4, which `make` puts beside the environment for this test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image

from hf_ssl import ISLConfig, ISLForPreTraining
from hf_ssl.hub import evaluation_processor, export_run, save_published

from ..models.test_classification import KINDS, NAMES, make, seen
from ..training.common import make_aps, make_model, make_patchmix, make_pw_self, make_swin, make_t2t, make_timm


TRANSFORMERS_4 = Path(os.environ.get("HF_SSL_TRANSFORMERS_4", Path(sys.prefix) / "transformers4"))
# Encoders that transformers lacks: their files say that they were written for transformers 5.
OWN_FILES = ("t2t_vit", "cifar_resnet", "alexnet")
ENCODERS = {
    "patchmix": make_patchmix,
    "aps": make_aps,
    "pw_self": make_pw_self,
    "vit": make_model,
    "swin": make_swin,
    "t2t_vit": make_t2t,
    "timm_vit": make_timm,
    **{
        kind: lambda kind=kind: ISLForPreTraining(ISLConfig(backbone_config=KINDS[kind]()))
        for kind in ("resnet", "cifar_resnet", "alexnet", "timm_resnet")
    },
}
# What a stranger does with a folder; each has its pixels, to compare networks without the processors.
CODE = """
import json, sys
from pathlib import Path
import torch, transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

assert transformers.__version__.startswith("4."), transformers.__version__
photo = Image.open("photo.png")
report = {}
for folder in sorted(path.parent for path in Path(".").glob("*/pixels.safetensors")):
    kind, _, name = folder.name.partition("-")
    auto = AutoModel if kind == "encoder" else AutoModelForImageClassification
    if name in sys.argv[1].split(","):
        try:
            auto.from_pretrained(folder, trust_remote_code=True)
        except ImportError as error:
            report[folder.name] = {"error": str(error)}
        continue
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = load_file(folder / "pixels.safetensors")["pixels"]
    with torch.no_grad():
        outputs = model.eval()(pixel_values=pixels)
    seen = {name: outputs[name] for name in ("last_hidden_state", "pooler_output", "logits") if outputs.get(name) is not None}
    save_file({name: tensor.contiguous() for name, tensor in seen.items()}, folder / "outputs.safetensors")
    entry = {"mismatched": sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])}
    task = "image-feature-extraction" if kind == "encoder" else "image-classification"
    served = pipeline(task, model=str(folder))
    if kind == "encoder":
        entry["feature"] = torch.tensor(served(photo, pool=True)).flatten().tolist()
    else:
        entry["labels"] = sorted(item["label"] for item in served(photo))
    if not name.startswith("timm"):
        entry["size"] = list(processor(images=photo, return_tensors="pt").pixel_values.shape)
    report[folder.name] = entry
Path("report.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of every kind of encoder and of classifier, what it gives here, and what transformers 4 says of it."""
    if not TRANSFORMERS_4.is_dir():
        pytest.skip(f"transformers 4 is not at {TRANSFORMERS_4}: `make test` puts it there")
    root = tmp_path_factory.mktemp("published")
    Image.fromarray(load_sample_image("flower.jpg")).save(root / "photo.png")
    expected = {}
    for name, make_pretraining in ENCODERS.items():
        torch.manual_seed(0)
        model, folder = make_pretraining().eval(), root / f"encoder-{name}"
        size = model.config.backbone_config.image_size
        export_run(model, evaluation_processor(size, [0.4] * 3, [0.5] * 3, 0.875), folder)
        pixels = torch.randn(3, 3, size, size)
        save_file({"pixels": pixels}, folder / "pixels.safetensors")
        with torch.no_grad():
            outputs = model.export_encoder()(pixel_values=pixels)
        expected[folder.name] = {key: outputs[key] for key in ("last_hidden_state", "pooler_output")}
    for name in set(KINDS) - {"convnext"}:
        torch.manual_seed(0)
        model, folder = seen(make(name)).cpu(), root / f"classifier-{name}"
        size = model.config.backbone_config.image_size
        save_published(model.export_classifier(NAMES), evaluation_processor(size, [0.4] * 3, [0.5] * 3), folder)
        pixels = torch.randn(3, 3, size, size)
        save_file({"pixels": pixels}, folder / "pixels.safetensors")
        with torch.no_grad():
            expected[folder.name] = {"logits": model(pixels).logits["classification"]}
    environment = {**os.environ, "PYTHONPATH": str(TRANSFORMERS_4), "HF_HOME": str(root / "home")}
    command = [sys.executable, "-c", CODE, ",".join(OWN_FILES)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, expected, json.loads((root / "report.json").read_text())


def of_stock_classes(report):
    return {name: entry for name, entry in report.items() if name.partition("-")[2] not in OWN_FILES}


def test_all_weights_are_found(published):
    _, expected, report = published
    assert report.keys() == expected.keys()
    for name, entry in of_stock_classes(report).items():
        # Swin's index into its table of positions was a buffer that was saved; both versions compute it.
        others = [
            key
            for key in entry["mismatched"]
            if not (name.endswith("swin") and key.endswith("relative_position_index"))
        ]
        assert not others, name


def test_outputs_are_the_same(published):
    root, expected, report = published
    for name in of_stock_classes(report):
        outputs = load_file(root / name / "outputs.safetensors")
        assert outputs.keys() == expected[name].keys(), name
        for key, tensor in expected[name].items():
            torch.testing.assert_close(
                outputs[key], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, at=f"{name} {key}": f"{at}: {text}"
            )


def test_pipelines(published):
    _, expected, report = published
    for name, entry in of_stock_classes(report).items():
        if name.startswith("classifier"):
            assert entry["labels"] == NAMES, name
        else:
            assert len(entry["feature"]) == expected[name]["pooler_output"].flatten(1).shape[1], name


def test_processors(published):
    root, _, report = published
    for name, entry in of_stock_classes(report).items():
        if "timm" not in name:
            side = load_file(root / name / "pixels.safetensors")["pixels"].shape[-1]
            assert entry["size"] == [1, 3, side, side], name


def test_code_beside_the_weights_says_what_it_needs(published):
    _, _, report = published
    errors = [entry["error"] for name, entry in report.items() if name.partition("-")[2] in OWN_FILES]
    assert len(errors) == 2 * len(OWN_FILES)
    assert all("transformers>=5 is required" in error and "pip install --upgrade" in error for error in errors)
