"""Many visitors at once: all are answered, and the server keeps neither memory nor files of them."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import handle_file
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from ..marks import slow
from .server import Demo, serve_demo


CLIENTS = 8
# Photos have 2 million pixels, 6 MB: a server that kept those of the shortest test would be over this. What was seen is 4 MB.
MEMORY = 32 * 2**20
AGE = 15  # seconds after which the server of the long test deletes files


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


def make_photo(number: int, folder: Path) -> Path:
    """Each is another one."""
    photo = Image.fromarray(load_sample_images().images[number % 2]).resize((1600, 1200))
    ImageDraw.Draw(photo).text((10, 10), str(number), font_size=200)
    photo.save(folder / f"{number}.jpg", quality=60)
    return folder / f"{number}.jpg"


@pytest.mark.parametrize(("served", "seconds"), [(5, 5), slow(60, 60)], indirect=["served"])
def test_many_clients(served: Demo, seconds: int, tmp_path: Path):
    clients = [served.client() for _ in range(CLIENTS)]
    folders = [tmp_path / f"client-{i}" for i in range(CLIENTS)]

    def visit(number: int, end: float) -> int:
        """Ask until the time is over, at least once; how often."""
        folders[number].mkdir(exist_ok=True)
        count = 0
        while count < 1 or time.monotonic() < end:
            photo = make_photo(number + CLIENTS * time.monotonic_ns(), folders[number])
            *galleries, words, numbers = clients[number].predict(
                handle_file(photo), 4, None, None, api_name="/retrieve"
            )
            assert len(numbers["data"]) == 4 and words == "The nearest of 20 images of photos."
            assert all(len(gallery) == 4 for gallery in galleries)
            if number < 2:
                clients[number].predict(handle_file(photo), None, None, api_name="/similarity_bars")
            photo.unlink()
            count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(visit, range(CLIENTS), [0.0] * CLIENTS))  # until all that is made once is made
        before, end = served.memory(), time.monotonic() + seconds
        counts = list(pool.map(visit, range(CLIENTS), [end] * CLIENTS))
    grown = served.memory() - before
    assert grown < MEMORY, f"{grown / 2**20:.0f} MB more after {sum(counts)} questions"
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
