"""Map-style datasets that feed training: every batch is a flat dictionary of tensors."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.compute
import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from .images import decode_rgb, image_size


logger = logging.get_logger(__name__)

MAX_DECODED_BYTES = 4 * 2**30
MAX_HASHED_BYTES = 4 * 2**30  # of encoded photos, seconds of work
NUM_SAMPLED = 256  # images that are looked at in place of all
READ_BATCH_SIZE = 1024


class PhotoViews(Protocol):
    """
    What a source asks of the views it renders: boxes for a whole batch first, then pixels photo by photo.

    Views may also have `augment_crops`, a function from the batch that was rendered to one with other pixels, and
    `crops_when_read`, which says whether images of one size are rendered as photos are.
    """

    def boxes(self, epoch: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
        """
        Draws the boxes of a batch.

        Args:
            epoch (`torch.Tensor` of shape `(batch_size,)`):
                Epoch of each sample, int64.
            index (`torch.Tensor` of shape `(batch_size,)`):
                Index of each sample, int64.
            sizes (`torch.Tensor` of shape `(batch_size, 2)`):
                Height and width of each photo, int64.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_views, 5)`: Top, left, height, width and flip flag, int64.
        """
        ...

    def render(self, photo: PIL.Image.Image, boxes: Tensor) -> dict[str, Tensor]:
        """
        Renders the views of one photo.

        Args:
            photo (`PIL.Image.Image`):
                The decoded photo in mode RGB.
            boxes (`torch.Tensor` of shape `(num_views, 5)`):
                The boxes drawn for it.

        Returns:
            `dict[str, torch.Tensor]`: uint8 tensors, the same names and shapes for every photo.
        """
        ...


def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Hands on the batch that a source has already collated.

    Args:
        batch (`dict[str, torch.Tensor]`):
            What `__getitems__` of a source returned.

    Returns:
        `dict[str, torch.Tensor]`: The same dictionary.
    """
    return batch


def render_photos(
    views: PhotoViews, photos: Iterable[PIL.Image.Image], sizes: Tensor, epoch: Tensor, index: Tensor
) -> dict[str, Tensor]:
    """
    Cuts the views of photos out of them, as data-loading workers do.

    Args:
        views ([`PhotoViews`]):
            The views.
        photos (`Iterable[PIL.Image.Image]`):
            `batch_size` decoded photos in mode RGB, of which one at a time is asked for.
        sizes (`torch.Tensor` of shape `(batch_size, 2)`):
            Height and width of each photo, int64.
        epoch (`torch.Tensor` of shape `(batch_size,)`):
            Epoch of each sample, int64.
        index (`torch.Tensor` of shape `(batch_size,)`):
            Index of each sample, int64.

    Returns:
        `dict[str, torch.Tensor]`: a training batch: the tensors that the views rendered, stacked; `boxes` of shape
        `(batch_size, num_views, 5)`; `index` and `epoch`.
    """
    boxes = views.boxes(epoch, index, sizes)
    rendered = [views.render(photo, of_photo) for photo, of_photo in zip(photos, boxes, strict=True)]
    batch = {name: torch.stack([tensors[name] for tensors in rendered]) for name in rendered[0]}
    batch |= {"boxes": boxes, "index": index, "epoch": epoch}
    augment = getattr(views, "augment_crops", None)
    return batch if augment is None else augment(batch)


class TensorSource(torch.utils.data.Dataset[dict[str, Any]]):
    """
    Images of one size, decoded once and held in memory.

    Args:
        images (`torch.Tensor` of shape `(num_samples, 3, height, width)`):
            All images, uint8.
        labels (`torch.Tensor` of shape `(num_samples,)`, *optional*):
            Class ids, int64.
        views ([`PhotoViews`], *optional*):
            Views to render when a training batch is read; unset, it holds the images.
    """

    collate = staticmethod(collate)

    def __init__(self, images: Tensor, labels: Tensor | None = None, views: PhotoViews | None = None) -> None:
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"There are {len(images)} images but {len(labels)} labels; give one label per image.")
        self.images = images
        self.labels = labels
        self.views = views

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """
        A name for this content: all pixels and labels, in their order.

        Returns:
            `str`: a hash; equal for equal data.
        """
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Reads one sample for evaluation.

        Args:
            index (`int`):
                Index of the sample.

        Returns:
            `dict[str, Any]`: `image`, a uint8 tensor of shape `(3, height, width)`, and, if there are labels, `label`,
            an `int`.
        """
        sample: dict[str, Any] = {"image": self.images[index]}
        if self.labels is not None:
            sample["label"] = int(self.labels[index])
        return sample

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Reads a training batch, or the samples of an evaluation batch where the keys are plain indices.

        Args:
            keys (`Sequence[tuple[int, int]]` or `Sequence[int]` of length `batch_size`):
                Pairs of epoch and index, as [`EpochSampler`] yields them, or indices, as other samplers do.

        Returns:
            `dict[str, torch.Tensor]`, or a list of samples to collate: `images` of shape
            `(batch_size, 3, height, width)`, uint8, or what views rendered, as of a [`PhotoSource`]; `index`, `epoch` and, if
            there are labels, `labels` of shape `(batch_size,)`, int64.
        """
        if isinstance(keys[0], int):
            return [self[key] for key in keys]
        epoch, index = torch.tensor(keys).unbind(dim=1)
        if self.views is None:
            batch = {"images": self.images[index], "index": index, "epoch": epoch}
        else:
            photos = (PIL.Image.fromarray(self.images[i].permute(1, 2, 0).numpy()) for i in index)
            sizes = torch.tensor(self.images.shape[2:]).expand(len(index), 2)
            batch = render_photos(self.views, photos, sizes, epoch, index)
        if self.labels is not None:
            batch["labels"] = self.labels[index]
        return batch


class PhotoSource(torch.utils.data.Dataset[dict[str, Any]]):
    """
    Photos of any size, decoded and cropped when a batch is read.

    Args:
        dataset (`datasets.Dataset`):
            Dataset with an undecoded `image` column and, optionally, a `label` column.
        views ([`PhotoViews`], *optional*):
            The views to render for training; not needed for evaluation.
    """

    collate = staticmethod(collate)

    def __init__(self, dataset: Dataset, views: PhotoViews | None = None) -> None:
        self.dataset = dataset
        self.views = views
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labels(self) -> Tensor | None:
        """Class ids of shape `(num_samples,)`, int64, if there are labels."""
        return torch.tensor(self.dataset["label"][:]) if "label" in self.dataset.column_names else None

    def fingerprint(self) -> str:
        """
        A name for this content: the size of every encoded photo in bytes, all labels, and the encoded photos themselves,
        in their order.

        Of more than 4 GiB only 256 photos, evenly spaced, are read. Another photo in the place of one of the others is
        then noticed by its size: not if both have the same number of bytes, which is rare for JPEG and PNG, but the rule
        for formats without compression.

        It is computed once: what happens to the files later is not noticed.

        Returns:
            `str`: a hash; equal for equal data, wherever the files lie.

        Raises:
            `OSError`: If the file of a photo is not there.
        """
        if self._fingerprint is None:
            lengths = self._encoded_lengths()
            digest = hashlib.sha256(str(len(lengths)).encode())
            digest.update(lengths.data)
            if self.labels is not None:
                digest.update(self.labels.numpy().data)
            photos = self.dataset.select_columns("image")
            if lengths.sum() > MAX_HASHED_BYTES:
                photos = photos.select(np.linspace(0, len(photos) - 1, min(len(photos), NUM_SAMPLED)).astype(int))
            for batch in photos.iter(batch_size=32):
                for image in batch["image"]:
                    if image and image["bytes"] is not None:
                        digest.update(image["bytes"])
                    elif image and image["path"] is not None:
                        digest.update(Path(image["path"]).read_bytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _encoded_lengths(self) -> np.ndarray:
        """Bytes of each encoded photo, -1 where there is none: int64 of shape `(num_samples,)`. No photo is read."""
        image = self.dataset.data.column("image")
        content, path = (pyarrow.compute.struct_field(image, name) for name in ("bytes", "path"))
        table = pyarrow.table({"length": pyarrow.compute.binary_length(content), "path": path})
        # `datasets` would copy the photos of a subset to tell their lengths.
        if self.dataset._indices is not None:
            table = table.take(self.dataset._indices.column(0))
        lengths = table["length"].cast("int64").fill_null(-1).to_numpy().copy()
        paths = table["path"].filter(table["length"].is_null()).to_pylist()
        lengths[lengths == -1] = [-1 if path is None else os.stat(path).st_size for path in paths]
        return lengths

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Reads one sample for evaluation.

        Args:
            index (`int`):
                Index of the sample.

        Returns:
            `dict[str, Any]`: `image`, a uint8 tensor of shape `(3, height, width)`, and, if there are labels, `label`,
            an `int`.

        Raises:
            [`ImageError`]: If the photo cannot be decoded.
        """
        row = self.dataset[index]
        pixels = np.array(decode_rgb(row["image"], row=index))
        sample: dict[str, Any] = {"image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous()}
        if "label" in row:
            sample["label"] = row["label"]
        return sample

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Reads a training batch, or the samples of an evaluation batch where the keys are plain indices.

        For training, one decoded photo at a time is held in memory.

        Args:
            keys (`Sequence[tuple[int, int]]` or `Sequence[int]` of length `batch_size`):
                Pairs of epoch and index, as [`EpochSampler`] yields them, or indices, as other samplers do.

        Returns:
            `dict[str, torch.Tensor]`, or a list of samples to collate: The tensors that the views rendered, stacked;
            `boxes` of shape `(batch_size, num_views, 5)`; `index`, `epoch` and, if there are labels, `labels` of shape
            `(batch_size,)`, int64.

        Raises:
            [`ImageError`]: If a photo cannot be decoded.
        """
        if isinstance(keys[0], int):
            return [self[key] for key in keys]
        if self.views is None:
            raise ValueError("This PhotoSource has no views to render; give `views` to read training batches.")
        epoch, index = torch.tensor(keys).unbind(dim=1)
        rows = self.dataset[index.tolist()]
        photos = list(zip(rows["image"], index.tolist(), strict=True))
        sizes = torch.tensor([image_size(photo, row=row) for photo, row in photos])
        decoded = (decode_rgb(photo, row=row) for photo, row in photos)
        batch = render_photos(self.views, decoded, sizes, epoch, index)
        if "label" in rows:
            batch["labels"] = torch.tensor(rows["label"])
        return batch


class AugmentedSource(torch.utils.data.Dataset[dict[str, Any]]):
    """
    A source whose batches are augmented where they are read: on a CPU, in the data-loading workers.

    Args:
        source ([`TensorSource`] or [`PhotoSource`]):
            The images.
        views (`Callable[[dict[str, Tensor], None], dict[str, Tensor]]`):
            Turns a batch of the source into the inputs of a model.
    """

    def __init__(self, source: Any, views: Callable[[dict[str, Tensor], None], dict[str, Tensor]]) -> None:
        self.source = source
        self.views = views

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """
        Reads a training batch.

        Args:
            keys (`Sequence[tuple[int, int]]` of length `batch_size`):
                Pairs of epoch and index, as [`EpochSampler`] yields them.

        Returns:
            `dict[str, torch.Tensor]`: what the views made of it, with its `index` and `epoch`.
        """
        batch = self.source.__getitems__(keys)
        return {**self.views(batch, None), "index": batch["index"], "epoch": batch["epoch"]}


def make_source(dataset: Dataset, views: PhotoViews | None = None) -> TensorSource | PhotoSource:
    """
    Chooses how a dataset feeds training.

    Images that all have one size and fit `MAX_DECODED_BYTES` are decoded once; anything else is decoded when read.

    Args:
        dataset (`datasets.Dataset`):
            Dataset with an undecoded `image` column and, optionally, a `label` column.
        views ([`PhotoViews`], *optional*):
            The views that a [`PhotoSource`] renders; a [`TensorSource`] only those that say `crops_when_read`.

    Returns:
        [`TensorSource`] or [`PhotoSource`]

    Raises:
        [`ImageError`]: If an image that is looked at cannot be decoded.
    """
    if len(dataset) == 0:
        raise ValueError("The dataset has no samples; give one that has.")
    sampled = np.linspace(0, len(dataset) - 1, min(len(dataset), NUM_SAMPLED)).astype(int).tolist()
    sizes = {image_size(dataset[row]["image"], row=row) for row in sampled}
    height, width = sizes.pop()
    if sizes or len(dataset) * 3 * height * width > MAX_DECODED_BYTES:
        return PhotoSource(dataset, views)
    images = _decode_all(dataset, height, width)
    if images is None:
        return PhotoSource(dataset, views)
    labels = torch.tensor(dataset["label"][:]) if "label" in dataset.column_names else None
    return TensorSource(images, labels, views if getattr(views, "crops_when_read", False) else None)


def _decode_all(dataset: Dataset, height: int, width: int) -> Tensor | None:
    images = np.empty((len(dataset), height, width, 3), dtype=np.uint8)
    with logging.tqdm(total=len(dataset), desc="Decoding images", unit="img") as progress:
        for start in range(0, len(dataset), READ_BATCH_SIZE):
            batch = dataset[start : start + READ_BATCH_SIZE]["image"]
            for row, image in enumerate(batch, start):
                photo = decode_rgb(image, row=row)
                if photo.size != (width, height):
                    logger.warning(
                        f"The image in row {row} is {photo.width}x{photo.height} where those looked at first are "
                        f"{width}x{height}: the images are decoded when they are read, not held in memory."
                    )
                    return None
                images[row] = np.asarray(photo)
            progress.update(len(batch))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
