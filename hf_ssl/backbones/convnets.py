"""Convolutional encoders: transformers' ResNet, ResNet for small images, and AlexNet.

They are trained as the classes that they are published as.
"""

import copy
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)

from .modeling_alexnet import AlexNetConfig, AlexNetForImageClassification, AlexNetModel
from .modeling_cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification, CifarResNetModel


ENCODERS: dict[str, type[PreTrainedModel]] = {
    "resnet": ResNetModel,
    "cifar_resnet": CifarResNetModel,
    "alexnet_bn": AlexNetModel,
}
_CLASSIFIERS: dict[str, type[PreTrainedModel]] = {
    "cifar_resnet": CifarResNetForImageClassification,
    "alexnet_bn": AlexNetForImageClassification,
}
_RESNET18 = {"layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
# `resnet-micro` is ours, for a quick start on a laptop: ResNet-18, a quarter as wide.
RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": _RESNET18,
    "resnet50": {
        "layer_type": "bottleneck",
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
    },
    "resnet-micro": {**_RESNET18, "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128]},
}
CONVNETS = (*RESNETS, "alexnet")
# From this size on, images are photos, and the layout is the one for ImageNet.
_PHOTO_SIZE = 128

AutoConfig.register("cifar_resnet", CifarResNetConfig)
AutoConfig.register("alexnet_bn", AlexNetConfig)
AutoModel.register(CifarResNetConfig, CifarResNetModel)
AutoModel.register(AlexNetConfig, AlexNetModel)
AutoModelForImageClassification.register(CifarResNetConfig, CifarResNetForImageClassification)
AutoModelForImageClassification.register(AlexNetConfig, AlexNetForImageClassification)


def convnet_config(name: str, image_size: int) -> PreTrainedConfig:
    """
    The configuration of a convolutional encoder by name. Images of less than 128 pixels are small ones, for which the first
    layers keep the resolution.

    Args:
        name (`str`): One of `CONVNETS`.
        image_size (`int`): Side of the images, in pixels.

    Returns:
        `PreTrainedConfig`: with a field `image_size`.

    Raises:
        `ValueError`: the images are too small.
    """
    small = image_size < _PHOTO_SIZE
    if name == "alexnet":
        layout: dict[str, Any] = {"stem_type": "cifar"} if small else {"stem_type": "imagenet", "fc_width": 4096}
        return AlexNetConfig(image_size=image_size, **layout)
    options: dict[str, Any] = {**RESNETS[name], "image_size": image_size}
    return (CifarResNetConfig if small else ResNetConfig)(**options)


def feature_size(config: PreTrainedConfig) -> int:
    """Width of an encoder's pooled feature."""
    size: int = config.fc_width if config.model_type == "alexnet_bn" else config.hidden_sizes[-1]
    return size


def describe_convnet(config: PreTrainedConfig) -> str:
    """
    An encoder in words, for a model card.

    Args:
        config (`PreTrainedConfig`): Its configuration.

    Returns:
        `str`.
    """
    images = f"{config.image_size}-pixel images"
    if config.model_type == "alexnet_bn":
        widths = f"convolutions of {', '.join(map(str, config.conv_widths))} channels"
        return f"AlexNet with batch normalization, {widths} and a feature of {config.fc_width}, for {images}"
    depth = 2 + sum(config.depths) * (2 if config.layer_type == "basic" else 3)
    stem = " with a stem for small images" if config.model_type == "cifar_resnet" else ""
    return f"ResNet-{depth} of widths {', '.join(map(str, config.hidden_sizes))}{stem}, for {images}"


def publish_convnet(encoder: PreTrainedModel) -> PreTrainedModel:
    """
    The encoder as it is published, built without touching the random state.

    Args:
        encoder (`PreTrainedModel`): The trained encoder; its batch norm may be one for several processes.

    Returns:
        `PreTrainedModel`: of the plain class, in eval mode, float32, on the same device, with its own copy of the weights.
    """
    config = copy.deepcopy(encoder.config)
    if config.model_type in _CLASSIFIERS:  # whose file lies beside the weights, and is that of the encoder
        classifier = _CLASSIFIERS[config.model_type]
        module = classifier.__module__.rpartition(".")[2]
        config.auto_map = {"AutoModelForImageClassification": f"{module}.{classifier.__name__}"}
    with torch.device("meta"):
        published = ENCODERS[config.model_type](config)
    weights = {
        name: tensor.detach().float().clone() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in encoder.state_dict().items()
    }
    published.load_state_dict(weights, strict=True, assign=True)
    return published.eval()
