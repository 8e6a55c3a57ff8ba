"""The local server of the Hub's protocol, asked over plain HTTP: what the real clients rely on in `test_hub`."""

import hashlib
import http.client
import json

import pytest
from hub_server import TOKEN, HubServer


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def ask(hub, method, path, body=None, token=TOKEN):
    """Send one request; returns status, headers and body."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    content = body if isinstance(body, bytes) else json.dumps(body)
    connection.request(method, path, content, {"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    answer = response.status, dict(response.headers), response.read()
    connection.close()
    return answer


def commit(hub, *operations):
    lines = [{"key": "header", "value": {"summary": "change"}}, *operations]
    return ask(hub, "POST", "/api/models/me/x/commit/main", "\n".join(map(json.dumps, lines)).encode())


def create(hub, **settings):
    return ask(hub, "POST", "/api/repos/create", {"name": "x", "organization": "me", **settings})


def test_errors_carry_the_code_that_clients_read(hub):
    """Assert that a missing repository, revision and entry differ in X-Error-Code, and that HEAD sends no body."""
    missing = ask(hub, "GET", "/api/models/me/x")
    assert missing[0] == 404
    assert missing[1]["X-Error-Code"] == "RepoNotFound"
    create(hub)
    assert ask(hub, "GET", "/api/models/me/x/revision/other")[1]["X-Error-Code"] == "RevisionNotFound"
    status, headers, body = ask(hub, "HEAD", "/me/x/resolve/main/none.txt")
    assert (status, headers["X-Error-Code"], body) == (404, "EntryNotFound", b"")
    assert len(headers["X-Repo-Commit"]) == 40


def test_writing_needs_the_token_and_reading_does_if_private(hub):
    """Assert that a wrong token cannot create, and cannot see a private repository."""
    assert ask(hub, "POST", "/api/repos/create", {"name": "x", "organization": "me"}, token="wrong")[0] == 401
    assert create(hub, visibility="private")[0] == 200
    assert create(hub)[0] == 409
    assert ask(hub, "GET", "/api/models/me/x", token="wrong")[0] == 401
    assert ask(hub, "GET", "/api/models/me/x")[0] == 200


def test_large_object_must_be_the_promised_one(hub):
    """Assert that content is stored only under its own SHA-256, and that a commit cannot name what was never sent."""
    create(hub)
    weights = b"weights"
    sha256 = hashlib.sha256(weights).hexdigest()
    promised = {"key": "lfsFile", "value": {"path": "a.safetensors", "oid": sha256}}
    assert ask(hub, "PUT", f"/large-objects/{sha256}", b"others")[0] == 400
    assert commit(hub, promised)[0] == 400
    assert ask(hub, "PUT", f"/large-objects/{sha256}", weights)[0] == 200
    assert commit(hub, promised)[0] == 200
    headers = ask(hub, "HEAD", "/me/x/resolve/main/a.safetensors")[1]
    assert headers["X-Linked-Etag"] == f'"{sha256}"'
    assert headers["X-Linked-Size"] == "7"


def test_branches_part_and_commits_stay(hub):
    """Assert that a commit on `main` leaves a branch and the commit before as they were."""
    create(hub)
    before = json.loads(ask(hub, "GET", "/api/models/me/x")[2])["sha"]
    assert ask(hub, "POST", "/api/models/me/x/branch/side", {})[0] == 200
    assert ask(hub, "POST", "/api/models/me/x/branch/side", {})[0] == 409
    commit(hub, {"key": "file", "value": {"path": "a/b.txt", "content": "aGVsbG8="}})
    assert hub.files("me/x")["a/b.txt"] == b"hello"
    assert list(hub.files("me/x", "side")) == list(hub.files("me/x", before)) == [".gitattributes"]
    # git's own name of a file that holds "hello": git hash-object
    tree = json.loads(ask(hub, "GET", "/api/models/me/x/tree/main?recursive=true")[2])
    assert tree[1] == {"type": "file", "path": "a/b.txt", "oid": "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", "size": 5}
