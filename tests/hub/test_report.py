"""What evaluations leave behind: the list of numbers, the table, the card."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_ssl.hub import (
    add_to_card,
    evaluation_results,
    record_evaluations,
    report,
    report_table,
    results_of_model,
    write_results,
)
from hf_ssl.hub.report import describe_processor


CARD = "---\nlicense: mit\n---\n\n# run\n\nText.\n\n## Limitations\n\nSome.\n"


def protocol(**changes):
    return {
        "model": "run",
        "encoder": "auto",
        "encoder_fingerprint": "0123456789abcdef",
        "dataset": "digits",
        "split": "test",
        "num_classes": 10,
        "num_train_images": 1437,
        "num_test_images": 360,
        "train_fingerprint": "aaaaaaaabbbb",
        "test_fingerprint": "ccccccccdddd",
        "image_processor": {"size": {"height": 16, "width": 16}, "resample": 2},
        "feature": "class token",
        "precision": "fp32",
        "seed": 7,
    } | changes


def of_knn(value=50.0, k=20, **changes):
    numbers = {"knn_top1": value, "knn_top5": 90.0, "k": k, "temperature": 0.07}
    return numbers | {"knn_protocol": protocol(**changes)}


def of_linear(value=60.0, rate=0.1, **changes):
    more = {"num_trained_on": 1294, "selected_by": "143 held-out training images", "epochs": 100.0}
    more |= {"images_per_step": 256, "learning_rates_for_256_images": [0.01, 0.1], "augmented": False}
    numbers = {"linear_top1": value, "linear_top5": 91.0, "linear_epoch": 3.0, "linear_learning_rate": rate}
    return numbers | {"linear_top1_last": 59.0, "linear_protocol": protocol(**more, **changes)}


def table_of(rows):
    """Cells of the table's rows, but for the number of the protocol."""
    lines = report_table(rows).split("\n\n")[0].splitlines()[2:]
    return [tuple(line.strip("| ").split(" | ")[:4]) for line in lines]


def notes_of(rows):
    return report_table(rows).split("\n\n")[1].splitlines()


# ---- how a number was measured ----


def test_protocol_is_told():
    processor = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3}
    changes = {"encoder": "teacher", "model_revision": "1234abcd", "dataset_revision": "5678ef", "precision": "bf16"}
    for results in (of_knn, of_linear):
        (note,) = notes_of(evaluation_results(results(image_processor=processor, **changes)))
        for told in ("class token", "branch: teacher", "model revision 1234abcd", "dataset revision 5678ef", "seed 7"):
            assert told in note
        for told in ("360 test images and 1,437 training images", "256 pixels (bicubic), central 224 x 224", "bf16"):
            assert told in note
    assert "temperature 0.07" in notes_of(evaluation_results(of_knn()))[0]
    assert "fingerprints cccccccc and aaaaaaaa" in notes_of(evaluation_results(of_knn()))[0], "no revision is known"
    (note,) = notes_of(evaluation_results(of_linear()))
    assert "256 in a step" in note and note.endswith(
        "Learning rate 0.1 after epoch 3 was chosen; at the end the best of them had 59.00 % top-1."
    )


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ({"size": {"height": 8, "width": 9}, "resample": 2}, "resized to 8 x 9 pixels (bilinear)"),
        ({"do_resize": False, "size": {"height": 8, "width": 8}, "resample": 2}, "not resized"),
        ({"size": None}, "not resized"),
        ({"size": {"longest_edge": 64}}, "resized to longest_edge 64"),
        (
            {"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            "shorter side resized to 9 pixels, central 8 x 8",
        ),
        (
            {"size": {"shortest_edge": 9}, "do_center_crop": False, "crop_size": {"height": 8, "width": 8}},
            "shorter side resized to 9 pixels",
        ),
        (
            {"do_resize": False, "do_rescale": False, "do_normalize": False},
            "not resized, values from 0 to 255, not normalized",
        ),
        ({"do_resize": True, "do_rescale": True, "do_normalize": True, "size": {"height": 8, "width": 8}},) * 2,
        (
            {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic"},
            "224 x 224 pixels (bicubic), 90 % of the shorter side",
        ),
        ({"input_size": [3, 224, 224]}, "224 x 224 pixels, 100 % of the shorter side"),
    ],
)
def test_processor_in_words(processor, words):
    assert describe_processor(processor) == ("resized to 8 x 8 pixels" if words is processor else words)


@pytest.mark.parametrize("results", [of_knn, of_linear])
@pytest.mark.parametrize(("num_classes", "count"), [(1, 1), (5, 1), (6, 2)])
def test_top5_of_few_classes_is_left_out(results, num_classes, count):
    names = [row.metric_name for row in evaluation_results(results(num_classes=num_classes))]
    assert len(names) == count and "top-1" in names[0]


# ---- the list of all that was measured ----


def test_numbers_stay(tmp_path):
    """Of other protocols, datasets, settings and models."""
    write_results(tmp_path, {"loss": 1.5})
    runs = [
        of_knn(1),
        of_linear(2),
        of_knn(3, dataset="shapes", num_classes=3),
        of_knn(4, k=10),
        of_knn(5, feature="mean of the patch tokens"),
        of_knn(6, model="other"),
        of_knn(7, encoder="teacher", encoder_fingerprint="f"),
    ]
    for results in runs:
        rows = record_evaluations(tmp_path, results)
    top1 = [row for row in table_of(rows) if "top-1" in row[1]]
    assert top1 == [
        ("run", "kNN, k = 20, top-1 (%)", "digits, test", "**1.00**"),
        ("run", "linear probe, top-1 (%)", "digits, test", "**2.00**"),
        ("run", "kNN, k = 20, top-1 (%)", "shapes, test", "**3.00**"),
        ("run", "kNN, k = 10, top-1 (%)", "digits, test", "**4.00**"),
        ("run", "kNN, k = 20, top-1 (%)", "digits, test", "**5.00**"),
        ("other", "kNN, k = 20, top-1 (%)", "digits, test", "**6.00**"),
        ("run", "kNN, k = 20, top-1 (%)", "digits, test", "**7.00**"),
    ]
    written = json.loads((tmp_path / "all_results.json").read_text())
    assert written["loss"] == 1.5 and written["linear_top1"] == 2 and written["knn_top1"] == 7
    assert [entry["value"] for entry in written["evaluations"]] == [row.value for row in rows]
    assert len(notes_of(rows)) == 4, "one for each protocol"


def test_a_number_measured_again_replaces_the_old(tmp_path):
    record_evaluations(
        tmp_path, of_knn(1) | {"knn_top1_k20": 1, "knn_top5_k20": 2, "knn_top1_k50": 3, "knn_top5_k50": 4}
    )
    record_evaluations(tmp_path, of_linear(2))
    record_evaluations(tmp_path, of_knn(5))
    rows = record_evaluations(tmp_path, of_linear(6, rate=0.01))  # which rate wins is no part of the protocol
    assert [(row[1], row[3]) for row in table_of(rows) if "top-1" in row[1]] == [
        ("kNN, k = 50, top-1 (%)", "**3.00**"),
        ("kNN, k = 20, top-1 (%)", "**5.00**"),
        ("linear probe, top-1 (%)", "**6.00**"),
    ]
    names = json.loads((tmp_path / "all_results.json").read_text()).keys()
    assert "knn_top1" in names and not {"knn_top1_k20", "knn_top5_k50"} & names, "of the last run alone"


def test_other_weights_under_the_same_name(tmp_path):
    """They are told apart, and a card has numbers of the last ones only."""
    record_evaluations(tmp_path, of_knn(1))
    record_evaluations(tmp_path, of_knn(2, encoder="teacher", encoder_fingerprint="ffff"))
    rows = record_evaluations(tmp_path, of_knn(3, encoder_fingerprint="9876543210abcdef"))
    assert [row[0] for row in table_of(rows)][::2] == ["run (weights 01234567)", "run", "run (weights 98765432)"]
    rows = record_evaluations(tmp_path, of_knn(4, model="other"))
    assert [row.value for row in results_of_model(rows, "run")] == [2, 90, 3, 90]
    rows = [
        *evaluation_results(of_knn(model_revision="1111111122")),
        *evaluation_results(of_knn(model_revision="3333333344")),
    ]
    assert [row[0] for row in table_of(rows)][::2] == ["run (revision 1111111)", "run (revision 3333333)"]


# ---- the card ----


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "run" / "README.md"
    path.parent.mkdir()
    return path


def write(path, text):
    path.write_bytes(text.encode())


def outside(path):
    """The card's text without the section."""
    text = ModelCard.load(path).text
    before, rest = text.split("<!-- hf_ssl: evaluation -->")
    section, after = rest.split("<!-- /hf_ssl: evaluation -->")
    return before, section, after


def test_section_is_replaced_and_nothing_else(card):
    write(card, CARD)
    add_to_card(card, evaluation_results(of_knn(1)), {"figures/map.png": "A map."})
    before, section, after = outside(card)
    assert before == "\n# run\n\nText.\n\n" and after == "\n\n## Limitations\n\nSome.\n"
    assert "## Evaluation" in section and "**1.00**" in section and "![A map.](figures/map.png)" in section
    write(card, card.read_text().replace("Some.", "Some.\n\n## Evaluation\n\nBy hand."))
    add_to_card(card, evaluation_results(of_knn(2)), {})
    before, section, after = outside(card)
    assert before == "\n# run\n\nText.\n\n" and after.endswith("Some.\n\n## Evaluation\n\nBy hand.\n")
    assert "**2.00**" in section and "**1.00**" not in section and "map.png" not in section


@pytest.mark.parametrize("end", ["", "\n## Limitations\n\nSome.\n"])
def test_section_by_hand_stays(card, end):
    by_hand = "## Evaluation\n\nI looked at it.\n"
    write(card, f"---\nlicense: mit\n---\n# run\n\n{by_hand}{end}")
    for _ in range(2):
        add_to_card(card, evaluation_results(of_knn()), {})
        before, section, after = outside(card)
        assert before == f"# run\n\n{by_hand}\n" and after.strip() == end.strip() and "kNN" in section


def test_without_a_closing_comment_nothing_is_removed(card):
    write(card, CARD.replace("Text.", "<!-- hf_ssl: evaluation -->\nText.\n\n## More\n\nOf it."))
    for _ in range(2):
        add_to_card(card, evaluation_results(of_knn()), {})
        assert card.read_text().count("Of it.") == card.read_text().count("| run | kNN, k = 20, top-1 (%)") == 1


def test_windows_line_ends(card):
    write(card, CARD.replace("\n", "\r\n"))
    add_to_card(card, evaluation_results(of_knn()), {})
    text = card.read_bytes().decode()
    assert text.index("Text.") < text.index("## Evaluation") < text.index("## Limitations")


def test_model_index(card):
    write(card, CARD)
    results = [of_knn(1, dataset_revision="5678ef"), of_linear(2), of_knn(3, seed=8), of_linear(4, rate=0.01)]
    for each in results:
        add_to_card(card, evaluation_results(each, "someone/digits"), {})
    data = ModelCard.load(card).data
    found = {
        (entry.metric_name, entry.metric_value): entry for entry in data.eval_results if "top-1" in entry.metric_name
    }
    assert sorted(value for _, value in found) == [1, 3, 4] and data.license == "mit"
    entry = found["kNN, k = 20, top-1 (%)", 1]
    assert (entry.dataset_type, entry.dataset_revision) == ("someone/digits", "5678ef")
    assert "temperature 0.07" in entry.metric_args["protocol"] and "seed 7" in entry.metric_args["protocol"]


def test_what_is_written_is_never_seen_in_part(card, monkeypatch):
    """A full disk leaves the old card."""
    write(card, CARD)
    whole = type(card).write_text

    def half(path, text, **options):
        whole(path, text[: len(text) // 2], **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(type(card), "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        add_to_card(card, evaluation_results(of_knn()), {})
    assert card.read_bytes().decode() == CARD


def test_report_has_pictures():
    text = report(evaluation_results(of_knn()), {"figures/a.png": "One.", "figures/b.png": "Two."})
    assert (
        text.index("| run |") < text.index("![One.](figures/a.png)\n\nOne.\n") < text.index("![Two.](figures/b.png)")
    )
