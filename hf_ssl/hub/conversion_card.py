"""The model card of a model that was converted from a file of the method's authors."""

from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedModel

from ..backbones import describe_encoder
from ..models import Method, SSLPreTrainedModel
from .checkpoint_file import CheckpointFile
from .export import published_branch
from .model_card import ModelCardInfo, method_info, needs_remote_code, render_card


_LIMITATIONS = """Beyond the numbers on this card, if there are any, nothing is known to us: neither how good the model is,
nor how fair or robust.
Expect it to be worse for images unlike those it was trained on, or of other sizes than the one named at the top.
It inherits whatever biases those images have.

The tensors do not tell {untold}the mean, standard deviation and crop of
the processor, or settings that no shape depends on. These were set at conversion, as the authors have them where that is
known: compare them with theirs."""
_UNTOLD = {
    **dict.fromkeys(("vit", "t2t_vit"), "the number of attention heads, the epsilon of the LayerNorms, "),
    "swin": "the epsilon of the LayerNorms, ",
}
# What computes the same from a file's own tensors, by the type of the encoder: its tokens, or pooled features.
_TOKENS_OF = {"vit": "timm", "swin": "timm", "t2t_vit": "timm's layers"}
_FEATURES_OF = {"resnet": "torchvision", "cifar_resnet": "torchvision", "alexnet_bn": "plain torch layers"}

_PUBLISHED = {
    "teacher": "the teacher, a moving average of the student",
    "student": "the student, which was trained by gradient, and not its moving average, the teacher",
}

_ORIGIN = (
    "It was converted from a file that holds an encoder alone, without the heads of a pretraining. Who trained it, and how, "
    "is not recorded there."
)


def write_conversion_card(
    output_dir: str | Path,
    method: Method,
    model: PreTrainedModel,
    checkpoint: CheckpointFile,
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
        model ([`~hf_ssl.models.SSLPreTrainedModel`] or `transformers.PreTrainedModel`):
            The converted model; or classifier, or encoder, if the file holds nothing else.
        checkpoint ([`CheckpointFile`]):
            The authors' file. Only its name is told, and where it lies on the Hub.
        which (`str`, *optional*):
            The encoder that was published, as for [`export_run`].
        error (`float`, *optional*):
            How far what the result computes and what the file's own tensors compute differ, over the largest value, if that
            was measured.

    Returns:
        `huggingface_hub.ModelCard`: the card that was written.
    """
    output_dir = Path(output_dir)
    is_pretraining = isinstance(model, SSLPreTrainedModel)
    config: Any = model.config if is_pretraining else method.config_class(backbone_config=model.config)
    about = method_info(method, config)
    if not is_pretraining and not is_classifier(model):  # of whoever has trained it
        about = {
            "pooling": "pooled" if config.backbone_config.model_type == "swin" else "class_token",
            "origin": _ORIGIN,
            "can_drop_paths": config.backbone_config.model_type in ("vit", "swin"),
        }
    info = ModelCardInfo(
        model_name=output_dir.resolve().name,
        **about,
        backbone=describe_encoder(config.backbone_config),
        trust_remote_code=needs_remote_code(config.backbone_config),
        num_classes=model.config.num_labels if is_classifier(model) else None,
        base_model=checkpoint.repo_id,
        converted_from=checkpoint.name,
        conversion_notes=_notes(model, checkpoint, which, error),
        limitations=_LIMITATIONS.format(untold=_UNTOLD.get(config.backbone_config.model_type, "")),
        license=about["reported"].weights_license if about.get("reported") else "unknown",
    )
    card = render_card(info)
    card.save(output_dir / "README.md")
    return card


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a converted model is a classifier of transformers."""
    classes: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.values()
    return type(model) in classes


def _notes(
    model: PreTrainedModel,
    checkpoint: CheckpointFile,
    which: Literal["student", "teacher"] | None,
    error: float | None,
) -> list[str]:
    notes = []
    if checkpoint.repo_id is not None:
        notes.append(
            f"The file is that of [{checkpoint.repo_id}]({checkpoint.url}) on the Hub, as of commit `{checkpoint.commit}`."
        )
    if is_classifier(model):
        notes.append(
            "How the encoder was pretrained before it became a part of this classifier is not recorded there either."
        )
    if isinstance(model, SSLPreTrainedModel) and getattr(model, "teacher", None) is not None:
        student, teacher = (model.export_encoder(branch).state_dict() for branch in ("student", "teacher"))
        if all(torch.equal(tensor, teacher[name]) for name, tensor in student.items()):
            notes.append("The file's one encoder stands for both, the student and the teacher, in `pretraining/`.")
        else:
            published = _PUBLISHED[published_branch(model, which)]
            notes.append(f"Of the file's two encoders, this is {published}. `pretraining/` holds both.")
    if error is not None:
        outcome = f"differ by at most {error:.1e} of the largest value" if error else "are equal"
        encoder = getattr(model.config, "backbone_config", model.config)
        reference = (_TOKENS_OF | _FEATURES_OF)[encoder.model_type]
        compared = "tokens" if encoder.model_type in _TOKENS_OF else "pooled features"
        compared = "logits" if is_classifier(model) else compared
        loader = "transformers" if needs_remote_code(encoder) else "stock transformers"
        notes.append(
            f"The conversion was checked: for random pixels, the {compared} of {loader} from this folder and those "
            f"of {reference} from the file's tensors {outcome}."
        )
    return notes


__all__ = ["is_classifier", "write_conversion_card"]
