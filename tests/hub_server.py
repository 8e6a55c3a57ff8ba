"""A small local server that speaks the model part of the Hub's protocol, so that tests can run the real clients.

Repositories live in memory the way git keeps them: a commit is a table from path to file that never changes, a branch
is a name for a commit. Weights travel as large files (LFS), which the server takes only if their SHA-256 is the
promised one. It shows what the clients do, not how huggingface.co itself behaves: one user, no pull requests, no
redirects to a content network, no large files in parts.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

USER = "me"
TOKEN = "hf_only_for_tests"
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()


@dataclass(frozen=True)
class Reply:
    """A body with its headers; anything that is not bytes is sent as JSON."""

    body: Any
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """An answer other than 200.

    `code` goes into the header X-Error-Code, by which the clients choose their exception; `commit` into X-Repo-Commit;
    `url` into the body, where a client reads the address of a repository that already exists.
    """

    def __init__(self, status: int, message: str, code: str = "", commit: str = "", url: str = ""):
        super().__init__(message)
        self.status = status
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.reply = Reply({"error": message, "url": url}, {name: value for name, value in headers.items() if value})


@dataclass(frozen=True)
class File:
    """One version of one file; `large` says that it is stored outside git, under its SHA-256."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        """The name of the content in large-file storage."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """The name git gives the file: that of the content, or of the few lines that point to a large one."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def content_id(self) -> str:
        """What clients compare with their own copy, and name their cached copy by."""
        return self.sha256 if self.large else self.blob_id


@dataclass
class Repository:
    """Commits by their id, and branches, each the id of its newest commit."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        """Make `files` the newest commit of `branch`; returns the commit's id."""
        tree = sorted((path, file.blob_id) for path, file in files.items())
        sha = hashlib.sha1(repr((len(self.commits), message, tree)).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        """The commit id that a branch name, or a commit id, stands for."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


class HubServer:
    """The hub: `with HubServer() as hub:` serves at `hub.endpoint`, and `hub.environment(home)` sends clients there.

    `requests` holds the method and path of every request so far, in order.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large_objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a client process: everything of it goes to this server and is cached under `home`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        return {
            **inherited,
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What `repo_id` holds at `revision`: content by path."""
        repository = self.repository(repo_id)
        return {path: file.content for path, file in repository.commits[repository.resolve(revision)].items()}

    def repository(self, repo_id: str, authorized: bool = True) -> Repository:
        """The repository, or the error the Hub gives for one that is not there or not to be seen."""
        found = self.repositories.get(repo_id)
        if found is None or (found.private and not authorized):
            raise HubError(404 if authorized else 401, f"Repository {repo_id} not found", "RepoNotFound")
        return found

    def answer(self, method: str, path: str, body: bytes, authorized: bool) -> Reply:
        """Find the route of a request and take it; one request at a time."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            for route_method, pattern, route in ROUTES:
                match = re.fullmatch(pattern, path.partition("?")[0])
                if match and method in route_method:
                    # The store of large objects takes signed addresses, not tokens.
                    if method == "POST" and not authorized:
                        raise HubError(401, "Invalid credentials in Authorization header")
                    return route(self, body, authorized, *(unquote(group) for group in match.groups()))
            raise HubError(404, f"This server does not know {method} {path}")


def _create_repository(hub: HubServer, body: bytes, authorized: bool) -> Reply:
    request = json.loads(body)
    repo_id = f"{request['organization'] or USER}/{request['name']}"
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repositories:
        raise HubError(409, "You already created this model repo", url=url)
    repository = Repository(private=request.get("visibility") == "private")
    repository.commit("main", {".gitattributes": File(GIT_ATTRIBUTES, large=False)}, "initial commit")
    hub.repositories[repo_id] = repository
    return Reply({"url": url, "name": repo_id})


def _validate_yaml(hub: HubServer, body: bytes, authorized: bool) -> Reply:
    has_metadata = re.match(r"---\n.+?\n---\n", json.loads(body)["content"], flags=re.DOTALL)
    warning = {"message": "empty or missing yaml metadata in repo card"}
    return Reply({"errors": [], "warnings": [] if has_metadata else [warning]})


def _create_branch(hub: HubServer, body: bytes, authorized: bool, repo_id: str, branch: str) -> Reply:
    repository = hub.repository(repo_id)
    if branch in repository.branches:
        raise HubError(409, f"Reference {branch} already exists")
    repository.branches[branch] = repository.resolve(json.loads(body).get("startingPoint", "main"))
    return Reply({})


def _preupload(hub: HubServer, body: bytes, authorized: bool, repo_id: str, revision: str) -> Reply:
    """Say of each file how it is to be sent, and what the branch holds in its place now."""
    repository = hub.repository(repo_id)
    present = repository.commits[repository.resolve(revision)]
    return Reply({"files": [_upload_mode(file["path"], present) for file in json.loads(body)["files"]]})


def _upload_mode(path: str, present: dict[str, File]) -> dict[str, Any]:
    mode = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE_SUFFIXES) else "regular", "shouldIgnore": False}
    return mode | ({"oid": present[path].content_id} if path in present else {})


def _large_objects_batch(hub: HubServer, body: bytes, authorized: bool, repo_id: str) -> Reply:
    """Give an address for each large object that is not here yet."""
    objects = [{"oid": entry["oid"], "size": entry["size"]} for entry in json.loads(body)["objects"]]
    for entry in objects:
        if entry["oid"] not in hub.large_objects:
            entry["actions"] = {"upload": {"href": f"{hub.endpoint}/large-objects/{entry['oid']}"}}
    return Reply({"transfer": "basic", "objects": objects})


def _put_large_object(hub: HubServer, body: bytes, authorized: bool, sha256: str) -> Reply:
    if hashlib.sha256(body).hexdigest() != sha256:
        raise HubError(400, f"The object sent is not {sha256}")
    hub.large_objects[sha256] = body
    return Reply({})


def _commit(hub: HubServer, body: bytes, authorized: bool, repo_id: str, branch: str) -> Reply:
    """Apply a commit: one JSON document a line, a header and then the operations."""
    repository = hub.repository(repo_id)
    repository.resolve(branch)
    header, *operations = [json.loads(line) for line in body.splitlines()]
    files = dict(repository.commits[repository.branches[branch]])
    for operation in operations:
        _apply(hub, files, operation["key"], operation["value"])
    sha = repository.commit(branch, files, header["value"]["summary"])
    return Reply({"success": True, "commitOid": sha, "commitUrl": f"{hub.endpoint}/{repo_id}/commit/{sha}"})


def _apply(hub: HubServer, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]), large=False)
    elif key == "lfsFile":
        if value["oid"] not in hub.large_objects:
            raise HubError(400, f"The large object of {path} was never sent")
        files[path] = File(hub.large_objects[value["oid"]], large=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    else:
        raise HubError(400, f"This server does not know the operation {key}")


def _model_info(hub: HubServer, body: bytes, authorized: bool, repo_id: str, revision: str = "main") -> Reply:
    repository = hub.repository(repo_id, authorized)
    sha = repository.resolve(revision)
    siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
    return Reply({"id": repo_id, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings})


def _tree(hub: HubServer, body: bytes, authorized: bool, repo_id: str, revision: str) -> Reply:
    """List all files; clients ask for the whole tree only."""
    repository = hub.repository(repo_id, authorized)
    files = repository.commits[repository.resolve(revision)]
    return Reply([_tree_entry(path, file) for path, file in sorted(files.items())])


def _tree_entry(path: str, file: File) -> dict[str, Any]:
    size = len(file.content)
    entry = {"type": "file", "path": path, "oid": file.blob_id, "size": size}
    return entry | ({"lfs": {"oid": file.sha256, "size": size, "pointerSize": 130}} if file.large else {})


def _resolve(hub: HubServer, body: bytes, authorized: bool, repo_id: str, revision: str, path: str) -> Reply:
    repository = hub.repository(repo_id, authorized)
    sha = repository.resolve(revision)
    file = repository.commits[sha].get(path)
    if file is None:
        raise HubError(404, "Entry not found", "EntryNotFound", commit=sha)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{file.blob_id}"'}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    return Reply(file.content, headers)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: Iterable[tuple[tuple[str, ...], str, Callable[..., Reply]]] = (
    (("POST",), "/api/repos/create", _create_repository),
    (("POST",), "/api/validate-yaml", _validate_yaml),
    (("POST",), f"/api/models/{REPO}/branch/([^/]+)", _create_branch),
    (("POST",), f"/api/models/{REPO}/preupload/([^/]+)", _preupload),
    (("POST",), f"/{REPO}.git/info/lfs/objects/batch", _large_objects_batch),
    (("PUT",), "/large-objects/([0-9a-f]{64})", _put_large_object),
    (("POST",), f"/api/models/{REPO}/commit/([^/]+)", _commit),
    (("GET",), f"/api/models/{REPO}", _model_info),
    (("GET",), f"/api/models/{REPO}/revision/([^/]+)", _model_info),
    (("GET",), f"/api/models/{REPO}/tree/([^/]+)", _tree),
    (("GET", "HEAD"), f"/{REPO}/resolve/([^/]+)/(.+)", _resolve),
)


class _Handler(BaseHTTPRequestHandler):
    """Turns HTTP into calls of `HubServer.answer` and back."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        try:
            reply, status = hub.answer(self.command, self.path, self._read_body(), authorized), 200
        except HubError as error:
            reply, status = error.reply, error.status
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: `HubServer.requests` keeps the record."""
