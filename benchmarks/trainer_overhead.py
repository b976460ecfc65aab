"""What the trainer adds to a step: CPU-seconds of `SSLTrainer` per optimizer step over those of a plain loop with the same
views, model, loss and optimizer; and the share of the time that a step waits for data.

    python benchmarks/trainer_overhead.py
"""

import argparse
import logging
import statistics
import tempfile
import time

import torch

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones import vit_config
from hf_ssl.data import EpochSampler, TensorSource
from hf_ssl.models import Step
from hf_ssl.models.relvit import RelViTViews, RelViTViewsConfig
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import Draws


# Backbone, image size, patch size, batch size.
SETTINGS = [("vit-micro", 16, 4, 128), ("vit-tiny", 32, 4, 64)]


def make(backbone: str, image_size: int, patch_size: int) -> tuple[RelViTForPreTraining, RelViTViews]:
    torch.manual_seed(0)
    config = RelViTConfig(
        backbone_config=vit_config(backbone, image_size=image_size, patch_size=patch_size, layer_norm_eps=1e-6),
        drop_path_rate=0.1,
    )
    return RelViTForPreTraining(config), RelViTViews(RelViTViewsConfig(), config, 0)


def with_trainer(source: TensorSource, setting: tuple[str, int, int, int], steps: int) -> tuple[float, float]:
    """CPU-seconds of a step, and the share of wall time spent waiting for data, in percent."""
    model, views = make(*setting[:3])
    with tempfile.TemporaryDirectory() as folder:
        args = SSLTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setting[3],
            max_steps=steps,
            logging_steps=50,
            max_grad_norm=1.0,
            learning_rate=5e-4,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SSLTrainer(model, args, source, views)
        start, wall = time.process_time(), time.perf_counter()
        trainer.train()
        seconds = (time.process_time() - start) / steps
        return seconds, 100 * trainer.data_seconds / (time.perf_counter() - wall)


def plain_loop(source: TensorSource, setting: tuple[str, int, int, int], steps: int) -> float:
    """CPU-seconds of a step of the shortest loop that trains the same model on the same views."""
    model, views = make(*setting[:3])
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, fused=True)
    sampler, size = EpochSampler(len(source), 0), setting[3]
    start, done, epoch = time.process_time(), 0, 0
    while done < steps:
        sampler.set_epoch(epoch)
        keys = list(sampler)
        for first in range(0, len(keys) - size + 1, size):
            if done == steps:
                break
            batch = source.__getitems__(keys[first : first + size])
            draws = Step(Draws.for_batch(0, done), Draws.for_samples(0, batch["epoch"], batch["index"]), {})
            optimizer.zero_grad()
            model(**views(batch), **model.step_inputs(draws)).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            done += 1
        epoch += 1
    return (time.process_time() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="Pairs of measurements.")
    parser.add_argument("--steps", type=int, default=40, help="Optimizer steps of a measurement.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print("| encoder | batch | trainer, ms | plain loop, ms | ratio | range | waits for data, % |")
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        images = torch.randint(0, 256, (20 * setting[3], 3, setting[1], setting[1]), dtype=torch.uint8)
        source = TensorSource(images)
        plain_loop(source, setting, 3)
        rows = [
            (*with_trainer(source, setting, args.steps), plain_loop(source, setting, args.steps))
            for _ in range(args.rounds)
        ]
        ratios = sorted(row[0] / row[2] for row in rows)
        trainer, waiting, loop = (
            1000 * statistics.median(r[0] for r in rows),
            statistics.median(r[1] for r in rows),
            1000 * statistics.median(r[2] for r in rows),
        )
        print(
            f"| {setting[0]} {setting[1]}/{setting[2]} | {setting[3]} | {trainer:.1f} | {loop:.1f} "
            f"| {statistics.median(ratios):.3f} | {ratios[0]:.3f}–{ratios[-1]:.3f} | {waiting:.2f} |"
        )


if __name__ == "__main__":
    main()
