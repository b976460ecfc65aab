"""The ViT encoder as it is trained: transformers' own layers, run by a short loop of ours.

[`ViTTrunk`] holds the modules of a `transformers.ViTModel` under the same names, so that its weights load into the
stock class with `load_state_dict(strict=True)`; what it adds has no weights: stochastic depth, positions on or off,
a choice of the patches that it sees, the position interpolation and the extra dropouts of the original methods.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer

from ..views import split_patches


PositionInterpolation = Literal["size", "scale_factor"]

# Width, depth and heads; the MLP is four times as wide. `vit-micro` is ours, for a quick start on a laptop.
VIT_SIZES: dict[str, tuple[int, int, int]] = {
    "vit-micro": (96, 4, 3),
    "vit-tiny": (192, 12, 3),
    "vit-small": (384, 12, 6),
    "vit-base": (768, 12, 12),
}


def vit_config(name: str, **overrides: Any) -> ViTConfig:
    """
    The configuration of a ViT by name.

    Args:
        name (`str`):
            One of `VIT_SIZES`; it fixes width, depth and MLP.
        overrides (`dict`, *optional*):
            Fields of `ViTConfig` that the method fixes: `image_size`, `patch_size`, `num_attention_heads`,
            `layer_norm_eps`, `qkv_bias`, …

    Returns:
        `transformers.ViTConfig`: with an identity pooler, so that the published encoder's `pooler_output` is its class
        token.
    """
    hidden_size, depth, heads = VIT_SIZES[name]
    fields: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden_size,
        "pooler_act": "linear",
        **overrides,
    }
    return ViTConfig(**fields)


def check_vit_config(config: Any, method: str) -> None:
    """Raise `ValueError` unless this is a ViT for square images of whole square patches; `method` is named in messages."""
    if config.model_type != "vit":
        raise ValueError(f"backbone_config.model_type={config.model_type!r} is not supported by {method}; use 'vit'.")
    for name in ("image_size", "patch_size"):
        size = getattr(config, name)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"backbone_config.{name}={size} must be one positive whole number: images are square.")
    if config.image_size % config.patch_size:
        raise ValueError(f"image_size={config.image_size} is not a multiple of patch_size={config.patch_size}.")


def stochastic_depth_rates(rate: float, depth: int) -> list[float]:
    """Drop probability of each layer, growing linearly from 0 to `rate` (Huang et al., 2016, section 3)."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def branch_scales(keep: Tensor, rates: list[float]) -> Tensor:
    """
    Stochastic depth's factors: a kept branch is divided by its probability of being kept, a dropped one is 0.

    Args:
        keep (`torch.Tensor` of shape `(depth, 2, batch_size)`, bool): Branches that are kept.
        rates (`list[float]`): Drop probability of each layer, growing linearly from 0.

    Returns:
        `torch.Tensor` of shape `(depth, 2, batch_size)`, float32.
    """
    return keep / (1 - torch.linspace(0, rates[-1], len(rates), device=keep.device))[:, None, None]


def add_branch(hidden_states: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """
    A residual connection.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Tokens.
        branch (`torch.Tensor` of the same shape): What is added to them.
        scale (`torch.Tensor` of shape `(batch_size,)`, *optional*): What each sample's branch is multiplied with.

    Returns:
        `torch.Tensor` of the same shape.
    """
    if scale is None:
        return hidden_states + branch
    return torch.addcmul(hidden_states, branch, scale[:, None, None].to(branch.dtype))


def interpolate_positions(
    table: Tensor, grid: tuple[int, int], method: PositionInterpolation = "size", *, is_square: bool = True
) -> Tensor:
    """
    Resize a learned position table to another patch grid, bicubically; the class token's entry is kept.

    Args:
        table (`torch.Tensor` of shape `(1, 1 + side * side, dim)`):
            Position embeddings, class token first.
        grid (`tuple[int, int]`):
            Rows and columns of the new grid.
        method (`str`, *optional*, defaults to `"size"`):
            `"size"` samples the table on the exact ratio of the sizes, as transformers does. `"scale_factor"` adds 0.1
            to the new size first, as DINO and the methods after it do in training: the fraction shifts the sampling
            points, and features differ visibly from `"size"`.
        is_square (`bool`, *optional*, defaults to `True`):
            Whether the image is as high as it is wide, in pixels. For others, `"scale_factor"` shifts sampling points even
            where the grid stays as it is, as in the original code: of 37 x 32 pixels in patches of 8, the grid is square.

    Returns:
        `torch.Tensor` of shape `(1, 1 + rows * columns, dim)`.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side) and (is_square or method == "size"):
        return table
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if method == "scale_factor":
        factors = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
    else:
        patches = F.interpolate(patches, size=grid, mode="bicubic")
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class ViTTrunkLayer(ViTLayer):
    """A pre-norm transformer layer with stochastic depth, and with the original's third dropout (after the GELU)."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, branch_scale: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`):
                Tokens.
            attention_mask (`torch.Tensor` of shape `(1, 1, sequence_length, sequence_length)`, *optional*):
                Added to the attention scores: 0 where a token (row) may attend to another (column), -inf elsewhere.
            branch_scale (`torch.Tensor` of shape `(2, batch_size)`, *optional*):
                Stochastic depth: what each sample's attention (0) and MLP (1) branch is multiplied with.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        branch, _ = self.attention(self.layernorm_before(hidden_states), attention_mask)
        branch = self.dropout(branch)
        hidden_states = add_branch(hidden_states, branch, None if branch_scale is None else branch_scale[0])
        branch = self.mlp.activation_fn(self.mlp.fc1(self.layernorm_after(hidden_states)))
        branch = self.dropout(self.mlp.fc2(self.dropout(branch)))
        return add_branch(hidden_states, branch, None if branch_scale is None else branch_scale[1])


class ViTTrunk(nn.Module):
    """
    A ViT without pooler.

    Args:
        config (`transformers.ViTConfig`):
            Its architecture.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last layer; it grows linearly from 0 at the first.
        use_position_embeddings (`bool`, *optional*, defaults to `True`):
            Whether positions are added to the tokens. Without them, images of any size are accepted.
        position_interpolation (`str`, *optional*, defaults to `"size"`):
            How positions are resized to other image sizes, see [`interpolate_positions`].
        projection_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the patch projection.
        use_class_token_position (`bool`, *optional*, defaults to `True`):
            Whether a position is added to the class token as well. Without, the first row of the table gets no gradient.
    """

    def __init__(
        self,
        config: ViTConfig,
        drop_path_rate: float = 0.0,
        use_position_embeddings: bool = True,
        position_interpolation: PositionInterpolation = "size",
        projection_dropout: float = 0.0,
        use_class_token_position: bool = True,
    ):
        super().__init__()
        self.config = config
        self.drop_path_rates = stochastic_depth_rates(drop_path_rate, config.num_hidden_layers)
        self.use_position_embeddings = use_position_embeddings
        self.use_class_token_position = use_class_token_position
        self.position_interpolation: PositionInterpolation = position_interpolation
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList(ViTTrunkLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection_dropout = nn.Dropout(projection_dropout)

    def embed(self, pixel_values: Tensor, patch_indices: Tensor | None = None) -> Tensor:
        """
        Pixels of shape `(batch_size, 3, height, width)` to tokens `(batch_size, 1 + num_patches, hidden_size)`, or of the
        given patches only.
        """
        patch_size: Any = self.config.patch_size
        grid = (pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size)
        if patch_indices is None:
            patches = self.embeddings.patch_embeddings(pixel_values)
        else:
            # The convolution is a product with each patch: only those that are wanted are multiplied.
            projection = self.embeddings.patch_embeddings.projection
            pixels = split_patches(pixel_values, patch_size).flatten(2)
            pixels = pixels.gather(1, patch_indices[..., None].expand(-1, -1, pixels.shape[-1]))
            patches = F.linear(pixels, projection.weight.flatten(1), projection.bias)
        patches = self.projection_dropout(patches)
        class_token: Tensor = self.embeddings.cls_token
        if not self.use_position_embeddings:
            return self._join(class_token, patches)
        positions = interpolate_positions(
            self.embeddings.position_embeddings,
            grid,
            self.position_interpolation,
            is_square=pixel_values.shape[-2] == pixel_values.shape[-1],
        )
        if self.use_class_token_position:
            class_token = class_token + positions[:, :1]
        of_patches = positions[:, 1:] if patch_indices is None else F.embedding(patch_indices, positions[0, 1:])
        return self.embeddings.dropout(self._join(class_token, patches + of_patches.to(patches.dtype)))

    def _join(self, class_token: Tensor, patches: Tensor) -> Tensor:
        return torch.cat([class_token.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)

    def forward(
        self,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        drop_path_keep: Tensor | None = None,
        patch_indices: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
                Normalized images.
            attention_mask (`torch.Tensor` of shape `(1, 1, sequence_length, sequence_length)`, *optional*):
                Added to the attention scores: 0 where a token (row) may attend to another (column), -inf elsewhere.
            drop_path_keep (`torch.Tensor` of shape `(depth, 2, batch_size)`, bool, *optional*):
                Branches that stochastic depth keeps, in training. Unset, all are kept.
            patch_indices (`torch.Tensor` of shape `(batch_size, num_chosen)`, int64, *optional*):
                Patches of each image that the encoder is to see, row by row from 0. Unset, it sees all.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1 + num_patches, hidden_size)`, or `(batch_size, 1 + num_chosen,
            hidden_size)`: tokens after the final LayerNorm.
        """
        tokens = self.embed(pixel_values, patch_indices)
        scales = None if drop_path_keep is None else branch_scales(drop_path_keep, self.drop_path_rates)
        for i, (layer, rate) in enumerate(zip(self.layers, self.drop_path_rates, strict=True)):
            tokens = layer(tokens, attention_mask, scales[i] if scales is not None and rate else None)
        return self.layernorm(tokens)


def publish_vit(trunk: ViTTrunk) -> ViTModel:
    """
    The stock encoder that computes what the trunk computes in eval mode.

    Its pooler is the identity (linear, unit weight, zero bias), so `pooler_output` is the class token and no weight is
    left to chance at load. A trunk trained without positions gets a table of zeros, and one whose class token has none gets
    a first row of zeros. The model is built without touching the random state.

    Args:
        trunk ([`ViTTrunk`]): The trained encoder.

    Returns:
        `transformers.ViTModel`: in eval mode, float32, on the trunk's device, with its own copy of the weights.
    """
    config = ViTConfig.from_dict(trunk.config.to_dict())
    config.pooler_act, config.pooler_output_size = "linear", config.hidden_size
    weights = {name: tensor.detach().float().clone() for name, tensor in trunk.state_dict().items()}
    if not trunk.use_position_embeddings:
        weights["embeddings.position_embeddings"].zero_()
    if not trunk.use_class_token_position:
        weights["embeddings.position_embeddings"][:, 0] = 0
    device = weights["embeddings.cls_token"].device
    weights["pooler.dense.weight"] = torch.eye(config.hidden_size, device=device)
    weights["pooler.dense.bias"] = torch.zeros(config.hidden_size, device=device)
    with torch.device("meta"):
        encoder = ViTModel(config)
    encoder.load_state_dict(weights, strict=True, assign=True)
    return encoder.eval()
