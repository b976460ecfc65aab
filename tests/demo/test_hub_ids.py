"""Encoders that visitors name: public ones are loaded, all others are refused in words, and none leaves a trace."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from ..hub_server import File, Hub, serve_hub
from .server import Demo, Refused, serve_demo


CODE = 'open("{marker}", "w").write("Code was run.")\nfrom transformers import ViTModel as Evil, ViTConfig as EvilConfig\n'


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    """Set entries of a JSON file; None takes them out."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        value = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        value |= changes
        (folder / name).write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def forget(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "layer.1." not in name and "layers.1." not in name},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_code(folder: Path, **changes: object) -> None:
    auto_map = {name: f"modeling_evil.{kind}" for name, kind in (("AutoConfig", "EvilConfig"), ("AutoModel", "Evil"))}
    edit("config.json", auto_map=auto_map, **changes)(folder)
    edit("preprocessor_config.json", auto_map={"AutoImageProcessor": "modeling_evil.Evil"})(folder)
    (folder / "modeling_evil.py").write_text(CODE.format(marker=folder.parent / "marker"))


def with_index(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        edit("model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, file))(folder)

    return change


def config(**changes: object) -> Callable[[Path], None]:
    return edit("config.json", **changes)


def processor(**changes: object) -> Callable[[Path], None]:
    return edit("preprocessor_config.json", **changes)


def timm(**changes: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 0, "pretrained_cfg": {}, **changes})
    )


# What is done to a copy of a good encoder, and a part of the answer.
REFUSED = {
    "pickles": (pickled, "no weights in safetensors"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "It has no config.json"),
    "no-processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "image processor"),
    "text-config": (write("config.json", b"hello"), "Its config.json is damaged"),
    "list-config": (write("config.json", b"[1]"), "Its config.json is damaged"),
    "nested-config": (write("config.json", b"[" * 100_000), "Its config.json is damaged"),
    "large-config": (write("config.json", b" " * 10_000_001), "Its configuration has 10 MB; the limit is 10 MB"),
    "code": (lambda folder: with_code(folder, model_type="evil"), "Its architecture, evil, is no encoder"),
    "no-kind": (config(model_type=None), "Its architecture, None, is no encoder"),
    "kind-list": (config(model_type=["vit"]), r"Its architecture, \['vit'\], is no encoder"),
    "text-model": (config(model_type="bert"), "Its architecture, bert, is no encoder of images alone"),
    "many-models": (config(model_type="clip"), "Its architecture, clip, is no encoder of images alone"),
    "detector": (config(model_type="detr", backbone="org/private"), "Its architecture, detr, is no encoder"),
    "backbone": (config(model_type="timm_backbone", backbone="hf-hub:org/private"), "Its architecture, timm_backbone"),
    "kernel": (config(_attn_implementation="org/kernel"), "has _attn_implementation, which is not read here"),
    "quantized": (config(quantization_config={"quant_method": "bitsandbytes"}), "has quantization_config, which"),
    "other-weights": (config(transformers_weights="../x"), "has transformers_weights, which is not read here"),
    "wide": (config(hidden_size=9000, intermediate_size=36000), "It has more than 250,000,000 parameters"),
    "deep": (config(num_hidden_layers=99_999), "It has more than 5,000 modules"),
    "deeper": (config(num_hidden_layers=10**9), r"has num_hidden_layers=1000000000, which is not between"),
    "many-classes": (config(num_labels=10**9), r"has num_labels=1000000000, which is not between"),
    "large-patches": (config(hidden_size=-1), "is not loaded"),
    "text-numbers": (config(hidden_size="wide"), "is not loaded"),
    "many-tokens": (
        lambda folder: (config(image_size=512, patch_size=1)(folder), processor(size={"height": 512, "width": 512})(folder)),
        "It computes too much for an image of 512 x 512 pixels",
    ),
    "much-memory": (
        lambda folder: (
            config(model_type="beit", hidden_size=3, num_attention_heads=3, num_hidden_layers=1, image_size=32, patch_size=2,
                   use_absolute_position_embeddings=False)(folder),  # fmt: skip
            processor(size={"height": 512, "width": 512})(folder),
        ),
        "It computes too much for an image of 512 x 512 pixels",
    ),
    "large-images": (processor(size={"height": 100_000, "width": 100_000}), "has height=100000, which is not between"),
    "large-crops": (processor(crop_size=[5000, 5000], do_center_crop=True), "has crop_size=5000, which is not between"),
    "enlarged": (processor(crop_pct=1e-6), "has crop_pct=1e-06, which is not between 0.25"),
    "nested-size": (
        edit("processor_config.json", image_processor={"size": {"height": 10**6, "width": 10**6}}),
        "has height=1000000, which is not between",
    ),
    "not-resized": (processor(do_resize=False), "does not bring all images to one size"),
    "ribbons": (
        processor(image_processor_type="BitImageProcessor", size={"shortest_edge": 900}, do_center_crop=False),
        "does not bring all|computes too much",
    ),
    "timm-folder": (timm(architecture="local-dir:/etc"), "timm knows no local-dir:/etc"),
    "timm-hub": (timm(architecture="hf-hub:org/private"), "timm knows no hf-hub:org/private"),
    "timm-file": (timm(model_args={"checkpoint_path": "/etc/passwd"}), "has checkpoint_path, which is not read here"),
    "timm-size": (timm(pretrained_cfg={"input_size": [3, 90_000, 90_000]}), "has input_size=90000, which is not between"),
    "timm-crop": (timm(pretrained_cfg={"crop_pct": 1e-9}), "has crop_pct=1e-09, which is not between"),
    "timm-arguments": (timm(model_args={"nothing": 1}), "nothing"),
    "pretraining-code": (
        edit("pretraining/config.json", model_type="evil", auto_map={"AutoConfig": "x.Y"}),
        "not one of hf_ssl",
    ),
    "pretraining-detector": (
        edit("pretraining/config.json", backbone_config={"model_type": "detr", "backbone": "org/private"}),
        "Its architecture, detr, is no encoder",
    ),
    "cut": (cut, "is not loaded"),
    "empty-weights": (write("model.safetensors", b""), "is not loaded"),
    "forgotten": (forget, "Weights are missing, and would be random"),
    "other-shape": (config(hidden_size=24), "is not loaded"),
    "index-above": (with_index("../../../../etc/passwd"), "names files that are not beside it"),
    "index-pickle": (with_index("pytorch_model.bin"), "names files that are not beside it"),
    "index-absolute": (with_index("/etc/passwd"), "names files that are not beside it"),
}  # fmt: skip


class Huge(File):
    """A file that says that it is larger than it is."""

    size = 3 * 10**9  # type: ignore[assignment]


@dataclass
class Visited:
    demo: Demo
    hub: Hub
    folder: Path

    def describe(self, name: str) -> str:
        (words,) = self.demo.ask("describe", name)
        return words

    def refusal(self, name: str) -> str:
        with pytest.raises(Refused) as refused:
            self.describe(name)
        message = refused.value.message
        assert isinstance(message, str) and "/tmp" not in message and str(self.folder) not in message, message
        assert "hf_ssl-encoder" not in message and "Traceback" not in message and len(message) < 450
        return message


@pytest.fixture(scope="module")
def visited(encoder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    """A page whose operator may read `org/private`; a copy of an encoder lies where the server was started."""
    folder = tmp_path_factory.mktemp("visited")
    with serve_hub() as hub:
        hub.create_repository("org/public", folder=encoder)
        hub.create_repository("org/private", folder=encoder, private=True)
        hub.create_repository("org/gated", folder=encoder, gated="auto")
        for name, (change, _) in REFUSED.items():
            copy = shutil.copytree(encoder, folder / name)
            change(copy)
            hub.create_repository(f"org/{name}", folder=copy)
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": hub.tokens["alice"]}
        with serve_demo(folder / "demo", "--model", encoder, "--dataset", photos, **environment) as demo:
            shutil.copytree(encoder, demo.folder / "home/outputs/quickstart")
            yield Visited(demo, hub, folder)


@pytest.fixture(autouse=True)
def leaves_no_trace(visited: Visited) -> Iterator[None]:
    """Code is not run, and nothing that visitors name stays on the server's disk."""
    yield
    assert not (visited.folder / "marker").exists()
    left = [
        path for path in (visited.demo.folder / "tmp").iterdir() if re.match("hf_ssl-(encoder|features)", path.name)
    ]
    cached = [path for path in (visited.demo.folder / "home/huggingface").rglob("*") if "models--" in path.name]
    assert not left and not cached
    assert visited.describe("tiny").startswith("**tiny**: vit")


def test_a_public_one_is_loaded(visited, photos):
    demo = visited.demo
    query = demo.upload(photos / "test/temples/11.png")
    expected = demo.ask("retrieve", query, 8, None, "tiny")[3]
    kept = len(list((demo.folder / "home/huggingface/hf_ssl/features").iterdir()))
    assert kept == 2  # of the trained and of the untrained encoder
    assert visited.describe(" org/public ") == visited.describe("tiny").replace("tiny", "org/public")
    assert demo.ask("retrieve", query, 8, None, "org/public")[3] == expected
    requests = [path for _, path, _ in visited.hub.requests if "org/public" in path]
    assert not any(path.endswith((".py", "pretraining/model.safetensors", "README.md")) for path in requests)
    assert len(list((demo.folder / "home/huggingface/hf_ssl/features").iterdir())) == kept


def test_code_beside_a_known_architecture_is_not_run(visited, encoder):
    copy = shutil.copytree(encoder, visited.folder / "known")
    with_code(copy)
    visited.hub.create_repository("org/known", folder=copy)
    assert visited.describe("org/known").startswith("**org/known**: vit")


def test_larger_encoders_of_other_kinds(visited, tmp_path):
    """Sharded weights in half precision, of an encoder whose default would set torch's default, too."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).half()
    model.save_pretrained(tmp_path / "half", max_shard_size="10KB")
    processor(image_processor_type="ViTImageProcessor", size={"height": 32, "width": 32})(tmp_path / "half")
    assert (tmp_path / "half/model.safetensors.index.json").exists()
    visited.hub.create_repository("org/half", folder=tmp_path / "half")
    assert visited.describe("org/half").startswith("**org/half**: vit")


@pytest.mark.parametrize("name", REFUSED)
def test_refused(visited, name):
    message = visited.refusal(f"org/{name}")
    assert message.startswith(f"org/{name} is not loaded. ")
    assert re.search(REFUSED[name][1], message), message


def test_what_is_not_public(visited):
    """The operator's token opens nothing to visitors."""
    for name in ("org/private", "org/missing"):
        assert visited.refusal(name) == f"{name} is not loaded. The Hub shows no public model of this name: check it."
    assert (
        visited.refusal("org/gated") == "org/gated is not loaded. It is gated, and only what is public is shown here."
    )
    given = [path for method, path, status in visited.hub.requests if "org/private" in path and status < 400]
    assert not given


def test_large_files(visited, encoder):
    repository = visited.hub.create_repository("org/large", folder=encoder)
    files = dict(repository.find().files)
    repository.commit(
        "main", "org", "Large", files | {"model.safetensors": Huge(files["model.safetensors"].content, True)}
    )
    assert "Its weights have 3.0 GB; the limit is 1 GB." in visited.refusal("org/large")
    # Other files of a repository may have any size, and are not fetched.
    others = {"models/model.safetensors": Huge(b"x", True), "model/a.safetensors": Huge(b"x", True)}
    visited.hub.create_repository("org/others", folder=encoder).commit("main", "org", "Others", files | others)
    assert visited.describe("org/others").startswith("**org/others**")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "x",
        "org/../x",
        "./org",
        "~/x",
        "a/b/c",
        "org/x@main",
        "http://127.0.0.1/x",
        "C:\\x",
        "org/x y",
    ],
)
def test_no_names(visited, name):
    assert visited.refusal(name) == (
        "This is no name of an encoder. Choose one of tiny, or write an id of the Hub, such as org/name."
    )


def test_folders_of_the_server(visited):
    assert (visited.demo.folder / "home/outputs/quickstart/config.json").exists()
    assert "The Hub shows no public model of this name" in visited.refusal("outputs/quickstart")


def test_a_hub_that_fails(visited):
    try:
        for answer, words in (((503, "Down"), "Try again later."), ((429, "Slow"), "The Hub is asked too often")):
            visited.hub.before_request = lambda method, path, answer=answer: answer if "org/failing" in path else None
            assert words in visited.refusal("org/failing")
    finally:
        visited.hub.before_request = lambda method, path: None
