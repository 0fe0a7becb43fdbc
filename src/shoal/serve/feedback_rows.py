"""What people thought of answers, as rows to learn from: thumbs, edits and choices of the chat page's store.

sft: answers as people wrote them anew, or gave a thumbs-up. preference: an edited answer over the one it replaced, the
chosen of two, a thumbs-up over a thumbs-down on the same question. reward: each judged answer with 1 or 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from shoal.serve.page_prompt import api_turn, turns_of_row
from shoal.serve.store import FINAL, Store

Kind = Literal["sft", "preference", "reward"]


def rows(store: Store, owner: str, kind: Kind) -> Iterator[dict[str, Any]]:
    """The rows of one owner's chats, the newest chat first; the same row never twice."""
    seen: set[str] = set()
    for chat in store.chats(owner, limit=10**9):
        messages = {m["id"]: m for m in store.messages(owner, chat["id"])}
        answers = [m for m in messages.values() if m["role"] == "assistant" and m["status"] in FINAL]
        for row in _KINDS[kind](answers, messages):
            if (key := repr(row)) not in seen:
                seen.add(key)
                yield row


def _sft(answers: list[dict[str, Any]], messages: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for answer in answers:
        if answer["edited"] or answer["feedback"] > 0:
            yield {"messages": [*_asked(answer, messages), _said(answer, answer["edited"])]}


def _preference(answers: list[dict[str, Any]], messages: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for answer in answers:
        if answer["edited"] and answer["edited"] != answer["content"]:
            yield _pair(answer, _said(answer, answer["edited"]), _said(answer), messages)
    for better in answers:
        for worse in answers:
            if better["parent_id"] != worse["parent_id"] or better is worse:
                continue
            judged = (better["preference"], worse["preference"]), (better["feedback"], worse["feedback"])
            if any(one > 0 > other for one, other in judged):
                yield _pair(better, _said(better, better["edited"]), _said(worse), messages)


def _reward(answers: list[dict[str, Any]], messages: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for answer in answers:
        if answer["feedback"]:
            reward = 1.0 if answer["feedback"] > 0 else 0.0
            yield {"messages": _asked(answer, messages), "completion": answer["content"], "reward": reward}


_KINDS = {"sft": _sft, "preference": _preference, "reward": _reward}


def _pair(answer: dict[str, Any], chosen: Any, rejected: Any, messages: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": _asked(answer, messages), "chosen": [chosen], "rejected": [rejected]}


def _asked(answer: Mapping[str, Any], messages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the model was shown before this answer: the system words and the turns above it, as they stood."""
    turns: list[dict[str, Any]] = []
    here = answer["parent_id"]
    while here in messages and len(turns) <= len(messages):
        turn = messages[here]
        turns += reversed(_turns(turn))
        here = turn["parent_id"]
    system = (answer["params"] or {}).get("system")
    return [*([{"role": "system", "content": system}] if system else []), *reversed(turns)]


def _turns(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row as the model was shown it: the results of its calls are turns of their own."""
    return [api_turn(turn) for turn in turns_of_row(row)]


def _said(answer: dict[str, Any], edited: str | None = None) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": edited or answer["content"]}
    if not edited and (calls := turns_of_row(answer | {"edited": None})[0].tool_calls):
        said["tool_calls"] = list(calls)
    if answer["reasoning"] and not edited:  # an edited answer is not what the thought led to
        said["reasoning_content"] = answer["reasoning"]
    return said
