"""/v1/chat/completions, /v1/completions, /v1/models: OpenAI's API with DeepSeek's fields."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

import shoal
from shoal.engine.handle import Handle
from shoal.engine.types import Finished, Piece, PromptProgress, SamplingParams
from shoal.serve import answers
from shoal.serve.answers import Part, Prompt
from shoal.serve.body import parse_object, read_body, validated
from shoal.serve.completions import CompletionWriter, chat_logprobs, progress_object, summed
from shoal.serve.errors import ApiError, bad_field
from shoal.serve.metrics import Metrics
from shoal.serve.models import ModelTable, Slot
from shoal.serve.reply import Reply, while_connected
from shoal.serve.schemas import ChatRequest, CompletionRequest, Sampling
from shoal.serve.settings import ServerSettings

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened

_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


class Endpoint:
    """An ASGI endpoint from a coroutine function (a plain function would be wrapped as request -> response)."""

    def __init__(self, handle: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(scope, receive, send)


@dataclass
class Choice:
    """One answer as it grows."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    content_tokens: list[Piece] = field(default_factory=list)
    reasoning_tokens: list[Piece] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, part: Part) -> None:
        reasoning = part.kind == "reasoning"
        (self.reasoning if reasoning else self.content).append(part.text)
        (self.reasoning_tokens if reasoning else self.content_tokens).extend(part.tokens)


class OpenAIApi:
    """The endpoints, with what they need. Each is an ASGI callable or a Starlette function."""

    def __init__(self, settings: ServerSettings, models: ModelTable, metrics: Metrics):
        self.settings, self.models, self.metrics = settings, models, metrics
        self._in_work: Counter[str] = Counter()  # by owner

    # ---- models

    def _model_object(self, slot: Slot) -> dict[str, Any]:
        card = slot.card
        return {
            "id": card.id,
            "object": "model",
            "created": card.created,
            "owned_by": "shoal",
            "max_model_len": slot.context,
            "meta": {
                "n_params": card.parameters,
                "n_params_active": card.parameters_active,
                "size": card.size_bytes,
                "n_ctx": slot.context,
                "languages": list(card.languages),
                "thinking": slot.thinking,
                "license": card.licence,
            },
            "status": {"value": {"ready": "loaded", "error": "failed"}.get(slot.status, slot.status)},
        }

    async def list_models(self, request: HttpRequest) -> Response:
        data = [self._model_object(self.models.slots[name]) for name in self.models.names()]
        return JSONResponse({"object": "list", "data": data})

    async def retrieve_model(self, request: HttpRequest) -> Response:
        return JSONResponse(self._model_object(self.models.slot(request.path_params["model"])))

    # ---- answers

    @contextlib.contextmanager
    def _place(self, owner: str) -> Iterator[None]:
        """A place in the queue while the block runs. Where there are several keys, one of them gets at most half of
        all places, so that nobody can shut the others out. Raises ApiError 429."""
        places = self.settings.max_requests
        share = max(places // 2, 1) if len(self.settings.keys) > 1 else places
        if self._in_work.total() >= places or self._in_work[owner] >= share:
            yours = self._in_work[owner]
            raise ApiError(429, f"too many requests are in work, {yours} of them yours; try again in a moment",
                           headers={"retry-after": "2"})  # fmt: skip
        self._in_work[owner] += 1
        try:
            yield
        finally:
            self._in_work[owner] -= 1

    def _reply(self, request: Sampling, send: Send) -> Reply:
        reply = Reply(send, stream=bool(request.stream), headers={},
                      keep_alive_seconds=self.settings.keep_alive_seconds)  # fmt: skip
        known = [name for name in request.ignored if _SAFE_NAME.fullmatch(name)]
        self._tell_ignored(reply, known[:30], "fields this server does not know")
        return reply

    def _tell_ignored(self, reply: Reply, names: Sequence[str], why: str) -> None:
        """Name in a header what was asked and will not be done; a 400 on a strict server."""
        if names and self.settings.strict:
            raise bad_field(names[0], f"{why}: {', '.join(names)}")
        if names:
            told = reply.headers.get("x-shoal-ignored")
            reply.headers["x-shoal-ignored"] = ", ".join([*([told] if told else []), *names])

    async def chat_completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = validated(ChatRequest, parse_object(await read_body(receive)))
        self.models.slot(request.model)
        reply = self._reply(request, send)
        with self._place(scope["shoal.owner"]):
            await while_connected(receive, reply.run(self._chat(scope["shoal.owner"], request, reply)))

    async def _chat(self, owner: str, request: ChatRequest, reply: Reply) -> None:
        slot = self.models.slot(request.model)
        opened = await self.models.open(request.model)
        effort = request.effort()
        if opened.protocol.thinking != "native" and effort not in (None, "off"):
            self._tell_ignored(reply, request.thinking_fields, "this model does not think first")
        thinking, budget = answers.thinking_of_request(opened, effort)
        prompt = await answers.render_chat(opened, request.parsed_messages(), thinking=thinking)
        limit = self._limit(opened, prompt, request.limit, "messages", reply)
        params = sampling_params(
            opened, request, limit, request.top_logprobs or 0 if request.logprobs else None
        )
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": slot.card.id,
                "system_fingerprint": f"shoal-{shoal.__version__}"}  # fmt: skip
        prompts = [prompt] * (request.n or 1)
        with self._submitted(opened, prompts, params, request, owner, "messages", budget) as handles:
            streams = [answers.chat_events(opened, handle, prompt) for handle in handles]
            if request.stream:
                await self._stream_chat(
                    opened, request, streams, head | {"object": "chat.completion.chunk"}, reply
                )
            else:
                choices = await self._collect(streams)
                await reply.object(
                    head | {"object": "chat.completion"} | self._chat_object(opened, request, choices)
                )

    def _limit(self, opened: Opened, prompt: Prompt, asked: int | None, param: str, reply: Reply) -> int:
        limit = answers.check_room(opened, prompt, asked, param)
        if asked is not None and limit < asked:
            reply.headers["x-shoal-max-tokens"] = str(limit)
        return limit

    @contextlib.contextmanager
    def _submitted(
        self,
        opened: Opened,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        request: Sampling,
        owner: str,
        param: str,
        thinking_budget: int | None = None,
    ) -> Iterator[list[Handle]]:
        """All answers of a request in the engine; whatever happens, none of them goes on when the block is left."""
        handles: list[Handle] = []
        try:
            for index, prompt in enumerate(prompts):
                one = answers.choice_params(params, index)
                salt = request.salt(owner)
                handles.append(
                    answers.submit(
                        opened, prompt, one, salt=salt, param=param, thinking_budget=thinking_budget
                    )
                )
            yield handles
        finally:
            for handle in handles:
                handle.cancel()

    async def _collect(self, streams: Sequence[AsyncIterator[answers.Event]]) -> list[Choice]:
        choices = [Choice() for _ in streams]
        async for index, event in merged(streams):
            if isinstance(event, Part):
                choices[index].add(event)
            elif isinstance(event, Finished):
                choices[index].finished = self._ended(event)
        return choices

    def _ended(self, finished: Finished) -> Finished:
        if finished.reason == "cancelled":
            raise ApiError(503, "the server is stopping", headers={"retry-after": "5"})
        return finished

    def _bill(self, opened: Opened, finished: Sequence[Finished], prompts: int = 1) -> dict[str, Any]:
        """usage, timings and cost of a request. `prompts` is how many different prompts it had: n answers to one
        prompt count it once."""
        total = summed(finished, prompts)
        cost = answers.cost_object(opened, finished)
        for each in finished:
            self.metrics.answer(each.reason, each.timings.first_token_seconds, each.timings.decode_seconds,
                                each.usage.completion_tokens, (cost.get("joules") or 0.0) / len(finished))  # fmt: skip
        return {
            "usage": answers.usage_object(total.usage),
            "timings": answers.timings_object(total),
            "cost": cost,
        }

    def _chat_object(self, opened: Opened, request: ChatRequest, choices: Sequence[Choice]) -> dict[str, Any]:
        out = []
        for index, choice in enumerate(choices):
            assert choice.finished is not None
            message: dict[str, Any] = {"role": "assistant", "content": "".join(choice.content)}
            if choice.reasoning:
                message["reasoning_content"] = "".join(choice.reasoning)
            logprobs = None
            if request.logprobs:
                logprobs = chat_logprobs(opened, choice.content_tokens, choice.reasoning_tokens)
            out.append({"index": index, "message": message, "logprobs": logprobs,
                        "finish_reason": choice.finished.reason})  # fmt: skip
        return {"choices": out} | self._bill(opened, [c.finished for c in choices if c.finished])

    async def _stream_chat(
        self,
        opened: Opened,
        request: ChatRequest,
        streams: Sequence[AsyncIterator[answers.Event]],
        head: dict[str, Any],
        reply: Reply,
    ) -> None:
        usage_later = {"usage": None} if request.include_usage else {}

        async def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> None:
            choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish}
            choice["logprobs"] = more.pop("logprobs", None)
            await reply.event(head | {"choices": [choice]} | usage_later | more)

        for index in range(len(streams)):
            await chunk(index, {"role": "assistant", "content": "", "reasoning_content": ""})
        finished: list[Finished] = []
        async for index, event in merged(streams):
            if isinstance(event, PromptProgress) and request.return_progress:
                await chunk(index, {}, prompt_progress=progress_object(event))
            elif isinstance(event, Part) and (event.text or request.logprobs):
                thoughts = event.kind == "reasoning"
                delta = (
                    {"content": None, "reasoning_content": event.text}
                    if thoughts
                    else {"content": event.text}
                )
                logprobs = None
                if request.logprobs and event.tokens:
                    logprobs = chat_logprobs(opened, *((), event.tokens) if thoughts else (event.tokens, ()))
                if event.text or logprobs:
                    await chunk(index, delta, logprobs=logprobs)
            elif isinstance(event, Finished):
                finished.append(self._ended(event))
                last = len(finished) == len(streams)
                bill = self._bill(opened, finished) if last else {}
                usage = bill.pop("usage", None)
                await chunk(index, {}, event.reason, **({} if request.include_usage else bill))
                if last and request.include_usage:
                    await reply.event(head | {"choices": [], "usage": usage} | bill)
        await reply.event("[DONE]")
        await reply.end()

    # ---- plain completions

    async def completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = validated(CompletionRequest, parse_object(await read_body(receive)))
        self.models.slot(request.model)
        reply = self._reply(request, send)
        with self._place(scope["shoal.owner"]):
            await while_connected(receive, reply.run(self._complete(scope["shoal.owner"], request, reply)))

    async def _complete(self, owner: str, request: CompletionRequest, reply: Reply) -> None:
        slot = self.models.slot(request.model)
        opened = await self.models.open(request.model)
        prompts, limits = [], []
        asked = request.max_tokens if request.max_tokens is not None else _DEFAULT_COMPLETION_TOKENS
        for text in request.prompts():
            if isinstance(text, str):
                prompt = await answers.encode_text(opened, text)
                if not prompt.ids:
                    raise bad_field("prompt", "prompt: an empty prompt has nothing to continue")
            else:
                answers.check_token_ids(opened, text, "prompt")
                prompt = Prompt(text)
            limits.append(self._limit(opened, prompt, asked, "prompt", reply))
            prompts += [prompt] * (request.n or 1)
        params = sampling_params(opened, request, min(limits), request.logprobs)
        head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                "model": slot.card.id, "system_fingerprint": f"shoal-{shoal.__version__}"}  # fmt: skip
        with self._submitted(opened, prompts, params, request, owner, "prompt") as handles:
            streams = [answers.text_events(opened, handle) for handle in handles]
            writers = [CompletionWriter(opened, request, prompt) for prompt in prompts]
            await self._write_completion(opened, request, streams, writers, head, reply)

    async def _write_completion(
        self,
        opened: Opened,
        request: CompletionRequest,
        streams: Sequence[AsyncIterator[answers.Event]],
        writers: Sequence[CompletionWriter],
        head: dict[str, Any],
        reply: Reply,
    ) -> None:
        """Stream the pieces as they come, or join them to one object: the same pieces either way."""
        finished: list[Finished] = []
        usage_later = {"usage": None} if request.include_usage else {}
        async for index, event in merged(streams):
            writer = writers[index]
            if isinstance(event, Finished):
                finished.append(self._ended(event))
                writer.finish_reason = event.reason
            elif isinstance(event, PromptProgress) and request.return_progress and request.stream:
                progress = {"prompt_progress": progress_object(event)}
                await reply.event(
                    head | {"choices": [writer.choice(index, "", None)]} | usage_later | progress
                )
                continue
            text, logprobs = writer.take(event)
            if request.stream and (text or logprobs or writer.finish_reason):
                last = len(finished) == len(streams)
                bill = self._bill(opened, finished, len(request.prompts())) if last else {}
                usage = bill.pop("usage", None)
                choices = [writer.choice(index, text, logprobs)]
                await reply.event(
                    head | {"choices": choices} | usage_later | ({} if request.include_usage else bill)
                )
                if last and request.include_usage:
                    await reply.event(head | {"choices": [], "usage": usage} | bill)
        if request.stream:
            await reply.event("[DONE]")
            await reply.end()
        else:
            choices = [writer.whole(index) for index, writer in enumerate(writers)]
            await reply.object(
                head | {"choices": choices} | self._bill(opened, finished, len(request.prompts()))
            )


def sampling_params(opened: Opened, request: Sampling, limit: int, logprobs: int | None) -> SamplingParams:
    """The engine's parameters: what the request says, else the model's own defaults. Raises ApiError."""
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    answers.check_token_ids(opened, list(bias), "logit_bias")
    answers.check_token_ids(opened, request.stop_token_ids or (), "stop_token_ids")
    names = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    )
    said = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    echo = isinstance(request, CompletionRequest) and request.echo and logprobs is not None
    return replace(
        opened.defaults,
        **said,
        logit_bias=bias,
        seed=request.seed,
        stop=tuple(request.stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        max_tokens=limit,
        min_tokens=min(request.min_tokens or 0, limit),
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo else None,
    )


async def merged(streams: Sequence[AsyncIterator[answers.Event]]) -> AsyncIterator[tuple[int, answers.Event]]:
    """The events of several answers as they come, each with the number of its answer."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, answers.Event | Exception | None]] = asyncio.Queue(64)

    async def pump(index: int, stream: AsyncIterator[answers.Event]) -> None:
        try:
            async for event in stream:
                await queue.put((index, event))
            await queue.put((index, None))
        except Exception as error:
            await queue.put((index, error))

    pumps = [asyncio.ensure_future(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        open_streams = len(pumps)
        while open_streams:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
