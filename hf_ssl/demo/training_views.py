"""What the five methods are trained on, shown for a photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ..arguments import PretrainArguments, build_backbone_config, parse_with_recipe
from ..data import render_photos
from ..figures.common import VIEW_COLORS
from ..figures.views import view_tags
from ..models import METHODS, SSLConfig, get_method
from ..view_pictures import ViewPictures, picture_views
from ..views import Draws
from .collection import Collection
from .drawing import draw_photo
from .photos import Given, refusal, take_photo


NO_PHOTO = "There is no photo yet: upload one, or take another example."
MAX_SEED = 2**31 - 1
_TAG = 18  # pixels: height of letters
_FRAME = 6  # pixels

Picture = tuple[PIL.Image.Image, str]


@cache
def _configurations(name: str) -> tuple[SSLConfig, Any]:
    """The model and the views of a method's recipe for any photos."""
    method = get_method(name)
    recipes = Path(str(resources.files("hf_ssl.scripts"))) / "recipes"
    args, _, model_args, views_config = parse_with_recipe(
        PretrainArguments, recipes, ["--method", name, "--recipe", "default"]
    )
    return method.config_class(backbone_config=build_backbone_config(args, method), **vars(model_args)), views_config


def method_views(name: str, seed: int) -> Any:
    """
    The views of a method, by its recipe for any photos.

    Args:
        name (`str`): The method, as in `--method`.
        seed (`int`): The seed of a run.

    Returns:
        `Any`: see [`~hf_ssl.models.Method`].
    """
    config, views_config = _configurations(name)
    return get_method(name).views_class(views_config, config, seed)


def picture_photos(views: Any, photos: Sequence[PIL.Image.Image], seed: int) -> ViewPictures:
    """
    Views of photos, as a run would make them of its first images.

    Args:
        views (`Any`): What [`method_views`] made.
        photos (`Sequence[PIL.Image.Image]`): Photos of any sizes, RGB.
        seed (`int`): The seed of the run.

    Returns:
        [`~hf_ssl.view_pictures.ViewPictures`]
    """
    index = torch.arange(len(photos))
    sizes = torch.tensor([[photo.height, photo.width] for photo in photos])
    batch = render_photos(views, photos, sizes, torch.zeros_like(index), index)
    return picture_views(views, batch, [pil_to_tensor(photo) for photo in photos], Draws.for_batch(seed, step=0))


def draw_boxes(source: PIL.Image.Image, boxes: Tensor, tags: Sequence[str]) -> PIL.Image.Image:
    """
    Draw a source with the boxes of its views.

    Args:
        source (`PIL.Image.Image`): The source, RGB.
        boxes (`torch.Tensor` of shape `(num_boxes, 5)`, int64): Where views lie in it, see [`hf_ssl.views.boxes`].
        tags (`Sequence[str]`): What is written on each.

    Returns:
        `PIL.Image.Image`: of [`~hf_ssl.demo.drawing.drawn_size`].
    """
    picture = draw_photo(source)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_TAG)
    scale = np.tile(np.divide(picture.size, source.size), 2)
    top, left, height, width, _ = boxes.unbind(1)
    corners = torch.stack([left, top, left + width, top + height], dim=1).numpy() * scale
    edges = corners.round().astype(int) - [0, 0, 1, 1]  # Pillow counts the last pixel in
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 2)
    for number, (x0, y0, x1, y1) in enumerate(edges.tolist()):
        draw.rectangle([x0, y0, x1, y1], outline="white", width=5)
        draw.rectangle([x0 + 1, y0 + 1, x1 - 1, y1 - 1], outline=_color(number), width=3)
    for number, (box, tag) in enumerate(zip(edges.tolist(), tags, strict=True)):
        # In four corners by turns: tags of views that cover the same place would hide each other.
        right, low = number % 4 in (1, 2), number % 4 in (2, 3)
        place = box[2] - 4 if right else box[0] + 5, box[3] - 4 if low else box[1] + 5
        anchor = ("r" if right else "l") + ("d" if low else "a")
        x0, y0, x1, y1 = draw.textbbox(place, tag, font, anchor)
        if tag:
            draw.rectangle([x0 - 4, y0 - 4, x1 + 3, y1 + 3], fill="white", outline=_color(number), width=2)
            draw.text(place, tag, "black", font, anchor)
    return picture


def _color(frame: int) -> str:
    return VIEW_COLORS[frame % len(VIEW_COLORS)]


def draw_views(pictures: ViewPictures, num_mixed: int) -> tuple[PIL.Image.Image, list[Picture]]:
    """
    The first source with its boxes, the images that it is mixed with, and its views.

    Args:
        pictures ([`~hf_ssl.view_pictures.ViewPictures`]): The views of a batch.
        num_mixed (`int`): How many images of the batch are mixed.

    Returns:
        `tuple[PIL.Image.Image, list[tuple[PIL.Image.Image, str]]]`: the source; and the other pictures with names and sizes,
        framed in the color of their box, if they have one.
    """
    boxes, frames = pictures.boxes[0], pictures.frames
    tags = view_tags(list(pictures.views))
    source, *others = (to_pil_image(source) for source in pictures.sources[:num_mixed])
    shown = [(draw_photo(other), "mixed with this image") for other in others]
    for (name, view), frame in zip(pictures.views.items(), frames, strict=True):
        picture, mirrored = draw_photo(to_pil_image(view[0])), ""
        if frame < len(boxes):
            picture, mirrored = ImageOps.expand(picture, _FRAME, _color(frame)), " ↔" * int(boxes[frame, 4])
        shown.append((picture, f"{name}{mirrored}, {view.shape[-1]} px"))
    return draw_boxes(source, boxes, [tags[frames.index(number)] for number in range(len(boxes))]), shown


def seed_input(name: str) -> gr.Number:
    """The choice of a seed."""
    label = "Seed: other numbers give other views"
    return gr.Number(0, precision=0, minimum=0, maximum=MAX_SEED, label=label, elem_id=name)


def another_seed(seed: Any) -> int:
    """The next one, for those who want to see others."""
    return (int(seed or 0) + 1) % MAX_SEED


def show_training_views(
    collection: Collection, photo: Given, method: Any, seed: Any
) -> tuple[PIL.Image.Image, list[Picture], str]:
    """
    What a method would be trained on, had it this photo.

    Args:
        collection ([`Collection`]): Has the images that the photo is mixed with, where a method mixes images.
        photo ([`Photo`] or [`RefusedPhoto`], *optional*): What the visitor shows.
        method (`Any`): Name of the method.
        seed (`Any`): Other seeds give other views.

    Returns:
        `tuple[PIL.Image.Image, list[tuple[PIL.Image.Image, str]], str]`: the photo with the boxes of the views, the views
        with captions, and what they are, in Markdown.

    Raises:
        `gradio.Error`: it cannot be done.
    """
    taken = take_photo(photo, NO_PHOTO)
    if not isinstance(method, str) or method not in METHODS:
        raise refusal(f"The method is one of {', '.join(METHODS)}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, float)) or not 0 <= seed <= MAX_SEED or seed != int(seed):
        raise refusal(f"The seed is a whole number from 0 to {MAX_SEED}.")
    views = method_views(method, int(seed))
    num_others = getattr(views, "min_batch_size", 1) - 1
    places = np.random.default_rng(int(seed)).integers(len(collection), size=num_others).tolist()
    photos = [taken.image, *map(collection.image, places)]
    pictures = picture_photos(views, photos, int(seed))
    words = f"{get_method(method).summary} Frames have the color of their box in the photo; ↔: mirrored."
    if len(pictures.views) > pictures.boxes.shape[1]:
        words += f" Further pictures: {pictures.without_box}."
    return *draw_views(pictures, getattr(views, "group_size", 1)), words
