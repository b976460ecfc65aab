"""The private methods of Trainer that are overridden, and what the trainer promises."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.data import TensorSource
from hf_ssl.models.relvit import RelViTViews, RelViTViewsConfig
from hf_ssl.schedules import quarter_cosine
from hf_ssl.trainer import NonFiniteLossError, SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments


IMAGES = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_model(**overrides) -> RelViTForPreTraining:
    torch.manual_seed(0)
    backbone = ViTConfig(
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        pooler_act="linear",
    )
    return RelViTForPreTraining(RelViTConfig(backbone_config=backbone, **{"drop_path_rate": 0.2, **overrides}))


def make_trainer(output_dir, model=None, monitor=None, **args) -> SSLTrainer:
    model = make_model() if model is None else model
    training_args = SSLTrainingArguments(
        output_dir=str(output_dir),
        **{
            "use_cpu": True,
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **args,
        },
    )
    views = RelViTViews(RelViTViewsConfig(), model.config, training_args.seed)
    return SSLTrainer(model, training_args, TensorSource(IMAGES), views, monitor)


def losses(trainer: SSLTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def states_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_runs_are_equal(tmp_path):
    first, second = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b")
    first.train()
    torch.rand(100)  # the global random state is no input of a run
    second.train()
    assert losses(first) == losses(second)
    assert states_equal(first.model.state_dict(), second.model.state_dict())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(tmp_path, num_workers):
    """Step 8 lies in epoch 1 (five steps an epoch): every tensor equals the uninterrupted run's."""
    settings = {"max_steps": 13, "dataloader_num_workers": num_workers}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    make_trainer(tmp_path / "cut", **settings, save_strategy="steps", save_steps=8).train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert losses(resumed)[8:] == losses(whole)[8:]
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())
    for first, second in zip(
        resumed.optimizer.state_dict()["state"].values(), whole.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert states_equal(first, second)


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


def test_damaged_checkpoints_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))


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
    trainer = make_trainer(tmp_path)
    keys = [trainer._batch_draws().keys.item() for _ in range(3)]
    trainer.state.global_step = 1
    keys.append(trainer._batch_draws().keys.item())
    assert len(set(keys)) == 4
    trainer._draws_at = (-1, -1)
    trainer.state.global_step = 0
    assert trainer._batch_draws().keys.item() == keys[0]


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
    with pytest.raises(NonFiniteLossError, match="since step 3; the samples of that batch are") as error:
        trainer.train()
    samples = json.loads(str(error.value).partition("batch are ")[2].partition("].")[0] + "]")
    order = [index for _, index in trainer._get_train_sampler()]
    assert sorted(samples) == sorted(order[16:24])
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
        ({"remove_unused_columns": True}, "stay off"),
        ({"logging_nan_inf_filter": True}, "stay off"),
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
