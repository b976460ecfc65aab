"""AlexNet with batch normalization, for images of 32 pixels and of 227.

This file stands alone, so that it can lie beside the weights: `AutoModel.from_pretrained(folder, trust_remote_code=True)`
needs nothing but transformers 5.
"""

import math
from typing import Any, Literal

from transformers.utils.versions import require_version


require_version("transformers>=5", "The code of this model is written for it: pip install --upgrade transformers")

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple


# Kernel, stride and padding of the five convolutions, and those of the pooling that follows some of them.
CONVOLUTIONS = {
    "cifar": [(3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1)],
    "imagenet": [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)],
}
POOLING = {"cifar": (2, 2), "imagenet": (3, 2)}
IS_POOLED = [True, True, False, False, True]


@strict
class AlexNetConfig(PreTrainedConfig):
    """
    Configuration of an [`AlexNetModel`].

    Args:
        image_size (`int`, *optional*, defaults to 32):
            Side of the images, in pixels: the first fully connected layer takes a feature map of one size only.
        stem_type (`str`, *optional*, defaults to `"cifar"`):
            `"cifar"` (kernels of 3 pixels, stride 1, pooling by 2) or `"imagenet"` (kernels of 11, 5 and 3 pixels, stride 4
            at first, overlapping pooling).
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        conv_widths (`list[int]`, *optional*, defaults to `[64, 192, 384, 256, 256]`):
            Channels of the five convolutions.
        fc_width (`int`, *optional*, defaults to 1024):
            Width of the two fully connected layers, and so of the feature. That of the ImageNet layout is 4096.
    """

    model_type = "alexnet_bn"

    image_size: int = 32
    stem_type: Literal["cifar", "imagenet"] = "cifar"
    num_channels: int = 3
    conv_widths: list[int] | tuple[int, ...] = (64, 192, 384, 256, 256)
    fc_width: int = 1024

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.conv_widths = list(self.conv_widths)
        if len(self.conv_widths) != len(IS_POOLED) or min(self.conv_widths) < 1:
            raise ValueError(f"conv_widths={self.conv_widths} must hold the channels of five convolutions.")
        if self.fc_width < 1:
            raise ValueError(f"fc_width={self.fc_width} must be at least 1.")
        if self.map_size < 1:
            raise ValueError(f"image_size={self.image_size} is too small for the convolutions of an AlexNet.")

    @property
    def map_size(self) -> int:
        """Side of the feature map that the first fully connected layer takes."""
        side: int = self.image_size
        pool, pool_stride = POOLING[self.stem_type]
        for (kernel, stride, padding), is_pooled in zip(CONVOLUTIONS[self.stem_type], IS_POOLED, strict=True):
            side = (side + 2 * padding - kernel) // stride + 1
            side = (side - pool) // pool_stride + 1 if is_pooled else side
        return side


class AlexNetPreTrainedModel(PreTrainedModel):
    """Base of the models: PyTorch's own initialization."""

    config_class = AlexNetConfig
    base_model_prefix = "alexnet"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            assert module.bias is not None
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
            for name, value in values.items():
                init.constant_(getattr(module, name), value)


class AlexNetModel(AlexNetPreTrainedModel):
    """
    AlexNet (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014) with batch normalization
    in the place of local response normalization and dropout.

    Args:
        config ([`AlexNetConfig`]): Its configuration.
    """

    def __init__(self, config: AlexNetConfig):
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = config.num_channels
        convolutions = zip(config.conv_widths, CONVOLUTIONS[config.stem_type], IS_POOLED, strict=True)
        for width, (kernel, stride, padding), is_pooled in convolutions:
            layers += [
                nn.Conv2d(channels, width, kernel, stride, padding),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            layers += [nn.MaxPool2d(*POOLING[config.stem_type])] if is_pooled else []
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc1 = self._fully_connected(channels * config.map_size**2, config.fc_width)
        self.fc2 = self._fully_connected(config.fc_width, config.fc_width)
        self.post_init()

    @staticmethod
    def _fully_connected(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True))

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPoolingAndNoAttention:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Normalized images.

        Returns:
            `BaseModelOutputWithPoolingAndNoAttention`: `last_hidden_state` of shape
            `(batch_size, channels, map_size, map_size)`, the last feature map, and `pooler_output` of shape
            `(batch_size, fc_width)`, what the second fully connected layer makes of it.

        Raises:
            `ValueError`: the images have another size.
        """
        size = self.config.image_size
        if pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"The images have {tuple(pixel_values.shape[-2:])} pixels; this AlexNet takes {size}x{size}."
            )
        feature_map = self.features(pixel_values)
        pooled = self.fc2(self.fc1(feature_map.flatten(1)))
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=feature_map, pooler_output=pooled)


class AlexNetForImageClassification(AlexNetPreTrainedModel):
    """
    An [`AlexNetModel`] with a linear classifier on the pooled feature.

    Args:
        config ([`AlexNetConfig`]): Its configuration, with `num_labels`.
    """

    def __init__(self, config: AlexNetConfig):
        super().__init__(config)
        self.alexnet = AlexNetModel(config)
        self.classifier = nn.Linear(config.fc_width, config.num_labels or 0)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Normalized images.
            labels (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*):
                Class ids; or what the configuration's `problem_type` says.

        Returns:
            `ImageClassifierOutputWithNoAttention`: `logits` of shape `(batch_size, num_labels)`, and the `loss` if there are
            labels.
        """
        logits = self.classifier(self.alexnet(pixel_values).pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


AlexNetConfig.register_for_auto_class()
AlexNetModel.register_for_auto_class("AutoModel")
AlexNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
