"""PatchMix: mixed images are as similar as the images they share (Shen et al., "Inter-Instance Similarity Modeling for
Contrastive Learning", arXiv 2306.12243).

Three contrasts are trained together: image to image, mixed image to image, and mixed image to mixed image. What a batch is
made of, and how similar its images are, is told in `views_patchmix.py`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.vit.modeling_vit import ViTEmbeddings

from ...backbones import ViTTrunk, publish_vit
from ...distributed import all_gather, rank
from ...schedules import Schedule, cosine
from ...views import full_precision
from ..base import SSLOutput, SSLPreTrainedModel, Step, drop_path_keep, init_torch_default
from ..batch_norm import SyncBatchNorm, init_batch_norm
from ..heads import forward_apart, mlp_head
from ..momentum import copy_to_teacher, update_teacher
from .configuration_patchmix import PatchMixConfig
from .views_patchmix import mixing_targets


@dataclass
class PatchMixOutput(SSLOutput):
    """
    What [`PatchMixForPreTraining`] returns: an [`SSLOutput`] and

    Args:
        query_embeddings (`dict[str, torch.Tensor]`, *optional*):
            The student's predictions before they are normalized: `original` (of the first view) and `mixed` (of the second
            one, mixed), of shape `(batch_size, projection_dim)`; `local` and `mixed_local`, of shape
            `(num_local_views * batch_size, projection_dim)`, the first view of all images first.
        key_embeddings (`dict[str, torch.Tensor]`, *optional*):
            What they are contrasted with, before it is normalized: `view1`, `view2` and `mixed` (of the first view, mixed),
            of shape `(batch_size, projection_dim)`.
    """

    query_embeddings: dict[str, Tensor] | None = None
    key_embeddings: dict[str, Tensor] | None = None


class PatchMixBranch(nn.Module):
    """
    An encoder and its projector.

    Args:
        config ([`PatchMixConfig`]): The configuration.
        drop_path_rate (`float`): Stochastic depth of the last layer.
    """

    def __init__(self, config: PatchMixConfig, drop_path_rate: float):
        super().__init__()
        self.backbone = ViTTrunk(
            config.backbone_config,
            drop_path_rate=drop_path_rate,
            position_interpolation=config.position_interpolation,
        )
        self.projector = mlp_head(
            config.num_projector_layers,
            config.backbone_config.hidden_size,
            config.projection_hidden_dim,
            config.projection_dim,
        )


class PatchMixForPreTraining(SSLPreTrainedModel):
    """
    PatchMix with a ViT encoder.

    Args:
        config ([`PatchMixConfig`]): Its configuration.
    """

    config_class = PatchMixConfig
    config: PatchMixConfig
    student: PatchMixBranch

    def __init__(self, config: PatchMixConfig):
        super().__init__(config)
        self.student = PatchMixBranch(config, config.drop_path_rate)
        self.teacher = PatchMixBranch(config, drop_path_rate=0.0) if config.use_teacher else None
        self.predictor = mlp_head(
            config.num_predictor_layers, config.projection_dim, config.projection_hidden_dim, config.projection_dim
        )
        self.post_init()
        if self.teacher is not None:
            copy_to_teacher(self.teacher, self.student)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # That of MoCo v3, except for the positions, which are learned. Xavier's bounds are those of queries, keys and values
        # one by one; the patch convolution counts as a linear layer. The heads keep PyTorch's own initialization.
        heads = [self.predictor, self.student.projector]
        heads += [] if self.teacher is None else [self.teacher.projector]
        if isinstance(module, ViTEmbeddings):
            init.normal_(module.cls_token, std=1e-6)
            init.trunc_normal_(module.position_embeddings, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_in, fan_out = module.weight[0].numel(), len(module.weight)
            bound = (6 / (fan_in + fan_out)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and any(module is layer for head in heads for layer in head):
            init_torch_default(module)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SyncBatchNorm):
            init_batch_norm(module)

    def freeze(self) -> None:
        """Freeze the teacher: it follows the student, without gradient."""
        if self.teacher is not None:
            self.teacher.requires_grad_(False)

    def schedules(self, num_steps: int, steps_per_epoch: int) -> dict[str, Schedule]:
        if self.teacher is None:
            return {}
        start = self.config.teacher_momentum
        if self.config.ema_schedule == "iter":
            return {"momentum": cosine(start, 1.0, num_steps)}

        def of_the_epoch(step: int) -> float:
            # The value of an epoch's second step, be there one or not.
            progress = (step // steps_per_epoch * steps_per_epoch + 1) / num_steps
            return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2

        return {"momentum": of_the_epoch}

    def step_inputs(self, step: Step) -> dict[str, Tensor]:
        if not self.config.drop_path_rate:
            return {}
        # Without a teacher the keys of the large views pass the student as well.
        num_views = (2 if self.config.use_teacher else 4) + 2 * self.config.num_local_views
        rates = self.student.backbone.drop_path_rates
        return {"drop_path_keep": drop_path_keep(step.samples, rates, num_views)}

    def on_step_begin(self, values: dict[str, float]) -> None:
        # Before the forward pass, as the authors do: the teacher lags one step behind.
        if self.teacher is not None:
            update_teacher(self.teacher, self.student, values["momentum"])

    def forward(
        self,
        pixel_values: Tensor,
        mixed_pixel_values: Tensor,
        local_pixel_values: Tensor | None = None,
        mixed_local_pixel_values: Tensor | None = None,
        drop_path_keep: Tensor | None = None,
    ) -> PatchMixOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(2, batch_size, 3, height, width)`):
                Two large views of each image, normalized.
            mixed_pixel_values (`torch.Tensor` of shape `(2, batch_size, 3, height, width)`):
                The same, mixed by [`mix_patches`].
            local_pixel_values (`torch.Tensor` of shape `(num_local_views, batch_size, 3, side, side)`, *optional*):
                Small views, if the configuration has any.
            mixed_local_pixel_values (`torch.Tensor` of shape `(num_local_views, batch_size, 3, side, side)`, *optional*):
                The same, mixed.
            drop_path_keep (`torch.Tensor` of shape `(depth, 2, num_passes * batch_size)`, bool, *optional*):
                Branches that stochastic depth keeps, see [`~PatchMixForPreTraining.step_inputs`]: for the first view, the
                second one mixed, without a teacher the second one and the first one mixed, and then the small views, plain
                and mixed.

        Returns:
            [`PatchMixOutput`]: the loss, its terms (those of mixed images are already halved, but for small views), the
            cosine similarities over the temperature as `logits`, the share of queries whose own image is the most similar
            one, and the student's tokens of the first view.

        Raises:
            `ValueError`: there are small views but the configuration has none, or the other way round.
        """
        self._check_views(local_pixel_values, mixed_local_pixel_values)
        batch_size = pixel_values.shape[1]
        (view1, view2), (mixed1, mixed2) = pixel_values, mixed_pixel_values
        keep: list[Tensor | None] = [None] * 3
        if drop_path_keep is not None:
            counts = [2 * batch_size, 0 if self.teacher is not None else 2 * batch_size]
            keep = list(drop_path_keep.split([*counts, drop_path_keep.shape[2] - sum(counts)], dim=2))

        # Keys first: what they need in passing is gone before the student's pass fills the memory.
        if self.teacher is not None:
            key_tokens = self._key_tokens(self.teacher, torch.cat([view1, view2, mixed1]), None)
        else:
            key_tokens = self._key_tokens(self.student, torch.cat([view2, mixed1]), keep[1])
        tokens = self.student.backbone(torch.cat([view1, mixed2]), drop_path_keep=keep[0])
        class_tokens = dict(zip(("original", "mixed"), tokens[:, 0].chunk(2), strict=True))
        if local_pixel_values is not None and mixed_local_pixel_values is not None:
            local = torch.cat([local_pixel_values.flatten(0, 1), mixed_local_pixel_values.flatten(0, 1)])
            local_tokens = self.student.backbone(local, drop_path_keep=keep[2])[:, 0]
            class_tokens |= zip(("local", "mixed_local"), local_tokens.chunk(2), strict=True)
        queries, keys = self._project(class_tokens, key_tokens)
        losses, logits = self._contrast(queries, keys)
        return PatchMixOutput(
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics={"accuracy": _accuracy(logits["original"])},
            logits=logits,
            last_hidden_state=tokens[:batch_size],
            query_embeddings=queries,
            key_embeddings=keys,
        )

    def _check_views(self, local: Tensor | None, mixed_local: Tensor | None) -> None:
        wanted = self.config.num_local_views
        found = [0 if views is None else len(views) for views in (local, mixed_local)]
        if found != [wanted, wanted]:
            raise ValueError(
                f"The model was made for num_local_views={wanted} small views of an image, plain and mixed; it was given "
                f"{found[0]} and {found[1]}."
            )

    @torch.no_grad()
    def _key_tokens(self, branch: PatchMixBranch, pixel_values: Tensor, keep: Tensor | None) -> Tensor:
        """Class tokens of the images whose projections are keys."""
        tokens: Tensor = branch.backbone(pixel_values, drop_path_keep=keep)
        # Weights that autocast has converted here have no gradient, and older versions of torch would use them again.
        torch.clear_autocast_cache()
        return tokens[:, 0].clone()  # a slice would hold the memory of all tokens

    def _project(
        self, class_tokens: dict[str, Tensor], key_tokens: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """
        Queries by name and keys by name, not normalized. Batch norm sees each kind of image on its own, in the authors'
        order: the running statistics depend on it.
        """
        tokens = list(class_tokens.values())
        if self.teacher is not None:
            with torch.no_grad():
                keys = forward_apart(self.teacher.projector, key_tokens.chunk(3))
            projected = forward_apart(self.student.projector, tokens)
        else:
            outputs = forward_apart(self.student.projector, [tokens[0], *key_tokens.chunk(2), *tokens[1:]])
            keys = [outputs[0].detach(), *outputs[1:3]]
            projected = [outputs[0], *outputs[3:]]
        queries = dict(zip(class_tokens, forward_apart(self.predictor, projected), strict=True))
        return queries, dict(zip(("view1", "view2", "mixed"), keys, strict=True))

    def _contrast(
        self, queries: dict[str, Tensor], keys: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms of the loss, and the similarities of the large views, `(batch_size, num_keys)`, over the temperature."""
        config, batch_size = self.config, len(queries["original"])
        with full_precision(queries["original"].device):
            # One exchange for all keys; the processes' keys follow each other.
            key1, key2, mixed_key = all_gather(
                torch.stack([F.normalize(key.float()) for key in keys.values()], dim=1)
            ).unbind(1)
            place = len(key1), rank() * batch_size, key1.device
            plain, _ = mixing_targets(batch_size, 1, config.plain_smoothing, *place)
            to_images, to_mixed = mixing_targets(batch_size, config.group_size, config.mix_smoothing, *place)

            unit = {name: F.normalize(query.float()) / config.temperature for name, query in queries.items()}
            logits = {
                "original": unit["original"] @ key2.T,
                "mixed_to_original": unit["mixed"] @ key1.T,
                "mixed_to_mixed": unit["mixed"] @ mixed_key.T,
            }
            losses = {
                "original": F.cross_entropy(logits["original"], plain),
                "mixed_to_original": F.cross_entropy(logits["mixed_to_original"], to_images) / 2,
                "mixed_to_mixed": F.cross_entropy(logits["mixed_to_mixed"], to_mixed) / 2,
            }
            for name, targets in (("local", plain), ("mixed_local", to_images)):
                if name in unit:
                    of_views = targets.repeat(config.num_local_views, 1)
                    first, second = (F.cross_entropy(unit[name] @ key.T, of_views) for key in (key1, key2))
                    losses[name] = first + second
        return losses, logits

    def export_encoder(self, which: Literal["student", "teacher"] | None = None) -> PreTrainedModel:
        return publish_vit(self._branch(which).backbone)

    def project(self, features: Tensor, which: Literal["student", "teacher"] | None = None) -> Tensor:
        if self.config.feature != "class_token":  # which is what the projector was trained on
            return features
        projections: Tensor = self._branch(which).projector(features)
        return projections

    def _branch(self, which: Literal["student", "teacher"] | None) -> PatchMixBranch:
        """The branch that is published."""
        if which == "teacher" and self.teacher is None:
            raise ValueError("This PatchMix was trained without a teacher; its encoder is the student.")
        return self.student if which == "student" or self.teacher is None else self.teacher


@torch.no_grad()
def _accuracy(logits: Tensor) -> Tensor:
    """Share of queries whose own image is the most similar key, in [0, 1]."""
    own = rank() * len(logits) + torch.arange(len(logits), device=logits.device)
    return (logits.argmax(1) == own).float().mean()


__all__ = ["PatchMixForPreTraining", "PatchMixOutput"]
