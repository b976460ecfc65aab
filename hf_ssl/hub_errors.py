"""What the Hub answers, in a sentence that says what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NO_WAY = (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.TransportError)


class HubError(OSError):
    """The Hub does not give something, or does not take it."""


class HubUnreachableError(HubError):
    """The Hub cannot be reached, or must not be asked."""


@contextmanager
def clear_errors(what: str, name: str, revision: str | None = None) -> Iterator[None]:
    """
    Say in a sentence or two what huggingface_hub, and transformers on top of it, say in a page.

    Args:
        what (`str`): What did not work, as the beginning of the message: "org/name cannot be loaded."
        name (`str`): The model: an id of the Hub, or a folder.
        revision (`str`, *optional*): Branch, tag or commit that was asked for.

    Raises:
        [`HubError`]: the Hub is the reason; [`HubUnreachableError`]: there is no way to it.
        `ValueError`: something else is the reason, or the name is none of the Hub's.
    """
    try:
        yield
    except HubError:
        raise
    except (OSError, ValueError, httpx2.HTTPError, RuntimeError) as error:  # the last, of uploads that break off
        causes = list(_causes(error))
        for cause in causes:
            # The messages take the place of what they were raised from.
            if isinstance(cause, HfHubHTTPError):
                raise HubError(f"{what} {_in_words(cause, name, revision)}") from None
            if isinstance(cause, HFValidationError):
                raise ValueError(
                    f"{what} {name} is neither a folder here nor an id of the Hub, such as org/name."
                ) from None
        if any(isinstance(cause, _NO_WAY) for cause in causes):
            cached = any(isinstance(cause, LocalEntryNotFoundError) for cause in causes)
            lacking = " What is needed is not in the cache of this machine." * cached
            raise HubUnreachableError(f"{what} {_no_way()}{lacking}") from None
        if isinstance(error, RuntimeError):  # not of the Hub
            raise
        raise ValueError(f"{what} {error}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _no_way() -> str:
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it."
    return f"{constants.ENDPOINT} cannot be reached: check the connection."


def _in_words(error: HfHubHTTPError, name: str, revision: str | None) -> str:
    """What the Hub answers, and what to do."""
    status, is_logged_in = error.response.status_code, get_token() is not None
    if isinstance(error, GatedRepoError):
        account = "with the account of your token" if is_logged_in else f"and {LOG_IN}"
        return f"It is gated: accept its terms at {constants.ENDPOINT}/{name} {account}."
    if isinstance(error, RepositoryNotFoundError):
        account = "the account of your token may not read it" if is_logged_in else f"to read it, {LOG_IN}"
        return (
            f"There is no folder of this name here, and the Hub shows no repository of this name: check it. If it is "
            f"private, {account}."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"It has no branch, tag or commit {revision or 'main'}{_references(name)}."
    if isinstance(error, RemoteEntryNotFoundError):
        file = error.response.request.url.path.partition("/resolve/")[2].partition("/")[2]  # after the revision
        return f"It has no {file or 'such file'}."
    if isinstance(error, DisabledRepoError):
        return "The Hub has disabled it."
    if status == 401:
        return f"The Hub does not know your token, or there is none: {LOG_IN}."
    answer = error.server_message or str(error).strip()
    remedies = {
        403: f"Use a token that may write there ({LOG_IN}), or choose another name.",
        409: "The name is taken: choose another.",
        412: "Somebody else has changed it in the meantime: look at what was done, and try again.",
        429: "The Hub is asked too often: try again later.",
    }
    remedy = "Try again later." if status >= 500 else remedies.get(status, "")
    return f"The Hub answers {status}: {answer.rstrip('.')}. {remedy}".rstrip()


def _references(name: str) -> str:
    """The branches and tags that there are, if the Hub tells them."""
    try:
        found = HfApi().list_repo_refs(name)
    except (OSError, httpx2.HTTPError):
        return ""
    return f"; there are {', '.join(reference.name for reference in [*found.branches, *found.tags])}"


__all__ = ["LOG_IN", "HubError", "HubUnreachableError", "clear_errors"]
