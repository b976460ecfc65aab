"""ResNet for small images: the first convolution has 3x3 pixels and stride 1, and no pooling follows it.

This file stands alone, so that it can lie beside the weights: `AutoModel.from_pretrained(folder, trust_remote_code=True)`
needs nothing but transformers 5. Every other layer, and every name of a weight, is that of `transformers.ResNetModel`.
"""

import math

from transformers.utils.versions import require_version


require_version("transformers>=5", "The code of this model is written for it: pip install --upgrade transformers")

import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel
from transformers import initialization as init
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class CifarResNetConfig(ResNetConfig):
    """
    Configuration of a [`CifarResNetModel`]: the fields of [`~transformers.ResNetConfig`], and

    Args:
        image_size (`int`, *optional*, defaults to 32):
            Side of the images that it was trained on, in pixels; it takes others as well.
    """

    model_type = "cifar_resnet"

    image_size: int = 32


def _small_stem(config: ResNetConfig) -> ResNetConvLayer:
    return ResNetConvLayer(
        config.num_channels, config.embedding_size, kernel_size=3, stride=1, activation=config.hidden_act
    )


class CifarResNetModel(ResNetModel):
    """
    A `transformers.ResNetModel` whose stem keeps the resolution (He et al., "Deep Residual Learning for Image
    Recognition", section 4.2). Convolutions are initialized as PyTorch does by default.

    Args:
        config ([`CifarResNetConfig`]): Its configuration.
    """

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        self.embedder.embedder = _small_stem(config)
        self.embedder.pooler = nn.Identity()  # type: ignore[assignment]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
        else:
            super()._init_weights(module)


class CifarResNetForImageClassification(ResNetForImageClassification):
    """
    A [`CifarResNetModel`] with a linear classifier on the pooled feature.

    Args:
        config ([`CifarResNetConfig`]): Its configuration, with `num_labels`.
    """

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        self.resnet = CifarResNetModel(config)
        self.post_init()


CifarResNetConfig.register_for_auto_class()
CifarResNetModel.register_for_auto_class("AutoModel")
CifarResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
