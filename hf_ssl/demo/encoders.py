"""The encoders that visitors look through: those of the operator, and those of the Hub that visitors name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
import torch
from huggingface_hub import HfApi, snapshot_download
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from ..evaluation import FeatureSpec, LoadedEncoder, load_encoder
from ..evaluation.encoders import public_name
from ..evaluation.matching import ImagePatches, image_patches
from ..hub_errors import clear_errors
from .photos import Photo, refusal
from .recent import Recent


MAX_WEIGHTS = 1_000_000_000  # bytes
MAX_PARAMETERS = 250_000_000
MAX_LAYERS = 256
MAX_SIDE = 1024  # pixels
NUM_KEPT = 3  # encoders
NUM_PATCHES_KEPT = 64  # photos
_WANTED = ("config.json", "*processor_config.json", "model*.safetensors", "model.safetensors.index.json")
_WANTED_OF_OURS = ("pretraining/config.json",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

POLICY = (
    f"Of the Hub, weights in safetensors of up to {MAX_WEIGHTS // 10**9} GB are loaded, of public repositories and for "
    "architectures that transformers, timm or hf_ssl know. No code of a repository is run."
)


@dataclass(frozen=True)
class ShownEncoder:
    """
    An encoder, and what it was before training.

    Args:
        trained ([`~hf_ssl.evaluation.LoadedEncoder`]): The encoder.
        untrained ([`~hf_ssl.evaluation.LoadedEncoder`]): Its architecture with random weights.
        spec ([`~hf_ssl.evaluation.FeatureSpec`]): Its feature of an image.
        fingerprint (`str`): A hash of its weights.
    """

    trained: LoadedEncoder
    untrained: LoadedEncoder
    spec: FeatureSpec
    fingerprint: str

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
    Encoders by name; the last ones that were asked for stay in memory.

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
        self._encoders, self._patches = Recent(max(NUM_KEPT, len(self.models))), Recent(NUM_PATCHES_KEPT)

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
            raise refusal(str(error)) from error

    def load(self, name: str) -> ShownEncoder:
        """
        An encoder, for the operator: as [`get`], but errors are those of [`~hf_ssl.evaluation.load_encoder`].

        Args:
            name (`str`): One of the operator's names, or an id of the Hub.

        Returns:
            [`ShownEncoder`]
        """
        encoder: ShownEncoder = self._encoders.get(name, lambda: self._load(name))
        return encoder

    def patches(self, encoder: LoadedEncoder, photo: Photo, fingerprint: str) -> ImagePatches:
        """Tokens of the patches of a photo; a visitor who clicks on one photo again and again waits only once."""

        def make() -> ImagePatches:
            try:
                return image_patches(encoder, photo.image)
            except ValueError as error:
                raise refusal(str(error)) from error

        found: ImagePatches = self._patches.get((fingerprint, photo.digest), make)
        return found

    def _check_hub_id(self, name: str) -> None:
        known = f"Choose one of {', '.join(self.names)}"
        if not self.allow_hub_ids:
            raise refusal(f"There is no encoder of this name here. {known}.")
        if not _HUB_ID.fullmatch(name) or ".." in name:
            raise refusal(f"This is no name of an encoder. {known}, or write an id of the Hub, such as org/name.")

    def _load(self, name: str) -> ShownEncoder:
        if name in self.models:
            trained = load_encoder(self.models[name], trust_remote_code=self.trust_remote_code)
        else:
            trained = load_encoder(str(_download(name)))
            trained.name = name
        untrained = deepcopy(trained)
        untrained.reset(seed=0)
        return ShownEncoder(trained, untrained, FeatureSpec(trained.feature), trained.fingerprint())


def _download(name: str) -> Path:
    """
    The files of a model that a visitor has named. The operator's token has no part in it: a visitor is shown nothing that
    is not public.
    """
    with clear_errors(f"{name} is not loaded.", name):
        info = HfApi().model_info(name, files_metadata=True, token=False)
        files = {file.rfilename: file.size or 0 for file in info.siblings or []}
        weights = {file: size for file, size in files.items() if re.fullmatch(r"model[^/]*\.safetensors", file)}
        if not weights:
            raise ValueError("It has no weights in safetensors, the format that is read here.")
        if sum(weights.values()) > MAX_WEIGHTS:
            raise ValueError(
                f"Its weights have {sum(weights.values()) / 1e9:.1f} GB; the limit is {MAX_WEIGHTS / 1e9:.0f} GB."
            )
        folder = Path(
            snapshot_download(name, revision=info.sha, allow_patterns=[*_WANTED, *_WANTED_OF_OURS], token=False)
        )
        _check_config(folder)
    return folder


def _check_config(folder: Path) -> None:
    """
    Refuse what would need code, or a lot of memory: a small file may describe a large model.

    Raises:
        `ValueError`: it is refused.
    """
    config = json.loads((folder / "config.json").read_text())
    kind = config.get("model_type", "timm_wrapper" if "architecture" in config else None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"Its architecture, {kind}, is not known here, and code of repositories is not run.")
    layers = [value for key, value in config.items() if re.search("layers|depth", key) and isinstance(value, int)]
    if max(layers, default=0) > MAX_LAYERS:
        raise ValueError(f"It has {max(layers)} layers; the limit is {MAX_LAYERS}.")
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"It has {count / 1e6:,.0f} million parameters; the limit is {MAX_PARAMETERS // 10**6} million."
        )
    for path in folder.glob("*processor_config.json"):
        sizes = json.loads(path.read_text())
        sides = [sizes.get("size"), sizes.get("crop_size")]
        numbers = [side for size in sides for side in (size.values() if isinstance(size, dict) else [size])]
        if max((side for side in numbers if isinstance(side, (int, float))), default=0) > MAX_SIDE:
            raise ValueError(f"It takes images of {max(filter(None, numbers))} pixels; the limit is {MAX_SIDE}.")


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
