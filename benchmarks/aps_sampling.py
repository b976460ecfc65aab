"""APS: what the encoder saves where it sees a quarter of the patches, and what it costs to sample them.

    OMP_NUM_THREADS=1 python benchmarks/aps_sampling.py

Encoder: a step (forward, loss, backward) on a quarter of the patches over one on all of them. Floating-point
operations are those of matrix products (a multiplication and an addition are two) and of attention, which computes its
scores again in backward; memory is the most that its tensors take up, weights and their gradients not counted; time is
CPU-seconds, measured in turn.

Sampling: CPU-seconds of `sample_patches`. A call serves four optimizer steps, so a quarter of it is compared with a
step of the first encoder (optimizer included), measured at 16 images and scaled by the number of images. Then against
loops in Python, image by image: over all pairs of a patch and a cell, and over the cells that a patch touches only.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from memory import peak_bytes
from step_overhead import Setting, aps, aps_backbone, aps_model, seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from views_baselines import aps_samplings, aps_uncovered

from hf_ssl import APSConfig, APSForPreTraining, sample_patches
from hf_ssl.models.aps import APSViews, APSViewsConfig
from hf_ssl.views import Draws, overlap_ratio


SETTINGS = [Setting("vit-tiny", 32, 2, 8), Setting("vit-small", 32, 2, 4)]
STEP_IMAGES = 16
BATCHES = (128, 512)
CHECKED_IMAGES = 16
# Images in a measurement of each loop; the first is much the slower.
ALL_CELLS_IMAGES, TOUCHED_CELLS_IMAGES = 8, 64
# A measurement repeats the sampling until this many images are done.
MEASURED_IMAGES = 4096

Box = list[int]
Run = Callable[[], None]


def forward_backward(model: APSForPreTraining, batch: dict[str, Tensor]) -> None:
    model(**batch).loss.backward()


def encoder_runs(setting: Setting) -> list[Run]:
    """A step on a quarter of the patches, and one on all of them."""
    torch.manual_seed(0)
    runs: list[Run] = []
    for sampling in ({"sampling_ratio": 0.25}, {"sampling_ratio": 1.0, "num_samplings": 1}):
        model, batch = aps_model(setting, setting.batch_size, "cpu", **sampling)
        runs.append(partial(forward_backward, model.train(), batch))
    return runs


def count_flops(run: Run) -> int:
    """
    Floating-point operations of a call.

    Raises:
        `RuntimeError`: attention was not counted in forward or in backward, as where it is not one operation.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    attention = [str(op) for op in counter.get_flop_counts()["Global"] if "scaled_dot_product" in str(op)]
    if sorted(name.endswith("_backward") for name in attention) != [False, True]:
        raise RuntimeError(f"The operations of attention that were counted are {attention}.")
    return counter.get_total_flops()


def median_and_range(ratios: Iterable[float], digits: int = 3) -> str:
    ordered = sorted(ratios)
    return f"{statistics.median(ordered):.{digits}f} | {ordered[0]:.{digits}f}–{ordered[-1]:.{digits}f}"


def print_header(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def print_encoders(rounds: int) -> None:
    print_header(
        *("encoder", "batch", "GFLOPs, quarter", "all", "quarter / all", "peak, MB, quarter", "all", "quarter / all"),
        *("step, ms, quarter", "all", "quarter / all", "range"),
    )
    for setting in SETTINGS:
        runs = encoder_runs(setting)
        for run in runs:
            run()  # gradients are allocated here
        flops = [count_flops(run) / 1e9 for run in runs]
        peaks = [peak_bytes(run)[0] / 2**20 for run in runs]
        for run in runs:
            seconds(run, 3, "cpu", torch.float32)  # warm up
        times = [[seconds(run, 1, "cpu", torch.float32) for run in runs] for _ in range(rounds)]
        quarter, whole = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        print(
            f"| {setting} | {setting.batch_size} | {flops[0]:.1f} | {flops[1]:.1f} | {flops[0] / flops[1]:.3f} | "
            f"{peaks[0]:.1f} | {peaks[1]:.1f} | {peaks[0] / peaks[1]:.3f} | {quarter:.0f} | {whole:.0f} | "
            f"{median_and_range(a / b for a, b in times)} |",
            flush=True,
        )


class Sampler:
    """Samples patches for a batch of images, as the views do."""

    def __init__(self, config: APSConfig, num_images: int):
        self.config, self.num_images = config, num_images
        self.index = torch.arange(num_images)
        sizes = torch.full((num_images, 2), config.backbone_config.image_size)
        views = APSViews(APSViewsConfig(), config)
        self.boxes = views.view_boxes(torch.zeros_like(self.index), self.index, sizes)

    def __call__(self) -> Tensor:
        draws = Draws.for_samples(0, torch.zeros_like(self.index), self.index, view=2)
        return sample_patches(
            self.boxes,
            draws,
            self.config.grid,
            self.config.num_samplings,
            self.config.num_sampled_patches,
            self.config.sampling_power,
        )

    def seconds_per_image(self) -> float:
        """CPU-seconds for all samplings of an image."""
        repeat = max(1, MEASURED_IMAGES // self.num_images)
        return seconds(self, repeat, "cpu", torch.float32) / self.num_images


def rectangles(box: Box, grid: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Top, left, bottom and right of each patch of a view, in pixels of the source."""
    top, left, height, width = box[0], box[1], box[2] / grid[0], box[3] / grid[1]
    return [
        (top + row * height, left + column * width, top + (row + 1) * height, left + (column + 1) * width)
        for row in range(grid[0])
        for column in range(grid[1])
    ]


def uncovered_by_loops(first: Box, second: Box, selected: list[int], grid: tuple[int, int]) -> np.ndarray:
    """The share of each cell of the second view's grid that the selected patches of the first one leave uncovered."""
    patches, shares = rectangles(first, grid), []
    for top, left, bottom, right in rectangles(second, grid):
        covered = 0.0
        for patch in selected:
            height = min(bottom, patches[patch][2]) - max(top, patches[patch][0])
            width = min(right, patches[patch][3]) - max(left, patches[patch][1])
            if height > 0 and width > 0:
                covered += height * width
        share = 1 - covered / ((bottom - top) * (right - left))
        shares.append(share if share >= 1e-6 else 0.0)
    return np.array(shares)


def sample_by_loops(first: Box, second: Box, config: APSConfig) -> None:
    """All samplings of an image."""
    num_patches, count = config.grid[0] * config.grid[1], config.num_sampled_patches
    order = np.random.permutation(num_patches).tolist()
    for start in range(0, config.num_samplings * count, count):
        uncovered = uncovered_by_loops(first, second, order[start : start + count], config.grid)
        weights = uncovered**config.sampling_power
        np.random.choice(num_patches, count, replace=False, p=weights / weights.sum())


def check_loops(config: APSConfig) -> None:
    """Raise `AssertionError` unless the loops compute the same shares as the library."""
    sampler = Sampler(config, CHECKED_IMAGES)
    selected = sampler()[:, 0].transpose(0, 1)
    expected = overlap_ratio(sampler.boxes[:, :1], sampler.boxes[:, 1:], selected, config.grid).numpy()
    for image, (first, second) in enumerate(sampler.boxes.tolist()):
        for sampling, patches in enumerate(selected[image]):
            for found in (
                uncovered_by_loops(first, second, patches.tolist(), config.grid),
                aps_uncovered(first, second, patches.numpy(), config.grid[0]),
            ):
                np.testing.assert_allclose(found, expected[image, sampling], rtol=0, atol=1e-12)


def print_sampling(config: APSConfig, rounds: int) -> None:
    step, _ = aps(SETTINGS[0], STEP_IMAGES, "cpu")
    samplers = [Sampler(config, size) for size in BATCHES]
    for run in (step, step, *samplers):
        run()  # warm up
    times = [
        (seconds(step, 1, "cpu", torch.float32) / STEP_IMAGES, *(sampler.seconds_per_image() for sampler in samplers))
        for _ in range(rounds)
    ]
    print_header(
        "batch", "sampling per step, ms", "step, scaled, ms", "sampling / step, %", "range", "images/s sampled"
    )
    per_step = statistics.median(row[0] for row in times)
    for i, size in enumerate(BATCHES, start=1):
        per_image = statistics.median(row[i] for row in times)
        percent = [100 * row[i] / config.num_samplings / row[0] for row in times]
        print(
            f"| {size} | {per_image / config.num_samplings * size * 1e3:.2f} | {per_step * size * 1e3:.0f} | "
            f"{median_and_range(percent)} | {1 / per_image:.0f} |",
            flush=True,
        )


def print_loops(config: APSConfig, rounds: int) -> None:
    sampler = Sampler(config, BATCHES[0])
    pairs = sampler.boxes.tolist()

    def all_cells() -> None:
        for first, second in pairs[:ALL_CELLS_IMAGES]:
            sample_by_loops(first, second, config)

    def touched_cells() -> None:
        for first, second in pairs[:TOUCHED_CELLS_IMAGES]:
            aps_samplings(first, second, config.grid[0])

    sampler()  # warm up
    times = [
        (
            sampler.seconds_per_image(),
            seconds(all_cells, 1, "cpu", torch.float32) / ALL_CELLS_IMAGES,
            seconds(touched_cells, 1, "cpu", torch.float32) / TOUCHED_CELLS_IMAGES,
        )
        for _ in range(rounds)
    ]
    print_header("loops over", "loops, ms/image", "batched, ms/image", "loops / batched", "range")
    batched = statistics.median(row[0] for row in times) * 1e3
    for i, name in enumerate(("all cells", "touched cells"), start=1):
        loops = statistics.median(row[i] for row in times) * 1e3
        ratios = median_and_range((row[i] / row[0] for row in times), digits=1)
        print(f"| {name} | {loops:.2f} | {batched:.3f} | {ratios} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    config = APSConfig(backbone_config=aps_backbone(SETTINGS[0]))
    np.random.seed(0)
    check_loops(config)
    print(f"cpu, float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print_encoders(args.rounds)
    print_sampling(config, args.rounds)
    print_loops(config, args.rounds)


if __name__ == "__main__":
    main()
