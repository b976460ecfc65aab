"""The model card that the conversion of an official checkpoint writes."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_ssl.models import METHODS


ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/fixtures/golden"
PATCHMIX = ("patchmix", "patchmix/momentum/checkpoint.pth", 2)
APS = ("aps", "aps/square/checkpoint.pth", 2)
PW_SELF = ("pw_self", "pw_self/even_grid/checkpoint.pth", 2)
CLASSIFIER = ("aps", "aps/square/finetuned_module_OFFICIAL_PICKLE.pth", 2)
RELVIT = ("relvit", "relvit/vit/checkpoint_pl_class_key.ckpt", 4)


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """The script; it returns the card that it wrote, as the Hub's library reads it."""

    def run(method, checkpoint, heads, *flags):
        arguments = {"method": method, "checkpoint": GOLDEN / checkpoint, "num_attention_heads": heads}
        arguments["output_dir"] = tmp_path / "converted"
        argv = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["convert.py", *argv, *flags])
        shutil.rmtree(tmp_path / "converted", ignore_errors=True)
        runpy.run_path(str(ROOT / "training/convert.py"), run_name="__main__")
        return ModelCard.load(tmp_path / "converted/README.md")

    return run


@pytest.mark.parametrize(
    ("case", "license", "encoder"),
    [
        (PATCHMIX, "cc-by-nc-4.0", "ViT with 2 layers of width 32, 2 heads and 4-pixel patches for 16-pixel images"),
        (RELVIT, "unknown", "ViT with 2 layers of width 40, 4 heads and 8-pixel patches for 32-pixel images"),
        (APS, "cc-by-nc-4.0", "ViT with 2 layers of width 32, 2 heads and 2-pixel patches for 16-pixel images"),
        (PW_SELF, "unknown", "ViT with 2 layers of width 32, 2 heads and 8-pixel patches for 32-pixel images"),
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_card(convert, capsys, tmp_path, case, license, encoder, verify):
    card, method = convert(*case, *["--verify"] * verify), METHODS[case[0]]
    assert card.data.license == license
    assert card.data.library_name == "transformers" and case[0].replace("_", "-") in card.data.tags
    assert card.data.datasets is None and card.data.eval_results is None and card.data.model_name is None
    assert f"License of the weights: {license}." in capsys.readouterr().out
    assert "# converted\n" in card.text and f"{encoder}, pretrained without labels by the authors of" in card.text
    assert f"the authors' file `{Path(case[1]).name}`" in card.text
    assert str(tmp_path) not in card.content and str(ROOT) not in card.content and "golden" not in card.content
    assert not re.search(r"(?<![\w.:/])/\w+/", card.content), "an absolute path"
    assert ("The conversion was checked" in card.text) == verify
    assert "from scratch" not in card.text and "apache-2.0" not in card.content
    assert method.citation in card.text and f"https://huggingface.co/papers/{method.arxiv}" in card.text
    assert "has not been evaluated" in card.text and "trained on is not recorded there" in card.text


def test_authors_numbers(convert):
    reported = METHODS["patchmix"].reported
    patchmix, relvit = convert(*PATCHMIX).text, convert(*RELVIT).text
    assert all(f"| {' | '.join(row)} |\n" in patchmix for row in reported.rows)
    assert "not measured by us, and which of them are numbers of this model, if any, is not known" in patchmix
    assert "remain under the authors' license, `cc-by-nc-4.0`" in patchmix
    assert "What the authors report" not in relvit
    assert "is not known to us: look it up" in relvit


@pytest.mark.parametrize(
    ("case", "flags", "expected"),
    [
        (PATCHMIX, [], "this is the teacher"),
        (PATCHMIX, ["--encoder", "teacher"], "this is the teacher"),
        (PATCHMIX, ["--encoder", "student", "--verify"], "this is the student"),
        (("patchmix", "patchmix/no_momentum_multi_crop/checkpoint.pth", 2), [], None),
        (RELVIT, [], None),
        (APS, ["--verify"], None),
        (PW_SELF, ["--verify"], "this is the teacher"),
        (PW_SELF, ["--encoder", "student", "--verify"], "this is the student"),
        (CLASSIFIER, ["--verify"], None),
    ],
)
def test_published_encoder_is_named(convert, case, flags, expected):
    text = convert(*case, *flags).text
    assert re.findall(r"Of the file's two encoders, (this is the \w+)", text) == ([expected] if expected else [])


def test_file_with_a_namespace(convert):
    """As the authors' script writes it, cut down to the teacher: there is no student in it to be published."""
    card = convert("pw_self", "pw_self/even_grid/checkpoint_namespace_args.pth", 2, "--verify")
    assert "the authors' file `checkpoint_namespace_args.pth`" in card.text
    assert "this is the student" not in card.text


def test_joint_files_were_trained_with_labels(convert):
    assert "pretrained with labels by the authors of" in convert("relvit", "relvit/vit/checkpoint_joint.pth", 4).text


@pytest.mark.parametrize("case", [PATCHMIX, RELVIT, APS, PW_SELF])
def test_code_of_the_card_runs(convert, tmp_path, monkeypatch, case):
    code = re.search(r"```python\n(.*?)```", convert(*case).text, re.DOTALL).group(1)
    Image.linear_gradient("L").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code.replace("path/to/this/folder", "converted"), namespace)
    assert namespace["feature"].shape == (1, {"patchmix": 32, "relvit": 40, "aps": 32, "pw_self": 32}[case[0]])


def test_statistics_of_the_authors(convert, tmp_path):
    """APS pretrains at 32 pixels with CIFAR's, and at other sizes, as far as is known, with ImageNet's."""
    state = torch.load(GOLDEN / APS[1], weights_only=True)
    state["base_encoder.pos_embedding"] = torch.randn(256, 1, 32)
    torch.save(state, tmp_path / "cifar.pth")

    def statistics(*args):
        convert(*args)
        processor = json.loads((tmp_path / "converted/preprocessor_config.json").read_text())
        return processor["image_mean"][0], processor["image_std"][0]

    assert statistics("aps", tmp_path / "cifar.pth", 2) == (0.4914, 0.2023)
    assert statistics(*APS) == (0.485, 0.229)
    assert statistics("aps", tmp_path / "cifar.pth", 2, "--image_mean", "0.1", "0.2", "0.3") == (0.1, 0.2023)


def test_classifier_has_one_encoder(convert):
    with pytest.raises(SystemExit, match="leave --encoder teacher out"):
        convert(*CLASSIFIER, "--encoder", "teacher")


def test_classifier(convert, capsys, tmp_path, monkeypatch):
    """Of a fine-tuned file: what its card says, and the code in it."""
    card = convert(*CLASSIFIER, "--verify")
    assert card.data.pipeline_tag == "image-classification" and card.data.license == "cc-by-nc-4.0"
    assert "pretrained without labels and then fine-tuned for classification by the authors of" in card.text
    assert "which of 5 classes" in card.text and "The feature is" not in card.text and "pretraining/" not in card.text
    assert "the logits of stock transformers" in card.text
    assert "converted holds the classifier." in capsys.readouterr().out
    assert not (tmp_path / "converted/pretraining").exists()
    processor = json.loads((tmp_path / "converted/preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.485, 0.456, 0.406], "fine-tuned with ImageNet's, at any size"
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL).group(1)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code.replace("path/to/this/folder", "converted"), namespace)
    predictions = namespace["predictions"]
    assert len(predictions) == 5 and sum(p["score"] for p in predictions) == pytest.approx(1)


def computes(monkeypatch, method, change):
    """The other implementation computes something else."""
    original = METHODS[method].reference
    monkeypatch.setitem(
        METHODS[method].__dict__, "reference", lambda *args, **kwargs: change(original(*args, **kwargs))
    )


def test_difference_is_told(convert, monkeypatch):
    computes(monkeypatch, "patchmix", lambda expected: expected * (1 + 2e-6))
    assert re.search(
        r"timm from the file's tensors differ by at most [12]\.\de-06 of", convert(*PATCHMIX, "--verify").text
    )


def test_wrong_conversion_gets_no_card(convert, tmp_path, monkeypatch):
    computes(monkeypatch, "patchmix", torch.ones_like)
    with pytest.raises(SystemExit, match="the conversion is wrong"):
        convert(*PATCHMIX, "--verify")
    assert not (tmp_path / "converted").exists()
