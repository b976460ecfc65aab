import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix

from hf_ssl.figures import Ranking, plot_confusion, plot_embedding_map, plot_patch_colors, plot_rankings
from hf_ssl.figures.common import GRAY, GREEN, RED
from hf_ssl.figures.patch_colors import patch_colors


INCH = 160  # pixels


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def border_is_white(path):
    image = pixels(path)
    return all((edge == 255).all() for edge in (image[:4], image[-4:], image[:, :4], image[:, -4:]))


def record(monkeypatch, name):
    """The arguments of each call of a method of axes."""
    calls = []
    method = getattr(Axes, name)

    def recorder(axes, *args, **kwargs):
        calls.append((args, kwargs))
        return method(axes, *args, **kwargs)

    monkeypatch.setattr(Axes, name, recorder)
    return calls


class TestConfusion:
    @pytest.mark.parametrize("classes", [2, 20, 21, 100])
    def test_shares_of_rows(self, tmp_path, monkeypatch, classes):
        images, texts = record(monkeypatch, "imshow"), record(monkeypatch, "text")
        generator = torch.Generator().manual_seed(0)
        labels, predictions = torch.randint(classes, (2, 400), generator=generator)
        labels[labels == 1] = 0  # a class without images
        predictions[:200] = labels[:200]
        names = [f"class {i} with a name that is long" for i in range(classes)]
        plot_confusion(labels, predictions.tolist(), names, tmp_path / "figures" / "confusion.png")
        counts = confusion_matrix(labels, predictions, labels=range(classes)).astype(float)
        totals = counts.sum(1, keepdims=True)
        expected = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)
        (drawn,) = images[0][0]
        np.testing.assert_allclose(drawn, expected)
        written = {(row, column): text for (column, row, text), _ in texts}
        shown = {place: f"{share:.0f}" for place, share in np.ndenumerate(expected) if share >= 0.5}
        assert written == (shown if classes <= 20 else {})
        assert border_is_white(tmp_path / "figures" / "confusion.png")

    def test_accuracy(self, tmp_path, monkeypatch):
        from matplotlib.figure import Figure

        titles = []
        write = Figure.text
        monkeypatch.setattr(Figure, "text", lambda *args, **kwargs: titles.append(args[3]) or write(*args, **kwargs))
        plot_confusion([0, 1, 1] * 1000, [0, 0, 1] * 1000, ["cat", "dog"], tmp_path / "confusion.png")
        assert titles == ["66.7% of 3,000 images are recognized"]

    def test_errors(self, tmp_path):
        for labels, predictions, message in (
            ([0, 1], [0], r"one class for each image, and not be empty; got shapes \(2,\) and \(1,\)"),
            ([], [], r"got shapes \(0,\) and \(0,\)"),
            ([0, 2], [0, 1], "`labels` must lie between 0 and 1, .*got values from 0 to 2"),
            ([0, 1], [-1, 1], "`predictions` must lie between 0 and 1, .*got values from -1 to 1"),
        ):
            with pytest.raises(ValueError, match=message):
                plot_confusion(labels, predictions, ["cat", "dog"], tmp_path / "x.png")
        assert not (tmp_path / "x.png").exists()


def map_task(images=60, dim=5, classes=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centers = torch.randn(classes, dim, generator=generator)
    features = centers[labels] + 0.3 * torch.randn(images, dim, generator=generator)
    return features, labels, [f"class {i}" for i in range(classes)]


class TestEmbeddingMap:
    def test_components(self, tmp_path, monkeypatch):
        """The principal components of normalized features, each point in the color of its class."""
        drawn = record(monkeypatch, "scatter")
        features, labels, names = map_task()
        plot_embedding_map(features, labels, names, tmp_path / "figures" / "map.png")
        rows = features.double() / features.double().norm(dim=1, keepdim=True)
        expected = PCA(2).fit_transform(rows.numpy())
        (x, y), options = drawn[0]
        assert len(x) == 60 and all(not len(args[0]) for args, _ in drawn[1:])
        colors = {}
        for place, color in zip(np.stack([x, y], 1), options["c"], strict=True):
            distances = np.abs(np.abs(expected) - np.abs(place)).max(1)  # the signs are open
            assert distances.min() < 1e-5
            colors.setdefault(int(labels[distances.argmin()]), set()).add(color)
        assert all(len(of_class) == 1 for of_class in colors.values())
        assert len(set.union(*colors.values())) == 3
        assert border_is_white(tmp_path / "figures" / "map.png")

    @pytest.mark.parametrize("classes", [1, 10, 11, 26, 100])
    def test_classes_are_told_apart(self, tmp_path, monkeypatch, classes):
        drawn = record(monkeypatch, "scatter")
        features, labels, names = map_task(200, 8, classes)
        plot_embedding_map(features, labels, names, tmp_path / "map.png")
        kinds = {(options["marker"], color) for _, options in drawn for color in options["c"]}
        assert len(kinds) == classes
        assert border_is_white(tmp_path / "map.png")

    def test_seed(self, tmp_path):
        task = map_task(400)
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            plot_embedding_map(*task, tmp_path / f"{name}.png", seed=seed)
        a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
        assert (a == b).all() and a.shape == c.shape and (a != c).any()

    def test_umap(self, tmp_path, monkeypatch):
        """With the package, as it is asked; without it, what to install."""
        asked = {}

        class UMAP:
            def __init__(self, **options):
                asked.update(options)

            def fit_transform(self, features):
                np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
                return features[:, :2]

        package = ModuleType("umap")
        package.UMAP = UMAP
        monkeypatch.setitem(sys.modules, "umap", package)
        plot_embedding_map(*map_task(), tmp_path / "map.png", method="umap", seed=3)
        assert asked == {"metric": "cosine", "random_state": 3, "n_jobs": 1}
        monkeypatch.setitem(sys.modules, "umap", None)
        with pytest.raises(ImportError, match=r'pip install "hf_ssl\[umap\]"'):
            plot_embedding_map(*map_task(), tmp_path / "x.png", method="umap")

    def test_errors(self, tmp_path):
        features, labels, names = map_task()
        task = {"features": features, "labels": labels, "class_names": names}
        for change, message in (
            ({"features": features[0]}, r"`features` must have shape .*got \(5,\)"),
            ({"features": features[:, :2]}, r"both at least 3; got \(60, 2\)"),
            ({"features": features / 0}, "`features` contains NaN or infinite"),
            ({"labels": labels[:9]}, r"one class for each of the 60 features, got \(9,\)"),
            ({"class_names": names[:2]}, "`labels` must lie between 0 and 1, .*got values from 0 to 2"),
            ({"class_names": ["x"] * 101}, "101 classes cannot be told apart"),
            ({"method": "tsne"}, "`method` must be 'pca' or 'umap', got 'tsne'"),
        ):
            with pytest.raises(ValueError, match=message):
                plot_embedding_map(**(task | change), path=tmp_path / "x.png")
        assert not (tmp_path / "x.png").exists()


class TestPatchColors:
    def tokens(self, *shape):
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(shape, generator=generator) * torch.linspace(3, 1, shape[-1])).requires_grad_()

    @pytest.mark.parametrize("dim", [12, 90])
    def test_colors_are_components(self, dim):
        """Of all images together, whatever the sign that scikit-learn gives them; of fewer patches than dimensions, too."""
        tokens = self.tokens(2, 6, 5, dim)
        colors = patch_colors(tokens)
        assert colors.shape == (2, 3, 6, 5) and colors.dtype == torch.uint8
        flat = tokens.detach().double().flatten(0, 2).numpy()
        expected = PCA(3, svd_solver="full").fit_transform(flat)
        actual = colors.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
        inside = (actual > 0) & (actual < 255)
        for i in range(3):
            fit = np.corrcoef(actual[inside[:, i], i], expected[inside[:, i], i])[0, 1]
            assert abs(fit) > 0.9999
        assert (actual.min(0) == 0).all() and (actual.max(0) == 255).all()

    def test_signs_are_settled(self):
        """By the weights: of tokens with the opposite sign the colors are the opposite, and not the same or any."""
        tokens = self.tokens(1, 8, 8, 6)
        assert torch.equal(patch_colors(tokens), patch_colors(tokens.clone()))
        differences = patch_colors(tokens).int() + patch_colors(-tokens).int() - 255
        assert differences.abs().max() <= 1

    def test_constant_tokens(self):
        assert not patch_colors(torch.ones(1, 2, 2, 4)).any()

    @pytest.mark.parametrize(("count", "size"), [(1, (2, 1)), (2, (4, 1)), (3, (4, 2))])
    def test_picture(self, tmp_path, count, size):
        path = tmp_path / "figures" / "colors.png"
        images = [torch.full((3, 32, 32), 20, dtype=torch.uint8)] * count
        plot_patch_colors(self.tokens(count, 4, 4, 6), images, path)
        image, (tiles, rows) = pixels(path), size
        assert image.shape[1] == pytest.approx((2.2 * tiles + 0.06 * tiles / 2 + 0.2 * (tiles / 2 + 1)) * INCH, abs=2)
        assert image.shape[0] == pytest.approx((0.5 + 2.4 * rows) * INCH, abs=2)
        assert (image == 20).all(2).sum() == pytest.approx(count * (2.2 * INCH) ** 2, rel=0.03)
        assert border_is_white(path)

    def test_wide_and_high_images(self, tmp_path):
        """Colors cover the same rectangle as their image."""
        images = [torch.full((3, *size), 20, dtype=torch.uint8) for size in ((20, 40), (40, 20))]
        plot_patch_colors(self.tokens(2, 4, 4, 6), images, tmp_path / "colors.png")
        dark = (pixels(tmp_path / "colors.png") == 20).all(2)
        assert dark.sum() == pytest.approx(2 * 2.2 * 1.1 * INCH**2, rel=0.03)

    def test_errors(self, tmp_path):
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        for tokens, message in (
            (torch.zeros(1, 4, 6), r"`tokens` must have shape .*got \(1, 4, 6\)"),
            (torch.zeros(1, 4, 4, 2), r"got \(1, 4, 4, 2\)"),
            (torch.zeros(1, 1, 2, 8), r"got \(1, 1, 2, 8\)"),
            (torch.full((1, 4, 4, 8), torch.nan), "`tokens` contains NaN"),
            (torch.zeros(2, 4, 4, 8), "`tokens` are of 2 images, and there are 1 `images`"),
        ):
            with pytest.raises(ValueError, match=message):
                plot_patch_colors(tokens, [image], tmp_path / "x.png")
        assert not (tmp_path / "x.png").exists()


# ---- rankings ----


def ranking(is_right=None, captions=3, found=3):
    images = [torch.full((3, 20, 30 + i), 60 * i, dtype=torch.uint8) for i in range(found)]
    return Ranking(images[0], images, "AP 50.0 %", [f"{i}." for i in range(captions)], is_right)


def count(path, color):
    """Pixels of about this color."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels(path) - wanted).sum(-1) < 6).sum()


def test_rankings(tmp_path):
    """Frames tell what should be found; words below tell of the kinds that are there."""
    plot_rankings(tmp_path / "a.png", [ranking([True, False, None]), ranking([True, True, False])])
    assert all(count(tmp_path / "a.png", color) > 300 for color in (GREEN, RED, GRAY))
    plot_rankings(tmp_path / "b.png", [ranking()], ("photo", "others"))
    assert count(tmp_path / "b.png", GREEN) == count(tmp_path / "b.png", RED) == 0


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ([], "There is no query to draw"),
        ([ranking(captions=2)], "'AP 50.0 %' has images, captions and frames of different numbers"),
        ([ranking(is_right=[True])], "of different numbers"),
    ],
)
def test_rankings_that_cannot_be(rankings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_rankings(tmp_path / "a.png", rankings)
    assert not list(tmp_path.iterdir())
