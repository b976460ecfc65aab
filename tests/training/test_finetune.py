"""`training/finetune.py` from its command line to the classifier it leaves behind."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetModel,
    ViTForImageClassification,
    pipeline,
)

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones import publish, timm_config
from hf_ssl.backbones.modeling_t2t_vit import T2TViTConfig, T2TViTModel
from hf_ssl.data import load_image_data, make_source
from hf_ssl.evaluation import AccuracyMonitor
from hf_ssl.hub import evaluation_processor, export_run, save_published
from hf_ssl.launch import choose_best_by
from hf_ssl.models.classification import ClassificationViewsConfig
from hf_ssl.training_args import SSLTrainingArguments

from .common import make_backbone


SCRIPT = Path(__file__).parents[2] / "training" / "finetune.py"
SMALL = ["--max_train_samples", "160", "--max_test_samples", "60", "--per_device_train_batch_size", "32"]
SHORT = [*SMALL, "--max_steps", "4", "--logging_steps", "2", "--eval_steps", "2"]
# Five steps in an epoch, of which the best is kept.
EPOCHS = [*SMALL, "--max_steps", "15", "--eval_strategy", "epoch", "--save_strategy", "epoch", "--logging_steps", "1"]
STATISTICS = [0.3, 0.4, 0.5], [0.25, 0.26, 0.27]
BEST = [*EPOCHS, "--load_best_model_at_end", "true"]


def finetune(monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, flags)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def history_of(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.fixture(scope="module")
def functions():
    """What the script defines."""
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Folders that pretraining leaves behind, by kind."""
    folder = tmp_path_factory.mktemp("upstream")
    torch.manual_seed(0)
    for kind, encoder in {"vit": make_backbone(), "timm": timm_config("timm/test_vit", 32)}.items():
        processor = evaluation_processor(encoder.image_size, *STATISTICS)
        export_run(RelViTForPreTraining(RelViTConfig(backbone_config=encoder)), processor, folder / kind)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "token_dim": 8}
    t2t = T2TViTModel(T2TViTConfig(image_size=32, **sizes))
    save_published(publish(t2t), evaluation_processor(32, *STATISTICS), folder / "t2t")
    sizes = {"layer_type": "basic", "embedding_size": 4, "hidden_sizes": [4, 4, 4, 8], "depths": [1, 1, 1, 1]}
    resnet = ResNetModel(ResNetConfig(**sizes))
    save_published(resnet, evaluation_processor(16, [0.3] * 3, [0.4] * 3), folder / "resnet")
    return folder


def digits_of(count: int) -> list[tuple[Image.Image, int]]:
    """The test images of the runs here."""
    source = make_source(load_image_data("digits", max_test_samples=60, seed=42).test)
    samples = [source[i] for i in range(count)]
    return [(Image.fromarray(sample["image"].permute(1, 2, 0).numpy()), int(sample["label"])) for sample in samples]


class Recorded:
    """What the monitor is asked during a run: the images, and the first weights; it says that the second is the best."""

    def __init__(self, monkeypatch):
        self.images, self.weights = [], []
        measure = AccuracyMonitor.__call__

        def call(monitor, model):
            self.images.append([sample["image"].sum().item() for sample in map(monitor.images.__getitem__, range(10))])
            self.images[-1].append(len(monitor.images))
            self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            count = len(self.images)
            return measure(monitor, model) | (
                {"finetune_top1": {1: 20.0, 2: 70.0, 3: 30.0}[count]} if count < 4 else {}
            )

        monkeypatch.setattr(AccuracyMonitor, "__call__", call)


@pytest.fixture(scope="module")
def best_of_test(upstream, tmp_path_factory):
    """Three epochs from a pretrained encoder; test images choose the second one."""
    folder = tmp_path_factory.mktemp("best") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorded = Recorded(monkeypatch)
        flags = ["--dropout", "0.1", "--drop_path_rate", "0.1", "--save_total_limit", "3"]
        finetune(monkeypatch, "--model", upstream / "vit", "--output_dir", folder, *BEST, *flags)
    return folder, recorded


@pytest.fixture(scope="module")
def best_of_held_out(upstream, tmp_path_factory):
    """The same, chosen by training images that are held out."""
    folder = tmp_path_factory.mktemp("held_out") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorded = Recorded(monkeypatch)
        flags = ["--max_train_samples", "200", "--validation_samples", "40"]
        finetune(monkeypatch, "--model", upstream / "vit", "--output_dir", folder, *BEST, *flags)
    return folder, recorded


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory):
    """The supervised baseline: four steps, of which the last is what it is."""
    folder = tmp_path_factory.mktemp("scratch") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        finetune(monkeypatch, "--model", "none", "--backbone", "vit-micro", "--output_dir", folder, *SHORT)
    return folder


# ---- what a run leaves behind ----


def test_layout(best_of_test):
    folder, _ = best_of_test
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "all_results.json"}
    wanted |= {"trainer_state.json", *(f"figures/{name}.png" for name in ("curves", "filters", "positions"))}
    assert wanted == {name for name in files if not name.startswith("checkpoint-")}
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    assert "training_args.bin" not in {Path(name).name for name in files}


def test_pipeline(best_of_test):
    """Stock transformers serves the folder, by the names of the classes."""
    folder, _ = best_of_test
    classify = pipeline("image-classification", model=str(folder))
    assert type(classify.model) is ViTForImageClassification
    model, processor = (
        AutoModelForImageClassification.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    for image, _ in digits_of(3):
        answers = classify(image, top_k=10)
        assert sorted(answer["label"] for answer in answers) == [str(digit) for digit in range(10)]
        with torch.no_grad():
            scores = model(**processor(images=image, return_tensors="pt")).logits[0].softmax(0)
        for answer in answers:
            assert answer["score"] == pytest.approx(scores[int(answer["label"])].item(), abs=1e-5)


def test_results_are_those_of_the_folder(best_of_test):
    """The accuracy that is reported, of what was written, by other code."""
    folder, _ = best_of_test
    results, (images, labels) = results_of(folder), zip(*digits_of(60), strict=True)
    classify = pipeline("image-classification", model=str(folder))
    answers = [[answer["label"] for answer in answers] for answers in classify(list(images), top_k=5)]
    top1 = np.mean([answer[0] == str(label) for answer, label in zip(answers, labels, strict=True)])
    top5 = np.mean([str(label) in answer for answer, label in zip(answers, labels, strict=True)])
    assert results["finetune_top1"] == pytest.approx(100 * top1) and results["num_test_images"] == 60
    assert results["finetune_top5"] == pytest.approx(100 * top5)
    assert results["num_train_images"] == 160 and results["num_steps"] == 15


def test_best_checkpoint_is_what_is_published(best_of_test):
    folder, recorded = best_of_test
    first, second, third, published = recorded.weights
    assert all(torch.equal(tensor, second[name]) for name, tensor in published.items())
    assert not all(torch.equal(tensor, third[name]) for name, tensor in published.items())
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert torch.equal(model.classifier.weight, second["classifier.weight"])
    assert torch.equal(model.vit.layernorm.weight, second["student.layernorm.weight"])
    assert [round(entry["eval_finetune_top1"]) for entry in history_of(folder) if "eval_finetune_top1" in entry] == [
        20,
        70,
        30,
    ]
    results = results_of(folder)
    assert results["last_epoch_top1"] == 30 and results["selected_by"] == "test images" and results["split"] == "test"
    assert recorded.images[0][-1] == 60 and all(images == recorded.images[0] for images in recorded.images)


def test_held_out_images_choose(best_of_held_out):
    """The test images are measured once, at the end."""
    folder, recorded = best_of_held_out
    *selecting, final = recorded.images
    assert len(selecting) == 3 and all(images == selecting[0] for images in selecting)
    assert selecting[0][-1] == 40 and final[-1] == 60 and selecting[0][:-1] != final[:-1]
    assert final[:-1] == [np.asarray(image).sum(dtype=int) for image, _ in digits_of(10)]
    results = results_of(folder)
    assert results["num_train_images"] == 160 and results["num_test_images"] == 60
    assert results["selected_by"] == "held-out training images" and results["split"] == "test"
    assert all(torch.equal(t, recorded.weights[1][name]) for name, t in recorded.weights[3].items())


@pytest.mark.parametrize("run", ["best_of_test", "best_of_held_out", "from_scratch"])
def test_card(request, run):
    folder = request.getfixturevalue(run)
    folder = folder if run == "from_scratch" else folder[0]
    results, card = results_of(folder), ModelCard.load(folder / "README.md")
    text = " ".join(card.text.split())
    sentences = {
        "from_scratch": "the model at the end of its training, in which no label of these images had a part.",
        "best_of_test": "chosen by the accuracy on these same images, as in the code of most authors, so that the number is "
        "too high by a little. At the last evaluation of the training top-1 was 30.00 %.",
        "best_of_held_out": "the best of all epochs was chosen by the accuracy on held-out training images.",
    }
    for name, sentence in sentences.items():
        assert (sentence in text) == (name == run)
    assert card.data.pipeline_tag == "image-classification" and card.data.library_name == "transformers"
    values = {r.metric_name: (r.metric_value, r.dataset_split) for r in card.data.eval_results}
    assert values == {f"top-{k} accuracy (%)": (round(results[f"finetune_top{k}"], 2), "test") for k in (1, 5)}
    for number in (
        f"**{results['finetune_top1']:.2f}**",
        f"**{results['finetune_top5']:.2f}**",
        ": 60 test images, each once, through the image processor of this repository; the trained weights;",
    ):
        assert number in text
    assert "160 images of digits" in text and "which of 10 classes" in text and "16-pixel images" in text
    pretrained = run != "from_scratch"
    assert ("fine-tuned from the pretrained encoder `vit`" in text) == ("2206.00481" in text or "Camporese" in text)
    assert ("fine-tuned from the pretrained encoder `vit`" in text) == pretrained
    assert ("It was trained from scratch." in text) != pretrained
    rows = dict(line.strip("| ").split(" | ") for line in card.text.splitlines() if line.count(" | ") == 1)
    assert rows["recipe"] == "relvit/digits" and rows["optimizer steps"] == str(results["num_steps"])
    assert rows["images per step"] == "32" and rows["schedule"] == "quarter_cosine"
    assert rows["stochastic depth"] == ("0.1" if run == "best_of_test" else "0") and rows["weight decay"] == "0.1"


@pytest.mark.parametrize("run", ["best_of_test", "from_scratch"])
def test_no_path_of_this_machine(request, upstream, run):
    folder = request.getfixturevalue(run)
    folder = folder if run == "from_scratch" else folder[0]
    for name in ("README.md", "config.json", "preprocessor_config.json", "all_results.json"):
        text = (folder / name).read_text()
        for path in (folder.parent, upstream, Path.home()):
            assert str(path) not in text, name


def test_from_scratch(from_scratch):
    """Its encoder is that of pretraining, with positions."""
    model = AutoModelForImageClassification.from_pretrained(from_scratch)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.image_size, config.patch_size) == (96, 4, 16, 4)
    assert config.layer_norm_eps == 1e-6
    assert model.vit.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.2)
    processor = AutoImageProcessor.from_pretrained(from_scratch)
    assert list(processor.image_mean) == [0.305] * 3 and list(processor.image_std) == [0.376] * 3
    results = results_of(from_scratch)
    assert results["selected_by"] is None and results["last_epoch_top1"] == pytest.approx(results["finetune_top1"])
    assert [entry["step"] for entry in history_of(from_scratch) if "eval_finetune_top1" in entry] == [2, 4]


@pytest.mark.slow
def test_it_learns(upstream, tmp_path, monkeypatch):
    flags = [
        "--per_device_train_batch_size",
        "64",
        "--learning_rate",
        "3e-3",
        "--view_flip",
        "0",
        "--view_crop",
        "resize",
    ]
    flags += ["--max_steps", "90", "--eval_strategy", "no", "--max_train_samples", "512", "--warmup_steps", "5"]
    finetune(monkeypatch, "--model", upstream / "vit", "--output_dir", tmp_path / "run", *flags)
    results = results_of(tmp_path / "run")
    assert results["finetune_top1"] > 40 and results["num_test_images"] == 360
    assert results["last_epoch_top1"] is None


# ---- again ----


def test_evaluation_only(best_of_test, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(best_of_test[0], folder)
    before = results_of(folder)
    finetune(monkeypatch, "--do_train", "false", "--output_dir", folder, *SMALL)
    after = results_of(folder)
    assert after.pop("finetune_loss") == pytest.approx(before.pop("finetune_loss"), rel=1e-5) and after == before
    finetune(monkeypatch, "--do_train", "false", "--output_dir", folder, "--max_test_samples", "30")
    assert results_of(folder)["num_test_images"] == 30 and results_of(folder)["num_steps"] == 15
    with pytest.raises(FileNotFoundError, match="no classifier in .*nothing"):
        finetune(monkeypatch, "--do_train", "false", "--output_dir", tmp_path / "nothing")


@pytest.fixture
def measured(from_scratch, tmp_path):
    """A copy of a run's folder, to be measured again."""
    return shutil.copytree(from_scratch, tmp_path / "run")


def test_evaluation_tells_which_images(measured, monkeypatch):
    results = results_of(measured)
    (measured / "all_results.json").write_text(json.dumps({**results, "split": "held-out training"}))
    finetune(monkeypatch, "--do_train", "false", "--output_dir", measured, *SMALL)
    assert results_of(measured)["split"] == "test" and results_of(measured).keys() == results.keys()


@pytest.mark.parametrize(
    ("names", "shown"),
    [(["cats", "dogs"], r"2 classes \(cats, dogs\)"), (list("abcdefghij"), r"10 classes \(a, b, c, …\)")],
    ids=["two", "ten"],
)
def test_evaluation_on_other_classes(measured, tmp_path, monkeypatch, names, shown):
    """Also where they are as many."""
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16)).save(tmp_path / "photos" / name / f"{i}.png")
    before = (measured / "all_results.json").read_bytes()
    message = rf"run tells 10 classes \(0, 1, 2, …\), and --dataset \S*photos has {shown}: measure it on images of"
    with pytest.raises(ValueError, match=message):
        finetune(monkeypatch, "--do_train", "false", "--dataset", tmp_path / "photos", "--output_dir", measured)
    assert (measured / "all_results.json").read_bytes() == before


@pytest.mark.parametrize(("kind", "name"), [("vit", "ViTModel"), ("t2t", "T2TViTModel"), ("timm", "TimmWrapperModel")])
def test_evaluation_of_an_encoder(kind, name, upstream, tmp_path, monkeypatch):
    """It has no classifier, and a random one is not measured in its place."""
    folder = shutil.copytree(upstream / kind, tmp_path / "run")
    (folder / "all_results.json").write_text('{"knn_top1": 50.0}')
    with pytest.raises(ValueError, match=rf"run holds no classifier but \['{name}'\]: set --output_dir to one"):
        finetune(monkeypatch, "--do_train", "false", "--output_dir", folder, *SMALL)
    assert results_of(folder) == {"knn_top1": 50.0}


def test_resume_between_epochs(best_of_test, upstream, tmp_path, monkeypatch):
    """With dropout and stochastic depth; every number and every weight is that of the whole run."""
    whole, folder = best_of_test[0], tmp_path / "run"
    folder.mkdir()
    shutil.copytree(whole / "checkpoint-5", folder / "checkpoint-5")
    recorded = Recorded(monkeypatch)
    recorded.images.append([])  # the first epoch was measured before
    flags = [
        "--dropout",
        "0.1",
        "--drop_path_rate",
        "0.1",
        "--save_total_limit",
        "3",
        "--resume_from_checkpoint",
        "true",
    ]
    torch.manual_seed(99)
    finetune(monkeypatch, "--model", upstream / "vit", "--output_dir", folder, *BEST, *flags)
    for name in ("model.safetensors", "checkpoint-10/model.safetensors", "checkpoint-15/model.safetensors"):
        first, second = load_file(whole / name), load_file(folder / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    unlike = ("train_seconds", "runtime", "per_second")
    results = [{k: v for k, v in results_of(run).items() if k not in unlike} for run in (whole, folder)]
    assert results[0] == results[1]
    logs = [
        [{k: v for k, v in entry.items() if not any(name in k for name in unlike)} for entry in history_of(run)]
        for run in (whole, folder)
    ]
    assert logs[0] == logs[1]


# ---- other encoders ----


def test_encoder_whose_size_is_not_told(upstream, tmp_path, monkeypatch):
    """A ResNet of the Hub has no image size in its configuration."""
    assert not hasattr(ResNetConfig.from_pretrained(upstream / "resnet"), "image_size")
    finetune(monkeypatch, "--model", upstream / "resnet", "--output_dir", tmp_path / "run", *SHORT)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.image_size == 16 and model.classifier[1].out_features == 10
    assert "ResNet-10 of widths 4, 4, 4, 8, for 16-pixel images" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["t2t", "timm"])
def test_evaluation_of_other_encoders(kind, upstream, tmp_path, monkeypatch, capsys):
    """With the processor and the code that lie in the folder."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rate: 1.0e-3\n")
    flags = ["--recipe", recipe, "--output_dir", tmp_path / "run", "--eval_strategy", "no", *SHORT]
    finetune(monkeypatch, "--model", upstream / kind, *flags)
    assert ("trust_remote_code=True" in capsys.readouterr().out) == (kind == "t2t")
    card = (tmp_path / "run" / "README.md").read_text()
    assert ("trust_remote_code=True" in card) == (kind == "t2t") and "32-pixel images" in card
    config = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert (config["image_mean"], config["image_std"]) == STATISTICS
    before = results_of(tmp_path / "run")
    finetune(monkeypatch, "--do_train", "false", "--output_dir", tmp_path / "run", *SHORT)
    after = results_of(tmp_path / "run")
    assert after["finetune_loss"] == pytest.approx(before["finetune_loss"], rel=0.02)  # timm's transform rounds pixels
    assert after["finetune_top1"] == pytest.approx(before["finetune_top1"], abs=4)


def test_other_image_size(upstream, tmp_path, monkeypatch):
    """A ViT is fine-tuned at the size that is asked for."""
    finetune(monkeypatch, "--model", upstream / "vit", "--image_size", "24", "--output_dir", tmp_path / "run", *SHORT)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.image_size == 24 and model.vit.embeddings.position_embeddings.shape == (1, 37, 36)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    assert (processor.size["height"], processor.size["width"]) == (24, 24)


def test_frozen_encoder(upstream, tmp_path, monkeypatch):
    """A linear probe."""
    flags = ["--freeze_encoder", "true", "--output_dir", tmp_path / "run"]
    finetune(monkeypatch, "--model", upstream / "resnet", *flags, *SHORT)
    model, encoder = (
        AutoModelForImageClassification.from_pretrained(tmp_path / "run"),
        AutoModel.from_pretrained(upstream / "resnet"),
    )
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, model.resnet.state_dict()[name]), name
    assert "the encoder was kept as it was" in (tmp_path / "run" / "README.md").read_text()


def test_photos(upstream, tmp_path, monkeypatch):
    """Of unequal size, cropped in workers; folders name the classes, and a tenth of the images is the test."""
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = tmp_path / "photos" / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (20 + i, 80 - i, 3), dtype=np.uint8) + 127 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    flags = [
        "--recipe",
        "default",
        "--dataset",
        tmp_path / "photos",
        "--dataloader_num_workers",
        "2",
        "--max_steps",
        "30",
    ]
    flags += ["--drop_path_rate", "0", "--learning_rate", "3e-3", "--eval_strategy", "steps", "--eval_steps", "15"]
    flags += ["--save_strategy", "steps", "--save_steps", "15", "--output_dir", tmp_path / "run"]
    flags += ["--load_best_model_at_end", "true"]
    finetune(monkeypatch, "--model", upstream / "vit", *flags, "--per_device_train_batch_size", "16")
    results = results_of(tmp_path / "run")
    assert results["num_train_images"] == 54 and results["num_test_images"] == 6
    assert results["split"] == "held-out" and results["selected_by"] == "held-out images"
    assert results["finetune_top1"] == results["finetune_top5"] == 100, "dark dogs and bright cats"
    config = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert (config["image_mean"], config["image_std"]) == STATISTICS, "of the encoder: the recipe sets none"
    classify = pipeline("image-classification", model=str(tmp_path / "run"))
    for name, image in (("cats", "1.png"), ("dogs", "0.png")):
        assert classify(str(tmp_path / "photos" / name / image))[0]["label"] == name
    card = " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert "54 images of photos" in card and "these same images" in card and str(tmp_path) not in card


# ---- the parts ----


def encoder_config(functions, model, **overrides):
    args = functions.FinetuneArguments(model=str(model), **overrides)
    return args, functions.encoder_config(args)


def test_configuration_of_the_encoder(functions, upstream, tmp_path):
    args, config = encoder_config(functions, upstream / "vit", dropout=0.2, attention_dropout=0.1)
    assert args.image_size == config.image_size == 16
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.1)
    args, config = encoder_config(functions, upstream / "timm")
    assert args.image_size == config.image_size == 32
    args, config = encoder_config(functions, upstream / "resnet")
    assert args.image_size == config.image_size == 224
    args, config = encoder_config(functions, "none", backbone="vit-tiny", patch_size=32)
    assert args.image_size == config.image_size == 224 and config.patch_size == 32
    # As timm publishes its own.
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 160, 160]}})
    )
    args, config = encoder_config(functions, tmp_path)
    assert args.image_size == config.image_size == 160 and config.model_type == "timm_wrapper"


def test_statistics(functions, upstream, tmp_path):
    """The recipe's, or else those of the encoder's own processor, or else ImageNet's."""
    imagenet = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    recipe = [0.1, 0.2, 0.3], [0.7, 0.8, 0.9]

    def statistics(model, **given):
        views = functions.with_statistics(ClassificationViewsConfig(**given), str(model))
        return views.image_mean, views.image_std

    for kind in ("vit", "t2t", "timm"):
        assert statistics(upstream / kind) == STATISTICS
    assert statistics("none") == imagenet
    assert statistics(upstream / "vit", image_mean=recipe[0], image_std=recipe[1]) == recipe
    assert statistics(upstream / "vit", image_mean=recipe[0]) == (recipe[0], STATISTICS[1])
    # As timm publishes its own.
    config = {"architecture": "test_vit", "num_classes": 0}
    config["pretrained_cfg"] = {"input_size": [3, 160, 160], "mean": [0.5, 0.6, 0.7], "std": [0.1, 0.2, 0.3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mean, std = statistics(tmp_path)
    assert (list(mean), list(std)) == ([0.5, 0.6, 0.7], [0.1, 0.2, 0.3])


def test_split(functions):
    """Held-out images are not trained on, whatever the seed; the others all are, in their order."""
    train, test = (Dataset.from_dict({"label": list(range(n))}) for n in (50, 7))
    data = SimpleNamespace(train=train, test=test, num_classes=50)

    def split(count, seed=0):
        parts = functions.split(functions.FinetuneArguments(validation_samples=count), data, seed)
        return [None if part is None else part["label"] for part in parts]

    assert split(0) == [list(range(50)), list(range(7)), None]
    for seed in range(3):
        rest, held_out, final = split(20, seed)
        assert len(held_out) == 20 and sorted([*rest, *held_out]) == list(range(50))
        assert rest == sorted(rest) and final == list(range(7))
    assert split(20, 0) == split(20, 0) != split(20, 1)
    assert split(20)[1] != list(range(20)), "a random part"
    with pytest.raises(ValueError, match="--validation_samples 50 must lie between 1 and 49"):
        split(50)
    data.test = None
    assert split(20)[2] is None
    with pytest.raises(ValueError, match="no test images: hold some out, with --validation_samples"):
        split(0)


# ---- mistakes ----


@pytest.fixture
def unlabeled(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_labels_are_needed(unlabeled, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="photos has no labels"):
        finetune(monkeypatch, "--model", "none", "--dataset", unlabeled, "--output_dir", tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Which encoder"),
        (["--model", "{vit}/nothing"], "no encoder to be loaded from --model .*nothing"),
        (["--model", "{vit}/pretraining"], "a whole model of pretraining: set --model to the folder above"),
        (
            ["--model", "{timm}", "--image_size", "64"],
            "of type timm_wrapper cannot be .*at another size.*--image_size 32",
        ),
        (["--model", "{timm}", "--image_size", "32", "--dropout", "0.1"], "timm_wrapper has no hidden_dropout_prob"),
        (["--model", "{vit}", "--image_size", "18"], "not a multiple of patch_size=4"),
        (["--model", "{resnet}", "--drop_path_rate", "0.1"], "stochastic depth.*--drop_path_rate 0"),
        (["--model", "none", "--backbone", "resnet18"], "RelViT does not train --backbone resnet18"),
        (["--model", "{vit}", "--validation_samples", "5000"], "must lie between 1 and 159"),
        (["--model", "{vit}", "--recipe", "no-such"], "no recipe 'no-such'.*digits"),
        (["--model", "{vit}", "--method", "simclr"], "methods are relvit"),
        (["--model", "{vit}", "--method", "isl"], "There are no recipes for isl/finetune yet: .* with --recipe"),
        (["--model", "{vit}", "--view_size", "32"], "view_size=32 is not the image_size=16"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, upstream, flags, message):
    folders = {kind: upstream / kind for kind in ("vit", "timm", "resnet")}
    flags = [flag.format(**folders) for flag in flags]
    with pytest.raises(ValueError, match=message):
        finetune(monkeypatch, "--output_dir", tmp_path / "run", *SHORT, *flags)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("output", ["{folder}", "vit"], ids=["absolute", "relative"])
def test_encoder_is_not_replaced(upstream, tmp_path, monkeypatch, output):
    folder = shutil.copytree(upstream / "vit", tmp_path / "vit")

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--output_dir is --model, \S*vit: the classifier would replace the encoder"):
        finetune(monkeypatch, "--model", folder, "--output_dir", output.format(folder=folder), *SHORT)
    assert files() == before


def test_pretraining_is_not_replaced(upstream, tmp_path, monkeypatch):
    """The heads of one model beside the classifier of another would be pushed as one."""
    (tmp_path / "pretraining").mkdir()
    with pytest.raises(ValueError, match=r"--output_dir \S+ holds a pretraining: choose another"):
        finetune(monkeypatch, "--model", upstream / "vit", "--output_dir", tmp_path, *SHORT)


def test_weights_are_loaded_before_training(upstream, tmp_path, monkeypatch):
    """At a learning rate of next to nothing the encoder stays what it was, but for its positions."""
    flags = ["--learning_rate", "1e-30", "--min_learning_rate", "0", "--eval_strategy", "no", "--output_dir", tmp_path]
    finetune(monkeypatch, "--model", upstream / "vit", *SHORT, *flags)
    model, encoder = (
        AutoModelForImageClassification.from_pretrained(tmp_path),
        AutoModel.from_pretrained(upstream / "vit"),
    )
    for name, tensor in encoder.state_dict().items():
        if name != "embeddings.position_embeddings" and not name.startswith("pooler."):
            torch.testing.assert_close(tensor, model.vit.state_dict()[name], rtol=0, atol=1e-7, msg=name)
    assert not encoder.embeddings.position_embeddings.any() and model.vit.embeddings.position_embeddings.any()


@pytest.mark.parametrize(
    ("asked", "chosen", "greater"),
    [
        (None, "finetune_top1", True),
        ("loss", "finetune_top1", True),
        ("finetune_loss", "finetune_loss", False),
        ("validation_loss_relations", "validation_loss_relations", False),
        ("eval_validation_accuracy_relations", "eval_validation_accuracy_relations", True),
    ],
)
def test_direction_of_the_metric(tmp_path, asked, chosen, greater):
    """Less of a loss is better, wherever its name says that it is one."""
    args = SSLTrainingArguments(output_dir=str(tmp_path), metric_for_best_model=asked, greater_is_better=not greater)
    choose_best_by(args, "finetune_top1")
    assert (args.metric_for_best_model, args.greater_is_better) == (chosen, greater)
