"""Results in the Hub's own format, beside the card."""

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_ssl.hub import CardResult, add_to_card, evaluation_results, record_evaluations, results_of_model
from hf_ssl.hub.eval_results import write_eval_results
from hf_ssl.hub.model_card import today

from .test_report import CARD, of_knn, of_linear


def result(value=50.0, name="kNN top-1 (%)", protocol="k = 20", **changes):
    about = {"dataset": "CIFAR-10", "dataset_id": "uoft-cs/cifar10", "dataset_revision": "5678ef", "split": "test"}
    return CardResult(value=value, metric_name=name, metric_type="accuracy", protocol=protocol, **about | changes)


def entries_of(folder, name="hf_ssl-uoft-cs--cifar10"):
    return parse_eval_result_entries(yaml.safe_load((folder / ".eval_results" / f"{name}.yaml").read_text()))


def test_entry(tmp_path):
    """As the Hub's library reads it."""
    write_eval_results(tmp_path, [result(51.239, date="2026-11-22")])
    (entry,) = entries_of(tmp_path)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("uoft-cs/cifar10", "knn_top_1", 51.24)
    assert (entry.dataset_revision, entry.date) == ("5678ef", "2026-11-22")
    assert entry.notes == "in percent, split test; k = 20"
    assert entry.source_url is entry.source_name is entry.verify_token is None


def test_one_file_for_each_dataset(tmp_path):
    """Of images without an id of the Hub there is none."""
    others = [result(name=name, dataset_id="someone/photos") for name in ("mAP, medium (%)", "mP@10, hard (%)")]
    write_eval_results(tmp_path, [result(), result(dataset_id=None), *others, result(name="linear probe, top-5 (%)")])
    assert {path.name for path in (tmp_path / ".eval_results").iterdir()} == {
        "hf_ssl-uoft-cs--cifar10.yaml",
        "hf_ssl-someone--photos.yaml",
    }
    assert [entry.task_id for entry in entries_of(tmp_path)] == ["knn_top_1", "linear_probe_top_5"]
    assert [entry.task_id for entry in entries_of(tmp_path, "hf_ssl-someone--photos")] == ["map_medium", "mp_10_hard"]
    write_eval_results(tmp_path / "other", [result(dataset_id=None)])
    assert not (tmp_path / "other").exists()


def test_measured_again(tmp_path):
    """The same number is replaced; of another protocol, revision or metric it is another one."""
    write_eval_results(tmp_path, [result(1, date="2026-11-21"), result(2, name="kNN top-5 (%)")])
    for changed in (result(3, protocol="k = 10"), result(4, dataset_revision="9abc"), result(5, date="2026-11-22")):
        write_eval_results(tmp_path, [changed])
    entries = entries_of(tmp_path)
    assert [entry.value for entry in entries] == [2, 3, 4, 5] and entries[-1].date == "2026-11-22"


def test_what_is_not_ours_stays(tmp_path):
    """Entries by hand, with all that they say; files of other names even when the model is another one."""
    folder = tmp_path / ".eval_results"
    by_hand = {"dataset": {"id": "uoft-cs/cifar10", "task_id": "mine"}, "value": 7, "evaluation_framework": "own"}
    write_eval_results(tmp_path, [result(1)])
    ours = folder / "hf_ssl-uoft-cs--cifar10.yaml"
    ours.write_text(ours.read_text() + yaml.safe_dump([by_hand]))
    theirs = "# A comment.\n- {dataset: {id: cais/hle, task_id: hle}, value: 3}\n"
    (folder / "hle.yaml").write_text(theirs)
    write_eval_results(tmp_path, [result(2)])
    assert yaml.safe_load(ours.read_text())[0] == by_hand and [e.value for e in entries_of(tmp_path)] == [7, 2]
    write_eval_results(tmp_path, [result(dataset_id="someone/photos")], of_new_model=True)
    assert {path.name for path in folder.iterdir()} == {"hle.yaml", "hf_ssl-someone--photos.yaml"}
    assert (folder / "hle.yaml").read_text() == theirs


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is no YAML"), ("a: 1", "is no list"), ("- 1", "is no list"), ("", "is no list")]
)
def test_broken_file(tmp_path, text, message):
    write_eval_results(tmp_path, [result()])
    path = tmp_path / ".eval_results" / "hf_ssl-uoft-cs--cifar10.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"hf_ssl-uoft-cs--cifar10.yaml {message}.*: mend or delete it"):
        write_eval_results(tmp_path, [result()])
    assert path.read_text() == text


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_eval_results(tmp_path, [result(1)])
    path = tmp_path / ".eval_results" / "hf_ssl-uoft-cs--cifar10.yaml"
    before, whole = path.read_text(), type(path).write_text

    def half(path, text, **options):
        whole(path, text[: len(text) // 2], **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(type(path), "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_eval_results(tmp_path, [result(2)])
    assert path.read_text() == before


def test_same_numbers_as_in_the_model_index(tmp_path):
    """After several evaluations, some of them repeated; the date is that of the measurement, not of the writing."""
    (tmp_path / "run").mkdir()
    card = tmp_path / "run" / "README.md"
    card.write_text(CARD)
    runs = [of_knn(1, dataset_revision="5678ef"), of_linear(2), of_knn(3, seed=8), of_linear(4, rate=0.01)]
    for i, results in enumerate(runs):
        rows = record_evaluations(tmp_path / "run", results, "someone/digits")
        assert {row.date for row in rows[-2:]} == {today()}
        if i == 0:  # as if that had been long ago
            text = (tmp_path / "run" / "all_results.json").read_text()
            (tmp_path / "run" / "all_results.json").write_text(text.replace(rows[0].date, "2020-01-01"))
            rows = [replace(row, date="2020-01-01") for row in rows]
        add_to_card(card, results_of_model(rows, "run"), {})
    index = ModelCard.load(card).data.eval_results
    entries = entries_of(tmp_path / "run", "hf_ssl-someone--digits")
    assert {(e.dataset_id, e.value, e.dataset_revision, e.notes) for e in entries} == {
        (e.dataset_type, e.metric_value, e.dataset_revision, f"in percent, split test; {e.metric_args['protocol']}")
        for e in index
    }
    assert sorted(entry.value for entry in entries) == [1, 3, 4, 90, 90, 91]
    assert [entry.value for entry in entries if entry.date == "2020-01-01"] == [1, 90]


def test_dates_of_results(tmp_path):
    assert {row.date for row in evaluation_results(of_knn())} == {today()}
