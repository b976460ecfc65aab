"""The endpoints of the test Hub: what huggingface_hub, transformers and datasets ask for."""

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .store import TOKENS, Account, Commit, File, Repository, is_large


if TYPE_CHECKING:
    from . import Hub


class Refusal(Exception):
    """An answer that is an error. `code` is what huggingface_hub tells its exceptions apart by."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def response(self) -> Response:
        headers = {"X-Error-Message": self.message} | ({"X-Error-Code": self.code} if self.code else {})
        return JSONResponse({"error": self.message}, self.status, headers)


# Who asks, and for what.


def hub_of(request: Request) -> "Hub":
    return request.app.state.hub


def base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def account_of(request: Request) -> Account | None:
    """Who sent the request; nobody without a token. A wrong token is refused wherever it is sent."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    account = TOKENS.get(header.removeprefix("Bearer "))
    if account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return account


def check_writer(account: Account | None, namespace: str, what: str) -> Account:
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    if account.role != "write" or not account.belongs_to(namespace):
        raise Refusal(403, f'You don\'t have the rights to {what} under the namespace "{namespace}"')
    return account


def find_repository(request: Request, kind: str, repo_id: str) -> Repository:
    """The repository, if whoever asks may know of it: a private one is to strangers as if it did not exist."""
    account = account_of(request)
    repository = hub_of(request).repositories.get((kind, repo_id))
    hidden = repository is not None and repository.private
    if repository is None or (hidden and not (account and account.belongs_to(repository.namespace))):
        raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
    return repository


def named_repository(request: Request) -> Repository:
    """The repository in the address: `models/alice/vit`, or `alice/vit` alone for a model."""
    parts = request.path_params
    kind = parts.get("kind", "models").removesuffix("s")
    return find_repository(request, kind, f"{parts['namespace']}/{parts['name']}")


def writable_repository(request: Request) -> tuple[Repository, Account]:
    repository = named_repository(request)
    return repository, check_writer(account_of(request), repository.namespace, "write")


def check_access(request: Request, repository: Repository) -> None:
    """The files of a gated repository are for those who accepted its terms; its names and sizes are for all."""
    account = account_of(request)
    allowed = account and (account.belongs_to(repository.namespace) or account.name in repository.granted)
    if repository.gated and not allowed:
        message = f"Access to model {repository.repo_id} is restricted and you are not in the authorized list."
        raise Refusal(403 if account else 401, message, "GatedRepo")


def find_commit(repository: Repository, revision: str) -> Commit:
    commit = repository.find(revision)
    if commit is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def named_commit(request: Request) -> Commit:
    return find_commit(named_repository(request), request.path_params.get("revision", "main"))


# Accounts and repositories.


async def who_am_i(request: Request) -> Response:
    account = account_of(request)
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}}
    organizations = [
        {"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in account.organizations
    ]
    user = {"type": "user", "id": account.name, "name": account.name, "fullname": account.name}
    return JSONResponse(user | {"orgs": organizations, "auth": token})


async def create_repository(request: Request) -> Response:
    asked = await request.json()
    account = account_of(request)
    kind = asked.get("type") or "model"
    namespace = asked.get("organization") or (account.name if account else "")
    check_writer(account, namespace, f"create a {kind}")
    repo_id = f"{namespace}/{asked['name']}"
    url = f"{base_url(request)}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    repositories = hub_of(request).repositories
    if (kind, repo_id) in repositories:
        return JSONResponse({"error": f"You already created this {kind} repo", "url": url}, 409)
    private = asked.get("visibility") == "private"
    repositories[kind, repo_id] = Repository(kind, repo_id, private=private, sdk=asked.get("sdk"))
    return JSONResponse({"url": url, "name": repo_id})


async def delete_repository(request: Request) -> Response:
    asked = await request.json()
    account = account_of(request)
    namespace = asked.get("organization") or (account.name if account else "")
    repository = find_repository(request, asked.get("type") or "model", f"{namespace}/{asked['name']}")
    check_writer(account, repository.namespace, "delete")
    del hub_of(request).repositories[repository.kind, repository.repo_id]
    return JSONResponse({})


async def change_settings(request: Request) -> Response:
    repository, _ = writable_repository(request)
    asked = await request.json()
    repository.gated = asked.get("gated", repository.gated)
    if "visibility" in asked:
        repository.private = asked["visibility"] == "private"
    return JSONResponse({})


def card_metadata(commit: Commit) -> dict[str, Any]:
    """The yaml between the first two lines of dashes of README.md."""
    card = commit.files.get("README.md", File(b"")).content.decode()
    return yaml.safe_load(card.split("---\n")[1]) or {} if card.startswith("---\n") else {}


def describe(repository: Repository, commit: Commit, with_blobs: bool = False) -> dict[str, Any]:
    card = card_metadata(commit)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    if with_blobs:
        for sibling in siblings:
            sibling |= describe_file(sibling["rfilename"], commit.files[sibling["rfilename"]], id_name="blobId")
    return {
        "_id": "0" * 24,
        "id": repository.repo_id,
        "author": repository.namespace,
        "sha": commit.sha,
        "createdAt": next(iter(repository.commits.values())).date,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags", []),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "sdk": repository.sdk,
        "siblings": siblings,
    }


async def repository_info(request: Request) -> Response:
    repository = named_repository(request)
    return JSONResponse(describe(repository, named_commit(request), with_blobs="blobs" in request.query_params))


async def list_repositories(request: Request) -> Response:
    account = account_of(request)
    visible = [
        repository
        for repository in hub_of(request).repositories.values()
        if f"{repository.kind}s" == request.path_params["kind"]
        and (not repository.private or (account and account.belongs_to(repository.namespace)))
    ]
    return JSONResponse([describe(repository, find_commit(repository, "main")) for repository in visible])


# Branches and tags.


async def list_references(request: Request) -> Response:
    repository = named_repository(request)

    def listed(references: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in references.items()
        ]

    branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
    return JSONResponse({"branches": branches, "tags": tags, "converts": []})


async def create_branch(request: Request) -> Response:
    repository, _ = writable_repository(request)
    branch = request.path_params["branch"]
    asked = json.loads(await request.body() or b"{}")
    if branch in repository.branches:
        raise Refusal(409, f"Reference already exists: {branch}")
    repository.branches[branch] = find_commit(repository, asked.get("startingPoint", "main")).sha
    return JSONResponse({})


async def create_tag(request: Request) -> Response:
    repository, _ = writable_repository(request)
    tag = (await request.json())["tag"]
    if tag in repository.tags:
        raise Refusal(409, f"Tag reference exists already: {tag}")
    repository.tags[tag] = find_commit(repository, request.path_params["revision"]).sha
    return JSONResponse({})


# Writing files: the client asks how each is to be sent, sends the large ones, and then the commit.


async def validate_yaml(request: Request) -> Response:
    card = (await request.json())["content"]
    try:
        metadata = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}
        errors = [] if isinstance(metadata, dict) else [{"message": "The metadata is not a mapping."}]
    except yaml.YAMLError as error:
        errors = [{"message": str(error)}]
    return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)


async def prepare_upload(request: Request) -> Response:
    repository, _ = writable_repository(request)
    files = find_commit(repository, request.path_params["revision"]).files
    asked = (await request.json())["files"]
    answers = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if is_large(file["path"], file["size"]) else "regular",
            "shouldIgnore": False,
            "oid": files[file["path"]].oid if file["path"] in files else None,
        }
        for file in asked
    ]
    return JSONResponse({"files": answers})


async def prepare_large_files(request: Request) -> Response:
    writable_repository(request)
    stored = hub_of(request).large_files
    objects = []
    for asked in (await request.json())["objects"]:
        answer = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in stored:
            answer["actions"] = {"upload": {"href": f"{base_url(request)}/large-files/{asked['oid']}"}}
        objects.append(answer)
    return JSONResponse({"transfer": "basic", "objects": objects})


async def receive_large_file(request: Request) -> Response:
    content, sha256 = await request.body(), request.path_params["sha256"]
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Refusal(400, "The content is not what its name says.")
    hub = hub_of(request)
    hub.large_files[sha256] = content
    hub.uploads.append(sha256)
    return Response()


def apply_operation(hub: "Hub", files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """Change `files` as one line of a commit says."""
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in hub.large_files:
            raise Refusal(400, f"The large file {path} was not uploaded.")
        files[path] = File(hub.large_files[value["oid"]], large=True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [path] if key == "deletedFile" else [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not gone or gone[0] not in files:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise Refusal(400, f"Unknown operation: {key}")


async def receive_commit(request: Request) -> Response:
    repository, account = writable_repository(request)
    branch = request.path_params["revision"]
    if branch not in repository.branches:
        raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    head = find_commit(repository, branch)
    header, *lines = (json.loads(line) for line in (await request.body()).splitlines())
    if header["value"].get("parentCommit", head.sha) != head.sha:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines:
        apply_operation(hub_of(request), files, line["key"], line["value"])
    operations = tuple((line["key"], line["value"]["path"]) for line in lines)
    commit = repository.commit(branch, account.name, header["value"]["summary"], files, operations)
    url = f"{base_url(request)}/{repository.repo_id}/commit/{commit.sha}"
    return JSONResponse({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


# Reading files.


def describe_file(path: str, file: File, id_name: str = "oid") -> dict[str, Any]:
    described: dict[str, Any] = {"type": "file", "path": path, "size": file.size, id_name: file.blob_id}
    if file.large:
        described["lfs"] = {"oid": file.sha256, "sha256": file.sha256, "size": file.size, "pointerSize": 134}
    return described


def describe_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


async def list_tree(request: Request) -> Response:
    files = named_commit(request).files
    folder = request.path_params.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
    folders: dict[str, None] = {}  # in order, each once
    listed = []
    for path, file in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        depth = len(parts) - 1 if recursive else min(len(parts) - 1, 1)
        folders |= dict.fromkeys(prefix + "/".join(parts[: count + 1]) for count in range(depth))
        if recursive or len(parts) == 1:
            listed.append(describe_file(path, file))
    if folder and not listed and not folders:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    return JSONResponse([describe_folder(path) for path in folders] + listed)


async def describe_paths(request: Request) -> Response:
    files = named_commit(request).files
    if "json" in request.headers.get("content-type", ""):
        asked = (await request.json())["paths"]
    else:
        asked = parse_qs((await request.body()).decode()).get("paths", [])
    described = []
    for path in asked:
        if path in files:
            described.append(describe_file(path, files[path]))
        elif any(name.startswith(f"{path}/") for name in files):
            described.append(describe_folder(path))
    return JSONResponse(described)


def cut_range(content: bytes, header: str | None) -> tuple[bytes, int, dict[str, str]]:
    """The part of a file that was asked for, with its status and headers: downloads are resumed in the middle."""
    if header is None:
        return content, 200, {}
    first, _, last = header.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last), len(content) - 1) if last else len(content) - 1
    if start >= len(content):
        return b"", 416, {"Content-Range": f"bytes */{len(content)}"}
    return content[start : end + 1], 206, {"Content-Range": f"bytes {start}-{end}/{len(content)}"}


async def send_file(request: Request) -> Response:
    repository = named_repository(request)
    check_access(request, repository)
    commit = named_commit(request)
    file = commit.files.get(request.path_params["path"])
    if file is None:
        missing = Refusal(404, "Entry not found", "EntryNotFound").response()
        missing.headers["X-Repo-Commit"] = commit.sha
        return missing
    headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if file.large:
        headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(file.size)})
    content, status, range_headers = cut_range(file.content, request.headers.get("range"))
    return Response(content, status, headers | range_headers, media_type="application/octet-stream")


# All of it.


async def no_harnesses(request: Request) -> Response:
    """The client asks for a list of programs that may call it; there is none here."""
    return JSONResponse({})


def routes() -> list[Route]:
    repository = "/api/{kind}/{namespace}/{name}"
    return [
        Route("/api/agent-harnesses", no_harnesses),
        Route("/api/whoami-v2", who_am_i),
        Route("/api/validate-yaml", validate_yaml, methods=["POST"]),
        Route("/api/repos/create", create_repository, methods=["POST"]),
        Route("/api/repos/delete", delete_repository, methods=["DELETE"]),
        Route("/api/{kind}", list_repositories),
        Route(repository, repository_info),
        Route(repository + "/revision/{revision}", repository_info),
        Route(repository + "/settings", change_settings, methods=["PUT"]),
        Route(repository + "/refs", list_references),
        Route(repository + "/branch/{branch}", create_branch, methods=["POST"]),
        Route(repository + "/tag/{revision}", create_tag, methods=["POST"]),
        Route(repository + "/preupload/{revision}", prepare_upload, methods=["POST"]),
        Route(repository + "/commit/{revision}", receive_commit, methods=["POST"]),
        Route(repository + "/tree/{revision}", list_tree),
        Route(repository + "/tree/{revision}/{path:path}", list_tree),
        Route(repository + "/paths-info/{revision}", describe_paths, methods=["POST"]),
        Route("/large-files/{sha256}", receive_large_file, methods=["PUT"]),
        Route("/{namespace}/{name}.git/info/lfs/objects/batch", prepare_large_files, methods=["POST"]),
        Route("/{kind}/{namespace}/{name}.git/info/lfs/objects/batch", prepare_large_files, methods=["POST"]),
        Route("/{namespace}/{name}/resolve/{revision}/{path:path}", send_file, methods=["GET", "HEAD"]),
        Route("/{kind}/{namespace}/{name}/resolve/{revision}/{path:path}", send_file, methods=["GET", "HEAD"]),
    ]


async def observe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Write every request down; a test may come between."""
    hub = hub_of(request)
    answer = hub.before_request(request.method, request.url.path)
    response = await call_next(request) if answer is None else Refusal(*answer).response()
    hub.requests.append((request.method, request.url.path, response.status_code))
    return response


async def refuse(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal.response()


def make_app(hub: "Hub") -> Starlette:
    """
    The server of a Hub.

    Args:
        hub ([`Hub`]): What it answers from, and writes into.

    Returns:
        `starlette.applications.Starlette`.
    """
    app = Starlette(
        routes=routes(),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=observe)],
        exception_handlers={Refusal: refuse},
    )
    app.state.hub = hub
    return app
