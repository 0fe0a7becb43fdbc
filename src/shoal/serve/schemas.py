"""What the API takes: every number has two ends, every list a length, and every refusal names its field.

Bounds are those of OpenAI's API where it has them. null always means "the default". Fields this server does not know
are collected in `ignored` (they are named in the header `x-shoal-ignored`); fields that would change the answer and
are not carried out are refused by name.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shoal.data.types import Message
from shoal.serve.errors import bad_field, not_yet

MAX_MESSAGES = 2000
MAX_PROMPTS = 128
MAX_N = 8
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 128
MAX_LOGPROBS = 20
MAX_TOKENS = 2**31 - 1
ROLES = ("system", "developer", "user", "assistant", "tool")

Thinking = Literal["off", "low", "high", "max"]
_EFFORTS: dict[str, Thinking] = {
    "none": "off", "off": "off", "minimal": "low", "low": "low", "medium": "high", "high": "high", "xhigh": "high",
    "max": "max", "ultra": "max",
}  # fmt: skip


def _number(value: Any) -> Any:
    """A JSON number; text that looks like one is refused, for it would hide a client's mistake."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number is expected")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is expected")
    return value


def _whole(value: Any) -> Any:
    value = _number(value)
    if value != int(value):
        raise ValueError("a whole number is expected")
    return int(value)


def _flag(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("true or false is expected")
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("a string is expected")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str, BeforeValidator(_text)]
Salt = Annotated[Text, Field(max_length=512)]

# Fields that ask for another answer than the one we would give.
_UNSUPPORTED = {
    "functions": "functions are", "function_call": "functions are", "grammar": "grammars are",
    "guided_json": "guided output is", "guided_regex": "guided output is", "guided_choice": "guided output is",
    "guided_grammar": "guided output is", "structured_outputs": "guided output is", "json_schema": "guided output is",
    "audio": "audio is", "web_search_options": "web search is", "chat_template": "a template in a request is",
    "continue_final_message": "continuing the last message is", "use_beam_search": "beam search is",
    "mm_processor_kwargs": "images are", "images": "images are", "suffix": "filling in the middle is",
}  # fmt: skip


class StreamOptions(BaseModel):
    include_usage: Flag | None = None


class Sampling(BaseModel):
    """The fields that chat and plain completions share."""

    model_config = ConfigDict(extra="allow")

    model: Text | None = Field(None, max_length=100_000)
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    n: Whole | None = Field(None, ge=1, le=MAX_N)
    max_tokens: Whole | None = Field(None, ge=0, le=MAX_TOKENS)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Text, Number] | None = Field(None, max_length=1024)
    seed: Whole | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: Any = None
    stop_token_ids: list[Whole] | None = Field(None, max_length=64)
    ignore_eos: Flag | None = None
    min_tokens: Whole | None = Field(None, ge=0, le=MAX_TOKENS)
    return_progress: Flag | None = None
    user: Salt | None = None
    user_id: Salt | None = None
    safety_identifier: Salt | None = None
    prompt_cache_key: Salt | None = None
    cache_salt: Salt | None = None

    @field_validator("user_id")
    @classmethod
    def _short_user_id(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) > 512:
            raise ValueError("at most 512 bytes")
        return value

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: Any) -> list[str] | None:
        if value is None:
            return None
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > MAX_STOPS:
            raise ValueError(f"a string or a list of at most {MAX_STOPS} strings is expected")
        if not all(isinstance(stop, str) and len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise ValueError(f"each stop is a string of at most {MAX_STOP_CHARACTERS} characters")
        return [stop for stop in stops if stop]

    @field_validator("logit_bias")
    @classmethod
    def _bias_of_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) <= 9):
                raise ValueError("keys are token ids in decimal digits")
            if not -100 <= bias <= 100:
                raise ValueError("values lie in -100 .. 100")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise bad_field("stream_options", "stream_options: only allowed together with stream: true")
        for name, what in _UNSUPPORTED.items():
            if (self.model_extra or {}).get(name) not in (None, False, [], {}, ""):
                raise not_yet(name, what)
        return self

    @property
    def ignored(self) -> list[str]:
        """Names of fields that were sent, hold something and have no effect here."""
        return sorted(
            name
            for name, value in (self.model_extra or {}).items()
            if value is not None and name not in _UNSUPPORTED
        )

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def salt(self, owner: str) -> str:
        """What separates the prompt caches of users: the owner of the key, and whom he says he asks for."""
        parts = (
            owner,
            self.user_id,
            self.user,
            self.safety_identifier,
            self.prompt_cache_key,
            self.cache_salt,
        )
        return "\x00".join(part or "" for part in parts)


class ThinkingSwitch(BaseModel):
    type: Literal["enabled", "disabled"]


class ReasoningSwitch(BaseModel):
    enabled: Flag | None = None
    effort: Any = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Any = None
    max_tokens: Whole | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: Flag | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_LOGPROBS)
    reasoning_effort: Any = None
    thinking: ThinkingSwitch | None = None
    reasoning: ReasoningSwitch | None = None
    think: Any = None
    enable_thinking: Flag | None = None
    chat_template_kwargs: dict[Text, Any] | None = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Flag | None = None

    @model_validator(mode="after")
    def _only_what_works(self) -> ChatRequest:
        if self.top_logprobs is not None and self.top_logprobs > 0 and not self.logprobs:
            raise bad_field("top_logprobs", "top_logprobs: only allowed together with logprobs: true")
        self._check_format()
        self._check_tools()
        self.parsed_messages()
        self.effort()
        return self

    @property
    def limit(self) -> int | None:
        """The newer name wins where both are given."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def _check_format(self) -> None:
        shape = self.response_format
        if shape is None:
            return
        kinds = ("text", "json_object", "json_schema")
        if not isinstance(shape, dict) or shape.get("type") not in kinds:
            raise bad_field(
                "response_format",
                "response_format: expected {'type': 'text'} or a JSON type",
            )
        if shape["type"] != "text":
            raise not_yet("response_format", f"the type {shape['type']} is")

    def _check_tools(self) -> None:
        tools = self.tools
        if tools is not None:
            fits = isinstance(tools, list) and len(tools) <= 128 and all(
                isinstance(tool, dict) and tool.get("type") == "function" and isinstance(tool.get("function"), dict)
                and isinstance(tool["function"].get("name"), str) for tool in tools
            )  # fmt: skip
            if not fits:
                raise bad_field(
                    "tools", "tools: expected a list of {'type': 'function', 'function': {'name': ...}}"
                )
        choice = self.tool_choice
        named = isinstance(choice, dict) and choice.get("type") == "function"
        if choice not in (None, "none", "auto", "required") and not named:
            raise bad_field(
                "tool_choice", "tool_choice: expected 'none', 'auto', 'required' or a named function"
            )
        if tools and choice != "none":
            raise not_yet("tools", "calling tools is")
        if named or choice == "required":
            raise not_yet("tool_choice", "calling tools is")

    def _said_of_thinking(self) -> list[tuple[str, Thinking | Literal["on"]]]:
        """(field, meaning) of every dialect that the request uses; raises ApiError for what is none."""
        said: list[tuple[str, Thinking | Literal["on"]]] = []
        if self.reasoning_effort is not None:
            said.append(("reasoning_effort", _effort("reasoning_effort", self.reasoning_effort)))
        if self.thinking is not None:
            said.append(("thinking", "on" if self.thinking.type == "enabled" else "off"))
        if self.reasoning is not None:
            if self.reasoning.effort is not None:
                said.append(("reasoning.effort", _effort("reasoning.effort", self.reasoning.effort)))
            if self.reasoning.enabled is not None:
                said.append(("reasoning.enabled", "on" if self.reasoning.enabled else "off"))
        if self.think is not None:
            said.append(("think", _switch_or_effort("think", self.think)))
        if self.enable_thinking is not None:
            said.append(("enable_thinking", "on" if self.enable_thinking else "off"))
        for name, value in (self.chat_template_kwargs or {}).items():
            place = f"chat_template_kwargs.{name}"
            if name in ("thinking", "enable_thinking"):
                if value is not None and not isinstance(value, bool):
                    raise bad_field(place, f"{place}: true or false is expected")
                said += [(place, "on" if value else "off")] if value is not None else []
            elif name == "reasoning_effort":
                said += [(place, _effort(place, value))] if value is not None else []
            else:
                raise bad_field(
                    "chat_template_kwargs",
                    "chat_template_kwargs: only thinking, enable_thinking and reasoning_effort are accepted",
                )
        return said

    @property
    def thinking_fields(self) -> list[str]:
        """The fields that speak of thinking, as the request spelt them."""
        return [place for place, _ in self._said_of_thinking()]

    def effort(self) -> Thinking | None:
        """The one meaning of all the dialects; None when nothing is said. Contradictions are a 400."""
        said = self._said_of_thinking()
        exact: set[Thinking] = {value for _, value in said if value != "on"}
        if len(exact) > 1 or ("off" in exact and any(value == "on" for _, value in said)):
            places = " and ".join(place for place, _ in said)
            raise bad_field(said[0][0], f"{places} contradict each other about thinking")
        if exact:
            return exact.pop()
        return "high" if said else None

    def parsed_messages(self) -> list[Message]:
        """The conversation in our own types; raises ApiError with the place of the first fault."""
        return parse_messages(self.messages)


def _effort(place: str, value: Any) -> Thinking:
    if isinstance(value, str) and value in _EFFORTS:
        return _EFFORTS[value]
    raise bad_field(place, f"{place}: expected one of {', '.join(_EFFORTS)}")


def _switch_or_effort(place: str, value: Any) -> Thinking | Literal["on"]:
    if isinstance(value, bool):
        return "on" if value else "off"
    return _effort(place, value)


def parse_messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise bad_field("messages", "messages: a list with at least one message is expected")
    if len(value) > MAX_MESSAGES:
        raise bad_field("messages", f"messages: at most {MAX_MESSAGES} are accepted")
    messages = [_message(item, f"messages[{i}]") for i, item in enumerate(value)]
    if value[-1].get("prefix"):
        raise not_yet(f"messages[{len(value) - 1}].prefix", "continuing a begun answer is")
    return messages


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise bad_field(place, f"{place}: an object with role and content is expected")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_field(f"{place}.role", f"{place}.role: expected one of {', '.join(ROLES)}")
    content = _content(item.get("content"), f"{place}.content")
    calls = item.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise bad_field(f"{place}.tool_calls", f"{place}.tool_calls: a list is expected")
    if calls and role != "assistant":
        raise bad_field(f"{place}.tool_calls", f"{place}.tool_calls: only an assistant calls tools")
    parsed = tuple(_tool_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls or ()))
    if content is None and role != "assistant":
        raise bad_field(f"{place}.content", f"{place}.content: a string or a list of text parts is expected")
    texts = {}
    for name in ("reasoning_content", "tool_call_id", "name"):
        texts[name] = item.get(name)
        if texts[name] is not None and not isinstance(texts[name], str):
            raise bad_field(f"{place}.{name}", f"{place}.{name}: a string is expected")
    return Message(
        role="system" if role == "developer" else role,
        content=content,
        reasoning_content=texts["reasoning_content"] if role == "assistant" else None,
        tool_calls=parsed or None,
        tool_call_id=texts["tool_call_id"],
        name=texts["name"],
    )


def _content(value: Any, place: str) -> str | None:
    """Text, or text parts joined. Anything else is named with its place and type."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_field(place, f"{place}: a string or a list of text parts is expected")
    if len(value) > MAX_MESSAGES:
        raise bad_field(place, f"{place}: at most {MAX_MESSAGES} parts are accepted")
    texts = []
    for j, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text"):
            if not isinstance(part.get("text"), str):
                raise bad_field(f"{place}[{j}].text", f"{place}[{j}].text: a string is expected")
            texts.append(part["text"])
        else:
            shown = repr(kind[:40]) if isinstance(kind, str) else "without a type"
            raise bad_field(
                f"{place}[{j}]", f"{place}[{j}]: a part of type {shown} is not read; only 'text' parts are"
            )
    return "".join(texts)


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    """A past call in one form, whatever form it came in: the arguments as JSON text."""
    import json

    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_field(
            place, f"{place}: expected {{'type': 'function', 'function': {{'name', 'arguments'}}}}"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not isinstance(arguments, str | None):
        raise bad_field(
            f"{place}.function.arguments", f"{place}.function.arguments: JSON text or an object is expected"
        )
    call_id = call.get("id")
    if not isinstance(call_id, str | None):
        raise bad_field(f"{place}.id", f"{place}.id: a string is expected")
    return {
        "id": call_id or "",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments or "{}"},
    }


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Any = None
    echo: Flag | None = None
    logprobs: Whole | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: Whole | None = Field(None, ge=1, le=MAX_N)

    @model_validator(mode="after")
    def _prompts_fit(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise not_yet("best_of", "a best_of other than n is")
        if len(self.prompts()) * (self.n or 1) > MAX_PROMPTS:
            raise bad_field(
                "prompt", f"prompt: at most {MAX_PROMPTS} answers (prompts times n) are made at once"
            )
        return self

    def prompts(self) -> list[str | list[int]]:
        """One or many prompts, as text or as token ids; raises ApiError."""
        value = self.prompt
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value and len(value) <= 1_000_000:
            if all(isinstance(item, str) for item in value):
                return list(value)
            if all(_is_id(item) for item in value):
                return [list(value)]
            if all(isinstance(item, list) and item and all(_is_id(i) for i in item) for item in value):
                return [list(item) for item in value]
        raise bad_field(
            "prompt",
            "prompt: expected a string, a list of strings, a list of token ids, or a list of such lists",
        )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
