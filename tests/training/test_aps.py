"""APS in the trainer: batches that are trained several steps, resumed, accumulated, in two processes."""

import multiprocessing
from typing import Any

import pytest
import torch
from transformers.utils import logging

from hf_ssl.data import EpochSampler
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.models.aps import APSViews, APSViewsConfig
from hf_ssl.schedules import cosine

from ..marks import slow
from ..models.test_aps import make_batch, perturb, separate_passes
from ..processes import run_ranks
from .common import make_aps, make_trainer, outcome


class Recorder:
    """What the model was given in each micro-batch, and how often images were read and views made."""

    def __init__(self, trainer: Any):
        self.steps: list[dict[str, Any]] = []
        self.num_views = self.num_reads = 0
        views, source = trainer.views, trainer.train_dataset
        make_views, read = views.__call__, source.__getitems__

        def counted_views(batch: Any, draws: Any = None) -> Any:
            self.num_views += 1
            self.index, self.epoch = tuple(batch["index"].tolist()), batch["epoch"].unique().tolist()
            return make_views(batch, draws)

        def counted_reads(keys: Any) -> Any:
            self.num_reads += 1
            return read(keys)

        trainer.views, source.__getitems__ = counted_views, counted_reads
        trainer.model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        batch = {name: inputs[name] for name in ("pixel_values", "patch_indices")}
        self.steps.append({"sampling": inputs["sampling"], "index": self.index, "epoch": self.epoch, **batch})


def order_of(epoch: int) -> list[int]:
    """The images of an epoch, as a run without repetitions has them."""
    sampler = EpochSampler(40, seed=42)
    sampler.set_epoch(epoch)
    return [index for _, index in sampler]


@pytest.mark.parametrize("samplings", [1, 2, 4])
def test_steps_of_a_batch(tmp_path, samplings):
    """Two epochs: every batch is read once, its views are made once, and it is trained with each sampling in turn."""
    trainer = make_trainer(
        tmp_path, make_aps(num_samplings=samplings), max_steps=-1, num_train_epochs=2, logging_steps=samplings
    )
    seen = Recorder(trainer)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 2 * 5 * samplings
    assert [step["sampling"] for step in seen.steps] == list(range(samplings)) * 10
    assert seen.num_reads == seen.num_views == 10
    for number, step in enumerate(seen.steps):
        assert step["pixel_values"] is seen.steps[number - number % samplings]["pixel_values"]
    trained = [step["index"] for step in seen.steps[::samplings]]
    assert [step["epoch"] for step in seen.steps[::samplings]] == [[0]] * 5 + [[1]] * 5
    assert sum(trained, ()) == tuple(order_of(0) + order_of(1))
    logs = [entry["epoch"] for entry in trainer.state.log_history if "loss" in entry]
    assert logs == pytest.approx([i / 5 for i in range(1, 11)])


def test_micro_batches(tmp_path):
    """Those of a step have one sampling, as a larger batch has: 0 0 1 1 …; what does not fill a step is left out."""
    args = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 1}
    trainer = make_trainer(tmp_path, make_aps(), **args)
    seen = Recorder(trainer)
    trainer.train()
    assert trainer.state.global_step == 8 and trainer.state.epoch == 1
    assert [step["sampling"] for step in seen.steps] == [0, 0, 1, 1, 2, 2, 3, 3] * 2
    for first in (0, 8):
        pixels = [step["pixel_values"] for step in seen.steps[first : first + 8]]
        assert all(pixels[i] is pixels[i % 2] for i in range(8)) and pixels[0] is not pixels[1]
    assert seen.num_views == 4


@pytest.mark.parametrize(
    ("micro_batches", "cut"),  # in a batch, a repetition of it, its last repetition, between epochs
    [(1, 23), (2, 22), slow(1, 4), slow(2, 20), slow(1, 22), slow(1, 20), slow(2, 4), slow(2, 23)],
)
def test_resume(tmp_path, cut, micro_batches):
    """Between batches, in the middle of one, between epochs: the same bits, with bfloat16."""
    settings = {"max_steps": 27, "logging_steps": 3, "bf16": True, "gradient_accumulation_steps": micro_batches}
    settings |= {"per_device_train_batch_size": 8 // micro_batches, "schedule": "warmup_under_cosine"}
    settings |= {"schedule_unit": "epoch", "weight_decay": 0.05, "weight_decay_rule": "all"}
    whole = make_trainer(tmp_path / "whole", make_aps(), **settings)
    whole.train()
    first = make_trainer(tmp_path / "cut", make_aps(), **settings, save_strategy="steps", save_steps=cut)
    first.train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "cut", make_aps(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{cut}"))
    assert outcome(resumed) == outcome(whole)
    # In the trainer that has trained before, whose last views are of another batch.
    first.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{cut}"))
    assert outcome(first)["weights"] == outcome(whole)["weights"]


def test_draws_of_the_batch_are_those_of_its_first_step(tmp_path):
    """Views that share draws in a batch are made again, when a run is resumed between two of its steps."""

    class Shifted(APSViews):
        def __call__(self, batch: Any, draws: Any = None) -> Any:
            inputs = super().__call__(batch)
            return inputs | {"pixel_values": inputs["pixel_values"] + draws.uniform("shift")}

    def trainer(folder: str, **args: Any) -> Any:
        model = make_aps()
        return make_trainer(
            tmp_path / folder, model, views=Shifted(APSViewsConfig(), model.config), max_steps=9, **args
        )

    whole = trainer("whole")
    whole.train()
    trainer("cut", save_strategy="steps", save_steps=6).train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-6"))
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize(
    "args", [{"dataloader_num_workers": 2}, {"dataloader_num_workers": 2, "augment_on": "device"}]
)
def test_workers(tmp_path, args):
    """Views from the workers are those made here."""
    runs = []
    for name, options in (("here", {}), ("there", args)):
        trainer = make_trainer(tmp_path / name, make_aps(), max_steps=23, **options)
        trainer.train()
        runs.append(outcome(trainer)["weights"])
        assert not multiprocessing.active_children(), "workers are not kept for the rest of the epoch"
    assert runs[0] == runs[1]


def test_learning_rate_of_an_epoch(tmp_path):
    """It changes once in an epoch of 10 steps."""
    options = {"schedule": "warmup_under_cosine", "schedule_unit": "epoch", "warmup_steps": 20, "learning_rate": 0.01}
    trainer = make_trainer(tmp_path, make_aps(num_samplings=2), max_steps=-1, num_train_epochs=4, **options)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    wave = cosine(0.01, 0.0, 4)
    of_epochs = [0.01 / 2, wave(1), wave(2), wave(3)]
    assert rates == pytest.approx([rate for rate in of_epochs for _ in range(10)], rel=1e-7)


def test_position_of_the_class_token_stays_zero(tmp_path):
    """Weight decay on everything, momentum: a row without gradient does not move."""
    trainer = make_trainer(tmp_path, make_aps(), weight_decay=0.5, weight_decay_rule="all", max_steps=8)
    table = trainer.model.student.backbone.embeddings.position_embeddings
    before = table.detach().clone()
    trainer.train()
    assert not table[:, 0].any()
    assert (table[:, 1:] != before[:, 1:]).all()


def test_warm_up_shorter_than_an_epoch(tmp_path, caplog):
    """Is none, where the schedule counts epochs, and is said; also where the run ends in an epoch."""
    options = {"schedule": "warmup_under_cosine", "schedule_unit": "epoch", "learning_rate": 0.01}
    logging.enable_propagation()
    for warmup, expected in ((19, [0.01, 0.005]), (39, [0.01, 0.005]), (40, [0.005, 0.005])):
        caplog.clear()
        trainer = make_trainer(tmp_path / str(warmup), make_aps(), max_steps=25, warmup_steps=warmup, **options)
        trainer.train()
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert rates == pytest.approx([expected[0]] * 20 + [expected[1]] * 5, rel=1e-7)
        said = [
            record.message for record in caplog.records if "no warm-up: its 19 steps are less than" in record.message
        ]
        assert len(said) == (warmup == 19)


def test_options_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="schedule_unit='epoch' says how often a schedule changes, and none is set"):
        make_trainer(tmp_path, make_aps(), schedule_unit="epoch")
    with pytest.raises(ValueError, match="ignore_data_skip"):
        make_trainer(tmp_path, make_aps(), ignore_data_skip=True)


def test_too_small(tmp_path):
    with pytest.raises(ValueError, match="per_device_train_batch_size=1 is too small"):
        make_trainer(tmp_path, make_aps(), per_device_train_batch_size=1)
    with pytest.raises(
        ValueError, match="An epoch has 5 batches, and an optimizer step gradient_accumulation_steps=6"
    ):
        make_trainer(tmp_path, make_aps(), gradient_accumulation_steps=6).train()


def test_progress(tmp_path):
    """Trainer's own numbers count every step of a batch."""
    trainer = make_trainer(tmp_path, make_aps(), max_steps=-1, num_train_epochs=1)
    result = trainer.train()
    assert trainer.num_examples(trainer.get_train_dataloader()) == 40 * 4
    speeds = [result.metrics[f"train_{unit}_per_second"] for unit in ("samples", "steps")]
    assert speeds[0] / speeds[1] == pytest.approx(8, rel=0.05)


# ---- two processes ----


def train_on_a_rank(folder: str) -> list[tuple[int, tuple[int, ...], int]]:
    """Images and sampling of each step of this process."""
    trainer = make_trainer(folder, make_aps(), per_device_train_batch_size=4, max_steps=-1, num_train_epochs=2)
    seen = Recorder(trainer)
    trainer.train()
    found = [(step["sampling"], step["index"], seen.num_reads) for step in seen.steps]
    trainer.close()
    return found


@pytest.mark.slow
def test_two_processes_have_their_own_images(tmp_path):
    """In every step; together, every image once in each sampling of an epoch."""
    first, second = run_ranks(train_on_a_rank, 2, str(tmp_path))
    assert len(first) == len(second) == 40
    for (sampling, images, _), (other_sampling, others, _) in zip(first, second, strict=True):
        assert sampling == other_sampling and not set(images) & set(others)
    for epoch in (0, 1):
        for wanted in range(4):
            steps = range(20 * epoch + wanted, 20 * (epoch + 1), 4)
            images = [index for step in steps for _, of_step, _ in (first[step], second[step]) for index in of_step]
            assert images == order_of(epoch)
    assert {reads for *_, reads in (*first, *second)} == {10}


def forward_on_a_rank() -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    model, batch = make_case(rank())
    output = model(**batch, sampling=1)
    output.loss.backward()
    result = {
        "losses": {name: loss.item() for name, loss in output.losses.items()},
        "similarity": output.metrics["similarity"].item(),
        "buffers": {name: tensor.numpy() for name, tensor in model.named_buffers()},
        "gradients": {name: p.grad.numpy() for name, p in model.named_parameters()},
    }
    close_process_group()
    return result


def make_case(process: int) -> tuple[Any, dict[str, Any]]:
    model = make_aps()
    perturb(model)
    return model, make_batch(model.config, seed=process)


def test_two_processes():
    """Keys and batch statistics are those of both: as one process that has the images of both."""
    ranks = run_ranks(forward_on_a_rank, 2)
    model, first = make_case(0)
    second = make_case(1)[1]
    batch = {
        "pixel_values": torch.cat([first["pixel_values"], second["pixel_values"]], dim=1),
        "patch_indices": torch.cat([first["patch_indices"], second["patch_indices"]], dim=2),
    }
    losses, similarity = separate_passes(model, batch, 1)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert sum(result["losses"][name] for result in ranks) / 2 == pytest.approx(loss.item(), rel=1e-5)
    assert sum(result["similarity"] for result in ranks) / 2 == pytest.approx(similarity.item(), rel=1e-4)
    for name, tensor in model.named_buffers():
        for result in ranks:
            torch.testing.assert_close(torch.from_numpy(result["buffers"][name]), tensor, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        both = sum(torch.from_numpy(result["gradients"][name]) for result in ranks) / 2
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(both, parameter.grad, rtol=0, atol=2e-5 * scale + 5e-6, msg=name)
