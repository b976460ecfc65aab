"""The page for visitors: seconds to its first answer, of a retrieval query, and of a match of two photos.

    python benchmarks/demo.py

`hf-ssl demo` is started as a visitor's host would, asked through its API as a program would, and started again, when the
features of the embedded images are kept. Matches are those of a ViT-S/16 with random weights, of two photos of 224 pixels
that it has not seen before; and of the same photos again, as a visitor who moves the slider asks for them. Wall times on
this machine, medians and the largest.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from transformers import ViTConfig, ViTModel

from hf_ssl.hub import evaluation_processor, save_published


# What a page for any encoder needs, without this library.
PACKAGES = "import gradio, sklearn.datasets, torchvision; from transformers import AutoImageProcessor, ViTModel"
SEARCHING = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": 16, "patch_size": 4}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_encoder(folder: Path, name: str, **sizes: int) -> Path:
    """A vision transformer with random weights, published."""
    config = ViTConfig(pooler_act="linear", **sizes)
    save_published(ViTModel(config), evaluation_processor(config.image_size, MEAN, STD), folder / name)
    return folder / name


def make_photos(folder: Path, count: int) -> list[Path]:
    """Different crops of scikit-learn's photos."""
    photos, generator = [Image.fromarray(image) for image in load_sample_images().images], np.random.default_rng(0)
    paths = []
    for i in range(count):
        left, top = (int(generator.integers(0, side - 224)) for side in photos[i % 2].size)
        paths.append(folder / f"photo-{i}.png")
        photos[i % 2].crop((left, top, left + 224, top + 224)).save(paths[-1])
    return paths


def digit(folder: Path, i: int) -> Path:
    path = folder / f"digit-{i}.png"
    Image.fromarray((load_digits().images[i] * 255 / 16).astype("uint8")).convert("RGB").save(path)
    return path


@contextmanager
def serve(models: list[str], cache: Path) -> Iterator[tuple[Client, float]]:
    """The page, once it listens, and when it was started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from hf_ssl.cli import main; main()", "demo", "--model", *models]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port), "--cache_dir", str(cache)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit("The page did not start: run `hf-ssl demo` to see why.")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield Client(f"http://127.0.0.1:{port}", verbose=False, download_files=False), started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def timed(calls: list[Callable[[], Any]]) -> str:
    """Median and largest of the seconds that calls take, one after the other."""
    seconds = []
    for call in calls:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return f"{statistics.median(seconds) * 1000:6.0f} ms (largest {max(seconds) * 1000:.0f} ms, {len(calls)} calls)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder of the encoder that searches; unset, a small one with random weights.")
    parser.add_argument("--rounds", type=int, default=20, help="Queries, and matches.")
    args = parser.parse_args()
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", PACKAGES], check=True)
    print(f"Imports of torch, transformers and gradio alone: {time.perf_counter() - start:.1f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = make_encoder(folder, "vit-small", hidden_size=384, num_attention_heads=6, intermediate_size=1536)
        models = [args.model or str(make_encoder(folder, "searching", **SEARCHING)), str(small)]
        photos = make_photos(folder, 2 * args.rounds)
        digits = [handle_file(digit(folder, i)) for i in range(args.rounds)]
        for which in ("first start", "second start"):
            with serve(models, folder / "cache") as (client, started):
                client.predict(digits[0], 8, None, None, api_name="/retrieve")
                print(f"{which}: {time.perf_counter() - started:.1f} s to the first answer")
                if which == "second start":
                    measure(client, digits, photos)


def measure(client: Client, digits: list[Any], photos: list[Path]) -> None:
    """Print what queries and matches take."""

    def retrieve(photo: Any, endpoint: str = "/retrieve") -> Callable[[], Any]:
        arguments = (photo, 8, None, None) if endpoint == "/retrieve" else (photo, None, None)
        return lambda: client.predict(*arguments, api_name=endpoint)

    def match(first: Path, second: Path) -> Callable[[], Any]:
        photos = {"first": handle_file(first), "second": handle_file(second)}
        return lambda: client.predict(**photos, kind="own", encoder="vit-small", api_name="/match")

    print(f"retrieval query: {timed([retrieve(photo) for photo in digits])}")
    print(f"its chart:       {timed([retrieve(photo, '/similarity_bars') for photo in digits])}")
    pairs = list(zip(photos[::2], photos[1::2], strict=True))
    match(*pairs[0])()  # the encoder is loaded
    print(f"match:           {timed([match(*pair) for pair in pairs[1:]])}")
    print(f"the same again:  {timed([match(*pair) for pair in pairs[-10:]])}")


if __name__ == "__main__":
    main()
