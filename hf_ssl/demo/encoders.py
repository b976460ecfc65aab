"""The encoders that visitors look through: those of the operator, and those of the Hub that visitors name."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..evaluation import FeatureSpec, LoadedEncoder, load_encoder
from ..evaluation.encoders import public_name
from ..evaluation.matching import ImagePatches, image_patches
from .folders import TEMPORARY
from .hub_policy import POLICY, check, download, in_words
from .photos import Photo, refusal
from .recent import Recent


NUM_KEPT = 3  # encoders that visitors name
NUM_PATCHES_KEPT = 64  # photos
MAX_PATCHES_KEPT = 4 * 2**20  # bytes of the tokens of a photo
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class ShownEncoder:
    """
    An encoder, and what it was before training.

    Args:
        trained ([`~hf_ssl.evaluation.LoadedEncoder`]): The encoder.
        untrained ([`~hf_ssl.evaluation.LoadedEncoder`]): Its architecture with random weights.
        spec ([`~hf_ssl.evaluation.FeatureSpec`]): Its feature of an image.
        fingerprint (`str`): A hash of its weights, and of all else that its features depend on.
        is_named (`bool`): Whether a visitor has named it: of these, nothing is kept on disk.
    """

    trained: LoadedEncoder
    untrained: LoadedEncoder
    spec: FeatureSpec
    fingerprint: str
    is_named: bool

    def __iter__(self) -> Iterator[LoadedEncoder]:
        yield self.trained
        yield self.untrained

    def describe(self) -> str:
        """The encoder in a line of Markdown."""
        model = self.trained.model
        count = sum(parameter.numel() for parameter in model.parameters())
        kind = getattr(model.config, "architecture", model.config.model_type)
        unit, number = ("million", count / 1e6) if count >= 1e6 else ("thousand", count / 1e3)
        return f"**{self.trained.name}**: {kind}, {number:.3g} {unit} parameters; feature: {self.spec}"


def feature_of(encoder: LoadedEncoder, image: PIL.Image.Image, spec: FeatureSpec) -> Tensor:
    """The feature of an image, `(dim,)`, float32, of length 1, on the CPU."""
    pixel_values = encoder.processor(images=[pil_to_tensor(image)], return_tensors="pt")["pixel_values"]
    return torch.nn.functional.normalize(encoder.features(pixel_values, [spec])[0][0].cpu(), dim=0)


class EncoderShelf:
    """
    Encoders by name; the operator's stay in memory, and of those that visitors name the last ones.

    Args:
        models (`Sequence[str]`): The operator's: folders or ids of the Hub. The first is shown when a visitor comes.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code beside the operator's models may be run.
        allow_hub_ids (`bool`, *optional*, defaults to `True`): Whether visitors may name other models of the Hub.

    Raises:
        `ValueError`: there is no model, or two have one name.
    """

    def __init__(self, models: Sequence[str], *, trust_remote_code: bool = False, allow_hub_ids: bool = True):
        self.models = {public_name(model): model for model in models}
        if not models or len(self.models) < len(models):
            raise ValueError(f"models={list(models)} must be at least one model, of different names.")
        self.trust_remote_code, self.allow_hub_ids = trust_remote_code, allow_hub_ids
        self._own, self._named, self._patches = Recent(len(self.models)), Recent(NUM_KEPT), Recent(NUM_PATCHES_KEPT)
        self._loading = Lock()

    @property
    def names(self) -> list[str]:
        """What the operator's encoders are called."""
        return list(self.models)

    def get(self, name: Any) -> ShownEncoder:
        """
        An encoder, loaded if need be.

        Args:
            name (`Any`): What a visitor asks for.

        Returns:
            [`ShownEncoder`]

        Raises:
            `gradio.Error`: there is no such encoder, or it is not loaded here.
        """
        name = name.strip() if isinstance(name, str) else name
        if name in (None, ""):
            name = self.names[0]
        if not isinstance(name, str) or len(name) > 200:
            raise refusal("The encoder is chosen by a name, such as org/name.")
        if name not in self.models:
            self._check_hub_id(name)
        try:
            return self.load(name)
        except (ValueError, OSError) as error:
            raise refusal(str(error).replace(self.models.get(name, name), name)) from error

    def load(self, name: str) -> ShownEncoder:
        """
        An encoder, for the operator: as [`get`], but errors are those of [`~hf_ssl.evaluation.load_encoder`].

        Args:
            name (`str`): One of the operator's names, or an id of the Hub.

        Returns:
            [`ShownEncoder`]
        """
        encoders = self._own if name in self.models else self._named
        encoder: ShownEncoder = encoders.get(name, lambda: self._load(name))
        return encoder

    def patches(self, encoder: LoadedEncoder, photo: Photo, fingerprint: str) -> ImagePatches:
        """Tokens of the patches of a photo; a visitor who clicks on one photo again and again waits only once."""

        def make() -> ImagePatches:
            try:
                return image_patches(encoder, photo.image)
            except ValueError as error:
                raise refusal(str(error)) from error

        found: ImagePatches = self._patches.get((fingerprint, photo.digest), make)
        if found.tokens.nbytes > MAX_PATCHES_KEPT:
            self._patches.forget((fingerprint, photo.digest))
        return found

    def _check_hub_id(self, name: str) -> None:
        known = f"Choose one of {', '.join(self.names)}"
        if not self.allow_hub_ids:
            raise refusal(f"There is no encoder of this name here. {known}.")
        if not _HUB_ID.fullmatch(name) or ".." in name:
            raise refusal(f"This is no name of an encoder. {known}, or write an id of the Hub, such as org/name.")

    def _load(self, name: str) -> ShownEncoder:
        if name in self.models:
            return self._show(self.models[name], name)
        with tempfile.TemporaryDirectory(dir=TEMPORARY) as folder, in_words(name, Path(folder)):
            download(name, Path(folder))
            return self._show(folder, name)

    def _show(self, model: str, name: str) -> ShownEncoder:
        is_named = name not in self.models
        with self._loading:  # how models are initialized, transformers and torch keep in globals
            if is_named:
                check(Path(model))
            trained = load_encoder(model, trust_remote_code=self.trust_remote_code and not is_named)
            trained.name = name
            untrained = deepcopy(trained)
            untrained.reset(seed=0)
        seen = f"{trained.fingerprint()} {trained.feature} {trained.position_interpolation} {trained.processor}"
        fingerprint = hashlib.sha256(seen.encode()).hexdigest()
        return ShownEncoder(trained, untrained, FeatureSpec(trained.feature), fingerprint, is_named)


def encoder_input(shelf: EncoderShelf) -> gr.Dropdown:
    """The choice of an encoder, on top of all tabs."""
    return gr.Dropdown(
        shelf.names,
        value=shelf.names[0],
        label="Encoder",
        info=f"Choose one, or write the id of another. {POLICY}" if shelf.allow_hub_ids else None,
        allow_custom_value=shelf.allow_hub_ids,
        interactive=True,
        elem_id="encoder",
    )
