"""Photos that visitors bring: what is read, and what is refused in words that they understand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from ..data import ImageError, decode_rgb
from ..data.images import find_problem, image_size


MAX_BYTES = 10 * 2**20
MAX_PIXELS = 50_000_000
_LIMITS = f"Photos may have {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} million pixels."
# EPS files are programs, which Pillow has Ghostscript run.
_REFUSED_FORMATS = ("EPS",)
_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")  # a phone's MPO has several pictures too, the first is the photo


@dataclass(frozen=True)
class Photo:
    """
    A photo, upright.

    Args:
        image (`PIL.Image.Image`): Its pixels, RGB.
        digest (`str`): A hash of the file, to find what was computed of it.
    """

    image: PIL.Image.Image
    digest: str


def refusal(message: str) -> gr.Error:
    """An answer to something that cannot be done, which a visitor sees and a client gets."""
    return gr.Error(message, title="This does not work", print_exception=False)


def read_photo(path: str | Path) -> Photo:
    """
    Read what a visitor has uploaded, in any format that Pillow knows, upright as its EXIF orientation says.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        [`Photo`]

    Raises:
        `gradio.Error`: it is no photo, too large, damaged, or moves.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise refusal(f"The file has {size / 2**20:.1f} MB, which is too much. {_LIMITS}")
    if not size:
        raise refusal("The file is empty. Choose another one.")
    content = path.read_bytes()
    encoded = {"bytes": content, "path": None}
    try:
        height, width = image_size(encoded)
        if height * width > MAX_PIXELS:
            raise refusal(f"The photo has {width} x {height} pixels, which are too many. {_LIMITS}")
        _check_format(path)
        return Photo(decode_rgb(encoded), hashlib.sha256(content).hexdigest())
    except ImageError:
        reason = (find_problem(encoded) or "it is damaged").replace("\n", " ")
        raise refusal(
            f"The file cannot be read as a photo: {reason}. JPEG, PNG and WebP are safe choices; HEIC and SVG have to be "
            "converted."
        ) from None


def _check_format(path: Path) -> None:
    with PIL.Image.open(path) as opened:
        if opened.format in _REFUSED_FORMATS:
            raise refusal(f"{opened.format} files are programs, which are not run here. Save it as PNG.")
        pictures = getattr(opened, "n_frames", 1) if opened.format in _ANIMATED_FORMATS else 1
    if pictures > 1:
        raise refusal(f"This is an animation of {pictures} pictures. Choose one of them.")


def photo_input(label: str, **options: Any) -> gr.Image:
    """
    An input for a photo: upload, webcam or clipboard. Functions get a [`Photo`], or None.

    Args:
        label (`str`): Its title.
        options: Other arguments of `gradio.Image`.

    Returns:
        `gradio.Image`
    """
    component = gr.Image(
        label=label,
        type="filepath",
        format="png",
        sources=["upload", "webcam", "clipboard"],
        buttons=["fullscreen"],
        elem_classes=["photo"],
        interactive=True,
        **options,
    )
    # Gradio's own would read files by other rules, with errors that visitors do not understand. A class of ours would be
    # written to disk as a .pyi file when it is imported.
    component.preprocess = _from_upload  # type: ignore[method-assign, assignment]
    return component


def _from_upload(payload: Any) -> Photo | None:
    if payload is None:
        return None
    if payload.path is None:
        raise refusal("Upload the photo as a file.")
    return read_photo(payload.path)
