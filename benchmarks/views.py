"""Views: the batched pipelines of the methods against torchvision (PIL images and tensors), kornia and lightly.

    pip install "hf_ssl[bench]"
    OMP_NUM_THREADS=1 python benchmarks/views.py
    OMP_NUM_THREADS=1 python benchmarks/views.py --rows aps,isl-224 --rounds 9 --data path/to/cifar10

Images per CPU-second of the same recipe (`benchmarks/views_baselines.py`), all measured in turn in every round, and the
ratios within the rounds. For ours also: the most memory that is allocated at a time during a call, in copies of the
float32 views that it returns; and the time for an image in a large batch over that in a small one.
"""

import argparse
import itertools
import random
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from memory import peak_bytes
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import to_pil_image
from views_baselines import (
    APS_POWER,
    APS_RATIO,
    APS_SAMPLINGS,
    PIL_TRANSFORMS,
    RATIO,
    RECIPES,
    TENSOR_TRANSFORMS,
    Recipe,
    ViewRecipe,
    kornia_pipeline,
    lightly_pipeline,
    torchvision_pipeline,
)

from hf_ssl import RelViTConfig
from hf_ssl.backbones import vit_config
from hf_ssl.data import load_image_data, make_source
from hf_ssl.models.relvit import RelViTViews, RelViTViewsConfig
from hf_ssl.views import Draws
from hf_ssl.views.geometry import correspondences, overlap_ratio, sampling_probabilities
from hf_ssl.views.pipeline import MultiViewPipeline
from hf_ssl.views.view import View


OURS, BASELINES = "ours", ("PIL", "tensors", "kornia", "lightly")
# By the side of the sources: images in a batch (ours, kornia), for what runs image by image, and the two batches whose
# times are compared.
BATCH = {32: 256, 256: 32}
FEW = {32: 16, 256: 8}
SMALL_AND_LARGE = {32: (64, 512), 256: (8, 64)}
# A measurement repeats a call until it has taken this long.
MEASURED_SECONDS = 0.1


def our_view(recipe: ViewRecipe) -> View:
    brightness, contrast, saturation, hue = recipe.factors
    return View(
        recipe.size,
        scale=list(recipe.scale),
        ratio=list(RATIO),
        interpolation=recipe.interpolation,
        flip=recipe.flip,
        jitter=recipe.jitter,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grayscale=recipe.grayscale,
        grayscale_first=recipe.grayscale_first,
        blur=recipe.blur,
        solarize=recipe.solarize,
    )


def our_pipeline(recipe: Recipe) -> Callable[[Tensor], Any]:
    """Views and geometry of a batch, with new draws in each call."""
    if recipe.geometry == "patches":
        return our_patches(recipe)
    sizes = sorted({view.size for view in recipe.views}, reverse=True)
    groups = {f"views_{size}": [our_view(view) for view in recipe.views if view.size == size] for size in sizes}
    pipeline = MultiViewPipeline(
        groups, recipe.mean, recipe.std, canvas=recipe.canvas, shared_boxes=recipe.shared_boxes
    )
    epochs = itertools.count()

    def run(images: Tensor) -> Any:
        epoch = next(epochs)
        batch = keyed(images, epoch)
        outputs = pipeline(batch, Draws.for_batch(0, epoch) if recipe.shared_boxes else None)
        if recipe.geometry == "sampling":
            draws = Draws.for_samples(0, batch["epoch"], batch["index"])
            return outputs, our_samplings(outputs["boxes"], draws, recipe.views[0].size // recipe.patch_size)
        if recipe.geometry == "correspondences":
            # Shared boxes: all images match alike, once for the batch.
            boxes = outputs["boxes"][:1] if recipe.shared_boxes else outputs["boxes"]
            return outputs, our_correspondences(boxes, *[size // recipe.patch_size for size in sizes])
        return outputs

    return run


def keyed(images: Tensor, epoch: int) -> dict[str, Tensor]:
    index = torch.arange(len(images))
    return {"images": images, "index": index, "epoch": torch.full_like(index, epoch)}


def our_patches(recipe: Recipe) -> Callable[[Tensor], Any]:
    """RelViT's own pipeline."""
    crop = "padded_crop" if recipe.padded_crop else "random_resized_crop"
    config = RelViTViewsConfig(image_augmentation=crop, image_mean=recipe.mean, image_std=recipe.std)
    backbone = vit_config("vit-micro", image_size=recipe.views[0].size, patch_size=recipe.patch_size)
    views, epochs = RelViTViews(config, RelViTConfig(backbone_config=backbone)), itertools.count()
    return lambda images: views(keyed(images, next(epochs)))


def our_samplings(boxes: Tensor, draws: Draws, grid: int) -> tuple[Tensor, Tensor]:
    """APS: the patches that both views keep in each sampling, `(batch_size, samplings, patches)` each."""
    count = int(APS_RATIO * grid * grid)
    kept1 = draws.permutation("sampling/first", grid * grid)[:, : APS_SAMPLINGS * count]
    kept1 = kept1.unflatten(1, (APS_SAMPLINGS, count))
    uncovered = overlap_ratio(boxes[:, 0, None], boxes[:, 1, None], kept1, (grid, grid), flip_aware=False)
    weights = sampling_probabilities(uncovered, APS_POWER)
    return kept1, draws.weighted_choice("sampling/second", weights, count)


def our_correspondences(boxes: Tensor, large: int, small: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """PW-Self: both global views, the first two, with each other and with all local ones."""
    teachers, swapped, locals_ = boxes[:, :2], boxes[:, [1, 0]], boxes[:, None, 2:]
    return [
        correspondences(teachers, swapped, (large, large), (large, large)),
        correspondences(teachers[:, :, None], locals_, (large, large), (small, small)),
    ]


class Contestant(NamedTuple):
    """A pipeline and the images that it is measured on."""

    pipeline: Callable[[Any], Any]
    images: Any

    def run(self) -> Any:
        return self.pipeline(self.images)


def contestants(recipe: Recipe, sources: Tensor) -> dict[str, Contestant]:
    """All that can run the recipe; ours first."""
    batch, few = sources[: BATCH[recipe.source]], sources[: FEW[recipe.source]]
    photos = [to_pil_image(image) for image in few]
    made = {OURS: Contestant(our_pipeline(recipe), batch)}
    for name, pipeline, images in (
        ("PIL", torchvision_pipeline(recipe, PIL_TRANSFORMS), photos),
        ("tensors", torchvision_pipeline(recipe, TENSOR_TRANSFORMS), few),
        ("kornia", kornia_pipeline(recipe), batch),
        ("lightly", lightly_pipeline(recipe), photos),
    ):
        if pipeline is not None:
            made[name] = Contestant(pipeline, images)
    return made


def make_sources(size: int, count: int, folder: str | None) -> Tensor:
    """Images of a data set, or smooth shapes under noise: uint8 of shape `(count, 3, size, size)`."""
    if folder is not None:
        source = make_source(load_image_data(folder, max_train_samples=count).train)
        images = torch.stack([source[i]["image"] for i in range(count)]).float()
    else:
        generator = torch.Generator().manual_seed(0)
        shapes = interpolate(torch.randn(count, 3, 6, 6, generator=generator), (32, 32), mode="bicubic")
        images = 120 + 60 * shapes + 12 * torch.randn(count, 3, 32, 32, generator=generator)
    if images.shape[-1] != size:
        images = interpolate(images, (size, size), mode="bilinear")
    return images.clamp(0, 255).to(torch.uint8)


def seconds_per_image(contestant: Contestant) -> float:
    """CPU-seconds."""
    start, images, passed = time.process_time(), 0, 0.0
    while passed < MEASURED_SECONDS:
        contestant.run()
        images += len(contestant.images)
        passed = time.process_time() - start
    return passed / images


def measure(made: dict[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """CPU-seconds for an image, in each round."""
    for contestant in made.values():
        contestant.run()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, contestant in made.items():
            seconds[name].append(seconds_per_image(contestant))
    return seconds


def ratio(numerators: list[float], denominators: list[float], digits: int = 1) -> str:
    """Median and range of the ratios within the rounds."""
    ratios = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    return f"{statistics.median(ratios):.{digits}f} ({ratios[0]:.{digits}f}–{ratios[-1]:.{digits}f})"


def peak_copies(contestant: Contestant) -> float:
    """Most bytes allocated at a time during a call, over the bytes of the float32 tensors that it returns."""
    contestant.run()
    peak, returned = peak_bytes(contestant.run)
    return peak / float_bytes(returned)


def float_bytes(value: Any) -> int:
    """Bytes of the float32 tensors in a result."""
    if isinstance(value, Tensor):
        return value.nbytes if value.dtype == torch.float32 else 0
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(float_bytes, parts))


def speed_row(recipe: Recipe, sources: Tensor, rounds: int) -> str:
    seconds = measure(contestants(recipe, sources), rounds)
    speeds = [f"{1 / statistics.median(seconds[name]):.0f}" if name in seconds else "-" for name in (OURS, *BASELINES)]
    ratios = [ratio(seconds[name], seconds[OURS]) if name in seconds else "-" for name in BASELINES]
    return f"| {recipe.name} | {' | '.join(speeds + ratios)} |"


def scaling_row(recipe: Recipe, sources: Tensor, rounds: int) -> str:
    small, large = SMALL_AND_LARGE[recipe.source]
    sizes = {"small": small, "large": large}
    made = {name: Contestant(our_pipeline(recipe), sources[:count]) for name, count in sizes.items()}
    seconds = measure(made, rounds)
    batch = BATCH[recipe.source]
    copies = peak_copies(Contestant(our_pipeline(recipe), sources[:batch]))
    return (
        f"| {recipe.name} | {batch} | {copies:.2f} | {small} | {large} | "
        f"{ratio(seconds['large'], seconds['small'], 2)} |"
    )


def header() -> str:
    """What is measured on what."""
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = []
    for name in ("torch", "torchvision", "pillow", "kornia", "lightly"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f'no {name} (pip install "hf_ssl[bench]")')
    processor = processors[0].partition(":")[2].strip() if processors else "unknown processor"
    return f"{processor}, {torch.get_num_threads()} thread(s), {', '.join(versions)}"


def table(title: str, columns: tuple[str, ...]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="Recipes whose names contain one of these, separated by commas.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds of measurements.")
    parser.add_argument("--data", help="Folder of images of 32 pixels (CIFAR-10); by default they are generated.")
    args = parser.parse_args()
    recipes = [recipe for recipe in RECIPES if any(part in recipe.name for part in args.rows.split(","))]
    if not recipes:
        parser.error(f"--rows {args.rows!r} fits none of {', '.join(recipe.name for recipe in RECIPES)}.")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)

    sources = {size: make_sources(size, SMALL_AND_LARGE[size][1], args.data) for size in (32, 256)}
    print(header())
    table(
        "Images per CPU-second (kornia and lightly: the views alone, without the geometry of aps and pw-self)",
        ("recipe", OURS, *BASELINES, *(f"ours / {name}" for name in BASELINES)),
    )
    for recipe in recipes:
        print(speed_row(recipe, sources[recipe.source], args.rounds), flush=True)
    table(
        "Ours: copies of the returned views in memory, and time for an image in a large batch over a small one",
        ("recipe", "batch", "peak", "small", "large", "large / small"),
    )
    for recipe in recipes:
        print(scaling_row(recipe, sources[recipe.source], args.rounds), flush=True)


if __name__ == "__main__":
    main()
