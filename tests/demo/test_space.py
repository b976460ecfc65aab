"""The folder that is uploaded as a Space: it has all that it needs, and nothing that must not be public."""

import configparser
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from huggingface_hub import metadata_load

from ..processes import free_port


ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces"


def assemble(monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["assemble.py", *map(str, flags)])
    runpy.run_path(str(SPACE / "assemble.py"), run_name="__main__")


@pytest.fixture
def carded(encoder: Path) -> Path:
    """The encoder, as whole as a run leaves it."""
    (encoder / "README.md").write_text("---\nlicense: mit\n---\n\n# tiny\n")
    return encoder


def test_front_matter():
    about = metadata_load(SPACE / "README.md")
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert about["sdk"] == "gradio" and about["sdk_version"] == pinned["gradio"]
    assert (SPACE / about["app_file"]).is_file()
    assert len(about["short_description"]) <= 60  # the Hub's limit
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {about["colorFrom"], about["colorTo"]} <= colors


def test_requirements_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["space"]
    assert (SPACE / "requirements.txt").read_text().split() == needed.split()


def test_assemble(carded, tmp_path, monkeypatch, capsys):
    assemble(monkeypatch, "--model", carded, "--output_dir", tmp_path / "space")
    assert f"hf upload org/name {tmp_path / 'space'} . --repo-type space" in capsys.readouterr().out
    for name in ("app.py", "README.md", "requirements.txt", "hf_ssl/demo/app.py", "hf_ssl/scripts/demo.py"):
        assert (tmp_path / "space" / name).is_file(), name
    assert (tmp_path / "space/hf_ssl/scripts/recipes/relvit/default.yaml").is_file()
    published = {path.name for path in (tmp_path / "space/models/tiny").iterdir()}
    assert published == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "pretraining"}
    assert not (tmp_path / "space/models/tiny/pretraining/model.safetensors").exists()
    with pytest.raises(SystemExit, match="is not empty: name another folder"):
        assemble(monkeypatch, "--model", carded, "--output_dir", tmp_path / "space")


def test_what_must_not_be_public_is_refused(carded, tmp_path, monkeypatch):
    (carded / "all_results.json").write_text('{"note": "hf_' + "Ab3" * 11 + '"}')
    try:
        with pytest.raises(ValueError, match="all_results.json holds a token"):
            assemble(monkeypatch, "--model", carded, "--output_dir", tmp_path / "space")
    finally:
        (carded / "all_results.json").unlink()
    assert not (tmp_path / "space").exists()


@pytest.mark.slow
def test_space_runs(carded, tmp_path, monkeypatch):
    """As the Hub would run it: from its own folder, with the library that lies in it."""
    assemble(monkeypatch, "--model", carded, "--output_dir", tmp_path / "space")
    port = free_port()
    own = {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    own["GRADIO_TEMP_DIR"] = str(tmp_path / "uploads")
    code = "import runpy, sys; sys.path.insert(0, ''); import hf_ssl; print(hf_ssl.__file__, flush=True); "
    code += "runpy.run_path('app.py', run_name='__main__')"
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path / "space", env=os.environ | own, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            assert process.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
            try:
                config = httpx.get(f"http://127.0.0.1:{port}/config").json()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        named = {name for event in config["dependencies"] if (name := event["api_name"])}
        assert {"retrieve", "match", "similarity", "attention", "training_views"} <= named
        assert re.match(str(tmp_path / "space"), (tmp_path / "log.txt").read_text())
    finally:
        process.kill()
        process.wait()
