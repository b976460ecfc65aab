"""How good an encoder is, by several protocols, on features that are computed in one pass.

    python training/evaluate.py --model outputs/relvit-digits --output_dir outputs/relvit-digits
    accelerate launch training/evaluate.py --model facebook/dino-vits16 --dataset cifar10 --output_dir outputs/dino-cifar10

Each protocol is a script of its own with more options: knn.py, linear.py. The numbers are written into all_results.json, with
how they were measured beside them, and as a table into evaluation.md; and into the encoder's own model card, if --output_dir
is its folder. Numbers of other datasets, protocols and models that are already there stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from transformers import HfArgumentParser
from transformers.utils import logging

from hf_ssl.arguments import dataset_name
from hf_ssl.data import ImageData, make_source
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.evaluation import (
    EncoderArguments,
    EvaluationArguments,
    FeatureSpec,
    LoadedEncoder,
    evenly_spaced_indices,
    grid_tokens,
    knn_votes,
    nearest_neighbors,
)
from hf_ssl.figures import (
    can_draw,
    plot_confusion,
    plot_embedding_map,
    plot_neighbors,
    plot_patch_colors,
    require_umap,
)
from hf_ssl.hub import record_evaluations, report_table, write_report
from hf_ssl.hub.run_card import dataset_id_of
from hf_ssl.scripts import knn, linear


logger = logging.get_logger(__name__)

PROTOCOLS = ("knn", "linear")
PICTURES = ("confusion.png", "map.png", "nearest.png", "patches.png")
MAX_CLASSES, MAX_POINTS = 100, 5000  # that a picture can show
NUM_SHOWN, NUM_NEIGHBORS = 6, 10
MAPS = {
    "pca": "the first two principal components",
    "umap": "a map by UMAP, which keeps neighbors together; distances between groups mean little",
}


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
    map: Literal["pca", "umap"] = field(
        default="pca",
        metadata={
            "help": "How the picture of all features is made: principal components, or UMAP (needs umap-learn)."
        },
    )


class Split(NamedTuple):
    """Images, their classes, and their features."""

    images: Any
    labels: Tensor
    features: Tensor


def main() -> None:
    args = parse()
    if args.map == "umap":  # which is not left out in silence
        require_umap()
    draws = can_draw()
    encoder, data = args.load_encoder(args.seed), args.load_data(args.seed)
    train, test = (load_features(args, encoder, make_source(images)) for images in (data.train, data.test))
    fit_k(args, len(train.images))
    rows = []
    for name in args.protocols:
        results = measure(args, name)
        if results:  # this is the first process
            rows = record_evaluations(str(args.output_dir), results, dataset_id_of(args.dataset))
    if rows:
        place = args.figures_folder(encoder)
        folder = Path(str(args.output_dir)) / place
        for name in PICTURES:  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        captions = draw(args, encoder, data, train, test, folder) if draws else {}
        own = encoder.name if args.is_own_folder() else None
        write_report(str(args.output_dir), rows, {f"{place}/{name}": text for name, text in captions.items()}, own)
        print(f"\n{report_table(rows)}")


def parse() -> EvaluateArguments:
    """The command line."""
    (args,) = HfArgumentParser(EvaluateArguments).parse_args_into_dataclasses()
    args.protocols = list(dict.fromkeys(name for part in args.protocols for name in part.split(",") if name))
    if not args.protocols or set(args.protocols) - set(PROTOCOLS):
        raise ValueError(f"--protocols {' '.join(args.protocols)} must name some of {', '.join(PROTOCOLS)}.")
    if args.output_dir is None:
        raise ValueError("Where is the report to be written? Set --output_dir, such as to the folder of the encoder.")
    return args


def load_features(args: EvaluateArguments, encoder: LoadedEncoder, images: Any) -> Split:
    """Features that all protocols need, of one pass, in which each of them finds its own; those of kNN are returned."""
    feature = args.feature(encoder)
    of_probe = replace(feature, num_blocks=args.num_blocks, average_pool=args.average_pool)
    specs: list[FeatureSpec] = list(dict.fromkeys([feature, of_probe] if "linear" in args.protocols else [feature]))
    return Split(images, images.labels, args.cached(encoder, images, specs)[0])


def fit_k(args: EvaluateArguments, num_images: int) -> None:
    """Leave out of `args.k` more neighbors than there are images."""
    too_many = [k for k in args.k if k > num_images]
    if too_many and "knn" in args.protocols:
        args.k = [k for k in args.k if k <= num_images] or [num_images]
        if rank() == 0:
            logger.warning(
                f"There are only {num_images:,} training images: --k {' '.join(map(str, too_many))} is left out, and kNN is "
                f"measured with k = {', '.join(map(str, args.k))}."
            )


def measure(args: EvaluateArguments, protocol: str) -> dict[str, Any]:
    """Run a protocol's script; of several processes, the first one gets the results."""
    encoder = list(flags(args, [item.name for item in fields(EncoderArguments)]))
    if protocol == "knn":
        return knn.main([*encoder, *flags(args, ["k", "batch_size", "num_workers", "bf16", "seed"])])
    sizes = ["--per_device_eval_batch_size", str(args.batch_size), "--dataloader_num_workers", str(args.num_workers)]
    own = [*flags(args, ["num_blocks", "average_pool", "bf16", "seed"]), *sizes]
    return linear.main([*encoder, *own, "--output_dir", f"{args.output_dir}/linear"])


def flags(args: EvaluateArguments, names: list[str]) -> Iterator[str]:
    """Arguments as they are typed."""
    for name in names:
        value = getattr(args, name)
        if value is not None:
            yield from (f"--{name}", *map(str, value if isinstance(value, list) else [value]))


def draw(
    args: EvaluateArguments, encoder: LoadedEncoder, data: ImageData, train: Split, test: Split, folder: Path
) -> dict[str, str]:
    """Pictures of what the encoder makes of the images; their captions by name."""
    folder.mkdir(parents=True, exist_ok=True)
    num_classes, device = int(data.num_classes or 0), encoder.model.device
    names = data.class_names or [str(i) for i in range(num_classes)]
    train, test = (split._replace(features=split.features.to(device)) for split in (train, test))
    captions = {}
    if num_classes > MAX_CLASSES:
        logger.warning(f"{num_classes:,} classes are too many for pictures: no confusion matrix and no map are drawn.")
    else:
        if "knn" in args.protocols:
            votes = knn_votes(test.features, train.features, train.labels, num_classes, k=args.k[0])
            plot_confusion(test.labels, votes.argmax(1).cpu(), names, folder / "confusion.png")
            captions["confusion.png"] = (
                f"classes of the {data.test_name} images, and those that kNN takes them for (k = {args.k[0]})."
            )
        some = evenly_spaced_indices(len(test.images), MAX_POINTS)
        features = test.features[some.to(device)]
        plot_embedding_map(features, test.labels[some], names, folder / "map.png", method=args.map, seed=args.seed)
        captions["map.png"] = f"features of {len(some):,} {data.test_name} images, {MAPS[args.map]}."
    shown = evenly_spaced_indices(len(test.images), NUM_SHOWN)
    photos = [test.images[i]["image"] for i in shown.tolist()]
    k = min(NUM_NEIGHBORS, len(train.images))
    neighbors = nearest_neighbors(test.features[shown.to(device)], train.features, k).cpu()
    found, places = neighbors.unique(return_inverse=True)
    plot_neighbors(
        folder / "nearest.png",
        query_images=photos,
        bank_images=[train.images[i]["image"] for i in found.tolist()],
        neighbors={"most similar training images": places},
        query_labels=test.labels[shown],
        bank_labels=train.labels[found],
        class_names=names,
    )
    captions["nearest.png"] = f"some {data.test_name} images, and the training images with the most similar features."
    try:
        tokens = grid_tokens(encoder, encoder.processor(images=photos, return_tensors="pt")["pixel_values"])
        plot_patch_colors(tokens.cpu(), photos, folder / "patches.png")
        captions["patches.png"] = "patch tokens of some images, their first three principal components as colors."
    except ValueError as error:  # an encoder without patches
        logger.warning(f"The patches of images are not drawn. {error}")
    return {name: f"{encoder.name} on {dataset_name(args.dataset)}: {text}" for name, text in captions.items()}


if __name__ == "__main__":
    main()
    close_process_group()
