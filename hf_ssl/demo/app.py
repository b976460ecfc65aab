"""The page: a choice of the encoder, and a tab for each way to look through it."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import gradio as gr

from .collection import Collection
from .encoders import EncoderShelf, encoder_input
from .inside import inside_tab
from .matching import matching_tab
from .page import UNCLEAR_REQUESTS, Page
from .photos import MAX_BYTES
from .retrieval import retrieval_tab
from .uploads import deletes_uploads


_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 4 * 2**20  # bytes: Pillow's blocks, and not what encoders compute again and again

_TITLE = """
# What self-supervised encoders see

Encoders that learned from images alone, without labels: what they take for alike, which parts of two photos they match, and
what they look at.
"""
_ABOUT = """
Made with hf_ssl: APS, ISL, PatchMix, PW-Self and RelViT as one library. Photos that you upload are sent to nobody else, and
deleted within two hours.
"""
# Gradio tells wrong places of clicks into pictures that are shown larger than they are; and lays a picture that is looked at
# closely over its gallery, which cuts it off.
_CSS = """
.tiles .gallery-container:has(.preview) { min-height: 420px; }
.tiles .grid-container { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); }
.tiles.large .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); }
#patch-colors .grid-container { grid-template-columns: repeat(3, minmax(0, 224px)); }
.large:has(.empty) { display: none; }
.tiles .grid-wrap { min-height: 0; max-height: none; }
.tiles .gallery-container { height: auto; }
.photo img { width: 100%; height: 100%; object-fit: contain; }
.photo.true-size img { object-fit: scale-down; }
"""


def build_demo(shelf: EncoderShelf, collection: Collection) -> gr.Blocks:
    """
    Make the page.

    Args:
        shelf ([`~hf_ssl.demo.EncoderShelf`]): The encoders.
        collection ([`~hf_ssl.demo.Collection`]): The images to be found.

    Returns:
        `gradio.Blocks`: to be launched with [`launch`].
    """
    with Page(title="hf_ssl", analytics_enabled=False) as demo:
        gr.Markdown(_TITLE)
        encoder = encoder_input(shelf)
        about_encoder = gr.Markdown(label="About the encoder", elem_id="about-encoder")
        runs: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "describe"}
        to_describe: Any = (lambda encoder: shelf.get(encoder).describe(), encoder, about_encoder)
        about = "An encoder in words, loaded if need be: one that is listed, or an id of the Hub."
        gr.on([demo.load], *to_describe, api_name="describe", api_description=about, **runs)
        # The tabs go on when it is loaded: one that cannot be is an error once, not of all that they show.
        switched = gr.on([encoder.change], *to_describe, trigger_mode="always_last", api_visibility="private", **runs)
        with gr.Tab("Retrieval", id="retrieval"):
            retrieval_tab(shelf, collection, encoder, switched, demo)
        with gr.Tab("Patch matching", id="matching") as tab:
            matching_tab(shelf, collection, encoder, switched, tab)
        with gr.Tab("Look inside", id="inside") as tab:
            inside_tab(shelf, collection, encoder, switched, tab)
        gr.Markdown(_ABOUT)
    return demo.queue(max_size=100, default_concurrency_limit=8, api_open=False)


def _give_memory_back() -> None:
    """glibc would keep, for each of many threads, what large photos have needed. Elsewhere there is no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """
    Serve the page; of the options, `server_name` and `server_port` matter.

    Args:
        demo (`gradio.Blocks`): The page.
        options: Arguments of `gradio.Blocks.launch`.

    Returns:
        `Any`: what `gradio.Blocks.launch` does.
    """
    _give_memory_back()
    os.environ.setdefault("MPLBACKEND", "agg")  # Gradio asks which; matplotlib would import pyplot to find one
    return demo.launch(
        share=False,
        ssr_mode=False,
        run_history=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=500,  # of each, Gradio keeps a copy of the page
        _frontend=False,  # whether to give up if the first answer takes three seconds, as on a busy machine
        app_kwargs={
            "max_body_size": MAX_BYTES + 2**20,
            "exception_handlers": UNCLEAR_REQUESTS,
            "lifespan": deletes_uploads,
        },
        theme=gr.themes.Default(),
        css=_CSS,
        footer_links=["api", "settings"],
        **options,
    )
