"""Configuration of ISL (Wang et al., 2021, arXiv 2108.02721)."""

import math
from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from ..base import Feature, SSLConfig


_ENCODER_TYPES = ("resnet", "cifar_resnet", "alexnet_bn", "timm_wrapper")


@strict
class ISLConfig(SSLConfig):
    """
    Configuration of an [`ISLForPreTraining`]: the encoder, the losses of its training, and the rounds in which neighbors are
    found.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder: a ResNet, a ResNet for small images, an AlexNet, or one of timm. It has a field
            `image_size`.
        projection_dim (`int`, *optional*, defaults to 128):
            Length of the vectors that images are compared by.
        temperature (`float`, *optional*, defaults to 0.1):
            What their similarities are divided by.
        bank_momentum (`float`, *optional*, defaults to 0.5):
            Weight of what the memory bank holds of an image against its new feature.
        hard_positive_weight (`float`, *optional*, defaults to 0.5):
            Weight of the divergence from the softmax of one of the neighbors.
        hard_positive (`str`, *optional*, defaults to `"most_similar"`):
            Which neighbor that is: the `"most_similar"`, as the authors' code has it, or the `"least_similar"`, which is
            the hard one.
        num_rounds (`int`, *optional*, defaults to 4):
            Times that the encoder is trained and neighbors are found thereafter; `num_train_epochs` is shared out evenly.
        final_backbone_stage (`bool`, *optional*, defaults to `False`):
            Whether the encoder is trained once more with the neighbors that are found last. The authors' code never uses
            them.
        num_negatives (`int`, *optional*, defaults to 4096):
            Images drawn for each image when neighbors are looked for; the most similar of them is its negative.
        positive_from (`str`, *optional*, defaults to `"own_row"`):
            Positive of an image: what the bank holds of the image itself (`"own_row"`, as the authors' code has it), or of
            one of its `"neighbors"`.
        gan_learning_rate (`float`, *optional*, defaults to 1e-4):
            Learning rate of generator and discriminator (Adam).
        gan_betas (`list[float]`, *optional*, defaults to `[0.9, 0.999]`):
            Betas of their optimizers.
        gan_stop (`str`, *optional*, defaults to `"quality"`):
            When their training ends: by the `"quality"` of the links that they would make, judged without labels, with the
            best weights restored; by the rule of the authors' code, on losses (`"official"`, last weights); or after
            `gan_max_epochs` (`"epochs"`, last weights).
        gan_max_epochs (`int`, *optional*, defaults to 200):
            Epochs after which it ends in any case.
        gan_min_steps (`int`, *optional*, defaults to 3000):
            Steps, over all rounds, before which `"quality"` does not end it.
        gan_patience (`int`, *optional*, defaults to 5):
            Epochs without a better quality after which `"quality"` ends it.
        agreement_window (`float`, *optional*, defaults to 0.02):
            A link agrees with the encoder if it leads to one of the images that are nearest to its image, this share of all.
        score_threshold (`float`, *optional*, defaults to 0.5):
            The discriminator's score that an image's proxy has to exceed.
        similarity_threshold (`float`, *optional*, defaults to 0.6):
            Similarity to the proxy that a neighbor has to exceed at least; more, where the discriminator is less sure.
        links_per_proxy (`int`, *optional*, defaults to 10):
            Images next to a proxy that may become neighbors.
        neighbors_per_round (`float`, *optional*, defaults to 0.5):
            Mining ends when images have more neighbors in the mean than this times the number of the round, from 1.
        mining_max_passes (`int`, *optional*, defaults to 20):
            Passes over the images after which mining ends in any case.
    """

    model_type = "isl"
    modes: ClassVar[dict[str, dict[str, Any]]] = {"rounds": {}}
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="cifar_resnet")
    }

    feature: Feature = "pooled"
    projection_dim: int = 128
    temperature: float | int = 0.1
    bank_momentum: float | int = 0.5
    hard_positive_weight: float | int = 0.5
    hard_positive: Literal["most_similar", "least_similar"] = "most_similar"
    num_rounds: int = 4
    final_backbone_stage: bool = False
    num_negatives: int = 4096
    positive_from: Literal["own_row", "neighbors"] = "own_row"
    gan_learning_rate: float | int = 1e-4
    gan_betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    gan_stop: Literal["quality", "official", "epochs"] = "quality"
    gan_max_epochs: int = 200
    gan_min_steps: int = 3000
    gan_patience: int = 5
    agreement_window: float | int = 0.02
    score_threshold: float | int = 0.5
    similarity_threshold: float | int = 0.6
    links_per_proxy: int = 10
    neighbors_per_round: float | int = 0.5
    mining_max_passes: int = 20

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        kind = self.backbone_config.model_type
        if kind not in _ENCODER_TYPES:
            raise ValueError(
                f"backbone_config.model_type={kind!r} is not supported by ISL; use one of {', '.join(_ENCODER_TYPES)} "
                "(--backbone resnet18, resnet50, alexnet or timm/NAME)."
            )
        if not isinstance(getattr(self.backbone_config, "image_size", None), int):
            raise ValueError("backbone_config needs image_size, the side of the images in pixels.")
        if self.feature != "pooled":
            raise ValueError(f"feature={self.feature!r}: these encoders have no tokens, only 'pooled'.")
        for name in ("temperature", "gan_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        if self.projection_dim < 2:  # the discriminator halves it
            raise ValueError(f"projection_dim={self.projection_dim} must be at least 2.")
        for name in (
            *("num_rounds", "num_negatives", "gan_max_epochs", "gan_patience", "links_per_proxy"),
            "mining_max_passes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("hard_positive_weight", "gan_min_steps", "neighbors_per_round"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        if not 0 <= self.bank_momentum < 1:
            raise ValueError(f"bank_momentum={self.bank_momentum} must lie in [0, 1).")
        if not 0 < self.agreement_window <= 1:
            raise ValueError(f"agreement_window={self.agreement_window} must lie in (0, 1].")
        for name in ("score_threshold", "similarity_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if len(self.gan_betas) != 2 or not all(0 <= beta < 1 for beta in self.gan_betas):
            raise ValueError(f"gan_betas={self.gan_betas} must be two numbers in [0, 1).")

    @property
    def num_backbone_stages(self) -> int:
        """Times that the encoder is trained in a run."""
        return self.num_rounds + self.final_backbone_stage


__all__ = ["ISLConfig"]
