"""The few paths of the Hugging Face Hub that its own client calls to push a folder, on this machine."""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITER, READER, XET = "hf_writer_of_tests", "hf_reader_of_tests", "xet_of_tests"
LARGE = (".safetensors", ".gguf", "tokenizer.json")  # files that the hub takes as large ones


def digest(content: bytes) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """A repository: its files now, and its commits; of a file in the newer storage it has the sha256."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)  # the header of each
    ignored: tuple[str, ...] = ()  # by a .gitignore in it

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040d}"


class LocalHub:
    """Repositories, tokens and large files; `refusals` has the status of any request whose path has a word."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.num_parts = 0  # of large files in the newer storage
        self.asked: list[str] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                path = self.path.partition("?")[0]
                hub.asked.append(f"{self.command} {path}")
                token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
                status, said = hub.answer(self.command, path, token, body)
                content = json.dumps(said).encode()
                self.send_response(status)
                if status >= 400:
                    self.send_header("x-error-message", said["error"])
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Says nothing."""

        for method in ("GET", "POST", "PUT"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and content."""
        for word, (status, said) in self.refusals.items():
            if word in path:
                return status, {"error": said}
        if path.startswith("/large/") and method == "PUT":  # with the rights of its address
            self.large[path.removeprefix("/large/")] = body
            return 200, {}
        if path.startswith("/xet/") and token == XET:
            return self._store(path)
        if token not in (WRITER, READER):
            return 401, {"error": "Invalid username or password."}
        given = json.loads(body) if body and "/commit/" not in path else {}
        if path == "/api/whoami-v2":
            role = "write" if token == WRITER else "read"
            return 200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": role}}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(f"{given['organization']}/{given['name']}", given)
        name, _, rest = path.removeprefix("/api/models/").removeprefix("/").partition(".git/info/")
        if rest == "lfs/objects/batch":
            return 200, {"objects": [self._upload(each) for each in given["objects"]]}
        repository, at = re.fullmatch(r"([^/]+/[^/]+)(?:/(.+))?", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if (found := self.repositories.get(repository)) is None:
            return 404, {"error": "Repository not found"}
        if at == "preupload/main":
            return 200, {"files": [self._mode(found, each["path"]) for each in given["files"]]}
        if at == "commit/main":
            return self._commit(repository, found, [json.loads(line) for line in body.splitlines()])
        if at == "xet-write-token/main":
            return 200, {"accessToken": XET, "exp": int(time.time()) + 3600, "casUrl": f"{self.address}/xet"}
        siblings = [{"rfilename": each} for each in found.files]
        return 200, {"id": repository, "sha": found.sha, "private": found.private, "siblings": siblings}

    def _create(self, name: str, given: dict[str, Any]) -> tuple[int, Any]:
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
        files = {".gitattributes": b"*.safetensors filter=lfs"}
        self.repositories[name] = Repository(given.get("visibility") == "private" or bool(given.get("private")), files)
        return 200, {"url": f"{self.address}/{name}"}

    def _store(self, path: str) -> tuple[int, Any]:
        """The newer storage, which takes parts of files whose content nobody here puts together again."""
        for word, said in (("/xorbs/", {"was_inserted": True}), ("/v1/shards", {"result": 1})):
            if word in path:
                self.num_parts += word == "/xorbs/"
                return 200, said
        return 404, {"error": "Not found"}

    def _upload(self, file: dict[str, Any]) -> dict[str, Any]:
        return file | {"actions": {"upload": {"href": f"{self.address}/large/{file['oid']}"}}}

    def _mode(self, found: Repository, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": path.endswith(found.ignored or ("\0",))}

    def _commit(self, name: str, found: Repository, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, found.sha):
            return 412, {"error": "A commit has happened since."}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.large.get(value["oid"])
                assert content is not None or self.num_parts
                assert content is None or digest(content) == value["oid"]
                found.files[value["path"]] = value["oid"].encode() if content is None else content
            else:
                assert line["key"] == "deletedFile"
                del found.files[value["path"]]
        found.commits.append(header)
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{found.sha}", "commitOid": found.sha}


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A hub that answers within the block."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
