"""Official checkpoints of ISL: the four encoders, all forms of files, odd ones and hostile ones; and the script."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from hf_ssl import ISLForPreTraining
from hf_ssl.backbones.modeling_cifar_resnet import CifarResNetModel
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models.isl.convert_isl import (
    CheckpointError,
    convert,
    from_official,
    load_official,
    reference,
    to_official,
)

from .test_isl import perturb


ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/fixtures/golden/isl/basic_blocks"
DIM, NUM_IMAGES = 6, 9
SETS = [{0, 3, 5}, {1}, {2, 8}, {3, 0}, {4}, {5, 0, 8}, {6}, {7}, {8, 2, 5}]


# ---- the authors' networks, with the names and the order of layers that they have there ----


class Block(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck, shortcut):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        if not bottleneck:
            shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.count, self.shortcut_name = len(shapes), shortcut
        for number, (before, after, kernel, step) in enumerate(shapes, 1):
            setattr(self, f"conv{number}", nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(after))
        layers = []
        if stride != 1 or inputs != outputs:
            layers = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        setattr(self, shortcut, nn.Sequential(*layers))

    def forward(self, x):
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = F.relu(y) if number < self.count else y
        return F.relu(y + getattr(self, self.shortcut_name)(x))


class OfficialResNet(nn.Module):
    def __init__(self, small=True, bottleneck=False, width=4, depths=(1, 2, 1, 1), dim=DIM):
        super().__init__()
        self.small = small
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs, shortcut = width, "shortcut" if small else "downsample"
        for stage, depth in enumerate(depths):
            blocks = []
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(Block(inputs, width * 2**stage, stride, bottleneck, shortcut))
                inputs = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        setattr(self, "linear" if small else "fc", nn.Linear(inputs, dim))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = x if self.small else F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
        return x, F.normalize((self.linear if self.small else self.fc)(x))


class OfficialAlexNet(nn.Module):
    def __init__(self, small=True, dim=DIM):
        super().__init__()
        widths, width, side = [3, 4, 6, 8, 6, 5], 12, 4 if small else 6
        kernels = [(3, 1, 1)] * 5 if small else [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
        layers = []
        for number, kernel in enumerate(kernels):
            before, after = widths[number : number + 2]
            layers += [nn.Conv2d(before, after, *kernel), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if number in (0, 1, 4):
                layers.append(nn.MaxPool2d(2, 2) if small else nn.MaxPool2d(3, 2))
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Sequential(nn.Linear(5 * side**2, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        self.fc2 = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        self.projection = nn.Sequential(nn.Linear(width, dim))

    def forward(self, x):
        x = self.fc2(self.fc1(self.features(x).flatten(1)))
        return x, F.normalize(self.projection(x))


NETWORKS = {
    "small basic": lambda: OfficialResNet(),
    "small bottleneck": lambda: OfficialResNet(bottleneck=True),
    "photo basic": lambda: OfficialResNet(small=False),
    "photo bottleneck": lambda: OfficialResNet(small=False, bottleneck=True, depths=(2, 1, 1, 2)),
    "small alexnet": lambda: OfficialAlexNet(),
    "photo alexnet": lambda: OfficialAlexNet(small=False),
}


def three_layers(*sizes):
    """Generator or discriminator, by the authors' names."""
    network = nn.ModuleDict({f"fc{i}": nn.Linear(*sizes[i - 1 : i + 1]) for i in range(1, len(sizes))})
    return network.state_dict()


class LinearAverage(nn.Module):
    """With the attributes of the authors' class."""

    def __init__(self, rows, temperature=0.07, momentum=0.5, sets=SETS):
        super().__init__()
        self.nLem, self.K, self.topk, self.unigrams = len(rows), 4096, 10, torch.ones(len(rows))
        self.register_buffer("params", torch.tensor([temperature, momentum]))
        self.register_buffer("memory", rows)
        self.multinomial = AliasMethod()
        self.affinity_mat = [set(others) for others in sets]


class AliasMethod:
    def __init__(self):
        self.prob, self.alias = torch.ones(3), torch.zeros(3, dtype=torch.int64)


def flattened(bank):
    """The memory bank as a dictionary."""
    content = {name: getattr(bank, name) for name in ("nLem", "K", "topk", "params", "memory")}
    return content | {"affinity_mat": [sorted(others) for others in bank.affinity_mat]}


def make_content(name="small basic", bank=flattened):
    """What the authors' script saves, and the network that it is of."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    perturb(network)
    content = {
        "net": {f"module.{key}": tensor for key, tensor in network.state_dict().items()},
        "lemniscate": bank(LinearAverage(torch.randn(NUM_IMAGES, DIM))),
        **{"acc": 0.5, "round": 2, "epoch": 7, "opt": {"state": {}}, "scheduler": {"best": 0.5}},
        "g_weight": three_layers(3 * DIM, 2 * DIM, DIM, DIM),
        "d_weight": three_layers(3 * DIM, DIM, DIM // 2, 1),
        **{"g_opt": {"state": {}}, "d_opt": {"state": {}}, "next_stage": 1},
    }
    return content, network


def write(path, content, **options):
    """As a script would, whose classes lie in the authors' modules; they are gone when the file is read."""
    modules = {"lib": types.ModuleType("lib")}
    for kind in (LinearAverage, AliasMethod):
        modules[f"lib.{kind.__name__}" if kind is LinearAverage else "lib.alias_multinomial"] = module = (
            types.ModuleType(kind.__name__)
        )
        setattr(module, kind.__name__, kind)
    own = {kind: kind.__module__ for kind in (LinearAverage, AliasMethod)}
    LinearAverage.__module__, AliasMethod.__module__ = "lib.LinearAverage", "lib.alias_multinomial"
    sys.modules.update(modules)
    try:
        torch.save(content, path, **options)
    finally:
        for name in modules:
            del sys.modules[name]
        for kind, module in own.items():
            kind.__module__ = module
    return path


def without_module(content):
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def neighbors(model):
    images = torch.arange(len(model.bank))
    places, others, used = model.bank.neighbors.of(images)
    found = [{i} for i in images.tolist()]
    for place, other in zip(places[used].tolist(), others[used].tolist(), strict=True):
        assert other not in found[place], "itself, or twice"
        found[place].add(other)
    return found


def check_bank(model, content):
    """Everything that the file holds beside the network."""
    bank = content["lemniscate"]
    memory, params = (bank.memory, bank.params) if isinstance(bank, nn.Module) else (bank["memory"], bank["params"])
    assert torch.equal(model.bank.rows, memory) and neighbors(model) == SETS
    assert [model.config.temperature, model.config.bank_momentum] == pytest.approx(params.tolist(), rel=1e-6)
    for network, name in ((model.generator, "g_weight"), (model.discriminator, "d_weight")):
        assert network.state_dict().keys() == content[name].keys()
        assert all(torch.equal(tensor, content[name][key]) for key, tensor in network.state_dict().items())


# ---- the networks ----


CONFIGS = {
    "small basic": (
        "cifar_resnet",
        32,
        {"layer_type": "basic", "hidden_sizes": [4, 8, 16, 32], "depths": [1, 2, 1, 1]},
    ),
    "small bottleneck": (
        *("cifar_resnet", 32),
        {"layer_type": "bottleneck", "hidden_sizes": [16, 32, 64, 128], "depths": [1, 2, 1, 1]},
    ),
    "photo basic": ("resnet", 224, {"layer_type": "basic", "hidden_sizes": [4, 8, 16, 32], "depths": [1, 2, 1, 1]}),
    "photo bottleneck": (
        *("resnet", 224),
        {"layer_type": "bottleneck", "hidden_sizes": [16, 32, 64, 128], "depths": [2, 1, 1, 2]},
    ),
    "small alexnet": ("alexnet_bn", 32, {"stem_type": "cifar", "conv_widths": [4, 6, 8, 6, 5], "fc_width": 12}),
    "photo alexnet": ("alexnet_bn", 227, {"stem_type": "imagenet", "conv_widths": [4, 6, 8, 6, 5], "fc_width": 12}),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_networks(tmp_path, name):
    """Sizes are read off the tensors; features are those of the authors' network; and the way back."""
    content, network = make_content(name)
    path = write(tmp_path / "ckpt.t7", content)
    model = convert(path)
    assert isinstance(model, ISLForPreTraining) and not model.training
    encoder, (kind, image_size, fields) = model.config.backbone_config, CONFIGS[name]
    assert (encoder.model_type, encoder.image_size) == (kind, image_size)
    assert {field: getattr(encoder, field) for field in fields} == fields
    assert model.config.projection_dim == DIM
    if kind != "alexnet_bn":
        assert encoder.embedding_size == 4 and encoder.hidden_act == "relu"
        assert not encoder.downsample_in_bottleneck and not encoder.downsample_in_first_stage
    check_bank(model, content)
    side = image_size if kind == "alexnet_bn" else 40
    pixels = torch.randn(3, 3, side, side)
    pooled, features = network(pixels)
    assert pooled.std() > 1e-2
    published = model.export_encoder()(pixels).pooler_output.flatten(1)
    torch.testing.assert_close(published, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.encode(pixels), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference(path, pixels, encoder), pooled, rtol=1e-5, atol=1e-5)
    tensors = without_module(content["net"])
    restored = to_official(model.student.state_dict(), reversed(tensors))
    assert restored.keys() == tensors.keys()
    assert all(torch.equal(restored[key], tensor) for key, tensor in tensors.items())
    renamed = from_official(tensors)
    assert renamed.keys() == model.student.state_dict().keys() and len(renamed) == len(tensors)


def test_what_is_not_in_a_file_is_as_the_authors_have_it(tmp_path):
    expected = {
        "small basic": {"temperature": 0.1, "score_threshold": 0.5, "similarity_threshold": 0.6},
        "photo basic": {"temperature": 0.07, "score_threshold": 0.3, "similarity_threshold": 0.3},
        "small alexnet": {"temperature": 0.1, "score_threshold": 0.5, "similarity_threshold": 0.6},
        "photo alexnet": {"temperature": 0.07, "score_threshold": 0.3, "similarity_threshold": 0.3},
    }
    for name, values in expected.items():
        content, _ = make_content(name)
        del content["lemniscate"]
        model = convert(write(tmp_path / "ckpt.t7", content))
        assert {key: getattr(model.config, key) for key in values} == values
        assert model.config.bank_momentum == 0.5 and model.bank is None


@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.3])
def test_settings_of_the_bank(tmp_path, temperature):
    """They come before the authors' values; rounded, as a file holds them in float32."""
    for name in ("small basic", "photo basic"):
        content, _ = make_content(name)
        content["lemniscate"] = LinearAverage(torch.randn(NUM_IMAGES, DIM), temperature, 0.4)
        config = convert(write(tmp_path / "ckpt.t7", content)).config
        assert (config.temperature, config.bank_momentum) == (temperature, 0.4)


# ---- forms of a file ----


@pytest.mark.parametrize("bank", [flattened, lambda bank: bank], ids=["flattened", "pickled"])
@pytest.mark.parametrize("wrap", [dict, OrderedDict, without_module], ids=["module", "ordered", "bare"])
@pytest.mark.parametrize("older", [(), ("scheduler", "round", "next_stage", "g_opt", "d_opt", "acc", "opt")])
def test_forms_of_a_file(tmp_path, bank, wrap, older):
    content, network = make_content(bank=bank)
    content["net"] = wrap(content["net"])
    content = {name: value for name, value in content.items() if name not in older}
    model = convert(write(tmp_path / "ckpt.t7", content))
    check_bank(model, content)
    restored = to_official(model.student.state_dict(), network.state_dict())
    assert all(torch.equal(restored[name], tensor) for name, tensor in network.state_dict().items())


def test_networks_of_several_processes(tmp_path):
    """DDP's `module.` in front of the generator's and the discriminator's names too."""
    content, _ = make_content()
    networks = {name: content[name] for name in ("g_weight", "d_weight")}
    for name, state in networks.items():
        content[name] = {f"module.{key}": tensor for key, tensor in state.items()}
    check_bank(convert(write(tmp_path / "ckpt.t7", content)), content | networks)


@pytest.mark.parametrize("as_none", [False, True])
def test_older_files(tmp_path, as_none):
    """Without generator and discriminator, which are then new ones, and without what a run would need to go on."""
    content, network = make_content()
    for name in ("g_weight", "d_weight", "scheduler", "round", "next_stage", "g_opt", "d_opt"):
        content.pop(name)
        if as_none:
            content[name] = None
    model = convert(write(tmp_path / "ckpt.t7", content))
    assert torch.equal(model.student.projection.weight, network.linear.weight)
    for tensor in (*model.generator.parameters(), *model.discriminator.parameters()):
        assert tensor.isfinite().all() and (tensor.numel() == 1 or tensor.std() > 0)
    assert torch.equal(model.bank.rows, content["lemniscate"]["memory"]) and neighbors(model) == SETS


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("as_none", [False, True])
def test_bank_without_neighbors(tmp_path, pickled, as_none):
    content, _ = make_content(bank=(lambda bank: bank) if pickled else flattened)
    members = content["lemniscate"].__dict__ if pickled else content["lemniscate"]
    del members["affinity_mat"]
    if as_none:
        members["affinity_mat"] = None
    model = convert(write(tmp_path / "ckpt.t7", content))
    assert len(model.bank) == NUM_IMAGES and len(model.bank.neighbors) == 0


@pytest.mark.parametrize("as_none", [False, True])
def test_file_without_a_bank(tmp_path, as_none):
    content, _ = make_content()
    del content["lemniscate"]
    if as_none:
        content["lemniscate"] = None
    assert convert(write(tmp_path / "ckpt.t7", content)).bank is None


def test_batches_that_were_not_counted(tmp_path):
    """Files of torch before 0.4.1 do not hold the number; nothing depends on it."""
    content, network = make_content()
    for name in list(content["net"]):
        if name.endswith("num_batches_tracked"):
            del content["net"][name]
    state = convert(write(tmp_path / "ckpt.t7", content)).student.state_dict()
    for name, tensor in from_official(network.state_dict()).items():
        assert torch.equal(state[name], torch.tensor(0) if name.endswith("num_batches_tracked") else tensor), name


def test_both_forms_of_the_same_file():
    """The pickled one byte by byte as the authors save it."""
    first, second = (load_official(GOLDEN / name) for name in ("checkpoint.pth", "checkpoint_official_pickle.pth"))
    for part in ("tensors", "generator", "discriminator"):
        one, other = getattr(first, part), getattr(second, part)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(first.rows, second.rows) and first.neighbors == second.neighbors
    expected = {"temperature": 0.1, "bank_momentum": 0.4, "num_negatives": 12, "links_per_proxy": 3}
    assert first.options == second.options == expected
    assert sum(map(len, first.neighbors)) > 40


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_files_of_old_versions_of_torch(tmp_path):
    """They are no zip files; of tensors they are read, and classes in them are refused."""
    content, _ = make_content()
    path = write(tmp_path / "ckpt.t7", content, _use_new_zipfile_serialization=False)
    check_bank(convert(path), content)
    content, _ = make_content(bank=lambda bank: bank)
    path = write(path, content, _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match="an object of `lib.LinearAverage.LinearAverage`, and is in the format of"
    ):
        convert(path)


def test_converted_model_is_saved_with_its_bank(tmp_path):
    content, _ = make_content()
    model = convert(write(tmp_path / "ckpt.t7", content))
    export_run(model, evaluation_processor(32, [0.5] * 3, [0.5] * 3), tmp_path / "run")
    loaded = ISLForPreTraining.from_pretrained(tmp_path / "run/pretraining")
    loaded.load_state(tmp_path / "run/pretraining")
    check_bank(loaded, content)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


# ---- files that do not fit ----


def drop(name, part="net"):
    return lambda content: content[part].pop(name)


def put(name, value, part="net"):
    return lambda content: content[part].update({name: value})


def neighbors_of(image, others):
    return lambda content: content["lemniscate"]["affinity_mat"].__setitem__(image, others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("module.layer3.0.conv2.weight"), "does not fit an ISL"),
        (drop("module.layer2.0.shortcut.1.running_var"), "does not fit an ISL"),
        (drop("module.linear.bias"), "does not fit an ISL"),
        (drop("module.linear.weight"), "holds no projection: none of linear, fc, projection.0"),
        (drop("module.conv1.weight"), "neither a ResNet .* nor an AlexNet"),
        (put("module.extra.weight", torch.ones(1)), "'extra.weight' is not part of a ResNet or an AlexNet"),
        (put("module.layer2.0.conv3.weight", torch.ones(1)), "does not fit an ISL"),
        (put("module.layer5.0.conv1.weight", torch.ones(1)), "does not fit an ISL"),
        (put("module.layer1.4.conv1.weight", torch.ones(1)), "does not fit an ISL"),
        (put("module.fc1.0.weight", torch.ones(1)), "does not fit an ISL"),
        (put("module.fc.weight", torch.ones(DIM, 32)), "not carried over exactly: .*'linear.weight'"),
        (put("module.layer2.0.downsample.1.bias", torch.ones(8)), "not carried over exactly"),
        (put("module.bn1.weight", torch.ones(3)), "does not fit an ISL"),
        (put("module.conv1.weight", torch.ones(())), "does not fit an ISL"),
        (put("module.conv1.weight", torch.ones(4, 3, 5, 5)), "does not fit an ISL"),
        (put("module.linear.weight", torch.ones(DIM, 7)), "does not fit an ISL"),
        (put("module.conv1.weight", [1.0]), "no `state_dict` of tensors: 'module.conv1.weight' is a list"),
        (put("fc1.weight", torch.ones(3, 3), "g_weight"), "does not fit an ISL"),
        (drop("fc2.bias", "g_weight"), "does not fit an ISL"),
        (put("fc4.bias", torch.ones(1), "d_weight"), "does not fit an ISL"),
        (put("fc1.bias", "one", "d_weight"), "no `state_dict` of tensors"),
        (drop("memory", "lemniscate"), "without `memory` or `params`"),
        (drop("params", "lemniscate"), "without `memory` or `params`"),
        (put("params", torch.ones(1), "lemniscate"), "without `memory` or `params`"),
        (put("memory", torch.ones(NUM_IMAGES), "lemniscate"), "without `memory` or `params`"),
        (put("params", torch.tensor([0.0, 0.5]), "lemniscate"), "does not fit an ISL.*temperature"),
        (put("params", torch.tensor([0.1, 1.5]), "lemniscate"), "does not fit an ISL.*bank_momentum"),
        (put("memory", torch.ones(NUM_IMAGES, DIM + 1), "lemniscate"), "does not fit an ISL"),
        (put("memory", torch.ones(NUM_IMAGES, 1), "lemniscate"), "does not fit an ISL"),
        (put("params", torch.tensor([float("nan"), 0.5]), "lemniscate"), "does not fit an ISL.*temperature"),
        (put("affinity_mat", SETS[1:], "lemniscate"), "not one set of images for each image"),
        (put("affinity_mat", [*SETS[1:], {0.5}], "lemniscate"), "not one set of images for each image"),
        (put("affinity_mat", [*SETS[1:], 3], "lemniscate"), "not one set of images for each image"),
        (neighbors_of(2, [2, NUM_IMAGES]), "names neighbors that are no images of it"),
        (neighbors_of(2, [2, -1]), "names neighbors that are no images of it"),
        (lambda content: content.update(lemniscate=[1, 2]), "without `memory` or `params`"),
        (lambda content: content.update(net=torch.ones(3)), "has a Tensor in the place of a `state_dict`"),
        (put("memory", torch.ones(1, DIM).expand(NUM_IMAGES, DIM), "lemniscate"), "does not hold its numbers"),
        (
            put("memory", torch.full((NUM_IMAGES, DIM), float("inf")), "lemniscate"),
            "bank holds numbers that are not finite",
        ),
        (lambda content: content.update(net={}), "neither a ResNet .* nor an AlexNet"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    content, _ = make_content()
    change(content)
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path / "ckpt.t7", content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("module.features.11.weight"), "does not fit an ISL"),
        (drop("module.fc2.1.running_mean"), "does not fit an ISL"),
        (drop("module.projection.0.weight"), "holds no projection"),
        (put("module.features.20.weight", torch.ones(1)), "does not fit an ISL"),
        (put("module.classifier.weight", torch.ones(1)), "'classifier.weight' is not part of a ResNet or an AlexNet"),
        (put("module.fc1.0.weight", torch.ones(12, 5)), "does not fit an ISL"),
    ],
)
def test_alexnets_that_do_not_fit(tmp_path, change, message):
    content, _ = make_content("small alexnet")
    change(content)
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path / "ckpt.t7", content))


def test_another_method(tmp_path):
    """By what a file lacks."""
    files = [
        "relvit/vit/checkpoint_pl_class_key.ckpt",
        "patchmix/momentum/checkpoint.pth",
        "aps/square/checkpoint.pth",
    ]
    for name in (*files, "pw_self/even_grid/checkpoint.pth"):
        with pytest.raises(CheckpointError, match="is not of ISL: it has no `net`"):
            convert(GOLDEN.parents[1] / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="is not of ISL"):
        convert(tmp_path / "list.pth")


def test_attention_heads(tmp_path):
    content, _ = make_content()
    with pytest.raises(CheckpointError, match="no attention: leave --num_attention_heads out"):
        convert(write(tmp_path / "ckpt.t7", content), 4)


def test_damaged_files(tmp_path):
    for bank in (flattened, lambda bank: bank):
        path = write(tmp_path / "ckpt.t7", make_content(bank=bank)[0])
        content = path.read_bytes()
        for damaged in (b"", b"not a checkpoint", content[:100], content[: len(content) // 2], content[:-30]):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="cannot be read safely|is empty"):
                convert(path)
    with pytest.raises(CheckpointError, match="There is no checkpoint file"):
        convert(tmp_path / "missing.t7")


# ---- hostile files ----


class Trap:
    """Makes a file or a folder when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PLACES = {
    "file": lambda content, trap: trap,
    "dictionary": lambda content, trap: content | {"opt": trap},
    "network": lambda content, trap: content | {"net": content["net"] | {"module.trap": trap}},
    "bank": lambda content, trap: content | {"lemniscate": trap},
    "generator": lambda content, trap: content | {"g_weight": trap},
}


@pytest.mark.parametrize("place", [*PLACES, "attribute", "set", "buffer"])
@pytest.mark.parametrize("function", ["os.mkdir", "exec", "subprocess.call"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_no_code_is_run(tmp_path, place, function, zipped):
    sprung, path = tmp_path / "sprung", tmp_path / "ckpt.t7"
    trap = {
        "os.mkdir": Trap(os.mkdir, str(sprung)),
        "exec": Trap(exec, f"open({str(sprung)!r}, 'w').close()"),
        "subprocess.call": Trap(subprocess.call, ["touch", str(sprung)]),
    }[function]
    content, _ = make_content(bank=lambda bank: bank)
    bank = content["lemniscate"]
    if place in PLACES:
        content = PLACES[place](content, trap)
    elif place == "attribute":
        bank.multinomial = trap
    elif place == "set":
        bank.affinity_mat[3] = trap
    else:
        bank._buffers["memory"] = trap
    write(path, content, _use_new_zipfile_serialization=zipped)
    try:
        model = convert(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:  # where the place is not looked at, nothing is missing
        assert place in ("dictionary", "attribute") and neighbors(model) == SETS
    assert not sprung.exists()
    spring, arguments = trap.call
    spring(*arguments)
    assert sprung.exists(), "the trap would have shown"


# ---- the script ----


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The conversion script; it returns the card that it wrote, as the Hub's library reads it."""

    def run(checkpoint, *flags):
        argv = ["--method", "isl", "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "converted")]
        monkeypatch.setattr(sys, "argv", ["convert.py", *argv, *flags])
        shutil.rmtree(tmp_path / "converted", ignore_errors=True)
        runpy.run_path(str(ROOT / "training/convert.py"), run_name="__main__")
        return ModelCard.load(tmp_path / "converted/README.md")

    return run


SCRIPT_CASES = {
    "checkpoint.pth": (
        "ResNet-10 of widths 8, 16, 32, 64 with a stem for small images, for 32-pixel images",
        "modeling_cifar_resnet",
    ),
    "checkpoint_official_pickle.pth": (
        "ResNet-10 of widths 8, 16, 32, 64 with a stem for small images, for 32-pixel images",
        "modeling_cifar_resnet",
    ),
    "checkpoint_cifar_alexnet.pth": (
        "AlexNet with batch normalization, convolutions of 8, 12, 16, 12, 12 channels and a feature of 48, "
        "for 32-pixel images",
        "modeling_alexnet",
    ),
    "checkpoint_imagenet_resnet.pth": ("ResNet-10 of widths 8, 16, 32, 64, for 224-pixel images", None),
    "checkpoint_imagenet_alexnet.pth": (
        "AlexNet with batch normalization, convolutions of 4, 6, 8, 6, 6 channels and a feature of 24, "
        "for 227-pixel images",
        "modeling_alexnet",
    ),
}


@pytest.mark.parametrize("name", SCRIPT_CASES)
def test_script(run, tmp_path, capsys, name):
    encoder, module = SCRIPT_CASES[name]
    card, folder = run(GOLDEN / name, "--verify"), tmp_path / "converted"
    out = capsys.readouterr().out
    assert "every tensor was carried over" in out and "License of the weights: unknown." in out
    error = float(re.search(r"differ by (\S+) of the largest", out)[1])
    assert error < 1e-6
    # The card.
    assert card.data.license == "unknown" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-feature-extraction" and "isl" in card.data.tags
    assert card.data.datasets is None and card.data.eval_results is None
    assert f"{encoder}, pretrained without labels by the authors of\nISL" in card.text
    assert f"the authors' file `{name}`" in card.text and "The conversion was checked" in card.text
    assert "2108.02721" in card.text and "@inproceedings{wang2021instance" in card.text
    assert "has not been evaluated" in card.text and "from scratch" not in card.text
    assert "model(**inputs).pooler_output.flatten(1)" in card.text
    assert str(tmp_path) not in card.content and str(ROOT) not in card.content
    # The folder.
    config = json.loads((folder / "config.json").read_text())
    if module is None:
        assert "auto_map" not in config and not list(folder.glob("*.py"))
        assert "trust_remote_code" not in card.text and "Stock transformers loads it" in card.text
    else:
        assert [path.name for path in folder.glob("*.py")] == [f"{module}.py"]
        assert (folder / f"{module}.py").read_text() == (ROOT / f"hf_ssl/backbones/{module}.py").read_text()
        assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForImageClassification"}
        assert all(target.startswith(f"{module}.") for target in config["auto_map"].values())
        assert card.text.count(", trust_remote_code=True)") == 2 and "Stock transformers loads it" not in card.text
        assert "this repository carries its code" in card.text
    model = AutoModel.from_pretrained(folder)
    assert not model.training and model.config.image_size == config["image_size"]
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    if config["image_size"] == 32:
        assert processor["image_mean"] == [0.4914, 0.4822, 0.4465]
        assert processor["size"] == {"height": 32, "width": 32} and not processor["do_center_crop"]
    else:
        assert processor["image_mean"] == [0.485, 0.456, 0.406] and processor["size"] == {"shortest_edge": 256}
        assert processor["crop_size"] == {"height": config["image_size"], "width": config["image_size"]}
    # The whole model.
    bank, official = load_file(folder / "pretraining/bank.safetensors"), load_official(GOLDEN / name)
    assert torch.equal(bank["rows"], official.rows)
    expected = [i * 40 + j for i, others in enumerate(official.neighbors) for j in others if j != i]
    assert bank["links"].tolist() == expected
    pretraining = ISLForPreTraining.from_pretrained(folder / "pretraining")
    assert torch.equal(pretraining.generator.fc1.weight, official.generator["fc1.weight"])


def test_code_of_the_card_runs(run, tmp_path, monkeypatch):
    """In a process with hf_ssl with its own class; what the folder's code does elsewhere is tested in test_isl."""
    code = re.search(r"```python\n(.*?)```", run(GOLDEN / "checkpoint.pth").text, re.DOTALL).group(1)
    Image.linear_gradient("L").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code.replace("path/to/this/folder", "converted"), namespace)
    assert namespace["feature"].shape == (1, 64)
    assert type(namespace["model"]) is CifarResNetModel


def test_wrong_conversion_gets_no_card(run, tmp_path, monkeypatch):
    from hf_ssl.models import METHODS

    original = METHODS["isl"].reference

    def wrong(*args, **kwargs):
        return original(*args, **kwargs) * (1 + 1e-4)

    monkeypatch.setitem(METHODS["isl"].__dict__, "reference", wrong)
    with pytest.raises(SystemExit, match="the conversion is wrong"):
        run(GOLDEN / "checkpoint.pth", "--verify")
    assert not (tmp_path / "converted").exists()


def test_script_has_one_encoder(run):
    with pytest.raises(SystemExit, match="ISL has no teacher"):
        run(GOLDEN / "checkpoint.pth", "--encoder", "teacher")


def test_script_refuses_heads(run):
    with pytest.raises(SystemExit, match="leave --num_attention_heads out"):
        run(GOLDEN / "checkpoint.pth", "--num_attention_heads", "2")
