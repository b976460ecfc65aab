"""T2T-ViT: a vision transformer whose tokens are gathered from overlapping windows in three steps.

This file stands alone, so that it can lie beside the weights: `AutoModel.from_pretrained(folder, trust_remote_code=True)`
needs nothing but transformers 5.
"""

import math
from typing import Any, Literal

from transformers.utils.versions import require_version


require_version("transformers>=5", "The code of this model is written for it: pip install --upgrade transformers")

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple, maybe_autocast
from transformers.utils.output_capturing import capture_outputs


# Kernel, stride and padding of the three steps; together they leave one token for every 16x16 pixels.
WINDOWS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
PATCH_SIZE = 16


@strict
class T2TViTConfig(PreTrainedConfig):
    """
    Configuration of a [`T2TViTModel`]. The defaults are those of T2T-ViT-14.

    Args:
        image_size (`int`, *optional*, defaults to 224):
            Side of the images, in pixels: a multiple of 16.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        patch_size (`int`, *optional*, defaults to 16):
            Distance of neighboring tokens, in pixels. The architecture knows no other value.
        token_module (`str`, *optional*, defaults to `"performer"`):
            What the tokens pass through between the steps: `"performer"` (attention by random features, linear in the number
            of tokens) or `"transformer"` (softmax attention).
        token_dim (`int`, *optional*, defaults to 64):
            Width of the tokens between the steps.
        hidden_size (`int`, *optional*, defaults to 384):
            Width of the tokens after the last step, and so of the features.
        num_hidden_layers (`int`, *optional*, defaults to 14):
            Transformer layers after the last step.
        num_attention_heads (`int`, *optional*, defaults to 6):
            Heads of these layers.
        mlp_ratio (`float`, *optional*, defaults to 3.0):
            Width of the hidden layer of their MLPs, as a multiple of `hidden_size`.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of all layer normalizations.
        token_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the performers, after the attention and after the MLP. There is no other dropout.
    """

    model_type = "t2t_vit"

    image_size: int = 224
    num_channels: int = 3
    patch_size: int = PATCH_SIZE
    token_module: Literal["performer", "transformer"] = "performer"
    token_dim: int = 64
    hidden_size: int = 384
    num_hidden_layers: int = 14
    num_attention_heads: int = 6
    mlp_ratio: float | int = 3.0
    layer_norm_eps: float = 1e-5
    token_dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.patch_size != PATCH_SIZE:
            raise ValueError(
                f"patch_size={self.patch_size} is not possible: the windows of a T2T-ViT lie {PATCH_SIZE} pixels apart. "
                f"Leave it at {PATCH_SIZE}."
            )
        if self.image_size < PATCH_SIZE or self.image_size % PATCH_SIZE:
            nearest = max(1, round(self.image_size / PATCH_SIZE)) * PATCH_SIZE
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {PATCH_SIZE}: one token stands for "
                f"{PATCH_SIZE}x{PATCH_SIZE} pixels. Take images of {nearest}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}."
            )
        if self.token_dim < 2:
            raise ValueError(f"token_dim={self.token_dim} must be at least 2; that of the published sizes is 64.")
        if self.hidden_size * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} leaves the MLPs no hidden layer: it must be positive.")
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be positive.")
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout={self.token_dropout} must be at least 0 and less than 1.")


def gather_windows(images: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """`(batch_size, channels, height, width)` to `(batch_size, num_windows, channels * kernel**2)`, row by row."""
    return F.unfold(images, kernel, padding=padding, stride=stride).transpose(1, 2)


def tokens_to_image(tokens: Tensor) -> Tensor:
    """`(batch_size, side**2, channels)` to `(batch_size, channels, side, side)`."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def sinusoidal_table(num_positions: int, width: int) -> Tensor:
    """
    Args:
        num_positions (`int`): Number of positions.
        width (`int`): Width of the tokens.

    Returns:
        `torch.Tensor` of shape `(num_positions, width)`, float64: at position `p`, column `j` holds the sine (`j` even) or
        the cosine (`j` odd) of `p / 10000 ** (2 * (j // 2) / width)`.
    """
    positions = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None]
    columns = torch.arange(width, device="cpu")
    angles = positions / 10000 ** (2 * (columns // 2).double() / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos())


class T2TViTMLP(nn.Module):
    """Two linear layers with an exact GELU between them, and dropout at the end."""

    def __init__(self, width: int, hidden_width: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(self.fc2(F.gelu(self.fc1(hidden_states))))


class T2TViTTokenAttention(nn.Module):
    """
    What is common to both token modules: one head of attention and an MLP. The windows are wider than the tokens, so the
    first residual connection starts at the values.

    Args:
        in_features (`int`): Width of the windows.
        config ([`T2TViTConfig`]): Configuration of the model.
        bias (`bool`): Whether queries, keys and values have a bias.
        dropout (`float`): Dropout after the attention and after the MLP.
    """

    def __init__(self, in_features: int, config: T2TViTConfig, bias: bool, dropout: float):
        super().__init__()
        width = config.token_dim
        self.layernorm_before = nn.LayerNorm(in_features, eps=config.layer_norm_eps)
        self.q_proj = nn.Linear(in_features, width, bias=bias)
        self.k_proj = nn.Linear(in_features, width, bias=bias)
        self.v_proj = nn.Linear(in_features, width, bias=bias)
        self.o_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = T2TViTMLP(width, width, dropout)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Three times `(batch_size, num_windows, token_dim)` to one."""
        raise NotImplementedError

    def forward(self, windows: Tensor) -> Tensor:
        """
        Args:
            windows (`torch.Tensor` of shape `(batch_size, num_windows, in_features)`): The windows.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_windows, token_dim)`: one token for each.
        """
        normalized = self.layernorm_before(windows)
        value = self.v_proj(normalized)
        attended = self.attend(self.q_proj(normalized), self.k_proj(normalized), value)
        tokens = value + self.dropout(self.o_proj(attended))
        return tokens + self.mlp(self.layernorm_after(tokens))


class T2TViTPerformerAttention(T2TViTTokenAttention):
    """
    Token module with attention by random features (Choromanski et al., "Rethinking Attention with Performers", ICLR 2021).

    The features are drawn once. They are not trained, but belong to the weights: with others, the model is another one.

    Args:
        in_features (`int`): Width of the windows.
        config ([`T2TViTConfig`]): Configuration of the model.
    """

    random_features: Tensor

    def __init__(self, in_features: int, config: T2TViTConfig):
        super().__init__(in_features, config, bias=True, dropout=config.token_dropout)
        self.register_buffer("random_features", torch.empty(config.token_dim // 2, config.token_dim))

    def positive_features(self, vectors: Tensor) -> Tensor:
        """`(batch_size, num_windows, token_dim)` to `(batch_size, num_windows, token_dim // 2)`."""
        directions = self.random_features.to(vectors.dtype)
        exponents = F.linear(vectors, directions) - vectors.square().sum(-1, keepdim=True) / 2
        return exponents.exp() / math.sqrt(len(directions))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # The denominators may be smaller than what is added to them, so nothing less than float32 will do.
        dtype = torch.promote_types(value.dtype, torch.float32)
        with maybe_autocast(value.device.type, enabled=False):
            queries, keys = self.positive_features(query.to(dtype)), self.positive_features(key.to(dtype))
            numerators = queries @ (keys.transpose(1, 2) @ value.to(dtype))
            denominators = queries @ keys.sum(1).unsqueeze(-1)
            attended = numerators / (denominators + 1e-8)
        return attended.to(value.dtype)


class T2TViTTransformerAttention(T2TViTTokenAttention):
    """
    Token module with softmax attention, which is scaled by the width of the windows.

    Args:
        in_features (`int`): Width of the windows.
        config ([`T2TViTConfig`]): Configuration of the model.
    """

    def __init__(self, in_features: int, config: T2TViTConfig):
        super().__init__(in_features, config, bias=False, dropout=0.0)
        self.scaling = in_features**-0.5

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (states.unsqueeze(1) for states in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=self.scaling).squeeze(1)


class T2TViTEmbeddings(nn.Module):
    """
    Makes the tokens of an image: windows, attention among them, windows of what comes out, and once more; then the class
    token in front, and the positions.

    Args:
        config ([`T2TViTConfig`]): Configuration of the model.
    """

    position_embeddings: Tensor

    def __init__(self, config: T2TViTConfig):
        super().__init__()
        kernels = [kernel**2 for kernel, _, _ in WINDOWS]
        performer = config.token_module == "performer"
        token_attention = T2TViTPerformerAttention if performer else T2TViTTransformerAttention
        self.token_attention1 = token_attention(config.num_channels * kernels[0], config)
        self.token_attention2 = token_attention(config.token_dim * kernels[1], config)
        self.projection = nn.Linear(config.token_dim * kernels[2], config.hidden_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        num_positions = 1 + (config.image_size // config.patch_size) ** 2
        self.register_buffer("position_embeddings", torch.empty(1, num_positions, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Normalized images.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1 + num_patches, hidden_size)`: the class token and the patches' tokens.
        """
        tokens = self.token_attention1(gather_windows(pixel_values, *WINDOWS[0]))
        tokens = self.token_attention2(gather_windows(tokens_to_image(tokens), *WINDOWS[1]))
        tokens = self.projection(gather_windows(tokens_to_image(tokens), *WINDOWS[2]))
        tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return tokens + self.position_embeddings.to(tokens.dtype)


class T2TViTAttention(nn.Module):
    """
    Multi-head self-attention, without biases of the queries, keys and values.

    Args:
        config ([`T2TViTConfig`]): Configuration of the model.
    """

    def __init__(self, config: T2TViTConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class T2TViTLayer(GradientCheckpointingLayer):
    """
    Attention and MLP, each with the normalization in front of it.

    Args:
        config ([`T2TViTConfig`]): Configuration of the model.
    """

    def __init__(self, config: T2TViTConfig):
        super().__init__()
        width = config.hidden_size
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = T2TViTAttention(config)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = T2TViTMLP(width, int(width * config.mlp_ratio))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(batch_size, num_tokens, hidden_size)` to the same shape."""
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states))
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class T2TViTPreTrainedModel(PreTrainedModel):
    """Base of the models: their initialization, and what transformers has to know about them."""

    config_class = T2TViTConfig
    base_model_prefix = "t2t_vit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["T2TViTEmbeddings", "T2TViTLayer"]
    _keep_in_fp32_modules_strict = ["position_embeddings", "random_features"]
    _can_record_outputs = {"hidden_states": T2TViTLayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, T2TViTPerformerAttention):
            init.orthogonal_(module.random_features, gain=math.sqrt(len(module.random_features)))
        elif isinstance(module, T2TViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=0.02)
            init.copy_(module.position_embeddings, sinusoidal_table(*module.position_embeddings.shape[1:]))


class T2TViTModel(T2TViTPreTrainedModel):
    """
    T2T-ViT (Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", ICCV 2021,
    arXiv 2101.11986).

    Args:
        config ([`T2TViTConfig`]): Its configuration.
    """

    def __init__(self, config: T2TViTConfig):
        super().__init__(config)
        self.embeddings = T2TViTEmbeddings(config)
        self.layers = nn.ModuleList(T2TViTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Normalized images.
            output_hidden_states (`bool`, *optional*):
                Whether to return `hidden_states`: the tokens before the first layer and after each one.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` of shape `(batch_size, 1 + num_patches, hidden_size)`, the class
            token and the patches' tokens after the last normalization, and `pooler_output` of shape
            `(batch_size, hidden_size)`, the class token of these.

        Raises:
            `ValueError`: the images have another size, or other channels.
        """
        channels, side = self.config.num_channels, self.config.image_size
        if pixel_values.shape[1:] != (channels, side, side):
            raise ValueError(
                f"The images have the shape {tuple(pixel_values.shape[1:])}; this T2T-ViT takes {(channels, side, side)} "
                "only. Its positions are not interpolated: resize the images, or make a model with another `image_size`."
            )
        hidden_states = self.embeddings(pixel_values.to(self.embeddings.projection.weight.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class T2TViTForImageClassification(T2TViTPreTrainedModel):
    """
    A [`T2TViTModel`] with a linear classifier on the class token.

    Args:
        config ([`T2TViTConfig`]): Its configuration, with `num_labels`.
    """

    def __init__(self, config: T2TViTConfig):
        super().__init__(config)
        self.t2t_vit = T2TViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Normalized images.
            labels (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*):
                Class ids; or what the configuration's `problem_type` says.
            output_hidden_states (`bool`, *optional*):
                As for [`T2TViTModel`].

        Returns:
            `ImageClassifierOutput`: `logits` of shape `(batch_size, num_labels)`, and the `loss` if there are labels.
        """
        outputs = self.t2t_vit(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


T2TViTConfig.register_for_auto_class()
T2TViTModel.register_for_auto_class("AutoModel")
T2TViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
