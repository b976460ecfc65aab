"""RelViT's augmentation of every patch: batched, against torchvision's transforms patch by patch.

    make bench

Images per CPU-second of both, measured in turn in one process, with the same operations and probabilities: a crop of
1 / 1.15 of the side resized back, color jitter (0.8) and grayscale (0.2).
"""

import statistics
import time
from collections.abc import Callable

import torch
from torchvision import transforms

from hf_ssl.models.relvit.views_relvit import augment_patches, draw_patch_augmentation, parse_patch_augmentation
from hf_ssl.views import Draws, join_patches, split_patches


# Image size, patch size, images in a batch, images for the loop.
SETTINGS = [(32, 4, 128, 2), (64, 8, 64, 2), (224, 32, 16, 2)]
OPERATIONS = parse_patch_augmentation("colJitter:0.8-grayScale:0.2")


def batched(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    index = torch.arange(len(images))
    patches = split_patches(images, patch_size)
    draws = Draws.for_samples(0, torch.zeros_like(index), index)
    augmentation = draw_patch_augmentation(draws, OPERATIONS, patches.shape[1], patch_size)
    return join_patches(augment_patches(patches.flatten(0, 1), augmentation).unflatten(0, patches.shape[:2]))


def loop(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    augment = transforms.Compose(
        [
            transforms.RandomCrop(round(patch_size / 1.15)),
            transforms.Resize(patch_size, antialias=True),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
        ]
    )
    patches = split_patches(images, patch_size)
    return join_patches(torch.stack([torch.stack([augment(patch) for patch in image]) for image in patches]))


def images_per_second(function: Callable, images: torch.Tensor, patch_size: int) -> float:
    start = time.process_time()
    function(images, patch_size)
    return len(images) / (time.process_time() - start)


def main() -> None:
    print(f"RelViT's patch augmentation on cpu, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(
        f"{'images':<10} {'batched':>12} {'patch by patch':>15} {'ratio':>7} {'spread':>10}   (images per CPU-second)"
    )
    for image_size, patch_size, batch_size, loop_size in SETTINGS:
        images = torch.randn(batch_size, 3, image_size, image_size)
        few = images[:loop_size]
        batched(images, patch_size), loop(few, patch_size)  # warm up
        pairs = [
            (images_per_second(batched, images, patch_size), images_per_second(loop, few, patch_size))
            for _ in range(9)
        ]
        fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        name = f"{image_size}/{patch_size}"
        print(
            f"{name:<10} {fast:>12.0f} {slow:>15.1f} {statistics.median(ratios):>7.0f} "
            f"{ratios[0]:>5.0f}–{ratios[-1]:.0f}"
        )


if __name__ == "__main__":
    main()
