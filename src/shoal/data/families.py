"""The families of chat models whose protocol is built in: DeepSeek's, ChatML's, and none at all."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from shoal.data.chat_parser import DEEPSEEK_CALLS, HERMES_CALLS, Marks, Start
from shoal.data.protocol import ChatProtocol, Page, Tools
from shoal.data.template import to_json
from shoal.data.tokenizer import BOS, EOS, Tokenizer
from shoal.data.types import Message
from shoal.errors import ShoalError


class _BuiltIn(ChatProtocol):
    """A family that writes its last answer as it would be generated, so that training is writing it after a prompt."""

    def _training(
        self, messages: list[Message], thinking: bool, tools: Tools
    ) -> tuple[list[int], list[bool]]:
        page = Page(self.tokenizer)
        self._write(page, messages[:-1], thinking, True, tools)
        self._write_answer(page, messages[-1], thinking)
        return page.encode()

    @abstractmethod
    def _write_answer(self, page: Page, message: Message, thinking: bool) -> None:
        """Write an assistant's whole answer, all of it learnt, after the opening that `_write` wrote."""


class DeepSeekProtocol(_BuiltIn):
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
            fenced=style != "v31",
            **DEEPSEEK_CALLS,
        )
        eos = tokenizer.id_of(EOS)
        self.stop_ids = tuple(
            dict.fromkeys((eos, *tokenizer.eos_ids) if eos is not None else tokenizer.eos_ids)
        )

    def _write(
        self, page: Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
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

    def _write_turn(self, page: Page, message: Message, *, after_tool: bool) -> None:
        content = message.content or ""
        if self.thinking == "native" and not after_tool and not message.tool_calls and "</think>" in content:
            content = (
                content.split("</think>", 1)[1] if self.style == "v31" else content.split("</think>")[-1]
            )
        dropped = content != (message.content or "") or bool(message.reasoning_content)
        self._write_body(page, content, message, learnt=not dropped)

    def _write_body(self, page: Page, content: str, message: Message, *, learnt: bool) -> None:
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

    def _write_answer(self, page: Page, message: Message, thinking: bool) -> None:
        if thinking:
            page.text((message.reasoning_content or "") + ("\n" if self.style == "r1" else ""), True)
            page.mark("</think>", True)
            page.text("\n\n" if self.style == "r1" else "", True)
        self._write_body(page, message.content or "", message, learnt=True)

    def _write_output(self, page: Page, message: Message, *, first: bool) -> None:
        if self.style != "v31":
            if first:
                page.mark("<｜tool▁outputs▁begin｜>")
            else:
                page.text("\n")
        page.mark("<｜tool▁output▁begin｜>")
        page.text(message.content or "")
        page.mark("<｜tool▁output▁end｜>")

    def _end_outputs(self, page: Page, previous: str) -> None:
        if previous == "tool" and self.style != "v31":
            page.mark("<｜tool▁outputs▁end｜>")

    def _write_tools(self, page: Page, tools: Tools) -> None:
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


class ChatMLProtocol(_BuiltIn):
    """`<|im_start|>role`, newline, text, `<|im_end|>`, newline: SmolLM2, Qwen2, Qwen3.

    `default_system` is written where a conversation has no system message. With native thinking (Qwen3) the model
    writes `<think>` itself; without thinking it is given an empty thought. Tools are written as Qwen's templates do;
    a model that was never trained on them (SmolLM2) reads the same words.
    """

    name = "chatml"
    marks = Marks(open_reasoning="<think>", close_reasoning="</think>", in_json=True, **HERMES_CALLS)
    supports_tools = True

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

    def with_thinking_adapter(self) -> Self:
        if self.thinking != "none" or self.tokenizer.id_of("<think>") in self.tokenizer.special_ids:
            return super().with_thinking_adapter()
        other = copy.copy(self)
        other.thinking = "adapter"
        return other

    def _write(
        self, page: Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        if self.default_system is not None and (not messages or messages[0].role != "system"):
            messages = [Message("system", self.default_system), *messages]
        if tools and (not messages or messages[0].role != "system"):
            messages = [Message("system"), *messages]
        for number, message in enumerate(messages):
            if message.role == "tool":  # outputs that follow each other are one turn
                self._write_output(
                    page, message, messages[number - 1 : number], messages[number + 1 : number + 2]
                )
                continue
            self._header(page, message.role)
            content, dropped = message.content or "", False
            if message.role == "assistant" and self.thinking == "native":
                if "</think>" in content:
                    content = content.split("</think>")[-1].lstrip("\n")
                dropped = content != (message.content or "") or bool(message.reasoning_content)
            if number == 0 and tools:
                page.text(content + ("\n\n" if content else ""))
                self._write_tools(page, tools)
                content = ""
            self._body(page, content, message, learnt=message.role == "assistant" and not dropped)
            page.text("\n")
        if generation:
            self._header(page, "assistant")
            if self.thinking == "adapter" and thinking:
                page.text("<think>\n")
                page.cut()
                return "reasoning"
            if self.thinking == "native" and not thinking:
                self._thought(page, "", learnt=False)
        return "content"

    def _write_answer(self, page: Page, message: Message, thinking: bool) -> None:
        if thinking:
            self._thought(page, message.reasoning_content or "", learnt=True)
        self._body(page, message.content or "", message, learnt=True)
        page.text("\n")

    def _header(self, page: Page, role: str) -> None:
        page.mark("<|im_start|>")
        page.text(f"{role}\n")
        if role == "assistant":
            page.cut()  # an answer is generated after this newline, so a history is cut here too

    def _body(self, page: Page, content: str, message: Message, *, learnt: bool) -> None:
        page.text(content, learnt)
        for number, call in enumerate(message.tool_calls or ()):
            page.text("\n" if content or number else "", learnt)
            page.mark("<tool_call>", learnt)
            function = call["function"]
            page.text(
                f'\n{{"name": {to_json(function["name"])}, "arguments": {function["arguments"]}}}\n', learnt
            )
            page.mark("</tool_call>", learnt)
        page.mark("<|im_end|>", learnt)

    def _write_tools(self, page: Page, tools: Tools) -> None:
        page.text(
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
        )
        for tool in tools:
            page.text("\n" + to_json(tool))
        page.text(
            "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        )
        page.mark("<tool_call>")
        page.mark("</tool_call>")
        page.text(" XML tags:\n")
        page.mark("<tool_call>")
        page.text('\n{"name": <function-name>, "arguments": <args-json-object>}\n')
        page.mark("</tool_call>")

    def _write_output(
        self, page: Page, message: Message, before: Sequence[Message], after: Sequence[Message]
    ) -> None:
        if not (before and before[0].role == "tool"):
            self._header(page, "user")
        else:
            page.text("\n")
        page.mark("<tool_response>")
        page.text(f"\n{message.content or ''}\n")
        page.mark("</tool_response>")
        if not (after and after[0].role == "tool"):
            page.mark("<|im_end|>")
            page.text("\n")

    def _thought(self, page: Page, reasoning: str, *, learnt: bool) -> None:
        page.mark("<think>", learnt)
        page.text(f"\n{reasoning}\n", learnt)
        page.mark("</think>", learnt)
        page.text("\n\n", learnt)
        if not learnt:
            page.cut()


class NoChatProtocol(ChatProtocol):
    """A base model without a chat format: it completes text; chatting with it is an error that says so."""

    name = "none"

    def _checked(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools | None) -> list[Message]:
        raise ShoalError(
            "this model has no chat format: it completes text",
            hint="Use /v1/completions, or a model that was tuned for chat (its files carry a chat template).",
        )

    def _write(
        self, page: Page, messages: Sequence[Message], thinking: bool, generation: bool, tools: Tools
    ) -> Start:
        return "content"

    def _training(
        self, messages: list[Message], thinking: bool, tools: Tools
    ) -> tuple[list[int], list[bool]]:
        return [], []
