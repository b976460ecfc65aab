"""What no page sends: each is answered in words, nothing is read that was not uploaded, and the next visitor is served."""

import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from .server import Demo, Refused, as_file


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colors(size: tuple[int, int] = (60, 40), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 10 or 1, size[0] // 10 or 1, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


PNG, JPEG = saved(colors(), "PNG"), saved(colors(), "JPEG")


def png_of(width: int, height: int) -> bytes:
    """All of it black, and some kilobytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(9), bytes(1 + -(-width // 8))
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def ico_of(picture: bytes) -> bytes:
    """An icon that says to be of 16 pixels, and holds any PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def gif_of(width: int, height: int) -> bytes:
    return (
        saved(Image.new("P", (1, 1)), "GIF")[:6]
        + struct.pack("<HH", width, height)
        + saved(Image.new("P", (1, 1)), "GIF")[10:]
    )


def tiff_of(width: int, height: int) -> bytes:
    """A header alone."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, height), (279, 4, width * height % 2**32)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries
    ) + bytes(4)  # fmt: skip


def moving(kind: str) -> bytes:
    return saved(colors(), kind, save_all=True, append_images=[colors(seed=1), colors(seed=2)])


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><html><body><script>alert(1)</script></body></html>"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n(MARKER) (w) file closefile\nshowpage\n"
NO_PHOTO = (
    "The file cannot be read as a photo: it is not an image of a known format. JPEG, PNG and WebP are safe choices"
)
DAMAGED = "The file cannot be read as a photo: .+ JPEG, PNG and WebP are safe choices"
ANIMATION = "This is an animation. Choose one of its pictures"
LIMITS = "Photos may have 10 MB and 50 million pixels."
PIXELS = f"pixels, which are too many. {LIMITS}"

REFUSED_FILES = {
    "empty.png": (b"", "The file is empty. Choose another one."),
    "20,000 pixels.png": (png_of(20_000, 20_000), f"The photo has too many pixels. {LIMITS}"),
    "10,000 pixels.png": (png_of(10_000, 10_000), f"The photo has 10000 x 10000 {PIXELS}"),
    "huge.gif": (gif_of(60_000, 60_000), f"The photo has too many pixels. {LIMITS}"),
    "huge.tiff": (tiff_of(100_000, 100_000), f"The photo has too many pixels. {LIMITS}"),
    "large.tiff": (tiff_of(9000, 9000), f"The photo has 9000 x 9000 {PIXELS}"),
    "huge.bmp": (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 65_000, 65_000, 1, 24, 0, 0, 0, 0, 0, 0),
                 f"The photo has too many pixels. {LIMITS}"),
    "huge.ico": (ico_of(png_of(20_000, 20_000)), "too many pixels"),
    "large.ico": (ico_of(png_of(7500, 7500)), PIXELS),
    "huge.ppm": (b"P6 100000 100000 255\n", f"The photo has too many pixels. {LIMITS}"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], DAMAGED),
    "cut.png": (PNG[: len(PNG) // 2], DAMAGED),
    "cut header.png": (PNG[:20], DAMAGED),
    "scrambled.png": (PNG[:60] + bytes(reversed(PNG[60:])), DAMAGED),
    "cut.webp": (saved(colors(), "WEBP")[:60], DAMAGED),
    "cut.tiff": (saved(colors(), "TIFF")[:300], DAMAGED),
    "drawing.svg": (SVG, NO_PHOTO),
    "drawing.png": (SVG, NO_PHOTO),
    "page.jpg": (HTML, NO_PHOTO),
    "text.txt": (b"hello", NO_PHOTO),
    "zeros.jpg": (bytes(10_000), NO_PHOTO),
    "program.py": (b"import os; os._exit(1)", NO_PHOTO),
    "archive.zip": (b"PK\x03\x04" + bytes(100), NO_PHOTO),
    "program.eps": (EPS, "EPS files are programs, which are not run here. Save it as PNG."),
    "program.png": (EPS, "EPS files are programs"),
    "moving.gif": (moving("GIF"), ANIMATION),
    "moving.webp": (moving("WEBP"), ANIMATION),
    "moving.png": (moving("PNG"), ANIMATION),
    "ribbon.png": (saved(Image.new("RGB", (5000, 1)), "PNG"), "has 5000 x 1 pixels: a side may be at most 20 times"),
    "tower.png": (saved(Image.new("RGB", (10, 201)), "PNG"), "has 10 x 201 pixels: a side may be at most 20 times"),
    "strange floats.tiff": (saved(Image.fromarray(np.full((9, 9), 1e9, np.float32)), "TIFF"), "outside 0..65535"),
}  # fmt: skip
NAMES = [
    *("../../x.png", "/etc/passwd", "..\\..\\x.png", "%2e%2e%2fx.png", ".hidden", "; rm -rf .png"),
    *("x" * 3000 + ".png", "näme 🧩 \u202e.png", "x.png\0.txt", "<img src=x onerror=alert(1)>.png"),
]


@pytest.fixture
def photo(demo: Demo) -> dict[str, Any]:
    return demo.upload(PNG)


@pytest.fixture(autouse=True)
def the_next_visitor_is_served(demo: Demo) -> Iterator[None]:
    yield
    assert demo.process.poll() is None, demo.log()[-4000:]
    *_, numbers = demo.ask("retrieve", demo.upload(PNG), 1, None, None)
    assert numbers["data"][0][0] == 1


def refusal(ask: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused) as refused:
        ask()
    return refused.value


def check_words(demo: Demo, message: Any, words: str) -> None:
    """One sentence or two, which name no place on the server."""
    assert isinstance(message, str) and 20 < len(message) < 500, message
    assert re.search(words.replace("(", r"\("), message), message
    assert str(demo.folder) not in message and "/tmp" not in message and "Traceback" not in message, message


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_files(demo, name):
    content, words = REFUSED_FILES[name]
    assert len(content) < 2**20
    answer = refusal(lambda: demo.ask("retrieve", demo.upload(content, name), 3, None, None))
    check_words(demo, answer.message, words)


def test_a_file_over_the_limit(demo):
    content = PNG + bytes(10 * 2**20)
    answer = refusal(lambda: demo.upload(content))
    assert answer.status == 413 and "exceeded maximum allowed size of 10485760 bytes" in answer.message
    assert refusal(lambda: demo.upload(content * 2)).status == 413
    assert not any(path.stat().st_size > 2**20 for path in demo.temporary_files())


def upright() -> Image.Image:
    """A photo of which no rotation and no mirror image looks the same."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30, 0], pixels[:20, 30:, 1], pixels[20:, :30, 2] = 250, 200, 150
    return Image.fromarray(pixels)


def oriented(orientation: int) -> bytes:
    """`upright()` as a camera that is held in another way stores it."""
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    image, exif = upright(), Image.Exif()
    for step in undo.get(orientation, []):
        image = image.transpose(step)
    exif[0x0112] = orientation
    return saved(image, "PNG", exif=exif)


GRAY = np.asarray(upright().convert("L"))
TAKEN = {
    "16 bits.png": (saved(Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG"), "L"),
    "floats.tiff": (saved(Image.fromarray(GRAY.astype(np.float32) / 255), "TIFF"), "L"),
    "palette.png": (saved(upright().quantize(4), "PNG"), "RGB"),
    "one bit.png": (saved(upright().convert("1"), "PNG"), "1"),
    "alpha.png": (saved(upright().convert("RGBA"), "PNG"), "RGB"),
    "gray and alpha.png": (saved(upright().convert("LA"), "PNG"), "L"),
    "cmyk.tiff": (saved(upright().convert("CMYK"), "TIFF"), "RGB"),
    "still.gif": (saved(upright().quantize(4), "GIF"), "RGB"),
    "photo.bmp": (saved(upright(), "BMP"), "RGB"),
    "photo.ico": (ico_of(saved(upright().convert("RGBA"), "PNG")), "RGB"),
    "photo.webp": (saved(upright(), "WEBP", lossless=True), "RGB"),
    "photo.jp2": (saved(upright(), "JPEG2000"), "RGB"),
    "photo.tga": (saved(upright(), "TGA"), "RGB"),
    "pages.tiff": (saved(upright(), "TIFF", save_all=True, append_images=[colors(), colors()]), "RGB"),
    "a photo called.html": (saved(upright(), "PNG"), "RGB"),
    **{f"orientation {i}.png": (oriented(i), "RGB") for i in range(1, 9)},
}


@pytest.mark.parametrize("name", TAKEN)
def test_photos_of_all_kinds(demo, name):
    """They are what the same pixels in a plain PNG are."""
    content, mode = TAKEN[name]
    plain = saved(upright().convert(mode).convert("RGB"), "PNG")
    answers = [
        demo.ask("retrieve", demo.upload(one, title), 6, None, None)[3]
        for one, title in ((plain, "x.png"), (content, name))
    ]
    assert answers[0] == answers[1]


def test_small_and_long_photos(demo):
    for size in ((1, 1), (1, 20), (400, 20), (3, 3)):
        *_, numbers = demo.ask("retrieve", demo.upload(saved(colors(size), "PNG")), 2, None, None)
        assert len(numbers["data"]) == 2
    several = saved(colors(), "MPO", save_all=True, append_images=[colors(seed=1)])  # as phones do
    assert demo.ask("retrieve", demo.upload(several, "phone.jpg"), 2, None, None)[3]["data"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(demo, name):
    file = demo.upload(PNG, name)
    assert (demo.folder / "tmp").resolve() in Path(file["path"]).resolve().parents
    assert len(demo.ask("retrieve", file, 1, None, None)[3]["data"]) == 1


def test_names_that_are_none(demo):
    check_words(demo, refusal(lambda: demo.upload(PNG, "..")).message, "Invalid file name")
    body = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nhello\r\n--x--\r\n'
    for content, kind in ((body, "multipart/form-data; boundary=x"), (b"hello", "multipart/form-data; boundary=x"),
                          (b"hello", "multipart/form-data"), (b"hello", "text/plain")):  # fmt: skip
        answer = demo.send("upload", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 400
        check_words(demo, answer.text, "")


PATHS = [
    *("/etc/passwd", "../../x.png", "http://127.0.0.1:9/x.png", "https://example.com/x.png", "file:///etc/passwd"),
    *("data:image/png;base64,iVBORw0KGgo=", "", ".", "x\0y", "x" * 100_000, "outside"),
]


@pytest.mark.parametrize("path", PATHS)
def test_files_that_were_not_uploaded(demo, photos, path):
    """With Gradio's mark of a file, or without it: Gradio looks at the former only."""
    path = str(photos / "train/temples/0.png") if path == "outside" else path
    for mark in ({"meta": {"_type": "gradio.FileData"}}, {"meta": {"_type": "another"}}, {"meta": None}, {}):
        file = {"path": path, **mark}
        # In its place, in another's, and deep in a list.
        for values in ([file, 1, None, None], [None, file, None, None], [None, 1, None, [{"x": file}]]):
            answer = refusal(lambda: demo.ask("retrieve", *values))  # noqa: B023
            check_words(demo, answer.message, "Upload the photo as a file|An input is of another kind")


def test_ways_out_of_the_folder(demo, photo, photos):
    inside, outside = Path(photo["path"]), photos / "train/temples/0.png"
    up = Path(*[".."] * (len(inside.parent.parts) - 1), *outside.parts[1:])
    assert (inside.parent / up).resolve() == outside
    words = "Upload the photo as a file"
    check_words(
        demo, refusal(lambda: demo.ask("retrieve", as_file(str(inside.parent / up)), 1, None, None)).message, words
    )
    check_words(
        demo,
        refusal(lambda: demo.ask("retrieve", as_file(f"{inside.parents[1]}-other/x.png"), 1, None, None)).message,
        words,
    )
    for gone in (str(inside.parent / "gone.png"), str(inside.parent)):
        answer = refusal(lambda: demo.ask("retrieve", as_file(gone), 1, None, None))  # noqa: B023
        check_words(demo, answer.message, "The photo is no longer here, as uploads are deleted after a while")


def test_addresses_beside_a_file(demo, photo, photos):
    """Only the path counts."""
    outside = str(photos / "train/temples/0.png")
    expected = demo.ask("retrieve", photo, 1, None, None)[3]
    for url in ("http://127.0.0.1:9/x", f"file://{outside}", outside, "data:image/png;base64,AAAA"):
        assert demo.ask("retrieve", photo | {"url": url, "orig_name": outside}, 1, None, None)[3] == expected
    for file in (
        {"url": outside},
        {"url": "http://127.0.0.1:9/x"},
        {"path": None, "url": "data:image/png;base64,AAAA"},
    ):
        answer = refusal(lambda: demo.ask("retrieve", file, 1, None, None))  # noqa: B023
        check_words(demo, answer.message, "Upload the photo as a file|An input is of another kind")


PHOTO = object()  # a photo that was uploaded
GOOD = {
    "retrieve": {"query": PHOTO, "k": 2, "label": "flowers", "encoder": "tiny"},
    "similarity_bars": {"query": PHOTO, "label": None, "encoder": None},
    "describe": {"encoder": "tiny"},
    "match": {
        "first": PHOTO,
        "second": PHOTO,
        "kind": "own",
        "seed": 0,
        "encoder": "tiny",
        "threshold": 0,
        "mode": "encoder",
    },
    "similarity": {
        "first": PHOTO,
        "second": PHOTO,
        "kind": "own",
        "seed": 0,
        "encoder": "tiny",
        "x": 9,
        "y": 9.5,
        "which": "first",
    },
    "augmented_view": {"first": PHOTO, "seed": 3},
    "attention": {"photo": PHOTO, "encoder": "tiny", "show": "mask", "mass": 0.5},
    "patch_colors": {"photo": PHOTO, "encoder": "tiny"},
    "training_views": {"photo": PHOTO, "method": "patchmix", "seed": 1},
}
CASES = [(endpoint, name) for endpoint, inputs in GOOD.items() for name in inputs]
NO_NUMBERS = ["abc", "3", "", None, [], [3], {}, {"value": 3}]
NO_CHOICES = ["nothing", "", "x" * 10**6, 3, 1.5, True, None, {}, [], ["first", "own"]]
NO_ENCODERS = ["x" * 10**6, "\0", "x\ny", "<script>", "🧩", "../x", 3, 1.5, True, {}, [], ["tiny"], {"tiny": 1}]
NO_PHOTOS = [None, "x", 3, True, [], {}, [[]], [PHOTO], {"path": [PHOTO]}, {"path": "/etc/passwd"}]
NO_LABELS = ["cats", "x" * 10**6, 3, 1.5, True, {}, {"flowers": 1}, [], ["flowers"], ["flowers", "temples"]]
KINDS = "An input is of another kind than is taken here, or out of its range"
WRONG: dict[str, tuple[list[Any], str]] = {
    **dict.fromkeys(
        ("query", "first", "second", "photo"), (NO_PHOTOS, f"There is no .*: .*upload one|Upload the photo as|{KINDS}")
    ),
    **dict.fromkeys(
        ("encoder", "name"), (NO_ENCODERS, "This is no name of an encoder. Choose one of tiny|is chosen by a name")
    ),
    **dict.fromkeys(
        ("kind", "mode", "which"), (NO_CHOICES, f"own or view|by encoder or by geometry|first or second|{KINDS}")
    ),
    "label": (NO_LABELS, f"has no class of this name: leave it out|{KINDS}"),
    "show": (NO_CHOICES, f"Attention is shown as heat or as mask|{KINDS}"),
    "method": (NO_CHOICES, f"The method is one of patchmix|The method is one of .*relvit|{KINDS}"),
    "k": ([0, -1, 25, 1e9, -1e308, 10**400, 2.5, True, *NO_NUMBERS], f"a whole number from 1 to 24|{KINDS}"),
    "mass": ([0, -1, 1.01, 1e308, 10**400, True, *NO_NUMBERS], f"a number from 0.05 to 1|{KINDS}"),
    "threshold": ([-1.01, 1.01, 1e308, 10**400, True, *NO_NUMBERS], f"a number from -1 to 1|{KINDS}"),
    "seed": ([-1, 1e300, 10**400, *NO_NUMBERS], f"a whole number from 0 to|{KINDS}"),
    **dict.fromkeys("xy", ([-1, 61, 1e300, 10**400, True, *NO_NUMBERS], f"x from 0, at the left, to 60|{KINDS}")),
}


def with_photo(value: Any, photo: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [with_photo(part, photo) for part in value]
    if isinstance(value, dict):
        return {name: with_photo(part, photo) for name, part in value.items()}
    return photo if value is PHOTO else value


def inputs_with(endpoint: str, name: str, value: Any) -> list[Any]:
    inputs = GOOD[endpoint] | {name: value}
    if name == "seed" and "kind" in inputs:  # otherwise it has no meaning
        inputs["kind"] = "view"
    return list(inputs.values())


def test_all_endpoints_are_here(demo):
    """One that is new has to be added above."""
    told = demo.http.get(f"{demo.url}/gradio_api/info").json()["named_endpoints"]
    names = {
        name.strip("/"): [parameter["parameter_name"] for parameter in about["parameters"]]
        for name, about in told.items()
    }
    assert names == {name: list(inputs) for name, inputs in GOOD.items()}


@pytest.mark.parametrize(("endpoint", "name"), CASES)
def test_wrong_inputs(demo, photo, endpoint, name):
    values, words = WRONG[name]
    for value in (*values, as_file("/etc/passwd"), [{"path": "/etc/passwd"}]):
        inputs = with_photo(inputs_with(endpoint, name, value), photo)
        answer = refusal(lambda: demo.ask(endpoint, *inputs))  # noqa: B023
        check_words(demo, answer.message, words if "/etc/passwd" not in str(value) else "neither addresses nor files")
    assert demo.ask(endpoint, *with_photo(list(GOOD[endpoint].values()), photo))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(demo, photo, text):
    for endpoint, name in CASES:
        if name in ("k", "mass", "threshold", "x", "y", "seed"):
            inputs = with_photo(inputs_with(endpoint, name, "HERE"), photo)
            body = json.dumps({"data": inputs}).replace('"HERE"', text).encode()
            answer = refusal(lambda: demo.wait(demo.post(f"call/{endpoint}", body)))  # noqa: B023
            check_words(demo, answer.message, WRONG[name][1])


@pytest.mark.parametrize(
    "name", ["empty.png", "20,000 pixels.png", "cut.jpg", "drawing.svg", "program.eps", "moving.gif", "ribbon.png"]
)
def test_files_everywhere(demo, name):
    content, words = REFUSED_FILES[name]
    file = demo.upload(content, name)
    for endpoint, inputs in GOOD.items():
        if PHOTO in inputs.values():
            answer = refusal(lambda: demo.ask(endpoint, *with_photo(list(inputs.values()), file)))  # noqa: B023
            check_words(demo, answer.message, words)


def test_counts_of_inputs(demo, photo):
    for values in ([], [photo], [photo, 1, None], [photo, 1, None, None, None], [None] * 1000):
        answer = refusal(lambda: demo.ask("retrieve", *values))  # noqa: B023
        check_words(demo, answer.message, f"This takes 4 inputs, not {len(values)}")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/retrieve", b"hello"),
        ("call/retrieve", b""),
        ("call/retrieve", b"\xff\xfe"),
        ("call/retrieve", b"[1]"),
        ("call/retrieve", b"{}"),
        ("call/retrieve", b'{"data": 1}'),
        ("call/retrieve", b'{"data": {"query": null}}'),
        ("call/retrieve", b'{"data": [], "session_hash": [1]}'),
        ("call/retrieve", b"[" * 100_000),
        ("call/retrieve", b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("call/nothing", b'{"data": []}'),
        ("call/", b'{"data": []}'),
        ("call/v2/nothing", b"{}"),
        ("call/v2/retrieve", b"[]"),
        ("queue/join", b'{"data": []}'),
        ("queue/join", b'{"data": [], "session_hash": "a"}'),
        ("queue/join", b'{"data": [], "session_hash": "a", "fn_index": 999}'),
        ("queue/join", b'{"data": [], "session_hash": "a", "fn_index": -1}'),
        ("queue/join", b'{"data": [], "session_hash": "a", "fn_index": "x"}'),
        ("run/retrieve", b'{"data": [null, 1, null, null]}'),  # would go past the queue
        ("api/describe", b'{"data": [null]}'),
        ("run/nothing", b'{"data": []}'),
        ("component_server", b'{"data": 1, "component_id": 1, "fn_name": "preprocess", "session_hash": "a"}'),
        ("component_server", b'{"data": 1, "component_id": 99999, "fn_name": "__init__", "session_hash": "a"}'),
        ("vibe-edit", b'{"prompt": "delete all"}'),
        ("process_recording", b"{}"),
    ],
)
def test_requests_of_another_form(demo, path, body):
    answer = refusal(lambda: demo.wait(demo.post(path, body)))
    assert 400 <= answer.status < 500
    check_words(demo, answer.message[:450] if "input" in answer.message else answer.message, "")


def test_large_requests(demo):
    answer = refusal(lambda: demo.post("call/retrieve", b'{"data": ["' + b"x" * (12 * 2**20) + b'"]}'))
    assert answer.status == 413 and answer.message == "Content Too Large"


ADDRESSES = [
    *(
        "file=",
        "file=.",
        "file=/etc/passwd",
        "file=../../etc/passwd",
        "file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "nothing",
    ),
    *("file=http://127.0.0.1:9/x", "file=file:///etc/passwd", "file=training/demo.py", "proxy=http://127.0.0.1:9/x"),
    *("run-history/buckets", "vibe-code"),
]


@pytest.mark.parametrize("path", ADDRESSES)
def test_addresses(demo, path):
    answer = demo.http.get(f"{demo.url}/gradio_api/{path}")
    assert 400 <= answer.status_code < 500 and len(answer.text) < 300
    assert "root:" not in answer.text and "import" not in answer.text


def test_files_of_the_server(demo, encoder, photos):
    for path in (encoder / "config.json", photos / "train/temples/0.png", demo.folder / "log.txt", Path(__file__)):
        assert demo.http.get(f"{demo.url}/gradio_api/file={path}").status_code == 403


def test_events_by_number(demo, photo):
    """Also those of the page alone can be called, with anything."""
    dependencies = demo.http.get(f"{demo.url}/config").json()["dependencies"]
    kinds = {}  # what does the same after one event and after another is asked once
    for dependency in dependencies:
        if dependency["backend_fn"]:
            form = (dependency["inputs"], dependency["outputs"], dependency["api_visibility"])
            kinds[str(form)] = dependency
    assert len(kinds) > 20
    events = [{"index": 10**9}, {"index": "x"}, {"index": [0, 0]}, {"index": [1e300, -1]}, {"value": photo}, "x", [1]]

    def ask(dependency: dict[str, Any]) -> list[str]:
        """Ask for everything of a function; what came of it."""
        outcomes, number = [], dependency["id"]
        inputs = [[value] * len(dependency["inputs"]) for value in (None, "x", 3, as_file("/etc/passwd"), photo)]
        selected = events if any(event == "select" for _, event in dependency["targets"]) else []
        for values, event in [*((one, None) for one in (*inputs, [])), *((inputs[-1], one) for one in selected)]:
            body = {"data": values, "fn_index": number, "session_hash": f"session{number}", "event_data": event}
            try:
                demo.wait(demo.post("queue/join", body))
                outcomes.append("answered")
            except Refused as refused:
                assert refused.message, body
                check_words(demo, refused.message, "")
                outcomes.append("refused")
        return outcomes

    with ThreadPoolExecutor(8) as pool:
        outcomes = Counter(chain.from_iterable(pool.map(ask, kinds.values())))
    assert min(outcomes.values()) > 20 and len(outcomes) == 2


def test_an_event_that_never_was(demo):
    with pytest.raises(httpx.HTTPError):
        demo.http.get(f"{demo.url}/gradio_api/call/retrieve/0123").raise_for_status()


def test_the_client_of_gradio(demo, photos):
    """It would have the server fetch an address, or send a file that it uploads."""
    client = demo.client()
    with pytest.raises(AppError, match="neither addresses nor files of this machine are opened"):
        client.predict(handle_file("https://example.com/x.png"), 1, None, None, api_name="/retrieve")
    with pytest.raises(AppError, match="of a known format"):
        client.predict(handle_file(__file__), 1, None, None, api_name="/retrieve")
