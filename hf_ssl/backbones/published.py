"""Encoders that are trained as the class that they are published as."""

import copy

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetModel,
    TimmWrapperModel,
)

from .convnets import describe_convnet
from .filling import fill_from
from .modeling_alexnet import AlexNetConfig, AlexNetForImageClassification, AlexNetModel
from .modeling_cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification, CifarResNetModel
from .modeling_t2t_vit import T2TViTConfig, T2TViTForImageClassification, T2TViTModel
from .timm_encoders import TimmEncoder


# By the model type of their configuration.
ENCODERS: dict[str, type[PreTrainedModel]] = {
    "resnet": ResNetModel,
    "cifar_resnet": CifarResNetModel,
    "alexnet_bn": AlexNetModel,
    "t2t_vit": T2TViTModel,
    "timm_wrapper": TimmEncoder,
}
# Those that transformers lacks: their files lie beside the weights.
_OWN: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "cifar_resnet": (CifarResNetConfig, CifarResNetForImageClassification),
    "alexnet_bn": (AlexNetConfig, AlexNetForImageClassification),
    "t2t_vit": (T2TViTConfig, T2TViTForImageClassification),
}

for _model_type, (_config, _classifier) in _OWN.items():
    AutoConfig.register(_model_type, _config)
    AutoModel.register(_config, ENCODERS[_model_type])
    AutoModelForImageClassification.register(_config, _classifier)


def feature_size(config: PreTrainedConfig) -> int:
    """Width of an encoder's pooled feature, or of its tokens."""
    names = {"alexnet_bn": "fc_width", "timm_wrapper": "num_features"}
    sizes = getattr(config, "hidden_sizes", None)
    size: int = sizes[-1] if sizes else getattr(config, names.get(config.model_type, "hidden_size"))
    return size


def describe_encoder(config: PreTrainedConfig) -> str:
    """
    An encoder in words, for a model card.

    Args:
        config (`PreTrainedConfig`): Its configuration.

    Returns:
        `str`.
    """
    images = f"for {config.image_size}-pixel images"
    if config.model_type in ("resnet", "cifar_resnet", "alexnet_bn"):
        return describe_convnet(config)
    if config.model_type == "timm_wrapper":
        return f"timm's {config.architecture} {images}"
    if config.model_type == "swin":
        depths, windows = ", ".join(map(str, config.depths)), f"windows of {config.window_size} tokens"
        return f"Swin of depths {depths}, first width {config.embed_dim} and {windows}, {images}"
    layers = f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads"
    if config.model_type == "t2t_vit":
        return f"T2T-ViT with {layers} and {config.token_module} token modules, {images}"
    return f"ViT with {layers} and {config.patch_size}-pixel patches {images}"


def publish(encoder: PreTrainedModel) -> PreTrainedModel:
    """
    The encoder as it is published, built without touching the random state.

    Args:
        encoder (`PreTrainedModel`): The trained encoder; its batch norm may be one for several processes.

    Returns:
        `PreTrainedModel`: of the plain class, in eval mode, float32, on the same device, with its own copy of the weights.
    """
    config = copy.deepcopy(encoder.config)
    if config.model_type in _OWN:  # whose file lies beside the weights, and is that of the encoder
        classifier = _OWN[config.model_type][1]
        module = classifier.__module__.rpartition(".")[2]
        config.auto_map = {"AutoModelForImageClassification": f"{module}.{classifier.__name__}"}
    published_class = TimmWrapperModel if isinstance(encoder, TimmEncoder) else ENCODERS[config.model_type]
    with torch.device("meta"):
        published = published_class(config)
    fill_from(published, encoder)
    return published.eval()
