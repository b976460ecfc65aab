from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.views import Draws
from hf_ssl.views.geometry import (
    correspondences,
    intersection,
    overlap_ratio,
    patch_centers,
    patch_edges,
    sampling_probabilities,
)


SOURCE = 40
GRIDS = st.tuples(st.integers(1, 8), st.integers(1, 8))


@st.composite
def box(draw):
    height, width = draw(st.integers(1, SOURCE)), draw(st.integers(1, SOURCE))
    top, left = draw(st.integers(0, SOURCE - height)), draw(st.integers(0, SOURCE - width))
    return [top, left, height, width, draw(st.integers(0, 1))]


@st.composite
def box_batch(draw, views=2):
    """For each of the views, boxes of shape (batch_size, 5)."""
    batch = draw(st.lists(st.tuples(*[box()] * views), min_size=1, max_size=4))
    return torch.tensor(batch).unbind(1)


def assert_close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


def cells(box, grid, flip_aware):
    """Top, left, bottom and right of each patch, one by one, as exact fractions."""
    top, left, height, width, flip = box
    for row in range(grid[0]):
        for column in range(grid[1]):
            place = grid[1] - 1 - column if flip and flip_aware else column
            y, x = top + Fraction(row * height, grid[0]), left + Fraction(place * width, grid[1])
            yield y, x, y + Fraction(height, grid[0]), x + Fraction(width, grid[1])


def reversed_columns(index, grid):
    return index // grid[1] * grid[1] + grid[1] - 1 - index % grid[1]


# Patches in the source


@settings(deadline=None, max_examples=50)
@given(box_batch(views=1), GRIDS, st.booleans())
def test_edges_and_centers(boxes, grid, flip_aware):
    rows, columns = patch_edges(boxes[0], grid, flip_aware)
    centers = patch_centers(boxes[0], grid, flip_aware)
    assert rows.shape == (len(boxes[0]), grid[0], 2) and columns.shape == (len(boxes[0]), grid[1], 2)
    assert centers.shape == (len(boxes[0]), grid[0] * grid[1], 2) and centers.dtype == torch.float64
    for i, one in enumerate(boxes[0].tolist()):
        for patch, (top, left, bottom, right) in enumerate(cells(one, grid, flip_aware)):
            assert_close(rows[i, patch // grid[1]], [float(top), float(bottom)])
            assert_close(columns[i, patch % grid[1]], [float(left), float(right)])
            assert_close(centers[i, patch], [float(top + bottom) / 2, float(left + right) / 2])


def test_centers_of_a_known_box():
    boxes = torch.tensor([[10, 20, 4, 12, 0], [10, 20, 4, 12, 1]])
    expected = [[11, 22], [11, 26], [11, 30], [13, 22], [13, 26], [13, 30]]
    mirrored = [expected[i] for i in (2, 1, 0, 5, 4, 3)]
    assert_close(patch_centers(boxes, (2, 3)), [expected, mirrored])
    assert_close(patch_centers(boxes, (2, 3), flip_aware=False), [expected, expected])
    assert_close(patch_centers(boxes[:, :4], (2, 3), flip_aware=False), [expected, expected])


# Intersection


@settings(deadline=None, max_examples=50)
@given(box_batch())
def test_intersection(boxes):
    shared = intersection(*boxes)
    assert shared.shape == (len(boxes[0]), 4) and shared.dtype == torch.int64
    for i in range(len(shared)):
        pixels = torch.zeros(2, SOURCE, SOURCE, dtype=torch.bool)
        for k in range(2):
            top, left, height, width, _ = boxes[k][i].tolist()
            pixels[k, top : top + height, left : left + width] = True
        top, left, height, width = shared[i].tolist()
        expected = torch.zeros(SOURCE, SOURCE, dtype=torch.bool)
        expected[top : top + height, left : left + width] = True
        assert torch.equal(pixels.all(0), expected)
        assert (height == 0 or width == 0) == (not expected.any())
    for same in (intersection(*boxes[::-1]), intersection(boxes[0][:, :4], boxes[1])):
        assert torch.equal(same, shared)


def test_touching_boxes_are_apart():
    first = torch.tensor([0, 0, 8, 8])
    others = torch.tensor([[0, 8, 8, 8], [8, 0, 8, 8], [20, 20, 1, 1], [7, 7, 8, 8]])
    shared = intersection(first, others)
    assert (shared[:, 2:] == 0).any(1).tolist() == [True, True, True, False]
    assert shared[3].tolist() == [7, 7, 1, 1] and (shared >= 0).all()


# PW-Self's correspondences


def slow_block(box, grid, shared, strict):
    """The patches that show the shared part, in the order of the source: a slice of the numbered grid."""
    (top, left, height, width, flip), (y0, x0, y1, x1) = box, shared
    row = round(grid[0] * ((y0 - top) / height))
    end_row = row + round(grid[0] * ((y1 - y0) / height))
    column = round(grid[1] * ((x0 - left) / width))
    end_column = column + round(grid[1] * ((x1 - x0) / width))
    if flip:
        column, end_column = grid[1] - end_column, grid[1] - column
        if not strict:
            column = max(column, 0)
    block = np.arange(grid[0] * grid[1]).reshape(grid)[row:end_row, column:end_column]
    return block[:, ::-1] if flip else block


def slow_correspondences(box1, box2, grid1, grid2, strict=False):
    shared = max(box1[0], box2[0]), max(box1[1], box2[1])
    shared += min(box1[0] + box1[2], box2[0] + box2[2]), min(box1[1] + box1[3], box2[1] + box2[3])
    if shared[0] >= shared[2] or shared[1] >= shared[3]:
        return [], []
    blocks = [slow_block(b, g, shared, strict) for b, g in ((box1, grid1), (box2, grid2))]
    for axis in (0, 1):
        shorter = min(block.shape[axis] for block in blocks)
        for k in (0, 1):
            if blocks[k].shape[axis] > shorter:
                kept = np.floor(np.linspace(0, blocks[k].shape[axis] - 1, shorter)).astype(int)
                blocks[k] = blocks[k].take(kept, axis)
    return blocks[0].flatten().tolist(), blocks[1].flatten().tolist()


def pairs(boxes1, boxes2, grid1, grid2, strict=False):
    """The two lists of patches of one pair of views."""
    index1, index2, valid = correspondences(boxes1, boxes2, grid1, grid2, strict)
    return index1[valid].tolist(), index2[valid].tolist()


# Widths that are multiples of small grids, so that half cells are common.
@st.composite
def aligned_box(draw):
    height, width = draw(st.sampled_from([10, 14, 20, 28])), draw(st.sampled_from([10, 14, 20, 28]))
    return [draw(st.integers(0, 12)), draw(st.integers(0, 12)), height, width, draw(st.integers(0, 1))]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.one_of(st.tuples(box(), box()), st.tuples(aligned_box(), aligned_box())), min_size=1, max_size=5),
    GRIDS,
    GRIDS,
    st.booleans(),
)
def test_correspondences_equal_the_slow_loop(batch, grid1, grid2, strict):
    boxes1, boxes2 = torch.tensor(batch).unbind(1)
    index1, index2, valid = correspondences(boxes1, boxes2, grid1, grid2, strict)
    places = min(grid1[0], grid2[0]) * min(grid1[1], grid2[1])
    assert index1.shape == index2.shape == valid.shape == (len(batch), places)
    assert index1.dtype == index2.dtype == torch.int64 and valid.dtype == torch.bool
    assert (index1[~valid] == 0).all() and (index2[~valid] == 0).all()
    for i, (box1, box2) in enumerate(batch):
        expected = slow_correspondences(box1, box2, grid1, grid2, strict)
        assert (index1[i][valid[i]].tolist(), index2[i][valid[i]].tolist()) == expected


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grid", [(28, 28), (14, 6), (12, 28)])
def test_correspondences_of_large_grids(grid, strict):
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(40, 224, (200, 2, 2), generator=generator)
    place = (torch.rand(200, 2, 2, generator=generator) * (256 - size)).long()
    flips = torch.randint(0, 2, (200, 2, 1), generator=generator)
    boxes1, boxes2 = torch.cat([place, size, flips], dim=-1).unbind(1)
    index1, index2, valid = correspondences(boxes1, boxes2, (28, 28), grid, strict)
    for i in range(200):
        expected = slow_correspondences(boxes1[i].tolist(), boxes2[i].tolist(), (28, 28), grid, strict)
        assert (index1[i][valid[i]].tolist(), index2[i][valid[i]].tolist()) == expected


# For two views of a source of 256 x 256 pixels: box, side of the grid, and the matched tokens (0 is the class token).
RECORDED_FROM_THE_AUTHORS_CODE = {
    "both flipped": (
        ([12, 61, 239, 190, 1], 7, [0, 7, 5, 14, 12, 21, 19]),
        ([11, 33, 104, 98, 1], 3, [0, 2, 1, 5, 4, 8, 7]),
    ),
    "thinned rows and columns": (
        ([23, 28, 152, 183, 1], 7, [0, 14, 13, 11, 49, 48, 46]),
        ([45, 15, 156, 122, 1], 3, [0, 3, 2, 1, 6, 5, 4]),
    ),
    "no flips": (
        ([20, 8, 204, 203, 0], 7, [0, 25, 26, 27, 32, 33, 34]),
        ([120, 88, 68, 81, 0], 3, [0, 1, 2, 3, 7, 8, 9]),
    ),
    "second flipped": (([40, 49, 169, 169, 0], 4, [0, 7, 8, 15, 16]), ([73, 114, 127, 120, 1], 2, [0, 2, 1, 4, 3])),
    "equal grids": (
        ([4, 45, 219, 193, 1], 4, [0, 4, 3, 2, 8, 7, 6, 12, 11, 10]),
        ([17, 48, 182, 153, 1], 4, [0, 4, 3, 1, 8, 7, 5, 16, 15, 13]),
    ),
    "thin overlap": (([0, 22, 158, 207, 0], 4, [0]), ([141, 53, 93, 97, 0], 2, [0])),
    "no overlap": (([0, 0, 64, 64, 0], 14, [0]), ([128, 128, 64, 64, 0], 6, [0])),
    "touching edges": (([0, 0, 64, 64, 1], 14, [0]), ([0, 64, 64, 64, 0], 14, [0])),
    "less than half a patch": (([0, 0, 200, 200, 0], 14, [0]), ([0, 197, 59, 59, 0], 6, [0])),
    "one column too many, flipped": (([0, 0, 140, 140, 1], 7, [0]), ([0, 30, 140, 140, 0], 7, [0])),
}


# The one case in which `strict` matters: mended, the patches are as many as without the flip.
OVERFLOW = "one column too many, flipped"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("case", RECORDED_FROM_THE_AUTHORS_CODE)
def test_recorded_correspondences(case, strict):
    (box1, side1, tokens1), (box2, side2, tokens2) = RECORDED_FROM_THE_AUTHORS_CODE[case]
    index1, index2 = pairs(torch.tensor(box1), torch.tensor(box2), (side1, side1), (side2, side2), strict)
    if case == OVERFLOW and not strict:
        assert len(index1) == len(index2) == 35
    else:
        assert [0] + [i + 1 for i in index1] == tokens1
        assert [0] + [i + 1 for i in index2] == tokens2


def test_one_column_too_many():
    """1.5 + 5.5 columns of 7 are rounded to 2 + 6; recorded from the authors' code: 35 pairs, none if flipped."""
    box1, box2, grid = torch.tensor([0, 0, 140, 140, 0]), torch.tensor([0, 30, 140, 140, 0]), (7, 7)
    flipped = box1 + torch.tensor([0, 0, 0, 0, 1])
    index1, index2 = pairs(box1, box2, grid, grid, strict=True)
    assert len(index1) == 35 and index1[:5] == [2, 3, 4, 5, 6] and index2[:5] == [0, 1, 2, 3, 5]
    assert pairs(box1, box2, grid, grid) == (index1, index2)
    assert pairs(flipped, box2, grid, grid, strict=True) == ([], [])
    mended1, mended2 = pairs(flipped, box2, grid, grid)
    assert mended1[:5] == [4, 3, 2, 1, 0] and len(mended1) == 35 and mended2 == index2
    by_default = correspondences(flipped, box2, grid, grid)
    mended = correspondences(flipped, box2, grid, grid, strict=False)
    assert all(torch.equal(a, b) for a, b in zip(by_default, mended, strict=True))


def test_one_row_too_many():
    """Rows are never mirrored: the same numbers lose one row, whatever the flip."""
    for flip in (0, 1):
        index1, index2 = pairs(
            torch.tensor([0, 0, 140, 140, flip]), torch.tensor([30, 0, 140, 140, 0]), (7, 7), (7, 7)
        )
        assert len(index1) == 35
        assert {i // 7 for i in index1} == {2, 3, 4, 5, 6} and {i // 7 for i in index2} == {0, 1, 2, 3, 5}


@pytest.mark.parametrize("cells", [3, 7, 12, 28])
def test_every_begin_and_length_is_rounded_like_python(cells):
    """The second view is a part of the first, left or right, and has as many columns: none of the first is skipped."""
    parts = [part for w in range(1, 257) for cut in range(1, w) for part in ((0, cut, w), (cut, w - cut, w))]
    boxes1 = torch.tensor([[0, 0, 9, width, 0] for _, _, width in parts])
    boxes2 = torch.tensor([[0, left, 9, shared, 0] for left, shared, _ in parts])
    index1, _, valid = correspondences(boxes1, boxes2, (1, cells), (1, cells))
    columns = range(cells)
    begins = [round(cells * (left / width)) for left, _, width in parts]
    lengths = [round(cells * (shared / width)) for _, shared, width in parts]
    expected = [columns[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]
    assert valid.sum(1).tolist() == [len(part) for part in expected]
    assert index1[:, 0].tolist() == [part[0] if part else 0 for part in expected]


def test_thinning_is_that_of_numpy():
    whole = torch.tensor([0, 0, 60, 60, 0])
    for longer in range(1, 60):
        for shorter in range(1, longer + 1):
            index1, index2 = pairs(whole, whole, (longer, 1), (shorter, 1))
            assert index1 == np.floor(np.linspace(0, longer - 1, shorter)).astype(int).tolist()
            assert index2 == list(range(shorter))


@settings(deadline=None, max_examples=50)
@given(box_batch(), GRIDS, GRIDS, st.booleans())
def test_the_order_of_the_views_does_not_matter(boxes, grid1, grid2, strict):
    index1, index2, valid = correspondences(*boxes, grid1, grid2, strict)
    swapped2, swapped1, same = correspondences(*boxes[::-1], grid2, grid1, strict)
    assert torch.equal(index1, swapped1) and torch.equal(index2, swapped2) and torch.equal(valid, same)


@settings(deadline=None, max_examples=50)
@given(box_batch(), GRIDS, GRIDS)
def test_flipping_both_views_mirrors_the_pairs(boxes, grid1, grid2):
    toggle = torch.tensor([0, 0, 0, 0, 1])
    index1, index2, valid = correspondences(*boxes, grid1, grid2)
    mirrored1, mirrored2, same = correspondences(*(b ^ toggle for b in boxes), grid1, grid2)
    assert torch.equal(valid, same)
    assert torch.equal(mirrored1[valid], reversed_columns(index1[valid], grid1))
    assert torch.equal(mirrored2[valid], reversed_columns(index2[valid], grid2))


@settings(deadline=None, max_examples=50)
@given(box_batch(), GRIDS, GRIDS)
def test_options_differ_only_in_that_one_matches_nothing(boxes, grid1, grid2):
    strict1, strict2, kept = correspondences(*boxes, grid1, grid2, strict=True)
    index1, index2, valid = correspondences(*boxes, grid1, grid2)
    whole = kept.any(-1)
    assert torch.equal(valid[whole], kept[whole])
    assert torch.equal(index1[whole], strict1[whole]) and torch.equal(index2[whole], strict2[whole])


@settings(deadline=None, max_examples=30)
@given(box_batch(views=1), GRIDS)
def test_a_view_corresponds_to_itself(boxes, grid):
    everything = torch.arange(grid[0] * grid[1]).expand(len(boxes[0]), -1)
    in_source_order = torch.where(boxes[0][:, 4:] != 0, reversed_columns(everything, grid), everything)
    index1, index2, valid = correspondences(boxes[0], boxes[0], grid, grid)
    assert valid.all() and torch.equal(index1, in_source_order) and torch.equal(index2, in_source_order)
    unflipped = boxes[0] * torch.tensor([1, 1, 1, 1, 0])
    index1, index2, valid = correspondences(boxes[0], unflipped, grid, grid)
    assert valid.all() and torch.equal(index1, in_source_order) and torch.equal(index2, everything)


def test_matched_patches_lie_close_together():
    boxes1, boxes2 = torch.tensor([[10, 20, 100, 120, 1]]), torch.tensor([[40, 5, 110, 100, 0]])
    index1, index2, valid = correspondences(boxes1, boxes2, (10, 10), (11, 10))
    places = [patch_centers(b, g)[0][i[valid]] for b, g, i in ((boxes1, (10, 10), index1), (boxes2, (11, 10), index2))]
    assert valid.sum() > 40
    assert (places[0] - places[1]).abs().max() <= 12  # the larger side of a patch


def test_leading_dimensions_broadcast():
    views = torch.tensor([[4, 45, 219, 193, 1], [17, 48, 182, 153, 0], [20, 8, 204, 203, 0]])
    index1, index2, valid = correspondences(views[:2, None], views, (4, 4), (3, 5))
    assert index1.shape == (2, 3, 12)
    for i in range(2):
        for j in range(3):
            alone = correspondences(views[i], views[j], (4, 4), (3, 5))
            together = index1[i, j], index2[i, j], valid[i, j]
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_the_loss_of_a_batch():
    """The formula of the docstring equals the mean over each pair's own list of tokens."""
    boxes1 = torch.tensor([[4, 45, 219, 193, 1], [0, 0, 64, 64, 0], [23, 28, 152, 183, 0]])
    boxes2 = torch.tensor([[17, 48, 182, 153, 0], [128, 128, 64, 64, 0], [45, 15, 156, 122, 1]])
    tokens1, tokens2 = (torch.rand(3, 1 + n, 8, generator=torch.Generator().manual_seed(n)) for n in (16, 9))
    index1, index2, valid = correspondences(boxes1, boxes2, (4, 4), (3, 3))
    patches1 = tokens1[:, 1:].gather(1, index1[..., None].expand(-1, -1, 8))
    patches2 = tokens2[:, 1:].gather(1, index2[..., None].expand(-1, -1, 8))
    patch_loss, class_loss = (patches1 * patches2).sum(-1), (tokens1[:, 0] * tokens2[:, 0]).sum(-1)
    loss = (class_loss + (patch_loss * valid).sum(-1)) / (1 + valid.sum(-1))
    for i in range(3):
        list1, list2 = slow_correspondences(boxes1[i].tolist(), boxes2[i].tolist(), (4, 4), (3, 3))
        picked1, picked2 = tokens1[i, [0] + [k + 1 for k in list1]], tokens2[i, [0] + [k + 1 for k in list2]]
        torch.testing.assert_close(loss[i], (picked1 * picked2).sum(-1).mean())


# APS's overlap


def slow_overlap_ratio(box1, box2, selected, grid, flip_aware):
    first = list(cells(box1, grid, flip_aware))
    ratio = []
    for top, left, bottom, right in cells(box2, grid, flip_aware):
        covered = Fraction(0)
        for k in selected:
            height = min(bottom, first[k][2]) - max(top, first[k][0])
            width = min(right, first[k][3]) - max(left, first[k][1])
            covered += max(height, 0) * max(width, 0)
        ratio.append(float(1 - covered / ((bottom - top) * (right - left))))
    return ratio


SMALL_GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(deadline=None, max_examples=60)
@given(st.data(), box_batch(), SMALL_GRIDS, st.booleans())
def test_overlap_equals_the_slow_loop(data, boxes, grid, flip_aware):
    count = data.draw(st.integers(0, grid[0] * grid[1]))
    orders = st.permutations(range(grid[0] * grid[1]))
    selected = torch.tensor([data.draw(orders)[:count] for _ in boxes[0]], dtype=torch.int64)
    ratio = overlap_ratio(*boxes, selected, grid, flip_aware)
    expected = [
        slow_overlap_ratio(*pair, grid, flip_aware)
        for pair in zip(*(b.tolist() for b in boxes), selected.tolist(), strict=True)
    ]
    assert ratio.shape == (len(boxes[0]), grid[0] * grid[1])
    assert_close(ratio, expected)
    assert (ratio >= 0).all() and ((ratio == 0) == (torch.tensor(expected) < 1e-6)).all()


# The first sampling of two images, 8 x 8 patches, sampling power 3: (top, left, height, width) of both views, their
# flips, and the selected patches of the first view.
RECORDED_VIEWS = {
    "both flipped": ([2, 0, 27, 28, 1], [3, 12, 13, 13, 1]),
    "first flipped": ([2, 2, 19, 20, 1], [15, 0, 16, 15, 0]),
}
RECORDED_SELECTED = {
    "both flipped": [10, 31, 9, 53, 33, 1, 57, 61, 47, 59, 63, 43, 55, 12, 36, 62],
    "first flipped": [31, 18, 44, 51, 20, 62, 21, 10, 6, 42, 29, 59, 56, 38, 14, 55],
}
# Recorded from the authors' code: the second row of the map, and its probabilities.
RECORDED_RATIO = {
    "both flipped": [1.0, 0.5857988165680473, 0.46153846153846156, 0.7928994082840237, 1.0, 1.0, 1.0, 1.0],
    "first flipped": [1.0, 0.825, 0.925, 1.0, 1.0, 0.06666666666666671, 0.6000000000000001, 1.0],
}
RECORDED_PROBABILITIES = {
    "both flipped": [
        0.018584794201394847,
        0.0037359686759553187,
        0.0018271804949937583,
        0.009264287786641848,
        0.018584794201394847,
        0.018584794201394847,
        0.018584794201394847,
        0.018584794201394847,
    ],
    "first flipped": [
        0.018475914539058544,
        0.010374514699846042,
        0.01462282029917082,
        0.018475914539058544,
        0.018475914539058544,
        5.474345048609949e-06,
        0.003990797540436648,
        0.018475914539058544,
    ],
}


@pytest.mark.parametrize("case", RECORDED_VIEWS)
def test_recorded_overlap(case):
    boxes1, boxes2 = (torch.tensor(b) for b in RECORDED_VIEWS[case])
    ratio = overlap_ratio(boxes1, boxes2, torch.tensor(RECORDED_SELECTED[case]), (8, 8))
    assert_close(ratio[8:16], RECORDED_RATIO[case])
    assert_close(sampling_probabilities(ratio, 3)[8:16], RECORDED_PROBABILITIES[case])


@settings(deadline=None, max_examples=30)
@given(box_batch(), SMALL_GRIDS, st.integers(0, 2**31))
def test_flips_mirror_the_overlap(boxes, grid, seed):
    count = grid[0] * grid[1]
    order = torch.rand(len(boxes[0]), count, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    selected = order[:, : count // 2]
    unflipped = [b * torch.tensor([1, 1, 1, 1, 0]) for b in boxes]
    official = overlap_ratio(*boxes, selected, grid)
    assert torch.equal(official, overlap_ratio(*unflipped, selected, grid, flip_aware=True))
    assert torch.equal(official, overlap_ratio(boxes[0][:, :4], boxes[1][:, :4], selected, grid))

    mirrored = torch.where(boxes[0][:, 4:] != 0, reversed_columns(selected, grid), selected)
    expected = overlap_ratio(*boxes, mirrored, grid).unflatten(-1, grid)
    expected = torch.where(boxes[1][:, 4, None, None] != 0, expected.flip(-1), expected).flatten(-2)
    assert_close(overlap_ratio(*boxes, selected, grid, flip_aware=True), expected)


def test_several_samplings_of_one_pair_of_views():
    boxes1, boxes2 = (
        torch.stack(b) for b in zip(*(map(torch.tensor, v) for v in RECORDED_VIEWS.values()), strict=True)
    )
    selected = torch.stack([torch.tensor(s).view(4, 4) for s in RECORDED_SELECTED.values()])
    ratio = overlap_ratio(boxes1[:, None], boxes2[:, None], selected, (8, 8))
    assert ratio.shape == (2, 4, 64)
    for i in range(2):
        for t in range(4):
            assert torch.equal(ratio[i, t], overlap_ratio(boxes1[i], boxes2[i], selected[i, t], (8, 8)))
    # Disjoint selections cover disjoint parts.
    everything = overlap_ratio(boxes1, boxes2, selected.flatten(1), (8, 8))
    assert_close(1 - (1 - ratio).sum(1), everything, 1e-6)


def test_the_same_view_twice():
    boxes = torch.tensor([3, 5, 20, 24, 0])
    ratio = overlap_ratio(boxes, boxes, torch.tensor([0, 7, 4]), (3, 4))
    assert ratio.tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1]
    opposite = overlap_ratio(boxes, boxes + torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 6]), (3, 4), True)
    assert opposite.tolist() == [1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("width,expected", [(10**4, 1e-4), (10**7, 0.0)])
def test_tiny_shares_are_none(width, expected):
    almost = torch.tensor([0, 0, 1, width - 1])
    assert_close(overlap_ratio(almost, torch.tensor([0, 0, 1, width]), torch.tensor([0]), (1, 1)), [expected])


def test_no_overlap_is_uniform():
    ratio = overlap_ratio(torch.tensor([0, 0, 8, 8]), torch.tensor([8, 0, 8, 8]), torch.arange(8), (4, 4))
    assert (ratio == 1).all()
    assert (sampling_probabilities(ratio, 3) == 1 / 16).all()


def test_one_pixel_boxes():
    pixel = torch.tensor([5, 5, 1, 1, 1])
    assert (overlap_ratio(pixel, pixel, torch.arange(16), (4, 4)) == 0).all()
    assert (overlap_ratio(torch.tensor([0, 0, 16, 16, 0]), pixel, torch.tensor([5]), (4, 4)) == 0).all()
    assert (overlap_ratio(pixel, torch.tensor([0, 0, 4, 4, 0]), torch.arange(16), (4, 4)) == 1).all()
    index1, index2, valid = correspondences(pixel, pixel - torch.tensor([0, 0, 0, 0, 1]), (1, 3), (1, 3))
    assert valid.all() and index1.tolist() == [2, 1, 0] and index2.tolist() == [0, 1, 2]
    assert patch_centers(pixel, (1, 2)).tolist() == [[5.5, 5.75], [5.5, 5.25]]


@pytest.mark.parametrize("power", [0, 1, 3, 2.5])
def test_probabilities(power):
    ratio = torch.tensor([[0.0, 0.25, 0.5, 1.0], [0.0, 0.0, 0.0, 1e-5]], dtype=torch.float64)
    weights = ratio.numpy() ** power
    assert_close(sampling_probabilities(ratio, power), weights / weights.sum(1, keepdims=True))


def test_patches_are_sampled_from_what_is_uncovered():
    boxes = torch.tensor([0, 0, 8, 8, 0])
    samples = torch.zeros(200, dtype=torch.int64), torch.arange(200)
    for covered in (1, 3, 4):  # with 4, all probabilities are 0
        ratio = overlap_ratio(boxes, boxes, torch.arange(covered), (2, 2)).expand(200, -1)
        choices = Draws.for_samples(0, *samples).weighted_choice("patches", sampling_probabilities(ratio, 3), 2)
        uncovered = min(4 - covered, 2)
        assert (choices[:, :uncovered] >= covered).all() and (choices[:, uncovered:] < covered).all()
        assert len(choices[:, 0].unique()) == (4 - covered or 4)


# All of them


def test_no_images():
    boxes = torch.zeros(0, 5, dtype=torch.int64)
    assert patch_centers(boxes, (2, 3)).shape == (0, 6, 2)
    assert intersection(boxes, boxes).shape == (0, 4)
    assert [part.shape for part in correspondences(boxes, boxes, (4, 4), (3, 5))] == [(0, 12)] * 3
    ratio = overlap_ratio(boxes, boxes, torch.zeros(0, 2, dtype=torch.int64), (2, 3))
    assert ratio.shape == (0, 6)
    assert sampling_probabilities(ratio, 3).shape == (0, 6)


def test_nothing_is_read_back_from_the_device():
    """Tensors of the meta device have no values: reading one is an error."""
    boxes = torch.zeros(6, 5, dtype=torch.int64, device="meta")
    assert patch_centers(boxes, (2, 3)).device.type == "meta"
    parts = correspondences(boxes, boxes, (4, 4), (3, 5))
    assert [part.device.type for part in parts] == ["meta"] * 3
    ratio = overlap_ratio(boxes, boxes, torch.zeros(6, 2, dtype=torch.int64, device="meta"), (2, 3), flip_aware=True)
    assert sampling_probabilities(ratio, 3).device.type == "meta"
