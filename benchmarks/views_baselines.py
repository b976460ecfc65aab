"""The view pipelines that `benchmarks/views.py` measures, as data, and what other libraries make of them.

Each builder turns a [`Recipe`] into a function of source images that returns one normalized float32 batch for each view
(and what the recipe's geometry needs besides). None means that the library cannot express it.
"""

import importlib.util
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from hf_ssl.views import join_patches, split_patches


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
RATIO = (3 / 4, 4 / 3)
BLUR_SIGMA = (0.1, 2.0)
PADDING = 4
# A patch of RelViT is cropped to 1 / 1.15 of its side and resized back.
PATCH_CROP = 1.15
# APS: share of the patches that a view keeps, samplings of one pair of views, power of the uncovered share.
APS_RATIO, APS_SAMPLINGS, APS_POWER = 0.25, 4, 3.0

Pipeline = Callable[[Any], Any]
Box = tuple[int, int, int, int, int]
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class ViewRecipe:
    """One view of an image; probabilities are those of each operation."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip: float = 0.5
    jitter: float = 0.8
    factors: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
    grayscale: float = 0.2
    grayscale_first: bool = False
    blur: float = 0.0
    solarize: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """What a method trains on: views of one source image, and the geometry that relates them."""

    name: str
    source: int
    views: tuple[ViewRecipe, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    geometry: Literal["none", "sampling", "correspondences", "patches"] = "none"
    patch_size: int = 0
    shared_boxes: bool = False
    padded_crop: bool = False
    canvas: int | None = None  # side of the square that images are resized to first

    @property
    def mean(self) -> list[float]:
        return list(self.statistics[0])

    @property
    def std(self) -> list[float]:
        return list(self.statistics[1])


def _patchmix(size: int, source: int, smallest: float) -> Recipe:
    colors: dict[str, Any] = {"interpolation": "bicubic", "factors": (0.4, 0.4, 0.2, 0.1)}
    first = ViewRecipe(size, (smallest, 1.0), blur=1.0, **colors)
    second = ViewRecipe(size, (smallest, 1.0), blur=0.1, solarize=0.2, **colors)
    return Recipe(f"patchmix-{size}", source, (first, second), IMAGENET)


def _pw_self(name: str, sizes: tuple[int, int], source: int, patch_size: int, shared_boxes: bool) -> Recipe:
    colors: dict[str, Any] = {"interpolation": "bicubic", "factors": (0.4, 0.4, 0.2, 0.1)}
    views = (
        ViewRecipe(sizes[0], (0.4, 1.0), blur=1.0, **colors),
        ViewRecipe(sizes[0], (0.4, 1.0), blur=0.1, solarize=0.2, **colors),
        *[ViewRecipe(sizes[1], (0.05, 0.4), blur=0.5, **colors)] * 8,
    )
    # The original resizes every image to 256 x 256 pixels, those of CIFAR too.
    canvas = 256 if source != 256 else None
    return Recipe(name, source, views, IMAGENET, "correspondences", patch_size, shared_boxes, canvas=canvas)


def _isl(size: int, source: int, statistics: Any, **options: Any) -> Recipe:
    view = ViewRecipe(size, (0.2, 1.0), jitter=1.0, factors=(0.4, 0.4, 0.4, 0.4), **options)
    return Recipe(f"isl-{size}", source, (view,), statistics)


def _relvit(size: int, source: int, statistics: Any, patch_size: int, padded_crop: bool) -> Recipe:
    return Recipe(
        f"relvit-{size}", source, (ViewRecipe(size),), statistics, "patches", patch_size, padded_crop=padded_crop
    )


RECIPES = (
    _patchmix(32, 32, 0.1),
    _patchmix(224, 256, 0.05),
    Recipe("aps-32", 32, (ViewRecipe(32, (0.15, 1.0)),) * 2, CIFAR10, "sampling", 2),
    _pw_self("pw-self-32", (32, 16), 32, 4, True),
    _pw_self("pw-self-32-own", (32, 16), 32, 4, False),
    _pw_self("pw-self-224", (224, 96), 256, 16, True),
    _isl(32, 32, CIFAR10, flip=0.0),
    _isl(224, 256, IMAGENET, grayscale_first=True),
    _relvit(32, 32, ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), 4, True),
    _relvit(224, 256, IMAGENET, 32, False),
)


def blur_kernel(size: int) -> int:
    """Side of the kernel where a library wants one: a tenth of the image (SimCLR's), at least 9."""
    return max(9, size // 10 | 1)


# torchvision, image by image


class PILBlur:
    """Gaussian blur of a PIL image by a random radius, with probability `p`."""

    def __init__(self, size: int, p: float):
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*BLUR_SIGMA)))


def _tensor_blur(size: int, p: float) -> Callable[[Tensor], Tensor]:
    return v2.RandomApply([v2.GaussianBlur(blur_kernel(size), BLUR_SIGMA)], p=p)


@dataclass(frozen=True)
class Torchvision:
    """One of torchvision's two sets of transforms."""

    transforms: ModuleType
    functional: ModuleType
    blur: Callable[[int, float], Callable]
    to_float: Callable


PIL_TRANSFORMS = Torchvision(transforms, transforms.functional, PILBlur, transforms.ToTensor())
TENSOR_TRANSFORMS = Torchvision(v2, v2.functional, _tensor_blur, v2.ToDtype(torch.float32, scale=True))


def _colors(view: ViewRecipe, library: ModuleType) -> list[Callable]:
    """Color jitter and grayscale, in the view's order."""
    jitter, gray = library.ColorJitter(*view.factors), library.RandomGrayscale(view.grayscale)
    if view.jitter < 1:
        jitter = library.RandomApply([jitter], p=view.jitter)
    return [gray, jitter] if view.grayscale_first else [jitter, gray]


class TorchvisionView:
    """Makes one view of one image and tells its box."""

    def __init__(self, view: ViewRecipe, recipe: Recipe, library: Torchvision):
        self.view, self.functional = view, library.functional
        self.interpolation = InterpolationMode(view.interpolation)
        steps = _colors(view, library.transforms)
        if view.blur:
            steps.append(library.blur(view.size, view.blur))
        if view.solarize:
            steps.append(library.transforms.RandomSolarize(128, p=view.solarize))
        steps += [library.to_float, library.transforms.Normalize(recipe.mean, recipe.std)]
        self.finish = library.transforms.Compose(steps)

    def __call__(self, image: Any) -> tuple[Tensor, Box]:
        # Drawn here, as the stock class does not tell the box.
        box = transforms.RandomResizedCrop.get_params(image, list(self.view.scale), list(RATIO))
        image = self.functional.resized_crop(image, *box, [self.view.size] * 2, self.interpolation)
        flip = int(torch.rand(1) < self.view.flip)
        if flip:
            image = self.functional.hflip(image)
        return self.finish(image), (*box, flip)


def torchvision_pipeline(recipe: Recipe, library: Torchvision) -> Pipeline:
    """
    Image by image: the views, and the geometry by plain loops: for each image, or once for the batch where its boxes
    are shared (drawing the boxes of the batch again for each image, as the original does, is the work of drawing own
    ones).
    """
    if recipe.geometry == "patches":
        return _patch_by_patch(recipe, library)
    makers = [TorchvisionView(view, recipe, library) for view in recipe.views]

    def run(images: Sequence[Any]) -> Any:
        if recipe.canvas is not None:
            images = [library.functional.resize(image, [recipe.canvas] * 2) for image in images]
        made = [[maker(image) for maker in makers] for image in images]
        views = [torch.stack([views[i][0] for views in made]) for i in range(len(makers))]
        boxes = [[box for _, box in views] for views in made]
        if recipe.geometry == "sampling":
            grid = recipe.views[0].size // recipe.patch_size
            samplings = [aps_samplings(first, second, grid) for first, second in boxes]
            return views, [torch.from_numpy(np.stack(indices)) for indices in zip(*samplings, strict=True)]
        if recipe.geometry == "correspondences":
            grids = [view.size // recipe.patch_size for view in recipe.views]
            return views, [all_correspondences(row, grids) for row in (boxes[-1:] if recipe.shared_boxes else boxes)]
        return views

    return run


def _patch_by_patch(recipe: Recipe, library: Torchvision) -> Pipeline:
    """RelViT: crop, color jitter and grayscale patch by patch; the patches of an image are resized together."""
    (view,), kit, side = recipe.views, library.transforms, recipe.patch_size
    if recipe.padded_crop:
        crop = kit.RandomCrop(view.size, padding=PADDING)
    else:
        crop = kit.RandomResizedCrop(view.size, view.scale, RATIO, antialias=True)
    whole = kit.Compose(
        [crop, kit.RandomHorizontalFlip(view.flip), library.to_float, kit.Normalize(recipe.mean, recipe.std)]
    )
    crop_patch, resize = kit.RandomCrop(round(side / PATCH_CROP)), kit.Resize(side, antialias=True)
    colors = kit.Compose(_colors(view, kit))

    def augment(image: Any) -> Tensor:
        patches = split_patches(whole(image)[None], side)[0]
        patches = resize(torch.stack([crop_patch(patch) for patch in patches]))
        return torch.stack([colors(patch) for patch in patches])

    return lambda images: join_patches(torch.stack([augment(image) for image in images]))


# The geometry of APS and PW-Self as plain loops


def aps_samplings(first: Box, second: Box, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """The patches that both views keep in each sampling: two arrays of shape `(samplings, patches)`."""
    count = int(APS_RATIO * grid * grid)
    order = np.random.permutation(grid * grid)
    kept1 = [order[t * count : (t + 1) * count] for t in range(APS_SAMPLINGS)]
    kept2 = []
    for kept in kept1:
        weights = aps_uncovered(first, second, kept, grid) ** APS_POWER
        kept2.append(np.random.choice(grid * grid, count, replace=False, p=weights / weights.sum()))
    return np.stack(kept1), np.stack(kept2)


def aps_uncovered(first: Box, second: Box, kept: np.ndarray, grid: int) -> np.ndarray:
    """The share of each patch of the second view that the kept patches of the first leave uncovered."""
    (top1, left1, height1, width1, _), (top2, left2, height2, width2, _) = first, second
    # In cells of the second view's grid: where the first view begins and how large its patches are.
    top, left = (top1 - top2) * grid / height2, (left1 - left2) * grid / width2
    height, width = height1 / height2, width1 / width2
    covered = [0.0] * (grid * grid)
    for patch in kept.tolist():
        row, column = divmod(patch, grid)
        begin_y, begin_x = top + row * height, left + column * width
        end_y, end_x = begin_y + height, begin_x + width
        for y in range(max(0, math.floor(begin_y)), min(grid, math.ceil(end_y))):
            share = min(end_y, y + 1) - max(begin_y, y)
            for x in range(max(0, math.floor(begin_x)), min(grid, math.ceil(end_x))):
                covered[y * grid + x] += share * (min(end_x, x + 1) - max(begin_x, x))
    uncovered = 1 - np.array(covered)
    return np.where(uncovered < 1e-6, 0.0, uncovered)


def all_correspondences(boxes: Sequence[Box], grids: Sequence[int]) -> list[Pair]:
    """The matched patches of both global views with every other view: 18 pairs for ten views."""
    return [
        match(boxes[teacher], boxes[student], grids[teacher], grids[student])
        for teacher in range(2)
        for student in range(len(boxes))
        if student != teacher
    ]


def match(first: Box, second: Box, grid1: int, grid2: int) -> Pair:
    """The patches of two views that show the same place, in order."""
    top, left = max(first[0], second[0]), max(first[1], second[1])
    bottom, right = min(first[0] + first[2], second[0] + second[2]), min(first[1] + first[3], second[1] + second[3])
    if top >= bottom or left >= right:
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    block1, block2 = (_block(box, grid, top, left, bottom, right) for box, grid in ((first, grid1), (second, grid2)))
    for axis in range(2):
        short = min(block1.shape[axis], block2.shape[axis])
        block1, block2 = _thin(block1, axis, short), _thin(block2, axis, short)
    return block1.ravel(), block2.ravel()


def _block(box: Box, grid: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """The patches of a view that lie in a part of its source, in the source's order."""
    rows, columns = _cells(top, bottom, box[0], box[2], grid), _cells(left, right, box[1], box[3], grid)
    ids = np.arange(grid * grid).reshape(grid, grid)
    if box[4]:
        ids = ids[:, ::-1]
    return ids[rows[0] : rows[1], columns[0] : columns[1]]


def _cells(begin: int, end: int, start: int, length: int, grid: int) -> tuple[int, int]:
    first = round(grid * ((begin - start) / length))
    return first, first + round(grid * ((end - begin) / length))


def _thin(block: np.ndarray, axis: int, count: int) -> np.ndarray:
    length = block.shape[axis]
    if length == count:
        return block
    return block.take(np.floor(np.linspace(0, length - 1, count)).astype(int), axis)


# kornia, the whole batch at once


def kornia_pipeline(recipe: Recipe) -> Pipeline | None:
    """
    Batched, from uint8 images. The views only: kornia has no geometry for APS and PW-Self. It differs from the other
    pipelines in that crops are not antialiased and a batch shares one order of color jitter; boxes are each image's own.
    """
    if importlib.util.find_spec("kornia") is None:
        return None
    import kornia.augmentation as augmentation

    if recipe.geometry == "patches":
        return _kornia_patches(recipe, augmentation)
    views = [_kornia_view(view, recipe, augmentation) for view in recipe.views]

    def run(images: Tensor) -> list[Tensor]:
        batch = images / 255
        if recipe.canvas is not None:
            batch = interpolate(batch, (recipe.canvas,) * 2, mode="bilinear", antialias=True)
        return [view(batch) for view in views]

    return run


def _kornia_crop(view: ViewRecipe, recipe: Recipe, augmentation: ModuleType) -> Any:
    return augmentation.RandomResizedCrop(
        (view.size,) * 2,
        view.scale,
        RATIO,
        resample=view.interpolation,
        align_corners=False,
        # The faster of both at that size.
        cropping_mode="resample" if view.size <= 32 and recipe.canvas is None else "slice",
    )


def _kornia_colors(view: ViewRecipe, augmentation: ModuleType) -> list[Any]:
    jitter = augmentation.ColorJitter(*view.factors, p=view.jitter)
    gray = augmentation.RandomGrayscale(p=view.grayscale)
    return [gray, jitter] if view.grayscale_first else [jitter, gray]


def _kornia_view(view: ViewRecipe, recipe: Recipe, augmentation: ModuleType) -> Pipeline:
    steps = [_kornia_crop(view, recipe, augmentation)]
    if view.flip:
        steps.append(augmentation.RandomHorizontalFlip(p=view.flip))
    steps += _kornia_colors(view, augmentation)
    if view.blur:
        steps.append(augmentation.RandomGaussianBlur((blur_kernel(view.size),) * 2, BLUR_SIGMA, p=view.blur))
    if view.solarize:
        threshold = 128 / 255
        steps.append(augmentation.RandomSolarize((threshold, threshold), (0.0, 0.0), p=view.solarize))
    return augmentation.AugmentationSequential(*steps, _kornia_normalize(recipe, augmentation))


def _kornia_normalize(recipe: Recipe, augmentation: ModuleType) -> Any:
    return augmentation.Normalize(torch.tensor(recipe.mean), torch.tensor(recipe.std))


def _kornia_patches(recipe: Recipe, augmentation: ModuleType) -> Pipeline:
    """RelViT: the patches of the whole batch as one batch of small images."""
    (view,), side = recipe.views, recipe.patch_size
    if recipe.padded_crop:
        crop = augmentation.RandomCrop((view.size,) * 2, padding=PADDING)
    else:
        crop = _kornia_crop(view, recipe, augmentation)
    whole = augmentation.AugmentationSequential(
        crop, augmentation.RandomHorizontalFlip(p=view.flip), _kornia_normalize(recipe, augmentation)
    )
    patchwise = augmentation.AugmentationSequential(
        augmentation.RandomCrop((round(side / PATCH_CROP),) * 2, cropping_mode="resample"),
        augmentation.Resize((side, side), align_corners=False),
        *_kornia_colors(view, augmentation),
    )

    def run(images: Tensor) -> Tensor:
        patches = split_patches(whole(images / 255), side)
        return join_patches(patchwise(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]))

    return run


# lightly, image by image


def lightly_pipeline(recipe: Recipe) -> Pipeline | None:
    """
    lightly's multi-view, blur and solarization transforms on PIL images, with the torchvision transforms (v2) that its
    own are made of. The views only; it has nothing for patches.
    """
    if importlib.util.find_spec("lightly") is None or recipe.geometry == "patches":
        return None
    from lightly.transforms.multi_view_transform import MultiViewTransform

    transform = MultiViewTransform([_lightly_view(view, recipe) for view in recipe.views])

    def run(images: Sequence[Image.Image]) -> list[Tensor]:
        if recipe.canvas is not None:
            images = [image.resize((recipe.canvas,) * 2, Image.Resampling.BILINEAR) for image in images]
        return [torch.stack(views) for views in zip(*map(transform, images), strict=True)]

    return run


def _lightly_view(view: ViewRecipe, recipe: Recipe) -> Callable:
    from lightly.transforms.gaussian_blur import GaussianBlur
    from lightly.transforms.solarize import RandomSolarization
    from lightly.transforms.torchvision_v2_compatibility import ToTensor

    crop = v2.RandomResizedCrop(view.size, view.scale, RATIO, InterpolationMode(view.interpolation))
    steps = [crop, v2.RandomHorizontalFlip(view.flip), *_colors(view, v2)]
    if view.blur:
        steps.append(GaussianBlur(prob=view.blur, sigmas=BLUR_SIGMA))
    if view.solarize:
        steps.append(RandomSolarization(prob=view.solarize))
    return v2.Compose([*steps, ToTensor(), v2.Normalize(recipe.mean, recipe.std)])
