"""The tab for patch matching: its functions, without a browser."""

import json
import shutil
from dataclasses import replace
from functools import partial

import gradio as gr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradio_client import Client, handle_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.transforms.functional import hflip, pil_to_tensor, resized_crop
from transformers import PreTrainedConfig, PreTrainedModel, ViTImageProcessor
from transformers.modeling_outputs import BaseModelOutput

from hf_ssl.data import load_image_data
from hf_ssl.demo import Collection, EncoderShelf, matching
from hf_ssl.demo.drawing import arrange, draw_patch, draw_similarities, drawn_size
from hf_ssl.demo.encoders import ShownEncoder, encoder_input
from hf_ssl.demo.matching import (
    ENCODER,
    FIRST,
    GEOMETRY,
    MAX_PAIRS,
    OWN,
    SECOND,
    VIEW,
    Pair,
    augmented_view,
    by_encoder,
    by_geometry,
    find_click,
    make_view,
    match,
    matching_tab,
    same_place,
    similarity,
)
from hf_ssl.demo.page import Page
from hf_ssl.demo.photos import Photo, photo_input, read_photo
from hf_ssl.demo.training_views import MAX_SEED
from hf_ssl.evaluation import FeatureSpec, LoadedEncoder, image_patches, match_images, similarity_map


SIDE = 4  # of a patch
NAN, INFINITY = float("nan"), float("inf")


class PixelsConfig(PreTrainedConfig):
    model_type = "pixels_of_the_page"
    patch_size = SIDE


class Pixels(PreTrainedModel):
    """An encoder whose tokens are the pixels of the patches themselves; it counts the images that it has seen."""

    config_class = PixelsConfig
    main_input_name = "pixel_values"
    num_seen = 0

    def __init__(self, config):
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values):
        self.num_seen += len(pixel_values)
        patches = F.unfold(pixel_values - 0.5, self.config.patch_size, stride=self.config.patch_size).mT
        return BaseModelOutput(last_hidden_state=patches * self.weight)


class Shelf(EncoderShelf):
    """One encoder, of images as they are, or of the middle of them."""

    def __init__(self, **processing):
        super().__init__(["pixels"])
        processor = ViTImageProcessor(do_resize=False, do_normalize=False, **processing)
        encoder = LoadedEncoder(Pixels(PixelsConfig()), processor, "pixels", feature="patch_mean")
        self.shown = ShownEncoder(encoder, encoder, FeatureSpec("patch_mean"), "pixels", False)

    def load(self, name):
        return self.shown

    @property
    def model(self):
        return self.shown.trained.model


@pytest.fixture
def shelf():
    return Shelf()


def blocks(rows, columns, seed=0):
    """A photo of blocks that have one color each."""
    colors = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return as_photo(Image.fromarray(colors.repeat(SIDE, 0).repeat(SIDE, 1)))


def as_photo(image, **options):
    return Photo(image, f"{image.size} {hash(image.tobytes())}", **options)


def places(width, height):
    """A photo whose colors tell where they are: red from the top, green from the left, in shares."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    ramp = np.stack([rows / height * 255, columns / width * 255, np.full((height, width), 128)], axis=-1)
    return as_photo(Image.fromarray(ramp.round().astype(np.uint8)))


def refused(message):
    return pytest.raises(gr.Error, match=message)


@pytest.fixture(scope="session")
def photo():
    """A temple by a lake, 640 x 427 pixels."""
    return as_photo(Image.fromarray(load_sample_image("china.jpg")))


@pytest.fixture
def without_jitter(monkeypatch):
    monkeypatch.setattr(matching, "_VIEW", replace(matching._VIEW, jitter=0.0))


# ---- augmented views ----


@pytest.mark.parametrize("size", [(640, 427), (250, 400), (224, 224), (100, 80), (8, 8)])
@pytest.mark.parametrize("seed", [0, 1, 2, MAX_SEED])
def test_view_lies_in_its_box(size, seed, without_jitter):
    """The view is what torchvision makes of the box."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photo = as_photo(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    view, box = make_view(photo, seed)
    top, left, height, width, flip = box.tolist()
    side = min(224, *size)
    assert view.image.size == (side, side)
    expected = resized_crop(pil_to_tensor(photo.image), top, left, height, width, [side, side], antialias=True)
    expected = hflip(expected) if flip else expected
    assert (pil_to_tensor(view.image).int() - expected.int()).abs().max() <= 1


def test_views_are_crops_in_changed_colors(photo):
    """With jitter, a view is still more like its box than like the mirrored box."""
    boxes, changes = [], []
    for seed in range(12):
        view, box = make_view(photo, seed)
        top, left, height, width, flip = box.tolist()
        assert 0.25 <= height * width / (640 * 427) <= 0.75
        crop = resized_crop(pil_to_tensor(photo.image), top, left, height, width, [224, 224], antialias=True)
        crop = hflip(crop) if flip else crop
        shown = pil_to_tensor(view.image).float().mean(0).flatten()
        same, mirrored = (
            float(torch.corrcoef(torch.stack([shown, one.float().mean(0).flatten()]))[0, 1])
            for one in (crop, hflip(crop))
        )
        assert same > 0.75 and same > mirrored + 0.1
        boxes.append(tuple(box.tolist()))
        changes.append(float((shown - crop.float().mean(0).flatten()).abs().mean()))
    assert len(set(boxes)) == 12 and {box[4] for box in boxes} == {0, 1}
    assert np.mean(np.array(changes) > 5) > 0.8


def test_view_is_a_function_of_photo_and_seed(photo):
    first, box = make_view(photo, 3)
    second, same_box = make_view(photo, 3.0)
    assert first.image.tobytes() == second.image.tobytes() and torch.equal(box, same_box)
    assert first.digest == second.digest
    others = [make_view(photo, 4)[0], make_view(places(640, 427), 3)[0]]
    assert len({first.digest, photo.digest, *(other.digest for other in others)}) == 4
    image, where = augmented_view(photo, 3)
    assert image.tobytes() == first.image.tobytes()
    assert list(where.values()) == box.tolist() and list(where) == ["top", "left", "height", "width", "flip"]
    assert json.loads(json.dumps(where)) == where


@pytest.mark.parametrize("seed", [None, "1", True, -1, 0.5, NAN, INFINITY, MAX_SEED + 1, [1]])
def test_wrong_seeds(shelf, photo, seed):
    for call in (
        partial(augmented_view, photo, seed),
        partial(match, shelf, photo, None, VIEW, seed, None, 0, ENCODER),
        partial(similarity, shelf, photo, None, VIEW, seed, None, 1, 1, FIRST),
    ):
        with refused(f"The seed is a whole number from 0 to {MAX_SEED}"):
            call()


# ---- matches by geometry ----


@st.composite
def boxes(draw):
    """Width and height of a photo, and the box of a view, of at least a third of either side."""
    size = draw(st.integers(1, 1500)), draw(st.integers(1, 1500))
    height, width = (draw(st.integers(-(-side // 3), side)) for side in reversed(size))
    top, left = draw(st.integers(0, size[1] - height)), draw(st.integers(0, size[0] - width))
    return size, torch.tensor([top, left, height, width, draw(st.integers(0, 1))])


@given(boxes(), st.integers(1, 224))
@settings(deadline=None, max_examples=150)
def test_geometry_is_right(drawn, side):
    """All of its matches lie at the same place."""
    size, box = drawn
    pair = Pair(Photo(Image.new("L", size), "photo"), Photo(Image.new("L", (side, side)), "view"), box)
    matches = by_geometry(pair)
    assert len(matches) or side == 1  # half a patch is too little
    assert same_place(matches, box, (side, side)).all()
    for of_photo, photo in zip(matches.boxes, pair, strict=True):
        ends = of_photo[:, :2] + of_photo[:, 2:]
        limits = torch.tensor([photo.image.height, photo.image.width])
        assert (of_photo >= 0).all() and (ends <= limits + 1e-9).all()


@pytest.mark.parametrize("seed", range(8))
def test_geometry_shows_the_same(seed, without_jitter):
    """Where colors tell places, matched patches have nearly the same color, in mirrored views too."""
    photo = places(700, 500)
    view, box = make_view(photo, seed)
    matches = by_geometry(Pair(photo, view, box))
    assert len(matches) > 40
    colors = []
    for centers, shown in zip(matches.centers.unbind(1), (photo.image, view.image), strict=True):
        values = np.asarray(shown).astype(float)
        rows, columns = centers.long().T.numpy()
        colors.append(values[rows, columns, :2] / 255)
    assert abs(colors[0] - colors[1]).max() < 1.5 / 14
    # Which a view that is taken for its mirror image would fail.
    turned = box.clone()
    turned[4] = 1 - turned[4]
    assert not same_place(matches, turned, view.image.size).all()


def test_geometry_of_tiny_photos():
    photo = places(8, 8)
    view, box = make_view(photo, 0)
    matches = by_geometry(Pair(photo, view, box))
    assert matches.grids == ((8, 8), (8, 8)) and same_place(matches, box, (8, 8)).all()


def test_geometry_knows_nothing_of_two_photos(shelf, photo):
    with refused("match them by the encoder, or choose an augmented view"):
        match(shelf, photo, blocks(10, 10), OWN, 0, None, 0, GEOMETRY)


# ---- matches by the encoder ----


def crop_of(photo, box):
    """The view that a box is, without changes of size and color."""
    top, left, height, width, flip = box
    image = photo.image.crop((left, top, left + width, top + height))
    return as_photo(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


@pytest.mark.parametrize("flip", [0, 1])
def test_truth(shelf, flip):
    """An encoder that finds all patches of a crop, where they are, and where they are not."""
    photo = blocks(12, 16)
    box = torch.tensor([8, 16, 32, 40, flip])
    view = crop_of(photo, box.tolist())
    matches = by_encoder(shelf, Pair(photo, view, box), None, 0.999)
    assert len(matches) == 80
    size = view.image.size
    assert same_place(matches, box, size).all()
    assert not same_place(matches, torch.tensor([8, 16, 32, 40, 1 - flip]), size).all()
    # Within one patch: up to one patch beside it.
    assert same_place(matches, torch.tensor([8 + SIDE, 16 - SIDE, 32, 40, flip]), size).all()
    assert not same_place(matches, torch.tensor([8 + 2 * SIDE, 16, 32, 40, flip]), size).any()
    assert not same_place(matches, torch.tensor([8, 16 - 2 * SIDE, 32, 40, flip]), size).any()


def test_matches_are_those_of_the_library(shelf):
    """The function for scripts finds the same pairs, of two photos and of a photo and its view."""
    first, second = blocks(9, 11), blocks(7, 8, seed=1)
    view = make_view(first, 5)[0]
    for kind, other in ((OWN, second), (VIEW, view)):
        expected = match_images(shelf.shown.trained, first.image, other.image, threshold=0.1)
        _, words, rows = match(shelf, first, second, kind, 5, "pixels", 0.1, ENCODER)
        assert len(rows) == min(MAX_PAIRS, len(expected)) > 3
        assert words.startswith(f"**{len(expected)} pairs of patches**")
        np.testing.assert_allclose([row[0] for row in rows], expected.similarities[: len(rows)], atol=1e-4)
        centers = expected.centers[: len(rows)].flip(-1).flatten(1)
        np.testing.assert_allclose([row[1:5] for row in rows], centers, atol=0.006)


def test_threshold(shelf):
    first, second = blocks(9, 11), blocks(7, 8, seed=1)
    similarities = [row[0] for row in match(shelf, first, second, OWN, 0, None, -1, ENCODER)[2]]
    assert similarities == sorted(similarities, reverse=True)
    middle = (similarities[2] + similarities[3]) / 2
    _, words, rows = match(shelf, first, second, OWN, 0, None, middle, ENCODER)
    assert [row[0] for row in rows] == similarities[:3] and words.startswith("**3 pairs of patches**")
    highest = (similarities[0] + similarities[1]) / 2
    assert match(shelf, first, second, OWN, 0, None, highest, ENCODER)[1].startswith("**1 pair of patches**")
    picture, words, rows = match(shelf, first, second, OWN, 0, None, 1, ENCODER)
    assert rows == [] and words == "No pair of patches is as similar as 1.00: lower the least similarity."
    assert picture.size == arrange(first.image.size, second.image.size).size


def test_what_is_said_and_drawn(shelf, without_jitter):
    photo = blocks(20, 20)
    picture, words, rows = match(shelf, photo, photo, OWN, 0, None, 0, ENCODER)
    assert words == (
        "**400 pairs of patches**, each the other's nearest, with a similarity of at least 0.00. "
        "The 50 most similar are drawn."
    )
    assert len(rows) == 50 and {row[5] for row in rows} == {""}
    # Tiles are where the patches are, in one color on either side.
    drawn = np.asarray(picture).astype(int)
    sheet = arrange(photo.image.size, photo.image.size)
    scale = sheet.sizes[0][0] / 80
    for _, x1, y1, x2, y2, _ in rows[:3]:
        edges = []
        for (left, top), x, y in zip(sheet.corners, (x1, x2), (y1, y2), strict=True):
            start = round(top + (y - 2) * scale), round(left + (x - 2) * scale)
            assert start == (top + (y - 2) * 6, left + (x - 2) * 6)
            edges.append(drawn[start[0], start[1] : start[1] + 6])
        assert (edges[0] == edges[1]).all() and len(np.unique(edges[0], axis=0)) == 1
    _, words, rows = match(shelf, photo, None, VIEW, 1, None, 0, ENCODER)
    truths = [row[5] for row in rows]
    assert set(truths) == {True, False} and f"**{sum(truths)}** show the same place, within one patch." in words
    _, words, rows = match(shelf, photo, None, VIEW, 1, None, 0, GEOMETRY)
    assert words.endswith("pairs of patches** show the same place; 50 of them are drawn.")
    assert {(row[0], row[5]) for row in rows} == {("", True)} and len(rows) == 50
    tops = np.array([row[2] for row in rows])
    assert tops.max() - tops.min() > 0.5 * make_view(photo, 1)[1][2]  # from everywhere, not the first rows


def test_tokens_are_computed_once(shelf):
    photo = blocks(10, 10)
    match(shelf, photo, None, VIEW, 0, None, 0, ENCODER)
    assert shelf.model.num_seen == 2
    match(shelf, photo, None, VIEW, 0, None, 0.5, ENCODER)
    similarity(shelf, photo, None, VIEW, 0, None, 1, 1, SECOND)
    assert shelf.model.num_seen == 2
    match(shelf, photo, None, VIEW, 1, None, 0, ENCODER)
    assert shelf.model.num_seen == 3
    match(shelf, photo, None, VIEW, 2, None, 0, GEOMETRY)
    assert shelf.model.num_seen == 3  # geometry asks no encoder


def test_processor_is_part_of_an_encoder(encoder, tmp_path):
    """Of one network with two processors, the one's patches are not taken for the other's."""
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    changed = {**settings, "do_resize": False, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
    (other / "preprocessor_config.json").write_text(json.dumps(changed))
    shelf = EncoderShelf([str(encoder), str(other)])
    photo = places(48, 32)
    areas = []
    for name in shelf.names:
        shown = shelf.get(name)
        areas.append(shelf.patches(shown.trained, photo, shown.fingerprint).area.tolist())
    assert areas == [[0, 0, 32, 48], [8, 16, 16, 16]] or areas[0] != areas[1] == [8, 16, 16, 16]


# ---- similarity to a patch ----


@pytest.mark.parametrize("which", [FIRST, SECOND])
def test_similarity(shelf, which):
    """Pictures, sentence and table are of the map that the library computes; photos keep their places."""
    photos = blocks(9, 11), blocks(12, 8, seed=1)
    here, there = (0, 1) if which == FIRST else (1, 0)
    patches = [image_patches(shelf.shown.trained, photo.image) for photo in photos]
    x, y = 13.5, 22.0
    first, second, words, rows = similarity(shelf, *photos, OWN, 0, "pixels", x, y, which)
    expected = similarity_map(patches[here], patches[there], (y, x))
    order = expected.flatten().sort(descending=True, stable=True).indices
    best = patches[there].boxes[order[0]]
    pictures = [first, second]
    column, row = int(x // SIDE), int(y // SIDE)
    marked = torch.tensor([row * SIDE, column * SIDE, SIDE, SIDE], dtype=torch.float64)
    assert pictures[here].tobytes() == draw_patch(photos[here].image, marked, patches[here].area).tobytes()
    heated = draw_similarities(photos[there].image, expected, best, patches[there].area)
    assert pictures[there].tobytes() == heated.tobytes()
    assert len(rows) == min(MAX_PAIRS, expected.numel())
    for (found_x, found_y, value), number in zip(rows, order.tolist(), strict=False):
        center = patches[there].boxes[number]
        assert (found_x, found_y) == (float(center[1] + SIDE / 2), float(center[0] + SIDE / 2))
        assert value == pytest.approx(float(expected.flatten()[number]), abs=1e-4)
    other = SECOND if which == FIRST else FIRST
    assert words == (
        f"The patch at x 13.5, y 22 of the {which} photo is most similar to that at x {rows[0][0]:g}, "
        f"y {rows[0][1]:g} of the {other}: **{rows[0][2]:.2f}**. The darkest patch: {float(expected.min()):.2f}."
    )


def test_swapped_photos(shelf):
    one, other = blocks(9, 11), blocks(12, 8, seed=1)
    straight = similarity(shelf, one, other, OWN, 0, None, 5, 6, FIRST)
    swapped = similarity(shelf, other, one, OWN, 0, None, 5, 6, SECOND)
    assert straight[0].tobytes() == swapped[1].tobytes() and straight[1].tobytes() == swapped[0].tobytes()
    assert straight[3] == swapped[3]


def test_patch_of_a_view_is_found_in_the_photo(shelf):
    photo = blocks(12, 16)
    view = crop_of(photo, (8, 16, 32, 40, 0))
    *_, rows = similarity(shelf, photo, view, OWN, 0, None, 22, 9, SECOND)
    assert rows[0] == [22 + 16, 9 + 8 + 1, 1.0]  # the centers of patches


def test_places_that_the_encoder_does_not_see():
    """The middle 16 x 16 pixels of a photo are seen; of a smaller one all are, and a border that it has not."""
    shelf = Shelf(do_center_crop=True, crop_size={"height": 16, "width": 16})
    wide, small = places(48, 32), blocks(3, 3)
    for x, y in ((15.9, 16), (32.1, 16), (20, 7.9), (20, 24.1), (48, 32)):
        with refused("The encoder does not see this place: choose one of the photo's part that is not pale"):
            similarity(shelf, wide, small, OWN, 0, None, x, y, FIRST)
    for x, y in ((16, 8), (31.9, 23.9)):
        assert len(similarity(shelf, wide, small, OWN, 0, None, x, y, FIRST)) == 4
    assert len(similarity(shelf, wide, small, OWN, 0, None, 0, 12, SECOND)) == 4


# ---- what cannot be done ----


@pytest.mark.parametrize("threshold", [None, "0.5", True, -1.01, 1.01, NAN, INFINITY, [0]])
def test_wrong_thresholds(shelf, threshold):
    with refused("The least similarity is a number from -1 to 1"):
        match(shelf, blocks(4, 4), blocks(4, 4), OWN, 0, None, threshold, ENCODER)


@pytest.mark.parametrize(
    ("x", "y"),
    [(None, 1), (1, None), ("1", 1), (True, 1), (NAN, 1), (1, INFINITY), (-0.1, 1), (41, 1), (1, 33), ([1], 1)],
)
def test_wrong_points(shelf, x, y):
    with refused("A position is in pixels of the photo: x from 0, at the left, to 40; y from 0, at the top, to 32"):
        similarity(shelf, blocks(8, 10), blocks(8, 12), OWN, 0, None, x, y, FIRST)


@pytest.mark.parametrize("wrong", [None, "", "First", 1, [], {}, "x" * 10**6])
def test_wrong_choices(shelf, wrong):
    photo = blocks(8, 10)
    with refused("Patches are matched by encoder or by geometry"):
        match(shelf, photo, photo, OWN, 0, None, 0, wrong)
    for call in (
        partial(match, shelf, photo, photo, wrong, 0, None, 0, ENCODER),
        partial(similarity, shelf, photo, photo, wrong, 0, None, 1, 1, FIRST),
    ):
        with refused("The second photo is of the kind own or view"):
            call()
    with refused("The patch is in the photo first or second"):
        similarity(shelf, photo, photo, OWN, 0, None, 1, 1, wrong)


def test_missing_photos(shelf):
    photo = blocks(8, 10)
    with refused("There is no first photo yet"):
        augmented_view(None, 0)
    for first, kind in ((None, OWN), (None, VIEW)):
        with refused("There is no first photo yet"):
            match(shelf, first, photo, kind, 0, None, 0, ENCODER)
        with refused("There is no first photo yet"):
            similarity(shelf, first, photo, kind, 0, None, 1, 1, SECOND)
    for call in (
        partial(match, shelf, photo, None, OWN, 0, None, 0, ENCODER),
        partial(similarity, shelf, photo, None, OWN, 0, None, 1, 1, FIRST),
    ):
        with refused("There is no second photo yet: upload one, or choose an augmented view of the first"):
            call()


def test_encoders_that_do_not_work(shelf, monkeypatch):
    photo, calls = blocks(8, 10), []
    for call in (
        partial(match, mode=ENCODER, threshold=0),
        partial(similarity, x=1, y=1, which=FIRST),
    ):
        calls.append(partial(call, first=photo, second=photo, kind=OWN, seed=0, encoder=None))
    small = EncoderShelf(["pixels"], allow_hub_ids=False)
    for call in calls:
        with refused("There is no encoder of this name here"):
            call(small, encoder="org/other")
    shelf.model.weight.data.fill_(NAN)
    for call in calls:
        with refused("contains NaN or infinite values"):
            call(shelf)
    for call in calls:
        with refused("Where .* takes its pixels from is not known here|pads images"):
            call(Shelf(do_pad=True, pad_size={"height": 64, "width": 64}))
    monkeypatch.setattr(matching, "MAX_COMPARISONS", 80 * 80 - 1)
    with refused("so many patches of these photos"):
        calls[0](Shelf())
    monkeypatch.setattr(matching, "MAX_COMPARISONS", 80 * 80)
    calls[0](Shelf())


# ---- clicks ----


sizes = st.tuples(st.integers(65, 2500), st.integers(65, 2500))
grids = st.tuples(st.integers(1, 24), st.integers(1, 24))


@given(sizes, sizes, grids, st.data())
@settings(deadline=None, max_examples=150)
def test_clicks_find_their_patch(first, second, grid, data):
    """Whole pixels of a picture, which is the photo, drawn, or the sheet, more than a pixel away from the patch's edges."""
    photos = [Photo(Image.new("RGB", size), str(size)) for size in (first, second)]
    number = data.draw(st.integers(0, 1))
    size, drawn = photos[number].image.size, drawn_size(photos[number].image.size)
    row, column = data.draw(st.integers(0, grid[0] - 1)), data.draw(st.integers(0, grid[1] - 1))
    surface = data.draw(st.sampled_from(["photo", "drawn", "sheet"]))
    shown = size if surface == "photo" else drawn
    corner = arrange(first, second).corners[number] if surface == "sheet" else (0, 0)
    index = []
    for axis, (place, count) in enumerate(((column, grid[1]), (row, grid[0]))):
        start, end = place * shown[axis] / count, (place + 1) * shown[axis] / count
        if end - start < 4:
            return
        index.append(corner[axis] + data.draw(st.integers(int(start) + 2, int(end) - 1)))
    x, y, which = find_click(Pair(*photos), index, None if surface == "sheet" else number, is_drawn=surface != "photo")
    assert which == (FIRST, SECOND)[number]
    assert (int(y * grid[0] / size[1]), int(x * grid[1] / size[0])) == (row, column)


def test_clicks_on_tiny_photos():
    pair = Pair(places(8, 8), places(64, 20))
    for number in (0, 1):
        with refused("too small to be clicked on: click in the pictures below, where it is enlarged"):
            find_click(pair, [3, 3], number, is_drawn=False)
    assert find_click(pair, [511, 0], 0) == (7.98, 0, FIRST)
    assert find_click(pair, [100, 96], 0) == (1.56, 1.5, FIRST)
    assert find_click(Pair(places(65, 20), places(8, 8)), [64, 19], 0, is_drawn=False) == (64, 19, FIRST)


def test_clicks_on_photos_that_browsers_do_not_turn(tmp_path):
    """Chromium turns JPEG files as their EXIF orientation says, and WebP files not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = places(100, 80).image
    for name, options, is_upright in (
        ("turned.jpg", {"exif": exif}, True),
        ("turned.webp", {"exif": exif}, False),
        ("turned.png", {"exif": exif}, False),
        ("upright.webp", {}, True),
        ("upright.png", {}, True),
    ):
        image.save(tmp_path / name, **options)
        photo = read_photo(tmp_path / name)
        assert photo.image.size == ((80, 100) if options else (100, 80)), name
        pair = Pair(photo, photo)
        if is_upright:
            assert find_click(pair, [70, 30], 0, is_drawn=False) == (70, 30, FIRST), name
        else:
            with refused("Not all browsers turn this photo upright: click in the pictures below"):
                find_click(pair, [70, 30], 0, is_drawn=False)
        assert find_click(pair, [50, 100], 1)[2] == SECOND


@pytest.mark.parametrize(
    "index",
    [None, [], [1], [1, 2, 3], ["1", 2], [NAN, 1], [None, None], [True, 1], [-1, 1], [1, INFINITY], "12", {"x": 1}, 5],
)
def test_wrong_clicks(index):
    for number in (0, None):
        with refused("There is nothing here: click inside of a photo"):
            find_click(Pair(places(100, 100), places(100, 100)), index, number)


def test_clicks_between_photos():
    pair = Pair(places(100, 100), places(100, 100))
    with refused("This is between the photos"):
        find_click(pair, [drawn_size((100, 100))[0] + 1, 20])


# ---- the tab ----


@pytest.fixture(scope="module")
def client(encoder, tmp_path_factory):
    """A client of the tab alone."""
    shelf = EncoderShelf([str(encoder)])
    with Page(analytics_enabled=False) as demo:
        dropdown = encoder_input(shelf)
        with gr.Tab("Matching") as tab:
            switched = dropdown.change(lambda: None, api_visibility="private")
            matching_tab(shelf, Collection(load_image_data("digits")), dropdown, switched, tab)
    _, url, _ = demo.launch(server_name="127.0.0.1", share=False, ssr_mode=False, quiet=True, prevent_thread_lock=True)
    yield Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    demo.close()


@pytest.fixture
def files(photo, tmp_path):
    """A photo, and another one."""
    paths = tmp_path / "first.png", tmp_path / "second.png"
    photo.image.save(paths[0])
    photo.image.crop((100, 50, 500, 350)).save(paths[1])
    return [handle_file(path) for path in paths]


def test_endpoints(client):
    """Three functions for programs, with names that tell what they take."""
    named = client.view_api(return_format="dict")["named_endpoints"]
    parameters = {name: [item["parameter_name"] for item in entry["parameters"]] for name, entry in named.items()}
    assert parameters == {
        "/match": ["first", "second", "kind", "seed", "encoder", "threshold", "mode"],
        "/similarity": ["first", "second", "kind", "seed", "encoder", "x", "y", "which"],
        "/augmented_view": ["first", "seed"],
    }


def test_answers_to_programs(client, files, shelf, photo):
    picture, words, rows = client.predict(*files, OWN, 0, None, 0, ENCODER, api_name="/match")
    assert words.split()[0] == f"**{len(rows['data'])}" and Image.open(picture).mode == "RGBA"
    _, words, rows = client.predict(files[0], None, VIEW, 2, None, 0, GEOMETRY, api_name="/match")
    assert words == match(shelf, photo, None, VIEW, 2, None, 0, GEOMETRY)[1]
    first, second, words, rows = client.predict(*files, OWN, 0, None, 300, 200, FIRST, api_name="/similarity")
    assert "at x 300, y 200 of the first photo" in words and rows["headers"] == ["x", "y", "similarity"]
    assert Image.open(first).size == drawn_size((640, 427)) and Image.open(second).size == drawn_size((400, 300))
    view, box = client.predict(files[0], 2, api_name="/augmented_view")
    expected, expected_box = augmented_view(photo, 2)
    assert np.array_equal(np.asarray(Image.open(view).convert("RGB")), np.asarray(expected)) and box == expected_box


@pytest.mark.parametrize(
    ("endpoint", "others", "message"),
    [
        ("/match", (VIEW, "x", None, 0, ENCODER), "of another kind|whole number"),
        ("/match", (VIEW, 0, None, 2, ENCODER), "out of its range|from -1 to 1"),
        ("/match", (VIEW, 0, None, "x", ENCODER), "of another kind"),
        ("/match", (OWN, 0, None, 0, GEOMETRY), "match them by the encoder"),
        ("/match", (VIEW, 0, "no/../such", 0, ENCODER), "no name of an encoder"),
        ("/similarity", (VIEW, 0, None, "x", 0, FIRST), "of another kind|in pixels of the photo"),
        ("/similarity", (VIEW, 0, None, 10**9, 0, FIRST), "x from 0, at the left, to 640"),
        ("/similarity", (VIEW, 0, None, 1, 1, "third"), "of another kind"),
    ],
)
def test_refusals_to_programs(client, files, endpoint, others, message):
    with pytest.raises(Exception, match=message):
        client.predict(*files, *others, api_name=endpoint)


def test_photo_inputs_outlive_updates(files):
    """Gradio makes a component anew when it is updated: what functions get has to be a photo all the same."""
    with Page(analytics_enabled=False) as demo:
        photo, words = photo_input("Photo"), gr.Textbox()
        gr.on([], lambda photo: gr.update(elem_classes=["other"]), photo, photo, api_name="update")
        gr.on([], lambda photo: gr.skip(), photo, photo, api_name="skip")
        gr.on([], lambda photo: type(photo).__name__, photo, words, api_name="kind")
    _, url, _ = demo.launch(server_name="127.0.0.1", share=False, ssr_mode=False, quiet=True, prevent_thread_lock=True)
    try:
        for update in ("/update", "/skip"):
            client = Client(url, verbose=False)
            client.predict(files[0], api_name=update)
            assert client.predict(files[0], api_name="/kind") == "Photo"
    finally:
        demo.close()
