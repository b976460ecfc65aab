"""APS: two views of an image are alike, although the encoder sees different patches of them (Shen et al., "Asymmetric Patch
Sampling for Contrastive Learning", arXiv 2306.02854).

Which patches it sees is told in `views_aps.py`. A batch is trained several steps in a row, each with other patches.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.vit.modeling_vit import ViTEmbeddings

from ...backbones import ViTTrunk, publish_vit
from ...distributed import all_gather, rank
from ...views import full_precision
from ..base import SSLOutput, SSLPreTrainedModel, Step, init_torch_default
from ..batch_norm import SyncBatchNorm, init_batch_norm
from ..heads import forward_apart, mlp_head
from .configuration_aps import APSConfig


@dataclass
class APSOutput(SSLOutput):
    """
    What [`APSForPreTraining`] returns: an [`SSLOutput`] and

    Args:
        query_embeddings (`dict[str, torch.Tensor]`, *optional*):
            What the predictor makes of `view1` and `view2`, before it is normalized, of shape
            `(batch_size, projection_dim)`.
        key_embeddings (`dict[str, torch.Tensor]`, *optional*):
            What the projector makes of them, without gradient, of the same shape.
    """

    query_embeddings: dict[str, Tensor] | None = None
    key_embeddings: dict[str, Tensor] | None = None


class APSStudent(nn.Module):
    """
    An encoder and its projector.

    Args:
        config ([`APSConfig`]): The configuration.
    """

    def __init__(self, config: APSConfig):
        super().__init__()
        self.backbone = ViTTrunk(
            config.backbone_config,
            position_interpolation=config.position_interpolation,
            use_class_token_position=False,
        )
        self.projector = mlp_head(
            3, config.backbone_config.hidden_size, config.projection_hidden_dim, config.projection_dim
        )


class APSForPreTraining(SSLPreTrainedModel):
    """
    APS with a ViT encoder.

    Args:
        config ([`APSConfig`]): Its configuration.
    """

    config_class = APSConfig
    config: APSConfig
    student: APSStudent

    def __init__(self, config: APSConfig):
        super().__init__(config)
        self.student = APSStudent(config)
        self.predictor = mlp_head(3, config.projection_dim, config.projection_hidden_dim, config.projection_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # PyTorch's own initialization, but for the class token and the positions.
        if isinstance(module, ViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=0.02)
            init.trunc_normal_(module.position_embeddings, std=0.02)
            init.zeros_(module.position_embeddings[:, 0])  # the class token has no position
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init_torch_default(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SyncBatchNorm):
            init_batch_norm(module)

    @property
    def steps_per_batch(self) -> int:
        return self.config.num_samplings

    def step_inputs(self, step: Step) -> dict[str, Any]:
        return {"sampling": step.repetition}

    def forward(self, pixel_values: Tensor, patch_indices: Tensor, sampling: int = 0) -> APSOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(2, batch_size, 3, height, width)`):
                Two views of each image, normalized.
            patch_indices (`torch.Tensor` of shape `(num_samplings, 2, batch_size, num_sampled_patches)`, int64):
                The patches of each view that the encoder sees, for each of the steps that the batch is trained, see
                [`sample_patches`].
            sampling (`int`, *optional*, defaults to 0):
                Which of these steps this is.

        Returns:
            [`APSOutput`]: the loss, its two terms (the queries of a view among the keys of the other one), the cosine
            similarities over the temperature as `logits`, the mean cosine of the two views of an image as metric
            `similarity`, and the tokens of the first view, of shape
            `(batch_size, 1 + num_sampled_patches, hidden_size)`.
        """
        batch_size = pixel_values.shape[1]
        tokens = self.student.backbone(pixel_values.flatten(0, 1), patch_indices=patch_indices[sampling].flatten(0, 1))
        # Batch norm sees each view on its own.
        projected = forward_apart(self.student.projector, tokens[:, 0].split(batch_size))
        queries = dict(zip(("view1", "view2"), forward_apart(self.predictor, projected), strict=True))
        keys = dict(zip(queries, (z.detach() for z in projected), strict=True))
        losses, logits, similarity = self._contrast(queries, keys)
        return APSOutput(
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics={"similarity": similarity},
            logits=logits,
            last_hidden_state=tokens[:batch_size],
            query_embeddings=queries,
            key_embeddings=keys,
        )

    def _contrast(
        self, queries: dict[str, Tensor], keys: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """The terms of the loss, the similarities over the temperature, `(batch_size, num_keys)`, and the mean cosine."""
        with full_precision(queries["view1"].device):
            query1, query2 = (_normalize(query) for query in queries.values())
            own = torch.stack([_normalize(key) for key in keys.values()], dim=1)
            key1, key2 = all_gather(own).unbind(1)  # one exchange; the processes' keys follow each other
            logits = {
                "view1_to_view2": query1 @ key2.T / self.config.temperature,
                "view2_to_view1": query2 @ key1.T / self.config.temperature,
            }
            place = rank() * len(query1) + torch.arange(len(query1), device=query1.device)
            losses = {name: F.cross_entropy(scores, place) for name, scores in logits.items()}
            with torch.no_grad():
                similarity = ((query1 * own[:, 1]).sum(-1).mean() + (query2 * own[:, 0]).sum(-1).mean()) / 2
        return losses, logits, similarity

    def export_encoder(self, which: Literal["student", "teacher"] | None = None) -> PreTrainedModel:
        if which == "teacher":
            raise ValueError("APS has no teacher; its encoder is the student.")
        return publish_vit(self.student.backbone)

    def project(self, features: Tensor, which: Literal["student", "teacher"] | None = None) -> Tensor:
        if self.config.feature != "class_token":  # which is what the projector was trained on
            return features
        projections: Tensor = self.student.projector(features)
        return projections


def _normalize(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)))


__all__ = ["APSForPreTraining", "APSOutput"]
