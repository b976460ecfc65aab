"""What evaluations of an encoder came to: a table for people, and results in its card."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .model_card import CardResult, index_entry


TITLE = "## Evaluation"
# What stands at the end of a card.
_AFTER = "\n## Limitations\n"


def evaluation_results(results: Mapping[str, Any], dataset_id: str | None = None) -> list[CardResult]:
    """
    Results of the protocols, each with how it was measured.

    Args:
        results (`Mapping[str, Any]`): Numbers by name, as the scripts write them into `all_results.json`.
        dataset_id (`str`, *optional*): Id of the dataset on the Hub.

    Returns:
        `list[CardResult]`: of those protocols that have numbers: kNN, linear probe.
    """
    found = []
    if "knn_protocol" in results:
        for name in (name for name in results if re.fullmatch(r"knn_top1(_k\d+)?", name)):
            k = name.partition("_k")[2] or results["k"]
            if name == "knn_top1" and f"knn_top1_k{k}" in results:
                continue  # of a list of k, the main one, which comes again
            text = f"weighted kNN (Wu et al., 2018) with temperature {results['temperature']:g}"
            found += _pair(results, name, f"kNN, k = {k}", text, results["knn_protocol"], dataset_id)
    if "linear_protocol" in results:
        protocol = results["linear_protocol"]
        views = "a new random view of each in every epoch" if protocol["augmented"] else "features computed once"
        rates = ", ".join(f"{rate:g}" for rate in protocol["learning_rates_for_256_images"])
        text = (
            f"linear classifier, trained for {protocol['epochs']:g} epochs by SGD on {protocol['num_trained_on']:,} images "
            f"({views}) with learning rates {rates} for 256 images; the best of them and of the epochs was chosen on "
            f"{protocol['selected_by']} ({results['linear_learning_rate']:g}, after epoch {results['linear_epoch']:g}; at "
            f"the end {results['linear_top1_last']:.2f} % top-1)"
        )
        found += _pair(results, "linear_top1", "linear probe", text, protocol, dataset_id)
    return found


def _pair(
    results: Mapping[str, Any], name: str, title: str, text: str, protocol: Mapping[str, Any], dataset_id: str | None
) -> list[CardResult]:
    """Top-1 and top-5 of a protocol."""
    how = (
        f"{text}; feature: {protocol['feature']}; {protocol['num_test_images']:,} {protocol['split']} images and "
        f"{protocol['num_train_images']:,} training images, {describe_processor(protocol['image_processor'])}; "
        f"{protocol['precision']}, seed {protocol['seed']}"
    )
    return [
        CardResult(
            value=results[name.replace("top1", f"top{n}")],
            metric_name=f"{title}, top-{n} (%)",
            metric_type="accuracy",
            dataset=protocol["dataset"],
            dataset_id=dataset_id,
            split=protocol["split"],
            protocol=how,
        )
        for n in (1, 5)
    ]


def describe_processor(processor: Mapping[str, Any]) -> str:
    """
    How images are resized and cropped, in words.

    Args:
        processor (`Mapping[str, Any]`): Its settings, see [`~hf_ssl.evaluation.processor_protocol`].

    Returns:
        `str`.
    """
    if "input_size" in processor:  # timm's
        side, share = processor["input_size"][-1], processor.get("crop_pct", 1)
        return f"{side} x {side} pixels, {100 * share:g} % of the shorter side"
    size, crop = processor.get("size") or {}, processor.get("crop_size")
    resized = "not resized"
    if "shortest_edge" in size:
        resized = f"shorter side resized to {size['shortest_edge']} pixels"
    elif "height" in size:
        resized = f"resized to {size['height']} x {size['width']} pixels"
    return f"{resized}, central {crop['height']} x {crop['width']}" if crop else resized


def report_table(results: Sequence[CardResult]) -> str:
    """
    A table in Markdown, and under it how the numbers were measured.

    Args:
        results (`Sequence[CardResult]`): The results.

    Returns:
        `str`.
    """
    protocols = list(dict.fromkeys(result.protocol for result in results))
    rows = ["| evaluation | data | this model | protocol |", "|---|---|---|---|"]
    for result in results:
        number = protocols.index(result.protocol) + 1
        rows.append(f"| {result.metric_name} | {result.dataset}, {result.split} | **{result.value:.2f}** | {number} |")
    return "\n".join([*rows, "", *(f"{i}. {text[0].upper()}{text[1:]}." for i, text in enumerate(protocols, 1)), ""])


def add_to_card(path: Path, results: Sequence[CardResult], figures: Mapping[str, str]) -> None:
    """
    Write results into a model card: into its model-index, and into a section of their own, which takes the place of an
    earlier one.

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
    pictures = "\n".join(f"\n![{caption}]({name})\n\n{caption}\n" for name, caption in figures.items())
    section = f"\n{TITLE}\n\n{report_table(results)}{pictures}"
    text = re.sub(rf"\n{TITLE}\n.*?(?=\n## |\Z)", "", card.text, flags=re.DOTALL)
    before, found, after = text.partition(_AFTER)
    card.text = f"{before.rstrip()}\n{section}{found}{after}"
    card.save(path)


__all__ = ["add_to_card", "evaluation_results", "report_table"]
