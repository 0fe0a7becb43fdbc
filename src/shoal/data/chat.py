"""The chat protocol: messages to token ids, for serving and for training, and the family a checkpoint belongs to.

One renderer for all uses: a model is served with exactly what it was trained on. Markup is encoded with control
tokens, people's text without (docs/chat-protocol.md). Parsing an answer is in chat_parser.py.
"""

from __future__ import annotations

import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from shoal.data.chat_parser import ChatParser, Marks, Part, Start
from shoal.data.template import ChatTemplate, to_json
from shoal.data.tokenizer import BOS, EOS, Tokenizer
from shoal.data.types import Message
from shoal.errors import ShoalError

__all__ = ["ChatParser", "ChatProtocol", "Message", "Part", "Rendered", "protocol_for", "show_training"]

ROLES = ("system", "user", "assistant", "tool")
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt: its token ids, and the state in which the answer's parser begins."""

    ids: list[int]
    starts_in: Start


class ChatProtocol(ABC):
    """How one family of models writes conversations.

    `thinking` is "native" where the model was trained to reason between marks, else "none". `stop_ids` end an answer.
    """

    name: str
    marks = Marks()
    supports_tools = False

    def __init__(self, tokenizer: Tokenizer, *, thinking: Literal["none", "native"] = "none"):
        self.tokenizer = tokenizer
        self.thinking: Literal["none", "native"] = thinking
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
        page = _Page(self.tokenizer)
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

    def parser(self, starts_in: Start) -> ChatParser:
        """A parser for one answer, in the state that `render` gave back."""
        marks = (
            self.marks
            if self.thinking == "native"
            else replace(self.marks, open_reasoning="", close_reasoning="")
        )
        spellings = {i: self.tokenizer.token_of(i) or "" for i in self.tokenizer.special_ids}
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
        page = _Page(self.tokenizer)
        self._write(page, self._checked(messages, tools), thinking, add_generation_prompt, tools or ())
        return page.spell()

    def _training(
        self, messages: list[Message], thinking: bool, tools: Tools
    ) -> tuple[list[int], list[bool]]:
        page = _Page(self.tokenizer)
        self._write(page, messages[:-1], thinking, True, tools)
        self._write_answer(page, messages[-1], thinking)
        return page.encode()

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

    @abstractmethod
    def _write(
        self, page: _Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        """Write the messages as history, and the opening of the next answer if `generation`."""

    @abstractmethod
    def _write_answer(self, page: _Page, message: Message, thinking: bool) -> None:
        """Write an assistant's whole answer, all of it learnt, after the opening that `_write` wrote."""


class DeepSeekProtocol(ChatProtocol):
    """DeepSeek V3, R1 and V3.1 (one model that answers with or without thinking): no space or newline between parts.

    V3.1 opens an answer with `<think>` or, without thinking, `</think>`. R1 always thinks; without thinking it is
    given an empty thought. Earlier reasoning is dropped from histories, inline (up to `</think>`) or in its field.
    """

    supports_tools = True

    def __init__(self, tokenizer: Tokenizer, style: Literal["v3", "r1", "v31"]):
        super().__init__(tokenizer, thinking="none" if style == "v3" else "native")
        self.style, self.name = style, f"deepseek_{style}"
        self.marks = Marks(
            open_reasoning="<think>",
            close_reasoning="</think>",
            call_begin="<｜tool▁call▁begin｜>",
            call_separator="<｜tool▁sep｜>",
            call_end="<｜tool▁call▁end｜>",
            calls_begin="<｜tool▁calls▁begin｜>",
            calls_end="<｜tool▁calls▁end｜>",
            fenced=style != "v31",
        )
        eos = tokenizer.id_of(EOS)
        self.stop_ids = tuple(
            dict.fromkeys((eos, *tokenizer.eos_ids) if eos is not None else tokenizer.eos_ids)
        )

    def _write(
        self, page: _Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        page.mark(BOS)
        page.text("\n\n".join(message.content or "" for message in messages if message.role == "system"))
        if tools:
            self._write_tools(page, tools)
        previous = ""  # role of the message before, system messages apart
        for message in messages:
            match message.role:
                case "system":
                    continue
                case "user":
                    self._end_outputs(page, previous)
                    page.mark("<｜User｜>")
                    page.text(message.content or "")
                case "assistant":
                    self._end_outputs(page, previous)
                    if previous == "user" or (self.style != "v31" and previous != "tool"):
                        page.mark("<｜Assistant｜>")
                        if self.style == "v31":
                            page.mark("</think>")
                    self._write_turn(page, message, after_tool=previous == "tool")
                case "tool":
                    self._write_output(page, message, first=previous != "tool")
            previous = message.role
        self._end_outputs(page, previous)
        if not generation or previous == "tool":  # after a tool's output the answer just goes on
            return "content"
        page.mark("<｜Assistant｜>")
        if self.style == "v3":
            return "content"
        if self.style == "v31":
            page.mark("<think>" if thinking else "</think>")
            return "reasoning" if thinking else "content"
        page.mark("<think>")
        page.text("\n")
        if thinking:
            return "reasoning"
        page.text("\n")
        page.mark("</think>")
        page.text("\n\n")
        return "content"

    def _write_turn(self, page: _Page, message: Message, *, after_tool: bool) -> None:
        content = message.content or ""
        if self.thinking == "native" and not after_tool and not message.tool_calls and "</think>" in content:
            content = (
                content.split("</think>", 1)[1] if self.style == "v31" else content.split("</think>")[-1]
            )
        dropped = content != (message.content or "") or bool(message.reasoning_content)
        self._write_body(page, content, message, learnt=not dropped)

    def _write_body(self, page: _Page, content: str, message: Message, *, learnt: bool) -> None:
        page.text(content, learnt)
        for number, call in enumerate(message.tool_calls or ()):
            if number == 0:
                page.mark("<｜tool▁calls▁begin｜>", learnt)
            elif self.style != "v31":
                page.text("\n", learnt)
            page.mark("<｜tool▁call▁begin｜>", learnt)
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if self.style == "v31":
                page.text(name, learnt)
                page.mark("<｜tool▁sep｜>", learnt)
                page.text(arguments, learnt)
            else:
                page.text("function", learnt)
                page.mark("<｜tool▁sep｜>", learnt)
                page.text(f"{name}\n```json\n{arguments}\n```", learnt)
            page.mark("<｜tool▁call▁end｜>", learnt)
        if message.tool_calls:
            page.mark("<｜tool▁calls▁end｜>", learnt)
        page.mark(EOS, learnt)

    def _write_answer(self, page: _Page, message: Message, thinking: bool) -> None:
        if thinking:
            page.text((message.reasoning_content or "") + ("\n" if self.style == "r1" else ""), True)
            page.mark("</think>", True)
            page.text("\n\n" if self.style == "r1" else "", True)
        self._write_body(page, message.content or "", message, learnt=True)

    def _write_output(self, page: _Page, message: Message, *, first: bool) -> None:
        if self.style != "v31":
            if first:
                page.mark("<｜tool▁outputs▁begin｜>")
            else:
                page.text("\n")
        page.mark("<｜tool▁output▁begin｜>")
        page.text(message.content or "")
        page.mark("<｜tool▁output▁end｜>")

    def _end_outputs(self, page: _Page, previous: str) -> None:
        if previous == "tool" and self.style != "v31":
            page.mark("<｜tool▁outputs▁end｜>")

    def _write_tools(self, page: _Page, tools: Tools) -> None:
        page.text("\n\n## Tools\nYou have access to the following tools:\n")
        for tool in tools:
            page.text(to_json(tool) + "\n")
        page.text("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n")
        page.mark("<｜tool▁calls▁begin｜>")
        page.mark("<｜tool▁call▁begin｜>")
        page.text("tool_call_name" if self.style == "v31" else "function")
        page.mark("<｜tool▁sep｜>")
        page.text(
            "tool_call_arguments"
            if self.style == "v31"
            else "tool_call_name\n```json\ntool_call_arguments\n```"
        )
        page.mark("<｜tool▁call▁end｜>")
        page.mark("<｜tool▁calls▁end｜>")
        page.text(
            "\n\n`tool_call_name` is one of the tools above; `tool_call_arguments` is JSON that fits its parameters."
        )


class ChatMLProtocol(ChatProtocol):
    """`<|im_start|>role`, newline, text, `<|im_end|>`, newline: SmolLM2, Qwen2, Qwen3.

    `default_system` is written where a conversation has no system message. With native thinking (Qwen3) the model
    writes `<think>` itself; without thinking it is given an empty thought.
    """

    name = "chatml"
    marks = Marks(open_reasoning="<think>", close_reasoning="</think>")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        default_system: str | None = None,
        thinking: Literal["none", "native"] = "none",
    ):
        super().__init__(tokenizer, thinking=thinking)
        self.default_system = default_system
        end = tokenizer.id_of("<|im_end|>")
        self.stop_ids = tuple(
            dict.fromkeys((end, *tokenizer.eos_ids) if end is not None else tokenizer.eos_ids)
        )

    def _write(
        self, page: _Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        if self.default_system is not None and (not messages or messages[0].role != "system"):
            messages = [Message("system", self.default_system), *messages]
        for message in messages:
            self._header(page, message.role)
            content, dropped = message.content or "", False
            if message.role == "assistant" and self.thinking == "native":
                if "</think>" in content:
                    content = content.split("</think>")[-1].lstrip("\n")
                dropped = content != (message.content or "") or bool(message.reasoning_content)
            self._body(page, content, learnt=message.role == "assistant" and not dropped)
            page.text("\n")
        if generation:
            self._header(page, "assistant")
            if self.thinking == "native" and not thinking:
                self._thought(page, "", learnt=False)
        return "content"

    def _write_answer(self, page: _Page, message: Message, thinking: bool) -> None:
        if thinking:
            self._thought(page, message.reasoning_content or "", learnt=True)
        self._body(page, message.content or "", learnt=True)
        page.text("\n")

    def _header(self, page: _Page, role: str) -> None:
        page.mark("<|im_start|>")
        page.text(f"{role}\n")
        page.cut()  # an answer is generated after this newline, so a history is cut here too

    def _body(self, page: _Page, content: str, *, learnt: bool) -> None:
        page.text(content, learnt)
        page.mark("<|im_end|>", learnt)

    def _thought(self, page: _Page, reasoning: str, *, learnt: bool) -> None:
        page.mark("<think>", learnt)
        page.text(f"\n{reasoning}\n", learnt)
        page.mark("</think>", learnt)
        page.text("\n\n", learnt)
        if not learnt:
            page.cut()


class TemplateProtocol(ChatProtocol):
    """Any other family, by the checkpoint's own jinja template in the sandbox.

    People's text stands in the template as placeholders nobody can guess, and is put in afterwards, so that it never
    becomes markup. White space at its ends is real; a template that looks into the text otherwise (splits it,
    measures it) sees the placeholder.
    """

    name = "template"
    marks = Marks(open_reasoning="<think>", close_reasoning="</think>")
    supports_tools = True

    def __init__(self, tokenizer: Tokenizer, template: str):
        self._texts: list[str] = []
        self._template = ChatTemplate(template, tojson=_tojson_with_placeholders)
        native = "<think>" in template or "</think>" in template
        super().__init__(tokenizer, thinking="native" if native else "none")
        self.supports_tools = "tools" in template
        self._arguments_as_text = not re.search(r"arguments\s*\|\s*tojson", template)

    def _write(
        self, page: _Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        hidden = _Hidden()
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_ids[:1]
        rendered = self._template.render(
            {
                "messages": [self._for_template(message, hidden) for message in messages],
                "tools": [hidden.all_texts(tool) for tool in tools] or None,
                "add_generation_prompt": generation,
                "thinking": thinking,
                "enable_thinking": thinking,
                "bos_token": self.tokenizer.token_of(bos) if bos is not None else "",
                "eos_token": self.tokenizer.token_of(eos[0]) if eos else "",
            }
        )
        if (
            self.tokenizer.add_bos
            and bos is not None
            and not rendered.startswith(self.tokenizer.token_of(bos) or "\0")
        ):
            page.mark(self.tokenizer.token_of(bos) or "")
        for is_markup, text in hidden.split(rendered):
            if not is_markup:
                page.text(text)
                continue
            for piece in self.tokenizer.split_markup(text):
                if isinstance(piece, int):
                    page.mark(self.tokenizer.token_of(piece) or "")
                else:
                    page.text(piece)
        opened = self.thinking == "native" and rendered.rstrip().endswith("<think>")
        return "reasoning" if opened and generation else "content"

    def _training(
        self, messages: list[Message], thinking: bool, tools: Tools
    ) -> tuple[list[int], list[bool]]:
        """A template cannot say what is learnt: the difference between a prompt and the prompt with its answer is."""
        shown = [
            replace(
                m,
                content=f"<think>\n{m.reasoning_content}\n</think>\n\n{m.content or ''}",
                reasoning_content=None,
            )
            if thinking and m is messages[-1]
            else m
            for m in messages
        ]
        ids = self._ids(shown, thinking, False, tools)
        learnt = [False] * len(ids)
        for number, message in enumerate(shown):
            if message.role != "assistant" or number == 0:
                continue
            before = self._ids(shown[:number], thinking, True, tools)
            after = self._ids(shown[: number + 1], thinking, False, tools)
            if after[: len(before)] != before or ids[: len(after)] != after:
                if number < len(shown) - 1:
                    continue  # this template writes an earlier turn otherwise than it was answered
                raise ShoalError(
                    "this model's chat template writes an answer otherwise than it asks for one, "
                    "so what is to be learnt cannot be told",
                    hint="Give a template whose prompt is the beginning of the whole conversation.",
                )
            ends = [i for i in range(len(before), len(after)) if after[i] in self.stop_ids]
            for i in range(len(before), ends[-1] + 1 if ends else len(after)):
                learnt[i] = True
        return ids, learnt

    def _ids(self, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools) -> list[int]:
        page = _Page(self.tokenizer)
        self._write(page, messages, thinking, generation, tools)
        return page.encode()[0]

    def _write_answer(self, page: _Page, message: Message, thinking: bool) -> None:
        raise NotImplementedError("a template writes whole conversations")  # _training above does not call it

    def _for_template(self, message: Message, hidden: _Hidden) -> dict[str, Any]:
        content = message.content or ""
        if self.thinking == "native" and message.role == "assistant" and message.reasoning_content is None:
            thought, closed, rest = content.rpartition("</think>")
            content = (
                rest.lstrip("\n") if closed and not thought.lstrip().startswith("<think>\n") else content
            )
        entry: dict[str, Any] = {"role": message.role, "content": hidden.text(content)}
        if message.name is not None:
            entry["name"] = hidden.text(message.name)
        if message.tool_call_id is not None:
            entry["tool_call_id"] = hidden.text(message.tool_call_id)
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                arguments = call["function"]["arguments"]
                shown = (
                    hidden.text(arguments)
                    if self._arguments_as_text
                    else hidden.all_texts(_parsed(arguments))
                )
                function = {"name": hidden.text(call["function"]["name"]), "arguments": shown}
                calls.append(
                    {"id": hidden.text(str(call.get("id", ""))), "type": "function", "function": function}
                )
            entry["tool_calls"] = calls
        return entry


class NoChatProtocol(ChatProtocol):
    """A base model without a chat format: it completes text; chatting with it is an error that says so."""

    name = "none"

    def _checked(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools | None) -> list[Message]:
        raise ShoalError(
            "this model has no chat format: it completes text",
            hint="Use /v1/completions, or a model that was tuned for chat (its files carry a chat template).",
        )

    def _write(
        self, page: _Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        return "content"

    def _write_answer(self, page: _Page, message: Message, thinking: bool) -> None:
        return None


def protocol_for(
    tokenizer: Tokenizer, *, model_type: str = "", chat_template: str | None = None
) -> ChatProtocol:
    """The protocol of a checkpoint: a built-in family if its own template writes the same, else that template.

    Without a template the control tokens of the vocabulary decide. Raises ShoalError for a template that is broken.
    """
    template = chat_template if chat_template is not None else tokenizer.chat_template
    candidates = _candidates(tokenizer, template)
    if template is None:
        return candidates[0] if candidates else NoChatProtocol(tokenizer)
    compiled = ChatTemplate(template)
    for candidate in candidates:
        if _writes_the_same(candidate, compiled):
            return candidate
    return TemplateProtocol(tokenizer, template)


def show_training(tokenizer: Tokenizer, ids: Sequence[int], learnt: Sequence[bool]) -> str:
    """The row as text with what is learnt between ⟦ and ⟧, for people to check before a run."""
    pieces: list[str] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learnt[end] != learnt[start]:
            text = tokenizer.decode(ids[start:end])
            pieces.append(f"⟦{text}⟧" if learnt[start] else text)
            start = end
    return "".join(pieces)


class _Page:
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
        if token_id in self._tokenizer.special_ids:
            assert token_id is not None
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
        spelt = (
            item if isinstance(item, str) else self._tokenizer.token_of(item) or "" for item, _ in self._items
        )
        return "".join(spelt)


_OPEN, _CLOSE, _CLOSE_IN_JSON = "\ue0f0", "\ue0f1", "\ue0f2"


class _Hidden:
    """People's texts behind placeholders with a random number; spaces at their ends stay outside."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(8)
        self._texts: list[str] = []

    def text(self, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        self._texts.append(core)
        place = f"{_OPEN}{self._nonce}x{len(self._texts) - 1}{_CLOSE}"
        return text[: len(text) - len(text.lstrip())] + place + text[len(text.rstrip()) :]

    def all_texts(self, value: Any) -> Any:
        """A JSON value with every string hidden, keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                key if key in _SCHEMA_KEYS else self.text(key): self.all_texts(v) for key, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.all_texts(item) for item in value]
        return value

    def split(self, rendered: str) -> list[tuple[bool, str]]:
        """(is markup, text) in order."""
        pattern = re.compile(f"{_OPEN}{self._nonce}x(\\d+)([{_CLOSE}{_CLOSE_IN_JSON}])")
        pieces: list[tuple[bool, str]] = []
        position = 0
        for match in pattern.finditer(rendered):
            pieces.append((True, rendered[position : match.start()]))
            text = self._texts[int(match.group(1))]
            quoted = match.group(2) == _CLOSE_IN_JSON
            pieces.append((False, json.dumps(text, ensure_ascii=False)[1:-1] if quoted else text))
            position = match.end()
        pieces.append((True, rendered[position:]))
        return [(is_markup, text) for is_markup, text in pieces if text]


# Keys that templates look up in a tool's description.
_SCHEMA_KEYS = frozenset(
    "type function name description parameters properties required enum items strict".split()
)


def _tojson_with_placeholders(value: Any, *args: Any, **kwargs: Any) -> str:
    return to_json(value, *args, **kwargs).replace(_CLOSE, _CLOSE_IN_JSON)


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


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _candidates(tokenizer: Tokenizer, template: str | None) -> list[ChatProtocol]:
    """Built-in families that this vocabulary can write, the likeliest first."""

    def has(*tokens: str) -> bool:
        return all(tokenizer.id_of(token) in tokenizer.special_ids for token in tokens)

    if has("<｜User｜>", "<｜Assistant｜>", BOS, EOS):
        styles: tuple[Literal["v3", "r1", "v31"], ...] = (
            ("v31", "r1", "v3") if has("<think>", "</think>") else ("v3",)
        )
        return [DeepSeekProtocol(tokenizer, style) for style in styles]
    if not has("<|im_start|>", "<|im_end|>"):
        return []
    system = None
    if template is not None:
        try:
            shown = ChatTemplate(template).render(
                {"messages": [{"role": "user", "content": "x"}], "tools": None}
            )
        except ShoalError:
            shown = ""
        found = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n<\|im_start\|>user", shown, re.DOTALL)
        system = found.group(1) if found else None
    native = has("<think>", "</think>")
    plain = ChatMLProtocol(tokenizer, default_system=system)
    return [ChatMLProtocol(tokenizer, default_system=system, thinking="native"), plain] if native else [plain]


def _writes_the_same(protocol: ChatProtocol, template: ChatTemplate) -> bool:
    """Whether the template gives the same text as the built-in family on a few conversations."""
    user, other = Message("user", "What is 1+1?"), Message("user", "And 2+2?")
    system, answer = Message("system", "Be brief."), Message("assistant", "It is 2.")
    conversations = ([user], [system, user], [user, answer, other], [system, user, answer, other, answer])
    token = protocol.tokenizer.token_of
    ends = [token(i) for i in protocol.stop_ids]
    for messages in conversations:
        generation = messages[-1].role == "user"
        for thinking in (True, False) if protocol.thinking == "native" else (False,):
            if not thinking and protocol.name == "deepseek_r1":
                continue  # its template knows no switch
            variables = {
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "tools": None,
                "add_generation_prompt": generation,
                "thinking": thinking,
                "enable_thinking": thinking,
                "bos_token": token(protocol.tokenizer.bos_id)
                if protocol.tokenizer.bos_id is not None
                else "",
                "eos_token": ends[0] if ends else "",
            }
            try:
                shown = template.render(variables)
            except ShoalError:
                return False
            if shown != protocol.spell(messages, thinking=thinking, add_generation_prompt=generation):
                return False
    return True
