"""The file of a method's authors that is to be converted: of this machine, or of the Hub."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.utils import HfUri, parse_hf_uri  # type: ignore[attr-defined]
from transformers.utils.hub import extract_commit_hash

from ..hub_errors import clear_errors


_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".t7", ".tar")
_NAME_ON_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*([@/].+)?")


@dataclass(frozen=True)
class CheckpointFile:
    """
    A file to be converted.

    Args:
        path (`Path`): Where it lies.
        name (`str`): Its name in public, without the folders of this machine.
        repo_id (`str`, *optional*): The repository of the Hub that it comes from.
        commit (`str`, *optional*): The commit that it is of there.
        url (`str`, *optional*): Address of its page.
    """

    path: Path
    name: str
    repo_id: str | None = None
    commit: str | None = None
    url: str | None = None


def find_checkpoint(name: str) -> CheckpointFile:
    """
    A file by its name; one of the Hub is downloaded, or taken from the cache.

    Args:
        name (`str`): A path, or, if there is no such file, a file of the Hub: `org/name/path/in/it`,
            `org/name@revision/path/in/it`, the same after `hf://`, or the address of its page.

    Returns:
        [`CheckpointFile`]

    Raises:
        `ValueError`: the name is that of a repository of the Hub, or of no file in it.
        [`~hf_ssl.hub_errors.HubError`]: the Hub does not give it.
    """
    path = Path(name).expanduser()
    is_address = name.startswith((constants.HF_PROTOCOL, "https://", "http://"))
    if not is_address and (path.exists() or not _NAME_ON_THE_HUB.fullmatch(name)):
        return CheckpointFile(path, path.name)
    uri = parse_hf_uri(name if is_address else constants.HF_PROTOCOL + name, endpoint=constants.ENDPOINT)
    what = f"{name} cannot be had." if is_address else f"There is no file {name} here, and the Hub does not give one."
    found, others = None, []
    with clear_errors(what, uri.id, uri.revision):
        try:
            if uri.path_in_repo:
                found = hf_hub_download(uri.id, uri.path_in_repo, repo_type=uri.type, revision=uri.revision)
        except RemoteEntryNotFoundError:
            pass
        if found is None:
            others = HfApi().list_repo_files(uri.id, repo_type=uri.type, revision=uri.revision)
    if found is None:
        names = ", ".join(sorted(other for other in others if PurePosixPath(other).suffix in _SUFFIXES))
        lacking = f"has no file {uri.path_in_repo}" if uri.path_in_repo else "is a repository: name a file in it"
        raise ValueError(
            f"{uri.id} {lacking}. It holds {f'these checkpoints: {names}' if names else 'no checkpoints'}."
        )
    commit = extract_commit_hash(found, None)
    page = HfUri(uri.type, uri.id, commit, uri.path_in_repo).to_url(endpoint="https://huggingface.co")
    return CheckpointFile(Path(found), uri.path_in_repo, uri.id, commit, page)


__all__ = ["CheckpointFile", "find_checkpoint"]
