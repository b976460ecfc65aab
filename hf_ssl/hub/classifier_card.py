"""The model card of a classifier that was fine-tuned, or trained from scratch."""

from pathlib import Path
from typing import Any

from huggingface_hub.constants import REPOCARD_NAME
from transformers import SchedulerType

from ..arguments import dataset_name
from ..backbones import ENCODERS, describe_encoder
from ..data import ImageData
from ..trainer import SSLTrainer
from .base_model import license_of, pretraining_of
from .eval_results import write_eval_results
from .export import write_atomically
from .model_card import CardResult, ModelCardInfo, needs_remote_code, render_card, today
from .run_card import (
    dataset_id_of,
    describe_clipping,
    describe_optimizer,
    describe_run,
    describe_schedule,
    describe_view,
    describe_warmup,
    library_versions,
    model_id_of,
    name_of_run,
)


def write_classifier_card(
    trainer: SSLTrainer,
    arguments: dict[str, Any],
    data: ImageData,
    results: dict[str, Any],
    figures: dict[str, str],
) -> None:
    """
    Write `README.md` and `.eval_results/` into the output folder of a run of fine-tuning.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer, after training.
        arguments (`dict[str, Any]`): The script's arguments by name: `model`, `method`, `recipe`, `dataset`, …
        data ([`~hf_ssl.data.ImageData`]): The data.
        results (`dict[str, Any]`): Numbers of the run, as in `all_results.json`.
        figures (`dict[str, str]`): Captions of its pictures, by their names in `figures/`.
    """
    args, config = trainer.args, trainer.model.config
    views: Any = trainer.views
    dataset, model = dataset_name(arguments["dataset"]), arguments["model"]
    has_plateaus = not args.schedule and args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    follows_labels = has_plateaus and not arguments["validation_samples"]
    origin, license = "It was trained from scratch.", "apache-2.0"
    about: dict[str, Any] = {}
    if model != "none":
        license, about = license_of(model, arguments["revision"]), pretraining_of(model, arguments["revision"])
        frozen = "; the encoder was kept as it was" if config.freeze_encoder else ""
        origin = (
            f"It was fine-tuned from the pretrained encoder `{model_id_of(model) or dataset_name(model)}`{frozen}."
        )
    info = ModelCardInfo(
        model_name=name_of_run(trainer),
        repo_id=trainer.hub_model_id,
        **about,
        backbone=_describe(config.backbone_config),
        num_classes=config.num_labels,
        origin=origin,
        base_model=model_id_of(model),
        trust_remote_code=needs_remote_code(config.backbone_config),
        uses_timm=config.backbone_config.model_type == "timm_wrapper",
        dataset=dataset,
        dataset_id=dataset_id_of(arguments["dataset"]),
        num_train_images=trainer.num_train_images,
        limitations=f"""It knows the classes that it was trained on, and no others: every image is given one of them.
It was trained to do so on images of {dataset}, at {config.backbone_config.image_size} pixels: expect it to be worse for other
kinds of images. It inherits whatever biases these have; nothing is known about its fairness or its robustness.""",
        training={
            "recipe": f"{arguments['method']}/{Path(arguments['recipe']).stem}",
            "optimizer steps": trainer.state.global_step,
            "images per step": trainer.images_per_step,
            "optimizer": describe_optimizer(args),
            "peak learning rate": args.learning_rate,
            "schedule": describe_schedule(args),
            "warm-up": describe_warmup(args),
            "weight decay": f"{args.weight_decay:g}",
            "layer decay": f"{args.layer_decay:g}",
            "gradient clipping": describe_clipping(args),
            "stochastic depth": f"{config.drop_path_rate:g}",
            "label smoothing": f"{config.label_smoothing:g}",
            **_augmentation(views.config),
            **({} if config.ema_decay is None else {"moving average": f"decay {config.ema_decay:.10g}"}),
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "seed": args.seed,
        },
        results=_results(results, str(args.metric_for_best_model), arguments["dataset"], data, follows_labels),
        figures={f"figures/{name}": caption for name, caption in figures.items()},
        hardware=describe_run(trainer, results["train_seconds"]),
        versions=library_versions(),
        license=license,
    )
    card = render_card(info)
    write_eval_results(trainer.output_dir, info.results, of_new_model=True)
    write_atomically(trainer.output_dir / REPOCARD_NAME, str(card))


def _results(
    results: dict[str, Any], best_by: str, dataset: str, data: ImageData, follows_labels: bool
) -> list[CardResult]:
    """Top-1 accuracy; top-5 as well, where it says something."""
    is_average = results.get("encoder") == "teacher"
    prefix, other = ("finetune_ema_", "finetune_") if is_average else ("finetune_", "finetune_ema_")
    metric = best_by.removeprefix("eval_")
    criterion = "the accuracy" if metric == f"{prefix}top1" else f"`{metric}`"
    images = f"{results['num_test_images']:,} {results['split']} images"
    if results["selected_by"] is None and follows_labels:
        selection = (
            "the model at the end of its training, whose learning rate followed an accuracy on these same images"
        )
    elif results["selected_by"] is None:
        selection = "the model at the end of its training, in which no label of these images had a part"
    elif results["selected_by"] == f"{results['split']} images":
        selection = (
            f"the best of all epochs was chosen by {criterion} on these same images, as in the code of most authors, so that "
            "the number is too high by a little"
        )
    else:
        selection = f"the best of all epochs was chosen by {criterion} on {results['selected_by']}"
    outcomes = []
    if results["selected_by"] == f"{results['split']} images" and results["last_epoch_top1"] is not None:
        outcomes.append(f"at the last evaluation of the training top-1 was {results['last_epoch_top1']:.2f} %")
    if f"{other}top1" in results:
        weights = "the weights themselves have" if is_average else "the moving average of the weights has"
        outcomes.append(f"{weights} {results[f'{other}top1']:.2f} % top-1")
    return [
        CardResult(
            value=results[f"{prefix}top{k}"],
            metric_name=f"top-{k} accuracy (%)",
            metric_type="accuracy",
            dataset=dataset_name(dataset),
            dataset_id=dataset_id_of(dataset),
            dataset_revision=results.get("dataset_revision"),
            split=results["split"],
            protocol=f"{images}, each once, through the image processor of this repository; "
            f"{'the moving average of the trained weights' if is_average else 'the trained weights'}; {selection}",
            outcome="; ".join(outcomes) or None,
            date=today(),
        )
        for k in ((1, 5) if (data.num_classes or 0) > 5 else (1,))
    ]


def _augmentation(views: Any) -> dict[str, str]:
    """What is done to images, where something is."""
    names = {"auto_augment": "augmentation", "mixup": "mixup", "cutmix": "CutMix"}
    mixed = {title: str(value) for name, title in names.items() if (value := getattr(views, name))}
    return {"view": describe_view(views.view)} | mixed


def _describe(config: Any) -> str:
    """An encoder in words; of those that no method here trains, the type."""
    if config.model_type in ("vit", "swin", *ENCODERS):
        return describe_encoder(config)
    return f"An encoder of type {config.model_type} for {config.image_size}-pixel images"


__all__ = ["write_classifier_card"]
