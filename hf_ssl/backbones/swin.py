"""The Swin encoder as it is trained: transformers' own layers, run by a short loop of ours.

[`SwinTrunk`] holds the modules of a `transformers.SwinModel` under the same names, so that its weights load into the stock
class. It differs in training: stochastic depth drops MLP branches as well, as in the original Swin, and its decisions can be
given.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel
from transformers.models.swin.modeling_swin import (
    SwinEmbeddings,
    SwinLayer,
    SwinPatchMerging,
    window_partition,
    window_reverse,
)

from .filling import fill_from
from .vit import add_branch, branch_scales, stochastic_depth_rates


# Width of the first stage, depths and heads.
SWIN_SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {"swin-tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24))}


def swin_config(name: str, **overrides: Any) -> SwinConfig:
    """
    The configuration of a Swin by name: tokens of 4 pixels and windows of 7 x 7 tokens.

    Args:
        name (`str`): One of `SWIN_SIZES`.
        overrides (`dict`, *optional*): Fields of `SwinConfig`.

    Returns:
        `transformers.SwinConfig`.
    """
    embed_dim, depths, heads = SWIN_SIZES[name]
    fields: dict[str, Any] = {"embed_dim": embed_dim, "depths": list(depths), "num_heads": list(heads), **overrides}
    return SwinConfig(**fields)


def swin_sides(config: SwinConfig) -> list[int]:
    """Tokens on a side of each stage."""
    side: Any = config.image_size // config.patch_size  # type: ignore[operator]
    return [side // 2**stage for stage in range(len(config.depths))]


def check_swin_config(config: SwinConfig) -> None:
    """
    Raise `ValueError` unless this is a Swin for square images that its windows divide in every stage, as the original asks
    for. (transformers pads instead, and its windows shrink with the image.)
    """
    for name in ("image_size", "patch_size", "window_size"):
        size = getattr(config, name)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"backbone_config.{name}={size} must be one positive whole number: images are square.")
    depths, heads = config.depths, config.num_heads
    if not depths or min(depths) < 1:
        raise ValueError(f"backbone_config.depths={depths} must name the layers of each stage, at least one.")
    if len(heads) != len(depths) or any(n < 1 or config.embed_dim * 2**i % n for i, n in enumerate(heads)):
        raise ValueError(
            f"backbone_config.num_heads={heads} must hold, for each of the {len(depths)} stages, a divisor of its width: the "
            f"first is {config.embed_dim} wide, and each later one twice as wide as the one before."
        )
    unit = config.patch_size * config.window_size * 2 ** (len(config.depths) - 1)  # type: ignore[operator]
    if config.image_size % unit:  # type: ignore[operator]
        raise ValueError(
            f"image_size={config.image_size} does not suit this Swin: its windows of {config.window_size} tokens divide all "
            f"stages only if it is a multiple of {unit}. Set --image_size {unit}."
        )
    if config.use_absolute_embeddings:
        raise ValueError("backbone_config.use_absolute_embeddings=True is not supported: Swin has relative positions.")


class SwinTrunkLayer(SwinLayer):
    """
    A transformer layer of windows, with stochastic depth on both of its branches.

    Args:
        config (`transformers.SwinConfig`): The architecture.
        dim (`int`): Width of the tokens.
        side (`int`): Tokens on a side of the image.
        num_heads (`int`): Heads of the attention.
        shifted (`bool`): Whether windows are shifted by half of their size; if one window is the whole image, they are not.
    """

    def __init__(self, config: SwinConfig, dim: int, side: int, num_heads: int, shifted: bool):
        shift = config.window_size // 2 if shifted and side > config.window_size else 0
        super().__init__(config, dim, (side, side), num_heads, shift_size=shift)
        self.side = side

    def forward(self, hidden_states: Tensor, branch_scale: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, side * side, dim)`):
                Tokens.
            branch_scale (`torch.Tensor` of shape `(2, batch_size)`, *optional*):
                Stochastic depth: what each sample's attention (0) and MLP (1) branch is multiplied with.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        side, window, dim = self.side, self.window_size, hidden_states.shape[-1]
        grid = self.layernorm_before(hidden_states).unflatten(1, (side, side))
        windows = window_partition(self.cyclic_shift(grid), window).view(-1, window * window, dim)
        mask = self.get_attn_mask(side, side, windows.dtype, windows.device)
        windows = self.dropout(self.attention(windows, mask)[0]).view(-1, window, window, dim)
        branch = self.cyclic_shift(window_reverse(windows, window, side, side), reverse=True).flatten(1, 2)
        hidden_states = add_branch(hidden_states, branch, None if branch_scale is None else branch_scale[0])
        branch = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return add_branch(hidden_states, branch, None if branch_scale is None else branch_scale[1])


class SwinTrunkStage(nn.Module):
    """
    Layers of one width, and the merging of 2 x 2 tokens that follows them in all stages but the last.

    Args:
        config (`transformers.SwinConfig`): The architecture.
        index (`int`): Which stage this is.
    """

    def __init__(self, config: SwinConfig, index: int):
        super().__init__()
        dim, heads, side = config.embed_dim * 2**index, config.num_heads[index], swin_sides(config)[index]
        self.side = side
        self.blocks = nn.ModuleList(
            SwinTrunkLayer(config, dim, side, heads, shifted=i % 2 == 1) for i in range(config.depths[index])
        )
        self.downsample = SwinPatchMerging(dim) if index + 1 < len(config.depths) else None

    def forward(self, hidden_states: Tensor, scales: list[Tensor | None]) -> Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, side * side, dim)`): Tokens.
            scales (`list[torch.Tensor | None]`): Stochastic depth of each layer, see [`SwinTrunkLayer`].

        Returns:
            `torch.Tensor` of shape `(batch_size, side * side / 4, 2 * dim)`, or that of `hidden_states` in the last stage.
        """
        for block, scale in zip(self.blocks, scales, strict=True):
            hidden_states = block(hidden_states, scale)
        return hidden_states if self.downsample is None else self.downsample(hidden_states, (self.side, self.side))


class SwinTrunk(nn.Module):
    """
    A Swin without pooler.

    Args:
        config (`transformers.SwinConfig`): Its architecture; its own `drop_path_rate` is not used.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last layer; it grows linearly from 0 at the first.
    """

    def __init__(self, config: SwinConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.config = config
        self.drop_path_rates = stochastic_depth_rates(drop_path_rate, sum(config.depths))
        self.embeddings = SwinEmbeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(SwinTrunkStage(config, i) for i in range(len(config.depths)))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, drop_path_keep: Tensor | None = None) -> Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`):
                Normalized images.
            drop_path_keep (`torch.Tensor` of shape `(depth, 2, batch_size)`, bool, *optional*):
                Branches that stochastic depth keeps, in training, for the layers of all stages. Unset, all are kept.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`: tokens of the last stage after the final
            LayerNorm.

        Raises:
            `ValueError`: the images have another size.
        """
        if pixel_values.shape[-2:] != (self.config.image_size, self.config.image_size):
            raise ValueError(
                f"This Swin is for images of {self.config.image_size} x {self.config.image_size} pixels, not "
                f"{pixel_values.shape[-2]} x {pixel_values.shape[-1]}."
            )
        tokens, _ = self.embeddings(pixel_values)
        factors = None if drop_path_keep is None else branch_scales(drop_path_keep, self.drop_path_rates)
        scales = [factors[i] if factors is not None and rate else None for i, rate in enumerate(self.drop_path_rates)]
        for stage, depth in zip(self.encoder.layers, self.config.depths, strict=True):  # type: ignore[arg-type]
            tokens = stage(tokens, scales[:depth])
            scales = scales[depth:]
        return self.layernorm(tokens)


def publish_swin(trunk: SwinTrunk) -> SwinModel:
    """
    The stock encoder that computes what the trunk computes in eval mode; its `pooler_output` is the mean of the tokens. It is
    built without touching the random state.

    Args:
        trunk ([`SwinTrunk`]): The trained encoder.

    Returns:
        `transformers.SwinModel`: in eval mode, float32, on the trunk's device, with its own copy of the weights.
    """
    config = SwinConfig.from_dict(trunk.config.to_dict())
    with torch.device("meta"):
        encoder = SwinModel(config)
    fill_from(encoder, trunk)
    return encoder.eval()
