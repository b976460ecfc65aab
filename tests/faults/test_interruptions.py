"""Killed, stopped and resumed: the resumed run ends with the same bits as the one that nothing happened to."""

import signal

import pytest

from ..marks import slow
from .runs import (
    after_optimizer,
    early,
    flushing,
    in_monitor,
    interrupt,
    kill,
    last_of_epoch,
    rotating,
    start,
    step_begin,
    step_end,
    terminate,
    terminate_group,
    writing_tensors,
)


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


@pytest.mark.parametrize(
    ("setting", "place", "left"),
    [
        ("stock", step_begin, ["checkpoint-8"]),
        slow("trunk", after_optimizer, ["checkpoint-4"]),
        slow("stock", after_optimizer, ["checkpoint-4"]),
        ("trunk bf16", in_monitor, ["checkpoint-4"]),
        ("stock fp32", writing_tensors, ["checkpoint-4"]),
        slow("trunk", flushing, ["checkpoint-4"]),
        ("stock fp32", rotating, ["checkpoint-4", "checkpoint-8"]),
        slow("patchmix", after_optimizer, ["checkpoint-4"]),
        slow("pw_self", after_optimizer, ["checkpoint-4"]),  # in the middle of an epoch, with a center
        slow("aps", step_begin, ["checkpoint-6"]),  # in the middle of the steps of a batch
    ],
)
def test_kill(tmp_path, whole, setting, place, left):
    """kill -9: whatever it hits, a whole checkpoint is left, although only one is kept."""
    running = start(str(tmp_path), setting, False, place, kill)
    with pytest.raises(ChildProcessError, match="exit code -9"):
        running.result()
    assert checkpoints(tmp_path) == left
    assert start(str(tmp_path), setting, True).result() == whole(setting)


@pytest.mark.parametrize(
    ("setting", "place", "action", "step"),
    [
        ("trunk", step_begin, interrupt, 9),
        slow("aps", step_begin, interrupt, 9),
        slow("stock", after_optimizer, terminate, 8),
        slow("trunk bf16", in_monitor, terminate, 8),
        slow("stock fp32", step_end, interrupt, 8),
        ("trunk", flushing, interrupt, 9),
        slow("stock", last_of_epoch, terminate, 10),
        ("stock", step_begin, terminate_group, 9),
    ],
)
def test_stop_signals(tmp_path, whole, setting, place, action, step):
    """Ctrl-C and SIGTERM: the step is finished, a checkpoint is written, and the message says how to go on."""
    running = start(str(tmp_path), setting, False, place, action)
    name = "SIGINT" if action is interrupt else "SIGTERM"
    with pytest.raises(ChildProcessError, match=f"Stopped by {name} after step {step}.*resume_from_checkpoint true"):
        running.result()
    assert checkpoints(tmp_path) == [f"checkpoint-{step}"]
    assert start(str(tmp_path), setting, True).result() == whole(setting)


def test_interrupted_twice(tmp_path, whole):
    """A stopped run that is resumed can be stopped again."""
    for place, resume in ((step_end, False), (last_of_epoch, True)):
        with pytest.raises(ChildProcessError, match="Stopped by SIGTERM"):
            start(str(tmp_path), "stock", resume, place, terminate).result()
    assert checkpoints(tmp_path) == ["checkpoint-10"]
    assert start(str(tmp_path), "stock", True).result() == whole("stock")


@pytest.mark.parametrize(
    "strategies",
    [("epoch", "epoch", "epoch"), slow(("epoch", "epoch", "steps")), slow(("epoch", "steps", "best"))],
)
def test_epoch_strategies(tmp_path, strategies):
    """A checkpoint at an epoch's end holds what was logged and measured there; a stop in mid-epoch measures nothing."""
    logging, evaluation, saving = strategies
    changes = {
        "logging_strategy": logging,
        "eval_strategy": evaluation,
        "save_strategy": saving,
        "save_steps": 5,
        "eval_steps": 5,
        "metric_for_best_model": "knn_top1",
        "save_total_limit": None,
    }
    expected = start(str(tmp_path / "whole"), "trunk", **changes).result()
    for place, action, folder in ((step_end, terminate, "stopped"), (step_begin, kill, "killed")):
        with pytest.raises(ChildProcessError):
            start(str(tmp_path / folder), "trunk", False, place, action, **changes).result()
        assert start(str(tmp_path / folder), "trunk", True, **changes).result() == expected


def wait_and_interrupt_again():
    import time

    interrupt()
    time.sleep(2.1)
    interrupt()


def test_stopped_where_only_the_best_is_saved(tmp_path):
    """The checkpoint of a stopped run is written, best or not."""
    changes = {"save_strategy": "best", "metric_for_best_model": "knn_top1", "eval_steps": 4, "save_total_limit": None}
    expected = start(str(tmp_path / "whole"), "trunk", **changes).result()
    with pytest.raises(ChildProcessError, match="checkpoint-8 is written"):
        start(str(tmp_path / "cut"), "trunk", False, after_optimizer, terminate, **changes).result()
    assert "checkpoint-8" in checkpoints(tmp_path / "cut")
    assert start(str(tmp_path / "cut"), "trunk", True, **changes).result() == expected


def kill_data_worker():
    import psutil

    psutil.Process().children()[0].kill()


def test_data_worker_is_killed(tmp_path):
    """
    What the out-of-memory killer likes to do: the run says so, and the last checkpoint leads to the same end. Batches are
    small, so that some are still to come: what the signal raises may be lost where Python ignores exceptions. A second signal
    may come while the error of the first is being sent here.
    """
    small = {"per_device_train_batch_size": 2}
    with pytest.raises(
        ChildProcessError, match="DataLoader worker .* is killed by signal: Killed|died with exit code 1"
    ):
        start(str(tmp_path / "cut"), "stock", False, step_begin, kill_data_worker, **small).result()
    assert checkpoints(tmp_path / "cut") == ["checkpoint-8"]
    whole = start(str(tmp_path / "whole"), "stock", **small).result()
    assert start(str(tmp_path / "cut"), "stock", True, **small).result() == whole


def fail():
    raise ZeroDivisionError("a bug in the run")


@pytest.mark.parametrize("persistent", [False, True])
def test_failed_run_exits(tmp_path, persistent):
    """Data workers ignore the signals that stop a run, and still do not keep it from ending."""
    running = start(str(tmp_path), "stock", False, step_begin, fail, dataloader_persistent_workers=persistent)
    with pytest.raises(ChildProcessError, match="a bug in the run"):
        running.result()
    assert running.process.exitcode == 1


def test_finished_run_exits(tmp_path):
    running = start(str(tmp_path), "stock", dataloader_persistent_workers=True)
    running.result()
    assert running.process.exitcode == 0


def test_early_stopping_is_resumed(tmp_path):
    """The patience that was used up before the interruption counts."""
    changes = {"patience": 2, "eval_steps": 2, "save_steps": 2, "save_total_limit": None, "max_steps": 13}
    expected = start(str(tmp_path / "whole"), "trunk", **changes).result()
    assert expected["logs"][-1]["step"] < 13
    with pytest.raises(ChildProcessError, match="exit code -9"):
        start(str(tmp_path / "cut"), "trunk", False, early, kill, **changes).result()
    assert start(str(tmp_path / "cut"), "trunk", True, **changes).result() == expected


def test_second_ctrl_c_stops_at_once(tmp_path):
    with pytest.raises(ChildProcessError, match="Stopped at once; no checkpoint was written"):
        start(str(tmp_path), "trunk", False, step_begin, wait_and_interrupt_again).result()
    assert checkpoints(tmp_path) == ["checkpoint-8"]  # the one that was there


def test_signals_are_given_back(tmp_path):
    from ..training.common import make_trainer

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    make_trainer(tmp_path, max_steps=1).train()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
