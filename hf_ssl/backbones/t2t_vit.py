"""The sizes of T2T-ViT (Yuan et al., ICCV 2021, arXiv 2101.11986, table 2)."""

from typing import Any

from .modeling_t2t_vit import T2TViTConfig


def _size(width: int, depth: int, heads: int, mlp_ratio: int, token_module: str = "performer") -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "mlp_ratio": mlp_ratio,
        "token_module": token_module,
    }


T2T_SIZES: dict[str, dict[str, Any]] = {
    "t2t-vit-7": _size(256, 7, 4, 2),
    "t2t-vit-10": _size(256, 10, 4, 2),
    "t2t-vit-12": _size(256, 12, 4, 2),
    "t2t-vit-14": _size(384, 14, 6, 3),
    "t2t-vit-19": _size(448, 19, 7, 3),
    "t2t-vit-24": _size(512, 24, 8, 3),
    "t2t-vit-t-14": _size(384, 14, 6, 3, "transformer"),
    "t2t-vit-t-19": _size(448, 19, 7, 3, "transformer"),
    "t2t-vit-t-24": _size(512, 24, 8, 3, "transformer"),
    "t2t-vit-14-resnext": _size(384, 14, 32, 3),
    "t2t-vit-14-wide": _size(768, 4, 12, 3),
}


def t2t_vit_config(name: str, image_size: int) -> T2TViTConfig:
    """
    The configuration of a T2T-ViT by name.

    Args:
        name (`str`): One of `T2T_SIZES`.
        image_size (`int`): Side of the images, in pixels.

    Returns:
        [`T2TViTConfig`].
    """
    return T2TViTConfig(image_size=image_size, **T2T_SIZES[name])
