"""How well a linear classifier of an encoder's frozen features tells the class of an image.

    python training/linear.py --model outputs/relvit-digits
    python training/linear.py --model facebook/dino-vits16 --dataset cifar10 --num_blocks 4
    accelerate launch training/linear.py --model outputs/patchmix --method patchmix --recipe cifar10 --dataset cifar10

Classifiers with several learning rates are trained side by side. The one that is reported is chosen on training images
that are held out, so that no test label has a part in it. Unless --augment is set, as the authors' recipes do, features are
computed once, and kept in files.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import HfArgumentParser

from hf_ssl.arguments import flat_values, parse_over, read_recipe
from hf_ssl.data import make_source
from hf_ssl.evaluation import (
    EncoderArguments,
    FeatureSource,
    FeatureSpec,
    LoadedEncoder,
    ProbeMonitor,
    cached_features,
    choose_probe,
    normalization,
    processor_protocol,
)
from hf_ssl.hub import write_results
from hf_ssl.launch import resume_point, train
from hf_ssl.models import get_method
from hf_ssl.models.linear_probe import (
    LinearProbeConfig,
    LinearProbesForTraining,
    LinearProbeViews,
    LinearProbeViewsConfig,
)
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments


RECIPES = Path(__file__).parent / "recipes"
IMAGES_OF_A_RATE = 256  # in a step, that a learning rate is for


@dataclass
class LinearArguments(EncoderArguments):
    """A linear probe of which encoder, on what."""

    method: str | None = field(
        default=None, metadata={"help": "Whose recipe for linear probing is followed; unset, one for any encoder."}
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Name of a recipe, or path of a yaml file; unset, the dataset's own recipe, else 'default'."
        },
    )
    num_blocks: int = field(
        default=1, metadata={"help": "Last transformer blocks whose class tokens are put side by side."}
    )
    average_pool: bool = field(
        default=False, metadata={"help": "Whether the mean of the last block's patch tokens comes in as well."}
    )
    augment: bool = field(
        default=False,
        metadata={
            "help": "Train on features of a new view (--view_…) of each image in each epoch, at an encoder's cost."
        },
    )
    select_on: Literal["held-out", "test"] = field(
        default="held-out",
        metadata={
            "help": "What chooses learning rate and epoch: training images that are held out, or the test images themselves, "
            "as in the code of most authors."
        },
    )
    held_out_samples: int | None = field(
        default=None,
        metadata={"help": "How many are held out; unset, a tenth of the training images, 10,000 at most."},
    )


def parse(argv: Sequence[str]) -> tuple[LinearArguments, SSLTrainingArguments, Any, LinearProbeViewsConfig]:
    """The command line, over the values of a recipe."""
    (first,) = HfArgumentParser(LinearArguments, add_help=False).parse_args_into_dataclasses(
        argv, return_remaining_strings=True
    )[:1]
    folder = "linear"
    if first.method is not None:
        get_method(first.method)
        folder = f"{first.method}/linear"
    values = flat_values(LinearProbeViewsConfig, read_recipe(RECIPES, folder, first.recipe, first.dataset))
    parsed = parse_over(values, LinearArguments, LinearProbeConfig, LinearProbeViewsConfig, "linear", argv)
    of_views = [flag for flag in argv if flag.startswith(("--view_", "--image_mean", "--image_std"))]
    if of_views and not parsed[0].augment:
        raise ValueError(f"{', '.join(of_views)}: there are views with --augment true only.")
    return parsed


def check(training_args: SSLTrainingArguments) -> None:
    """Refuse what would make one classifier depend on the others, and what has no meaning here."""
    if training_args.push_to_hub:
        raise ValueError("A probe measures an encoder, and leaves no model for the Hub: leave --push_to_hub out.")
    if training_args.optim != "sgd" or training_args.weight_decay or training_args.max_grad_norm:
        raise ValueError(
            "Classifiers are trained side by side by SGD, without weight decay and clipping: set --optim sgd, "
            "--weight_decay 0 and --max_grad_norm 0."
        )
    if training_args.learning_rate != SSLTrainingArguments.learning_rate:
        raise ValueError(f"--learning_rate {training_args.learning_rate} is not used: set --learning_rates.")


def share_out(training_args: SSLTrainingArguments, num_images: int) -> None:
    """Of a step's images each process gets its share, so that their number changes nothing; small data make small steps."""
    wanted = min(training_args.per_device_train_batch_size, num_images)
    training_args.per_device_train_batch_size = max(1, wanted // training_args.world_size)


def split(args: LinearArguments, num_images: int, seed: int) -> tuple[list[int], list[int]]:
    """Places of the training images that are trained on, and of those that choose."""
    if args.select_on == "test":
        if args.held_out_samples is not None:
            raise ValueError(
                f"--held_out_samples {args.held_out_samples} has no use with --select_on test: leave it out."
            )
        return list(range(num_images)), []
    count = min(num_images // 10, 10_000) if args.held_out_samples is None else args.held_out_samples
    if not 0 < count < num_images:
        raise ValueError(f"--held_out_samples {count} must lie between 1 and {num_images - 1}.")
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[count:]), sorted(order[:count])


def augmenting(
    config: LinearProbeViewsConfig, encoder: LoadedEncoder, feature: FeatureSpec, bf16: bool, seed: int
) -> LinearProbeViews:
    """What makes features of a new view of each image; pixels are normalized as the encoder wants them."""
    mean, std = normalization(encoder.processor)
    config = replace(config, image_mean=config.image_mean or mean, image_std=config.image_std or std)
    gray = PIL.Image.new("RGB", (64, 64))
    image_size = encoder.processor(images=gray, return_tensors="pt")["pixel_values"].shape[-1]

    def encode(pixel_values: Tensor) -> Tensor:
        return encoder.features(pixel_values, [feature], bf16)[0]

    return LinearProbeViews(config, image_size, encode, seed)


def only_inputs(batch: dict[str, Tensor], draws: Any = None) -> dict[str, Tensor]:
    """Of a batch of features, what the classifiers take."""
    return {"features": batch["features"], "labels": batch["labels"]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train and measure; of several processes, the first one gets the results."""
    args, training_args, model_args, views_config = parse(sys.argv[1:] if argv is None else argv)
    check(training_args)
    seed = training_args.seed
    data = args.load_data(seed)
    encoder = args.load_encoder(seed)
    feature = replace(args.feature(encoder), num_blocks=args.num_blocks, average_pool=args.average_pool)
    train_images, test_images = make_source(data.train), make_source(data.test)
    rest, held_out = split(args, len(train_images), seed)
    config = LinearProbeConfig(num_labels=data.num_classes, **vars(model_args))  # refused before the work begins

    def features_of(images: Any) -> Tensor:
        return cached_features(
            encoder,
            images,
            [feature],
            folder=args.cache_dir,
            batch_size=training_args.per_device_eval_batch_size,
            num_workers=training_args.dataloader_num_workers,
            bf16=training_args.bf16,
        )[0]

    splits = {"test": (features_of(test_images), torch.as_tensor(test_images.labels))}
    source: Any
    views: Any
    if args.augment:
        views = augmenting(views_config, encoder, feature, training_args.bf16, seed)
        source = make_source(data.train.select(rest), views)
        training_args.augment_on = "device"  # where the encoder is
        if held_out:
            chosen = make_source(data.train.select(held_out))
            splits["held_out"] = (features_of(chosen), torch.as_tensor(chosen.labels))
    else:
        features, labels = features_of(train_images), torch.as_tensor(train_images.labels)
        name = f"{train_images.fingerprint()} {feature} {len(rest)} {processor_protocol(encoder.processor)}"
        source, views = FeatureSource(features, labels, torch.tensor(rest), name), only_inputs
        if held_out:
            splits["held_out"] = (features[held_out], labels[held_out])

    config.feature_size, config.encoder_fingerprint = splits["test"][0].shape[1], encoder.fingerprint()
    share_out(training_args, len(rest))
    images_per_step = (
        training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    )
    training_args.learning_rate = images_per_step / IMAGES_OF_A_RATE
    set_seed(seed)
    trainer = SSLTrainer(LinearProbesForTraining(config), training_args, source, views, ProbeMonitor(splits))
    train(trainer, resume_point(training_args))
    if trainer.last_evaluated_step != trainer.state.global_step:
        trainer.evaluate()
    results: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        history = [
            {name.removeprefix("eval_"): value for name, value in log.items()}
            for log in trainer.state.log_history
            if any(name.startswith("eval_test_top1") for name in log)
        ]
        chosen = choose_probe(history, config.learning_rates, "held_out" if held_out else "test")
        protocol = args.protocol(encoder, data, train_images, test_images) | {
            "feature": str(feature),
            "precision": "bf16" if training_args.bf16 else "fp32",
            "seed": seed,
            "num_trained_on": len(rest),
            "selected_by": f"{len(held_out)} held-out training images" if held_out else f"{data.test_name} images",
            "epochs": trainer.state.epoch,
            "images_per_step": images_per_step,
            "learning_rates_for_256_images": config.learning_rates,
            "augmented": args.augment,
        }
        results = {**chosen, "linear_protocol": protocol}
        write_results(trainer.output_dir, results, update=True, replaces="linear_")
        print(json.dumps(results, indent=2))
    trainer.close()
    return results


if __name__ == "__main__":
    main()
