"""A folder goes to the Hub: in one commit, of what has changed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils.sha import git_hash

from ..hub_errors import LOG_IN, HubError, HubUnreachableError, clear_errors
from .model_card import UNKNOWN_LOCATION
from .published_files import is_replaced, published_files


@dataclass(frozen=True)
class Target:
    """
    A branch of a repository, to be written to.

    Args:
        repo_id (`str`): The repository.
        branch (`str`): The branch.
        made (`tuple[str, ...]`, *optional*): What was made for it, or would be in a dry run: repository, branch.
        head (`huggingface_hub.ModelInfo`, *optional*): Its newest commit; in a dry run, None of a repository to be made.
    """

    repo_id: str
    branch: str
    made: tuple[str, ...] = ()
    head: ModelInfo | None = None


@dataclass(frozen=True)
class PushReport:
    """
    What a push has done or, as a dry run, would do.

    Args:
        url (`str`): The page of the model.
        made (`tuple[str, ...]`): What was made: repository, branch, tag.
        uploaded (`tuple[str, ...]`): Files that are new there, or have changed.
        unchanged (`tuple[str, ...]`): Files that were there already.
        deleted (`tuple[str, ...]`): Files that were there, and are no longer in the folder.
        left_out (`tuple[str, ...]`): Files of the folder that do not belong on the Hub.
        dry_run (`bool`, *optional*, defaults to `False`): Whether nothing was written.
        not_compared (`str`, *optional*): Why it is not known what is there.
    """

    url: str
    made: tuple[str, ...]
    uploaded: tuple[str, ...]
    unchanged: tuple[str, ...]
    deleted: tuple[str, ...]
    left_out: tuple[str, ...]
    dry_run: bool = False
    not_compared: str | None = None

    def __str__(self) -> str:
        would_be = "would be " * self.dry_run
        listed = {
            f"{would_be}made": self.made,
            f"{would_be}uploaded": self.uploaded,
            "unchanged": self.unchanged,
            f"{would_be}deleted": self.deleted,
            "left out": self.left_out,
        }
        lines = [f"{self.url}{' (dry run: nothing is written)' * self.dry_run}"]
        if self.not_compared is not None:
            lines.append(f"What is there already is not known. {self.not_compared}")
        lines += [f"{title} ({len(names)}): {', '.join(names)}" for title, names in listed.items() if names]
        if not self.uploaded and not self.deleted:
            lines.append("Nothing has changed, so there is no new commit.")
        return "\n".join(lines)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    tag: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload by hf-ssl push",
    token: str | None = None,
    dry_run: bool = False,
) -> PushReport:
    """
    Put an encoder, a classifier or a conversion on the Hub: of its folder what [`published_files`] names, in one commit of
    what has changed.

    Args:
        folder (`str` or `Path`): The folder.
        repo_id (`str`): The repository, org/name, or name for one of your own. It is made if there is none.
        private (`bool`, *optional*): Whether a new repository is private; with True, one that is public is refused.
        tag (`str`, *optional*): A new tag, for the commit.
        revision (`str`, *optional*): The branch, made if there is none; unset, main.
        commit_message (`str`, *optional*): Message of the commit.
        token (`str`, *optional*): Unset, that of `hf auth login` or HF_TOKEN.
        dry_run (`bool`, *optional*, defaults to `False`): Check and compare, and write nothing.

    Returns:
        [`PushReport`]

    Raises:
        `ValueError`: something in the folder must not go to the Hub.
        [`~hf_ssl.hub_errors.HubError`]: the Hub does not take it; its files are as they were.
    """
    files = published_files(folder)
    try:
        target = open_repository(repo_id, private=private, revision=revision, tag=tag, token=token, dry_run=dry_run)
    except HubUnreachableError as error:
        if not dry_run:
            raise
        url = f"{constants.ENDPOINT}/{repo_id}"
        return PushReport(url, (), files.names, (), (), files.left_out, dry_run, not_compared=str(error))
    there = {} if target.head is None else {file.rfilename: file for file in target.head.siblings or ()}
    contents = {name: _content(files.folder / name, target.repo_id) for name in files.names}
    unchanged = tuple(name for name, content in contents.items() if name in there and _is_same(content, there[name]))
    report = PushReport(
        f"{constants.ENDPOINT}/{target.repo_id}",
        target.made + ((f"tag {tag}",) if tag else ()),
        uploaded=tuple(name for name in files.names if name not in unchanged),
        unchanged=unchanged,
        deleted=tuple(name for name in sorted(there) if is_replaced(name) and name not in files.names),
        left_out=files.left_out,
        dry_run=dry_run,
    )
    if not dry_run:
        operations = [
            *(CommitOperationAdd(name, contents[name]) for name in report.uploaded),
            *(CommitOperationDelete(name) for name in report.deleted),
        ]
        _commit(target, operations, commit_message, tag, token)
    return report


def open_repository(
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Target:
    """
    Find the repository and its branch, or make them; and find out whether a push could write there.

    Args:
        repo_id (`str`): As for [`push_folder`].
        private (`bool`, *optional*): As for [`push_folder`].
        revision (`str`, *optional*): As for [`push_folder`].
        tag (`str`, *optional*): As for [`push_folder`].
        token (`str`, *optional*): As for [`push_folder`].
        dry_run (`bool`, *optional*, defaults to `False`): Make nothing.

    Returns:
        [`Target`]

    Raises:
        [`~hf_ssl.hub_errors.HubError`]: a push would be refused.
        `ValueError`: the name is none of a repository.
    """
    api, branch = HfApi(token=token), revision or constants.DEFAULT_REVISION
    if token is None and get_token() is None and not constants.is_offline_mode():
        raise HubUnreachableError(f"{repo_id} cannot be pushed to. You are not logged in: {LOG_IN}.")
    with clear_errors(f"{repo_id} cannot be pushed to.", repo_id, revision):
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        made = _find_repository(api, repo_id, private, dry_run)
        if dry_run and made:
            return Target(repo_id, branch, made)
        branch_made = _find_branch(api, repo_id, branch, tag, dry_run)
        start = constants.DEFAULT_REVISION if dry_run and branch_made else branch
        # The Hub is asked how a file is to be sent, which it tells only those who may write, and nothing is sent.
        api.preupload_lfs_files(repo_id, [CommitOperationAdd(constants.REPOCARD_NAME, b"-")], revision=start)
        head = api.model_info(repo_id, revision=start, files_metadata=True)
    return Target(repo_id, branch, made + branch_made, head)


def _find_repository(api: HfApi, repo_id: str, private: bool | None, dry_run: bool) -> tuple[str, ...]:
    """Make the repository, if there is none; the name of what was made, or would be."""
    try:
        is_private = api.model_info(repo_id).private
    except RepositoryNotFoundError:
        if not dry_run:
            api.create_repo(repo_id, private=private)
        return (f"{'private ' if private else ''}repository {repo_id}",)
    if private and not is_private:
        raise HubError(
            f"{repo_id} is public, and only new repositories are made private: change that in its settings, or leave "
            "--private out."
        )
    return ()


def _find_branch(api: HfApi, repo_id: str, branch: str, tag: str | None, dry_run: bool) -> tuple[str, ...]:
    """Make the branch, if there is none; the name of what was made, or would be. The tag must not be there."""
    references = api.list_repo_refs(repo_id)
    tags = [reference.name for reference in references.tags]
    if tag in tags:
        raise HubError(f"{repo_id} has a tag {tag} already: choose another --tag.")
    if branch in [reference.name for reference in references.branches]:
        return ()
    if branch in tags or constants.REGEX_COMMIT_OID.fullmatch(branch):
        raise HubError(
            f"--revision {branch} is a tag or a commit of {repo_id}, and files are added to a branch: name one."
        )
    if not dry_run:
        api.create_branch(repo_id, branch=branch)
    return (f"branch {branch}",)


def _content(path: Path, repo_id: str) -> Path | bytes:
    """A file; of the card, which may not know yet where the model is to be found, the text that does."""
    if path.name != constants.REPOCARD_NAME:
        return path
    return path.read_text(encoding="utf-8").replace(UNKNOWN_LOCATION, repo_id).encode()


def _is_same(content: Path | bytes, there: RepoSibling) -> bool:
    if isinstance(content, bytes):
        return git_hash(content) == there.blob_id
    if there.lfs is None:
        return git_hash(content.read_bytes()) == there.blob_id
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256


def _commit(target: Target, operations: list[Any], message: str, tag: str | None, token: str | None) -> None:
    api, commit = HfApi(token=token), None if target.head is None else target.head.sha
    if operations:
        with clear_errors(f"{target.repo_id} was not changed.", target.repo_id, target.branch):
            # What is the same there, and what is left over, was found by a look at this parent.
            commit = api.create_commit(
                target.repo_id, operations, commit_message=message, revision=target.branch, parent_commit=commit
            ).oid
    if tag is not None:
        with clear_errors(f"{target.repo_id} has the files, but no tag {tag}.", target.repo_id, commit):
            api.create_tag(target.repo_id, tag=tag, revision=commit)


__all__ = ["PushReport", "Target", "open_repository", "push_folder"]
