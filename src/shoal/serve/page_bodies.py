"""What the page sends: strict bodies, for an unknown field is a mistake of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from shoal.serve.schemas import MAX_TOKENS, Number, Text, Thinking, Whole, checked_tools

ChatTitle = Annotated[Text, Field(max_length=300)]
ModelName = Annotated[Text, Field(max_length=1000)]
Id = Annotated[Text, Field(max_length=64)]
Words = Annotated[Text, Field(max_length=1_000_000)]
MAX_IMPORTED = 5000
"""Messages of one imported chat."""


class PageBody(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PageParams(PageBody):
    """How a chat's answers are made; what is missing is the model's own default."""

    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=0, le=1_000_000)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    max_tokens: Whole | None = Field(None, ge=1, le=MAX_TOKENS)
    seed: Whole | None = Field(None, ge=-(2**63), le=2**64 - 1)
    system: Words | None = None


class ChatSettings(PageParams):
    """Those of a whole chat, whose words its system prompt are, and the tools that its answers may call."""

    persona: Annotated[Text, Field(max_length=100)] | None = None
    tools: Any = None

    @field_validator("tools")
    @classmethod
    def _functions(cls, tools: Any) -> Any:
        return checked_tools(tools) or None


class NewChat(PageBody):
    title: ChatTitle | None = None
    model: ModelName | None = None
    temporary: bool = False
    settings: ChatSettings | None = None


class ChangeChat(PageBody):
    title: ChatTitle | None = None
    pinned: bool | None = None
    settings: ChatSettings | None = None


class Regenerate(PageBody):
    model: ModelName | None = None
    thinking: Thinking | None = None
    params: PageParams | None = None


class AttachedFile(PageBody):
    name: Annotated[Text, Field(max_length=300)]
    text: Annotated[Text, Field(max_length=4_000_000)]


class NewMessage(Regenerate):
    parent_id: Id | None = None
    content: Text = Field(max_length=4_000_000)
    files: list[AttachedFile] = Field(default_factory=list, max_length=200)
    beside: ModelName | None = None
    """A second model that answers the same question, so that people can choose."""


class ToolResult(PageBody):
    id: Id
    result: Words


class ToolResults(Regenerate):
    results: list[ToolResult] = Field(min_length=1, max_length=128)


class Prefer(PageBody):
    over: Id


class Feedback(PageBody):
    value: Literal[-1, 0, 1]
    edited: Words | None = None
    note: Text | None = Field(None, max_length=10_000)


class LibraryEntry(PageBody):
    kind: Literal["prompt", "persona"]
    name: Text = Field(min_length=1, max_length=100)
    text: Text = Field(max_length=100_000)


class ImportedCall(PageBody):
    id: Id
    name: Annotated[Text, Field(max_length=128)]
    arguments: Words
    result: Words | None = None


class ImportedMessage(PageBody):
    id: Id
    parent_id: Id | None = None
    role: Literal["user", "assistant"]
    content: Words = ""
    reasoning: Words = ""
    model: ModelName | None = None
    created_at: Number | None = Field(None, ge=0, le=1e11)
    thinking_seconds: Number | None = Field(None, ge=0, le=1e9)
    reasoning_tokens: Whole | None = Field(None, ge=0, le=MAX_TOKENS)
    files: list[AttachedFile] | None = Field(None, max_length=200)
    tool_calls: list[ImportedCall] | None = Field(None, max_length=128)
    feedback: Literal[-1, 0, 1] = 0
    edited: Words | None = None
    note: Text | None = Field(None, max_length=10_000)


class ImportedChat(PageBody):
    title: ChatTitle = ""
    model: ModelName | None = None
    created_at: Number | None = Field(None, ge=0, le=1e11)
    updated_at: Number | None = Field(None, ge=0, le=1e11)
    pinned: bool = False
    settings: ChatSettings | None = None
    messages: list[ImportedMessage] = Field(max_length=MAX_IMPORTED)


class PdfFile(PageBody):
    pdf: Text = Field(max_length=8_000_000)
    """The file in base64."""


def given(body: BaseModel | None) -> dict[str, Any]:
    """The fields that have a value."""
    return body.model_dump(exclude_none=True) if body else {}
