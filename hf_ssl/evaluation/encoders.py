"""The encoder that is evaluated: anyone's."""

import hashlib
import inspect
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import PIL.Image
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    BaseImageProcessor,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file, extract_commit_hash

from ..backbones import PositionInterpolation, interpolate_positions
from ..hub_errors import clear_errors
from ..models import SSLConfig, SSLPreTrainedModel
from .features import POOLINGS, has_class_token, num_prefix_tokens, pool_features


logger = logging.get_logger(__name__)

Branch = Literal["auto", "student", "teacher"]
Interpolation = Literal["auto", "size", "scale_factor"]

_PRETRAINING = "pretraining"
# What is no part of an architecture.
_ABOUT_THE_FILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "auto_map")


@dataclass(frozen=True)
class FeatureSpec:
    """
    What is computed of an image.

    Args:
        pooling (`str`): One of `POOLINGS`, see [`pool_features`].
        num_blocks (`int`, *optional*, defaults to 1):
            Last transformer blocks whose class tokens, after the final LayerNorm, are put side by side, the last block at the
            end.
        average_pool (`bool`, *optional*, defaults to `False`):
            Whether the mean of the last block's patch tokens comes in as well; with one block, the two are interleaved
            (class token, mean, class token, …), as in DINO's linear evaluation.
        projected (`bool`, *optional*, defaults to `False`):
            Whether the feature is what the method's loss compares images by, see [`~SSLPreTrainedModel.project`].
        gem (`float`, *optional*):
            The generalized mean of the last block's patch tokens comes after the class token, with this exponent: 4 for copy
            detection in DINO.
        scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`):
            Sizes at which the image is looked at, relative to its own. The mean of the features at several sizes is brought
            to length 1.
    """

    pooling: str
    num_blocks: int = 1
    average_pool: bool = False
    projected: bool = False
    gem: float | None = None
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is unknown; use one of {', '.join(POOLINGS)}.")
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks={self.num_blocks} must be at least 1.")
        if (self.num_blocks > 1 or self.average_pool) and self.pooling != "class_token":
            raise ValueError(f"The last blocks give class tokens, and pooling={self.pooling!r} is another feature.")
        if (self.num_blocks > 1 or self.average_pool) and self.projected:
            raise ValueError("A loss projects one feature of an image: leave num_blocks and average_pool out.")
        if self.gem is not None and (self.pooling != "class_token" or self.num_blocks > 1 or self.average_pool):
            raise ValueError("The generalized mean comes after one class token: leave other features out.")
        if self.gem is not None and self.projected:
            raise ValueError("A loss projects one feature of an image: leave gem out.")
        if self.gem is not None and self.gem <= 0:
            raise ValueError(f"gem={self.gem} must be a positive exponent.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={self.scales} must be positive numbers.")

    def __str__(self) -> str:
        words = {"class_token": "class token", "patch_mean": "mean of the patch tokens", "pooled": "pooled output"}
        text = words[self.pooling]
        if self.num_blocks > 1:
            text += f"s of the last {self.num_blocks} blocks"
        text += (" and mean of the patch tokens" * self.average_pool) + ", projected" * self.projected
        if self.gem is not None:
            text += f" and generalized mean of the patch tokens (exponent {self.gem:g})"
        if self.scales != (1.0,):
            text += f", mean at scales {', '.join(f'{scale:.3g}' for scale in self.scales)}"
        return text


class LoadedEncoder:
    """
    An encoder to be evaluated, in eval mode, without gradients.

    Args:
        model (`PreTrainedModel`): The encoder.
        processor (`BaseImageProcessor`): The evaluation transform.
        name (`str`): What it is called in a report.
        pretraining ([`SSLPreTrainedModel`], *optional*): The model that it is a part of, if its loss is to project features.
        branch (`str`, *optional*, defaults to `"auto"`): Which of its encoders this is.
        feature (`str`, *optional*): What its method says is its feature of an image.
        position_interpolation (`str`, *optional*, defaults to `"size"`):
            How a ViT's positions are resized for images of other sizes than its own, see
            [`~hf_ssl.backbones.interpolate_positions`].
        revision (`str`, *optional*): Commit of the Hub that it was loaded from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        name: str,
        pretraining: SSLPreTrainedModel | None = None,
        branch: Branch = "auto",
        feature: str | None = None,
        position_interpolation: PositionInterpolation = "size",
        revision: str | None = None,
    ):
        self.model, self.processor, self.name = model.eval().requires_grad_(False), processor, name
        self.pretraining = None if pretraining is None else pretraining.eval().requires_grad_(False)
        self.branch = branch
        self.revision = revision
        self.position_interpolation = position_interpolation
        if model.config.model_type == "vit" and position_interpolation != "size":
            embeddings: Any = model.embeddings
            embeddings.interpolate_pos_encoding = partial(_resized, embeddings, position_interpolation)
        accepted = inspect.signature(model.forward).parameters
        # At the encoder's own image size it changes nothing.
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        self._is_masked = hasattr(model.config, "mask_ratio") and "noise" in accepted
        self.feature = feature or self._default_feature()

    def _default_feature(self) -> str:
        """The class token, where a LayerNorm comes after the last block, otherwise what the encoder itself pools (CLIP
        normalizes the class token there, BEiT the mean of the patches); timm's know best."""
        norm, is_of_timm = self._final_norm(), self.model.config.model_type == "timm_wrapper"
        if has_class_token(self.model) and norm is not None and not isinstance(norm, nn.Identity) and not is_of_timm:
            return "class_token"
        gray = self.processor(images=PIL.Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        return "patch_mean" if self.outputs(gray).get("pooler_output") is None else "pooled"

    def _final_norm(self) -> Any:
        """What comes after the last block, if the model has it under a name that is known."""
        return getattr(self.model, "layernorm", None) or getattr(self.model, "norm", None)

    def reset(self, seed: int) -> None:
        """Give it random weights, those that transformers begins such a model with."""
        if self.pretraining is not None:
            raise ValueError("Random weights have no projection that was trained with them: leave --features out.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self.model)(self.model.config)
        self.model.load_state_dict(fresh.state_dict())
        self.name += " with random weights"

    def to(self, device: torch.device | str) -> "LoadedEncoder":
        """Move it to a device."""
        self.model.to(device)  # type: ignore[arg-type]
        if self.pretraining is not None:
            self.pretraining.to(device)  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def outputs(self, pixel_values: Tensor, **options: Any) -> ModelOutput:
        """
        What the encoder computes.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Processed images.
            options: Other arguments of its forward pass, such as `output_hidden_states`.

        Returns:
            `ModelOutput`: see the class of the encoder.

        Raises:
            `ValueError`: an image is smaller than a patch.
        """
        side: Any = getattr(self.model.config, "patch_size", None)
        if isinstance(side, int) and min(pixel_values.shape[-2:]) < side:
            size = " x ".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(f"An image of {size} pixels does not fill one patch of {side}: show it larger.")
        inputs = pixel_values.to(self.model.device, self.model.dtype)
        if self._is_masked:  # it would draw an order of the patches
            num_patches = (inputs.shape[-2] // side) * (inputs.shape[-1] // side)
            options["noise"] = torch.arange(num_patches, device=inputs.device).expand(inputs.shape[0], -1)
        return self.model(pixel_values=inputs, **self._options, **options)  # type: ignore[no-any-return]

    @torch.no_grad()
    def features(self, pixel_values: Tensor, specs: list[FeatureSpec], bf16: bool = False) -> list[Tensor]:
        """
        Features of images, of one forward pass.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Processed images.
            specs (`list[FeatureSpec]`): What is wanted.
            bf16 (`bool`, *optional*, defaults to `False`): Whether the encoder computes in bfloat16 where that is safe.

        Returns:
            `list[torch.Tensor]` of shape `(batch_size, dim)`, float32: of length 1 only where they are projected, or are of
            several scales.
        """
        options = {"output_hidden_states": True} if max(spec.num_blocks for spec in specs) > 1 else {}
        pixel_values = pixel_values.to(self.model.device)
        sums: list[Any] = [0.0] * len(specs)
        for scale in dict.fromkeys(scale for spec in specs for scale in spec.scales):
            scaled = pixel_values if scale == 1 else F.interpolate(pixel_values, scale_factor=scale, mode="bilinear")
            with _autocast(self.model.device, bf16):
                outputs = self.outputs(scaled, **options)
                for i, spec in enumerate(specs):
                    if scale in spec.scales:
                        sums[i] = sums[i] + self._of(outputs, spec).float()
        return [
            features if spec.scales == (1.0,) else F.normalize(features / len(spec.scales))
            for features, spec in zip(sums, specs, strict=True)
        ]

    def _of(self, outputs: ModelOutput, spec: FeatureSpec) -> Tensor:
        if spec.num_blocks > 1 or spec.average_pool:
            return self._side_by_side(outputs, spec)
        feature = self._pool(outputs, spec.pooling)
        if spec.gem is not None:
            tokens = outputs["last_hidden_state"][:, num_prefix_tokens(self.model) :].float()
            mean = tokens.clamp_min(1e-6).pow(spec.gem).mean(1).pow(1 / spec.gem)
            return torch.cat([feature.float(), mean], dim=1)
        if not spec.projected:
            return feature
        if self.pretraining is None:
            raise ValueError(f"{self.name} was loaded without what projects its features.")
        return self.pretraining.project(feature, None if self.branch == "auto" else self.branch)

    def _side_by_side(self, outputs: ModelOutput, spec: FeatureSpec) -> Tensor:
        parts = self._class_tokens(outputs, spec.num_blocks)
        if spec.average_pool:
            mean = self._pool(outputs, "patch_mean")
            if spec.num_blocks == 1:
                return torch.stack([parts[0], mean], dim=-1).flatten(1)
            parts.append(mean)
        return torch.cat(parts, dim=-1)

    def _pool(self, outputs: ModelOutput, pooling: str) -> Tensor:
        if pooling == "class_token" and not has_class_token(self.model):
            return pool_features(outputs, pooling, 0)  # refused; the first token may be a register
        return pool_features(outputs, pooling, num_prefix_tokens(self.model))

    def _class_tokens(self, outputs: ModelOutput, count: int) -> list[Tensor]:
        """Of the last blocks, after the final LayerNorm."""
        if count == 1:
            return [self._pool(outputs, "class_token")]
        norm, states = self._final_norm(), outputs.get("hidden_states")
        if norm is None or states is None or not has_class_token(self.model):
            kind = self.model.config.model_type
            raise ValueError(f"Blocks of an encoder of type {kind} cannot be looked at one by one: use 1 block.")
        if count >= len(states):
            raise ValueError(f"{self.name} has {len(states) - 1} blocks, not {count}.")
        return [norm(tokens[:, 0]) for tokens in states[-count:]]

    def fingerprint(self) -> str:
        """
        A name for the weights, and for what is computed with them.

        Returns:
            `str`: a hash; equal for equal encoders, wherever they come from.
        """
        digest = hashlib.sha256()
        for model in filter(None, (self.model, self.pretraining)):
            config = {name: value for name, value in model.config.to_dict().items() if name not in _ABOUT_THE_FILE}
            digest.update(json.dumps(config, sort_keys=True, default=str).encode())
            for name, tensor in sorted(model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def load_encoder(
    model: str,
    *,
    revision: str | None = None,
    branch: Branch = "auto",
    projects: bool = False,
    position_interpolation: Interpolation = "auto",
    trust_remote_code: bool = False,
) -> LoadedEncoder:
    """
    Load an encoder to be evaluated.

    Args:
        model (`str`): What `AutoModel.from_pretrained` loads: a folder, or an id of the Hub.
        revision (`str`, *optional*): Branch, tag or commit of the Hub.
        branch (`str`, *optional*, defaults to `"auto"`):
            `"student"` or `"teacher"` take that branch of the whole model in `pretraining/`; `"auto"` what is published.
        projects (`bool`, *optional*, defaults to `False`):
            Whether the whole model is loaded too, for its [`~SSLPreTrainedModel.project`].
        position_interpolation (`str`, *optional*, defaults to `"auto"`):
            How a ViT's positions are resized for other image sizes than its own, see
            [`~hf_ssl.backbones.interpolate_positions`]; `"auto"` is the way of its pretraining, if the folder tells it, else
            transformers'.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that lies beside the weights may be run.

    Returns:
        [`LoadedEncoder`]

    Raises:
        `ValueError`: it cannot be loaded, weights are missing, or it has no image processor; or its positions cannot be
        resized as is asked for.
        [`~hf_ssl.hub_errors.HubError`]: the Hub does not give it.
    """
    for name, value, allowed in (
        ("branch", branch, Branch),
        ("position_interpolation", position_interpolation, Interpolation),
    ):
        if value not in get_args(allowed):
            raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(get_args(allowed))}.")
    whole: Any = None
    with clear_errors(f"{model} cannot be evaluated.", model, revision):
        config = _pretraining_config(model, revision)
        if branch == "auto" and not projects:
            encoder, info = AutoModel.from_pretrained(
                model,
                revision=revision,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
            _check_complete(info["missing_keys"])
            if info["missing_keys"]:
                encoder.pooler = None  # it would be random
            if encoder.main_input_name != "pixel_values":
                raise ValueError(f"A {type(encoder).__name__} takes {encoder.main_input_name}, and not images alone.")
        elif config is None:
            cached_file(model, CONFIG_NAME, revision=revision)  # which raises, if the Hub gives nothing at all
            raise ValueError(f"There is no {_PRETRAINING}/ in it, and so no student, teacher or projection.")
        else:
            whole, info = AutoModelForPreTraining.from_pretrained(
                model, subfolder=_PRETRAINING, revision=revision, dtype=torch.float32, output_loading_info=True
            )
            _check_complete(info["missing_keys"])
            encoder = whole.export_encoder(None if branch == "auto" else branch)
        processor = AutoImageProcessor.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    if hasattr(encoder.config, "mask_ratio"):
        encoder.config.mask_ratio = 0.0  # a masked autoencoder would hide most of an image
    if position_interpolation == "auto":
        position_interpolation = "size" if config is None else config.position_interpolation
    elif position_interpolation == "scale_factor" and encoder.config.model_type != "vit":
        raise ValueError(f"An encoder of type {encoder.config.model_type} resizes positions in its own way only.")
    feature = None if config is None else config.feature
    commit = extract_commit_hash(cached_file(model, "config.json", revision=revision), None)
    return LoadedEncoder(
        encoder,
        processor,
        public_name(model),
        whole if projects else None,
        branch,
        feature,
        position_interpolation,
        commit,
    )


def _resized(embeddings: Any, method: PositionInterpolation, _: Tensor, height: int, width: int) -> Tensor:
    grid = (height // embeddings.patch_size, width // embeddings.patch_size)
    return interpolate_positions(embeddings.position_embeddings, grid, method, is_square=height == width)


def public_name(model: str) -> str:
    """What an encoder is called in public: its id on the Hub, or the name of its folder."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.exists() else model


def _pretraining_config(model: str, revision: str | None) -> SSLConfig | None:
    """Configuration of the whole model, if it lies beside the encoder."""
    name = f"{_PRETRAINING}/config.json"
    found = cached_file(
        model,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    # The cache also knows which files are not there.
    if found is None and not Path(model).is_dir() and try_to_load_from_cache(model, name, revision=revision) is None:
        logger.warning(
            f"The Hub cannot be reached, and the cache does not tell whether {model} has a {name}, which would name its "
            "feature and how its positions are resized: what any encoder gets is used. Set --pooling and "
            "--position_interpolation, or try again with a connection."
        )
    config = None if found is None else AutoConfig.from_pretrained(Path(found).parent)
    return config if isinstance(config, SSLConfig) else None


def _check_complete(missing_keys: set[str]) -> None:
    """Refuse weights that transformers would leave to chance, but for those of a pooler."""
    missing = sorted(name for name in missing_keys if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"Weights are missing, and would be random: {', '.join(missing[:3])}.")
