"""Files of visitors: a photo, upright, or a refusal, whatever is in them. `test_hostile.py` sends more to the page."""

from io import BytesIO
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from gradio.data_classes import ImageData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_ssl.demo import photos
from hf_ssl.demo.photos import Photo, RefusedPhoto, photo_input, read_photo, take_photo

from .test_hostile import REFUSED_FILES, TAKEN, saved, upright


FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "JPEG2000",
    "ICO",
    "TGA",
    "PPM",
    "AVIF",
    "PCX",
    "SGI",
    "DDS",
    "MPO",
)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", TAKEN)
def test_pixels(tmp_path, name):
    content, mode = TAKEN[name]
    photo = read_photo(write(tmp_path / "photo", content))  # the name says nothing
    assert photo.image.mode == "RGB"
    expected = np.asarray(upright().convert(mode).convert("RGB"), int)
    assert np.abs(np.asarray(photo.image, int) - expected).max() <= (0 if "jp2" not in name else 2)


def test_digest(tmp_path):
    """It is that of the file: of another file it is another, even if pixels are the same."""
    first, second = (write(tmp_path / f"{i}.png", saved(upright(), "PNG", compress_level=i)) for i in (1, 9))
    digests = [read_photo(path).digest for path in (first, first, second)]
    assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 64
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path, mode):
    """As visitors see them; elsewhere in the library, the colors below them count."""
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (2, 0, 4, 2))
    image.convert(mode).save(tmp_path / "photo.png")
    pixels = np.asarray(read_photo(tmp_path / "photo.png").image)
    assert (pixels[:, :2] == 255).all() and (pixels[:, 2:] == 0).all()


def test_inputs(tmp_path):
    """They raise nothing: what cannot be taken is refused by what needs it."""
    with gr.Blocks():
        photo = photo_input("Photo")
    given = [
        photo.preprocess(ImageData(path=str(write(tmp_path / name, content))))
        for name, content in (("good.png", saved(upright(), "PNG")), ("bad.png", b""))
    ]
    assert take_photo(given[0], "None.").image.size == upright().size
    assert given[1] == RefusedPhoto("The file is empty. Choose another one.")
    for nothing, words in ((given[1], "The file is empty"), (photo.preprocess(None), "There is none.")):
        with pytest.raises(gr.Error, match=words):
            take_photo(nothing, "There is none.")


def test_limits(tmp_path, monkeypatch):
    path = write(tmp_path / "photo.png", saved(Image.new("RGB", (40, 30)), "PNG"))
    size = path.stat().st_size
    monkeypatch.setattr(photos, "MAX_BYTES", size)
    monkeypatch.setattr(photos, "MAX_PIXELS", 1200)
    monkeypatch.setattr(photos, "MAX_RATIO", 4 / 3)
    assert read_photo(path).image.size == (40, 30)
    for limit, value, words in (
        ("MAX_BYTES", size - 1, "The file has 0.0 MB, which is too much"),
        ("MAX_PIXELS", 1199, "The photo has 40 x 30 pixels, which are too many"),
        ("MAX_RATIO", 1.3, "a side may be at most 1.3 times the other"),
    ):
        with monkeypatch.context() as patch, pytest.raises(gr.Error, match=words):
            patch.setattr(photos, limit, value)
            read_photo(path)


def test_no_file(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(gr.Error, match="The photo is no longer here, as uploads are deleted after a while"):
            read_photo(path)


def test_ghostscript_is_not_run(tmp_path, monkeypatch):
    def run(*arguments: object, **options: object) -> None:
        raise AssertionError("A program was run.")

    monkeypatch.setattr("subprocess.Popen", run)
    monkeypatch.setattr("subprocess.check_call", run)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    with pytest.raises(gr.Error, match="EPS files are programs"):
        read_photo(write(tmp_path / "photo.png", REFUSED_FILES["program.eps"][0]))


def encode(kind: str) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    return saved(image.quantize(16) if kind == "GIF" else image, kind)


ENCODED = {kind: encode(kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(tmp_path, kind):
    assert read_photo(write(tmp_path / "photo", ENCODED[kind])).image.size == (32, 32)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_files(tmp_path, kind, data):
    """Cut, or with some bytes changed, they are photos or refused: nothing else is raised."""
    content = bytearray(ENCODED[kind])
    del content[data.draw(st.integers(1, len(content))) :]
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[place] = value
    path = write(tmp_path / "photo", bytes(content))
    try:
        photo = read_photo(path)
    except gr.Error as error:
        assert str(tmp_path) not in error.message and "BytesIO" not in error.message and len(error.message) < 400
    else:
        assert isinstance(photo, Photo) and photo.image.mode == "RGB"
        photo.image.resize((8, 8)).save(BytesIO(), "PNG")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_any_bytes(tmp_path, content):
    try:
        read_photo(write(tmp_path / "photo", content))
    except gr.Error as error:
        assert len(error.message) < 400
