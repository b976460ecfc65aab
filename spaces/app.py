"""The Space: the page of `hf-ssl demo` for the encoders in `models/`, or for those that the variable MODELS names."""

import os
from pathlib import Path

from hf_ssl.data import load_image_data
from hf_ssl.demo import Collection, EncoderShelf, build_demo, launch


here = Path(__file__).parent
models = os.environ.get("MODELS", "").split() or sorted(map(str, (here / "models").glob("*/")))
if not models:
    raise SystemExit(
        "There is no encoder: put folders into models/ with assemble.py, or set the variable MODELS to ids of the Hub."
    )

shelf = EncoderShelf(models)
shelf.load(shelf.names[0])  # what is wrong with it shows at once
collection = Collection(load_image_data(os.environ.get("DATASET", "digits")))
launch(build_demo(shelf, collection))
