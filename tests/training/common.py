"""Tiny runs: the models and the trainer that the training and fault tests share."""

import hashlib
from typing import Any

import torch
from transformers import SwinConfig, TimmWrapperConfig, ViTConfig

from hf_ssl import (
    APSConfig,
    APSForPreTraining,
    ISLConfig,
    ISLForPreTraining,
    PatchMixConfig,
    PatchMixForPreTraining,
    PWSelfConfig,
    PWSelfForPreTraining,
    RelViTConfig,
    RelViTForPreTraining,
)
from hf_ssl.backbones.modeling_cifar_resnet import CifarResNetConfig
from hf_ssl.backbones.modeling_t2t_vit import T2TViTConfig
from hf_ssl.data import TensorSource
from hf_ssl.models.aps import APSViews, APSViewsConfig
from hf_ssl.models.isl import ISLViews, ISLViewsConfig
from hf_ssl.models.patchmix import PatchMixViews, PatchMixViewsConfig
from hf_ssl.models.pw_self import PWSelfViews, PWSelfViewsConfig
from hf_ssl.models.relvit import RelViTViews, RelViTViewsConfig
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import View

from .toy import ToyConfig, ToyForPreTraining, ToyViews


IMAGES = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_backbone(**overrides: Any) -> ViTConfig:
    return ViTConfig(
        **{
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 4,
            "pooler_act": "linear",
            **overrides,
        }
    )


def make_model(**overrides: Any) -> RelViTForPreTraining:
    """RelViT on our trunk, with stochastic depth."""
    torch.manual_seed(0)
    return RelViTForPreTraining(RelViTConfig(backbone_config=make_backbone(), **{"drop_path_rate": 0.2, **overrides}))


def make_swin(**overrides: Any) -> RelViTForPreTraining:
    """RelViT with a Swin, whose windows are shifted in both of its stages, and with stochastic depth."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 2}
    backbone = SwinConfig(**sizes, image_size=16)
    return RelViTForPreTraining(RelViTConfig(backbone_config=backbone, **{"drop_path_rate": 0.2, **overrides}))


def make_t2t(dropout: float = 0.1, **overrides: Any) -> RelViTForPreTraining:
    """RelViT with a T2T-ViT, and with the dropout of its performers."""
    torch.manual_seed(0)
    sizes = {"token_dim": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = T2TViTConfig(**sizes, image_size=64, token_dropout=dropout)
    return RelViTForPreTraining(RelViTConfig(backbone_config=backbone, **overrides))


def make_timm(**overrides: Any) -> RelViTForPreTraining:
    """RelViT with a vision transformer of timm that has no class token; its pooling is not trained."""
    torch.manual_seed(0)
    model_args = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 0}
    backbone = TimmWrapperConfig(
        architecture="vit_little_patch16_reg4_gap_256",
        model_args=model_args,
        **{"image_size": 16, "patch_size": 4, "num_features": 24, "num_prefix_tokens": 0, "num_labels": 0},
    )
    return RelViTForPreTraining(RelViTConfig(backbone_config=backbone, **overrides))


def make_toy(dropout: float = 0.1, **overrides: Any) -> ToyForPreTraining:
    """A student and a teacher on the stock ViT, with dropout."""
    torch.manual_seed(0)
    return ToyForPreTraining(ToyConfig(backbone_config=make_backbone(hidden_dropout_prob=dropout), **overrides))


def make_patchmix(**overrides: Any) -> PatchMixForPreTraining:
    """PatchMix with a teacher, small views and stochastic depth."""
    torch.manual_seed(0)
    small = {"projection_dim": 8, "projection_hidden_dim": 16, "num_local_views": 2, "drop_path_rate": 0.2}
    return PatchMixForPreTraining(PatchMixConfig(backbone_config=make_backbone(), **{**small, **overrides}))


def make_aps(**overrides: Any) -> APSForPreTraining:
    """APS as the authors have it, but small: four of 16 patches, four steps a batch."""
    torch.manual_seed(0)
    backbone = make_backbone(qkv_bias=False, layer_norm_eps=1e-5)
    return APSForPreTraining(
        APSConfig(backbone_config=backbone, **{"projection_dim": 8, "projection_hidden_dim": 16, **overrides})
    )


def make_pw_self(**overrides: Any) -> PWSelfForPreTraining:
    """PW-Self with small views and stochastic depth; batches are cropped alike, as the authors have it."""
    torch.manual_seed(0)
    small = {"head_hidden_dim": 16, "head_bottleneck_dim": 8, "num_prototypes": 24, "num_local_views": 2}
    small["drop_path_rate"] = 0.2
    return PWSelfForPreTraining(PWSelfConfig(backbone_config=make_backbone(), **{**small, **overrides}))


def make_isl(**overrides: Any) -> ISLForPreTraining:
    """ISL with a ResNet of four blocks, two rounds, three epochs of the generator in each, and loose thresholds."""
    torch.manual_seed(0)
    # Of 4 channels, channels last, torch 2.15 writes the weight gradient of a strided 1x1 convolution beyond its memory, on
    # CPUs without AVX-512.
    backbone = CifarResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=16
    )
    small = {
        **{"projection_dim": 8, "num_rounds": 2, "num_negatives": 6, "gan_max_epochs": 3, "gan_min_steps": 0},
        **{"gan_learning_rate": 1e-2, "score_threshold": 0.2, "similarity_threshold": 0.3, "links_per_proxy": 2},
    }
    return ISLForPreTraining(ISLConfig(backbone_config=backbone, **{**small, **overrides}))


def make_trainer(
    output_dir: Any,
    model: Any = None,
    monitor: Any = None,
    images: torch.Tensor = IMAGES,
    views: Any = None,
    **args: Any,
) -> SSLTrainer:
    model = make_model() if model is None else model
    training_args = SSLTrainingArguments(
        output_dir=str(output_dir),
        **{
            "use_cpu": True,
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **args,
        },
    )
    if views is None and isinstance(model, ToyForPreTraining):
        views = ToyViews(training_args.seed)
    elif views is None and isinstance(model, PatchMixForPreTraining):
        views = PatchMixViews(PatchMixViewsConfig(local=View(size=8, blur=0.5)), model.config, training_args.seed)
    elif views is None and isinstance(model, APSForPreTraining):
        views = APSViews(APSViewsConfig(), model.config, training_args.seed)
    elif views is None and isinstance(model, PWSelfForPreTraining):
        views = PWSelfViews(PWSelfViewsConfig(local=View(size=8), canvas=16), model.config, training_args.seed)
    elif views is None and isinstance(model, ISLForPreTraining):
        views = ISLViews(ISLViewsConfig(), model.config, training_args.seed)
    elif views is None:
        views = RelViTViews(RelViTViewsConfig(), model.config, training_args.seed)
    return SSLTrainer(model, training_args, TensorSource(images), views, monitor)


def losses(trainer: SSLTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def states_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def outcome(trainer: SSLTrainer) -> dict[str, Any]:
    """What a run came to, in a form that can be compared bit for bit and sent between processes."""
    logs = [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in trainer.state.log_history
    ]
    optimizer = trainer.optimizer.state_dict()
    tensors = {f"{i}.{name}": value for i, state in optimizer["state"].items() for name, value in state.items()}
    groups = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer["param_groups"]
    ]
    return {
        "weights": {
            name: _digest(tensor) for name, tensor in [*trainer.model.state_dict().items(), *_bank(trainer.model)]
        },
        "optimizer": {name: _digest(tensor) for name, tensor in tensors.items()},
        "groups": repr(groups),
        "scheduler": repr(sorted(trainer.lr_scheduler.state_dict().items(), key=str)),
        "logs": logs,
        "random": _digest(torch.get_rng_state()),
    }


def _bank(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """ISL's memory bank and links, which are no part of the weights."""
    return [(name, buffer) for name, buffer in model.named_buffers() if name.startswith("bank.")]


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
