"""Checkpoints that were whole once: damage is found before anything is loaded, and named."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_ssl import checkpoints
from hf_ssl.checkpoints import CheckpointError, last_whole_checkpoint, publish_checkpoint, read_manifest

from ..training.common import IMAGES, make_model, make_toy, make_trainer, outcome, states_equal


SETTINGS = {"max_steps": 7, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints 2, 4, 6 and 7, and its outcome."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder, **SETTINGS)
    trainer.train()
    return folder, outcome(trainer)


@pytest.fixture
def cut(finished, tmp_path):
    """A copy of the run as it was after step 6."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "checkpoint-7")
    return folder


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path):
    path.unlink()


def garble(path):
    path.write_text('{"files": [1, 2')


def empty(path):
    path.write_text("{}")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", truncate, r"model\.safetensors has [\d,]+ bytes; [\d,]+ were written"),
        ("optimizer.pt", truncate, r"optimizer\.pt has"),
        ("model.safetensors", flip_a_bit, r"model\.safetensors does not have the content"),
        ("optimizer.pt", flip_a_bit, r"optimizer\.pt does not have the content"),
        ("rng_state.pth", flip_a_bit, r"rng_state\.pth does not have the content"),
        ("trainer_state.json", delete, r"trainer_state\.json is missing"),
        ("progress_0.json", delete, r"progress_0\.json is missing"),
        ("manifest.json", delete, r"has no manifest\.json: it was never finished"),
        ("manifest.json", garble, r"manifest\.json cannot be read"),
        ("manifest.json", empty, r"manifest\.json cannot be read"),
    ],
)
def test_damaged_checkpoint(finished, cut, name, damage, message, caplog):
    """It is named and set aside, and the one before it leads to the same end."""
    damage(cut / "checkpoint-6" / name)
    trainer = make_trainer(cut, **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        warnings = []
        patch.setattr(checkpoints.logger, "warning", warnings.append)
        trainer.train(resume_from_checkpoint=True)
    assert len(warnings) == 1
    pytest.raises(CheckpointError, read_manifest, cut / "damaged-checkpoint-6").match(message)
    assert "set aside as damaged-checkpoint-6; checkpoint-4 is used" in warnings[0]
    assert outcome(trainer) == finished[1]
    assert sorted(p.name for p in cut.glob("*checkpoint-*")) == [
        *(f"checkpoint-{step}" for step in (2, 4, 6, 7)),
        "damaged-checkpoint-6",
    ]


def test_two_damaged_checkpoints(finished, cut):
    truncate(cut / "checkpoint-6" / "model.safetensors")
    delete(cut / "checkpoint-4" / "optimizer.pt")
    (cut / "damaged-checkpoint-6").mkdir()  # of an earlier accident
    trainer = make_trainer(cut, **SETTINGS)
    trainer.train(resume_from_checkpoint=True)
    assert outcome(trainer) == finished[1]
    assert {p.name for p in cut.glob("damaged-*")} == {
        "damaged-checkpoint-6",
        "damaged-checkpoint-6-2",
        "damaged-checkpoint-4",
    }


def test_no_whole_checkpoint(cut):
    """Then nothing is touched, and the message says what is wrong with each."""
    for step in (2, 4, 6):
        truncate(cut / f"checkpoint-{step}" / "model.safetensors")
    before = sorted(cut.rglob("*"))
    with pytest.raises(CheckpointError, match=r"(?s)No checkpoint in .* is whole\..*-6/model.*-4/model.*-2/model"):
        make_trainer(cut, **SETTINGS).train(resume_from_checkpoint=True)
    assert sorted(cut.rglob("*")) == before


def test_named_checkpoint_is_damaged(cut):
    """Whoever names a checkpoint gets that one or an error."""
    flip_a_bit(cut / "checkpoint-6" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint-6/model\.safetensors does not have the content"):
        make_trainer(cut, **SETTINGS).train(resume_from_checkpoint=str(cut / "checkpoint-6"))
    with pytest.raises(CheckpointError, match="is not a folder"):
        make_trainer(cut, **SETTINGS).train(resume_from_checkpoint=str(cut / "checkpoint-60"))


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in .* to resume from"):
        make_trainer(tmp_path, **SETTINGS).train(resume_from_checkpoint=True)


def test_best_checkpoint_is_damaged(tmp_path):
    """The run ends with an error in the place of wrong weights; no checkpoint is deleted, though only one is kept."""
    values = iter([5.0, 1.0, 3.0])
    trainer = make_trainer(
        tmp_path,
        monitor=lambda model: {"knn_top1": next(values)},
        **SETTINGS | {"max_steps": 6},
        eval_strategy="steps",
        eval_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="knn_top1",
    )
    rotate = trainer._save_checkpoint

    def save_and_damage(*args):
        rotate(*args)
        if trainer.state.global_step == 6:
            flip_a_bit(tmp_path / "checkpoint-2" / "model.safetensors")

    trainer._save_checkpoint = save_and_damage
    with pytest.raises(CheckpointError, match=r"checkpoint-2/model\.safetensors does not have the content"):
        trainer.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]


def test_new_run_in_the_folder_of_an_old_one(cut):
    with pytest.raises(CheckpointError, match=r"holds checkpoints of an earlier run \(checkpoint-6\)"):
        make_trainer(cut, **SETTINGS).train()


def test_going_back(finished, tmp_path):
    """From an early checkpoint on: what came after it is kept, but not taken for what follows."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    make_trainer(folder, **SETTINGS).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert {p.name for p in folder.glob("*checkpoint-*")} == {
        *(f"checkpoint-{step}" for step in (2, 4, 6, 7)),
        *(f"abandoned-checkpoint-{step}" for step in (6, 7)),
    }
    with pytest.raises(CheckpointError, match="holds checkpoints of another run"):
        make_trainer(folder, **SETTINGS).train(resume_from_checkpoint=str(finished[0] / "checkpoint-4"))


@pytest.mark.parametrize("max_steps", [5, 7])
def test_finished_run_is_resumed(tmp_path, max_steps):
    """It is over: no step is done again, in the middle of an epoch either (Trainer itself would do one more)."""
    settings = SETTINGS | {"max_steps": max_steps}
    whole = make_trainer(tmp_path, make_toy(), **settings)
    expected = whole.train()
    trainer = make_trainer(tmp_path, make_toy(), **settings)
    result = trainer.train(resume_from_checkpoint=True)
    assert outcome(trainer) == outcome(whole)
    assert result.training_loss == expected.training_loss and result.global_step == max_steps


def test_training_loss_is_that_of_the_whole_run(finished, cut):
    trainer = make_trainer(cut, **SETTINGS)
    result = trainer.train(resume_from_checkpoint=True)
    assert result.training_loss == result.metrics["train_loss"] == finished[1]["logs"][-1]["train_loss"]


def test_unreadable_checkpoint(finished, cut, monkeypatch):
    """A disk that fails to read counts as damage."""
    hash_file = checkpoints._hash

    def failing(path):
        if path == cut / "checkpoint-6" / "optimizer.pt" and not (cut / "damaged-checkpoint-6").exists():
            raise OSError(5, "Input/output error")
        return hash_file(path)

    monkeypatch.setattr(checkpoints, "_hash", failing)
    trainer = make_trainer(cut, **SETTINGS)
    trainer.train(resume_from_checkpoint=True)
    assert outcome(trainer) == finished[1] and (cut / "damaged-checkpoint-6").is_dir()


def test_replacing_fails(tmp_path, monkeypatch):
    """The checkpoint that was to be replaced keeps its name."""
    folder, target = tmp_path / "_unfinished" / "checkpoint-3", tmp_path / "checkpoint-3"
    for content in ("old", "new"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(content)
        if content == "old":
            publish_checkpoint(folder, target, {"step": 3})
    rename = Path.rename

    def failing(path, to):
        if path == folder:
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        publish_checkpoint(folder, target, {"step": 3})
    assert read_manifest(target) == {"step": 3} and (target / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize("moved", [False, True])
def test_best_checkpoint_is_found_again(tmp_path, monkeypatch, moved):
    """Also if the run's folder has another name on resume, or is spelled differently."""
    settings = SETTINGS | {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "knn_top1",
    }

    def monitor_of(values):
        values = iter(values)
        return lambda model: {"knn_top1": next(values)}

    make_trainer(tmp_path / "run", monitor=monitor_of([5.0, 1.0]), **settings | {"max_steps": 4}).train()
    # Trainer keeps only the best at the end; the last one is needed to resume from.
    shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "best")
    best = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    folder = Path("run")
    if moved:
        (tmp_path / "run").rename(tmp_path / "other")
        folder = Path("other")
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(folder, monitor=monitor_of([2.0, 3.0, 4.0]), **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-2")
    assert states_equal(dict(trainer.model.state_dict()), best)


def test_best_checkpoint_is_gone(cut):
    """Then the best one is looked for among those that follow."""
    path = cut / "checkpoint-6" / "trainer_state.json"
    state = json.loads(path.read_text()) | {"best_global_step": 3, "best_metric": 99.0}
    path.write_text(json.dumps(state))
    folder = cut / "_unfinished" / "checkpoint-6"
    folder.parent.mkdir()
    run = read_manifest_of(cut / "checkpoint-6")
    (cut / "checkpoint-6").rename(folder)
    publish_checkpoint(folder, cut / "checkpoint-6", run)
    trainer = make_trainer(
        cut,
        monitor=lambda model: {"knn_top1": 1.0},
        **SETTINGS | {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "knn_top1"},
        load_best_model_at_end=True,
    )
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_metric == 1.0 and trainer.state.best_global_step == 7


def read_manifest_of(checkpoint):
    return json.loads((checkpoint / "manifest.json").read_text())["run"]


def test_changed_learning_rate_and_weight_decay(cut):
    """What the command line says now is what counts, as the advice after a non-finite loss needs."""
    changed = {"learning_rate": 1e-4, "weight_decay": 0.3, "max_steps": 9}
    with pytest.MonkeyPatch.context() as patch:
        warnings = []
        patch.setattr(checkpoints.logger, "warning", warnings.append)
        trainer = make_trainer(cut, **SETTINGS | changed)
        rates = []

        class Follow(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                rates.append(trainer.optimizer.param_groups[0]["lr"])

        trainer.add_callback(Follow())
        trainer.train(resume_from_checkpoint=True)
    assert rates == pytest.approx([1e-4 * (9 - step) / 9 for step in (6, 7, 8)])
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.3, 0.0}
    for name in changed:
        assert any(f"was written with {name}" in text for text in warnings), name


def test_leftover_of_an_old_run(cut, tmp_path):
    """A checkpoint that was whole and not yet renamed when its run was killed is not taken for the new run's."""
    (cut / "_unfinished").mkdir()
    (cut / "checkpoint-6").rename(cut / "_unfinished" / "checkpoint-6")
    for step in (2, 4):
        shutil.rmtree(cut / f"checkpoint-{step}")
    with pytest.raises(CheckpointError, match=r"holds checkpoints of an earlier run \(checkpoint-6\)"):
        make_trainer(cut, **SETTINGS).train()


def test_other_images(cut):
    images = IMAGES.clone()
    images[17, 0, 0, 0] ^= 1
    with pytest.raises(CheckpointError, match="was trained on other images"):
        make_trainer(cut, images=images, **SETTINGS).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="was trained on other images.*40 of them; there are 32 now"):
        make_trainer(cut, images=IMAGES[:32], **SETTINGS).train(resume_from_checkpoint=True)


def test_other_beginning(cut):
    """Otherwise the card would name the model, and the license, of another run."""
    trainer = make_trainer(cut, **SETTINGS)
    trainer.began_with = "org/name@main"
    with pytest.raises(CheckpointError, match="began with random weights, and this one begins with org/name@main"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("make", [make_toy, lambda: make_model(mega_patches=2)])
def test_other_model(cut, make):
    with pytest.raises(CheckpointError, match="checkpoint-6 is of another model"):
        make_trainer(cut, make(), **SETTINGS).train(resume_from_checkpoint=True)


def test_other_batch_size_is_said(cut):
    with pytest.MonkeyPatch.context() as patch:
        warnings = []
        patch.setattr(checkpoints.logger, "warning", warnings.append)
        make_trainer(cut, per_device_train_batch_size=4, **SETTINGS).train(resume_from_checkpoint=True)
    assert any("images_per_step = 8, now it is 4" in text for text in warnings)


def test_checkpoint_without_optimizer(tmp_path):
    make_trainer(tmp_path, save_only_model=True, **SETTINGS | {"max_steps": 2}).train()
    with pytest.raises(CheckpointError, match="holds no optimizer"):
        make_trainer(tmp_path, **SETTINGS).train(resume_from_checkpoint=True)


def test_checkpoint_is_replaced_as_a_whole(tmp_path):
    """A run that was resumed from an early checkpoint writes the later ones again."""
    for content in ("old", "new"):
        folder = tmp_path / "_unfinished" / "checkpoint-3"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(content)
        publish_checkpoint(folder, tmp_path / "checkpoint-3", {"step": 3})
        assert (tmp_path / "checkpoint-3" / "model.safetensors").read_text() == content
        assert read_manifest(tmp_path / "checkpoint-3") == {"step": 3}
        assert not list((tmp_path / "_unfinished").iterdir())


def test_killed_between_the_two_renames(tmp_path):
    """The old checkpoint has lost its name and the new one has not got it yet: the new one is whole and is found."""
    folder = tmp_path / "_unfinished" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("new")
    publish_checkpoint(folder, tmp_path / "checkpoint-3", {"step": 3})
    (tmp_path / "checkpoint-3").rename(folder)
    assert last_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-3", {"step": 3})
    (tmp_path / "checkpoint-3").rename(folder)
    truncate(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        last_whole_checkpoint(tmp_path)


def test_manifest_can_be_checked_by_hand(finished):
    """The hashes are those of `sha256sum`, and no file is left out."""
    import hashlib

    folder = finished[0] / "checkpoint-4"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name, entry in files.items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert entry["size"] == (folder / name).stat().st_size
    assert torch.load(folder / "optimizer.pt", weights_only=True)
