"""Look inside: what an encoder attends to, how it tells the patches of a photo apart, and what methods are trained on."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import gradio as gr
import PIL.Image
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..evaluation import (
    FeatureSpec,
    LoadedEncoder,
    attention_maps,
    attention_masks,
    crop_to_patches,
    grid_tokens,
    normalization,
)
from ..evaluation.matching import covered_size
from ..figures.attention import heat_colors, light_up
from ..figures.patch_colors import patch_colors
from ..models import METHODS
from ..view_pictures import in_pixels
from .collection import Collection
from .drawing import TINY, draw_photo
from .encoders import EncoderShelf
from .page import refusals_in_place
from .photos import Given, Photo, photo_input, refusal, take_photo, warn_if_refused
from .training_views import NO_PHOTO, Picture, another_seed, seed_input, show_training_views


HEAT, MASK = "heat", "mask"
MAX_HEADS = 16
MIN_MASS = 0.05
EXAMPLE_SIDE = 128  # pixels

_EXPLANATION = """
Show a photo to the encoder, and see what it looks at, which parts of the photo are alike to it, and what the methods would
have learned from the photo.
"""
_ATTENTION = """
### What it looks at
A vision transformer gathers what it says of a photo in one token, by attention to the patches of the photo. Each head
attends to patches of its own; these are the heads of the last block.
"""
_PATCH_COLORS = """
### Which parts are alike
Patches of one color are alike to the encoder: red, green and blue are the first three principal components of their tokens.
The untrained network has the same architecture and random weights. Each picture has colors of its own.
"""
_TRAINING_VIEWS = """
### What methods are trained on
None of the five methods is told what a photo shows. They learn from crops of it, in changed colors.
"""


def process(encoder: LoadedEncoder, photo: Photo) -> Tensor:
    """
    A photo as it is given to an encoder.

    Args:
        encoder ([`~hf_ssl.evaluation.LoadedEncoder`]): The encoder.
        photo ([`Photo`]): What the visitor shows.

    Returns:
        `torch.Tensor` of shape `(1, 3, height, width)`: normalized.

    Raises:
        `gradio.Error`: the image processor does not take it.
    """
    try:
        pixel_values: Tensor = encoder.processor(images=[photo.image], return_tensors="pt")["pixel_values"]
    except ValueError as error:
        raise refusal(str(error)) from error
    return pixel_values


def show_attention(shelf: EncoderShelf, photo: Given, encoder: Any, show: Any, mass: Any) -> tuple[list[Picture], str]:
    """
    What the class token of an encoder attends to in the last block.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        photo ([`Photo`] or [`RefusedPhoto`], *optional*): What the visitor shows.
        encoder (`Any`): Name of the encoder.
        show (`Any`): `"heat"`: bright where there is much attention; or `"mask"`: only the patches that get most of it.
        mass (`Any`): Share of the attention that the patches of a mask hold.

    Returns:
        `tuple[list[tuple[PIL.Image.Image, str]], str]`: a picture of the mean of all heads, and of each head; and what they
        are, or why there are none, in Markdown.

    Raises:
        `gradio.Error`: it cannot be done.
    """
    if show not in (HEAT, MASK):
        raise refusal(f"Attention is shown as {HEAT} or as {MASK}.")
    if isinstance(mass, bool) or not isinstance(mass, (int, float)) or not MIN_MASS <= mass <= 1:
        raise refusal(f"The share of the attention is a number from {MIN_MASS} to 1, such as 0.6.")
    taken = take_photo(photo, NO_PHOTO)
    loaded = shelf.get(encoder).trained
    pixel_values = process(loaded, taken)
    try:
        of_heads = attention_maps(loaded, pixel_values)[0].cpu()
        maps = torch.cat([of_heads.mean(0, keepdim=True), of_heads[:MAX_HEADS]])
        masks = attention_masks(maps, mass).float()
        image = in_pixels(crop_to_patches(loaded, pixel_values)[0], *normalization(loaded.processor))
    except ValueError as error:
        return [], f"**There is no attention to be seen.** {error}"
    drawn = (
        [_heated(image, weights) for weights in maps] if show == HEAT else [light_up(image, mask) for mask in masks]
    )
    names = ["mean of all heads", *(f"head {number}" for number in range(1, len(maps)))]
    first = f", the first {MAX_HEADS} of which are shown" * (len(of_heads) > MAX_HEADS)
    rows, columns = maps.shape[1:]
    return (
        [(_picture(pixels), name) for pixels, name in zip(drawn, names, strict=True)],
        f"{len(of_heads)} heads{first}; {columns} x {rows} patches.{_in_vain(loaded)}",
    )


def _in_vain(encoder: LoadedEncoder) -> str:
    if encoder.feature == "class_token":
        return ""
    feature = FeatureSpec(encoder.feature)
    return f" But the feature of this encoder is the {feature}: it may not have been trained to make use of that one token."


def _heated(image: Tensor, weights: Tensor) -> Tensor:
    """An image in gray under the colors of a map: uint8 of shape `(3, height, width)`."""
    colors = _stretched(heat_colors(weights), image)
    return (0.3 * image.float().mean(0) + 0.7 * colors).round().byte()


def _stretched(colors: Tensor, image: Tensor) -> Tensor:
    """Colors of patches, `(3, rows, columns)`, as large as the image that the patches cover."""
    return F.interpolate(colors[None], size=image.shape[1:], mode="nearest-exact")[0]


def _picture(pixels: Tensor) -> PIL.Image.Image:
    return draw_photo(to_pil_image(pixels))


def show_patch_colors(shelf: EncoderShelf, photo: Given, encoder: Any) -> tuple[list[Picture], str]:
    """
    The patches of a photo in colors that tell which of them are alike to an encoder, before and after training.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        photo ([`Photo`] or [`RefusedPhoto`], *optional*): What the visitor shows.
        encoder (`Any`): Name of the encoder.

    Returns:
        `tuple[list[tuple[PIL.Image.Image, str]], str]`: the photo as the encoder sees it, and the colors by the trained and
        by the untrained one; and what they are, or why there are none, in Markdown.

    Raises:
        `gradio.Error`: it cannot be done.
    """
    taken = take_photo(photo, NO_PHOTO)
    shown = shelf.get(encoder)
    pixel_values = process(shown.trained, taken)
    try:
        tokens = [grid_tokens(one, pixel_values).cpu() for one in shown]
        colors = [patch_colors(of_one)[0] for of_one in tokens]
        image = in_pixels(pixel_values[0], *normalization(shown.trained.processor))
    except ValueError as error:
        return [], f"**There are no patches to be seen.** {error}"
    rows, columns = tokens[0].shape[1:3]
    height, width = covered_size(shown.trained, (rows, columns), (image.shape[1], image.shape[2]))
    image = image[:, :height, :width]
    drawn = [image, *(_stretched(of_one, image) for of_one in colors)]
    names = ["the photo", "trained", "untrained"]
    return (
        [(_picture(pixels), name) for pixels, name in zip(drawn, names, strict=True)],
        f"To the encoder, this is an image of {width} x {height} pixels, in {columns} x {rows} patches.",
    )


def example(collection: Collection, place: int = 0) -> PIL.Image.Image:
    """An image to begin with; a tiny one enlarged, as there would be nothing to see, and to click on."""
    image = collection.example(place)[0]
    factor = EXAMPLE_SIDE // max(image.size) if max(image.size) <= TINY else 1
    return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)


def pick_example(collection: Collection) -> PIL.Image.Image:
    """Any of the images to begin with, or one of the photos that scikit-learn has."""
    place = random.randrange(-2, len(collection.queries))
    return example(collection, place) if place >= 0 else PIL.Image.fromarray(load_sample_images().images[place])


def _tiles(name: str, label: str) -> gr.Gallery:
    """Pictures side by side, as many as fit."""
    return gr.Gallery(
        label=label,
        show_label=False,
        object_fit="contain",
        height="auto",
        format="png",
        buttons=["fullscreen"],
        interactive=False,
        elem_classes=["tiles", "large"],
        elem_id=name,
    )


def inside_tab(shelf: EncoderShelf, collection: Collection, encoder: gr.Dropdown, switched: Any, tab: gr.Tab) -> None:
    """
    The tab, inside of an open `gradio.Tab`.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        collection ([`Collection`]): The images.
        encoder (`gradio.Dropdown`): Where the encoder is chosen.
        switched (`gradio.events.Dependency`): The event that another encoder was loaded.
        tab (`gradio.Tab`): The tab, which begins with an example when it is first opened.
    """
    gr.Markdown(_EXPLANATION)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            photo = photo_input("Photo", elem_id="inside-photo", height=260)
            another = gr.Button("Another example", size="sm", elem_id="another-example")
        with gr.Column(scale=5, min_width=320):
            gr.Markdown(_ATTENTION)
            with gr.Row():
                show = gr.Radio(
                    [HEAT, MASK],
                    value=HEAT,
                    label="Show",
                    info="Heat: the brighter, the more attention. Mask: only the patches that get most of it.",
                    elem_id="show",
                )
                mass = gr.Slider(
                    MIN_MASS,
                    1,
                    value=0.6,
                    step=0.05,
                    label="Share of the attention",
                    info="The mask keeps as few patches as hold it.",
                    visible=False,
                    elem_id="mass",
                )
            about_heads = gr.Markdown(label="In words", elem_id="about-heads")
            heads = _tiles("heads", "Heads")
            gr.Markdown(_PATCH_COLORS)
            about_colors = gr.Markdown(label="In words", elem_id="about-patch-colors")
            colors = _tiles("patch-colors", "Colors of patches")
            gr.Markdown(_TRAINING_VIEWS)
            with gr.Row():
                method = gr.Dropdown(
                    [(entry.title, name) for name, entry in METHODS.items()],
                    value=next(iter(METHODS)),
                    label="Method",
                    elem_id="method",
                )
                seed = seed_input("seed")
            others = gr.Button("Other views", size="sm", elem_id="other-views")
            about_views = gr.Markdown(label="In words", elem_id="about-views")
            boxes = gr.Image(
                label="Boxes",
                show_label=False,
                format="png",
                buttons=["fullscreen"],
                interactive=False,
                elem_classes=["photo"],
                elem_id="boxes",
                height=320,
                alt_text="The photo, with the boxes that views are cut out of",
            )
            views = _tiles("views", "Views")

    private: dict[str, Any] = {"api_visibility": "private"}
    step_in_browser: dict[str, Any] = {**private, "fn": None, "js": "() => []"}  # see `matching_tab`
    last: dict[str, Any] = {**private, "trigger_mode": "always_last"}
    opened = gr.State(False)
    tab.select(lambda: True, None, opened, **private)
    examples = [
        opened.change(lambda: example(collection), None, photo, **private),
        another.click(lambda: pick_example(collection), None, photo, **private),
    ]
    others.click(another_seed, seed, seed, **private)
    brought = photo.input(warn_if_refused, photo, None, **last)
    masked = show.input(lambda show: gr.Slider(visible=show == MASK), show, mass, **last)

    runs: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "encoder"}
    for name, about, function, inputs, outputs, changes in (
        (
            "attention",
            "What the class token of an encoder attends to, head by head.",
            partial(show_attention, shelf),
            [photo, encoder, show, mass],
            [heads, about_heads],
            [brought.success, mass.input, masked.success, switched.success],
        ),
        (
            "patch_colors",
            "Which patches of a photo are alike to an encoder, as colors, trained and untrained.",
            partial(show_patch_colors, shelf),
            [photo, encoder],
            [colors, about_colors],
            [brought.success, switched.success],
        ),
        (
            "training_views",
            "What a method would be trained on, had it a photo.",
            partial(show_training_views, collection),
            [photo, method, seed],
            [boxes, views, about_views],
            [brought.success, method.input, seed.change],
        ),
    ):
        gr.on([], function, inputs, outputs, api_name=name, api_description=about, **runs)
        run = refusals_in_place(function, outputs)
        for change in (*changes, *(shown.success for shown in examples)):
            change(**step_in_browser).success(run, inputs, outputs, **runs, **last)
