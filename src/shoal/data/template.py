"""A checkpoint's own chat template, run as what it is: a program by a stranger.

Sandboxed jinja2 with few filters, no attribute that makes text grow without bound, limits on the template's size, on
what it prints and on its time. (Plain jinja2 here was CVE-2024-34359 and CVE-2026-5760 for others.)
"""

from __future__ import annotations

import ctypes
import datetime
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.errors import ShoalError

MAX_TEMPLATE_BYTES = 64 * 1024
MAX_OUTPUT_CHARACTERS = 8_000_000  # more than any context holds
MAX_SECONDS = 5.0

_FILTER_NAMES = (
    "abs capitalize count d default dictsort e escape first float int items join last length list lower map max "
    "min reject rejectattr reverse round safe select selectattr sort string sum title trim unique upper"
).split()
_STRING_METHODS = frozenset(
    "capitalize count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace istitle "
    "isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper".split()
)


class TemplateRefusal(ShoalError):
    """The template itself refused the messages (`raise_exception`); `message` carries its sentence."""


class _TimeUp(BaseException):
    """Raised inside the rendering thread."""


class _Stop(Exception):
    """A limit was reached; the text says which."""


class _LimitedCode(CodeGenerator):
    """`a ~ b` goes through the same check as `a + b`: doubling a string forty times would fill any memory."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concatenate((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: transformers' mark for assistant text; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _LimitedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def concatenate(self, values: Iterable[Any]) -> str:
        texts = [str(value) for value in values]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_length(len(left) + len(right))
        elif operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise _Stop("it multiplies text or lists")
        elif operator == "**" or (operator == "%" and isinstance(left, str)):
            raise _Stop(f"it uses the operator {operator} on text or large numbers")
        elif operator == "*" and max(abs(left), abs(right)) > 1 << 62:
            raise _Stop("its numbers grow too large")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(
            getattr(value, "__self__", None), str
        ):
            raise _Stop("it uses str.format")
        return super().wrap_str_format(value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and getattr(obj, "__name__", "") == "replace" and len(args) >= 2:
            _check_length(len(owner) + owner.count(args[0]) * len(args[1]))
        if isinstance(owner, str) and getattr(obj, "__name__", "") == "join" and args:
            values = list(args[0])
            _check_length(sum(len(str(value)) + len(owner) for value in values))
            args = (values, *args[1:])
        return super().call(context, obj, *args, **kwargs)


def _check_length(characters: int) -> None:
    if characters > MAX_OUTPUT_CHARACTERS:
        raise _Stop(f"it makes a text of more than {MAX_OUTPUT_CHARACTERS:,} characters")


def _refuse(message: str) -> None:
    raise TemplateRefusal(
        str(message)[:500], hint="The model's own chat template says so; change the messages."
    )


def _now(form: str) -> str:
    if len(form) > 100 or re.search(r"%[-_0^#+]*\d", form):
        raise _Stop("it asks for a date with a width")
    return datetime.datetime.now().strftime(form)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    _check_length(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


def _indent(text: str, width: int = 4, first: bool = False) -> str:
    _check_length(len(text) + (text.count("\n") + 1) * int(width))
    pad = " " * int(width)
    return (pad if first else "") + text.replace("\n", "\n" + pad)


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    items = list(values) if attribute is None else [value[attribute] for value in values]
    _check_length(sum(len(str(value)) + len(separator) for value in items))
    return separator.join(map(str, items))


def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    """transformers' `tojson`: plain JSON, no HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


class ChatTemplate:
    """A compiled template. Raises ShoalError if it is too long or not jinja."""

    def __init__(self, source: str, *, tojson: Callable[..., str] = to_json):
        if len(source.encode("utf-8")) > MAX_TEMPLATE_BYTES:
            raise ShoalError(
                f"this model's chat template has more than {MAX_TEMPLATE_BYTES // 1024} KB",
                hint="It is refused for safety; use a model of a known family or a shorter template.",
            )
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters = {name: FILTERS[name] for name in _FILTER_NAMES}
        environment.filters |= {"tojson": tojson, "replace": _replace, "indent": _indent, "join": _join}
        environment.globals = {
            "range": environment.globals["range"],
            "namespace": environment.globals["namespace"],
            "dict": environment.globals["dict"],
            "raise_exception": _refuse,
            "strftime_now": _now,
        }
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # jinja2's own, SyntaxError, RecursionError, MemoryError
            raise ShoalError(
                f"this model's chat template is broken: {error}", hint="Fetch the model again."
            ) from error
        self.source = source

    def render(self, variables: Mapping[str, Any], *, seconds: float = MAX_SECONDS) -> str:
        """The text. Raises TemplateRefusal with the template's own sentence, or ShoalError for any other failure."""
        outcome: list[Any] = []
        worker = threading.Thread(
            target=self._run, args=(variables, outcome), daemon=True, name="chat-template"
        )
        worker.start()
        worker.join(seconds)
        if worker.is_alive() and not outcome:
            # Only this thread is hit, and it ends right there; jinja has no statement that could catch it.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(worker.ident or 0), ctypes.py_object(_TimeUp)
            )
            worker.join(1.0)
            raise _failed(f"it took more than {seconds:g} s")
        result = outcome[0]
        if isinstance(result, ShoalError):
            raise result
        if isinstance(result, BaseException):
            raise _failed(
                f"{type(result).__name__}: {result}" if not isinstance(result, _Stop) else str(result)
            )
        return str(result)

    def _run(self, variables: Mapping[str, Any], outcome: list[Any]) -> None:
        try:
            parts, total = [], 0
            for part in self._template.generate(**variables):
                total += len(part)
                _check_length(total)
                parts.append(part)
            outcome.append("".join(parts))
        except BaseException as error:
            outcome.append(error)


def _failed(reason: str) -> ShoalError:
    return ShoalError(
        f"this model's chat template failed: {reason[:500]}",
        hint="The messages do not fit the template, or the template is broken or hostile.",
    )
