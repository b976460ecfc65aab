"""The authors' RelViT checkpoints (PyTorch Lightning 1.3.1 files) to this library's model, and back.

The authors' class for each relation has its own projections, and each attention one matrix for queries, keys and
values; here the former are joined and the latter are separate. Value projections of the pair heads are dropped: the
authors' code never reads their result, and they are never trained.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig

from .configuration_relvit import RelViTConfig
from .modeling_relvit import NUM_RELATIONS, RelViTForPreTraining


# Official names inside `backbone.` and ours.
_NAMES = {
    "cls_token": "student.embeddings.cls_token",
    "pos_embed": "student.embeddings.position_embeddings",
    "patch_embed.proj.weight": "student.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "student.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "student.layernorm.weight",
    "norm.bias": "student.layernorm.bias",
}
_LAYER_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_LINEAR_HEADS = {"abs_pos_head": "position_head", "clf_head": "classifier"}
_PAIR_HEADS = {"rel_head": "relation_head", "dist_head": "distance_head", "angle_head": "angle_head"}
_UNUSED = re.compile(rf"({'|'.join(_PAIR_HEADS)})\.heads\.\d+\.v_lin\.weight")


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message says why and what would help."""


def load_official(path: str | Path) -> dict[str, Tensor]:
    """
    The tensors of an official file, read without running any code it may contain.

    Args:
        path (`str` or `Path`): A Lightning `.ckpt`/`.pth` file.

    Returns:
        `dict[str, torch.Tensor]`: the file's `state_dict`.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, holds unexpected objects, or no `state_dict`.
    """

    # Lightning keys its callbacks by this class, which the unpickler refuses unless it is named. An empty stand-in
    # is all that reading needs.
    class ModelCheckpoint:
        pass

    dotted_name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    try:
        with torch.serialization.safe_globals([(ModelCheckpoint, dotted_name)]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint file at {path}.") from error
    except Exception as error:  # zip, pickle and OS errors of many classes; all end here, with their cause
        raise CheckpointError(
            f"{path} cannot be read safely as a RelViT checkpoint: {error}. It is damaged, or holds objects other than "
            "tensors; only plain Lightning checkpoints are accepted, and no code of the file is ever run."
        ) from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} has no `state_dict` of tensors, as the authors' Lightning checkpoints do.")
    return state


def _split_qkv(name: str, tensor: Tensor) -> dict[str, Tensor]:
    match = re.fullmatch(r"backbone\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name)
    if match is None:
        raise CheckpointError(f"The tensor {name!r} is not part of a RelViT with a ViT encoder.")
    layer, kind = match.groups()
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {f"student.layers.{layer}.attention.{part}_proj.{kind}": value for part, value in parts}


def _rename(name: str) -> str | None:
    """Our name of an official tensor that is carried over as it is, or None if there is none."""
    head, _, kind = name.partition(".")
    if head in _LINEAR_HEADS and kind in ("weight", "bias"):
        return f"{_LINEAR_HEADS[head]}.{kind}"
    if head != "backbone":
        return None
    if kind in _NAMES:
        return _NAMES[kind]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", kind)
    if match and match[2] in _LAYER_NAMES:
        return f"student.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    return None


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors under this library's names.

    Args:
        state (`dict[str, torch.Tensor]`): The `state_dict` of an official checkpoint.

    Returns:
        `dict[str, torch.Tensor]`: the state dict of a [`RelViTForPreTraining`].

    Raises:
        [`CheckpointError`]: a tensor has no place in the model.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            converted.update(_split_qkv(name, tensor))
        elif (ours := _rename(name)) is not None:
            converted[ours] = tensor
        elif not _UNUSED.fullmatch(name) and not re.fullmatch(r"\w+_head\.heads\.\d+\.[qk]_lin\.weight", name):
            raise CheckpointError(
                f"The tensor {name!r} is not part of a RelViT with a ViT encoder. If the checkpoint is another method's, "
                "name it with --method."
            )
    for official, ours in _PAIR_HEADS.items():
        count = sum(name.startswith(f"{official}.") and name.endswith(".q_lin.weight") for name in state)
        for short, long in (("q", "query"), ("k", "key")) if count else ():
            scorers = [state[f"{official}.heads.{i}.{short}_lin.weight"] for i in range(count)]
            converted[f"{ours}.{long}.weight"] = torch.cat(scorers)
    return converted


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    The inverse of [`from_official`], without the unused value projections. It accepts any tensors that have the shapes
    of the weights (gradients, updated weights) and any subset of whole layers.

    Args:
        state (`dict[str, torch.Tensor]`): Tensors by this library's names.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by official names.
    """
    names = {ours: f"backbone.{official}" for official, ours in _NAMES.items()}
    layer_names = {ours: official for official, ours in _LAYER_NAMES.items()}
    linear_heads = {ours: official for official, ours in _LINEAR_HEADS.items()}
    pair_heads = {ours: official for official, ours in _PAIR_HEADS.items()}
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"student\.layers\.(\d+)\.(.+)", module)
        if name in names:
            result[names[name]] = tensor
        elif module in linear_heads:
            result[f"{linear_heads[module]}.{kind}"] = tensor
        elif layer and layer[2] in layer_names:
            result[f"backbone.blocks.{layer[1]}.{layer_names[layer[2]]}.{kind}"] = tensor
        elif layer and layer[2] == "attention.q_proj":
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            result[f"backbone.blocks.{layer[1]}.attn.qkv.{kind}"] = torch.cat(parts)
        elif (head := module.partition(".")[0]) in pair_heads:
            scorers = tensor.chunk(NUM_RELATIONS if head == "relation_head" else 1)
            short = {"query": "q", "key": "k"}[module.rpartition(".")[2]]
            result |= {f"{pair_heads[head]}.heads.{i}.{short}_lin.weight": w for i, w in enumerate(scorers)}
    return result


def config_from_official(state: dict[str, Tensor], num_attention_heads: int | None = None) -> RelViTConfig:
    """
    Read the architecture and the tasks off the shapes of an official checkpoint.

    Args:
        state (`dict[str, torch.Tensor]`):
            The `state_dict` of an official checkpoint.
        num_attention_heads (`int`, *optional*):
            Heads of the attention; unset, width / 64, which holds for every official size.

    Returns:
        [`RelViTConfig`]: a checkpoint with a class head is taken for a joint model (positions on), others for an
        upstream model (positions off).

    Raises:
        [`CheckpointError`]: there is no ViT encoder, or the heads cannot be told.
    """
    if "backbone.pos_embed" not in state or "backbone.patch_embed.proj.weight" not in state:
        raise CheckpointError(
            "The checkpoint holds no ViT encoder (`backbone.patch_embed.proj`, `backbone.pos_embed`)."
        )
    width, _, patch_size, _ = state["backbone.patch_embed.proj.weight"].shape
    if num_attention_heads is None:
        if width % 64:
            raise CheckpointError(
                f"The number of attention heads is not recorded in the checkpoint, and its width {width} is not that of "
                "an official size: give --num_attention_heads."
            )
        num_attention_heads = width // 64
    if num_attention_heads < 1 or width % num_attention_heads:
        raise CheckpointError(f"--num_attention_heads {num_attention_heads} does not divide the width {width}.")
    image_size = patch_size * round((state["backbone.pos_embed"].shape[1] - 1) ** 0.5)
    if not any(
        name.startswith(("rel_head.", "abs_pos_head.", "dist_head.", "angle_head.", "clf_head.")) for name in state
    ):
        raise CheckpointError(
            "The checkpoint holds an encoder without any of RelViT's heads; there is no loss to rebuild."
        )
    layers = {int(match[1]) for name in state if (match := re.match(r"backbone\.blocks\.(\d+)\.", name))}
    heads = {"relations": "rel_head", "positions": "abs_pos_head", "distances": "dist_head", "angles": "angle_head"}
    tasks = [task for task, head in heads.items() if any(name.startswith(f"{head}.") for name in state)]
    is_joint = "clf_head.weight" in state
    fields: dict[str, Any] = {"num_labels": len(state["clf_head.weight"])} if is_joint else {}
    if "positions" in tasks and (cells := round(len(state["abs_pos_head.weight"]) ** 0.5)) * patch_size != image_size:
        fields["mega_patches"] = cells
    mode = RelViTConfig.modes["joint" if is_joint else "upstream"]
    return RelViTConfig(
        backbone_config=ViTConfig(
            hidden_size=width,
            num_hidden_layers=len(layers),
            num_attention_heads=num_attention_heads,
            intermediate_size=len(state["backbone.blocks.0.mlp.fc1.weight"]),
            image_size=image_size,
            patch_size=patch_size,
            layer_norm_eps=1e-6,
            pooler_act="linear",
        ),
        tasks=(["classification"] if is_joint else []) + tasks,
        use_position_embeddings=mode["use_position_embeddings"],
        feature=mode["feature"],
        **fields,
    )


def convert(path: str | Path, num_attention_heads: int | None = None) -> RelViTForPreTraining:
    """
    An official checkpoint as a model of this library.

    Args:
        path (`str` or `Path`): The authors' file.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the width does not tell them.

    Returns:
        [`RelViTForPreTraining`]: in eval mode, every weight taken from the checkpoint.

    Raises:
        [`CheckpointError`]: the file cannot be read safely, or does not fit a RelViT to the last tensor.
    """
    state = load_official(path)
    try:
        model = RelViTForPreTraining(config_from_official(state, num_attention_heads))
        model.load_state_dict(from_official(state), strict=True)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        # Sizes that contradict each other, tensors that are missing: whatever it is, the file is at fault.
        raise CheckpointError(f"{path} does not fit a RelViT of the sizes read off its tensors: {error}") from error
    _check_round_trip(state, model)
    return model.eval()


def _equal(restored: Tensor, tensor: Tensor) -> bool:
    """Equal after conversion to float32, not-a-number where the file has it."""
    return torch.allclose(restored.float(), tensor.float(), rtol=0, atol=0, equal_nan=True)


def _check_round_trip(state: dict[str, Tensor], model: RelViTForPreTraining) -> None:
    """Every tensor of the file, but for the unused ones, can be had back from the model, equal."""
    restored = to_official(model.state_dict())
    expected = {name: tensor for name, tensor in state.items() if not _UNUSED.fullmatch(name)}
    differing = [n for n, tensor in expected.items() if n not in restored or not _equal(restored[n], tensor)]
    if differing or len(restored) != len(expected):
        raise CheckpointError(
            f"These tensors were not carried over exactly: {differing or 'more than the file holds'}."
        )


__all__ = ["CheckpointError", "config_from_official", "convert", "from_official", "load_official", "to_official"]
