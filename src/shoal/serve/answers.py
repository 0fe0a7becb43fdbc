"""From a checked request to the events of its answer: render, submit, parse, count.

API and page read the same events.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Message
from shoal.engine.chat import ChatStream, thinking_of
from shoal.engine.constrain import (
    AnswerRules,
    Constraint,
    Grammar,
    closing_ids,
    compiler_for,
    reasoning_marks,
    rules_for,
)
from shoal.engine.handle import Handle
from shoal.engine.types import (
    Delta,
    Finished,
    Piece,
    PromptLogprobs,
    PromptProgress,
    Queued,
    Request,
    SamplingParams,
    Timings,
    Usage,
)
from shoal.errors import ShoalError
from shoal.serve.caller import spend_at_end
from shoal.serve.errors import ApiError, from_shoal

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened


Result = TypeVar("Result")
GRAMMAR_SECONDS = 10.0
_GRAMMAR_THREADS = ThreadPoolExecutor(2, thread_name_prefix="shoal-grammar")


@dataclass
class Prompt:
    """Token ids, in which part of the answer the model begins ("content" or "reasoning"), whether it shall think,
    whether it may call tools, and the adapter that answers (None: the model's own)."""

    ids: list[int]
    starts_in: Literal["content", "reasoning"] = "content"
    thinking: bool = False
    tools: bool = False
    adapter: str | None = None


@dataclass
class Part:
    """A piece of an answer's text. `tokens` are the sampled tokens it stands for (some have no text yet).

    A tool call begins with a part that has its `name`; then its arguments come as JSON text. `index` counts calls.
    """

    kind: Literal["content", "reasoning", "tool_call"]
    text: str
    tokens: list[Piece] = field(default_factory=list)
    index: int = 0
    name: str | None = None


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


@functools.lru_cache(maxsize=8)
def _longest_token_bytes(tokenizer: Tokenizer) -> int:
    return max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))


async def check_size(opened: Opened, texts: Iterable[str | None], param: str) -> None:
    """Refuse what cannot fit the context whatever its tokens are, before time is spent on finding them."""
    context = opened.engine.max_model_len
    size = sum(len(text) for text in texts if text)  # characters; a token may be longer in bytes
    if size <= 8 * context:
        return
    least = size // await asyncio.to_thread(_longest_token_bytes, opened.tokenizer)
    if least > context:
        raise too_long(f"at least {least}", context, param)


def too_long(size: int | str, context: int, param: str) -> ApiError:
    return ApiError(
        400,
        f"the prompt has {size} tokens, and the context of this model holds {context} (prompt and answer together);"
        " shorten the conversation or start a new one",
        param=param,
        code="context_length_exceeded",
    )


async def render_chat(
    opened: Opened,
    messages: Sequence[Message],
    *,
    thinking: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Prompt:
    """The prompt of a conversation, made off the event loop; raises ApiError when the template refuses it."""
    await check_size(opened, (message.content for message in messages), "messages")
    try:
        rendered = await asyncio.to_thread(
            opened.protocol.render, list(messages), thinking=thinking, tools=tools or None
        )
    except ShoalError as refusal:
        roles = ", ".join(message.role for message in messages[:20])
        text = str(refusal).replace("\n", ". ")
        raise ApiError(400, f"the model's template refuses these messages (roles: {roles}): {text}", param="messages",
                       code="invalid_messages") from refusal  # fmt: skip
    adapter = opened.adapter_for(thinking)
    return Prompt(
        list(rendered.ids), rendered.starts_in, thinking=thinking, tools=bool(tools), adapter=adapter
    )


def begun(opened: Opened, prompt: Prompt, content: str, reasoning: str = "") -> Prompt:
    """The prompt with the beginning of the answer behind it, as the model would have written it."""
    open_id, _ = reasoning_marks(opened.protocol)
    closing = closing_ids(opened.protocol)
    encode = opened.tokenizer.encode
    if reasoning and closing and (open_id is not None or prompt.starts_in == "reasoning"):
        if prompt.starts_in == "content" and open_id is not None:  # the model writes this mark itself
            prompt.ids.append(open_id)
        prompt.ids += encode(reasoning)
        prompt.starts_in = "reasoning"
    if content:
        if prompt.starts_in == "reasoning":
            prompt.ids += closing
        prompt.ids += encode(content)
        prompt.starts_in, prompt.thinking = "content", False
    return prompt


async def encode_text(opened: Opened, text: str) -> Prompt:
    """A raw prompt. It belongs to the caller as a whole, so control tokens in it count; exactly one BOS begins it."""
    await check_size(opened, (text,), "prompt")
    return Prompt(list(await asyncio.to_thread(opened.tokenizer.encode_prompt, text)))


FIM_MARKS = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
)
"""What stands before the prefix, before the suffix, and before the middle, which the model writes."""


async def encode_middle(opened: Opened, prefix: str, suffix: str) -> Prompt:
    """A prompt to fill the gap between two texts; both are the caller's text, without marks. Raises ApiError 400 for a
    model without the tokens for it."""
    tokenizer = opened.tokenizer
    await check_size(opened, (prefix, suffix), "prompt")
    for spellings in FIM_MARKS:
        begin, hole, end = (tokenizer.id_of(spelling) for spelling in spellings)
        if begin is not None and hole is not None and end is not None:
            ids = [begin, *tokenizer.encode(prefix), hole, *tokenizer.encode(suffix), end]
            first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
            return Prompt(first + ids)
    raise ApiError(400, "suffix: this model has no tokens for filling in the middle", param="suffix",
                   code="unsupported_parameter")  # fmt: skip


def check_room(opened: Opened, prompt: Prompt, max_tokens: int | None, param: str) -> int:
    """How many tokens the answer may have; raises ApiError when the prompt leaves no room for one."""
    context, size = opened.engine.max_model_len, len(prompt.ids)
    room = context - size
    if room < (0 if max_tokens == 0 else 1):
        raise too_long(size, context, param)
    return room if max_tokens is None else min(max_tokens, room)


def check_token_ids(opened: Opened, ids: Sequence[int], param: str) -> None:
    size = opened.tokenizer.vocab_size
    if any(not 0 <= i < size for i in ids):
        raise ApiError(400, f"{param}: token ids lie in 0 .. {size - 1}", param=param)


def thinking_of_request(opened: Opened, effort: str | None) -> tuple[bool, int | None]:
    """(think, at most so many tokens). A model that can think does unless told otherwise, as DeepSeek's API does; one
    that thinks by an adapter does when it is asked to."""
    thinking = opened.protocol.thinking
    if thinking == "none" or (thinking == "adapter" and effort is None):
        return False, None
    return thinking_of(effort or "high")


def choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of the i-th of n answers: a seed of its own, or they would be the same."""
    return params if params.seed is None or index == 0 else replace(params, seed=params.seed + index)


async def compiled(opened: Opened, constraint: Constraint | None) -> Grammar | None:
    """A grammar for one answer, made off the event loop; raises ApiError 400 when it cannot be obeyed in time."""
    if constraint is None:
        return None
    ends = dict.fromkeys((*opened.protocol.stop_ids, *opened.tokenizer.eos_ids, *opened.config.eos_token_ids))
    compiler = compiler_for(opened.engine, list(ends))
    return await off_loop(lambda: compiler.compile(constraint), constraint.param)


async def off_loop(work: Callable[[], Result], param: str) -> Result:
    """The result of slow work on what a request holds; raises ApiError 400 when it is refused or takes too long.

    Such work has its own two threads: what hangs there despite all caps leaves those of the rest alone.
    """
    task = asyncio.get_running_loop().run_in_executor(_GRAMMAR_THREADS, work)
    try:
        return await asyncio.wait_for(task, GRAMMAR_SECONDS)
    except TimeoutError:
        raise ApiError(400, f"{param}: too complex to be obeyed", param=param) from None
    except ShoalError as refusal:
        raise from_shoal(refusal, param=param) from refusal


def submit(
    opened: Opened,
    prompt: Prompt,
    params: SamplingParams,
    *,
    salt: str,
    param: str,
    thinking_budget: int | None = None,
    grammar: Grammar | None = None,
) -> Handle:
    """Queue one answer; raises ApiError when the engine refuses. Whoever submits must cancel the handle in the end."""
    try:
        rules = rules_for(
            opened.protocol,
            prompt.starts_in,
            thinking=prompt.thinking,
            budget=thinking_budget,
            grammar=grammar,
        )
        adapter = prompt.adapter or opened.adapter
        request = Request(prompt.ids, params, adapter=adapter, cache_salt=salt, logits_hook=rules)
        handle = opened.engine.submit(request)
    except ShoalError as refusal:
        raise from_shoal(refusal, param=param) from refusal
    spend_at_end(handle, opened, cost_object)
    return handle


async def chat_events(opened: Opened, handle: Handle, prompt: Prompt) -> AsyncIterator[Event]:
    """The events of a chat's answer; `Finished` is the last. Marks of the model are in no part's tokens.

    Raises ApiError when the engine failed.
    """
    kind: Literal["content", "reasoning", "tool_call"] = prompt.starts_in
    async for event in ChatStream(handle, opened.protocol, prompt.starts_in, tools=prompt.tools):
        pieces = [piece for piece in event.pieces if piece.token_id not in opened.tokenizer.special_ids]
        if event.kind == "queued":
            yield Queued(event.position or 0)
        elif event.progress is not None:
            yield event.progress
        elif event.finished is not None:
            if pieces:
                yield Part(kind, "", pieces)
            yield _not_failed(event.finished, handle)
        elif event.kind == "tool_call" and prompt.tools:
            kind = "tool_call"
            yield Part(kind, event.text, pieces, index=event.index or 0, name=event.name)
        else:  # a call nobody offered is shown as the text it is
            kind = "reasoning" if event.kind == "reasoning" else "content"
            yield Part(kind, (event.name or "") + event.text, pieces)


async def text_events(opened: Opened, handle: Handle) -> AsyncIterator[Event]:
    """The same for a plain completion: all text is content as it is, marks of the model left out."""
    special_ids = opened.tokenizer.special_ids
    async for event in handle:
        if isinstance(event, Finished):
            yield _not_failed(event, handle)
        elif isinstance(event, Delta):
            pieces = [piece for piece in event.pieces if piece.token_id not in special_ids]
            yield Part("content", "".join(piece.text for piece in pieces), pieces)
        else:
            yield event


def _not_failed(finished: Finished, handle: Handle) -> Finished:
    if finished.reason == "error":
        rules = handle.request.logits_hook
        if isinstance(rules, AnswerRules) and rules.refusal is not None:
            raise from_shoal(rules.refusal)
        raise ApiError(500, "the answer could not be finished: a fault inside the engine",
                       headers={"x-should-retry": "false"})  # fmt: skip
    return finished


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
        **_draft_figures(usage, times),
    }


def _draft_figures(usage: Usage, times: Timings) -> dict[str, Any]:
    """llama.cpp's counts of drafts, and how many times as fast the answer came for them; empty where none was made."""
    if not usage.draft_tokens:
        return {}
    counts = {"draft_n": usage.draft_tokens, "draft_n_accepted": usage.accepted_tokens}
    return counts if times.draft_gain is None else counts | {"draft_gain": round(times.draft_gain, 3)}


def cost_object(opened: Opened, finished: Sequence[Finished]) -> dict[str, Any]:
    """What the answers of a request took: seconds of work, FLOPs by the config's counts, estimated energy and price.

    Answers that run together share the machine: their seconds are divided by how many there are at the end.
    """
    from shoal.cost.meter import answer_cost
    from shoal.model.counts import answer_flops

    used = [each.usage for each in finished]
    seconds = sum(each.timings.prompt_seconds + each.timings.decode_seconds for each in finished)
    sharing = max(opened.engine.stats().running + 1, len(finished))
    return answer_cost(
        seconds / sharing,
        sum(
            answer_flops(
                opened.config, u.prompt_tokens, u.cached_tokens, u.completion_tokens, u.computed_tokens
            )
            for u in used
        ),
        sum(usage.completion_tokens for usage in used),
        device=opened.device,
        cores=opened.engine.runner.threads,
    )
