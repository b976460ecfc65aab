"""What a pretraining step costs beside the bare encoder.

    make bench
    python benchmarks/step_overhead.py --device cuda --dtype bfloat16 --batch_size 512
    OMP_NUM_THREADS=1 python benchmarks/step_overhead.py --method patchmix --dtype bfloat16

Overhead is the ratio of two times measured in turn in one process: a method's whole step (random decisions of the step,
teacher, forward, loss, backward, optimizer; views given) over what the encoder alone takes for the same tokens: forward,
backward and optimizer for the student's, forward for the teacher's. On a CPU both are CPU-seconds, which other programs on
the machine hardly disturb; on a GPU, seconds between synchronizations.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import ViTModel

from hf_ssl import (
    APSConfig,
    APSForPreTraining,
    PatchMixConfig,
    PatchMixForPreTraining,
    PWSelfConfig,
    PWSelfForPreTraining,
    RelViTConfig,
    RelViTForPreTraining,
    SSLPreTrainedModel,
)
from hf_ssl.backbones import vit_config
from hf_ssl.models import Step
from hf_ssl.models.patchmix.views_patchmix import mix_images
from hf_ssl.models.pw_self import PWSelfViews, PWSelfViewsConfig, match_views
from hf_ssl.views import Draws


@dataclass
class Setting:
    """A model and its batch on a CPU; small views are given by how many there are and by their side."""

    backbone: str
    image_size: int
    patch_size: int
    batch_size: int
    num_local_views: int = 0
    local_size: int = 0
    use_teacher: bool = True

    def __str__(self) -> str:
        small = f" + {self.num_local_views}x{self.local_size}" if self.num_local_views else ""
        return (
            f"{self.backbone} {self.image_size}/{self.patch_size}{small}{'' if self.use_teacher else ', no teacher'}"
        )


SETTINGS = {
    "relvit": [
        Setting("vit-micro", 16, 4, 128),
        Setting("vit-tiny", 32, 4, 64),
        Setting("vit-small", 64, 8, 32),
    ],
    "patchmix": [
        Setting("vit-tiny", 32, 4, 64, use_teacher=False),
        Setting("vit-small", 32, 4, 32),
        Setting("vit-small", 32, 2, 8),
        Setting("vit-small", 64, 8, 16, num_local_views=4, local_size=32),
    ],
    "aps": [
        Setting("vit-tiny", 32, 2, 16),
        Setting("vit-small", 32, 2, 8),
        Setting("vit-tiny", 32, 4, 64),
    ],
    "pw_self": [
        Setting("vit-tiny", 32, 4, 32, num_local_views=4, local_size=16),
        Setting("vit-small", 32, 4, 16, num_local_views=4, local_size=16),
    ],
}
# Steps of PW-Self, after which the crops come again; each has other ones, and with them other matches.
DRAWN_CROPS = 16


def make_backbone(setting: Setting, **overrides: float) -> object:
    fields = {"image_size": setting.image_size, "patch_size": setting.patch_size, "layer_norm_eps": 1e-6}
    return vit_config(setting.backbone, **(fields | overrides))


def training_step(model: SSLPreTrainedModel, batch: dict[str, Tensor], num_images: int) -> Callable[[], None]:
    """Everything that the trainer does in a step, but for the views."""
    device = next(iter(batch.values())).device
    model = model.to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, fused=True)
    schedules = model.schedules(1000, 100)
    index = torch.arange(num_images, device=device)
    count = iter(range(1 << 60))

    def step() -> None:
        number = next(count)
        values = {name: schedule(number) for name, schedule in schedules.items()}
        samples = Draws.for_samples(0, torch.full_like(index, number), index)
        model.on_step_begin(values)
        optimizer.zero_grad()
        inputs = model.step_inputs(Step(Draws.for_batch(0, number, device=device), samples, values))
        model(**batch, **inputs).loss.backward()
        model.on_gradients(values)
        optimizer.step()
        model.on_optimizer_step(values)

    return step


def encoder_step(config: object, student: list[Tensor], teacher: list[Tensor]) -> Callable[[], None]:
    """The stock encoder alone, on the images of the student and on those of the teacher."""
    encoder = ViTModel(config, add_pooling_layer=False).to(student[0].device).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=5e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            for images in teacher:
                encoder(images, interpolate_pos_encoding=True)
        outputs = [encoder(images, interpolate_pos_encoding=True).last_hidden_state[:, 0] for images in student]
        torch.stack([output.mean() for output in outputs]).sum().backward()
        optimizer.step()

    return step


def relvit(setting: Setting, size: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """RelViT's upstream step as the recipes set it; its loss is on patch tokens."""
    pixel_values = torch.randn(size, 3, setting.image_size, setting.image_size, device=device)
    config = make_backbone(setting)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=config, drop_path_rate=0.1))
    return training_step(model, {"pixel_values": pixel_values}, size), encoder_step(config, [pixel_values], [])


def patchmix(setting: Setting, size: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """PatchMix's step as the recipes set it, mixing included."""
    backbone = make_backbone(setting, **({"num_attention_heads": 12} if setting.backbone == "vit-small" else {}))
    views = {"pixel_values": torch.randn(2, size, 3, setting.image_size, setting.image_size, device=device)}
    if setting.num_local_views:
        shape = (setting.num_local_views, size, 3, setting.local_size, setting.local_size)
        views["local_pixel_values"] = torch.randn(shape, device=device)
    model = PatchMixForPreTraining(
        PatchMixConfig(
            backbone_config=backbone, num_local_views=setting.num_local_views, use_teacher=setting.use_teacher
        )
    )
    orders = {
        name: torch.stack([torch.randperm((v.shape[-1] // setting.patch_size) ** 2) for _ in v]).to(device)
        for name, v in views.items()
    }

    def mixed() -> dict[str, Tensor]:
        return {f"mixed_{name}": mix_images(v, orders[name], 2, setting.patch_size) for name, v in views.items()}

    whole_step = training_step(model, views | mixed(), size)

    def step() -> None:
        mixed()
        whole_step()

    # The student has one large view and one mixed, and all small ones, plain and mixed; the keys are of the others.
    large, small = views["pixel_values"].repeat(2, 1, 1, 1, 1), views.get("local_pixel_values")
    student = [large[:2].flatten(0, 1)] + ([] if small is None else [torch.cat([small, small]).flatten(0, 1)])
    keys = large[: 3 if setting.use_teacher else 2].flatten(0, 1)
    return step, encoder_step(backbone, student, [keys])


def aps_backbone(setting: Setting, **overrides: float) -> object:
    return make_backbone(setting, layer_norm_eps=1e-5, qkv_bias=False, **overrides)


def aps_model(
    setting: Setting, size: int, device: str, **sampling: float
) -> tuple[APSForPreTraining, dict[str, Tensor]]:
    """APS, and what it is fed with: views, and which of their patches are seen."""
    config = APSConfig(backbone_config=aps_backbone(setting), **sampling)
    views = torch.randn(2, size, 3, setting.image_size, setting.image_size, device=device)
    orders = torch.rand(config.num_samplings, 2, size, config.grid[0] * config.grid[1], device=device).argsort(-1)
    batch = {"pixel_values": views, "patch_indices": orders[..., : config.num_sampled_patches].contiguous()}
    return APSForPreTraining(config), batch


def aps(setting: Setting, size: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """APS's step as the recipes set it, for one of the samplings of a batch."""
    model, batch = aps_model(setting, size, device)
    # The stock encoder takes whole images only: those of half the side have the quarter of the patches that APS sees.
    side = setting.image_size // 2
    images = torch.randn(2 * size, 3, side, side, device=device)
    return training_step(model, batch, size), encoder_step(aps_backbone(setting, image_size=side), [images], [])


def pw_self_model(
    setting: Setting, size: int, device: str, **options: object
) -> tuple[PWSelfForPreTraining, dict[str, Tensor]]:
    """PW-Self with prototypes that learn from the first step on, and its views."""
    # As the recipes set it, but for the first epoch, which is cheaper.
    config = PWSelfConfig(
        backbone_config=make_backbone(setting),
        num_local_views=setting.num_local_views,
        frozen_last_layer_epochs=0,
        **options,
    )
    shapes = {"": (2, setting.image_size), "local_": (setting.num_local_views, setting.local_size)}
    views = {
        f"{name}pixel_values": torch.randn(count, size, 3, side, side, device=device)
        for name, (count, side) in shapes.items()
    }
    return PWSelfForPreTraining(config), views


def pw_self_matches(config: PWSelfConfig, setting: Setting, size: int) -> Iterator[dict[str, Tensor]]:
    """Which patches match in one step after the other, for crops that are drawn as in training."""
    defaults = PWSelfViewsConfig()
    views = PWSelfViews(replace(defaults, local=replace(defaults.local, size=setting.local_size)), config)
    index, sizes = torch.arange(size), torch.full((size, 2), setting.image_size)
    for step in itertools.count():
        boxes = views.view_boxes(torch.full_like(index, step), index, sizes, Draws.for_batch(0, step))
        matches = match_views(boxes[:1] if views.shared_boxes else boxes, views.grid, views.local_grid)
        yield dict(zip(("global_matches", "local_matches"), matches, strict=True))


def pw_self(setting: Setting, size: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """PW-Self's step as the recipes set it, with other crops at each step."""
    model, batch = pw_self_model(setting, size, device)
    large, small = (views.flatten(0, 1) for views in batch.values())
    matches = itertools.cycle(list(itertools.islice(pw_self_matches(model.config, setting, size), DRAWN_CROPS)))
    whole_step = training_step(model, batch, size)

    def step() -> None:
        batch.update(next(matches))
        whole_step()

    return step, encoder_step(make_backbone(setting), [large, small], [large])


MAKERS = {"relvit": relvit, "patchmix": patchmix, "aps": aps, "pw_self": pw_self}


def seconds(step: Callable[[], None], repeat: int, device: str, dtype: torch.dtype) -> float:
    """Seconds of one step, the mean of `repeat`."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    with torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32):
        if device != "cpu":
            torch.accelerator.synchronize()
        start = clock()
        for _ in range(repeat):
            step()
        if device != "cpu":
            torch.accelerator.synchronize()
    return (clock() - start) / repeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, help="Images in a step; unset, by setting.")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    repeat = 1 if args.device == "cpu" else 20
    print(f"{args.device}, {args.dtype}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    columns = ("method", "encoder", "batch", "step, ms", "encoder, ms", "overhead", "range", "images/s")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for method in args.method:
        for setting in SETTINGS[method]:
            size = args.batch_size or setting.batch_size
            steps = MAKERS[method](setting, size, args.device)
            for step in steps:
                seconds(step, 3, args.device, dtype)  # warm up
            pairs = [[seconds(step, repeat, args.device, dtype) for step in steps] for _ in range(args.rounds)]
            ratios = sorted(whole / encoder for whole, encoder in pairs)
            whole, encoder = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"| {method} | {setting} | {size} | {whole * 1e3:.0f} | {encoder * 1e3:.0f} | "
                f"{statistics.median(ratios):.3f} | {ratios[0]:.3f}–{ratios[-1]:.3f} | {size / whole:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
