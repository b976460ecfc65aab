"""What a pretraining step costs beside the bare encoder.

    make bench
    python benchmarks/step_overhead.py --device cuda --dtype bfloat16 --batch_size 512

Overhead is the ratio of two times measured in turn in one process: a method's whole step (random decisions of the step,
forward, loss, backward, optimizer; views given) over the stock encoder's forward, backward and optimizer on the same
images. On a CPU both are CPU-seconds, which other programs on the machine hardly disturb; on a GPU, seconds between
synchronizations.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import ViTModel

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones import vit_config
from hf_ssl.models import Step
from hf_ssl.views import Draws


# Backbone, image size, patch size, batch size on a CPU.
SETTINGS = [("vit-micro", 16, 4, 128), ("vit-tiny", 32, 4, 64), ("vit-small", 64, 8, 32)]


def relvit_step(backbone: str, image_size: int, patch_size: int, pixel_values: torch.Tensor) -> Callable[[], None]:
    """RelViT's upstream step as the recipes set it."""
    backbone_config = vit_config(backbone, image_size=image_size, patch_size=patch_size, layer_norm_eps=1e-6)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=backbone_config, drop_path_rate=0.1))
    model = model.to(pixel_values.device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, fused=True)
    count = iter(range(1 << 60))
    index = torch.arange(len(pixel_values), device=pixel_values.device)

    def step() -> None:
        epoch = torch.full_like(index, next(count))
        place = Step(Draws.for_batch(0, 0, device=index.device), Draws.for_samples(0, epoch, index), {})
        optimizer.zero_grad()
        model(pixel_values, **model.step_inputs(place)).loss.backward()
        optimizer.step()

    return step


def encoder_step(backbone: str, image_size: int, patch_size: int, pixel_values: torch.Tensor) -> Callable[[], None]:
    """The stock encoder alone."""
    encoder = ViTModel(vit_config(backbone, image_size=image_size, patch_size=patch_size), add_pooling_layer=False)
    encoder = encoder.to(pixel_values.device).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=5e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        encoder(pixel_values).last_hidden_state.mean().backward()
        optimizer.step()

    return step


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, help="Images in a step; unset, by setting.")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    repeat = 1 if args.device == "cpu" else 20
    print(
        f"RelViT upstream on {args.device}, {args.dtype}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    print(
        f"{'encoder':<22} {'batch':>5} {'step ms':>9} {'encoder ms':>11} {'overhead':>9} {'spread':>13} {'images/s':>9}"
    )
    for backbone, image_size, patch_size, batch_size in SETTINGS:
        size = args.batch_size or batch_size
        pixel_values = torch.randn(size, 3, image_size, image_size, device=args.device)
        steps = [make(backbone, image_size, patch_size, pixel_values) for make in (relvit_step, encoder_step)]
        for step in steps:
            seconds(step, 3, args.device, dtype)  # warm up
        pairs = [[seconds(step, repeat, args.device, dtype) for step in steps] for _ in range(args.rounds)]
        ratios = sorted(method / encoder for method, encoder in pairs)
        method, encoder = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{f'{backbone} {image_size}/{patch_size}':<22} {size:>5} {method * 1e3:>9.1f} {encoder * 1e3:>11.1f} "
            f"{statistics.median(ratios):>9.3f} {ratios[0]:>6.3f}–{ratios[-1]:.3f} {size / method:>9.0f}"
        )


if __name__ == "__main__":
    main()
