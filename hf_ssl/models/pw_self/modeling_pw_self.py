"""PW-Self: the student learns to say of the class token, and of every patch, what the teacher says of it in another crop
(Javidani et al., "PW-Self: Patch-Wise Self-Supervised Visual Representation Learning", arXiv 2310.18651).

Which patches show the same place is told in `views_pw_self.py`; how the comparison is computed without the scores of all
tokens, in `matched_cross_entropy.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.vit.modeling_vit import ViTEmbeddings

from ...backbones import ViTTrunk, publish_vit
from ...distributed import all_gather
from ...schedules import Schedule, cosine, linear_then_constant
from ...views import full_precision
from ..base import SSLOutput, SSLPreTrainedModel, Step, drop_path_keep, init_torch_default
from ..momentum import copy_to_teacher, update_teacher
from .configuration_pw_self import PWSelfConfig
from .matched_cross_entropy import matched_cross_entropy
from .token_pairs import TokenPairs, pair_tokens


@dataclass
class PWSelfOutput(SSLOutput):
    """
    What [`PWSelfForPreTraining`] returns: an [`SSLOutput`] and

    Args:
        pair_entropies (`torch.Tensor` of shape `(2 + 2 * num_local_views, 2)`, *optional*):
            For each pair of views the mean cross-entropy of class tokens and of matched patches (0 where none are).
        num_matches (`torch.Tensor` of shape `(2 + 2 * num_local_views,)`, *optional*):
            Matched patches of each pair, the mean over the images.
    """

    pair_entropies: Tensor | None = None
    num_matches: Tensor | None = None


class Prototypes(nn.Module):
    """
    A linear layer without bias whose rows have a length and a direction of their own (weight normalization).

    Args:
        dim (`int`): Width of the input.
        num_prototypes (`int`): Width of the output.
    """

    def __init__(self, dim: int, num_prototypes: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, dim))

    @property
    def weight(self) -> Tensor:
        """The rows, `(num_prototypes, dim)`."""
        return self.weight_g * F.normalize(self.weight_v)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class PWSelfHead(nn.Module):
    """
    DINO's head, for any token.

    Args:
        config ([`PWSelfConfig`]): The configuration.
    """

    def __init__(self, config: PWSelfConfig):
        super().__init__()
        width, hidden = config.backbone_config.hidden_size, config.head_hidden_dim
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.head_bottleneck_dim),
        )
        self.last_layer = Prototypes(config.head_bottleneck_dim, config.num_prototypes)

    def bottleneck(self, tokens: Tensor) -> Tensor:
        """Tokens, `(..., hidden_size)`, as vectors of length 1 that are compared with the prototypes."""
        projected = self.mlp(tokens)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of tokens, `(..., num_prototypes)`."""
        scores: Tensor = self.last_layer(self.bottleneck(tokens))
        return scores


class PWSelfBranch(nn.Module):
    """
    An encoder and its head.

    Args:
        config ([`PWSelfConfig`]): The configuration.
        drop_path_rate (`float`): Stochastic depth of the last layer.
    """

    def __init__(self, config: PWSelfConfig, drop_path_rate: float):
        super().__init__()
        self.backbone = ViTTrunk(
            config.backbone_config,
            drop_path_rate=drop_path_rate,
            position_interpolation=config.position_interpolation,
        )
        self.head = PWSelfHead(config)


class PWSelfForPreTraining(SSLPreTrainedModel):
    """
    PW-Self with a ViT encoder.

    Args:
        config ([`PWSelfConfig`]): Its configuration.
    """

    config_class = PWSelfConfig
    config: PWSelfConfig
    student: PWSelfBranch
    center: Tensor
    batch_center: Tensor

    def __init__(self, config: PWSelfConfig):
        super().__init__(config)
        self.student = PWSelfBranch(config, config.drop_path_rate)
        self.teacher = PWSelfBranch(config, drop_path_rate=0.0)
        num_tokens = 1 + config.grid[0] * config.grid[1]
        self.register_buffer("center", torch.zeros(num_tokens, config.num_prototypes))
        # The step's mean of what the prototypes are compared with; the mean of the scores is its product with them.
        self.register_buffer("batch_center", torch.zeros(num_tokens, config.head_bottleneck_dim), persistent=False)
        self._num_micro_batches = 0
        self.post_init()
        copy_to_teacher(self.teacher, self.student)
        self.freeze()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=0.02)
            init.trunc_normal_(module.position_embeddings, std=0.02)
        elif isinstance(module, nn.Conv2d):
            init_torch_default(module)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Prototypes):
            bound = module.weight_v.shape[1] ** -0.5
            init.uniform_(module.weight_v, -bound, bound)
            init.ones_(module.weight_g)
        elif module is self:
            init.zeros_(self.center)
            init.zeros_(self.batch_center)

    def freeze(self) -> None:
        """Freeze the teacher, and the lengths of the prototypes where they are 1 for good."""
        self.teacher.requires_grad_(False)
        self.student.head.last_layer.weight_g.requires_grad_(not self.config.norm_last_layer)

    def schedules(self, num_steps: int, steps_per_epoch: int) -> dict[str, Schedule]:
        config, frozen_steps = self.config, self.config.frozen_last_layer_epochs * steps_per_epoch
        return {
            "momentum": cosine(config.teacher_momentum, 1.0, num_steps),
            "teacher_temperature": linear_then_constant(
                config.warmup_teacher_temperature,
                config.teacher_temperature,
                config.teacher_temperature_warmup_epochs,
                steps_per_epoch,
            ),
            "last_layer_frozen": lambda step: float(step < frozen_steps),
        }

    def step_inputs(self, step: Step) -> dict[str, float | Tensor]:
        inputs: dict[str, float | Tensor] = {"teacher_temperature": step.values["teacher_temperature"]}
        if self.config.drop_path_rate:
            rates = self.student.backbone.drop_path_rates
            inputs["drop_path_keep"] = drop_path_keep(step.samples, rates, 2 + self.config.num_local_views)
        return inputs

    def on_step_begin(self, values: dict[str, float]) -> None:
        self.batch_center.zero_()
        self._num_micro_batches = 0

    def on_gradients(self, values: dict[str, float]) -> None:
        if values["last_layer_frozen"]:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def on_optimizer_step(self, values: dict[str, float]) -> None:
        if self._num_micro_batches:
            # The scores are those of the teacher that the step was computed with, before it moves.
            scores = self.batch_center / self._num_micro_batches @ self.teacher.head.last_layer.weight.T
            self.center.mul_(self.config.center_momentum).add_(scores, alpha=1 - self.config.center_momentum)
        update_teacher(self.teacher, self.student, values["momentum"])

    def forward(
        self,
        pixel_values: Tensor,
        global_matches: Tensor,
        local_pixel_values: Tensor | None = None,
        local_matches: Tensor | None = None,
        teacher_temperature: float | None = None,
        drop_path_keep: Tensor | None = None,
    ) -> PWSelfOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(2, batch_size, 3, height, width)`):
                Two large views of each image, normalized.
            global_matches (`torch.Tensor` of shape `(2, batch_size, num_places, 2)`, int64):
                For each of them as the teacher's view, and the other one as the student's, the matched patches: the
                teacher's and the student's, from 0, or -1 where a place is free. Of one image, if all are cropped alike.
            local_pixel_values (`torch.Tensor` of shape `(num_local_views, batch_size, 3, side, side)`, *optional*):
                Small views, if there are any.
            local_matches (`torch.Tensor` of shape `(2, num_local_views, batch_size, num_places, 2)`, int64, *optional*):
                Their matches with each large view of the teacher.
            teacher_temperature (`float`, *optional*):
                That of the step; unset, the configuration's.
            drop_path_keep (`torch.Tensor` of shape `(depth, 2, num_views * batch_size)`, bool, *optional*):
                Branches that the student's stochastic depth keeps, large views first.

        Returns:
            [`PWSelfOutput`]: the loss, what class tokens and matched patches contribute to it, the mean cross-entropy of
            class tokens and the number of matches as metrics, and the student's tokens of the first view.

        Raises:
            `ValueError`: the matches are of other views or images than there are.
        """
        num_local_views = 0 if local_pixel_values is None else len(local_pixel_values)
        num_matched = 0 if local_matches is None else local_matches.shape[1]
        if num_local_views != num_matched:
            raise ValueError(
                f"There are {num_local_views} small views in local_pixel_values, and matches of {num_matched} in "
                "local_matches."
            )
        num_views, batch_size = 2 * pixel_values.shape[1], pixel_values.shape[1]
        keep: list[Tensor | None] = [None, None]
        if drop_path_keep is not None:
            keep = list(drop_path_keep.split([num_views, drop_path_keep.shape[2] - num_views], dim=2))
        with torch.no_grad():
            teacher = self.teacher.head.bottleneck(self.teacher.backbone(pixel_values.flatten(0, 1)))
            torch.clear_autocast_cache()
            if self.training:
                self._add_to_center(teacher)
        tokens = self.student.backbone(pixel_values.flatten(0, 1), drop_path_keep=keep[0])
        student, num_small = tokens.flatten(0, 1), 1
        if local_pixel_values is not None and local_matches is not None:
            small = self.student.backbone(local_pixel_values.flatten(0, 1), drop_path_keep=keep[1])
            student, num_small = torch.cat([student, small.flatten(0, 1)]), small.shape[1]
        else:
            local_matches = global_matches.new_empty(2, 0, *global_matches.shape[1:2], 0, 2)
        pairs = pair_tokens(
            global_matches,
            local_matches,
            batch_size,
            (tokens.shape[1], num_small),
            self.config.num_prototypes,
            self.config.class_loss_weight,
            tokens.device,
        )
        loss, entropies = matched_cross_entropy(
            self.student.head.bottleneck(student[pairs.student_rows]),
            self.student.head.last_layer.weight,
            teacher.flatten(0, 1)[pairs.teacher_rows],
            self.teacher.head.last_layer.weight,
            self.center,
            pairs,
            self.config.student_temperature,
            self.config.teacher_temperature if teacher_temperature is None else teacher_temperature,
        )
        return self._output(loss, entropies, pairs, tokens[:batch_size])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of the micro-batch would be compiled in
    def _add_to_center(self, teacher: Tensor) -> None:
        with full_precision(teacher.device):
            mean = all_gather(teacher.mean(0)[None].contiguous()).mean(0)
        self.batch_center += mean
        self._num_micro_batches += 1

    @torch.no_grad()
    def _output(self, loss: Tensor, entropies: Tensor, pairs: TokenPairs, tokens: Tensor) -> PWSelfOutput:
        weighted = entropies * pairs.weights
        num_pairs, is_class = pairs.num_pairs, pairs.is_class[:, None]
        sums = weighted.new_zeros(2 * num_pairs)
        counts, numbers = torch.zeros_like(sums), pairs.pair_numbers + num_pairs * ~is_class
        sums.scatter_add_(0, numbers.flatten(), (entropies * pairs.compared).to(sums.dtype).flatten())
        counts.scatter_add_(0, numbers.flatten(), pairs.compared.to(sums.dtype).flatten())
        means = (sums / counts.clamp(min=1)).view(2, num_pairs)
        matches = counts[num_pairs:] / len(tokens)
        return PWSelfOutput(
            loss=loss,
            losses={"class_token": (weighted * is_class).sum(), "patches": (weighted * ~is_class).sum()},
            metrics={"class_entropy": means[0].mean(), "matches": matches.mean()},
            last_hidden_state=tokens,
            pair_entropies=means.T,
            num_matches=matches,
        )

    def export_encoder(self, which: Literal["student", "teacher"] | None = None) -> PreTrainedModel:
        return publish_vit(self._branch(which).backbone)

    def project(self, features: Tensor, which: Literal["student", "teacher"] | None = None) -> Tensor:
        projections: Tensor = self._branch(which).head.bottleneck(features)
        return projections

    def _branch(self, which: Literal["student", "teacher"] | None) -> PWSelfBranch:
        """The branch that is published."""
        return self.student if which == "student" else self.teacher


__all__ = ["PWSelfForPreTraining", "PWSelfOutput"]
