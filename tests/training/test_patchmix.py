"""PatchMix in the trainer: resumed, accumulated, in two processes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from hf_ssl import PatchMixForPreTraining
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.models.patchmix.views_patchmix import mixing_targets

from ..marks import slow
from ..models.test_patchmix import make_batch, perturb, separate_passes, step_inputs
from ..processes import run_ranks
from .common import make_patchmix, make_trainer, outcome


@pytest.mark.parametrize("overrides", [{}, slow({"use_teacher": False})], ids=["teacher", "no teacher"])
def test_resume_in_the_middle_of_an_epoch(tmp_path, overrides):
    """Step 8 lies in epoch 1; two micro-batches a step, small views, stochastic depth, bfloat16: the same bits."""
    settings = {"max_steps": 11, "logging_steps": 3, "bf16": True, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 4}
    whole = make_trainer(tmp_path / "whole", make_patchmix(**overrides), **settings)
    whole.train()
    make_trainer(tmp_path / "cut", make_patchmix(**overrides), **settings, save_strategy="steps", save_steps=8).train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "cut", make_patchmix(**overrides), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert outcome(resumed) == outcome(whole)
    logged = next(entry for entry in whole.state.log_history if "loss" in entry)
    terms = {"original", "mixed_to_original", "mixed_to_mixed", "local", "mixed_local"}
    assert {f"loss_{term}" for term in terms} <= logged.keys()
    assert ("momentum" in logged) == (not overrides) and 0 <= logged["accuracy"] <= 1


def test_other_options_on_resume(tmp_path, caplog):
    """Weights of another group size fit, but the run is not the same."""
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, make_patchmix(), **settings).train()
    resumed = make_trainer(tmp_path, make_patchmix(group_size=3, temperature=0.2), max_steps=1)
    logging.enable_propagation()
    resumed.train(resume_from_checkpoint=True)
    (warning,) = [record.message for record in caplog.records if "was written with" in record.message]
    assert "model.group_size = 2, now it is 3: the run goes on, but" in warning


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_teacher_moves_once_before_each_step(tmp_path, micro_batches):
    """With the student as it is before the step, whatever the number of micro-batches."""
    model = make_patchmix(teacher_momentum=0.8)
    trainer = make_trainer(
        tmp_path, model, per_device_train_batch_size=8 // micro_batches, gradient_accumulation_steps=micro_batches
    )
    teacher = {name: p.clone() for name, p in model.teacher.named_parameters()}
    momentum = model.schedules(6, 5)["momentum"]
    forwards: list[bool] = []

    class Follow(TrainerCallback):
        """Called after the trainer's own callback, which moves the teacher."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kept = momentum(state.global_step)
            for name, student in model.student.named_parameters():
                teacher[name].mul_(kept).add_(student.detach(), alpha=1 - kept)

    def compare(*args: Any) -> None:
        forwards.append(all(torch.equal(p, teacher[name]) for name, p in model.teacher.named_parameters()))

    trainer.add_callback(Follow())
    model.teacher.backbone.register_forward_hook(compare)
    trainer.train()
    assert forwards == [True] * 6 * micro_batches


def forward_on_a_rank(overrides: dict[str, Any]) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    model, batch, keep = make_case(overrides, rank())
    output = model(**batch, drop_path_keep=keep)
    output.loss.backward()
    result = {
        "losses": {name: loss.item() for name, loss in output.losses.items()},
        "accuracy": output.metrics["accuracy"].item(),
        "logits": {name: tensor.detach().numpy() for name, tensor in output.logits.items()},
        "buffers": {name: tensor.numpy() for name, tensor in model.named_buffers()},
        "gradients": {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None},
    }
    close_process_group()
    return result


def make_case(overrides: dict[str, Any], process: int) -> tuple[PatchMixForPreTraining, dict[str, Tensor], Tensor]:
    model = make_patchmix(**overrides)
    perturb(model)
    return model, make_batch(model.config, seed=process), step_inputs(model)["drop_path_keep"]


@pytest.mark.parametrize(
    "overrides",
    [{"mix_smoothing": 0.2}, {"use_teacher": False, "group_size": 3}],
    ids=["teacher", "no teacher, groups of three"],
)
def test_two_processes(overrides):
    """
    Each mixes its own images; keys and batch statistics are those of both. Compared with the original's single passes over
    the images of both.
    """
    ranks = run_ranks(forward_on_a_rank, 2, overrides)
    model, first, keep = make_case(overrides, 0)
    second, n = make_case(overrides, 1)[1], 6
    batch = {name: torch.cat([first[name], second[name]], dim=1) for name in first}
    keep = torch.cat([part for part in keep.split(n, dim=2) for _ in range(2)], dim=2)  # both drop the same

    def targets(group_size: int, smoothing: float) -> list[Tensor]:
        parts = [mixing_targets(n, group_size, smoothing, 2 * n, process * n) for process in (0, 1)]
        return [torch.cat(matrices) for matrices in zip(*parts, strict=True)]

    config = model.config
    plain = targets(1, config.plain_smoothing)[0]
    losses = separate_passes(model, batch, keep, [plain, *targets(config.group_size, config.mix_smoothing)])
    sum(losses.values()).backward()
    for name, loss in losses.items():
        both = sum(result["losses"][name] for result in ranks) / 2
        assert both == pytest.approx(loss.item(), rel=1e-5), name
    for name, tensor in model.named_buffers():
        for result in ranks:
            torch.testing.assert_close(torch.from_numpy(result["buffers"][name]), tensor, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name not in ranks[0]["gradients"]
            continue
        both = sum(torch.from_numpy(result["gradients"][name]) for result in ranks) / 2
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(both, parameter.grad, rtol=0, atol=2e-5 * scale + 5e-6, msg=name)
    for process, result in enumerate(ranks):
        assert result["logits"]["original"].shape == (n, 2 * n)
        right = result["logits"]["original"].argmax(1) == process * n + torch.arange(n).numpy()
        assert result["accuracy"] == pytest.approx(right.mean())
