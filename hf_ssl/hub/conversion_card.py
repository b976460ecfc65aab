"""The model card of an encoder that was converted from a file of the method's authors."""

from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from ..backbones import describe_encoder
from ..models import Method, SSLPreTrainedModel
from .model_card import ModelCardInfo, method_info, needs_remote_code, render_card


_LIMITATIONS = """Nothing was measured by us: neither how good the model is, nor how fair or robust.
Expect it to be worse for images unlike those it was trained on, or of other sizes than the one named at the top.
It inherits whatever biases those images have.

The tensors do not tell {untold}the mean, standard deviation and crop of
the processor, or settings that no shape depends on. These were set at conversion, as the authors have them where that is
known: compare them with theirs."""
_UNTOLD = {
    **dict.fromkeys(("vit", "t2t_vit"), "the number of attention heads, the epsilon of the LayerNorms, "),
    "swin": "the epsilon of the LayerNorms, ",
}

_PUBLISHED = {
    "teacher": "the teacher, a moving average of the student",
    "student": "the student, which was trained by gradient, and not its moving average, the teacher",
}


def write_conversion_card(
    output_dir: str | Path,
    method: Method,
    model: PreTrainedModel,
    checkpoint: str | Path,
    which: Literal["student", "teacher"] | None = None,
    error: float | None = None,
) -> ModelCard:
    """
    Write `README.md` into the folder of a converted model. The weights keep the license of the method's authors; where
    that is not known, the card says so.

    Args:
        output_dir (`str` or `Path`):
            The folder; its name becomes the title.
        method ([`~hf_ssl.models.Method`]):
            The method.
        model ([`~hf_ssl.models.SSLPreTrainedModel`] or `transformers.ViTForImageClassification`):
            The converted model.
        checkpoint (`str` or `Path`):
            The authors' file. Only its name is told.
        which (`str`, *optional*):
            The encoder that was published, as for [`export_run`].
        error (`float`, *optional*):
            How far tokens (of a classifier, logits) of the result and of the file's own tensors differ, over the largest
            value, if that was measured.

    Returns:
        `huggingface_hub.ModelCard`: the card that was written.
    """
    output_dir = Path(output_dir)
    is_classifier = not isinstance(model, SSLPreTrainedModel)
    config: Any = method.config_class(backbone_config=model.config) if is_classifier else model.config
    info = ModelCardInfo(
        model_name=output_dir.resolve().name,
        **method_info(method, config),
        backbone=describe_encoder(config.backbone_config),
        trust_remote_code=needs_remote_code(config.backbone_config),
        num_classes=model.config.num_labels if is_classifier else None,
        converted_from=Path(checkpoint).name,
        conversion_notes=_notes(model, which, error),
        limitations=_LIMITATIONS.format(untold=_UNTOLD.get(config.backbone_config.model_type, "")),
        license=method.reported.weights_license if method.reported else "unknown",
    )
    card = render_card(info)
    card.save(output_dir / "README.md")
    return card


def _notes(model: PreTrainedModel, which: Literal["student", "teacher"] | None, error: float | None) -> list[str]:
    notes = []
    compared = "tokens" if isinstance(model, SSLPreTrainedModel) else "logits"
    if isinstance(model, SSLPreTrainedModel) and getattr(model, "teacher", None) is not None:
        student, teacher = (model.export_encoder(branch).state_dict() for branch in ("student", "teacher"))
        if all(torch.equal(tensor, teacher[name]) for name, tensor in student.items()):
            notes.append("The file's one encoder stands for both, the student and the teacher, in `pretraining/`.")
        else:
            notes.append(
                f"Of the file's two encoders, this is {_PUBLISHED[_published(model, which)]}. `pretraining/` holds both."
            )
    if error is not None:
        outcome = f"differ by at most {error:.1e} of the largest value" if error else "are equal"
        encoder = getattr(model.config, "backbone_config", model.config)
        reference = "timm"
        if encoder.model_type != "vit":
            compared, reference = "pooled features", "timm, torchvision or plain torch layers"
        loader = "transformers" if needs_remote_code(encoder) else "stock transformers"
        notes.append(
            f"The conversion was checked: for random pixels, the {compared} of {loader} from this folder and those "
            f"of {reference} from the file's tensors {outcome}."
        )
    return notes


def _published(model: SSLPreTrainedModel, which: Literal["student", "teacher"] | None) -> str:
    """The encoder that is published; unset, the method recommends one, which is recognized by its weights."""
    if which is not None:
        return which
    published, student = (model.export_encoder(branch).state_dict() for branch in (None, "student"))
    return "student" if all(torch.equal(tensor, student[name]) for name, tensor in published.items()) else "teacher"


__all__ = ["write_conversion_card"]
