"""Retrieval: the images that an encoder finds most similar to a query, and what training has to do with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..evaluation import instance_similarity
from ..figures import plot_similarities
from .collection import Collection, Neighbors, nearest
from .encoders import EncoderShelf, feature_of
from .page import refusals_in_place
from .photos import Given, Photo, photo_input, refusal, take_photo, warn_if_refused


MAX_NEIGHBORS = 24
NUM_EXAMPLES = 12
NUM_BARS = 6
THUMBNAIL = 320  # pixels
NO_CLASS = "unknown"
HEADERS = ["rank", "image", "class", "similarity", "untrained: image", "untrained: class", "untrained: similarity"]

Picture = tuple[PIL.Image.Image, str]

_EXPLANATION = """
Which images does the encoder take for alike? Pick a query below, or bring your own: its nearest neighbors by cosine
similarity are shown, as the trained encoder sees them, and as the same network with random weights does.
"""


def thumbnail(image: PIL.Image.Image) -> PIL.Image.Image:
    """A small picture of an image; pixels of tiny ones are made large, not blurred."""
    if max(image.size) <= 64:
        factor = 96 // max(image.size) + 1
        return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def example_places(collection: Collection, page: int) -> list[int]:
    """Places of the examples of a page; each page has others."""
    count = len(collection.queries)
    return np.random.default_rng(page).choice(count, min(NUM_EXAMPLES, count), replace=False).tolist()


def show_examples(collection: Collection, page: int) -> list[Picture]:
    """Examples of queries, with the names of their classes."""
    examples = [collection.example(place) for place in example_places(collection, page)]
    return [(thumbnail(image), label or "") for image, label in examples]


def check_query(collection: Collection, query: Given, k: Any, label: Any) -> tuple[Photo, int, str | None]:
    """
    What a visitor asks for, if it can be done.

    Args:
        collection ([`Collection`]): The images.
        query ([`Photo`] or [`RefusedPhoto`], *optional*): The query.
        k (`Any`): How many neighbors are wanted.
        label (`Any`): Name of the query's class, if it is known.

    Returns:
        `tuple[Photo, int, str | None]`

    Raises:
        `gradio.Error`: it cannot be done.
    """
    photo = take_photo(query, "There is no query yet: pick an image, or upload one.")
    if isinstance(k, bool) or not isinstance(k, (int, float)) or k != k or not 1 <= k <= MAX_NEIGHBORS or k != int(k):
        raise refusal(f"The number of neighbors is a whole number from 1 to {MAX_NEIGHBORS}.")
    if label in (None, "", NO_CLASS):
        label = None
    elif label not in collection.classes:
        raise refusal(f"The collection {collection.name} has no class of this name: leave it out.")
    return photo, min(int(k), len(collection)), label


def look(
    shelf: EncoderShelf, collection: Collection, query: Photo, encoder: Any, on_progress: Callable[[float], Any]
) -> list[tuple[Tensor, Tensor]]:
    """Features of all images `(num_images, dim)` and of the query `(dim,)`, by the trained and by the untrained encoder."""
    shown = shelf.get(encoder)
    try:
        features = collection.features(shown, on_progress)
        return [
            (of_all, feature_of(one, query.image, shown.spec)) for of_all, one in zip(features, shown, strict=True)
        ]
    except (ValueError, TimeoutError) as error:  # as of an image that the processor cannot take
        raise refusal(str(error)) from error


def captions(collection: Collection, neighbors: Neighbors, label: str | None) -> list[str]:
    """Below each neighbor: whether its class is the query's, how similar it is, and its class."""
    lines = []
    for place, similarity in zip(neighbors.places.tolist(), neighbors.similarities.tolist(), strict=True):
        name = collection.class_of(place)
        mark = "" if name is None or label is None else "✓ " if name == label else "✗ "
        lines.append(f"{mark}{similarity:.3f}" + ("" if name is None else f" · {name}"))
    return lines


def gallery(collection: Collection, neighbors: Neighbors, label: str | None) -> list[Picture]:
    """Neighbors as pictures."""
    pictures = [thumbnail(collection.image(place)) for place in neighbors.places.tolist()]
    return list(zip(pictures, captions(collection, neighbors, label), strict=True))


def table(collection: Collection, found: tuple[Neighbors, Neighbors]) -> list[list[Any]]:
    """Neighbors as rows, for those who count: places in the collection, classes and similarities."""
    rows = []
    for rank in range(len(found[0].places)):
        row: list[Any] = [rank + 1]
        for neighbors in found:
            place = int(neighbors.places[rank])
            row += [place, collection.class_of(place) or "", round(float(neighbors.similarities[rank]), 4)]
        rows.append(row)
    return rows


def summary(collection: Collection, found: tuple[Neighbors, Neighbors], label: str | None) -> str:
    """What pretraining has brought, in a sentence, where the class of the query is known."""
    if label is None:
        count = len(collection)
        return f"The nearest of {count:,} image{'s' * (count != 1)} of {collection.name}."
    hits = [sum(collection.class_of(place) == label for place in one.places.tolist()) for one in found]
    return (
        f"Of the {len(found[0].places)} nearest of {len(collection):,} images, **{hits[0]}** are of the class *{label}* to "
        f"the trained encoder, and **{hits[1]}** to the untrained one."
    )


def retrieve(
    shelf: EncoderShelf,
    collection: Collection,
    query: Given,
    k: Any,
    label: Any,
    encoder: Any,
    on_progress: Callable[[float], Any],
) -> tuple[list[Picture], list[Picture], str, list[list[Any]]]:
    """
    Answer a query.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        collection ([`Collection`]): The images.
        query ([`Photo`] or [`RefusedPhoto`], *optional*): What the visitor shows.
        k (`Any`): How many neighbors are wanted.
        label (`Any`): Name of the query's class, if it is known.
        encoder (`Any`): Name of the encoder.
        on_progress (`Callable`): See [`Collection.features`].

    Returns:
        `tuple`: neighbors by the trained and by the untrained encoder as pictures, a sentence, and a table.

    Raises:
        `gradio.Error`: it cannot be done.
    """
    photo, count, known = check_query(collection, query, k, label)
    trained, untrained = (nearest(*seen, count) for seen in look(shelf, collection, photo, encoder, on_progress))
    found = trained, untrained
    galleries = [gallery(collection, neighbors, known) for neighbors in found]
    return galleries[0], galleries[1], summary(collection, found, known), table(collection, found)


def similarity_bars(
    shelf: EncoderShelf, collection: Collection, query: Given, label: Any, encoder: Any
) -> PIL.Image.Image:
    """
    How similarity falls off from the nearest image to the farthest, as PatchMix's authors show similarities between
    instances: bars above images of some ranks of the trained encoder, gray for the untrained one. The mean of the
    collection's features is subtracted first: what all images have in common would hide what tells them apart.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        collection ([`Collection`]): The images.
        query ([`Photo`] or [`RefusedPhoto`], *optional*): What the visitor shows.
        label (`Any`): Name of the query's class, if it is known.
        encoder (`Any`): Name of the encoder.

    Returns:
        `PIL.Image.Image`

    Raises:
        `gradio.Error`: it cannot be done.
    """
    photo, _, known = check_query(collection, query, 1, label)
    seen = look(shelf, collection, photo, encoder, lambda *_: None)
    similarities = []
    for of_all, of_query in seen:
        mean = of_all.mean(0)
        similarities.append(instance_similarity((of_query - mean)[None], of_all - mean))
    ranks = np.unique(np.geomspace(1, len(collection), NUM_BARS).round().astype(int) - 1)
    places = similarities[0][0].sort(descending=True, stable=True).indices[ranks]
    similarities = [of_all[:, places] for of_all in similarities]
    labels: dict[str, Any] = {}
    if known is not None:
        names = [collection.class_of(place) for place in places.tolist()]
        classes = sorted({known, *filter(None, names)})
        labels = {
            "query_labels": [classes.index(known)],
            "key_labels": [classes.index(name) for name in names if name is not None],
            "class_names": classes,
        }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "similarities.png")
        plot_similarities(
            path,
            query_images=[pil_to_tensor(thumbnail(photo.image))],
            key_images=[pil_to_tensor(thumbnail(collection.image(place))) for place in places.tolist()],
            similarities=similarities[0],
            similarities_before=similarities[1],
            **labels,
        )
        with PIL.Image.open(path) as picture:
            return picture.convert("RGB")


def _gallery(name: str, **options: Any) -> gr.Gallery:
    """Small pictures side by side, as many as fit."""
    return gr.Gallery(
        show_label=False,
        object_fit="contain",
        height="auto",
        format="png",
        buttons=["fullscreen"],
        interactive=False,
        elem_classes=["tiles"],
        elem_id=name,
        **options,
    )


def retrieval_tab(
    shelf: EncoderShelf, collection: Collection, encoder: gr.Dropdown, switched: Any, demo: gr.Blocks
) -> None:
    """
    The tab, inside of an open `gradio.Tab`.

    Args:
        shelf ([`EncoderShelf`]): The encoders.
        collection ([`Collection`]): The images.
        encoder (`gradio.Dropdown`): Where the encoder is chosen.
        switched (`gradio.events.Dependency`): The event that another encoder was loaded.
        demo (`gradio.Blocks`): The page, which shows an answer when it comes up.
    """
    gr.Markdown(_EXPLANATION)
    page = gr.State(0)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            query = photo_input("Query", elem_id="query", height=260)
            label = gr.Dropdown(
                [NO_CLASS, *collection.classes],
                value=NO_CLASS,
                label="Class of the query",
                info="Only to mark neighbors of the same class; the encoder does not see it.",
                visible=bool(collection.classes),
                elem_id="query-class",
            )
            k = gr.Slider(1, MAX_NEIGHBORS, value=8, step=1, label="Neighbors", elem_id="neighbors")
            gr.Markdown("Or pick one of these:")
            examples = _gallery("examples", label="Examples", allow_preview=False)
            others = gr.Button("Other images", size="sm", elem_id="other-examples")
        with gr.Column(scale=5, min_width=320):
            words = gr.Markdown(label="In words", elem_id="retrieval-summary")
            gr.Markdown("### As the trained encoder sees it")
            trained = _gallery("trained", label="Neighbors, trained")
            gr.Markdown("### As the same network sees it, untrained")
            untrained = _gallery("untrained", label="Neighbors, untrained")
            gr.Markdown(
                "### Similarity between instances\nFrom the nearest image to the farthest, as cosines; what all images have "
                "in common, the mean feature, is subtracted first, so that these are not the numbers above. Gray: untrained."
            )
            bars = gr.Image(
                label="Bars",
                show_label=False,
                format="png",
                buttons=["fullscreen"],
                interactive=False,
                elem_id="bars",
                alt_text="Bars: cosine similarity of the query to images of falling rank, trained and untrained",
            )
            with gr.Accordion("Numbers", open=False):
                numbers = gr.Dataframe(
                    label="Numbers", show_label=False, headers=HEADERS, interactive=False, elem_id="numbers"
                )

    def answer(
        query: Given,
        k: float,
        label: str | None,
        encoder: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio finds it)
    ) -> tuple[list[Picture], list[Picture], str, list[list[Any]]]:
        words = f"Looking at {len(collection):,} images, with and without training"
        return retrieve(shelf, collection, query, k, label, encoder, partial(progress, desc=words))

    def chart(query: Given, label: str | None, encoder: str | None) -> PIL.Image.Image:
        return similarity_bars(shelf, collection, query, label, encoder)

    def take(query: Given) -> str:
        warn_if_refused(query)
        return NO_CLASS

    def turn(page: int) -> tuple[int, list[Picture]]:
        return page + 1, show_examples(collection, page + 1)

    def pick(page: int, event: gr.EventData) -> tuple[PIL.Image.Image, str]:  # SelectData fails if a client sends none
        places, data = example_places(collection, page), event._data
        index = data.get("index") if isinstance(data, dict) else None
        if type(index) is not int or not 0 <= index < len(places):
            raise refusal("There is no such image: pick one of those that are shown.")
        image, name = collection.example(places[index])
        return image, name or NO_CLASS

    def begin() -> tuple[list[Picture], PIL.Image.Image, str]:
        image, name = collection.example(example_places(collection, 0)[0])
        return show_examples(collection, 0), image, name or NO_CLASS

    private: dict[str, Any] = {"api_visibility": "private"}
    step_in_browser: dict[str, Any] = {**private, "fn": None, "js": "() => []"}  # see `matching_tab`
    last: dict[str, Any] = {**private, "trigger_mode": "always_last"}
    others.click(turn, page, [page, examples], **private)
    # What the visitor brings has no class that we know.
    changes = [
        query.input(take, query, label, **last),
        examples.select(pick, page, [query, label], **private, trigger_mode="multiple", concurrency_limit=1),
        demo.load(begin, None, [examples, query, label], **private),
        gr.on([label.input, k.input], **step_in_browser),
        switched.success(**step_in_browser),
    ]
    # Most of them wait for an index, which is made once; what else there is on the page does not wait with them.
    runs: dict[str, Any] = {"concurrency_limit": 8, "concurrency_id": "retrieval"}
    asked, answered = [query, k, label, encoder], [trained, untrained, words, numbers]
    about = "The images most similar to a photo, to the trained and to the untrained encoder."
    gr.on([], answer, asked, answered, **runs, api_name="retrieve", api_description=about)
    about = "Similarity of a photo to images of the collection, from the nearest to the farthest."
    charted: Any = (chart, [query, label, encoder], bars)
    gr.on([], *charted, **runs, api_name="similarity_bars", api_description=about)
    for change in changes:
        step = change.success(refusals_in_place(answer, answered), asked, answered, **runs, **last)
        step.success(refusals_in_place(chart, [bars]), *charted[1:], **runs, **last)
