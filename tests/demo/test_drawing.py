"""Pictures of what encoders find: each thing has to be drawn where it is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from hf_ssl.demo.drawing import (
    GAP,
    MARK,
    SIDE,
    arrange,
    draw_matches,
    draw_patch,
    draw_photo,
    draw_similarities,
    drawn_size,
    place_colors,
    place_in_photo,
)


GRAY = 120
PALE = 255 - (255 - GRAY) // 3

sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000)).filter(lambda size: max(size) <= 20 * min(size))


def gray(width, height):
    return Image.new("RGB", (width, height), (GRAY,) * 3)


def box(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def whole(photo):
    return box(0, 0, photo.height, photo.width)


def pixels(picture):
    return np.asarray(picture).astype(int)


# ---- sizes ----


@given(sizes)
def test_drawn_size(size):
    """All photos are drawn large, and none is distorted."""
    drawn = drawn_size(size)
    assert SIDE / 2 < max(drawn) <= SIDE
    if max(size) <= SIDE:
        factor = SIDE // max(size)
        assert drawn == (size[0] * factor, size[1] * factor)
    else:
        scale = SIDE / max(size)
        assert max(drawn) == SIDE and all(abs(a - b * scale) <= 0.5 for a, b in zip(drawn, size, strict=True))


@given(sizes, st.floats(0, 1), st.floats(0, 1))
def test_places_in_drawn_photos(size, x, y):
    drawn = drawn_size(size)
    place = place_in_photo((y * drawn[1], x * drawn[0]), size)
    assert place == pytest.approx((y * size[1], x * size[0]))


def test_tiny_photos_have_sharp_pixels():
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_photo(Image.fromarray(values)), values.repeat(64, 0).repeat(64, 1))


def test_large_photos_are_reduced():
    """To the mean of what they show."""
    stripes = np.zeros((900, 1200, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    drawn = pixels(draw_photo(Image.fromarray(stripes)))
    assert drawn.shape == (384, 512, 3) and abs(drawn - 100).max() <= 25 and abs(drawn.mean() - 100) < 1


# ---- two photos ----


@given(sizes, sizes)
def test_arrangement(first, second):
    """Photos lie inside of the sheet, apart from each other, in the arrangement that is nearer to a square."""
    sheet = arrange(first, second)
    assert sheet.sizes == (drawn_size(first), drawn_size(second))
    for (left, top), (width, height) in zip(sheet.corners, sheet.sizes, strict=True):
        assert 0 <= left <= sheet.size[0] - width and 0 <= top <= sheet.size[1] - height
    (left1, top1), (left2, top2) = sheet.corners
    (width1, height1), (width2, height2) = sheet.sizes
    is_beside, is_below = left1 + width1 + GAP == left2, top1 + height1 + GAP == top2
    assert is_beside or is_below
    beside, below = max(width1 + GAP + width2, height1, height2), max(width1, width2, height1 + GAP + height2)
    assert max(sheet.size) == min(beside, below)


@given(sizes, sizes, st.integers(0, 1), st.floats(0, 0.999), st.floats(0, 0.999))
def test_finding_photos_on_the_sheet(first, second, number, x, y):
    sheet = arrange(first, second)
    (left, top), (width, height) = sheet.corners[number], sheet.sizes[number]
    found, place = sheet.find((top + y * height, left + x * width))
    assert found == number and place == pytest.approx((y * height, x * width), abs=1e-9)


def test_nothing_between_the_photos():
    beside = arrange((100, 300), (200, 300))
    edge = beside.sizes[0][0]
    assert beside.find((10, edge - 1)) == (0, (10, edge - 1))
    assert beside.find((10, edge)) is None and beside.find((10, edge + GAP - 1)) is None
    assert beside.find((10, edge + GAP)) == (1, (10, 0))
    below = arrange((300, 100), (300, 200))
    edge = below.sizes[0][1]
    assert below.find((edge + GAP / 2, 10)) is None and below.find((edge + GAP, 10)) == (1, (0, 10))


# ---- matches ----


@pytest.fixture
def matches():
    """A photo that is enlarged twice and one that is reduced to half; two pairs, with lines that cross no other tile."""
    photos = gray(240, 200), gray(1024, 800)
    boxes = (
        torch.stack([box(20, 20, 40, 30), box(140, 150, 40, 30)]),
        torch.stack([box(80, 160, 64, 96), box(600, 800, 64, 96)]),
    )
    return photos, boxes, (whole(photos[0]), whole(photos[1]))


def test_tiles_and_lines(matches):
    photos, boxes, areas = matches
    picture = draw_matches(*matches)
    sheet = arrange(photos[0].size, photos[1].size)
    assert picture.mode == "RGBA" and picture.size == sheet.size
    drawn, untouched = pixels(picture), np.ones(picture.size[::-1], dtype=bool)
    colors = place_colors(boxes[0], areas[0])
    centers = []
    for scale, corner, of_photo in zip((2, 0.5), sheet.corners, boxes, strict=True):
        for place, color in zip(of_photo.tolist(), colors, strict=True):
            top, left, height, width = (round(scale * number) for number in place)
            top, left = top + corner[1], left + corner[0]
            tile = drawn[top : top + height, left : left + width]
            edge = np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]])
            assert (edge == [*color, 255]).all(-1).mean() > 0.9  # but for the line
            tint = np.round(GRAY + (np.array(color) - GRAY) * 120 / 255)
            assert (abs(tile[2:-2, 2:-2, :3] - tint).max(-1) <= 2).mean() > 0.7
            untouched[top : top + height, left : left + width] = False
            centers.append((top + height / 2, left + width / 2))
    # The lines: their own color all the way, and not far from it the photo.
    rows, columns = np.mgrid[: picture.height, : picture.width] + 0.5
    for number, color in enumerate(colors):
        start, end = np.array(centers[number]), np.array(centers[number + 2])
        direction = (end - start) / np.linalg.norm(end - start)
        for share in np.linspace(0.05, 0.95, 40):
            y, x = (start + share * (end - start)).astype(int)
            assert abs(drawn[y - 1 : y + 2, x - 1 : x + 2, :3] - color).sum(-1).min() < 60
        distances = abs((rows - start[0]) * direction[1] - (columns - start[1]) * direction[0])
        untouched &= distances > 3
    for (left, top), (width, height) in zip(sheet.corners, sheet.sizes, strict=True):
        part = slice(top, top + height), slice(left, left + width)
        assert (drawn[part][untouched[part]] == [GRAY, GRAY, GRAY, 255]).all()
        untouched[part] = False
    assert untouched.any() and (drawn[untouched][:, 3] == 0).all()  # around the photos


def test_first_pairs_are_on_top():
    photos = gray(256, 256), gray(256, 256)
    boxes = (
        torch.stack([box(64, 64, 64, 64), box(96, 96, 64, 64)]),
        torch.stack([box(0, 0, 32, 32), box(0, 64, 32, 32)]),
    )
    drawn = pixels(draw_matches(photos, boxes, (whole(photos[0]), whole(photos[1]))))
    color = place_colors(boxes[0], whole(photos[0]))[0]
    assert (drawn[255, 150:250, :3] == color).all()  # the lower edge of the first tile, inside of the second one


def test_no_pairs():
    none = torch.zeros(0, 4, dtype=torch.float64)
    photos = gray(300, 400), gray(8, 8)
    drawn = pixels(draw_matches(photos, (none, none), (whole(photos[0]), whole(photos[1]))))
    assert ((drawn == [GRAY, GRAY, GRAY, 255]).all(-1) | (drawn[..., 3] == 0)).all()


def test_what_was_not_matched_is_pale():
    none = torch.zeros(0, 4, dtype=torch.float64)
    photos = gray(1024, 512), gray(256, 256)
    areas = box(0, 256, 512, 512), box(-64, -64, 384, 384)  # a crop, and a photo that was padded
    drawn = pixels(draw_matches(photos, (none, none), areas))[..., 0]
    first, second = drawn[:256, :512], drawn[-512:, :512]
    assert (first[:, 128:384] == GRAY).all() and (first[:, :128] == PALE).all() and (first[:, 384:] == PALE).all()
    assert (second == GRAY).all()


def test_place_colors():
    """Neighbors are alike, and opposite corners are not."""
    area = box(10, 20, 100, 200)
    corners = torch.stack(
        [box(10, 20, 2, 2), box(12, 20, 2, 2), box(10, 218, 2, 2), box(108, 20, 2, 2), box(108, 218, 2, 2)]
    )
    colors = np.array(place_colors(corners, area))
    assert abs(colors[0] - colors[1]).max() < 10
    assert all(abs(colors[0] - color).max() > 60 for color in colors[2:])
    assert colors[0].max() > 250 > 175 > colors[3].max() > 160


# ---- one patch, and similarities ----


def test_a_patch_is_framed():
    """The photo inside of the frame stays as it is, and so does what lies farther away than a few pixels."""
    drawn = pixels(draw_patch(gray(256, 128), box(32, 64, 32, 16), whole(gray(256, 128))))
    assert drawn.shape == (256, 512, 3)
    patch, around = drawn[64:128, 128:160], np.ones(drawn.shape[:2], dtype=bool)
    assert (patch == GRAY).all()
    around[60:132, 124:164] = False
    assert (drawn[around] == GRAY).all()
    for line in (drawn[62, 130:158], drawn[129, 130:158], drawn[66:126, 126], drawn[66:126, 161]):
        assert (line == MARK).all()
    assert (drawn[63, 130:158].max(-1) < 60).all() and (drawn[60, 130:158].max(-1) < 60).all()  # dark edges


def test_patch_at_the_border():
    drawn = pixels(draw_patch(gray(8, 8), box(0, 6, 2, 2), box(0, 0, 8, 8)))
    assert (drawn[:128, 384:] == GRAY).all() and (drawn[129, 390:] == MARK).all() and (drawn[:120, 382] == MARK).all()


@pytest.mark.parametrize(
    ("size", "area", "grid"),
    [
        ((256, 256), box(0, 0, 256, 256), (4, 4)),
        ((1024, 512), box(0, 256, 512, 512), (4, 8)),
        ((100, 60), box(-20, 0, 100, 100), (5, 10)),  # padded
        ((8, 8), box(0, 0, 8, 8), (4, 4)),
    ],
)
def test_similarities(size, area, grid):
    """The color in the middle of a patch is that of its similarity."""
    similarities = torch.linspace(-0.3, 0.9, grid[0] * grid[1])[
        torch.randperm(grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
    ].view(grid)
    far = box(0, 0, 1e-3, 1e-3)
    drawn = pixels(draw_similarities(gray(*size), similarities, far, area))
    width, height = drawn_size(size)
    assert drawn.shape == (height, width, 3)
    seen = 0
    for row in range(grid[0]):
        for column in range(grid[1]):
            y = (area[0] + (row + 0.5) * area[2] / grid[0]) * height / size[1]
            x = (area[1] + (column + 0.5) * area[3] / grid[1]) * width / size[0]
            if not (8 <= y < height and 8 <= x < width):
                continue
            share = float((similarities[row, column] + 0.3) / 1.2)
            expected = 0.4 * GRAY + 0.6 * np.array(colormaps["inferno"](share)[:3]) * 255
            assert abs(drawn[int(y), int(x)] - expected).max() <= 3, (row, column)
            seen += 1
    assert seen >= 0.5 * similarities.numel()
    outside = [
        drawn[y, x]
        for y, x in ((height - 1, 0), (height - 1, width - 1))
        if not (0 <= (x + 0.5) / width * size[0] - area[1] < area[3])
    ]
    assert all((pixel == PALE).all() for pixel in outside) and len(outside) == 2 * (size == (1024, 512))


def test_edges_of_patches_in_the_map():
    """A patch is bright from its first to its last pixel."""
    similarities = torch.zeros(4, 4)
    similarities[1, 2] = 1
    drawn = pixels(draw_similarities(gray(256, 256), similarities, box(200, 0, 20, 20), whole(gray(256, 256))))
    bright = drawn.sum(-1) > 450
    expected = np.zeros((512, 512), dtype=bool)
    expected[128:256, 256:384] = True
    np.testing.assert_array_equal(bright[:380], expected[:380])


def test_equal_similarities():
    drawn = pixels(draw_similarities(gray(64, 64), torch.full((2, 2), 0.5), box(0, 0, 32, 32), box(0, 0, 64, 64)))
    assert (drawn[300:] == drawn[300, 300]).all()
