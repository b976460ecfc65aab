import pickle
from io import BytesIO

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageOps

from hf_ssl.data import ImageError, decode_rgb, image_size, images
from hf_ssl.data.images import find_problem

from .helpers import encoded, picture, pixels, save


def assert_decodes_to(image: dict, expected: PILImage.Image | np.ndarray) -> None:
    decoded = decode_rgb(image)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(expected))
    assert image_size(image) == (decoded.height, decoded.width)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "RGBA"])
def test_modes_equal_pil_conversion(mode):
    original = picture().convert(mode)
    assert_decodes_to(encoded(original), original.convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_modes_equal_pil_conversion(mode):
    image = encoded(picture().convert(mode), "JPEG")
    with PILImage.open(BytesIO(image["bytes"])) as opened:
        assert opened.mode == mode
        assert_decodes_to(image, opened.convert("RGB"))


def test_alpha_is_dropped_not_blended():
    transparent = picture().convert("RGBA")
    transparent.putalpha(0)
    assert_decodes_to(encoded(transparent), pixels())


def test_palette_with_transparent_entries_keeps_colors_without_warning(recwarn):
    palette = picture().convert("P", palette=PILImage.Palette.ADAPTIVE)
    image = encoded(palette, transparency=bytes(range(256)))
    assert_decodes_to(image, palette.convert("RGB"))
    assert not recwarn.list


def test_palette_alpha_mode(tmp_path):
    palette_alpha = picture().convert("P").convert("PA")
    np.testing.assert_array_equal(np.asarray(images._to_rgb(palette_alpha)), np.asarray(palette_alpha.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_is_scaled_not_clipped(format):
    values = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    original = PILImage.fromarray(values)
    assert original.mode == "I;16"
    expected = np.repeat(np.rint(values / 257).astype(np.uint8)[..., None], 3, axis=-1)
    assert len(np.unique(expected)) > 200
    assert_decodes_to(encoded(original, format), expected)


def test_dark_16_bit_stays_dark():
    assert_decodes_to(encoded(PILImage.fromarray(np.full((2, 2), 200, np.uint16))), np.full((2, 2, 3), 1))


@pytest.mark.parametrize(
    "dtype, limit", [(np.int32, 255), (np.int32, 65535), (np.float32, 1), (np.float32, 255), (np.float32, 65535)]
)
def test_wide_gray_values_take_the_smallest_usual_range(dtype, limit):
    values = np.linspace(0, limit, 6 * 5).astype(dtype).reshape(6, 5)
    expected = np.repeat(np.rint(values.astype(np.float64) * 255 / limit)[..., None], 3, axis=-1)
    assert_decodes_to(encoded(PILImage.fromarray(values), "TIFF"), expected)


@pytest.mark.parametrize("values", [[-5, 3], [0, 70000]])
def test_gray_values_outside_16_bits_are_refused(values):
    image = encoded(PILImage.fromarray(np.array([values], dtype=np.int32)), "TIFF")
    with pytest.raises(ImageError, match=f"gray values from {min(values)} to {max(values)} are outside"):
        decode_rgb(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, format):
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    image = encoded(picture(), format, exif=exif)
    with PILImage.open(BytesIO(image["bytes"])) as opened:
        expected = ImageOps.exif_transpose(opened)
    assert_decodes_to(image, expected)
    assert image_size(image) == ((32, 24) if orientation >= 5 else (24, 32))


@pytest.mark.parametrize("orientation", [0, 9])
def test_invalid_orientation_is_ignored(orientation):
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    assert_decodes_to(encoded(picture(), exif=exif), pixels())


def test_one_pixel():
    assert_decodes_to(encoded(picture(1, 1)), pixels(1, 1))


def test_size_does_not_decode(monkeypatch, tmp_path):
    path = save(picture(), tmp_path / "a.png")

    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert image_size({"path": str(path), "bytes": None}) == (24, 32)
    assert image_size(encoded_without_load(path)) == (24, 32)


def encoded_without_load(path) -> dict:
    return {"bytes": path.read_bytes(), "path": None}


def broken_files(folder) -> dict[str, str]:
    """Files that cannot be decoded: {file name: part of the reason}."""
    whole = encoded(picture(200, 200), "JPEG")["bytes"]
    progressive = encoded(picture(200, 200), "JPEG", progressive=True)["bytes"]
    png = encoded(picture(50, 50))["bytes"]
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "progressive.jpg").write_bytes(progressive[: len(progressive) * 2 // 3])
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    return {
        "truncated.jpg": "truncated",
        "progressive.jpg": "truncated",
        "truncated.png": "truncated",
        "text.jpg": "not an image of a known format",
        "empty.jpg": "not an image of a known format",
        "absent.jpg": "the file does not exist",
    }


def test_errors_name_file_reason_and_remedy(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        image = {"path": str(tmp_path / name), "bytes": None}
        with pytest.raises(ImageError) as caught:
            decode_rgb(image, row=3)
        message = str(caught.value)
        assert str(tmp_path / name) in message and reason in message and "--skip_bad_images" in message
        assert " at 0x" not in message
        assert reason in find_problem(image)
        # What a DataLoader worker does to hand an exception to the main process.
        assert str(ImageError(message)) == str(pickle.loads(pickle.dumps(caught.value))) == message


def test_errors_name_the_row_of_an_image_without_path():
    for read in (decode_rgb, image_size):
        with pytest.raises(ImageError, match="the image in row 7 of the dataset: it is not an image"):
            read({"bytes": b"nonsense", "path": None}, row=7)
        with pytest.raises(ImageError, match="row 7 of the dataset: the value is missing"):
            read({"bytes": None, "path": None}, row=7)
        with pytest.raises(ImageError, match="row 7 of the dataset: the value is missing"):
            read(None, row=7)


def test_find_problem_is_none_for_good_images():
    assert find_problem(encoded(picture(200, 300), "JPEG")) is None
    assert find_problem(encoded(picture())) is None


def test_pixel_cap_is_that_of_pil_and_is_checked_before_decoding(monkeypatch):
    assert PILImage.MAX_IMAGE_PIXELS == images.MAX_PIXELS
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 32)
    assert decode_rgb(encoded(picture())).size == (32, 24)
    image = encoded(picture(25, 32))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for read in (decode_rgb, image_size):
        with pytest.raises(ImageError, match="row 2.*32x25 pixels are more than the 768 allowed"):
            read(image, row=2)
    assert "more than the 768 allowed" in find_problem(image)


def test_decompression_bomb_is_refused():
    image = encoded(PILImage.new("1", (20_000, 10_000)))
    with pytest.raises(ImageError, match="200000000 pixels"):
        decode_rgb(image)
