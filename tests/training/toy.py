"""The smallest method that has everything a method may have: a stock `ViTModel` as student and as teacher, dropout, batch
norm over all processes, negatives gathered from all processes, a center, a scheduled momentum and temperature."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForPreTraining, PreTrainedModel, ViTModel
from transformers import initialization as init

from hf_ssl.distributed import all_gather
from hf_ssl.models import SSLConfig, SSLOutput, SSLPreTrainedModel, Step
from hf_ssl.models.batch_norm import SyncBatchNorm
from hf_ssl.models.momentum import copy_to_teacher, update_teacher
from hf_ssl.schedules import Schedule, cosine, linear_then_constant
from hf_ssl.views import Draws


class ToyConfig(SSLConfig):
    model_type = "hf_ssl_toy"

    out_dim: int = 8
    momentum: float = 0.9
    contrastive: bool = False


class ToyBranch(nn.Module):
    def __init__(self, config: ToyConfig):
        super().__init__()
        size = config.backbone_config.hidden_size
        self.encoder = ViTModel(config.backbone_config, add_pooling_layer=False)
        self.head = nn.Sequential(
            nn.Linear(size, size), SyncBatchNorm(size), nn.GELU(), nn.Linear(size, config.out_dim)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.encoder(pixel_values).last_hidden_state[:, 0])


class ToyForPreTraining(SSLPreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "toy"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.student, self.teacher = ToyBranch(config), ToyBranch(config)
        self.register_buffer("center", torch.zeros(config.out_dim))
        self.register_buffer("next_center", torch.zeros(config.out_dim), persistent=False)
        self.num_updates = self.num_micro_batches = 0
        self.post_init()
        copy_to_teacher(self.teacher, self.student)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.center)
            init.zeros_(self.next_center)

    def freeze(self) -> None:
        self.teacher.requires_grad_(False)

    def schedules(self, num_steps: int, steps_per_epoch: int) -> dict[str, Schedule]:
        return {
            "momentum": cosine(self.config.momentum, 1.0, num_steps),
            "temperature": linear_then_constant(0.5, 0.2, 3, steps_per_value=steps_per_epoch),
        }

    def step_inputs(self, step: Step) -> dict[str, Any]:
        return {"temperature": step.values["temperature"]}

    def on_step_begin(self, values: dict[str, float]) -> None:
        self.next_center.zero_()
        self.num_micro_batches = 0

    def on_optimizer_step(self, values: dict[str, float]) -> None:
        update_teacher(self.teacher, self.student, values["momentum"])
        self.center.lerp_(self.next_center / self.num_micro_batches, 0.1)
        self.num_updates += 1

    def forward(self, pixel_values: Tensor, temperature: float = 0.2) -> SSLOutput:
        online = self.student(pixel_values)
        with torch.no_grad():
            target = self.teacher(pixel_values.flip(-1))
        self.next_center += all_gather(target).mean(0)
        self.num_micro_batches += 1
        distance = F.cross_entropy(online / temperature, ((target - self.center) / temperature).softmax(-1))
        losses = {"distance": distance}
        if self.config.contrastive:
            keys = all_gather(F.normalize(target))
            first = torch.distributed.get_rank() * len(online) if len(keys) > len(online) else 0
            places = first + torch.arange(len(online), device=online.device)
            losses["contrast"] = F.cross_entropy(F.normalize(online) @ keys.T / temperature, places)
        return SSLOutput(loss=torch.stack(list(losses.values())).sum(), losses=losses)

    def export_encoder(self, which: Literal["student", "teacher"] | None = None) -> PreTrainedModel:
        branch = self.student if which == "student" else self.teacher
        encoder = ViTModel(self.config.backbone_config, add_pooling_layer=False)
        encoder.load_state_dict(branch.encoder.state_dict())
        return encoder.eval()


class ToyViews:
    """Brightness, drawn for each sample."""

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, batch: dict[str, Tensor], batch_draws: Draws | None = None) -> dict[str, Tensor]:
        draws = Draws.for_samples(self.seed, batch["epoch"], batch["index"])
        brightness = draws.uniform("brightness", low=0.5, high=1.5)[:, None, None, None]
        return {"pixel_values": batch["images"].float() / 255 * brightness - 0.5}


AutoConfig.register("hf_ssl_toy", ToyConfig, exist_ok=True)
AutoModelForPreTraining.register(ToyConfig, ToyForPreTraining, exist_ok=True)
