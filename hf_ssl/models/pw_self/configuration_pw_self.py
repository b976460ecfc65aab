"""Configuration of PW-Self (Javidani et al., 2023, arXiv 2310.18651)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from ...backbones import check_vit_config
from ..base import SSLConfig


@strict
class PWSelfConfig(SSLConfig):
    """
    Configuration of a [`PWSelfForPreTraining`]: the encoder, the head, the correspondences and the loss.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder (a ViT).
        num_local_views (`int`, *optional*, defaults to 8):
            Small views of each image (multi-crop), which only the student sees; 0 for none.
        geometry (`str`, *optional*, defaults to `"batch"`):
            Whether all images of a `"batch"` are cropped and mirrored alike, as in the authors' code, or every `"sample"` in
            a way of its own.
        strict_correspondences (`bool`, *optional*, defaults to `False`):
            Reproduce an overflow of the authors' code, by which some mirrored views of odd grids have no matched patches.
        head_hidden_dim (`int`, *optional*, defaults to 2048):
            Width inside of the head.
        head_bottleneck_dim (`int`, *optional*, defaults to 256):
            Width that is compared with the prototypes.
        num_prototypes (`int`, *optional*, defaults to 10000):
            Rows of the head's last layer (K).
        norm_last_layer (`bool`, *optional*, defaults to `True`):
            Whether these rows keep length 1.
        class_loss_weight (`float`, *optional*):
            Share of the class token in the loss of a pair of views; the matched patches have the rest. Unset, the class
            token counts as much as each matched patch, as in the authors' code.
        student_temperature (`float`, *optional*, defaults to 0.1):
            What the student's scores are divided by.
        teacher_temperature (`float`, *optional*, defaults to 0.04):
            What the teacher's scores are divided by.
        warmup_teacher_temperature (`float`, *optional*, defaults to 0.04):
            The same at first, if there is a warm-up.
        teacher_temperature_warmup_epochs (`int`, *optional*, defaults to 0):
            Epochs in which the teacher's temperature changes.
        center_momentum (`float`, *optional*, defaults to 0.9):
            Share of the center that is kept in a step.
        teacher_momentum (`float`, *optional*, defaults to 0.996):
            Share of the teacher that is kept in the first step; it rises to 1 on half a cosine wave.
        frozen_last_layer_epochs (`int`, *optional*, defaults to 1):
            Epochs at the beginning in which the prototypes do not change.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Stochastic depth of the student's last layer, growing linearly from 0.
    """

    model_type = "pw_self"
    modes: ClassVar[dict[str, dict[str, Any]]] = {"distillation": {}}

    position_interpolation: Literal["size", "scale_factor"] = "scale_factor"
    num_local_views: int = 8
    geometry: Literal["batch", "sample"] = "batch"
    strict_correspondences: bool = False
    head_hidden_dim: int = 2048
    head_bottleneck_dim: int = 256
    num_prototypes: int = 10_000
    norm_last_layer: bool = True
    class_loss_weight: float | int | None = None
    student_temperature: float | int = 0.1
    teacher_temperature: float | int = 0.04
    warmup_teacher_temperature: float | int = 0.04
    teacher_temperature_warmup_epochs: int = 0
    center_momentum: float | int = 0.9
    teacher_momentum: float | int = 0.996
    frozen_last_layer_epochs: int = 1
    drop_path_rate: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_vit_config(self.backbone_config, "PW-Self")
        for name in ("num_local_views", "teacher_temperature_warmup_epochs", "frozen_last_layer_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative; 0 means none.")
        for name in ("head_hidden_dim", "head_bottleneck_dim", "num_prototypes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        for name in ("center_momentum", "teacher_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if self.class_loss_weight is not None and not 0 <= self.class_loss_weight <= 1:
            raise ValueError(f"class_loss_weight={self.class_loss_weight} must lie in [0, 1], or be unset.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must lie in [0, 1).")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of a large view."""
        side: int = self.backbone_config.image_size // self.backbone_config.patch_size
        return side, side


__all__ = ["PWSelfConfig"]
