"""Features of a data set under a frozen encoder."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..data import prepare_for_workers, start_worker
from ..distributed import all_gather, rank, world_size


POOLINGS = ("class_token", "patch_mean", "pooled")
LARGEST_PIXELS = 32  # on a side, which are enough to tell neighbors by


def num_prefix_tokens(encoder: PreTrainedModel) -> int:
    """
    How many of an encoder's tokens come first and stand for no patch.

    Args:
        encoder (`PreTrainedModel`): A vision encoder.

    Returns:
        `int`: the class token, and registers, where it has them.
    """
    if encoder.config.model_type == "timm_wrapper":
        return getattr(encoder.timm_model, "num_prefix_tokens", 0)
    embeddings = getattr(encoder, "embeddings", None)
    has_distillation_token = getattr(embeddings, "distillation_token", None) is not None
    registers: int = getattr(encoder.config, "num_register_tokens", None) or 0
    return has_class_token(encoder) + has_distillation_token + registers


def has_class_token(encoder: PreTrainedModel) -> bool:
    """Whether an encoder of transformers, or of timm, has one."""
    holder = getattr(encoder, "timm_model" if encoder.config.model_type == "timm_wrapper" else "embeddings", None)
    return any(getattr(holder, name, None) is not None for name in ("cls_token", "class_embedding"))


def pool_features(outputs: ModelOutput, pooling: str, num_prefix_tokens: int = 1) -> Tensor:
    """
    Turns an encoder's outputs into one feature per image.

    Args:
        outputs (`ModelOutput`):
            What a transformers vision encoder returns: `last_hidden_state` of shape `(batch, prefix + patches, dim)`, class
            token first, or `pooler_output` of shape `(batch, dim)` or `(batch, dim, 1, 1)`.
        pooling (`str`):
            `"class_token"` (first token), `"patch_mean"` (mean of the patches' tokens) or `"pooled"` (the encoder's own
            pooler). Convolutional networks only have the last one.
        num_prefix_tokens (`int`, *optional*, defaults to 1):
            Tokens before those of the patches, see [`num_prefix_tokens`].

    Returns:
        `torch.Tensor` of shape `(batch, dim)`: The features, not normalized.

    Raises:
        `ValueError`: If the pooling is unknown or the outputs lack what it reads.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, got {pooling!r}.")
    if pooling == "pooled":
        pooled = outputs.get("pooler_output")
        if pooled is None:
            raise ValueError("The encoder returns no `pooler_output`: choose `class_token` or `patch_mean`.")
        return pooled.flatten(1)
    tokens = outputs.get("last_hidden_state")
    if tokens is None or tokens.ndim != 3:
        found = "none" if tokens is None else f"shape {tuple(tokens.shape)}"
        raise ValueError(
            f"`{pooling}` needs a `last_hidden_state` of shape (batch, tokens, dim), got {found}: choose `pooled`."
        )
    if pooling == "class_token" and not num_prefix_tokens:
        raise ValueError("The encoder has no class token: choose `patch_mean` or `pooled`.")
    return tokens[:, 0] if pooling == "class_token" else tokens[:, num_prefix_tokens:].mean(dim=1)


@contextmanager
def evaluation_mode(encoder: nn.Module) -> Iterator[None]:
    """Eval mode inside, then every submodule as it was (a model in training may hold a frozen part in eval mode)."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# Places in the batch and pixel values, `(count,)` and `(count, 3, height, width)`, for each size of images; and labels.
ProcessedBatch = tuple[list[tuple[Tensor, Tensor]], list[int]]


class _Processed(Dataset[Any]):
    """
    Reads and processes the images of a batch a few at a time, in the worker: decoded photos are large, and a whole batch
    of them is never held.
    """

    num_at_once = 16

    def __init__(self, dataset: Dataset[dict[str, Any]], processor: BaseImageProcessor):
        self.dataset, self.processor = dataset, processor

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> ProcessedBatch:
        by_size: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        labels: list[int] = []
        for start in range(0, len(indices), self.num_at_once):
            samples = [self.dataset[i] for i in indices[start : start + self.num_at_once]]
            images = [sample["image"] for sample in samples]
            for place, pixels in enumerate(self.processor(images=images, return_tensors="pt")["pixel_values"], start):
                by_size.setdefault(tuple(pixels.shape), []).append((place, pixels))
            labels += [int(sample["label"]) for sample in samples if "label" in sample]
        groups = [tuple(zip(*group, strict=True)) for group in by_size.values()]
        return [(torch.tensor(places), torch.stack(pixels)) for places, pixels in groups], labels


def _collate(batch: ProcessedBatch) -> ProcessedBatch:
    return batch


def processed_batches(
    dataset: Dataset[dict[str, Any]], processor: BaseImageProcessor, batches: Sequence[Sequence[int]], num_workers: int
) -> DataLoader[Any]:
    """
    Reads and processes the images of a dataset, in the order of the batches.

    Args:
        dataset (`torch.utils.data.Dataset`): As for [`extract_features`].
        processor (`BaseImageProcessor`): Resizes and normalizes.
        batches (`Sequence[Sequence[int]]`): Indices of the images of each batch.
        num_workers (`int`): Processes that read the dataset.

    Returns:
        `torch.utils.data.DataLoader`: of each batch, for each size that images come out with, their places in the batch, of
        shape `(count,)`, and `pixel_values` of shape `(count, 3, height, width)`, float32; and the labels as a list, empty if
        there are none.
    """
    prepare_for_workers()
    return DataLoader(
        _Processed(dataset, processor),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_collate,  # type: ignore[arg-type]
        num_workers=num_workers,
        worker_init_fn=start_worker,
        # A loader without a generator of its own draws from the global one and would shift a training run.
        generator=torch.Generator(),
    )


def extract(
    feature_fn: Callable[[dict[str, Tensor]], Tensor],
    processor: BaseImageProcessor,
    dataset: Dataset[dict[str, Any]],
    batch_size: int,
    num_workers: int,
) -> tuple[Tensor, Tensor | None]:
    """
    Applies a function to the images of a dataset, in order. Of several processes, each does its share and gets the rest from
    the others.

    Args:
        feature_fn (`Callable`): Makes rows `(batch, dim)` of `pixel_values` (processed images, `(batch, 3, height, width)`),
            `index` (their places in the dataset, `(batch,)`; those that only make shares equal lie beyond its end) and, where
            they are known, `labels` `(batch,)`.
        processor (`BaseImageProcessor`): Resizes and normalizes.
        dataset (`torch.utils.data.Dataset`): As for [`extract_features`].
        batch_size (`int`): Images in a call.
        num_workers (`int`): Processes that read the dataset.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: rows of shape `(N, dim)`, float32, and labels of shape `(N,)`, int64, on
        the CPU; no labels if the samples have none.
    """
    total = len(dataset)  # type: ignore[arg-type]
    if not total:
        raise ValueError("`dataset` is empty: there is nothing to extract features from.")
    count = math.ceil(total / world_size())  # shares are equal: the last ones wrap around
    first = rank() * count
    if world_size() > 1:
        dataset = Subset(dataset, [(first + i) % total for i in range(count)])
    starts = range(0, count, batch_size)
    loader = processed_batches(
        dataset, processor, [range(start, min(start + batch_size, count)) for start in starts], num_workers
    )
    features = torch.empty(0)
    labels: list[int] = []
    done = 0
    # The bar appears only when there is something to wait for, and leaves no line behind.
    with tqdm(total=count, desc="features", unit=" images", delay=5, leave=False, disable=None) as bar:
        for groups, batch_labels in loader:
            if len(groups) > 1:
                sizes = ", ".join("x".join(map(str, pixels.shape[-2:])) for _, pixels in groups)
                raise ValueError(f"The image processor makes images of different sizes ({sizes}): let it crop them.")
            ((_, pixel_values),) = groups
            index = torch.arange(first + done, first + done + len(pixel_values))
            of_batch = {"pixel_values": pixel_values, "index": index}
            if len(batch_labels) == len(pixel_values):
                of_batch["labels"] = torch.tensor(batch_labels)
            batch = feature_fn(of_batch)
            if not done:
                # Filled in place: kept batches would be views that hold all of the encoder's tokens in memory.
                features = torch.empty(count, batch.shape[1])
            features[done : done + len(batch)] = batch
            labels += batch_labels
            done += len(batch)
            bar.update(len(batch))
    num_labels = int(_gather(torch.tensor([len(labels)])).sum())
    if num_labels not in (0, count * world_size()):
        raise ValueError(f"Only {num_labels} of {total} samples have a `label`: give all of them one, or none.")
    features = _gather(features)[:total]
    return features, _gather(torch.tensor(labels, dtype=torch.int64))[:total] if labels else None


def _gather(rows: Tensor) -> Tensor:
    """Rows of all processes, on the CPU."""
    if world_size() == 1:
        return rows
    device = "cpu" if dist.get_backend() == "gloo" else torch.accelerator.current_accelerator()
    return all_gather(rows.to(device)).cpu()


def extract_features(
    encoder: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Dataset[dict[str, Any]],
    *,
    pooling: str,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    num_workers: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """
    Computes one feature per image with a frozen encoder.

    Where several processes train together, each of them computes a share, and all get all features.

    The encoder runs in eval mode and is left in the mode it came in. No global random state is read or advanced, so
    that this can be called in the middle of training.

    Args:
        encoder (`PreTrainedModel`): A vision encoder that takes `pixel_values`.
        processor (`BaseImageProcessor`): Resizes and normalizes; images of unequal size must come out equal.
        dataset (`torch.utils.data.Dataset`):
            A map-style dataset whose items are `{"image": uint8 tensor (3, height, width), "label": int}`; `label` may
            be absent.
        pooling (`str`): One of `POOLINGS`, see [`pool_features`].
        batch_size (`int`, *optional*, defaults to 256): Number of images in a forward pass.
        device (`torch.device` or `str`, *optional*):
            Where to run; the encoder is moved there and stays. Defaults to where the encoder is.
        num_workers (`int`, *optional*, defaults to 0): Processes that read the dataset.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Features of shape `(N, dim)`, float32, and labels of shape `(N,)`,
        int64, both on the CPU and in the order of the dataset; no labels if the samples have none.

    Raises:
        `ValueError`: If the dataset is empty, only a part of it has labels, or the pooling does not fit the encoder.
    """
    if device is not None:
        encoder.to(device)  # type: ignore[arg-type]

    prefix = num_prefix_tokens(encoder)

    def encode(batch: dict[str, Tensor]) -> Tensor:
        pixel_values = batch["pixel_values"].to(encoder.device, encoder.dtype)
        with torch.inference_mode():
            return pool_features(encoder(pixel_values=pixel_values), pooling, prefix)

    with evaluation_mode(encoder):
        return extract(encode, processor, dataset, batch_size, num_workers)


@torch.no_grad()
def random_projection(features: Tensor, dim: int, seed: int = 0) -> Tensor:
    """
    A random linear map of features, as a classifier that was never trained would make: Xavier-uniform weights without a bias.
    PatchMix's authors measure kNN on 1,000 such numbers of an image.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): The features.
        dim (`int`): Dimensions of the result.
        seed (`int`, *optional*, defaults to 0): Seed of the weights.

    Returns:
        `torch.Tensor` of shape `(N, dim)`.
    """
    bound = math.sqrt(6 / (features.shape[1] + dim))
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(dim, features.shape[1]).uniform_(-bound, bound, generator=generator)
    return features @ weights.to(features).T


def pixel_features(
    processor: BaseImageProcessor, dataset: Dataset[dict[str, Any]], *, batch_size: int = 256, num_workers: int = 0
) -> tuple[Tensor, Tensor | None]:
    """
    Flattens the processed pixels: the features of no encoder at all, the baseline that any encoder should beat. Images of
    more than 32 pixels are shrunk to 32 first, which keeps what neighbors are told apart by, and 7,000 photos in memory.

    Args:
        processor (`BaseImageProcessor`): The processor the encoder uses.
        dataset (`torch.utils.data.Dataset`): As for [`extract_features`].
        batch_size (`int`, *optional*, defaults to 256): Number of images processed at a time.
        num_workers (`int`, *optional*, defaults to 0): Processes that read the dataset.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Features of shape `(N, 3 * height * width)`, at most `(N, 3072)`,
        float32, and labels of shape `(N,)`, int64, or none.

    Raises:
        `ValueError`: If the dataset is empty or only a part of it has labels.
    """

    return extract(lambda batch: flatten_pixels(batch["pixel_values"]), processor, dataset, batch_size, num_workers)


def flatten_pixels(pixel_values: Tensor) -> Tensor:
    """Processed images `(batch_size, 3, height, width)` as features; larger ones are shrunk to 32 x 32 pixels first."""
    if max(pixel_values.shape[-2:]) > LARGEST_PIXELS:
        pixel_values = F.interpolate(pixel_values, size=[LARGEST_PIXELS] * 2, mode="bilinear", antialias=True)
    return pixel_values.flatten(1)
