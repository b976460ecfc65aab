"""A classifier in training: an encoder and a linear layer, and the cross-entropy of its answers."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SwinForImageClassification,
    SwinModel,
    TimmWrapperForImageClassification,
    ViTForImageClassification,
    ViTModel,
)
from transformers.utils import logging

from ...backbones import ENCODERS, SwinTrunk, ViTTrunk, fill_from, interpolate_positions
from ...evaluation.features import evaluation_mode
from ...hub_errors import clear_errors
from ..base import SSLOutput, SSLPreTrainedModel, Step, drop_path_keep, init_encoder_weights, init_torch_default
from ..batch_norm import synchronize_batch_norm
from ..momentum import copy_to_teacher, update_teacher
from .configuration_classification import ClassificationConfig


logger = logging.get_logger(__name__)

_TRUNKS: dict[str, Any] = {"vit": ViTTrunk, "swin": SwinTrunk}


def make_classifier(config: PreTrainedConfig) -> PreTrainedModel:
    """
    The classifier that transformers has of an encoder, to be trained: it begins as the encoder does in pretraining, and its
    batch norms are those of all processes.

    Args:
        config (`PreTrainedConfig`): Configuration of the encoder, with `num_labels`.

    Returns:
        `PreTrainedModel`.
    """
    config._attn_implementation = None  # that of the class, which may have none
    classifier: Any = AutoModelForImageClassification.from_config(config)
    if config.model_type == "timm_wrapper" and classifier.device.type != "meta":
        encoder: Any = ENCODERS["timm_wrapper"](config)
        classifier.timm_model.load_state_dict(encoder.timm_model.state_dict(), strict=False)
    synchronize_batch_norm(classifier)
    return classifier  # type: ignore[no-any-return]


class ClassifierForTraining(SSLPreTrainedModel):
    """
    A classifier in training. ViT and Swin are trained with stochastic depth, as in pretraining; other encoders as the
    classifier that transformers has of them. With `ema_decay` it has a `teacher`: a classifier like it, whose weights are
    the moving average of its own.

    Args:
        config ([`ClassificationConfig`]): Its configuration, with `num_labels`.
    """

    config_class = ClassificationConfig
    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig):
        super().__init__(config)
        backbone_config: Any = config.backbone_config
        self.classifier: nn.Linear | None = None  # of ViT and Swin; others have their own
        if backbone_config.model_type in _TRUNKS:
            self.student = _TRUNKS[backbone_config.model_type](backbone_config, config.drop_path_rate)
            self.classifier = nn.Linear(backbone_config.hidden_size, config.num_labels or 0)
        else:
            backbone_config.num_labels = config.num_labels
            self.student = make_classifier(backbone_config)
        self.post_init()
        if self.classifier is None and not self.head.weight.is_meta:
            init_torch_default(self.head)  # whatever the encoder's own classifier begins with
        self.teacher: ClassifierForTraining | None = None
        if config.ema_decay is not None:
            self.teacher = copy.deepcopy(self)
            self.teacher.config.ema_decay = None
        self.freeze()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Of trunks; others initialize themselves. A Swin's head is its own in the authors' code, and begins as it does.
        if module is self.classifier and isinstance(self.student, ViTTrunk):
            init_torch_default(self.classifier)
        else:
            init_encoder_weights(module)

    @property
    def head(self) -> nn.Linear | nn.Conv2d:
        """The linear layer that tells the classes; some of timm's are convolutions of one pixel."""
        if self.classifier is not None:
            return self.classifier
        student: Any = self.student
        if isinstance(student, TimmWrapperForImageClassification):
            head = student.timm_model.get_classifier()
        else:
            layers = [module for module in student.modules() if isinstance(module, nn.Linear)]
            head = next((layer for layer in reversed(layers) if layer.out_features == self.config.num_labels), None)
        if not isinstance(head, nn.Linear | nn.Conv2d):
            config = self.config.backbone_config
            name = getattr(config, "architecture", config.model_type)
            raise ValueError(f"The classifier of {name} is no single linear layer: fine-tune another encoder.")
        return head

    def freeze(self) -> None:
        """Freeze the teacher; the encoder, if only the classifier is to learn; of encoders of others, what has no part in the
        answer, such as the token of masked patches: DDP would wait for its gradient."""
        if self.teacher is not None:
            self.teacher.requires_grad_(False)
        if self.config.freeze_encoder:
            self.requires_grad_(False)
            self.head.requires_grad_(True)
        elif self.classifier is None and not self.head.weight.is_meta:
            for parameter in self._unused_parameters():
                parameter.requires_grad_(False)

    def _unused_parameters(self) -> list[nn.Parameter]:
        size, parameters = (
            self.config.backbone_config.image_size,
            [p for p in self.student.parameters() if p.requires_grad],
        )
        image = torch.zeros(1, 3, size, size, device=self.device, dtype=self.dtype)
        with evaluation_mode(self.student), torch.enable_grad():
            answer = self.student(image).logits.sum()
            gradients = torch.autograd.grad(answer, parameters, allow_unused=True)
        return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        student: Any = self.student
        if self.classifier is not None:
            super()._set_gradient_checkpointing(enable, *args, **kwargs)
        elif student.supports_gradient_checkpointing:
            student._set_gradient_checkpointing(enable, *args, **kwargs)
        else:
            kind = self.config.backbone_config.model_type
            raise ValueError(
                f"An encoder of type {kind} cannot compute its activations again: leave --gradient_checkpointing out."
            )

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in eval mode: the statistics of its batch norms are a part of it. So does the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        if self.config.freeze_encoder:
            self.student.eval()
        return self

    def load_encoder(self, folder: str | Path, **kwargs: Any) -> None:
        """
        Take the weights of a pretrained encoder; the classifier stays as it is initialized.

        A ViT that was pretrained without positions has a table of zeros, and keeps the fresh one instead. One for images of
        another size gets its own, resized. A class token without a position, as APS has it, goes on without.

        Args:
            folder (`str` or `Path`): What `AutoModel.from_pretrained` loads: a folder, or an id of the Hub.
            kwargs: Other arguments of `from_pretrained`, such as `revision` or `trust_remote_code`.

        Raises:
            `ValueError`: the folder holds another encoder than that of the configuration, or not all of it.
            [`~hf_ssl.hub_errors.HubError`]: the Hub does not give it.
        """
        with clear_errors(f"{folder} cannot be loaded.", str(folder), kwargs.get("revision")):
            encoder, info = AutoModel.from_pretrained(folder, output_loading_info=True, **kwargs)
        kind, expected = encoder.config.model_type, self.config.backbone_config.model_type
        if kind != expected:
            raise ValueError(
                f"{folder} holds an encoder of type {kind}, and this classifier has one of type {expected}."
            )
        target: Any = self.student if self.classifier is not None else self.student.base_model
        source = getattr(encoder, "timm_model", encoder)  # timm's models are wrapped
        names = target.state_dict().keys()
        weights = {n: t for n, t in source.state_dict().items() if n in names or not n.startswith("pooler.")}
        absent = sorted(weights.keys() & {name.removeprefix("timm_model.") for name in info["missing_keys"]})
        if absent:
            raise ValueError(f"{folder} does not hold all of its encoder; {', '.join(absent[:3])} are missing.")
        if isinstance(self.student, ViTTrunk):
            self._adapt_positions(weights)
        try:
            missing, unexpected = target.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{folder} holds an encoder of other sizes than this classifier's. {error}") from error
        of_head = {name for name, p in target.named_parameters() if p is self.head.weight or p is self.head.bias}
        others = [*unexpected, *(set(missing) - of_head - {"embeddings.position_embeddings"})]
        if others:
            raise ValueError(
                f"{folder} holds another encoder than this classifier's: {', '.join(sorted(others)[:3])}."
            )
        for average, part in self._averages():
            copy_to_teacher(average, part)

    def _adapt_positions(self, weights: dict[str, Tensor]) -> None:
        name, patch = "embeddings.position_embeddings", self.config.backbone_config.patch_size
        table = weights[name]
        if not table.any() and not self.config.freeze_encoder:  # which is to stay what it is
            logger.warning("The encoder was pretrained without positions: fine-tuning begins with random ones.")
            del weights[name]
            return
        if not table[:, 0].any():  # APS's class token has no position, and is to get none
            self.student.use_class_token_position = False  # type: ignore[assignment]
        side = self.config.backbone_config.image_size // patch
        weights[name] = interpolate_positions(table, (side, side))

    def _averages(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each part of the teacher, if there is one, and what it is the average of."""
        if self.teacher is not None:
            for name, average in self.teacher.named_children():
                yield average, self.get_submodule(name)

    @torch.no_grad()
    def on_optimizer_step(self, values: dict[str, float]) -> None:
        for average, part in self._averages():
            update_teacher(average, part, float(self.config.ema_decay or 0))
            for target, source in zip(average.buffers(), part.buffers(), strict=True):
                target.copy_(source)

    def step_inputs(self, step: Step) -> dict[str, Tensor]:
        if not self.config.drop_path_rate or self.config.freeze_encoder:
            return {}
        rates: Any = self.student.drop_path_rates
        return {"drop_path_keep": drop_path_keep(step.samples, rates)}

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, drop_path_keep: Tensor | None = None
    ) -> SSLOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
                Normalized images.
            labels (`torch.Tensor` of shape `(batch_size,)`, int64, or `(batch_size, num_labels)`, float, *optional*):
                Classes; or the share of each class, of images that are mixed.
            drop_path_keep (`torch.Tensor` of shape `(depth, 2, batch_size)`, bool, *optional*):
                Branches that stochastic depth keeps, see [`~ClassifierForTraining.step_inputs`].

        Returns:
            [`SSLOutput`]: `logits["classification"]` of shape `(batch_size, num_labels)`; with labels, the loss and the
            accuracy, of mixed images that by the class of the largest share.
        """
        if isinstance(self.student, ViTTrunk):
            scores = self.head(self.student(pixel_values, drop_path_keep=drop_path_keep)[:, 0])
        elif isinstance(self.student, SwinTrunk):
            scores = self.head(self.student(pixel_values, drop_path_keep).mean(1))
        else:
            scores = self.student(pixel_values).logits
        output = SSLOutput(logits={"classification": scores})
        if labels is not None:
            output.loss = F.cross_entropy(scores, labels, label_smoothing=self.config.label_smoothing)
            output.losses = {"classification": output.loss}
            classes = labels if labels.ndim == 1 else labels.max(1).indices
            output.metrics = {"accuracy_classification": (scores.detach().max(1).indices == classes).float().mean()}
        return output

    def export_classifier(
        self, class_names: list[str] | None = None, which: Literal["student", "teacher"] | None = None
    ) -> PreTrainedModel:
        """
        The classifier to publish.

        Args:
            class_names (`list[str]`, *optional*): Name of each class.
            which (`str`, *optional*): `"student"`, the weights, or `"teacher"`, their moving average; unset, the latter, if
                there is one.

        Returns:
            `PreTrainedModel`: of the class that transformers has for it, in eval mode, float32, with its own copy of the
            weights.

        Raises:
            `ValueError`: there is no moving average.
        """
        if which == "teacher" and self.teacher is None:
            raise ValueError(
                "There is no moving average of the weights: train with --ema_decay, or publish the student."
            )
        if which != "student" and self.teacher is not None:
            return self.teacher.export_classifier(class_names)
        config = type(self.config.backbone_config).from_dict(self.config.backbone_config.to_dict())
        names = class_names or [str(i) for i in range(self.config.num_labels or 0)]
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        with torch.device("meta"):
            if isinstance(self.student, ViTTrunk):
                published: Any = ViTForImageClassification(config)
            elif isinstance(self.student, SwinTrunk):
                published = SwinForImageClassification(config)
            else:
                published = type(self.student)(config)
        if self.classifier is None:
            fill_from(published, self.student)
        else:
            encoder: ViTModel | SwinModel = published.base_model
            fill_from(encoder, self.student)
            fill_from(published.classifier, self.classifier)
        return published.eval()  # type: ignore[no-any-return]


__all__ = ["ClassifierForTraining"]
