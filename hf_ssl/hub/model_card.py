"""The model card of a pretrained encoder: what it is, how to load it, how it was trained, what it reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    "patch_mean": ("model(**inputs).last_hidden_state[:, 1:].mean(dim=1)", "the mean of the patch tokens"),
    "pooled": ("model(**inputs).pooler_output.flatten(1)", "the pooled output"),
}


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


@dataclass(kw_only=True)
class ModelCardInfo:
    """
    What a model card tells.

    Args:
        model_name (`str`): Title of the card and name in its model-index, such as `"relvit-vit-tiny-cifar10"`.
        repo_id (`str`, *optional*): Hub repository, used in the loading code; a placeholder where there is none yet.
        method (`str`): Name of the method, such as `"RelViT"`.
        method_summary (`str`): What it trains the encoder to do, in a sentence for someone who never heard of it.
        paper_title (`str`): Title of its paper.
        arxiv_id (`str`): arXiv identifier of the paper, such as `"2206.00481"`.
        bibtex (`str`): BibTeX entry of the paper.
        backbone (`str`): The encoder in words, such as `"ViT-Tiny with 4-pixel patches for 32-pixel images"`.
        pooling (`str`): The feature to use, one of `hf_ssl.evaluation.features.POOLINGS`.
        dataset (`str`, *optional*): Name of the training data; given unless the weights are converted.
        dataset_id (`str`, *optional*): Hub id of the training data; only this makes the card link to a dataset.
        num_train_images (`int`, *optional*): Number of training images; given with `dataset`.
        converted_from (`str`, *optional*):
            Name of the file of the method's authors that the weights were converted from. Such a card says so in the
            place of its training section.
        num_classes (`int`, *optional*):
            Classes of a classifier that was converted; unset, the model is an encoder.
        conversion_notes (`Sequence[str]`, *optional*): What else is to be said about the conversion, in sentences.
        limitations (`str`): What the model is not good for, in Markdown.
        training (`Mapping[str, Any]`, *optional*): Settings by name: steps, batch size, learning rate, …
        results (`Sequence[CardResult]`, *optional*): Measured numbers.
        reported ([`~hf_ssl.models.reported.ReportedResults`], *optional*):
            What the method's authors report; it gets a section of its own, and stays out of the model-index.
        figures (`Mapping[str, str]`, *optional*): Captions by path; paths are relative to the card.
        hardware (`str`, *optional*): Machine and time of the training run.
        versions (`Mapping[str, str]`, *optional*): Library versions by name.
        uses_labels (`bool`, *optional*, defaults to `False`): Whether the training used labels (as a joint mode does).
        projected_results (`bool`, *optional*, defaults to `False`):
            Whether the numbers were measured with what the pretraining model projects of the feature.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the repository carries its own modeling file.
        license (`str`, *optional*, defaults to `"apache-2.0"`):
            License identifier of the Hub for the weights; `"unknown"` is one.
    """

    model_name: str
    repo_id: str | None = None
    method: str
    method_summary: str
    paper_title: str
    arxiv_id: str
    bibtex: str
    backbone: str
    pooling: str
    dataset: str | None = None
    dataset_id: str | None = None
    num_train_images: int | None = None
    converted_from: str | None = None
    num_classes: int | None = None
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
        "reported": method.reported,
        "uses_labels": "classification" in getattr(config, "tasks", ()),
    }


def needs_remote_code(config: Any) -> bool:
    """Whether an encoder of this configuration is published with a modeling file of its own."""
    return not type(config).__module__.startswith("transformers.")


def _check(info: ModelCardInfo) -> None:
    if info.pooling not in FEATURES:
        raise ValueError(f"`pooling` must be one of {', '.join(FEATURES)}, got {info.pooling!r}.")
    if len({info.dataset is None, info.num_train_images is None, info.converted_from is not None}) > 1:
        raise ValueError(
            "Give `dataset` and `num_train_images`, or `converted_from`: a model was trained or converted."
        )
    for repo_id in (info.repo_id, info.dataset_id, *(result.dataset_id for result in info.results)):
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
    Renders the model card of a pretrained encoder, with its results as model-index.

    Args:
        info (`ModelCardInfo`): What to tell.

    Returns:
        `huggingface_hub.ModelCard`: The card; `card.save(path)` writes it.

    Raises:
        `ValueError`: If the pooling is unknown, an id is not a valid Hub id, an absolute path would be published, or it
            is not told whether the weights were trained or converted.
    """
    _check(info)
    metadata = ModelCardData(
        # Goes into the model-index, and is no metadata of its own.
        model_name=info.model_name if info.results else None,
        license=info.license,
        library_name="transformers",
        pipeline_tag="image-classification" if info.num_classes else "image-feature-extraction",
        tags=["hf_ssl", "self-supervised-learning", info.method.lower()],
        datasets=[info.dataset_id] if info.dataset_id else None,
        eval_results=[index_entry(result) for result in info.results] or None,
    )
    columns = {"before training": "before_training", "raw pixels": "raw_pixels"}
    feature_code, feature_text = FEATURES[info.pooling]
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("hf_ssl.card_templates").joinpath("card_template.md").read_text("utf-8"))
    content = template.render(
        info=info,
        metadata=metadata.to_yaml().strip(),
        location=info.repo_id or "path/to/this/folder",
        trust=", trust_remote_code=True" if info.trust_remote_code else "",
        feature_code=feature_code,
        feature_text=feature_text,
        comparisons={
            title: name
            for title, name in columns.items()
            if any(getattr(result, name) is not None for result in info.results)
        },
        protocols={
            text: ", ".join(result.metric_name for result in info.results if result.protocol == text)
            for text in dict.fromkeys(result.protocol for result in info.results)
        },
        comparison_texts={
            "before training": "Before training: the same encoder with its initial random weights.",
            "raw pixels": "Raw pixels: the processed pixels as features, without an encoder (of at most 5,000 training "
            "images).",
        },
    )
    return ModelCard(content)
