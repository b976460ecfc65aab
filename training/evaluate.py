"""How good an encoder is, by several protocols, on features that are computed in one pass.

    python training/evaluate.py --model outputs/relvit-digits --output_dir outputs/relvit-digits
    accelerate launch training/evaluate.py --model facebook/dino-vits16 --dataset cifar10 --output_dir outputs/dino-cifar10

Each protocol is a script of its own with more options: knn.py, linear.py. The numbers are written into all_results.json, with
how they were measured beside them, and as a table into evaluation.md; and into the model card, if the folder has one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_ssl.data import make_source
from hf_ssl.distributed import close_process_group
from hf_ssl.evaluation import EncoderArguments, EvaluationArguments, cached_features
from hf_ssl.hub import add_to_card, evaluation_results, report_table
from hf_ssl.hub.run_card import dataset_id_of
from hf_ssl.scripts import knn, linear


PROTOCOLS = ("knn", "linear")


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
    if not args.protocols or set(args.protocols) - set(PROTOCOLS):
        raise ValueError(f"--protocols {' '.join(args.protocols)} must name some of {', '.join(PROTOCOLS)}.")
    if args.output_dir is None:
        raise ValueError("Where is the report to be written? Set --output_dir, such as to the folder of the encoder.")
    compute_features(args)
    common = list(flags(args, [item.name for item in fields(EncoderArguments)]))
    results: dict[str, Any] = {}
    if "knn" in args.protocols:
        own = flags(args, ["k", "batch_size", "num_workers", "bf16", "seed", "output_dir"])
        results |= knn.main([*common, *own])
    if "linear" in args.protocols:
        own = flags(args, ["num_blocks", "average_pool", "bf16", "seed", "output_dir"])
        sizes = ["--per_device_eval_batch_size", args.batch_size, "--dataloader_num_workers", args.num_workers]
        results |= linear.main([*common, *own, *map(str, sizes)])
    if results:  # this is the first process
        write_report(args, results)


def compute_features(args: EvaluateArguments) -> None:
    """All features that the protocols need, in one pass; each finds them in the cache."""
    encoder, data = args.load_encoder(), args.load_data(args.seed)
    feature = args.feature(encoder)
    of_probe = replace(feature, num_blocks=args.num_blocks, average_pool=args.average_pool)
    features = {"knn": feature, "linear": of_probe}
    for images in (data.train, data.test):
        cached_features(
            encoder,
            make_source(images),
            list(dict.fromkeys(features[name] for name in args.protocols)),
            folder=args.cache_dir,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            bf16=args.bf16,
        )


def flags(args: EvaluateArguments, names: list[str]) -> Iterator[str]:
    """Arguments as they are typed."""
    for name in names:
        value = getattr(args, name)
        if value is not None:
            yield from (f"--{name}", *map(str, value if isinstance(value, list) else [value]))


def write_report(args: EvaluateArguments, results: dict[str, Any]) -> None:
    """The table, and the results in the card."""
    folder = Path(str(args.output_dir))
    rows = evaluation_results(results, dataset_id_of(args.dataset))
    table = report_table(rows)
    (folder / "evaluation.md").write_text(table)
    if (folder / "README.md").is_file():
        add_to_card(folder / "README.md", rows, figures={})
    print(f"\n{table}")


if __name__ == "__main__":
    main()
    close_process_group()
