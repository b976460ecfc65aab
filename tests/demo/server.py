"""The page of `hf-ssl demo` in a process of its own, and a client that sends it anything.

    def test_something(demo, photos):                     # the fixtures of tests/demo/conftest.py: one server for all tests
        trained, untrained, words, numbers = demo.ask("retrieve", demo.upload(photos / "query.png"), 3, None, None)
        with pytest.raises(Refused, match="whole number"):
            demo.ask("retrieve", demo.upload(photos / "query.png"), 2.5, None, None)
        demo.url, demo.client()                           # for a browser, and for gradio_client

`with serve_demo(folder, "--model", …) as demo:` serves another one. When it ends, the server is sent SIGTERM, and has to have
deleted what was uploaded.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from gradio_client import Client

from ..hub_server import hf_ssl


class Refused(Exception):
    """What the server answers to something that it does not do: `message`, and the HTTP `status`."""

    def __init__(self, message: Any, status: int = 200):
        super().__init__(f"{status}: {message}")
        self.message, self.status = message, status


@dataclass
class Demo:
    """
    A page that is served.

    Args:
        url (`str`): Where.
        process (`subprocess.Popen`): The server.
        folder (`Path`): Its home, `home/`, and its temporary files, `tmp/`.
    """

    url: str
    process: subprocess.Popen
    folder: Path

    def __post_init__(self) -> None:
        self.http = httpx.Client(timeout=60)

    def client(self) -> Client:
        """A new client of gradio_client."""
        return Client(self.url, verbose=False, download_files=str(self.folder / "downloads"))

    def send(self, path: str, **request: Any) -> httpx.Response:
        """Send a POST request to an address of the page's API."""
        return self.http.post(f"{self.url}/gradio_api/{path}", **request)

    def upload(self, content: bytes | Path, name: str | None = None) -> dict[str, Any]:
        """Upload a file; what functions of the page are given in its place."""
        if isinstance(content, Path):
            name, content = name or content.name, content.read_bytes()
        answer = self.send("upload", files={"files": (name or "photo.png", content)})
        if answer.status_code != 200:
            raise Refused(answer.text, answer.status_code)
        return as_file(answer.json()[0])

    def ask(self, endpoint: str, *values: Any) -> list[Any]:
        """Call a function by its name; what it returns. Raises [`Refused`]."""
        return self.wait(self.post(f"call/{endpoint}", {"data": values}))

    def post(self, path: str, body: Any) -> str:
        """Send anything (bytes as they are, other things as JSON) to an address that begins events; the event's id."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        begun = self.send(path, content=content, headers={"Content-Type": "application/json"})
        if begun.status_code != 200:
            raise Refused(begun.text, begun.status_code)
        return begun.json()["event_id"]

    def wait(self, event: str) -> list[Any]:
        """What an event comes to."""
        answer = self.http.get(f"{self.url}/gradio_api/call/any/{event}")
        events = [part.split("\ndata: ") for part in answer.text.strip().split("\n\n")]
        kind, text = events[-1]
        value = json.loads(text)
        if kind != "event: complete":
            raise Refused(value["error"] if isinstance(value, dict) else value)
        return value

    def download(self, file: dict[str, Any]) -> bytes:
        """A file that a function has returned."""
        return self.http.get(file["url"]).raise_for_status().content

    def temporary_files(self) -> list[Path]:
        """What the server has in its temporary folders now."""
        return [path for path in (self.folder / "tmp").rglob("*") if path.is_file()]

    def memory(self) -> int:
        """Bytes of memory that the server keeps, without garbage."""
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(2)
        return psutil.Process(self.process.pid).memory_info().rss

    def log(self) -> str:
        """What the server has printed."""
        return (self.folder / "log.txt").read_text(errors="replace")


# The signal has garbage collected: what is left is what is kept.
COLLECT_GARBAGE = "import gc, signal\nsignal.signal(signal.SIGUSR1, lambda *_: gc.collect())\n"


def as_file(path: Any, **others: Any) -> dict[str, Any]:
    """What clients send in the place of a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **others}


@contextmanager
def serve_demo(
    folder: Path,
    *arguments: str | Path,
    before: str = "",
    end: signal.Signals = signal.SIGTERM,
    timeout: float = 180,
    **environment: str,
) -> Iterator[Demo]:
    """
    Serve the page as long as the context lasts.

    Args:
        folder (`Path`): A new folder for its home and its temporary files.
        arguments (`str` or `Path`): Of `hf-ssl demo`.
        before (`str`, *optional*): Python code that the server runs first.
        end (`signal.Signals`, *optional*, defaults to `SIGTERM`): How it is ended.
        timeout (`float`, *optional*, defaults to 180): Seconds until it has to answer.
        environment (`str`): Other environment variables.
    """
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    own = {
        "HF_HOME": str(folder / "home/huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "GRADIO"))
    }
    python, flag, code, *rest = hf_ssl("demo", *arguments)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [python, flag, f"{COLLECT_GARBAGE}{before}\n{code}", *rest],
            env=inherited | own | environment,
            cwd=folder / "home",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    demo = Demo("", process, folder)
    try:
        demo.url = wait_for_url(demo, timeout)
        yield demo
        assert process.poll() is None, f"The server has ended.\n{demo.log()[-4000:]}"
        process.send_signal(end)
        assert process.wait(30) == 0, demo.log()[-4000:]
        left = [path.name for path in (folder / "tmp").iterdir() if path.name.startswith("hf_ssl")]
        assert not left, f"The server has left {left} behind."
    finally:
        process.kill()
        process.wait()


def wait_for_url(demo: Demo, timeout: float) -> str:
    """Where the server says that it listens: it takes the first port that is free."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        assert demo.process.poll() is None, f"The server did not start.\n{demo.log()[-4000:]}"
        said = re.search(r"Running on local URL: *(http://[\w.:]+)", demo.log())
        if said:
            return said[1]
        time.sleep(0.1)
    raise AssertionError(f"The server did not answer in {timeout} seconds.\n{demo.log()[-4000:]}")
