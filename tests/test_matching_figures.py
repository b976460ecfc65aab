"""Pictures of matched patches of two images, and of attention."""

import sys

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image

from hf_ssl.figures import plot_attention, plot_image_matches
from hf_ssl.figures.patch_colors import patch_colors


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def border_is_white(image):
    return all((edge == 255).all() for edge in (image[:4], image[-4:], image[:, :4], image[:, -4:]))


@pytest.fixture
def patches(monkeypatch):
    """The shapes that are added to axes."""
    added = []
    add_patch = Axes.add_patch

    def recorder(axes, patch):
        added.append(patch)
        return add_patch(axes, patch)

    monkeypatch.setattr(Axes, "add_patch", recorder)
    return added


def gray(*size):
    return torch.full((3, *size), 128, dtype=torch.uint8)


class TestMatches:
    boxes = (torch.tensor([[0.0, 0, 20, 20], [40, 60, 20, 20]]), torch.tensor([[10.0, 5, 10, 10], [0, 0, 10, 10]]))
    similarities = torch.tensor([0.9, 0.5])

    def test_lines_lead_from_patch_to_patch(self, tmp_path, patches):
        """In inches: the wider side of either image is 5 of them."""
        plot_image_matches(
            tmp_path / "figures" / "matches.png",
            images=(gray(80, 100), gray(50, 25)),
            boxes=self.boxes,
            similarities=self.similarities,
        )
        rectangles = [patch for patch in patches if isinstance(patch, Rectangle)]
        lines = [patch for patch in patches if isinstance(patch, ConnectionPatch)]
        assert len(rectangles) == 4 and len(lines) == 2
        top = 0.6 + (5 - 4) / 2  # the first image is 4 inches high, the second one 5
        places = [(0.2, top), (3.2, top + 2), (0.2 + 5 + 0.5 + 0.5, 0.6 + 1), (0.2 + 5 + 0.5, 0.6)]
        np.testing.assert_allclose([rectangle.get_xy() for rectangle in rectangles], places)
        assert [rectangle.get_width() for rectangle in rectangles] == [1, 1, 1, 1]
        np.testing.assert_allclose(lines[1].xy1, (0.7, top + 0.5))  # the most similar pair on top
        np.testing.assert_allclose(lines[1].xy2, (6.7, 2.1))
        colors = [colormaps["plasma"](value) for value in (1.0, 0.0)]
        for rectangle, color in zip(rectangles, colors * 2, strict=True):
            np.testing.assert_allclose(rectangle.get_edgecolor(), color)
        assert border_is_white(pixels(tmp_path / "figures" / "matches.png"))

    def test_similar_pairs_have_similar_colors(self, tmp_path, patches):
        plot_image_matches(
            tmp_path / "matches.png",
            images=(gray(80, 100), gray(50, 25)),
            boxes=self.boxes,
            similarities=torch.tensor([1.0, 0.9999]),
        )
        colors = [patch.get_edgecolor() for patch in patches if isinstance(patch, Rectangle)][:2]
        np.testing.assert_allclose(*colors, atol=0.02)

    def test_no_pairs(self, tmp_path):
        none = torch.zeros(0, 4)
        plot_image_matches(
            tmp_path / "none.png", images=(gray(40, 40),) * 2, boxes=(none, none), similarities=torch.zeros(0)
        )
        image = pixels(tmp_path / "none.png")
        assert border_is_white(image) and (image == 128).all(-1).mean() > 0.5

    def test_what_the_encoder_does_not_see_is_pale(self, tmp_path):
        areas = (torch.tensor([0.0, 25, 80, 50]), torch.tensor([-10.0, -10, 70, 45]))
        none = torch.zeros(0, 4)
        plot_image_matches(
            tmp_path / "pale.png",
            images=(gray(80, 100), gray(50, 25)),
            boxes=(none, none),
            similarities=torch.zeros(0),
            areas=areas,
        )
        image = pixels(tmp_path / "pale.png")
        dark, pale = ((image == value).all(-1) for value in (128, 213))
        seen = 4 * 2.5 + 5 * 2.5  # square inches; all of the second image, which is padded
        assert dark.sum() / 160**2 == pytest.approx(seen, rel=0.02)
        assert pale.sum() / 160**2 == pytest.approx(4 * 2.5, rel=0.02)

    def test_wrong_counts(self, tmp_path):
        with pytest.raises(ValueError, match=r"got 2 and 2 `boxes` and 1 `similarities`"):
            plot_image_matches(
                tmp_path / "x.png",
                images=(gray(80, 100), gray(50, 25)),
                boxes=self.boxes,
                similarities=self.similarities[:1],
            )


class TestAttention:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """Images and texts."""
        images, texts = [], []
        imshow, text = Axes.imshow, Axes.text

        def record_image(axes, image, **kwargs):
            images.append((np.asarray(image), kwargs["extent"]))
            return imshow(axes, image, **kwargs)

        def record_text(axes, x, y, string, **kwargs):
            texts.append(string)
            return text(axes, x, y, string, **kwargs)

        monkeypatch.setattr(Axes, "imshow", record_image)
        monkeypatch.setattr(Axes, "text", record_text)
        return images, texts

    @pytest.mark.parametrize("heads", [1, 3, 9])
    @pytest.mark.parametrize("with_tokens", [True, False])
    def test_tiles(self, tmp_path, drawn, heads, with_tokens):
        """A row of maps, and below them what is kept; images of any shape."""
        images, texts = drawn
        generator = torch.Generator().manual_seed(0)
        attention = torch.rand(2, heads, 3, 4, generator=generator)
        masks = attention > 0.5
        tokens = torch.randn(2, 3, 4, 8, generator=generator) if with_tokens else None
        photos = [gray(30, 40), gray(60, 40)]
        plot_attention(attention, masks, photos, tmp_path / "figures" / "a.png", tokens=tokens)
        shown = min(heads, 6)
        assert len(images) == 2 * (1 + with_tokens + 2 * (1 + shown))
        assert texts[-1] == f"head {shown}"
        assert texts[0].endswith(f", {heads} heads" if heads <= 6 else ", the first 6 of 9 heads")
        assert ("principal components" in texts[1]) == with_tokens
        assert border_is_white(pixels(tmp_path / "figures" / "a.png"))
        # The first image: itself, its colors, then the mean and each head, map and mask.
        pictures = [picture for picture, _ in images[: len(images) // 2]]
        if with_tokens:
            expected = patch_colors(tokens)[0].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(self.cells(pictures[1], 3, 4), expected)
        maps = torch.cat([attention[0].mean(0, keepdim=True), attention[0, :shown]])
        kept = torch.cat([masks[0].float().mean(0, keepdim=True), masks[0, :shown].float()])
        for i in range(1 + shown):
            heat, lit = pictures[1 + with_tokens + 2 * i :][:2]
            scaled = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
            expected = colormaps["inferno"](scaled.numpy(), bytes=True)[..., :3]
            np.testing.assert_allclose(self.cells(heat, 3, 4).astype(int), expected.astype(int), atol=1)
            light = 128 * (0.2 + 0.8 * kept[i])
            np.testing.assert_allclose(self.cells(lit, 3, 4)[..., 0], light, atol=1)

    @staticmethod
    def cells(picture, rows, columns):
        """What is in the middle of each cell."""
        height, width = picture.shape[:2]
        y, x = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in ((rows, height), (columns, width)))
        return picture[y][:, x]

    def test_uniform_attention(self, tmp_path):
        plot_attention(
            torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3, dtype=torch.bool), [gray(9, 9)], tmp_path / "a.png"
        )

    def test_wrong_shapes(self, tmp_path):
        attention, masks, images = torch.rand(2, 3, 4, 4), torch.ones(2, 3, 4, 4, dtype=torch.bool), [gray(8, 8)] * 2
        for wrong in ((attention, masks[:, :2], images), (attention, masks, images[:1])):
            with pytest.raises(ValueError, match="`attention` and `masks` must have one shape"):
                plot_attention(*wrong, tmp_path / "x.png")
        with pytest.raises(ValueError, match="`tokens` are of 1 images, and there are 2 `images`"):
            plot_attention(attention, masks, images, tmp_path / "x.png", tokens=torch.rand(1, 4, 4, 8))

    def test_matplotlib_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match="Figures need matplotlib"):
            plot_attention(torch.rand(1, 1, 2, 2), torch.ones(1, 1, 2, 2) > 0, [gray(8, 8)], tmp_path / "x.png")
        with pytest.raises(ImportError, match="Figures need matplotlib"):
            plot_image_matches(
                tmp_path / "x.png", images=(gray(8, 8),) * 2, boxes=TestMatches.boxes, similarities=torch.ones(2)
            )
