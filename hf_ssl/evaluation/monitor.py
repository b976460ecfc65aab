"""The online kNN monitor: is the encoder that would be published getting better?"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Subset
from transformers import BaseImageProcessor, PreTrainedModel

from ..models import SSLPreTrainedModel
from .features import evaluation_mode, extract_features, pixel_features
from .knn import knn_accuracy
from .search import nearest_neighbors
from .similarity import instance_similarity


NUM_NEIGHBORS = 8  # neighbors of a query that the figure shows
NUM_QUERIES_SHOWN = 6
PROJECTED_AT_ONCE = 4096
MAX_PIXEL_BANK, MAX_PIXEL_QUERIES = 5000, 2000  # pixels are many numbers
NUM_KEYS = 10  # bank images that the shown queries are compared with


class KNNMonitor:
    """
    Weighted kNN accuracy of a model's *exported* encoder, with the feature that its configuration names, through the
    image processor that is published with it. The same images are used at every call, and no random state is touched.

    For figures it keeps, of the first and of the last call, what the first queries are similar to: their nearest bank
    images (`first_neighbors` and `last_neighbors`, indices of shape `(num_shown, neighbors)`), and their cosine similarity
    to a few bank images (`first_similarities` and `last_similarities` of shape `(num_shown, keys)`, float32). Those
    few, `key_indices` of shape `(keys,)`, are chosen in the first call: the first image of each of at most ten classes,
    the classes of the first queries among them; without labels, ten evenly spaced images.

    Args:
        processor (`BaseImageProcessor`):
            The evaluation transform.
        bank (`torch.utils.data.Dataset`):
            Images that vote: items `{"image": uint8 tensor (3, height, width), "label": int}`.
        queries (`torch.utils.data.Dataset`):
            Images that are classified. Without labels, no accuracy is measured; neighbors are still found.
        num_classes (`int`, *optional*):
            Number of classes; unset, the images have no labels.
        k (`int`, *optional*, defaults to 20):
            Neighbors that vote; at most the size of the bank.
        temperature (`float`, *optional*, defaults to 0.07):
            Softness of the votes.
        num_shown (`int`, *optional*, defaults to 6):
            First queries whose neighbors and similarities are kept for the figures.
        which (`str`, *optional*):
            Which encoder is exported, `"student"` or `"teacher"`; unset, the one that the method recommends.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read the images.
        projected (`bool`, *optional*, defaults to `False`):
            Whether images are compared by what the method's loss makes of their features.
        recompute (`bool`, *optional*, defaults to `True`):
            Whether features of the bank are computed in every call; otherwise what the model itself holds of its training
            images votes, if they are projected and it does (see [`~SSLPreTrainedModel.held_features`]).
        num_train_queries (`int`, *optional*, defaults to 0):
            Images of the bank that are classified as well, evenly spaced, by the votes of the others.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        bank: Any,
        queries: Any,
        num_classes: int | None = None,
        k: int = 20,
        temperature: float = 0.07,
        num_shown: int = NUM_QUERIES_SHOWN,
        which: Literal["student", "teacher"] | None = None,
        num_workers: int = 0,
        projected: bool = False,
        recompute: bool = True,
        num_train_queries: int = 0,
    ):
        if not len(bank) or not len(queries):
            raise ValueError("The kNN monitor needs images: raise --knn_bank_samples and --knn_query_samples.")
        self.processor, self.bank, self.queries = processor, bank, queries
        self.num_classes, self.k, self.temperature = num_classes, min(k, len(bank)), temperature
        self.num_shown = min(num_shown, len(queries))
        self.which, self.num_workers = which, num_workers
        self.projected, self.recompute = projected, recompute
        is_train_query = torch.zeros(len(bank), dtype=torch.bool)
        is_train_query[evenly_spaced_indices(len(bank), min(num_train_queries, len(bank) // 2))] = True
        self._train_queries, self._train_voters = is_train_query.nonzero()[:, 0], (~is_train_query).nonzero()[:, 0]
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.first_neighbors: Tensor | None = None
        self.last_neighbors: Tensor | None = None
        self.key_indices: Tensor | None = None
        self.uses_held_features = False  # whether the last call did
        self.compared = "features"  # what the similarities are of
        self.first_similarities: Tensor | None = None
        self.last_similarities: Tensor | None = None
        self._pixels: dict[str, float] | None = None

    def __call__(self, model: SSLPreTrainedModel) -> dict[str, float]:
        """
        Measure a model.

        Args:
            model ([`SSLPreTrainedModel`]): The model; it is left as it is.

        Returns:
            `dict[str, float]`: `knn_top1` and `knn_top5` of the images' features and `knn_top1_pixels` of raw pixels, in
            percent; `knn_top1_train` of images of the bank, if any are classified; empty without labels. The first and the
            last numbers are kept in `first` and `last`.
        """
        encoder = model.export_encoder(self.which)
        queries, labels = self._features(model, encoder, self.queries)
        held = None if self.recompute or not self.projected else model.held_features()
        self.uses_held_features = held is not None
        if held is None:
            bank, bank_labels = self._features(model, encoder, self.bank)
            train_queries = bank[self._train_queries]
        else:
            places = _places(self.bank)
            bank, bank_labels = held.cpu()[places], _labels(self.bank)
            train_queries = queries[:0]
            if len(self._train_queries):
                train_queries = self._features(model, encoder, Subset(self.bank, self._train_queries.tolist()))[0]
        shown = queries[: self.num_shown]
        if self.key_indices is None:
            self.key_indices = self._choose_keys(bank_labels, labels)
        self.last_neighbors = nearest_neighbors(shown, bank, min(NUM_NEIGHBORS, len(bank)))
        self.last_similarities = self._similarities(model, shown, bank[self.key_indices])
        self.last = self._accuracy(bank, bank_labels, queries, labels)
        if self.num_classes is not None:
            if len(self._train_queries) and bank_labels is not None:
                voters = self._train_voters
                of_train = self._accuracy(
                    bank[voters], bank_labels[voters], train_queries, bank_labels[self._train_queries]
                )
                self.last["knn_top1_train"] = of_train["knn_top1"]
            self.last["knn_top1_pixels"] = self._pixel_accuracy()
        if self.first_neighbors is None:
            self.first, self.first_neighbors = self.last, self.last_neighbors
            self.first_similarities = self.last_similarities
        return self.last

    def _features(
        self, model: SSLPreTrainedModel, encoder: PreTrainedModel, images: Any
    ) -> tuple[Tensor, Tensor | None]:
        features, labels = extract_features(
            encoder, self.processor, images, pooling=model.config.feature, num_workers=self.num_workers
        )
        return (self._project(model, features) if self.projected else features), labels

    @torch.no_grad()
    def _project(self, model: SSLPreTrainedModel, features: Tensor) -> Tensor:
        with evaluation_mode(model):
            parts = features.split(PROJECTED_AT_ONCE)
            return torch.cat([model.project(part.to(model.device, model.dtype), self.which).cpu() for part in parts])

    def _similarities(self, model: SSLPreTrainedModel, queries: Tensor, keys: Tensor) -> Tensor:
        """Cosine similarities `(num_queries, num_keys)` where the method's loss compares images."""
        features = torch.cat([queries, keys])
        projections = features if self.projected else self._project(model, features)
        compares = self.projected or projections.shape != features.shape or not torch.equal(projections, features)
        self.compared = "projections" if compares else "features"
        return instance_similarity(projections[: len(queries)], projections[len(queries) :])

    @property
    def settings(self) -> dict[str, Any]:
        """The protocol of the last call, for a report."""
        return {
            "knn_features": "projected" if self.projected else "encoder",
            "knn_bank": "held by the model" if self.uses_held_features else "computed",
            "k": self.k,
            "temperature": self.temperature,
            "num_bank_images": len(self.bank),
            "num_query_images": len(self.queries),
        }

    def _pixel_accuracy(self) -> float:
        """The same protocol on the processed pixels, of some images if there are many; measured once."""
        if self._pixels is None:
            shares = evenly_spaced(self.bank, MAX_PIXEL_BANK), evenly_spaced(self.queries, MAX_PIXEL_QUERIES)
            bank, queries = (pixel_features(self.processor, images, num_workers=self.num_workers) for images in shares)
            self._pixels = self._accuracy(*bank, *queries)
        return self._pixels["knn_top1"]

    def _choose_keys(self, bank_labels: Tensor | None, labels: Tensor | None) -> Tensor:
        """Indices of the bank images that the shown queries are compared with, in order of their classes."""
        if self.num_classes is None or bank_labels is None or labels is None:
            return evenly_spaced_indices(len(self.bank), NUM_KEYS)
        first: dict[int, int] = {}
        for index, label in enumerate(bank_labels.tolist()):
            first.setdefault(label, index)
        candidates = dict.fromkeys([*labels[: self.num_shown].tolist(), *sorted(first)])
        classes = [label for label in candidates if label in first][:NUM_KEYS]
        return torch.tensor([first[label] for label in sorted(classes)])

    def _accuracy(
        self, bank: Tensor, bank_labels: Tensor | None, queries: Tensor, labels: Tensor | None
    ) -> dict[str, float]:
        if self.num_classes is None or bank_labels is None or labels is None:
            return {}
        measured = knn_accuracy(
            queries,
            labels,
            bank,
            bank_labels,
            self.num_classes,
            k=min(self.k, len(bank)),
            temperature=self.temperature,
        )
        return {name: measured[name] for name in ("knn_top1", "knn_top5")}


def _places(dataset: Any) -> Tensor:
    """Where the items of a subset are in the dataset that it is of."""
    if isinstance(dataset, Subset):
        return _places(dataset.dataset)[torch.tensor(dataset.indices)]
    return torch.arange(len(dataset))


def _labels(dataset: Any) -> Tensor | None:
    """The labels of a subset of a source of `hf_ssl.data`, without reading its images."""
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return None if labels is None else labels[torch.tensor(dataset.indices)]
    own: Tensor | None = dataset.labels
    return own


def evenly_spaced_indices(size: int, count: int) -> Tensor:
    """At most `count` of the indices below `size`, evenly spaced, int64."""
    return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64).long()


def evenly_spaced(dataset: Any, count: int) -> Any:
    """At most `count` items of a map-style dataset, evenly spaced, so that sorted classes are all met."""
    size = len(dataset)
    if size <= count:
        return dataset
    return Subset(dataset, evenly_spaced_indices(size, count).tolist())
