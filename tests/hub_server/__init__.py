"""A Hugging Face Hub for tests: on loopback, in memory, for the real huggingface_hub, transformers and datasets.

    def test_something(hub, tmp_path):                       # the fixture of tests/conftest.py: a new, empty Hub
        hub.create_repository("org/vit", folder=tmp_path)    # without a client; private=True, gated="auto", kind="dataset"
        run_with_hub(hub, "from transformers import AutoModel; AutoModel.from_pretrained('org/vit')", home=tmp_path / "a")
        run_with_hub(hub, hf_ssl("push", "outputs/x", "org/x"), home=tmp_path / "b", token=hub.tokens["alice"])
        assert len(hub.repository("org/x").history()) == 1   # one commit
        assert hub.repository("org/x").paths() == {"config.json", "model.safetensors"}
        assert hub.repository("org/x").read("config.json") == b"..."

huggingface_hub reads its environment when it is imported, so clients are processes of their own. `home` holds their caches:
a new folder is a new machine, and the same one has what was downloaded before. `with as_client(hub, home, token):` makes a
client of the pytest process, which is quicker; but only of HfApi: others would still use the caches of this machine.

People: `hub.tokens` has "alice", who may also write to `org`; "reader", a token of alice's that may only read; and "bob". Any
other token is a wrong one, and no token is a stranger.

What happened: `Repository.history()` (commits with their `operations`, which leave out files that did not change),
`.branches` and `.tags` (commits by name), `hub.uploads` (sha256 of every large file that was sent), `hub.requests` (method,
path, status). A test that needs something to happen in the middle sets `hub.before_request`, a function of method and path
that may change the Hub, or refuse the request by `(status, message)` and, if the Hub has one for the error, its code.

It is what the clients call, not the Hub's whole behavior: no xet, pull requests, redirects, or slashes in names of branches.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from huggingface_hub import constants

from .app import make_app
from .store import TOKENS, Account, Commit, File, Repository, is_large, make_token


__all__ = [
    "Account",
    "Commit",
    "File",
    "Hub",
    "Refused",
    "Repository",
    "as_client",
    "hf_ssl",
    "run_with_hub",
    "serve_hub",
]


Refused = tuple[int, str] | tuple[int, str, str]


class Hub:
    """All that the server knows; tests look into it while the server runs in a thread."""

    def __init__(self, url: str):
        self.url = url
        self.tokens = {name: make_token(name) for name in ("alice", "reader", "bob")}
        assert set(self.tokens.values()) == set(TOKENS)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.requests: list[tuple[str, str, int]] = []
        self.before_request: Callable[[str, str], Refused | None] = lambda method, path: None

    def create_repository(
        self,
        repo_id: str,
        folder: str | Path | None = None,
        kind: str = "model",
        private: bool = False,
        gated: bool | str = False,
    ) -> Repository:
        """
        Make a repository, without a client.

        Args:
            repo_id (`str`): Its name, such as org/vit.
            folder (`str` or `Path`, *optional*): Everything in it becomes the first commit.
            kind (`str`, *optional*, defaults to `"model"`): Or dataset, or space.
            private (`bool`, *optional*, defaults to `False`): For its namespace only.
            gated (`bool` or `str`, *optional*, defaults to `False`): For those who accepted its terms (`granted`).

        Returns:
            [`Repository`].
        """
        repository = Repository(kind, repo_id, private=private, gated=gated)
        self.repositories[kind, repo_id] = repository
        if folder is not None:
            paths = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
            contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
            files = {path: File(content, is_large(path, len(content))) for path, content in contents.items()}
            self.large_files |= {file.sha256: file.content for file in files.values() if file.large}
            repository.commit("main", repository.namespace, "Upload", files)
        return repository

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        """A repository that was made."""
        return self.repositories[kind, repo_id]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A new, empty Hub, served as long as the context lasts (for a fixture with another scope than a test's)."""
    listening = socket.create_server(("127.0.0.1", 0))
    hub = Hub(f"http://127.0.0.1:{listening.getsockname()[1]}")
    # Clients keep connections for reuse, and fail if a connection has been closed meanwhile.
    config = uvicorn.Config(make_app(hub), log_level="warning", timeout_keep_alive=600, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


@contextmanager
def as_client(hub: Hub, home: Path, token: str | None = None) -> Iterator[None]:
    """
    Let this process ask a Hub, by way of `HfApi`.

    Args:
        hub ([`Hub`]): The Hub.
        home (`Path`): As for [`run_with_hub`].
        token (`str`, *optional*): As for [`run_with_hub`].
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH", "AGENT_HARNESSES_PATH"):
            patch.setattr(constants, name, str(home / "huggingface" / name))
        patch.setenv("HF_TOKEN", token or "")
        yield


def hf_ssl(*arguments: str | Path) -> list[str]:
    """The command `hf-ssl …`."""
    return [sys.executable, "-c", "from hf_ssl.cli import main; main()", *map(str, arguments)]


def run_with_hub(
    hub: Hub | None,
    command: str | Sequence[str],
    home: Path,
    token: str | None = None,
    check: bool = True,
    timeout: float = 300,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """
    Run a client of a Hub in its own process.

    Args:
        hub ([`Hub`]): The Hub; None for an address at which there is none.
        command (`str` or `Sequence[str]`): Python code, or a command.
        home (`Path`): Folder of the caches, made if need be; it is also the current directory.
        token (`str`, *optional*): Such as `hub.tokens["alice"]`; unset, a stranger.
        check (`bool`, *optional*, defaults to `True`): Whether a failure fails the test, with what the process printed.
        timeout (`float`, *optional*, defaults to 300): Seconds.
        environment (`str`): Other environment variables.

    Returns:
        `subprocess.CompletedProcess`: with `returncode`, `stdout` and `stderr`.
    """
    home.mkdir(parents=True, exist_ok=True)
    own = {
        "HF_ENDPOINT": "http://127.0.0.1:9" if hub is None else hub.url,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", command] if isinstance(command, str) else command,
        env=inherited | own | ({"HF_TOKEN": token} if token else {}) | environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"Exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
    return done
