"""What the tensors of an official Swin or T2T-ViT compute in another implementation: timm's layers, and plain torch for the
tokens of T2T-ViT. `--verify` compares with it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .convert_encoders import swin_config_from_official, t2t_config_from_official


_NORM: Any = partial(nn.LayerNorm, eps=1e-5)


def swin_tokens(state: Mapping[str, Tensor], pixel_values: Tensor) -> Tensor:
    """
    The tokens of timm's Swin.

    Args:
        state (`Mapping[str, torch.Tensor]`): The encoder's tensors by official names.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, width)`.
    """
    config = swin_config_from_official(state)
    model = SwinTransformer(
        img_size=config.image_size,  # type: ignore[arg-type]
        patch_size=config.patch_size,  # type: ignore[arg-type]
        num_classes=0,
        embed_dim=config.embed_dim,
        depths=tuple(config.depths),
        num_heads=tuple(config.num_heads),
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        norm_layer=_NORM,
    )
    weights = {name: tensor.float() for name, tensor in state.items() if not name.startswith("head.")}
    model.load_state_dict(checkpoint_filter_fn(weights, model), strict=True)
    tokens: Tensor = model.eval().forward_features(pixel_values)
    return tokens.flatten(1, 2)


def t2t_tokens(state: Mapping[str, Tensor], num_attention_heads: int | None, pixel_values: Tensor) -> Tensor:
    """
    The tokens of a T2T-ViT whose layers are timm's.

    Args:
        state (`Mapping[str, torch.Tensor]`): The encoder's tensors by official names.
        num_attention_heads (`int`, *optional*): Heads of the attention, where the width does not tell them.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): Images.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1 + num_patches, width)`.
    """
    config = t2t_config_from_official(state, num_attention_heads)
    state = {name: tensor.float() for name, tensor in state.items()}
    attend = _performer if config.token_module == "performer" else _transformer
    x = pixel_values
    for number, (kernel, stride, padding) in enumerate(((7, 4, 2), (3, 2, 1), (3, 2, 1)), 1):
        x = F.unfold(x, kernel, stride=stride, padding=padding).mT
        if number < 3:
            prefix = f"tokens_to_token.attention{number}."
            x = attend({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, x)
            side = round(x.shape[1] ** 0.5)
            x = x.mT.unflatten(2, (side, side))
    x = _linear(state, "tokens_to_token.project", x)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    for i in range(config.num_hidden_layers):
        block = Block(
            config.hidden_size, config.num_attention_heads, config.mlp_ratio, qkv_bias=False, norm_layer=_NORM
        ).eval()
        prefix = f"blocks.{i}."
        block.load_state_dict(
            {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, strict=True
        )
        x = block(x)
    return _norm(state, "norm", x)


def _linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)


def _performer(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Attention by random features (Choromanski et al., 2021): the products over all keys are summed once."""
    key, query, value = _linear(state, "kqv", _norm(state, "norm1", x)).chunk(3, dim=-1)
    w = state["w"]

    def features(u: Tensor) -> Tensor:
        return torch.exp(u @ w.T - u.square().sum(-1, keepdim=True) / 2) / len(w) ** 0.5

    phi_q, phi_k = features(query), features(key)
    y = phi_q @ (phi_k.mT @ value) / (phi_q @ phi_k.sum(1, keepdim=True).mT + 1e-8)
    h = value + _linear(state, "proj", y)
    return h + _linear(state, "mlp.2", F.gelu(_linear(state, "mlp.0", _norm(state, "norm2", h))))


def _transformer(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """One head, whose scale is that of its input's width."""
    query, key, value = _linear(state, "attn.qkv", _norm(state, "norm1", x)).chunk(3, dim=-1)
    attention = (query @ key.mT * x.shape[-1] ** -0.5).softmax(-1)
    h = value + _linear(state, "attn.proj", attention @ value)
    return h + _linear(state, "mlp.fc2", F.gelu(_linear(state, "mlp.fc1", _norm(state, "norm2", h))))


__all__ = ["swin_tokens", "t2t_tokens"]
