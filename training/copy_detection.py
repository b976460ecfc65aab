"""Does an encoder find the original of a copy? And which photos of a folder are nearly the same?

    python training/copy_detection.py --model facebook/dino-vitb8 --copydays path/to/copydays --distractors path/to/photos \
        --whitening path/to/other/photos --position_interpolation scale_factor
    python training/copy_detection.py --model outputs/pw_self --near_duplicates path/to/photos --threshold 0.9

Copydays is a folder with original/, strong/, jpegqual/3/ to 75/ and crops/10/ to 80/, as its authors publish it. Near
duplicates are written as a csv of pairs with their cosine similarity, and as a contact sheet of groups.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset
from transformers import HfArgumentParser

from hf_ssl.arguments import dataset_name
from hf_ssl.data import COPYDAYS_SIZES, CopyDays, find_images, load_copydays, make_source
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.evaluation import (
    CopyBlock,
    CopyResult,
    EvaluationArguments,
    FeatureSpec,
    LoadedEncoder,
    Whitening,
    copy_detection,
    groups_of,
    near_duplicates,
    normalization,
)
from hf_ssl.evaluation.arguments import OF_DATASETS
from hf_ssl.evaluation.features import has_class_token
from hf_ssl.figures import Ranking, can_draw, plot_rankings
from hf_ssl.hub import (
    csv_table,
    evaluation_processor,
    record_evaluations,
    write_atomically,
    write_report,
    write_results,
)


IMAGE_SIZE = 320  # what the authors resize Copydays to
GEM = 4.0  # their exponent
NUM_FOUND = 10  # in a picture


@dataclass(kw_only=True)
class CopyDetectionArguments(EvaluationArguments):
    """Where copies are looked for."""

    copydays: str | None = field(default=None, metadata={"help": "The folder of Copydays."})
    blocks: list[str] | None = field(
        default=None, metadata={"help": "Some of its blocks, such as strong and jpegqual/3; unset, all."}
    )
    other_counts: bool = field(
        default=False, metadata={"help": "Accept a folder in the form of Copydays with other numbers of images."}
    )
    batch_size: int = field(default=32, metadata={"help": "Images in a forward pass."})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": f"Side of the images, in pixels; unset, {IMAGE_SIZE} for Copydays, whose images are resized whole, and "
            "for near duplicates what the image processor does."
        },
    )
    distractors: str | None = field(
        default=None, metadata={"help": "A folder of images that are no originals, added to the database."}
    )
    whitening: str | None = field(
        default=None, metadata={"help": "A folder of images whose features tell how all features are whitened."}
    )
    center_covariance: bool = field(
        default=False,
        metadata={
            "help": "Whiten by the covariance, and not, as the authors do, by the second moments without a mean."
        },
    )
    near_duplicates: str | None = field(
        default=None, metadata={"help": "A folder of photos, of which those that are nearly the same are told."}
    )
    threshold: float = field(default=0.9, metadata={"help": "The least cosine similarity of near duplicates."})
    num_shown: int = field(
        default=10, metadata={"help": "Rows of the picture: strong copies, the worst first, or the largest groups."}
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, or search; of several processes, the first one gets the results."""
    (args,) = HfArgumentParser(CopyDetectionArguments).parse_args_into_dataclasses(argv)
    check(args)
    return find_near_duplicates(args) if args.copydays is None else evaluate_copydays(args)


def check(args: CopyDetectionArguments) -> None:
    """Refuse what does not go together."""
    if (args.copydays is None) == (args.near_duplicates is None):
        raise ValueError("What is to be done? Set either --copydays or --near_duplicates.")
    args.refuse(OF_DATASETS, "The images are those of folders, and all of them count")
    if args.copydays is None:
        args.refuse(
            ["blocks", "other_counts", "distractors", "whitening", "center_covariance"], "There is no --copydays"
        )
        if args.output_dir is None:
            raise ValueError("Where are the pairs to be written? Set --output_dir.")
    else:
        args.refuse(["threshold"], "There is no --near_duplicates")
        args.refuse(["eval_crop_ratio"], "Images of Copydays are resized whole, not cropped")
    if args.whitening is None:
        args.refuse(["center_covariance"], "There is no --whitening")
    if args.num_shown < 1:
        raise ValueError(f"--num_shown {args.num_shown} must be at least 1.")


def evaluate_copydays(args: CopyDetectionArguments) -> dict[str, Any]:
    """Mean average precision of each block."""
    data = load_copydays(
        args.copydays or "", blocks=args.blocks, expected=None if args.other_counts else COPYDAYS_SIZES
    )
    draws = args.output_dir is not None and can_draw()
    args = replace(args, image_size=args.image_size or IMAGE_SIZE)
    encoder = replace(args, image_size=None).load_encoder(args.seed)
    statistics = normalization(encoder.processor)
    side = int(args.image_size or IMAGE_SIZE)
    encoder.processor = evaluation_processor(side, *statistics, crop_ratio=1.0, interpolation="bicubic")
    feature = args.feature(encoder)
    if args.pooling == "auto" and has_class_token(encoder.model):
        feature = FeatureSpec("class_token", gem=GEM)
    folders = {"distractors": args.distractors, "whitening": args.whitening}
    others = {name: make_source(find_images(folder)) for name, folder in folders.items() if folder is not None}
    originals = make_source(data.originals)
    sources = {"original": originals} | {name: make_source(images) for name, images in data.blocks.items()} | others
    features = {name: args.cached(encoder, source, [feature])[0] for name, source in sources.items()}
    if rank() != 0:
        return {}
    whitening = None
    if "whitening" in features:
        whitening = Whitening.fit(features["whitening"], center_covariance=args.center_covariance)
    database = torch.cat([features[name] for name in ("original", "distractors") if name in features])
    database = database.to(encoder.model.device)
    blocks = {name: CopyBlock(features[name].to(database.device), data.positives[name]) for name in data.blocks}
    found = copy_detection(database, blocks, whitening=whitening)
    results: dict[str, Any] = {f"mAP_{name}": of.mean_average_precision for name, of in found.items()}
    results["copy_detection_protocol"] = protocol(args, encoder, feature, sources)
    if args.output_dir is not None:
        name = f"{args.figures_folder(encoder)}/copydays"
        pictures = {}
        if draws:
            caption = draw_copies(Path(args.output_dir) / f"{name}.png", args, data, found, sources)
            pictures[f"{name}.png"] = f"{encoder.name} on {caption}"
        write_atomically(Path(args.output_dir) / f"{name}.csv", as_csv(data, found))
        rows = record_evaluations(args.output_dir, results)
        write_report(args.output_dir, rows, pictures, encoder.name if args.is_own_folder() else None)
    print(json.dumps(results, indent=2))
    return results


def protocol(
    args: CopyDetectionArguments, encoder: LoadedEncoder, feature: FeatureSpec, sources: dict[str, Any]
) -> dict[str, Any]:
    """How it was measured."""
    counts = {name: len(source) for name, source in sources.items()}
    text = f"copy detection: each copy among {counts['original']:,} originals"
    if "distractors" in counts:
        text += f" and {counts['distractors']:,} distractors"
    text += ", average precision within the first 20"
    if "whitening" in counts:
        kind = "covariance" if args.center_covariance else "second moments (not centered)"
        text += f", features whitened by the {kind} of {counts['whitening']:,} other images"
    return args.encoder_protocol(encoder) | {
        "text": text,
        "feature": str(feature),
        "precision": "bf16" if args.bf16 else "fp32",
        "dataset": dataset_name(args.copydays or "") if args.other_counts else "Copydays",
        "split": "copies",
        "num_images": counts,
        **{f"{name}_fingerprint": sources[name].fingerprint()[:16] for name in sources},
    }


def as_csv(data: CopyDays, found: dict[str, CopyResult]) -> str:
    """The average precision of each copy, in percent, and what came first."""
    originals = data.originals["name"][:]
    rows = []
    for block, result in found.items():
        for name, average, first in zip(
            data.blocks[block]["name"][:],
            result.average_precision.tolist(),
            result.neighbors[:, 0].tolist(),
            strict=True,
        ):
            rows.append([name, f"{100 * average:.4f}", originals[first] if first < len(originals) else "a distractor"])
    return csv_table(["copy", "AP", "first"], rows)


def draw_copies(
    path: Path, args: CopyDetectionArguments, data: CopyDays, found: dict[str, CopyResult], sources: dict[str, Any]
) -> str:
    """The copies of one block that are hardest to find; what the picture shows."""
    block = "strong" if "strong" in found else min(found, key=lambda name: found[name].mean_average_precision)
    result, positives = found[block], data.positives[block]
    shown = result.average_precision.nan_to_num(2.0).argsort(stable=True)[: args.num_shown].tolist()
    images = ConcatDataset([sources[name] for name in ("original", "distractors") if name in sources])
    rankings = []
    for copy in shown:
        places = result.neighbors[copy, :NUM_FOUND].tolist()
        rankings.append(
            Ranking(
                sources[block][copy]["image"],
                [images[place]["image"] for place in places],
                f"AP {100 * result.average_precision[copy]:.1f} %",
                [f"{i}." for i in range(1, len(places) + 1)],
                [place in positives[copy] for place in places],
            )
        )
    plot_rankings(path, rankings)
    return f"Copydays: copies of the block {block} with the lowest average precision, and what is found first."


def find_near_duplicates(args: CopyDetectionArguments) -> dict[str, Any]:
    """Pairs of photos that are nearly the same, and groups of them."""
    images = find_images(args.near_duplicates or "")
    draws = can_draw()
    encoder = args.load_encoder(args.seed)
    feature = args.feature(encoder)
    source = make_source(images)
    (features,) = args.cached(encoder, source, [feature])
    if rank() != 0:
        return {}
    pairs, similarities = near_duplicates(features.to(encoder.model.device), args.threshold)
    groups = groups_of(pairs, len(images))
    names = images["name"][:]
    rows = [
        [names[a], names[b], f"{score:.6f}"]
        for (a, b), score in zip(pairs.tolist(), similarities.tolist(), strict=True)
    ]
    folder = Path(str(args.output_dir))
    (folder / "near_duplicates.png").unlink(missing_ok=True)  # of an earlier search
    write_atomically(folder / "near_duplicates.csv", csv_table(["first", "second", "similarity"], rows))
    if draws and groups:
        draw_groups(folder / "near_duplicates.png", groups[: args.num_shown], names, source, features)
    results = {
        "num_images": len(images),
        "num_near_duplicate_pairs": len(pairs),
        "num_near_duplicate_groups": len(groups),
        "threshold": args.threshold,
        "feature": str(feature),
        **args.encoder_protocol(encoder),
    }
    write_results(folder, {"near_duplicates": results}, update=True)
    print(json.dumps(results, indent=2))
    return results


def draw_groups(path: Path, groups: list[list[int]], names: list[str], source: Any, features: Tensor) -> None:
    """A contact sheet: the first photo of each group, and the others with their similarity to it."""
    rankings = []
    for first, *others in groups:
        rows = torch.nn.functional.normalize(features[[first, *others]])
        similarities = rows[1:] @ rows[0]
        order = similarities.argsort(descending=True)[:NUM_FOUND].tolist()
        rankings.append(
            Ranking(
                source[first]["image"],
                [source[others[i]]["image"] for i in order],
                Path(names[first]).name[-18:],
                [f"{similarities[i]:.3f}" for i in order],
            )
        )
    plot_rankings(path, rankings, ("photo", "its near duplicates, and their similarity to it"))


if __name__ == "__main__":
    main()
    close_process_group()
