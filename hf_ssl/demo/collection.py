"""The images that queries are compared with."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from threading import Lock
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..arguments import dataset_name
from ..data import ImageData, make_source
from ..evaluation import FeatureSpec, LoadedEncoder
from ..evaluation.feature_cache import cached_features
from .encoders import ShownEncoder
from .folders import TEMPORARY
from .recent import Recent


NUM_INDEXES = 4
MAX_SECONDS = 300.0  # that features may take of encoders that visitors name


@dataclass(frozen=True)
class Neighbors:
    """
    The images of a collection that are most similar to a query.

    Args:
        places (`torch.Tensor` of shape `(k,)`, int64): Where they are in the collection, the most similar one first.
        similarities (`torch.Tensor` of shape `(k,)`, float32): Cosines of their features and the query's.
    """

    places: Tensor
    similarities: Tensor


class _Watched:
    """Images that tell, a hundred times in all, how often one of them was read."""

    def __init__(self, source: Any):
        self.source, self.count, self.end = source, 0, inf
        self.on_read: Callable[[], Any] = lambda: None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> Any:
        self.count += 1
        if self.count % max(1, len(self) // 50) == 0:  # they are read twice
            self.on_read()
        if time.monotonic() > self.end:
            raise TimeoutError(
                f"It would take too long to look at all {len(self):,} images. Choose a smaller encoder."
            )
        return self.source[place]

    def fingerprint(self) -> str:
        fingerprint: str = self.source.fingerprint()
        return fingerprint


class Collection:
    """
    Images to be found, and images to begin with.

    Args:
        data ([`~hf_ssl.data.ImageData`]):
            The images that are found are those of its training split. The test split, if there is one, gives examples of
            queries; otherwise those that are found do.
        cache_dir (`str`, *optional*):
            Where features are kept, see [`~hf_ssl.evaluation.cached_features`]; those of encoders that visitors name are not.
        batch_size (`int`, *optional*, defaults to 64): Images in a forward pass.
    """

    def __init__(self, data: ImageData, *, cache_dir: str | None = None, batch_size: int = 64):
        self.name, self.class_names = dataset_name(data.name), data.class_names
        self.source = make_source(data.train)
        self.queries = self.source if data.test is None else make_source(data.test)
        self.cache_dir, self.batch_size = cache_dir, batch_size
        self._indexes, self._watched, self._computing = Recent(NUM_INDEXES), Recent(NUM_INDEXES), Lock()
        labels = data.train.with_format(None)["label"] if "label" in data.train.column_names else None
        self.labels = None if labels is None else np.asarray(labels)
        sets = [one for one in (data.train, data.test) if one is not None and "label" in one.column_names]
        self._all_labels = sorted({label for one in sets for label in one.with_format(None)["label"]})

    def __len__(self) -> int:
        return len(self.source)

    @property
    def classes(self) -> list[str]:
        """Names of all classes, also of those that only queries have; none without labels."""
        return [] if self.labels is None else [self.class_name(label) for label in self._all_labels]

    def class_of(self, place: int) -> str | None:
        """Name of an image's class, if it has one."""
        return None if self.labels is None else self.class_name(int(self.labels[place]))

    def class_name(self, label: int) -> str:
        """Name of a class."""
        return str(label) if self.class_names is None else self.class_names[label]

    def image(self, place: int) -> PIL.Image.Image:
        """One of the images."""
        return to_pil_image(self.source[place]["image"])

    def example(self, place: int) -> tuple[PIL.Image.Image, str | None]:
        """An image to begin with, and the name of its class, if it has one."""
        sample = self.queries[place]
        return to_pil_image(sample["image"]), self.class_name(sample["label"]) if "label" in sample else None

    def features(self, encoder: ShownEncoder, on_progress: Callable[[float], Any]) -> tuple[Tensor, Tensor]:
        """
        Features of all images by the trained and by the untrained encoder.

        Args:
            encoder ([`ShownEncoder`]): The encoder.
            on_progress (`Callable`):
                Gets the share of the work that is done, from 0 to 1, now and then; also if another visitor began it.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shape `(num_images, dim)`: float32, of length 1.

        Raises:
            `TimeoutError`: it takes too long for an encoder that a visitor has named.
        """
        images: _Watched = self._watched.get(encoder.fingerprint, lambda: _Watched(self.source))

        def report() -> None:
            on_progress(min(1, images.count / (2 * len(self))))

        def compute() -> tuple[Tensor, ...]:
            with self._computing, tempfile.TemporaryDirectory(dir=TEMPORARY) as temporary:
                images.count, images.on_read = 0, report
                images.end = time.monotonic() + MAX_SECONDS if encoder.is_named else inf
                folder = temporary if encoder.is_named else self.cache_dir
                return tuple(self._features(one, encoder.spec, images, folder) for one in encoder)

        found: tuple[Tensor, Tensor] = self._indexes.get(encoder.fingerprint, compute, on_wait=report)
        return found

    def _features(self, encoder: LoadedEncoder, spec: FeatureSpec, images: _Watched, folder: str | None) -> Tensor:
        (features,) = cached_features(encoder, images, [spec], folder=folder, batch_size=self.batch_size)
        return torch.nn.functional.normalize(features, dim=1)


def nearest(features: Tensor, query: Tensor, k: int) -> Neighbors:
    """
    Search all features; of equally similar ones the first come first.

    Args:
        features (`torch.Tensor` of shape `(num_images, dim)`): Of length 1.
        query (`torch.Tensor` of shape `(dim,)`): Of length 1.
        k (`int`): How many are wanted.

    Returns:
        [`Neighbors`]
    """
    similarities = features @ query
    found = similarities.sort(descending=True, stable=True)
    return Neighbors(found.indices[:k], found.values[:k].clamp(-1, 1))
