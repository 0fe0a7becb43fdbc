"""/v1/messages and /v1/messages/count_tokens: Anthropic's protocol, translated to a chat request and back."""

from __future__ import annotations

import json
import secrets
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shoal.engine.types import Finished, PromptProgress, Usage
from shoal.serve.answers import Part
from shoal.serve.body import parse_object, read_body, validated
from shoal.serve.errors import ApiError, anthropic_body, bad_field, not_yet
from shoal.serve.reply import Reply, while_connected
from shoal.serve.schemas import MAX_MESSAGES, MAX_TOKENS, ChatRequest, Flag, Number, Text, Whole
from shoal.serve.work import Chat, Choice, Work

_TEXTS = "a string or a list of text blocks is expected"
_BILLING = "x-anthropic-billing-header"  # changes with every request: no prefix would be found again


class MessagesRequest(BaseModel):
    """POST /v1/messages. Bounds that are not here are those of the chat request it becomes."""

    model_config = ConfigDict(extra="allow")
    needs_max_tokens: ClassVar[bool] = True

    model: Text | None = Field(None, max_length=1000)
    messages: Any = None
    max_tokens: Whole | None = Field(None, ge=1, le=MAX_TOKENS)
    system: Any = None
    stop_sequences: Any = None
    stream: Flag | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=0, le=2**31 - 1)
    thinking: Any = None
    output_config: Any = None
    tools: Any = None
    tool_choice: Any = None
    metadata: Any = None

    @property
    def ignored(self) -> list[str]:
        return sorted(name for name, value in (self.model_extra or {}).items() if value not in (None, [], {}))

    def chat(self) -> ChatRequest:
        """The same request as a chat; raises ApiError that speaks of this protocol's fields."""
        for name in ("mcp_servers", "container"):
            if (self.model_extra or {}).get(name):
                raise not_yet(name, "running something for the model is")
        if self.max_tokens is None and self.needs_max_tokens:
            raise bad_field("max_tokens", "max_tokens: this field is required")
        fields: dict[str, Any] = {
            "model": self.model, "messages": [*self._system(), *self._messages()], "max_tokens": self.max_tokens,
            "stop": self.stop_sequences, "stream": self.stream, "temperature": self.temperature, "top_p": self.top_p,
            "top_k": self.top_k, "user_id": self._object("metadata").get("user_id"),
        }  # fmt: skip
        fields |= self._thinking() | self._format() | self._tools()
        try:
            return validated(
                ChatRequest, {name: value for name, value in fields.items() if value is not None}
            )
        except ApiError as error:
            if error.param == "stop" or error.param == "user_id":
                name = {"stop": "stop_sequences", "user_id": "metadata.user_id"}[error.param]
                error.param, error.message = name, error.message.replace(error.param, name, 1)
            raise

    def _object(self, name: str) -> dict[str, Any]:
        value = getattr(self, name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise bad_field(name, f"{name}: an object is expected")
        return value

    def _system(self) -> list[dict[str, Any]]:
        texts = [text for text in _texts(self.system, "system") if not text.startswith(_BILLING)]
        return [{"role": "system", "content": "\n".join(texts)}] if texts else []

    def _messages(self) -> list[dict[str, Any]]:
        if not isinstance(self.messages, list) or not self.messages:
            raise bad_field("messages", "messages: a list with at least one message is expected")
        if len(self.messages) > MAX_MESSAGES:
            raise bad_field("messages", f"messages: at most {MAX_MESSAGES} are accepted")
        turns: list[dict[str, Any]] = []
        for i, message in enumerate(self.messages):
            turns += _turns(message, f"messages[{i}]")
        if turns and turns[-1]["role"] == "assistant" and not turns[-1].get("tool_calls"):
            turns[-1]["prefix"] = True  # this protocol continues a last answer
        return turns

    def _thinking(self) -> dict[str, Any]:
        thinking, effort = self._object("thinking"), self._object("output_config").get("effort")
        kind = "disabled" if self.thinking is None else thinking.get("type")
        if kind not in ("enabled", "disabled", "adaptive"):
            raise bad_field("thinking.type", "thinking.type: expected 'enabled', 'disabled' or 'adaptive'")
        budget = thinking.get("budget_tokens")
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
            raise bad_field(
                "thinking.budget_tokens", "thinking.budget_tokens: a whole number from 1 is expected"
            )
        if (
            kind == "enabled"
            and budget is not None
            and self.max_tokens is not None
            and budget >= self.max_tokens
        ):
            raise bad_field("thinking.budget_tokens", "thinking.budget_tokens: must be less than max_tokens")
        if kind == "disabled":
            return {"thinking": {"type": "disabled"}}
        if effort is not None and effort not in ("low", "medium", "high", "xhigh", "max"):
            raise bad_field(
                "output_config.effort", "output_config.effort: expected low, medium, high, xhigh or max"
            )
        thinking = {"type": "enabled"} | (
            {"budget_tokens": budget} if kind == "enabled" and budget is not None else {}
        )
        return {"thinking": thinking} | ({"reasoning_effort": effort} if effort else {})

    def _format(self) -> dict[str, Any]:
        shape = self._object("output_config").get("format")
        if shape is None:
            return {}
        if not isinstance(shape, dict) or shape.get("type") != "json_schema":
            raise bad_field(
                "output_config.format",
                "output_config.format: expected {'type': 'json_schema', 'schema': ...}",
            )
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": shape.get("schema")}}}

    def _tools(self) -> dict[str, Any]:
        tools = []
        if not isinstance(self.tools, list | None):
            raise bad_field("tools", "tools: a list is expected")
        for i, tool in enumerate(self.tools or ()):
            if not isinstance(tool, dict) or tool.get("type", "custom") != "custom":
                raise bad_field(
                    f"tools[{i}]",
                    f"tools[{i}]: only tools of the caller are known, with name and input_schema",
                )
            names = {
                "name": "name",
                "description": "description",
                "input_schema": "parameters",
                "strict": "strict",
            }
            tools.append({"type": "function", "function": {to: tool.get(of) for of, to in names.items()}})
        choice = self._object("tool_choice")
        kind = choice.get("type", "auto")
        if kind not in ("auto", "any", "tool", "none"):
            raise bad_field("tool_choice.type", "tool_choice.type: expected 'auto', 'any', 'tool' or 'none'")
        named = {"type": "function", "function": {"name": choice.get("name")}}
        chosen: Any = {"any": "required", "tool": named}.get(kind, kind)
        fields = {"tools": tools or None, "tool_choice": chosen if choice else None}
        return fields | ({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {})


class CountRequest(MessagesRequest):
    """POST /v1/messages/count_tokens."""

    needs_max_tokens = False


def _texts(value: Any, place: str) -> list[str]:
    """Text, or the texts of text blocks."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise bad_field(place, f"{place}: {_TEXTS}")
    texts = []
    for j, block in enumerate(value):
        if (
            not isinstance(block, dict)
            or block.get("type") != "text"
            or not isinstance(block.get("text"), str)
        ):
            raise bad_field(f"{place}[{j}]", f"{place}[{j}]: only text blocks are read here")
        texts.append(block["text"])
    return texts


def _turns(message: Any, place: str) -> list[dict[str, Any]]:
    """One message as one or several chat messages: results of tools stand apart."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("user", "assistant", "system"):
        raise bad_field(f"{place}.role", f"{place}.role: expected user or assistant")
    content, place = message.get("content"), f"{place}.content"
    if role == "system":  # late remarks of a client stay where they are, or no prefix would be found again
        return [{"role": "user", "content": "\n".join(_texts(content, place))}]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or len(content) > MAX_MESSAGES:
        raise bad_field(place, f"{place}: a string or a list of blocks is expected")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for j, block in enumerate(content):
        here = f"{place}[{j}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts += _texts([block], place)
        elif kind == "thinking" and role == "assistant" and isinstance(block.get("thinking"), str):
            thoughts.append(block["thinking"])
        elif kind == "redacted_thinking" and role == "assistant":
            continue
        elif kind == "tool_use" and role == "assistant":
            call = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "type": "function", "function": call})
        elif kind == "tool_result" and role == "user":
            text = "\n".join(_texts(block.get("content"), f"{here}.content"))
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
        else:
            shown = repr(kind[:40]) if isinstance(kind, str) else "without a type"
            raise bad_field(here, f"{here}: a block of type {shown} is not read here")
    if role == "user":
        return [*results, *([{"role": "user", "content": "\n".join(texts)}] if texts or not results else [])]
    turn: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        turn["reasoning_content"] = "\n".join(thoughts)
    return [turn | ({"tool_calls": calls} if calls else {})]


class AnthropicApi:
    """The two endpoints."""

    def __init__(self, work: Work):
        self.work, self.models = work, work.models

    async def count_tokens(self, request: HttpRequest) -> Response:
        chat = validated(CountRequest, parse_object(await read_body(request.receive))).chat()
        prompt, _ = await self.work.prompt(chat, await self.models.open(chat.model))
        return JSONResponse({"input_tokens": len(prompt.ids)})

    async def messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = validated(MessagesRequest, parse_object(await read_body(receive)))
        chat = asked.chat()
        self.models.slot(chat.model)
        reply = self.work.reply(send, stream=asked.stream, ignored=asked.ignored)
        reply.error_event = lambda error: ("error", anthropic_body(error, scope["shoal.request_id"]))
        with self.work.place(scope["shoal.owner"]):
            await while_connected(receive, reply.run(self._answer(scope["shoal.owner"], asked, chat, reply)))

    async def _answer(self, owner: str, asked: MessagesRequest, request: ChatRequest, reply: Reply) -> None:
        chat = await self.work.prepare(request, reply)
        head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant",
                "model": self.models.slot(request.model).card.id}  # fmt: skip
        async with self.work.answering(chat, owner) as (events,):
            if asked.stream:
                await self._stream(chat, events, head, reply)
                return
            (choice,) = await self.work.collect([events])
        assert choice.finished is not None
        self.work.bill(chat.opened, [choice.finished])
        ending = _ending(choice) | {"usage": _usage(choice.finished.usage)}
        await reply.object(head | {"content": _blocks(choice)} | ending)

    async def _stream(self, chat: Chat, events: Any, head: dict[str, Any], reply: Reply) -> None:
        """message_start, the blocks one after the other, message_delta, message_stop."""
        writer = _Writer(reply)
        choice, cached, started = Choice(), 0, False
        async for event in events:
            if isinstance(event, PromptProgress):
                cached = event.cached
            if not started and isinstance(event, PromptProgress | Part | Finished):
                started = True
                usage = _usage(Usage(len(chat.prompt.ids), 0, cached))
                start = head | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                await writer.send("message_start", message=start)
                await writer.send("ping")
            if isinstance(event, Part) and (event.text or event.name):
                choice.add(event)
                await writer.part(event, choice)
            elif isinstance(event, Finished):
                choice.finished = self.work.ended(event)
                await writer.close()
                self.work.bill(chat.opened, [event])
                await writer.send("message_delta", delta=_ending(choice), usage=_usage(event.usage))
        await writer.send("message_stop")
        await reply.end()


class _Writer:
    """Blocks of a streamed message: one open at a time, numbered."""

    def __init__(self, reply: Reply):
        self._reply = reply
        self._open: tuple[str, int] | None = None
        self._index = -1

    async def send(self, kind: str, **fields: Any) -> None:
        await self._reply.event({"type": kind} | fields, name=kind)

    async def part(self, part: Part, choice: Choice) -> None:
        place = (part.kind, part.index)
        if self._open != place or part.name is not None:
            await self.close()
            self._open, self._index = place, self._index + 1
            block: Any = {
                "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
                "content": {"type": "text", "text": ""},
                "tool_call": {"type": "tool_use", "id": "", "name": part.name, "input": {}},
            }[part.kind]
            if part.kind == "tool_call":
                block["id"] = choice.calls[-1]["id"]
            await self.send("content_block_start", index=self._index, content_block=block)
        if part.text:
            delta: dict[str, Any] = {
                "reasoning": {"type": "thinking_delta", "thinking": part.text},
                "content": {"type": "text_delta", "text": part.text},
                "tool_call": {"type": "input_json_delta", "partial_json": part.text},
            }[part.kind]
            await self.send("content_block_delta", index=self._index, delta=delta)

    async def close(self) -> None:
        if self._open is None:
            return
        if self._open[0] == "reasoning":
            delta = {"type": "signature_delta", "signature": _SIGNATURE}
            await self.send("content_block_delta", index=self._index, delta=delta)
        await self.send("content_block_stop", index=self._index)
        self._open = None


_SIGNATURE = "unsigned"  # clients send it back; it proves nothing here


def _blocks(choice: Choice) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if choice.reasoning:
        blocks.append({"type": "thinking", "thinking": "".join(choice.reasoning), "signature": _SIGNATURE})
    if text := "".join(choice.content):
        blocks.append({"type": "text", "text": text})
    for call in choice.calls:
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": call["name"], "input": _parsed(call["arguments"])}
        )
    return blocks


def _parsed(arguments: str) -> Any:
    """A call's arguments as an object; of a call that was cut short there is none."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _ending(choice: Choice) -> dict[str, Any]:
    assert choice.finished is not None
    stop = choice.finished.stop if isinstance(choice.finished.stop, str) else None
    reason = {"stop": "stop_sequence" if stop is not None else "end_turn", "length": "max_tokens",
              "tool_calls": "tool_use"}[choice.reason]  # fmt: skip
    return {"stop_reason": reason, "stop_sequence": stop if reason == "stop_sequence" else None}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
