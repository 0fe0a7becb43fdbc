"""A small HTTP server that misbehaves the way upstreams do, by the name of the model that is asked for."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]} | more, ensure_ascii=False).encode() + b"\n\n"


TEXT = chunk({"content": "half an "}) + chunk({"content": "answer"})
END = chunk({}, "stop", usage={"prompt_tokens": 7, "completion_tokens": 3}) + b"data: [DONE]\n\n"
BODIES = {
    "good": chunk({"role": "assistant", "content": ""}) + TEXT + END,
    "dies": TEXT,
    "dies-at-once": b": thinking about it\n\n",
    "malformed": b"data: {not json\n\n",
    "malformed-later": TEXT + b"data: [1, 2]\n\n" + END,
    "error-event": b'data: {"error": {"message": "out of memory"}}\n\n',
    "error-later": TEXT + b'data: {"error": {"message": "out of memory"}}\n\n',
    "no-usage": TEXT + chunk({}, "length") + b"data: [DONE]\n\n",
    "filtered": TEXT + chunk({}, "content_filter") + b"data: [DONE]\n\n",
    "tags": chunk({"content": "<thi"}) + chunk({"content": "nk>hm</th"}) + chunk({"content": "ink>\n\nyes"}) + END,
    "separators": chunk({"content": "a\u2028b\u0085c"}) + END.replace(b"\n", b"\r\n"),
    "other-name": chunk({"reasoning": "hm"}) + chunk({"content": "yes"}) + END,
    "calls": chunk({"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": '{"a"'}}]})
    + chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]})
    + chunk({"tool_calls": [{"function": {"name": "g", "arguments": "{}"}}]}, "tool_calls")
    + END,
}  # fmt: skip


class Faulty(ThreadingHTTPServer):
    """`asked` holds (path, headers, body) of every request; `gone` is set when a reader left an endless answer."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.gone = threading.Event()
        self.elsewhere = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Faulty

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers), None))
        names = [*BODIES, "500", "401", "429", "400", "silent", "redirect", "plain", "endless"]
        self._answer(
            200, json.dumps({"data": [{"id": name, "max_model_len": 4096} for name in names]}).encode()
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        name = body["model"]
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        if name.isdigit():
            error = {"message": f"your key {key} asked too much", "code": "context_length_exceeded"}
            self._answer(int(name), json.dumps({"error": error}).encode())
        elif name == "redirect":
            self.send_response(307)
            self.send_header("location", self.server.elsewhere)
            self.send_header("content-length", "0")
            self.end_headers()
        elif name == "plain":
            self._answer(200, b'{"choices": []}')
        elif name == "silent":
            threading.Event().wait(5)
        else:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            if name == "endless":
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(chunk({"content": "and so on "}))
                        threading.Event().wait(0.02)
                self.server.gone.set()
            else:
                self.wfile.write(BODIES[name])

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def faulty_server(port: int = 0) -> Iterator[Faulty]:
    server = Faulty(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
