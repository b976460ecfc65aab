"""Convolutional encoders: transformers' ResNet, ResNet for small images, and AlexNet."""

from typing import Any

from transformers import PreTrainedConfig, ResNetConfig

from .modeling_alexnet import AlexNetConfig
from .modeling_cifar_resnet import CifarResNetConfig


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
