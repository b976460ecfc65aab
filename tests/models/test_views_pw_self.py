"""PW-Self's views, and which of their patches are matched."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTConfig

from hf_ssl import PWSelfConfig, match_views
from hf_ssl.models.pw_self import PWSelfViews, PWSelfViewsConfig
from hf_ssl.views import Draws, MultiViewPipeline, View

from ..training.common import make_trainer


# ---- matches ----


def slow_cells(start, length, low, high, cells, flip, strict):
    """Rows or columns of a view that show what lies from `low` to `high`, in the order of the canvas."""
    begin = round(cells * ((low - start) / length))
    end = begin + round(cells * ((high - low) / length))
    if flip:
        begin, end = cells - end, cells - begin
        begin = begin if strict else max(begin, 0)
    numbers = list(range(cells))[begin:end]  # from -1 on, the slice is empty: the authors' overflow
    return numbers[::-1] if flip else numbers


def thin_out(numbers, count):
    """The longer list, cut to the length of the shorter one, its first and its last kept."""
    if len(numbers) == count:
        return numbers
    return [numbers[int(place)] for place in np.floor(np.linspace(0, len(numbers) - 1, count))]


def slow_pairs(teacher, student, grid, student_grid, strict=False):
    """The authors' algorithm for the boxes of two views: patches of the first one and of the second, in their order."""
    low = [max(teacher[axis], student[axis]) for axis in (0, 1)]
    high = [min(teacher[axis] + teacher[axis + 2], student[axis] + student[axis + 2]) for axis in (0, 1)]
    if low[0] >= high[0] or low[1] >= high[1]:
        return []
    axes = []
    for axis in (0, 1):
        cells = [
            slow_cells(box[axis], box[axis + 2], low[axis], high[axis], of_view[axis], axis and box[4], strict)
            for box, of_view in ((teacher, grid), (student, student_grid))
        ]
        count = min(map(len, cells))
        axes.append(list(zip(*(thin_out(numbers, count) for numbers in cells), strict=True)))
    return [(r1 * grid[1] + c1, r2 * student_grid[1] + c2) for r1, r2 in axes[0] for c1, c2 in axes[1]]


def taken(matches):
    """The pairs of one image and one pair of views; a place is free on both sides or on none."""
    pairs = [tuple(pair) for pair in matches.tolist()]
    assert all(pair == (-1, -1) or min(pair) >= 0 for pair in pairs)
    return [pair for pair in pairs if pair != (-1, -1)]


def assert_slow(matches, boxes, grid, local_grid, strict=False):
    """`match_views` of a batch against the loop."""
    global_matches, local_matches = matches
    for image, views in enumerate(boxes.tolist()):
        for teacher in (0, 1):
            expected = slow_pairs(views[teacher], views[1 - teacher], grid, grid, strict)
            assert taken(global_matches[teacher, image]) == expected
            for number, small in enumerate(views[2:]):
                expected = slow_pairs(views[teacher], small, grid, local_grid, strict)
                assert taken(local_matches[teacher, number, image]) == expected


@st.composite
def any_box(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return [
        draw(st.integers(0, 40 - height)),
        draw(st.integers(0, 40 - width)),
        height,
        width,
        draw(st.integers(0, 1)),
    ]


@st.composite
def aligned_box(draw):
    """Of sizes that small grids divide: half patches, and one column too many, are common."""
    height, width = draw(st.sampled_from([10, 14, 20])), draw(st.sampled_from([10, 14, 20]))
    return [draw(st.integers(0, 20)), draw(st.integers(0, 20)), height, width, draw(st.integers(0, 1))]


SIDES = st.integers(1, 8)


@st.composite
def problems(draw):
    """The arguments of `match_views`."""
    views, box = draw(st.integers(2, 5)), draw(st.sampled_from([any_box(), aligned_box()]))
    boxes = draw(st.lists(st.lists(box, min_size=views, max_size=views), min_size=1, max_size=3))
    return torch.tensor(boxes), (draw(SIDES), draw(SIDES)), (draw(SIDES), draw(SIDES))


@settings(deadline=None, max_examples=100)
@given(problems(), st.booleans())
def test_matches_are_those_of_the_loop(problem, strict):
    boxes, grid, local_grid = problem
    untouched = boxes.clone()
    matches = match_views(*problem, strict)
    places, local_places = grid[0] * grid[1], min(grid[0], local_grid[0]) * min(grid[1], local_grid[1])
    assert matches[0].shape == (2, len(boxes), places, 2)
    assert matches[1].shape == (2, boxes.shape[1] - 2, len(boxes), local_places, 2)
    assert {tensor.dtype for tensor in matches} == {torch.int64}
    assert_slow(matches, *problem, strict)
    assert torch.equal(boxes, untouched)


@settings(deadline=None, max_examples=60)
@given(problems())
def test_no_patch_is_matched_twice(problem):
    """Of a pair of views; and all patches are among those that there are."""
    boxes, grid, local_grid = problem
    for matches, student_grid in zip(match_views(*problem), (grid, local_grid), strict=True):
        for of_pair in matches.flatten(0, -3):
            pairs = taken(of_pair)
            for patches, (rows, columns) in zip(zip(*pairs, strict=True), (grid, student_grid), strict=False):
                assert len(set(patches)) == len(patches)
                assert min(patches) >= 0 and max(patches) < rows * columns


@settings(deadline=None, max_examples=60)
@given(problems())
def test_swapped_large_views(problem):
    """The first becomes the second: as the teacher's, and as the student's."""
    boxes, *grids = problem
    of_large, of_small = match_views(*problem)
    swapped = boxes.clone()
    swapped[:, :2] = boxes[:, :2].flip(1)
    swapped_large, swapped_small = match_views(swapped, *grids)
    assert torch.equal(swapped_large, of_large.flip(0)) and torch.equal(swapped_small, of_small.flip(0))
    assert torch.equal(of_large[0].flip(-1), of_large[1]), "teacher and student change places"


@settings(deadline=None, max_examples=60)
@given(problems(), st.data())
def test_mirrored_views_have_mirrored_patches(problem, data):
    """One view of each image, mirrored: its own columns change, and nothing else."""
    boxes, grid, local_grid = problem
    view = data.draw(st.integers(0, boxes.shape[1] - 1))
    mirrored = boxes.clone()
    mirrored[:, view, 4] = 1 - boxes[:, view, 4]

    def mirror(patches, columns):
        return torch.where(patches < 0, -1, patches // columns * columns + columns - 1 - patches % columns)

    of_large, of_small = match_views(*problem)
    if view < 2:
        of_large[view, ..., 0] = mirror(of_large[view, ..., 0], grid[1])
        of_large[1 - view, ..., 1] = mirror(of_large[1 - view, ..., 1], grid[1])
        of_small[view, ..., 0] = mirror(of_small[view, ..., 0], grid[1])
    else:
        of_small[:, view - 2, ..., 1] = mirror(of_small[:, view - 2, ..., 1], local_grid[1])
    found = match_views(mirrored, grid, local_grid)
    assert torch.equal(found[0], of_large) and torch.equal(found[1], of_small)


@settings(deadline=None, max_examples=30)
@given(problems())
def test_images_and_small_views_are_matched_on_their_own(problem):
    boxes, *grids = problem
    of_large, of_small = match_views(*problem)
    for image in range(len(boxes)):
        alone = match_views(boxes[image : image + 1], *grids)
        assert torch.equal(alone[0], of_large[:, image : image + 1])
        assert torch.equal(alone[1], of_small[:, :, image : image + 1])
    backwards = torch.cat([boxes[:, :2], boxes[:, 2:].flip(1)], dim=1)
    assert torch.equal(match_views(backwards, *grids)[1], of_small.flip(1))


# Recorded from the authors' code, whose tokens are counted from 1: a large view, a small one, their grids, patches.
RECORDED = [
    ([40, 49, 169, 169, 0], [73, 114, 127, 120, 1], 4, 2, [(6, 1), (7, 0), (14, 3), (15, 2)]),
    (
        [12, 61, 239, 190, 1],
        [11, 33, 104, 98, 1],
        7,
        3,
        [(6, 1), (4, 0), (13, 4), (11, 3), (20, 7), (18, 6)],
    ),
    (
        [20, 8, 204, 203, 0],
        [120, 88, 68, 81, 0],
        7,
        3,
        [(24, 0), (25, 1), (26, 2), (31, 6), (32, 7), (33, 8)],
    ),
    ([0, 22, 158, 207, 0], [141, 53, 93, 97, 0], 4, 2, []),  # they share less than half a patch
]


@pytest.mark.parametrize(("large", "small", "side", "local_side", "expected"), RECORDED)
def test_recorded_matches(large, small, side, local_side, expected):
    """The small view meets the same large one twice."""
    matches = match_views(torch.tensor([[large, large, small]]), (side, side), (local_side, local_side))[1]
    assert taken(matches[0, 0, 0]) == taken(matches[1, 0, 0]) == expected
    assert slow_pairs(large, small, (side, side), (local_side, local_side)) == expected


def test_the_same_box_twice():
    boxes = torch.tensor([[[3, 5, 17, 22, 0], [3, 5, 17, 22, 1]]])
    matches, none = match_views(boxes, (2, 3), (1, 1))
    assert taken(matches[0, 0]) == [(0, 2), (1, 1), (2, 0), (3, 5), (4, 4), (5, 3)]
    assert none.shape == (2, 0, 1, 1, 2)


def test_no_images():
    of_large, of_small = match_views(torch.zeros(0, 5, 5, dtype=torch.int64), (4, 4), (2, 2))
    assert of_large.shape == (2, 0, 16, 2) and of_small.shape == (2, 3, 0, 4, 2)


def test_nothing_is_read_back_from_the_device():
    """Tensors of the meta device have no values: reading one is an error."""
    boxes = torch.zeros(6, 4, 5, dtype=torch.int64, device="meta")
    assert [tensor.device.type for tensor in match_views(boxes, (4, 4), (2, 2), True)] == ["meta"] * 2


# ---- views ----


def model_config(image_size=16, patch_size=4, **overrides):
    backbone = ViTConfig(
        image_size=image_size, patch_size=patch_size, hidden_size=12, num_attention_heads=2, num_hidden_layers=1
    )
    return PWSelfConfig(backbone_config=backbone, **{"num_local_views": 3, "geometry": "sample", **overrides})


def views_config(local_size=8, **overrides):
    """The authors' views, for small images."""
    config = PWSelfViewsConfig(**{"canvas": 24, **overrides})
    config.local.size = local_size
    return config


def plain_config(local_size=8, step=1, **overrides):
    """Views without any change of colors; their values are those of the images, from 0 to 255, by `step`."""
    large, small = [0.4, 1.0], [0.05, 0.4]
    views = {name: View(scale=large, interpolation="bicubic") for name in ("global1", "global2")}
    views["local"] = View(size=local_size, scale=small, interpolation="bicubic")
    return PWSelfViewsConfig(**views, image_mean=[0.0] * 3, image_std=[step / 255] * 3, **{"canvas": 24, **overrides})


def make_views(seed=0, config=None, **overrides):
    return PWSelfViews(config or views_config(), model_config(**overrides), seed)


def make_source_batch(size=6, epoch=0, height=30, width=20):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8, generator=generator)
    return {"images": images, "index": torch.arange(size), "epoch": torch.full((size,), epoch)}


def draws_of(step=0, micro_batch=0, rank=0):
    return Draws.for_batch(0, step, micro_batch, rank)


def images_of(name, tensor):
    """A tensor of the views with its images first."""
    return tensor.movedim(
        {"pixel_values": 1, "local_pixel_values": 1, "global_matches": 1, "local_matches": 2}[name], 0
    )


@pytest.mark.parametrize(("geometry", "rows"), [("sample", 6), ("batch", 1)])
def test_shapes(geometry, rows):
    inputs = make_views(geometry=geometry)(make_source_batch(), draws_of())
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in inputs.items()} == {
        "pixel_values": (torch.float32, (2, 6, 3, 16, 16)),
        "local_pixel_values": (torch.float32, (3, 6, 3, 8, 8)),
        "global_matches": (torch.int64, (2, rows, 16, 2)),
        "local_matches": (torch.int64, (2, 3, rows, 4, 2)),
    }


@pytest.mark.parametrize(("geometry", "rows"), [("sample", 6), ("batch", 1)])
def test_without_small_views(geometry, rows):
    """Those that there are remain what they were."""
    inputs = make_views(geometry=geometry, num_local_views=0)(make_source_batch(), draws_of())
    assert list(inputs) == ["pixel_values", "global_matches"]
    assert inputs["pixel_values"].shape == (2, 6, 3, 16, 16) and inputs["global_matches"].shape == (2, rows, 16, 2)
    with_small = make_views(geometry=geometry)(make_source_batch(), draws_of())
    assert all(torch.equal(with_small[name], tensor) for name, tensor in inputs.items())
    PWSelfViews(
        PWSelfViewsConfig(local=View(size=10)), model_config(num_local_views=0)
    )  # no matter what they would be


def test_pixels_are_those_of_the_pipeline():
    views, batch = make_views(seed=3), make_source_batch()
    plain = MultiViewPipeline(views.views, views.image_mean, views.image_std, seed=3, canvas=24)
    expected, found = plain(batch), views(batch)
    for name in ("pixel_values", "local_pixel_values"):
        assert torch.equal(found[name], expected[name])
    assert [view.scale for view in views.views["local_pixel_values"]] == [[0.05, 0.4]] * 3


@pytest.mark.parametrize("geometry", ["sample", "batch"])
@pytest.mark.parametrize(("image_size", "local_size"), [(16, 8), (20, 12), (12, 12), (12, 16), (12, 4)])
def test_matches_are_those_of_the_boxes(geometry, image_size, local_size):
    """Even and odd grids, small views of the size of the large ones or larger, or of one patch; mirrored ones and others."""
    views = make_views(3, views_config(local_size), image_size=image_size, geometry=geometry)
    batch, grids = make_source_batch(12, epoch=5), [(size // 4,) * 2 for size in (image_size, local_size)]
    flips = []
    for step in range(1 if geometry == "sample" else 12):
        sizes = torch.tensor([[30, 20]]).expand(12, 2)
        boxes = views.view_boxes(batch["epoch"], batch["index"], sizes, draws_of(step))
        inputs = views(batch, draws_of(step))
        found = inputs["global_matches"], inputs["local_matches"]
        if geometry == "batch":
            assert torch.equal(boxes, boxes[:1].expand_as(boxes))
            boxes = boxes[:1]
        assert_slow(found, boxes, *grids)
        flips.append(boxes[..., 4])
    assert 10 < torch.cat(flips).sum() < 50, "of 60"


@pytest.mark.parametrize("strict", [False, True])
def test_overflow_is_reproduced_if_asked_for(monkeypatch, strict):
    """1.5 + 5.5 columns of 7 are rounded to 2 + 6; by the authors' code nothing is matched then, if the view is mirrored."""
    views = make_views(config=plain_config(12), image_size=28, num_local_views=1, strict_correspondences=strict)
    boxes = torch.tensor([[[0, 0, 14, 14, 1], [0, 3, 14, 14, 0], [0, 3, 14, 14, 0]]])
    monkeypatch.setattr(views, "view_boxes", lambda *args: boxes)
    found = views(make_source_batch(1))
    found = found["global_matches"], found["local_matches"]
    assert_slow(found, boxes, (7, 7), (3, 3), strict)
    assert len(taken(found[0][0, 0])) == len(taken(found[0][1, 0])) == (0 if strict else 35)


# ---- what is to be seen in matched patches ----


def places_seen(views):
    """Where the patches of views lie, told by their mean red and green: `(num_views, batch_size, num_patches, 2)`."""
    patches = views[:, :, :2].unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4))
    return patches.mean((-3, -1)).flatten(-2).transpose(-1, -2)


@pytest.mark.parametrize("geometry", ["sample", "batch"])
@pytest.mark.parametrize(("image_size", "local_size"), [(48, 24), (44, 20)])
def test_matched_patches_show_the_same_place(geometry, image_size, local_size):
    """
    Red tells the column of a pixel of 64, green the row. Matched patches lie as far apart as rounding takes them, by less
    than a patch of a small view (up to 9 pixels), and not farther where one of the views is mirrored.
    """
    views = make_views(config=plain_config(local_size, step=3, canvas=64), image_size=image_size, geometry=geometry)
    place = torch.arange(0, 3 * 64, 3, dtype=torch.uint8).expand(64, 64)
    batch = make_source_batch(16) | {"images": torch.stack([place, place.T, place]).expand(16, -1, -1, -1)}
    distances = {False: [], True: []}
    for step in range(1 if geometry == "sample" else 16):
        inputs = views(batch, draws_of(step))
        large, small = places_seen(inputs["pixel_values"]), places_seen(inputs["local_pixel_values"])
        for teacher in (0, 1):
            pairs = [(large[1 - teacher], inputs["global_matches"][teacher])]
            for student, matches in [*pairs, *zip(small, inputs["local_matches"][teacher], strict=True)]:
                matches = matches.expand(16, -1, -1)
                seen = [
                    view.gather(1, patches.clamp(min=0)[..., None].expand(-1, -1, 2))
                    for view, patches in zip((large[teacher], student), matches.unbind(-1), strict=True)
                ]
                mirrored = [view[:, 0, 0] > view[:, -1, 0] for view in (large[teacher], student)]
                unlike = (mirrored[0] != mirrored[1])[:, None].expand(-1, matches.shape[1])
                for kind, of_kind in distances.items():
                    chosen = (matches[..., 0] >= 0) & (unlike == kind)
                    of_kind.append((seen[0] - seen[1]).abs()[chosen])
    for of_kind in map(torch.cat, distances.values()):
        assert len(of_kind) > 1000 and of_kind.max() < 9 and of_kind.mean() < 3


# ---- what a batch shares ----


def constant_batch():
    """Images of one color each, the same for all: crops of them are equal, whatever the box."""
    color = torch.tensor([200, 120, 40], dtype=torch.uint8)[:, None, None]
    return make_source_batch(8) | {"images": color.expand(8, 3, 30, 20)}


@pytest.mark.parametrize("geometry", ["sample", "batch"])
@pytest.mark.parametrize("shared_colors", [False, True])
def test_colors(geometry, shared_colors):
    """Every image has its own, or all of a batch have those of the batch; views have their own in any case."""
    views = make_views(config=views_config(shared_colors=shared_colors), geometry=geometry)
    inputs = views(constant_batch(), draws_of())
    colors = torch.cat([inputs[name].mean((-2, -1)) for name in ("pixel_values", "local_pixel_values")])
    alike = (colors - colors[:, :1]).abs().amax(-1) < 1e-3  # but for rounding
    assert alike.all() if shared_colors else alike[:, 1:].float().mean() < 0.3
    same = (colors[:, None] - colors[None]).abs().amax((-2, -1)) < 1e-3
    assert torch.equal(same, torch.eye(5, dtype=torch.bool))
    other = views(constant_batch(), draws_of(1))["pixel_values"].mean((-2, -1))
    assert ((other - colors[:2]).abs().amax((1, 2)) > 1e-3).all() == shared_colors


@pytest.mark.parametrize("shared_colors", [False, True])
def test_twins_in_a_batch_that_is_cropped_alike(shared_colors):
    """An image that comes twice in a batch has the same views twice where it shares all draws, and no others."""
    batch = make_source_batch()
    batch["images"][4] = batch["images"][1]
    views = make_views(config=views_config(shared_colors=shared_colors), geometry="batch")
    for name, tensor in views(batch, draws_of()).items():
        if name.endswith("pixel_values"):
            first, second = images_of(name, tensor)[[1, 4]]
            equal = (first == second).flatten(1).all(1)
            assert equal.all() if shared_colors else not equal.all()
            assert not torch.equal(tensor[:, 0], tensor[:, 1])
    plain = make_views(config=plain_config(), geometry="batch")(batch, draws_of())
    assert torch.equal(plain["pixel_values"][:, 1], plain["pixel_values"][:, 4]), "the same crops, mirrored alike"
    own = make_views(config=plain_config())(batch)
    assert (own["pixel_values"][:, 1] != own["pixel_values"][:, 4]).flatten(1).any(1).all()


def test_batches_do_not_matter():
    """Images with crops of their own, of two epochs."""
    views, batch = make_views(), make_source_batch()
    batch["epoch"][3:] = 1
    expected = views(batch)
    for order in (torch.tensor([4, 0, 5, 2, 1, 3]), torch.tensor([5, 2]), torch.tensor([3])):
        found = views({name: values[order] for name, values in batch.items()})
        for name, tensor in found.items():
            own = images_of(name, expected[name])[order]
            torch.testing.assert_close(images_of(name, tensor), own, rtol=0, atol=1e-4)


def test_other_images_of_a_batch_do_not_matter():
    """Where a batch is cropped alike, what an image becomes depends on the draws of the batch and on itself."""
    views, batch = make_views(geometry="batch"), make_source_batch()
    expected, order = views(batch, draws_of(3)), torch.tensor([4, 1])
    found = views({name: values[order] for name, values in batch.items()}, draws_of(3))
    for name, tensor in found.items():
        own = expected[name] if name.endswith("matches") else images_of(name, expected[name])[order]
        own = own if name.endswith("matches") else own.movedim(0, 1)
        torch.testing.assert_close(tensor, own, rtol=0, atol=1e-4)


def differ(first, second):
    """Whether all views of all images differ."""
    names = "pixel_values", "local_pixel_values"
    return all((first[name] != second[name]).flatten(2).any(-1).all() for name in names)


def test_crops_of_each_image():
    """A function of seed, epoch and image, whatever the step; boxes included."""
    views, batch = make_views(), make_source_batch()
    found = views(batch)
    for same in (make_views()(batch), views(batch, draws_of(3)), views(batch, draws_of(4, 1, 2))):
        assert all(torch.equal(tensor, same[name]) for name, tensor in found.items())
    for other in (views(make_source_batch(epoch=1)), make_views(seed=1)(batch)):
        assert differ(found, other)
        assert (other["global_matches"] != found["global_matches"]).flatten(2).any(-1).float().mean() > 0.8
    shifted = views(batch | {"index": batch["index"] + 6})
    assert differ(found, shifted)
    assert len(images_of("global_matches", found["global_matches"]).unique(dim=0)) == 6


def test_crops_of_each_batch():
    """A function of the draws of the batch: of seed, step, micro-batch and process. The epoch changes colors only."""
    views, batch = make_views(config=plain_config(), geometry="batch"), make_source_batch()
    found = views(batch, draws_of(3))
    for same in (views(batch, draws_of(3)), views(make_source_batch(epoch=1), draws_of(3))):
        assert all(torch.equal(tensor, same[name]) for name, tensor in found.items())
    draws = [draws_of(4), draws_of(3, 1), draws_of(3, 0, 1), Draws.for_batch(1, 3)]
    for other in (views(batch, each) for each in draws):
        assert differ(found, other)
        assert not torch.equal(other["global_matches"], found["global_matches"])
    colored = make_views(geometry="batch")
    one, two = (colored(make_source_batch(epoch=epoch), draws_of(3)) for epoch in (0, 1))
    assert differ(one, two) and torch.equal(one["local_matches"], two["local_matches"])


@pytest.mark.parametrize(
    ("config", "overrides"),
    [(views_config(), {"geometry": "batch"}), (views_config(shared_colors=True), {})],
    ids=["boxes", "colors"],
)
def test_draws_of_the_batch_are_needed(tmp_path, config, overrides):
    views = make_views(config=config, **overrides)
    assert views.needs_batch_draws
    with pytest.raises(ValueError, match="give `draws`"):
        views(make_source_batch())
    with pytest.raises(ValueError, match="augment_on='workers' is not possible"):
        make_trainer(tmp_path, views=views, augment_on="workers", dataloader_num_workers=1)


def test_draws_of_the_batch_are_not_needed():
    assert not make_views().needs_batch_draws


# ---- photos ----


@pytest.mark.parametrize("geometry", ["sample", "batch"])
def test_photos(geometry):
    """Of several sizes: workers put them on the canvas, whole, and what is cut out of it is what is cut out of sources."""
    views, sizes = make_views(config=plain_config(), geometry=geometry), torch.tensor([[24, 20], [40, 31], [17, 50]])
    epoch, index = torch.full((3,), 2), torch.tensor([7, 0, 3])
    # Photos with large shapes: what rounding to bytes does to noise is of no interest here.
    generator = np.random.default_rng(0)
    blocks = [Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in sizes]
    photos = [
        block.resize((w, h), Image.Resampling.BILINEAR) for block, (h, w) in zip(blocks, sizes.tolist(), strict=True)
    ]
    boxes = views.boxes(epoch, index, sizes)
    assert boxes.tolist() == [[[0, 0, height, width, 0]] for height, width in sizes.tolist()]
    rendered = [views.render(photo, box) for photo, box in zip(photos, boxes, strict=True)]
    assert [list(crop) for crop in rendered] == [["images"]] * 3
    images = torch.stack([crop["images"] for crop in rendered])
    assert images.shape == (3, 3, 24, 24) and images.dtype == torch.uint8
    found = views({"images": images, "boxes": boxes, "index": index, "epoch": epoch}, draws_of(5))
    assert list(found) == ["pixel_values", "local_pixel_values", "global_matches", "local_matches"]
    for i, photo in enumerate(photos):
        source = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
        alone = views({"images": source, "index": index[i : i + 1], "epoch": epoch[i : i + 1]}, draws_of(5))
        for name, tensor in alone.items():
            if name.endswith("matches"):
                of_image = found[name] if geometry == "batch" else images_of(name, found[name])[i].unsqueeze(-3)
                assert torch.equal(of_image, tensor)
            else:
                difference = (found[name][:, i] - tensor[:, 0]).abs()
                assert difference.max() < 3 and difference.mean() < 1, "levels of 255"


# ---- configuration, and what must not change ----


@pytest.mark.parametrize("geometry", ["sample", "batch"])
def test_mixed_precision_changes_nothing(geometry):
    views, batch = make_views(geometry=geometry), make_source_batch(32)
    expected = views(batch, draws_of())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = views(batch, draws_of())
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.parametrize("geometry", ["sample", "batch"])
def test_global_generators_are_not_touched(geometry):
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    make_views(geometry=geometry)(make_source_batch(), draws_of())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


@pytest.mark.parametrize("shared_colors", [False, True])
def test_matches_of_a_batch_stay_where_its_draws_are(shared_colors):
    """Their number has to be known there, and the device is not to be waited for: the meta device has no values."""
    views = make_views(config=views_config(shared_colors=shared_colors), geometry="batch")
    batch = {name: tensor.to("meta") for name, tensor in make_source_batch().items()}
    expected = views(make_source_batch(), draws_of(3))
    for name, tensor in views(batch, draws_of(3)).items():
        assert tensor.shape == expected[name].shape
        if name.endswith("matches"):
            assert tensor.device.type == "cpu" and torch.equal(tensor, expected[name])
        else:
            assert tensor.device.type == "meta"


def test_sizes_come_from_the_model():
    config = PWSelfViewsConfig(local=View(size=8))
    views = make_views(config=config)
    assert views.config.global1.size == views.config.global2.size == 16 and views.config.local.size == 8
    assert config.global1.size is None, "what was given is left as it is"
    assert make_views(config=PWSelfViewsConfig(local=View())).config.local.size == 16
    assert (views.grid, views.local_grid) == ((4, 4), (2, 2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PWSelfViewsConfig(local=View(size=10)), "local view of 10 pixels.*patch_size=4"),
        (
            PWSelfViewsConfig(global1=View(size=18), global2=View(size=18), local=View(size=8)),
            "global view of 18 pixels.*patch_size=4",
        ),
        (
            PWSelfViewsConfig(global1=View(size=12), global2=View(size=12), local=View(size=8)),
            "global1_size=12 is not the image_size=16",
        ),
        (PWSelfViewsConfig(global2=View(size=12), local=View(size=8)), r"sizes \[16, 12\]"),
        (PWSelfViewsConfig(local=View(size=8), image_std=[0.2, 0.2, 0.0]), "image_std=.* must be positive"),
    ],
)
def test_sizes_have_to_fit(config, message):
    with pytest.raises(ValueError, match=message):
        make_views(config=config)


def test_augmentations_are_those_of_the_original():
    """The table of operations: probabilities, strengths, sizes of crops."""
    config = PWSelfViewsConfig()
    common = {"crop": "random_resized_crop", "interpolation": "bicubic", "flip": 0.5, "ratio": [3 / 4, 4 / 3]}
    common |= {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2}
    common |= {"grayscale_first": False, "blur_sigma": [0.1, 2.0], "erase": 0.0}
    own = {
        "global1": {"scale": [0.4, 1.0], "blur": 1.0, "solarize": 0.0, "size": None},
        "global2": {"scale": [0.4, 1.0], "blur": 0.1, "solarize": 0.2, "size": None},
        "local": {"scale": [0.05, 0.4], "blur": 0.5, "solarize": 0.0, "size": 96},
    }
    for name, values in own.items():
        found = vars(getattr(config, name))
        for key, value in {**common, **values}.items():
            assert found[key] == value, (name, key)
    assert config.canvas == 256 and not config.shared_colors
    assert (config.image_mean, config.image_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    model = PWSelfConfig()
    views = PWSelfViews(config, model)
    assert (model.num_local_views, model.geometry, model.strict_correspondences) == (8, "batch", False)
    assert (views.grid, views.local_grid, views.num_views, views.canvas) == ((14, 14), (6, 6), 10, 256)
    assert views.shared_boxes and not views.shared_colors


@pytest.mark.parametrize("canvas", [0, -3])
def test_canvas_has_pixels(canvas):
    with pytest.raises(ValueError, match=f"canvas={canvas} must be at least 1 pixel"):
        PWSelfViewsConfig(canvas=canvas)
