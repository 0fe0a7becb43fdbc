"""The prompt of a page's answer: system words, the path above it, and what of the answer is written already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.data.types import Message
from shoal.engine.constrain import closing_ids
from shoal.serve import answers
from shoal.serve.errors import ApiError

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened


def turns_of(history: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> list[Message]:
    """The system words and the path above an answer, as a strict template takes them."""
    system = params.get("system")
    turns = [Message(role="system", content=system)] if system else []
    turns += [Message(role=m["role"], content=m["edited"] or m["content"]) for m in history]
    return answers.repaired(turns)


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
