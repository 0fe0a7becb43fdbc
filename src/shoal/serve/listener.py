"""The listening socket: which port, uvicorn with deadlines it lacks, and an end that does not hang.

uvicorn has no deadline for receiving a request, answers protocol errors in plain text, and lets a reader that takes
nothing hold its answer for ever; the protocol subclass mends these three.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from shoal.errors import ShoalError
from shoal.serve import settings
from shoal.serve.errors import ApiError

log = logging.getLogger("shoal.serve")

DEFAULT_PORT = 8000
_TRIES = 20
_SEND_BYTES = 128 << 10


def bind(host: str, port: int | None) -> socket.socket:
    """A bound socket. `port` None: 8000 or the next free one; a given port must be free. Raises ShoalError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    candidates = [port] if port is not None else [*range(DEFAULT_PORT, DEFAULT_PORT + _TRIES), 0]
    for candidate in candidates:
        # With the protocol said, asyncio switches Nagle's algorithm off on every connection; without it the first
        # token waits 40 ms for the acknowledgement of the headers.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if sys.platform != "win32":  # there it would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            sock.listen(256)
            return sock
        except OSError as error:
            sock.close()
            if port is not None or not _in_use(error):
                raise ShoalError(
                    f"cannot listen on {host} port {candidate}: {error.strerror or error}",
                    hint="Another program uses it, or the address is not of this machine. Choose another with --port"
                    " (without it the next free port is taken).",
                ) from error
    raise ShoalError(f"no free port on {host}", hint="Choose one with --port.")


def _in_use(error: OSError) -> bool:
    import errno

    return error.errno in (errno.EADDRINUSE, errno.EACCES)


def url_of(sock: socket.socket, *, tls: bool = False) -> str:
    """The address a person on this machine opens."""
    host, port = sock.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http{'s' if tls else ''}://{name}:{port}"


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with a certificate (its chain behind it in the same file) and its key, both PEM; ShoalError.

    Files that change are read again for the next connection. Those that cannot be used then are logged once, and what
    was read before stays in use.
    """
    seen = _stamps(certificate, key)
    context = current = _read_pair(certificate, key)

    def choose(connection: ssl.SSLObject, name: str | None, asked: ssl.SSLContext) -> None:
        nonlocal seen, current
        if (now := _stamps(certificate, key)) != seen:
            seen = now
            try:
                current = _read_pair(certificate, key)
                log.info("new connections get the new certificate in %s", certificate)
            except ShoalError as error:
                log.error("the old certificate stays in use: %s", str(error).replace("\n", ". "))
        connection.context = current

    context.sni_callback = choose  # called for every handshake, also without a name
    return context


def _stamps(*files: Path) -> list[tuple[int, ...]]:
    """What changes with the contents of files; () for one that cannot be seen."""
    stamps: list[tuple[int, ...]] = []
    for file in files:
        try:
            facts = file.stat()
            stamps.append((facts.st_mtime_ns, facts.st_size, facts.st_ino))
        except OSError:
            stamps.append(())
    return stamps


def _read_pair(certificate: Path, key: Path) -> ssl.SSLContext:
    for path, mark, what in (
        (certificate, b"-----BEGIN CERTIFICATE-----", "certificate"),
        (key, b"PRIVATE KEY-----", "private key"),
    ):
        try:
            found = mark in path.read_bytes()
        except OSError as error:
            raise ShoalError(f"cannot read the {what} {path}: {error.strerror or error}") from error
        if not found:
            raise ShoalError(
                f"{path} holds no {what} in PEM form",
                hint="PEM is text with lines like '-----BEGIN ...-----'; openssl converts other forms.",
            )

    def password() -> str:
        raise ShoalError(
            f"the key in {key} is encrypted", hint="openssl pkey -in KEY -out PLAIN.pem takes that off."
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=password)
    except ssl.SSLError as error:
        matches = error.reason != "KEY_VALUES_MISMATCH"
        what = f"cannot use {certificate} with {key}" if matches else f"{key} is not the key of {certificate}"
        raise ShoalError(f"{what}: {error.reason or error}") from error
    return context


class Protocol(H11Protocol):
    """HTTP/1.1 with a deadline for receiving a request and one for a reader that stalls."""

    _receive_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > settings.MAX_CONNECTIONS:
            transport.abort()
            return
        # The kernel would take megabytes for a client that reads nothing; a stall must show in time.
        with contextlib.suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        self._start_receive_timer()

    def shutdown(self) -> None:
        """At the server's end nobody waits for a stream that only waits itself (`shoal.waits` in its scope)."""
        if self.cycle and not self.cycle.response_complete and self.scope.get("shoal.waits"):
            self.transport.close()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._start_receive_timer()
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._start_receive_timer()
        self._settle()

    def _settle(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_receive_timer()

    def _start_receive_timer(self) -> None:
        if self._receive_timer is None:
            self._receive_timer = self.loop.call_later(settings.RECEIVE_SECONDS, self._receive_too_slow)

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _receive_too_slow(self) -> None:
        self._receive_timer = None
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and (
            self.conn.trailing_data[0] or self.cycle
        ):
            self._refuse(ApiError(408, f"the request did not arrive within {settings.RECEIVE_SECONDS:.0f} s"))
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_stall_timer()
        self._stall_timer = self.loop.call_later(settings.STALLED_READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, in our shape; called while its exception is handled."""
        self._stop_receive_timer()
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        large = hint == 431
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._refuse(ApiError(431, f"more than {settings.MAX_HEADER_BYTES >> 10} KB of headers") if large
                     else ApiError(400, "this is not a valid HTTP request"))  # fmt: skip

    def _refuse(self, error: ApiError) -> None:
        body, request_id = error.json(), secrets.token_hex(16).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close"), (b"x-request-id", request_id), (b"request-id", request_id)]  # fmt: skip
        with contextlib.suppress(h11.LocalProtocolError):
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=b""),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server that says when it listens, and what becomes of running answers when it stops.

    Ctrl+C lets them go at once (`on_stop` ends them). SIGTERM lets them finish for `drain_seconds` while nobody new
    is let in, then ends the rest; asked again, at once. That is a clean end: exit code 0.
    """

    def __init__(self, app: ASGIApp, *, on_ready: Callable[[], None] = lambda: None,
                 on_stop: Callable[[], None] = lambda: None, drain_seconds: float = 0.0,
                 tls: ssl.SSLContext | None = None):  # fmt: skip
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=settings.MAX_HEADER_BYTES,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=3,
            )
        )
        if tls is not None:
            self.config.load()
            self.config.ssl = tls
        self._on_ready, self._on_stop = on_ready, on_stop
        self._drain_seconds, self._draining = drain_seconds, False
        # uvicorn would print tracebacks, which may quote a request.
        for name in ("uvicorn.error", "uvicorn.access"):
            logging.getLogger(name).addHandler(logging.NullHandler())
            logging.getLogger(name).propagate = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining:
            self._loop.call_soon_threadsafe(self._on_stop)
        elif sig == signal.SIGTERM and not self.should_exit:
            self._draining = self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self._draining:
            self._on_stop()
            await super().shutdown(sockets)
            return
        self.config.timeout_graceful_shutdown = math.ceil(self._drain_seconds) + 3
        timer = self._loop.call_later(self._drain_seconds, self._on_stop)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
