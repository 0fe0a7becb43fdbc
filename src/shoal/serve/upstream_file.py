"""`upstreams.toml`: the OpenAI-compatible servers that an operator puts behind this one, and how each is spoken to."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from shoal.errors import UsageError
from shoal.files import read_text

FILE_NAME = "upstreams.toml"
EFFORTS = ("off", "low", "high", "max")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Kind:
    """What a kind of server understands beyond the common fields of OpenAI's protocol."""

    effort: Literal["", "reasoning_effort", "thinking", "template"] = ""
    """How it is told to think: by `reasoning_effort`, by DeepSeek's `thinking` too, by `chat_template_kwargs`."""
    efforts: tuple[str, str, str, str] = ("none", "low", "high", "high")
    """`reasoning_effort` for off, low, high and max."""
    limit: str = "max_tokens"
    fields: frozenset[str] = frozenset()
    """Sampling fields besides the common ones."""
    rename: Mapping[str, str] = field(default_factory=dict)
    continues: Literal["", "prefix", "final", "last"] = ""
    """How an answer is continued: `prefix` in its message, `continue_final_message`, or by being the last message."""
    salt: str = ""
    """The field that separates the prompt caches of users."""
    keeps_reasoning: bool = True
    """Takes `reasoning_content` in past messages."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every request."""


_OPEN = frozenset({"top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens"})
_USAGE = {"stream_options": {"include_usage": True}}
KINDS = {
    "openai-compatible": Kind(keeps_reasoning=False, more=_USAGE),
    "shoal": Kind("reasoning_effort", ("none", "low", "high", "max"), continues="prefix", salt="cache_salt",
                  fields=_OPEN | {"structured_outputs", "guided_json", "guided_regex", "guided_choice"},
                  more=_USAGE | {"return_progress": True}),
    "vllm": Kind("template", fields=_OPEN | {"structured_outputs"}, continues="final", salt="cache_salt",
                 more={"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    "sglang": Kind("template", fields=_OPEN, continues="final", more=_USAGE),
    "llama.cpp": Kind("template", fields=frozenset({"top_k", "min_p", "repetition_penalty", "ignore_eos"}),
                      rename={"repetition_penalty": "repeat_penalty"}, continues="last",
                      more=_USAGE | {"return_progress": True}),
    "deepseek": Kind("thinking", ("", "low", "high", "max"), continues="prefix", salt="user_id", more=_USAGE),
    "openai": Kind("reasoning_effort", ("none", "low", "high", "xhigh"), limit="max_completion_tokens",
                   keeps_reasoning=False, more=_USAGE),
    "gemini": Kind("reasoning_effort", keeps_reasoning=False, more=_USAGE),
}  # fmt: skip


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens, and the day on which the operator read them."""

    input: float
    output: float
    date: str
    cached: float | None = None
    """Of prompt tokens found in a cache; None: as `input`."""

    def usd(self, prompt: int, cached: int, completion: int) -> float:
        hit = self.input if self.cached is None else self.cached
        return ((prompt - cached) * self.input + cached * hit + completion * self.output) / 1e6


@dataclass(frozen=True)
class ServedModel:
    """One model of an upstream. What is None was not said, and what the upstream tells of itself stands instead."""

    id: str
    """Its name at the upstream."""
    name: str
    """Its name here."""
    context: int | None = None
    thinking: bool | None = None
    price: Price | None = None
    efforts: tuple[str, ...] = ()


@dataclass(frozen=True)
class UpstreamConfig:
    name: str
    base_url: str
    """Without a slash at its end."""
    kind: str = "openai-compatible"
    key: str = field(default="", repr=False)
    key_env: str = ""
    models: tuple[ServedModel, ...] = ()
    """Empty: those that it lists."""
    reasoning: Literal["auto", "reasoning_content", "reasoning", "think"] = "auto"
    timeout_seconds: float = 300.0
    check_seconds: float = 60.0
    defaults: ServedModel = field(default_factory=lambda: ServedModel("", ""))
    """What holds for models of which nothing else is said."""

    @property
    def dialect(self) -> Kind:
        return KINDS[self.kind]

    @property
    def continues(self) -> str:
        """DeepSeek's API continues answers at its /beta address only."""
        if self.kind == "deepseek" and not self.base_url.endswith("/beta"):
            return ""
        return self.dialect.continues


@dataclass(frozen=True)
class UpstreamFile:
    upstreams: tuple[UpstreamConfig, ...]
    default: str | None = None
    """The model that requests without a name get."""
    local: bool = True
    """Whether this machine's own installed models are offered too."""


class _Table:
    """A table of the file: keys with their types; what is unknown or of another type is a UsageError by its place."""

    def __init__(self, place: str, values: Any):
        if not isinstance(values, dict):
            raise UsageError(f"{place}: a table is expected")
        self.place, self.values, self.known = place, values, list[str]()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        self.known.append(key)
        value = self.values.get(key, default)
        wrong_bool = isinstance(value, bool) and kind is not bool
        if value is not default and (wrong_bool or not isinstance(value, kind)):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.wrong(key, f"expected {names}")
        return value

    def positive(self, key: str, default: float | None) -> Any:
        value = self.get(key, (int, float), default)
        if value is not None and not 0 <= value < 1e9:
            raise self.wrong(key, "expected a number, not below zero")
        return value

    def wrong(self, key: str, why: str) -> UsageError:
        return UsageError(f"{self.place}: {key}: {why}")

    def done(self) -> None:
        for key in self.values:
            if key not in self.known:
                near = difflib.get_close_matches(key, self.known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(self.known)}."
                if key in ("key", "api_key"):
                    hint = 'Keys stand in the environment; name the variable: key_env = "MY_KEY".'
                raise UsageError(f"{self.place}: unknown key {key}", hint=hint)


def read_upstreams(path: Path, environ: Mapping[str, str] | None = None) -> UpstreamFile:
    """The file, checked whole; the keys are taken from the environment. Raises UsageError that names the place."""
    environ = os.environ if environ is None else environ
    try:
        root = _Table(path.name, tomllib.loads(read_text(path)))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    listed = root.get("upstream", list, [])
    default, local = root.get("default", str), root.get("local", bool, True)
    root.done()
    found = [
        _upstream(_Table(f"{path.name}: upstream {i + 1}", each), environ) for i, each in enumerate(listed)
    ]
    names = [each.name for each in found]
    if not names:
        raise UsageError(f"{path} names no upstream", hint="Begin one with [[upstream]]; see docs/models.md.")
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: two upstreams have the same name")
    return UpstreamFile(tuple(found), default, local)


def _upstream(table: _Table, environ: Mapping[str, str]) -> UpstreamConfig:
    name = table.get("name", str, "")
    if not _NAME.fullmatch(name):
        raise table.wrong("name", "expected letters, digits, dot, dash and underscore, at most 64")
    kind = table.get("kind", str, "openai-compatible")
    if kind not in KINDS:
        raise table.wrong("kind", f"expected one of {', '.join(KINDS)}")
    reasoning = table.get("reasoning", str, "auto")
    if reasoning not in ("auto", "reasoning_content", "reasoning", "think"):
        raise table.wrong("reasoning", "expected auto, reasoning_content, reasoning or think")
    base_url = _address(table)
    key_env = table.get("key_env", str, "")
    key = environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        raise table.wrong("key_env", f"the environment variable {key_env} is not set")
    if not (key.isascii() and key.isprintable()):
        raise table.wrong(
            "key_env", f"the value of {key_env} is no key: it holds characters that no header may have"
        )
    timeout = table.positive("timeout_seconds", 300.0)
    check = max(table.positive("check_seconds", 60.0), 0.1)
    models = table.get("models", list, [])
    detailed = table.get("model", list, [])
    defaults = _model(table, ServedModel("", ""))
    table.done()
    if not all(isinstance(each, str) and each for each in models):
        raise table.wrong("models", "expected a list of names")
    found = [replace(defaults, id=each, name=each) for each in models]
    for i, each in enumerate(detailed):
        inner = _Table(f"{table.place}: model {i + 1}", each)
        model_id = inner.get("id", str, "")
        if not model_id:
            raise inner.wrong("id", "expected the model's name at the upstream")
        model = _model(inner, defaults, model_id, inner.get("name", str, model_id))
        inner.done()
        found.append(model)
    return UpstreamConfig(
        name, base_url, kind, key, key_env, tuple(found), reasoning, timeout, check, defaults
    )


def _model(table: _Table, defaults: ServedModel, model_id: str = "", name: str = "") -> ServedModel:
    """What a table says about its models, on top of `defaults`."""
    price = table.get("price", dict)
    efforts = table.get("efforts", dict)
    return ServedModel(
        model_id,
        name,
        table.get("context", int, defaults.context),
        table.get("thinking", bool, defaults.thinking),
        defaults.price if price is None else _price(_Table(f"{table.place}: price", price)),
        defaults.efforts if efforts is None else _efforts(_Table(f"{table.place}: efforts", efforts)),
    )


def _price(table: _Table) -> Price:
    prices = [table.positive(key, None) for key in ("input", "output", "cached")]
    date = table.get("date", str, "")
    table.done()
    if prices[0] is None or prices[1] is None or not _DATE.fullmatch(date):
        raise UsageError(
            f"{table.place}: expected input and output (dollars per million tokens) and date",
            hint='For example: price = { input = 0.15, cached = 0.003, output = 0.60, date = "2026-11-15" }',
        )
    return Price(float(prices[0]), float(prices[1]), date, prices[2])


def _efforts(table: _Table) -> tuple[str, ...]:
    found = tuple(table.get(key, str, "") for key in EFFORTS)
    table.done()
    return found


def _address(table: _Table) -> str:
    """The base URL; it is fetched as it stands, so it must hold no name, password, query or fragment."""
    from urllib.parse import urlsplit

    text = table.get("base_url", str, "").rstrip("/")
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if (
        not good
        or parts.username
        or parts.password
        or parts.query
        or parts.fragment
        or not text.isprintable()
    ):
        raise table.wrong(
            "base_url", "expected an address like http://127.0.0.1:8000/v1, without user, query or #"
        )
    return text
