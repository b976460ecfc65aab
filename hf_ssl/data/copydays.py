"""Copydays: photographs, and what was made of them by cropping, by compression, and by strong edits."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from .retrieval import image_dataset


ORIGINAL, STRONG = "original", "strong"
# Names of the folders, and how many images each has.
COPYDAYS_SIZES: Mapping[str, int] = {
    ORIGINAL: 157,
    STRONG: 229,
    **{f"jpegqual/{quality}": 157 for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)},
    **{f"crops/{percent}": 157 for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)},
}
NUM_SHOWN = 5
PREFIX_LENGTH = 4  # of a file name, which tells the photograph


@dataclass
class CopyDays:
    """
    Photographs and their copies, in blocks of one kind of edit.

    Args:
        originals (`datasets.Dataset`):
            The photographs, in which a copy should find its own: an undecoded `image` column and a `name` column.
        blocks (`dict[str, datasets.Dataset]`):
            The copies of each block, with the same columns. The block `"original"` is the photographs themselves.
        positives (`dict[str, list[list[int]]]`):
            For each copy of each block, the places of its photographs among the originals.
    """

    originals: Dataset
    blocks: dict[str, Dataset]
    positives: dict[str, list[list[int]]]


def load_copydays(
    folder: str | os.PathLike[str],
    *,
    blocks: Sequence[str] | None = None,
    expected: Mapping[str, int] | None = COPYDAYS_SIZES,
) -> CopyDays:
    """
    Loads Copydays, or data in the same form.

    The files `*.jpg` of a block are sorted by name. The first copy belongs to the first original, and so on; only in
    the block `strong`, a copy belongs to the originals with the same first four characters in their names.

    Args:
        folder (`str` or `os.PathLike`):
            Folder that holds `original`, `strong`, `jpegqual/3` … `jpegqual/75` and `crops/10` … `crops/80`.
        blocks (`Sequence[str]`, *optional*):
            The blocks to load, of the names above; by default all. The folder `original` is needed in any case.
        expected (`Mapping[str, int]`, *optional*):
            Number of images of each block; by default those of Copydays. `None` allows any, for data in the same form.

    Returns:
        [`CopyDays`]

    Raises:
        `FileNotFoundError`: If the folder of a block is missing.
        `ValueError`: If a block is unknown, has another number of images, or does not fit the originals.
    """
    root = Path(folder).expanduser()
    names = list(COPYDAYS_SIZES) if blocks is None else list(dict.fromkeys(blocks))
    unknown = [name for name in names if name not in COPYDAYS_SIZES]
    if unknown or not names:
        raise ValueError(
            f"`blocks` names {', '.join(map(repr, unknown)) or 'nothing'}; give some of {', '.join(COPYDAYS_SIZES)}."
        )
    needed = list(dict.fromkeys([ORIGINAL, *names]))
    missing = [name for name in needed if not (root / name).is_dir()]
    if missing:
        there = [name for name in COPYDAYS_SIZES if (root / name).is_dir()]
        raise FileNotFoundError(
            f"Folder {os.fspath(folder)!r} lacks {', '.join(missing)}; put these folders of Copydays there, or choose "
            f"with `blocks` (--blocks) among those that are there ({', '.join(there) or 'none'}); original is needed "
            "in any case."
        )
    files = {name: _find_files(root / name) for name in needed}
    counts = {name: len(files[name]) for name in needed}
    wrong = [
        f"{name} has {count}, not {expected[name]}"
        for name, count in counts.items()
        if expected is not None and count != expected.get(name, count)
    ]
    remedy = ""
    if wrong:
        remedy = " or, for other data in this form, allow other counts (`expected=None`, --other_counts true)"
    wrong = wrong or [f"{name} has none" for name, count in counts.items() if count == 0]
    if wrong:
        shown = "; ".join(wrong[:NUM_SHOWN])
        if len(wrong) > NUM_SHOWN:
            shown += f"; and {len(wrong) - NUM_SHOWN} more"
        raise ValueError(
            f"The folders of Copydays in {os.fspath(folder)!r} have a wrong number of files *.jpg: {shown}. Get the "
            f"missing files, and remove what does not belong there{remedy}."
        )

    positives = {name: originals_of(name, files[name], files[ORIGINAL]) for name in names}
    for name in names:
        _check_names(name, files[name], files[ORIGINAL], positives[name])
    datasets = {name: image_dataset(root, [f"{name}/{file}" for file in files[name]]) for name in needed}
    return CopyDays(datasets[ORIGINAL], {name: datasets[name] for name in names}, positives)


def _find_files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".jpg") and not name.startswith("."))


def originals_of(block: str, copies: Sequence[str], originals: Sequence[str]) -> list[list[int]]:
    """
    Which originals the copies of a block have, by the names of their files.

    Args:
        block (`str`):
            Name of the block, such as `"strong"` or `"jpegqual/3"`.
        copies (`Sequence[str]`):
            Sorted names of its files.
        originals (`Sequence[str]`):
            Sorted names of the files of the originals.

    Returns:
        `list[list[int]]`: for each copy of `strong` the places of the originals with the same first four characters,
        of which there may be none; for each copy of another block the one in its own place.

    Raises:
        `ValueError`: If a block other than `strong` has not as many files as there are originals.
    """
    if block == STRONG:
        by_prefix: dict[str, list[int]] = {}
        for place, name in enumerate(originals):
            by_prefix.setdefault(name[:PREFIX_LENGTH], []).append(place)
        return [by_prefix.get(name[:PREFIX_LENGTH], []) for name in copies]
    if len(copies) != len(originals):
        raise ValueError(
            f"{block} has {len(copies)} images and original has {len(originals)}; every original must have one copy."
        )
    return [[place] for place in range(len(originals))]


def _check_names(block: str, copies: list[str], originals: list[str], positives: list[list[int]]) -> None:
    """Refuse copies without an original, and copies that are not in the order of the originals."""
    without = [name for name, own in zip(copies, positives, strict=True) if not own]
    if without:
        shown = ", ".join(without[:NUM_SHOWN]) + (", …" if len(without) > NUM_SHOWN else "")
        raise ValueError(
            f"{len(without)} images of {block} have no original whose name begins with the same {PREFIX_LENGTH} "
            f"characters ({shown}); get the originals, or remove these images."
        )
    if block == STRONG:
        return
    num_originals = Counter(name[:PREFIX_LENGTH] for name in originals)
    for place, (copy, original) in enumerate(zip(copies, originals, strict=True)):
        prefix = original[:PREFIX_LENGTH]
        if copy != original and (copy[:PREFIX_LENGTH] != prefix or num_originals[prefix] > 1):
            raise ValueError(
                f"Image {place} of {block} is {copy}, but that of original is {original}; every original must have "
                f"one copy of the same name, or one that shares its first {PREFIX_LENGTH} characters with no other "
                "original."
            )
