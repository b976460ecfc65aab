"""Patch matching: which parts of two photos an encoder takes for the same thing, and what it finds alike to one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..evaluation import PatchMatches, match_boxes, mutual_nearest_patches, similarity_map
from ..evaluation.matching import patch_boxes
from ..evaluation.monitor import evenly_spaced_indices
from ..view_pictures import in_pixels
from ..views import MultiViewPipeline, View
from .collection import Collection
from .drawing import TINY, arrange, draw_matches, draw_patch, draw_similarities, place_in_photo
from .encoders import EncoderShelf
from .inside import example, pick_example
from .page import refusals_in_place
from .photos import MAX_PIXELS, Given, Photo, photo_input, refusal, take_photo, warn_if_refused
from .training_views import MAX_SEED, another_seed, seed_input


OWN, VIEW = "own", "view"  # what the second photo is
ENCODER, GEOMETRY = "encoder", "geometry"  # what matches
FIRST, SECOND = "first", "second"
MAX_PAIRS = 50  # that are drawn
MAX_COMPARISONS = 2**25  # of a patch with another, all of which are in memory
GEOMETRY_GRID = 14
VIEW_SIDE = 224
MATCH_HEADERS = ["similarity", "first: x", "first: y", "second: x", "second: y", "same place"]
SIMILARITY_HEADERS = ["x", "y", "similarity"]
_NO_FIRST = "There is no first photo yet: upload one, or take another example."
_NO_SECOND = "There is no second photo yet: upload one, or choose an augmented view of the first."
_VIEW = View(scale=[0.3, 0.7], jitter=1.0)

_EXPLANATION = """
Which parts of two photos does the encoder take for the same thing? Bring two photos; or one, which is compared with a crop of
itself in changed colors, where it is known what belongs together.
"""
_SIMILARITY = """
### Click on a patch
In any of the pictures, above or below. The other photo then shows what the encoder finds similar to it: the brighter, the
more similar. The frame is around the most similar patch. What is pale, the encoder does not see.
"""


@dataclass(frozen=True)
class Pair:
    """
    Two photos, the second of which may be an augmented view of the first.

    Args:
        first ([`Photo`]): A photo.
        second ([`Photo`]): Another one, or the view.
        box (`torch.Tensor` of shape `(5,)`, int64, *optional*): Where the view lies in the first, see [`hf_ssl.views.boxes`].
    """

    first: Photo
    second: Photo
    box: Tensor | None = None

    def __iter__(self) -> Iterator[Photo]:
        yield self.first
        yield self.second


def make_view(first: Photo, seed: Any) -> tuple[Photo, Tensor]:
    """
    A crop of a photo, mirrored or not, in changed colors: a function of the photo and the seed.

    Args:
        first ([`Photo`]): The photo.
        seed (`Any`): Which view of it.

    Returns:
        `tuple[Photo, torch.Tensor]`: the view, and where it lies, `(5,)`, int64, see [`hf_ssl.views.boxes`].

    Raises:
        `gradio.Error`: the seed is none.
    """
    if not _is_number(seed, 0, MAX_SEED) or seed != int(seed):
        raise refusal(f"The seed is a whole number from 0 to {MAX_SEED}.")
    view = replace(_VIEW, size=min(VIEW_SIDE, *first.image.size))
    black, white = [0.0] * 3, [1.0] * 3
    pipeline = MultiViewPipeline({"view": [view]}, black, white, int(seed))
    which = {name: torch.zeros(1, dtype=torch.int64) for name in ("epoch", "index")}
    boxes = pipeline.boxes(**which, sizes=torch.tensor([[first.image.height, first.image.width]]))
    crops = pipeline.render(first.image, boxes[0])["view_crops"]
    made = pipeline({**which, "boxes": boxes, "view_crops": crops[None]})["view"][0, 0]
    return Photo(to_pil_image(in_pixels(made, black, white)), f"{first.digest}, view {int(seed)}"), boxes[0, 0]


def augmented_view(first: Given, seed: Any) -> tuple[PIL.Image.Image, dict[str, int]]:
    """
    A random crop of a photo, and where it lies.

    Args:
        first ([`Photo`] or [`RefusedPhoto`], *optional*): The photo.
        seed (`Any`): Which view of it.

    Returns:
        `tuple[PIL.Image.Image, dict[str, int]]`: the view, and its `top`, `left`, `height`, `width` in pixels of the photo,
        and `flip`, 1 if it is mirrored.

    Raises:
        `gradio.Error`: there is no photo, or the seed is none.
    """
    view, box = make_view(take_photo(first, _NO_FIRST), seed)
    return view.image, dict(zip(("top", "left", "height", "width", "flip"), box.tolist(), strict=True))


def take_pair(first: Given, second: Given, kind: Any, seed: Any) -> Pair:
    """
    The photos that a visitor wants to have compared.

    Args:
        first ([`Photo`] or [`RefusedPhoto`], *optional*): The first photo.
        second ([`Photo`] or [`RefusedPhoto`], *optional*): The second one; of no meaning if it is a view.
        kind (`Any`): `"own"`: the second photo is one of the visitor's; or `"view"`: an augmented view of the first.
        seed (`Any`): Which view.

    Returns:
        [`Pair`]

    Raises:
        `gradio.Error`: a photo is missing, or another thing is none of these.
    """
    if kind not in (OWN, VIEW):
        raise refusal(f"The second photo is of the kind {OWN} or {VIEW}.")
    photo = take_photo(first, _NO_FIRST)
    return Pair(photo, *make_view(photo, seed)) if kind == VIEW else Pair(photo, take_photo(second, _NO_SECOND))


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def by_encoder(shelf: EncoderShelf, pair: Pair, encoder: Any, threshold: Any) -> PatchMatches:
    """
    Pairs of patches of which each is the other's nearest to an encoder.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        pair ([`Pair`]): The photos.
        encoder (`Any`): Name of the encoder.
        threshold (`Any`): Least cosine similarity of a pair.

    Returns:
        [`~hf_ssl.evaluation.PatchMatches`]: the most similar pair first.

    Raises:
        `gradio.Error`: it cannot be done.
    """
    if not _is_number(threshold, -1, 1):
        raise refusal("The least similarity is a number from -1 to 1, such as 0.5.")
    shown = shelf.get(encoder)
    first, second = (shelf.patches(shown.trained, photo, shown.fingerprint) for photo in pair)
    if first.grid[0] * first.grid[1] * second.grid[0] * second.grid[1] > MAX_COMPARISONS:
        raise refusal("The encoder makes so many patches of these photos that they cannot all be compared here.")
    try:
        pairs, similarities = mutual_nearest_patches(first.tokens.flatten(0, 1), second.tokens.flatten(0, 1))
    except ValueError as error:
        raise refusal(str(error)) from error
    kept = similarities >= threshold
    pairs, similarities = pairs[kept], similarities[kept]
    boxes = (first.boxes[pairs[:, 0]], second.boxes[pairs[:, 1]])
    return PatchMatches(pairs, boxes, (first.area, second.area), (first.grid, second.grid), similarities)


def by_geometry(pair: Pair) -> PatchMatches:
    """
    Patches of a photo and of its view that show the same place, by PW-Self's rule; no encoder has a part in it.

    Args:
        pair ([`Pair`]): A photo and a view of it.

    Returns:
        [`~hf_ssl.evaluation.PatchMatches`]: in pixels of either picture, without similarities.

    Raises:
        `gradio.Error`: the second photo is no view of the first.
    """
    if pair.box is None:
        raise refusal(
            "Of two photos of your own, geometry does not know what belongs together: match them by the encoder, or choose "
            "an augmented view of the first as the second photo."
        )
    wholes = [torch.tensor([0, 0, photo.image.height, photo.image.width, 0]) for photo in pair]
    count = min(GEOMETRY_GRID, *pair.second.image.size)
    grid = (count, count)
    in_source = match_boxes(wholes[0], pair.box, (grid, grid))
    in_view = patch_boxes(wholes[1][:4], grid)[in_source.pairs[:, 1]]
    areas = (wholes[0][:4].double(), wholes[1][:4].double())
    return PatchMatches(in_source.pairs, (in_source.boxes[0], in_view), areas, (grid, grid))


def same_place(matches: PatchMatches, box: Tensor, size: tuple[int, int]) -> Tensor:
    """
    Which matches of a photo and its view are true: the center of the view's patch lies, in the photo, in the patch that it is
    matched with or in one beside it.

    Args:
        matches ([`~hf_ssl.evaluation.PatchMatches`]): Pairs of their patches, in pixels of either.
        box (`torch.Tensor` of shape `(5,)`, int64): Where the view lies in the photo.
        size (`tuple[int, int]`): Width and height of the view.

    Returns:
        `torch.Tensor` of shape `(num_pairs,)`, bool.
    """
    shares = matches.centers[:, 1] / torch.tensor([size[1], size[0]], dtype=torch.float64)
    if box[4]:
        shares[:, 1] = 1 - shares[:, 1]
    places = box[:2] + shares * box[2:4]
    distances = (places - matches.centers[:, 0]).abs() / matches.boxes[0][:, 2:]
    return (distances <= 1.5).all(1)


def match(
    shelf: EncoderShelf,
    first: Given,
    second: Given,
    kind: Any,
    seed: Any,
    encoder: Any,
    threshold: Any,
    mode: Any,
) -> tuple[PIL.Image.Image, str, list[list[Any]]]:
    """
    Match the patches of two photos.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        first ([`Photo`] or [`RefusedPhoto`], *optional*): The first photo.
        second ([`Photo`] or [`RefusedPhoto`], *optional*): The second one; of no meaning if it is a view.
        kind (`Any`): See [`take_pair`].
        seed (`Any`): See [`take_pair`].
        encoder (`Any`): Name of the encoder; of no meaning to geometry.
        threshold (`Any`): See [`by_encoder`]; of no meaning to geometry.
        mode (`Any`): `"encoder"` or `"geometry"`: what matches.

    Returns:
        `tuple[PIL.Image.Image, str, list[list[Any]]]`: the photos with their matched patches, a sentence, and a row for each
        pair that is drawn: similarity, centers of the patches in pixels, and whether they show the same place, as far as
        these are known.

    Raises:
        `gradio.Error`: it cannot be done.
    """
    if mode not in (ENCODER, GEOMETRY):
        raise refusal(f"Patches are matched by {ENCODER} or by {GEOMETRY}.")
    pair = take_pair(first, second, kind, seed)
    found = by_geometry(pair) if mode == GEOMETRY else by_encoder(shelf, pair, encoder, threshold)
    drawn = _some(found)
    truth = None if pair.box is None else same_place(drawn, pair.box, pair.second.image.size)
    picture = draw_matches((pair.first.image, pair.second.image), drawn.boxes, drawn.areas)
    return picture, _describe(found, drawn, truth, threshold), _match_rows(drawn, truth)


def _some(matches: PatchMatches) -> PatchMatches:
    """As many pairs as are drawn: the most similar ones, or some from everywhere."""
    kept = torch.arange(len(matches))[:MAX_PAIRS]
    if matches.similarities is None and len(matches):
        kept = evenly_spaced_indices(len(matches), MAX_PAIRS)
    return replace(
        matches,
        pairs=matches.pairs[kept],
        boxes=(matches.boxes[0][kept], matches.boxes[1][kept]),
        similarities=None if matches.similarities is None else matches.similarities[kept],
    )


def _describe(found: PatchMatches, drawn: PatchMatches, truth: Tensor | None, threshold: Any) -> str:
    what = f"**{len(found)} pair{'s' * (len(found) != 1)} of patches**"
    if found.similarities is None:
        some = f"; {len(drawn)} of them are drawn" if len(drawn) < len(found) else ""
        return f"{what} show the same place{some}."
    if not len(found):
        return f"No pair of patches is as similar as {threshold:.2f}: lower the least similarity."
    words = f"{what}, each the other's nearest, with a similarity of at least {threshold:.2f}."
    if len(drawn) < len(found):
        words += f" The {len(drawn)} most similar are drawn."
    if truth is not None:
        words += f" Of those that are drawn, **{int(truth.sum())}** show the same place, within one patch."
    return words


def _match_rows(matches: PatchMatches, truth: Tensor | None) -> list[list[Any]]:
    count = len(matches)
    similarities = [""] * count if matches.similarities is None else _rounded(matches.similarities, 4)
    places = _rounded(matches.centers.flip(-1).flatten(1), 2)
    truths = [""] * count if truth is None else truth.tolist()
    return [[one, *place, true] for one, place, true in zip(similarities, places, truths, strict=True)]


def _rounded(numbers: Tensor, decimals: int) -> list[Any]:
    return numbers.double().round(decimals=decimals).tolist()


def similarity(
    shelf: EncoderShelf,
    first: Given,
    second: Given,
    kind: Any,
    seed: Any,
    encoder: Any,
    x: Any,
    y: Any,
    which: Any,
) -> tuple[PIL.Image.Image, PIL.Image.Image, str, list[list[Any]]]:
    """
    How similar the patches of one photo are to a patch of the other.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        first ([`Photo`] or [`RefusedPhoto`], *optional*): The first photo.
        second ([`Photo`] or [`RefusedPhoto`], *optional*): The second one; of no meaning if it is a view.
        kind (`Any`): See [`take_pair`].
        seed (`Any`): See [`take_pair`].
        encoder (`Any`): Name of the encoder.
        x (`Any`): A point of the patch, in pixels of its photo from the left.
        y (`Any`): The same from the top.
        which (`Any`): `"first"` or `"second"`: the photo with the patch.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image, str, list[list[Any]]]`: the first and the second photo, one with the patch
        and one with the similarities; a sentence; and centers and similarities of the most similar patches.

    Raises:
        `gradio.Error`: it cannot be done.
    """
    pair = take_pair(first, second, kind, seed)
    if which not in (FIRST, SECOND):
        raise refusal(f"The patch is in the photo {FIRST} or {SECOND}.")
    here, there = (0, 1) if which == FIRST else (1, 0)
    photos = [photo.image for photo in pair]
    width, height = photos[here].size
    if not _is_number(x, 0, width) or not _is_number(y, 0, height):
        raise refusal(
            f"A position is in pixels of the photo: x from 0, at the left, to {width}; y from 0, at the top, to {height}."
        )
    shown = shelf.get(encoder)
    patches = [shelf.patches(shown.trained, photo, shown.fingerprint) for photo in pair]
    try:
        number = patches[here].patch_at((y, x))
    except ValueError:
        raise refusal(
            "The encoder does not see this place: choose one of the photo's part that is not pale."
        ) from None
    try:
        similarities = similarity_map(patches[here], patches[there], (y, x))
    except ValueError as error:
        raise refusal(str(error)) from error
    order = similarities.flatten().sort(descending=True, stable=True).indices[:MAX_PAIRS]
    boxes, values = patches[there].boxes[order], _rounded(similarities.flatten()[order], 4)
    centers = _rounded((boxes[:, :2] + boxes[:, 2:] / 2).flip(-1), 2)
    marked = draw_patch(photos[here], patches[here].boxes[number], patches[here].area)
    heated = draw_similarities(photos[there], similarities, boxes[0], patches[there].area)
    words = (
        f"The patch at x {x:g}, y {y:g} of the {which} photo is most similar to that at x {centers[0][0]:g}, "
        f"y {centers[0][1]:g} of the {SECOND if which == FIRST else FIRST}: **{values[0]:.2f}**. The darkest patch: "
        f"{float(similarities.min()):.2f}."
    )
    rows = [[*center, value] for center, value in zip(centers, values, strict=True)]
    return *((marked, heated) if which == FIRST else (heated, marked)), words, rows


def find_click(
    pair: Pair, index: Any, number: int | None = None, *, is_drawn: bool = True
) -> tuple[float, float, str]:
    """
    The place in a photo that a visitor has clicked on.

    Args:
        pair ([`Pair`]): The photos.
        index (`Any`): What the browser tells: horizontal and vertical position, in pixels of the picture's file.
        number (`int`, *optional*): 0 or 1, if the picture shows one of the photos; unset, it shows the matches of both.
        is_drawn (`bool`, *optional*, defaults to `True`): Whether the picture is a drawn one, or the photo itself.

    Returns:
        `tuple[float, float, str]`: x, y and which photo, as [`similarity`] takes them.

    Raises:
        `gradio.Error`: there is no photo at this place.
    """
    if not isinstance(index, list) or len(index) != 2 or not all(_is_number(place, 0, MAX_PIXELS) for place in index):
        raise refusal("There is nothing here: click inside of a photo.")
    point = (float(index[1]), float(index[0]))
    if number is None:
        found = arrange(pair.first.image.size, pair.second.image.size).find(point)
        if found is None:
            raise refusal("This is between the photos: click inside of one.")
        number, point = found
    photo = (pair.first, pair.second)[number]
    if is_drawn:
        point = place_in_photo(point, photo.image.size)
    elif max(photo.image.size) <= TINY:  # browsers tell whole pixels, which are too coarse
        raise refusal("This photo is too small to be clicked on: click in the pictures below, where it is enlarged.")
    elif not photo.is_shown_upright:
        raise refusal("Not all browsers turn this photo upright: click in the pictures below, where it is.")
    return round(point[1], 2), round(point[0], 2), (FIRST, SECOND)[number]


# ---- the tab ----


def _shown(photo: Given) -> dict[str, Any]:
    """
    How a photo is shown in its input. Where a visitor has clicked, Gradio gets wrong in one that is enlarged; only tiny ones
    are, which cannot be clicked on.
    """
    is_tiny = not isinstance(photo, Photo) or max(photo.image.size) <= TINY
    update: dict[str, Any] = gr.update(elem_classes=["photo"] if is_tiny else ["photo", "true-size"])
    return update


def _show_view(first: Given, kind: Any, seed: Any) -> dict[str, Any]:
    """The second photo, if it is a view of the first."""
    if kind != VIEW:
        return gr.skip()
    try:
        view = take_pair(first, None, kind, seed).second
    except gr.Error:  # the matches say why
        return {**_shown(None), "value": None}
    return {**_shown(view), "value": view.image}


def _center(first: Given) -> tuple[float, float, str]:
    """The patch to begin with."""
    return (first.image.width / 2, first.image.height / 2, FIRST) if isinstance(first, Photo) else (0, 0, FIRST)


def _controls(kind: Any) -> list[Any]:
    """Only of a view, there are others, and geometry."""
    is_view = kind == VIEW
    return [
        gr.Number(visible=is_view),
        gr.Button(visible=is_view),
        gr.Radio(value=ENCODER, visible=is_view),
        gr.Slider(visible=True),
    ]


def _take_seed(first: Given, kind: Any, seed: Any) -> tuple[Any, ...]:
    return _shown(first), _show_view(first, kind, seed)


def _take_first(first: Given, kind: Any, seed: Any) -> tuple[Any, ...]:
    warn_if_refused(first)
    return *_take_seed(first, kind, seed), *_center(first)


def _take_kind(first: Given, kind: Any, seed: Any) -> tuple[Any, ...]:
    second = _show_view(first, kind, seed) if kind == VIEW else None
    return second, *_center(first), *_controls(kind)


def _take_second(first: Given, second: Given) -> tuple[Any, ...]:
    warn_if_refused(second)
    return _shown(second), OWN, *_center(first), *_controls(OWN)


def _picture(label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=False,  # which would lie on top of patches
        format="png",
        buttons=["fullscreen"],
        interactive=False,
        elem_id=name,
        alt_text=label,
    )


def matching_tab(
    shelf: EncoderShelf, collection: Collection, encoder: gr.Dropdown, switched: Any, tab: gr.Tab
) -> None:
    """
    The tab, inside of an open `gradio.Tab`.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        collection ([`Collection`]): The images to begin with.
        encoder (`gradio.Dropdown`): Where the encoder is chosen.
        switched (`gradio.events.Dependency`): The event that another encoder was loaded.
        tab (`gradio.Tab`): The tab, which begins with an example when it is first opened.
    """
    gr.Markdown(_EXPLANATION)
    with gr.Row():
        with gr.Column(min_width=280):
            first = photo_input("First photo", elem_id="match-first", height=300)
            another = gr.Button("Another example", size="sm", elem_id="match-example")
        with gr.Column(min_width=280):
            second = photo_input("Second photo", elem_id="match-second", height=300)
            other_view = gr.Button("Another view", size="sm", elem_id="match-other-view")
    with gr.Row():
        kind = gr.Radio(
            [("a photo of your own", OWN), ("an augmented view of the first", VIEW)],
            value=VIEW,
            label="The second photo is",
            info="A view is a random crop of the first photo, mirrored or not, in changed colors.",
            elem_id="match-kind",
        )
        seed = seed_input("match-seed")
    with gr.Row():
        mode = gr.Radio(
            [("by the encoder", ENCODER), ("by geometry", GEOMETRY)],
            value=ENCODER,
            label="Patches are matched",
            info="By geometry: those that show the same place, as the crop tells. No encoder has a part in it.",
            elem_id="match-mode",
        )
        threshold = gr.Slider(
            -1,
            1,
            value=0,
            step=0.01,
            label="Least similarity",
            info="Of patches of which each is the other's nearest, pairs that are less similar are left out.",
            elem_id="match-threshold",
        )
    words = gr.Markdown(label="In words", elem_id="match-summary")
    matched = _picture("Two photos, with lines between their matched patches", "matches")
    gr.Markdown(_SIMILARITY)
    similar_words = gr.Markdown(label="In words", elem_id="similarity-summary")
    with gr.Row():
        pictures = [
            _picture(f"The {name} photo, with a patch or with similarities", f"similarity-{name}")
            for name in (FIRST, SECOND)
        ]
    with gr.Accordion("Numbers", open=False):
        with gr.Row():
            x = gr.Number(0, label="x of the patch, in pixels", elem_id="match-x")
            y = gr.Number(0, label="y of the patch, in pixels", elem_id="match-y")
            which = gr.Radio([FIRST, SECOND], value=FIRST, label="of the photo", elem_id="match-which")
        similar_rows = gr.Dataframe(headers=SIMILARITY_HEADERS, label="Most similar patches", interactive=False)
        matched_rows = gr.Dataframe(headers=MATCH_HEADERS, label="Matched patches", interactive=False)
    box = gr.JSON(label="Box", visible=False)

    private: dict[str, Any] = {"api_visibility": "private"}
    runs: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "encoder"}
    photos, place, controls = [first, second, kind, seed], [x, y, which], [seed, other_view, mode, threshold]
    shown = [*pictures, similar_words, similar_rows]
    to_match: Any = (partial(match, shelf), [*photos, encoder, threshold, mode], [matched, words, matched_rows])
    to_compare: Any = (partial(similarity, shelf), [*photos, encoder, *place], shown)
    to_view: Any = (augmented_view, [first, seed], [second, box])
    for name, about, task in (
        ("match", "Pairs of patches of two photos that an encoder, or geometry, takes for the same thing.", to_match),
        ("similarity", "How similar the patches of one photo are to a patch of the other, to an encoder.", to_compare),
        ("augmented_view", "A random crop of a photo, in changed colors, and where it lies in the photo.", to_view),
    ):
        gr.on([], *task, api_name=name, api_description=about, **runs)

    # What comes while a function runs is done afterwards, not left out. Each waits for a step in the browser of its own: of
    # functions that wait for one event, each would have all others run again after it.
    last: dict[str, Any] = {**private, "trigger_mode": "always_last"}
    step_in_browser: dict[str, Any] = {**private, "fn": None, "js": "() => []"}

    def follow(step: Any, tasks: Any) -> None:
        for function, inputs, outputs in tasks:
            step = step.success(refusals_in_place(function, outputs), inputs, outputs, **runs, **last)

    opened = gr.State(False)
    tab.select(lambda: True, None, opened, **private)
    for step in (
        opened.change(lambda: example(collection), None, first, **private),
        another.click(lambda: pick_example(collection), None, first, **private),
        first.input(**step_in_browser),
    ):
        taken = step.success(_take_first, [first, kind, seed], [first, second, *place], **last)
        follow(taken, [to_match, to_compare])
    other_view.click(another_seed, seed, seed, **private)
    for changed in (
        seed.change(_take_seed, [first, kind, seed], [first, second], **last),
        kind.input(_take_kind, [first, kind, seed], [second, *place, *controls], **last),
        second.input(_take_second, [first, second], [second, kind, *place, *controls], **last),
        switched.success(**step_in_browser),
    ):
        follow(changed, [to_match, to_compare])
    for changed in (
        mode.input(lambda mode: gr.Slider(visible=mode == ENCODER), mode, threshold, **last),
        threshold.input(**step_in_browser),
    ):
        follow(changed, [to_match])
    follow(gr.on([x.submit, y.submit, which.input], **step_in_browser), [to_compare])

    def click(number: int | None, is_drawn: bool) -> Callable[..., tuple[float, float, str]]:
        def locate(
            first: Given, second: Given, kind: Any, seed: Any, event: gr.EventData
        ) -> Any:  # SelectData fails if a client sends none
            index = event._data.get("index") if isinstance(event._data, dict) else None
            return find_click(take_pair(first, second, kind, seed), index, number, is_drawn=is_drawn)

        return locate

    for picture, number, is_drawn in (
        (first, 0, False),
        (second, 1, False),
        (pictures[0], 0, True),
        (pictures[1], 1, True),
        (matched, None, True),
    ):
        # Afterwards, Gradio would repeat the first of several clicks, not the last: all are taken, one after the other.
        clicked = picture.select(
            click(number, is_drawn), photos, place, **private, trigger_mode="multiple", concurrency_limit=1
        )
        follow(clicked, [to_compare])
