"""A page for visitors: retrieval, patch matching and a look inside of any encoder. It needs gradio."""

import os
import tempfile


# Before gradio is imported. The folder must be ours alone: what is old in it is deleted.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_TEMP_DIR", os.path.join(tempfile.gettempdir(), "hf_ssl-demo"))

try:
    import gradio  # noqa: F401
except ImportError as error:
    raise ImportError('The demo needs gradio: run `pip install "hf_ssl[space]"`.') from error

from .app import build_demo, launch
from .collection import Collection
from .encoders import EncoderShelf


__all__ = ["Collection", "EncoderShelf", "build_demo", "launch"]
