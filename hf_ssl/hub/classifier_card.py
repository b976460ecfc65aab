"""The model card of a classifier that was fine-tuned, or trained from scratch."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from ..arguments import dataset_name
from ..backbones import ENCODERS, describe_encoder
from ..data import ImageData
from ..models import get_method
from ..trainer import SSLTrainer
from .model_card import needs_remote_code
from .run_card import dataset_id_of, describe_clipping, describe_hardware, describe_schedule


def write_classifier_card(
    trainer: SSLTrainer,
    arguments: dict[str, Any],
    data: ImageData,
    results: dict[str, Any],
    figures: dict[str, str],
) -> None:
    """
    Write `README.md` into the output folder of a run of fine-tuning.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer, after training.
        arguments (`dict[str, Any]`): The script's arguments by name: `model`, `method`, `recipe`, `dataset`, …
        data ([`~hf_ssl.data.ImageData`]): The data.
        results (`dict[str, Any]`): Numbers of the run, as in `all_results.json`.
        figures (`dict[str, str]`): Captions of its pictures, by their names in `figures/`.
    """
    args, config = trainer.args, trainer.model.config
    dataset, dataset_id = dataset_name(arguments["dataset"]), dataset_id_of(arguments["dataset"])
    name = trainer.output_dir.resolve().name
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    is_pretrained = arguments["model"] != "none"
    top = (1, 5) if data.num_classes and data.num_classes > 5 else (1,)
    prefix, other = (
        ("finetune_ema_", "finetune_") if results.get("encoder") == "teacher" else ("finetune_", "finetune_ema_")
    )
    accuracy = {k: results[f"{prefix}top{k}"] for k in top}
    metadata = ModelCardData(
        model_name=name,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["hf_ssl"],
        datasets=[dataset_id] if dataset_id else None,
        base_model=_hub_id(arguments["model"]),
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_id or dataset,
                dataset_name=dataset,
                dataset_split=results["split"],
                metric_type="accuracy",
                metric_name=f"top-{k} accuracy (%)",
                metric_value=round(accuracy[k], 2),
            )
            for k in top
        ],
    )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("hf_ssl.card_templates").joinpath("classifier_template.md").read_text("utf-8")
    )
    origin = "It was trained from scratch."
    if is_pretrained:
        frozen = "; the encoder was kept as it was" if config.freeze_encoder else ""
        origin = f"It was fine-tuned from the pretrained encoder {_public_name(arguments['model'])}{frozen}."
    content = template.render(
        name=name,
        metadata=metadata.to_yaml().strip(),
        encoder=_describe(config.backbone_config),
        num_classes=config.num_labels,
        origin=origin,
        location=trainer.hub_model_id or "path/to/this/folder",
        trust=", trust_remote_code=True" if needs_remote_code(config.backbone_config) else "",
        dataset=dataset,
        image_size=config.backbone_config.image_size,
        hardware=f"{describe_hardware(trainer)}, {results['train_seconds'] / 60:.1f} minutes",
        results=results,
        accuracy=accuracy,
        is_average=results.get("encoder") == "teacher",
        other_top1=results.get(f"{other}top1"),
        figures=figures,
        training={
            "recipe": f"{arguments['method']}/{Path(arguments['recipe']).stem}",
            "optimizer steps": trainer.state.global_step,
            "images per step": trainer.images_per_step,
            "peak learning rate": args.learning_rate,
            "schedule": describe_schedule(args),
            "weight decay": f"{args.weight_decay:g}",
            "layer decay": f"{args.layer_decay:g}",
            "gradient clipping": describe_clipping(args),
            "stochastic depth": f"{config.drop_path_rate:g}",
            "label smoothing": f"{config.label_smoothing:g}",
            **_augmentation(trainer.views),
            **({} if config.ema_decay is None else {"moving average": f"decay {config.ema_decay:.10g}"}),
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "seed": args.seed,
        },
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        criterion="the accuracy" if metric == f"{prefix}top1" else f"`{metric}`",
        citation=_citation(arguments["model"]),
    )
    ModelCard(content).save(trainer.output_dir / "README.md")


def _augmentation(views: Any) -> dict[str, str]:
    """What is done to images beside crops and colors, where it is."""
    names = {"auto_augment": "augmentation", "mixup": "mixup", "cutmix": "CutMix"}
    values = {title: getattr(views.config, name) for name, title in names.items()}
    return {title: str(value) for title, value in values.items() if value}


def _describe(config: Any) -> str:
    """An encoder in words; of those that no method here trains, the type."""
    if config.model_type in ("vit", "swin", *ENCODERS):
        return describe_encoder(config)
    return f"An encoder of type {config.model_type} for {config.image_size}-pixel images"


def _hub_id(model: str) -> str | None:
    """The id of an encoder of the Hub."""
    return model if model != "none" and model.count("/") == 1 and not Path(model).expanduser().exists() else None


def _citation(model: str) -> str | None:
    """Of the method that an encoder was pretrained with, where the folder tells."""
    path = Path(model).expanduser() / "pretraining" / "config.json"
    if not path.is_file():
        return None
    return get_method(json.loads(path.read_text())["model_type"]).citation


def _public_name(model: str) -> str:
    """What an encoder is called in public: no path of a machine."""
    return f"`{_hub_id(model) or Path(model).expanduser().resolve().name}`"


__all__ = ["write_classifier_card"]
