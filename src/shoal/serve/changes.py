"""Which chats of an owner have changed, told to every page of theirs that is in view.

So a second tab or device shows the same. What changed is not told, only where: whoever hears it reads the chat again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from shoal.serve.errors import ApiError

MAX_WATCHES = 32
"""Pages of one owner that listen at once."""


@dataclass(eq=False)
class _Watch:
    tab: str
    chats: dict[str, None] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Changes:
    """Lives on one event loop. A slow listener costs one entry a chat: what it has not heard yet is told once."""

    def __init__(self) -> None:
        self._start = int(time.time() * 1000)  # a server that was started again has other numbers
        self._numbers: dict[str, int] = {}
        self._watches: dict[str, set[_Watch]] = {}

    def last(self, owner: str) -> int:
        """The number of the owner's last change."""
        return self._numbers.get(owner, self._start)

    def tell(self, owner: str, chat_id: str, by: str = "") -> None:
        """A chat was written to; the tab that did it (`by`) knows."""
        self._numbers[owner] = self.last(owner) + 1
        for watch in self._watches.get(owner, ()):
            if not by or watch.tab != by:
                watch.chats[chat_id] = None
                watch.wake.set()

    async def watch(self, owner: str, tab: str, after: int) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
        """At once whether anything happened since number `after` (`missed`), then the ids of chats as they change."""
        watches = self._watches.setdefault(owner, set())
        if len(watches) >= MAX_WATCHES:
            raise ApiError(429, f"{MAX_WATCHES} pages are listening already", headers={"retry-after": "60"})
        watch = _Watch(tab)
        watches.add(watch)
        try:
            yield self.last(owner), {"missed": self.last(owner) != after}
            while True:
                await watch.wake.wait()
                watch.wake.clear()
                chats, watch.chats = list(watch.chats), {}
                yield self.last(owner), {"chats": chats}
        finally:
            watches.discard(watch)
            if not watches:
                self._watches.pop(owner, None)
