"""The page as a whole: what waits for what, and what programs may ask for."""

from pathlib import Path

import gradio as gr
import pytest

from hf_ssl.data import load_image_data
from hf_ssl.demo import Collection, EncoderShelf, build_demo


@pytest.fixture(scope="module")
def page(encoder: Path, photos: Path) -> gr.Blocks:
    return build_demo(EncoderShelf([str(encoder)]), Collection(load_image_data(str(photos))))


def test_endpoints(page):
    named = page.get_api_info()["named_endpoints"]
    assert set(named) == {
        *("/describe", "/retrieve", "/similarity_bars", "/match", "/similarity", "/augmented_view"),
        *("/attention", "/patch_colors", "/training_views"),
    }
    assert all(event["description"] for event in named.values())
    results = [result["label"] for event in named.values() for result in event["returns"]]
    assert results and not any(label.startswith("value_") for label in results), "results have names"


def test_answers_are_not_summed_up_each_time(page):
    """Gradio would, in a table that grows; what tells it otherwise are environment variables."""
    assert page._queue.ANAYLTICS_CACHE_FREQUENCY == page._queue.ANALYTICS_MAX_EVENTS == 1000


def test_functions_that_wait(page):
    """
    Gradio's page has a function that was asked for while it ran, "always_last", run again when it is done; by its event,
    which runs the others of this event too. Two such functions of one event would keep each other busy forever.
    """
    waiting = {}
    for block_fn in page.fns.values():
        for event in block_fn.targets:
            # A function of the browser is never busy. What comes after another function has no event.
            if block_fn.fn is not None and event[1] not in ("then", "success"):
                waiting.setdefault(event, []).append(block_fn)
    assert len(waiting) > 10
    several = {event: block_fns for event, block_fns in waiting.items() if len(block_fns) > 1}
    assert [event for _, event in several] == ["load"]  # which happens once
    # After another function, too: it is done again by itself, without those that stand beside it.
    after = [block_fn.trigger_after for block_fn in page.fns.values() if block_fn.trigger_after is not None]
    of_python = [one for one in set(after) if sum(page.fns[i].fn is not None for i in followers(page, one)) > 1]
    assert not of_python


def followers(page: gr.Blocks, number: int) -> list[int]:
    return [i for i, block_fn in page.fns.items() if block_fn.trigger_after == number]


def test_nothing_is_left_out(page):
    """What visitors do while a function runs is done afterwards; only buttons do not count twice."""
    for block_fn in page.fns.values():
        events = {event for _, event in block_fn.targets} - {"then", "success"}
        if block_fn.fn is None or not events or events & {"load", "click"} or block_fn.api_visibility == "public":
            continue
        if events == {"select"} and block_fn.inputs:  # Gradio would repeat the first click, not the last
            assert (block_fn.trigger_mode, block_fn.concurrency_limit) == ("multiple", 1)
        elif events != {"select"}:
            assert block_fn.trigger_mode == "always_last", (events, block_fn.name)
