"""What an encoder should be better than: the pixels themselves."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..hub.export import evaluation_processor
from .encoders import LoadedEncoder
from .features import flatten_pixels


class PixelsConfig(PreTrainedConfig):
    """Configuration of [`PixelsModel`], which has no options."""

    model_type = "hf_ssl_pixels"


class PixelsModel(PreTrainedModel):
    """
    An encoder whose feature of an image is its pixels; larger images are shrunk to 32 pixels first.

    Args:
        config ([`PixelsConfig`]): Its configuration.
    """

    config_class = PixelsConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PixelsConfig):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)  # it has a device then

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
                Processed images.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` of shape `(batch_size, 3 * height * width)`, of at most 32 x 32
            pixels.
        """
        return BaseModelOutputWithPooling(pooler_output=flatten_pixels(pixel_values) * self.scale)


def pixels(image_size: int) -> LoadedEncoder:
    """
    The pixels of images as their features.

    Args:
        image_size (`int`): Side that images are resized to, in pixels.

    Returns:
        [`LoadedEncoder`]
    """
    processor = evaluation_processor(image_size, [0.5] * 3, [0.5] * 3, crop_ratio=1.0)
    return LoadedEncoder(PixelsModel(PixelsConfig()), processor, "pixels", feature="pooled")


__all__ = ["PixelsConfig", "PixelsModel", "pixels"]
