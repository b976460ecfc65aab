"""The page as visitors use it: a browser clicks, uploads and looks."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from transformers import AutoConfig

from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models import METHODS

from ..marks import slow
from ..training.common import make_isl
from .conftest import CLASSES
from .server import Demo, serve_demo


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="THE PAGE IS NOT TESTED AS VISITORS USE IT: there is no Chromium (apt-get install chromium)",
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds: machines that test are loaded


@pytest.fixture(scope="module")
def shown(encoder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The page for two encoders: "tiny", a vision transformer, and "convnet"."""
    convnet = tmp_path_factory.mktemp("encoders") / "convnet"
    export_run(make_isl(), evaluation_processor(16, [0.5] * 3, [0.5] * 3), convnet)
    folder = tmp_path_factory.mktemp("shown")
    with serve_demo(folder, "--model", encoder, convnet, "--dataset", photos) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, shown: Demo, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page in a window of its own. At the end, nothing may have gone wrong in it, and nothing left the machine."""
    viewport, scheme = getattr(request, "param", (DESKTOP, "light"))
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda asked: errors.append(asked.url) if not is_local(asked.url, shown) else None)
    page.on(
        "response", lambda answer: errors.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    page.goto(shown.url)
    yield page
    context.close()
    forgive_gradio(errors, shown)
    assert not errors


def forgive_gradio(errors: list[str], demo: Demo) -> None:
    """
    While a function changes an input whose webcam is chosen, Gradio asks for the progress of an upload without an id. The
    server knows of none after 3 seconds; the browser prints that, and so does Gradio. Nothing else is forgiven.
    """
    asked = f"404 {demo.url}/gradio_api/upload_progress?upload_id="
    printed = ["Failed to load resource: the server responded with a status of 404 (Not Found)", "Response"]
    for _ in range(errors.count(asked)):
        for line in (asked, *printed):
            if line in errors:
                errors.remove(line)


def is_local(url: str, demo: Demo) -> bool:
    return url.startswith((demo.url, "data:", "blob:"))


def captions(page: Page, gallery: str) -> list[str]:
    """What is written below the pictures of a gallery."""
    return page.locator(f"#{gallery} .caption-label").all_inner_texts()


def wait_for_neighbors(page: Page, count: int) -> None:
    for gallery in ("trained", "untrained"):
        expect(page.locator(f"#{gallery} .grid-container img")).to_have_count(count)


def choose(page: Page, dropdown: str, value: str) -> None:
    """Choose from a dropdown."""
    page.locator(f"#{dropdown} input").click()
    page.locator(f"#{dropdown}").get_by_role("option", name=value, exact=True).click()


def write_encoder(page: Page, name: str) -> None:
    """Ask for an encoder that is not in the list."""
    box = page.locator("#encoder input")
    box.fill(name)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")


def upload(page: Page, name: str, file: Path) -> None:
    """Upload a photo in the place of what is there."""
    clear = page.locator(f"#{name} button[aria-label='Clear'], #{name} button[aria-label='Remove Image']")
    if clear.count():
        clear.first.click()
    page.locator(f"#{name} input[type=file]").set_input_files(file)


# ---- retrieval ----


def test_an_answer_waits_for_the_visitor(page):
    wait_for_neighbors(page, 8)
    expect(page.locator("#retrieval-summary")).to_contain_text("nearest of 20 images")
    assert all(caption.startswith(("✓", "✗")) for caption in captions(page, "trained"))
    expect(page.locator("#about-encoder")).to_contain_text("tiny: vit")
    bars = page.locator("#bars img")
    bars.scroll_into_view_if_needed()
    expect(bars).to_be_visible()
    assert bars.evaluate("image => image.naturalWidth") > 400


def test_query_is_picked_and_uploaded(page, photos):
    wait_for_neighbors(page, 8)
    label = page.locator("#query-class input")
    name = captions(page, "examples")[2]
    other = captions(page, "examples").index(next(text for text in captions(page, "examples") if text != name))
    page.locator("#examples .grid-container button").nth(other).click()
    expect(label).to_have_value(captions(page, "examples")[other])
    page.locator("#examples .grid-container button").nth(2).click()
    expect(label).to_have_value(name)
    expect(page.locator("#retrieval-summary")).to_contain_text(f"are of the class {name}")

    upload(page, "query", photos / "train/temples/3.png")
    expect(label).to_have_value("unknown")
    expect(page.locator("#retrieval-summary")).to_have_text("The nearest of 20 images of photos.")
    assert captions(page, "trained")[0] == "1.000 · temples"
    choose(page, "query-class", "temples")
    expect(page.locator("#retrieval-summary")).to_contain_text("are of the class temples")
    assert captions(page, "trained")[0] == captions(page, "untrained")[0] == "✓ 1.000 · temples"


def test_number_of_neighbors_and_other_examples(page):
    wait_for_neighbors(page, 8)
    slider = page.locator("#neighbors input[type=range]")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    wait_for_neighbors(page, 5)
    first = page.locator("#examples img").first
    before = first.get_attribute("src")
    page.locator("#other-examples").click()
    expect(first).not_to_have_attribute("src", before)


def test_a_neighbor_is_looked_at_closely(page):
    """Its picture is larger than the tile was, and no edge of the gallery cuts it off."""
    wait_for_neighbors(page, 8)
    tile = page.locator("#trained .grid-container button").first
    small = tile.bounding_box()
    tile.click()
    picture = page.locator("#trained .preview img").first
    expect(picture).to_be_visible()
    page.wait_for_timeout(500)  # it grows
    large, gallery = picture.bounding_box(), page.locator("#trained").bounding_box()
    assert min(large["width"], large["height"]) > 2 * max(small["width"], small["height"])
    for start, length in (("x", "width"), ("y", "height")):
        assert gallery[start] <= large[start]
        assert large[start] + large[length] <= gallery[start] + gallery[length]
    page.locator("#trained").get_by_label("Close").click()
    expect(picture).to_be_hidden()
    tile.click()
    expect(picture).to_be_visible()
    page.keyboard.press("Escape")
    expect(picture).to_be_hidden()
    expect(tile).to_be_visible()


def test_query_is_taken_away(page):
    """Which is no mistake: another one will come."""
    wait_for_neighbors(page, 8)
    page.locator("#query").get_by_label("Remove Image").click()
    expect(page.locator("#retrieval-summary")).to_contain_text("There is no query yet")
    for gallery in ("trained", "untrained"):
        expect(page.locator(f"#{gallery} img")).to_have_count(0)
    expect(page.locator("#bars img")).to_have_count(0)
    expect(page.locator(".toast-body")).to_have_count(0)


def take_photo(page: Page, name: str, words: Locator) -> None:
    """Take a photo with the camera, in the place of what is there; `words` tell that it is gone."""
    photo = page.locator(f"#{name}")
    photo.get_by_label("Capture from camera").click()
    expect(words).to_contain_text("There is no")
    photo.get_by_text("Click to Access Webcam").click()
    page.wait_for_function(f"document.querySelector('#{name} video').videoWidth > 0")  # before, there is no picture
    photo.get_by_label("capture photo").click()


def test_query_is_taken_with_the_camera(page):
    wait_for_neighbors(page, 8)
    words = page.locator("#retrieval-summary")
    take_photo(page, "query", words)
    expect(words).to_have_text("The nearest of 20 images of photos.")
    expect(page.locator("#query img")).to_be_visible()
    expect(page.locator("#query-class input")).to_have_value("unknown")
    wait_for_neighbors(page, 8)


def test_encoder_is_switched(page):
    wait_for_neighbors(page, 8)
    before = captions(page, "trained")
    choose(page, "encoder", "convnet")
    expect(page.locator("#about-encoder")).to_contain_text("convnet: ")
    expect(page.locator("#trained .caption-label").first).not_to_have_text(before[0])
    page.get_by_role("button", name="Numbers").first.click()
    expect(page.locator("#numbers tbody").last).to_contain_text(re.compile("|".join(CLASSES)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a photo", "The file cannot be read as a photo"),
        slow(b"", "The file is empty"),
    ],
)
def test_what_is_no_photo_is_told(page, tmp_path, content, message):
    """In front of the page, once, and where neighbors would be; those of the query before are gone."""
    wait_for_neighbors(page, 8)
    (tmp_path / "photo.png").write_bytes(content)
    upload(page, "query", tmp_path / "photo.png")
    expect(page.locator(".toast-body")).to_contain_text(message)
    expect(page.locator("#retrieval-summary")).to_contain_text(message)
    for place in ("trained", "untrained", "bars"):
        expect(page.locator(f"#{place} img")).to_have_count(0)
    assert page.locator(".toast-body").count() <= 1  # it goes after ten seconds
    Image.new("RGB", (40, 40), "red").save(tmp_path / "good.png")
    upload(page, "query", tmp_path / "good.png")
    expect(page.locator("#retrieval-summary")).to_have_text("The nearest of 20 images of photos.")
    wait_for_neighbors(page, 8)


@pytest.mark.parametrize(
    ("tab", "photo", "words", "pictures"),
    [
        (
            "Patch matching",
            "match-first",
            ["match-summary", "similarity-summary"],
            ["match-second", "matches", "similarity-first", "similarity-second"],
        ),
        (
            "Look inside",
            "inside-photo",
            ["about-heads", "about-patch-colors", "about-views"],
            ["heads", "patch-colors", "boxes", "views"],
        ),
    ],
)
def test_a_refused_photo_in_the_other_tabs(page, tmp_path, tab, photo, words, pictures):
    message = "a side may be at most 20 times the other"
    Image.new("RGB", (5000, 3), "red").save(tmp_path / "ribbon.png")
    page.get_by_role("tab", name=tab).click()
    for place in pictures:
        expect(page.locator(f"#{place} img").first).to_be_attached()
    upload(page, photo, tmp_path / "ribbon.png")
    expect(page.locator(".toast-body")).to_contain_text(message)
    for place in words:
        expect(page.locator(f"#{place}")).to_contain_text(message)
    for place in pictures:
        expect(page.locator(f"#{place} img")).to_have_count(0)
    assert page.locator(".toast-body").count() <= 1  # it goes after ten seconds


def test_unknown_encoder_is_told(page):
    wait_for_neighbors(page, 8)
    write_encoder(page, "no such thing")
    expect(page.locator(".toast-body, .toast-wrap").first).to_contain_text("This is no name of an encoder")
    choose(page, "encoder", "tiny")
    expect(page.locator("#about-encoder")).to_contain_text("tiny: vit")


# ---- on a phone, in the dark ----


@pytest.mark.parametrize("page", [(PHONE, "dark"), slow((PHONE, "light")), slow((DESKTOP, "dark"))], indirect=True)
def test_page_fits(page):
    """No tab is wider than the window, and text is lighter than what is behind it in the dark."""
    wait_for_neighbors(page, 8)
    for tab in page.get_by_role("tab").all():
        tab.click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert page.evaluate("document.body.classList.contains('dark')") == dark


# ---- a look inside ----


def test_look_inside(page, encoder, photos):
    heads = AutoConfig.from_pretrained(encoder).num_attention_heads
    page.get_by_role("tab", name="Look inside").click()
    expect(page.locator("#heads .grid-container img")).to_have_count(1 + heads)  # of an example
    first = page.locator("#heads img").first
    before = first.get_attribute("src")
    upload(page, "inside-photo", photos / "train/temples/3.png")
    expect(first).not_to_have_attribute("src", before)
    expect(page.locator("#patch-colors .grid-container img")).to_have_count(3)
    expect(page.locator("#about-patch-colors")).to_contain_text("16 x 16 pixels")

    before = first.get_attribute("src")
    expect(page.locator("#mass")).to_be_hidden()
    page.locator("#show").get_by_label("mask", exact=True).check()
    expect(page.locator("#mass")).to_be_visible()
    expect(first).not_to_have_attribute("src", before)

    page.get_by_label("Method").scroll_into_view_if_needed()
    seen = set()
    for method in METHODS.values():
        before = page.locator("#about-views").inner_text()
        choose(page, "method", method.title)
        if seen:
            expect(page.locator("#about-views")).not_to_have_text(before)
        expect(page.locator("#views .grid-container img").first).to_be_visible()
        seen.add(page.locator("#about-views").inner_text())
    assert len(seen) == len(METHODS)
    before = page.locator("#views img").first.get_attribute("src")
    page.locator("#other-views").click()
    expect(page.locator("#views img").first).not_to_have_attribute("src", before)


def test_encoder_without_attention(page):
    choose(page, "encoder", "convnet")
    page.get_by_role("tab", name="Look inside").click()
    expect(page.locator("#about-heads")).to_contain_text("There is no attention to be seen")
    expect(page.locator("#patch-colors .grid-container img")).to_have_count(3)


# ---- patch matching ----


def open_matching(page: Page) -> None:
    page.get_by_role("tab", name="Patch matching").click()
    expect(page.locator("#match-summary")).to_contain_text("pair")
    expect(page.locator("#similarity-summary")).to_contain_text("The patch at")


def test_match_of_a_view_and_of_two_photos(page, photos):
    open_matching(page)  # an example and a view of it
    expect(page.locator("#matches img")).to_be_visible()
    summary = page.locator("#match-summary")
    expect(summary).to_contain_text("show the same place")
    page.locator("#match-mode").get_by_label("by geometry").check()
    expect(page.locator("#match-threshold")).to_be_hidden()
    expect(summary).to_contain_text("pairs of patches show the same place")
    before = page.locator("#match-second img").first.get_attribute("src")
    page.locator("#match-other-view").click()
    expect(page.locator("#match-second img").first).not_to_have_attribute("src", before)

    upload(page, "match-second", photos / "train/temples/3.png")
    expect(page.locator("#match-kind").get_by_label("a photo of your own")).to_be_checked()
    expect(summary).not_to_contain_text("same place")
    upload(page, "match-first", photos / "train/temples/3.png")
    expect(summary).to_contain_text("16 pairs")  # each of the 4 x 4 patches is the nearest to itself
    slider = page.locator("#match-threshold input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator("#match-threshold input[type=number]")).to_have_value("1")
    expect(summary).to_contain_text("1.00")


@pytest.mark.slow
def test_photos_to_match_are_taken_with_the_camera(page):
    open_matching(page)
    words = page.locator("#similarity-summary")
    for name in ("match-first", "match-second"):
        take_photo(page, name, words)
        expect(words).to_contain_text("The patch at")
    expect(page.locator("#match-kind").get_by_label("a photo of your own")).to_be_checked()
    expect(page.locator("#match-summary")).to_contain_text("pairs of patches")


def click_into(picture: Locator, size: tuple[int, int], place: tuple[float, float]) -> None:
    """Click at a place of a photo that lies in the middle of its element, as its style says."""
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True)
    element = picture.bounding_box()
    scale = min(element["width"] / size[0], element["height"] / size[1])
    if picture.evaluate("image => getComputedStyle(image).objectFit") == "scale-down":
        scale = min(scale, 1)
    margins = (element["width"] - size[0] * scale) / 2, (element["height"] - size[1] * scale) / 2
    x, y = (margin + at * scale for margin, at in zip(margins, place, strict=True))
    picture.click(position={"x": x, "y": y})


def wait_for_place(page: Page, place: tuple[float, float], tolerance: float) -> None:
    """Wait until the page tells a click at this place of the first photo."""
    words = page.locator("#similarity-summary")
    for _ in range(PATIENCE // 200):
        told = re.search(r"x ([\d.]+), y ([\d.]+) of the first photo is", words.inner_text())
        if told and max(abs(float(number) - at) for number, at in zip(told.groups(), place, strict=True)) <= tolerance:
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"{words.inner_text()!r}, but the click was at {place}")


WIDE, TALL = (400, 100), (90, 300)
ON_DESKTOP, ON_PHONE = (DESKTOP, "light"), (PHONE, "light")


@pytest.mark.parametrize(
    ("page", "size"),
    [(ON_DESKTOP, WIDE), (ON_PHONE, TALL), slow(ON_DESKTOP, TALL), slow(ON_PHONE, WIDE)],
    indirect=["page"],
    ids=["wide", "tall on a phone", "tall", "wide on a phone"],
)
def test_clicks_are_where_the_visitor_points(page, photos, tmp_path, size):
    """In photos that are smaller or larger than their place on the page, with room beside or above."""
    with Image.open(photos / "train/temples/3.png") as photo:
        photo.resize(size).save(tmp_path / "photo.png")
    open_matching(page)
    upload(page, "match-first", tmp_path / "photo.png")
    picture = page.locator("#match-first img").first
    expect(picture).to_have_js_property("naturalWidth", size[0])
    wait_for_place(page, (size[0] / 2, size[1] / 2), 1)  # the page begins in the middle
    tolerance = 3 + max(size) / 100
    for shown, share in (
        ("#match-first", (0.3, 0.7)),
        ("#similarity-first", (0.8, 0.2)),
        ("#match-first", (0.05, 0.95)),
    ):
        place = (share[0] * size[0], share[1] * size[1])
        click_into(page.locator(f"{shown} img").first, size, place)
        wait_for_place(page, place, tolerance)
