"""What encoders find, drawn over photos: matched patches, one patch, similarities."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageDraw
from torch import Tensor

from ..figures.attention import heat_colors


SIDE = 512  # pixels: the longer side of a drawn photo
TINY = 64  # pixels: the longer side of photos whose pixels are drawn as squares
GAP = 16  # pixels between two photos
MARK = (0, 220, 255)
_EDGE = (0, 0, 0, 170)  # dark on either side of lines, to be seen on any photo
_TINT = 120  # of 255: how much of a tile's color covers the photo
_FINER = 2  # lines are drawn larger by this and then reduced, to be smooth

Size = tuple[int, int]
Color = tuple[int, int, int]
Point = tuple[float, float]


def drawn_size(size: Size) -> Size:
    """
    How large a photo is drawn: reduced to `SIDE` pixels, or enlarged by a whole factor to at most as many.

    Args:
        size (`tuple[int, int]`): Width and height of the photo, in pixels.

    Returns:
        `tuple[int, int]`: width and height.
    """
    longer = max(size)
    scale = SIDE / longer if longer > SIDE else SIDE // longer
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def draw_photo(photo: PIL.Image.Image) -> PIL.Image.Image:
    """A photo as large as it is drawn."""
    if max(photo.size) <= TINY:
        return photo.resize(drawn_size(photo.size), PIL.Image.Resampling.NEAREST)
    return photo.resize(drawn_size(photo.size), PIL.Image.Resampling.BICUBIC, reducing_gap=2.0)


def place_in_photo(point: Point, size: Size) -> Point:
    """
    A place in a drawn photo as a place in the photo.

    Args:
        point (`tuple[float, float]`): Vertical and horizontal position, in pixels of the drawn photo.
        size (`tuple[int, int]`): Width and height of the photo.

    Returns:
        `tuple[float, float]`: vertical and horizontal position, in pixels of the photo.
    """
    drawn = drawn_size(size)
    return point[0] * size[1] / drawn[1], point[1] * size[0] / drawn[0]


def _drawn_edges(boxes: Tensor, size: Size) -> np.ndarray:
    """Boxes `(..., 4)` of a photo of this size as `(left, top, right, bottom)` of the drawn photo."""
    top, left, height, width = boxes.double().unbind(-1)
    edges = np.stack([left, top, left + width, top + height], axis=-1)
    drawn = drawn_size(size)
    return edges * np.array([drawn[0] / size[0], drawn[1] / size[1]] * 2)


@dataclass(frozen=True)
class Sheet:
    """
    Where two photos lie in one picture; made by [`arrange`].

    Args:
        size (`tuple[int, int]`): Width and height of the picture.
        corners (`tuple[tuple[int, int], tuple[int, int]]`): Left and top of either photo.
        sizes (`tuple[tuple[int, int], tuple[int, int]]`): Width and height of either drawn photo.
    """

    size: Size
    corners: tuple[Size, Size]
    sizes: tuple[Size, Size]

    def find(self, point: Point) -> tuple[int, Point] | None:
        """
        The photo at a point of the picture.

        Args:
            point (`tuple[float, float]`): Vertical and horizontal position.

        Returns:
            `tuple[int, tuple[float, float]]`, *optional*: 0 or 1, and the position in the drawn photo; None between the
            photos.
        """
        for number, ((left, top), (width, height)) in enumerate(zip(self.corners, self.sizes, strict=True)):
            place = (point[0] - top, point[1] - left)
            if 0 <= place[0] < height and 0 <= place[1] < width:
                return number, place
        return None


def arrange(first: Size, second: Size) -> Sheet:
    """
    Put two photos beside each other, or one below the other: whichever is nearer to a square, which is large on a desk and
    on a phone.

    Args:
        first (`tuple[int, int]`): Width and height of the first photo.
        second (`tuple[int, int]`): Those of the second.

    Returns:
        [`Sheet`]
    """
    sizes = (drawn_size(first), drawn_size(second))
    (width1, height1), (width2, height2) = sizes
    wide, tall = max(width1, width2), max(height1, height2)
    beside, below = (width1 + GAP + width2, tall), (wide, height1 + GAP + height2)
    if max(beside) <= max(below):
        return Sheet(beside, ((0, (tall - height1) // 2), (width1 + GAP, (tall - height2) // 2)), sizes)
    return Sheet(below, (((wide - width1) // 2, 0), ((wide - width2) // 2, height1 + GAP)), sizes)


def place_colors(boxes: Tensor, area: Tensor) -> list[Color]:
    """
    Colors that tell where boxes lie in an area: hues from left to right, from bright at the top to dark at the bottom.

    Args:
        boxes (`torch.Tensor` of shape `(num_boxes, 4)`): `(top, left, height, width)`, inside of the area.
        area (`torch.Tensor` of shape `(4,)`): `(top, left, height, width)`.

    Returns:
        `list[tuple[int, int, int]]`: red, green and blue of each box.
    """
    colors = []
    for y, x in ((boxes[:, :2] + boxes[:, 2:] / 2 - area[:2]) / area[2:]).tolist():
        red, green, blue = colorsys.hsv_to_rgb(0.85 * x, 0.85, 1 - 0.35 * y)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def draw_matches(
    photos: tuple[PIL.Image.Image, PIL.Image.Image],
    boxes: tuple[Tensor, Tensor],
    areas: tuple[Tensor, Tensor],
) -> PIL.Image.Image:
    """
    Draw two photos with tiles over their matched patches and a line between those of a pair. Colors tell where in the first
    photo they lie.

    Args:
        photos (`tuple[PIL.Image.Image, PIL.Image.Image]`): The photos, RGB.
        boxes (`tuple[torch.Tensor, torch.Tensor]` of shape `(num_pairs, 4)`):
            The patches of either photo, in pairs, those to be on top first: `(top, left, height, width)` in its pixels.
        areas (`tuple[torch.Tensor, torch.Tensor]` of shape `(4,)`): What was matched of either photo; the rest is pale.

    Returns:
        `PIL.Image.Image`: RGBA, of the size of the photos' [`Sheet`]; transparent between them.
    """
    sheet = arrange(photos[0].size, photos[1].size)
    picture = PIL.Image.new("RGBA", sheet.size)
    tiles = []
    for photo, of_photo, area, corner in zip(photos, boxes, areas, sheet.corners, strict=True):
        picture.paste(_pale_outside(photo, area), corner)
        tiles.append(_drawn_edges(of_photo, photo.size) + np.array(corner * 2))
    pen = _Pen(sheet.size)
    pairs = list(zip(*tiles, place_colors(boxes[0], areas[0]), strict=True))[::-1]
    for first, second, color in pairs:
        pen.tile(first, color)
        pen.tile(second, color)
    for first, second, color in pairs:
        pen.line(first, second, color)
    return PIL.Image.alpha_composite(picture, pen.drawn())


def draw_patch(photo: PIL.Image.Image, box: Tensor, area: Tensor) -> PIL.Image.Image:
    """
    Draw a photo with a frame around a patch.

    Args:
        photo (`PIL.Image.Image`): The photo, RGB.
        box (`torch.Tensor` of shape `(4,)`): The patch, `(top, left, height, width)` in pixels of the photo.
        area (`torch.Tensor` of shape `(4,)`): What the encoder sees of it; the rest is pale.

    Returns:
        `PIL.Image.Image`: RGB, of [`drawn_size`].
    """
    return _framed(_pale_outside(photo, area), _drawn_edges(box, photo.size))


def draw_similarities(photo: PIL.Image.Image, similarities: Tensor, box: Tensor, area: Tensor) -> PIL.Image.Image:
    """
    Draw a photo with colors that tell how similar its patches are to something, from dark to bright, and a frame around one.

    Args:
        photo (`PIL.Image.Image`): The photo, RGB.
        similarities (`torch.Tensor` of shape `(rows, columns)`): Of each patch; the smallest is darkest.
        box (`torch.Tensor` of shape `(4,)`): The patch in the frame, `(top, left, height, width)` in pixels of the photo.
        area (`torch.Tensor` of shape `(4,)`): What the patches cover; the rest is pale.

    Returns:
        `PIL.Image.Image`: RGB, of [`drawn_size`].
    """
    heat = heat_colors(similarities).permute(1, 2, 0).numpy()
    rows, columns = _cells(area, photo.size, (heat.shape[0], heat.shape[1]))
    pixels = np.asarray(_pale_outside(photo, area)).copy()
    inside = np.ix_(rows >= 0, columns >= 0)
    gray = pixels[inside].mean(-1, keepdims=True)
    pixels[inside] = 0.4 * gray + 0.6 * heat[rows[rows >= 0]][:, columns[columns >= 0]]
    return _framed(PIL.Image.fromarray(pixels), _drawn_edges(box, photo.size))


def _cells(area: Tensor, size: Size, grid: Size) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the patches at each row and column of pixels of a drawn photo; -1 outside of the area."""
    left, top, right, bottom = _drawn_edges(area, size)
    width, height = drawn_size(size)
    of_axes = []
    for start, end, length, count in ((top, bottom, height, grid[0]), (left, right, width, grid[1])):
        shares = (np.arange(length) + 0.5 - start) / (end - start)
        of_axes.append(np.where((shares >= 0) & (shares < 1), np.floor(shares * count), -1).astype(int))
    return of_axes[0], of_axes[1]


def _pale_outside(photo: PIL.Image.Image, area: Tensor) -> PIL.Image.Image:
    """A drawn photo, with white mixed into what lies outside of an area."""
    pixels = np.asarray(draw_photo(photo))
    rows, columns = _cells(area, photo.size, (1, 1))
    pale = 255 - (255 - pixels) // 3
    inside = np.ix_(rows == 0, columns == 0)
    pale[inside] = pixels[inside]
    return PIL.Image.fromarray(pale)


def _framed(picture: PIL.Image.Image, edges: np.ndarray) -> PIL.Image.Image:
    """A picture with a frame around a box, which is left free."""
    pen = _Pen(picture.size)
    pen.frame(edges)
    return PIL.Image.alpha_composite(picture.convert("RGBA"), pen.drawn()).convert("RGB")


class _Pen:
    """Draws smooth lines on a transparent sheet; boxes are `(left, top, right, bottom)`."""

    def __init__(self, size: Size):
        self.sheet = PIL.Image.new("RGBA", (size[0] * _FINER, size[1] * _FINER))
        self.draw = ImageDraw.Draw(self.sheet)

    def drawn(self) -> PIL.Image.Image:
        """What was drawn."""
        return self.sheet.reduce(_FINER)

    def _rectangle(self, edges: np.ndarray, grow: float = 0, **options: Any) -> None:
        """A box, larger on each side by `grow`."""
        left, top, right, bottom = np.rint((edges + grow * np.array([-1, -1, 1, 1])) * _FINER).astype(int).tolist()
        # Pillow counts the last pixel in; a box has one at least.
        self.draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), **options)

    def tile(self, edges: np.ndarray, color: Color) -> None:
        """A box, tinted, with a line along its inner side."""
        self._rectangle(edges, fill=(*color, _TINT), outline=color, width=_FINER)

    def line(self, first: np.ndarray, second: np.ndarray, color: Color) -> None:
        """From the center of one box to that of another."""
        ends = [tuple(((box[:2] + box[2:]) / 2 * _FINER).tolist()) for box in (first, second)]
        self.draw.line(ends, fill=_EDGE, width=3 * _FINER)
        self.draw.line(ends, fill=color, width=3 * _FINER // 2)

    def frame(self, edges: np.ndarray) -> None:
        """Lines around a box: a bright one between two dark ones."""
        for grow, color, width in ((4, _EDGE, 4), (3, (*MARK, 255), 2)):
            self._rectangle(edges, grow, outline=color, width=width * _FINER)
