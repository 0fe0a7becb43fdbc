"""/v1/responses: OpenAI's newer protocol, without memory on the server: each request brings its whole history."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from shoal.engine.types import Finished, Usage
from shoal.serve import answers
from shoal.serve.answers import Part
from shoal.serve.body import parse_object, read_body, validated
from shoal.serve.errors import ApiError, bad_field, not_yet
from shoal.serve.reply import Reply, while_connected
from shoal.serve.schemas import MAX_MESSAGES, MAX_TOKENS, ChatRequest, Flag, Number, Salt, Text, Whole
from shoal.serve.work import Chat, Choice, Work

# Fields whose meaning is that the server remembers or runs something.
UNSUPPORTED = {
    "previous_response_id": "answers kept on the server (send the whole history) are",
    "conversation": "conversations kept on the server (send the whole history) are",
    "background": "answering in the background is",
    "prompt": "a prompt kept on the server is",
}
# Other names of the same field in a chat request, for refusals.
_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
          "response_format": "text.format"}  # fmt: skip


class ResponsesRequest(BaseModel):
    """POST /v1/responses. Bounds that are not here are those of the chat request it becomes."""

    model_config = ConfigDict(extra="allow")

    model: Text | None = Field(None, max_length=1000)
    input: Any = None
    instructions: Text | None = Field(None, max_length=4_000_000)
    max_output_tokens: Whole | None = Field(None, ge=1, le=MAX_TOKENS)
    stream: Flag | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    include: Any = None
    reasoning: Any = None
    text: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Flag | None = None
    user: Salt | None = None
    safety_identifier: Salt | None = None
    prompt_cache_key: Salt | None = None

    @property
    def ignored(self) -> list[str]:
        extra = self.model_extra or {}
        found = [name for name, value in extra.items() if value not in (None, False, [], {})]
        return sorted(set(found) - set(UNSUPPORTED) - {"truncation"}) + [
            f"tools.{kind}" for kind in self._foreign_tools()
        ]

    @property
    def wants_logprobs(self) -> bool:
        return isinstance(self.include, list) and "message.output_text.logprobs" in self.include

    def chat(self) -> ChatRequest:
        """The same request as a chat; raises ApiError that speaks of this protocol's fields."""
        for name, what in UNSUPPORTED.items():
            if (self.model_extra or {}).get(name):
                raise not_yet(name, what)
        if (self.model_extra or {}).get("truncation") not in (None, "disabled"):
            raise not_yet("truncation", "leaving parts of the input out is")
        turns = [{"role": "system", "content": self.instructions}] if self.instructions else []
        fields: dict[str, Any] = {
            "model": self.model, "messages": turns + self._turns(), "max_tokens": self.max_output_tokens,
            "stream": self.stream, "temperature": self.temperature, "top_p": self.top_p, "user": self.user,
            "safety_identifier": self.safety_identifier, "prompt_cache_key": self.prompt_cache_key,
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": self._object("reasoning").get("effort"),
        }  # fmt: skip
        if self.wants_logprobs or self.top_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        fields |= self._format() | self._tools()
        try:
            return validated(
                ChatRequest, {name: value for name, value in fields.items() if value is not None}
            )
        except ApiError as error:
            if error.param in _NAMES:
                error.message = error.message.replace(error.param, _NAMES[error.param])
                error.param = _NAMES[error.param]
            raise

    def _object(self, name: str) -> dict[str, Any]:
        value = getattr(self, name)
        if value is not None and not isinstance(value, dict):
            raise bad_field(name, f"{name}: an object is expected")
        return value or {}

    def _format(self) -> dict[str, Any]:
        shape = self._object("text").get("format")
        if shape is None:
            return {}
        if not isinstance(shape, dict):
            raise bad_field("text.format", "text.format: an object is expected")
        if shape.get("type") == "json_schema":  # flat here
            shape = {
                "type": "json_schema",
                "json_schema": {key: shape.get(key) for key in ("name", "schema", "strict")},
            }
        return {"response_format": shape}

    def _foreign_tools(self) -> list[str]:
        """Types of tools that other servers run themselves: the model here is not told of them."""
        kinds = (
            [tool.get("type") for tool in self.tools or () if isinstance(tool, dict)]
            if isinstance(self.tools, list)
            else []
        )
        return sorted({kind for kind in kinds if isinstance(kind, str) and kind != "function"})

    def _tools(self) -> dict[str, Any]:
        if self.tools is not None and not isinstance(self.tools, list):
            raise bad_field("tools", "tools: a list is expected")
        tools = []
        for i, tool in enumerate(self.tools or ()):
            if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
                raise bad_field(f"tools[{i}]", f"tools[{i}]: an object with a type is expected")
            if tool["type"] == "function":
                function = {key: tool.get(key) for key in ("name", "description", "parameters", "strict")}
                tools.append({"type": "function", "function": function})
        choice = self.tool_choice
        if isinstance(choice, dict) and choice.get("type") == "function":
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        return {"tools": tools or None, "tool_choice": choice}

    def _turns(self) -> list[dict[str, Any]]:
        """The input as messages; calls that follow each other, and what was thought before, belong to one answer."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        if not isinstance(self.input, list) or not self.input or len(self.input) > MAX_MESSAGES:
            raise bad_field("input", f"input: a text or a list of 1 to {MAX_MESSAGES} items is expected")
        turns: list[dict[str, Any]] = []
        thought = ""
        for i, item in enumerate(self.input):
            place = f"input[{i}]"
            kind = item.get("type", "message") if isinstance(item, dict) else None
            if kind == "message":
                turn = {"role": item.get("role"), "content": item.get("content")}
            elif kind == "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                if turns and turns[-1]["role"] == "assistant":
                    turns[-1].setdefault("tool_calls", []).append(call)
                    continue
                turn = {"role": "assistant", "content": None, "tool_calls": [call]}
            elif kind == "function_call_output":
                turn = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
            elif kind == "reasoning":
                thought = _thought(item.get("content"), f"{place}.content")
                continue
            else:
                shown = repr(kind[:40]) if isinstance(kind, str) else "without a type"
                raise bad_field(place, f"{place}: an item of type {shown} is not read here")
            if turn["role"] == "assistant" and thought:
                turn["reasoning_content"] = thought
            thought = ""
            turns.append(turn)
        if not turns:
            raise bad_field("input", "input: there is no message in it")
        return turns


def _thought(parts: Any, place: str) -> str:
    if parts is None:
        return ""
    if not isinstance(parts, list) or not all(
        isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts
    ):
        raise bad_field(place, f"{place}: a list of reasoning_text parts is expected")
    return "".join(part["text"] for part in parts)


class ResponsesApi:
    """The one endpoint."""

    def __init__(self, work: Work):
        self.work, self.models = work, work.models

    async def responses(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = validated(ResponsesRequest, parse_object(await read_body(receive)))
        chat = asked.chat()
        self.models.slot(chat.model)
        reply = self.work.reply(send, stream=asked.stream, ignored=asked.ignored)
        with self.work.place(scope["shoal.owner"]):
            await while_connected(receive, reply.run(self._answer(scope["shoal.owner"], asked, chat, reply)))

    async def _answer(self, owner: str, asked: ResponsesRequest, request: ChatRequest, reply: Reply) -> None:
        chat = await self.work.prepare(request, reply)
        response = self._response(asked, chat)
        async with self.work.answering(chat, owner) as (events,):
            if asked.stream:
                await _Stream(self.work, chat, response, reply).write(events)
                return
            outputs = _Outputs()
            choice = Choice()
            async for event in events:
                if isinstance(event, Part) and (event.text or event.name):
                    choice.add(event)
                    outputs.add(event, choice, chat)
                elif isinstance(event, Finished):
                    choice.finished = self.work.ended(event)
        self.work.bill(chat.opened, [choice.finished] if choice.finished else [])
        await reply.object(_ended(response, outputs.items, choice))

    def _response(self, asked: ResponsesRequest, chat: Chat) -> dict[str, Any]:
        """The response before its first word."""
        params = chat.params
        return {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()),
            "status": "in_progress", "error": None, "incomplete_details": None, "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens, "model": self.models.slot(asked.model).card.id, "output": [],
            "parallel_tool_calls": chat.request.parallel, "previous_response_id": None,
            "reasoning": {"effort": chat.request.effort(), "summary": None}, "store": False,
            "temperature": params.temperature, "top_p": params.top_p, "truncation": "disabled", "usage": None,
            "text": {"format": asked._object("text").get("format") or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto", "tools": asked.tools or [], "metadata": {},
        }  # fmt: skip


class _Outputs:
    """The items of a response as they grow: thoughts, texts and calls, in the order in which they were written."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._place: tuple[str, int] | None = None

    def add(self, part: Part, choice: Choice, chat: Chat) -> bool:
        """Put a part where it belongs; True if that is a new item."""
        place = (part.kind, part.index)
        new = place != self._place or part.name is not None
        if new:
            self._place = place
            self.items.append(_item(part, choice))
        item = self.items[-1]
        if part.kind == "tool_call":
            item["arguments"] += part.text
        else:
            item["content"][0]["text"] += part.text
            if part.kind == "content":
                item["content"][0]["logprobs"] += _logprobs(part, chat)
        return new


def _item(part: Part, choice: Choice) -> dict[str, Any]:
    number = secrets.token_hex(12)
    if part.kind == "tool_call":
        return {"id": f"fc_{number}", "type": "function_call", "status": "in_progress", "name": part.name,
                "call_id": choice.calls[-1]["id"], "arguments": ""}  # fmt: skip
    if part.kind == "reasoning":
        return {"id": f"rs_{number}", "type": "reasoning", "status": "in_progress", "summary": [],
                "content": [{"type": "reasoning_text", "text": ""}]}  # fmt: skip
    text = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [text],
    }


def _logprobs(part: Part, chat: Chat) -> list[dict[str, Any]]:
    from shoal.serve.completions import chat_logprobs

    if not chat.request.logprobs or not part.tokens:
        return []
    found: list[dict[str, Any]] = chat_logprobs(chat.opened, part.tokens, ())["content"]
    return found


def _ended(response: dict[str, Any], items: list[dict[str, Any]], choice: Choice) -> dict[str, Any]:
    """The response with all that was written."""
    assert choice.finished is not None
    cut = choice.finished.reason == "length"
    for item in items:
        item["status"] = "completed"
    if cut and items:
        items[-1]["status"] = "incomplete"
    return response | {
        "output": items,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "usage": _usage(choice.finished.usage),
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class _Stream:
    """The events of a streamed response, numbered; there is no [DONE]."""

    def __init__(self, work: Work, chat: Chat, response: dict[str, Any], reply: Reply):
        self._work, self._chat, self._response, self._reply = work, chat, response, reply
        self._outputs, self._choice = _Outputs(), Choice()
        self._number = -1
        reply.error_event = self._failed

    def _event(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number} | fields

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._reply.event(self._event(kind, fields), name=kind)

    def _failed(self, error: ApiError) -> tuple[str, Any]:
        failure = {"code": error.code or "server_error", "message": error.message}
        fields = {
            "response": self._response | {"status": "failed", "error": failure, "output": self._outputs.items}
        }
        return "response.failed", self._event("response.failed", fields)

    async def write(self, events: AsyncIterator[answers.Event]) -> None:
        await self._send("response.created", response=self._response)
        await self._send("response.in_progress", response=self._response)
        async for event in events:
            if isinstance(event, Part) and (event.text or event.name):
                await self._part(event)
            elif isinstance(event, Finished):
                self._choice.finished = self._work.ended(event)
                whole = _ended(self._response, self._outputs.items, self._choice)
                await self._close()
                self._work.bill(self._chat.opened, [event])
                kind = "response.incomplete" if whole["status"] == "incomplete" else "response.completed"
                await self._send(kind, response=whole)
        await self._reply.end()

    async def _part(self, part: Part) -> None:
        items, before = self._outputs.items, len(self._outputs.items)
        self._choice.add(part)
        starts = part.name is not None or not items or self._outputs._place != (part.kind, part.index)
        if starts and items:
            items[-1]["status"] = "completed"
            await self._close()
        self._outputs.add(part, self._choice, self._chat)
        item, index = items[-1], len(items) - 1
        if len(items) > before:
            await self._send("response.output_item.added", output_index=index, item=_empty(item))
            if part.kind != "tool_call":
                await self._send("response.content_part.added", item_id=item["id"], output_index=index, content_index=0,
                                 part=_empty(item)["content"][0])  # fmt: skip
        place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        if part.kind == "tool_call":
            if part.text:
                await self._send("response.function_call_arguments.delta", **place, delta=part.text)
        elif part.kind == "reasoning":
            await self._send("response.reasoning_text.delta", **place, content_index=0, delta=part.text)
        else:
            await self._send("response.output_text.delta", **place, content_index=0, delta=part.text,
                             logprobs=_logprobs(part, self._chat))  # fmt: skip

    async def _close(self) -> None:
        """The last item is whole."""
        items = self._outputs.items
        if not items:
            return
        item = items[-1]
        place: dict[str, Any] = {"item_id": item["id"], "output_index": len(items) - 1}
        if item["type"] == "function_call":
            await self._send("response.function_call_arguments.done", **place, name=item["name"],
                             arguments=item["arguments"])  # fmt: skip
        else:
            content = item["content"][0]
            if item["type"] == "reasoning":
                await self._send(
                    "response.reasoning_text.done", **place, content_index=0, text=content["text"]
                )
            else:
                await self._send("response.output_text.done", **place, content_index=0, text=content["text"],
                                 logprobs=content["logprobs"])  # fmt: skip
            await self._send("response.content_part.done", **place, content_index=0, part=content)
        await self._send("response.output_item.done", output_index=place["output_index"], item=item)


def _empty(item: dict[str, Any]) -> dict[str, Any]:
    """The item before its first text."""
    if item["type"] == "function_call":
        return item | {"arguments": ""}
    content = item["content"][0] | {"text": ""}
    return item | {"content": [content | ({"logprobs": []} if "logprobs" in content else {})]}
