"""How good an encoder is, by several protocols, on features that are computed in one pass.

    python training/evaluate.py --model outputs/relvit-digits --output_dir outputs/relvit-digits
    accelerate launch training/evaluate.py --model facebook/dino-vits16 --dataset cifar10 --output_dir outputs/dino-cifar10

Each protocol is a script of its own with more options: knn.py, linear.py. The numbers are written into all_results.json, with
how they were measured beside them, and as a table into evaluation.md; and into the encoder's own model card, if --output_dir
is its folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import HfArgumentParser

from hf_ssl.data import ImageData, make_source
from hf_ssl.distributed import close_process_group
from hf_ssl.evaluation import (
    EncoderArguments,
    EvaluationArguments,
    FeatureSpec,
    LoadedEncoder,
    cached_features,
    evenly_spaced_indices,
    knn_votes,
    nearest_neighbors,
)
from hf_ssl.figures import (
    plot_confusion,
    plot_embedding_map,
    plot_neighbors,
    plot_patch_colors,
    require_matplotlib,
)
from hf_ssl.hub import add_to_card, evaluation_results, report_table, write_results
from hf_ssl.hub.run_card import dataset_id_of
from hf_ssl.scripts import knn, linear


PROTOCOLS = ("knn", "linear")
MAX_CLASSES, MAX_POINTS = 100, 5000  # that a picture can show
NUM_SHOWN, NUM_NEIGHBORS = 6, 10


@dataclass
class EvaluateArguments(EvaluationArguments):
    """Which protocols, of which encoder, on what."""

    protocols: list[str] = field(
        default_factory=lambda: list(PROTOCOLS), metadata={"help": f"Any of {', '.join(PROTOCOLS)}."}
    )
    k: list[int] = field(
        default_factory=lambda: [10, 20, 100, 200], metadata={"help": "Neighbors that vote in kNN, each on its own."}
    )
    num_blocks: int = field(
        default=1,
        metadata={"help": "In the linear probe, last transformer blocks whose class tokens are put side by side."},
    )
    average_pool: bool = field(
        default=False, metadata={"help": "In the linear probe, whether the mean of the patch tokens comes in as well."}
    )


def main() -> None:
    (args,) = HfArgumentParser(EvaluateArguments).parse_args_into_dataclasses()
    args.protocols = [name for part in args.protocols for name in part.split(",") if name]
    if not args.protocols or set(args.protocols) - set(PROTOCOLS):
        raise ValueError(f"--protocols {' '.join(args.protocols)} must name some of {', '.join(PROTOCOLS)}.")
    if args.output_dir is None:
        raise ValueError("Where is the report to be written? Set --output_dir, such as to the folder of the encoder.")
    require_matplotlib()
    encoder, data = args.load_encoder(args.seed), args.load_data(args.seed)
    feature = args.feature(encoder)
    of_probe = replace(feature, num_blocks=args.num_blocks, average_pool=args.average_pool)
    specs = list(dict.fromkeys([feature, of_probe] if "linear" in args.protocols else [feature]))
    train, test = (
        Split(source, source.labels, features_of(args, encoder, source, specs)[0])
        for source in (make_source(data.train), make_source(data.test))
    )
    args.k = [k for k in args.k if k <= len(train.images)] or [len(train.images)]
    common = list(flags(args, [item.name for item in fields(EncoderArguments)]))
    results: dict[str, Any] = {}
    if "knn" in args.protocols:
        own = flags(args, ["k", "batch_size", "num_workers", "bf16", "seed", "output_dir"])
        results |= knn.main([*common, *own])
    if "linear" in args.protocols:
        own = [
            *flags(args, ["num_blocks", "average_pool", "bf16", "seed"]),
            "--output_dir",
            f"{args.output_dir}/linear",
        ]
        sizes = ["--per_device_eval_batch_size", args.batch_size, "--dataloader_num_workers", args.num_workers]
        results |= linear.main([*common, *own, *map(str, sizes)])
    if results:  # this is the first process
        write_results(str(args.output_dir), results, update=True, replaces=r"linear_")
        write_report(args, results, draw(args, encoder, data, train, test))


class Split(NamedTuple):
    """Images, their classes, and their features."""

    images: Any
    labels: Tensor
    features: Tensor


def features_of(
    args: EvaluateArguments, encoder: LoadedEncoder, images: Any, specs: list[FeatureSpec]
) -> list[Tensor]:
    """Features that the protocols need, of one pass; each of them finds them in the cache."""
    return cached_features(
        encoder,
        images,
        specs,
        folder=args.cache_dir,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        bf16=args.bf16,
    )


def draw(
    args: EvaluateArguments, encoder: LoadedEncoder, data: ImageData, train: Split, test: Split
) -> dict[str, str]:
    """Pictures of what the encoder makes of the images; their captions by path, relative to the output folder."""
    folder, num_classes = Path(str(args.output_dir)) / "figures", int(data.num_classes or 0)
    folder.mkdir(parents=True, exist_ok=True)
    names = data.class_names or [str(i) for i in range(num_classes)]
    captions, k = {}, args.k[0]
    if num_classes <= MAX_CLASSES:
        votes = knn_votes(test.features, train.features, train.labels, num_classes, k=k)
        plot_confusion(test.labels, votes.argmax(1), names, folder / "confusion.png")
        captions["confusion.png"] = (
            f"Classes of the {data.test_name} images, and those that kNN takes them for (k = {k})."
        )
        some = evenly_spaced_indices(len(test.images), MAX_POINTS)
        plot_embedding_map(test.features[some], test.labels[some], names, folder / "map.png")
        captions["map.png"] = (
            f"Features of {len(some):,} {data.test_name} images: their first two principal components."
        )
    shown = evenly_spaced_indices(len(test.images), NUM_SHOWN)
    neighbors = nearest_neighbors(test.features[shown], train.features, min(NUM_NEIGHBORS, len(train.images)))
    found, places = neighbors.unique(return_inverse=True)
    plot_neighbors(
        folder / "nearest.png",
        query_images=[test.images[i]["image"] for i in shown.tolist()],
        bank_images=[train.images[i]["image"] for i in found.tolist()],
        neighbors={"most similar training images": places},
        query_labels=test.labels[shown],
        bank_labels=train.labels[found],
        class_names=names,
    )
    captions["nearest.png"] = f"Some {data.test_name} images, and the training images with the most similar features."
    photos = [test.images[i]["image"] for i in shown.tolist()]
    tokens = encoder.patch_tokens(encoder.processor(images=photos, return_tensors="pt")["pixel_values"])
    if tokens is not None:
        plot_patch_colors(tokens.cpu(), photos, folder / "patches.png")
        captions["patches.png"] = "Patch tokens of some images: their first three principal components as colors."
    return {f"figures/{name}": caption for name, caption in captions.items()}


def flags(args: EvaluateArguments, names: list[str]) -> Iterator[str]:
    """Arguments as they are typed."""
    for name in names:
        value = getattr(args, name)
        if value is not None:
            yield from (f"--{name}", *map(str, value if isinstance(value, list) else [value]))


def write_report(args: EvaluateArguments, results: dict[str, Any], figures: dict[str, str]) -> None:
    """The table, and the results and pictures in the card."""
    folder = Path(str(args.output_dir))
    rows = evaluation_results(results, dataset_id_of(args.dataset))
    table = report_table(rows)
    (folder / "evaluation.md").write_text(table)
    is_of_this_model = Path(args.model).resolve() == folder.resolve() and not args.random_weights
    if is_of_this_model and (folder / "README.md").is_file():
        add_to_card(folder / "README.md", rows, figures)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
    close_process_group()
