"""The model card of a pretraining run, from what the run knows."""

import os
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import SchedulerType

from ..arguments import dataset_name
from ..backbones import VIT_SIZES, describe_encoder
from ..data import DATASETS, ImageData
from ..models import get_method
from ..models.auto import model_arguments
from ..trainer import SSLTrainer
from .model_card import CardResult, ModelCardInfo, method_info, needs_remote_code, render_card


_LIMITATIONS = """The encoder has only seen the images it was pretrained on, at the size named at the top: expect features of
other kinds of images, or of other sizes, to be worse. It inherits whatever biases the images have. It was evaluated by
nearest neighbors only; nothing is known about its fairness or its robustness."""
# Options of a method that a card tells elsewhere, or that say nothing about the training.
_NOT_SETTINGS = ("feature", "position_interpolation", "num_labels")


def write_run_card(
    trainer: SSLTrainer,
    arguments: dict[str, Any],
    data: ImageData,
    results: dict[str, Any],
    figures: dict[str, str],
) -> None:
    """
    Write `README.md` into the output folder of a run.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer, after training.
        arguments (`dict[str, Any]`): The script's arguments by name: `method`, `mode`, `recipe`, `dataset`,
            `backbone`, …
        data ([`~hf_ssl.data.ImageData`]): The data.
        results (`dict[str, Any]`): Numbers of the run, as in `all_results.json`.
        figures (`dict[str, str]`): Captions by path, relative to the folder.
    """
    args, model = trainer.args, trainer.model
    method = get_method(arguments["method"])
    name = arguments["dataset"]
    dataset_id = dataset_id_of(name)
    dataset = dataset_name(name)
    info = ModelCardInfo(
        model_name=trainer.output_dir.resolve().name,
        repo_id=trainer.hub_model_id,
        **method_info(method, model.config),
        backbone=_describe_backbone(arguments, model.config.backbone_config),
        projected_results=results.get("knn_features") == "projected",
        trust_remote_code=needs_remote_code(model.config.backbone_config),
        dataset=dataset,
        dataset_id=dataset_id,
        num_train_images=trainer.num_train_images,
        limitations=_LIMITATIONS,
        training={
            "mode": arguments["mode"],
            "recipe": Path(arguments["recipe"]).stem,
            "optimizer steps": trainer.state.global_step,
            "epochs": round(trainer.state.epoch or 0, 2),
            "images per step": trainer.images_per_step,
            "peak learning rate": args.learning_rate,
            "schedule": describe_schedule(args),
            "weight decay": _weight_decay(args),
            "gradient clipping": describe_clipping(args),
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "seed": args.seed,
            **_selection(results, data.test_name),
            **_method_settings(model.config),
        },
        results=_results(results, dataset, dataset_id, data) if data.num_classes else (),
        figures=figures,
        hardware=f"{describe_hardware(trainer)}, {results['train_seconds'] / 60:.1f} minutes",
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    render_card(info).save(trainer.output_dir / "README.md")


def _selection(results: dict[str, Any], test_name: str) -> dict[str, str]:
    """Which step's model this is, where it is not the last."""
    if "best_step" not in results:
        return {}
    images = "training" if results["selected_by"].endswith("_train") else test_name
    chosen = f"step {results['best_step']}, the best by {results['selected_by'].replace('_', ' ')} on {images} images"
    return {"published model": chosen}


def dataset_id_of(name: str) -> str | None:
    """The Hub id of what `--dataset` says, if it is of the Hub."""
    if name in DATASETS:
        return DATASETS[name].path
    return name if "/" in name and not Path(name).expanduser().exists() else None


def describe_schedule(args: Any) -> str:
    """The learning-rate schedule of training arguments, in words."""
    name: str = args.schedule or SchedulerType(args.lr_scheduler_type).value
    if not args.schedule and args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
        images = "training" if str(args.metric_for_best_model).endswith("_train") else "test"
        return f"{name}, following {args.metric_for_best_model}: the labels of {images} images have a part in it"
    if not args.schedule or args.schedule_unit == "step":
        return name
    late = f", {args.schedule_lag} epoch{'s' * (args.schedule_lag > 1)} late" if args.schedule_lag else ""
    return f"{name}, changed once in an epoch{late}"


def _weight_decay(args: Any) -> str:
    final = "" if args.final_weight_decay is None else f" to {args.final_weight_decay:g}"
    return f"{args.weight_decay:g}{final}"


def describe_clipping(args: Any) -> str:
    """The gradient clipping of training arguments, in words."""
    if not args.max_grad_norm:
        return "none"
    bounded = "of each parameter" if args.gradient_clipping == "per_parameter" else "of all gradients"
    return f"norm {bounded} at most {args.max_grad_norm:g}"


def _describe_backbone(arguments: dict[str, Any], config: Any) -> str:
    if arguments["backbone"] not in VIT_SIZES:
        return describe_encoder(config)
    size = arguments["backbone"].removeprefix("vit-").title()
    return f"ViT-{size} with {config.patch_size}-pixel patches for {config.image_size}-pixel images"


def _method_settings(config: Any) -> dict[str, str]:
    """The method's own options, by names and with values for readers."""
    names = [item.name for item in fields(model_arguments(type(config))) if item.name not in _NOT_SETTINGS]
    values = {name: getattr(config, name) for name in names}
    return {name.replace("_", " "): _setting(value) for name, value in values.items() if value is not None}


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _results(results: dict[str, Any], dataset: str, dataset_id: str | None, data: ImageData) -> list[CardResult]:
    projected = ", as the loss projects it" if results.get("knn_features") == "projected" else ""
    protocol = (
        f"weighted kNN (Wu et al., 2018) with k = {results['k']} and temperature {results['temperature']} on the feature "
        f"`{results['feature']}`{projected}: {results['num_query_images']:,} images that were not trained on, among "
        f"{results['num_bank_images']:,} training images."
    )
    return [
        CardResult(
            value=results[f"knn_top{n}"],
            metric_name=f"kNN top-{n} (%)",
            metric_type="accuracy",
            dataset=dataset,
            dataset_id=dataset_id,
            dataset_revision=results.get("dataset_revision"),
            split=data.test_name,
            protocol=protocol,
            before_training=results[f"knn_top{n}_before"],
            raw_pixels=results["knn_top1_pixels"] if n == 1 else None,
        )
        for n in ((1, 5) if (data.num_classes or 0) > 5 else (1,))
    ]


def describe_hardware(trainer: SSLTrainer) -> str:
    """The machine of a run, in words."""
    if trainer.args.device.type == "cuda":
        return f"{trainer.args.world_size} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


__all__ = ["write_run_card"]
