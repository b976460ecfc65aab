"""PatchMix: all views of a resolution in one pass, against a pass for each view as in the authors' code.

    OMP_NUM_THREADS=1 python benchmarks/patchmix_passes.py

Time of a step (forward, loss, backward; CPU-seconds, measured in turn) and the most memory that its tensors take up, weights
and their gradients not counted.
"""

import argparse
import statistics
from collections.abc import Callable
from types import MethodType

import torch
from memory import peak_bytes
from step_overhead import Setting, seconds
from torch import Tensor, nn

from hf_ssl import PatchMixConfig, PatchMixForPreTraining
from hf_ssl.backbones import vit_config


SETTINGS = [
    Setting("vit-tiny", 32, 4, 32),
    Setting("vit-tiny", 32, 4, 32, use_teacher=False),
    Setting("vit-tiny", 32, 2, 8),
    Setting("vit-tiny", 64, 8, 16, num_local_views=4, local_size=32),
]


def make_batch(setting: Setting) -> dict[str, Tensor]:
    shapes = {"": (2, setting.image_size), "local_": (setting.num_local_views, setting.local_size)}
    return {
        f"{mixed}{name}pixel_values": torch.randn(count, setting.batch_size, 3, side, side)
        for name, (count, side) in shapes.items()
        if count
        for mixed in ("", "mixed_")
    }


def separate_passes(
    model: PatchMixForPreTraining, pixel_values: Tensor, mixed_pixel_values: Tensor, **local: Tensor
) -> Tensor:
    """The authors' order: a pass through encoder and heads for each kind of image."""

    def project(branch: nn.Module, images: Tensor) -> Tensor:
        return branch.projector(branch.backbone(images)[:, 0])

    (view1, view2), (mixed1, mixed2) = pixel_values, mixed_pixel_values
    key_branch = model.student if model.teacher is None else model.teacher
    projected = project(model.student, view1)
    queries, keys = {"original": model.predictor(projected)}, {"view1": projected.detach()}
    with torch.no_grad():
        if model.teacher is not None:
            keys["view1"] = project(key_branch, view1)
        keys["view2"] = project(key_branch, view2)
        keys["mixed"] = project(key_branch, mixed1)
    queries["mixed"] = model.predictor(project(model.student, mixed2))
    for name, images in local.items():
        name = name.removesuffix("_pixel_values")
        queries[name] = model.predictor(project(model.student, images.flatten(0, 1)))
    losses, _ = model._contrast(queries, keys)
    return torch.stack(list(losses.values())).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    columns = ("encoder", "batch", "time, one pass / separate", "range", "peak, MB", "separate, MB", "peak / separate")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for setting in SETTINGS:
        torch.manual_seed(0)
        backbone = vit_config(setting.backbone, image_size=setting.image_size, patch_size=setting.patch_size)
        config = PatchMixConfig(
            backbone_config=backbone, num_local_views=setting.num_local_views, use_teacher=setting.use_teacher
        )
        model, batch = PatchMixForPreTraining(config).train(), make_batch(setting)
        forwards: list[Callable[..., Tensor]] = [
            lambda model=model, batch=batch: model(**batch).loss,
            lambda model=model, batch=batch: separate_passes(model, **batch),
        ]

        def step(forward: Callable[..., Tensor]) -> None:
            forward().backward()

        for forward in forwards:
            step(forward)  # gradients are allocated here
        times = [
            [seconds(MethodType(step, forward), 1, "cpu", torch.float32) for forward in forwards]
            for _ in range(args.rounds)
        ]
        ratios = sorted(joint / separate for joint, separate in times)
        peaks = [peak_bytes(MethodType(step, forward))[0] / 2**20 for forward in forwards]
        print(
            f"| {setting} | {setting.batch_size} | {statistics.median(ratios):.3f} | {ratios[0]:.3f}–{ratios[-1]:.3f} | "
            f"{peaks[0]:.1f} | {peaks[1]:.1f} | {peaks[0] / peaks[1]:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
