"""Which files the conversion takes, through the script: the authors' in every form, others' and hostile ones by name."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from hf_ssl.models import METHODS

from ..hub_server import run_with_hub
from ..parity.cases import GOLDEN


CONVERT = Path(__file__).parents[2] / "training" / "convert.py"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "golden"
# A file of each method: what its tensors lie under, one of them, and the heads of its attention.
FILES = {
    "relvit": ("relvit/vit/checkpoint.pth", "state_dict", "backbone.norm.weight", 4),
    "patchmix": ("patchmix/momentum/checkpoint.pth", "state_dict", "base_encoder.norm.weight", 2),
    "aps": ("aps/square/checkpoint.pth", None, "base_encoder.layer_norm.weight", 2),
    "pw_self": ("pw_self/even_grid/checkpoint.pth", "teacher", "backbone.norm.weight", 2),
    "isl": ("isl/basic_blocks/checkpoint.pth", "net", "module.bn1.weight", None),
}


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """The script; it returns the folder that it wrote. Where it fails, it has to leave nothing."""

    def run(checkpoint, *flags, heads=None):
        output = tmp_path / "converted"
        if (output / "config.json").is_file():  # of an earlier conversion
            shutil.rmtree(output)
        before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        arguments = [checkpoint, "--output_dir", output, *flags]
        arguments += ["--num_attention_heads", heads] if heads else []
        monkeypatch.setattr(sys, "argv", ["convert.py", "--checkpoint", *map(str, arguments)])
        try:
            runpy.run_path(str(CONVERT), run_name="__main__")
        except SystemExit as error:
            assert isinstance(error.code, str) and error.code, "a message, and an exit status that is not 0"
            assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
            assert before or not output.is_dir()
            raise
        assert not list(output.glob(".*")), "nothing unfinished"
        return output

    return run


def content_of(method):
    """The content of a method's file, the dictionary of its tensors in it, and the name of one of them."""
    path, key, name, _ = FILES[method]
    content = torch.load(FIXTURES / path, weights_only=True)
    return content, content if key is None else content[key], name


def of_a_case(path, *names):
    """A value of the case.json beside a file, if there is one of that kind."""
    info = json.loads(path.with_name("case.json").read_text())
    values = [info.get(group, {}).get(name) for group in ("config", "dims", "hyper") for name in names]
    return next((value for value in values if type(value) is int), None)


CHECKPOINTS = sorted(path for kind in ("pth", "ckpt") for path in GOLDEN.glob(f"*/*/*.{kind}"))


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: "/".join(path.relative_to(GOLDEN).parts))
def test_every_recorded_file(convert, capsys, path):
    """Recognized, converted and verified, and then what it is: with heads, or a classifier."""
    method = path.relative_to(GOLDEN).parts[0]
    output = convert(path, "--verify", heads=of_a_case(path, "heads", "num_heads"))
    assert f"{path.name} was read as a file of {METHODS[method].title}" in capsys.readouterr().out
    kind = AutoConfig.from_pretrained(output).architectures[0]
    assert (output / "pretraining").is_dir() != kind.endswith("ForImageClassification")


def downstream(path):
    """What RelViT's fine-tuning leaves, made of a joint file: without the heads of the other tasks."""
    state = torch.load(path, weights_only=True)["state_dict"]
    return {"epoch": 1, "state_dict": {n: t for n, t in state.items() if n.startswith(("backbone.", "clf_head."))}}


def probe(path):
    """What PatchMix's linear probe leaves after each epoch."""
    state = torch.load(path, weights_only=True)["state_dict"]
    encoder = {n.removeprefix("base_encoder."): t for n, t in state.items() if n.startswith("base_encoder.")}
    encoder = {name: tensor for name, tensor in encoder.items() if not name.startswith("head.")}
    encoder |= {"head.weight": torch.randn(5, len(encoder["norm.weight"])), "head.bias": torch.randn(5)}
    return {"epoch": 1, "arch": "vit-small", "state_dict": encoder, "acc_best": 70.0, "optimizer": {}, "scaler": {}}


CLASSIFIERS = [(path, downstream) for path in sorted(FIXTURES.glob("relvit/*/checkpoint_joint.pth"))]
CLASSIFIERS.append((FIXTURES / "patchmix/momentum/checkpoint.pth", probe))


@pytest.mark.parametrize(("path", "make"), CLASSIFIERS, ids=lambda value: getattr(value, "parent", Path()).name)
def test_classifiers(convert, tmp_path, path, make):
    """Those that no file was recorded of."""
    torch.save(make(path), tmp_path / "best.pth")
    output = convert(tmp_path / "best.pth", "--verify", heads=of_a_case(path, "heads", "num_heads"))
    config, card = AutoConfig.from_pretrained(output), (output / "README.md").read_text()
    assert config.architectures[0].endswith("ForImageClassification") and config.num_labels == 5
    assert config.auto_map["AutoModelForImageClassification"] if config.model_type == "t2t_vit" else True
    assert ("trust_remote_code=True)" in card) == (config.model_type == "t2t_vit")
    assert "which of 5 classes" in card and "fine-tuned for classification by the authors of" in card
    assert "The conversion was checked: for random pixels, the logits" in card and "pretraining/" not in card


# ---- the method ----


@pytest.mark.parametrize("given", FILES)
@pytest.mark.parametrize("method", FILES)
def test_method(convert, given, method):
    """Any but the file's own is contradicted; so would be the heads, if it came to that."""
    path, _, _, heads = FILES[method]
    if given == method:
        assert (convert(FIXTURES / path, "--method", method, heads=heads) / "pretraining").is_dir()
        return
    titles = METHODS[method].title, METHODS[given].title
    with pytest.raises(SystemExit, match=f"is a checkpoint of {titles[0]}, and not of {titles[1]}: --method {method}"):
        convert(FIXTURES / path, "--method", given, heads=heads)


def test_method_that_does_not_exist(convert):
    with pytest.raises(SystemExit, match="Unknown method 'dino'; the methods are relvit, patchmix"):
        convert(FIXTURES / FILES["aps"][0], "--method", "dino")


def test_encoders_alone_are_of_whom_the_user_says(convert, tmp_path):
    """Their names are everybody's. The card says no more than is known."""
    _, state, _ = content_of("relvit")
    encoder = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    torch.save({"model": encoder}, tmp_path / "encoder.pth")
    with pytest.raises(SystemExit, match=r"is not recognized as .* --method relvit\|patchmix\|aps\|pw_self\|isl"):
        convert(tmp_path / "encoder.pth", heads=4)
    with pytest.raises(SystemExit, match="no `state_dict` of tensors: 'model' is a dict"):
        convert(tmp_path / "encoder.pth", "--method", "patchmix", heads=4)
    with pytest.raises(SystemExit, match="holds one encoder: leave --encoder teacher out"):
        convert(tmp_path / "encoder.pth", "--method", "relvit", "--encoder", "teacher", heads=4)
    output = convert(tmp_path / "encoder.pth", "--method", "relvit", "--verify", heads=4)
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in output.iterdir()} == files
    table = load_file(output / "model.safetensors")["embeddings.position_embeddings"]
    assert torch.equal(table, encoder["pos_embed"])
    card = (output / "README.md").read_text()
    assert "a file that holds an encoder alone, without the heads of a pretraining" in card
    assert "The conversion was checked" in card and "last_hidden_state[:, 0]" in card
    for word in ("RelViT", "relvit", "pretraining/", "2206.00481", "bibtex"):
        assert word not in card, word


# ---- the folder ----


@pytest.mark.parametrize("name", ["README.md", "photo.jpg", ".git"])
def test_a_folder_with_something_in_it_is_refused(convert, tmp_path, name):
    """Whatever it is called: it may be somebody's model, or the checkpoint itself."""
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / name).write_text("mine")
    with pytest.raises(SystemExit, match=f"holds {name}: name a new folder"):
        convert(FIXTURES / FILES["isl"][0])
    assert (tmp_path / "converted" / name).read_text() == "mine"


def test_more_classes_than_any_checkpoint(convert, tmp_path, monkeypatch):
    """Torch looks through the names of all of them for each object."""
    theirs = types.ModuleType("theirs")
    classes = [type(f"Class{i}", (), {"__module__": "theirs"}) for i in range(400)]
    for made in classes:
        setattr(theirs, made.__name__, made)
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    content = torch.load(FIXTURES / FILES["aps"][0], weights_only=True)
    torch.save({"state_dict": content, "others": [made() for made in classes]}, tmp_path / "many.pth")
    with pytest.raises(SystemExit, match="names 4\\d\\d classes, as no checkpoint does"):
        convert(tmp_path / "many.pth", heads=2)


def test_numbers_that_are_nowhere(convert, tmp_path):
    """Tensors of the device that has no memory: to fill a model with them would ask for it."""
    content = torch.load(FIXTURES / FILES["aps"][0], weights_only=True)
    torch.save({name: tensor.to("meta") for name, tensor in content.items()}, tmp_path / "meta.pth")
    with pytest.raises(SystemExit, match="does not hold its numbers"):
        convert(tmp_path / "meta.pth", heads=2)


@pytest.mark.parametrize("sets", [3, torch.ones(4), {"a": 1}])
def test_banks_that_are_none(convert, tmp_path, sets):
    content = content_of("isl")[0]
    content["lemniscate"] = {"memory": torch.ones(4, 8), "params": torch.tensor([0.1, 0.5]), "affinity_mat": sets}
    torch.save(content, tmp_path / "bank.pth")
    with pytest.raises(SystemExit, match="affinity_mat"):
        convert(tmp_path / "bank.pth")


def test_a_file_in_the_place_of_the_folder(convert, tmp_path):
    (tmp_path / "converted").write_text("mine")
    with pytest.raises(SystemExit, match="converted is a file: name a folder to write into"):
        convert(FIXTURES / FILES["isl"][0])
    assert (tmp_path / "converted").read_text() == "mine"


# ---- damaged, hostile and other files ----


@pytest.mark.parametrize("method", FILES)
def test_names_of_several_processes(convert, tmp_path, method):
    """With DDP's `module.` a file is the same."""
    content, state, _ = content_of(method)
    for name in list(state):
        state[f"module.{name.removeprefix('module.')}"] = state.pop(name)
    torch.save(content, tmp_path / "official.pth")
    path, _, _, heads = FILES[method]
    saved = load_file(convert(tmp_path / "official.pth", "--verify", heads=heads) / "model.safetensors")
    expected = METHODS[method].convert(FIXTURES / path, heads).export_encoder().state_dict()
    assert saved and all(torch.equal(tensor, expected[name]) for name, tensor in saved.items() if name in expected)


def truncated(method, share):
    path = FIXTURES / FILES[method][0]
    return path.read_bytes()[: int(share * path.stat().st_size)]


@pytest.mark.parametrize("method", FILES)
def test_truncated_files(convert, tmp_path, method):
    for share in (1e-5, 0.01, 0.3, 0.9, 0.999):
        (tmp_path / "cut.pth").write_bytes(truncated(method, share))
        with pytest.raises(SystemExit, match="cut.pth cannot be read safely"):
            convert(tmp_path / "cut.pth", "--method", method)


CHANGES = {
    "another shape": (lambda tensor: torch.cat([tensor, tensor]), "does not fit an? [A-Z].*size mismatch"),
    "no shape": (lambda tensor: torch.ones(()), "does not fit an? [A-Z]"),
    "nothing": (lambda tensor: None, "no `state_dict` of tensors: .* is a NoneType"),
    "not a number": (
        lambda tensor: tensor * float("nan"),
        r"norm.weight'|bn1.weight'.* holds numbers that are not finite",
    ),
    "a claim": (lambda tensor: torch.ones(1).expand(10**12), r"claims the shape \(1000000000000,\)"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", FILES)
def test_tensors_that_do_not_fit(convert, tmp_path, method, change):
    content, state, name = content_of(method)
    function, message = CHANGES[change]
    state[name] = function(state[name])
    torch.save(content, tmp_path / "changed.pth")
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        convert(tmp_path / "changed.pth", heads=FILES[method][3])


@pytest.mark.parametrize("method", [method for method in FILES if method != "isl"])
def test_sizes_that_ask_for_all_memory(convert, tmp_path, method):
    """A few bytes can claim a width; the model of it would not fit on any machine."""
    content, state, name = content_of(method)
    prefix = {"aps": "base_encoder.patchify"}.get(method, name.removesuffix("norm.weight") + "patch_embed.proj")
    state[f"{prefix}.weight"] = torch.ones(10**9, 3, 0, 0)
    torch.save(content, tmp_path / "claims.pth")
    with pytest.raises(SystemExit, match="does not fit an? [A-Z]"):
        convert(tmp_path / "claims.pth", heads=2)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", ["os.mkdir", "exec", "subprocess.call"])
@pytest.mark.parametrize("method", FILES)
def test_no_code_is_run(convert, tmp_path, method, function):
    """In the place of a tensor the object is named; elsewhere nothing is missing, unless torch refuses it by its name."""
    sprung = tmp_path / "sprung"
    trap = {
        "os.mkdir": Trap(os.mkdir, str(sprung)),
        "exec": Trap(exec, f"open({str(sprung)!r}, 'w').close()"),
        "subprocess.call": Trap(subprocess.call, ["touch", str(sprung)]),
    }[function]
    path, key, _, heads = FILES[method]
    for place in ("tensor", "file"):
        content, state, name = content_of(method)
        (state if place == "tensor" or key is None else content)[name if place == "tensor" else "trap"] = trap
        torch.save(content, tmp_path / "hostile.pth")
        if place == "file" and key is not None and function != "os.mkdir":
            assert (convert(tmp_path / "hostile.pth", heads=heads) / "README.md").is_file()
            continue
        with pytest.raises(SystemExit, match=r"(is an object of|asks for) `\w+\.(mkdir|exec|call)`") as error:
            convert(tmp_path / "hostile.pth", heads=heads)
        assert "weights_only" not in str(error.value), "torch's advice to let it run"
    assert not sprung.exists()
    spring, arguments = trap.call
    spring(*arguments)
    assert sprung.exists(), "the trap would have shown"


def test_archives_that_unpack_to_more_than_they_are(convert, tmp_path):
    torch.save({"state_dict": {"base_encoder.patch_embed.proj.weight": torch.zeros(10**6)}}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for item in plain.infolist():
            bomb.writestr(item.filename, plain.read(item), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(
        SystemExit, match=r"has [\d,]+ bytes and would unpack to 4,[\d,]+: torch.save does not compress"
    ):
        convert(tmp_path / "bomb.pth")


def test_a_storage_that_claims_more_than_it_is(convert, tmp_path):
    """The number of a tensor's elements is in the pickle, its numbers are beside it."""
    torch.save({"state_dict": {"base_encoder.patch_embed.proj.weight": torch.zeros(256)}}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "claims.pth", "w") as claims:
        for item in plain.infolist():
            data = plain.read(item)
            if item.filename.endswith("data.pkl"):
                assert data.count(b"M\x00\x01") == 2  # 256, of the storage and of the tensor
                data = data.replace(b"M\x00\x01", b"J\x00\x00\x00\x7f")
            claims.writestr(item.filename, data)
    with pytest.raises(SystemExit, match="cannot be read safely: record size .* does not match|PatchMix"):
        convert(tmp_path / "claims.pth", "--method", "patchmix")


def other_files(folder):
    """What is given by mistake, and what is said of it."""
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "text").write_text("loss 0.5\n")
    (folder / "page").write_text("\n<!DOCTYPE html><html></html>")
    (folder / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    torch.jit.script(nn.Linear(2, 2)).save(str(folder / "script"))
    torch.save([1, 2], folder / "list")
    torch.save(3, folder / "number")
    return {
        "model.safetensors": "a file of safetensors",
        "folder": "is a folder: give the checkpoint file in it",
        "empty": "empty is empty",
        "text": "cannot be read safely",
        "page": "a web page, or the like: download the file itself",
        "pointer": "a pointer of git-lfs, .*git lfs pull",
        "script": "cannot be read safely: .*torchscript",
        "list": "is not recognized as the checkpoint of a method",
        "number": "is not recognized as the checkpoint of a method",
        "missing.pth": "There is no checkpoint file at",
    }


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
def test_other_files(convert, tmp_path):
    for name, message in other_files(tmp_path).items():
        with pytest.raises(SystemExit, match=message):
            convert(tmp_path / name)


# ---- files of the Hub ----


CONVERT_OF_THE_HUB = """
import json, runpy, shutil, sys
from pathlib import Path
from huggingface_hub import ModelCard

def convert(checkpoint):
    sys.argv = ["convert.py", "--checkpoint", checkpoint, "--output_dir", "converted"]
    shutil.rmtree("converted", ignore_errors=True)
    try:
        runpy.run_path(SCRIPT, run_name="__main__")
    except SystemExit as error:
        return str(error.code)
    card = ModelCard.load("converted/README.md")
    return {"base_model": card.data.base_model, "text": card.text}

print(json.dumps({name: convert(name) for name in NAMES}))
"""


def convert_of_the_hub(hub, home, names, **options):
    """What the script says of each name, or the card that it wrote."""
    code = f"SCRIPT, NAMES = {str(CONVERT)!r}, {names!r}\n{CONVERT_OF_THE_HUB}"
    return json.loads(run_with_hub(hub, code, home=home, **options).stdout.splitlines()[-1])


def test_files_of_the_hub(hub, tmp_path):
    source, folder = FIXTURES / "isl/basic_blocks/checkpoint_imagenet_alexnet.pth", tmp_path / "repository"
    (folder / "cifar10").mkdir(parents=True)
    (folder / "cifar10/alexnet.pth").write_bytes(source.read_bytes())
    (folder / "README.md").write_text("weights")
    repository = hub.create_repository("org/weights", folder)
    commit = repository.history()[-1].sha
    hub.create_repository("org/private", folder, private=True)
    hub.create_repository("org/gated", folder, gated="auto")
    hub.create_repository("org/empty", tmp_path / "nothing")
    home, file = tmp_path / "home", "cifar10/alexnet.pth"
    named = [f"org/weights/{file}", f"org/weights@{commit}/{file}", f"hf://org/weights/{file}"]
    named.append(f"{hub.url}/org/weights/blob/main/{file}")
    refused = {
        "org/weights": f"org/weights is a repository: name a file in it. It holds these checkpoints: {file}.",
        "org/weights/alexnet.pth": f"org/weights has no file alexnet.pth. It holds these checkpoints: {file}.",
        "org/empty": "org/empty is a repository: name a file in it. It holds no checkpoints.",
        f"org/weights@v2/{file}": "It has no branch, tag or commit v2; there are main.",
        f"org/nothing/{file}": f"There is no file org/nothing/{file} here, and the Hub does not give one. .*no repository",
        f"org/private/{file}": "If it is private, to read it, log in with `hf auth login`",
        f"org/gated/{file}": "It is gated: accept its terms at .*/org/gated and log in",
        f"hf://org/nothing/{file}": f"hf://org/nothing/{file} cannot be had.",
    }
    local = f"org/local/{file}"
    (home / local).parent.mkdir(parents=True)
    (home / local).write_text("a file of this machine comes first")
    told = convert_of_the_hub(hub, home, [*named, *refused, local])
    for name in named:
        assert told[name]["base_model"] == "org/weights"
        assert f"the authors' file `{file}`" in told[name]["text"]
        page = f"https://huggingface.co/org/weights/blob/{commit}/{file}"
        assert f"that of [org/weights]({page}) on the Hub, as of commit `{commit}`" in told[name]["text"]
        assert str(tmp_path) not in told[name]["text"]
    for name, message in refused.items():
        assert re.search(message, told[name]), told[name]
    assert f"{local} cannot be read safely" in told[local]
    # Without a way to the Hub: what is in the cache, and a word about the rest.
    told = convert_of_the_hub(hub, home, [named[0], f"org/private/{file}"], HF_HUB_OFFLINE="1")
    assert told[named[0]]["base_model"] == "org/weights" and commit in told[named[0]]["text"]
    assert "HF_HUB_OFFLINE is set, so the Hub is not asked" in told[f"org/private/{file}"]
