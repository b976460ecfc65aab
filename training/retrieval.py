"""How well an encoder finds images of the same thing: mean average precision, by the protocol of revisited Oxford and Paris.

    python training/retrieval.py --model facebook/dino-vits16 --benchmark path/to/roxford5k --image_size 224 \
        --position_interpolation scale_factor
    python training/retrieval.py --model facebook/dino-vits16 --benchmark path/to/rparis6k --image_size 512 \
        --multi_scale true --position_interpolation scale_factor
    python training/retrieval.py --model outputs/pw_self --images path/to/photos --pairs pairs.csv
    python training/retrieval.py --model outputs/pw_self --dataset cifar10

A benchmark is a folder with gnd_NAME.pkl and jpg/, as its authors publish it. Pairs are a csv with the columns query and
positive, paths in the folder of images. Of a dataset with labels, test images look for the training images of their class.
The whole database is ranked, exactly.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset
from transformers import HfArgumentParser

from hf_ssl.arguments import dataset_name
from hf_ssl.data import (
    ImageData,
    RetrievalTask,
    find_images,
    load_pairs,
    load_revisited,
    make_source,
    same_class_task,
)
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.evaluation import (
    CroppedImages,
    EvaluationArguments,
    FeatureSpec,
    LoadedEncoder,
    QueryScores,
    ThumbnailProcessor,
    mean_scores,
    nearest_neighbors,
    normalization,
    retrieval_scores,
)
from hf_ssl.evaluation.arguments import OF_DATASETS
from hf_ssl.evaluation.retrieval import K
from hf_ssl.figures import Ranking, can_draw, plot_rankings
from hf_ssl.hub import csv_table, record_evaluations, write_atomically, write_report
from hf_ssl.hub.run_card import dataset_id_of


SCALES = (1.0, 2**-0.5, 0.5)
NUM_FOUND = 10  # in the picture


@dataclass(kw_only=True)
class RetrievalArguments(EvaluationArguments):
    """What is looked for, and where."""

    benchmark: str | None = field(
        default=None, metadata={"help": "A folder such as path/to/roxford5k, with gnd_roxford5k.pkl and jpg/."}
    )
    images: str | None = field(default=None, metadata={"help": "A folder of images, some of which --pairs tells of."})
    pairs: str | None = field(
        default=None,
        metadata={"help": "A csv with the columns query and positive, paths relative to --images; one pair a row."},
    )
    batch_size: int = field(default=32, metadata={"help": "Images in a forward pass; photos of 512 pixels are large."})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Of a benchmark or pairs, the longer side of the photos, which keep their shape; of a dataset, the side "
            "of the images. Unset, what the image processor does."
        },
    )
    multi_scale: bool = field(
        default=False, metadata={"help": "Features are means over three sizes of an image: 1, 1/sqrt(2) and 1/2."}
    )
    crop_queries: bool = field(
        default=False,
        metadata={
            "help": "Cut the queries out of their photos, as the benchmark's authors do, and shrink them by the factor of "
            "the whole photo; DINO and PW-Self show queries whole."
        },
    )
    distractors: str | None = field(
        default=None, metadata={"help": "A folder of images that no query looks for, added to the database."}
    )
    num_shown: int = field(default=5, metadata={"help": "Queries in the picture: the best ones, and the worst ones."})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; of several processes, the first one gets the results."""
    (args,) = HfArgumentParser(RetrievalArguments).parse_args_into_dataclasses(argv)
    check(args)
    draws = args.output_dir is not None and can_draw()
    data = None if args.benchmark or args.images else args.load_data(args.seed)
    task, encoder = load_task(args, data), load_encoder(args)
    feature = replace(args.feature(encoder), scales=SCALES if args.multi_scale else (1.0,))
    sources: dict[str, Any] = {"database": make_source(task.database), "queries": make_source(task.queries)}
    if args.crop_queries:
        sources["queries"] = CroppedImages(sources["queries"], task.boxes or [], args.image_size)
    if args.distractors is not None:
        sources["distractors"] = make_source(find_images(args.distractors))
    features = {name: args.cached(encoder, source, [feature])[0] for name, source in sources.items()}
    if rank() != 0:
        return {}
    queries = features.pop("queries").to(encoder.model.device)
    database = torch.cat(list(features.values())) if args.distractors else features["database"]
    scores = retrieval_scores(queries, database, task.relevance)
    protocol = describe(args, task, data, encoder, feature, sources, scores)
    results = mean_scores(scores) | {"retrieval_protocol": protocol}
    if args.output_dir is not None:
        folder, stem = Path(args.output_dir), f"{args.figures_folder(encoder)}/retrieval-{task.name}"
        stem += "-cropped" * args.crop_queries + "-scales" * args.multi_scale
        pictures = {}
        if draws:
            caption = draw(folder / f"{stem}.png", args, task, scores, queries, database, sources)
            pictures[f"{stem}.png"] = f"{encoder.name} on {caption}"
        write_atomically(folder / f"{stem}.csv", as_csv(task, scores))
        rows = record_evaluations(args.output_dir, results, None if data is None else dataset_id_of(args.dataset))
        write_report(args.output_dir, rows, pictures, encoder.name if args.is_own_folder() else None)
    print(json.dumps(results, indent=2))
    return results


def check(args: RetrievalArguments) -> None:
    """Refuse what does not go together."""
    if args.benchmark is not None and (args.images or args.pairs):
        raise ValueError("--benchmark is one task, and --images with --pairs is another: set one of them.")
    if (args.images is None) != (args.pairs is None):
        raise ValueError("--images is a folder, and --pairs tells which of its images belong together: set both.")
    if args.benchmark or args.images:
        args.refuse(OF_DATASETS, "The images are those of a benchmark or a folder, and all of them count")
    if args.image_size is not None and (args.benchmark or args.images):
        args.refuse(["eval_crop_ratio"], "Photos keep their shape, nothing is cropped")
    if args.num_shown < 1:
        raise ValueError(f"--num_shown {args.num_shown} must be at least 1.")


def load_task(args: RetrievalArguments, data: ImageData | None) -> RetrievalTask:
    """What is looked for."""
    if data is not None:
        task = replace(same_class_task(data), name=dataset_name(args.dataset))
    elif args.benchmark is not None:
        folder = Path(os.path.abspath(Path(args.benchmark).expanduser()))  # a link has the name, not where it leads to
        task = load_revisited(folder.parent, folder.name)
    else:
        task = load_pairs(str(args.images), str(args.pairs))
    if args.crop_queries and task.boxes is None:
        raise ValueError("--crop_queries: only a benchmark tells where in its photos the queries are.")
    return task


def load_encoder(args: RetrievalArguments) -> LoadedEncoder:
    """The encoder, and how it is shown images."""
    if args.image_size is None or not (args.benchmark or args.images):
        return args.load_encoder(args.seed)
    encoder = replace(args, image_size=None).load_encoder(args.seed)
    encoder.processor = ThumbnailProcessor(args.image_size, *normalization(encoder.processor))
    return encoder


def describe(
    args: RetrievalArguments,
    task: RetrievalTask,
    data: ImageData | None,
    encoder: LoadedEncoder,
    feature: FeatureSpec,
    sources: dict[str, Any],
    scores: dict[str, QueryScores],
) -> dict[str, Any]:
    """How it was measured."""
    counts = {setup: int((~of.average_precision.isnan()).sum()) for setup, of in scores.items()}
    prints = {f"{name}_fingerprint": source.fingerprint()[:16] for name, source in sources.items()}
    num_others = len(sources.get("distractors", ()))
    kind = "queries"
    if task.boxes is not None:
        kind = (
            "queries, cut out of their photos" if args.crop_queries else "whole photos as queries (boxes are not used)"
        )
    parts = [
        "retrieval by the protocol of Radenović et al. (2018)"
        + ", of images of the query's class" * (data is not None),
        ", ".join(f"{count:,}" + f" ({setup})" * (setup != "all") for setup, count in counts.items()) + f" {kind}",
        f"{len(sources['database']):,} images" + f" and {num_others:,} distractors" * bool(num_others),
        f"fingerprints {', '.join(value[:8] for value in prints.values())}",
    ]
    protocol: dict[str, Any] = {"dataset": task.name, "split": "queries", **args.encoder_protocol(encoder)}
    if data is not None:
        protocol = args.protocol(encoder, data, sources["database"], sources["queries"]) | {"seed": args.seed}
        parts.append(f"seed {args.seed}")
    return protocol | {
        **prints,
        "text": "; ".join(parts),
        "feature": str(feature),
        "precision": "bf16" if args.bf16 else "fp32",
        "num_queries": counts,
        "num_database_images": len(sources["database"]),
        "num_distractors": num_others,
        "cropped_queries": args.crop_queries,
    }


def as_csv(task: RetrievalTask, scores: dict[str, QueryScores]) -> str:
    """The numbers of each query, in percent; empty where it has nothing to find."""
    names = task.queries["name"][:] if "name" in task.queries.column_names else range(len(task.queries))
    rows = []
    for setup, of_queries in scores.items():
        numbers = torch.cat([of_queries.average_precision[:, None], of_queries.precision], dim=1)
        for name, positives, row in zip(names, task.relevance[setup].positives, numbers.tolist(), strict=True):
            rows.append([name, setup, len(positives), *("" if math.isnan(x) else f"{100 * x:.4f}" for x in row)])
    return csv_table(["query", "setup", "num_positives", "AP", *(f"P@{k}" for k in K)], rows)


def draw(
    path: Path,
    args: RetrievalArguments,
    task: RetrievalTask,
    scores: dict[str, QueryScores],
    queries: Tensor,
    database: Tensor,
    sources: dict[str, Any],
) -> str:
    """The best and the worst queries, and what was found for them; what the picture shows."""
    counted = [setup for setup, of in scores.items() if not of.average_precision.isnan().all()]
    setup = "medium" if "medium" in counted else counted[0]
    average, relevance = scores[setup].average_precision, task.relevance[setup]
    order = average.argsort(descending=True, stable=True)
    order = order[~average[order].isnan()]
    shown = list(dict.fromkeys([*order[: args.num_shown].tolist(), *order[-args.num_shown :].tolist()]))
    images = ConcatDataset([source for name, source in sources.items() if name != "queries"])
    found = nearest_neighbors(queries[shown].cpu(), database, min(NUM_FOUND, len(database)))
    rankings = []
    for query, places in zip(shown, found.tolist(), strict=True):
        right, junk = set(relevance.positives[query]), set(relevance.junk[query])
        rankings.append(
            Ranking(
                sources["queries"][query]["image"],
                [images[place]["image"] for place in places],
                f"AP {100 * average[query]:.1f} %",
                [f"{i}." for i in range(1, len(places) + 1)],
                [None if place in junk else place in right for place in places],
            )
        )
    plot_rankings(path, rankings)
    words = "" if setup == "all" else f" ({setup})"
    return f"{task.name}: queries with the highest and the lowest average precision{words}, and what is found first."


if __name__ == "__main__":
    main()
    close_process_group()
