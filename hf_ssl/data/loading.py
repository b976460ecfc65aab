"""Loads images from the embedded digits, the Hub, or a local folder."""

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub.errors import HFValidationError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers.utils import logging

from .registry import DATASETS
from .verify import verify_images


logger = logging.get_logger(__name__)

LABEL_NAMES = ("label", "labels", "fine_label")
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val")
NUM_TRAIN_DIGITS = 1437
HELD_OUT_FRACTION = 0.1
MAX_HELD_OUT = 2000


@dataclass
class ImageData:
    """
    The splits of a dataset, with its columns under fixed names.

    Args:
        name (`str`):
            The name the dataset was asked for by.
        train (`datasets.Dataset`):
            Training split: an undecoded `image` column and, if there are labels, a `label` column.
        test (`datasets.Dataset`, *optional*):
            Test split with the same columns.
        class_names (`list[str]`, *optional*):
            Name of each class id, where known.
        num_classes (`int`, *optional*):
            Number of classes, if the images have labels.
        test_name (`str`):
            Name of the test split in the data, such as `"validation"`, or `"held-out"` for a tenth of the training split;
            `"test"` also where there is none.
        revision (`str`, *optional*):
            Commit of the dataset on the Hub that was loaded; unset for local data, and where it is not known.
    """

    name: str
    train: Dataset
    test: Dataset | None
    class_names: list[str] | None
    num_classes: int | None
    test_name: str
    revision: str | None = None


def load_image_data(
    name: str,
    *,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageData:
    """
    Loads a dataset of images.

    The images of a local folder are checked before they are returned, those of other datasets if `skip_bad_images` is
    set. Where there are labels but no test split, a tenth of the training split (at most 2,000 samples) is held out.

    Args:
        name (`str`):
            What to load, the first that fits: `digits` (the 8x8 handwritten digits of scikit-learn); a key of
            `DATASETS`; a local folder of images, whose subfolders are the classes, or hold the splits if they are
            called `train` and `test`, `val` or `validation`; a local folder of parquet files, whose names begin with
            that of their split; the id of a dataset on the Hub.
        max_train_samples (`int`, *optional*):
            Take a random subset of the training split, of this size.
        max_test_samples (`int`, *optional*):
            Take a random subset of the test split, of this size.
        seed (`int`, *optional*, defaults to 0):
            Seed of the subsets.
        skip_bad_images (`bool`, *optional*, defaults to `False`):
            Whether to leave out images that cannot be decoded, instead of raising an error.
        revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub; by default the last commit of its main branch.
        image_column (`str`, *optional*):
            Column that holds the images; by default the only one that can.
        label_column (`str`, *optional*):
            Column that holds the class ids; by default the `ClassLabel` column, or an integer one called `label`,
            `labels` or `fine_label`.

    Returns:
        [`ImageData`]

    Raises:
        `FileNotFoundError`: If there is no such folder or dataset, or the folder holds no images.
        `ValueError`: If the columns, the splits or an argument cannot be used.
        [`ImageError`]: If an image of a local folder cannot be decoded and `skip_bad_images` is false.
    """
    for argument, value in (("max_train_samples", max_train_samples), ("max_test_samples", max_test_samples)):
        if value is not None and value < 1:
            raise ValueError(f"`{argument}` is {value}; give at least 1, or leave it out to take all samples.")

    check_images = skip_bad_images
    test_name: str | None = "test"
    commit = None
    folder = Path(name).expanduser()
    on_hub = name != "digits" and (name in DATASETS or not folder.exists())
    if revision is not None and not on_hub:
        raise ValueError(
            f"`revision={revision!r}` was given for {name!r}, which is not on the Hub and has none; leave it out."
        )
    if name == "digits":
        splits = _load_digits()
    elif on_hub:
        # The entry also applies to the id spelled out: it knows which splits have labels.
        info = DATASETS.get(name) or next((info for info in DATASETS.values() if info.path == name), None)
        if info is None:
            if name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1:
                raise FileNotFoundError(f"There is no folder {name!r}; check the path. {_suggest(name)}")
            splits, test_name, commit = _load_hub(name, None, None, None, revision)
        else:
            image_column, label_column = image_column or info.image_column, label_column or info.label_column
            splits, test_name, commit = _load_hub(info.path, info.config, info.train_split, info.test_split, revision)
    else:
        splits, test_name, is_image_folder = _load_folder(name, folder)
        check_images = check_images or is_image_folder

    train_features = splits["train"].features
    image_column = _find_image_column(name, train_features, image_column)
    label_column = _find_label_column(name, train_features, image_column, label_column)
    splits = {key: _normalize(name, key, split, image_column, label_column) for key, split in splits.items()}
    class_names = None
    if label_column is not None and isinstance(train_features[label_column], ClassLabel):
        class_names = _readable(train_features[label_column].names)

    if "test" not in splits and label_column is not None and len(splits["train"]) > 1:
        splits = _hold_out(name, splits["train"])
        test_name = "held-out"
    num_classes = None if class_names is None else len(class_names)
    if label_column is not None and num_classes is None:
        # Counted before a subset is taken, which may lack a class.
        num_classes = 1 + max(max(split["label"]) for split in splits.values())
    for key, max_samples in (("train", max_train_samples), ("test", max_test_samples)):
        if key in splits and max_samples is not None and max_samples < len(splits[key]):
            splits[key] = splits[key].shuffle(seed=seed).select(range(max_samples))
    if check_images:
        splits = {key: verify_images(split, skip_bad_images=skip_bad_images) for key, split in splits.items()}
    return ImageData(
        name, splits["train"], splits.get("test"), class_names, num_classes, test_name or "test", revision=commit
    )


@cache  # images are encoded, which scripts that load them again need not wait for
def _load_digits() -> dict[str, Dataset]:
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    dataset = Dataset.from_dict({"image": list(pixels), "label": digits.target}, features=features)
    return {
        "train": dataset.select(range(NUM_TRAIN_DIGITS)),
        "test": dataset.select(range(NUM_TRAIN_DIGITS, len(dataset))),
    }


def _load_hub(
    path: str, config: str | None, train_split: str | None, test_split: str | None, revision: str | None
) -> tuple[dict[str, Dataset], str | None, str | None]:
    """The splits, the name of the test split, and the commit."""
    try:
        builder = load_dataset_builder(path, config, revision=revision)
    except (DatasetNotFoundError, ConnectionError, HFValidationError) as error:
        registered = any(info.path == path for info in DATASETS.values())
        unknown = "" if registered else f"{path!r} is not a known name, nor a local folder. {_suggest(path)} "
        raise FileNotFoundError(
            f"{unknown}Dataset {path!r} cannot be loaded from the Hub ({error}); check the id, the network, "
            "and, if it is private or gated, `hf auth login`."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"Dataset {path!r} cannot be loaded as a whole ({' '.join(str(error).split())}); "
            "save the wanted part as train*.parquet and test*.parquet and give that folder."
        ) from error
    # Without an answer from the Hub, or without such a revision there, `datasets` takes what lies in its cache.
    from_cache = builder.name == "cache"
    if from_cache and revision not in (None, builder.hash):
        raise FileNotFoundError(
            f"Revision {revision!r} of dataset {path!r} cannot be loaded from the Hub, and the cache holds "
            f"{builder.hash!r}; check the revision and the network, or leave it out."
        )
    commit = builder.hash if builder.repo_id and re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
    # Names are strings or `NamedSplit`s.
    data_files = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    available = list(builder.info.splits if from_cache else data_files)
    train_split = (
        train_split or _first_of(TRAIN_NAMES, available) or (available[0] if len(available) == 1 else "train")
    )
    test_split = test_split or _first_of(TEST_NAMES, available)
    wanted = {"train": train_split} | ({"test": test_split} if test_split else {})
    missing = [split for split in wanted.values() if split not in available]
    if missing:
        raise ValueError(
            f"Dataset {path!r} has the splits {available} but not {missing}; "
            "save the wanted splits as train*.parquet and test*.parquet and give that folder."
        )
    if builder.name == "parquet":
        # load_dataset(path, split=...) downloads every split; naming the files downloads only those.
        files = {key: list(data_files[split]) for key, split in wanted.items()}
        splits = load_dataset("parquet", data_files=files, features=builder.info.features)
        return dict(splits), test_split, commit
    # By this builder, as a branch may get another commit any time.
    builder.download_and_prepare()
    return {key: builder.as_dataset(split=split) for key, split in wanted.items()}, test_split, commit


def _suggest(name: str) -> str:
    known = ["digits", *DATASETS]
    close = difflib.get_close_matches(name.lower(), known, n=2)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Known names are {', '.join(known)}."


def _first_of(names: Iterable[str], available: Iterable[str]) -> str | None:
    spelled = {name.lower(): name for name in available}
    return next((spelled[name] for name in names if name in spelled), None)


def walk_files(folder: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders, but for hidden ones and those that begin with two underscores, which the
    imagefolder loader ignores too. Links are followed; a folder that several lead to is visited once, by the first name."""
    visited: set[str] = set()
    for root, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(subfolder for subfolder in subfolders if not subfolder.startswith((".", "__")))
        real_root = os.path.realpath(root)
        if real_root in visited:
            subfolders.clear()
            continue
        visited.add(real_root)
        yield from (Path(root, file) for file in files if not file.startswith((".", "__")))


def _load_folder(name: str, folder: Path) -> tuple[dict[str, Dataset], str | None, bool]:
    """The splits, the name of the test split, and whether the images lie in files of their own."""
    if not folder.is_dir():
        raise ValueError(f"{name!r} is a file; give the folder that holds the images or the parquet files.")
    image_folders: set[tuple[str, ...]] = set()
    metadata_folders: set[tuple[str, ...]] = set()
    parquet_files: list[Path] = []
    others: Counter[str] = Counter()
    for file in walk_files(folder):
        if file.suffix.lower() in ImageFolder.EXTENSIONS:
            image_folders.add(file.parent.relative_to(folder).parts)
        elif file.name in ImageFolder.METADATA_FILENAMES:
            metadata_folders.add(file.parent.relative_to(folder).parts)
        elif file.suffix.lower() == ".parquet":
            parquet_files.append(file)
        else:
            others[file.suffix.lower() or file.name] += 1
    if parquet_files and image_folders:
        raise ValueError(
            f"Folder {name!r} holds both images and parquet files ({parquet_files[0].name!r}, …); "
            "move one kind elsewhere, so that it is clear which is the dataset."
        )
    if image_folders:
        return *_load_images(name, folder, image_folders | metadata_folders), True
    if parquet_files:
        return *_load_parquet(name, folder, sorted(parquet_files)), False
    found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5)) or "nothing"
    raise FileNotFoundError(
        f"Folder {name!r} holds no images and no parquet files (found: {found}); "
        "give a folder with image files such as .jpg or .png, or with .parquet files."
    )


def _load_images(
    name: str, folder: Path, image_folders: set[tuple[str, ...]]
) -> tuple[dict[str, Dataset], str | None]:
    tops = {parts[0] if parts else "" for parts in image_folders}
    train_top, test_top = _first_of(TRAIN_NAMES, tops), _first_of(TEST_NAMES, tops)
    if train_top and (test_top or tops == {train_top}):
        tops_by_split = {"train": train_top} | ({"test": test_top} if test_top else {})
        unused = sorted(tops - set(tops_by_split.values()))
        if unused:
            logger.warning(f"Folder {name!r}: the images in {unused} belong to no split that is used.")
        by_split = {
            key: [parts for parts in image_folders if parts[:1] == (top,)] for key, top in tops_by_split.items()
        }
        classes = {parts[1:] for group in by_split.values() for parts in group}
    else:
        test_top = None
        by_split = {"train": list(image_folders)}
        classes = image_folders

    has_labels = len(classes) > 1 and all(len(parts) == 1 for parts in classes)
    if not has_labels and any(classes):
        logger.warning(
            f"Folder {name!r}: its subfolders are not taken as labels, as the images do not all lie in two or more "
            "class folders at one level."
        )
    # A pattern for each folder, as the pattern ** does not follow links.
    data_files = {
        key: [os.path.join(glob.escape(str(folder.resolve().joinpath(*parts))), "*") for parts in sorted(group)]
        for key, group in by_split.items()
    }
    return dict(load_dataset("imagefolder", data_files=data_files, drop_labels=not has_labels)), test_top


def _load_parquet(name: str, folder: Path, files: list[Path]) -> tuple[dict[str, Dataset], str | None]:
    by_split: dict[str, list[str]] = {}
    num_rows: Counter[str] = Counter()
    for file in files:
        # The file, or else its folder, begins with the name of the split: data/test-00000-of-00001.parquet.
        parts = (
            re.match("train|test|validation|valid|val", part.lower())
            for part in reversed(file.relative_to(folder).parts)
        )
        split = next((match[0] for match in parts if match), "")
        by_split.setdefault(split, []).append(glob.escape(str(file.resolve())))
        try:
            num_rows[split] += pyarrow.parquet.read_metadata(file).num_rows
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"Cannot read {str(file)!r}: {error}. Remove the file or write it anew.") from error
    if set(by_split) == {""}:
        by_split, num_rows = {"train": by_split[""]}, Counter(train=num_rows[""])
    if "train" not in by_split:
        raise ValueError(
            f"Folder {name!r} has no training split: its parquet files are {[file.name for file in files]}; "
            "let the names of the training files begin with 'train'."
        )
    test_split = _first_of(TEST_NAMES, by_split)
    wanted = {"train": "train"} | ({"test": test_split} if test_split else {})
    for split in wanted.values():
        if num_rows[split] == 0:
            raise ValueError(f"The {split} split of {name!r} has no samples; write some, or remove {by_split[split]}.")
    unused = [file for split, group in by_split.items() if split not in wanted.values() for file in group]
    if unused:
        logger.warning(f"Folder {name!r}: {len(unused)} parquet files belong to no split that is used: {unused[:3]}")
    splits = load_dataset("parquet", data_files={key: by_split[split] for key, split in wanted.items()})
    return dict(splits), test_split


def _find_image_column(name: str, features: Features, image_column: str | None) -> str:
    if image_column is not None:
        if image_column not in features:
            raise ValueError(
                f"Dataset {name!r} has no column {image_column!r}; give one of {list(features)} as `image_column`."
            )
        if not _holds_images(features[image_column]):
            raise ValueError(
                f"Column {image_column!r} of dataset {name!r} holds {features[image_column]}, not images; "
                f"give another of {list(features)} as `image_column`."
            )
        return image_column
    candidates = [column for column, feature in features.items() if isinstance(feature, Image)]
    candidates = candidates or [column for column, feature in features.items() if _holds_images(feature)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(
            f"Dataset {name!r} has several columns of images, {candidates}; say which to use with `image_column`."
        )
    raise ValueError(
        f"Dataset {name!r} has no column of images among {list(features)}; store the encoded images as a "
        "`datasets.Image` column, or give another dataset."
    )


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature and _holds_images(feature["bytes"])
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _find_label_column(name: str, features: Features, image_column: str, label_column: str | None) -> str | None:
    if label_column is None:
        # A column of images may be called label: the mask of a segmentation.
        named = [c for c in LABEL_NAMES if c in features and c != image_column and not isinstance(features[c], Image)]
        candidates = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        if len(candidates) > 1:
            candidates = [column for column in candidates if column in named] or candidates
        candidates = candidates or named
        if not candidates:
            return None
        if len(candidates) > 1:
            raise ValueError(
                f"Dataset {name!r} has several columns of labels, {candidates}; say which to use with `label_column`."
            )
        label_column = candidates[0]
    elif label_column not in features:
        raise ValueError(
            f"Dataset {name!r} has no column {label_column!r}; give one of {list(features)} as `label_column`."
        )
    feature = features[label_column]
    if not (isinstance(feature, ClassLabel) or (isinstance(feature, Value) and re.match("u?int", feature.dtype))):
        raise ValueError(
            f"Column {label_column!r} of dataset {name!r} holds {feature}, not class ids; convert it with "
            "`Dataset.class_encode_column`, name another of "
            f"{list(features)} as `label_column`, or rename the column to load the images without labels."
        )
    return label_column


def _normalize(name: str, key: str, split: Dataset, image_column: str, label_column: str | None) -> Dataset:
    columns = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    split = split.select_columns(list(columns))
    split = split.rename_columns({old: new for old, new in columns.items() if old != new})
    if label_column is not None:
        labels = split.with_format("arrow")["label"][:]
        if labels.null_count or pyarrow.compute.min(labels).as_py() < 0:
            raise ValueError(
                f"Column {label_column!r} of the {key} split of dataset {name!r} has missing or negative labels; "
                "remove those rows, or name another column as `label_column`."
            )
    return split.cast_column("image", Image(decode=False))


def _readable(class_names: list[str]) -> list[str]:
    if not all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        return class_names
    # WordNet ids name the classes of Tiny ImageNet and of ImageNet as a folder.
    from timm.data.imagenet_info import ImageNetInfo

    wordnet = ImageNetInfo("imagenet-22k")
    return [wordnet.label_name_to_description(name) for name in class_names]


def _hold_out(name: str, dataset: Dataset) -> dict[str, Dataset]:
    """The same images in every run, whatever its seed: what one run was trained on must not test another's encoder."""
    labels = np.asarray(dataset["label"][:])
    num_held_out = min(max(round(HELD_OUT_FRACTION * len(dataset)), 1), MAX_HELD_OUT)
    counts = np.unique(labels, return_counts=True)[1]
    stratified = counts.min() >= 2 and len(counts) <= num_held_out
    how = "in the proportions of the classes" if stratified else "at random, as some classes are small"
    train, test = train_test_split(
        np.arange(len(dataset)), test_size=num_held_out, random_state=0, stratify=labels if stratified else None
    )
    logger.warning(
        f"Dataset {name!r} has no test split: {num_held_out} of {len(dataset)} training samples are held out, {how}."
    )
    return {"train": dataset.select(np.sort(train)), "test": dataset.select(np.sort(test))}
