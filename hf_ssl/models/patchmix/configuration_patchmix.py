"""Configuration of PatchMix (Shen et al., 2023, arXiv 2306.12243)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from ...backbones import check_vit_config
from ..base import SSLConfig


@strict
class PatchMixConfig(SSLConfig):
    """
    Configuration of a [`PatchMixForPreTraining`]: the encoder, the heads, the mixing and its three contrasts.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder (a ViT).
        group_size (`int`, *optional*, defaults to 2):
            Images that a mixed image is made of (m).
        num_local_views (`int`, *optional*, defaults to 8):
            Small views of each image (multi-crop) that are contrasted with the two large ones, plain and mixed; 0 for none.
        use_teacher (`bool`, *optional*, defaults to `True`):
            Whether the keys come from a momentum teacher. Without one they come from the student itself, without gradient;
            so the authors train ViT-Tiny.
        teacher_momentum (`float`, *optional*, defaults to 0.996):
            Share of the teacher that is kept at the first step; it rises to 1 on half a cosine wave.
        ema_schedule (`str`, *optional*, defaults to `"iter"`):
            Whether the momentum changes in every step, or once in an `"epoch"`, as it does in the authors' code by a
            shadowed variable.
        temperature (`float`, *optional*, defaults to 0.2):
            What cosine similarities are divided by.
        mix_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the targets of mixed images.
        plain_smoothing (`float`, *optional*, defaults to 0.1):
            Label smoothing of the targets of unmixed images. The authors' configurations say 0, but their code uses this.
        projection_dim (`int`, *optional*, defaults to 256):
            Width of queries and keys.
        projection_hidden_dim (`int`, *optional*, defaults to 4096):
            Width inside of projector and predictor.
        num_projector_layers (`int`, *optional*, defaults to 3):
            Linear layers of the projector, which student and teacher have.
        num_predictor_layers (`int`, *optional*, defaults to 2):
            Linear layers of the predictor, which only the student has.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Stochastic depth of the student's last layer, growing linearly from 0.
    """

    model_type = "patchmix"
    modes: ClassVar[dict[str, dict[str, Any]]] = {"contrastive": {}}

    position_interpolation: Literal["size", "scale_factor"] = "scale_factor"
    group_size: int = 2
    num_local_views: int = 8
    use_teacher: bool = True
    teacher_momentum: float | int = 0.996
    ema_schedule: Literal["iter", "epoch"] = "iter"
    temperature: float | int = 0.2
    mix_smoothing: float | int = 0.0
    plain_smoothing: float | int = 0.1
    projection_dim: int = 256
    projection_hidden_dim: int = 4096
    num_projector_layers: int = 3
    num_predictor_layers: int = 2
    drop_path_rate: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_vit_config(self.backbone_config, "PatchMix")
        num_patches = (self.backbone_config.image_size // self.backbone_config.patch_size) ** 2
        if not 1 <= self.group_size <= num_patches:
            raise ValueError(
                f"group_size={self.group_size} must lie between 1 and the {num_patches} patches of an image."
            )
        if self.num_local_views < 0:
            raise ValueError(f"num_local_views={self.num_local_views} must not be negative; 0 means no small views.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum={self.teacher_momentum} must lie in [0, 1].")
        for name in ("mix_smoothing", "plain_smoothing", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        for name in ("projection_dim", "projection_hidden_dim", "num_projector_layers", "num_predictor_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


__all__ = ["PatchMixConfig"]
