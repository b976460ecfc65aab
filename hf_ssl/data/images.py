"""Decoding of undecoded `datasets.Image` values, with errors that name the file."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base


# The number of pixels from which on PIL warns of a decompression bomb; it decodes up to twice as many.
MAX_PIXELS = 89_478_485

# Where the place of an image counts, as in a benchmark or Copydays, none can be left out.
REMEDY = (
    "Repair or replace the file. Images of a dataset for training, or of a `--dataset`, can also be left out: "
    "`--skip_bad_images true`."
)


class ImageError(ValueError):
    """An image that cannot be read. The message names the file, the reason and the remedy."""


def decode_rgb(image: Mapping[str, Any], row: int | None = None) -> PIL.Image.Image:
    """
    Decodes an image, rotates it as its EXIF orientation says, and converts it to RGB.

    Alpha is dropped. Gray values of more than 8 bits are scaled to 8 bits: by the range of the format where it
    declares one (16 bits), else by the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all values.

    Args:
        image (`Mapping[str, Any]`):
            Undecoded value of a `datasets.Image` column: the encoded `bytes`, or the `path` of a file.
        row (`int`, *optional*):
            Row of the dataset, to name an image without a path in the error.

    Returns:
        `PIL.Image.Image`: The image in mode RGB.

    Raises:
        [`ImageError`]: If the image is missing, damaged, in an unknown format, or larger than `MAX_PIXELS`.
    """
    try:
        return _decode(image)
    except Exception as error:  # PIL's plugins raise about any type on a damaged file
        raise ImageError(f"Cannot read {image_name(image, row)}: {_reason(error)}. {REMEDY}") from error


def image_size(image: Mapping[str, Any], row: int | None = None) -> tuple[int, int]:
    """
    Reads the size that [`decode_rgb`] returns from the header alone.

    Args:
        image (`Mapping[str, Any]`):
            Undecoded value of a `datasets.Image` column: the encoded `bytes`, or the `path` of a file.
        row (`int`, *optional*):
            Row of the dataset, to name an image without a path in the error.

    Returns:
        `tuple[int, int]`: Height and width in pixels, after the EXIF orientation is applied.

    Raises:
        [`ImageError`]: If the image is missing, has a damaged header or an unknown format, or is larger than
            `MAX_PIXELS`.
    """
    (width, height), orientation = _header(image, row)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def exif_orientation(image: Mapping[str, Any], row: int | None = None) -> int:
    """
    Reads from the header how [`decode_rgb`] rotates or mirrors an image.

    Args:
        image (`Mapping[str, Any]`):
            Undecoded value of a `datasets.Image` column: the encoded `bytes`, or the `path` of a file.
        row (`int`, *optional*):
            Row of the dataset, to name an image without a path in the error.

    Returns:
        `int`: The EXIF orientation, from 1 to 8; 1 if the image is left as it is.

    Raises:
        [`ImageError`]: If the image is missing, has a damaged header or an unknown format, or is larger than
            `MAX_PIXELS`.
    """
    return _header(image, row)[1]


def _header(image: Mapping[str, Any], row: int | None) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation."""
    try:
        with _open(image) as opened:
            return opened.size, _orientation(opened)
    except Exception as error:
        raise ImageError(f"Cannot read {image_name(image, row)}: {_reason(error)}. {REMEDY}") from error


def find_problem(image: Mapping[str, Any]) -> str | None:
    """
    Says why [`decode_rgb`] would refuse an image.

    A JPEG is decoded at an eighth of its size: all of the file is read, which finds truncation, but few pixels are
    computed.

    Args:
        image (`Mapping[str, Any]`):
            Undecoded value of a `datasets.Image` column: the encoded `bytes`, or the `path` of a file.

    Returns:
        `str` or `None`: The reason, or `None` if the image is fine.
    """
    try:
        _decode(image, reduced=True)
    except Exception as error:
        return _reason(error)
    return None


def image_name(image: Mapping[str, Any], row: int | None) -> str:
    """
    Names an image in a message.

    Args:
        image (`Mapping[str, Any]`):
            Undecoded value of a `datasets.Image` column.
        row (`int`, *optional*):
            Row of the dataset.

    Returns:
        `str`: The path if there is one, else the row.
    """
    path = image["path"] if image else None
    if path:
        return f"image {path!r}"
    return "an image without a path" if row is None else f"the image in row {row} of the dataset"


def _open(image: Mapping[str, Any]) -> PIL.Image.Image:
    if not image or (image["bytes"] is None and image["path"] is None):
        raise ValueError("the value is missing")
    opened = PIL.Image.open(image["path"] if image["bytes"] is None else BytesIO(image["bytes"]))
    width, height = opened.size
    if width * height > MAX_PIXELS:
        opened.close()
        raise ValueError(f"{width}x{height} pixels are more than the {MAX_PIXELS:,} allowed")
    return opened


def _orientation(opened: PIL.Image.Image) -> int:
    # TIFF files are rotated by PIL itself, their size included.
    if opened.format == "TIFF":
        return 1
    # PngImageFile overrides getexif() and decodes all pixels to look for an EXIF chunk behind them.
    orientation: int = PIL.Image.Image.getexif(opened).get(Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _decode(image: Mapping[str, Any], reduced: bool = False) -> PIL.Image.Image:
    with _open(image) as opened:
        orientation = _orientation(opened)
        if reduced:
            opened.draft(None, (1, 1))
        opened.load()
        return _to_rgb(ImageOps.exif_transpose(opened) if orientation > 1 else opened)


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bit(image).convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # The same colors as the direct conversion, without its warning.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    limits = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    limit = next((limit for limit in limits if highest <= limit), None)
    if limit is None or not lowest >= 0:
        raise ValueError(f"gray values from {lowest} to {highest} are outside 0..65535")
    return PIL.Image.fromarray(np.rint(values * np.float32(255 / limit)).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return str(error).rstrip(".") or type(error).__name__
