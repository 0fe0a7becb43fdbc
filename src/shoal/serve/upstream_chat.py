"""A chat answered by an upstream: the request in its dialect, its stream as the events that our own engine gives.

Another upstream of the same model is tried as long as no text has come, never after.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.engine.types import Finished, PromptProgress, Timings, Usage
from shoal.serve import answers
from shoal.serve.answers import Event, Part
from shoal.serve.caller import spend
from shoal.serve.errors import not_yet
from shoal.serve.schemas import ChatRequest
from shoal.serve.upstream import RemoteModel, Route, Upstream, UpstreamFault, refusal
from shoal.serve.upstream_file import EFFORTS, Price, ServedModel, UpstreamConfig

COMMON = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "logit_bias",
          "response_format", "tools", "tool_choice", "parallel_tool_calls")  # fmt: skip
SOME = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens")
SHAPES = ("structured_outputs", "guided_json", "guided_regex", "guided_choice")
MAX_LINE_BYTES = 4 << 20
MAX_ANSWER_CHARACTERS = 16 << 20
USAGE_SECONDS = 10.0
"""How long the counts may come after the end of the answer."""


@dataclass(frozen=True)
class Asked:
    """A chat request as any upstream may get it. `begun` is (content, reasoning) of an answer to continue."""

    model: RemoteModel
    messages: Sequence[Mapping[str, Any]]
    fields: Mapping[str, Any] = field(default_factory=dict)
    effort: str | None = None
    limit: int | None = None
    begun: tuple[str, str] | None = None
    salt: str = ""

    def times(self, n: int) -> list[Asked]:
        """The same for n answers: with a seed of its own each, or they would be the same."""
        seed = self.fields.get("seed")
        more = [{} if seed is None else {"seed": seed + i} for i in range(n)]
        return [replace(self, fields={**self.fields, **each}) for each in more]

    def routes(self) -> list[Route]:
        """Who can be asked this, the best first. Raises ApiError when nobody can."""
        found = self.model.candidates()
        if self.begun is None:
            return found
        able = [route for route in found if route.upstream.config.continues]
        if not any(self.begun[:1]):  # only thoughts so far
            able = [route for route in able if route.upstream.config.continues == "prefix"]
        if not able:
            raise not_yet("prefix", f"continuing an answer of {self.model.upstreams} is")
        return able


def asked_of_request(model: RemoteModel, request: ChatRequest) -> tuple[Asked, list[str]]:
    """(what to ask, names of fields that will have no effect). Raises ApiError for what would change the answer."""
    sent = request.model_dump(exclude_unset=True, exclude_none=True, include={*COMMON, *SOME, *SHAPES})
    begun = request.begun
    messages = request.messages[:-1] if begun is not None else request.messages
    texts = (begun.content or "", begun.reasoning_content or "") if begun is not None else None
    asked = Asked(model, messages, sent, request.effort(), request.limit, texts)
    if request.logprobs:
        raise not_yet("logprobs", f"with a model of an upstream ({model.upstreams}) it is")
    able = frozenset.intersection(*(route.upstream.config.dialect.fields for route in asked.routes()))
    for name in SHAPES:
        if name in sent and name not in able:
            raise not_yet(
                name,
                f"with a model of this upstream ({model.upstreams}) it is; response_format is passed on,",
            )
    ignored = [name for name in SOME if name in sent and name not in able]
    if request.thinking_budget is not None:
        ignored.append("thinking.budget_tokens" if request.thinking else "reasoning.max_tokens")
    if not model.thinks and request.effort() not in (None, "off"):
        ignored += request.thinking_fields
    ignored += [name for name in ("return_progress", "speculate") if getattr(request, name) is not None]
    return asked, ignored


def body_of(config: UpstreamConfig, served: ServedModel, asked: Asked) -> dict[str, Any]:
    """The request in the words of this upstream."""
    kind = config.dialect
    keys = ["role", "content", "name", "tool_calls", "tool_call_id"]
    keys += ["reasoning_content"] if kind.keeps_reasoning else []
    messages = [{key: each[key] for key in keys if each.get(key) is not None or key == "content"}
                for each in asked.messages]  # fmt: skip
    for message in messages:
        if message["role"] == "developer" and config.kind != "openai":
            message["role"] = "system"
    body: dict[str, Any] = {"model": served.id, "messages": messages, "stream": True, **kind.more}
    for name, value in asked.fields.items():
        if name in COMMON or name in kind.fields:
            body[kind.rename.get(name, name)] = value
    if asked.limit is not None:
        body[kind.limit] = asked.limit
    if asked.salt and kind.salt:
        body[kind.salt] = hashlib.sha256(asked.salt.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    effort = asked.effort
    if asked.begun is not None:
        content, reasoning = asked.begun
        last: dict[str, Any] = {"role": "assistant", "content": content}
        if config.continues == "prefix":
            last["prefix"] = True
            if reasoning:
                last["reasoning_content"] = reasoning
        elif config.continues == "final":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if content and not (reasoning and config.continues == "prefix"):
            effort = "off"  # its thinking is over
        messages.append(last)
    return body | _effort(config, served, effort)


def _effort(config: UpstreamConfig, served: ServedModel, effort: str | None) -> dict[str, Any]:
    if effort is None or not served.thinking:
        return {}
    how, on = config.dialect.effort, effort != "off"
    word = (served.efforts or config.dialect.efforts)[EFFORTS.index(effort)]
    said: dict[str, Any] = {}
    if how == "thinking":
        said["thinking"] = {"type": "enabled" if on else "disabled"}
    elif how == "template":
        said["chat_template_kwargs"] = {"thinking": on, "enable_thinking": on}
        word = word if served.efforts else ""
    if how and word:
        said["reasoning_effort"] = word
    return said


@dataclass(frozen=True)
class RemoteFinished(Finished):
    """The end of an upstream's answer. `told`: it sent its counts; else `usage` holds nothing."""

    upstream: str = ""
    price: Price | None = None
    told: bool = False

    @property
    def usd(self) -> float | None:
        """By the prices in the file; None without a price or counts."""
        u = self.usage
        if self.price is None or not self.told:
            return None
        return self.price.usd(u.prompt_tokens, u.cached_tokens, u.completion_tokens)


def remote_cost(finished: Sequence[RemoteFinished]) -> dict[str, Any]:
    """A receipt's cost: what the file's prices make of the counts. Energy and FLOPs of an upstream are not known."""
    prices = [each.usd for each in finished]
    known = [usd for usd in prices if usd is not None]
    first = finished[0]
    return {
        "device": ", ".join(dict.fromkeys(each.upstream for each in finished)),
        "seconds": sum(each.timings.first_token_seconds + each.timings.decode_seconds for each in finished),
        "tokens": sum(each.usage.completion_tokens for each in finished)
        if all(f.told for f in finished)
        else None,
        "flops": None,
        "utilisation": None,
        "joules": None,
        "energy_source": "unknown",
        "usd": sum(known) if len(known) == len(prices) else None,
        "price_basis": "upstream" if first.price else None,
        "price_date": first.price.date if first.price else None,
        "currency": "USD",
    }


def remote_bill(finished: Sequence[RemoteFinished]) -> dict[str, Any]:
    """usage, timings and cost of a request; each of n answers had its own prompt."""
    usage, timings = None, {}
    times = [each.timings for each in finished]
    if all(each.told for each in finished):
        names = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
        total = Usage(**{name: sum(getattr(each.usage, name) for each in finished) for name in names})
        usage = answers.usage_object(total)
        decode = sum(each.decode_seconds for each in times)
        written = max(total.completion_tokens - len(finished), 0)
        timings = {
            "cache_n": total.cached_tokens,
            "prompt_n": total.prompt_tokens - total.cached_tokens,
            "predicted_n": total.completion_tokens,
            "predicted_per_second": round(written / decode, 3) if decode > 0 else 0.0,
        }
    timings["predicted_ms"] = round(1000 * sum(each.decode_seconds for each in times), 3)
    timings["first_token_ms"] = round(1000 * min(each.first_token_seconds for each in times), 3)
    return {"usage": usage, "timings": timings, "cost": remote_cost(finished)}


class RemoteStream:
    """One answer. `start` returns when its first text is there (or its end); then it is iterated. Close it in any
    case: that closes the connection, which ends the work of the upstream."""

    def __init__(self, asked: Asked, progress: Callable[[PromptProgress], None] | None = None):
        self._asked, self._progress = asked, progress
        self._reader: AsyncGenerator[Event] | None = None
        self._first: Event | None = None
        self._began = time.monotonic()
        self._first_at = self._last_at = 0.0
        self._state: _Reader | None = None
        self._route: Route | None = None
        self._booked = False

    async def start(self) -> None:
        """Raises ApiError when none of the upstreams gives a first text."""
        fault: UpstreamFault | None = None
        for route in self._asked.routes():
            events = self._events(route)
            try:
                self._first = await anext(events)
                self._reader = events
                return
            except UpstreamFault as failed:
                fault = failed
                route.upstream.failed(failed)
                await events.aclose()
                if not failed.retry:
                    raise
            except BaseException:
                await events.aclose()
                raise
        assert fault is not None
        raise fault

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Event]:
        assert self._reader is not None and self._first is not None
        yield self._first
        try:
            async for event in self._reader:
                yield event
        except UpstreamFault as fault:
            assert self._route is not None
            self._route.upstream.failed(fault)
            raise

    async def aclose(self) -> None:
        """Also books on whoever asked what the upstream told of its work."""
        if self._reader is not None:
            await self._reader.aclose()
        end = self.stopped()
        if end.told and not self._booked:
            self._booked = True
            spend(self._asked.model.name, prompt_tokens=end.usage.prompt_tokens,
                  completion_tokens=end.usage.completion_tokens, usd=end.usd,
                  seconds=end.timings.first_token_seconds + end.timings.decode_seconds)  # fmt: skip

    def stopped(self) -> RemoteFinished:
        """The end of an answer that was cut here, with what is known of it."""
        return self._finished("cancelled")

    def _finished(self, reason: Any) -> RemoteFinished:
        usage = self._state.usage if self._state else None
        first = self._first_at - self._began if self._first_at else 0.0
        times = Timings(first_token_seconds=first, decode_seconds=max(self._last_at - self._first_at, 0.0))
        route = self._route
        return RemoteFinished(
            reason,
            usage or Usage(0, 0),
            times,
            upstream=route.upstream.name if route else "",
            price=route.model.price if route else None,
            told=usage is not None,
        )

    async def _events(self, route: Route) -> AsyncGenerator[Event]:
        """Text as it comes, then `RemoteFinished`; raises UpstreamFault."""
        upstream = route.upstream
        self._route, state = route, _Reader(upstream)
        self._state = state
        body = body_of(upstream.config, route.model, self._asked)
        upstream.in_flight += 1
        try:
            async with contextlib.aclosing(_data(upstream, body)) as lines:
                while True:
                    wait = USAGE_SECONDS if state.finish else None
                    try:
                        data = await asyncio.wait_for(anext(lines), wait) if wait else await anext(lines)
                    except StopAsyncIteration:
                        break
                    except (TimeoutError, UpstreamFault):
                        if state.finish:
                            break  # the answer is whole; only its counts are missing
                        raise
                    for event in state.take(data):
                        if isinstance(event, PromptProgress):
                            if self._progress:
                                self._progress(event)
                            continue
                        self._last_at = time.monotonic()
                        self._first_at = self._first_at or self._last_at
                        yield event
            for event in state.rest():
                yield event
            if not state.finish:
                raise UpstreamFault(upstream.name, "ended before its answer was complete", down=True)
            if state.finish == "content_filter":
                raise UpstreamFault(
                    upstream.name, "withheld the rest of its answer", retry=False, code="content_filter"
                )
            yield self._finished("length" if state.finish == "length" else "stop")
        finally:
            upstream.in_flight -= 1


async def _data(upstream: Upstream, body: dict[str, Any]) -> AsyncGenerator[str]:
    """The data of each server-sent event up to `[DONE]`; every failure is an UpstreamFault."""
    import httpx

    try:
        request = upstream.client.stream("POST", upstream.address("/chat/completions"), json=body)
        async with request as response:
            if response.status_code != 200:
                raise refusal(upstream, response.status_code, await _some(response, 65_536))
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise UpstreamFault(
                    upstream.name, "answered with something that is no stream of events", down=True
                )
            pieces: list[str] = []
            async for line in _lines(upstream, response):
                if line.startswith(b"data:"):
                    pieces.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
                elif not line and pieces:
                    data = "\n".join(pieces)
                    if data.strip() == "[DONE]":
                        return
                    yield data
                    pieces = []
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise upstream.fault(error) from None


async def _some(response: Any, limit: int) -> bytes:
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > limit:
            break
    return body[:limit]


async def _lines(upstream: Upstream, response: Any) -> AsyncIterator[bytes]:
    """Lines that end with LF or CRLF, and an empty one at the end: other separators belong to the text."""
    rest = b""
    async for piece in response.aiter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
        if len(rest) > MAX_LINE_BYTES:
            raise UpstreamFault(upstream.name, "sent a line without end")
    yield rest.removesuffix(b"\r")
    yield b""


class _Reader:
    """Chunks of one answer as parts of it."""

    def __init__(self, upstream: Upstream):
        config = upstream.config
        self._name, self._upstream = upstream.name, upstream
        self._fields = (
            ("reasoning_content", "reasoning") if config.reasoning == "auto" else (config.reasoning,)
        )
        self._tags = _ThinkTags() if config.reasoning == "think" else None
        self._calls: dict[int, int] = {}
        self._size = 0
        self.finish = ""
        self.usage: Usage | None = None

    def take(self, data: str) -> list[Event]:
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise UpstreamFault(self._name, "sent something that is no part of an answer", down=True)
        if chunk.get("error") or chunk.get("object") == "error":
            error = chunk.get("error")
            words = error.get("message") if isinstance(error, dict) else chunk.get("message") or error
            told = self._upstream.clean(words) if isinstance(words, str) else "no reason given"
            raise UpstreamFault(self._name, f"failed: {told}", down=True)
        self.usage = _usage(chunk.get("usage")) or self.usage
        progress = _progress(chunk.get("prompt_progress"))
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        delta = (choice.get("delta") if isinstance(choice, dict) else None) or {}
        if not isinstance(delta, dict):
            raise UpstreamFault(self._name, "sent something that is no part of an answer", down=True)
        parts = [*self._texts(delta), *self._called(delta.get("tool_calls"))]
        self._size += sum(len(part.text) for part in parts)
        if self._size > MAX_ANSWER_CHARACTERS:
            raise UpstreamFault(self._name, "does not end its answer", retry=False)
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        if reason in ("insufficient_system_resource", "error"):
            raise UpstreamFault(self._name, f"ended its answer early ({reason})")
        if isinstance(reason, str) and reason:
            self.finish = reason
        return [progress, *parts] if progress else list(parts)

    def rest(self) -> list[Event]:
        """What was held back."""
        return [part for part in self._tags.end() if part.text] if self._tags else []

    def _texts(self, delta: Mapping[str, Any]) -> list[Part]:
        parts = []
        thought = next((delta[name] for name in self._fields if isinstance(delta.get(name), str)), "")
        if thought:
            parts.append(Part("reasoning", thought))
        content = delta.get("content")
        if isinstance(content, str) and content:
            parts += self._tags.take(content) if self._tags else [Part("content", content)]
        return [part for part in parts if part.text]

    def _called(self, calls: Any) -> list[Part]:
        parts = []
        for call in calls if isinstance(calls, list) else ():
            function = (call.get("function") if isinstance(call, dict) else None) or {}
            index = call.get("index") if isinstance(call, dict) else None
            name, arguments = function.get("name"), function.get("arguments") or ""
            if not isinstance(index, int):
                index = len(self._calls) - (0 if name else 1)  # Gemini sends whole calls without numbers
            new = index not in self._calls
            if (new and not isinstance(name, str)) or not isinstance(arguments, str):
                raise UpstreamFault(self._name, "sent a call of a tool that cannot be read", down=True)
            place = self._calls.setdefault(index, len(self._calls))
            parts.append(Part("tool_call", arguments, index=place, name=name if new else None))
        return parts


class _ThinkTags:
    """Finds `<think> ... </think>` at the start of an answer whose upstream does not separate them."""

    OPEN, CLOSE = "<think>", "</think>"

    def __init__(self) -> None:
        self._held, self._kind = "", "start"

    def take(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        if self._kind == "start":
            seen = self._held.lstrip()
            if seen.startswith(self.OPEN):
                self._held, self._kind = seen[len(self.OPEN) :].lstrip("\n"), "reasoning"
            elif self.OPEN.startswith(seen):
                return []
            else:
                self._kind = "content"
        if self._kind == "reasoning":
            thought, mark, rest = self._held.partition(self.CLOSE)
            if mark:
                self._held, self._kind = rest.lstrip("\n"), "content"
            else:
                kept = next(
                    (n for n in range(len(self.CLOSE) - 1, 0, -1) if thought.endswith(self.CLOSE[:n])), 0
                )
                thought, self._held = thought[: len(thought) - kept], thought[len(thought) - kept :]
            parts.append(Part("reasoning", thought))
        if self._kind == "content":
            parts.append(Part("content", self._held))
            self._held = ""
        return parts

    def end(self) -> list[Part]:
        held, self._held = self._held, ""
        return [Part("reasoning" if self._kind == "reasoning" else "content", held)]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def _usage(value: Any) -> Usage | None:
    """The counts of a chunk; Gemini counts thoughts only in the total."""
    if not isinstance(value, dict) or not _count(value.get("prompt_tokens")):
        return None
    prompt, completion = _count(value["prompt_tokens"]), _count(value.get("completion_tokens"))
    completion = max(completion, _count(value.get("total_tokens")) - prompt)
    details = [value.get(name) for name in ("prompt_tokens_details", "completion_tokens_details")]
    read, wrote = (each if isinstance(each, dict) else {} for each in details)
    cached = _count(read.get("cached_tokens")) or _count(value.get("prompt_cache_hit_tokens"))
    return Usage(
        prompt, completion, min(cached, prompt), min(_count(wrote.get("reasoning_tokens")), completion)
    )


def _progress(value: Any) -> PromptProgress | None:
    """llama.cpp's form, which is ours too."""
    if not isinstance(value, dict) or not _count(value.get("total")):
        return None
    processed, total, cached = (_count(value.get(name)) for name in ("processed", "total", "cache"))
    spent = value.get("time_ms")
    return PromptProgress(processed, total, cached, spent / 1000 if isinstance(spent, int | float) else 0.0)
