"""A pass over a dataset that finds unreadable images before training does."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Features, Value
from transformers.utils import logging

from .images import REMEDY, ImageError, find_problem, image_name


logger = logging.get_logger(__name__)

NUM_SHOWN = 10


def verify_images(dataset: Dataset, *, skip_bad_images: bool, num_proc: int | None = None) -> Dataset:
    """
    Finds the images that cannot be decoded or are too large.

    The result of the pass is kept in the cache of `datasets`: a second call on unchanged files does no work.

    Args:
        dataset (`datasets.Dataset`):
            Dataset with an undecoded `image` column.
        skip_bad_images (`bool`):
            Whether to leave bad images out instead of raising an error.
        num_proc (`int`, *optional*):
            Number of processes; by default the pass runs in this one.

    Returns:
        `datasets.Dataset`: The dataset without the bad images.

    Raises:
        [`ImageError`]: If there are bad images and `skip_bad_images` is false, or if no image is left.
    """
    problems = dataset.map(
        _name_problem,
        with_indices=True,
        input_columns="image",
        remove_columns=dataset.column_names,
        features=Features({"problem": Value("string")}),
        num_proc=num_proc,
        desc="Checking images",
    )["problem"][:]
    bad = [problem for problem in problems if problem is not None]
    if not bad:
        return dataset

    shown = "\n".join(f"  {problem}" for problem in bad[:NUM_SHOWN])
    if len(bad) > NUM_SHOWN:
        shown += f"\n  and {len(bad) - NUM_SHOWN} more"
    if not skip_bad_images:
        raise ImageError(f"{len(bad)} of {len(dataset)} images cannot be read:\n{shown}\n{REMEDY}")
    if len(bad) == len(dataset):
        raise ImageError(f"None of the {len(dataset)} images can be read:\n{shown}\nReplace or re-encode the files.")
    logger.warning(f"Left out {len(bad)} of {len(dataset)} images that cannot be read:\n{shown}")
    return dataset.select([row for row, problem in enumerate(problems) if problem is None])


def _name_problem(image: Mapping[str, Any], row: int) -> dict[str, str | None]:
    problem = find_problem(image)
    return {"problem": problem and f"{image_name(image, row)}: {problem}"}
