"""What was made last is kept, made once however many wait for it, and forgotten in the order of its use."""

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_ssl.demo.recent import Recent


@given(st.integers(1, 4), st.lists(st.integers(0, 6), max_size=40))
def test_the_last_ones_are_kept(size, keys):
    recent, made, kept = Recent(size), [], OrderedDict()
    for key in keys:
        assert recent.get(key, lambda key=key: made.append(key) or f"thing {key}") == f"thing {key}"
        is_new = key not in kept
        kept[key] = True
        kept.move_to_end(key)
        if len(kept) > size:
            kept.popitem(last=False)
        assert (made[-1:] == [key] and is_new) or not is_new
        assert list(recent._made) == list(kept)


def test_many_wait_for_one():
    recent, made, barrier = Recent(2), [], threading.Barrier(8)

    def make() -> object:
        made.append(threading.get_ident())
        time.sleep(0.2)
        return object()

    def ask(_: int) -> object:
        barrier.wait()
        return recent.get("key", make)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(made) == 1 and all(one is found[0] for one in found)


def test_others_do_not_wait():
    recent, started, go_on = Recent(2), threading.Event(), threading.Event()

    def make_slowly() -> str:
        started.set()
        assert go_on.wait(30)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(recent.get, "slow", make_slowly)
        assert started.wait(30)
        for key in range(3):  # which push it out while it is made
            assert recent.get(key, lambda key=key: key) == key
        go_on.set()
        assert slow.result(30) == "slow"
    assert recent.get("slow", lambda: "again") == "again"


def test_errors_are_raised_to_all_and_forgotten():
    recent, barrier, calls = Recent(2), threading.Barrier(4), []

    def fail() -> None:
        calls.append(1)
        time.sleep(0.2)
        raise ValueError("It cannot be made.")

    def ask(_: int) -> str:
        barrier.wait()
        with pytest.raises(ValueError, match="It cannot be made"):
            recent.get("key", fail)
        return "raised"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["raised"] * 4
    assert len(calls) == 1
    assert recent.get("key", lambda: "made") == "made"
