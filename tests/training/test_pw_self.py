"""PW-Self in the trainer: schedules, center and prototypes, accumulated, resumed, with photos, in two processes."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from hf_ssl.clipping import clip_per_parameter_
from hf_ssl.data import PhotoSource
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.loss_log import LossLog
from hf_ssl.models import Step
from hf_ssl.models.pw_self import PWSelfViews, PWSelfViewsConfig
from hf_ssl.views import Draws, View

from ..marks import slow
from ..models.test_pw_self import dense_loss, make_batch
from ..processes import run_ranks
from .common import IMAGES, losses, make_pw_self, make_trainer, outcome


class Recorder(TrainerCallback):
    """What the model was given in each micro-batch, step by step, and its tensors after each step."""

    def __init__(self, trainer: Any):
        self.model, self.optimizer = trainer.model, None
        self.steps: list[list[dict[str, Any]]] = []
        self.states = [self._state()]
        self.trainer = trainer
        trainer.add_callback(self)
        trainer.model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def _record(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        for name, tensor in self.states[-1].items():
            assert torch.equal(self.model.state_dict()[name], tensor), f"{name} has changed between two micro-batches"
        self.steps[-1].append(inputs)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append([])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(self._state())

    def of_step(self, name: str) -> list[Tensor]:
        """A tensor of the model at the beginning, and after each step."""
        return [state[name] for state in self.states]


def test_schedules_reach_the_model(tmp_path):
    """Temperature by epoch, momentum by step; they are logged, too."""
    model = make_pw_self(
        warmup_teacher_temperature=0.04,
        teacher_temperature=0.1,
        teacher_temperature_warmup_epochs=3,
        teacher_momentum=0.8,
        frozen_last_layer_epochs=2,
    )
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 20}
    trainer = make_trainer(tmp_path, model, **settings)
    seen = Recorder(trainer)
    trainer.train()
    by_epoch = [*np.linspace(0.04, 0.1, 3), 0.1]
    temperatures = [temperature for temperature in by_epoch for _ in range(5)]
    assert [len(step) for step in seen.steps] == [2] * 20
    for step, temperature in zip(seen.steps, temperatures, strict=True):
        assert [inputs["teacher_temperature"] for inputs in step] == pytest.approx([temperature] * 2, rel=1e-12)
    momenta = [1 - 0.2 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["teacher_temperature"] for entry in logs] == pytest.approx(temperatures)
    assert [entry["momentum"] for entry in logs] == pytest.approx(momenta)
    assert [entry["last_layer_frozen"] for entry in logs] == [1] * 10 + [0] * 10
    # The teacher follows the student as it is after the step.
    for name, _ in model.student.named_parameters():
        teacher, student = seen.of_step(f"teacher.{name}"), seen.of_step(f"student.{name}")
        for step, momentum in enumerate(momenta):
            expected = momentum * teacher[step] + (1 - momentum) * student[step + 1]
            torch.testing.assert_close(teacher[step + 1], expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(teacher[0], teacher[-1])


def test_log(tmp_path):
    """Two terms make the loss; the matches are those that the model was given."""
    trainer = make_trainer(tmp_path, make_pw_self(geometry="sample"))
    seen = Recorder(trainer)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, (inputs,) in zip(logs, seen.steps, strict=True):
        assert entry["loss"] == pytest.approx(entry["loss_class_token"] + entry["loss_patches"], rel=1e-5)
        # Two pairs of large views, and each of them with two small ones.
        taken = (inputs["global_matches"] >= 0).all(-1).sum() + (inputs["local_matches"] >= 0).all(-1).sum()
        assert entry["matches"] == pytest.approx(taken.item() / (6 * 8), rel=1e-5) and 0 < entry["matches"] <= 16
        assert entry["class_entropy"] > 0


# ---- prototypes ----


@pytest.mark.parametrize(("epochs", "norm_last_layer"), [(0, True), (1, True), (2, False)])
def test_prototypes_wait(tmp_path, epochs, norm_last_layer):
    """
    In the first epochs they get no step at all: neither decay nor a state of Adam. Their lengths are trained only where
    they are not 1 for good.
    """
    model = make_pw_self(frozen_last_layer_epochs=epochs, norm_last_layer=norm_last_layer, teacher_momentum=0.5)
    trainer = make_trainer(tmp_path, model, max_steps=12, weight_decay=0.5, lr_scheduler_type="constant")
    seen, ages = Recorder(trainer), []

    class Ages(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            layer, states = model.student.head.last_layer, trainer.optimizer.state
            ages.append([int(states[p]["step"]) if p in states else 0 for p in (layer.weight_v, layer.weight_g)])

    trainer.add_callback(Ages())
    trainer.train()
    expected = [max(0, step - 5 * epochs) for step in range(1, 13)]
    assert ages == [[age, 0 if norm_last_layer else age] for age in expected]
    for branch in ("student", "teacher"):
        for name in ("weight_v", "weight_g"):
            states = seen.of_step(f"{branch}.head.last_layer.{name}")
            # The teacher's average of equal numbers is rounded.
            rounding = 0.0 if branch == "student" else 1e-6
            changed = [(states[i] - states[i + 1]).abs().max().item() > rounding for i in range(12)]
            trained = name == "weight_v" or not norm_last_layer
            assert changed == [trained and age > 0 for age in expected], (branch, name)
        weights = seen.of_step(f"{branch}.head.mlp.4.weight")
        assert all(not torch.equal(weights[i], weights[i + 1]) for i in range(12)), "all else is trained"


# ---- center ----


@pytest.mark.parametrize(
    ("geometry", "size", "micro_batches"), [("batch", 8, 1), ("batch", 4, 3), ("sample", 4, 2), ("sample", 4, 3)]
)
def test_center(tmp_path, geometry, size, micro_batches):
    """
    For each place, a moving average of the teacher's mean scores of all micro-batches of a step, by the teacher of the step;
    also where the last step of an epoch has fewer. The loss has the center of the steps before.
    """
    model = make_pw_self(geometry=geometry, teacher_momentum=0.5, center_momentum=0.8)
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro_batches}
    trainer = make_trainer(tmp_path, model, max_steps=8, learning_rate=0.01, **settings)
    seen = Recorder(trainer)
    trainer.train()
    assert [len(step) for step in seen.steps] == ([3, 3, 3, 1] * 2 if micro_batches == 3 else [micro_batches] * 8)
    expected, reference = torch.zeros(17, 24), copy.deepcopy(model)
    for number, step in enumerate(seen.steps):
        reference.load_state_dict(seen.states[number])
        pixel_values = torch.cat([inputs["pixel_values"].flatten(0, 1) for inputs in step])
        with torch.no_grad():
            scores = reference.teacher.head(reference.teacher.backbone(pixel_values))
        assert len(scores) == 2 * size * len(step)
        expected = 0.8 * expected + 0.2 * scores.mean(0)
        torch.testing.assert_close(seen.states[number + 1]["center"], expected, rtol=1e-4, atol=1e-6)
    assert expected.std(0).min() > 1e-5 and expected.std(1).min() > 1e-4, "places and prototypes differ"


def test_accumulation_equals_a_larger_batch(tmp_path):
    """2 x 8 images are 1 x 16, where images have crops of their own: center, weights, losses."""
    runs = []
    for size, micro_batches in ((16, 1), (8, 2)):
        model = make_pw_self(geometry="sample", frozen_last_layer_epochs=1, teacher_momentum=0.9)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro_batches}
        settings |= {"optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 1.0, "weight_decay": 0.05}
        trainer = make_trainer(tmp_path / str(size), model, images=IMAGES[:32], max_steps=6, **settings)
        trainer.train()
        runs.append((model.state_dict(), losses(trainer)))
    assert runs[0][0]["center"].abs().max() > 0.1
    for name, tensor in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert runs[1][1] == pytest.approx(runs[0][1], rel=2e-5)


def test_skipped_step_leaves_the_center(tmp_path):
    """One that is not finite: neither center nor teacher has seen it, and what it has added up is gone."""
    trainer = make_trainer(tmp_path, make_pw_self(teacher_momentum=0.9), max_skipped_steps=1)
    seen, views = Recorder(trainer), trainer.views

    def spoiled(batch: Any, draws: Any) -> Any:
        inputs = views(batch, draws)
        factor = math.nan if trainer.state.global_step == 2 else 1.0
        return inputs | {"pixel_values": inputs["pixel_values"] * factor}

    trainer.views = spoiled
    trainer.train()
    assert trainer.num_skipped_steps == 1
    for name in ("center", "teacher.head.mlp.0.weight"):
        states = seen.of_step(name)
        assert [torch.equal(states[i], states[i + 1]) for i in range(6)] == [i == 2 for i in range(6)], name
        assert states[-1].isfinite().all()


@pytest.mark.slow
# torch's own patch: after pytest's `monkeypatch` the settings would be gone, for all tests that follow
@torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True)
def test_torch_compile(tmp_path):
    """The losses are the same, and other crops and micro-batches do not make it compile again and again."""
    settings = {"max_steps": 6, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 4}
    plain = make_trainer(tmp_path / "plain", make_pw_self(), **settings)
    plain.train()
    torch._dynamo.reset()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager", **settings}
    trainer = make_trainer(tmp_path / "compiled", make_pw_self(), **compiled)
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-5)


def test_step_reads_no_value():
    """Crops of a batch: the whole step on tensors without values, where reading one is an error; draws are on the host."""
    model, device = make_pw_self(), torch.device("meta")
    views = PWSelfViews(PWSelfViewsConfig(local=View(size=8), canvas=24, shared_colors=True), model.config, 0)
    values = {name: schedule(0) for name, schedule in model.schedules(6, 5).items()}
    model.to(device).train()
    index = torch.arange(8, device=device)
    images = torch.empty(8, 3, 16, 16, dtype=torch.uint8, device=device)
    batch = {"images": images, "index": index, "epoch": torch.zeros_like(index)}
    draws, samples = Draws.for_batch(0, 0), Draws.for_samples(0, batch["epoch"], index)
    model.on_step_begin(values)
    outputs = model(**views(batch, draws), **model.step_inputs(Step(draws.to(device), samples, values)))
    LossLog(1, 8, device).add(outputs, index, 1)
    outputs.loss.backward()
    clip_per_parameter_(model.named_parameters(), 3.0)
    model.on_gradients(values)
    model.on_optimizer_step(values)
    with pytest.raises(RuntimeError, match="meta"):
        outputs.loss.item()


# ---- crops of a batch ----


def test_every_batch_has_its_own_crops(tmp_path):
    """Micro-batches of a step, and steps; one list of matches for all images."""
    trainer = make_trainer(tmp_path, make_pw_self(), per_device_train_batch_size=4, gradient_accumulation_steps=2)
    seen = Recorder(trainer)
    trainer.train()
    found = [inputs["global_matches"] for step in seen.steps for inputs in step]
    assert len(found) == 12 and {tuple(matches.shape) for matches in found} == {(2, 1, 16, 2)}
    assert len({tuple(matches.flatten().tolist()) for matches in found}) >= 11
    # Those that the place in the run says.
    batch = {"images": IMAGES[:4], "index": torch.arange(4), "epoch": torch.zeros(4, dtype=torch.int64)}
    for number, matches in enumerate(found):
        expected = trainer.views(batch, Draws.for_batch(trainer.args.seed, number // 2, number % 2, 0))
        assert torch.equal(expected["global_matches"], matches)


def test_workers_do_not_know_the_step(tmp_path):
    with pytest.raises(ValueError, match="augment_on='workers' is not possible with these views"):
        make_trainer(tmp_path, make_pw_self(), augment_on="workers")


def photos() -> Dataset:
    """As many as there are images, of unequal sizes."""
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 256, (18 + i % 7, 30 - i % 11, 3), dtype=np.uint8) for i in range(len(IMAGES))]
    dataset = Dataset.from_dict({"image": pixels}, features=Features({"image": Image()}))
    return dataset.cast_column("image", Image(decode=False))


@pytest.mark.parametrize("geometry", ["batch", "sample"])
def test_photos(tmp_path, geometry):
    """Put on the canvas here or in workers, which also make the views where these do not wait for the step: the same bits."""
    runs = []
    for workers in (0, 2):
        model = make_pw_self(geometry=geometry, teacher_momentum=0.9)
        trainer = make_trainer(tmp_path / str(workers), model, max_steps=6, dataloader_num_workers=workers)
        assert trainer._augments_in_workers == (workers > 0 and geometry == "sample")
        trainer.train_dataset = PhotoSource(photos(), trainer.views)
        seen = Recorder(trainer)
        trainer.train()
        assert seen.steps[0][0]["pixel_values"].shape == (2, 8, 3, 16, 16)
        assert seen.steps[0][0]["local_pixel_values"].shape == (2, 8, 3, 8, 8)
        assert seen.steps[0][0]["global_matches"].shape == (2, 1 if geometry == "batch" else 8, 16, 2)
        runs.append((outcome(trainer)["weights"], losses(trainer)))
    assert runs[0] == runs[1]
    assert all(map(math.isfinite, runs[0][1]))


# ---- resumed ----


@pytest.mark.parametrize(
    ("overrides", "bf16"),
    [
        ({}, True),
        slow({"geometry": "sample", "norm_last_layer": False, "class_loss_weight": 0.5}, True),
        slow({"num_local_views": 0, "drop_path_rate": 0.0, "frozen_last_layer_epochs": 2}, False),
    ],
)
def test_resume_in_the_middle_of_an_epoch(tmp_path, overrides, bf16):
    """Step 8 lies in epoch 1; two micro-batches a step, small views, stochastic depth: the same bits, the center's too."""
    overrides = {"teacher_temperature": 0.07, "teacher_temperature_warmup_epochs": 2, **overrides}
    settings = {"max_steps": 12, "logging_steps": 3, "bf16": bf16, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 4, "weight_decay": 0.04, "final_weight_decay": 0.4}
    settings |= {"gradient_clipping": "per_parameter", "max_grad_norm": 3.0, "schedule": "warmup_cosine"}
    whole = make_trainer(tmp_path / "whole", make_pw_self(**overrides), **settings)
    whole.train()
    make_trainer(tmp_path / "cut", make_pw_self(**overrides), **settings, save_strategy="steps", save_steps=8).train()
    saved = load_file(tmp_path / "cut" / "checkpoint-8" / "model.safetensors")
    assert saved["center"].abs().max() > 0.01 and "batch_center" not in saved
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "cut", make_pw_self(**overrides), **settings)
    centers: list[Tensor] = []
    resumed.model.register_forward_pre_hook(lambda *args: centers.append(resumed.model.center.clone()))
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert torch.equal(centers[0], saved["center"]) and not torch.equal(centers[-1], saved["center"])
    assert outcome(resumed) == outcome(whole)


# ---- two processes ----


def train_on_a_rank(folder: str) -> dict[str, Any]:
    """Matches of each step, and what came of it, of this process."""
    trainer = make_trainer(folder, make_pw_self(), per_device_train_batch_size=4, max_steps=7)
    seen = Recorder(trainer)
    trainer.train()
    matches = [tuple(step[0]["global_matches"].flatten().tolist()) for step in seen.steps]
    result = {"matches": matches, "weights": outcome(trainer)["weights"], "epoch": trainer.state.epoch}
    trainer.close()
    return result


def test_two_processes_have_their_own_crops(tmp_path):
    """And one center, one teacher and one student."""
    first, second = run_ranks(train_on_a_rank, 2, str(tmp_path))
    assert len(first["matches"]) == 7 and first["epoch"] == 1.4
    assert all(ours != theirs for ours, theirs in zip(first["matches"], second["matches"], strict=True))
    assert first["weights"] == second["weights"]


def make_case(overrides: dict[str, Any], process: int) -> tuple[Any, dict[str, Tensor]]:
    """The same model in every process, with weights that are not those of the beginning, and images of its own."""
    model, generator = make_pw_self(drop_path_rate=0.0, **overrides), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.center):
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model.train(), make_batch(model.config, seed=process)


def step_on_a_rank(overrides: dict[str, Any]) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    model, batch = make_case(overrides, rank())
    model.on_step_begin({})
    output = model(**batch)
    output.loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    model.on_optimizer_step({"momentum": 1.0})
    close_process_group()
    return {"loss": output.loss.item(), "gradients": gradients, "center": model.center.numpy()}


@pytest.mark.parametrize("overrides", [{}, {"geometry": "sample", "norm_last_layer": False}], ids=["batch", "sample"])
def test_two_processes(overrides):
    """The center is that of the images of both; else they have nothing to do with each other."""
    ranks = run_ranks(step_on_a_rank, 2, overrides)
    scores = []
    for process, result in enumerate(ranks):
        model, batch = make_case(overrides, process)
        expected = dense_loss(model, batch)
        expected.backward()
        assert result["loss"] == pytest.approx(expected.item(), rel=1e-5)
        with torch.no_grad():
            scores.append(model.teacher.head(model.teacher.backbone(batch["pixel_values"].flatten(0, 1))))
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert named.keys() == result["gradients"].keys()
        for name, gradient in named.items():
            found = torch.from_numpy(result["gradients"][name])
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found, gradient, rtol=0, atol=2e-5 * scale + 5e-6, msg=name)
    center = 0.9 * model.center + 0.1 * torch.cat(scores).mean(0)
    for result in ranks:
        torch.testing.assert_close(torch.from_numpy(result["center"]), center, rtol=1e-5, atol=1e-6)
