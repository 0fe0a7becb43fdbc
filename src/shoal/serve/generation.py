"""Answers of the chat page. They belong to the server: started by a POST, they go on whoever reads.

Each step becomes a numbered event in memory, and the text so far goes to the store every second. Readers attach to a
chat's channel with the number they saw last; a page that was reloaded, a phone that slept, a second tab all read the
same events. A server that is killed leaves the text: at the next start the store marks such messages "stopped".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from shoal.engine.constrain import tools_constraint
from shoal.engine.handle import Handle
from shoal.engine.types import Finished, PromptProgress, Queued
from shoal.errors import ShoalError
from shoal.serve import answers
from shoal.serve.answers import Part
from shoal.serve.caller import check_limits, counted
from shoal.serve.database import DiskFull
from shoal.serve.errors import ApiError
from shoal.serve.metrics import Metrics
from shoal.serve.models import ModelTable, Slot
from shoal.serve.page_prompt import api_turn, page_prompt, turns_of
from shoal.serve.store import Store
from shoal.serve.upstream import RemoteModel
from shoal.serve.upstream_chat import Asked, RemoteFinished, RemoteStream, remote_cost
from shoal.serve.work import call_id

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened

log = logging.getLogger("shoal.serve")

NOT_STORED = (
    "The disk is full: this answer is only in the server's memory. It is stored as soon as there is room; copy it"
    " if the server is to be stopped before."
)
RETAIN_SECONDS = 120.0
"""Events of a chat stay readable for so long after its last answer ended."""
FLUSH_SECONDS = 1.0
STORE_AGAIN_SECONDS = 5.0
"""An answer that the disk did not take is kept in memory and tried again."""
MAX_RUNNING = 16
"""Answers of one owner at once."""
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
"""Parameters of a chat that the sampler knows by these names."""


@dataclass
class Job:
    """One answer in the making. `message` is its row as it was at the start; it has text if that is continued."""

    owner: str
    chat_id: str
    message: dict[str, Any]
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, str]] = field(default_factory=list)
    """id, name, arguments (JSON text)"""
    status: str = "queued"
    error: str | None = None
    handle: Handle | None = None
    task: asyncio.Task[None] | None = None
    stopped: bool = False
    thinking_since: float | None = None
    thinking_seconds: float | None = None

    def __post_init__(self) -> None:
        self.content = [self.message["content"]] if self.message["content"] else []
        self.reasoning = [self.message["reasoning"]] if self.message["reasoning"] else []
        if self.content:
            self.thinking_seconds = self.message["thinking_seconds"]

    def thought(self) -> None:
        """The thinking is over, if there was any: how long it took, that before a continuation included."""
        if self.thinking_since is not None and self.thinking_seconds is None:
            before = self.message["thinking_seconds"] or 0.0
            self.thinking_seconds = before + time.monotonic() - self.thinking_since

    def live(self) -> dict[str, Any]:
        """The fields of the message as they are now."""
        texts = {"content": "".join(self.content), "reasoning": "".join(self.reasoning)}
        calls = {"tool_calls": [dict(call) for call in self.calls]} if self.calls else {}
        return texts | calls | {"status": self.status, "error": self.error}


class Channel:
    """The events of one chat. Numbers grow for ever, also over a restart: they begin at the clock's milliseconds."""

    def __init__(self) -> None:
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.next = int(time.time() * 1000)
        self.jobs: dict[str, Job] = {}
        self.idle_since = time.monotonic()
        self._changed = asyncio.Event()

    def put(self, event: dict[str, Any]) -> None:
        self.events.append((self.next, event))
        self.next += 1
        self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def last(self) -> int:
        return self.next - 1

    async def wait(self) -> None:
        await self._changed.wait()

    def stale(self) -> bool:
        return not self.jobs and time.monotonic() - self.idle_since > RETAIN_SECONDS


class Generations:
    """All answers of the page that are being made. Lives on one event loop."""

    def __init__(self, store: Store, models: ModelTable, metrics: Metrics):
        self.store, self.models, self.metrics = store, models, metrics
        self._channels: dict[tuple[str, str], Channel] = {}

    def channel(self, owner: str, chat_id: str) -> Channel | None:
        return self._channels.get((owner, chat_id))

    def check_place(self, owner: str) -> None:
        """Raises ApiError 429 when this owner has too many answers in work, or he or his key has come to a limit."""
        check_limits()
        running = sum(len(channel.jobs) for (who, _), channel in self._channels.items() if who == owner)
        if running >= MAX_RUNNING:
            raise ApiError(429, f"{running} answers are in work already; wait for one or stop it",
                           headers={"retry-after": "5"})  # fmt: skip

    def start(
        self,
        owner: str,
        chat_id: str,
        message: dict[str, Any],
        history: Sequence[dict[str, Any]],
        *,
        slot: Slot,
        thinking: str,
        params: dict[str, Any],
    ) -> None:
        """Begin to answer into `message` (a row of the store), or go on where it ends; `history` stands above it."""
        for key in [key for key, channel in self._channels.items() if channel.stale()]:
            del self._channels[key]
        channel = self._channels.setdefault((owner, chat_id), Channel())
        job = Job(owner, chat_id, message)
        channel.jobs[message["id"]] = job
        job.task = asyncio.ensure_future(self._run(channel, job, history, slot, thinking, params))

    def stop(self, owner: str, chat_id: str, message_id: str) -> bool:
        """End an answer and keep its text; False when it is not in work."""
        channel = self.channel(owner, chat_id)
        job = channel.jobs.get(message_id) if channel else None
        if job is None:
            return False
        already, job.stopped = job.stopped, True
        if job.handle is not None:
            job.handle.cancel()
        elif job.task is not None and not already:
            job.task.cancel()
        return True

    def answer_now(self, owner: str, chat_id: str, message_id: str) -> bool:
        """End a running thought, so that the answer begins; False when the answer is not in one."""
        channel = self.channel(owner, chat_id)
        job = channel.jobs.get(message_id) if channel else None
        return job is not None and job.handle is not None and job.handle.answer_now()

    def stop_chat(self, owner: str, chat_id: str) -> None:
        channel = self.channel(owner, chat_id)
        for message_id in list(channel.jobs) if channel else []:
            self.stop(owner, chat_id, message_id)

    async def close(self) -> None:
        """Stop all answers and wait until their texts are stored."""
        tasks = []
        for channel in self._channels.values():
            for job in channel.jobs.values():
                self.stop(job.owner, job.chat_id, job.message["id"])
                if job.task:
                    tasks.append(job.task)
        if tasks:
            await asyncio.wait(tasks, timeout=2)

    async def read(self, owner: str, chat_id: str, after: int) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """Events with a number above `after`, until no answer of this chat is in work.

        A reader whose last event is no longer held gets the messages in work as they are now (`snapshot`) instead.
        """
        channel = self.channel(owner, chat_id)
        if channel is None:
            return
        first = channel.events[0][0] if channel.events else channel.next
        if 0 < after < first - 1 and channel.jobs:
            messages = [job.message | job.live() for job in channel.jobs.values()]
            after = channel.last
            yield after, {"type": "snapshot", "messages": messages}
        while True:
            held = channel.events
            start = max(after + 1 - held[0][0], 0) if held else 0
            if start < len(held):
                for number, event in held[start:]:
                    after = number
                    yield number, event
            elif channel.jobs:
                await channel.wait()
            else:
                return

    # ---- one answer

    async def _run(
        self,
        channel: Channel,
        job: Job,
        history: Sequence[dict[str, Any]],
        slot: Slot,
        thinking: str,
        params: dict[str, Any],
    ) -> None:
        message_id = job.message["id"]
        final: dict[str, Any] = {"status": "error"}
        flusher = asyncio.ensure_future(self._flush_every_second(job))
        try:
            opened = await self._loaded(channel, job, slot)
            check_limits()  # again: of several questions at once each was let in before any was counted
            with counted():
                final = await self._answer(channel, job, opened, history, thinking, params)
        except asyncio.CancelledError:
            final = {"status": "stopped"}
        except (ApiError, ShoalError) as error:
            final = {"status": "error", "error": str(error)}
        except Exception as fault:
            log.error("message %s failed: %s", message_id, type(fault).__name__)
            final = {"status": "error", "error": "a fault inside the server"}
        finally:
            flusher.cancel()
        job.thought()
        job.status = final["status"]
        fields = job.live() | {"thinking_seconds": job.thinking_seconds} | final
        whole = await self._stored(channel, job, fields) or job.message | fields
        if final["status"] == "error":
            channel.put({"type": "error", "message": message_id, "error": final.get("error") or "failed"})
        else:
            channel.put({"type": "done", "message": whole})
        channel.jobs.pop(message_id, None)
        channel.idle_since = time.monotonic()
        channel.wake()

    async def _stored(self, channel: Channel, job: Job, fields: dict[str, Any]) -> dict[str, Any] | None:
        """The finished message as it is stored now. While the disk is full, readers are told once and see the text from
        memory; it is stored as soon as there is room."""
        message_id = job.message["id"]
        store = self.store.of(message_id)
        while True:
            try:
                await asyncio.to_thread(store.update_message, job.owner, message_id, **fields)
                return await asyncio.to_thread(store.message, job.owner, job.chat_id, message_id)
            except DiskFull:
                if job.error is None:
                    log.error("message %s is not stored yet: the disk is full", message_id)
                    job.status, job.error = "error", NOT_STORED
                    channel.put({"type": "error", "message": message_id, "error": job.error})
                with contextlib.suppress(asyncio.CancelledError):  # stopping ends an answer, not its storing
                    await asyncio.sleep(STORE_AGAIN_SECONDS)
            except Exception as fault:
                log.error("message %s is not stored: %s", message_id, type(fault).__name__)
                return None

    async def _loaded(self, channel: Channel, job: Job, slot: Slot) -> Opened:
        """The model; while it loads, readers see the bytes. An upstream's has nothing to load."""
        if slot.remote is not None:
            return cast("Opened", slot.remote)
        opening = asyncio.ensure_future(self.models.open(slot.card.id))
        try:
            while True:
                done, _ = await asyncio.wait((opening,), timeout=0.25)
                if done:
                    return opening.result()
                job.status = "loading"
                progress = {"bytes_done": slot.bytes_done, "bytes_total": slot.bytes_total}
                channel.put({"type": "loading", "message": job.message["id"]} | progress)
        finally:
            opening.cancel()

    async def _answer(
        self,
        channel: Channel,
        job: Job,
        opened: Opened,
        history: Sequence[dict[str, Any]],
        thinking: str,
        params: dict[str, Any],
    ) -> dict[str, Any]:
        """Fill the job's texts; returns the columns of the finished message."""
        if isinstance(opened, RemoteModel):
            return await self._answer_remote(channel, job, opened, history, thinking, params)
        message_id = job.message["id"]
        thinks, budget = answers.thinking_of_request(opened, thinking)
        prompt = await page_prompt(opened, history, job.message, params, thinking=thinks)
        limit = answers.check_room(opened, prompt, params.get("max_tokens"), "content")
        chosen = {name: params[name] for name in SAMPLING if params.get(name) is not None}
        sampling = replace(opened.defaults, **chosen, max_tokens=limit)
        grammar = None
        if tools := params.get("tools"):
            held = await answers.off_loop(
                lambda: tools_constraint(opened.protocol, tools, mode="auto"), "tools"
            )
            grammar = await answers.compiled(opened, held)
        job.handle = answers.submit(
            opened, prompt, sampling, salt=job.owner, param="content", thinking_budget=budget, grammar=grammar
        )
        if job.stopped:
            job.handle.cancel()
        finished: Finished | None = None
        try:
            async for event in answers.chat_events(opened, job.handle, prompt):
                if isinstance(event, Queued):
                    job.status = "queued"
                    channel.put({"type": "queued", "message": message_id, "position": event.position})
                elif isinstance(event, PromptProgress):
                    job.status = "prompt"
                    channel.put({"type": "prompt", "message": message_id} | asdict(event))
                elif isinstance(event, Part):
                    self._add_part(channel, job, event)
                elif isinstance(event, Finished):
                    finished = event
        finally:
            job.handle.cancel()
        assert finished is not None
        return self._columns(job, opened, finished)

    async def _answer_remote(
        self,
        channel: Channel,
        job: Job,
        model: RemoteModel,
        history: Sequence[dict[str, Any]],
        thinking: str,
        params: dict[str, Any],
    ) -> dict[str, Any]:
        """The same by an upstream. Stop cancels the task, which closes the connection."""

        def progress(event: PromptProgress) -> None:
            job.status = "prompt"
            channel.put({"type": "prompt", "message": job.message["id"]} | asdict(event))

        message = job.message
        begun = (
            (message["content"], message["reasoning"]) if message["content"] or message["reasoning"] else None
        )
        turns = [api_turn(turn) for turn in turns_of(history, params)]
        fields = {name: params[name] for name in (*SAMPLING, "tools") if params.get(name) is not None}
        asked = Asked(model, turns, fields, thinking, params.get("max_tokens"), begun, salt=job.owner)
        stream = RemoteStream(asked, progress)
        try:
            await stream.start()
            async for event in stream:
                if isinstance(event, Part):
                    self._add_part(channel, job, event)
                elif isinstance(event, RemoteFinished):
                    finished = event
        except asyncio.CancelledError:
            if not job.stopped:
                raise
            finished = stream.stopped()
        finally:
            await stream.aclose()
        return self._columns(job, cast("Opened", None), finished)

    def _add_part(self, channel: Channel, job: Job, part: Part) -> None:
        if not part.text and part.name is None:
            return
        job.status = "writing"
        event = {"type": part.kind, "message": job.message["id"], "text": part.text}
        if part.kind == "tool_call":
            job.thought()
            if part.name is not None:
                job.calls.append({"id": call_id(), "name": part.name, "arguments": ""})
            call = job.calls[-1]
            call["arguments"] += part.text
            event |= {"id": call["id"], "name": call["name"]}
        elif part.kind == "reasoning":
            if job.thinking_since is None:
                job.thinking_since = time.monotonic()
            job.reasoning.append(part.text)
        else:
            job.thought()
            job.content.append(part.text)
        channel.put(event)

    def _columns(self, job: Job, opened: Opened, finished: Finished) -> dict[str, Any]:
        usage, times = finished.usage, asdict(finished.timings)
        if isinstance(finished, RemoteFinished):
            cost, told = remote_cost([finished]), finished.told
            times = {name: value for name, value in times.items() if value}  # what happened there nobody told
        else:
            cost, told = answers.cost_object(opened, [finished]), True
        self.metrics.answer(finished.reason, finished.timings.first_token_seconds, finished.timings.decode_seconds,
                            usage.completion_tokens, cost.get("joules") or 0.0)  # fmt: skip
        status = {"stop": "done", "cancelled": "stopped"}.get(finished.reason, finished.reason)
        counts = {
            name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
        }
        before = job.message if job.message["content"] or job.message["reasoning"] else {}
        return {
            "status": status,
            "reasoning_tokens": usage.reasoning_tokens + (before.get("reasoning_tokens") or 0),
            "usage": _added(before.get("usage"), counts, "completion_tokens") if told else None,
            "timings": _added(before.get("timings"), times, "decode_seconds"),
            "cost": _added(before.get("cost"), cost, "seconds", "tokens", "flops", "joules", "usd"),
        }

    async def _flush_every_second(self, job: Job) -> None:
        """What is written so far survives a kill."""
        stored = 0
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            pieces = len(job.content) + len(job.reasoning)
            if pieces != stored:
                stored = pieces
                store = self.store.of(job.message["id"])
                with contextlib.suppress(DiskFull):  # tried again; the end of the answer tells people
                    await asyncio.to_thread(store.update_message, job.owner, job.message["id"], **job.live())


def _added(before: dict[str, Any] | None, now: dict[str, Any], *names: str) -> dict[str, Any]:
    """The figures of an answer that was continued: `names` are summed, the others are those of its beginning."""
    if not before:
        return now
    return (
        now
        | before
        | {name: (before.get(name) or 0) + now[name] for name in names if now.get(name) is not None}
    )
