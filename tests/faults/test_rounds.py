"""ISL's rounds, killed, stopped and resumed in each of their stages: the end is that of the run that nothing happened to.

The encoder is trained for ten steps, then the generator for three epochs of five steps, then neighbors are mined, in one pass
of five batches or more; and again after step 13.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

from hf_ssl.models.isl import rounds_isl
from hf_ssl.models.isl.neighbors import NeighborSets
from hf_ssl.models.isl.proxy_training import ProxyTraining

from ..marks import slow
from ..processes import run_ranks, start_ranks
from .runs import kill, run, start, step_begin, terminate


def at_call(owner: Any, name: str, number: int, action: Callable[[], None]) -> None:
    """Acts before a method's call of this number, from 1."""
    method, calls = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            action()
        return method(*args, **kwargs)

    setattr(owner, name, call)


def first_gan_epoch(trainer: Any, action: Callable[[], None]) -> None:
    at_call(ProxyTraining, "step", 3, action)


def second_gan_epoch(trainer: Any, action: Callable[[], None]) -> None:
    at_call(ProxyTraining, "step", 9, action)


def writing_stage(trainer: Any, action: Callable[[], None]) -> None:
    """The second epoch's file is written, and does not have its name yet."""
    replace_file, calls = rounds_isl.replace_file, []

    def replace(path: Any, write: Callable[..., None]) -> None:
        def write_and_act(aside: Any) -> None:
            write(aside)
            calls.append(None)
            if len(calls) == 2:
                action()

        replace_file(path, write_and_act)

    rounds_isl.replace_file = replace


def first_mining(trainer: Any, action: Callable[[], None]) -> None:
    at_call(NeighborSets, "add", 3, action)


def after_mining(trainer: Any, action: Callable[[], None]) -> None:
    """The first step that knows of neighbors; the checkpoint is of before they were mined."""

    def at_step(*args: Any) -> None:
        if trainer.state.global_step == 10:
            action()

    begin_step = trainer.begin_step
    trainer.begin_step = lambda: (at_step(), begin_step())


def last_gan(trainer: Any, action: Callable[[], None]) -> None:
    at_call(ProxyTraining, "step", 18, action)


def last_mining(trainer: Any, action: Callable[[], None]) -> None:
    """In the last batch of all."""

    def act() -> None:
        if trainer.state.global_step == 13:
            action()

    add = NeighborSets.add
    NeighborSets.add = lambda *args: (act(), add(*args))[1]


def between_the_last_saves(trainer: Any, action: Callable[[], None]) -> None:
    """Step 13 is saved as a step, and then as the end of the run: in between."""

    def act(*args: Any) -> None:
        if trainer.state.global_step == 13:
            action()

    on_epoch_end = trainer.method_callback.on_epoch_end
    trainer.method_callback.on_epoch_end = lambda *args, **kwargs: (act(), on_epoch_end(*args, **kwargs))[1]


PLACES = [first_gan_epoch, second_gan_epoch, first_mining, after_mining, last_gan, last_mining]


def test_rounds_are_worth_testing(whole):
    """Both rounds mine links, and the second training uses the first ones."""
    logs = whole("isl")["logs"]
    neighbors = [entry["neighbors_per_image"] for entry in logs if "neighbors_per_image" in entry]
    assert len(neighbors) == 2 and 0.1 < neighbors[0] < neighbors[1] < 20
    shares = {entry["step"]: entry["with_neighbors"] for entry in logs if "with_neighbors" in entry}
    assert shares[10] == 0 and shares[11] > 0
    assert len([entry for entry in logs if "gan_quality" in entry and "neighbors_per_image" not in entry]) == 6
    rates = [entry["learning_rate"] for entry in logs if "learning_rate" in entry]
    assert rates[0] == 0.03 and len(set(rates)) > 1, "the accuracy stalls at least once, and the learning rate follows"


@pytest.mark.parametrize("place", [writing_stage, *map(slow, [*PLACES, step_begin])])
def test_kill(tmp_path, whole, place):
    with pytest.raises(ChildProcessError, match="exit code -9"):
        start(str(tmp_path), "isl", False, place, kill).result()
    assert start(str(tmp_path), "isl", True).result() == whole("isl")


@pytest.mark.parametrize("place", [first_mining, *(slow(at) for at in PLACES if at is not first_mining)])
def test_stop_signals(tmp_path, whole, place):
    """Stopped after the batch, not after the stage."""
    with pytest.raises(ChildProcessError, match=r"Stopped by SIGTERM after step 1\d.*resume_from_checkpoint true"):
        start(str(tmp_path), "isl", False, place, terminate).result()
    assert start(str(tmp_path), "isl", True).result() == whole("isl")


@pytest.mark.slow
def test_kill_between_the_last_saves(tmp_path):
    """The last round's neighbors are mined all the same."""
    changes = {"save_steps": 1}
    expected = start(str(tmp_path / "whole"), "isl", **changes).result()
    with pytest.raises(ChildProcessError, match="exit code -9"):
        start(str(tmp_path / "cut"), "isl", False, between_the_last_saves, kill, **changes).result()
    assert (tmp_path / "cut" / "checkpoint-13").is_dir()
    assert start(str(tmp_path / "cut"), "isl", True, **changes).result() == expected


@pytest.mark.slow
def test_kill_where_only_the_best_is_saved(tmp_path):
    """Each stage leaves something to begin at, best or not."""
    changes = {"save_strategy": "best"}
    expected = start(str(tmp_path / "whole"), "isl", **changes).result()
    with pytest.raises(ChildProcessError, match="exit code -9"):
        start(str(tmp_path / "cut"), "isl", False, second_gan_epoch, kill, **changes).result()
    assert (tmp_path / "cut" / "checkpoint-10" / rounds_isl.ROUNDS_NAME).is_file()
    assert start(str(tmp_path / "cut"), "isl", True, **changes).result() == expected


def test_stopped_without_checkpoints(tmp_path, whole):
    """Also where no checkpoints were asked for, one is left."""
    expected = start(str(tmp_path / "whole"), "isl", save_strategy="no").result()
    with pytest.raises(ChildProcessError, match="Stopped by SIGTERM after step 10"):
        start(str(tmp_path / "cut"), "isl", False, first_mining, terminate, save_strategy="no").result()
    assert start(str(tmp_path / "cut"), "isl", True, save_strategy="no").result() == expected


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "a flipped bit", "gone"])
def test_damaged_stage(tmp_path, whole, damage):
    """The stage begins anew, from the checkpoint, and comes to the same."""
    with pytest.raises(ChildProcessError, match="exit code -9"):
        start(str(tmp_path), "isl", False, first_mining, kill).result()
    path = tmp_path / "checkpoint-10" / rounds_isl.STAGE_NAME
    if damage == "gone":
        path.unlink()
    elif damage == "a flipped bit":
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        os.truncate(path, 1000)
    assert start(str(tmp_path), "isl", True).result() == whole("isl")


def run_rank(folder: str, resume: bool, place: Any, action: Any, hit: tuple[int, ...]) -> dict[str, Any]:
    is_hit = int(os.environ["RANK"]) in hit
    return run(folder, "isl", resume, place if is_hit else None, action, per_device_train_batch_size=4, close=True)


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory):
    return run_ranks(run_rank, 2, str(tmp_path_factory.mktemp("two")), False, None, None, ())


@pytest.mark.slow
@pytest.mark.parametrize("place", [second_gan_epoch, first_mining])
def test_one_of_two_is_stopped(tmp_path, whole_of_two, place):
    """Both stop after the same batch."""
    for rank in start_ranks(run_rank, 2, str(tmp_path), False, place, terminate, (1,)):
        with pytest.raises(ChildProcessError, match="Stopped by SIGTERM after step 10"):
            rank.result()
    assert run_ranks(run_rank, 2, str(tmp_path), True, None, None, ()) == whole_of_two


@pytest.mark.slow
def test_one_of_two_is_killed(tmp_path, whole_of_two):
    for number, rank in enumerate(start_ranks(run_rank, 2, str(tmp_path), False, second_gan_epoch, kill, (1,))):
        with pytest.raises(ChildProcessError):
            rank.result(timeout=60)
        assert rank.process.exitcode not in (0, None), number
    assert run_ranks(run_rank, 2, str(tmp_path), True, None, None, ()) == whole_of_two
