"""Faults of one of two processes: the other one ends too, soon and with an error, and both resume exactly."""

import os
import signal
import time
from typing import Any

import pytest

from hf_ssl.checkpoints import last_whole_checkpoint

from ..marks import slow
from ..processes import run_ranks, start_ranks
from .runs import interrupt, kill, run, step_begin, terminate, writing_tensors


def run_rank(folder: str, setting: str, resume: bool, place: Any, action: Any, hit: tuple[int, ...]) -> dict[str, Any]:
    """Five steps an epoch, as in the other fault tests: four images for each of two processes."""
    is_hit = int(os.environ["RANK"]) in hit
    return run(
        folder,
        setting,
        resume,
        place if is_hit else None,
        action,
        per_device_train_batch_size=4,
        close=True,
    )


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory):
    return run_ranks(run_rank, 2, str(tmp_path_factory.mktemp("two")), "stock fp32", False, None, None, ())


@pytest.mark.parametrize(("place", "hit", "last"), [slow(step_begin, 1, 8), (writing_tensors, 0, 4)])
def test_one_of_two_is_killed(tmp_path, whole_of_two, place, hit, last):
    """The other one does not wait for it."""
    ranks = start_ranks(run_rank, 2, str(tmp_path), "stock fp32", False, place, kill, (hit,))
    with pytest.raises(ChildProcessError, match="exit code -9"):
        ranks[hit].result()
    start = time.monotonic()
    with pytest.raises(ChildProcessError):
        ranks[1 - hit].result(timeout=60)
    assert time.monotonic() - start < 60 and ranks[1 - hit].process.exitcode not in (0, None)
    assert last_whole_checkpoint(tmp_path)[0].name == f"checkpoint-{last}"
    assert run_ranks(run_rank, 2, str(tmp_path), "stock fp32", True, None, None, ()) == whole_of_two


@pytest.mark.parametrize(("action", "hit"), [(terminate, (0, 1)), slow(interrupt, (1,))])
def test_two_are_stopped(tmp_path, whole_of_two, action, hit):
    """Also if the signal reaches only one of them, both stop after the same step."""
    ranks = start_ranks(run_rank, 2, str(tmp_path), "stock fp32", False, step_begin, action, hit)
    name = signal.SIGINT.name if action is interrupt else signal.SIGTERM.name
    for rank in ranks:
        with pytest.raises(ChildProcessError, match=f"Stopped by {name} after step 10"):
            rank.result()
    assert last_whole_checkpoint(tmp_path)[0].name == "checkpoint-10"
    assert run_ranks(run_rank, 2, str(tmp_path), "stock fp32", True, None, None, ()) == whole_of_two


def fail() -> None:
    raise ZeroDivisionError("a bug in one process")


def test_one_of_two_fails(tmp_path):
    """With data workers: both exit."""
    ranks = start_ranks(run_rank, 2, str(tmp_path), "stock", False, step_begin, fail, (1,))
    for rank in ranks:
        with pytest.raises(ChildProcessError):
            rank.result(timeout=60)
        assert rank.process.exitcode not in (0, None)


def spoil_one(folder: str) -> None:
    from ..training.common import make_model, make_trainer
    from .test_numbers import SETTINGS, spoil_images

    trainer = make_trainer(folder, make_model(), per_device_train_batch_size=4, **SETTINGS)
    if os.environ["RANK"] == "1":
        spoil_images(trainer, 6)
    trainer.train()


def test_loss_of_one_of_two_is_not_finite(tmp_path):
    """All stop, with the message; the samples are those of the process that met it."""
    import json

    for rank in start_ranks(spoil_one, 2, str(tmp_path)):
        with pytest.raises(ChildProcessError, match="not finite since step 6"):
            rank.result()
    report = json.loads((tmp_path / "non_finite_loss.json").read_text())
    # The gradient of that step is not finite on both, the loss on one.
    assert report["step"] == 6 and "nan" in [terms["loss"] for terms in report["terms"]]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4"]
