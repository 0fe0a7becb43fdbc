"""What an answer may contain: grammars (JSON, regex, tool calls) and the end of a thought, as one logits hook.

Grammars are llguidance's. A grammar from outside is compiled under caps: its size, its depth, and the time of a child
process that tries it first where a regular expression could explode (a thread that hangs in compiled code cannot be
stopped, a process can).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shoal.data.chat import ChatProtocol
from shoal.data.chat_parser import Marks, Start
from shoal.data.tokenizer import Tokenizer
from shoal.engine.types import InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from shoal.engine.engine import Engine

MAX_GRAMMAR_CHARACTERS = 1 << 16
MAX_SCHEMA_DEPTH = 64
MAX_MULTIPLE_OF = 10_000
"""Larger ones need an automaton with as many states."""
COMPILE_SECONDS = 4.0
STEP_SECONDS = 2.0
"""A grammar that takes longer for one token ends its request."""
MAX_CALLS = 16
"""Tool calls in one answer."""
_KEPT = 32  # compiled grammars per model
_LIMITS = {"max_grammar_size": 200_000, "max_lexer_states": 50_000, "verbose_errors": False}
# White space where JSON allows some, but no endless run of it, which weak models fall into.
_WHITESPACE = r"( |\n {0,16})"
# Only these can make a grammar's automaton explode while it is small; checked in a child process.
_RISKY = frozenset(("pattern", "patternProperties", "allOf", "multipleOf"))
_CHILD = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (4, 4))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):
    pass
import llguidance
grammar, limits = json.load(sys.stdin)
text = llguidance.LLMatcher.validate_grammar(grammar, None, limits=llguidance.LLParserLimits(**limits))
sys.exit(0 if not text or text.startswith("WARNING") else 1)
"""


@dataclass(frozen=True)
class Constraint:
    """A grammar in llguidance's form. With `trigger` it begins to count when that token has been written."""

    grammar: str
    param: str
    """The field of the request that it came from, for refusals."""
    trigger: int | None = None
    risky: bool = False


@dataclass(frozen=True)
class Grammar:
    """A constraint compiled for one answer: its place in the grammar is its own."""

    constraint: Constraint
    matcher: LLMatcher
    end_ids: Sequence[int]


def json_constraint(schema: Any, *, strict: bool, param: str) -> Constraint:
    """JSON of a schema (`True`: any JSON; for any object give {"type": "object"}).

    Keywords that llguidance does not know are refused when `strict`, else left out of account. Raises InvalidRequest.
    """
    lark = f"start: {_json_rule(schema, strict, param)}"
    return _constraint(_from_lark(lark), param, risky=_is_risky(schema))


def regex_constraint(pattern: str, *, param: str) -> Constraint:
    """The whole answer matches `pattern` (syntax of Rust's regex crate)."""
    import llguidance

    return _constraint(llguidance.LLMatcher.grammar_from_regex(pattern), param, risky=True)


def choice_constraint(choices: Sequence[str], *, param: str) -> Constraint:
    """The answer is one of these texts."""
    lark = "start: " + " | ".join(json.dumps(choice) for choice in choices)
    return _constraint(_from_lark(lark), param)


def tools_constraint(
    protocol: ChatProtocol,
    tools: Sequence[Mapping[str, Any]],
    *,
    mode: str,
    parallel: bool = True,
    content: tuple[Any, bool] | None = None,
) -> Constraint | None:
    """Calls of these tools, in the form of the protocol's marks, with arguments that fit their schemas.

    `mode` "required": at least one call, nothing else. "auto": an answer in words stays free (or, with `content`
    (schema, strict), JSON); a call that it begins is held to the grammar. None where an "auto" answer cannot be held,
    because its marks are ordinary text. Raises InvalidRequest for a schema that cannot be read.
    """
    marks, tokenizer = protocol.marks, protocol.tokenizer
    opening, rest = _call_rules(marks, tokenizer, tools, parallel)
    risky = any(_is_risky(_parameters(tool)) for tool in tools)
    if mode == "required":
        return _constraint(_from_lark(f"start: {opening} rest\n{rest}"), "tools", risky=risky)
    if content is not None:
        rule = _json_rule(*content, "response_format")
        grammar = _from_lark(f"start: {opening} rest | {rule}\n{rest}")
        return _constraint(grammar, "response_format", risky=risky or _is_risky(content[0]))
    trigger = _token(tokenizer, marks.calls_begin or marks.call_begin)
    if trigger is None:
        return None
    return _constraint(_from_lark(f"start: rest\n{rest}"), "tools", risky=risky, trigger=trigger)


def _call_rules(
    marks: Marks, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], parallel: bool
) -> tuple[str, str]:
    """(what begins the calls, the rule `rest` of all behind it and what it needs), in Lark."""

    def mark(spelling: str) -> str:
        token_id = _token(tokenizer, spelling)
        return f"<[{token_id}]>" if token_id is not None else json.dumps(spelling)

    begin, end = mark(marks.call_begin), mark(marks.call_end)
    rules, calls = [], []
    for number, tool in enumerate(tools):
        function = tool["function"]
        name = function["name"]
        schema = _json_rule(_parameters(tool), bool(function.get("strict")), f"tools[{number}]")
        rules.append(f"args{number}: {schema}")
        if marks.in_json:
            head = json.dumps(f'\n{{"name": {json.dumps(name)}, "arguments": ')
            calls.append(f'({head} args{number} "}}\\n" {end})')
        elif marks.fenced:
            head = json.dumps(f"{name}\n```json\n")
            calls.append(f'("function" {mark(marks.call_separator)} {head} args{number} "\\n```" {end})')
        else:
            calls.append(f"({json.dumps(name)} {mark(marks.call_separator)} args{number} {end})")
    more = f"{{0,{MAX_CALLS - 1}}}" if parallel else "{0,0}"
    between = '"\\n" ' if marks.in_json or marks.fenced else ""
    tail = f" ({between}{begin} call){more}" if parallel else ""
    if marks.calls_begin:
        opening, rest = mark(marks.calls_begin), f"rest: {begin} call{tail} {mark(marks.calls_end)}"
    else:
        opening, rest = begin, f"rest: call{tail}"
    return opening, "\n".join([rest, "call: " + " | ".join(calls), *rules])


def _parameters(tool: Mapping[str, Any]) -> Any:
    parameters = tool["function"].get("parameters")
    return {"type": "object", "additionalProperties": False} if parameters is None else parameters


def _token(tokenizer: Tokenizer, spelling: str) -> int | None:
    token_id = tokenizer.id_of(spelling) if spelling else None
    return token_id if token_id in tokenizer.special_ids else None


def _json_rule(schema: Any, strict: bool, param: str) -> str:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequest(param, "a JSON schema is an object")
    for depth, node in _nodes(schema):
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequest(param, f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep")
        if (
            isinstance(node, dict)
            and isinstance(m := node.get("multipleOf"), int | float)
            and m > MAX_MULTIPLE_OF
        ):
            raise InvalidRequest(param, f"multipleOf above {MAX_MULTIPLE_OF} is too complex")
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
    return f"%json {json.dumps(schema | {'x-guidance': options})}"


def _nodes(schema: Any) -> Any:
    """(depth, value) of all values inside, without recursion."""
    stack = [(0, schema)]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        if depth <= MAX_SCHEMA_DEPTH:
            children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
            stack.extend((depth + 1, child) for child in children)


def _is_risky(schema: Any) -> bool:
    return any(isinstance(node, dict) and not _RISKY.isdisjoint(node) for _, node in _nodes(schema))


def _from_lark(lark: str) -> str:
    import llguidance

    return llguidance.LLMatcher.grammar_from_lark(lark)


def _constraint(grammar: str, param: str, *, risky: bool = False, trigger: int | None = None) -> Constraint:
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequest(param, f"the grammar has more than {MAX_GRAMMAR_CHARACTERS} characters")
    return Constraint(grammar, param, trigger, risky)


class Compiler:
    """Compiles constraints for one tokenizer, and keeps the last ones. Slow: call it off the event loop."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._end_ids = [i for i in end_ids if i < vocab_size]
        self._made: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()
        self._llguidance: LLTokenizer | None = None

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar at its beginning, for one answer. Raises InvalidRequest when it cannot be compiled."""
        import llguidance

        if not self._end_ids:
            raise InvalidRequest(
                constraint.param, "this model has no end token, so a grammar could never end"
            )
        with self._lock:
            made = self._made.get(constraint.grammar)
        if made is None:
            if constraint.risky and not _survives(constraint.grammar):
                raise InvalidRequest(
                    constraint.param, "this schema or expression is wrong, or too complex to be obeyed"
                )
            limits = llguidance.LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
            made = llguidance.LLMatcher(self._vocabulary(), constraint.grammar, log_level=0, limits=limits)
            if made.is_error():
                reason = made.get_error().strip().splitlines()[0][:300]
                raise InvalidRequest(constraint.param, f"this cannot be obeyed: {reason}")
            with self._lock:
                self._made[constraint.grammar] = made
                while len(self._made) > _KEPT:
                    self._made.popitem(last=False)
        return Grammar(constraint, made.deep_copy(), self._end_ids)

    def _vocabulary(self) -> LLTokenizer:
        import llguidance

        with self._lock:
            if self._llguidance is None:
                self._llguidance = llguidance.LLTokenizer(
                    llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._end_ids[0])),
                    n_vocab=max(self._vocab_size, self._tokenizer.vocab_size),
                    eos_token=self._end_ids,
                )
            return self._llguidance


class _Vocabulary:
    """Our tokenizer as llguidance asks for one."""

    def __init__(self, tokenizer: Tokenizer, end_id: int):
        self.eos_token_id, self.bos_token_id = end_id, tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"))


_compilers: weakref.WeakKeyDictionary[object, Compiler] = weakref.WeakKeyDictionary()


def compiler_for(engine: Engine, end_ids: Sequence[int]) -> Compiler:
    """The one compiler of an engine; it goes with it."""
    if engine not in _compilers:
        _compilers[engine] = Compiler(engine.tokenizer, engine.runner.vocab_size, end_ids)
    return _compilers[engine]


def _survives(grammar: str) -> bool:
    """Whether a child process compiles the grammar within its caps of time and memory."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=json.dumps([grammar, _LIMITS]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COMPILE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


class AnswerRules:
    """The logits hook of a chat answer: ends its thought (after `budget` tokens, or when told), then holds it to a
    grammar. Called with accepted tokens only, each once more than before."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        marks: tuple[int | None, int | None],
        *,
        thinking: bool,
        budget: int | None = None,
        grammar: Grammar | None = None,
        must_open: bool = False,
        close_text: str = "",
        end_ids: Sequence[int] = (),
    ):
        """close_text: what ends a thought where that is ordinary text. end_ids: tokens that would end the answer in the
        middle of such a thought; they end the thought instead."""
        self._tokenizer, (self._open_id, self._close_id) = tokenizer, marks
        self._close_text = close_text.encode()
        self._closing = _closing(tokenizer, self._close_id, close_text)
        self._end_ids = list(end_ids) if self._closing else []
        self._forced: list[int] = []
        self._thinking, self._left = thinking, budget
        self._grammar = grammar
        self._waits_for = grammar.constraint.trigger if grammar is not None else None
        self._must_open = must_open
        self._close_now = False
        self._seen = 0
        self._tail: list[int] = []
        self.refusal: InvalidRequest | None = None
        """Why the answer ended with an error, when the grammar was at fault."""

    @property
    def thinking(self) -> bool:
        return self._thinking

    def answer_now(self) -> bool:
        """From any thread: end a running thought, so that the answer begins. False when there is none."""
        if not self._thinking or not self._closing:
            return False
        self._close_now = True
        return True

    def wants(self, answer_ids: Sequence[int]) -> bool:
        """Whether the next token is not free."""
        for token_id in answer_ids[self._seen :]:
            self._take(token_id)
        self._seen = len(answer_ids)
        return self._must_open or self._holds() or self._closes() or (self._thinking and bool(self._end_ids))

    def __call__(self, answer_ids: Sequence[int], logits: NDArray[Any]) -> None:
        if not self.wants(answer_ids):
            return
        if self._thinking and self._end_ids:
            self._close_now |= int(logits.argmax()) in self._end_ids
            logits[self._end_ids] = -np.inf
        if self._must_open or self._closes():
            if self._thinking and not self._forced:
                self._forced = list(self._closing)
            logits[:] = -np.inf
            logits[self._forced[0] if self._thinking else self._open_id] = 0.0
            return
        if self._grammar is None:
            return
        if self._thinking:  # the answer is still to come: neither its end nor a mark that leaves the thought
            marks = self._tokenizer.special_ids.union(self._grammar.end_ids) - {self._close_id}
            logits[list(marks)] = -np.inf
            return
        began = time.monotonic()
        bits = np.frombuffer(self._grammar.matcher.compute_bitmask(), dtype=np.uint8)
        if self._grammar.matcher.is_error() or time.monotonic() - began > STEP_SECONDS:
            param = self._grammar.constraint.param
            self.refusal = InvalidRequest(param, "the grammar became too complex to be followed")
            raise self.refusal
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)]
        logits[: len(allowed)][allowed == 0] = -np.inf
        logits[len(allowed) :] = -np.inf

    def must_follow(self, answer_ids: Sequence[int]) -> list[int]:
        """The tokens that must come next in their usual spelling (text that the grammar leaves no choice of): guesses
        for speculation."""
        if not self.wants(answer_ids) or self._must_open or self._thinking or not self._holds():
            return []
        assert self._grammar is not None
        return self._grammar.matcher.compute_ff_tokens()

    def _take(self, token_id: int) -> None:
        self._tail = [*self._tail[-7:], token_id]
        if self._forced:
            self._forced = self._forced[1:] if token_id == self._forced[0] else []
        if self._thinking:
            if token_id == self._close_id or self._close_was_written():
                self._thinking = bool(self._forced)
            elif self._left is not None and token_id != self._open_id:
                self._left -= 1
        elif token_id == self._open_id and (self._must_open or not self._holds()):
            self._thinking = True
        elif self._waits_for is not None:
            if token_id == self._waits_for:
                self._waits_for = None
        elif self._grammar is not None:
            self._grammar.matcher.consume_token(token_id)
        self._must_open = False

    def _holds(self) -> bool:
        """Whether the grammar has a say in the next token."""
        return self._grammar is not None and self._waits_for is None

    def _closes(self) -> bool:
        if not self._thinking or not self._closing:
            return False
        due = self._close_now or (self._left is not None and self._left <= 0)
        return bool(self._forced) or (due and not self._half_character())

    def _close_was_written(self) -> bool:
        """Whether the marks that are ordinary text stand at the end."""
        return bool(self._close_text) and self._close_text in self._written()

    def _written(self) -> bytes:
        return b"".join(self._tokenizer.token_bytes(i) for i in self._tail)

    def _half_character(self) -> bool:
        """Whether the tokens end inside a UTF-8 character; a mark there would break it."""
        text = self._written()[-3:]
        for back, byte in enumerate(reversed(text), 1):
            if byte >= 0xC0:
                return back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
            if byte < 0x80:
                return False
        return False


def rules_for(
    protocol: ChatProtocol,
    starts_in: Start,
    *,
    thinking: bool,
    budget: int | None = None,
    grammar: Grammar | None = None,
) -> AnswerRules | None:
    """The hook of one answer, None where it would have nothing to do. Raises InvalidRequest for a grammar on a model
    whose thoughts end with ordinary text, for nobody could tell where the answer begins."""
    open_id, close_id = reasoning_marks(protocol)
    in_thought = starts_in == "reasoning"
    will_open = thinking and not in_thought and open_id is not None and close_id is not None
    if (
        grammar is not None
        and close_id is None
        and (in_thought or (thinking and protocol.thinking != "none"))
    ):
        param = grammar.constraint.param
        raise InvalidRequest(param, "cannot be obeyed while this model thinks; switch thinking off")
    close_text = _close_text(protocol) if in_thought else ""
    if grammar is None and not close_text and (close_id is None or not (in_thought or will_open)):
        return None
    return AnswerRules(
        protocol.tokenizer,
        (open_id, close_id),
        thinking=in_thought,
        budget=budget if thinking else None,
        grammar=grammar,
        must_open=will_open and grammar is not None and grammar.constraint.trigger is None,
        close_text=close_text,
        end_ids=protocol.stop_ids if close_text else (),
    )


def reasoning_marks(protocol: ChatProtocol) -> tuple[int | None, int | None]:
    """The token ids that open and close reasoning; None where it is no token of this model."""
    if protocol.thinking != "native":
        return None, None
    marks = protocol.marks
    return _token(protocol.tokenizer, marks.open_reasoning), _token(protocol.tokenizer, marks.close_reasoning)


def closing_ids(protocol: ChatProtocol) -> list[int]:
    """What ends a thought, as token ids; empty for a model without thoughts."""
    return _closing(protocol.tokenizer, reasoning_marks(protocol)[1], _close_text(protocol))


def _close_text(protocol: ChatProtocol) -> str:
    """What ends a thought where that is ordinary text, else empty."""
    return protocol.marks.close_reasoning if protocol.thinking == "adapter" else ""


def _closing(tokenizer: Tokenizer, close_id: int | None, close_text: str) -> list[int]:
    """The ids of a mark, or of a text on a line of its own; empty where there is neither."""
    if close_text:
        return tokenizer.encode(f"\n{close_text}\n")
    return [] if close_id is None else [close_id]
