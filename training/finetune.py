"""Fine-tune an encoder to classify images, or train one for it from scratch: the supervised baseline.

accelerate launch training/finetune.py --model outputs/relvit-cifar10 --method relvit --recipe cifar10 --dataset cifar10
accelerate launch training/finetune.py --model outputs/patchmix-cifar10 --method patchmix --recipe cifar10 --dataset cifar10
accelerate launch training/finetune.py --model none --backbone vit-small --method relvit --recipe cifar10 --dataset cifar10

What is written is a classifier that transformers loads, with its image processor and the names of its classes.
"""

import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    PreTrainedConfig,
)

from hf_ssl.arguments import DataArguments, build_backbone_config, flat_values, parse_over, read_recipe
from hf_ssl.data import ImageData, load_image_data, make_source
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.evaluation import AccuracyMonitor, normalization
from hf_ssl.figures import draw_vit, plot_curves, require_matplotlib
from hf_ssl.hub import clear_earlier_model, evaluation_processor, save_published, write_classifier_card, write_results
from hf_ssl.hub.model_card import needs_remote_code
from hf_ssl.hub_errors import clear_errors
from hf_ssl.launch import choose_best_by, push_and_close, resume_point, save_trainer_state, starting_point, train
from hf_ssl.models import METHODS, SSLConfig, get_method
from hf_ssl.models.classification import (
    ClassificationConfig,
    ClassificationViews,
    ClassificationViewsConfig,
    ClassifierForTraining,
)
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments


RECIPES = Path(__file__).parent / "recipes"
# Encoders without positions, and the ViT, whose positions are resized.
ANY_SIZE = ("vit", "resnet", "cifar_resnet", "convnext", "convnextv2", "regnet")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass
class FinetuneArguments(DataArguments):
    """What to fine-tune, and on what: images with labels."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "The encoder: a folder or an id of the Hub that AutoModel loads; or none, for random weights of "
            "--backbone."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of --model on the Hub."})
    method: str = field(
        default="relvit",
        metadata={
            "help": f"Whose recipes these are, and with --model none whose kind of encoder: {', '.join(METHODS)}."
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Name of one of the method's recipes for fine-tuning, or path of a yaml file; unset, the dataset's own "
            "recipe, else 'default'."
        },
    )
    backbone: str = field(default="vit-tiny", metadata={"help": "With --model none, the encoder, as in pretraining."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images, in pixels; unset, that of the encoder (of none: 224)."}
    )
    patch_size: int = field(default=16, metadata={"help": "With --model none, side of a patch of a ViT, in pixels."})
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout in the encoder (a ViT); unset, that of its configuration."}
    )
    attention_dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout of the attention weights (of a ViT); unset, that of its configuration."},
    )
    max_test_samples: int | None = field(default=None, metadata={"help": "Measure on a random subset of this size."})
    validation_samples: int = field(
        default=0,
        metadata={
            "help": "Training images that are held out to choose the best epoch by; 0: test images choose it, as in the code "
            "of most authors."
        },
    )
    eval_crop_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the shorter side that the evaluation's central crop keeps; 1 resizes the whole image. Unset, "
            "0.875 from 128 pixels on and 1 below."
        },
    )
    encoder: str = field(
        default="auto",
        metadata={
            "help": "Which weights to publish, and to choose the best epoch by: those that were trained (student), or their "
            "moving average (teacher, with --ema_decay); auto takes the average, if there is one.",
            "choices": ["auto", "student", "teacher"],
        },
    )


def parse() -> tuple[FinetuneArguments, SSLTrainingArguments, Any, ClassificationViewsConfig]:
    """The command line, over the values of a recipe."""
    argv = sys.argv[1:]
    (first,) = HfArgumentParser(FinetuneArguments, add_help=False).parse_args_into_dataclasses(
        argv, return_remaining_strings=True
    )[:1]
    get_method(first.method)
    recipe = read_recipe(RECIPES, f"{first.method}/finetune", first.recipe, first.dataset)
    values = flat_values(ClassificationViewsConfig, recipe)
    return parse_over(values, FinetuneArguments, ClassificationConfig, ClassificationViewsConfig, "finetune", argv)


def encoder_config(args: FinetuneArguments) -> PreTrainedConfig:
    """Configuration of the encoder, pretrained or not, for images of the wanted size."""
    if args.model == "none":
        args.image_size, args.dropout = args.image_size or 224, args.dropout or 0.0
        args.attention_dropout = args.attention_dropout or 0.0
        return build_backbone_config(args, get_method(args.method))
    with clear_errors(f"There is no encoder to be loaded from --model {args.model}.", str(args.model), args.revision):
        config = AutoConfig.from_pretrained(args.model, revision=args.revision)
    if isinstance(config, SSLConfig):
        raise ValueError(
            f"{args.model} holds a whole model of pretraining: set --model to the folder above it, that of the encoder."
        )
    native = native_size(config)
    if config.model_type not in ANY_SIZE and native is not None and args.image_size not in (None, native):
        raise ValueError(
            f"{args.model} is for images of {native} pixels, and an encoder of type {config.model_type} cannot be "
            f"fine-tuned at another size here: set --image_size {native}."
        )
    args.image_size = config.image_size = args.image_size or native or 224
    for name, value in (
        ("hidden_dropout_prob", args.dropout),
        ("attention_probs_dropout_prob", args.attention_dropout),
    ):
        if value is not None and not hasattr(config, name):
            raise ValueError(f"An encoder of type {config.model_type} has no {name}: leave the dropout out.")
        if value is not None:
            setattr(config, name, value)
    return config


def native_size(config: Any) -> int | None:
    """Side of the images that an encoder was pretrained on, if its configuration tells."""
    of_timm = getattr(config, "pretrained_cfg", None) or {"input_size": [None]}
    return getattr(config, "image_size", None) or of_timm["input_size"][-1]


def with_statistics(
    views: ClassificationViewsConfig, model: str, revision: str | None = None
) -> ClassificationViewsConfig:
    """Mean and standard deviation of the pixels are those of the encoder's own processor, if nothing else is asked for."""
    if views.image_mean is not None and views.image_std is not None:
        return views
    found: Any = IMAGENET
    if model != "none":
        what = f"How {model} wants pixels normalized is not known: set --image_mean and --image_std."
        with clear_errors(what, model, revision):
            mean, std = normalization(AutoImageProcessor.from_pretrained(model, revision=revision))
        found = {"image_mean": mean, "image_std": std}
    return replace(views, **{name: list(found[name]) for name in found if getattr(views, name) is None})


def published(args: FinetuneArguments, config: ClassificationConfig) -> Literal["student", "teacher"]:
    """Which weights are published: those that are trained, or their moving average."""
    if args.encoder == "teacher" and config.ema_decay is None:
        raise ValueError(
            "--encoder teacher: there is no moving average of the weights; set --ema_decay, such as 0.9999."
        )
    return "student" if args.encoder == "student" or config.ema_decay is None else "teacher"


def split(args: FinetuneArguments, data: ImageData, seed: int) -> tuple[Dataset, Dataset, Dataset | None]:
    """Images to train on, those that choose the best epoch, and those that are measured at the end, if they are others."""
    if data.num_classes is None:
        raise ValueError(f"{args.dataset} has no labels, and a classifier learns from nothing else.")
    if not args.validation_samples:
        if data.test is None:
            raise ValueError(f"{args.dataset} has no test images: hold some out, with --validation_samples 1000.")
        return data.train, data.test, None
    if not 0 < args.validation_samples < len(data.train):
        raise ValueError(
            f"--validation_samples {args.validation_samples} must lie between 1 and {len(data.train) - 1}: some of the "
            f"{len(data.train)} training images are to be trained on."
        )
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out, rest = order[: args.validation_samples], sorted(order[args.validation_samples :])
    return data.train.select(rest), data.train.select(sorted(held_out)), data.test


def evaluate_only(
    args: FinetuneArguments, training_args: SSLTrainingArguments, data: ImageData, test: Dataset
) -> None:
    """`--do_train false`: measure the classifier that an earlier run left in the output folder."""
    output_dir = str(training_args.output_dir)
    if not (Path(output_dir) / "config.json").is_file():
        raise FileNotFoundError(f"There is no classifier in {output_dir}. Train first, or set --output_dir.")
    config = AutoConfig.from_pretrained(output_dir)
    if not any(name.endswith("ForImageClassification") for name in config.architectures or ()):
        raise ValueError(f"{output_dir} holds no classifier but {config.architectures}: set --output_dir to one.")
    model = AutoModelForImageClassification.from_pretrained(output_dir)
    names = data.class_names or [str(i) for i in range(data.num_classes or 0)]
    if list(model.config.id2label.values()) != names:
        raise ValueError(
            f"{output_dir} tells {shown(list(model.config.id2label.values()))}, and --dataset {args.dataset} has "
            f"{shown(names)}: measure it on images of the classes that it was trained on."
        )
    processor = AutoImageProcessor.from_pretrained(output_dir)
    batch_size, num_workers = training_args.per_device_eval_batch_size, training_args.dataloader_num_workers
    monitor = AccuracyMonitor(processor, make_source(test), batch_size, num_workers)
    model.to(training_args.device)
    path = Path(output_dir) / "all_results.json"
    which = json.loads(path.read_text()).get("encoder") if path.is_file() else None
    # What was published is what is measured.
    measured = {name.replace("finetune_", prefix_of(which)): value for name, value in monitor(model).items()}
    results = {
        **measured,
        "num_test_images": len(test),
        "split": data.test_name,
        "dataset_revision": data.revision,
    }
    if rank() == 0:
        write_results(output_dir, results, update=True)
        print(json.dumps(results, indent=2))
    close_process_group()


def prefix_of(which: str | None) -> str:
    """What the numbers of the weights, or of their moving average, begin with."""
    return "finetune_ema_" if which == "teacher" else "finetune_"


def shown(names: list[str]) -> str:
    """Class names in a message."""
    return f"{len(names)} classes ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def finish(
    args: FinetuneArguments,
    trainer: SSLTrainer,
    processor: Any,
    data: ImageData,
    measured: dict[str, float],
    selection: dict[str, Any],
    seconds: float,
) -> None:
    """Write the folder that a run leaves behind."""
    output_dir, history = trainer.output_dir, trainer.state.log_history
    which = published(args, trainer.model.config)
    top1 = f"{prefix_of(which)}top1"
    last = next((log for log in reversed(history) if f"eval_{top1}" in log), {})
    results = {
        **measured,
        **({} if trainer.model.config.ema_decay is None else {"encoder": which}),
        **selection,
        "last_epoch_top1": last.get(f"eval_{top1}"),
        "num_steps": trainer.state.global_step,
        "num_train_images": trainer.num_train_images,
        "dataset_revision": data.revision,
        "train_seconds": round(seconds, 1),
    }
    classifier = trainer.model.export_classifier(data.class_names, which)
    clear_earlier_model(output_dir)
    save_published(classifier, processor, output_dir)
    write_results(output_dir, results)
    save_trainer_state(trainer)
    history = [{name.removeprefix("eval_"): value for name, value in log.items()} for log in history]
    accuracies = [name for name in ("finetune_top1", "finetune_ema_top1") if name in measured]
    if not any("finetune_top1" in log for log in history):  # nothing was measured before the end
        history.append({"step": trainer.state.global_step, **{name: results[name] for name in accuracies}})
    terms = [name for name in ("loss", *accuracies) if any(name in log for log in history)]
    plot_curves(history, output_dir / "figures" / "curves.png", terms=terms)
    captions = {"curves.png": "Loss and accuracy over the optimizer steps."}
    captions |= draw_vit(classifier.base_model, output_dir / "figures")
    write_classifier_card(trainer, vars(args), data, results, captions)
    chosen = f"the best of all epochs by {selection['selected_by']}" if selection["selected_by"] else "at the end"
    trust = ", trust_remote_code=True" if needs_remote_code(trainer.model.config.backbone_config) else ""
    print(
        f"\nTop-1 accuracy: {results[top1]:.2f} % on {results['num_test_images']:,} {results['split']} images, {chosen}"
        f"{', of the moving average of the weights' if which == 'teacher' else ''}.\n"
        f"{output_dir} holds the classifier:\n\n"
        "    from transformers import pipeline\n"
        f'    classify = pipeline("image-classification", model="{output_dir}"{trust})\n'
    )


def main() -> None:
    args, training_args, model_args, views_config = parse()
    data = load_image_data(
        args.dataset,
        max_train_samples=args.max_train_samples,
        max_test_samples=args.max_test_samples,
        seed=training_args.seed,
        skip_bad_images=args.skip_bad_images,
        revision=args.dataset_revision,
    )
    train_images, selecting, test_images = split(args, data, training_args.seed)
    if not training_args.do_train:
        return evaluate_only(args, training_args, data, test_images or selecting)

    if args.model is None:
        raise ValueError("Which encoder? Set --model to a folder or an id of the Hub, or to none for random weights.")
    if args.model != "none" and Path(args.model).resolve() == Path(str(training_args.output_dir)).resolve():
        raise ValueError(
            f"--output_dir is --model, {args.model}: the classifier would replace the encoder. Choose another."
        )
    if Path(str(training_args.output_dir), "pretraining").is_dir():
        raise ValueError(
            f"--output_dir {training_args.output_dir} holds a pretraining: choose another for the classifier."
        )
    require_matplotlib()
    config = ClassificationConfig(
        backbone_config=encoder_config(args), num_labels=data.num_classes, **vars(model_args)
    )
    views_config = with_statistics(views_config, args.model, args.revision)
    views = ClassificationViews(views_config, config, training_args.seed)
    mean, std, interpolation = (
        views_config.image_mean,
        views_config.image_std,
        get_method(args.method).eval_interpolation,
    )
    processor = evaluation_processor(args.image_size, mean, std, args.eval_crop_ratio, interpolation)
    batch_size, num_workers = training_args.per_device_eval_batch_size, training_args.dataloader_num_workers
    monitor = AccuracyMonitor(processor, make_source(selecting), batch_size, num_workers)
    which = published(args, config)
    if training_args.load_best_model_at_end:
        choose_best_by(training_args, f"{prefix_of(which)}top1")
    set_seed(training_args.seed)
    model = ClassifierForTraining(config)
    if args.model != "none":
        model.load_encoder(args.model, revision=args.revision)
    began_with = starting_point(args.model, args.revision)
    trainer = SSLTrainer(
        model, training_args, make_source(train_images, views), views, monitor, began_with, processing_class=processor
    )
    set_seed(training_args.seed, device_specific=True)  # dropout differs between processes, the model does not
    start = time.monotonic()
    train(trainer, resume_point(training_args))
    seconds = time.monotonic() - start
    # The best model, if it was asked for, is measured again; on other images than those that chose it, where there are.
    final = test_images if test_images is not None else selecting
    monitor.images = make_source(final)
    measured = monitor(trainer.model)
    by = "held-out training images" if args.validation_samples else f"{data.test_name} images"
    selection = {
        "selected_by": by if training_args.load_best_model_at_end else None,  # the last one, then
        "split": data.test_name if test_images is not None or not args.validation_samples else "held-out training",
        "num_test_images": len(final),
    }
    if trainer.is_world_process_zero():
        finish(args, trainer, processor, data, measured, selection, seconds)
    push_and_close(trainer)


if __name__ == "__main__":
    main()
