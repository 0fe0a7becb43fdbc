"""The door: pure ASGI, before any route. Request ids, Host, origin, keys, content type, body size, one error shape.

Nothing here reads a body; a refusal costs microseconds. Middleware that wraps `receive` (Starlette's
BaseHTTPMiddleware) is avoided on purpose: it hides the disconnect of a client.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.errors import ShoalError
from shoal.serve.accounts import Accounts
from shoal.serve.caller import CALLER, Caller
from shoal.serve.errors import ANTHROPIC_PATHS, ApiError, ClientGone, anthropic_body, from_shoal
from shoal.serve.ledger import Ledger
from shoal.serve.settings import LOCAL_OWNER, MAX_BODY_BYTES, MAX_HEADER_BYTES, ServerSettings, hash_key

log = logging.getLogger("shoal.serve")

PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; worker-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types shoal dompurify"
    ),
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}
SESSION_COOKIE = "shoal_session"
_OWN_NAME = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:|$)", re.IGNORECASE)
_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Open without a key: the page's files (they hold no data) and the sign of life. Everything else asks.
_PUBLIC = re.compile(r"/|/cost|/health|/favicon\.ico|/static/.*|/api/session")
_READS = ("GET", "HEAD")
_NO_KEY = "a key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
_HSTS = b"max-age=2592000"  # thirty days; never for this machine's own names, where it would bind other programs too
# What the official clients send from a browser; x-stainless-* are their names and versions.
_CORS_HEADERS = (
    "authorization",
    "content-type",
    "x-api-key",
    "x-request-id",
    "anthropic-version",
    "anthropic-beta",
)
_CORS_PREFIX = re.compile(r"x-stainless-[a-z0-9-]{1,64}")


class Door:
    """Wraps the routes of the whole server."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, accounts: Accounts, ledger: Ledger):
        self.app, self.settings, self.accounts, self.ledger = app, settings, accounts, ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))  # of a repeated one, the first
        request_id = headers.get(b"x-request-id", b"")
        if not _SAFE_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16).encode()
        scope["shoal.request_id"] = request_id.decode()
        began, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id),
                    (b"request-id", request_id),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    *self._cors(headers),
                ]
                if scope["scheme"] == "https" and not _OWN_NAME.match(headers.get(b"host", b"")):
                    message["headers"].append((b"strict-transport-security", _HSTS))
            await send(message)

        try:
            error: ApiError | None = None
            try:
                if self._check(scope, headers):
                    await self.app(scope, limited(receive), send_with_headers)
                else:
                    await _send_preflight(headers, send_with_headers)
            except ApiError as refusal:
                error = refusal
            except HTTPException as refusal:
                error = _from_starlette(scope, refusal)
            except ShoalError as trouble:
                error = from_shoal(trouble)
            except ClientGone:
                status = status or 499
            except Exception as fault:
                # The type and the place, never the message: it may quote a prompt.
                log.error(
                    "request %s failed: %s at %s", request_id.decode(), type(fault).__name__, _place(fault)
                )
                error = ApiError(500, f"a fault inside the server (request {request_id.decode()})",
                                 headers={"x-should-retry": "false"})  # fmt: skip
            if error and status == 0:
                if scope["path"] in ANTHROPIC_PATHS:
                    body = json.dumps(anthropic_body(error, request_id.decode()), ensure_ascii=False)
                    await send_error(error, send_with_headers, body.encode("utf-8", "backslashreplace"))
                else:
                    await send_error(error, send_with_headers)
            elif error:
                raise error  # the answer has begun: the connection is cut
        finally:
            log.info("%s %s %s %d %.0f ms", request_id.decode(), scope["method"], ascii(scope["path"][:100]), status,
                     1000 * (time.monotonic() - began))  # fmt: skip

    # ---- the checks, in their order

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Raises ApiError; False for a preflight that is answered here."""
        method, path = scope["method"], scope["path"]
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            # h11 limits only headers that come in several pieces.
            raise ApiError(431, f"more than {MAX_HEADER_BYTES >> 10} KB of headers")
        if sum(name == b"host" for name, _ in scope["headers"]) != 1 or not self._known_host(scope, headers):
            raise ApiError(
                403, "this Host name is not served here (--allowed-host adds one)", code="unknown_host"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        listed = origin in self.settings.cors_origins
        own = bool(origin) and origin == f"{scope['scheme']}://{headers[b'host'].decode('latin-1')}".lower()
        if method == "OPTIONS" and listed and b"access-control-request-method" in headers:
            return False
        site = headers.get(b"sec-fetch-site", b"").decode("latin-1")
        foreign = site in ("cross-site", "same-site") and not own
        app_route = path.startswith("/api/")
        if foreign and (app_route or method not in _READS) and (app_route or not listed):
            raise ApiError(403, "requests from other web pages are not accepted", code="foreign_origin")
        if app_route and origin and not own:
            raise ApiError(403, "requests from other web pages are not accepted", code="foreign_origin")
        if app_route and method not in _READS and not own and site not in ("same-origin", "none"):
            raise ApiError(
                403, "send 'Sec-Fetch-Site: none', or an Origin equal to this server", code="no_origin"
            )
        caller = self._caller(scope, headers)
        CALLER.set(caller)  # each request runs in a task of its own
        scope["shoal.caller"], scope["shoal.owner"] = caller, caller.owner
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if method in ("POST", "PATCH") and (has_body or app_route):  # else the routes say what is wrong
            self._check_body(headers)
        return True

    def _known_host(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        text = headers[b"host"].decode("latin-1").lower()
        if text in self.settings.allowed_hosts:
            return True
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?", text)
        if not match:
            return False
        name, port = match[1], int(match[2] or (443 if scope["scheme"] == "https" else 80))
        if name in self.settings.allowed_hosts:
            return True
        server = scope.get("server")
        if server and server[1] is not None and port != server[1]:
            return False
        if name in ("localhost", "127.0.0.1", "[::1]"):
            return True
        # Rebinding needs a name. Bound to the network (which demands a key), any literal address is ours.
        return not self.settings.local and _is_address(name.strip("[]"))

    def _caller(self, scope: Scope, headers: dict[bytes, bytes]) -> Caller:
        """Who asks. The one function that looks at keys and cookies, whatever header they come in. Raises ApiError."""
        client = scope.get("client")
        about = Caller("", address=client[0] if client else "", ledger=self.ledger)
        if not self.settings.keys and self.settings.local and not self.accounts.on:
            return replace(about, owner=LOCAL_OWNER, admin=True)
        given = headers.get(b"x-api-key", b"").decode("latin-1")
        scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            given = bearer.strip()
        found = self.caller_of_key(given, about)
        if found is None and scope["path"].startswith("/api/"):
            found = self._caller_of_session(headers.get(b"cookie", b"").decode("latin-1"), about)
        if found is None:
            if _PUBLIC.fullmatch(scope["path"]):
                return about
            raise ApiError(401, _NO_KEY, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return found

    def caller_of_key(self, key: str, about: Caller) -> Caller | None:
        """A user's key is looked up by its digest; where there are no users, all of the operator's are compared."""
        if self.accounts.on:
            user_key = self.accounts.key_owner(key)
            if user_key is None:
                return None
            key_id, user = user_key
            return replace(about, owner=user.id, name=user.name, admin=user.admin, key_id=key_id)
        digest, found = hash_key(key), None
        for owner, known in self.settings.keys.items():
            if hmac.compare_digest(digest, known):
                found = owner
        return None if found is None else replace(about, owner=found, admin=found == LOCAL_OWNER)

    def _caller_of_session(self, cookies: str, about: Caller) -> Caller | None:
        for part in cookies.split(";"):
            name, _, value = part.strip().partition("=")
            if name == SESSION_COOKIE and (session := self.accounts.session_owner(value)):
                digest, owner, due = session
                if due:
                    self.ledger.soon(partial(self.accounts.touch, digest))
                if user := self.accounts.user(owner):
                    return replace(about, owner=owner, name=user.name, admin=user.admin, session=digest)
                if owner in self.settings.keys and not self.accounts.on:
                    return replace(about, owner=owner, admin=owner == LOCAL_OWNER, session=digest)
        return None

    def _check_body(self, headers: dict[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")
        charset = kind[2].strip().lower().replace('"', "")
        if kind[0].strip().lower() != "application/json" or charset not in (
            "",
            "charset=utf-8",
            "charset=utf8",
        ):
            raise ApiError(
                415, "send 'content-type: application/json' (UTF-8)", code="unsupported_media_type"
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "compressed bodies are not read", code="unsupported_media_type")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise too_large()

    def _cors(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        if not self.settings.cors_origins:
            return []
        origin = headers.get(b"origin", b"")
        if origin.decode("latin-1") not in self.settings.cors_origins:
            return [(b"vary", b"origin")]
        return [
            (b"vary", b"origin"),
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-request-id, x-shoal-ignored"),
        ]


def too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MB", code="request_too_large")


def limited(receive: Receive) -> Receive:
    """`receive` that raises 413 as soon as a body, however it is sent, passes the limit."""
    seen = 0

    async def counting() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise too_large()
        return message

    return counting


async def send_error(error: ApiError, send: Send, body: bytes | None = None) -> None:
    body = error.json() if body is None else body
    headers = [(name.encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_preflight(asked: dict[bytes, bytes], send: Send) -> None:
    names = asked.get(b"access-control-request-headers", b"").decode("latin-1").lower().split(",")
    stainless = [name for name in map(str.strip, names) if _CORS_PREFIX.fullmatch(name)][:30]
    headers = [
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", ", ".join([*_CORS_HEADERS, *stainless]).encode()),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _from_starlette(scope: Scope, error: HTTPException) -> ApiError:
    if error.status_code == 405:
        allowed = dict(error.headers or {}).get("Allow", "")
        return ApiError(405, f"{scope['method']} is not allowed here; allowed: {allowed}", headers=error.headers or {},
                        code="method_not_allowed")  # fmt: skip
    return ApiError(error.status_code, str(error.detail), headers=error.headers or {})


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _place(fault: BaseException) -> str:
    """File and line where an exception was raised."""
    trace: Any = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else "?"
