"""From a checked request to the events of its answer: render, submit, parse, count. API and page read the same events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shoal.data.types import Message
from shoal.engine.handle import Handle
from shoal.engine.types import (
    Finished,
    Piece,
    PromptLogprobs,
    PromptProgress,
    Queued,
    Request,
    SamplingParams,
    Usage,
)
from shoal.errors import ShoalError
from shoal.serve.errors import ApiError, from_shoal
from shoal.serve.models import Opened


@dataclass
class Prompt:
    """Token ids, and in which part of the answer the model begins ("content" or "reasoning")."""

    ids: list[int]
    starts_in: Literal["content", "reasoning"] = "content"


@dataclass
class Part:
    """A piece of an answer's text. `tokens` are the sampled tokens it stands for (some have no text yet)."""

    kind: Literal["content", "reasoning"]
    text: str
    tokens: list[Piece] = field(default_factory=list)


Event = Queued | PromptProgress | PromptLogprobs | Part | Finished


def repaired(messages: Sequence[Message]) -> list[Message]:
    """A history a strict template accepts: empty answers (stopped before their first word) are left out, and user
    turns that then follow each other become one."""
    out: list[Message] = []
    for message in messages:
        if message.role == "assistant" and not message.content and not message.tool_calls:
            continue
        if message.role == "user" and out and out[-1].role == "user":
            out[-1] = replace(out[-1], content=f"{out[-1].content}\n\n{message.content}")
        else:
            out.append(message)
    return out


async def render_chat(opened: Opened, messages: Sequence[Message], *, thinking: bool) -> Prompt:
    """The prompt of a conversation, made off the event loop; raises ApiError when the template refuses it."""
    try:
        rendered = await asyncio.to_thread(opened.protocol.render, list(messages), thinking=thinking)
    except ShoalError as refusal:
        roles = ", ".join(message.role for message in messages[:20])
        text = str(refusal).replace("\n", ". ")
        raise ApiError(400, f"the model's template refuses these messages (roles: {roles}): {text}", param="messages",
                       code="invalid_messages") from refusal  # fmt: skip
    return Prompt(list(rendered.ids), rendered.starts_in)


async def encode_text(opened: Opened, text: str) -> Prompt:
    """A raw prompt. It belongs to the caller as a whole, so control tokens in it count; exactly one BOS begins it."""
    return Prompt(list(await asyncio.to_thread(opened.tokenizer.encode_prompt, text)))


def check_room(opened: Opened, prompt: Prompt, max_tokens: int | None, param: str) -> int:
    """How many tokens the answer may have; raises ApiError when the prompt leaves no room for one."""
    context, size = opened.engine.max_model_len, len(prompt.ids)
    room = context - size
    if room < (0 if max_tokens == 0 else 1):
        raise ApiError(
            400,
            f"the prompt has {size} tokens, and the context of this model holds {context} (prompt and answer together);"
            " shorten the conversation or start a new one",
            param=param,
            code="context_length_exceeded",
        )
    return room if max_tokens is None else min(max_tokens, room)


def check_token_ids(opened: Opened, ids: Sequence[int], param: str) -> None:
    size = opened.tokenizer.vocab_size
    if any(not 0 <= i < size for i in ids):
        raise ApiError(400, f"{param}: token ids lie in 0 .. {size - 1}", param=param)


def defaults_of(opened: Opened) -> dict[str, Any]:
    """The sampling values that the model's makers recommend (generation_config.json), where they say any."""
    config = getattr(opened.side_files, "generation_config", None) or {}
    if config.get("do_sample") is False:
        return {}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: config[name] for name in names if isinstance(config.get(name), int | float)}


def choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of the i-th of n answers: a seed of its own, or they would be the same."""
    return params if params.seed is None or index == 0 else replace(params, seed=params.seed + index)


def submit(
    opened: Opened, prompt: Prompt, params: SamplingParams, *, salt: str, param: str, chat: bool
) -> Handle:
    """Queue one answer; raises ApiError when the engine refuses. Whoever submits must cancel the handle in the end."""
    if chat and not params.ignore_eos:
        params = replace(params, stop_token_ids=(*params.stop_token_ids, *opened.protocol.stop_ids))
    try:
        return opened.engine.submit(Request(prompt.ids, params, cache_salt=salt))
    except ShoalError as refusal:
        raise from_shoal(refusal, param=param) from refusal


async def events(opened: Opened, handle: Handle, prompt: Prompt, *, chat: bool) -> AsyncIterator[Event]:
    """The events of an answer; `Finished` is the last. A chat's tokens are parsed into reasoning and content, a plain
    completion's text is content as it is; marks of the model are in neither. Raises ApiError when the engine failed.
    """
    parser = opened.protocol.parser(prompt.starts_in) if chat else _Plain(opened.tokenizer.special_ids)
    kind, reasoning_tokens = prompt.starts_in, 0
    tokens: list[Piece] = []  # whose text has not come out of the parser yet
    special_ids = opened.tokenizer.special_ids
    async for event in handle:
        if isinstance(event, Queued | PromptProgress | PromptLogprobs):
            yield event
        elif isinstance(event, Finished):
            for part_kind, text in _joined(parser.finish()):
                yield Part(part_kind, text, tokens)
                tokens = []
            if tokens:
                yield Part(kind, "", tokens)
            if event.reason == "error":
                raise ApiError(500, "the answer could not be finished: a fault inside the engine",
                               headers={"x-should-retry": "false"})  # fmt: skip
            yield replace(event, usage=replace(event.usage, reasoning_tokens=reasoning_tokens))
        else:
            for piece in event.pieces:
                if piece.token_id not in special_ids:
                    tokens.append(piece)
                parts = parser.push(piece.token_id, piece.text)
                kind = parts[-1].kind if parts and parts[-1].kind != "tool_call" else kind
                reasoning_tokens += kind == "reasoning"
                for part_kind, text in _joined(parts):
                    yield Part(part_kind, text, tokens)
                    tokens = []


class _Plain:
    """The parser of a text without structure: marks are left out."""

    def __init__(self, special_ids: frozenset[int]):
        self._special_ids = special_ids

    def push(self, token_id: int, text: str) -> list[Part]:
        return [] if token_id in self._special_ids else [Part("content", text)]

    def finish(self) -> list[Part]:
        return []


def _joined(parts: Sequence[Any]) -> list[tuple[Any, str]]:
    """Neighbours of one kind as one; calls of tools are shown as text (this server offers none yet)."""
    out: list[tuple[Any, str]] = []
    for part in parts:
        kind = "content" if part.kind == "tool_call" else part.kind
        if out and out[-1][0] == kind:
            out[-1] = (kind, out[-1][1] + part.text)
        elif part.text:
            out.append((kind, part.text))
    return out


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage with DeepSeek's cache counts beside it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }


def timings_object(finished: Finished) -> dict[str, Any]:
    """llama.cpp's names, and our own for the waits."""
    usage, times = finished.usage, finished.timings
    prompt_n = usage.prompt_tokens - usage.cached_tokens
    # The first token comes with the end of the prompt; the rest is what decoding took.
    decoded = max(usage.completion_tokens - 1, 0)
    return {
        "prompt_n": prompt_n,
        "cache_n": usage.cached_tokens,
        "prompt_ms": round(1000 * times.prompt_seconds, 3),
        "prompt_per_second": round(prompt_n / times.prompt_seconds, 3) if times.prompt_seconds > 0 else 0.0,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(1000 * times.decode_seconds, 3),
        "predicted_per_second": round(decoded / times.decode_seconds, 3) if times.decode_seconds > 0 else 0.0,
        "queue_ms": round(1000 * times.queue_seconds, 3),
        "first_token_ms": round(1000 * times.first_token_seconds, 3),
    }


def cost_object(opened: Opened, finished: Sequence[Finished]) -> dict[str, Any]:
    """What the answers took: seconds of work, FLOPs by the config's counts, estimated energy and price."""
    from shoal.cost.meter import answer_cost
    from shoal.model.counts import decode_flops

    seconds = flops = 0.0
    tokens = 0
    for each in finished:
        usage = each.usage
        seconds += each.timings.prompt_seconds + each.timings.decode_seconds
        read = usage.prompt_tokens - usage.cached_tokens
        total = usage.prompt_tokens + usage.completion_tokens
        flops += read * decode_flops(opened.config, usage.prompt_tokens // 2)
        flops += usage.completion_tokens * decode_flops(opened.config, (usage.prompt_tokens + total) // 2)
        tokens += usage.completion_tokens
    return answer_cost(seconds, flops, tokens)
