"""A page for visitors: retrieval, patch matching and a look inside of any encoder. It needs gradio."""

import os

from . import folders  # before gradio is imported, which is told where files are


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise ImportError('The demo needs gradio: run `pip install "hf_ssl[space]"`.') from error

from .app import build_demo, launch
from .collection import Collection
from .encoders import EncoderShelf


__all__ = ["Collection", "EncoderShelf", "build_demo", "folders", "launch"]
