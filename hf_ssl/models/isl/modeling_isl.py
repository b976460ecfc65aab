"""ISL: every image is a class of its own, and then shares it with the images that are found to be like it (Wang et al.,
"Instance Similarity Learning for Unsupervised Feature Representation", arXiv 2108.02721).

This is the training of the encoder. How neighbors are found in between is told in `rounds_isl.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...backbones import ENCODERS, feature_size, publish
from ...distributed import all_gather
from ...views import full_precision
from ..base import SSLOutput, SSLPreTrainedModel, Step, init_torch_default
from ..batch_norm import synchronize_batch_norm
from .configuration_isl import ISLConfig
from .memory_bank import MemoryBank, bank_softmax
from .proxies import Discriminator, Generator


if TYPE_CHECKING:
    from ...trainer import SSLTrainer
    from .rounds_isl import Rounds


BANK_NAME = "bank.safetensors"


@dataclass
class ISLOutput(SSLOutput):
    """
    What [`ISLForPreTraining`] returns: an [`SSLOutput`] and

    Args:
        features (`torch.Tensor` of shape `(batch_size, projection_dim)`, *optional*):
            What images are compared by, of unit length.
    """

    features: Tensor | None = None


class ISLStudent(nn.Module):
    """
    An encoder and the projection of its feature.

    Args:
        config ([`ISLConfig`]): The configuration.
    """

    def __init__(self, config: ISLConfig):
        super().__init__()
        self.backbone = ENCODERS[config.backbone_config.model_type](config.backbone_config)
        synchronize_batch_norm(self.backbone)
        self.projection = nn.Linear(feature_size(config.backbone_config), config.projection_dim)


class ISLForPreTraining(SSLPreTrainedModel):
    """
    ISL.

    What it compares images with belongs to the images and not to the model: [`~ISLForPreTraining.make_bank`] makes it, or
    [`~ISLForPreTraining.load_state`] reads it.

    Args:
        config ([`ISLConfig`]): Its configuration.
    """

    config_class = ISLConfig
    config: ISLConfig
    student: ISLStudent
    bank: MemoryBank | None
    # The encoders have neither attention nor activation checkpointing.
    supports_gradient_checkpointing = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = False

    def __init__(self, config: ISLConfig):
        super().__init__(config)
        self.student = ISLStudent(config)
        self.generator = Generator(config.projection_dim)
        self.discriminator = Discriminator(config.projection_dim)
        self.bank = None
        self.post_init()
        self.freeze()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The encoder initializes itself.
        if isinstance(module, nn.Linear):
            init_torch_default(module)

    def freeze(self) -> None:
        """Generator and discriminator are trained between the epochs, by optimizers of their own."""
        self.generator.requires_grad_(False)
        self.discriminator.requires_grad_(False)

    def make_bank(self, num_images: int, seed: int = 0) -> None:
        """
        Make a memory bank of random vectors, without neighbors.

        Args:
            num_images (`int`): Number of training images.
            seed (`int`, *optional*, defaults to 0): Seed of the vectors.
        """
        self.bank = MemoryBank(num_images, self.config.projection_dim, seed).to(self.device)

    def prepare_training(self, num_images: int, seed: int, fingerprint: str) -> None:
        self.make_bank(num_images, seed)
        self.held_fingerprint = fingerprint

    def save_state(self, folder: str | Path) -> None:
        if self.bank is not None:
            tensors = {"rows": self.bank.rows, "links": self.bank.neighbors.links}
            metadata = {"fingerprint": self.held_fingerprint} if self.held_fingerprint is not None else None
            save_file(tensors, Path(folder) / BANK_NAME, metadata=metadata)

    def load_state(self, folder: str | Path) -> None:
        path = Path(folder) / BANK_NAME
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            self.held_fingerprint = (file.metadata() or {}).get("fingerprint")
        tensors = load_file(path)
        self.make_bank(len(tensors["rows"]))
        assert self.bank is not None
        self.bank.rows.copy_(tensors["rows"])
        self.bank.neighbors.set_links(tensors["links"])

    def training_callback(self, trainer: "SSLTrainer") -> "Rounds":
        from .rounds_isl import Rounds

        return Rounds(trainer)

    def step_inputs(self, step: Step) -> dict[str, Any]:
        return {"index": step.index}

    def encode(self, pixel_values: Tensor) -> Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Normalized images.

        Returns:
            `torch.Tensor` of shape `(batch_size, projection_dim)`: features of unit length, in float32 at least.
        """
        # Convolutions are faster with channels last, on CPUs by a factor.
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        pooled = self.student.backbone(pixel_values).pooler_output.flatten(1)
        return self._normalize(self.student.projection(pooled))

    @staticmethod
    def _normalize(projected: Tensor) -> Tensor:
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return projected / projected.norm(dim=1, keepdim=True)

    def forward(self, pixel_values: Tensor, index: Tensor) -> ISLOutput:
        """
        In training, the bank is updated with the features of the batch, once its losses are computed.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
                A view of each image, normalized.
            index (`torch.Tensor` of shape `(batch_size,)`, int64):
                Which images of the training data these are.

        Returns:
            [`ISLOutput`]: the loss and its three terms, each over the whole batch: `instance` (of images without neighbors,
            to be told from all others), `neighbors` (of the others: to be told, with their neighbors, from the rest) and
            `hard_positive` (their divergence from the softmax of a neighbor); metric `with_neighbors`, the share of those.

        Raises:
            `ValueError`: there is no bank.
        """
        if self.bank is None:
            raise ValueError(
                "There is no memory bank to compare images with: call make_bank(number of training images) first, or "
                "load_state(folder) of a run."
            )
        features = self.encode(pixel_values)
        with full_precision(features.device):
            losses = self._losses(features, index)
            if self.training:
                self._update_bank(features.detach(), index)
        with_neighbors = (self.bank.neighbors.counts(index) > 0).float().mean()
        return ISLOutput(
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics={"with_neighbors": with_neighbors},
            features=features,
        )

    # A compiled graph would keep the bank for the backward pass, and it changes before that.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _losses(self, features: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The terms of the loss (sections 3.2 and 3.4 of the paper), as means over the batch."""
        assert self.bank is not None
        bank, config = self.bank, self.config
        neighbored = bank.neighbors.counts(index) > 0
        references = None
        if len(bank.neighbors):
            most_similar = config.hard_positive == "most_similar"
            references = bank.rows[bank.choose_neighbor(index, most_similar)]
        of_all, divergence = bank_softmax(features, bank.rows, config.temperature, references)
        surprise = of_all - bank.own_log_probability(index, features, config.temperature)
        zero = torch.zeros_like(surprise)
        return {
            "instance": torch.where(neighbored, zero, surprise).mean(),
            "neighbors": torch.where(neighbored, surprise, zero).mean(),
            "hard_positive": config.hard_positive_weight * torch.where(neighbored, divergence, zero).mean(),
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _update_bank(self, features: Tensor, index: Tensor) -> None:
        """With the batches of all processes."""
        assert self.bank is not None
        self.bank.update(all_gather(index), all_gather(features), self.config.bank_momentum)

    def project(self, features: Tensor, which: Literal["student", "teacher"] | None = None) -> Tensor:
        projected: Tensor = self.student.projection(features)
        return projected

    def held_features(self) -> Tensor | None:
        if self.bank is None or not self.bank.is_filled():
            return None
        return self.bank.rows

    def export_encoder(self, which: Literal["student", "teacher"] | None = None) -> PreTrainedModel:
        if which == "teacher":
            raise ValueError("ISL has no teacher; its encoder is the student.")
        return publish(self.student.backbone)


__all__ = ["BANK_NAME", "ISLForPreTraining", "ISLOutput"]
