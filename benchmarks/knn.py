"""Weighted kNN: ours against votes by a one-hot for each neighbor, lightly and faiss, and the product of matrices alone.

    pip install "hf_ssl[bench,faiss]"
    OMP_NUM_THREADS=1 python benchmarks/knn.py
    OMP_NUM_THREADS=1 python benchmarks/knn.py --num_queries 2000 --bfloat16_queries 200 --rounds 5

All are measured in turn in every round, on the same features (classes that overlap), in CPU-seconds; medians, and the median
and range of the ratios within the rounds. All must predict the same classes. Memory: bytes allocated at most beside the
features; of faiss, which torch does not see, none is told.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from memory import peak_bytes
from torch import Tensor

from hf_ssl.evaluation.knn import knn_votes


TEMPERATURE, NUM_CLASSES = 0.07, 100
CHUNK_SIZE = 100  # of the one-hot's queries; the scripts make 100 chunks of 10,000
# By what ours are compared with: the ratio at each k that must not be exceeded.
GOALS = {"one-hot": {20: 0.8, 200: 0.5}, "faiss": {20: 1.25, 200: 1.25}}
# Votes that are summed up in another order, or neighbors that are equally similar, may tie otherwise.
MAX_DIFFERENT = 1e-3


def make_features(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, bank and its labels."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(NUM_CLASSES, args.dim, generator=generator)
    labels = torch.randint(NUM_CLASSES, (args.num_queries + args.num_bank,), generator=generator)
    features = centers[labels] + 3 * torch.randn(len(labels), args.dim, generator=generator)
    queries, bank = F.normalize(features).split([args.num_queries, args.num_bank])
    return queries, bank, labels[args.num_queries :]


def ours(queries: Tensor, bank: Tensor, labels: Tensor, k: int, bfloat16: bool = False) -> Tensor:
    return knn_votes(queries, bank, labels, NUM_CLASSES, k=k, temperature=TEMPERATURE, bfloat16=bfloat16).argmax(1)


def one_hot(queries: Tensor, bank: Tensor, labels: Tensor, k: int) -> Tensor:
    """As DINO's and PatchMix's scripts."""
    predictions = []
    for chunk in queries.split(CHUNK_SIZE):
        similarities, indices = (chunk @ bank.T).topk(k)
        classes = torch.zeros(len(chunk) * k, NUM_CLASSES).scatter_(1, labels[indices].view(-1, 1), 1)
        weights = (similarities / TEMPERATURE).exp()
        votes = (classes.view(len(chunk), k, NUM_CLASSES) * weights[:, :, None]).sum(1)
        predictions.append(votes.sort(dim=1, descending=True).indices[:, 0])
    return torch.cat(predictions)


def product(queries: Tensor, bank: Tensor, labels: Tensor, k: int) -> None:
    """What none can do without, in the same chunks as the one-hot's."""
    for chunk in queries.split(CHUNK_SIZE):
        chunk @ bank.T


def load_lightly() -> Callable[..., Any]:
    from lightly.utils.benchmarking.knn import knn_predict

    def predict(queries: Tensor, bank: Tensor, labels: Tensor, k: int) -> Tensor:
        chunks = queries.split(CHUNK_SIZE)
        return torch.cat([knn_predict(chunk, bank.T, labels, NUM_CLASSES, k, TEMPERATURE)[:, 0] for chunk in chunks])

    return predict


def load_faiss() -> Callable[..., Any]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())

    def predict(queries: Tensor, bank: Tensor, labels: Tensor, k: int) -> Tensor:
        index = faiss.IndexFlatIP(bank.shape[1])
        index.add(bank.numpy())
        similarities, indices = map(torch.from_numpy, index.search(queries.numpy(), k))
        weights = (similarities / TEMPERATURE).exp()
        return torch.zeros(len(queries), NUM_CLASSES).scatter_add_(1, labels[indices], weights).argmax(1)

    return predict


def contestants() -> dict[str, Callable[..., Any]]:
    made: dict[str, Callable[..., Any]] = {"ours": ours, "product": product, "one-hot": one_hot}
    for name, load, extra in (("lightly", load_lightly, "bench"), ("faiss", load_faiss, "faiss")):
        if importlib.util.find_spec(name) is None:
            print(f'NOT MEASURED: {name} is not installed (pip install "hf_ssl[{extra}]")', flush=True)
        else:
            made[name] = load()
    return made


def measure(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def check(predictions: dict[str, Tensor]) -> None:
    for name, classes in predictions.items():
        different = (classes != predictions["ours"][: len(classes)]).double().mean().item()
        if different > (0 if name == "ours, bfloat16" else MAX_DIFFERENT):
            raise AssertionError(f"{name} predicts {100 * different:.2f}% other classes than ours.")


def compare(features: tuple[Tensor, Tensor, Tensor], k: int, args: argparse.Namespace) -> None:
    queries, bank, labels = features
    made = contestants()
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.rounds):
        predictions = {}
        for name, function in made.items():
            passed, predictions[name] = measure(lambda: function(queries, bank, labels, k))  # noqa: B023
            seconds[name].append(passed)
        del predictions["product"]
        check(predictions)
    some = queries[: args.bfloat16_queries]
    pair = {name: measure(lambda: ours(some, bank, labels, k, low)) for name, low in (("fp32", False), ("bf16", True))}  # noqa: B023
    check(predictions | {"ours, bfloat16": pair["bf16"][1]})
    slowdown = pair["bf16"][0] / pair["fp32"][0]

    print(f"\nk={k}\n\n| | CPU-seconds | ours / it | range | goal | peak, MiB |\n|---|---|---|---|---|---|")
    for name, times in seconds.items():
        ratios = sorted(a / b for a, b in zip(seconds["ours"], times, strict=True))
        goal = GOALS.get(name, {}).get(k, "")
        few = queries[: args.memory_queries]
        peak = "" if name == "faiss" else f"{peak_bytes(lambda: made[name](few, bank, labels, k))[0] / 2**20:.0f}"  # noqa: B023
        print(
            f"| {name} | {statistics.median(times):.2f} | {statistics.median(ratios):.2f} | "
            f"{ratios[0]:.2f}–{ratios[-1]:.2f} | {goal} | {peak} |",
            flush=True,
        )
    peak = peak_bytes(lambda: ours(queries[: args.memory_queries], bank, labels, k, True))[0] / 2**20
    print(f"| ours, bfloat16 (on {len(some)} queries: {slowdown:.1f} × ours) | | | | | {peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_bank", type=int, default=50_000)
    parser.add_argument("--num_queries", type=int, default=10_000)
    parser.add_argument("--bfloat16_queries", type=int, default=500, help="a CPU may need long for them")
    parser.add_argument("--memory_queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        f"{args.num_bank:,} × {args.num_queries:,} × {args.dim}, {NUM_CLASSES} classes, float32 on cpu, "
        f"{torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    )
    features = make_features(args)
    for k in args.k:
        compare(features, k, args)


if __name__ == "__main__":
    main()
