"""RelViT: patch tokens learn where their neighbors are (Camporese et al., BMVC 2022, arXiv 2206.00481).

Every patch token solves puzzles about the grid that it lies on: in which of nine directions it lies from every other
patch, and which cell it came from. What a batch is made of is told in `views_relvit.py`.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...backbones import (
    ENCODERS,
    SwinTrunk,
    TimmEncoder,
    ViTTrunk,
    feature_size,
    publish,
    publish_swin,
    publish_vit,
)
from ..base import SSLOutput, SSLPreTrainedModel, Step, drop_path_keep, init_encoder_weights, init_torch_default
from ..batch_norm import synchronize_batch_norm
from .configuration_relvit import RelViTConfig


NUM_RELATIONS = 9


def grid_coordinates(order: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Original row and column of the patch in each slot; `order` and results `(batch_size, num_patches)`."""
    return order // side, order % side


def relation_targets(order: Tensor, side: int) -> Tensor:
    """
    Where patch i lies as seen from patch j, as one of nine classes: 3 · (sign of the row offset + 1) + (sign of the
    column offset + 1), so 0 is up-left, 4 the same cell and 8 down-right (paper, section 3.1).

    Args:
        order (`torch.Tensor` of shape `(batch_size, num_patches)`, int64):
            Original cell of the patch in each slot.
        side (`int`):
            Cells on a side of the grid.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, num_patches)`, int64: rows i, columns j.
    """
    row, column = grid_coordinates(order, side)
    vertical = (row[:, :, None] - row[:, None, :]).sign()
    horizontal = (column[:, :, None] - column[:, None, :]).sign()
    return 3 * (vertical + 1) + horizontal + 1


def distance_targets(order: Tensor, side: int) -> Tensor:
    """
    Euclidean distance between cells, scaled to [-1, 1]: -1 on the diagonal, 1 between opposite corners.

    Args:
        order (`torch.Tensor` of shape `(batch_size, num_patches)`, int64): Original cell of the patch in each slot.
        side (`int`): Cells on a side of the grid.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, num_patches)`, float32.
    """
    place = torch.stack(grid_coordinates(order, side), dim=-1).float()
    offset = place[:, :, None] - place[:, None, :]
    distance = torch.linalg.norm(offset, dim=-1)
    return 2 * distance / ((side - 1) * 2**0.5) - 1


def angle_targets(order: Tensor, side: int) -> Tensor:
    """
    Angle under which two cells are seen from a distant origin (half a grid up and left of the first cell), scaled to
    [-1, 1]. It is not the direction from one patch to the other; that is how the original defines it. Its 1e-4 in the
    denominator puts collinear cells slightly above -1.

    Args:
        order (`torch.Tensor` of shape `(batch_size, num_patches)`, int64): Original cell of the patch in each slot.
        side (`int`): Cells on a side of the grid.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, num_patches)`, float32.
    """
    identity = torch.arange(side * side, device=order.device)
    row, column = grid_coordinates(identity, side)
    vectors = torch.stack([column, row], dim=-1).float() + side / 2
    norm = torch.linalg.norm(vectors, dim=-1)
    # A sum of products rather than a matrix product: arccos near 1 magnifies the rounding of reduced-precision products.
    dot = (vectors[:, None] * vectors[None]).sum(-1)
    angle = torch.arccos(dot / (norm[:, None] * norm[None] + 1e-4)) / torch.pi
    angle = angle.masked_fill(torch.eye(side * side, dtype=torch.bool, device=order.device), 0.0)
    angle = 2 * angle / angle.max() - 1
    return angle[order[:, :, None], order[:, None, :]]


class PairwiseHead(nn.Module):
    """
    Bilinear scorers of patch pairs: `⟨W_q z_i, W_k z_j⟩ / √d` for each scorer, without bias.

    Args:
        hidden_size (`int`): Width of the tokens.
        num_scorers (`int`): Independent scorers; they share the width among them.
    """

    def __init__(self, hidden_size: int, num_scorers: int):
        super().__init__()
        self.num_scorers = num_scorers
        self.head_dim = hidden_size // num_scorers
        self.query = nn.Linear(hidden_size, num_scorers * self.head_dim, bias=False)
        self.key = nn.Linear(hidden_size, num_scorers * self.head_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `(batch_size, num_patches, hidden_size)` to scores `(batch_size, num_scorers, num_patches, num_patches)`."""
        shape = (*tokens.shape[:2], self.num_scorers, self.head_dim)
        query = self.query(tokens).view(shape).transpose(1, 2) * self.head_dim**-0.5
        key = self.key(tokens).view(shape).transpose(1, 2)
        return query @ key.mT


def relation_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0, dropout: float = 0.0) -> Tensor:
    """
    Cross-entropy over the nine directions, mean over all pairs, the diagonal included.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 9, num_patches, num_patches)`): Scores.
        targets (`torch.Tensor` of shape `(batch_size, num_patches, num_patches)`, int64): See [`relation_targets`].
        smoothing (`float`, *optional*, defaults to 0.0): Label smoothing.
        dropout (`float`, *optional*, defaults to 0.0): Dropout on the pairs' smoothed losses.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    if not smoothing or not dropout:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    return F.dropout(F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none"), dropout).mean()


def make_encoder(config: RelViTConfig) -> nn.Module:
    """The encoder as it is trained."""
    kind = config.backbone_config.model_type
    if kind == "vit":
        assert config.use_position_embeddings is not None
        return ViTTrunk(
            config.backbone_config,
            drop_path_rate=config.drop_path_rate,
            use_position_embeddings=config.use_position_embeddings,
            position_interpolation=config.position_interpolation,
            projection_dropout=config.projection_dropout,
        )
    if kind == "swin":
        return SwinTrunk(config.backbone_config, drop_path_rate=config.drop_path_rate)
    encoder = ENCODERS[kind](config.backbone_config)
    synchronize_batch_norm(encoder)  # which some of timm's have
    return encoder


class RelViTForPreTraining(SSLPreTrainedModel):
    """
    RelViT.

    Args:
        config ([`RelViTConfig`]): Its configuration.
    """

    config_class = RelViTConfig
    config: RelViTConfig

    def __init__(self, config: RelViTConfig):
        super().__init__(config)
        width, num_patches = feature_size(config.backbone_config), config.grid_size**2
        self.student = make_encoder(config)
        tasks = config.tasks
        self.relation_head = PairwiseHead(width, NUM_RELATIONS) if "relations" in tasks else None
        self.position_head = nn.Linear(width, num_patches) if "positions" in tasks else None
        self.distance_head = PairwiseHead(width, 1) if "distances" in tasks else None
        self.angle_head = PairwiseHead(width, 1) if "angles" in tasks else None
        num_labels: int = config.num_labels or 0
        self.classifier = nn.Linear(width, num_labels) if "classification" in tasks else None
        self.post_init()
        self.freeze()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Heads keep PyTorch's own initialization. T2T-ViT and timm's encoders initialize themselves.
        if self._is_in_a_head(module):
            if isinstance(module, nn.Linear):
                init_torch_default(module)
        else:
            init_encoder_weights(module)

    def _is_in_a_head(self, module: nn.Module) -> bool:
        # A Swin's class head is its own in the authors' code, and begins as its other layers do.
        encoder = ("student", "classifier") if isinstance(self.student, SwinTrunk) else ("student",)
        return any(
            module is part for name, head in self.named_children() if name not in encoder for part in head.modules()
        )

    def freeze(self) -> None:
        """Freeze what gets no gradient, for which DDP would wait: the position table where positions are off, the pooling of
        timm's encoders where nothing is classified."""
        if isinstance(self.student, ViTTrunk):
            self.student.embeddings.position_embeddings.requires_grad_(self.student.use_position_embeddings)
        elif isinstance(self.student, TimmEncoder) and self.classifier is None:
            for parameter in self.student.pooling_parameters():
                parameter.requires_grad_(False)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.student, TimmEncoder):  # whose layers are not those of transformers
            self.student._set_gradient_checkpointing(enable)
        else:
            super()._set_gradient_checkpointing(enable, *args, **kwargs)

    def step_inputs(self, step: Step) -> dict[str, Tensor]:
        if not self.config.drop_path_rate:
            return {}
        rates: Any = self.student.drop_path_rates
        return {"drop_path_keep": drop_path_keep(step.samples, rates)}

    def encode(self, pixel_values: Tensor, drop_path_keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
                Normalized images.
            drop_path_keep (`torch.Tensor` of shape `(depth, 2, batch_size)`, bool, *optional*):
                Branches that stochastic depth keeps.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: all tokens of the encoder; what is classified (the class token;
            of a Swin, the mean of the tokens), of shape `(batch_size, width)`; and the patches that the tasks are about, of
            shape `(batch_size, num_patches, width)`.
        """
        if isinstance(self.student, ViTTrunk):
            tokens = self.student(pixel_values, self._attention_mask(pixel_values), drop_path_keep)
            return tokens, tokens[:, 0], tokens[:, 1:]
        if isinstance(self.student, SwinTrunk):
            tokens = self.student(pixel_values, drop_path_keep)
            return tokens, tokens.mean(1), tokens
        output = self.student(pixel_values)
        tokens = output.last_hidden_state
        if self.config.backbone_config.model_type == "t2t_vit":
            return tokens, tokens[:, 0], pool_tokens(tokens[:, 1:])
        return tokens, output.pooler_output, tokens[:, self.config.backbone_config.num_prefix_tokens :]

    def forward(
        self,
        pixel_values: Tensor,
        patch_order: Tensor | None = None,
        labels: Tensor | None = None,
        drop_path_keep: Tensor | None = None,
    ) -> SSLOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
                Normalized images of `config.grid_size` × `config.grid_size` patches.
            patch_order (`torch.Tensor` of shape `(batch_size, num_patches)`, int64, *optional*):
                Original cell of the patch in each slot, where the patches were shuffled. Unset, they were not.
            labels (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*):
                Classes, for the classification task.
            drop_path_keep (`torch.Tensor` of shape `(depth, 2, batch_size)`, bool, *optional*):
                Branches that stochastic depth keeps, see [`~RelViTForPreTraining.step_inputs`].

        Returns:
            [`SSLOutput`]: the unweighted sum of the tasks' losses, each loss and accuracy by name.

        Raises:
            `ValueError`: the images do not have the grid of the configuration, or labels are missing.
        """
        tokens, classified, patches = self.encode(pixel_values, drop_path_keep)
        side = self.config.grid_size
        if patches.shape[1] != side * side:
            raise ValueError(
                f"The images have {patches.shape[1]} patches, but the heads were built for a grid of {side}x{side}. "
                "Change image_size, patch_size or mega_patches."
            )
        if self.config.add_class_token_to_patches:
            patches = patches + classified[:, None]
        # Unshuffled, all images share one target.
        order = patch_order if patch_order is not None else torch.arange(side * side, device=tokens.device)[None]

        losses, metrics, logits = {}, {}, {}
        if self.relation_head is not None:
            scores = logits["relations"] = self.relation_head(patches)
            target = relation_targets(order, side).expand(len(scores), -1, -1)
            dropout = self.config.relation_loss_dropout if self.training else 0.0
            losses["relations"] = relation_loss(scores, target, self.config.relation_label_smoothing, dropout)
            metrics["accuracy_relations"] = accuracy(scores, target)
        if self.position_head is not None:
            scores = logits["positions"] = self.position_head(patches).transpose(1, 2)
            target = order.expand(len(scores), -1)
            losses["positions"] = F.cross_entropy(scores, target)
            metrics["accuracy_positions"] = accuracy(scores, target)
        if self.distance_head is not None:
            scores = logits["distances"] = self.distance_head(patches)
            losses["distances"] = F.mse_loss(scores[:, 0], distance_targets(order, side).expand(len(scores), -1, -1))
        if self.angle_head is not None:
            scores = logits["angles"] = self.angle_head(patches)
            losses["angles"] = F.mse_loss(scores[:, 0], angle_targets(order, side).expand(len(scores), -1, -1))
        if self.classifier is not None:
            if labels is None:
                raise ValueError("The classification task needs labels; use a labeled dataset or leave the task out.")
            scores = logits["classification"] = self.classifier(classified)
            losses["classification"] = F.cross_entropy(scores, labels)
            metrics["accuracy_classification"] = accuracy(scores, labels)
        loss = torch.stack(list(losses.values())).sum()
        return SSLOutput(loss=loss, losses=losses, metrics=metrics, logits=logits, last_hidden_state=tokens)

    def _attention_mask(self, pixel_values: Tensor) -> Tensor | None:
        """The attention pattern as a mask of shape `(1, 1, sequence_length, sequence_length)`, or None for full."""
        if self.config.attention_pattern == "full":
            return None
        patch_size = self.config.cell_size
        length = 1 + (pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size)
        mask = torch.full((length, length), -torch.inf, device=pixel_values.device).fill_diagonal_(0)
        if self.config.attention_pattern == "diagonal_class_row":
            mask[0] = 0
        return mask[None, None].to(self.dtype)

    def export_encoder(self, which: Literal["student", "teacher"] | None = None) -> PreTrainedModel:
        if which == "teacher":
            raise ValueError("RelViT has no teacher; its encoder is the student.")
        if isinstance(self.student, ViTTrunk):
            return publish_vit(self.student)
        if isinstance(self.student, SwinTrunk):
            return publish_swin(self.student)
        assert isinstance(self.student, PreTrainedModel)
        return publish(self.student)


def pool_tokens(tokens: Tensor) -> Tensor:
    """
    Half as many tokens in each direction: means of 3 x 3 tokens, every other one, fewer at the border.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, side * side, width)`): Tokens, row by row.

    Returns:
        `torch.Tensor` of shape `(batch_size, (side // 2) ** 2, width)`, where `side` is even.
    """
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(grid, 3, stride=2, padding=1, count_include_pad=False).flatten(2).transpose(1, 2)


@torch.no_grad()
def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers, in [0, 1]; classes lie on axis 1 of `logits`."""
    # `argmax` finds the same places, but on a CPU takes several times as long along an axis that is not the innermost.
    return (logits.max(1).indices == targets).float().mean()


__all__ = [
    "PairwiseHead",
    "RelViTForPreTraining",
    "angle_targets",
    "distance_targets",
    "pool_tokens",
    "relation_loss",
    "relation_targets",
]
