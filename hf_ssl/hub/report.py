"""What evaluations of encoders came to: a list that grows with each, a table for people, and results in a model card."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.image_utils import PILImageResampling

from .eval_results import write_eval_results
from .export import write_atomically, write_results
from .model_card import BEGIN, END, CardResult, index_entry, today


# Names of a protocol's numbers in `all_results.json`.
_NAMES = {
    "knn_protocol": r"knn_top[15](_k\d+)?$",
    "linear_protocol": "linear_",
    "retrieval_protocol": r"(mAP|mP@\d+)(_easy|_medium|_hard)?$",
    "copy_detection_protocol": r"mAP_(original|strong|(jpegqual|crops)/\d+)$",
}


def record_evaluations(
    output_dir: str | Path, results: Mapping[str, Any], dataset_id: str | None = None
) -> list[CardResult]:
    """
    Write results of a protocol into `all_results.json`: under their names, where they replace those of the protocol's last
    run, and into the list `evaluations` of all that was measured, where they replace the same number: of the same encoder,
    dataset and protocol.

    Args:
        output_dir (`str` or `Path`): The folder.
        results (`Mapping[str, Any]`): Numbers by name, as the scripts return them.
        dataset_id (`str`, *optional*): Id of the dataset on the Hub.

    Returns:
        `list[CardResult]`: the whole list, the new ones last.
    """
    path = Path(output_dir) / "all_results.json"
    known = json.loads(path.read_text()).get("evaluations", []) if path.is_file() else []
    new = evaluation_results(results, dataset_id)
    measured = {_identity(result) for result in new}
    rows = [*(old for old in (CardResult(**values) for values in known) if _identity(old) not in measured), *new]
    listed = [{name: value for name, value in asdict(row).items() if value is not None} for row in rows]
    replaces = "|".join(pattern for name, pattern in _NAMES.items() if name in results)
    write_results(output_dir, {**results, "evaluations": listed}, update=True, replaces=replaces)
    return rows


def evaluation_results(results: Mapping[str, Any], dataset_id: str | None = None) -> list[CardResult]:
    """
    Results of the protocols, each with how it was measured.

    Args:
        results (`Mapping[str, Any]`): Numbers by name, as the scripts write them into `all_results.json`.
        dataset_id (`str`, *optional*): Id of the dataset on the Hub.

    Returns:
        `list[CardResult]`: of those protocols that have numbers: kNN, linear probe, retrieval, copy detection. Where there
        are 5 classes or fewer, top-5 says nothing, and is left out.
    """
    found = []
    if "knn_protocol" in results:
        text = f"weighted kNN (Wu et al., 2018) with temperature {results['temperature']:g}"
        for name in (name for name in results if re.fullmatch(r"knn_top1(_k\d+)?", name)):
            k = name.partition("_k")[2] or results["k"]
            if name == "knn_top1" and f"knn_top1_k{k}" in results:
                continue  # of a list of k, the main one, which comes again
            found += _pair(results, name, f"kNN, k = {k}", text, results["knn_protocol"], dataset_id)
    if "linear_protocol" in results:
        protocol = results["linear_protocol"]
        views = "a new random view of each in every epoch" if protocol["augmented"] else "features computed once"
        rates = ", ".join(f"{rate:g}" for rate in protocol["learning_rates_for_256_images"])
        text = (
            f"linear classifier, trained for {protocol['epochs']:g} epochs by SGD on {protocol['num_trained_on']:,} images "
            f"({views}), {protocol['images_per_step']:,} in a step, with learning rates {rates} for 256 images; the best of "
            f"them and of the epochs was chosen on {protocol['selected_by']}"
        )
        outcome = (
            f"learning rate {results['linear_learning_rate']:g} after epoch {results['linear_epoch']:g} was chosen; at the "
            f"end the best of them had {results['linear_top1_last']:.2f} % top-1"
        )
        found += _pair(results, "linear_top1", "linear probe", text, protocol, dataset_id, outcome)
    for name in ("retrieval_protocol", "copy_detection_protocol"):
        if name in results:
            found += _mean_precisions(results, name, dataset_id)
    return [replace(result, date=today()) for result in found]


def _pair(
    results: Mapping[str, Any],
    name: str,
    title: str,
    text: str,
    protocol: Mapping[str, Any],
    dataset_id: str | None,
    outcome: str | None = None,
) -> list[CardResult]:
    """Top-1 and top-5 of a protocol."""
    dataset_revision = protocol.get("dataset_revision")
    images = (
        f"dataset revision {dataset_revision}"
        if dataset_revision
        else f"fingerprints {protocol['test_fingerprint'][:8]} and {protocol['train_fingerprint'][:8]}"
    )
    parts = [
        text,
        f"{protocol['num_test_images']:,} {protocol['split']} images and {protocol['num_train_images']:,} training images "
        f"({images})",
        *_of_encoder(protocol),
        f"seed {protocol['seed']}",
    ]
    return [
        CardResult(
            value=results[name.replace("top1", f"top{n}")],
            metric_name=f"{title}, top-{n} (%)",
            metric_type="accuracy",
            dataset=protocol["dataset"],
            dataset_id=dataset_id,
            dataset_revision=dataset_revision,
            split=protocol["split"],
            protocol="; ".join(parts),
            outcome=outcome,
            settings=protocol,
        )
        for n in ((1, 5) if protocol.get("num_classes", 6) > 5 else (1,))
    ]


def _of_encoder(protocol: Mapping[str, Any]) -> list[str]:
    """Which features these are, of images that were processed how."""
    return [
        f"feature: {protocol['feature']}; encoder branch: {protocol['encoder']}",
        *([f"model revision {protocol['model_revision']}"] if "model_revision" in protocol else []),
        describe_processor(protocol["image_processor"]),
        *([f"positions resized by {how}"] if (how := protocol.get("position_interpolation")) else []),
        protocol["precision"],
    ]


def _mean_precisions(results: Mapping[str, Any], name: str, dataset_id: str | None) -> list[CardResult]:
    """Mean average precision, and mean precision at k, of each setup."""
    protocol = results[name]
    text = "; ".join([protocol["text"], *_of_encoder(protocol)])
    rows = []
    for key, value in results.items():
        if re.match(_NAMES[name], key):
            metric, _, setup = key.partition("_")
            rows.append(
                CardResult(
                    value=value,
                    metric_name=f"{metric}{f', {setup}' if setup else ''} (%)",
                    metric_type="mean_average_precision" if metric == "mAP" else "mean_precision",
                    dataset=protocol["dataset"],
                    dataset_id=dataset_id,
                    dataset_revision=protocol.get("dataset_revision"),
                    split=protocol["split"],
                    protocol=text,
                    task_type="image-feature-extraction",
                    settings=protocol,
                )
            )
    return rows


def describe_processor(processor: Mapping[str, Any]) -> str:
    """
    What is done to images, in words: how they are resized and cropped, and what is unusual.

    Args:
        processor (`Mapping[str, Any]`): The processor's settings, see [`~hf_ssl.evaluation.processor_protocol`].

    Returns:
        `str`.
    """
    if "longest_side" in processor:  # of a ThumbnailProcessor
        return f"photos in their own shape, shrunk to {processor['longest_side']} pixels on the longer side (lanczos)"
    if "input_size" in processor:  # timm's
        side, share = processor["input_size"][-1], processor.get("crop_pct", 1)
        kind = f" ({processor['interpolation']})" if "interpolation" in processor else ""
        return f"{side} x {side} pixels{kind}, {100 * share:g} % of the shorter side"
    size, crop, resample = (processor.get(name) for name in ("size", "crop_size", "resample"))
    kind = "" if resample is None else f" ({PILImageResampling(resample).name.lower()})"
    if processor.get("do_resize") is False or not size:
        words = ["not resized"]
    elif "shortest_edge" in size:
        words = [f"shorter side resized to {size['shortest_edge']} pixels{kind}"]
    elif "height" in size:
        words = [f"resized to {size['height']} x {size['width']} pixels{kind}"]
    else:
        words = [f"resized to {', '.join(f'{name} {value}' for name, value in size.items())}{kind}"]
    if crop and processor.get("do_center_crop", True):
        words.append(f"central {crop['height']} x {crop['width']}")
    names = {"do_rescale": "values from 0 to 255", "do_normalize": "not normalized"}
    return ", ".join([*words, *(text for name, text in names.items() if processor.get(name) is False)])


def _weights(result: CardResult) -> str:
    """What tells an encoder from others of its name."""
    revision = result.settings.get("model_revision")
    return f"revision {revision}" if revision else f"weights {result.settings.get('encoder_fingerprint')}"


def _identity(result: CardResult) -> tuple[str, ...]:
    """What two numbers have in common if they are the same number, measured twice."""
    model = result.settings["model"]
    return model, _weights(result), result.metric_name, result.dataset, result.split, result.protocol


def results_of_model(results: Sequence[CardResult], model: str) -> list[CardResult]:
    """
    Results of one model, for its card.

    Args:
        results (`Sequence[CardResult]`): What [`record_evaluations`] returns.
        model (`str`): Its name.

    Returns:
        `list[CardResult]`: those of the weights that each of its branches had the last time.
    """
    own = [result for result in results if result.settings["model"] == model]
    last = {result.settings["encoder"]: _weights(result) for result in own}
    return [result for result in own if last[result.settings["encoder"]] == _weights(result)]


def report_table(results: Sequence[CardResult]) -> str:
    """
    A table in Markdown, and under it how the numbers were measured.

    Args:
        results (`Sequence[CardResult]`): The results.

    Returns:
        `str`.
    """
    encoders = {(result.settings["model"], result.settings["encoder"], _weights(result)) for result in results}
    times = Counter(encoder[:2] for encoder in encoders)
    notes = list(dict.fromkeys(result.note for result in results))
    rows = ["| model | evaluation | data | value | protocol |", "|---|---|---|---|---|"]
    for result in results:
        model = result.settings["model"]
        if times[model, result.settings["encoder"]] > 1:  # others have the same name
            model += f" ({_weights(result)[:16]})"
        cells = [model, result.metric_name, f"{result.dataset}, {result.split}", f"**{result.value:.2f}**"]
        rows.append(f"| {' | '.join(cells)} | {notes.index(result.note) + 1} |")
    return "\n".join([*rows, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1)), ""])


def report(results: Sequence[CardResult], figures: Mapping[str, str]) -> str:
    """
    The table, and pictures.

    Args:
        results (`Sequence[CardResult]`): The results.
        figures (`Mapping[str, str]`): Captions of pictures, by their paths relative to the report.

    Returns:
        `str`: in Markdown.
    """
    pictures = "".join(f"\n![{caption}]({name})\n\n{caption}\n" for name, caption in figures.items())
    return report_table(results) + pictures


def write_report(
    output_dir: str | Path, results: Sequence[CardResult], figures: Mapping[str, str], own_model: str | None = None
) -> None:
    """
    Write evaluation.md, of all that was measured and drawn; and, if the folder is that of a model, what is the model's own
    into its card.

    Args:
        output_dir (`str` or `Path`): The folder.
        results (`Sequence[CardResult]`): What [`record_evaluations`] returns.
        figures (`Mapping[str, str]`): Captions of new pictures, by their paths relative to the folder. Those of earlier runs
            are shown too, as long as they are there.
        own_model (`str`, *optional*): Name of the model whose folder this is.
    """
    folder = Path(output_dir)
    known = json.loads((folder / "all_results.json").read_text()).get("evaluation_figures", {})
    shown = {name: caption for name, caption in {**known, **figures}.items() if (folder / name).is_file()}
    write_results(folder, {"evaluation_figures": shown}, update=True)
    write_atomically(folder / "evaluation.md", report(results, shown))
    if own_model is not None and (folder / "README.md").is_file():
        own = {name: caption for name, caption in shown.items() if Path(name).parent.name == "figures"}
        add_to_card(folder / "README.md", results_of_model(results, own_model), own)


def add_to_card(path: Path, results: Sequence[CardResult], figures: Mapping[str, str]) -> None:
    """
    Write results into a model card: into its model-index, into `.eval_results/` beside it, and into a section of their own
    between two comments, which takes the place of an earlier one. A new one comes before the limitations, or at the end.

    Args:
        path (`Path`): The card, a README.md.
        results (`Sequence[CardResult]`): The results.
        figures (`Mapping[str, str]`): Captions of pictures, by their paths relative to the card.
    """
    card = ModelCard.load(path)
    entries = [index_entry(result) for result in results]
    kept = [
        old for old in card.data.eval_results or () if not any(old.is_equal_except_value(entry) for entry in entries)
    ]
    card.data.eval_results = [*kept, *entries]
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    section = f"{BEGIN}\n## Evaluation\n\n{report(results, figures)}{END}"
    # Of an opening comment whose closing one was deleted, nothing is known.
    before, opened, rest = card.text.rpartition(BEGIN)
    _, closed, after = rest.partition(END)
    if opened and closed:
        card.text = f"{before}{section}{after}"
    else:
        limitations = re.search(r"^## Limitations\s*$", card.text, re.MULTILINE)
        place = limitations.start() if limitations else len(card.text)
        card.text = f"{card.text[:place].rstrip()}\n\n{section}\n\n{card.text[place:]}".rstrip() + "\n"
    write_eval_results(path.parent, results)
    write_atomically(path, str(card))


__all__ = [
    "add_to_card",
    "evaluation_results",
    "record_evaluations",
    "report",
    "report_table",
    "results_of_model",
    "write_report",
]
