"""/v1/chat/completions, /v1/completions, /v1/models, /tokenize: OpenAI's API with DeepSeek's fields."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

import shoal
from shoal.engine.types import Finished, PromptProgress
from shoal.serve import answers
from shoal.serve.answers import Part, Prompt
from shoal.serve.body import parse_object, read_body, validated
from shoal.serve.completions import CompletionWriter, chat_logprobs, progress_object
from shoal.serve.errors import bad_field
from shoal.serve.models import Slot
from shoal.serve.reply import Reply, while_connected
from shoal.serve.schemas import ChatRequest, CompletionRequest
from shoal.serve.work import Chat, Choice, Work, constraint_of, merged, sampling_params

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened

_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


class Endpoint:
    """An ASGI endpoint from a coroutine function (a plain function would be wrapped as request -> response)."""

    def __init__(self, handle: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(scope, receive, send)


class OpenAIApi:
    """The endpoints, with what they need. Each is an ASGI callable or a Starlette function."""

    def __init__(self, work: Work):
        self.work, self.models = work, work.models

    # ---- models

    def _model_object(self, slot: Slot) -> dict[str, Any]:
        card = slot.card
        return {
            "id": card.id,
            "object": "model",
            "created": card.created,
            "owned_by": "shoal",
            "type": "model",  # these three are Anthropic's
            "display_name": card.id,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(card.created)),
            "max_model_len": slot.context,
            "meta": {
                "n_params": card.parameters,
                "n_params_active": card.parameters_active,
                "size": card.size_bytes,
                "n_ctx": slot.context,
                "languages": list(card.languages),
                "thinking": slot.thinking,
                "license": card.licence,
                **(slot.remote.facts() if slot.remote else {}),
            },
            "status": {"value": {"ready": "loaded", "error": "failed"}.get(slot.status, slot.status)},
        }

    async def list_models(self, request: HttpRequest) -> Response:
        data = [self._model_object(self.models.slots[name]) for name in self.models.names()]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        pages = {"has_more": False} | ends  # Anthropic's
        return JSONResponse({"object": "list", "data": data} | pages)

    async def retrieve_model(self, request: HttpRequest) -> Response:
        return JSONResponse(self._model_object(self.models.slot(request.path_params["model"])))

    # ---- answers

    async def chat_completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = validated(ChatRequest, parse_object(await read_body(receive)))
        self.models.slot(request.model)
        reply = self.work.reply(send, stream=request.stream, ignored=request.ignored)
        with self.work.place(scope["shoal.owner"]):
            await while_connected(receive, reply.run(self._chat(scope["shoal.owner"], request, reply)))

    async def _chat(self, owner: str, request: ChatRequest, reply: Reply) -> None:
        chat = await self.work.prepare(request, reply)
        head = self._head("chatcmpl", self.models.slot(request.model))
        async with self.work.answering(chat, owner) as streams:
            if request.stream:
                await self._stream_chat(chat, streams, head | {"object": "chat.completion.chunk"}, reply)
            else:
                choices = await self.work.collect(streams)
                await reply.object(head | {"object": "chat.completion"} | self._chat_object(chat, choices))

    def _head(self, kind: str, slot: Slot) -> dict[str, Any]:
        return {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": slot.card.id,
                "system_fingerprint": f"shoal-{shoal.__version__}"}  # fmt: skip

    def _chat_object(self, chat: Chat, choices: Sequence[Choice]) -> dict[str, Any]:
        out = []
        for index, choice in enumerate(choices):
            text = "".join(choice.content)
            message: dict[str, Any] = {"role": "assistant", "content": text or (None if choice.calls else "")}
            if choice.reasoning:
                message["reasoning_content"] = "".join(choice.reasoning)
            if choice.calls:
                message["tool_calls"] = [
                    {"id": call["id"], "type": "function",
                     "function": {"name": call["name"], "arguments": call["arguments"]}}
                    for call in choice.calls
                ]  # fmt: skip
            logprobs = None
            if chat.request.logprobs:
                logprobs = chat_logprobs(chat.opened, choice.content_tokens, choice.reasoning_tokens)
            out.append({"index": index, "message": message, "logprobs": logprobs,
                        "finish_reason": choice.reason})  # fmt: skip
        return {"choices": out} | self.work.bill(chat.opened, [c.finished for c in choices if c.finished])

    async def _stream_chat(
        self, chat: Chat, streams: Sequence[AsyncIterator[answers.Event]], head: dict[str, Any], reply: Reply
    ) -> None:
        request, opened = chat.request, chat.opened
        usage_later = {"usage": None} if request.include_usage else {}

        async def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> None:
            choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish}
            choice["logprobs"] = more.pop("logprobs", None)
            await reply.event(head | {"choices": [choice]} | usage_later | more)

        for index in range(len(streams)):
            await chunk(index, {"role": "assistant", "content": "", "reasoning_content": ""})
        choices = [Choice() for _ in streams]
        finished: list[Finished] = []
        async for index, event in merged(streams):
            if isinstance(event, PromptProgress) and request.return_progress:
                await chunk(index, {}, prompt_progress=progress_object(event))
            elif isinstance(event, Part):
                choices[index].add(event)
                delta = _delta(event, choices[index])
                logprobs = None
                if request.logprobs and event.tokens and event.kind != "tool_call":
                    thoughts = event.kind == "reasoning"
                    logprobs = chat_logprobs(opened, *((), event.tokens) if thoughts else (event.tokens, ()))
                if event.text or event.name or logprobs:
                    await chunk(index, delta, logprobs=logprobs)
            elif isinstance(event, Finished):
                choices[index].finished = self.work.ended(event)
                finished.append(event)
                last = len(finished) == len(streams)
                bill = self.work.bill(opened, finished) if last else {}
                usage = bill.pop("usage", None)
                await chunk(index, {}, choices[index].reason, **({} if request.include_usage else bill))
                if last and request.include_usage:
                    await reply.event(head | {"choices": [], "usage": usage} | bill)
        await reply.event("[DONE]")
        await reply.end()

    # ---- plain completions

    async def completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = validated(CompletionRequest, parse_object(await read_body(receive)))
        self.models.slot(request.model)
        reply = self.work.reply(send, stream=request.stream, ignored=request.ignored)
        with self.work.place(scope["shoal.owner"]):
            await while_connected(receive, reply.run(self._complete(scope["shoal.owner"], request, reply)))

    async def _complete(self, owner: str, request: CompletionRequest, reply: Reply) -> None:
        slot = self.models.slot(request.model)
        opened = await self.models.open(request.model)
        prompts, limits = [], []
        asked = request.max_tokens if request.max_tokens is not None else _DEFAULT_COMPLETION_TOKENS
        for text in request.prompts():
            if isinstance(text, str) and request.suffix is not None:
                prompt = await answers.encode_middle(opened, text, request.suffix)
            elif isinstance(text, str):
                prompt = await answers.encode_text(opened, text)
                if not prompt.ids:
                    raise bad_field("prompt", "prompt: an empty prompt has nothing to continue")
            else:
                answers.check_token_ids(opened, text, "prompt")
                prompt = Prompt(text)
            limits.append(self.work.limit(opened, prompt, asked, "prompt", reply))
            prompts += [prompt] * (request.n or 1)
        params = sampling_params(opened, request, min(limits), request.logprobs)
        output = request.output()
        constraint = None
        if output is not None:
            constraint = await answers.off_loop(lambda: constraint_of(output), output.param)
        head = self._head("cmpl", slot) | {"object": "text_completion"}
        async with self.work.submitted(
            opened, prompts, params, request, owner, "prompt", constraint=constraint
        ) as handles:
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
                finished.append(self.work.ended(event))
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
                bill = self.work.bill(opened, finished, len(request.prompts())) if last else {}
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
                head | {"choices": choices} | self.work.bill(opened, finished, len(request.prompts()))
            )


def _delta(part: Part, choice: Choice) -> dict[str, Any]:
    """What a part adds to a streamed message."""
    if part.kind == "reasoning":
        return {"content": None, "reasoning_content": part.text}
    if part.kind == "content":
        return {"content": part.text}
    call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.text}}
    if part.name is not None:
        call |= {"id": choice.calls[-1]["id"], "type": "function"}
        call["function"]["name"] = part.name
    return {"content": None, "tool_calls": [call]}
