"""What the API takes: every number has two ends, every list a length, and every refusal names its field.

Bounds are those of OpenAI's API where it has them. null always means "the default". Fields this server does not know
are collected in `ignored` (they are named in the header `x-shoal-ignored`); fields that would change the answer and
are not carried out are refused by name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import from_json

from shoal.data.types import Message
from shoal.serve.errors import bad_field, not_yet

MAX_MESSAGES = 2000
MAX_PROMPTS = 128
MAX_N = 8
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 128
MAX_LOGPROBS = 20
MAX_TOOLS = 128
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MAX_TOKENS = 2**31 - 1
ROLES = ("system", "developer", "user", "assistant", "tool")

Thinking = Literal["off", "low", "high", "max"]
EFFORTS: dict[str, Thinking] = {
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
UNSUPPORTED = {
    "functions": "functions (the older form of tools) are", "function_call": "functions (the older form of tools) are",
    "grammar": "a grammar of one's own is", "guided_grammar": "a grammar of one's own is",
    "json_schema": "json_schema outside response_format is", "audio": "audio is",
    "web_search_options": "web search is", "chat_template": "a template in a request is",
    "continue_final_message": "continue_final_message (here: prefix in the last message) is",
    "use_beam_search": "beam search is", "mm_processor_kwargs": "images are", "images": "images are",
}  # fmt: skip


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

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
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    structured_outputs: Any = None
    user: Salt | None = None
    user_id: Salt | None = None
    safety_identifier: Salt | None = None
    prompt_cache_key: Salt | None = None
    cache_salt: Salt | None = None
    speculate: Flag | None = None

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
        extra = self.model_extra or {}
        if extra.get("modalities") not in (None, [], ["text"]):
            raise not_yet("modalities", "anything but text is")
        for name, what in UNSUPPORTED.items():
            if extra.get(name) not in (None, False, [], {}, ""):
                raise not_yet(name, what)
        return self

    def output(self) -> Output | None:
        """What the answer must look like, None when it is free. Raises ApiError for what is not understood."""
        asked = [
            output_of(kind, value, place)
            for place, kind, value in self._said_of_output()
            if value is not None
        ]
        if len(asked) > 1:
            raise bad_field(
                asked[1].param, f"{asked[1].param}: only one shape of the answer, not {asked[0].param} too"
            )
        for name, value in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens)):
            if asked and value:
                raise bad_field(name, f"{name}: an answer held to a shape ends where the shape ends")
        return asked[0] if asked else None

    def _said_of_output(self) -> list[tuple[str, str, Any]]:
        said = [
            (f"guided_{kind}", kind, getattr(self, f"guided_{kind}")) for kind in ("json", "regex", "choice")
        ]
        outputs = self.structured_outputs
        if outputs is not None:
            known = ("json", "json_object", "regex", "choice")
            if not isinstance(outputs, dict) or not set(outputs) <= set(known):
                raise bad_field(
                    "structured_outputs", f"structured_outputs: an object with one of {', '.join(known)}"
                )
            said += [(f"structured_outputs.{kind}", kind, value or None) for kind, value in outputs.items()]
        return said

    @property
    def ignored(self) -> list[str]:
        """Names of fields that were sent, hold something and have no effect here."""
        extra = {name: value for name, value in (self.model_extra or {}).items() if name not in UNSUPPORTED}
        if self.stream_options is not None:
            more = self.stream_options.model_extra or {}
            extra |= {f"stream_options.{name}": value for name, value in more.items()}
        return sorted(name for name, value in extra.items() if value is not None)

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


@dataclass(frozen=True)
class Output:
    """The shape of an answer: `kind` "json" (value: a schema), "regex" (a pattern) or "choice" (texts)."""

    kind: str
    value: Any
    strict: bool
    param: str


def output_of(kind: str, value: Any, param: str) -> Output:
    if kind == "json_object":
        return Output("json", {"type": "object"}, False, param)
    if kind == "json":
        if isinstance(value, str):
            value = parse_json(value, param)
        if not isinstance(value, dict):
            raise bad_field(param, f"{param}: a JSON schema (an object) is expected")
        return Output("json", value, False, param)
    if kind == "regex":
        if not isinstance(value, str) or not value:
            raise bad_field(param, f"{param}: a regular expression is expected")
        return Output("regex", value, True, param)
    fits = isinstance(value, list) and 0 < len(value) <= 1000 and all(isinstance(v, str) and v for v in value)
    if not fits:
        raise bad_field(param, f"{param}: a list of 1 to 1000 texts is expected")
    return Output("choice", value, True, param)


def parse_json(text: str, param: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        raise bad_field(param, f"{param}: this is not JSON") from None


class ThinkingSwitch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["enabled", "disabled"]
    budget_tokens: Whole | None = Field(None, ge=0, le=MAX_TOKENS)


class ReasoningSwitch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    enabled: Flag | None = None
    effort: Any = None
    max_tokens: Whole | None = Field(None, ge=0, le=MAX_TOKENS)


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
        self.parsed_messages()
        self.output()
        self._check_tools()
        self.effort()
        return self

    @property
    def limit(self) -> int | None:
        """The newer name wins where both are given."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def _said_of_output(self) -> list[tuple[str, str, Any]]:
        said = super()._said_of_output()
        shape = self.response_format
        if shape is None:
            return said
        kind = shape.get("type") if isinstance(shape, dict) else None
        if kind not in ("text", "json_object", "json_schema"):
            raise bad_field(
                "response_format",
                "response_format: expected {'type': 'text'}, {'type': 'json_object'} or {'type': 'json_schema', ...}",
            )
        if kind == "json_object":
            said.append(("response_format", "json_object", True))
        elif kind == "json_schema":
            inner = shape.get("json_schema")
            if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
                place = "response_format.json_schema"
                raise bad_field(place, f"{place}: expected {{'name': ..., 'schema': {{...}}}}")
            if not isinstance(inner.get("strict"), bool | None):
                place = "response_format.json_schema.strict"
                raise bad_field(place, f"{place}: true or false is expected")
            said.append(("response_format", "json", inner["schema"]))
        return said

    def output(self) -> Output | None:
        found = super().output()
        if (
            found is not None
            and found.param == "response_format"
            and self.response_format["type"] == "json_schema"
        ):
            return replace(found, strict=bool(self.response_format["json_schema"].get("strict")))
        return found

    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the answer may call: none with tool_choice none, the one that is named, else all."""
        name = self._named_tool()
        tools = [] if self.tool_choice == "none" else self.tools or []
        return [tool for tool in tools if name is None or tool["function"]["name"] == name]

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or self._named_tool() is not None

    @property
    def parallel(self) -> bool:
        """Whether several calls may come at once. A named tool is called once; an answer that must be a call is one,
        unless more are asked for: a small model would go on calling."""
        if self.must_call:
            return self.parallel_tool_calls is True and self._named_tool() is None
        return self.parallel_tool_calls is not False

    def _named_tool(self) -> str | None:
        choice = self.tool_choice
        return choice["function"]["name"] if isinstance(choice, dict) else None

    def _check_tools(self) -> None:
        if self.tools is not None:
            checked_tools(self.tools)
        choice = self.tool_choice
        if isinstance(choice, dict):
            function = choice.get("function")
            if choice.get("type") != "function" or not isinstance(function, dict):
                raise bad_field(
                    "tool_choice", "tool_choice: expected {'type': 'function', 'function': {'name': ...}}"
                )
            known = [tool["function"]["name"] for tool in self.tools or []]
            if function.get("name") not in known:
                raise bad_field(
                    "tool_choice", f"tool_choice: it names none of the tools ({', '.join(known[:20])})"
                )
        elif choice not in (None, "none", "auto", "required"):
            raise bad_field(
                "tool_choice", "tool_choice: expected 'none', 'auto', 'required' or a named function"
            )
        if choice == "required" and not self.tools:
            raise bad_field("tool_choice", "tool_choice: required without tools")
        if self.must_call and self.begun is not None:
            raise bad_field("tool_choice", "tool_choice: a begun answer (prefix) is not a call")
        for name, value in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens)):
            if self.must_call and value:
                raise bad_field(name, f"{name}: an answer that must be a call ends where the call ends")
        if self.begun is not None and self.output() is not None:
            raise bad_field("response_format", "response_format: not together with a begun answer (prefix)")

    @property
    def begun(self) -> Message | None:
        """The last message, where it is an answer to continue."""
        last = self.messages[-1] if isinstance(self.messages, list) and self.messages else None
        if not isinstance(last, dict) or not last.get("prefix"):
            return None
        return self.parsed_messages()[-1]

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
            if self.reasoning.max_tokens is not None and self.reasoning.enabled is None:
                said.append(("reasoning.max_tokens", "on"))
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
    def thinking_budget(self) -> int | None:
        """The most tokens to think, where the request says it in tokens; the smaller of two."""
        said = [
            self.thinking.budget_tokens if self.thinking is not None else None,
            self.reasoning.max_tokens if self.reasoning is not None else None,
        ]
        return min((budget for budget in said if budget is not None), default=None)

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
    if isinstance(value, str) and value in EFFORTS:
        return EFFORTS[value]
    raise bad_field(place, f"{place}: expected one of {', '.join(EFFORTS)}")


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
    for i, item in enumerate(value):
        place = f"messages[{i}].prefix"
        if not isinstance(item.get("prefix"), bool | None):
            raise bad_field(place, f"{place}: true or false is expected")
        if item.get("prefix") and (
            i < len(value) - 1 or item["role"] != "assistant" or item.get("tool_calls")
        ):
            raise bad_field(
                place, f"{place}: only a last message of the assistant, without calls, can be continued"
            )
    return messages


def checked_tools(tools: Any) -> Any:
    """The list of functions as it is, once its shape is right."""
    if tools is None:
        return None
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise bad_field("tools", f"tools: a list of at most {MAX_TOOLS} functions is expected")
    names = [_tool_name(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    if len(set(names)) < len(names):
        raise bad_field("tools", "tools: two of them have the same name")
    return tools


def _tool_name(tool: Any, place: str) -> str:
    """The name of a tool whose shape is right; its schema is looked at when it is compiled."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise bad_field(place, f"{place}: expected {{'type': 'function', 'function': {{'name': ...}}}}")
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        place = f"{place}.function.name"
        raise bad_field(place, f"{place}: 1 to 128 letters, digits, '_', '-' and '.' are expected")
    for field, kind, what in (("parameters", dict, "a JSON schema (an object)"), ("description", str, "a string"),
                              ("strict", bool, "true or false")):  # fmt: skip
        if not isinstance(function.get(field), kind | None):
            raise bad_field(f"{place}.function.{field}", f"{place}.function.{field}: {what} is expected")
    return name


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
    suffix: Text | None = None
    echo: Flag | None = None
    logprobs: Whole | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: Whole | None = Field(None, ge=1, le=MAX_N)

    @model_validator(mode="after")
    def _prompts_fit(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise not_yet("best_of", "a best_of other than n is")
        self.output()
        if self.suffix is not None and (not isinstance(self.prompt, str) or self.echo):
            raise bad_field("suffix", "suffix: only with one prompt as text, and without echo")
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
