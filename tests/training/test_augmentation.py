"""Where views are made, what they are keyed by, and what is left of them on disk."""

import json
from dataclasses import dataclass, field

import pytest
import torch
from transformers.utils import logging

from hf_ssl.data import TensorSource
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import MultiViewPipeline, View

from ..processes import run_ranks
from .common import IMAGES, losses, make_toy, make_trainer, outcome, states_equal


@dataclass
class SharedViewsConfig:
    view: View = field(default_factory=lambda: View(size=16, jitter=0.8, grayscale=0.2, blur=0.5))
    image_mean: list[float] = field(default_factory=lambda: [0.5] * 3)


class SharedViews:
    """One view; all images of a batch are cut alike. Keeps the boxes of every batch."""

    needs_batch_draws = True

    def __init__(self, seed: int, **view):
        self.config = SharedViewsConfig()
        for name, value in view.items():
            setattr(self.config.view, name, value)
        views = {"pixel_values": [self.config.view]}
        self.pipeline = MultiViewPipeline(views, self.config.image_mean, [0.25] * 3, seed, shared_boxes=True)
        self.boxes = []

    def __call__(self, batch, draws=None):
        views = self.pipeline(batch, draws)
        assert (views["boxes"] == views["boxes"][:1]).all()
        self.boxes.append(tuple(views["boxes"][0, 0].tolist()))
        return {"pixel_values": views["pixel_values"][0]}


def make_shared(output_dir, **args):
    settings = {
        "use_cpu": True,
        "max_steps": 13,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 3,
        "save_strategy": "no",
        "disable_tqdm": True,
        **args,
    }
    training_args = SSLTrainingArguments(output_dir=str(output_dir), **settings)
    return SSLTrainer(make_toy(), training_args, TensorSource(IMAGES), SharedViews(training_args.seed))


def boxes_of_a_rank(output_dir):
    trainer = make_shared(output_dir, max_steps=4, gradient_accumulation_steps=1)
    trainer.train()
    return trainer.views.boxes


class TestPerBatchDraws:
    def test_exact_on_resume(self, tmp_path):
        """The run is cut in the middle of an epoch; the global generators are elsewhere when it goes on."""
        whole = make_shared(tmp_path / "whole")
        whole.train()
        assert len(set(whole.views.boxes)) == 26  # 13 steps of two micro-batches
        make_shared(tmp_path / "cut", save_strategy="steps", save_steps=8).train()
        torch.manual_seed(99)
        resumed = make_shared(tmp_path / "cut")
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
        assert resumed.views.boxes == whole.views.boxes[16:]
        assert outcome(resumed) == outcome(whole)

    def test_processes_draw_their_own(self, tmp_path):
        first, second = run_ranks(boxes_of_a_rank, 2, tmp_path)
        alone = make_shared(tmp_path / "alone", max_steps=4, gradient_accumulation_steps=1)
        alone.train()
        assert first == alone.views.boxes and not set(first) & set(second)

    def test_workers_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="augment_on='workers' is not possible.*Use 'device'"):
            make_shared(tmp_path, augment_on="workers")
        assert not make_shared(tmp_path, dataloader_num_workers=2)._augments_in_workers


class TestWhere:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_device_and_workers_make_the_same_views(self, tmp_path, num_workers):
        runs = [
            make_trainer(tmp_path / where, augment_on=where, dataloader_num_workers=num_workers)
            for where in ("device", "workers")
        ]
        for trainer in runs:
            trainer.train()
        assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)
        if num_workers == 0:  # the same threads: the same bits
            assert states_equal(*(trainer.model.state_dict() for trainer in runs))

    def test_views_are_made_where_they_are_asked_for(self, tmp_path):
        for where, in_main_process in (("device", True), ("workers", False)):
            trainer = make_trainer(tmp_path / where, augment_on=where, dataloader_num_workers=1, max_steps=2)
            calls, views = [], trainer.views
            trainer.views = lambda batch, draws, calls=calls, views=views: calls.append(draws) or views(batch, draws)
            trainer.train()
            assert bool(calls) is in_main_process

    @pytest.mark.parametrize("num_workers,in_workers", [(0, False), (2, True)])
    def test_auto(self, tmp_path, num_workers, in_workers):
        trainer = make_trainer(tmp_path, dataloader_num_workers=num_workers)
        assert trainer._augments_in_workers is in_workers
        trainer.args.__dict__["_setup_devices"] = torch.device("cuda")  # as if there were one
        assert trainer.args.device.type == "cuda" and trainer._find_where_to_augment() == "device"

    def test_unknown_place(self, tmp_path):
        with pytest.raises(ValueError, match="augment_on='gpu' is unknown; use 'auto', 'device' or 'workers'"):
            make_trainer(tmp_path, augment_on="gpu")


class TestSaved:
    def test_views_lie_beside_the_model(self, tmp_path):
        trainer = make_shared(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
        trainer.train()
        trainer.save_model()
        for folder in ("checkpoint-2", "pretraining"):
            saved = json.loads((tmp_path / folder / "views.json").read_text())
            assert View(**saved["view"]) == trainer.views.config.view
            assert saved["image_mean"] == [0.5] * 3

    def test_other_views_on_resume(self, tmp_path, caplog):
        make_shared(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
        resumed = make_shared(tmp_path, max_steps=2)
        resumed.views.config.view.blur = 1.0
        logging.enable_propagation()
        resumed.train(resume_from_checkpoint=True)
        warnings = [record.message for record in caplog.records if "was written with" in record.message]
        assert warnings == [
            "checkpoint-2 was written with views.view.blur = 0.5, now it is 1.0: the run goes on, but not as it would have."
        ]
