"""What image retrieval is measured on: a database, queries, and the images that each query should find."""

import csv
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from transformers.utils import logging

from .images import exif_orientation, image_size
from .loading import ImageData, walk_files
from .plain_pickle import load_plain_pickle


logger = logging.get_logger(__name__)

# Images of the database and queries, of the benchmarks that https://huggingface.co/papers/1803.11285 describes.
REVISITED_SIZES = {"roxford5k": (4993, 70), "rparis6k": (6322, 70)}
LABELS = ("easy", "hard", "junk")
PAIR_COLUMNS = ("query", "positive")
NUM_SHOWN = 5
MAX_NAME_BYTES = 251  # with .jpg the 255 that file systems allow


@dataclass
class Relevance:
    """
    What the queries should find, in one setup of a task.

    Args:
        positives (`list[list[int]]`):
            For each query the places in the database of the images that it should find.
        junk (`list[list[int]]`):
            For each query the places of images that count as if the database did not have them.
    """

    positives: list[list[int]]
    junk: list[list[int]]


@dataclass
class RetrievalTask:
    """
    Queries, and the database in which each should find its images.

    Args:
        name (`str`):
            Name of the benchmark or of the data.
        database (`datasets.Dataset`):
            The images to rank: an undecoded `image` column and, if they are files, a `name` column.
        queries (`datasets.Dataset`):
            The images to rank them for, with the same columns.
        relevance (`dict[str, Relevance]`):
            What the queries should find in each setup: `"easy"`, `"medium"` and `"hard"`, or only `"all"`.
        boxes (`list[tuple[float, float, float, float]]`, *optional*):
            Part of each query that shows what is looked for: left, top, right and bottom in pixels. It may reach a
            little beyond the image.
    """

    name: str
    database: Dataset
    queries: Dataset
    relevance: dict[str, Relevance]
    boxes: list[tuple[float, float, float, float]] | None = None


def load_revisited(folder: str | os.PathLike[str], name: str) -> RetrievalTask:
    """
    Loads revisited Oxford or Paris, or data in the same form.

    The setups are those of [Revisiting Oxford and Paris: Large-Scale Image Retrieval
    Benchmarking](https://huggingface.co/papers/1803.11285): what is not looked for in a setup, easy or hard images, is
    junk there.

    Args:
        folder (`str` or `os.PathLike`):
            Folder that holds `NAME/gnd_NAME.pkl` and `NAME/jpg/*.jpg`. The pickle is read without running what it
            names.
        name (`str`):
            `roxford5k`, `rparis6k`, or the name of other data. The pickle holds a dictionary of `imlist` and
            `qimlist`, names of files without `.jpg`, and `gnd`, for each query a dictionary of `bbx` (its box) and
            `easy`, `hard` and `junk` (places in `imlist`).

    Returns:
        [`RetrievalTask`]: with boxes, and the setups `"easy"`, `"medium"` and `"hard"`.

    Raises:
        `FileNotFoundError`: If the pickle or a photo is missing.
        `ValueError`: If the pickle holds something else, or is not that of the benchmark.
        [`PlainPickleError`]: If the pickle is damaged or asks for more than plain data.
        [`ImageError`]: If a query cannot be read.
    """
    root = Path(folder).expanduser().resolve() / name
    path = root / f"gnd_{name}.pkl"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {str(path)!r}; give the folder that holds {name!r}, with gnd_{name}.pkl and jpg/ in it."
        )
    try:
        database_names, query_names, annotations = _read_annotations(load_plain_pickle(path), name)
        repeating: list[str] = []
        labeled = [_read_places(i, annotations[i], len(database_names), repeating) for i in range(len(query_names))]
        boxes = [_read_box(i, annotations[i]) for i in range(len(query_names))]
        _check_queries_are_junk(database_names, query_names, labeled)
    except _FormError as error:
        raise ValueError(
            f"{str(path)!r} cannot be used: {error}. Take the file that the authors of the benchmark "
            "publish, or write one as the documentation of `load_revisited` says."
        ) from error

    images, queries = ([f"jpg/{image}.jpg" for image in names] for names in (database_names, query_names))
    missing = [file for file in dict.fromkeys(images + queries) if not (root / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images of {name!r} are missing in {str(root / 'jpg')!r} ({_shown(missing)}); put the "
            "photos of the benchmark there, all in this one folder."
        )
    _check_boxes(root, queries, boxes)
    if repeating:
        logger.warning(
            f"{str(path)!r} repeats images within {len(repeating)} of its lists of places "
            f"({_shown(repeating)}); each image counts once."
        )
    easy, hard, junk = ([of_query[label] for of_query in labeled] for label in LABELS)
    relevance = {
        "easy": Relevance(easy, [a + b for a, b in zip(junk, hard, strict=True)]),
        "medium": Relevance([a + b for a, b in zip(easy, hard, strict=True)], junk),
        "hard": Relevance(hard, [a + b for a, b in zip(junk, easy, strict=True)]),
    }
    return RetrievalTask(name, image_dataset(root, images), image_dataset(root, queries), relevance, boxes)


def load_pairs(folder: str | os.PathLike[str], csv_path: str | os.PathLike[str]) -> RetrievalTask:
    """
    Loads a folder of images and a table that says which of them should find which.

    The database is all images of the folder. A query is junk for itself.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of images; its subfolders count too.
        csv_path (`str` or `os.PathLike`):
            Table with the header `query,positive`; each row holds the paths of two images, relative to the folder. A
            query with several positives has several rows.

    Returns:
        [`RetrievalTask`]: with the name of the table (without `.csv`) and the one setup `"all"`; its queries come in
            the order of the table.

    Raises:
        `FileNotFoundError`: If the folder, the table, or an image that the table names is missing.
        `ValueError`: If the table has other columns or no rows, or if a row makes no sense.
    """
    database = find_images(folder)
    root = Path(folder).expanduser()
    places = {name: place for place, name in enumerate(database["name"][:])}
    first_lines: dict[tuple[str, str], int] = {}
    table = Path(csv_path).expanduser()
    for line, row in _read_pairs(table):
        where = f"Line {line} of {os.fspath(csv_path)!r}"
        pair = _normalize(where, root, row["query"], places), _normalize(where, root, row["positive"], places)
        if pair[0] == pair[1]:
            raise ValueError(f"{where} pairs {pair[0]!r} with itself; name another image, or remove the line.")
        if first_lines.setdefault(pair, line) != line:
            raise ValueError(f"{where} repeats line {first_lines[pair]}; remove one of them.")
    positives: dict[str, list[int]] = {}
    for query, positive in first_lines:
        positives.setdefault(query, []).append(places[positive])
    junk = [[places[query]] for query in positives]
    relevance = Relevance(list(positives.values()), junk)
    return RetrievalTask(table.stem, database, image_dataset(root, list(positives)), {"all": relevance})


def same_class_task(data: ImageData) -> RetrievalTask:
    """
    Lets test images look for the training images of their class.

    Args:
        data ([`ImageData`]):
            Images with labels and a test split.

    Returns:
        [`RetrievalTask`]: with the one setup `"all"`. Queries of one class share the list of their positives.

    Raises:
        `ValueError`: If there are no labels or no test split, or if no class of the test split has training images.
    """
    if "label" not in data.train.column_names:
        raise ValueError(
            f"Dataset {data.name!r} has no labels, so that it is not known what a query should find; give one with "
            "labels, or a folder and a table of pairs."
        )
    if data.test is None:
        raise ValueError(f"Dataset {data.name!r} has no test split to take the queries from; give one that has.")
    train_labels = np.asarray(data.train["label"][:])
    test_labels = data.test["label"][:]
    by_class = {label: np.flatnonzero(train_labels == label).tolist() for label in set(test_labels)}
    without = sorted(label for label, places in by_class.items() if not places)
    if len(without) == len(by_class):
        raise ValueError(f"No class of the test split of {data.name!r} has training images; check the two splits.")
    if without:
        logger.warning(
            f"Dataset {data.name!r}: {len(without)} classes of the test split have no training images "
            f"({_shown(without)}): their queries have nothing to find, and are left out of all means."
        )
    no_junk: list[int] = []
    relevance = Relevance([by_class[label] for label in test_labels], [no_junk] * len(test_labels))
    return RetrievalTask(data.name, data.train, data.test, {"all": relevance})


def find_images(folder: str | os.PathLike[str]) -> Dataset:
    """
    Finds all images of a folder and of its subfolders.

    Hidden files and folders, and those whose names begin with two underscores, are left out. Links are followed; a
    folder that several lead to is taken once.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of images.

    Returns:
        `datasets.Dataset`: an undecoded `image` column, and a `name` column, the path relative to the folder by which
        the rows are sorted.

    Raises:
        `FileNotFoundError`: If there is no such folder, or if it holds no images.
        `NotADirectoryError`: If it is a file.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"There is no folder {os.fspath(folder)!r}; check the path.")
    if not root.is_dir():
        raise NotADirectoryError(f"{os.fspath(folder)!r} is a file; give the folder that holds the images.")
    names = []
    others: Counter[str] = Counter()
    for file in walk_files(root):
        if file.suffix.lower() in ImageFolder.EXTENSIONS:
            names.append(file.relative_to(root).as_posix())
        else:
            others[file.suffix.lower() or file.name] += 1
    if not names:
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5)) or "nothing"
        raise FileNotFoundError(
            f"Folder {os.fspath(folder)!r} holds no images (found: {found}); give a folder with image files such as "
            ".jpg or .png."
        )
    return image_dataset(root, sorted(names))


def image_dataset(root: Path, names: Sequence[str]) -> Dataset:
    """
    A dataset of files, none of which is read.

    Args:
        root (`Path`):
            Folder that holds them.
        names (`Sequence[str]`):
            Paths of the files, relative to it.

    Returns:
        `datasets.Dataset`: an undecoded `image` column and a `name` column.
    """
    root = root.resolve()
    columns = {"image": [{"path": str(root / name), "bytes": None} for name in names], "name": list(names)}
    return Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "name": Value("string")}))


class _FormError(Exception):
    """What is wrong with the annotations of a benchmark."""


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(map(repr, values[:NUM_SHOWN])) + (", …" if len(values) > NUM_SHOWN else "")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _read_annotations(content: Any, name: str) -> tuple[list[str], list[str], list[Any]]:
    """Names of the database and of the queries, and what is known of each query."""
    keys = ("imlist", "qimlist", "gnd")
    if not isinstance(content, dict):
        raise _FormError(f"it holds a {type(content).__name__}, not a dictionary with the keys {', '.join(keys)}")
    absent = [key for key in keys if key not in content]
    if absent:
        raise _FormError(f"its dictionary lacks {', '.join(absent)}")
    database_names, query_names = (_read_names(key, content[key]) for key in keys[:2])
    found = len(database_names), len(query_names)
    if found != REVISITED_SIZES.get(name, found):
        expected = REVISITED_SIZES[name]
        raise _FormError(
            f"{name} has {expected[0]:,} images in the database and {expected[1]} queries, but there are {found[0]:,} "
            f"and {found[1]}"
        )
    annotations = content["gnd"]
    if not _is_list(annotations):
        raise _FormError(f"`gnd` is a {type(annotations).__name__}, not a list")
    if len(annotations) != len(query_names):
        raise _FormError(f"`gnd` has {len(annotations)} entries for the {len(query_names)} queries of `qimlist`")
    for i, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            raise _FormError(f"`gnd[{i}]` is a {type(annotation).__name__}, not a dictionary")
        absent = [key for key in ("bbx", *LABELS) if key not in annotation]
        if absent:
            raise _FormError(f"`gnd[{i}]` lacks {', '.join(absent)}")
    return database_names, query_names, list(annotations)


def _read_names(key: str, names: Any) -> list[str]:
    if not _is_list(names) or not all(isinstance(name, str) for name in names):
        raise _FormError(f"`{key}` is not a list of names")
    if len(names) == 0:
        raise _FormError(f"`{key}` is empty")
    for name in names:
        if not name or "\0" in name or not _is_inside(name):
            raise _FormError(f"`{key}` has {name[:80]!r}, which is no name of a file in jpg/")
        num_bytes = len(name.encode("utf-8", "surrogatepass"))
        if num_bytes > MAX_NAME_BYTES:
            raise _FormError(
                f"`{key}` has a name of {num_bytes} bytes ({name[:80]!r}…), and a file name has at most "
                f"{MAX_NAME_BYTES} before .jpg"
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _FormError(f"`{key}` has {len(twice)} names more than once ({_shown(twice)})")
    return [str(name) for name in names]


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _read_places(
    query: int, annotation: dict[str, Any], num_images: int, repeating: list[str]
) -> dict[str, list[int]]:
    """For each label the places of the images that have it for a query. Adds the lists that repeat one."""
    labeled: dict[str, list[int]] = {}
    label_of: dict[int, str] = {}
    for label in LABELS:
        places = annotation[label]
        where = f"`gnd[{query}]['{label}']`"
        if not _is_list(places):
            raise _FormError(f"{where} is not a list of places in `imlist`")
        labeled[label] = []
        for place in places:
            if not isinstance(place, int | np.integer) or isinstance(place, bool):
                raise _FormError(f"{where} has a {type(place).__name__}, not only whole numbers")
            if not 0 <= place < num_images:
                raise _FormError(f"{where} has {place}, but the places in `imlist` are 0 to {num_images - 1}")
            place = int(place)
            if label_of.setdefault(place, label) != label:
                raise _FormError(f"image {place} is in `{label_of[place]}` and again in {where}")
            labeled[label].append(place)
        once = list(dict.fromkeys(labeled[label]))
        if len(once) < len(labeled[label]):
            repeating.append(where.strip("`"))
        labeled[label] = once
    return labeled


def _read_box(query: int, annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    box = annotation["bbx"]
    numbers = int, float, np.integer, np.floating
    if not _is_list(box) or len(box) != 4 or not all(isinstance(edge, numbers) for edge in box):
        raise _FormError(f"`gnd[{query}]['bbx']` is not four numbers, the left, top, right and bottom of a box")
    left, top, right, bottom = map(float, box)
    if not all(map(math.isfinite, (left, top, right, bottom))) or left >= right or top >= bottom:
        raise _FormError(
            f"`gnd[{query}]['bbx']` is {(left, top, right, bottom)}, which is no box: left must be less than right, "
            "and top less than bottom"
        )
    return left, top, right, bottom


def _check_queries_are_junk(
    database_names: list[str], query_names: list[str], labeled: list[dict[str, list[int]]]
) -> None:
    places = {name: place for place, name in enumerate(database_names)}
    for i, name in enumerate(query_names):
        if name in places and places[name] not in labeled[i]["junk"]:
            raise _FormError(
                f"query {name!r} is also image {places[name]} of `imlist`, which would be found at once; remove it "
                f"there, or add it to `gnd[{i}]['junk']`"
            )


def _check_boxes(root: Path, files: list[str], boxes: list[tuple[float, float, float, float]]) -> None:
    beyond, rotated = [], []
    for file, (left, top, right, bottom) in zip(files, boxes, strict=True):
        image = {"path": str(root / file), "bytes": None}
        if exif_orientation(image) != 1:
            rotated.append(file)
        height, width = image_size(image)
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            as_rotated = " when rotated by its EXIF orientation" if file in rotated[-1:] else ""
            raise ValueError(
                f"The box {(left, top, right, bottom)} of query {file!r} lies outside of the image, which has "
                f"{width}x{height} pixels{as_rotated}; check that the photos have the size of those that the "
                "benchmark tells of."
            )
        if min(left, top) < -1 or right > width + 1 or bottom > height + 1:
            beyond.append(file)
    if beyond:
        logger.warning(
            f"The boxes of {len(beyond)} queries reach beyond their images ({_shown(beyond)}); check that the photos "
            "have the size of those that the benchmark tells of."
        )
    if rotated:
        logger.warning(
            f"The photos of {len(rotated)} queries are rotated by their EXIF orientation ({_shown(rotated)}), but "
            "boxes of a benchmark are places in photos that are not: --crop_queries would cut out the wrong part. Take "
            "the photos that the authors of the benchmark publish, or save these without EXIF."
        )


def _read_pairs(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table of pairs, and the line in which each ends."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; give a csv with the header query,positive.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Cannot read {str(path)!r} as a csv: {error}. Save it as UTF-8, with commas.") from error
    if sorted(columns) != sorted(PAIR_COLUMNS):
        raise ValueError(
            f"{str(path)!r} has the columns {columns}; its first line must be query,positive, and each other line "
            "hold the paths of two images."
        )
    if not rows:
        raise ValueError(
            f"{str(path)!r} has no rows; write a line for each pair of a query and an image it should find."
        )
    for line, row in rows:
        # A row that is too long has a list of the rest, one that is too short lacks values.
        if set(row) != set(PAIR_COLUMNS) or not all(row.values()):
            raise ValueError(f"Line {line} of {str(path)!r} does not hold two paths; write it as query,positive.")
    return rows


def _normalize(where: str, root: Path, name: str, places: dict[str, int]) -> str:
    """The name by which the database has an image."""
    if not _is_inside(name):
        raise ValueError(f"{where} names {name!r}, which is not in the folder; give paths relative to {str(root)!r}.")
    normalized = PurePosixPath(name).as_posix()
    if normalized not in places:
        if not os.path.exists(root / name):  # also false for a name that no file can have
            raise FileNotFoundError(f"{where} names {name!r}, but {str(root)!r} has no such file; check the path.")
        raise ValueError(
            f"{where} names {name!r}, which is not among the {len(places)} images found in {str(root)!r}; name a file "
            "with an ending such as .jpg that is not hidden, and a linked folder by its first name."
        )
    return normalized
