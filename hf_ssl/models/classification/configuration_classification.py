"""Configuration of a classifier in training."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from ...backbones import check_swin_config, check_vit_config
from ..base import SSLConfig


@strict
class ClassificationConfig(SSLConfig):
    """
    Configuration of a [`ClassifierForTraining`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder: any that transformers has a classifier for.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last layer, growing linearly from 0 (a ViT or a Swin).
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the loss.
        freeze_encoder (`bool`, *optional*, defaults to `False`):
            Whether only the classifier learns.
        ema_decay (`float`, *optional*):
            Keep a moving average of all weights, the teacher: `ema_decay` of it and the rest of the weights after each
            optimizer step. It is measured beside them and published in their place.
        num_labels (`int`):
            Classes.
    """

    model_type = "hf_ssl_classification"

    drop_path_rate: float | int = 0.0
    label_smoothing: float | int = 0.0
    freeze_encoder: bool = False
    ema_decay: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        kind = self.backbone_config.model_type
        if kind == "vit":
            check_vit_config(self.backbone_config, "fine-tuning")
        elif kind == "swin":
            check_swin_config(self.backbone_config)
        elif type(self.backbone_config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ValueError(
                f"transformers has no classifier for an encoder of type {kind}: measure it with a linear probe instead."
            )
        elif self.drop_path_rate:
            raise ValueError(
                f"drop_path_rate={self.drop_path_rate}: stochastic depth is here for ViT and Swin only, not for {kind}; set "
                "--drop_path_rate 0."
            )
        for name in ("drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in [0, 1); leave it out for no moving average.")


__all__ = ["ClassificationConfig"]
