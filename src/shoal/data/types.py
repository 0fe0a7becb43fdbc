"""What every source yields and every consumer of data reads: documents and conversations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, with the field names of the chat-completions API.

    `content` may be None where an assistant only thinks or only calls tools. `tool_calls` are dicts in the API's
    shape: `{"id": ..., "type": "function", "function": {"name": ..., "arguments": "<JSON text>"}}`.
    """

    role: str
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] | None = None
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A plain text to learn from. `meta` says where it came from and is never trained on."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. `meta` may hold `thinking: bool` (the reply was written in thinking mode)."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
