"""Which parameters decay, and how fast each one learns: the groups of an optimizer."""

import re
from bisect import bisect_right
from math import inf
from typing import Any, Literal, get_args

from torch import nn


WeightDecayRule = Literal["matrices", "layer_matrices", "all"]

# A parameter of an encoder layer: "vit.layers.3.…", in timm "blocks.3.…", in Swin "swin.encoder.layers.1.blocks.3.…".
_LAYER = re.compile(
    r"(?P<encoder>(?:[a-zA-Z_]\w*\.)*?)(?:encoder\.)?(?:layers|blocks)\.(?P<index>\d+)\.(?:blocks\.(?P<block>\d+)\.)?"
)
# Names in the encoder, after its own.
_EMBEDDINGS = re.compile(r"embeddings\.|patch_embed\.|pos_embed$|\w+_token$")
_FINAL_NORM = re.compile(r"(?:layer)?norm\.")
_TOKENS = re.compile(r"(?:_tokens?|pos_embed|position_embeddings)$")


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    weight_decay_rule: WeightDecayRule = "matrices",
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """
    The trainable parameters of a model, grouped for an optimizer.

    Layer-wise decay of the learning rate is BEiT's (Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR
    2022), with the levels of timm, which PatchMix fine-tunes with: the embeddings are level 0, encoder layer `i` is
    level `i + 1`, and all that comes after the encoder is the top. Swin's layers are its blocks, counted through the
    stages. What follows a layer without being one (the final norm, Swin's patch merging) shares its level.

    Args:
        model (`torch.nn.Module`):
            The model; its frozen parameters are left out.
        learning_rate (`float`):
            Learning rate of the top level.
        weight_decay (`float`):
            Weight decay of the parameters that decay; the others have 0.
        weight_decay_rule (`str`, *optional*, defaults to `"matrices"`):
            Which parameters decay: `"matrices"`, those of two or more dimensions that are not biases; `"layer_matrices"`, the
            same without tokens and position tables, as timm has it for ViTs; `"all"`.
        layer_decay (`float`, *optional*, defaults to 1.0):
            What the learning rate is multiplied with for each level below the top, in (0, 1]; 1 needs no layers.

    Returns:
        `list[dict[str, Any]]`: groups with `params`, `lr` and `weight_decay`, none empty: by level, the top first (the
        learning rate that Trainer logs is that of the first group), and in a level those that decay first. In a group
        the parameters are in the order of `model.named_parameters()`.

    Raises:
        `ValueError`: an argument is out of range, or the model has no layers that are recognized.
    """
    if weight_decay_rule not in get_args(WeightDecayRule):
        rules = ", ".join(get_args(WeightDecayRule))
        raise ValueError(f"weight_decay_rule={weight_decay_rule!r} is unknown; use one of {rules}.")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be in (0, 1]; 1 trains all layers at the same rate.")

    depths = _levels_below_top(model) if layer_decay < 1 else {}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = weight_decay_rule == "all" or (parameter.ndim > 1 and not name.endswith(".bias"))
            decays &= weight_decay_rule != "layer_matrices" or not _TOKENS.search(name)
            groups.setdefault((depths.get(name, 0), not decays), []).append(parameter)
    return [
        {
            "params": groups[depth, exempt],
            "lr": learning_rate * layer_decay**depth,
            "weight_decay": 0.0 if exempt else weight_decay,
        }
        for depth, exempt in sorted(groups)
    ]


def _levels_below_top(model: nn.Module) -> dict[str, int]:
    """How many levels each parameter of the encoder lies below the top; those that are missing are at the top."""
    trainable = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    first = next((match for name in trainable if (match := _LAYER.match(name))), None)
    if first is None:
        raise ValueError(
            f"{type(model).__name__} has no trainable encoder layers that layer_decay knows ('….layers.0.…', "
            "'….blocks.0.…'); use layer_decay=1."
        )
    # Where each parameter is in the encoder: stage and block, or layer and nothing.
    encoder, places, layers = first["encoder"], {}, set()
    for name, _ in model.named_parameters():
        if (match := _LAYER.match(name)) and match["encoder"] == encoder:
            places[name] = (float(match["index"]), float(match["block"] or inf))
            layers.add(places[name])
        elif name.startswith(encoder) and _EMBEDDINGS.match(name, len(encoder)):
            places[name] = (-inf, -inf)
        elif name.startswith(encoder) and _FINAL_NORM.match(name, len(encoder)):
            places[name] = (inf, inf)
    # In an encoder of stages, what is in no block is no layer.
    ordered = sorted({layer for layer in layers if layer[1] < inf} or layers)
    return {name: len(ordered) + 1 - bisect_right(ordered, place) for name, place in places.items()}
