"""
A model's numbers in the Hub's `.eval_results/*.yaml`, one file for each dataset.

The Hub shows them on the model's page, and on the leaderboard of a dataset that is registered as a benchmark, if that has a
task of the entry's name. For other datasets they are the model-index once more, with dates, for programs to read. Numbers on
images without an id of the Hub have no place in this format.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from .export import write_atomically
from .model_card import CardResult


FOLDER = ".eval_results"
# Files of other names are not ours.
_PREFIX = "hf_ssl-"
_HEAD = "# Written by hf_ssl with the model card. Results from elsewhere belong in another file of this folder.\n"


def write_eval_results(folder: str | Path, results: Sequence[CardResult], of_new_model: bool = False) -> None:
    """
    Write results beside a model card. What was measured again takes the place of the old entry; all others stay.

    Args:
        folder (`str` or `Path`): Folder of the model.
        results (`Sequence[CardResult]`): The results.
        of_new_model (`bool`, *optional*, defaults to `False`):
            Whether the folder holds another model than before: then our files of the earlier one are deleted.

    Raises:
        `ValueError`: one of our files was changed into something that is no list of results.
    """
    place = Path(folder) / FOLDER
    if of_new_model:
        for path in place.glob(f"{_PREFIX}*.yaml"):
            path.unlink()
    dataset_ids = dict.fromkeys(result.dataset_id for result in results if result.dataset_id)
    for dataset_id in dataset_ids:
        path = place / f"{_PREFIX}{dataset_id.replace('/', '--')}.yaml"
        entries = eval_result_entries_to_yaml(
            [_entry(result) for result in results if result.dataset_id == dataset_id]
        )
        measured = list(map(_identity, entries))
        kept = [entry for entry in _read(path) if _identity(entry) not in measured]
        write_atomically(path, _HEAD + yaml.safe_dump([*kept, *entries], sort_keys=False, allow_unicode=True))


def _entry(result: CardResult) -> EvalResultEntry:
    """A result in the Hub's format, which has no place for the metric and the split: they go into task and notes."""
    return EvalResultEntry(
        dataset_id=str(result.dataset_id),
        task_id=re.sub(r"\W+", "_", result.metric_name.removesuffix(" (%)")).strip("_").lower(),
        value=round(result.value, 2),
        dataset_revision=result.dataset_revision,
        date=result.date,
        notes=f"in percent, split {result.split}; {result.protocol}",
    )


def _identity(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    """What two entries have in common if they are the same number, measured twice."""
    return entry.get("dataset"), entry.get("notes")


def _read(path: Path) -> list[dict[str, Any]]:
    """Entries of an earlier run."""
    if not path.is_file():
        return []
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: mend or delete it. {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} is no list of results: mend or delete it.")
    return entries


__all__ = ["write_eval_results"]
