"""What the page sends: strict bodies, for an unknown field is a mistake of ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shoal.serve.schemas import MAX_TOKENS, Number, Text, Thinking, Whole

ChatTitle = Annotated[Text, Field(max_length=300)]


class PageBody(BaseModel):
    """The page's own requests are strict: an unknown field is a mistake of ours."""

    model_config = ConfigDict(extra="forbid")


class PageParams(PageBody):
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    max_tokens: Whole | None = Field(None, ge=1, le=MAX_TOKENS)
    seed: Whole | None = Field(None, ge=-(2**63), le=2**64 - 1)
    system: Text | None = Field(None, max_length=1_000_000)


class NewChat(PageBody):
    title: ChatTitle | None = None
    model: Text | None = Field(None, max_length=1000)


class RenameChat(PageBody):
    title: ChatTitle


class Regenerate(PageBody):
    model: Text | None = Field(None, max_length=1000)
    thinking: Thinking | None = None
    params: PageParams | None = None


class NewMessage(Regenerate):
    parent_id: Text | None = Field(None, max_length=64)
    content: Text = Field(max_length=4_000_000)


class Feedback(PageBody):
    value: Literal[-1, 0, 1]
    edited: Text | None = Field(None, max_length=1_000_000)
    note: Text | None = Field(None, max_length=10_000)


class Login(PageBody):
    key: Text = Field(max_length=1000)
