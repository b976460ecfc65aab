"""A page for visitors: retrieval, patch matching and a look inside of any encoder. It needs gradio."""

import os

from . import folders  # before gradio is imported, which is told where files are


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# After each answer, Gradio would sum up the last 10,000 in pandas, for its page /monitoring: longer and longer.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise ImportError('The demo needs gradio: run `pip install "hf_ssl[space]"`.') from error

from .app import build_demo, launch
from .collection import Collection
from .encoders import EncoderShelf


__all__ = ["Collection", "EncoderShelf", "build_demo", "folders", "launch"]
