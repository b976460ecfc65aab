"""Files of visitors are deleted after a while, and pictures are whole whenever they are looked at."""

import asyncio
import signal
import threading
import time
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from hf_ssl.demo import uploads
from hf_ssl.demo.page import Page
from hf_ssl.demo.uploads import delete_old, deletes_uploads

from .server import serve_demo


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return tmp_path / "uploads"


def put(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    return folder / name


def test_old_ones(folder):
    gone = [put(folder, name) for name in ("a/photo.png", "b/deep/er/x", ".hidden", "c")]
    (folder / "empty").mkdir()
    kept = put(folder.parent, "of somebody else")
    time.sleep(0.4)
    young = [put(folder, name) for name in ("a/other.png", "d/e")]
    delete_old(folder, 0.3, 1000)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in (*young, kept))
    assert not (folder / "empty").exists() and (folder / "a").exists()
    for _ in range(4):  # folders are as old as what was deleted in them
        time.sleep(0.4)
        delete_old(folder, 0.3, 1000)
    assert folder.exists() and not list(folder.iterdir())
    delete_old(folder / "that is not there", 0, 1000)


def test_all_of_them_are_not_too_large(folder):
    paths = []
    for number in range(5):
        paths.append(put(folder, f"{number}/x"))
        paths[-1].write_bytes(bytes(1000))
        time.sleep(0.01)
    delete_old(folder, 60, 3500)
    assert [path.exists() for path in paths] == [False, False, True, True, True]


def test_what_is_in_use_stops_nothing(folder, monkeypatch):
    paths = [put(folder, name) for name in ("a", "b", "c")]
    unlink = Path.unlink

    def refuse(path: Path, *arguments: bool) -> None:
        if path.name == "b":
            raise PermissionError(path)
        unlink(path, *arguments)

    monkeypatch.setattr(Path, "unlink", refuse)
    delete_old(folder, -1, 1000)
    assert [path.exists() for path in paths] == [False, True, False]


def test_as_long_as_the_server_runs(folder, monkeypatch):
    """Files come while others are deleted."""
    monkeypatch.setattr(uploads, "MAX_AGE", 0.2)
    monkeypatch.setattr(uploads, "INTERVAL", 0.02)
    end, stop = time.monotonic() + 1.5, threading.Event()

    def upload() -> None:
        number = 0
        while not stop.is_set():
            put(folder, f"{number}/x")
            number += 1
            time.sleep(0.001)

    thread = threading.Thread(target=upload)

    async def serve() -> list[float]:
        ages = []
        async with deletes_uploads(None):
            thread.start()
            while time.monotonic() < end:
                await asyncio.sleep(0.1)
                for path in folder.glob("*/x"):
                    try:
                        ages.append(time.time() - path.stat().st_ctime)
                    except FileNotFoundError:
                        continue
            stop.set()
            thread.join()
            await asyncio.sleep(1)
            assert not list(folder.glob("*/x"))
        return ages

    ages = asyncio.run(serve())
    assert len(ages) > 100 and max(ages) < 1.0
    left = put(folder, "later")
    time.sleep(0.4)
    assert left.exists()  # nobody deletes it any more


def test_pictures_are_whole(folder):
    """One that is written again and again is read by others meanwhile."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    with Page() as page:
        image, gallery, state, number = gr.Image(format="png"), gr.Gallery(format="png"), gr.State(), gr.Number()
        gr.Button().click(lambda: None, None, [image, gallery, state, number])
        gr.Button().click(lambda: None, None, image)
    several, one = page.fns.values()

    def make() -> list:
        values = (picture, [(picture, "words")], picture, 3)
        return asyncio.run(page.postprocess_data(several, values, None))

    data = make()
    paths = {Path(data[0]["path"]), Path(data[1][0]["image"]["path"])}
    (path,) = paths
    assert data[1][0]["caption"] == "words" and data[3] == 3 and folder in path.parents
    (same,) = asyncio.run(page.postprocess_data(one, picture, None))
    assert same["path"] == str(path) and len(list(folder.rglob("*.png"))) == 1
    expected, sizes, stop = path.read_bytes(), set(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            sizes.add(len(path.read_bytes()))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(30):
        make()
    stop.set()
    thread.join()
    assert sizes == {len(expected)}
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(picture))
    assert [file.name for file in path.parent.iterdir()] == ["image.png"]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_ends_while_it_computes(encoder, photos, tmp_path, end):
    """Python does not crash beneath threads that go on, and nothing is left behind: see [`serve_demo`]."""
    with serve_demo(tmp_path, "--model", encoder, end=end) as demo:  # with an index of 1,437 images to make
        demo.post("call/retrieve", {"data": [demo.upload(photos / "test/flowers/10.png"), 3, None, None]})
        time.sleep(1)
        assert [path for path in demo.temporary_files() if "hf_ssl-demo" in str(path)]
