"""What every chat protocol does: check messages, write a page of markup and text, make ids of it.

One renderer for all uses: a model is served with exactly what it was trained on. Markup is encoded with control
tokens, people's text without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from shoal.data.chat_parser import ChatParser, Marks, Start
from shoal.data.template import to_json
from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Message
from shoal.errors import ShoalError

ROLES = ("system", "user", "assistant", "tool")
Tools = Sequence[Mapping[str, Any]]
Thinking = Literal["none", "native", "adapter"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt: its token ids, and the state in which the answer's parser begins."""

    ids: list[int]
    starts_in: Start


class ChatProtocol(ABC):
    """How one family of models writes conversations.

    `thinking` is "native" where the model was trained to reason between marks, "adapter" where only an adapter of it
    was, whose marks are ordinary text, else "none". `stop_ids` end an answer.
    """

    name: str
    marks = Marks()
    supports_tools = False

    def __init__(self, tokenizer: Tokenizer, *, thinking: Literal["none", "native"] = "none"):
        self.tokenizer = tokenizer
        self.thinking: Thinking = thinking
        self.stop_ids: tuple[int, ...] = tokenizer.eos_ids

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        thinking: bool = False,
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
    ) -> Rendered:
        """The prompt for the next answer. `thinking` is ignored by a model that has none.

        Earlier reasoning is left out, as the family does. Raises ShoalError for messages the family cannot write.
        """
        page = Page(self.tokenizer)
        wanted = self._checked(messages, tools)
        starts_in = self._write(page, wanted, thinking, add_generation_prompt, tools or ())
        return Rendered(page.encode()[0], starts_in)

    def render_training(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        tools: Tools | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and for each id whether it is learnt (assistants' text and end tokens only).

        The last turn is learnt with its reasoning if `thinking` (None: if it has any); before it stands exactly what
        `render` gives. Earlier turns are learnt as they stand in a history; those whose reasoning is left out there
        are not learnt, for that would teach to skip it. Raises ShoalError if nothing would be learnt.
        """
        wanted = self._checked(messages, tools)
        if wanted[-1].role != "assistant":
            raise ShoalError(
                f"this conversation ends with role {wanted[-1].role!r}: there is no assistant turn to learn from",
                hint='The last message needs "role": "assistant".',
            )
        if thinking is None:
            thinking = bool(wanted[-1].reasoning_content)
        ids, learnt = self._training(wanted, thinking and self.thinking == "native", tools or ())
        if not any(learnt):
            raise ShoalError("no token of this conversation would be learnt: its assistant turns are empty")
        return ids, learnt

    def parser(self, starts_in: Start, *, tools: bool = False) -> ChatParser:
        """A parser for one answer, in the state that `render` gave back. Without `tools` (none were offered) a call
        whose marks are ordinary text for this model is text."""
        marks = self.marks
        if self.thinking == "none" or (self.thinking == "adapter" and starts_in == "content"):
            marks = replace(marks, open_reasoning="", close_reasoning="")
        if marks.in_json and not tools:
            marks = replace(marks, call_begin="", call_end="", in_json=False)
        spellings = {i: spelling(self.tokenizer, i) for i in self.tokenizer.special_ids}
        return ChatParser(marks, starts_in, spellings)

    def spell(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        thinking: bool = False,
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
    ) -> str:
        """The prompt as text, marks spelt out: for people to look at, never to be encoded."""
        page = Page(self.tokenizer)
        self._write(page, self._checked(messages, tools), thinking, add_generation_prompt, tools or ())
        return page.spell()

    def _checked(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools | None) -> list[Message]:
        checked = [_message(message) for message in messages]
        if not checked:
            raise ShoalError(
                "there are no messages", hint='Send at least {"role": "user", "content": "..."}.'
            )
        for message in checked:
            if message.role not in ROLES:
                raise ShoalError(f"unknown role {message.role!r}", hint=f"Roles are {', '.join(ROLES)}.")
        if not self.supports_tools and (tools or any(m.tool_calls or m.role == "tool" for m in checked)):
            raise ShoalError(
                "this model's chat format has no tools", hint="Leave out tools and tool messages."
            )
        return checked

    def with_thinking_adapter(self) -> Self:
        """This protocol for a model beside whose weights an adapter thinks. Raises ShoalError for a family whose
        answers are not opened with text."""
        raise ShoalError(f"an adapter cannot think for a model of the {self.name} chat format")

    @abstractmethod
    def _write(
        self, page: Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        """Write the messages as history, and the opening of the next answer if `generation`."""

    @abstractmethod
    def _training(
        self, messages: list[Message], thinking: bool, tools: Tools
    ) -> tuple[list[int], list[bool]]:
        """Ids of the whole conversation, the last answer with its reasoning if `thinking`, and what is learnt."""


class Page:
    """What is written: control tokens and text, each with whether it is learnt.

    Text between two control tokens is encoded as one, so that ids do not depend on how it was put together, but
    never across `cut` or from not learnt to learnt: there an answer begins, and a model generates from there.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._items: list[tuple[int | str, bool]] = []
        self._open = False

    def mark(self, spelling: str, learnt: bool = False) -> None:
        token_id = self._tokenizer.id_of(spelling)
        if token_id is not None and token_id in self._tokenizer.special_ids:
            self._items.append((token_id, learnt))
            self._open = False
        else:  # ordinary text for this model
            self.text(spelling, learnt)

    def text(self, text: str, learnt: bool = False) -> None:
        if not text:
            return
        if self._open and self._items[-1][1] == learnt:
            self._items[-1] = (str(self._items[-1][0]) + text, learnt)
        else:
            self._items.append((text, learnt))
        self._open = True

    def cut(self) -> None:
        self._open = False

    def encode(self) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        learnt: list[bool] = []
        for item, flag in self._items:
            new = [item] if isinstance(item, int) else self._tokenizer.encode(item)
            ids += new
            learnt += [flag] * len(new)
        return ids, learnt

    def spell(self) -> str:
        return "".join(i if isinstance(i, str) else spelling(self._tokenizer, i) for i, _ in self._items)

    def atoms(self) -> list[int | str | None]:
        """Control tokens, single characters, and None where text is cut."""
        atoms: list[int | str | None] = []
        for item, _ in self._items:
            if isinstance(item, str) and atoms and isinstance(atoms[-1], str):
                atoms.append(None)
            atoms += [item] if isinstance(item, int) else item
        return atoms


def spelling(tokenizer: Tokenizer, token_id: int | None) -> str:
    return (tokenizer.token_of(token_id) or "") if token_id is not None else ""


def _message(message: Message | Mapping[str, Any]) -> Message:
    """One form of many: developer is system, no tool calls is None, arguments are JSON text."""
    if isinstance(message, Mapping):
        known = {key: message.get(key) for key in Message.__dataclass_fields__}
        message = Message(**{**known, "role": str(message.get("role"))})  # type: ignore[arg-type]
    for field in ("content", "reasoning_content"):
        if not isinstance(value := getattr(message, field), str | None):
            raise ShoalError(f"{field} of a {message.role} message is a {type(value).__name__}, not text")
    calls = []
    for call in message.tool_calls or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ShoalError(
                "a tool call needs function.name", hint='{"function": {"name": ..., "arguments": ...}}'
            )
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else to_json({} if arguments is None else arguments)
        calls.append({**call, "function": {"name": function["name"], "arguments": text}})
    role = "system" if message.role == "developer" else message.role
    return replace(message, role=role, tool_calls=tuple(calls) or None)
