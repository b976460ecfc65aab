import importlib
import sys

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from sklearn.decomposition import PCA

from hf_ssl import figures
from hf_ssl.figures import (
    plot_curves,
    plot_neighbors,
    plot_patch_filters,
    plot_position_similarity,
    plot_rounds,
    plot_similarities,
    plot_views,
)
from hf_ssl.figures.vit import filter_components


def log_history():
    history = [{"step": 0, "knn_top1": 30.0, "knn_top1_pixels": 35.0}]
    for step in range(10, 60, 10):
        history.append({"step": step, "loss": 5 / step, "loss_relations": 3 / step, "learning_rate": 1e-4})
    return [*history, {"step": 50, "knn_top1": 45.0}, {"step": 50, "train_runtime": 1.0}]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def near(image, color, distance=12):
    """Which pixels have about this RGB color."""
    return np.abs(image - np.array(color)).max(axis=2) < distance


def count(path, color):
    """Number of pixels of about this RGB color."""
    return int(near(pixels(path), color).sum())


RED, GREEN = (0xCC, 0x33, 0x11), (0x00, 0x9E, 0x73)


def test_curves(tmp_path):
    path = tmp_path / "figures" / "curves.png"
    plot_curves(log_history(), path, terms=["loss", "loss_relations"])
    full = pixels(path)
    assert full.shape[1] == 1280
    assert count(path, RED) > 50  # the mark of the value before training
    plot_curves([log for log in log_history() if "knn_top1" not in log], path, terms=["loss"])
    assert len(pixels(path)) < len(full)
    assert count(path, RED) == 0


def test_curves_of_a_single_log(tmp_path):
    plot_curves([{"step": 1, "loss": 2.0}], tmp_path / "curves.png", terms=["loss"])
    assert count(tmp_path / "curves.png", (0x00, 0x77, 0xBB)) > 10


def test_unknown_term(tmp_path):
    with pytest.raises(ValueError, match=r"\['loss_angles'\] are not in the log history, which has \["):
        plot_curves(log_history(), tmp_path / "curves.png", terms=["loss", "loss_angles"])


def neighbors_task():
    sizes = [(20, 20), (40, 10), (9, 30), (200, 150)]
    bank = [torch.full((3, *sizes[i % 4]), 40 * i, dtype=torch.uint8) for i in range(6)]
    return {
        "query_images": bank[:2],
        "bank_images": bank,
        "neighbors": {
            "neighbors before training": torch.tensor([[0, 1, 2], [3, 4, 5]]),
            "neighbors after training": torch.tensor([[0, 2, 4], [1, 3, 5]]),
        },
    }


def test_neighbors_with_frames(tmp_path):
    path = tmp_path / "figures" / "neighbors.png"
    bank_labels = torch.tensor([0, 1, 0, 1, 0, 1])
    plot_neighbors(path, **neighbors_task(), query_labels=[0, 1], bank_labels=bank_labels, class_names=["even", "odd"])
    # Before training 2 of 3 and 2 of 3 neighbors are right, afterwards all.
    assert 0.15 < count(path, RED) / count(path, GREEN) < 0.3
    plot_neighbors(path, **neighbors_task())
    assert count(path, RED) == count(path, GREEN) == 0


def test_neighbors_errors(tmp_path):
    task = neighbors_task()
    with pytest.raises(ValueError, match="both `query_labels` and `bank_labels`"):
        plot_neighbors(tmp_path / "x.png", **task, query_labels=[0, 1])
    with pytest.raises(ValueError, match=r"must have one shape, \(number of queries = 2, k\), got \[\(1, 3\)\]"):
        plot_neighbors(tmp_path / "x.png", **(task | {"neighbors": {"all": torch.zeros(1, 3, dtype=torch.int64)}}))


BLUE, ORANGE, LIGHT_GRAY = (0x00, 0x77, 0xBB), (0xE6, 0x9F, 0x00), (0xBB, 0xBB, 0xBB)
INCH = 160  # pixels


def similarities_task(values, before=None):
    """Dark keys of unequal sizes; query q is of one color, 100 + 30 q in red."""
    queries = [torch.zeros(3, 20, 20, dtype=torch.uint8) for _ in values]
    for q, query in enumerate(queries):
        query[0] = 100 + 30 * q
    sizes = [(20, 20), (9, 30), (200, 150), (4, 4)]
    return {
        "query_images": queries,
        "key_images": [torch.full((3, *sizes[k % 4]), 20, dtype=torch.uint8) for k in range(len(values[0]))],
        "similarities": torch.tensor(values),
        "similarities_before": None if before is None else torch.tensor(before),
    }


def bars(image, color):
    """Left, right and height in inches of the bars of a color, from left to right."""
    heights = near(image, color, 4).sum(axis=0) / INCH
    edges = np.flatnonzero(np.diff(heights > 0.15, prepend=False, append=False))
    return [(left / INCH, right / INCH, heights[left:right].max()) for left, right in edges.reshape(-1, 2)]


def heights(image, color):
    return [height for *_, height in bars(image, color)]


LEGEND = round(0.44 * INCH)


def test_similarities(tmp_path):
    """Bars are as high as their values, within 0 and 1, and stand above their keys."""
    path = tmp_path / "figures" / "similarities.png"
    plot_similarities(path, **similarities_task([[0.5, -0.2, 1.0, 0.25, -0.001, 1.3]]))
    image = pixels(path)
    assert heights(image, BLUE) == pytest.approx([0.6, 1.2, 0.3, 1.2], abs=0.02)
    assert heights(image, GREEN) == heights(image, LIGHT_GRAY) == []
    keys = [(left + right) / 2 for left, right, _ in bars(image, (20, 20, 20))]
    assert len(keys) == 6
    middles = [(left + right) / 2 for left, right, _ in bars(image, BLUE)]
    assert middles == pytest.approx([keys[i] for i in (0, 2, 3, 5)], abs=0.02)


def test_numbers_of_bars(tmp_path, monkeypatch):
    written = []
    text = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **kw: written.append(s) or text(self, x, y, s, **kw))
    plot_similarities(tmp_path / "x.png", **similarities_task([[0.5, -0.204], [1.0, -0.001]]))
    assert [number for number in written if "." in number and number != "0.5"] == ["0.50", "-0.20", "1.00", "0.00"]


def test_similarities_before(tmp_path):
    """Thin bars, beside those of after."""
    task = similarities_task([[0.5, 0.25, 1.0]], before=[[1.0, -0.5, 0.75]])
    plot_similarities(tmp_path / "similarities.png", **task)
    image = pixels(tmp_path / "similarities.png")[LEGEND:]
    assert heights(image, LIGHT_GRAY) == pytest.approx([1.2, 0.9], abs=0.02)
    assert heights(image, BLUE) == pytest.approx([0.6, 0.3, 1.2], abs=0.02)
    before, after = bars(image, LIGHT_GRAY), bars(image, BLUE)
    for gray, blue in ((before[0], after[0]), (before[1], after[2])):
        assert gray[1] == pytest.approx(blue[0], abs=0.02)
        assert gray[1] - gray[0] == pytest.approx(0.3 * (blue[1] - blue[0]), abs=0.02)


def test_colors_and_names_of_classes(tmp_path):
    task = similarities_task([[0.5, 1.0, 0.25]] * 2)
    labels = {"query_labels": torch.tensor([2, 0]), "key_labels": [0, 2, 1]}
    plot_similarities(tmp_path / "plain.png", **task, **labels)
    plot_similarities(tmp_path / "named.png", **task, **labels, class_names=["cat", "dog", "bird"])
    image = pixels(tmp_path / "plain.png")
    half = (LEGEND + len(image)) // 2
    first, second = image[LEGEND:half], image[half:]
    assert heights(first, GREEN) == pytest.approx([1.2], abs=0.02)
    assert heights(first, BLUE) == pytest.approx([0.6, 0.3], abs=0.02)
    assert heights(second, GREEN) == pytest.approx([0.6], abs=0.02)
    assert heights(second, BLUE) == pytest.approx([1.2, 0.3], abs=0.02)
    # Names take a line below each row.
    named = pixels(tmp_path / "named.png")
    assert named.shape[1] == image.shape[1] and named.shape[0] == pytest.approx(len(image) + 2 * 0.2 * INCH, abs=2)


@pytest.mark.parametrize("num_keys", [1, 2, 10, 20])
def test_nothing_is_cut_off(tmp_path, num_keys):
    path = tmp_path / "similarities.png"
    task = similarities_task([[1.0] * num_keys] * 2, before=[[0.5] * num_keys] * 2)
    labels = {"query_labels": [0, 0], "key_labels": [1] * num_keys, "class_names": ["a long name of a class" * 9] * 2}
    plot_similarities(path, **task, **labels)
    image = pixels(path)
    for edge in (image[:8], image[-8:], image[:, :8], image[:, -8:]):
        assert (edge == 255).all()


def test_similarities_errors(tmp_path):
    path, task = tmp_path / "x.png", similarities_task([[0.5, 0.5, 0.5]] * 2)
    for change, message in (
        ({"similarities": torch.zeros(3, 2)}, r"`similarities` must have shape \(2, 3\) .*got \(3, 2\)"),
        ({"similarities_before": torch.zeros(2)}, r"`similarities_before` must have shape \(2, 3\) .*got \(2,\)"),
        ({"query_labels": [0, 1]}, "both `query_labels` and `key_labels`"),
        ({"key_labels": [0, 1, 2]}, "both `query_labels` and `key_labels`"),
        ({"query_labels": [0], "key_labels": [0, 1, 2]}, r"`query_labels` must have shape \(2,\) .*got \(1,\)"),
        ({"query_labels": [0, 1], "key_labels": torch.zeros(4)}, r"`key_labels` must have shape \(3,\) .*got \(4,\)"),
        ({"key_images": []}, "nothing to compare in 2 `query_images` and 0 `key_images`"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_similarities(path, **(task | change))
    assert not path.exists()


def views_task(num_images=1, num_views=1, side=32):
    """Sources of dark gray; view v is of one color, 100 + v in red."""
    views = [torch.zeros(num_images, 3, 16, 16, dtype=torch.uint8) for _ in range(num_views)]
    for v, view in enumerate(views):
        view[:, 0] = 100 + 12 * v
    return {
        "sources": [torch.full((3, side, side), 20, dtype=torch.uint8)] * num_images,
        "views": views,
        "boxes": torch.tensor([8, 8, 16, 16, 0]).repeat(num_images, num_views, 1),
        "names": [f"view {v + 1}" for v in range(num_views)],
        "title": "Some views",
    }


def extent(mask):
    """First and last row, first and last column of what is true."""
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_views(tmp_path):
    path = tmp_path / "figures" / "views.png"
    plot_views(path, **views_task(num_images=3, num_views=2))
    image = pixels(path)
    assert image.shape[1] == pytest.approx((0.3 + 1.6 + 2 * 1.6 + 0.1) * INCH, abs=1)
    for v in range(2):
        # Its view, beside the frame and the tag, of each of the three images.
        assert 0.85 < count(path, (100 + 12 * v, 0, 0)) / (3 * (1.5 * INCH) ** 2) < 1
    assert count(path, (20, 20, 20)) > 3 * 0.7 * (1.5 * INCH) ** 2


def test_views_of_several_sources_have_no_box(tmp_path):
    task = views_task(num_views=2)
    images = []
    for boxes in (task["boxes"], task["boxes"][:, :1]):
        plot_views(tmp_path / "views.png", **(task | {"boxes": boxes}))
        images.append(pixels(tmp_path / "views.png"))
    assert near(images[0], ORANGE, 30).sum() > near(images[1], ORANGE, 30).sum() + 100, "the box in the source"
    left = round((0.3 + 1.6 + 1.6) * INCH)
    assert near(images[1][:, left:], ORANGE, 30).sum() > 100, "the frame of the view"
    assert not near(images[1][:, :left], ORANGE, 30).any()


@pytest.mark.parametrize("side", [32, 500])
def test_box_of_a_view(tmp_path, side):
    """A box lies where it should, in a small source that is enlarged and in a large one that is reduced."""
    task = views_task(side=side)
    task["boxes"] = torch.tensor([[[side // 4, side // 2, side // 2, side // 4, 0]]])
    plot_views(tmp_path / "views.png", **task)
    image = pixels(tmp_path / "views.png")
    left, top = round(0.3 * INCH), round(0.73 * INCH)
    source = image[top : top + 240, left : left + 240]
    assert extent(near(source, BLUE, 30)) == pytest.approx((60, 180, 120, 180), abs=3)


def test_boxes_outside_of_the_source(tmp_path):
    task = views_task()
    plot_views(tmp_path / "inside.png", **task)
    task["boxes"] = torch.tensor([[[-4, 4, 32, 32, 0]]])
    plot_views(tmp_path / "outside.png", **task)
    hatch = (0xBB, 0xBB, 0xBB)
    assert count(tmp_path / "inside.png", hatch) < count(tmp_path / "outside.png", hatch) - 50
    # Room for four pixels around the source of 32.
    shares = [count(tmp_path / f"{name}.png", (20, 20, 20)) for name in ("outside", "inside")]
    assert shares[0] / shares[1] == pytest.approx((32 / 40) ** 2, rel=0.05)


def test_flips_are_marked(tmp_path):
    task = views_task(num_images=2)
    plot_views(tmp_path / "views.png", **task)
    task["boxes"] = task["boxes"].clone()
    task["boxes"][1, 0, 4] = 1
    plot_views(tmp_path / "flipped.png", **task)
    changed = (pixels(tmp_path / "views.png") != pixels(tmp_path / "flipped.png")).any(2)
    top = round(0.73 * INCH)
    assert not changed[: top + 240].any()  # the first image
    assert changed[top + 280 : top + 500].any() and changed[top + 500 :].any()  # the second one, and the note below


def test_ten_views(tmp_path):
    """In two lines of five, beside a source as high as both."""
    plot_views(tmp_path / "views.png", **views_task(num_images=2, num_views=10))
    image = pixels(tmp_path / "views.png")
    assert image.shape[1] == pytest.approx((0.3 + 2.5 + 0.1 + 5 * 1.3 + 0.1) * INCH, abs=1)
    assert near(image, BLUE).sum() > 100 and near(image, ORANGE).sum() > 100
    areas = [near(image, (100 + 12 * v, 0, 0), 4).sum() for v in range(10)]
    assert areas == pytest.approx(np.full(10, 2 * (1.2 * INCH) ** 2), rel=0.15)


def test_short_rows_stand_side_by_side(tmp_path):
    plot_views(tmp_path / "views.png", **views_task(num_images=8))
    assert pixels(tmp_path / "views.png").shape[1] == pytest.approx((2 * 3.5 + 0.1) * INCH, abs=1)


def test_sources_of_unequal_sizes(tmp_path):
    """Undistorted, and enlarged without mixing pixels."""
    task = views_task(num_images=3)
    task["sources"] = [torch.zeros(3, *size, dtype=torch.uint8) for size in ((4, 8), (30, 10), (200, 3000))]
    task["sources"][0][1, :, ::2] = 200
    task["boxes"][:, :, 2:4] = 2
    task["boxes"][:, :, :2] = 0
    plot_views(tmp_path / "views.png", **task)
    image = pixels(tmp_path / "views.png")
    top, left = round(0.73 * INCH), round(0.3 * INCH)
    first = image[top : top + 240, left : left + 240]
    green = near(first, (0, 200, 0), 4)
    assert extent(green)[:2] == pytest.approx((60, 180), abs=2)  # twice as wide as high
    line = green[150]
    assert np.flatnonzero(np.diff(line.astype(int))) == pytest.approx(np.arange(30, 240, 30) - 1, abs=1)


def test_views_errors(tmp_path):
    task = views_task(num_images=2, num_views=2)
    for boxes in (task["boxes"][:1], task["boxes"].repeat(1, 2, 1), task["boxes"][..., :4], task["boxes"][0]):
        shape = ", ".join(map(str, boxes.shape))
        with pytest.raises(ValueError, match=rf"`boxes` of shape \(2, 2, 5\).*got \({shape}\)"):
            plot_views(tmp_path / "x.png", **(task | {"boxes": boxes}))
    with pytest.raises(ValueError, match=r"a name for each view.*the names \['view 1'\]"):
        plot_views(tmp_path / "x.png", **(task | {"names": ["view 1"]}))
    with pytest.raises(ValueError, match=r"2 `sources`.*views of \[2, 1\] sources"):
        plot_views(tmp_path / "x.png", **(task | {"views": [task["views"][0], task["views"][1][:1]]}))


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    importlib.reload(figures)
    with pytest.raises(ImportError, match=r'pip install "hf_ssl\[viz\]"'):
        figures.plot_curves(log_history(), tmp_path / "curves.png", terms=["loss"])


def test_no_pyplot_state_is_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    figures.plot_curves(log_history(), tmp_path / "curves.png", terms=["loss"])
    figures.plot_neighbors(tmp_path / "neighbors.png", **neighbors_task())
    figures.plot_similarities(tmp_path / "similarities.png", **similarities_task([[0.5]]))
    figures.plot_views(tmp_path / "views.png", **views_task())
    figures.plot_position_similarity(torch.randn(1, 5, 8), tmp_path / "positions.png")
    figures.plot_patch_filters(torch.randn(8, 3, 2, 2), tmp_path / "filters.png")


def rounds_log():
    log = [{"step": 10, "gan_quality": 0.1 * i, "gan_agreement": 0.2 * i} for i in range(4)]
    log += [{"step": 20, "gan_quality": 0.3, "gan_agreement": 0.9}]
    report = {"gan_epochs": 4, "gan_epoch_used": 3, "neighbors_per_image": 1.5}
    return log, [report | {"round": 1}, report | {"round": 2, "gan_epochs": 1, "gan_epoch_used": 1}]


def test_rounds(tmp_path, monkeypatch):
    lines, bars = [], []
    monkeypatch.setattr(Axes, "plot", _recorder(Axes.plot, lines))
    monkeypatch.setattr(Axes, "bar", _recorder(Axes.bar, bars))
    log, reports = rounds_log()
    reports[1]["label_agreement"] = 0.25
    plot_rounds(log, reports, tmp_path / "rounds.png")
    assert [list(x) for x, _ in lines[:4:2]] == [[1, 2, 3, 4], [1]]
    assert [y for _, y in lines[4::2]] == [pytest.approx([0, 0.2, 0.4, 0.6]), [0.9]]
    assert lines[1][:2] == (3, pytest.approx(0.2)) and lines[7][:2] == (1, 0.9)  # the epochs that were used
    assert bars[0][:2] == ([1, 2], [1.5, 1.5]) and bars[1][:2] == ([2], [25.0])
    assert pixels(tmp_path / "rounds.png").shape[1] == 1280


def _recorder(method, calls):
    def record(axes, *args, **kwargs):
        calls.append(args)
        return method(axes, *args, **kwargs)

    return record


def test_no_rounds(tmp_path):
    with pytest.raises(ValueError, match="No round was ended"):
        plot_rounds([], [], tmp_path / "rounds.png")


def record_images(monkeypatch):
    """What is drawn as an image, and how."""
    calls = []
    imshow = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **kw: calls.append((x, kw)) or imshow(self, x, **kw))
    return calls


@pytest.mark.parametrize(
    ("side", "shown"), [(1, [0]), (4, [0, 1, 2, 3]), (8, range(8)), (9, range(0, 9, 2)), (16, range(0, 16, 2))]
)
def test_position_similarity(tmp_path, monkeypatch, side, shown):
    """A map of the grid for each place; of a grid of more than eight, for every so many."""
    drawn = record_images(monkeypatch)
    table = torch.randn(1, 1 + side * side, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    table = table * torch.linspace(0.1, 3, 1 + side * side)[:, None]
    plot_position_similarity(table, tmp_path / "figures" / "positions.png")
    vectors = table.detach()[0, 1:].double().numpy()
    lengths = np.linalg.norm(vectors, axis=1)
    maps = [image for image, kw in drawn if kw.get("cmap") == "viridis"]
    assert len(maps) == len(shown) ** 2
    for (row, column), image in zip(((r, c) for r in shown for c in shown), maps, strict=True):
        place = row * side + column
        expected = vectors @ vectors[place] / (lengths * lengths[place])
        np.testing.assert_allclose(image, expected.reshape(side, side), atol=1e-5)
        assert image[row, column] == pytest.approx(1)
    assert all((kw["vmin"], kw["vmax"]) == (-1, 1) for _, kw in drawn if kw.get("cmap") == "viridis")
    image = pixels(tmp_path / "figures" / "positions.png")
    assert image.shape[1] == pytest.approx(7.4 * INCH, abs=1)
    assert near(image, (0xFD, 0xE7, 0x25)).sum() > 10, "a place is like itself"


def test_positions_of_no_square(tmp_path):
    for count in (2, 12, 24):
        with pytest.raises(ValueError, match=f"has {count} patches, which make no square"):
            plot_position_similarity(torch.randn(1, 1 + count, 8), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("patch_size", "dim", "count"), [(4, 64, 28), (2, 64, 12), (1, 64, 3), (4, 16, 16), (16, 96, 28)]
)
def test_filter_components(patch_size, dim, count):
    """The principal components of scikit-learn, but for the sign; of small patches there are fewer."""
    weight = torch.randn(dim, 3, patch_size, patch_size, generator=torch.Generator().manual_seed(0)) + 0.5
    weight = (weight * torch.linspace(0.2, 3, patch_size)).requires_grad_()
    components = filter_components(weight)
    assert components.shape == (count, 3, patch_size, patch_size) and not components.requires_grad
    expected = PCA(count, svd_solver="full").fit(weight.detach().double().flatten(1).numpy())
    actual = components.flatten(1).double().numpy()
    distinct = expected.singular_values_ > 1e-6  # after as many as there are filters, nothing is left
    assert distinct.sum() == min(count, dim - 1)
    cosines = (actual * expected.components_).sum(1)[distinct]
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-4)


def test_patch_filters(tmp_path, monkeypatch):
    """Each from black to white, in rows of seven."""
    drawn = record_images(monkeypatch)
    heights = []
    for patch_size, count in ((4, 28), (2, 12), (1, 3)):
        drawn.clear()
        weight = torch.randn(48, 3, patch_size, patch_size, generator=torch.Generator().manual_seed(0))
        plot_patch_filters(weight.requires_grad_(), tmp_path / "filters.png")
        assert len(drawn) == count
        for (image, _), component in zip(drawn, filter_components(weight), strict=True):
            assert image.shape == (patch_size, patch_size, 3) and image.min() == 0 and image.max() == 1
            values, others = image.transpose(2, 0, 1).ravel(), component.numpy().ravel()
            assert np.corrcoef(values, others)[0, 1] == pytest.approx(1, abs=1e-5)
        heights.append(len(pixels(tmp_path / "filters.png")))
    assert heights == pytest.approx([(0.5 + 1.05 * rows) * INCH for rows in (4, 2, 1)], abs=1)
    plot_patch_filters(torch.zeros(8, 3, 2, 2), tmp_path / "zeros.png")
    assert (tmp_path / "zeros.png").is_file()
