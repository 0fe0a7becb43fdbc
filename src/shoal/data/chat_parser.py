"""Tokens of an answer back to reasoning, content and tool calls, one token at a time.

A small state machine. Marks that are tokens of the model are known by their id, so text that only spells one stays
text; marks that are ordinary text for a model are looked for in the text, a half-seen one being held back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Start = Literal["content", "reasoning"]
Kind = Literal["content", "reasoning", "tool_call"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer. A tool call comes as a first part with its `name` (and no text), then its arguments.

    `index` counts the tool calls of an answer from 0; it is None for the other kinds.
    """

    kind: Kind
    text: str
    index: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """What a protocol writes around reasoning and tool calls, by spelling. Empty: it has no such mark.

    `fenced` is DeepSeek V3's and R1's form of a call: type, mark, name, a line, a ```json fence around the arguments.
    `in_json` is Qwen's (Hermes'): one JSON object with name and arguments between the marks.
    """

    open_reasoning: str = ""
    close_reasoning: str = ""
    call_begin: str = ""
    call_separator: str = ""
    call_end: str = ""
    calls_begin: str = ""
    calls_end: str = ""
    fenced: bool = False
    in_json: bool = False


DEEPSEEK_CALLS: dict[str, Any] = {
    "call_begin": "<｜tool▁call▁begin｜>",
    "call_separator": "<｜tool▁sep｜>",
    "call_end": "<｜tool▁call▁end｜>",
    "calls_begin": "<｜tool▁calls▁begin｜>",
    "calls_end": "<｜tool▁calls▁end｜>",
}
HERMES_CALLS: dict[str, Any] = {"call_begin": "<tool_call>", "call_end": "</tool_call>"}
"""Qwen2.5, Qwen3 and Hermes models were trained on these."""

_CALL_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_FENCE_OPEN, _FENCE_CLOSE = "\n```json\n", "\n```"


@dataclass(slots=True)
class ChatParser:
    """`push` each token with the text it completed (see tokenizer.StreamDecoder), then `finish`.

    `spellings` maps the model's control tokens to their spelling: such a token is never text, whether its spelling
    comes along or not. The same answer cut into tokens or texts in any way gives the same parts, put together.
    """

    marks: Marks
    starts_in: Start
    spellings: Mapping[int, str] = field(default_factory=dict)
    _state: str = ""
    _marks_are_text: bool = False
    _calls_are_text: bool = False
    _depth: int = 0  # of braces in a call's arguments
    _in_string: bool = False
    _escaped: bool = False
    _held: str = ""
    _calls: int = 0
    _parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        # before_*: nothing but white space seen yet, so that an opening mark may still come.
        self._state = "before_reasoning" if self.starts_in == "reasoning" else "before_content"
        if self.starts_in == "content" and not self.marks.open_reasoning:
            self._state = "content"
        spelt = self.marks.open_reasoning
        self._marks_are_text = bool(spelt) and spelt not in self.spellings.values()
        self._calls_are_text = self.marks.in_json and self.marks.call_begin not in self.spellings.values()

    def push(self, token_id: int, text: str) -> list[Part]:
        """What this token adds, perhaps nothing yet."""
        spelling = self.spellings.get(token_id)
        if spelling is None:
            self._text(text)
        else:
            if before := text.removesuffix(spelling):
                self._text(before)
            self._mark(spelling)
        return self._take()

    def finish(self) -> list[Part]:
        """The answer is over: what was held back for a mark that never came is text after all."""
        state, held = self._state, self._held
        self._held = ""
        if state in ("before_content", "content"):
            self._emit("content", held)
        elif state in ("before_reasoning", "reasoning"):
            self._emit("reasoning", held.strip() if state == "before_reasoning" else held.rstrip())
        elif state == "arguments":
            self._emit_arguments(held)
        elif state == "json_call":
            self._close_json_call(held)
        self._state = "finished"
        return self._take()

    # Marks that are tokens.

    def _mark(self, spelling: str) -> None:
        marks, state = self.marks, self._state
        if spelling == marks.open_reasoning:
            if state == "before_content":
                self._held, self._state = "", "before_reasoning"
        elif spelling == marks.close_reasoning:
            if state in ("before_reasoning", "reasoning"):
                self._close_reasoning()
        elif spelling == marks.calls_begin or spelling == marks.call_begin:
            self._leave()
            self._state = (
                "calls" if spelling == marks.calls_begin else "json_call" if marks.in_json else "head"
            )
        elif spelling == marks.call_separator and state == "head":
            name, self._held = self._held.strip(), ""
            if marks.fenced:
                self._state = "name_line"  # what stood before was the type, "function"
            else:
                self._start_call(name)
        elif spelling == marks.call_end:
            if state == "arguments":
                self._emit_arguments(
                    self._held.rstrip().removesuffix(_FENCE_CLOSE) if marks.fenced else self._held
                )
            elif state == "json_call":
                self._close_json_call(self._held, closed=True)
            self._held, self._state = "", "after" if marks.in_json else "calls"
        elif spelling == marks.calls_end:
            self._leave()
            self._state = "after"

    def _leave(self) -> None:
        """A tool call begins or the calls end: what is held belongs to the state that ends."""
        if self._state in ("before_reasoning", "reasoning"):
            self._close_reasoning()
        elif self._state in ("before_content", "content"):
            self._emit("content", self._held)
        elif self._state == "arguments":
            self._emit_arguments(self._held)
        self._held = ""

    # Text.

    def _text(self, text: str) -> None:
        self._held += text
        while self._held and self._step():
            pass

    def _step(self) -> bool:
        """Deal with the held text in the present state; True if the state changed and there may be more to do."""
        before = self._state
        match before:
            case "before_content" | "before_reasoning":
                self._look_for_opening()
            case "reasoning":
                self._reasoning()
            case "after":  # the newlines between reasoning and answer belong to the markup
                self._held = self._held.lstrip("\r\n")
                self._state = "content" if self._held else before
            case "content":
                self._content()
            case "json_call":
                self._json_call()
            case "json_arguments":
                self._json_arguments()
            case "json_tail":
                _, closed, rest = self._held.partition(self.marks.call_end)
                if closed and self._calls_are_text:
                    self._held, self._state = rest, "after"
            case "name_line":
                if _FENCE_OPEN in self._held:
                    name, _, arguments = self._held.partition(_FENCE_OPEN)
                    self._start_call(name.strip(), arguments)
            case "arguments":
                keep = _fence_tail(self._held) if self.marks.fenced else 0
                cut = len(self._held) - keep
                self._emit_arguments(self._held[:cut])
                self._held = self._held[cut:]
            case "head":
                pass
            case _:  # between calls and after the end there is no text of the answer
                self._held = ""
        return self._state != before

    def _look_for_opening(self) -> None:
        """Nothing but white space so far: is this an opening mark, the begin of one, or the first real text?"""
        rest = self._held.lstrip()
        if self._marks_are_text:
            opening = self.marks.open_reasoning
            if rest.startswith(opening):
                self._held, self._state = rest[len(opening) :], "before_reasoning"
                if self._held:
                    self._look_for_opening()
                return
            if opening.startswith(rest):
                return
        if rest:
            reasoning = self._state == "before_reasoning"
            self._held = rest if reasoning else self._held
            self._state = "reasoning" if reasoning else "content"

    def _reasoning(self) -> None:
        """Reasoning grows; white space at its end is held, for it is dropped if the reasoning ends there."""
        keep = 0
        if self._marks_are_text:
            thought, closed, rest = self._held.partition(self.marks.close_reasoning)
            if closed:
                self._held = thought
                self._close_reasoning()
                self._held = rest
                return
            keep = _partial_suffix(self._held, self.marks.close_reasoning)
        sure = self._held[: len(self._held) - keep].rstrip()
        self._emit("reasoning", sure)
        self._held = self._held[len(sure) :]

    def _close_reasoning(self) -> None:
        thought = self._held.strip() if self._state == "before_reasoning" else self._held.rstrip()
        self._emit("reasoning", thought)
        self._held, self._state = "", "after"

    # Calls as one JSON object.

    def _content(self) -> None:
        """All of it, unless a call may begin in it that is marked by text."""
        if not self._calls_are_text:
            self._emit("content", self._held)
            self._held = ""
            return
        said, begun, rest = self._held.partition(self.marks.call_begin)
        keep = 0 if begun else _partial_suffix(said, self.marks.call_begin)
        sure = said[: len(said) - keep]
        self._emit("content", sure)
        self._held = rest if begun else said[len(sure) :]
        if begun:
            self._state = "json_call"

    def _json_call(self) -> None:
        if head := _CALL_HEAD.match(self._held):
            self._start_call(_unquoted(head.group(1)), self._held[head.end() :])
            self._state, self._depth, self._in_string, self._escaped = "json_arguments", 0, False, False
        elif self._calls_are_text:
            call, closed, rest = self._held.partition(self.marks.call_end)
            if closed:
                self._close_json_call(call, closed=True)
                self._held, self._state = rest, "after"

    def _close_json_call(self, call: str, *, closed: bool = False) -> None:
        """A call in another order of keys; one that is no JSON was text after all, one that was cut is nothing."""
        try:
            found = json.loads(call)
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            arguments = found.get("arguments", found.get("parameters", {}))
            self._start_call(found["name"])
            self._emit_arguments(
                arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            )
        elif closed:
            marks = self.marks
            self._emit(
                "content", f"{marks.call_begin}{call}{marks.call_end}" if self._calls_are_text else call
            )

    def _json_arguments(self) -> None:
        """An object's text up to its own closing brace; the brace behind it belongs to the call."""
        for place, character in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._emit_arguments(self._held[: place + 1])
                    self._held, self._state = self._held[place + 1 :], "json_tail"
                    return
        self._emit_arguments(self._held)
        self._held = ""

    def _start_call(self, name: str, arguments: str = "") -> None:
        self._parts.append(Part("tool_call", "", index=self._calls, name=name))
        self._calls += 1
        self._held, self._state = arguments, "arguments"

    def _emit_arguments(self, text: str) -> None:
        if text:
            self._parts.append(Part("tool_call", text, index=self._calls - 1))

    def _emit(self, kind: Kind, text: str) -> None:
        if text:
            self._parts.append(Part(kind, text))

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        joined: list[Part] = []
        for part in parts:
            last = joined[-1] if joined else None
            if last and part.name is None and (last.kind, last.index) == (part.kind, part.index):
                joined[-1] = replace(last, text=last.text + part.text)
            else:
                joined.append(part)
        return joined


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def _partial_suffix(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark` without being all of it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


def _fence_tail(text: str) -> int:
    """Length of the end of `text` that may turn out to be the closing fence with white space around it."""
    bare = text.rstrip()
    ticks = min(len(bare) - len(bare.rstrip("`")), 3)
    return len(text) - len(bare[: len(bare) - ticks].rstrip())
