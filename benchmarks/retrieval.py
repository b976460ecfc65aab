"""Retrieval: the exact search against a product and `topk`, and ranks of some images against a whole ranking.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py
    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --num_queries 70 --num_database 1000000 --k 100 --rounds 3

All are measured in turn in every round, on the same features (classes that overlap), in CPU-seconds; medians, and the
median and range of the ratios within the rounds. Both ways must find the same images. Memory: bytes allocated at most
beside the features.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from memory import peak_bytes
from torch import Tensor

from hf_ssl.evaluation import nearest_neighbors, ranks_of


NUM_CLASSES = 100
CHUNK_SIZE = 256  # queries of the product, as ours
GOAL = 1.2  # ours / product and topk
# Of similarities in float32, those that differ by less than their errors may change places.
MAX_DIFFERENT = 1e-3


def make_features(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Queries and database, of length 1."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(NUM_CLASSES, args.dim, generator=generator)
    labels = torch.randint(NUM_CLASSES, (args.num_queries + args.num_database,), generator=generator)
    features = torch.randn(len(labels), args.dim, generator=generator).mul_(3)
    for rows in torch.arange(len(labels)).split(65536):
        features[rows] = F.normalize(features[rows] + centers[labels[rows]])
    queries, database = features.split([args.num_queries, args.num_database])
    return queries, database


def product_and_topk(queries: Tensor, database: Tensor, k: int) -> Tensor:
    return torch.cat([(chunk @ database.T).topk(k).indices for chunk in queries.split(CHUNK_SIZE)])


def product(queries: Tensor, database: Tensor, k: int) -> None:
    for chunk in queries.split(CHUNK_SIZE):
        chunk @ database.T


def product_and_sort(queries: Tensor, database: Tensor, wanted: Tensor) -> Tensor:
    """The place of each image in the whole ranking, as the benchmarks' own scripts find it."""
    found = []
    for chunk, images in zip(queries.split(CHUNK_SIZE // 4), wanted.split(CHUNK_SIZE // 4), strict=True):
        order = (chunk @ database.T).sort(dim=1, descending=True).indices
        found.append(
            torch.empty_like(order).scatter_(1, order, torch.arange(len(database)).expand_as(order)).gather(1, images)
        )
    return torch.cat(found)


def ranks(queries: Tensor, database: Tensor, wanted: Tensor) -> Tensor:
    return torch.stack(ranks_of(queries, database, list(wanted)))


def measure(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def compare(
    title: str, made: dict[str, Callable[[], Any]], rounds: int, goals: dict[str, float], near: int = 0
) -> None:
    """The first one against all others; `goals` are ratios not to be exceeded. Numbers are equal if so `near`."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    results = {name: run() for name, run in made.items()}
    ours = next(iter(made))
    for name, found in results.items():
        different = 0.0 if found is None else ((found - results[ours]).abs() > near).double().mean().item()
        if different > MAX_DIFFERENT:
            raise AssertionError(f"{name} finds {100 * different:.2f}% other than {ours}.")
        if different:
            print(f"{title}: {100 * different:.4f}% differ in {name}, by errors of float32")
    del results
    for _ in range(rounds):
        for name, run in made.items():
            seconds[name].append(measure(run)[0])

    print(f"\n{title}\n\n| | CPU-seconds | {ours} / it | range | goal | peak, MiB |\n|---|---|---|---|---|---|")
    for name, times in seconds.items():
        ratios = sorted(a / b for a, b in zip(seconds[ours], times, strict=True))
        print(
            f"| {name} | {statistics.median(times):.2f} | {statistics.median(ratios):.2f} | "
            f"{ratios[0]:.2f}–{ratios[-1]:.2f} | {goals.get(name, '')} | {peak_bytes(made[name])[0] / 2**20:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_database", type=int, default=100_000)
    parser.add_argument("--num_queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, nargs="+", default=[100, 20])
    parser.add_argument(
        "--num_wanted", type=int, nargs="+", default=[100], help="images of each query that are ranked"
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    size = f"{args.num_database:,} × {args.num_queries:,} × {args.dim}"
    cpu = f"{torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}"
    print(f"{size}, float32 on cpu, {cpu}, torch {torch.__version__}")
    features = make_features(args)
    for k in args.k:
        made = {f.__name__: lambda f=f, k=k: f(*features, k) for f in (nearest_neighbors, product_and_topk, product)}
        compare(f"k={k}", made, args.rounds, {"product_and_topk": GOAL})
    for num_wanted in args.num_wanted:
        wanted = torch.randint(
            args.num_database, (args.num_queries, num_wanted), generator=torch.Generator().manual_seed(0)
        )
        made = {f.__name__: lambda f=f, w=wanted: f(*features, w) for f in (ranks, product_and_sort)}
        made["product"] = lambda: product(*features, 0)
        compare(f"ranks of {num_wanted} images", made, args.rounds, {}, near=5)


if __name__ == "__main__":
    main()
