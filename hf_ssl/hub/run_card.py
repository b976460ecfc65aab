"""The model card of a pretraining run, from what the run knows."""

import os
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import REPOCARD_NAME
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from .. import __version__
from ..arguments import dataset_name
from ..backbones import VIT_SIZES, describe_encoder
from ..data import DATASETS, ImageData
from ..models import get_method
from ..models.auto import model_arguments
from ..trainer import SSLTrainer
from ..views import View
from .base_model import license_of
from .eval_results import write_eval_results
from .export import published_branch, write_atomically
from .model_card import CardResult, ModelCardInfo, method_info, needs_remote_code, render_card, today


_LIMITATIONS = """The encoder has only seen the images it was pretrained on, at the size named at the top: expect features of
other kinds of images, or of other sizes, to be worse. It inherits whatever biases the images have. Beyond the numbers on this
card nothing is known about its quality, and nothing at all about its fairness or its robustness."""
# Options of a method that a card tells elsewhere, or that say nothing about the training.
_NOT_SETTINGS = ("feature", "position_interpolation", "num_labels")
# Options of a view that mean something only if another one has some value.
_OF_JITTER, _OF_RESIZED_CROPS = ("brightness", "contrast", "saturation", "hue", "grayscale_first"), ("scale", "ratio")


def write_run_card(
    trainer: SSLTrainer,
    arguments: dict[str, Any],
    data: ImageData,
    results: dict[str, Any],
    figures: dict[str, str],
) -> None:
    """
    Write `README.md` and `.eval_results/` into the output folder of a run.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer, after training.
        arguments (`dict[str, Any]`): The script's arguments by name: `method`, `mode`, `recipe`, `dataset`,
            `backbone`, …
        data ([`~hf_ssl.data.ImageData`]): The data.
        results (`dict[str, Any]`): Numbers of the run, as in `all_results.json`.
        figures (`dict[str, str]`): Captions by path, relative to the folder.
    """
    args, model = trainer.args, trainer.model
    views: Any = trainer.views
    began_with: str | None = arguments["model"]
    method = get_method(arguments["method"])
    info = ModelCardInfo(
        model_name=name_of_run(trainer),
        repo_id=trainer.hub_model_id,
        **method_info(method, model.config),
        backbone=_describe_backbone(arguments, model.config.backbone_config),
        projected_results=results.get("knn_features") == "projected",
        trust_remote_code=needs_remote_code(model.config.backbone_config),
        uses_timm=model.config.backbone_config.model_type == "timm_wrapper",
        dataset=dataset_name(arguments["dataset"]),
        dataset_id=dataset_id_of(arguments["dataset"]),
        num_train_images=trainer.num_train_images,
        base_model=model_id_of(began_with) if began_with else None,
        began_with=(model_id_of(began_with) or dataset_name(began_with)) if began_with else None,
        limitations=_LIMITATIONS,
        training={
            "mode": arguments["mode"],
            "recipe": Path(arguments["recipe"]).stem,
            "optimizer steps": trainer.state.global_step,
            "epochs": round(trainer.state.epoch or 0, 2),
            "images per step": trainer.images_per_step,
            "optimizer": describe_optimizer(args),
            "peak learning rate": args.learning_rate,
            "schedule": describe_schedule(args),
            "warm-up": describe_warmup(args),
            "weight decay": _weight_decay(args),
            "gradient clipping": describe_clipping(args),
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "seed": args.seed,
            **_selection(results, data.test_name),
            **_published_branch(model, arguments["encoder"]),
            **_method_settings(model.config),
            **_views_settings(views.config, getattr(model.config, "num_local_views", 1)),
        },
        results=_results(results, arguments, data) if data.num_classes else (),
        figures=figures,
        hardware=describe_run(trainer, results["train_seconds"]),
        versions=library_versions(),
        license=license_of(began_with, arguments["revision"]) if began_with else "apache-2.0",
    )
    card = render_card(info)
    write_eval_results(trainer.output_dir, info.results, of_new_model=True)
    write_atomically(trainer.output_dir / REPOCARD_NAME, str(card))


def _selection(results: dict[str, Any], test_name: str) -> dict[str, str]:
    """Which step's model this is, where it is not the last."""
    if "best_step" not in results:
        return {}
    images = "training" if results["selected_by"].endswith("_train") else test_name
    chosen = f"step {results['best_step']}, the best by {results['selected_by'].replace('_', ' ')} on {images} images"
    return {"published model": chosen}


def _published_branch(model: Any, asked_for: Any) -> dict[str, str]:
    """Which encoder this is, where there are two: unless one is asked for, the method recommends it."""
    if getattr(model, "teacher", None) is None:
        return {}
    branch = published_branch(model, None if asked_for == "auto" else asked_for)
    meaning = "trained by gradient" if branch == "student" else "the moving average of the student"
    return {"published encoder": f"{branch}, {meaning}"}


def dataset_id_of(name: str) -> str | None:
    """The Hub id of what `--dataset` says, if it is of the Hub."""
    if name in DATASETS:
        return DATASETS[name].path
    return name if "/" in name and not Path(name).expanduser().exists() else None


def model_id_of(model: str) -> str | None:
    """The Hub id of what `--model` says, if it is of the Hub."""
    return model if model.count("/") == 1 and not Path(model).expanduser().exists() else None


def name_of_run(trainer: SSLTrainer) -> str:
    """What the model of a run is called: as its repository on the Hub, or its folder."""
    return str(trainer.hub_model_id or trainer.output_dir.resolve().name).rpartition("/")[2]


def describe_optimizer(args: Any) -> str:
    """The optimizer of training arguments, in words."""
    name = OptimizerNames(args.optim).value
    betas = [f"betas {args.adam_beta1:g} and {args.adam_beta2:g}"] if "adam" in name else []
    options = ", ".join([*betas, *([args.optim_args] if args.optim_args else [])])
    return f"{name} ({options})" if options else name


def describe_warmup(args: Any) -> str:
    """The warm-up of training arguments, in words."""
    steps = args.warmup_steps
    if not steps:
        return "none"
    return f"{steps:g} steps" if steps >= 1 else f"{100 * steps:g} % of the steps"


def describe_schedule(args: Any) -> str:
    """The learning-rate schedule of training arguments, in words."""
    name: str = args.schedule or SchedulerType(args.lr_scheduler_type).value
    if not args.schedule and args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
        images = "training" if str(args.metric_for_best_model).endswith("_train") else "evaluation"
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


def _views_settings(config: Any, num_local_views: int) -> dict[str, str]:
    """Options of the views, but for the normalization, which the image processor tells."""
    unused = ("image_mean", "image_std", *([] if num_local_views else ["local"]))
    rows = {}
    for name, value in ((item.name, getattr(config, item.name)) for item in fields(config)):
        if isinstance(value, View) and name not in unused:
            rows["view" if name == "view" else f"view {name}"] = describe_view(value)
        elif name not in unused and value is not None:
            rows[name.replace("_", " ")] = _setting(value)
    return rows


def describe_view(view: View) -> str:
    """What is done in a view, in words: options that are off are left out."""
    idle = {name for name, value in vars(view).items() if value in (None, 0)}
    idle |= set() if view.jitter else set(_OF_JITTER)
    idle |= set() if view.blur else {"blur_sigma"}
    idle |= set() if view.crop == "random_resized_crop" else set(_OF_RESIZED_CROPS)
    idle |= set() if view.crop == "padded_crop" else {"padding"}
    options = {name: value for name, value in vars(view).items() if name not in ("crop", *idle)}
    limits = {name: f"{value[0]:.4g} to {value[1]:.4g}" for name, value in options.items() if isinstance(value, list)}
    words = [f"{name.replace('_', ' ')} {limits.get(name) or _setting(value)}" for name, value in options.items()]
    return "; ".join([view.crop.replace("_", " "), *words])


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _results(results: dict[str, Any], arguments: dict[str, Any], data: ImageData) -> list[CardResult]:
    """kNN accuracies; and that of the class head, where there is one."""
    about: dict[str, Any] = {
        "metric_type": "accuracy",
        "dataset": dataset_name(arguments["dataset"]),
        "dataset_id": dataset_id_of(arguments["dataset"]),
        "dataset_revision": results.get("dataset_revision"),
        "split": data.test_name,
        "date": today(),
    }
    projected = ", as the loss projects it" if results.get("knn_features") == "projected" else ""
    protocol = (
        f"weighted kNN (Wu et al., 2018) with k = {results['k']} and temperature {results['temperature']} on the feature "
        f"`{results['feature']}`{projected}: {results['num_query_images']:,} images that were not trained on, among "
        f"{results['num_bank_images']:,} training images{_chosen_by('knn_top1', results)}"
    )
    rows = [
        CardResult(
            value=results[f"knn_top{n}"],
            metric_name=f"kNN top-{n} (%)",
            protocol=protocol,
            before_training=results[f"knn_top{n}_before"],
            raw_pixels=results["knn_top1_pixels"] if n == 1 else None,
            **about,
        )
        for n in ((1, 5) if (data.num_classes or 0) > 5 else (1,))
    ]
    name = "validation_accuracy_classification"
    if name in results and data.test is not None:
        count = min(arguments["validation_samples"], len(data.test))
        protocol = f"the class head in `pretraining/`, on {count:,} images that were not trained on"
        protocol += _chosen_by(name, results)
        rows.append(CardResult(value=results[name], metric_name="class head top-1 (%)", protocol=protocol, **about))
    return rows


def _chosen_by(metric: str, results: dict[str, Any]) -> str:
    """A word of caution, where a number chose what was published."""
    return "; it chose the step that was published, and so is too high by a little" * (
        results.get("selected_by") == metric
    )


def describe_run(trainer: SSLTrainer, seconds: float) -> str:
    """The machine of a run, and how long it took."""
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    if trainer.args.device.type == "cuda":
        machine = f"{trainer.args.world_size} x {torch.cuda.get_device_name()}"
    time = f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
    if trainer.first_step:
        steps = trainer.state.global_step
        time += f" for the last {steps - trainer.first_step:,} of {steps:,} steps, since the run was resumed"
    return f"{machine}, {time}"


def library_versions() -> dict[str, str]:
    """Versions of what computed."""
    return {"hf_ssl": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


__all__ = ["write_run_card"]
