"""The models this server can answer with: a table of names. Its own are loaded on demand in a worker thread and leave
memory when nobody asks for long; those of upstreams come and go with them.

A name in a request is a key of this table and nothing else: never a path, never something to fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
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
    from shoal.serve.upstream import RemoteModel, Upstreams

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
    remote: RemoteModel | None = None
    """An upstream's model: there is nothing to load."""

    @property
    def context(self) -> int:
        if self.remote is not None:
            return self.remote.context
        return self.opened.engine.max_model_len if self.opened else self.card.context

    @property
    def thinking(self) -> str:
        """Known for certain once the tokenizer has been read."""
        if self.remote is not None:
            return "native" if self.remote.thinks else "none"
        return self.opened.protocol.thinking if self.opened else self.card.thinking

    @property
    def abilities(self) -> dict[str, bool]:
        """What the page may offer for its answers."""
        own = self.remote is None
        return {
            "tokens": own,
            "answer_now": own,
            "continue": own or bool(self.remote and self.remote.continues),
        }

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
        idle_unload_seconds: float | None = None,
        upstreams: Upstreams | None = None,
        describe: Callable[[Any], ModelCard] | None = None,
    ):
        self.describe = describe
        """The card of a newly installed model; None: the models of this server are fixed."""
        self.slots: dict[str, Slot] = {}
        self._default = default
        self._opener, self._max_loaded, self._show_paths = opener, max_loaded, show_paths
        self._idle_unload, self.upstreams = idle_unload_seconds, upstreams
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="shoal-load")
        self._closed = False
        self._sweeper: asyncio.Task[None] | None = None
        for card in cards:
            self.add(card)
        if upstreams is not None:
            upstreams.changed = self._take_remote
            self._take_remote()
        if upstreams is None and not self.slots:
            raise ShoalError(
                "there is no model to serve", hint="Name one: shoal serve PATH, or see `shoal models`."
            )

    @property
    def default(self) -> str:
        """The model that answers when none is named; empty while there is none at all."""
        if self._default in self.slots:
            return str(self._default)
        return next(iter(self.slots), "")

    def add(self, card: ModelCard) -> None:
        """Offer one more model of this machine (a name that an upstream has becomes ours)."""
        slot = self.slots[card.id] = Slot(card)
        if card.error:  # which may name a path
            slot.status, slot.error = "error", card.error if self._show_paths else "its files are damaged"
        self._take_remote()

    async def drop(self, name: str) -> None:
        """Offer it no longer. Raises ApiError 409 while it (or another on the same engine) answers or is loaded."""
        slot = self.slot(name)
        if slot.remote is not None:
            raise ApiError(400, f"{name} belongs to an upstream; it is not here to be removed", param="model")
        if slot.status == "loading" or (slot.opened and _busy(slot.opened)):
            raise ApiError(409, f"{name} is in use; stop its answers first")
        sharing = [group for group in self._groups() if any(each is slot for each in group)]
        del self.slots[name]
        for group in sharing:  # one, if it is loaded
            await self._unload(group)
        self._take_remote()

    def start(self) -> None:
        """Begin to load the default model, to watch the upstreams and to look for idle models; call it from the event
        loop."""
        if self.upstreams is not None:
            self.upstreams.start()
        if self._idle_unload is not None:
            self._sweeper = asyncio.ensure_future(self._sweep(self._idle_unload))
        if self.default:
            self.start_loading(None)

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self.upstreams is not None:
            await self.upstreams.close()
        self.close()

    def _take_remote(self) -> None:
        """The upstreams' models as they are now, behind our own."""
        if self.upstreams is None:
            return
        own = {name for name, slot in self.slots.items() if slot.remote is None}
        found = {model.name: model for model in self.upstreams.models(own)}
        for name in [name for name in self.slots if name not in own and name not in found]:
            del self.slots[name]
        for name, model in found.items():
            if name not in self.slots:
                self.slots[name] = Slot(ModelCard(name, "", _words_of(model.upstreams)))
            slot = self.slots[name]
            slot.remote = model
            slot.status, slot.error = model.state()

    def names(self) -> list[str]:
        """The default first: clients that do not choose take the first."""
        return sorted(self.slots, key=lambda name: name != self.default)

    def slot(self, name: str | None) -> Slot:
        """Raises ApiError 404 that lists what there is; None is the default model."""
        if name is None and not self.slots:
            raise ApiError(503, "no upstream has told its models yet", headers={"retry-after": "2"})
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
        if slot.remote is not None and self.upstreams is not None:  # nothing to load: look whether it answers
            return asyncio.ensure_future(self.upstreams.check(slot.remote))  # type: ignore[arg-type]
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
        if slot.remote is not None:
            told = f"{name} is a model of an upstream ({slot.remote.upstreams}): it can only be chatted with here"
            raise ApiError(400, told, param="model", code="unsupported_parameter")
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
        slot.opened, slot.status, slot.used_at = opened, "ready", time.monotonic()
        slot.bytes_done = slot.bytes_total = slot.bytes_total or slot.card.size_bytes
        return opened

    async def _make_room(self) -> None:
        """Close idle models, the one unused for longest first, until one more fits. A base and its adapters share an
        engine and go together."""
        loaded = sorted(self._groups(), key=lambda slots: max(slot.used_at for slot in slots))
        for slots in loaded[: max(len(loaded) + 1 - self._max_loaded, 0)]:
            assert slots[0].opened is not None
            if not _busy(slots[0].opened):
                await self._unload(slots)

    def _groups(self) -> list[list[Slot]]:
        """The loaded models, those of one engine together."""
        groups: dict[int, list[Slot]] = {}
        for slot in self.slots.values():
            if slot.opened:
                groups.setdefault(id(slot.opened.engine), []).append(slot)
        return list(groups.values())

    async def _unload(self, slots: list[Slot]) -> None:
        """Close the engine that these share, and give its memory back."""
        assert slots[0].opened is not None
        engine = slots[0].opened.engine
        for slot in slots:
            slot.opened, slot.loading, slot.status, slot.bytes_done = None, None, "unloaded", 0
        await asyncio.to_thread(_close, engine)

    async def _sweep(self, seconds: float) -> None:
        """Unload what nobody has asked for so long. Answers in work count as asking."""
        while True:
            await asyncio.sleep(min(seconds / 4, 15.0))
            for slots in self._groups():
                now = time.monotonic()
                assert slots[0].opened is not None
                if _busy(slots[0].opened):
                    slots[0].used_at = now
                elif now - max(slot.used_at for slot in slots) >= seconds:
                    log.info("unloaded after %.0f s without a request: %s", seconds, slots[0].card.id)
                    await self._unload(slots)

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


def _busy(opened: Opened) -> bool:
    stats = opened.engine.stats()
    return bool(stats.running or stats.waiting)


def _close(engine: Any) -> None:
    """Close an engine and hand what it held back to the system: glibc keeps freed memory unless told."""
    import ctypes
    import gc
    import sys

    engine.close()
    del engine
    gc.collect()
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _words_of(upstreams: str) -> dict[str, str]:
    return {
        "en": f"Answered by {upstreams}.",
        "ja": f"{upstreams} が答えます。",
        "zh": f"由 {upstreams} 回答。",
    }
