"""A hub on loopback: what `huggingface_hub` asks for a list, files (with ranges) and commits, over real HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "1" * 40


class LocalHub(ThreadingHTTPServer):
    """`files` are those of every model it knows; `cut` ends the next answer with a file after so many bytes; `lies` are
    files whose content is not what the list says; `asked` are (method, path, range)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.large: set[str] = set()
        self.cut: int | None = None
        self.lies: set[str] = set()
        self.asked: list[tuple[str, str, str | None]] = []
        self.commits: list[dict[str, bytes]] = []
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(("GET", path, self.headers.get("range")))
        files = self.server.files
        if path.startswith("/api/models/me/"):
            siblings = []
            for name, data in files.items():
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                each = {"rfilename": name, "size": len(data), "blobId": blob}
                siblings.append(each | ({"lfs": lfs} if name in self.server.large else {}))
            self._json({"id": path[12:], "modelId": path[12:], "sha": SHA, "siblings": siblings})
        elif path.startswith("/me/") and (name := path.rpartition("/")[2]) in files:
            data = files[name]
            if name in self.server.lies:
                data = b"x" * len(data)
            start = int((self.headers.get("range") or "bytes=0-")[6:].split("-")[0])
            piece = data[start:]
            self.send_response(206 if start else 200)
            self.send_header("content-length", str(len(piece)))
            if start:
                self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            cut, self.server.cut = self.server.cut, None
            self.wfile.write(piece[:cut])
            if cut is not None and cut < len(piece):
                self.wfile.flush()
                self.server.cut = 0  # and nothing more until somebody mends it
                self.connection.close()
        else:
            self.send_response(404)
            self.send_header("x-error-code", "RepoNotFound")
            self.send_header("content-length", "0")
            self.end_headers()

    def do_POST(self) -> None:
        self.server.asked.append(("POST", self.path, None))
        self.server.tokens.add(self.headers.get("authorization", ""))
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/api/repos/create":
            made = json.loads(body)
            self._json({"url": f"{self.server.url}/{made['organization']}/{made['name']}"})
        elif "/preupload/" in self.path:
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": modes})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            added = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                     for line in lines if line["key"] == "file"}  # fmt: skip
            self.server.commits.append(added)
            self._json({"commitUrl": f"{self.server.url}/me/mine/commit/{SHA}", "commitOid": SHA})
        else:
            self._json({"errors": [], "warnings": []})

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def local_hub() -> Iterator[LocalHub]:
    server = LocalHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
