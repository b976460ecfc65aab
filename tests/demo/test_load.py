"""Many visitors at once: all are answered, and the server keeps neither memory nor files of them."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from hf_ssl.models import METHODS

from ..marks import slow
from .server import Demo, serve_demo


CLIENTS = 8
AGE = 30  # seconds after which the server of the long test deletes files
SIZE, LARGE_SIZE = (1600, 1200), (5000, 4000)  # of photos: 2 million pixels, 6 MB in memory; and 20 million, 60 MB

# What is asked of a photo, and what is in the answer.
QUESTIONS = [
    ("/retrieve", (4, None, None), "The nearest of 20 images of photos."),
    ("/similarity_bars", (None, None), "image.png"),
    ("/match", (None, "view", 3, None, -1, "encoder"), "each the other's nearest"),
    ("/similarity", (None, "view", 3, None, 800, 600, "first"), "The patch at x 800, y 600 of the first photo"),
    ("/attention", (None, "heat", 0.6), "3 heads; 4 x 4 patches."),
    ("/patch_colors", (None,), "in 4 x 4 patches."),
    *(("/training_views", (name, 3), method.summary) for name, method in METHODS.items()),
]


@pytest.fixture
def served(request: pytest.FixtureRequest, encoder: Path, photos: Path, tmp_path: Path) -> Iterator[Demo]:
    """The server of all tests, or one that deletes files sooner."""
    if request.param < 60:
        yield request.getfixturevalue("demo")
        return
    before = f"import hf_ssl.demo.uploads as uploads; uploads.MAX_AGE, uploads.INTERVAL = {AGE}, 1"
    arguments = ("--model", encoder, "--dataset", photos)
    with serve_demo(tmp_path, *arguments, before=before, GRADIO_TEMP_DIR=str(tmp_path / "tmp/gradio")) as demo:
        yield demo


def make_photo(number: int, size: tuple[int, int], folder: Path) -> Path:
    """Each is another one."""
    photo = Image.fromarray(load_sample_images().images[number % 2]).resize(size)
    ImageDraw.Draw(photo).text((10, 10), str(number), font_size=200)
    photo.save(folder / f"{number}.jpg", quality=60)
    return folder / f"{number}.jpg"


def ask(client: Client, question: int, photo: Path) -> None:
    endpoint, values, expected = QUESTIONS[question % len(QUESTIONS)]
    answer = client.predict(handle_file(photo), *values, api_name=endpoint)
    assert expected in str(answer), answer


@pytest.mark.parametrize(("served", "seconds"), [(5, 5), slow(60, 60)], indirect=["served"])
def test_many_clients(served: Demo, seconds: int, tmp_path: Path):
    """Who ask for all kinds of things by turns; in the long test, one of them about large photos."""
    clients = [served.client() for _ in range(CLIENTS)]
    folders = [tmp_path / f"client-{i}" for i in range(CLIENTS)]

    def visit(number: int, end: float) -> int:
        """Ask until the time is over, and at least so often that all together have asked for everything; how often."""
        folders[number].mkdir(exist_ok=True)
        size = LARGE_SIZE if seconds >= 60 and number == 0 else SIZE
        count = 0
        while count * CLIENTS < len(QUESTIONS) or time.monotonic() < end:
            photo = make_photo(number + CLIENTS * time.monotonic_ns(), size, folders[number])
            ask(clients[number], number + CLIENTS * count, photo)
            photo.unlink()
            count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        warm = time.monotonic() + seconds / 2  # until all that is made once is made, and each thread has its memory
        list(pool.map(visit, range(CLIENTS), [warm] * CLIENTS))
        before, end = served.memory(), time.monotonic() + seconds
        counts = list(pool.map(visit, range(CLIENTS), [end] * CLIENTS))
    grown = served.memory() - before
    photos = sum(counts) * 3 * SIZE[0] * SIZE[1]
    assert grown < photos / 2, f"{grown / 2**20:.0f} MB more after photos of {photos / 2**20:.0f}"
    assert served.ask("describe", None)[0].startswith("**tiny**")
    print(f"{sum(counts)} answers in {seconds} s, {grown / 2**20:.0f} MB more, of {before / 2**20:.0f}")
    if seconds >= 60:
        check_files(served)


def check_files(demo: Demo) -> None:
    """Old ones were deleted all the while, and at last all are."""
    now = time.time()
    assert max(now - path.stat().st_ctime for path in demo.temporary_files()) < AGE + 5
    time.sleep(AGE + 3)
    assert not [path for path in demo.temporary_files() if "hf_ssl-demo" in str(path)]
