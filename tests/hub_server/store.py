"""What the test Hub remembers: people, repositories, their commits and files. None of it is written to disk."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property


ORGANIZATIONS = {"org": {"alice"}}
LARGE_SUFFIXES = (".safetensors", ".onnx", ".parquet", ".bin", ".pt", ".npz", ".tar", ".zip", ".png", ".jpg", ".webp")
LARGE_SIZE = 10 * 2**20  # larger files go to the large-file storage whatever their name


@dataclass(frozen=True)
class Account:
    """A person, and what the token that was sent allows."""

    name: str
    role: str = "write"

    @property
    def organizations(self) -> list[str]:
        return [name for name, members in ORGANIZATIONS.items() if self.name in members]

    def belongs_to(self, namespace: str) -> bool:
        return namespace in (self.name, *self.organizations)


def make_token(word: str) -> str:
    """A token in the form of real ones: hf_ and 34 letters."""
    return "hf_" + (word * 34)[:34]


TOKENS = {
    make_token("alice"): Account("alice"),
    make_token("reader"): Account("alice", role="read"),
    make_token("bob"): Account("bob"),
}


def is_large(path: str, size: int) -> bool:
    """Whether a file belongs in the large-file storage."""
    return path.endswith(LARGE_SUFFIXES) or size > LARGE_SIZE


@dataclass(frozen=True)
class File:
    """A file of a commit; of a large one git keeps a pointer."""

    content: bytes
    large: bool = False

    @property
    def size(self) -> int:
        return len(self.content)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """The name git has for the file, or for its pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        stored = pointer.encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares its own file with."""
        return self.sha256 if self.large else self.blob_id


@dataclass(frozen=True)
class Commit:
    """
    A commit.

    Attributes:
        files: Everything that is there after it, by path.
        operations: What the client sent, such as `("file", "config.json")`, `("lfsFile", "model.safetensors")` or
            `("deletedFile", "old.json")`: files that did not change are not among them.
    """

    sha: str
    parent: str | None
    author: str
    message: str
    files: Mapping[str, File]
    operations: tuple[tuple[str, str], ...] = ()
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


class Repository:
    """A repository: its branches and tags, by name, point at commits."""

    def __init__(
        self, kind: str, repo_id: str, private: bool = False, gated: bool | str = False, sdk: str | None = None
    ):
        self.kind = kind
        self.repo_id = repo_id
        self.private = private
        self.gated = gated
        self.sdk = sdk
        self.granted: set[str] = set()  # who has accepted the terms of a gated repository
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commits: dict[str, Commit] = {}
        self.commit("main", self.namespace, "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n")})

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    def commit(
        self,
        branch: str,
        author: str,
        message: str,
        files: Mapping[str, File],
        operations: tuple[tuple[str, str], ...] = (),
    ) -> Commit:
        """Put a commit with exactly these files on top of a branch."""
        parent = self.branches.get(branch)
        # The number of commits is part of the name: the same files may be committed twice in the same second.
        content = [
            str(parent),
            message,
            str(len(self.commits)),
            *(f"{path} {file.oid}" for path, file in files.items()),
        ]
        sha = hashlib.sha1("\n".join(content).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, author, message, dict(files), operations)
        self.branches[branch] = sha
        return self.commits[sha]

    def find(self, revision: str = "main") -> Commit | None:
        """The commit that a branch, a tag, or the beginning of a commit's name means."""
        sha = self.branches.get(revision) or self.tags.get(revision)
        if sha is None and len(revision) >= 7:
            sha = next((name for name in self.commits if name.startswith(revision)), None)
        return None if sha is None else self.commits[sha]

    def read(self, path: str, revision: str = "main") -> bytes:
        """The content of a file."""
        commit = self.find(revision)
        assert commit is not None, f"{self.repo_id} has no revision {revision}"
        return commit.files[path].content

    def paths(self, revision: str = "main") -> set[str]:
        """The names of all files, without the `.gitattributes` that each repository begins with."""
        commit = self.find(revision)
        assert commit is not None, f"{self.repo_id} has no revision {revision}"
        return set(commit.files) - {".gitattributes"}

    def history(self, branch: str = "main") -> list[Commit]:
        """What was committed to a branch, the first commit first, without the one that each repository begins with."""
        commits = []
        commit = self.find(branch)
        while commit is not None and commit.parent is not None:
            commits.append(commit)
            commit = self.commits[commit.parent]
        return commits[::-1]
