"""What of a folder belongs on the Hub, and what stops a push."""

import json
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_ssl.hub import push_folder
from hf_ssl.hub.published_files import is_replaced, published_files


TOKEN = "hf_" + "Ab3" * 11
CARD = (
    '---\nlicense: mit\n---\n\n# A model\n\nfrom_pretrained("path/to/this/folder")\n\n![Curves](figures/curves.png)\n'
)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def write(folder: Path, files: dict[str, bytes | str | dict]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"weight": np.full(4, content, dtype=np.float32)}, path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_model(folder: Path) -> Path:
    """A folder as a run leaves it, whose model has four numbers."""
    belongs = {
        "config.json": {"model_type": "vit"},
        "model.safetensors": 1,
        "preprocessor_config.json": {"image_processor_type": "ViTImageProcessor"},
        "README.md": CARD,
        "figures/curves.png": PNG,
        "figures/retrieval-digits.csv": "query,AP\n0,1.0\n",
        ".eval_results/hf_ssl-digits.yaml": "- value: 1\n",
        "onnx/model.onnx": b"\x08\x0a\x12",
        "all_results.json": {"knn_top1": 50.0, "dataset": "digits"},
        "trainer_state.json": {"best_model_checkpoint": "checkpoint-2"},
        "evaluation.md": "| accuracy |\n",
        "pretraining/config.json": {"model_type": "patchmix"},
        "pretraining/model.safetensors": 2,
        "pretraining/views.json": {},
        "LICENSE": "Do what you like.",
    }
    write(folder, belongs)
    return folder


STAYS = {
    "checkpoint-2/model.safetensors": 3,
    "checkpoint-2/optimizer.pt": pickle.dumps([1]),
    "runs/now/events.out.tfevents": b"x",
    "pretraining/bank.safetensors": 4,
    "linear/all_results.json": {"model": "/home/somebody/model"},
    "training_args.bin": pickle.dumps({"hub_token": TOKEN}),
    "log.txt": "/home/somebody",
    "figures/notes.txt": "x",
}


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "outputs" / "model")


def test_what_belongs(model):
    """All that the library writes for others, and nothing that only this machine needs."""
    expected = published_files(model).names
    write(model, STAYS | {"modeling_other.py": "import os\n"})
    found = published_files(model)
    assert found.names == expected and len(expected) == 15
    assert found.left_out == (
        *("checkpoint-2/", "figures/notes.txt", "linear/", "log.txt", "modeling_other.py"),
        *("pretraining/bank.safetensors", "runs/", "training_args.bin"),
    )


def test_code_that_the_configuration_names(model):
    write(model, {"config.json": {"auto_map": {"AutoModel": "modeling_other.Other"}}, "modeling_other.py": "x = 1\n"})
    assert "modeling_other.py" in published_files(model).names
    (model / "modeling_other.py").unlink()
    with pytest.raises(ValueError, match="modeling_other.py missing"):
        published_files(model)


def test_shards(model):
    (model / "model.safetensors").unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    write(model, {"model.safetensors.index.json": index, **dict.fromkeys(shards, 1)})
    assert {*shards, "model.safetensors.index.json"} < set(published_files(model).names)
    (model / shards[1]).unlink()
    with pytest.raises(ValueError, match=f"not hold a whole model: {shards[1]} missing"):
        published_files(model)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "preprocessor_config.json", "README.md", "pretraining/model.safetensors"],
)
def test_incomplete(model, name):
    """Such as a run that was killed: the card comes last."""
    (model / name).unlink()
    with pytest.raises(ValueError, match=f"whole model: {name} missing"):
        published_files(model)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("model.safetensors", "cut", "model.safetensors is no whole safetensors file"),
        ("model.safetensors", "pickle", "model.safetensors is no whole safetensors file"),
        ("figures/curves.png", "pickle", "figures/curves.png is no PNG file; it may be damaged, or a pickle"),
        ("onnx/model.onnx", "pickle", "onnx/model.onnx is no ONNX file"),
        ("evaluation.md", "pickle", "evaluation.md is no text; it may be damaged, or a pickle"),
        ("all_results.json", "pickle", "all_results.json is no JSON"),
        ("trainer_state.json", "cut", "trainer_state.json is no JSON"),
    ],
)
def test_damaged_and_pickled(model, name, content, message):
    path = model / name
    path.write_bytes(path.read_bytes()[:-5] if content == "cut" else pickle.dumps({"weight": 1}))
    with pytest.raises(ValueError, match=message):
        published_files(model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "config.json is a list instead of names with values"),
        ("config.json", '{"auto_map": ["a.B"]}', "auto_map in config.json is a list"),
        ("model.safetensors.index.json", "{}", "weight_map in model.safetensors.index.json is a NoneType"),
    ],
)
def test_json_of_another_form(model, name, content, message):
    (model / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        published_files(model)


def test_code_of_another_repository_is_not_looked_for(model):
    config = json.loads((model / "config.json").read_text())
    write(model, {"config.json": config | {"auto_map": {"AutoModel": "org/name--modeling_theirs.Model"}}})
    assert "config.json" in published_files(model).names


def test_token(model):
    """It is named by its beginning alone."""
    write(model, {"all_results.json": {"note": f"token {TOKEN}"}})
    with pytest.raises(ValueError, match="all_results.json holds a token, hf_Ab3A….*revoke it") as caught:
        published_files(model)
    assert TOKEN not in str(caught.value)
    write(model, {"all_results.json": {"note": "hf_ssl, hf_hub_download_to_local_folder and hf_xet"}})
    published_files(model)


@pytest.mark.parametrize("name", ["config.json", "README.md", "figures/retrieval-digits.csv", "onnx/model.onnx"])
@pytest.mark.parametrize("place", ["folder", "home", "temporary", "current", "file", "elsewhere", "windows"])
def test_local_paths(model, name, place):
    path = {
        "folder": str(model),
        "home": str(Path.home() / "photos"),
        "temporary": f"{tempfile.gettempdir()}/cache",
        "current": str(Path.cwd() / "data"),
        "file": "file:///srv/photos",
        "elsewhere": "/home/somebody/photos",
        "windows": r"C:\Users\somebody",
    }[place]
    old = (model / name).read_bytes()
    if name.endswith(".json"):
        (model / name).write_text(json.dumps(json.loads(old) | {"source": path}))
    else:
        (model / name).write_bytes(old + f'\n"{path}"'.encode())
    with pytest.raises(ValueError, match=f"{name} holds a path of this machine") as caught:
        published_files(model)
    assert path.replace("\\", "\\\\") in str(caught.value) or path in str(caught.value)


def test_local_path_in_the_weights(model):
    save_file({"weight": np.ones(4)}, model / "model.safetensors", metadata={"source": str(model)})
    with pytest.raises(ValueError, match="model.safetensors holds a path of this machine"):
        published_files(model)


def test_paths_of_others(model):
    """Addresses and relative paths are for everybody."""
    text = "\nhttps://a.org/home/page outputs/tmp/x ~/photos path/to/tmp figures/curves.png https://hub.co/Users/x\n"
    (model / "README.md").write_text(CARD + text)
    published_files(model)


@pytest.mark.parametrize(
    "card, message",
    [
        ("---\nlicense: [\n---\n", "metadata of README.md.*cannot be read"),
        ("---\n- mit\n---\n", "metadata of README.md.*cannot be read"),
        ("---\nmodel-index:\n- results: 3\n---\n", "metadata of README.md.*cannot be read"),
        (CARD + "![Map](figures/map.png)", "README.md shows figures/map.png, which is not among"),
        (CARD + "![Map](map.png)", "README.md shows map.png, which is not among"),
    ],
)
def test_card(model, card, message):
    (model / "README.md").write_text(card)
    with pytest.raises(ValueError, match=message):
        published_files(model)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="There is no folder .*nothing"):
        push_folder(tmp_path / "nothing", "org/x")


def test_what_a_push_replaces():
    """Of files that the folder does not have, those are deleted that only this library writes."""
    ours = ["model-00001-of-00002.safetensors", "model.safetensors", "pretraining/config.json", "figures/old.png"]
    ours += ["figures/other/map.csv", ".eval_results/hf_ssl-digits.yaml", "onnx/model.onnx", "evaluation.md"]
    theirs = ["LICENSE", "README.md", "photo.png", "onnx/model_fp16.onnx", ".eval_results/mine.yaml", "model.gguf"]
    theirs += ["figures/a.jpg", ".gitattributes", "modeling_other.py", "sub/model.safetensors", "flax_model.msgpack"]
    assert all(map(is_replaced, ours)) and not any(map(is_replaced, theirs))


def test_dry_run_without_a_connection(model):
    """All checks are made; what cannot be known is said."""
    write(model, STAYS)
    report = push_folder(model, "org/model", dry_run=True)
    assert report.uploaded == published_files(model).names and "HF_HUB_OFFLINE is set" in str(report.not_compared)
    assert "would be uploaded (15): " in str(report) and "left out (7): checkpoint-2/, " in str(report)
    shutil.rmtree(model / "figures")
    with pytest.raises(ValueError, match="README.md shows figures/curves.png"):
        push_folder(model, "org/model", dry_run=True)
