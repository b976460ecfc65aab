"""PW-Self: what its head must cost, and what is saved by never holding the scores of all tokens.

    OMP_NUM_THREADS=1 python benchmarks/pw_self_head.py

Overhead: a whole step over the encoder's, as in step_overhead.py, with other crops in every round. The floor is the encoder's
step and those products of matrices that the head cannot do without, of just these sizes: its linear layers for the student's
tokens that are compared, forward and backward, and for all of the teacher's, of which the center is the mean; the prototypes
with the tokens that are compared, forward and, for the student's, backward.

Memory and time of a step (forward, loss, backward) against the authors' formulation: scores of all tokens, held to the end of
the step; softmax of the teacher's; log-softmax of the matched ones, pair by pair of views. Memory is the most that tensors
take up beside weights and their gradients, in a process of its own; time is CPU-seconds, measured in turn. "Formula" is what
docs/pw_self.md says. Then both with DINO's number of prototypes, where the process may take up only so much more than it had
before the first step, gradients included (Linux).
"""

import argparse
import itertools
import multiprocessing
import resource
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from aps_sampling import median_and_range, print_header
from memory import peak_bytes
from step_overhead import (
    Setting,
    encoder_step,
    make_backbone,
    pw_self_matches,
    pw_self_model,
    seconds,
    training_step,
)
from torch import Tensor, nn

from hf_ssl import PWSelfForPreTraining
from hf_ssl.models.pw_self.token_pairs import TokenPairs, pair_tokens


SETTING = Setting("vit-tiny", 32, 4, 32, num_local_views=4, local_size=16)
# Tokens of a large and of a small view, and of all views of an image.
LARGE, SMALL = (1 + (side // SETTING.patch_size) ** 2 for side in (SETTING.image_size, SETTING.local_size))
STUDENT, TEACHER = 2 * LARGE + SETTING.num_local_views * SMALL, 2 * LARGE
PROTOTYPES, MANY_PROTOTYPES = (1_000, 10_000), 65_536
LIMIT = 4 << 30  # bytes
# Crops that the memory is averaged over.
MEMORY_DRAWS = 8

Run = Callable[[], Any]


def draw_matches(model: PWSelfForPreTraining, count: int) -> list[dict[str, Tensor]]:
    """Matches of as many steps."""
    return list(itertools.islice(pw_self_matches(model.config, SETTING, SETTING.batch_size), count))


def pairs_of(model: PWSelfForPreTraining, matches: dict[str, Tensor]) -> TokenPairs:
    config, size = model.config, SETTING.batch_size
    return pair_tokens(**matches, batch_size=size, num_tokens=(LARGE, SMALL), num_prototypes=config.num_prototypes)


# ---- overhead ----


def head_products(model: PWSelfForPreTraining, pairs: TokenPairs) -> Run:
    """The products of matrices that the head cannot do without, of matrices that are there."""
    head, count, of_teacher = model.student.head, len(pairs.student_rows), SETTING.batch_size * TEACHER
    weights = [layer.weight.detach() for layer in head.mlp if isinstance(layer, nn.Linear)]
    layers = [
        (weight, torch.zeros_like(weight), *(torch.randn(max(count, of_teacher), size) for size in weight.T.shape))
        for weight in weights
    ]
    prototypes = head.last_layer.weight.detach()
    gradient, rows = torch.zeros_like(prototypes), layers[-1][-1]
    most = max(tokens.stop - tokens.start for block in pairs.blocks for tokens in block)
    products, scores = torch.zeros_like(rows), torch.zeros(most, len(prototypes))

    def run() -> None:
        for weight, gradient_of_weight, inputs, outputs in layers:
            torch.mm(inputs[:of_teacher], weight.T, out=outputs[:of_teacher])
            torch.mm(inputs[:count], weight.T, out=outputs[:count])
            torch.mm(outputs[:count].T, inputs[:count], out=gradient_of_weight)
            torch.mm(outputs[:count], weight, out=inputs[:count])
        for student, teacher in pairs.blocks:
            torch.mm(rows[teacher], prototypes.T, out=scores[: teacher.stop - teacher.start])
            of_student = torch.mm(rows[student], prototypes.T, out=scores[: student.stop - student.start])
            torch.mm(of_student, prototypes, out=products[student])
            gradient.addmm_(of_student.T, rows[student])

    return run


def print_overhead(rounds: int) -> None:
    print_header(
        *(
            "crops drawn for a",
            f"student's tokens, of {STUDENT}",
            f"teacher's, of {TEACHER}",
            "step, ms",
            "encoder, ms",
        ),
        *("products, ms", "overhead", "range", "floor", "range", "overhead / floor", "range"),
    )
    size = SETTING.batch_size
    for geometry in ("batch", "sample"):
        torch.manual_seed(0)
        model, batch = pw_self_model(SETTING, size, "cpu", geometry=geometry)
        large, small = (views.flatten(0, 1) for views in batch.values())
        runs = [training_step(model, batch, size), encoder_step(make_backbone(SETTING), [large, small], [large])]
        times, tokens = [], []
        for i, matches in enumerate(draw_matches(model, rounds)):
            batch.update(matches)
            pairs = pairs_of(model, matches)
            if i == 0:
                for run in runs:
                    seconds(run, 2, "cpu", torch.float32)  # warm up
            measured = [seconds(run, 1, "cpu", torch.float32) for run in (*runs, head_products(model, pairs))]
            times.append(measured)
            tokens.append([len(rows) / size for rows in (pairs.student_rows, pairs.teacher_rows)])
        step, encoder, products = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        student, teacher = (statistics.mean(column) for column in zip(*tokens, strict=True))
        print(
            f"| {geometry} | {student:.0f} | {teacher:.0f} | {step:.0f} | {encoder:.0f} | {products:.0f} | "
            f"{median_and_range((s / e for s, e, _ in times), 2)} | "
            f"{median_and_range((1 + p / e for _, e, p in times), 2)} | "
            f"{median_and_range((s / (e + p) for s, e, p in times), 2)} |",
            flush=True,
        )


# ---- against the scores of all tokens ----


def dense_step(
    model: PWSelfForPreTraining,
    pixel_values: Tensor,
    local_pixel_values: Tensor,
    global_matches: Tensor,
    local_matches: Tensor,
) -> float:
    """A step in the authors' formulation, of crops that all images of the batch share."""
    images = [views.flatten(0, 1) for views in (pixel_values, local_pixel_values)]
    with torch.no_grad():
        teacher_scores = model.teacher.head(model.teacher.backbone(images[0]))
    student_scores = [model.student.head(model.student.backbone(views)) for views in images]

    def compute_loss() -> Tensor:
        config = model.config
        expected = ((teacher_scores - model.center) / config.teacher_temperature).softmax(-1).chunk(2)
        large, small = (scores / config.student_temperature for scores in student_scores)
        losses = []
        for teacher in (0, 1):
            matches = [*global_matches[teacher].repeat(2, 1, 1), *local_matches[teacher, :, 0]]
            for student, scores in enumerate((*large.chunk(2), *small.chunk(config.num_local_views))):
                if student != teacher:
                    found = matches[student][matches[student][:, 0] >= 0]
                    wanted, given = F.pad(found + 1, (0, 0, 1, 0)).unbind(1)  # class tokens are the first
                    terms = -expected[teacher][:, wanted] * scores[:, given].log_softmax(-1)
                    losses.append(terms.sum(-1).mean())
        teacher_scores.mean(0)  # for the center
        return torch.stack(losses).mean()

    loss = compute_loss()
    loss.backward()
    return loss.item()


def sparse_step(model: PWSelfForPreTraining, **batch: Tensor) -> float:
    loss = model(**batch).loss
    loss.backward()
    return loss.item()


STEPS = {"ours": sparse_step, "dense": dense_step}


def make_model(num_prototypes: int) -> tuple[PWSelfForPreTraining, dict[str, Tensor]]:
    """A model that looks like one in training, and its views."""
    torch.manual_seed(0)
    model, views = pw_self_model(SETTING, SETTING.batch_size, "cpu", num_prototypes=num_prototypes)
    model.center.normal_(std=0.01)
    return model.train(), views


def encoder_peak() -> float:
    """MB that the encoder's step takes up."""
    _, views = make_model(1)
    large, small = (images.flatten(0, 1) for images in views.values())
    run = encoder_step(make_backbone(SETTING), [large, small], [large])
    run()
    return peak_bytes(run)[0] / 2**20


def peaks(which: str, num_prototypes: int, limit: int | None = None) -> list[tuple[float, float]]:
    """MB that a step takes up, and its loss, for each of some crops; nothing if one does not fit into the limit."""
    model, views = make_model(num_prototypes)
    unlimited, result = resource.getrlimit(resource.RLIMIT_AS), []
    limits = unlimited if limit is None else (psutil.Process().memory_info().vms + limit, unlimited[1])
    for matches in draw_matches(model, MEMORY_DRAWS):
        run = partial(STEPS[which], model, **views, **matches)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        try:
            if limit is not None or not result:
                run()  # gradients are allocated here
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error):
                raise
            return []
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        peak, loss = peak_bytes(run)
        result.append((peak / 2**20, loss))
    return result


def formula(num_prototypes: int, encoder: float) -> float:
    """MB that a step takes up, by what is alive when a block of scores is compared: the mean over the same crops."""
    model, _ = make_model(num_prototypes)
    config, results = model.config, []
    for matches in draw_matches(model, MEMORY_DRAWS):
        pairs = pairs_of(model, matches)
        kept_for_each_token = (
            config.backbone_config.hidden_size + 4 * config.head_hidden_dim + 4 * config.head_bottleneck_dim
        )
        block = max(4 * (s.stop - s.start) + (t.stop - t.start) for s, t in pairs.blocks)
        numbers = len(pairs.student_rows) * kept_for_each_token
        numbers += (3 * config.head_bottleneck_dim + block) * num_prototypes
        results.append(encoder + 4 * numbers / 2**20)
    return statistics.mean(results)


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def times(num_prototypes: int, rounds: int) -> list[list[float]]:
    """CPU-seconds of both steps, with other crops in every round."""
    model, views = make_model(num_prototypes)
    result = []
    for matches in draw_matches(model, rounds + 1):
        runs = [partial(step, model, **views, **matches) for step in STEPS.values()]
        result.append([seconds(run, 1, "cpu", torch.float32) for run in runs])
    return result[1:]  # the first is to warm up


def print_dense(rounds: int) -> None:
    encoder = in_fresh_process(encoder_peak)
    print(f"\nThe encoder's step takes {encoder:.1f} MB; the limit is {LIMIT / 2**20:.0f} MB.")
    print_header(
        *("prototypes", "peak, MB", "formula", "dense, MB", "peak / dense", "without the encoder's"),
        *("CPU-seconds, ours / dense", "range"),
    )
    for num_prototypes in PROTOTYPES:
        ours, dense = (in_fresh_process(peaks, which, num_prototypes) for which in STEPS)
        for (_, loss), (_, expected) in zip(ours, dense, strict=True):
            if abs(loss - expected) > 1e-5 * expected:
                raise AssertionError(f"The losses are {loss} and, of all scores, {expected}.")
        peak, dense_peak = (statistics.mean(megabytes for megabytes, _ in found) for found in (ours, dense))
        print(
            f"| {num_prototypes} | {peak:.0f} | {formula(num_prototypes, encoder):.0f} | {dense_peak:.0f} | "
            f"{peak / dense_peak:.3f} | {(peak - encoder) / (dense_peak - encoder):.3f} | "
            f"{median_and_range((a / b for a, b in times(num_prototypes, rounds)))} |",
            flush=True,
        )
    ours, dense = (in_fresh_process(peaks, which, MANY_PROTOTYPES, LIMIT) for which in STEPS)
    found = [
        f"{statistics.mean(mb for mb, _ in results):.0f}" if results else "does not fit" for results in (ours, dense)
    ]
    print(f"| {MANY_PROTOTYPES} | {found[0]} | {formula(MANY_PROTOTYPES, encoder):.0f} | {found[1]} | | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"cpu, float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print_overhead(args.rounds)
    print_dense(args.rounds)


if __name__ == "__main__":
    main()
