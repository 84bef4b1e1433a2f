"""A Hub on this machine: the part of huggingface_hub's HTTP interface that uploads and downloads use."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0" * 39 + "1"


class LocalHub(ThreadingHTTPServer):
    """Attributes: repos: "user/name" → {file: content}. refusal: (status, error code) of every answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.refusal: tuple[int, str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *words: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self) -> bool:
        if self.server.refusal is not None:
            status, code = self.server.refusal
            self.answer(status, json.dumps({"error": code}).encode(), X_Error_Code=code)
        return self.server.refusal is not None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused():
            return
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer(200, json.dumps({"files": files}).encode())
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repos[repo][line["value"]["path"]] = content
            url = f"{self.server.address}/{repo}/commit/{COMMIT}"
            self.answer(200, json.dumps({"commitOid": COMMIT, "commitUrl": url}).encode())
        else:
            self.answer(200, b'{"status": "ok"}')

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if repo in self.server.repos else 200
        self.server.repos.setdefault(repo, {})
        self.answer(status, json.dumps({"url": f"{self.server.address}/{repo}"}).encode())

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.refused():
            return
        if path.startswith("/api/models/"):
            repo, _, what = path.removeprefix("/api/models/").partition("/revision/")
            repo, _, tree = repo.partition("/tree/")
            files = self.server.repos.get(repo)
            if files is None:
                self.answer(404, X_Error_Code="RepoNotFound")
            elif (tree or what) not in ("main", COMMIT, ""):
                self.answer(404, X_Error_Code="RevisionNotFound")
            elif tree:
                rows = [{"type": "file", "path": n, "size": len(c), "oid": COMMIT} for n, c in files.items()]
                self.answer(200, json.dumps(rows).encode())
            else:
                names = [{"rfilename": name} for name in files]
                found = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": names}
                self.answer(200, json.dumps(found).encode())
            return
        repo, _, rest = path.strip("/").partition("/resolve/")
        content = self.server.repos.get(repo, {}).get(rest.partition("/")[2])
        if content is None:
            self.answer(404, X_Error_Code="EntryNotFound")
        else:
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    server = LocalHub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
