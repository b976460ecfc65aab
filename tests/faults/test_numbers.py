"""Losses and gradients that are not finite."""

import json
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from hf_ssl.trainer import NonFiniteLossError

from ..marks import slow
from ..training.common import make_model, make_toy, make_trainer, outcome
from .runs import At


NAN = float("nan")
SETTINGS = {"max_steps": 9, "logging_steps": 4, "save_strategy": "steps", "save_steps": 4}


def spoil_weight(trainer: Any, step: int) -> None:
    def spoil() -> None:
        with torch.no_grad():
            next(trainer.model.student.parameters()).view(-1)[0] = NAN

    trainer.add_callback(At("on_step_begin", step - 1, spoil))


def spoil_gradient(trainer: Any, *steps: int) -> None:
    """The loss stays finite; the weights would not."""
    parameter = next(p for p in trainer.model.student.parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: grad * (NAN if trainer.state.global_step + 1 in steps else 1))


def spoil_images(trainer: Any, *steps: int) -> None:
    views = trainer.views

    def spoiled(batch: Any, draws: Any) -> Any:
        inputs = views(batch, draws)
        if trainer.state.global_step + 1 in steps:
            inputs["pixel_values"] = inputs["pixel_values"] * NAN
        return inputs

    trainer.views = spoiled


@pytest.mark.parametrize(
    ("spoil", "step"), [(spoil_weight, 6), (spoil_gradient, 6), (spoil_gradient, 8), (spoil_images, 7)]
)
@pytest.mark.parametrize("make", [make_model, slow(make_toy)])
def test_run_stops(tmp_path, make, spoil, step):
    """Nothing is saved after the step, and the run can go on from before it."""
    whole = make_trainer(tmp_path / "whole", make(), **SETTINGS)
    whole.train()
    trainer = make_trainer(tmp_path / "run", make(), **SETTINGS)
    spoil(trainer, step)
    with pytest.raises(NonFiniteLossError, match=f"not finite since step {step}"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    report = json.loads((tmp_path / "run" / "non_finite_loss.json").read_text())
    order = [index for epoch in (0, 1) for index in _order(trainer, epoch)]
    assert report["step"] == step
    assert sorted(report["samples"]) == sorted(order[8 * (step - 1) : 8 * step])
    assert (report["terms"][0]["loss"] == "nan") == (spoil is not spoil_gradient)
    resumed = make_trainer(tmp_path / "run", make(), **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert outcome(resumed) == outcome(whole)


def _order(trainer: Any, epoch: int) -> list[int]:
    sampler = trainer._sampler
    sampler.set_epoch(epoch)
    return [index for _, index in sampler]


@pytest.mark.parametrize("spoil", [spoil_gradient, spoil_images])
@pytest.mark.parametrize("make", [make_model, make_toy])
def test_bad_steps_are_skipped(tmp_path, make, spoil):
    """A skipped step leaves weights, optimizer and batch statistics as they were, and is counted."""
    trainer = make_trainer(tmp_path, make(), max_skipped_steps=2, **SETTINGS)
    spoil(trainer, 3, 6)
    states: dict[int, dict[str, torch.Tensor]] = {}

    class Remember(At):
        def __init__(self) -> None:
            pass

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states[state.global_step] = {n: t.clone() for n, t in trainer.model.state_dict().items()}

    trainer.add_callback(Remember())
    trainer.train()
    for step in range(2, 10):
        changed = [name for name in states[step] if not torch.equal(states[step][name], states[step - 1][name])]
        assert bool(changed) == (step not in (3, 6)), step
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["skipped_steps"] for entry in logs] == [1, 2]
    assert all(entry["loss"] > 0 and entry["loss"] == pytest.approx(_sum_of_terms(entry), rel=1e-5) for entry in logs)
    number = next(iter(trainer.optimizer.state.values()))["step"]
    assert number == 7


def _sum_of_terms(entry: dict[str, float]) -> float:
    return sum(value for name, value in entry.items() if name.startswith("loss_"))


def test_bad_loss_after_the_last_log(tmp_path):
    """Nothing is logged, measured or saved after it; the run does not end as if all were well."""
    trainer = make_trainer(tmp_path, max_steps=6, logging_steps=500)
    spoil_weight(trainer, 4)
    with pytest.raises(NonFiniteLossError, match="since step 4"):
        trainer.train()


@pytest.mark.parametrize(("spoil", "micro_batches"), [(spoil_images, (0,)), (spoil_gradient, (0, 1))])
def test_images_of_accumulated_batches(tmp_path, spoil, micro_batches):
    """The micro-batch whose loss it was, or all of the step if it was the gradient."""
    settings = SETTINGS | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tmp_path, **settings)
    spoil(trainer, 2)
    with pytest.raises(NonFiniteLossError, match="since step 2"):
        trainer.train()
    order = _order(trainer, 0)
    expected = [index for i in micro_batches for index in order[8 + 4 * i : 12 + 4 * i]]
    assert sorted(json.loads((tmp_path / "non_finite_loss.json").read_text())["samples"]) == sorted(expected)


def test_too_many_bad_steps(tmp_path):
    """The limit counts over interruptions."""
    settings = {**SETTINGS, "max_skipped_steps": 2}
    trainer = make_trainer(tmp_path, max_steps=9, **{n: v for n, v in settings.items() if n != "max_steps"})
    spoil_gradient(trainer, 2, 4, 7)
    with pytest.raises(NonFiniteLossError, match="since step 7"):
        trainer.train()
    resumed = make_trainer(tmp_path, **settings)
    spoil_gradient(resumed, 5)
    with pytest.raises(NonFiniteLossError, match="since step 5"):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.num_skipped_steps == 2


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1.0}, {"max_skipped_steps": 1}])
def test_loss_scaler_skips_a_step(tmp_path, monkeypatch, optim, settings):
    """Of float16: the teacher does not move in a step that changes nothing, and the run goes on."""
    trainer = make_trainer(tmp_path, make_toy(dropout=0.0), **SETTINGS | {"optim": optim, **settings})
    # accelerate refuses float16 on a CPU, which can do it.
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    (spoil_images if settings.get("max_skipped_steps") else spoil_gradient)(trainer, 3)
    states: dict[int, dict[str, torch.Tensor]] = {}

    def remember() -> None:
        states[trainer.state.global_step] = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}

    for step in range(1, 10):
        trainer.add_callback(At("on_step_end", step, remember))
    trainer.train()
    for step in range(2, 10):
        changed = [name for name in states[step] if not torch.equal(states[step][name], states[step - 1][name])]
        assert bool(changed) == (step != 3), step
        assert any(name.startswith("teacher") for name in changed) == (step != 3)
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
