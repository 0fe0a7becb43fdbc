"""The reader's end of a request: its events, for a thread or an asyncio loop, and its cancel button."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from shoal.engine.types import Delta, Event, Finished, PromptProgress, Queued, Request


class Handle:
    """Iterate over it (`for` or `async for`) until `Finished`. One reader at a time.

    The buffer stays small however slow the reader is: tokens nobody has read join one `Delta`, and of progress only
    the latest counts. `with engine.submit(...) as handle:` cancels what is still running when the block is left.
    """

    def __init__(self, request: Request, wake_engine: Callable[[], None]):
        self.request = request
        self.cancelled = False
        self._wake_engine = wake_engine
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._over = False  # Finished was handed out
        self._finished: Finished | None = None
        self._at_end: Callable[[Finished], None] | None = None

    def cancel(self) -> None:
        """End the request within one engine step, wherever it is. Harmless when it has ended already."""
        self.cancelled = True
        self._wake_engine()

    def answer_now(self) -> bool:
        """End a running thought: the answer begins with the next token. False when it does not think (any more)."""
        end_thought = getattr(self.request.logits_hook, "answer_now", None)
        return bool(end_thought and end_thought())

    def when_finished(self, call: Callable[[Finished], None]) -> None:
        """`call` is called once, before a reader sees the end and also if nobody reads; it must not block or raise."""
        with self._changed:
            if self._finished is not None:
                call(self._finished)
            else:
                self._at_end = call

    def put(self, event: Event) -> None:
        """Called by the engine's thread."""
        with self._changed:
            if isinstance(event, Finished):
                self._finished = event
                if self._at_end is not None:
                    self._at_end(event)
            last = self._events[-1] if self._events else None
            if isinstance(last, Delta) and isinstance(event, Delta):
                last.pieces.extend(event.pieces)
            else:
                if isinstance(last, Queued | PromptProgress) and type(last) is type(event):
                    self._events.pop()
                self._events.append(event)
            waiter, self._waiter = self._waiter, None
            self._changed.notify_all()
        if waiter is not None:
            loop, future = waiter
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed: nobody listens any more
                loop.call_soon_threadsafe(_resolve, future)

    def __iter__(self) -> Handle:
        return self

    def __next__(self) -> Event:
        with self._changed:
            while not self._events:
                if self._over:
                    raise StopIteration
                self._changed.wait()
            return self._take()

    def __aiter__(self) -> Handle:
        return self

    async def __anext__(self) -> Event:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._events:
                    return self._take()
                if self._over:
                    raise StopAsyncIteration
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = loop, future
            await future

    def _take(self) -> Event:
        event = self._events.popleft()
        self._over = isinstance(event, Finished)
        return event

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
