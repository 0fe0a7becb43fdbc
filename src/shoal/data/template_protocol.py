"""The protocol of any other family: the checkpoint's own jinja template, with people's text kept out of it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from shoal.data.chat_parser import DEEPSEEK_CALLS, HERMES_CALLS, Marks, Start
from shoal.data.protocol import ChatProtocol, Page, Tools, spelling
from shoal.data.template import ChatTemplate, TemplateRefusal, to_json
from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Message
from shoal.errors import ShoalError


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
        self._template = ChatTemplate(template, tojson=_tojson_with_placeholders)
        native = "<think>" in template or "</think>" in template
        super().__init__(tokenizer, thinking="native" if native else "none")
        self.supports_tools = "tools" in template
        if "<tool_call>" in template:
            self.marks = replace(self.marks, in_json=True, **HERMES_CALLS)
        elif DEEPSEEK_CALLS["calls_begin"] in template:
            self.marks = replace(self.marks, fenced="```json" in template, **DEEPSEEK_CALLS)
        self._arguments_as_text = not re.search(r"arguments\s*\|\s*tojson", template)

    def _write(
        self, page: Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        return self._fill(page, messages, thinking, generation, tools)

    def _fill(
        self,
        page: Page,
        messages: Sequence[Message],
        thinking: bool,
        generation: bool,
        tools: Tools,
        *,
        with_reasoning: bool = False,
    ) -> Start:
        """Render and put people's text in; `with_reasoning`: the last message shows its reasoning."""
        hidden = Hidden()
        bos = spelling(self.tokenizer, self.tokenizer.bos_id)
        shown = [self._for_template(message, hidden) for message in messages]
        if with_reasoning:
            reasoning = hidden.text(messages[-1].reasoning_content or "")
            shown[-1]["content"] = f"<think>\n{reasoning}\n</think>\n\n{shown[-1]['content']}"
        variables = {
            "messages": shown,
            "tools": [hidden.all_texts(tool) for tool in tools] or None,
            "add_generation_prompt": generation,
            "thinking": thinking,
            "enable_thinking": thinking,
            "bos_token": bos,
            "eos_token": spelling(self.tokenizer, next(iter(self.tokenizer.eos_ids), None)),
        }
        try:
            rendered = self._template.render(variables)
        except TemplateRefusal as error:
            roles = ", ".join(message.role for message in messages)
            raise TemplateRefusal(
                error.message, hint=f"{error.hint} The roles sent were: {roles}."
            ) from error
        if self.tokenizer.add_bos and not rendered.startswith(bos):
            page.mark(bos)
        for kind, text in hidden.split(rendered):
            if kind != "markup":
                if kind == "answer":
                    page.cut()  # it was generated after what stands before it, so a history is cut here too
                page.text(text)
                continue
            for piece in self.tokenizer.split_markup(text):
                if isinstance(piece, int):
                    page.mark(spelling(self.tokenizer, piece))
                else:
                    page.text(piece)
        opened = self.thinking == "native" and rendered.rstrip().endswith("<think>")
        return "reasoning" if opened and generation else "content"

    def _training(
        self, messages: list[Message], thinking: bool, tools: Tools
    ) -> tuple[list[int], list[bool]]:
        """A template cannot say what is learnt: what an answer adds to the prompt that asks for it is."""

        def atoms(count: int, generation: bool) -> list[int | str | None]:
            page = Page(self.tokenizer)
            last = count == len(messages) and not generation
            self._fill(page, messages[:count], thinking, generation, tools, with_reasoning=thinking and last)
            return page.atoms()

        whole = atoms(len(messages), False)
        learnt = [False] * len(whole)
        for number, message in enumerate(messages):
            is_last = number == len(messages) - 1
            if message.role != "assistant" or number == 0 or (message.reasoning_content and not is_last):
                continue
            before, after = atoms(number, True), atoms(number + 1, False)
            if after[: len(before)] == before and whole[: len(after)] == after:
                ends = [i for i in range(len(before), len(after)) if after[i] in self.stop_ids]
                for i in range(len(before), ends[-1] + 1 if ends else len(after)):
                    learnt[i] = True
            elif is_last:
                raise ShoalError(
                    "this model's chat template writes an answer otherwise than it asks for one, "
                    "so what is to be learnt cannot be told",
                    hint="Give a template whose prompt is the beginning of the whole conversation.",
                )
        page = Page(self.tokenizer)
        for atom, flag in zip(whole, learnt, strict=True):
            if isinstance(atom, int):
                page.mark(spelling(self.tokenizer, atom), flag)
            elif atom is None:
                page.cut()
            else:
                page.text(atom, flag)
        return page.encode()

    def _for_template(self, message: Message, hidden: Hidden) -> dict[str, Any]:
        content = message.content or ""
        if self.thinking == "native" and message.role == "assistant" and "</think>" in content:
            content = content.split("</think>")[-1].lstrip("\n")
        entry: dict[str, Any] = {
            "role": message.role,
            "content": hidden.text(content, answer=message.role == "assistant"),
        }
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


Kind = Literal["markup", "people", "answer"]
_OPEN, _CLOSE, _CLOSE_IN_JSON = "\ue0f0", "\ue0f1", "\ue0f2"


class Hidden:
    """People's texts behind placeholders with a random number; spaces at their ends stay outside."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(8)
        self._texts: list[tuple[Kind, str]] = []

    def text(self, text: str, *, answer: bool = False) -> str:
        core = text.strip()
        if not core:
            return text
        self._texts.append(("answer" if answer else "people", core))
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

    def split(self, rendered: str) -> list[tuple[Kind, str]]:
        """Markup and people's texts in order."""
        pattern = re.compile(f"{_OPEN}{self._nonce}x(\\d+)([{_CLOSE}{_CLOSE_IN_JSON}])")
        pieces: list[tuple[Kind, str]] = []
        position = 0
        for match in pattern.finditer(rendered):
            pieces.append(("markup", rendered[position : match.start()]))
            kind, text = self._texts[int(match.group(1))]
            quoted = match.group(2) == _CLOSE_IN_JSON
            pieces.append((kind, json.dumps(text, ensure_ascii=False)[1:-1] if quoted else text))
            position = match.end()
        pieces.append(("markup", rendered[position:]))
        if any(kind == "markup" and self._nonce in text.lower() for kind, text in pieces):
            raise ShoalError(
                "this model's chat template changes people's text (its case or length), which shoal does not follow",
                hint="Give the model a plainer chat template.",
            )
        return [(kind, text) for kind, text in pieces if text]


# Keys that templates look up in a tool's description.
_SCHEMA_KEYS = frozenset(
    "type function name description parameters properties required enum items strict".split()
)


def _tojson_with_placeholders(value: Any, *args: Any, **kwargs: Any) -> str:
    return to_json(value, *args, **kwargs).replace(_CLOSE, _CLOSE_IN_JSON)


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
