"""How well an encoder's nearest neighbors tell the class of an image: weighted kNN on frozen features.

    python training/knn.py --model outputs/relvit-digits
    python training/knn.py --model facebook/dino-vits16 --dataset cifar10 --k 10 20 100 200
    accelerate launch training/knn.py --model outputs/isl-cifar10 --dataset cifar10 --features projected --k 200

Nothing is trained. Features are kept in files: another k, or another protocol on the same features, computes none again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import HfArgumentParser

from hf_ssl.data import make_source
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.evaluation import EvaluationArguments, knn_accuracy, random_projection
from hf_ssl.evaluation.knn import MIN_TEMPERATURE
from hf_ssl.hub import write_results


@dataclass
class KNNArguments(EvaluationArguments):
    """kNN of which encoder, on what."""

    k: list[int] = field(
        default_factory=lambda: [20], metadata={"help": "Neighbors that vote; of several, the first is the main one."}
    )
    temperature: float = field(default=0.07, metadata={"help": "Softness of the votes, exp(cosine / temperature)."})
    features: Literal["encoder", "projected"] = field(
        default="encoder",
        metadata={
            "help": "What is compared: features of the encoder, or what the method's loss makes of them, as ISL's authors do "
            "(needs pretraining/)."
        },
    )
    random_projection: int | None = field(
        default=None,
        metadata={
            "help": "Compare random projections of the features to this many dimensions: PatchMix's authors do, to 1000."
        },
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; of several processes, the first one gets the results."""
    (args,) = HfArgumentParser(KNNArguments).parse_args_into_dataclasses(argv)
    device = PartialState().device
    data = args.load_data(args.seed)
    encoder = args.load_encoder(args.seed, projects=args.features == "projected")
    feature = args.feature(encoder, projected=args.features == "projected")
    bank, queries = make_source(data.train), make_source(data.test)
    if not 1 <= min(args.k) <= max(args.k) <= len(bank):
        raise ValueError(f"--k {' '.join(map(str, args.k))} must lie between 1 and the {len(bank)} training images.")
    if args.temperature < MIN_TEMPERATURE:
        raise ValueError(f"--temperature {args.temperature} must be at least {MIN_TEMPERATURE}, or votes overflow.")
    if args.random_projection is not None and args.random_projection < 1:
        raise ValueError(f"--random_projection {args.random_projection} must be at least 1 dimension.")

    def compared(rows: Tensor) -> Tensor:
        rows = rows.to(device)
        return random_projection(rows, args.random_projection, args.seed) if args.random_projection else rows

    bank_features, query_features = (args.cached(encoder, images, [feature])[0] for images in (bank, queries))
    results: dict[str, Any] = {}
    if rank() == 0:
        measured = knn_accuracy(
            compared(query_features),
            torch.as_tensor(queries.labels, device=device),
            compared(bank_features),
            torch.as_tensor(bank.labels, device=device),
            data.num_classes,
            k=args.k if len(args.k) > 1 else args.k[0],
            temperature=args.temperature,
        )
        protocol = args.protocol(encoder, data, bank, queries) | {
            "feature": str(feature),
            "precision": "bf16" if args.bf16 else "fp32",
            "seed": args.seed,
        }
        if args.random_projection:
            protocol["random_projection"] = args.random_projection
        results = {**measured, "knn_protocol": protocol}
        if args.output_dir is not None:
            write_results(args.output_dir, results, update=True, replaces=r"knn_top[15](_k\d+)?$")
        print(json.dumps(results, indent=2))
    return results


if __name__ == "__main__":
    main()
    close_process_group()
