"""The Space: the page of `hf-ssl demo` for the encoders in `models/`, or for those that the variable MODELS names."""

import os
from pathlib import Path


os.environ.setdefault("GRADIO_TEMP_DIR", "/tmp/hf_ssl-demo")  # before gradio is imported

from hf_ssl.data import load_image_data
from hf_ssl.demo import Collection, EncoderShelf, build_demo, launch


here = Path(__file__).parent
models = os.environ.get("MODELS", "").split() or sorted(map(str, (here / "models").glob("*/")))
if not models:
    raise SystemExit(
        "There is no encoder: put folders into models/ with assemble.py, or set the variable MODELS to ids of the Hub."
    )

shelf = EncoderShelf(models)
collection = Collection(load_image_data(os.environ.get("DATASET", "digits")))
launch(build_demo(shelf, collection))
