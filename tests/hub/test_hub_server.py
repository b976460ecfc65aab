"""The test Hub answers the real client as the Hub does."""

import json
from pathlib import Path

import pytest

from ..hub_server import Hub, run_with_hub


OUTCOME = """
import json
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()

def outcome(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except HfHubHTTPError as error:
        return f"{error.response.status_code} {type(error).__name__}"
    return "done"

def commit(message, files, **kwargs):
    operations = [
        CommitOperationDelete(path) if content is None else CommitOperationAdd(path, content)
        for path, content in files.items()
    ]
    return api.create_commit("org/vit", operations, commit_message=message, **kwargs).oid
"""

WRITING = """
assert api.whoami()["name"] == "alice" and api.whoami()["orgs"][0]["name"] == "org"
api.create_repo("org/vit")
first = commit("First", {"config.json": b"{}", "model.safetensors": b"w" * 3000, "README.md": b"---\\nlicense: mit\\n---\\n"})
second = commit("Second", {"config.json": b"[]", "model.safetensors": b"w" * 3000, "sub/note.txt": b"note"})
api.create_tag("org/vit", tag="v1", revision=first)
api.create_branch("org/vit", branch="dev")
commit("Dev", {"dev.txt": b"dev"}, revision="dev")
commit("Third", {"sub/": None, "README.md": None}, parent_commit=second)
api.create_repo("alice/gone")
api.delete_repo("alice/gone")
print(json.dumps({
    "repository exists": outcome(api.create_repo, "org/vit"),
    "repository exists, and may": outcome(api.create_repo, "org/vit", exist_ok=True),
    "foreign namespace": outcome(api.create_repo, "bob/vit"),
    "late commit": outcome(commit, "Late", {"config.json": b"late"}, parent_commit=first),
    "nothing to delete": outcome(commit, "None", {"none.txt": None}),
    "tag exists": outcome(api.create_tag, "org/vit", tag="v1"),
    "deleted": outcome(api.model_info, "alice/gone"),
}))
try:
    commit("Bad card", {"README.md": b"---\\n[\\n---\\n"})
    raise AssertionError("a broken card was accepted")
except ValueError as error:
    assert "Invalid metadata" in str(error)
"""

READING = """
def read(path, revision):
    return Path(hf_hub_download("org/vit", path, revision=revision)).read_bytes()

refs = api.list_repo_refs("org/vit")
second = api.list_repo_refs("org/vit").branches[0].target_commit
assert {ref.name for ref in refs.branches} == {"main", "dev"} and [ref.name for ref in refs.tags] == ["v1"]
assert read("config.json", "v1") == b"{}" and read("config.json", "main") == b"[]" and read("dev.txt", "dev") == b"dev"
assert api.model_info("org/vit", revision="v1").card_data.license == "mit"
assert (Path(snapshot_download("org/vit")) / "model.safetensors").read_bytes() == b"w" * 3000
tree = {item.path: item for item in api.list_repo_tree("org/vit", revision="dev")}
assert set(tree) == {".gitattributes", "README.md", "config.json", "dev.txt", "model.safetensors", "sub"}
assert tree["model.safetensors"].lfs.size == 3000
paths = api.get_paths_info("org/vit", ["config.json", "sub", "none"], revision="dev")
assert [info.path for info in paths] == ["config.json", "sub"]
print(json.dumps({
    "no such file": outcome(hf_hub_download, "org/vit", "none.txt"),
    "no such revision": outcome(hf_hub_download, "org/vit", "config.json", revision="v9"),
    "no such revision, tree": outcome(lambda: list(api.list_repo_tree("org/vit", revision="v9"))),
}))
"""

VISIBILITY = """
print(json.dumps({
    "private": outcome(hf_hub_download, "org/secret", "config.json"),
    "private, description": outcome(api.model_info, "org/secret"),
    "missing": outcome(api.model_info, "org/none"),
    "gated": outcome(hf_hub_download, "org/gated", "config.json"),
    "gated, description": outcome(api.model_info, "org/gated"),
    "write": outcome(api.upload_file, repo_id="org/open", path_or_fileobj=b"x", path_in_repo="x.txt"),
}))
"""


def outcomes(hub: Hub, code: str, home: Path, token: str | None = None) -> dict[str, str]:
    return json.loads(run_with_hub(hub, OUTCOME + code, home, token).stdout)


def test_writing(hub: Hub, tmp_path: Path) -> None:
    """Commits are atomic and leave out what did not change; clashes are refused."""
    assert outcomes(hub, WRITING, tmp_path, hub.tokens["alice"]) == {
        "repository exists": "409 HfHubHTTPError",
        "repository exists, and may": "done",
        "foreign namespace": "403 HfHubHTTPError",
        "late commit": "412 HfHubHTTPError",
        "nothing to delete": "404 RemoteEntryNotFoundError",
        "tag exists": "409 HfHubHTTPError",
        "deleted": "404 RepositoryNotFoundError",
    }
    repository = hub.repository("org/vit")
    first, second, third = repository.history()
    assert [commit.message for commit in (first, second, third)] == ["First", "Second", "Third"]
    assert second.operations == (("file", "config.json"), ("file", "sub/note.txt"))
    assert len(hub.uploads) == 1, "the same weights were sent twice"
    assert repository.paths() == {"config.json", "model.safetensors"}
    assert repository.paths("dev") == repository.paths(second.sha) | {"dev.txt"}
    assert repository.tags == {"v1": first.sha} and repository.read("config.json", "v1") == b"{}"
    assert first.author == "alice"

    assert outcomes(hub, READING, tmp_path / "reader") == {
        "no such file": "404 RemoteEntryNotFoundError",
        "no such revision": "404 RevisionNotFoundError",
        "no such revision, tree": "404 RevisionNotFoundError",
    }


# In the order of VISIBILITY: private (twice), missing, gated (twice), writing.
@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("alice", ["done", "done", "404 RepositoryNotFoundError", "done", "done", "done"]),
        ("reader", ["done", "done", "404 RepositoryNotFoundError", "done", "done", "403 HfHubHTTPError"]),
        ("bob", [*["404 RepositoryNotFoundError"] * 3, "403 GatedRepoError", "done", "403 HfHubHTTPError"]),
        ("stranger", [*["401 RepositoryNotFoundError"] * 3, "401 GatedRepoError", "done", "401 HfHubHTTPError"]),
        ("wrong token", ["401 HfHubHTTPError"] * 6),
    ],
)
def test_visibility(hub: Hub, tmp_path: Path, who: str, expected: list[str]) -> None:
    """Private repositories exist for their owners, gated ones open for those who accepted the terms."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for name, options in {"secret": {"private": True}, "gated": {"gated": "auto"}, "open": {}}.items():
        hub.create_repository(f"org/{name}", folder=tmp_path / "model", **options)
    token = {"stranger": None, "wrong token": "hf_" + "x" * 34}.get(who, hub.tokens.get(who))
    assert list(outcomes(hub, VISIBILITY, tmp_path / "home", token).values()) == expected


def test_terms_and_interruptions(hub: Hub, tmp_path: Path) -> None:
    """Who accepted the terms reads a gated repository; a test can refuse any request."""
    hub.create_repository("org/gated", folder=Path(__file__).parent, gated="manual").granted.add("bob")
    code = f"print(json.dumps({{'read': outcome(hf_hub_download, 'org/gated', {Path(__file__).name!r})}}))"
    assert outcomes(hub, code, tmp_path, hub.tokens["bob"]) == {"read": "done"}
    hub.before_request = lambda method, path: (429, "Too many") if path.startswith("/api/models") else None
    code = "print(json.dumps({'describe': outcome(api.model_info, 'org/gated')}))"
    assert outcomes(hub, code, tmp_path, hub.tokens["bob"]) == {"describe": "429 HfHubHTTPError"}
    assert ("GET", "/api/models/org/gated", 429) in hub.requests
