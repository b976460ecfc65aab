"""Configuration of APS (Shen et al., 2023, arXiv 2306.02854)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from ...backbones import check_vit_config
from ..base import SSLConfig


@strict
class APSConfig(SSLConfig):
    """
    Configuration of an [`APSForPreTraining`]: the encoder, the heads, the sampling of patches and the contrast.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder (a ViT). The authors' has no bias in queries, keys and values, and an epsilon of
            1e-5 in its LayerNorms.
        sampling_ratio (`float`, *optional*, defaults to 0.25):
            Share of the patches of a view that the encoder sees, rounded down to whole patches.
        num_samplings (`int`, *optional*, defaults to 4):
            Optimizer steps that each loaded batch is trained for, each with other patches. Those of the first view are
            disjoint, so that all samplings together have as many patches as a view at most.
        sampling_power (`float`, *optional*, defaults to 3.0):
            How strongly those patches of the second view are preferred that the sampled patches of the first one do not
            cover: a patch is drawn in proportion to its uncovered share to this power. 0 draws uniformly.
        flip_aware (`bool`, *optional*, defaults to `False`):
            Whether covered shares account for mirrored views. The authors' code takes every view as unmirrored, so that
            its shares are right for a quarter of the pairs only; their results were had with that, hence the default.
        temperature (`float`, *optional*, defaults to 0.1):
            What cosine similarities are divided by.
        projection_dim (`int`, *optional*, defaults to 128):
            Width of queries and keys.
        projection_hidden_dim (`int`, *optional*, defaults to 512):
            Width inside of projector and predictor.
    """

    model_type = "aps"
    modes: ClassVar[dict[str, dict[str, Any]]] = {"contrastive": {}}

    sampling_ratio: float | int = 0.25
    num_samplings: int = 4
    sampling_power: float | int = 3.0
    flip_aware: bool = False
    temperature: float | int = 0.1
    projection_dim: int = 128
    projection_hidden_dim: int = 512

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_vit_config(self.backbone_config, "APS")
        num_patches = self.grid[0] * self.grid[1]
        if not 0 < self.sampling_ratio <= 1 or self.num_sampled_patches < 1:
            raise ValueError(
                f"sampling_ratio={self.sampling_ratio} of {num_patches} patches must be one patch at least, and all at most."
            )
        if self.num_samplings < 1:
            raise ValueError(f"num_samplings={self.num_samplings} must be at least 1.")
        if self.num_samplings * self.num_sampled_patches > num_patches:
            raise ValueError(
                f"num_samplings={self.num_samplings} disjoint samplings of {self.num_sampled_patches} patches do not fit "
                f"into {num_patches} patches: lower num_samplings or sampling_ratio."
            )
        if not self.sampling_power >= 0:
            raise ValueError(f"sampling_power={self.sampling_power} must not be negative; 0 draws uniformly.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        for name in ("projection_dim", "projection_hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of a view."""
        side: int = self.backbone_config.image_size // self.backbone_config.patch_size
        return side, side

    @property
    def num_sampled_patches(self) -> int:
        """Patches of a view that the encoder sees."""
        return int(self.sampling_ratio * self.grid[0] * self.grid[1])


__all__ = ["APSConfig"]
