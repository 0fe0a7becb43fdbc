"""The chat protocol of a checkpoint: which family it belongs to, and the names the other rooms use.

Rendering is in protocol.py (what all share), families.py (built in) and template_protocol.py (the checkpoint's own
template); parsing an answer is in chat_parser.py; docs/chat-protocol.md tells the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from shoal.data.chat_parser import ChatParser, Part
from shoal.data.families import ChatMLProtocol, DeepSeekProtocol, NoChatProtocol
from shoal.data.protocol import ChatProtocol, Rendered, spelling
from shoal.data.template import ChatTemplate
from shoal.data.template_protocol import TemplateProtocol
from shoal.data.tokenizer import BOS, EOS, Tokenizer
from shoal.data.types import Message
from shoal.errors import ShoalError

__all__ = ["ChatParser", "ChatProtocol", "Message", "Part", "Rendered", "protocol_for", "show_training"]


def protocol_for(
    tokenizer: Tokenizer, *, model_type: str = "", chat_template: str | None = None
) -> ChatProtocol:
    """The protocol of a checkpoint: a built-in family if its own template writes the same, else that template.

    Without a template the control tokens of the vocabulary and `model_type` decide. Raises ShoalError for a template
    that is broken.
    """
    template = chat_template if chat_template is not None else tokenizer.chat_template
    candidates = _candidates(tokenizer, template)
    if template is None:
        if model_type in ("llama", "qwen2"):  # with DeepSeek's marks: a distillation of R1
            candidates.sort(key=lambda candidate: candidate.name != "deepseek_r1")
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
    for messages in conversations:
        generation = messages[-1].role == "user"
        if not generation and protocol.thinking == "native":
            continue  # Qwen3 writes an empty thought into an answer that ends a history; none is asked for here
        for thinking in (True, False) if protocol.thinking == "native" else (False,):
            if not thinking and protocol.name == "deepseek_r1":
                continue  # its template knows no switch
            variables = {
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "tools": None,
                "add_generation_prompt": generation,
                "thinking": thinking,
                "enable_thinking": thinking,
                "bos_token": spelling(protocol.tokenizer, protocol.tokenizer.bos_id),
                "eos_token": spelling(protocol.tokenizer, next(iter(protocol.stop_ids), None)),
            }
            try:
                shown = template.render(variables)
            except ShoalError:
                return False
            if shown != protocol.spell(messages, thinking=thinking, add_generation_prompt=generation):
                return False
    return True
