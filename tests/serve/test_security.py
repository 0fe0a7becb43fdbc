"""The door: who may come in, what is refused before any route runs, and clients that are slow on purpose."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.serve.held import held

from shoal.engine.handle import Handle
from shoal.serve import listener
from shoal.serve import settings as limits
from shoal.serve.app import create_app
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.settings import ServerSettings, hash_key
from shoal.serve.store import Store

CHAT = "/v1/chat/completions"
EVIL = {"origin": "https://evil.example"}
http = httpx.Client(trust_env=False, verify=False, timeout=30)
KEYS = {"ann": "a" * 32, "bob": "b" * 32}


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    http.close()


def raw(url: str, request: bytes, *, wait: float = 10) -> bytes:
    """Send bytes, read until the server closes or nothing comes for a while."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=wait) as sock:
        sock.sendall(request)
        parts = []
        try:
            while part := sock.recv(65536):
                parts.append(part)
        except TimeoutError:
            pass
        return b"".join(parts)


def hi(**over: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | over


@pytest.fixture(scope="module")
def locked(start_server: Any) -> str:
    """A server with two keys, of two owners."""
    url: str = start_server(ServerSettings(keys={name: hash_key(key) for name, key in KEYS.items()}))
    return url


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:{port}", "127.0.0.1:1",
    "evil@127.0.0.1:{port}", "127.0.0.1:{port}@evil", "[::2]:{port}", "",
])  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/health", "/static/vendor/x.js", "/v1/models", "/api/chats"])
def test_a_foreign_host_is_refused_before_everything(live_server: str, host: str, path: str) -> None:
    port = urlsplit(live_server).port
    response = http.get(live_server + path, headers={"host": host.format(port=port)})
    assert response.status_code == 403


def test_our_own_names_pass(live_server: str) -> None:
    port = urlsplit(live_server).port
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert http.get(f"{live_server}/health", headers={"host": host}).status_code == 200
    two = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil\r\nConnection: close\r\n\r\n"
    assert raw(live_server, two.encode()).split()[1] in (b"400", b"403")


def test_no_cors_header_unless_listed(live_server: str, start_server: Any) -> None:
    ask = EVIL | {"access-control-request-method": "POST"}
    for response in (
        http.get(f"{live_server}/v1/models", headers=EVIL),
        http.post(live_server + CHAT, headers=EVIL, json=hi()),
        http.options(live_server + CHAT, headers=ask),
        http.get(f"{live_server}/nope", headers=EVIL),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]
    listed = start_server(ServerSettings(cors_origins=("https://app.example",)))
    origin = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
    preflight = http.options(listed + CHAT, headers=origin | {"access-control-request-method": "POST"})
    assert preflight.status_code == 204
    asked = "Authorization, x-stainless-os, X-Stainless-Lang, anthropic-version, anthropic-beta, x-api-key, x-evil"
    preflight = http.options(
        listed + CHAT,
        headers=origin | {"access-control-request-method": "POST", "access-control-request-headers": asked},
    )
    allowed = set(preflight.headers["access-control-allow-headers"].split(", "))
    assert {name.lower() for name in asked.split(", ")} - allowed == {"x-evil"}
    answer = http.post(listed + CHAT, headers=origin, json=hi())
    assert (
        answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
    )
    assert "access-control-allow-credentials" not in answer.headers
    assert http.get(f"{listed}/v1/models", headers=EVIL).headers.get("access-control-allow-origin") is None
    assert http.get(f"{listed}/api/chats", headers=origin).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                                  "text/json-not", "application/json; charset=utf-16", None])  # fmt: skip
def test_only_json_is_taken(live_server: str, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    for path in (CHAT, "/v1/completions", "/api/chats"):
        content = json.dumps(hi())
        response = http.post(live_server + path, content=content.encode(),
                              headers={"sec-fetch-site": "none"} | headers)  # fmt: skip
        assert response.status_code == 415 and response.json()["error"]["type"] == "unsupported_media_type"


def test_the_page_routes_are_for_the_page(live_server: str) -> None:
    def create(headers: dict[str, str]) -> int:
        return http.post(f"{live_server}/api/chats", headers=headers, json={}).status_code

    assert (
        create({"sec-fetch-site": "same-origin"})
        == create({"sec-fetch-site": "none"})
        == create({"origin": live_server})
        == 201
    )
    for headers in ({}, EVIL, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
                    EVIL | {"sec-fetch-site": "none"}):  # fmt: skip
        assert create(headers) == 403, headers
    cross = {"sec-fetch-site": "cross-site"}
    assert http.get(f"{live_server}/api/chats", headers=cross).status_code == 403
    assert http.post(live_server + CHAT, headers=cross, json=hi()).status_code == 403
    assert http.get(f"{live_server}/", headers=cross).status_code == 200  # a link to us


def routes() -> list[tuple[str, str]]:
    """Every route of the server, with its methods, with made-up ids."""
    table = ModelTable([ModelCard("tiny", "")], lambda spec, progress: None)  # type: ignore[arg-type,return-value]
    app: Any = create_app(ServerSettings(), table, Store(":memory:")).app
    found = []
    for route in app.routes:
        path = route.path.replace("{model:path}", "tiny").replace("{path:path}", "x.js")
        path = re.sub(r"\{\w+\}", "0" * 32, path.replace("{message}", "1" * 32))
        found += [(method, path) for method in sorted(route.methods - {"HEAD"})]
    return found


OPEN = {"/", "/cost", "/health", "/static/x.js", "/api/session"}


def test_every_route_asks_for_the_key(locked: str) -> None:
    texts = set()
    walked = routes()
    assert len(walked) > 25
    for method, path in walked:
        if path in OPEN:
            continue
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"},
                        {"authorization": f"Basic {KEYS['ann']}"}, {"cookie": "shoal_session=x"},
                        {"authorization": "Bearer " + "é" * 9}):  # fmt: skip
            encoded = {name: value.encode("latin-1") for name, value in headers.items()}
            response = http.request(method, locked + path, content=b"{}",
                                     headers={"content-type": "application/json", "sec-fetch-site": "none"} | encoded)  # type: ignore[operator]  # fmt: skip
            assert response.status_code == 401, (method, path, headers)
            texts.add(response.json()["error"]["message"])
    assert len(texts) == 1
    for headers in ({"authorization": f"Bearer {KEYS['ann']}"}, {"x-api-key": KEYS["bob"]}):
        assert http.post(locked + CHAT, json=hi(), headers=headers).status_code == 200


def test_the_page_logs_in_by_cookie(locked: str) -> None:
    with httpx.Client(base_url=locked, headers={"sec-fetch-site": "same-origin"}, trust_env=False) as page:
        assert page.post("/api/session", json={"key": "wrong" * 8}).status_code == 401
        answer = page.post("/api/session", json={"key": KEYS["ann"]})
        cookie = answer.headers["set-cookie"].lower()
        assert answer.status_code == 204 and "httponly" in cookie and "samesite=strict" in cookie
        assert KEYS["ann"] not in cookie
        assert page.get("/api/state").status_code == 200
        assert page.post(CHAT, json=hi()).status_code == 401  # the cookie is the page's alone


def test_two_owners_never_see_each_other(locked: str) -> None:
    """PRODUCT 4 row 8: every route with an id, as the owner and as somebody else."""
    same = {"sec-fetch-site": "same-origin"}
    with (
        httpx.Client(base_url=locked, headers=same | {"x-api-key": KEYS["ann"]}, timeout=30) as ann,
        httpx.Client(base_url=locked, headers=same | {"x-api-key": KEYS["bob"]}, timeout=30) as bob,
    ):
        chat = ann.post("/api/chats", json={"title": "private"}).json()["id"]
        sent = {"parent_id": None, "content": "hi", "params": {"max_tokens": 2}}
        made = ann.post(f"/api/chats/{chat}/messages", json=sent | {"beside": "tiny"}).json()
        message = made["assistant"]["id"]
        prompt = {"kind": "prompt", "name": "mine", "text": "private words"}
        entry = ann.post("/api/library", json=prompt).json()["id"]
        ann.get(f"/api/chats/{chat}/events")
        mine = f"/api/chats/{chat}"
        asked = [
            ("GET", mine, None), ("PATCH", mine, {"title": "x"}), ("DELETE", mine, None),
            ("GET", f"{mine}/events", None), ("POST", f"{mine}/restore", {}), ("POST", f"{mine}/messages", sent),
            ("POST", f"{mine}/messages/{message}/regenerate", {}), ("POST", f"{mine}/messages/{message}/stop", {}),
            ("POST", f"{mine}/messages/{message}/answer-now", {}),
            ("POST", f"{mine}/messages/{message}/results", {"results": [{"id": "call_1", "result": "x"}]}),
            ("POST", f"{mine}/messages/{message}/feedback", {"value": 1}),
            ("POST", f"{mine}/messages/{message}/continue", {}), ("POST", f"{mine}/messages/{message}/tokens", {}),
            ("POST", f"{mine}/messages/{message}/prefer", {"over": made["assistants"][1]["id"]}),
            ("POST", f"/api/library/{entry}", prompt), ("DELETE", f"/api/library/{entry}", None),
        ]  # fmt: skip
        covered = {
            (method, path.replace(chat, "0" * 32).replace(message, "1" * 32).replace(entry, "0" * 32))
            for method, path, _ in asked
        }
        ids = {route for route in routes() if "0" * 32 in route[1]}
        elsewhere = ("/api/a", "/api/model-jobs")  # accounts and the admin's jobs: test_team.py
        assert covered == {route for route in ids if not route[1].startswith(elsewhere)}, (
            "a route is not asked"
        )
        for method, path, body in asked:
            assert bob.request(method, path, json=body).status_code == 404, (method, path)
        assert bob.get("/api/chats").json() == {"chats": []} == bob.get("/api/chats?q=private").json()
        assert bob.get("/api/library").json() == {"entries": []}
        assert [each["id"] for each in ann.get("/api/library").json()["entries"]] == [entry]
        own = bob.post("/api/chats", json={}).json()["id"]
        stolen = bob.post(f"/api/chats/{own}/messages", json=sent | {"parent_id": message})
        assert stolen.status_code == 404
        assert ann.get(mine).json()["messages"][1]["feedback"] == 0


def test_page_and_static_files(live_server: str) -> None:
    page = http.get(f"{live_server}/")
    head = http.head(f"{live_server}/")
    assert page.status_code == head.status_code == 200 and not head.content
    if "text/html" in page.headers["content-type"]:
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'") and "unsafe-eval" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    for path in ("/../../../../etc/passwd", "/static/../../etc/passwd", "/static/%2e%2e/%2e%2e/app.py",
                 "//etc/passwd", "/static/..%5c..%5capp.py", "/v1/models/..%2f..%2fetc%2fpasswd",
                 "/v1/models/%00", "/static/"):  # fmt: skip
        request = f"GET {path} HTTP/1.1\r\nHost: {urlsplit(live_server).netloc}\r\nConnection: close\r\n\r\n"
        answer = raw(live_server, request.encode())
        assert answer.split()[1] == b"404" and b"root:" not in answer, path


def test_request_ids(live_server: str) -> None:
    def request_id(**headers: str) -> str:
        found = http.get(f"{live_server}/health", headers=headers).headers
        assert found["x-request-id"] == found["request-id"]
        return found["x-request-id"]

    assert request_id(**{"x-request-id": "mine-1"}) == "mine-1"
    assert request_id() != request_id()
    for unsafe in ("x" * 200, "a b<script>", 'a";drop'):
        assert request_id(**{"x-request-id": unsafe}) != unsafe
    broken = http.post(live_server + CHAT, content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400 and broken.headers["x-request-id"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_413(live_server: str, chunked: bool) -> None:
    big = b'{"pad": "' + b"x" * (12 << 20) + b'"}'
    content = (big[i : i + 65536] for i in range(0, len(big), 65536)) if chunked else big
    headers = {"content-type": "application/json"}
    response = http.post(live_server + CHAT, content=content, headers=headers, timeout=30)
    assert response.status_code == 413 and response.json()["error"]["type"] == "request_too_large"


def test_a_compressed_body_is_not_unpacked(live_server: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    body = gzip.compress(b" " * (100 << 20), 1)
    assert http.post(live_server + CHAT, content=body, headers=headers).status_code == 415


def test_errors_of_the_protocol_have_the_one_shape(live_server: str) -> None:
    place = urlsplit(live_server).netloc
    for request, status in (
        (f"GET /health HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\nX-Pad: {'x' * 70000}\r\n\r\n", 431),
        (
            f"GET /health HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n"
            + "X-Pad: xxxxxxxxxx\r\n" * 3000
            + "\r\n",
            431,
        ),
        ("this is not HTTP\r\n\r\n", 400),
        (f"GET /he\x00lth HTTP/1.1\r\nHost: {place}\r\n\r\n", 400),
        (f"POST {CHAT} HTTP/1.1\r\nHost: {place}\r\nContent-Length: -1\r\n\r\n", 400),
        (f"DELETE /health HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n", 405),
    ):
        answer = raw(live_server, request.encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert int(head.split()[1]) == status, answer[:200]
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert b"x-request-id" in head.lower()


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIVE_SECONDS", 0.6)
    monkeypatch.setattr(limits, "STALLED_READER_SECONDS", 0.6)
    monkeypatch.setattr(listener, "_SEND_BYTES", 4096)


@pytest.mark.parametrize("begun", ["", "GET /hea", "POST {chat} HTTP/1.1\r\nHost: {host}\r\n",
                                   "POST {chat} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                                   "Content-Length: 100\r\n\r\n{{"])  # fmt: skip
def test_a_request_that_does_not_arrive_is_let_go(
    live_server: str, short_deadlines: None, begun: str
) -> None:
    began = time.monotonic()
    answer = raw(live_server, begun.format(chat=CHAT, host=urlsplit(live_server).netloc).encode(), wait=8)
    assert 0.3 < time.monotonic() - began < 6
    assert answer == b"" or answer.split()[1] == b"408"
    assert http.get(f"{live_server}/health").status_code == 200


def test_a_drip_of_bytes_does_not_move_the_deadline(live_server: str, short_deadlines: None) -> None:
    place = urlsplit(live_server)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=5) as sock:
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\n".encode())
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 6:
                sock.sendall(b"X: y\r\n")
                time.sleep(0.1)
        assert time.monotonic() - began < 5


def test_a_reader_that_stalls_loses_its_answer(
    live_server: str, short_deadlines: None, running_requests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PRODUCT 4 row 15: the answer (with 20 likeliest tokens each) overflows every buffer; nobody reads it."""
    lost, cancel = threading.Event(), Handle.cancel
    monkeypatch.setattr(Handle, "cancel", lambda handle: (lost.set(), cancel(handle)))
    place = urlsplit(live_server)
    body = json.dumps(
        hi(max_tokens=1000, stream=True, ignore_eos=True, logprobs=True, top_logprobs=20)
    ).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with sock:
        sock.settimeout(5)
        sock.connect((place.hostname or "", place.port or 0))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with held(950):  # the answer is in work until it is lost
            sock.sendall(head.encode() + body)
            assert sock.recv(12) == b"HTTP/1.1 200"
            assert lost.wait(90)
        until = time.monotonic() + 40
        while running_requests() and time.monotonic() < until:
            time.sleep(0.1)
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                if not sock.recv(65536):
                    raise ConnectionError
    assert running_requests() == 0


@pytest.fixture
def running_requests(live_server: str) -> Iterator[Any]:
    """Requests in the engine, by /metrics."""

    def read() -> float:
        text = http.get(f"{live_server}/metrics").text
        values = [line.split()[1] for line in text.splitlines() if line.startswith("shoal_requests_")]
        return sum(float(value) for value in values)

    yield read


def test_too_many_requests_at_once_are_told_to_wait(start_server: Any) -> None:
    url = start_server(ServerSettings(max_requests=1))
    with httpx.Client(base_url=url, timeout=30) as session:
        long = hi(max_tokens=1000, stream=True, ignore_eos=True)
        with held(1), session.stream("POST", CHAT, json=long):
            refused = session.post(CHAT, json=hi())
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert refused.json()["error"]["type"] == "rate_limit_error"
        until = time.monotonic() + 5
        while session.post(CHAT, json=hi()).status_code != 200:
            assert time.monotonic() < until, "the place is not given back"
            threading.Event().wait(0.05)


def test_one_key_cannot_take_all_places(start_server: Any) -> None:
    keys = {name: hash_key(key) for name, key in KEYS.items()}
    url = start_server(ServerSettings(keys=keys, max_requests=2))
    ann, bob = ({"authorization": f"Bearer {KEYS[name]}"} for name in KEYS)
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as session:
        long = hi(max_tokens=1500, stream=True, ignore_eos=True)
        with held(1), session.stream("POST", CHAT, json=long, headers=ann) as running:
            assert running.status_code == 200
            assert session.post(CHAT, json=hi(), headers=ann).status_code == 429
            with session.stream("POST", CHAT, json=long, headers=bob) as other:  # while hers is still there
                assert other.status_code == 200


def test_logs_hold_no_content(locked: str, caplog: pytest.LogCaptureFixture) -> None:
    """PRODUCT 4 row 18: ids, counts, times; no prompt, key or query string."""
    with caplog.at_level(logging.DEBUG):
        secret = hi(messages=[{"role": "user", "content": "my-secret-word"}], user="secret-user")
        http.post(f"{locked}{CHAT}?token=secret-query", json=secret, headers={"x-api-key": KEYS["ann"]})
        http.get(f"{locked}/api/chats?q=secret-search", headers={"x-api-key": KEYS["ann"]})
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("shoal")]
    assert any("POST '/v1/chat/completions' 200" in line for line in lines)
    assert not [line for line in lines if "secret" in line or KEYS["ann"] in line]


def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    start_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """PRODUCT 4 row 14: the exception ends its request, its text (it may quote a prompt) goes nowhere."""
    url = start_server()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("quotes-the-prompt")

    with monkeypatch.context() as patched:
        patched.setattr("shoal.serve.answers.check_room", broken)
        answer = http.post(url + CHAT, json=hi())
        streamed = http.post(url + CHAT, json=hi(stream=True))
    for response in (answer, streamed):
        error = response.json()["error"]
        assert response.status_code == 500 and error["type"] == "api_error"
        assert (
            response.headers["x-request-id"] in error["message"]
            and response.headers["x-should-retry"] == "false"
        )
        assert "quotes-the-prompt" not in response.text
    assert "quotes-the-prompt" not in caplog.text and "RuntimeError" in caplog.text
    assert http.post(url + CHAT, json=hi()).status_code == 200


def test_without_a_body_the_route_says_what_is_wrong(client: httpx.Client) -> None:
    """A wrong method is a 405, an empty body no JSON; the page's own routes ask for the content type all the same."""
    for path, status in (
        ("/health", 405),
        ("/v1/models", 405),
        ("/v1/chat/completions", 400),
        ("/api/chats", 415),
    ):
        assert client.post(path).status_code == status, path
    assert client.put("/v1/models").status_code == 405
    assert client.post("/v1/chat/completions", content=b"{}").status_code == 415
