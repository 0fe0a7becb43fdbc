"""C41: a client that is gone frees the engine, in every phase; and a page's answer does not care who reads it."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest


def open_post(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    place, data = urlsplit(url), json.dumps(body).encode()
    sock = socket.create_connection((place.hostname or "", place.port or 0), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


def in_engine(client: httpx.Client) -> float:
    lines = [
        line.split()
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("shoal_requests_")
    ]
    return sum(float(value) for _, value in lines)


def wait_for(client: httpx.Client, wanted: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if wanted(in_engine(client)):
            return True
        time.sleep(0.02)
    return False


def body(**over: Any) -> dict[str, Any]:
    base = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 1500, "ignore_eos": True,
            "thinking": {"type": "disabled"}}  # fmt: skip
    return base | over


CASES = {
    "stream": ("/v1/chat/completions", body(stream=True), 1),
    "plain": ("/v1/chat/completions", body(), 1),
    "several choices": ("/v1/chat/completions", body(n=4, stream=True), 1),
    "queued": ("/v1/chat/completions", body(stream=True), 12),
    "prefill": ("/v1/chat/completions", body(messages=[{"role": "user", "content": "sea " * 1800}], max_tokens=100), 3),
    "completion": ("/v1/completions", {"prompt": ["a b", "c d"], "max_tokens": 1500, "ignore_eos": True}, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_killed_socket_frees_the_engine(client: httpx.Client, live_server: str, case: str) -> None:
    path, request, count = CASES[case]
    assert wait_for(client, lambda n: n == 0, 10)
    sockets = [open_post(live_server, path, request) for _ in range(count)]
    assert wait_for(client, lambda n: n > 0, 10), "the engine never began"
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
        sock.close()
    assert wait_for(client, lambda n: n == 0, 3), "the engine still works for nobody"


def test_a_client_that_leaves_while_its_model_loads(start_server: Any) -> None:
    """Leaving does not stop the load: the next one profits."""
    url = start_server()
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        open_post(url, "/v1/chat/completions", body(stream=True)).close()
        assert wait_for(client, lambda n: n == 0, 5)
        assert client.post("/v1/chat/completions", json=body(max_tokens=1)).status_code == 200


def test_the_page_may_leave_and_its_answer_goes_on(client: httpx.Client) -> None:
    chat = client.post("/api/chats", json={}).json()["id"]
    sent = {"content": "hi", "thinking": "off", "params": {"max_tokens": 120, "temperature": 0}}
    client.post(f"/api/chats/{chat}/messages", json=sent)
    with client.stream("GET", f"/api/chats/{chat}/events") as response:
        next(response.iter_lines())  # and away
    assert wait_for(client, lambda n: n == 0, 30)
    time.sleep(0.3)
    row = client.get(f"/api/chats/{chat}").json()["messages"][1]
    assert row["status"] in ("length", "done") and row["usage"]["completion_tokens"] > 0
