"""Which patches of two images an encoder, or geometry, takes for the same thing."""

import math
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import to_pil_image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from ..views import correspondences, patch_edges
from .encoders import LoadedEncoder
from .features import num_prefix_tokens


Grid = tuple[int, int]
AnyImage = PIL.Image.Image | Tensor

# Processors of transformers that override a step, but not where pixels come from.
_PLAIN = ("DINOv3ViTImageProcessor",)
_OTHER_PROCESSOR = (
    "set --image_size in a script, or give the encoder a processor made by hf_ssl.hub.evaluation_processor."
)


@dataclass(frozen=True)
class ImagePatches:
    """
    The patches of an image, as an encoder sees them; made by [`image_patches`].

    Args:
        tokens (`torch.Tensor` of shape `(rows, columns, dim)`): Their tokens, float32, on the CPU.
        area (`torch.Tensor` of shape `(4,)`, float64):
            What the patches cover, `(top, left, height, width)` in pixels of the image. It ends outside of an image
            that the processor pads.
    """

    tokens: Tensor
    area: Tensor

    @property
    def grid(self) -> Grid:
        """Rows and columns."""
        return self.tokens.shape[0], self.tokens.shape[1]

    @property
    def boxes(self) -> Tensor:
        """Where they lie, row by row: `(num_patches, 4)`, `(top, left, height, width)` in pixels of the image."""
        return patch_boxes(self.area, self.grid)

    def patch_at(self, point: tuple[float, float]) -> int:
        """
        The patch that covers a point.

        Args:
            point (`tuple[float, float]`): Vertical and horizontal position, in pixels of the image.

        Returns:
            `int`: its number, row by row from 0.

        Raises:
            `ValueError`: the encoder does not see the point.
        """
        top, left, height, width = self.area.tolist()
        shares = (point[0] - top) / height, (point[1] - left) / width
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(
                f"point={tuple(point)} lies outside of what the encoder sees of the image: rows {top:g} to "
                f"{top + height:g}, columns {left:g} to {left + width:g}."
            )
        row, column = (int(share * count) for share, count in zip(shares, self.grid, strict=True))
        return row * self.grid[1] + column


@dataclass(frozen=True)
class PatchMatches:
    """
    Pairs of patches of two images, or of two views of one image.

    Args:
        pairs (`torch.Tensor` of shape `(num_pairs, 2)`, int64):
            The patch of the first and that of the second image, each counted row by row from 0.
        boxes (`tuple[torch.Tensor, torch.Tensor]` of shape `(num_pairs, 4)`, float64):
            Where the patches lie, `(top, left, height, width)` in pixels of the first and of the second image.
        areas (`tuple[torch.Tensor, torch.Tensor]` of shape `(4,)`, float64):
            What all patches of either image cover.
        grids (`tuple[tuple[int, int], tuple[int, int]]`): Rows and columns of the patches of either image.
        similarities (`torch.Tensor` of shape `(num_pairs,)`, *optional*):
            Cosine similarities, the largest first; of matches by geometry there are none.
    """

    pairs: Tensor
    boxes: tuple[Tensor, Tensor]
    areas: tuple[Tensor, Tensor]
    grids: tuple[Grid, Grid]
    similarities: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def centers(self) -> Tensor:
        """
        Centers of the patches, vertical and horizontal position in pixels: `(num_pairs, 2, 2)`, of the first and of
        the second image.
        """
        return torch.stack([boxes[:, :2] + boxes[:, 2:] / 2 for boxes in self.boxes], dim=1)


def patch_boxes(area: Tensor, grid: Grid) -> Tensor:
    """
    Boxes of the patches that an area is cut into.

    Args:
        area (`torch.Tensor` of shape `(4,)` or `(5,)`):
            `(top, left, height, width)`, and 1 where the patches of a mirrored view begin at the right.
        grid (`tuple[int, int]`): Rows and columns of the patches.

    Returns:
        `torch.Tensor` of shape `(rows * columns, 4)`, float64: `(top, left, height, width)`, row by row.
    """
    edges = patch_edges(area, grid, flip_aware=len(area) == 5)
    vertical, horizontal = (torch.stack([of_axis[:, 0], of_axis.diff()[:, 0]], dim=-1) for of_axis in edges)
    boxes = torch.stack(torch.broadcast_tensors(vertical[:, None], horizontal[None]), dim=-1)
    return boxes.flatten(0, 1).flatten(1)


def mutual_nearest_patches(first: Tensor, second: Tensor, *, ratio: float | None = None) -> tuple[Tensor, Tensor]:
    """
    Pairs of patches of which each is the other's nearest, by the cosine similarity of their tokens.

    Args:
        first (`torch.Tensor` of shape `(N, dim)`): Tokens of the patches of one image.
        second (`torch.Tensor` of shape `(M, dim)`): Those of another.
        ratio (`float`, *optional*):
            Lowe's ratio test, in both directions: a pair is kept if its cosine distance, `1 - similarity`, is less
            than `ratio` times the distance of either patch to the second nearest patch of the other image. Unset, all
            pairs are kept.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the pairs, `(K, 2)`, int64, patches of the first and the second image, and
        their similarities, `(K,)`, float32, both on the CPU. The most similar pair comes first; of patches that are
        equally near, the one with the lower number is the nearest.

    Raises:
        `ValueError`: shapes do not fit, tokens are not finite, or the ratio is not in (0, 1].
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not len(first) or not len(second):
        raise ValueError(
            "`first` and `second` must be tokens of one width, (N, dim) and (M, dim), and not empty; got shapes "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio} must lie in (0, 1].")
    similarities = _cosine_similarities(first, second)
    nearest1, nearest2 = similarities.argmax(1), similarities.argmax(0)
    patches = torch.arange(len(first))
    patches = patches[nearest2[nearest1] == patches]
    pairs = torch.stack([patches, nearest1[patches]], dim=1)
    if ratio is not None:
        distances = 1 - similarities
        best = distances[pairs[:, 0], pairs[:, 1]]
        seconds = [_second_smallest(distances[pairs[:, 0]]), _second_smallest(distances.T[pairs[:, 1]])]
        pairs = pairs[best < ratio * torch.minimum(*seconds)]
    found = similarities[pairs[:, 0], pairs[:, 1]]
    order = found.sort(descending=True, stable=True).indices
    return pairs[order], found[order].float()


def _cosine_similarities(first: Tensor, second: Tensor) -> Tensor:
    """
    `(N, dim)` and `(M, dim)` to `(N, M)`, float64, on the CPU. What is left of rounding is cut off, so that equal
    tokens are equally similar to others wherever they stand.
    """
    normalized = []
    for name, tokens in (("first", first), ("second", second)):
        if not tokens.isfinite().all():
            raise ValueError(f"`{name}` contains NaN or infinite values: check the encoder's weights and its inputs.")
        normalized.append(F.normalize(tokens.detach().cpu().double(), dim=-1))
    return (normalized[0] @ normalized[1].T).round(decimals=12)


def _second_smallest(rows: Tensor) -> Tensor:
    """Of each row; infinite if there is no second number."""
    return rows.kthvalue(2).values if rows.shape[1] > 1 else torch.full_like(rows[:, 0], math.inf)


def match_images(
    encoder: LoadedEncoder,
    first: AnyImage,
    second: AnyImage,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
) -> PatchMatches:
    """
    Pairs of patches of two images of which each is the other's nearest, by the cosine similarity of an encoder's
    tokens.

    Args:
        encoder ([`LoadedEncoder`]):
            Any encoder that makes a grid of tokens, with a processor that [`image_patches`] knows.
        first (`PIL.Image.Image` or `torch.Tensor` of shape `(3, height, width)`, uint8): An image of any size.
        second (`PIL.Image.Image` or `torch.Tensor` of shape `(3, height, width)`, uint8): Another, of any size.
        ratio (`float`, *optional*): Lowe's ratio test, see [`mutual_nearest_patches`].
        threshold (`float`, *optional*): Least similarity of a pair, from -1 to 1.

    Returns:
        [`PatchMatches`]: the most similar pair first.

    Raises:
        `ValueError`: the threshold is out of range, or see [`image_patches`] and [`mutual_nearest_patches`].
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be a cosine similarity, from -1 to 1.")
    patches = [image_patches(encoder, image) for image in (first, second)]
    pairs, similarities = mutual_nearest_patches(*(of_image.tokens.flatten(0, 1) for of_image in patches), ratio=ratio)
    if threshold is not None:
        kept = similarities >= threshold
        pairs, similarities = pairs[kept], similarities[kept]
    boxes = (patches[0].boxes[pairs[:, 0]], patches[1].boxes[pairs[:, 1]])
    return PatchMatches(
        pairs, boxes, (patches[0].area, patches[1].area), (patches[0].grid, patches[1].grid), similarities
    )


def match_boxes(first: Tensor, second: Tensor, grids: tuple[Grid, Grid], strict: bool = False) -> PatchMatches:
    """
    Patches of two crops of one image that show the same place, by geometry alone: PW-Self's rule, see
    [`~hf_ssl.views.correspondences`].

    Args:
        first (`torch.Tensor` of shape `(5,)`, int64):
            The first crop, `(top, left, height, width, flip)` in pixels of the image.
        second (`torch.Tensor` of shape `(5,)`, int64): The second crop.
        grids (`tuple[tuple[int, int], tuple[int, int]]`): Rows and columns of the patches of either crop.
        strict (`bool`, *optional*, defaults to `False`): See [`~hf_ssl.views.correspondences`].

    Returns:
        [`PatchMatches`]: in the authors' order, without similarities; boxes in pixels of the image.

    Raises:
        `ValueError`: a crop has another shape.
    """
    if first.shape != (5,) or second.shape != (5,):
        raise ValueError(
            "`first` and `second` must be (top, left, height, width, flip) of one crop each; got shapes "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    *patches, valid = correspondences(first, second, *grids, strict)
    pairs = torch.stack(patches, dim=-1)[valid]
    boxes = (patch_boxes(first, grids[0])[pairs[:, 0]], patch_boxes(second, grids[1])[pairs[:, 1]])
    return PatchMatches(pairs, boxes, (first[:4].double(), second[:4].double()), grids)


def similarity_map(first: ImagePatches, second: ImagePatches, point: tuple[float, float]) -> Tensor:
    """
    How similar each patch of an image is to what is seen at a point of another one.

    Args:
        first ([`ImagePatches`]): The image that the point lies in.
        second ([`ImagePatches`]): The image that is searched.
        point (`tuple[float, float]`): Vertical and horizontal position, in pixels of the first image.

    Returns:
        `torch.Tensor` of shape `(rows, columns)`, float32: cosine similarities of the patches of the second image.

    Raises:
        `ValueError`: the encoder does not see the point, or tokens are not finite.
    """
    token = first.tokens.flatten(0, 1)[[first.patch_at(point)]]
    return _cosine_similarities(token, second.tokens.flatten(0, 1)).view(second.grid).float()


def image_patches(encoder: LoadedEncoder, image: AnyImage) -> ImagePatches:
    """
    Tokens of the patches of an image, and where the patches lie in it: what the image processor resizes and crops is
    undone.

    Args:
        encoder ([`LoadedEncoder`]):
            An encoder that makes a grid of tokens, or a feature map. Its processor resizes (to a size, or the shorter
            side to a length) and crops at the center, in one of the many classes of transformers that share the code
            for it, or in timm's.
        image (`PIL.Image.Image` or `torch.Tensor` of shape `(3, height, width)`, uint8):
            An image of any size. It is not rotated as EXIF says: see [`~hf_ssl.data.decode_rgb`].

    Returns:
        [`ImagePatches`]

    Raises:
        `TypeError`: the image is something else.
        `ValueError`: the processor does other things to images, or the encoder has no grid of tokens.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise TypeError(
                "An image is a PIL image or a uint8 tensor of shape (3, height, width); got a tensor of type "
                f"{image.dtype} and shape {tuple(image.shape)}."
            )
        photo: PIL.Image.Image = to_pil_image(image)
    elif isinstance(image, PIL.Image.Image):
        photo = image.convert("RGB")
    else:
        raise TypeError(
            f"An image is a PIL image or a uint8 tensor of shape (3, height, width); got {type(image).__name__}."
        )
    area, size = seen_area(encoder.processor, photo.height, photo.width)
    pixel_values = encoder.processor(images=[photo], return_tensors="pt")["pixel_values"]
    if pixel_values.shape[-2:] != size:
        raise ValueError(
            f"{type(encoder.processor).__name__} makes an image of {tuple(pixel_values.shape[-2:])} pixels where its "
            f"settings say {size}, so where patches lie is not known: {_OTHER_PROCESSOR}"
        )
    tokens = grid_tokens(encoder, pixel_values)[0].cpu()
    covered = covered_size(encoder, (tokens.shape[0], tokens.shape[1]), size)
    area[2:] *= torch.tensor([covered[0] / size[0], covered[1] / size[1]], dtype=torch.float64)
    return ImagePatches(tokens, area)


def grid_tokens(encoder: LoadedEncoder, pixel_values: Tensor) -> Tensor:
    """
    Tokens of the patches where they are, of images of any size that the encoder takes; of a convolutional network, its
    last feature map.

    Args:
        encoder ([`LoadedEncoder`]): The encoder.
        pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Processed images.

    Returns:
        `torch.Tensor` of shape `(batch_size, rows, columns, dim)`: float32.

    Raises:
        `ValueError`: the encoder returns no tokens, or their number is not that of a grid.
    """
    model: Any = encoder.model
    states = encoder.outputs(pixel_values).get("last_hidden_state")
    if states is None or states.ndim not in (3, 4):
        raise ValueError(
            f"{encoder.name}, of type {model.config.model_type}, has no tokens of patches: use another encoder."
        )
    if states.ndim == 4:
        channels_last = getattr(getattr(model, "timm_model", None), "output_fmt", None) == "NHWC"
        return (states if channels_last else states.permute(0, 2, 3, 1)).float()
    patches = states[:, num_prefix_tokens(model) :]
    return patches.unflatten(1, patch_grid(encoder, patches.shape[1], tuple(pixel_values.shape[-2:]))).float()


def patch_grid(encoder: LoadedEncoder, num_patches: int, size: tuple[int, ...]) -> Grid:
    """
    Rows and columns of the patches of an image.

    Args:
        encoder ([`LoadedEncoder`]): The encoder.
        num_patches (`int`): Number of the tokens that stand for patches.
        size (`tuple[int, int]`): Height and width of the processed image, in pixels.

    Returns:
        `tuple[int, int]`

    Raises:
        `ValueError`: they are not a grid of squares.
    """
    height, width = size
    sides = patch_size(encoder)
    if sides and (height // sides[0]) * (width // sides[1]) == num_patches:
        return height // sides[0], width // sides[1]
    # Stages of an encoder may have merged patches.
    rows, columns = (round(math.sqrt(num_patches * a / b)) for a, b in ((height, width), (width, height)))
    if rows * columns != num_patches or rows * width != columns * height:
        raise ValueError(
            f"The {num_patches} tokens that {encoder.name} makes of an image of {height} x {width} pixels are no grid "
            "of patches: use images of the encoder's own size."
        )
    return rows, columns


def patch_size(encoder: LoadedEncoder) -> tuple[int, int] | None:
    """Height and width of a patch in pixels, if the encoder's configuration tells it."""
    sides = getattr(encoder.model.config, "patch_size", None)
    return (sides, sides) if isinstance(sides, int) else None if sides is None else (sides[0], sides[1])


def covered_size(encoder: LoadedEncoder, grid: Grid, size: tuple[int, int]) -> tuple[int, int]:
    """
    Height and width of what the patches of a processed image cover: at the bottom and at the right, less than a patch
    may be left over.

    Args:
        encoder ([`LoadedEncoder`]): The encoder.
        grid (`tuple[int, int]`): Rows and columns of the patches.
        size (`tuple[int, int]`): Height and width of the processed image, in pixels.

    Returns:
        `tuple[int, int]`: in pixels.
    """
    sides = patch_size(encoder)
    if sides is None or (size[0] // sides[0], size[1] // sides[1]) != grid:
        return size
    return grid[0] * sides[0], grid[1] * sides[1]


def seen_area(processor: Any, height: int, width: int) -> tuple[Tensor, tuple[int, int]]:
    """
    What of an image is left after an image processor has resized and cropped it.

    Args:
        processor (`BaseImageProcessor`): A processor of transformers, or of timm.
        height (`int`): Height of the image, in pixels.
        width (`int`): Width of the image, in pixels.

    Returns:
        `tuple[torch.Tensor, tuple[int, int]]`: `(top, left, height, width)` in pixels of the image, of shape `(4,)`,
        float64, beyond its borders if the processor pads; and height and width of the processed image.

    Raises:
        `ValueError`: it does other things to images.
    """
    target, crop = (_timm_steps if hasattr(processor, "val_transforms") else _steps)(processor)
    resized = (height, width) if target is None else _resized_size(height, width, target)
    start, size = (0, 0), resized
    if crop is not None:
        start = (_crop_start(resized[0] - crop[0], processor), _crop_start(resized[1] - crop[1], processor))
        size = crop
    vertical, horizontal = height / resized[0], width / resized[1]
    area = [start[0] * vertical, start[1] * horizontal, size[0] * vertical, size[1] * horizontal]
    return torch.tensor(area, dtype=torch.float64), size


# What is resized to, a size or a length of the shorter side, and the size of the central crop, if there is any.
Steps = tuple[tuple[int, int] | int | None, tuple[int, int] | None]


def _steps(processor: Any) -> Steps:
    """Of a processor of transformers."""
    kind = type(processor).__name__
    backend = next((base for base in (TorchvisionBackend, PilBackend) if isinstance(processor, base)), None)
    methods = ("_preprocess", "resize", "center_crop")
    if backend is None or (
        any(getattr(type(processor), name) is not getattr(backend, name) for name in methods) and kind not in _PLAIN
    ):
        raise ValueError(f"Where {kind} takes its pixels from is not known here: {_OTHER_PROCESSOR}")
    if processor.do_pad:
        raise ValueError(
            f"{kind} pads images (do_pad={processor.do_pad}), which is not known here: {_OTHER_PROCESSOR}"
        )
    crop = (processor.crop_size["height"], processor.crop_size["width"]) if processor.do_center_crop else None
    if not processor.do_resize:
        return None, crop
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"], crop
    if size.keys() == {"height", "width"}:
        return (size["height"], size["width"]), crop
    raise ValueError(f"{kind} resizes to size={size}, which is not known here: {_OTHER_PROCESSOR}")


def _timm_steps(processor: Any) -> Steps:
    """Of timm's: its own transform is the truth about it."""
    target, crop = None, None
    for transform in processor.val_transforms.transforms:
        if isinstance(transform, Resize):
            size = transform.size  # a number, or a list of one or two
            target = size if isinstance(size, int) else size[0] if len(size) == 1 else (size[0], size[1])
        elif isinstance(transform, CenterCrop):
            crop = (transform.size[0], transform.size[1])
        elif type(transform).__name__ not in ("MaybeToTensor", "ToTensor", "Normalize"):
            raise ValueError(
                f"Where timm's {type(transform).__name__} takes its pixels from is not known here: {_OTHER_PROCESSOR}"
            )
    return target, crop


def _resized_size(height: int, width: int, target: tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(target, tuple):
        return target
    # The longer side is rounded down.
    return (int(target * height / width), target) if width <= height else (target, int(target * width / height))


def _crop_start(excess: int, processor: Any) -> int:
    """
    Where a central crop begins, if the image is longer by `excess`; negative, if the image is padded. An odd pixel
    goes to the other side here and there.
    """
    if isinstance(processor, PilBackend):
        return excess // 2
    return round(excess / 2) if hasattr(processor, "val_transforms") and excess > 0 else int(excess / 2)


__all__ = [
    "ImagePatches",
    "PatchMatches",
    "grid_tokens",
    "image_patches",
    "match_boxes",
    "match_images",
    "mutual_nearest_patches",
    "similarity_map",
]
