"""The authors' ISL checkpoints to this library's model, and back."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from transformers import PreTrainedConfig, ResNetConfig

from ...backbones.modeling_alexnet import CONVOLUTIONS, IS_POOLED, POOLING, AlexNetConfig
from ...backbones.modeling_cifar_resnet import CifarResNetConfig
from ..conversion import check_round_trip, filled, must_fit
from ..official_files import CheckpointError, StandIn, load_checkpoint, tensors_of, under
from .configuration_isl import ISLConfig
from .modeling_isl import ISLForPreTraining


_STEM = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
# The projection is the last layer of an official network, and has a name of its own in each.
_PROJECTIONS = ("linear", "fc", "projection.0")
_SMALL_IMAGE, _PHOTO = 32, {"resnet": 224, "alexnet": 227}


@dataclass(frozen=True)
class OfficialCheckpoint:
    """
    What is read from an official file.

    Args:
        tensors (`dict[str, torch.Tensor]`): The network's tensors by official names, without `module.`.
        generator (`dict[str, torch.Tensor]`): The generator's; empty in older files.
        discriminator (`dict[str, torch.Tensor]`): The discriminator's; empty in older files.
        rows (`torch.Tensor` of shape `(num_images, dim)`, *optional*): The memory bank.
        neighbors (`list[list[int]]`): The set of each image, with itself; empty in older files.
        options (`dict[str, Any]`): Options of an [`ISLConfig`] that the bank tells.
    """

    tensors: dict[str, Tensor]
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    rows: Tensor | None = None
    neighbors: tuple[tuple[int, ...], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def load_official(path: str | Path) -> OfficialCheckpoint:
    """
    Read an official file without running any code that it may contain. Of its memory bank, a pickled module, only tensors,
    numbers and sets are read.

    Args:
        path (`str` or `Path`): The authors' file.

    Returns:
        [`OfficialCheckpoint`].

    Raises:
        [`CheckpointError`]: the file is missing, damaged, or not of ISL.
    """
    content = load_checkpoint(path)
    if not isinstance(content, dict) or "net" not in content:
        raise CheckpointError(f"{path} is not of ISL: it has no `net`.")
    network = tensors_of(content["net"], path)
    generator, discriminator = (tensors_of(content.get(name) or {}, path) for name in ("g_weight", "d_weight"))
    return OfficialCheckpoint(network, generator, discriminator, **_read_bank(content.get("lemniscate"), path))


def _read_bank(bank: Any, path: str | Path) -> dict[str, Any]:
    """The memory bank, a pickled module or a dictionary of what it holds."""
    if isinstance(bank, StandIn):
        bank = {**bank.__dict__.get("_buffers", {}), **bank.__dict__}
    if bank is None:
        return {}
    rows, params = (bank.get("memory"), bank.get("params")) if isinstance(bank, dict) else (None, None)
    if (
        not isinstance(rows, Tensor)
        or rows.ndim != 2
        or not isinstance(params, Tensor)
        or params.numel() < 2
        or not params.is_floating_point()
    ):
        raise CheckpointError(f"{path} holds a memory bank (`lemniscate`) without `memory` or `params`.")
    tensors_of({"memory": rows, "params": params}, path)
    sets = () if bank.get("affinity_mat") is None else bank["affinity_mat"]
    whole = isinstance(sets, list | tuple) and all(
        isinstance(item, set | list) and all(type(number) is int for number in item) for item in sets
    )
    if not whole or (sets and len(sets) != len(rows)):
        raise CheckpointError(
            f"{path} holds a memory bank whose `affinity_mat` is not one set of images for each image."
        )
    temperature, momentum = params.flatten()[:2].tolist()
    options = {"temperature": round(temperature, 6), "bank_momentum": round(momentum, 6)}  # float32 in the file
    counts = {"num_negatives": bank.get("K"), "links_per_proxy": bank.get("topk")}
    options |= {name: value for name, value in counts.items() if type(value) is int}
    return {"rows": rows, "neighbors": tuple(tuple(sorted(item)) for item in sets), "options": options}


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors of a network under this library's names.

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors by official names.

    Returns:
        `dict[str, torch.Tensor]`: those of the `student` of an [`ISLForPreTraining`].

    Raises:
        [`CheckpointError`]: a tensor has no place in the model.
    """
    renamed = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in _PROJECTIONS:
            renamed[f"projection.{kind}"] = tensor
        else:
            renamed[f"backbone.{_module_name(module, name)}.{kind}"] = tensor
    return renamed


def _module_name(module: str, name: str) -> str:
    if module in _STEM:
        return _STEM[module]
    if re.fullmatch(r"features\.\d+|fc[12]\.[01]", module):  # AlexNet's names are kept
        return module
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|(?:downsample|shortcut)\.([01]))", module)
    if block is None:
        raise CheckpointError(f"The tensor {name!r} is not part of a ResNet or an AlexNet.")
    layer = f"encoder.stages.{int(block[1]) - 1}.layers.{block[2]}"
    if block[3] is None:
        return f"{layer}.shortcut.{('convolution', 'normalization')[int(block[5])]}"
    return f"{layer}.layer.{int(block[4]) - 1}.{ {'conv': 'convolution', 'bn': 'normalization'}[block[3]] }"


def to_official(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """
    The inverse of [`from_official`], for any tensors that have the names of the weights (gradients, updated weights).

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors of a `student`.
        names (`Iterable[str]`): Official names of the tensors that are wanted: they differ between the networks.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    placeholder = torch.empty(0)
    ours = {name: next(iter(from_official({name: placeholder}))) for name in names}
    return {name: state[own] for name, own in ours.items()}


def backbone_config_from_official(state: Mapping[str, Tensor]) -> PreTrainedConfig:
    """
    Read an encoder's architecture off its tensors.

    Args:
        state (`Mapping[str, torch.Tensor]`): Tensors by official names.

    Returns:
        `PreTrainedConfig`: with `image_size`, that of the authors.

    Raises:
        [`CheckpointError`]: there is no such encoder.
    """
    if "features.0.weight" in state:
        small = state["features.0.weight"].shape[-1] == CONVOLUTIONS["cifar"][0][0]
        return AlexNetConfig(
            image_size=_SMALL_IMAGE if small else _PHOTO["alexnet"],
            stem_type="cifar" if small else "imagenet",
            conv_widths=[len(state[f"features.{i}.weight"]) for i in _alexnet_convolutions()],
            fc_width=len(state["fc1.0.weight"]),
        )
    if "conv1.weight" not in state:
        raise CheckpointError("The checkpoint holds neither a ResNet (`conv1`) nor an AlexNet (`features.0`).")
    blocks = [re.match(r"layer(\d)\.(\d+)\.", name) for name in state]
    depths = [len({b[2] for b in blocks if b and b[1] == stage}) for stage in "1234"]
    last = 3 if "layer1.0.conv3.weight" in state else 2
    small = state["conv1.weight"].shape[-1] == 3
    options: dict[str, Any] = {
        "layer_type": "bottleneck" if last == 3 else "basic",
        "embedding_size": len(state["conv1.weight"]),
        "hidden_sizes": [len(state[f"layer{stage}.0.conv{last}.weight"]) for stage in range(1, 5)],
        "depths": depths,
        "image_size": _SMALL_IMAGE if small else _PHOTO["resnet"],
    }
    return (CifarResNetConfig if small else ResNetConfig)(**options)


def _alexnet_convolutions() -> list[int]:
    """Numbers of the convolutions among the layers: convolution, batch norm, ReLU, and pooling after some."""
    numbers, number = [], 0
    for is_pooled in IS_POOLED:
        numbers.append(number)
        number += 4 if is_pooled else 3
    return numbers


def config_from_official(checkpoint: OfficialCheckpoint) -> ISLConfig:
    """
    Read the configuration off a checkpoint. What neither shapes nor the bank tell has the authors' values.

    Args:
        checkpoint ([`OfficialCheckpoint`]): The checkpoint.

    Returns:
        [`ISLConfig`].
    """
    state = checkpoint.tensors
    backbone_config = backbone_config_from_official(state)
    projections = [state[f"{name}.weight"] for name in _PROJECTIONS if f"{name}.weight" in state]
    if not projections:
        raise CheckpointError(f"The checkpoint holds no projection: none of {', '.join(_PROJECTIONS)}.")
    small = backbone_config.image_size == _SMALL_IMAGE  # type: ignore[attr-defined]
    photos = {"score_threshold": 0.3, "similarity_threshold": 0.3, "temperature": 0.07}
    options = ({} if small else photos) | checkpoint.options
    return ISLConfig(backbone_config=backbone_config, projection_dim=len(projections[0]), **options)


def convert(path: str | Path, num_attention_heads: int | None = None) -> ISLForPreTraining:
    """
    An official checkpoint as a model of this library, with its memory bank, if the file has one.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Has to be unset: these encoders have no attention.

    Returns:
        [`ISLForPreTraining`]: in eval mode, every weight and statistic taken from the checkpoint. Where an older file lacks
        generator and discriminator, they are new ones.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit an ISL to the last tensor.
    """
    if num_attention_heads is not None:
        raise CheckpointError("ISL's encoders have no attention: leave --num_attention_heads out.")
    checkpoint = load_official(path)
    state = checkpoint.tensors
    others = {"generator.": checkpoint.generator, "discriminator.": checkpoint.discriminator}
    with must_fit(path, "an ISL"):
        weights = {f"student.{name}": tensor for name, tensor in from_official(state).items()}
        for prefix, network in others.items():
            weights |= {prefix + name: tensor for name, tensor in network.items()}
        fresh = tuple(prefix for prefix, network in others.items() if not network)
        model = filled(ISLForPreTraining, config_from_official(checkpoint), weights, fresh)
        if checkpoint.rows is not None:
            _fill_bank(model, checkpoint)
    saved = model.state_dict()
    check_round_trip(state, to_official(under(saved, "student."), state))
    for prefix, network in others.items():
        check_round_trip(network, under(saved, prefix) if network else {})
    return model


def _fill_bank(model: ISLForPreTraining, checkpoint: OfficialCheckpoint) -> None:
    assert checkpoint.rows is not None
    model.make_bank(len(checkpoint.rows))
    assert model.bank is not None
    if not checkpoint.rows.isfinite().all():
        raise CheckpointError("The memory bank holds numbers that are not finite.")
    if checkpoint.rows.shape != model.bank.rows.shape:  # it might be broadcast
        raise ValueError(
            f"the memory bank has vectors of {checkpoint.rows.shape[1]} numbers, the projection of "
            f"{model.config.projection_dim}"
        )
    model.bank.rows.copy_(checkpoint.rows)
    pairs = [(i, j) for i, others in enumerate(checkpoint.neighbors) for j in others if i != j]
    if pairs:
        images, others = torch.tensor(pairs).unbind(1)
        if int(others.min()) < 0 or int(others.max()) >= len(checkpoint.rows):
            raise CheckpointError("The memory bank names neighbors that are no images of it.")
        model.bank.neighbors.add(images, others)


@torch.no_grad()
def reference(path: str | Path, pixel_values: Tensor, config: PreTrainedConfig, which: str | None = None) -> Tensor:
    """
    The pooled features that torchvision's ResNet, or a plain sequence of torch's layers, computes with the tensors of an
    official checkpoint, as they stand in the file.

    Args:
        path (`str` or `Path`): The authors' file.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images.
        config (`PreTrainedConfig`): Configuration of the converted encoder; the tensors tell all of it.
        which (`str`, *optional*): ISL has one encoder, the student.

    Returns:
        `torch.Tensor` of shape `(batch_size, feature_size)`.
    """
    tensors = load_official(path).tensors
    state = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in _PROJECTIONS}
    sizes: Any = backbone_config_from_official(state)
    network = _plain_alexnet(sizes) if sizes.model_type == "alexnet_bn" else _torchvision_resnet(sizes)
    renamed = {name.replace(".shortcut.", ".downsample."): tensor for name, tensor in state.items()}
    if sizes.model_type == "alexnet_bn":
        renamed = {_place_in_sequence(name): tensor for name, tensor in state.items()}
    network.load_state_dict(renamed, strict=True)
    features: Tensor = network.eval()(pixel_values)
    return features


def _torchvision_resnet(config: Any) -> nn.Module:
    block = Bottleneck if config.layer_type == "bottleneck" else BasicBlock
    network = torchvision.models.ResNet(block, config.depths)
    # Narrow networks: torchvision's widths are fixed, so the stages are made again.
    network.inplanes = config.embedding_size
    small = config.model_type == "cifar_resnet"
    kernel, stride = (3, 1) if small else (7, 2)
    network.conv1 = nn.Conv2d(3, config.embedding_size, kernel, stride, kernel // 2, bias=False)
    network.bn1 = nn.BatchNorm2d(config.embedding_size)
    network.maxpool = nn.Identity() if small else network.maxpool
    for stage, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True), 1):
        made = network._make_layer(block, width // block.expansion, depth, stride=1 if stage == 1 else 2)
        setattr(network, f"layer{stage}", made)
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network


def _plain_alexnet(config: Any) -> nn.Module:
    layers: list[nn.Module] = []
    widths = [3, *config.conv_widths]
    for i, (sizes, is_pooled) in enumerate(zip(CONVOLUTIONS[config.stem_type], IS_POOLED, strict=True)):
        layers += [nn.Conv2d(widths[i], widths[i + 1], *sizes), nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        layers += [nn.MaxPool2d(*POOLING[config.stem_type])] if is_pooled else []
    width = widths[-1] * config.map_size**2
    layers += [nn.Flatten(), nn.Linear(width, config.fc_width), nn.BatchNorm1d(config.fc_width), nn.ReLU()]
    layers += [nn.Linear(config.fc_width, config.fc_width), nn.BatchNorm1d(config.fc_width), nn.ReLU()]
    return nn.Sequential(*layers)


def _place_in_sequence(name: str) -> str:
    """`features.{i}`, `fc1.{i}` and `fc2.{i}` counted through."""
    part, number, kind = name.split(".")
    first = {"features": 0, "fc1": 4 * sum(IS_POOLED) + 3 * (len(IS_POOLED) - sum(IS_POOLED)) + 1}
    first["fc2"] = first["fc1"] + 3
    return f"{first[part] + int(number)}.{kind}"


__all__ = [
    "CheckpointError",
    "OfficialCheckpoint",
    "backbone_config_from_official",
    "config_from_official",
    "convert",
    "from_official",
    "load_official",
    "reference",
    "to_official",
]
