"""What the methods share: the configuration and model base classes, and what a forward pass returns."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.models.swin.modeling_swin import SwinRelativePositionBias
from transformers.models.vit.modeling_vit import ViTEmbeddings
from transformers.utils.generic import ModelOutput

from ..schedules import Schedule
from ..views import Draws


if TYPE_CHECKING:
    from ..callbacks import MethodCallback
    from ..trainer import SSLTrainer


Feature = Literal["class_token", "patch_mean", "pooled"]

# Keys of a saved config.json that are not fields of the config class.
_EXTRA_KEYS = {*PreTrainedConfig().to_dict(), "num_labels", "name_or_path", "attn_implementation", "torch_dtype"}


class SSLConfig(PreTrainedConfig):
    """
    Base of the methods' configurations: everything needed to rebuild the network and its loss.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder, a class of transformers.
        feature (`str`, *optional*, defaults to `"class_token"`):
            What evaluations use as the feature of an image: `"class_token"`, `"patch_mean"` (mean of the patch tokens)
            or `"pooled"`.
        position_interpolation (`str`, *optional*, defaults to `"size"`):
            How position embeddings are resized to other image sizes: `"size"` (as transformers does) or
            `"scale_factor"` (new size + 0.1, as the originals do).
    """

    sub_configs_defaults: ClassVar[dict[str, Any]] = {"backbone_config": SubConfigSpec(AutoConfig, model_type="vit")}
    # Defaults of the method's modes, by name; the first is the default mode.
    modes: ClassVar[dict[str, dict[str, Any]]] = {}

    # A PreTrainedConfig once the configuration is made.
    backbone_config: Any = None
    feature: Feature = "class_token"
    position_interpolation: Literal["size", "scale_factor"] = "size"

    @property
    def selection_metric(self) -> str:
        """What the best model of a run is chosen by, unless something else is asked for."""
        return "knn_top1"

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(key for key in kwargs if key not in _EXTRA_KEYS and not key.startswith("_"))
        if unknown:
            own = {item.name for item in fields(self)} - {item.name for item in fields(PreTrainedConfig)}
            raise ValueError(
                f"{type(self).__name__} has no field {unknown[0]!r}; its fields are {', '.join(sorted(own))}."
            )
        super().__post_init__(**kwargs)


@dataclass
class SSLOutput(ModelOutput):
    """
    What a method's forward pass returns.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*):
            The loss that is minimized.
        losses (`dict[str, torch.Tensor]`, *optional*):
            The terms it is made of, each of shape `()`.
        metrics (`dict[str, torch.Tensor]`, *optional*):
            Other numbers worth logging (accuracies), each of shape `()`.
        logits (`dict[str, torch.Tensor]`, *optional*):
            What the heads computed, by task.
        last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
            The student's tokens.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    metrics: dict[str, Tensor] | None = None
    logits: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None


@dataclass
class Step:
    """
    What a micro-batch is given by its place in the run.

    Args:
        draws ([`Draws`]): One row: a function of (seed, optimizer step, micro-batch, process).
        samples ([`Draws`]): A row for each image: a function of (seed, epoch, index), whatever batch it comes in.
        values (`dict[str, float]`): Values of the schedules at this optimizer step.
        repetition (`int`, *optional*, defaults to 0): Of the steps in a row that a batch is trained for, which one this is.
        index (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*): Which of the training images these are.
    """

    draws: Draws
    samples: Draws
    values: dict[str, float]
    repetition: int = 0
    index: Tensor | None = None


class SSLPreTrainedModel(PreTrainedModel):
    """
    Base of the methods' models. A method has a `student`, trained by gradient, and may have a `teacher`, its frozen
    momentum copy.

    Of several processes, each holds the same parameters and the same buffers: a buffer that depends on the batch is
    computed from the batches of all of them (see [`~hf_ssl.distributed.all_gather`] and
    [`~hf_ssl.models.batch_norm.SyncBatchNorm`]).
    """

    config_class = SSLConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The losses are means over the batch: under gradient accumulation Trainer has to divide them.
    accepts_loss_kwargs = False

    student: nn.Module
    # Of the images that the model holds something of, where it is known.
    held_fingerprint: str | None = None

    def __init__(self, config: SSLConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        if config.backbone_config is not None:
            config.backbone_config._attn_implementation = config._attn_implementation

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Same as [`~transformers.PreTrainedModel.from_pretrained`], which would leave every parameter trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze()
        return loaded

    def freeze(self) -> None:
        """Freeze the parameters that get no gradient in this method: the teacher's, unused tables."""

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps in a row that each loaded batch is trained for; its views are made once."""
        return 1

    def prepare_training(self, num_images: int, seed: int, fingerprint: str) -> None:
        """
        Called once before a run, or its continuation: make what belongs to the training images.

        Args:
            num_images (`int`): Number of training images.
            seed (`int`): The seed of the run.
            fingerprint (`str`): A name for the content of the training images.
        """

    def training_callback(self, trainer: "SSLTrainer") -> "MethodCallback | None":
        """
        What the method does in a run beside its steps.

        Args:
            trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer of the run.

        Returns:
            [`~hf_ssl.callbacks.MethodCallback`], *optional*: nothing, in most methods.
        """
        return None

    def save_state(self, folder: str | Path) -> None:
        """
        Write what belongs to the training images, and is no part of the weights, into a checkpoint or `pretraining/`.

        Args:
            folder (`str` or `Path`): The folder.
        """

    def load_state(self, folder: str | Path) -> None:
        """
        Read what [`~SSLPreTrainedModel.save_state`] wrote, if it did.

        Args:
            folder (`str` or `Path`): The folder.
        """

    def schedules(self, num_steps: int, steps_per_epoch: int) -> dict[str, Schedule]:
        """
        What changes from one optimizer step to the next, beside the learning rate and the weight decay: a teacher's
        momentum, a temperature.

        Args:
            num_steps (`int`): Optimizer steps of the run.
            steps_per_epoch (`int`): Optimizer steps of an epoch.

        Returns:
            `dict[str, Callable[[int], float]]`: schedules by name; their values reach the three methods below.
        """
        return {}

    def step_inputs(self, step: Step) -> dict[str, Any]:
        """
        What `forward` is given in training beside the views: random decisions that are not augmentation (stochastic
        depth, …), scheduled values.

        Args:
            step ([`Step`]): Draws and values of this step.

        Returns:
            `dict[str, Any]`: arguments of `forward`.
        """
        return {}

    def on_step_begin(self, values: dict[str, float]) -> None:
        """Called once for each optimizer step, before its first micro-batch, with the values of the schedules."""

    def on_gradients(self, values: dict[str, float]) -> None:
        """
        Called once for each optimizer step, when the gradients are complete and clipped, with the values of the schedules. A
        parameter whose gradient is dropped here is left as it is by this step.
        """

    def on_optimizer_step(self, values: dict[str, float]) -> None:
        """Called once for each optimizer step, after the parameters have changed, with the values of the schedules."""

    def project(self, features: Tensor, which: Literal["student", "teacher"] | None = None) -> Tensor:
        """
        Where the method compares images: what its loss makes of an encoder's features, in the mode that the model is in.

        Args:
            features (`torch.Tensor` of shape `(num_images, hidden_size)`):
                Features, of the kind that the configuration names.
            which (`str`, *optional*):
                Whose features they are, as for [`~SSLPreTrainedModel.export_encoder`].

        Returns:
            `torch.Tensor` of shape `(num_images, dim)`: the features themselves, where the method does not compare images.
        """
        return features

    def held_features(self) -> Tensor | None:
        """
        What the model itself holds of its training images.

        Returns:
            `torch.Tensor` of shape `(num_images, dim)`, *optional*: projected features, in the order of the training data;
            nothing, in most methods, or before every image was met.
        """
        return None

    def export_encoder(self, which: Literal["student", "teacher"] | None = None) -> PreTrainedModel:
        """
        The encoder to publish, as a class that stock transformers loads.

        Args:
            which (`str`, *optional*):
                `"student"` or `"teacher"`; unset, the one that the method recommends.

        Returns:
            `transformers.PreTrainedModel`: a copy, in eval mode.
        """
        raise TypeError(f"{type(self).__name__} does not say how its encoder is published.")


def init_torch_default(module: nn.Linear | nn.Conv2d) -> None:
    """PyTorch's own initialization of linear and convolution layers, uniform in ±1/√fan_in for weight and bias."""
    bound = module.weight[0].numel() ** -0.5
    init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        init.uniform_(module.bias, -bound, bound)


def init_encoder_weights(module: nn.Module) -> None:
    """A module of a ViT or a Swin, as timm begins: linear layers and tables normal with std 0.02, the patch convolution as in
    PyTorch."""
    if isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        init_torch_default(module)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, ViTEmbeddings):
        init.trunc_normal_(module.cls_token, std=0.02)
        init.trunc_normal_(module.position_embeddings, std=0.02)
    elif isinstance(module, SwinRelativePositionBias):
        init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        init.copy_(module.relative_position_index, module._create_relative_position_index().view(-1))


def drop_path_keep(samples: Draws, rates: list[float], num_views: int = 1) -> Tensor:
    """
    Branches that stochastic depth keeps in one step.

    Args:
        samples ([`Draws`]): Per-sample draws, `batch_size` rows: an image drops the same branches in any batch.
        rates (`list[float]`): Drop probability of each layer, growing linearly from 0.
        num_views (`int`, *optional*, defaults to 1): Views of each image that pass the encoder.

    Returns:
        `torch.Tensor` of shape `(len(rates), 2, num_views * batch_size)`, bool: attention branch (0) and MLP branch (1);
        the first view of all images comes first.
    """
    uniform = samples.uniform("drop_path", num_views, len(rates), 2).permute(2, 3, 1, 0).flatten(2)
    threshold = torch.linspace(0, rates[-1], len(rates), device=uniform.device)
    return uniform >= threshold[:, None, None]
