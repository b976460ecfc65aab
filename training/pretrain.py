"""Pretrain an encoder without labels.

    accelerate launch training/pretrain.py --method relvit
    accelerate launch training/pretrain.py --method relvit --dataset path/to/photos --backbone vit-small
    accelerate launch training/pretrain.py --method patchmix --recipe cifar10 --dataset cifar10

An image becomes a loss in three steps: a source of `hf_ssl.data` yields batches of images with their epoch and index; the
method's views (`hf_ssl/models/<method>/views_<method>.py`) augment a batch on the device; the method's model
(`modeling_<method>.py`) computes the loss of what they made. `SSLTrainer` does the rest.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.utils.data import Dataset, Subset
from transformers import AutoImageProcessor, AutoModelForPreTraining, SchedulerType

from hf_ssl.arguments import PretrainArguments, build_inputs, parse_with_recipe
from hf_ssl.backbones import VIT_SIZES
from hf_ssl.data import ImageData, make_source
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.evaluation import NUM_QUERIES_SHOWN, KNNMonitor, LossMonitor, evenly_spaced
from hf_ssl.figures import (
    draw_vit,
    plot_curves,
    plot_neighbors,
    plot_similarities,
    require_matplotlib,
)
from hf_ssl.hub import clear_earlier_model, evaluation_processor, export_run, write_results, write_run_card
from hf_ssl.hub.model_card import needs_remote_code
from hf_ssl.launch import choose_best_by, push_and_close, resume_point, save_trainer_state, starting_point, train
from hf_ssl.models import SSLConfig, get_method
from hf_ssl.pretrained import load_pretrained
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import save_views


RECIPES = Path(__file__).parent / "recipes"

NEXT_STEPS = """
{output_dir} holds the encoder, ready for the Hub:

    from transformers import AutoImageProcessor, AutoModel
    model = AutoModel.from_pretrained("{output_dir}"{trust})
    processor = AutoImageProcessor.from_pretrained("{output_dir}")

Look at {output_dir}/README.md and at figures/ beside it. What to try next:

    accelerate launch training/pretrain.py --method {method} --dataset path/to/your/photos --output_dir outputs/photos
    accelerate launch training/pretrain.py --method {method} --dataset cifar10 --max_train_samples 5000 \\
        {small_run}
    accelerate launch training/pretrain.py --method {method} --help
"""


_SMALL_VIT = (
    "--backbone vit-micro --patch_size 4 --per_device_train_batch_size 128 --max_steps 500 --schedule_unit step"
)
# Of CIFAR-10 at its own size: minutes, not a day.
SMALL_RUNS = {
    "relvit": f"--recipe cifar10 {_SMALL_VIT}",
    "patchmix": f"--recipe cifar10 {_SMALL_VIT}",
    "aps": f"--recipe cifar10 {_SMALL_VIT}",
    "pw_self": f"--recipe cifar10_32 {_SMALL_VIT}",
    "isl": "--recipe cifar10_micro --gan_min_steps 500",
}


def build_monitor(
    args: PretrainArguments, processor: Any, data: ImageData, train_images: Dataset, num_workers: int
) -> KNNMonitor:
    """The kNN monitor: test images among training images; without a test split, the last few training images."""
    if data.test is not None:
        bank, queries = train_images, make_source(data.test)
    else:
        size, num_queries = len(train_images), min(NUM_QUERIES_SHOWN, len(train_images) // 2)
        bank = Subset(train_images, range(size - num_queries))
        queries = Subset(train_images, range(size - num_queries, size))
    return KNNMonitor(
        processor,
        bank=evenly_spaced(bank, args.knn_bank_samples),
        queries=evenly_spaced(queries, args.knn_query_samples),
        num_classes=data.num_classes,
        k=args.knn_k,
        temperature=args.knn_temperature,
        which=published(args),
        num_workers=num_workers,
        projected=args.knn_features == "projected",
        recompute=args.recompute,
        num_train_queries=args.knn_train_samples,
    )


def build_validation(
    args: PretrainArguments, processor: Any, data: ImageData, views: Any, num_workers: int
) -> LossMonitor | None:
    """What measures the method's own losses on test images, if there are any, and the method can be asked."""
    if data.test is None or not args.validation_samples or not hasattr(views, "validation_inputs"):
        return None
    images = evenly_spaced(make_source(data.test), args.validation_samples)
    return LossMonitor(processor, images, views, num_workers=num_workers)


def published(args: PretrainArguments) -> str | None:
    """Which encoder is published; None for the one that the method recommends."""
    return None if args.encoder == "auto" else args.encoder


def draw_figures(trainer: SSLTrainer, monitor: KNNMonitor, data: ImageData) -> dict[str, str]:
    """Write the pictures of a run; their captions by path, relative to the output folder."""
    folder = Path(trainer.args.output_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    history = [{name.removeprefix("eval_"): value for name, value in e.items()} for e in trainer.state.log_history]
    terms = sorted({name for entry in history for name in entry if name.startswith(("loss_", "validation_loss"))})
    curves = {}
    if terms or any("knn_top1" in entry for entry in history):  # a short run without labels may have logged nothing
        plot_curves(history, folder / "curves.png", terms=terms)
        curves["figures/curves.png"] = "Loss terms and kNN accuracy over the optimizer steps."
    draw_neighbors(folder / "neighbors.png", monitor, data)
    draw_similarities(folder / "similarities.png", monitor, data)
    shown_images = "Some training images" if data.test is None else "Images that were not trained on"
    keys = "some training images" if data.num_classes is None else "one training image of each of some classes"
    similarity = (
        f"Cosine similarity of the {monitor.compared} of a few images to those of {keys}; gray: before pretraining."
    )
    others = {} if trainer.method_callback is None else trainer.method_callback.draw_figures(folder)
    others |= draw_vit(trainer.model.export_encoder(monitor.which), folder)
    return {
        **curves,
        "figures/neighbors.png": f"{shown_images} with their nearest training images, before and after pretraining.",
        "figures/similarities.png": similarity,
        **{f"figures/{name}": caption for name, caption in others.items()},
    }


def draw_neighbors(path: Path, monitor: KNNMonitor, data: ImageData) -> None:
    """Draw the nearest training images of a few images."""
    queries = [monitor.queries[i] for i in range(monitor.num_shown)]
    # Only the images that are shown are decoded; `places` are the neighbors' places among them.
    shown, places = torch.stack([monitor.first_neighbors, monitor.last_neighbors]).unique(return_inverse=True)
    bank = [monitor.bank[i] for i in shown.tolist()]
    labeled = data.num_classes is not None
    plot_neighbors(
        path,
        query_images=[sample["image"] for sample in queries],
        bank_images=[sample["image"] for sample in bank],
        neighbors={"neighbors before training": places[0], "neighbors after training": places[1]},
        query_labels=[sample["label"] for sample in queries] if labeled else None,
        bank_labels=[sample["label"] for sample in bank] if labeled else None,
        class_names=data.class_names,
    )


def draw_similarities(path: Path, monitor: KNNMonitor, data: ImageData) -> None:
    """Draw the similarity of three images, at most, to some training images."""
    queries = [monitor.queries[i] for i in range(min(3, monitor.num_shown))]
    keys = [monitor.bank[i] for i in monitor.key_indices.tolist()]
    labeled = data.num_classes is not None
    plot_similarities(
        path,
        query_images=[sample["image"] for sample in queries],
        key_images=[sample["image"] for sample in keys],
        similarities=monitor.last_similarities[: len(queries)],
        similarities_before=monitor.first_similarities[: len(queries)],
        query_labels=[sample["label"] for sample in queries] if labeled else None,
        key_labels=[sample["label"] for sample in keys] if labeled else None,
        class_names=data.class_names,
    )


def for_the_end(args: PretrainArguments, monitor: KNNMonitor, recompute: bool) -> bool:
    """Let the monitor measure by the protocol that is for the end of a run; whether that is another than before."""
    before = monitor.k, monitor.uses_held_features
    monitor.k = min(args.final_knn_k or args.knn_k, len(monitor.bank))
    monitor.recompute = recompute
    return before[0] != monitor.k or (before[1] and recompute)


def evaluate_only(
    args: PretrainArguments,
    training_args: SSLTrainingArguments,
    monitor: KNNMonitor,
    validation: LossMonitor | None,
    data: ImageData,
    source: Any,
) -> None:
    """
    `--do_train false`: measure the model that an earlier run left in the output folder; what it holds of its training images
    is only used with these images.
    """
    if args.model is not None:
        raise ValueError(f"--do_train false measures the model in --output_dir: leave --model {args.model} out.")
    output_dir = Path(str(training_args.output_dir))
    folder = output_dir / "pretraining"
    for_the_end(args, monitor, args.recompute)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is nothing to evaluate: {folder} does not exist. Train first, or set --output_dir."
        )
    monitor.processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForPreTraining.from_pretrained(folder)
    model.load_state(folder)
    model.to(training_args.device)
    held = model.held_features() if monitor.projected and not monitor.recompute else None
    is_of_others = model.held_fingerprint is not None and model.held_fingerprint != source.fingerprint()
    if held is not None and (len(held) != len(source) or is_of_others):
        raise ValueError(
            f"{folder} holds features of {len(held):,} other images than these {len(source):,}: give the --dataset and "
            "--max_train_samples of the run, or --recompute true."
        )
    classes = model.config.num_labels if "classification" in getattr(model.config, "tasks", ()) else None
    if classes not in (None, data.num_classes):
        raise ValueError(f"{folder} tells {classes} classes, and --dataset {args.dataset} has {data.num_classes}.")
    results = monitor(model) | monitor.settings | {"dataset_revision": data.revision}
    if validation is not None:
        validation.processor = monitor.processor
        validation.views = type(validation.views)(validation.views.config, model.config, validation.views.seed)
        results |= validation(model)
    if rank() == 0:
        write_results(output_dir, results, update=True)
        print(json.dumps(results, indent=2))
    close_process_group()


def finish(
    args: PretrainArguments,
    trainer: SSLTrainer,
    monitor: KNNMonitor,
    validated: dict[str, float],
    data: ImageData,
    seconds: float,
    num_steps: int,
) -> None:
    """Write the folder that a run leaves behind, and tell what came out of `num_steps` steps in `seconds`."""
    output_dir, step = trainer.args.output_dir, trainer.state.global_step
    results = {
        **monitor.last,
        **{f"{name}_before": value for name, value in monitor.first.items() if name != "knn_top1_pixels"},
        **monitor.settings,
        **validated,
        "feature": trainer.model.config.feature,
        "loss": next((e["loss"] for e in reversed(trainer.state.log_history) if "loss" in e), None),
        "train_seconds": round(seconds, 1),
        "images_per_second": round(
            num_steps * trainer.images_per_step / (seconds - trainer.between_epochs_seconds), 1
        ),
        "data_wait_percent": round(100 * trainer.data_seconds / seconds, 2),
        "num_steps": step,
        "num_train_images": trainer.num_train_images,
        "dataset_revision": data.revision,
        **(trainer.method_callback.results() if trainer.method_callback is not None else {}),
    }
    if trainer.args.load_best_model_at_end and trainer.state.best_global_step:
        metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
        results |= {"selected_by": metric, "best_step": trainer.state.best_global_step}
    clear_earlier_model(output_dir)
    export_run(trainer.model, monitor.processor, output_dir, published(args))
    save_views(trainer.views.config, Path(output_dir) / "pretraining")
    write_results(output_dir, results)
    save_trainer_state(trainer)
    figures = draw_figures(trainer, monitor, data)
    write_run_card(trainer, vars(args), data, results, figures)

    if monitor.last:
        print(
            f"\nkNN top-1: {results['knn_top1']:.2f} % ({results['knn_top1_before']:.2f} % before training, "
            f"{results['knn_top1_pixels']:.2f} % on raw pixels), feature {results['feature']}"
            f"{', projected' if monitor.projected else ''}, k = {monitor.k}, "
            f"{len(monitor.queries):,} queries among {len(monitor.bank):,} images."
        )
    trust = ", trust_remote_code=True" if needs_remote_code(trainer.model.config.backbone_config) else ""
    print(NEXT_STEPS.format(output_dir=output_dir, method=args.method, small_run=SMALL_RUNS[args.method], trust=trust))


def main() -> None:
    args, training_args, model_args, views_config = parse_with_recipe(PretrainArguments, RECIPES)
    method = get_method(args.method)
    data, config, views, source = build_inputs(args, model_args, views_config, training_args.seed)
    mean, std = views_config.image_mean, views_config.image_std
    crop_ratio = method.crop_ratio(args.image_size, args.eval_crop_ratio)
    processor = evaluation_processor(args.image_size, mean, std, crop_ratio, method.eval_interpolation)
    num_workers = training_args.dataloader_num_workers
    monitor = build_monitor(args, processor, data, source, num_workers)
    validation = build_validation(args, processor, data, views, num_workers)
    if not training_args.do_train:
        return evaluate_only(args, training_args, monitor, validation, data, source)

    if args.model is not None and Path(args.model).resolve() == Path(str(training_args.output_dir)).resolve():
        raise ValueError(f"--output_dir is --model, {args.model}: the new model would replace it. Choose another.")
    check_plateau(args, training_args, data)
    check_selection(args, training_args, config, validation, data)
    require_matplotlib()
    set_seed(training_args.seed)
    model = load_pretrained(args.model, args.revision, config, method) if args.model else method.model_class(config)
    resume = resume_point(training_args)
    training_args.eval_on_start = resume is None and training_args.eval_strategy != "no"
    measure = monitor if validation is None else lambda trained: monitor(trained) | validation(trained)
    began_with = starting_point(args.model, args.revision)
    trainer = SSLTrainer(model, training_args, source, views, measure, began_with, processing_class=processor)
    set_seed(training_args.seed, device_specific=True)  # dropout differs between processes, the model does not
    if trainer.is_world_process_zero():
        patches = f" in patches of {args.patch_size} px" if args.backbone in VIT_SIZES else ""
        print(
            f"{method.title} ({args.mode}), {args.backbone}, {model.num_parameters() / 1e6:.2f} M parameters; "
            f"{len(source):,} images of {args.dataset} at {args.image_size} px{patches}"
        )
    if not training_args.eval_on_start:
        monitor(trainer.model)  # the untrained encoder, for the comparison at the end
    start = time.monotonic()
    trained = train(trainer, resume)
    seconds = time.monotonic() - start - trainer.evaluation_seconds
    # The best model, if it was asked for, is not the last one that was measured; nor is that by the protocol for the end.
    is_measured = trainer.last_evaluated_step == trainer.state.global_step and not training_args.load_best_model_at_end
    if for_the_end(args, monitor, recompute=True) or not is_measured:
        trainer.evaluate()
    if trainer.is_world_process_zero():
        validated = {} if validation is None else validation.last
        finish(args, trainer, monitor, validated, data, seconds, trained.global_step - trainer.first_step)
    push_and_close(trainer)


def check_selection(
    args: PretrainArguments,
    training_args: SSLTrainingArguments,
    config: SSLConfig,
    validation: LossMonitor | None,
    data: ImageData,
) -> None:
    """With --load_best_model_at_end, what is best if nothing is said: what the method's authors look at."""
    if not training_args.load_best_model_at_end:
        return
    choose_best_by(training_args, config.selection_metric)
    metric = str(training_args.metric_for_best_model).removeprefix("eval_")
    if metric.startswith("validation_") and validation is None:
        raise ValueError(
            f"The best model is to be chosen by {metric}, and there are no test images to measure it on: set "
            "--load_best_model_at_end false, or use a dataset with test images and --validation_samples."
        )
    if metric.startswith("knn_") and data.num_classes is None:
        raise ValueError(
            f"The best model is to be chosen by {metric}, and {args.dataset} has no labels: set --load_best_model_at_end "
            "false."
        )
    check_train_samples(args, metric)


def check_plateau(args: PretrainArguments, training_args: SSLTrainingArguments, data: ImageData) -> None:
    """A learning rate that follows an accuracy needs one that is measured; otherwise the first evaluation would fail."""
    if training_args.lr_scheduler_type != SchedulerType.REDUCE_ON_PLATEAU:
        return
    metric = str(training_args.metric_for_best_model).removeprefix("eval_")
    if data.num_classes is None:
        raise ValueError(
            f"The learning rate is to follow {metric}, and {args.dataset} has no labels: set --lr_scheduler_type cosine."
        )
    check_train_samples(args, metric)


def check_train_samples(args: PretrainArguments, metric: str) -> None:
    if metric == "knn_top1_train" and not args.knn_train_samples:
        raise ValueError("knn_top1_train is to be looked at: set --knn_train_samples, for example 5000.")


if __name__ == "__main__":
    main()
