"""A conversation in, reasoning and content out: the chat protocol around the engine. For the terminal, the server and
evaluation alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shoal.data.chat import ChatProtocol, Message
from shoal.engine.constrain import reasoning_marks, rules_for
from shoal.engine.handle import Handle
from shoal.engine.open import OpenedModel
from shoal.engine.types import Delta, Event, Finished, Piece, PromptProgress, Queued, Request, SamplingParams
from shoal.errors import UsageError

EFFORTS: dict[str, tuple[bool, int | None]] = {
    "off": (False, None),
    "low": (True, 512),
    "high": (True, 4096),
    "max": (True, None),
}
"""Thinking effort -> (think at all, the most tokens to think)."""


@dataclass(frozen=True)
class ChatEvent:
    """`text` is new text of kind "reasoning", "content" or "tool_call"; `pieces` are the tokens it came from.

    "tool_call": `index` counts the calls, `name` comes with the first event of a call, `text` is arguments JSON.
    "queued": `position`; "progress": `progress`; "finished": `finished`, always the last.
    """

    kind: Literal["queued", "progress", "reasoning", "content", "tool_call", "finished"]
    text: str = ""
    pieces: list[Piece] = field(default_factory=list)
    index: int | None = None
    name: str | None = None
    position: int | None = None
    progress: PromptProgress | None = None
    finished: Finished | None = None


class ChatStream:
    """The events of one answer: `for` or `async for`. `with stream:` cancels what still runs when it is left."""

    def __init__(
        self,
        handle: Handle,
        protocol: ChatProtocol,
        starts_in: Literal["content", "reasoning"],
        *,
        tools: bool = False,
    ):
        self.handle = handle
        self._parser = protocol.parser(starts_in, tools=tools)
        self._open_id, self._close_id = reasoning_marks(protocol)
        self._in_reasoning = starts_in == "reasoning"
        self._reasoning_tokens = 0
        self._pieces: list[Piece] = []  # tokens whose text the parser still holds
        self._ready: deque[ChatEvent] = deque()

    def cancel(self) -> None:
        """End the answer within one engine step; "finished" still comes."""
        self.handle.cancel()

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> ChatEvent:
        while not self._ready:
            self._take(next(self.handle))
        return self._ready.popleft()

    def __aiter__(self) -> ChatStream:
        return self

    async def __anext__(self) -> ChatEvent:
        while not self._ready:
            self._take(await anext(self.handle))
        return self._ready.popleft()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()

    def _take(self, event: Event) -> None:
        match event:
            case Queued(position):
                self._ready.append(ChatEvent("queued", position=position))
            case PromptProgress():
                self._ready.append(ChatEvent("progress", progress=event))
            case Delta(pieces):
                for piece in pieces:
                    self._piece(piece)
            case Finished():
                self._parts(self._parser.finish())
                usage = replace(event.usage, reasoning_tokens=self._reasoning_tokens)
                self._ready.append(
                    ChatEvent("finished", pieces=self._pieces, finished=replace(event, usage=usage))
                )
            case _:
                pass  # log-probabilities of the prompt are no part of a chat

    def _piece(self, piece: Piece) -> None:
        self._pieces.append(piece)
        parts = self._parser.push(piece.token_id, piece.text)
        if piece.token_id in (self._open_id, self._close_id):
            self._in_reasoning = piece.token_id == self._open_id
        else:
            if parts:
                self._in_reasoning = parts[-1].kind == "reasoning"
            self._reasoning_tokens += self._in_reasoning
        self._parts(parts)

    def _parts(self, parts: Sequence[Any]) -> None:
        """Events of one kind that follow each other become one while nobody has read them."""
        for part in parts:
            event = ChatEvent(part.kind, part.text, self._pieces, index=part.index, name=part.name)
            self._pieces = []
            last = self._ready[-1] if self._ready else None
            if last and part.name is None and (last.kind, last.index) == (event.kind, event.index):
                self._ready[-1] = replace(
                    last, text=last.text + event.text, pieces=[*last.pieces, *event.pieces]
                )
            else:
                self._ready.append(event)


def thinking_of(effort: str) -> tuple[bool, int | None]:
    """(think, budget in tokens) of "off", "low", "high" or "max"."""
    if effort not in EFFORTS:
        raise UsageError(f"unknown thinking effort {effort!r}", hint=f"One of {', '.join(EFFORTS)}.")
    return EFFORTS[effort]


def stream_chat(
    opened: OpenedModel,
    messages: Sequence[Message | Mapping[str, Any]],
    params: SamplingParams | None = None,
    *,
    thinking: bool = False,
    thinking_budget: int | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    cache_salt: str = "",
) -> ChatStream:
    """Start an answer to `messages` (params None: the model's own defaults).

    `thinking` is ignored by a model that has none; `thinking_budget` bounds its tokens (None: only by max_tokens).
    Raises what `render` and `Engine.submit` raise, before any event.
    """
    rendered = opened.protocol.render(messages, thinking=thinking, tools=tools)
    rules = rules_for(opened.protocol, rendered.starts_in, thinking=thinking, budget=thinking_budget)
    request = Request(
        rendered.ids, opened.defaults if params is None else params, cache_salt=cache_salt, logits_hook=rules
    )
    request = replace(request, adapter=opened.adapter_for(thinking))
    return ChatStream(opened.engine.submit(request), opened.protocol, rendered.starts_in, tools=bool(tools))
