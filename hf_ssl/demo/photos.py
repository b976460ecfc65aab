"""Photos that visitors bring: what is read, and what is refused in words that they understand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from PIL import ImageOps

from ..data import decode_rgb
from ..data.images import exif_orientation, find_problem


REFUSED = "This does not work"
MAX_BYTES = 10 * 2**20
MAX_PIXELS = 50_000_000
MAX_RATIO = (
    20  # of the longer to the shorter side; processors that resize the shorter one would make huge images of ribbons
)
_LIMITS = f"Photos may have {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} million pixels."
# EPS files are programs, which Pillow has Ghostscript run.
_REFUSED_FORMATS = ("EPS",)
_TURNED_FORMATS = ("JPEG", "MPO")  # by all browsers; Chromium ignores the orientation of WebP
_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")  # a phone's MPO has several pictures too, the first is the photo


@dataclass(frozen=True)
class Photo:
    """
    A photo, upright.

    Args:
        image (`PIL.Image.Image`): Its pixels, RGB.
        digest (`str`): A hash of the file, to find what was computed of it.
        is_shown_upright (`bool`, *optional*, defaults to `True`): Whether browsers too turn the file as its EXIF says.
    """

    image: PIL.Image.Image
    digest: str
    is_shown_upright: bool = True


@dataclass(frozen=True)
class RefusedPhoto:
    """
    In the place of a file that cannot be taken: the functions that need it refuse it, and the page goes on.

    Args:
        reason (`str`): Why not.
    """

    reason: str


Given = Photo | RefusedPhoto | None  # what a function gets of an input


def refusal(message: str) -> gr.Error:
    """An answer to something that cannot be done, which a visitor sees and a client gets."""
    return gr.Error(message, title=REFUSED, print_exception=False)


def take_photo(given: Given, otherwise: str) -> Photo:
    """
    The photo of an input.

    Args:
        given ([`Photo`] or [`RefusedPhoto`], *optional*): What the input holds.
        otherwise (`str`): What to say if it is empty.

    Returns:
        [`Photo`]

    Raises:
        `gradio.Error`: there is none, or it is refused.
    """
    if not isinstance(given, Photo):
        raise refusal(otherwise if given is None else given.reason)
    return given


def warn_if_refused(given: Given) -> None:
    """Tell a visitor in front of the page, once, that a file cannot be taken: on a phone, the results are out of sight."""
    if isinstance(given, RefusedPhoto):
        gr.Warning(given.reason)


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
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise refusal(f"The file has {size / 2**20:.1f} MB, which is too much. {_LIMITS}")
        content = path.read_bytes()
    except OSError:
        raise refusal("The photo is no longer here, as uploads are deleted after a while. Choose it again.") from None
    if not content:
        raise refusal("The file is empty. Choose another one.")
    encoded = {"bytes": content, "path": None}
    try:
        format = _check_header(content)
        is_shown_upright = format in _TURNED_FORMATS or exif_orientation(encoded) == 1
        image = _on_white(decode_rgb(encoded), content)
        _check_size(image)  # an ICO may hold a larger picture than it says
    except gr.Error:
        raise
    except Exception as error:  # Pillow's plugins raise about any type on a damaged file
        if isinstance(error.__cause__ or error, PIL.Image.DecompressionBombError):
            raise refusal(f"The photo has too many pixels. {_LIMITS}") from None
        reason = (find_problem(encoded) or "it is damaged").replace("\n", " ")
        raise refusal(
            f"The file cannot be read as a photo: {reason}. JPEG, PNG and WebP are safe choices; HEIC and SVG have to be "
            "converted."
        ) from None
    return Photo(image, hashlib.sha256(content).hexdigest(), is_shown_upright)


def _check_header(content: bytes) -> str | None:
    with PIL.Image.open(BytesIO(content)) as opened:
        if opened.format in _REFUSED_FORMATS:
            raise refusal(f"{opened.format} files are programs, which are not run here. Save it as PNG.")
        _check_size(opened)
        if opened.format in _ANIMATED_FORMATS and getattr(opened, "is_animated", False):
            raise refusal("This is an animation. Choose one of its pictures, and save it as a photo.")
        return opened.format


def _on_white(image: PIL.Image.Image, content: bytes) -> PIL.Image.Image:
    """As visitors see it: in training, what lies below transparent pixels counts."""
    with PIL.Image.open(BytesIO(content)) as opened:
        if not opened.has_transparency_data:
            return image
        alpha = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")
    return PIL.Image.composite(image, PIL.Image.new("RGB", image.size, "white"), alpha)


def _check_size(image: PIL.Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise refusal(f"The photo has {width} x {height} pixels, which are too many. {_LIMITS}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise refusal(
            f"The photo has {width} x {height} pixels: a side may be at most {MAX_RATIO} times the other. Crop it."
        )


def photo_input(label: str, **options: Any) -> gr.Image:
    """
    An input for a photo: upload, webcam or clipboard. Functions get a [`Photo`], a [`RefusedPhoto`], or None. Only on a
    [`~hf_ssl.demo.page.Page`], which lets no files through but those that were uploaded.

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


def _from_upload(payload: Any) -> Given:
    if payload is None:
        return None
    if payload.path is None:
        return RefusedPhoto("Upload the photo as a file.")
    try:
        return read_photo(payload.path)
    except gr.Error as error:
        return RefusedPhoto(str(error.message))
