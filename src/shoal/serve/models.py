"""The models this server can answer with: a table of names, loaded on demand in a worker thread.

A name in a request is a key of this table and nothing else: never a path, never something to fetch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shoal.errors import ShoalError
from shoal.serve.errors import ApiError

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened

log = logging.getLogger("shoal.serve")

Status = Literal["unloaded", "loading", "ready", "error"]
Progress = Callable[[int, int], None]
MAX_LOADED = 3
"""Models in memory at once; the one idle for longest leaves first."""


Opener = Callable[[str, Progress], "Opened"]


@dataclass
class ModelCard:
    """What is known of a model before it is loaded; `spec` is what the opener is given."""

    id: str
    spec: str
    description: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    context: int = 0
    thinking: Literal["none", "native", "adapter"] = "none"
    examples: Mapping[str, list[str]] = field(default_factory=dict)
    licence: str = ""
    size_bytes: int = 0
    parameters: int = 0
    parameters_active: int = 0
    created: int = 0
    error: str | None = None
    """Why it cannot be loaded, when that is known already."""


@dataclass
class Slot:
    card: ModelCard
    status: Status = "unloaded"
    bytes_done: int = 0
    bytes_total: int = 0
    error: str | None = None
    opened: Opened | None = None
    loading: asyncio.Future[Opened] | None = None
    used_at: float = 0.0

    @property
    def context(self) -> int:
        return self.opened.engine.max_model_len if self.opened else self.card.context

    @property
    def thinking(self) -> str:
        """Known for certain once the tokenizer has been read."""
        return self.opened.protocol.thinking if self.opened else self.card.thinking

    def state(self) -> dict[str, Any]:
        fields = ("status", "bytes_done", "bytes_total", "error")
        return {"id": self.card.id} | {name: getattr(self, name) for name in fields}


class ModelTable:
    """All models by name, in the order they are offered; the first is the default unless another is named."""

    def __init__(
        self,
        cards: Iterable[ModelCard],
        opener: Opener,
        *,
        default: str | None = None,
        max_loaded: int = MAX_LOADED,
        show_paths: bool = True,
    ):
        self.slots = {card.id: Slot(card) for card in cards}
        if not self.slots:
            raise ShoalError(
                "there is no model to serve", hint="Name one: shoal serve PATH, or see `shoal models`."
            )
        self.default = default if default in self.slots else next(iter(self.slots))
        self._opener, self._max_loaded, self._show_paths = opener, max_loaded, show_paths
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="shoal-load")
        self._closed = False
        for slot in self.slots.values():
            if slot.card.error:  # which may name a path
                slot.status, slot.error = "error", slot.card.error if show_paths else "its files are damaged"

    def names(self) -> list[str]:
        """The default first: clients that do not choose take the first."""
        return sorted(self.slots, key=lambda name: name != self.default)

    def slot(self, name: str | None) -> Slot:
        """Raises ApiError 404 that lists what there is; None is the default model."""
        found = self.slots.get(self.default if name is None else name)
        if found is None:
            known = ", ".join(self.names()[:20])
            raise ApiError(404, f"there is no model of that name here; the models are: {known}", param="model",
                           code="model_not_found")  # fmt: skip
        return found

    def first_load(self) -> bool:
        """Whether nothing can answer yet because the first model is still loading."""
        states = [slot.status for slot in self.slots.values()]
        return "loading" in states and "ready" not in states

    def start_loading(self, name: str | None) -> asyncio.Future[Opened]:
        """Begin to load, or join the load that runs; call it from the event loop."""
        slot = self.slot(name)
        if slot.loading is None or (slot.loading.done() and slot.opened is None):
            slot.status, slot.error, slot.bytes_done, slot.bytes_total = (
                "loading",
                None,
                0,
                slot.card.size_bytes,
            )
            slot.loading = asyncio.ensure_future(self._load(slot))
            slot.loading.add_done_callback(_seen)
        return slot.loading

    async def open(self, name: str | None) -> Opened:
        """The model, loaded if it is not yet. Leaving early does not stop the load. Raises ApiError."""
        slot = self.slot(name)
        slot.used_at = time.monotonic()
        if slot.opened is not None:
            return slot.opened
        return await asyncio.shield(self.start_loading(name))

    async def _load(self, slot: Slot) -> Opened:
        def progress(done: int, total: int) -> None:
            if self._closed:
                raise ShoalError("the server is stopping")  # ends the load: nobody waits for the rest
            slot.bytes_done, slot.bytes_total = done, total

        loop = asyncio.get_running_loop()
        try:
            await self._make_room()
            opened = await loop.run_in_executor(self._worker, self._opener, slot.card.spec, progress)
        except Exception as trouble:
            text = (
                str(trouble)
                if isinstance(trouble, ShoalError) and self._show_paths
                else type(trouble).__name__
            )
            slot.status, slot.error = "error", text
            log.error("model %s cannot be loaded: %s", slot.card.id, trouble)
            raise ApiError(500, f"the model {slot.card.id} cannot be loaded: {text}", code="model_not_loaded",
                           headers={"x-should-retry": "false"}) from trouble  # fmt: skip
        slot.opened, slot.status = opened, "ready"
        slot.bytes_done = slot.bytes_total = slot.bytes_total or slot.card.size_bytes
        return opened

    async def _make_room(self) -> None:
        """Close idle models, the one unused for longest first, until one more fits. A base and its adapters share an
        engine and go together."""
        groups: dict[int, list[Slot]] = {}
        for slot in self.slots.values():
            if slot.opened:
                groups.setdefault(id(slot.opened.engine), []).append(slot)
        loaded = sorted(groups.values(), key=lambda slots: max(slot.used_at for slot in slots))
        for slots in loaded[: max(len(loaded) + 1 - self._max_loaded, 0)]:
            assert slots[0].opened is not None
            engine = slots[0].opened.engine
            stats = engine.stats()
            if not stats.running and not stats.waiting:
                for slot in slots:
                    slot.opened, slot.loading, slot.status = None, None, "unloaded"
                await asyncio.to_thread(engine.close)

    def totals(self) -> dict[str, float]:
        """Sums over all engines, for /metrics."""
        names = ("running", "waiting", "prompt_tokens", "cached_tokens", "completion_tokens", "draft_tokens",
                 "accepted_tokens", "cache_blocks", "cache_blocks_free", "kv_bytes", "preemptions",
                 "restarts")  # fmt: skip
        engines = {id(slot.opened.engine): slot.opened.engine for slot in self.slots.values() if slot.opened}
        stats = [engine.stats() for engine in engines.values()]
        return {name: sum(getattr(each, name) for each in stats) for name in names}

    def close(self) -> None:
        """End all engines and a load that runs; what was being answered is cancelled."""
        self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)
        for slot in self.slots.values():
            if slot.opened:
                slot.opened.engine.close()
                slot.opened, slot.status = None, "unloaded"


def _seen(future: asyncio.Future[Any]) -> None:
    """A failed load that nobody waited for is not an unhandled exception: it stands in the slot."""
    if not future.cancelled():
        future.exception()
