"""A model card: what the model is, how to load it, how it was trained, what it reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from jinja2 import Environment, StrictUndefined

from ..models import Method
from ..models.reported import ReportedResults


# How a user computes each feature of `hf_ssl.evaluation.features.POOLINGS`, and what it is.
FEATURES = {
    "class_token": ("model(**inputs).last_hidden_state[:, 0]", "the class token"),
    "patch_mean": ("model(**inputs).last_hidden_state{patches}.mean(dim=1)", "the mean of the patch tokens"),
    "pooled": ("model(**inputs).pooler_output.flatten(1)", "the pooled output"),
}
# Where a card says the model is, as long as it has no repository.
UNKNOWN_LOCATION = "path/to/this/folder"
# What stands between these in a card is written anew by each evaluation; nothing else is touched.
BEGIN, END = "<!-- hf_ssl: evaluation -->", "<!-- /hf_ssl: evaluation -->"


@dataclass(kw_only=True)
class CardResult:
    """
    One number in a model card.

    Args:
        value (`float`): The metric, in percent where it is an accuracy.
        metric_name (`str`): Name for readers, such as `"kNN top-1 (%)"`.
        metric_type (`str`): Metric identifier of the Hub, such as `"accuracy"`.
        dataset (`str`): Name of the evaluation data, such as `"CIFAR-10"`.
        dataset_id (`str`, *optional*): Its Hub id, if it has one.
        dataset_revision (`str`, *optional*): Its commit on the Hub, if it is known.
        split (`str`): Evaluated split.
        protocol (`str`): How it was measured, in a sentence that lets a reader repeat it.
        task_type (`str`, *optional*, defaults to `"image-classification"`): Task identifier of the Hub.
        before_training (`float`, *optional*): The same metric of the untrained encoder.
        raw_pixels (`float`, *optional*): The same metric of the processed pixels.
        outcome (`str`, *optional*): What the protocol chose on its way to the number, such as a learning rate.
        settings (`Mapping[str, Any]`, *optional*): The protocol in plain values, by name.
        date (`str`, *optional*): Day of the measurement, such as `"2026-11-22"`.
    """

    value: float
    metric_name: str
    metric_type: str
    dataset: str
    dataset_id: str | None = None
    dataset_revision: str | None = None
    split: str
    protocol: str
    task_type: str = "image-classification"
    before_training: float | None = None
    raw_pixels: float | None = None
    outcome: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    @property
    def note(self) -> str:
        """How the number was measured, in sentences."""
        texts = [text for text in (self.protocol, self.outcome) if text]
        return " ".join(f"{text[0].upper()}{text[1:]}." for text in texts)


@dataclass(kw_only=True)
class ModelCardInfo:
    """
    What a model card tells.

    Args:
        model_name (`str`): Title of the card and name in its model-index, such as `"relvit-vit-tiny-cifar10"`.
        repo_id (`str`, *optional*): Hub repository, used in the loading code; a placeholder where there is none yet.
        method (`str`, *optional*):
            Name of the method that the encoder was pretrained with, such as `"RelViT"`; unset only where `origin` tells
            another one.
        method_summary (`str`, *optional*):
            What it trains the encoder to do, in a sentence for someone who never heard of it.
        paper_title (`str`, *optional*): Title of its paper.
        arxiv_id (`str`, *optional*): arXiv identifier of the paper, such as `"2206.00481"`.
        bibtex (`str`, *optional*): BibTeX entry of the paper.
        backbone (`str`): The encoder in words, such as `"ViT-Tiny with 4-pixel patches for 32-pixel images"`.
        pooling (`str`, *optional*):
            Of an encoder, the feature to use, one of `hf_ssl.evaluation.features.POOLINGS`.
        num_prefix_tokens (`int`, *optional*, defaults to 1): Tokens of the encoder that come before those of the patches.
        can_drop_paths (`bool`, *optional*, defaults to `True`):
            Whether the encoder can be fine-tuned with stochastic depth, as the default recipe does.
        dataset (`str`, *optional*): Name of the training data; given unless the weights are converted.
        dataset_id (`str`, *optional*): Hub id of the training data; only this makes the card link to a dataset.
        num_train_images (`int`, *optional*): Number of training images; given with `dataset`.
        converted_from (`str`, *optional*):
            Name of the file of the method's authors that the weights were converted from. Such a card says so in the
            place of its training section.
        num_classes (`int`, *optional*): Classes of a classifier; unset, the model is an encoder.
        origin (`str`, *optional*):
            Where the weights come from, in a sentence, if not from a pretraining by the method: of a classifier, from an
            encoder that was fine-tuned, or from scratch.
        base_model (`str`, *optional*): Hub id of the model that the weights come from.
        began_with (`str`, *optional*): Name of the model whose weights the training began with; unset, random ones.
        conversion_notes (`Sequence[str]`, *optional*): What else is to be said about the conversion, in sentences.
        limitations (`str`): What the model is not good for, in Markdown.
        training (`Mapping[str, Any]`, *optional*): Settings by name: steps, batch size, learning rate, …
        results (`Sequence[CardResult]`, *optional*): Measured numbers.
        reported ([`~hf_ssl.models.reported.ReportedResults`], *optional*):
            What the method's authors report; it gets a section of its own, and stays out of the model-index.
        figures (`Mapping[str, str]`, *optional*): Captions by path; paths are relative to the card.
        hardware (`str`, *optional*): Machine and time of the training run.
        versions (`Mapping[str, str]`, *optional*): Library versions by name.
        uses_labels (`bool`, *optional*, defaults to `False`):
            Whether the pretraining used labels (as a joint mode does).
        projected_results (`bool`, *optional*, defaults to `False`):
            Whether the numbers were measured with what the pretraining model projects of the feature.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the repository carries its own modeling file.
        uses_timm (`bool`, *optional*, defaults to `False`): Whether transformers needs timm to load the model.
        license (`str`, *optional*, defaults to `"apache-2.0"`):
            License identifier of the Hub for the weights; `"unknown"` is one.
    """

    model_name: str
    repo_id: str | None = None
    method: str | None = None
    method_summary: str | None = None
    paper_title: str | None = None
    arxiv_id: str | None = None
    bibtex: str | None = None
    backbone: str
    pooling: str | None = None
    num_prefix_tokens: int = 1
    can_drop_paths: bool = True
    dataset: str | None = None
    dataset_id: str | None = None
    num_train_images: int | None = None
    converted_from: str | None = None
    num_classes: int | None = None
    origin: str | None = None
    base_model: str | None = None
    began_with: str | None = None
    conversion_notes: Sequence[str] = ()
    limitations: str
    training: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[CardResult] = ()
    reported: ReportedResults | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    hardware: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    uses_labels: bool = False
    projected_results: bool = False
    trust_remote_code: bool = False
    uses_timm: bool = False
    license: str = "apache-2.0"


def method_info(method: Method, config: Any) -> dict[str, Any]:
    """
    What a card tells about the method, whoever trained the model.

    Args:
        method ([`~hf_ssl.models.Method`]): The method.
        config ([`~hf_ssl.models.SSLConfig`]): Configuration of its model.

    Returns:
        `dict[str, Any]`: arguments of [`ModelCardInfo`].
    """
    return {
        "method": method.title,
        "method_summary": method.summary,
        "paper_title": method.paper,
        "arxiv_id": method.arxiv,
        "bibtex": method.citation,
        "pooling": config.feature,
        "num_prefix_tokens": getattr(config.backbone_config, "num_prefix_tokens", 1),
        "can_drop_paths": config.backbone_config.model_type in ("vit", "swin"),
        "reported": method.reported,
        "uses_labels": "classification" in getattr(config, "tasks", ()),
    }


def needs_remote_code(config: Any) -> bool:
    """Whether an encoder of this configuration is published with a modeling file of its own."""
    return not type(config).__module__.startswith("transformers.")


def today() -> str:
    """The date of a measurement that was just made."""
    return datetime.now(UTC).date().isoformat()


def _check(info: ModelCardInfo) -> None:
    if info.num_classes is None and info.pooling not in FEATURES:
        raise ValueError(f"`pooling` must be one of {', '.join(FEATURES)}, got {info.pooling!r}.")
    if len({info.dataset is None, info.num_train_images is None, info.converted_from is not None}) > 1:
        raise ValueError(
            "Give `dataset` and `num_train_images`, or `converted_from`: a model was trained or converted."
        )
    of_method = (info.method, info.method_summary, info.paper_title, info.arxiv_id, info.bibtex)
    if None in of_method and (any(of_method) or not info.origin):
        raise ValueError(
            "Give `method`, `method_summary`, `paper_title`, `arxiv_id` and `bibtex`, or, where `origin` tells another one, "
            "none of them."
        )
    repo_ids = (info.repo_id, info.dataset_id, info.base_model, *(result.dataset_id for result in info.results))
    for repo_id in repo_ids:
        if repo_id is not None:
            validate_repo_id(repo_id)
    published = {
        "model_name": [info.model_name],
        "dataset": [info.dataset or "", *(result.dataset for result in info.results)],
        "converted_from": [info.converted_from or ""],
        "figures": info.figures,
        "training": info.training.values(),
    }
    for name, values in published.items():
        for value in map(str, values):
            if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
                raise ValueError(
                    f"`{name}` has {value!r}, an absolute path, and a card is published: give a name, or a path "
                    "relative to the card."
                )


def index_entry(result: CardResult) -> EvalResult:
    """A result as the model-index has it, with its protocol."""
    return EvalResult(
        task_type=result.task_type,
        dataset_type=result.dataset_id or result.dataset,
        dataset_name=result.dataset,
        dataset_split=result.split,
        dataset_revision=result.dataset_revision,
        metric_type=result.metric_type,
        metric_name=result.metric_name,
        metric_args={"protocol": result.protocol},
        metric_value=round(result.value, 2),
    )


def render_card(info: ModelCardInfo) -> ModelCard:
    """
    Renders a model card, with its results as model-index.

    Args:
        info (`ModelCardInfo`): What to tell.

    Returns:
        `huggingface_hub.ModelCard`: The card; `card.save(path)` writes it.

    Raises:
        `ValueError`: If the pooling is unknown, an id is not a valid Hub id, an absolute path would be published, only a part
            of the method is told, or it is not told whether the weights were trained or converted.
    """
    _check(info)
    tags = ["self-supervised-learning", info.method.lower()] if info.method else []
    metadata = ModelCardData(
        # Goes into the model-index, and is no metadata of its own.
        model_name=info.model_name if info.results else None,
        license=info.license,
        library_name="transformers",
        pipeline_tag="image-classification" if info.num_classes else "image-feature-extraction",
        tags=["hf_ssl", *tags],
        base_model=info.base_model,
        datasets=[info.dataset_id] if info.dataset_id else None,
        eval_results=[index_entry(result) for result in info.results] or None,
    )
    columns = {"before training": "before_training", "raw pixels": "raw_pixels"}
    feature_code, feature_text = FEATURES.get(info.pooling or "", ("", ""))
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(files("hf_ssl.card_templates").joinpath("card_template.md").read_text("utf-8"))
    content = template.render(
        info=info,
        metadata=metadata.to_yaml().strip(),
        location=info.repo_id or UNKNOWN_LOCATION,
        trust=", trust_remote_code=True" if info.trust_remote_code else "",
        feature_code=feature_code.format(patches=f"[:, {info.num_prefix_tokens}:]" if info.num_prefix_tokens else ""),
        feature_text=feature_text,
        comparisons={
            title: name
            for title, name in columns.items()
            if any(getattr(result, name) is not None for result in info.results)
        },
        notes={
            text: ", ".join(result.metric_name for result in info.results if result.note == text)
            for text in dict.fromkeys(result.note for result in info.results)
        },
        comparison_texts={
            "before training": "Before training: the same encoder with the weights that the training began with, "
            + (f"those of {info.began_with}." if info.began_with else "random ones."),
            "raw pixels": "Raw pixels: the processed pixels as features, without an encoder (of at most 5,000 training "
            "images).",
        },
        begin=BEGIN,
        end=END,
    )
    return ModelCard(content)
