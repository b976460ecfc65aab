"""What ISL's memory bank costs: a step of the encoder's training, mining, and memory.

    OMP_NUM_THREADS=1 python benchmarks/isl_bank.py
    python benchmarks/isl_bank.py --device cuda --backbone resnet50 --image_size 224 --batch_size 256 --num_images 1281167

* Overhead: the whole step (views given: forward, losses over the bank, update of the bank, backward, SGD) over that of the
  encoder alone (forward, backward, SGD, with channels last as well), without neighbors as in the first round, and with two
  for each image.
* Mining: a batch of it (views given: encoder, negatives, proxies, their nearest rows, new links) over a step of the training;
  both go over all images once.
* Memory: bytes allocated at most beside the bank, for a synthetic bank of ImageNet's size and features of 256 images. On a
  CPU.

Two times measured in turn in one process; on a CPU in CPU-seconds.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from memory import peak_bytes
from step_overhead import seconds
from torch import Tensor

from hf_ssl import ISLConfig, ISLForPreTraining
from hf_ssl.backbones import CONVNETS, ENCODERS, convnet_config
from hf_ssl.models.isl.memory_bank import MemoryBank, bank_softmax
from hf_ssl.models.isl.mining import draw_triplets, propose_links
from hf_ssl.views import Draws


IMAGENET = 1_281_167


def make_model(args: argparse.Namespace, neighbors_per_image: float) -> ISLForPreTraining:
    """A model whose images have this many neighbors in the mean, by chance."""
    model = ISLForPreTraining(ISLConfig(backbone_config=convnet_config(args.backbone, args.image_size)))
    model.to(args.device).make_bank(args.num_images)
    assert model.bank is not None
    add_neighbors(model.bank, neighbors_per_image)
    return model


def add_neighbors(bank: MemoryBank, neighbors_per_image: float) -> None:
    num_pairs = round(neighbors_per_image * len(bank) / 2)
    if num_pairs:
        images = torch.randint(len(bank), (num_pairs,), device=bank.rows.device)
        bank.neighbors.add(images, (images + torch.randint_like(images, 1, len(bank))) % len(bank))


def training_step(model: ISLForPreTraining, pixel_values: Tensor, index: Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(pixel_values, index).loss.backward()
        optimizer.step()

    return step


def encoder_step(args: argparse.Namespace, pixel_values: Tensor) -> Callable[[], None]:
    config = convnet_config(args.backbone, args.image_size)
    encoder = ENCODERS[config.model_type](config).to(args.device).train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        encoder(pixel_values.contiguous(memory_format=torch.channels_last)).pooler_output.mean().backward()
        optimizer.step()

    return step


def mining_batch(model: ISLForPreTraining, pixel_values: Tensor, index: Tensor) -> Callable[[], None]:
    """One batch of a pass; the links that it finds are forgotten, so that each does the same."""
    bank, config = model.bank, model.config
    assert bank is not None
    draws = Draws.for_samples(0, torch.zeros_like(index), index)
    links = bank.neighbors.links

    @torch.no_grad()
    def step() -> None:
        model.eval()
        triplets = draw_triplets(bank, model.encode(pixel_values), index, draws, config.num_negatives)
        proxies = model.generator(*triplets)
        scores = model.discriminator(triplets.anchor, proxies, triplets.negative)
        found = propose_links(
            bank.rows, proxies, scores, index, config.score_threshold, 0.1, config.links_per_proxy
        )  # far below the threshold of a recipe, so that there are links to be added
        bank.neighbors.add(index[:, None].expand_as(found.neighbors)[found.kept], found.neighbors[found.kept])
        bank.neighbors.set_links(links)
        model.train()

    return step


def compare(
    title: str, steps: tuple[Callable[[], None], Callable[[], None]], args: argparse.Namespace, repeat: int
) -> None:
    for step in steps:
        seconds(step, 2, args.device, torch.float32)  # warm up
    pairs = [[seconds(step, repeat, args.device, torch.float32) for step in steps] for _ in range(args.rounds)]
    ratios = sorted(first / second for first, second in pairs)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"| {title} | {first * 1e3:.0f} | {second * 1e3:.0f} | {statistics.median(ratios):.3f} | "
        f"{ratios[0]:.3f}–{ratios[-1]:.3f} |",
        flush=True,
    )


def print_memory(batch_size: int) -> None:
    bank = MemoryBank(IMAGENET, 128)
    bank.rows = torch.nn.functional.normalize(bank.rows)
    add_neighbors(bank, 2.0)
    features = torch.nn.functional.normalize(torch.randn(batch_size, 128)).requires_grad_()
    index = torch.arange(batch_size)
    draws = Draws.for_samples(0, torch.zeros_like(index), index)

    def losses() -> Tensor:
        of_all, divergence = bank_softmax(features, bank.rows, 0.07, bank.rows[bank.choose_neighbor(index)])
        loss = (of_all - bank.own_log_probability(index, features, 0.07) + divergence).sum()
        loss.backward()
        return loss

    def dense() -> Tensor:
        """What all similarities at once take, for a loss without neighbors."""
        loss = torch.nn.functional.cross_entropy(features @ bank.rows.T / 0.07, index)
        loss.backward()
        return loss

    scores = torch.ones(batch_size)
    calls: dict[str, Callable[[], object]] = {
        "losses, with gradient": losses,
        "the same without blocks, of the first round": dense,
        "triplets (4,096 negatives)": lambda: draw_triplets(bank, features.detach(), index, draws, 4096),
        "links of a batch": lambda: propose_links(bank.rows, features.detach(), scores, index, 0.3, 0.3, 10),
    }
    print(
        f"\n{IMAGENET:,} images, a batch of {batch_size}; the bank takes {bank.rows.nbytes / 2**20:.0f} MiB, its links"
    )
    print(f"{bank.neighbors.links.nbytes / 2**20:.0f} MiB.\n\n| | peak, MiB |\n|---|---|")
    for name, call in calls.items():
        print(f"| {name} | {peak_bytes(call)[0] / 2**20:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", choices=list(CONVNETS))
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_images", type=int, default=50_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    repeat = 1 if args.device == "cpu" else 20
    print(f"{args.device}, float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(f"{args.backbone}, {args.image_size} px, batch of {args.batch_size}, {args.num_images:,} images\n")
    print("| | first, ms | second, ms | ratio | range |\n|---|---|---|---|---|")
    pixel_values = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    index = torch.randperm(args.num_images, device=args.device)[: args.batch_size]
    for neighbors_per_image in (0.0, 2.0):
        step = training_step(make_model(args, neighbors_per_image), pixel_values, index)
        title = f"step over encoder, {neighbors_per_image:g} neighbors"
        compare(title, (step, encoder_step(args, pixel_values)), args, repeat)
    mining = mining_batch(make_model(args, 2.0), pixel_values, index)
    compare("mining over step", (mining, step), args, repeat)
    if args.device == "cpu":
        print_memory(256)


if __name__ == "__main__":
    main()
