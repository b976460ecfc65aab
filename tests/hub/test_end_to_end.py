"""From pixels to a stranger: pretrain, push, load without this library, evaluate, fine-tune, push, classify."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModel

from hf_ssl.models import METHODS

from ..hub_server import hf_ssl, run_with_hub


SHORT = [
    "--max_steps",
    "3",
    "--knn_bank_samples",
    "300",
    "--knn_query_samples",
    "50",
    "--per_device_train_batch_size",
    "32",
]
ROUNDS = ["--num_train_epochs", "2", "--max_train_samples", "100", "--gan_max_epochs", "1", "--gan_min_steps", "0"]
ROUNDS += ["--eval_epochs", "1", "--num_negatives", "16", "--score_threshold", "0.1", "--knn_query_samples", "50"]
FINETUNE = ["--dataset", "digits", "--recipe", "digits", "--max_steps", "30", "--max_test_samples", "100"]
# What a stranger does: hf_ssl cannot be imported, and only ISL's small ResNet needs code from the Hub.
LOAD = """
import json, sys
sys.modules["hf_ssl"] = None
from PIL import Image
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, pipeline
trust = {"trust_remote_code": True} if "isl" in sys.argv[1] else {}
model = AutoModel.from_pretrained(sys.argv[1], **trust)
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
photo = Image.open(sys.argv[2])
with torch.no_grad():
    output = model(**processor(images=photo, return_tensors="pt"))
served = torch.tensor(pipeline("image-feature-extraction", model=sys.argv[1], **trust)(photo, pool=True))
tensors = {"tokens": output.last_hidden_state, "pooled": output.pooler_output.flatten(1), "served": served.flatten(1)}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "features.safetensors")
"""
CLASSIFY = """
import json, sys
sys.modules["hf_ssl"] = None
from huggingface_hub import ModelCard
from transformers import pipeline
trust = {"trust_remote_code": True} if "isl" in sys.argv[1] else {}
predictions = pipeline("image-classification", model=sys.argv[1], top_k=10, **trust)(sys.argv[2])
numbers = {result.metric_name: result.metric_value for result in ModelCard.load(sys.argv[1]).data.eval_results}
json.dump({"predictions": predictions, "numbers": numbers}, open("answers.json", "w"))
"""


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "digit.png"
    Image.fromarray((load_digits().images[0] * 255 / 16).astype("uint8")).convert("RGB").save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_from_pixels_to_a_stranger(hub, tmp_path, digit, method):
    alice = hub.tokens["alice"]

    def python(code, step, *arguments):
        command = [*hf_ssl()[:1], "-c", code, *map(str, arguments)]
        return run_with_hub(hub, command, home=tmp_path / step)

    encoder, classifier = f"org/{method}-digits", f"org/{method}-digits-classifier"
    command = hf_ssl("pretrain", "--method", method, *(ROUNDS if method == "isl" else SHORT), "--output_dir", "run")
    command += ["--push_to_hub", "true", "--hub_model_id", encoder]
    run_with_hub(hub, command, home=tmp_path / "pretrain", token=alice)
    folder, published = tmp_path / "pretrain/run", hub.repository(encoder)
    assert len(published.history()) == 1 and not any(
        "bank" in path or "checkpoint" in path for path in published.paths()
    )

    python(LOAD, "load", encoder, digit)
    seen = load_file(tmp_path / "load/features.safetensors")
    with torch.no_grad():
        inputs = AutoImageProcessor.from_pretrained(folder)(images=Image.open(digit), return_tensors="pt")
        expected = AutoModel.from_pretrained(folder)(**inputs)
    torch.testing.assert_close(seen["tokens"], expected.last_hidden_state)
    torch.testing.assert_close(seen["pooled"], expected.pooler_output.flatten(1))
    torch.testing.assert_close(seen["served"], seen["pooled"])

    flags = ["--model", encoder, "--max_test_samples", "50", "--max_train_samples", "300", "--output_dir", "knn"]
    flags += ["--features", "projected"] if method == "isl" else []
    run_with_hub(hub, hf_ssl("knn", *flags), home=tmp_path / "knn")
    measured = json.loads((tmp_path / "knn/knn/all_results.json").read_text())
    assert 10 < measured["knn_top1"] <= 100
    assert measured["knn_protocol"]["model"] == encoder
    assert measured["knn_protocol"]["model_revision"] == published.branches["main"]

    command = hf_ssl("finetune", "--model", encoder, *FINETUNE, "--output_dir", "run")
    command += ["--push_to_hub", "true", "--hub_model_id", classifier]
    run_with_hub(hub, command, home=tmp_path / "finetune", token=alice)
    tuned = json.loads((tmp_path / "finetune/run/all_results.json").read_text())

    python(CLASSIFY, "classify", classifier, digit)
    answers = json.loads((tmp_path / "classify/answers.json").read_text())
    assert sorted(item["label"] for item in answers["predictions"]) == [str(label) for label in range(10)]
    assert answers["numbers"]["top-1 accuracy (%)"] == pytest.approx(tuned["finetune_top1"], abs=0.005)
    card = ModelCard(published.read("README.md").decode())
    results = json.loads((folder / "all_results.json").read_text())
    assert card.data.eval_results[0].metric_value == pytest.approx(results["knn_top1"], abs=0.005)
    assert f'from_pretrained("{encoder}"' in card.text and "path/to/this/folder" not in card.text
    assert ModelCard(hub.repository(classifier).read("README.md").decode()).data.base_model == encoder


@pytest.mark.slow
def test_train_on_from_the_hub(hub, tmp_path):
    """The whole model, heads and teacher with it, is what the run on another machine begins with."""
    command = hf_ssl("pretrain", "--method", "patchmix", *SHORT, "--output_dir", "run", "--push_to_hub", "true")
    run_with_hub(hub, [*command, "--hub_model_id", "org/first"], home=tmp_path / "first", token=hub.tokens["alice"])
    command = hf_ssl("pretrain", "--method", "patchmix", "--model", "org/first", *SHORT, "--output_dir", "run")
    still = ["--learning_rate", "1e-30", "--min_learning_rate", "0", "--weight_decay", "0", "--teacher_momentum", "1"]
    run_with_hub(hub, [*command, *still], home=tmp_path / "second")
    first, second = (load_file(tmp_path / name / "run/pretraining/model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys() and any(name.startswith("teacher.projector.") for name in first)
    for name, tensor in first.items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(second[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
    card = ModelCard.load(tmp_path / "second/run/README.md")
    assert card.data.base_model == "org/first" and "org/first" in card.text


@pytest.mark.slow
def test_two_processes_push_once(hub, tmp_path):
    """The first process pushes when the group of processes has ended: nobody waits for it."""
    torchrun = [
        *hf_ssl()[:1],
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--module",
        "hf_ssl.scripts.pretrain",
    ]
    flags = ["--method", "patchmix", *SHORT, "--use_cpu", "true", "--output_dir", "run"]
    flags += ["--push_to_hub", "true", "--hub_model_id", "org/of-two"]
    run_with_hub(hub, [*torchrun, *flags], home=tmp_path, token=hub.tokens["alice"])
    repository = hub.repository("org/of-two")
    assert len(repository.history()) == 1 and "model.safetensors" in repository.paths()
