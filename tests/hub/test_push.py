"""Pushing to a Hub: what is there afterwards, and what is said if it does not work."""

import sys
from dataclasses import replace

import pytest
from huggingface_hub import constants

from hf_ssl import cli
from hf_ssl.hub import PushReport, push_folder

from ..hub_server import File, Hub, Refused, as_client, hf_ssl, run_with_hub, serve_hub
from .test_published_files import make_model, write


SENT = ("config.json", "model.safetensors", "README.md", "figures/curves.png", "pretraining/model.safetensors")


def refuse(hub: Hub):
    """What happens between requests, by the name of the repository."""

    def before_request(method: str, path: str) -> Refused | None:
        if path == "/api/models/org/raced/commit/main":
            hub.repository("org/raced").commit("main", "bob", "In between", {"README.md": File(b"bob's")})
        elif path == "/api/models/org/clash":  # as if alice could not see it
            return 404, "Repository not found", "RepoNotFound"
        elif method == "POST" and path.startswith("/api/models/org/late/tag/"):
            return 500, "Internal error"
        return None

    return before_request


@pytest.fixture(scope="module")
def hub():
    with serve_hub() as served:
        yield served


def push(*arguments, **options) -> PushReport | str:
    """What a push reports, or why it was refused."""
    try:
        return push_folder(*arguments, **options)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module")
def reports(hub: Hub, tmp_path_factory) -> dict[str, PushReport | str]:
    """What alice's pushes report."""
    home = tmp_path_factory.mktemp("alice")
    model = make_model(home / "model")
    write(model, {"checkpoint-2/model.safetensors": 3, "runs/log": "/home/somebody"})
    hub.create_repository("org/clash")
    hub.create_repository("org/raced")
    hub.before_request = refuse(hub)
    found = {}
    with as_client(hub, home, hub.tokens["alice"]):
        found["dry"] = push(model, "org/vit", private=True, tag="v1", dry_run=True)
        found["first"] = push(model, "org/vit", private=True, tag="v1")
        found["again"] = push(model, "org/vit")
        found["tag alone"] = push(model, "org/vit", tag="v2")
        write(model, {"all_results.json": {"knn_top1": 51.0}})
        found["dry change"] = push(model, "org/vit", dry_run=True)
        found["change"] = push(model, "org/vit", commit_message="Measured again")
        found["dry branch"] = push(model, "org/vit", revision="dev", dry_run=True)
        found["branch"] = push(model, "org/vit", revision="dev", tag="v3")
        found["own"] = push(model, "mine")

        found["tag is there"] = push(model, "org/vit", tag="v1")
        found["to a tag"] = push(model, "org/vit", revision="v1")
        found["to a commit"] = push(model, "org/vit", revision="0" * 40)
        found["is public"] = push(model, "alice/mine", private=True)
        found["no name"] = push(model, "org/a/b")
        found["of others"] = push(model, "bob/vit")
        found["clash"] = push(model, "org/clash")
        found["raced"] = push(model, "org/raced")
        found["without its tag"] = push(model, "org/late", tag="v1")
    return found


def test_first_push(hub, reports):
    """One commit, of all that belongs there; the card says where the model is to be found."""
    repository = hub.repository("org/vit")
    first = repository.history()[0]
    assert repository.private and first.author == "alice" and first.message == "Upload by hf-ssl push"
    assert {path for _, path in first.operations} == set(reports["first"].uploaded) > set(SENT)
    assert len(first.operations) == 15 and repository.tags["v1"] == first.sha
    assert reports["first"].made == ("private repository org/vit", "tag v1")
    assert reports["first"].url == f"{hub.url}/org/vit"
    assert b'from_pretrained("org/vit")' in repository.read("README.md", "v1")
    assert replace(reports["dry"], dry_run=False) == reports["first"]


def test_unchanged_files_are_not_sent(hub, reports):
    """Neither in the commit, nor to the large-file storage; without a change there is no commit."""
    _, second = hub.repository("org/vit").history()
    assert second.operations == (("file", "all_results.json"),) and second.message == "Measured again"
    for title in ("dry change", "change"):
        assert reports[title].uploaded == ("all_results.json",) and len(reports[title].unchanged) == 14
    assert reports["again"].uploaded == reports["again"].made == ()
    assert len(hub.uploads) == len(set(hub.uploads)) == 4


def test_tags_and_branches(hub, reports):
    repository = hub.repository("org/vit")
    first, second = repository.history()
    assert repository.tags == {"v1": first.sha, "v2": first.sha, "v3": second.sha}
    assert reports["tag alone"].made == ("tag v2",) and reports["branch"].made == ("branch dev", "tag v3")
    assert repository.branches == {"main": second.sha, "dev": second.sha}  # which has the same files
    assert reports["dry branch"].made == ("branch dev",) and reports["dry branch"].uploaded == ()
    assert not hub.repository("alice/mine").private


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("tag is there", "org/vit has a tag v1 already: choose another --tag"),
        ("to a tag", "--revision v1 is a tag or a commit of org/vit"),
        ("to a commit", f"--revision {'0' * 40} is a tag or a commit of org/vit"),
        ("is public", "alice/mine is public, and only new repositories are made private"),
        ("no name", "org/a/b cannot be pushed to. org/a/b is neither a folder here nor an id of the Hub"),
        ("of others", "bob/vit cannot be pushed to. The Hub answers 403: You don't have the rights to create a model"),
        ("clash", "org/clash cannot be pushed to. The Hub answers 409: You already created this model repo"),
        ("raced", "org/raced was not changed. The Hub answers 412: A commit has happened since"),
        (
            "without its tag",
            "org/late has the files, but no tag v1. The Hub answers 500: Internal error. Try again later",
        ),
    ],
)
def test_refused(reports, title, message):
    assert message in reports[title] and len(reports[title]) < 300


def test_nothing_is_written_if_refused(hub, reports):
    assert ("model", "bob/vit") not in hub.repositories
    assert hub.repository("org/clash").history() == []
    assert [commit.message for commit in hub.repository("org/raced").history()] == ["In between"]
    assert len(hub.repository("org/late").history()) == 1


def test_what_is_left_over(hub, tmp_path):
    """Shards, pictures, the pretraining model and ONNX of an earlier model go in the same commit; what others wrote stays."""
    old = make_model(tmp_path / "old")
    shards = {f"model-0000{i}-of-00002.safetensors": i for i in (1, 2)}
    index = {"model.safetensors.index.json": {"weight_map": {name: name for name in shards}}}
    others = ["photo.png", "onnx/model_fp16.onnx", ".eval_results/mine.yaml", "NOTES.md"]
    write(old, {**shards, **index, "figures/map.png": b"old", **dict.fromkeys(others, "theirs")})
    (old / "model.safetensors").unlink()
    repository = hub.create_repository("org/other", folder=old)
    new = make_model(tmp_path / "new")
    for name in ("onnx/model.onnx", "evaluation.md", *sorted(p.relative_to(new) for p in new.glob("pretraining/*"))):
        (new / name).unlink()
    with as_client(hub, tmp_path, hub.tokens["alice"]):
        report = push_folder(new, "org/other")
    gone = {*shards, *index, "figures/map.png", "onnx/model.onnx", "evaluation.md"}
    gone |= {f"pretraining/{name}" for name in ("config.json", "model.safetensors", "views.json")}
    assert set(report.deleted) == gone
    (_, commit) = repository.history()
    assert {path for key, path in commit.operations if key == "deletedFile"} == gone
    assert repository.paths() >= {*others, "model.safetensors", "LICENSE"} and not repository.paths() & gone


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("bob", "The Hub answers 403: You don't have the rights to"),
        ("reader", "The Hub answers 403: You don't have the rights to"),
        ("wrong", "The Hub does not know your token, or there is none: log in"),
        ("nobody", "You are not logged in: log in with `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_who_may_not_push(hub, tmp_path, who, reason):
    """It is known before anything is sent, by a dry run too; the folder is checked without an account as well."""
    model = make_model(tmp_path / "model")
    for name, private in (("open", False), ("secret", True)):
        hub.create_repository(f"org/{name}", private=private)
    token = {"wrong": "hf_" + "x" * 34, "nobody": None}.get(who, hub.tokens.get(who))
    sent = len(hub.uploads)
    with as_client(hub, tmp_path, token):
        for name in ("new", "open", "secret"):
            assert reason in push(model, f"org/{name}")
        tried = push(model, "org/open", dry_run=True)
    assert reason in str(tried) and isinstance(tried, PushReport) == (who == "nobody")
    assert ("model", "org/new") not in hub.repositories and hub.repository("org/open").history() == []
    assert len(hub.uploads) == sent


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["hf-ssl", *map(str, arguments)])
    cli.main()


def test_command(hub, tmp_path, monkeypatch, capsys):
    """`hf-ssl push` prints what it has done, or in a sentence what is wrong."""
    model = make_model(tmp_path / "model")
    flags = ["--private", "--tag", "v1", "--revision", "dev", "--commit_message", "Mine"]
    done = run_with_hub(hub, hf_ssl("push", "model", "alice/command", *flags), tmp_path, hub.tokens["alice"])
    url, made, uploaded = done.stdout.splitlines()
    assert url == f"{hub.url}/alice/command"
    assert made == "made (3): private repository alice/command, branch dev, tag v1"
    assert uploaded.startswith("uploaded (15): .eval_results/hf_ssl-digits.yaml, LICENSE, README.md, ")
    repository = hub.repository("alice/command")
    assert repository.history() == [] and repository.history("dev")[0].message == "Mine"

    with as_client(hub, tmp_path, hub.tokens["alice"]):
        with pytest.raises(SystemExit, match="bob/command cannot be pushed to. The Hub answers 403"):
            command(monkeypatch, "push", model, "bob/command")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(SystemExit, match="org/x cannot be pushed to. http://127.0.0.1:9 cannot be reached"):
            command(monkeypatch, "push", model, "org/x")
        (model / "README.md").unlink()
        with pytest.raises(SystemExit, match="does not hold a whole model: README.md missing"):
            command(monkeypatch, "push", model, "org/x")
    assert capsys.readouterr().out == ""


RUN = ["--method", "relvit", "--backbone", "vit-micro", "--max_steps", "2", "--knn_bank_samples", "100"]
RUN += ["--knn_query_samples", "20", "--per_device_train_batch_size", "16", "--validation_samples", "0"]
BEST = ["--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1"]
BEST += ["--load_best_model_at_end", "true", "--metric_for_best_model", "knn_top1"]


@pytest.mark.parametrize("name", ["bob/digits", "org/open", "a/b/c"])
def test_a_run_that_could_not_push_does_not_begin(hub, tmp_path, monkeypatch, name):
    """A repository that everybody may read is not one that everybody may write to."""
    hub.create_repository("org/open")
    flags = [*RUN, "--output_dir", tmp_path / "run", "--push_to_hub", "true", "--hub_model_id", name]
    refused = pytest.raises((SystemExit, ValueError), match=f"{name} cannot be pushed to")
    with as_client(hub, tmp_path, hub.tokens["alice" if name == "bob/digits" else "bob"]), refused:
        command(monkeypatch, "pretrain", *flags)
    assert not (tmp_path / "run" / "config.json").exists() and ("model", "bob/digits") not in hub.repositories


def test_a_push_that_fails_loses_nothing(hub, tmp_path, monkeypatch):
    """The folder is whole, and the message says how to push it; nothing was pushed in mid-run."""

    def before_request(method: str, path: str) -> Refused | None:
        return (403, "Private storage limit reached") if path == "/api/models/org/run/commit/main" else None

    folder = tmp_path / "run"
    flags = [
        "--output_dir",
        folder,
        "--push_to_hub",
        "true",
        "--hub_model_id",
        "org/run",
        "--hub_private_repo",
        "true",
    ]
    hub.before_request = before_request
    with as_client(hub, tmp_path, hub.tokens["alice"]):
        with pytest.raises(SystemExit) as caught:
            command(monkeypatch, "pretrain", *RUN, *flags, *BEST)
        hub.before_request = lambda method, path: None
        report = push_folder(folder, "org/run")
    reason, remedy = str(caught.value).splitlines()
    assert reason.startswith("org/run was not changed. The Hub answers 403: Private storage limit reached")
    assert remedy.endswith(f"To push it later: hf-ssl push {folder} org/run")
    (commit,) = hub.repository("org/run").history()
    assert {path for _, path in commit.operations} == set(report.uploaded) >= {"README.md", "pretraining/config.json"}
    assert report.left_out == ("checkpoint-1/", "checkpoint-2/") and hub.repository("org/run").private
    assert b'from_pretrained("org/run")' in hub.repository("org/run").read("README.md")
    # Trainer itself would write the path of the best checkpoint.
    assert str(tmp_path).encode() not in b"".join(file.content for file in commit.files.values())
