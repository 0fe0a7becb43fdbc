"""The prompt of a page's answer: system words, the path above it, and what of the answer is written already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shoal.data.types import Message
from shoal.engine.constrain import closing_ids
from shoal.serve import answers
from shoal.serve.errors import ApiError

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened


NO_RESULT = "(no result was given)"


def turns_of(history: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> list[Message]:
    """The system words and the path above an answer, as a strict template takes them."""
    system = params.get("system")
    turns = [Message(role="system", content=system)] if system else []
    turns += [turn for message in history for turn in turns_of_row(message)]
    return answers.repaired(turns)


def calls_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls of an answer that count: not those it was cut in, nor those of one that a person wrote anew."""
    whole = message["status"] == "done" and not message["edited"]
    return list(message["tool_calls"] or []) if whole else []


def api_turn(turn: Message) -> dict[str, Any]:
    """A turn as the API's clients and training rows have it: what is empty is left out, but for the content."""
    said = {name: value for name, value in asdict(turn).items() if value}
    return {"role": turn.role, "content": ""} | said


def turns_of_row(message: Mapping[str, Any]) -> list[Message]:
    """A row of the store as turns: an answer's calls are followed by what people gave as their results."""
    calls = calls_of(message)
    made = tuple(
        {"id": call["id"], "type": "function",
         "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls
    )  # fmt: skip
    turn = Message(message["role"], message["edited"] or message["content"], tool_calls=made or None)
    return [turn, *(Message("tool", call.get("result") or NO_RESULT, tool_call_id=call["id"], name=call["name"])
                    for call in calls)]  # fmt: skip


async def page_prompt(
    opened: Opened,
    history: Sequence[Mapping[str, Any]],
    message: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    thinking: bool,
) -> answers.Prompt:
    """`history` are the rows above `message`; where that has text, the prompt ends with it, as the model wrote it.

    `thinking` counts only for an answer that has not begun: afterwards its own text says what it does.
    """
    content, reasoning = message["content"], message["reasoning"]
    if not closing_ids(opened.protocol):
        reasoning = ""
    if content or reasoning:
        thinking = bool(reasoning)
    tools = params.get("tools")
    if tools and not (opened.protocol.supports_tools and opened.protocol.marks.call_begin):
        raise ApiError(
            400, "how this model writes calls is not known here: take the tools out of this chat's settings"
        )
    prompt = await answers.render_chat(opened, turns_of(history, params), thinking=thinking, tools=tools)
    return answers.begun(opened, prompt, content, reasoning)
