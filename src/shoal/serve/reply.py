"""Writing an answer that may take long: server-sent events or one JSON object, with signs of life in silence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.types import Receive, Send

from shoal.errors import ShoalError
from shoal.serve.errors import ApiError, ClientGone, from_shoal

log = logging.getLogger("shoal.serve")
Result = TypeVar("Result")

# Some clients (httpx's iter_lines, Python's splitlines) end a line of a stream here too; in JSON they can be escaped.
_SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}

SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


class Reply:
    """One response whose status is decided as late as possible.

    Nothing is sent until there is something to say or `keep_alive_seconds` have passed in silence; until then an
    ApiError still becomes a proper status. After that a stream carries `: keep-alive` comments and a plain answer
    leading newlines (JSON allows them), and an error can only be told inside the body.
    """

    def __init__(self, send: Send, *, stream: bool, headers: Mapping[str, str], keep_alive_seconds: float):
        self._send, self.stream, self._every = send, stream, keep_alive_seconds
        self.headers = dict(headers)
        self.started = False
        self.error_event: Callable[[ApiError], tuple[str | None, Any]] = lambda error: (None, error.body())
        """The name and the data of the event that ends a stream with an error."""
        self._last = time.monotonic()
        self._lock = asyncio.Lock()  # the sign of life and the answer must not interleave

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, which writes this reply; raises what happens before the reply has begun."""
        ticker = asyncio.ensure_future(self._tick())
        try:
            await work
        except (ApiError, ShoalError) as error:
            if not self.started:
                raise
            await self._fail(error if isinstance(error, ApiError) else from_shoal(error))
        except Exception as fault:
            if not self.started:
                raise
            log.error("an answer failed: %s", type(fault).__name__)
            await self._fail(ApiError(500, "a fault inside the server"))
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker

    async def event(self, data: Any, *, event_id: int | None = None, name: str | None = None) -> None:
        """One event of a stream: `data` as JSON, or as it is when it is text."""
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        head = f"id: {event_id}\n" if event_id is not None else ""
        head += f"event: {name}\n" if name is not None else ""
        await self._write(f"{head}data: {text.translate(_SEPARATORS)}\n\n".encode("utf-8", "replace"))

    async def end(self) -> None:
        """The end of a stream."""
        await self._write(b"", last=True)

    async def object(self, value: Any) -> None:
        """The whole plain answer."""
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        if not self.started:
            self.headers["content-length"] = str(len(body))
        await self._write(body, last=True)

    async def _fail(self, error: ApiError) -> None:
        if self.stream:
            name, data = self.error_event(error)
            await self.event(data, name=name)
            await self.end()
        else:
            await self._write(error.json(), last=True)

    async def _write(self, body: bytes, *, last: bool = False) -> None:
        async with self._lock:
            await self._start()
            await self._send({"type": "http.response.body", "body": body, "more_body": not last})
            self._last = time.monotonic()

    async def _start(self) -> None:
        if self.started:
            return
        self.started = True
        headers = {"content-type": "application/json"} | (SSE_HEADERS if self.stream else {}) | self.headers
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _tick(self) -> None:
        while True:
            wait = self._last + self._every - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self._write(b": keep-alive\n\n" if self.stream else b"\n")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled as soon as the client is gone (then ClientGone is raised).

    The body must have been read before: what `receive` says next is the disconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (watch, task):
            each.cancel()
        await asyncio.gather(watch, task, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
