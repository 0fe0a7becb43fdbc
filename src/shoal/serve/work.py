"""What the API's protocols share: a place in the queue, a checked request as answers of the engine, the bill."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from starlette.types import Send

from shoal.data.types import Message
from shoal.engine import constrain
from shoal.engine.constrain import Constraint
from shoal.engine.handle import Handle
from shoal.engine.sampling import GREEDY_BELOW
from shoal.engine.types import Finished, Piece, SamplingParams
from shoal.serve import answers
from shoal.serve.answers import Part, Prompt
from shoal.serve.caller import CALLER, check_limits, counted
from shoal.serve.completions import summed
from shoal.serve.errors import ApiError, bad_field
from shoal.serve.metrics import Metrics
from shoal.serve.models import ModelTable
from shoal.serve.reply import Reply
from shoal.serve.schemas import ChatRequest, CompletionRequest, Output, Sampling
from shoal.serve.settings import ServerSettings
from shoal.serve.upstream_chat import Asked, RemoteFinished, RemoteStream, asked_of_request, remote_bill

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened

_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass
class Choice:
    """One answer as it grows."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, str]] = field(default_factory=list)
    """name, arguments (JSON text), id"""
    content_tokens: list[Piece] = field(default_factory=list)
    reasoning_tokens: list[Piece] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, part: Part) -> None:
        if part.kind == "tool_call":
            if part.name is not None:
                self.calls.append({"name": part.name, "arguments": "", "id": call_id()})
            self.calls[-1]["arguments"] += part.text
            return
        reasoning = part.kind == "reasoning"
        (self.reasoning if reasoning else self.content).append(part.text)
        (self.reasoning_tokens if reasoning else self.content_tokens).extend(part.tokens)

    @property
    def reason(self) -> str:
        """OpenAI's finish_reason."""
        assert self.finished is not None
        return "tool_calls" if self.calls and self.finished.reason == "stop" else self.finished.reason


def call_id() -> str:
    import secrets

    return f"call_{secrets.token_hex(12)}"


@dataclass
class Chat:
    """A chat request that has been checked against its model: what the engine will be asked."""

    request: ChatRequest
    opened: Opened
    prompt: Prompt
    params: SamplingParams
    budget: int | None
    constraint: Constraint | None
    remote: Asked | None = None
    """What is asked of upstreams; the prompt and what follows it are empty then, and there is no opened model."""


class Work:
    """The server's settings, models and counters, and who has how many requests in work."""

    def __init__(self, settings: ServerSettings, models: ModelTable, metrics: Metrics):
        self.settings, self.models, self.metrics = settings, models, metrics
        self._in_work: Counter[str] = Counter()  # by owner

    @contextlib.contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """A place in the queue while the block runs. Where there are several keys or users, one of them gets at most
        half of all places, so that nobody can shut the others out. Raises ApiError 429."""
        check_limits()
        places = self.settings.max_requests
        share = max(places // 2, 1) if len(self.settings.keys) > 1 or CALLER.get().name else places
        if self._in_work.total() >= places or self._in_work[owner] >= share:
            yours = self._in_work[owner]
            raise ApiError(429, f"too many requests are in work, {yours} of them yours; try again in a moment",
                           headers={"retry-after": "2"})  # fmt: skip
        self._in_work[owner] += 1
        try:
            with counted():
                yield
        finally:
            self._in_work[owner] -= 1

    def reply(self, send: Send, *, stream: bool | None, ignored: Sequence[str] = ()) -> Reply:
        reply = Reply(
            send, stream=bool(stream), headers={}, keep_alive_seconds=self.settings.keep_alive_seconds
        )
        known = [name for name in ignored if _SAFE_NAME.fullmatch(name)]
        self.tell_ignored(reply, known[:30], "fields this server does not know")
        return reply

    def tell_ignored(self, reply: Reply, names: Sequence[str], why: str) -> None:
        """Name in a header what was asked and will not be done; a 400 on a strict server."""
        if names and self.settings.strict:
            raise bad_field(names[0], f"{why}: {', '.join(names)}")
        if names:
            told = reply.headers.get("x-shoal-ignored")
            reply.headers["x-shoal-ignored"] = ", ".join([*([told] if told else []), *names])

    def limit(self, opened: Opened, prompt: Prompt, asked: int | None, param: str, reply: Reply) -> int:
        limit = answers.check_room(opened, prompt, asked, param)
        if asked is not None and limit < asked:
            reply.headers["x-shoal-max-tokens"] = str(limit)
        return limit

    async def prompt(
        self, request: ChatRequest, opened: Opened, reply: Reply | None = None
    ) -> tuple[Prompt, int | None]:
        """(the prompt of a chat, how long it may think); raises ApiError."""
        effort = request.effort()
        if reply is not None and opened.protocol.thinking == "none" and effort not in (None, "off"):
            self.tell_ignored(reply, request.thinking_fields, "this model does not think first")
        thinking, budget = answers.thinking_of_request(opened, effort)
        if request.thinking_budget is not None:
            budget = request.thinking_budget
        messages, begun, tools = request.parsed_messages(), request.begun, request.offered_tools()
        if begun is not None:
            thinking = thinking and (bool(begun.reasoning_content) or not begun.content)
            messages = messages[:-1] or [Message("user", "")]
        if tools and not (opened.protocol.supports_tools and opened.protocol.marks.call_begin):
            raise bad_field("tools", "tools: how this model writes calls is not known here")
        prompt = await answers.render_chat(opened, messages, thinking=thinking, tools=tools)
        if begun is not None:
            prompt = answers.begun(opened, prompt, begun.content or "", begun.reasoning_content or "")
        return prompt, budget

    async def prepare(self, request: ChatRequest, reply: Reply) -> Chat:
        """Everything about a chat that can be wrong shows here; raises ApiError."""
        if (remote := self.models.slot(request.model).remote) is not None:
            asked, without = asked_of_request(remote, request)
            self.tell_ignored(reply, without, "fields that this upstream does not know")
            params = SamplingParams(temperature=1.0 if request.temperature is None else request.temperature)
            return Chat(request, cast("Opened", None), Prompt([]), params, None, None, asked)
        opened = await self.models.open(request.model)
        prompt, budget = await self.prompt(request, opened, reply)
        limit = self.limit(opened, prompt, request.limit, "messages", reply)
        params = sampling_params(
            opened, request, limit, request.top_logprobs or 0 if request.logprobs else None
        )
        tools = request.offered_tools()
        constraint = None
        if tools:
            constraint = await answers.off_loop(lambda: self._tools(opened, request, tools), "tools")
            if (
                constraint is None and not request.parallel
            ):  # marks that are text: the first call ends the answer
                params = replace(params, stop=(*params.stop, opened.protocol.marks.call_end))
        elif (output := request.output()) is not None:
            constraint = await answers.off_loop(lambda: constraint_of(output), output.param)
        return Chat(request, opened, prompt, params, budget, constraint)

    @staticmethod
    def _tools(opened: Opened, request: ChatRequest, tools: Sequence[dict[str, Any]]) -> Constraint | None:
        output = request.output()
        if output is not None and output.kind != "json" and not request.must_call:
            raise bad_field(output.param, f"{output.param}: not together with tools")
        return constrain.tools_constraint(
            opened.protocol,
            tools,
            mode="required" if request.must_call else "auto",
            parallel=request.parallel,
            content=(output.value, output.strict) if output is not None else None,
        )

    @contextlib.asynccontextmanager
    async def answering(self, chat: Chat, owner: str) -> AsyncIterator[list[AsyncIterator[answers.Event]]]:
        """The events of each of the n answers; whatever happens, none of them goes on when the block is left."""
        prompts = [chat.prompt] * (chat.request.n or 1)
        if chat.remote is not None:
            asked = replace(chat.remote, salt=chat.request.salt(owner))
            remote = [RemoteStream(each) for each in asked.times(len(prompts))]
            try:
                await asyncio.gather(*(stream.start() for stream in remote))
                yield [aiter(stream) for stream in remote]
            finally:
                await asyncio.gather(*(stream.aclose() for stream in remote), return_exceptions=True)
            return
        async with self.submitted(
            chat.opened, prompts, chat.params, chat.request, owner, "messages", chat.budget, chat.constraint
        ) as handles:
            yield [answers.chat_events(chat.opened, handle, chat.prompt) for handle in handles]

    @contextlib.asynccontextmanager
    async def submitted(
        self,
        opened: Opened,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        request: Sampling,
        owner: str,
        param: str,
        thinking_budget: int | None = None,
        constraint: Constraint | None = None,
    ) -> AsyncIterator[list[Handle]]:
        """All answers of a request in the engine; whatever happens, none of them goes on when the block is left."""
        handles: list[Handle] = []
        try:
            for index, prompt in enumerate(prompts):
                one = answers.choice_params(params, index)
                grammar = await answers.compiled(opened, constraint)
                salt = request.salt(owner)
                handles.append(
                    answers.submit(
                        opened,
                        prompt,
                        one,
                        salt=salt,
                        param=param,
                        thinking_budget=thinking_budget,
                        grammar=grammar,
                    )
                )
            yield handles
        finally:
            for handle in handles:
                handle.cancel()

    async def collect(self, streams: Sequence[AsyncIterator[answers.Event]]) -> list[Choice]:
        choices = [Choice() for _ in streams]
        async for index, event in merged(streams):
            if isinstance(event, Part):
                choices[index].add(event)
            elif isinstance(event, Finished):
                choices[index].finished = self.ended(event)
        return choices

    def ended(self, finished: Finished) -> Finished:
        if finished.reason == "cancelled":
            raise ApiError(503, "the server is stopping", headers={"retry-after": "5"})
        return finished

    def bill(self, opened: Opened, finished: Sequence[Finished], prompts: int = 1) -> dict[str, Any]:
        """usage, timings and cost of a request. `prompts` is how many different prompts it had: n answers to one
        prompt count it once."""
        if remote := [each for each in finished if isinstance(each, RemoteFinished)]:
            bill = remote_bill(remote)
        else:
            total = summed(finished, prompts)
            bill = {
                "usage": answers.usage_object(total.usage),
                "timings": answers.timings_object(total),
                "cost": answers.cost_object(opened, finished),
            }
        joules = (bill["cost"].get("joules") or 0.0) / max(len(finished), 1)
        for each in finished:
            self.metrics.answer(each.reason, each.timings.first_token_seconds, each.timings.decode_seconds,
                                each.usage.completion_tokens, joules)  # fmt: skip
        return bill


def constraint_of(output: Output) -> Constraint:
    """The grammar of a shape; raises InvalidRequest."""
    if output.kind == "json":
        return constrain.json_constraint(output.value, strict=output.strict, param=output.param)
    if output.kind == "regex":
        return constrain.regex_constraint(output.value, param=output.param)
    return constrain.choice_constraint(output.value, param=output.param)


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
    if _is_greedy(request):  # the likeliest token was asked for: no penalty that was not
        said.setdefault("repetition_penalty", 1.0)
    echo = isinstance(request, CompletionRequest) and request.echo and logprobs is not None
    return replace(
        opened.defaults,
        **said,
        logit_bias=bias,
        seed=request.seed,
        stop=tuple(request.stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        speculate=request.speculate is not False,
        max_tokens=limit,
        min_tokens=min(request.min_tokens or 0, limit),
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo else None,
    )


def _is_greedy(request: Sampling) -> bool:
    """Whether the request leaves only the likeliest token, in any of the ways to say so."""
    small = [
        value for value in (request.temperature, request.top_p) if value is not None and value < GREEDY_BELOW
    ]
    return bool(small) or request.top_k == 1 or request.min_p == 1


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
