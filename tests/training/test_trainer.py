"""The private methods of Trainer that are overridden, and what the trainer promises."""

import json
import math
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from hf_ssl.clipping import clip_per_parameter_
from hf_ssl.data import TensorSource
from hf_ssl.loss_log import LossLog
from hf_ssl.models import Step
from hf_ssl.models.relvit import RelViTViews, RelViTViewsConfig
from hf_ssl.schedules import quarter_cosine
from hf_ssl.trainer import NonFiniteLossError
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import Draws

from ..marks import slow
from .common import (
    IMAGES,
    losses,
    make_model,
    make_swin,
    make_t2t,
    make_toy,
    make_trainer,
    outcome,
    states_equal,
)
from .toy import ToyViews


def test_two_runs_are_equal(tmp_path):
    first, second = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b")
    first.train()
    torch.rand(100)  # the global random state is no input of a run
    second.train()
    assert losses(first) == losses(second)
    assert states_equal(first.model.state_dict(), second.model.state_dict())


@pytest.mark.parametrize("make", [make_model, slow(make_toy), slow(make_swin), slow(make_t2t)])
@pytest.mark.parametrize(("num_workers", "bf16"), [(0, False), (2, True)])
def test_resume_in_the_middle_of_an_epoch(tmp_path, make, num_workers, bf16):
    """Step 8 lies in epoch 1 (five steps an epoch) and between two logs: everything equals the uninterrupted run."""
    settings = {"max_steps": 13, "logging_steps": 3, "dataloader_num_workers": num_workers, "bf16": bf16}
    whole = make_trainer(tmp_path / "whole", make(), **settings)
    whole.train()
    make_trainer(tmp_path / "cut", make(), **settings, save_strategy="steps", save_steps=8).train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "cut", make(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert outcome(resumed) == outcome(whole)


def test_checkpoint_restores_every_tensor(tmp_path):
    """Stock Trainer would write legacy names and leave a ViT's weights at their initial values on resume."""
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=6)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert states_equal(saved, dict(trainer.model.state_dict()))
    other = make_trainer(tmp_path)
    assert not states_equal(dict(other.model.state_dict()), saved)
    other._load_from_checkpoint(str(tmp_path / "checkpoint-6"))
    assert states_equal(dict(other.model.state_dict()), saved)


def test_load_best_model(tmp_path):
    values = iter([1.0, 5.0, 3.0])
    trainer = make_trainer(
        tmp_path,
        monitor=lambda model: {"knn_top1": next(values)},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="knn_top1",
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert states_equal(dict(trainer.model.state_dict()), load_file(tmp_path / "checkpoint-4" / "model.safetensors"))


def test_no_pickled_arguments(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=3, hub_token="hf_secret")
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if path.name == "training_args.bin"]
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]
    assert (tmp_path / "pretraining" / "config.json").is_file() and not (tmp_path / "config.json").exists()


def test_every_loss_term_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, logging_steps=3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["loss_relations"] + entry["loss_positions"], rel=1e-5)
        assert 0 <= entry["accuracy_relations"] <= 1 and 0 <= entry["accuracy_positions"] <= 1


def test_accumulation_sees_the_same_images(tmp_path):
    """2 x 4 images are 1 x 8: the views are drawn for each sample, whatever batch it comes in."""
    logs = []
    for batch_size, steps in ((8, 1), (4, 2)):
        trainer = make_trainer(
            tmp_path / str(batch_size),
            model=make_model(drop_path_rate=0.0),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_grad_norm=1.0,
        )
        trainer.train()
        logs.append(
            [(e["loss"], e["grad_norm"], e["loss_relations"]) for e in trainer.state.log_history if "loss" in e]
        )
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]), rtol=1e-4, atol=1e-5)


def test_micro_batches_draw_differently(tmp_path):
    """Every micro-batch of every step has draws of its own, the same in another run."""
    runs = []
    for name in ("a", "b"):
        keys = []
        model = make_model()
        step_inputs = model.step_inputs
        model.step_inputs = lambda step, keys=keys, f=step_inputs: keys.append(step.draws.keys.item()) or f(step)
        make_trainer(
            tmp_path / name, model, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2
        ).train()
        runs.append(keys)
    assert runs[0] == runs[1] and len(set(runs[0])) == len(runs[0]) == 6


def test_non_finite_loss_stops_the_run(tmp_path):
    """The run ends with the step and the samples, and no checkpoint is written after the loss broke."""
    model = make_model()
    trainer = make_trainer(tmp_path, model=model, logging_steps=100, save_strategy="steps", save_steps=2)
    forward, calls = model.forward, []

    def broken(*args, **kwargs):
        output = forward(*args, **kwargs)
        calls.append(None)
        if len(calls) == 3:
            output.loss = output.loss * float("nan")
        return output

    model.forward = broken
    with pytest.raises(NonFiniteLossError, match=r"since step 3.*non_finite_loss\.json"):
        trainer.train()
    report = json.loads((tmp_path / "non_finite_loss.json").read_text())
    order = [index for _, index in trainer._sampler]
    assert report["step"] == 3 and sorted(report["samples"]) == sorted(order[16:24])
    assert report["terms"][0]["loss"] == "nan" and float(report["terms"][0]["loss_relations"]) > 0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize(("rule", "decays_bias"), [("all", True), ("matrices", False)])
def test_weight_decay_rule(tmp_path, rule, decays_bias):
    trainer = make_trainer(tmp_path, weight_decay_rule=rule, weight_decay=0.1)
    groups = {
        id(p): group["weight_decay"] for group in trainer.create_optimizer().param_groups for p in group["params"]
    }
    names = dict(trainer.model.named_parameters())
    assert "student.embeddings.position_embeddings" in names
    for name, parameter in names.items():
        if not parameter.requires_grad:
            assert id(parameter) not in groups, name
            continue
        decays = decays_bias or (parameter.ndim > 1 and not name.endswith(".bias"))
        assert groups[id(parameter)] == (0.1 if decays else 0.0), name


def test_schedule(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=37, schedule="quarter_cosine", min_learning_rate=1e-5, warmup_steps=0.1, learning_rate=1e-3
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    expected = quarter_cosine(1e-3, 1e-5, 37, 3)
    # The share of the steps is rounded down, and the first step has rate 0.
    assert rates[:2] == [0.0, pytest.approx(1e-3 / 3)]
    assert rates == pytest.approx([expected(step) for step in range(37)])


def test_weight_decay_schedule(tmp_path):
    """Half a cosine wave over the groups that decay, logged, and the same after a resume."""
    settings = {
        "max_steps": 13,
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "schedule": "warmup_cosine",
        "warmup_steps": 0.2,
        "save_strategy": "steps",
        "save_steps": 7,
    }
    whole = make_trainer(tmp_path / "whole", make_toy(), **settings)
    whole.train()
    expected = [0.4 + (0.04 - 0.4) / 2 * (1 + math.cos(math.pi * step / 13)) for step in range(13)]
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    assert [entry["weight_decay"] for entry in logs] == pytest.approx(expected, rel=1e-12)
    assert logs[0]["weight_decay"] == 0.04 and logs[0]["learning_rate"] == 0.0
    assert {group["weight_decay"] for group in whole.optimizer.param_groups} == {expected[-1], 0.0}
    shutil.copytree(tmp_path / "whole" / "checkpoint-7", tmp_path / "cut" / "checkpoint-7")
    resumed = make_trainer(tmp_path / "cut", make_toy(), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert outcome(resumed) == outcome(whole)


def test_layer_decay(tmp_path):
    """Each group follows the schedule from a rate of its own."""
    trainer = make_trainer(tmp_path, max_steps=4, layer_decay=0.5, schedule="quarter_cosine", warmup_steps=2)
    trainer.train()
    peaks = sorted({group["initial_lr"] for group in trainer.optimizer.param_groups})
    assert peaks == pytest.approx([1e-3 * 0.5**depth for depth in (3, 2, 1, 0)])
    factor = quarter_cosine(1.0, 0.0, 4, 2)(3)
    for group in trainer.optimizer.param_groups:
        assert group["lr"] == pytest.approx(group["initial_lr"] * factor)
    assert trainer.state.log_history[2]["learning_rate"] == pytest.approx(1e-3 * quarter_cosine(1.0, 0.0, 4, 2)(2))


def test_clipping_per_parameter(tmp_path):
    """Each gradient is bounded, and queries, keys and values together; the logged norm is that of all, unclipped."""
    model = make_model()
    trainer = make_trainer(tmp_path, model, max_steps=2, max_grad_norm=0.01, gradient_clipping="per_parameter")
    norms = {}

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            norms.update({n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None})

    trainer.add_callback(Norms())
    trainer.train()
    assert max(norms.values()) == pytest.approx(0.01, rel=1e-3)
    layer = "student.layers.0.attention."
    joint = sum(norms[f"{layer}{name}_proj.weight"] ** 2 for name in "qkv") ** 0.5
    assert joint == pytest.approx(0.01, rel=1e-3)
    assert trainer.state.log_history[0]["grad_norm"] > 0.1


def test_optimizers_that_choose_their_parameters_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    # What Trainer returns for GaLore.
    trainer.get_optimizer_cls_and_kwargs = lambda args, model: (torch.optim.AdamW, {"params": []})
    with pytest.raises(ValueError, match="chooses its parameters itself"):
        trainer.create_optimizer()


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    waiting = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten.equal.default,
    )

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.waiting:
            self.found.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [make_model, make_toy])
@pytest.mark.parametrize("args", [{}, {"gradient_clipping": "per_parameter", "max_grad_norm": 3.0}])
def test_no_step_waits_for_the_device(tmp_path, make, args, monkeypatch):
    """From the first step to the first log nothing is read back."""
    monkeypatch.setattr("hf_ssl.views.photometric._picks", lambda images: False)  # as on an accelerator
    trainer = make_trainer(tmp_path, make(), max_steps=5, logging_steps=4, optim="adamw_torch_fused", **args)
    reads = Reads()
    counts = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counts.append(len(reads.found))

        on_step_begin = on_step_end

    trainer.add_callback(Count())
    with reads:
        trainer.train()
    assert len(counts) == 10 and counts[0] == counts[7]  # until the end of step 4; then it logs
    assert counts[-1] > counts[0]


@pytest.mark.parametrize("make", [make_model, make_toy])
def test_step_reads_no_value(make):
    """Views, draws, loss, backward, clipping, bookkeeping and teacher on tensors without values, where reading one is an
    error."""
    device = torch.device("meta")
    model = make()
    views = RelViTViews(RelViTViewsConfig(), model.config, 0) if make is make_model else ToyViews(0)
    values = {name: schedule(0) for name, schedule in model.schedules(6, 5).items()}
    model.to(device).train()
    index = torch.arange(8, device=device)
    images = torch.empty(8, 3, 16, 16, dtype=torch.uint8, device=device)
    batch = {"images": images, "index": index, "epoch": torch.zeros_like(index)}
    samples = Draws.for_samples(0, batch["epoch"], index)
    model.on_step_begin(values)
    outputs = model(**views(batch), **model.step_inputs(Step(Draws.for_batch(0, 0, device=device), samples, values)))
    log = LossLog(1, 8, device)
    log.add(outputs, index, 1)
    outputs.loss.backward()
    log.check_gradient(clip_per_parameter_(model.named_parameters(), 1.0), 1)
    model.on_optimizer_step(values)
    with pytest.raises(RuntimeError, match="meta"):
        outputs.loss.item()


@pytest.mark.parametrize("make", [make_model, make_toy])
def test_activation_checkpointing(tmp_path, make):
    """Layers are run twice and remember less; losses, gradients and weights are the same bits."""
    plain, checkpointed = (
        make_trainer(tmp_path / str(on), make(), activation_checkpointing=on) for on in (False, True)
    )
    calls = []
    name = "layers" if make is make_model else "encoder.layers"
    layer = checkpointed.model.student.get_submodule(name)[1]
    layer.layernorm_before.register_forward_hook(lambda *_: calls.append(None))
    for trainer in (plain, checkpointed):
        torch.manual_seed(1)  # dropout
        trainer.train()
    assert outcome(checkpointed) == outcome(plain)
    assert len(calls) == 2 * 6


def test_torch_compile(tmp_path):
    """The whole step through dynamo, with losses as without; weights are saved under their own names."""
    plain = make_trainer(tmp_path / "plain", max_steps=3)
    plain.train()
    torch._dynamo.reset()
    compiled = make_trainer(
        tmp_path / "compiled",
        max_steps=3,
        torch_compile=True,
        torch_compile_backend="eager",
        save_strategy="steps",
        save_steps=2,
    )
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-6)
    saved = load_file(tmp_path / "compiled" / "checkpoint-3" / "model.safetensors")
    assert saved.keys() == plain.model.state_dict().keys()
    resumed = make_trainer(tmp_path / "compiled", max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "compiled" / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(losses(plain), rel=1e-6)


@pytest.mark.parametrize("positions", [True, False])
def test_trunk_has_no_graph_break(positions):
    """`fullgraph` makes a break an error; stochastic depth, training mode and gradients included."""
    torch._dynamo.reset()
    trunk = make_model().student.train()
    trunk.use_position_embeddings = positions
    pixel_values, keep = torch.randn(4, 3, 16, 16), torch.rand(2, 2, 4) > 0.2
    compiled = torch.compile(trunk, fullgraph=True, backend="aot_eager")
    tokens = compiled(pixel_values, drop_path_keep=keep)
    torch.testing.assert_close(tokens, trunk(pixel_values, drop_path_keep=keep), rtol=1e-5, atol=1e-5)
    tokens.sum().backward()
    assert trunk.layers[0].attention.q_proj.weight.grad is not None


def test_waiting_for_data_is_measured(tmp_path):
    class Slow(TensorSource):
        def __getitems__(self, keys):
            time.sleep(0.05)
            return super().__getitems__(keys)

    trainer = make_trainer(tmp_path, max_steps=4)
    trainer.train()
    quick = trainer.data_seconds
    slow = make_trainer(tmp_path, max_steps=4)
    slow.train_dataset = Slow(IMAGES)
    slow.train()
    assert slow.data_seconds >= 4 * 0.05 and quick > 0


def test_gradient_clipping(tmp_path):
    trainer = make_trainer(tmp_path, max_grad_norm=1e-4, logging_steps=1, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 1e-4


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"schedule": "cosine_wave"}, "quarter_cosine"),
        ({"weight_decay_rule": "some"}, "matrices"),
        ({"hub_strategy": "every_save"}, "only 'end'"),
        ({"push_to_hub": True, "do_train": False}, "pushed with `hf-ssl push FOLDER NAME`"),
        ({"remove_unused_columns": True}, "stay off"),
        ({"logging_nan_inf_filter": True}, "stay off"),
        ({"gradient_clipping": "layer", "max_grad_norm": 1.0}, "per_parameter"),
        ({"gradient_clipping": "per_parameter"}, "positive max_grad_norm"),
        ({"final_weight_decay": 0.4}, "weight_decay to start from"),
        ({"enable_jit_checkpoint": True}, "SIGTERM and Ctrl-C always"),
        ({"auto_find_batch_size": True}, "not supported"),
        ({"save_on_each_node": True}, "not supported"),
    ],
)
def test_arguments_are_checked(tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        SSLTrainingArguments(output_dir=str(tmp_path), **argument)


def test_evaluate_needs_a_monitor(tmp_path):
    with pytest.raises(ValueError, match="without a monitor"):
        make_trainer(tmp_path).evaluate()


def test_monitor_does_not_disturb_the_run(tmp_path):
    """With dropout, which reads the global random state, a run with evaluations equals one without."""
    from hf_ssl.evaluation import KNNMonitor
    from hf_ssl.hub import evaluation_processor

    results = []
    for name, steps in (("with", 2), ("without", 1000)):
        torch.manual_seed(0)
        model = make_model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        source = TensorSource(IMAGES, torch.arange(40) % 4)
        monitor = KNNMonitor(evaluation_processor(16, [0.5] * 3, [0.5] * 3), source, source, num_classes=4)
        trainer = make_trainer(tmp_path / name, model, monitor, eval_strategy="steps", eval_steps=steps)
        trainer.train()
        results.append((losses(trainer), {n: t.clone() for n, t in model.state_dict().items()}))
        if steps == 2:
            assert any("eval_knn_top1" in entry for entry in trainer.state.log_history)
    assert results[0][0] == results[1][0]
    assert states_equal(results[0][1], results[1][1])


def test_push_leaves_the_published_encoder_alone(tmp_path):
    """A mid-run push would put the pretraining model where the encoder belongs; it does nothing."""
    trainer = make_trainer(tmp_path)
    (tmp_path / "config.json").write_text("the encoder's")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "config.json").write_text("the pretraining model's")
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert (tmp_path / "config.json").read_text() == "the encoder's"
    assert Path(trainer.output_dir) == tmp_path
