"""The authors' RelViT checkpoints (PyTorch Lightning 1.3.1 files) to this library's model, and back.

The authors' class for each relation has its own projections; here they are joined. Value projections of the pair heads are
dropped: the authors' code never reads their result, and they are never trained.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion import (
    CheckpointError,
    check_round_trip,
    load_checkpoint,
    must_fit,
    tensors_of,
    under,
    vit_config_from_official,
    vit_from_official,
    vit_to_official,
)
from .configuration_relvit import RelViTConfig
from .modeling_relvit import NUM_RELATIONS, RelViTForPreTraining


_LINEAR_HEADS = {"abs_pos_head": "position_head", "clf_head": "classifier"}
_PAIR_HEADS = {"rel_head": "relation_head", "dist_head": "distance_head", "angle_head": "angle_head"}
_SCORER = re.compile(rf"({'|'.join(_PAIR_HEADS)})\.heads\.\d+\.[qkv]_lin\.weight")
_UNUSED = re.compile(rf"({'|'.join(_PAIR_HEADS)})\.heads\.\d+\.v_lin\.weight")


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
    checkpoint = load_checkpoint(path, [(ModelCheckpoint, dotted_name)])
    return tensors_of(checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None, path)


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
    encoder = vit_from_official(under(state, "backbone."), "backbone.")
    converted = {f"student.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in state.items():
        head, _, kind = name.partition(".")
        if head in _LINEAR_HEADS and kind in ("weight", "bias"):
            converted[f"{_LINEAR_HEADS[head]}.{kind}"] = tensor
        elif head != "backbone" and not _SCORER.fullmatch(name):
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
    encoder = vit_to_official(under(state, "student."))
    result = {f"backbone.{name}": tensor for name, tensor in encoder.items()}
    linear_heads = {ours: official for official, ours in _LINEAR_HEADS.items()}
    pair_heads = {ours: official for official, ours in _PAIR_HEADS.items()}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in linear_heads:
            result[f"{linear_heads[module]}.{kind}"] = tensor
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
    backbone_config = vit_config_from_official(under(state, "backbone."), num_attention_heads)
    if not any(
        name.startswith(("rel_head.", "abs_pos_head.", "dist_head.", "angle_head.", "clf_head.")) for name in state
    ):
        raise CheckpointError(
            "The checkpoint holds an encoder without any of RelViT's heads; there is no loss to rebuild."
        )
    heads = {"relations": "rel_head", "positions": "abs_pos_head", "distances": "dist_head", "angles": "angle_head"}
    tasks = [task for task, head in heads.items() if any(name.startswith(f"{head}.") for name in state)]
    is_joint = "clf_head.weight" in state
    num_patches = state["backbone.pos_embed"].shape[1] - 1
    fields: dict[str, Any] = {"num_labels": len(state["clf_head.weight"])} if is_joint else {}
    if "positions" in tasks and len(state["abs_pos_head.weight"]) != num_patches:
        fields["mega_patches"] = round(len(state["abs_pos_head.weight"]) ** 0.5)
    mode = RelViTConfig.modes["joint" if is_joint else "upstream"]
    return RelViTConfig(
        backbone_config=backbone_config,
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
    with must_fit(path, "a RelViT"):
        model = RelViTForPreTraining(config_from_official(state, num_attention_heads))
        model.load_state_dict(from_official(state), strict=True)
    check_round_trip({n: t for n, t in state.items() if not _UNUSED.fullmatch(n)}, to_official(model.state_dict()))
    return model.eval()


def official_encoder(path: str | Path, which: str | None = None) -> dict[str, Tensor]:
    """
    The encoder's tensors as they stand in an official file, under the names of timm's ViT.

    Args:
        path (`str` or `Path`): The authors' file.
        which (`str`, *optional*): RelViT has one encoder; it is ignored.

    Returns:
        `dict[str, torch.Tensor]`: the tensors; without positions, a table of zeros, if the encoder was trained so.
    """
    state = load_official(path)
    encoder = under(state, "backbone.")
    if "clf_head.weight" not in state:  # upstream
        encoder["pos_embed"] = torch.zeros_like(encoder["pos_embed"])
    return encoder


__all__ = [
    "CheckpointError",
    "config_from_official",
    "convert",
    "from_official",
    "load_official",
    "official_encoder",
    "to_official",
]
