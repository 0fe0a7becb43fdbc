"""Rewards: what a completion is worth, by rules that a program can check. Nothing here evaluates text as code.

A reward is `reward(prompt, completion, **example) -> float | None`: the question, the whole answer as text (thoughts
and marks included), and what the environment knows of the example (`answer`, `numbers`, `tests`, ...), of which a
function takes what it names. None and nan mean "cannot say": the sample is left out and counted. In a recipe:

    [rewards]
    exact = 1.0                                        # name = weight
    format = { weight = 0.1 }                          # or a table of arguments
    "my_rewards.py:no_apology" = { weight = 0.5 }      # a function of your own

Whatever text comes, every built-in rule ends within milliseconds: lengths, digits and depths are bounded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError

Reward = Callable[..., float | None]
MAX_CHARACTERS = 20_000  # of an answer that is looked at; a longer one is no answer
MAX_DIGITS = 30
MAX_EXPRESSION = 300  # characters
MAX_DEPTH = 20  # of brackets in an expression
TIME_LIMIT_SECONDS = 5.0  # of one call of a reward that is not our own


# ---- reading an answer


def final_answer(completion: str) -> str:
    """What counts as the answer: behind the last `</think>`, and there inside the last <answer> tag or \\boxed{}."""
    text = completion[-MAX_CHARACTERS:].rpartition("</think>")[2].strip()
    _, opened, tagged = text.rpartition("<answer>")
    if opened:
        return tagged.partition("</answer>")[0].strip()
    _, opened, boxed = text.rpartition("\\boxed{")
    if opened:
        depth = 1
        for place, character in enumerate(boxed):
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return boxed[:place].strip()
    return text


def normalise(text: str) -> str:
    """NFKC (full-width becomes plain), lower case, single spaces, no full stop and no quotes around."""
    text = unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).casefold()
    return re.sub(r"\s+", " ", text).strip(" \t\n.。\"'`*")


_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3}){1,9}|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?%?(?![\w]|\.\d)", re.ASCII
)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d{1,30})\}\{(\d{1,30})\}", re.ASCII)


def read_number(text: str) -> Fraction | None:
    """The last number of a text: `-1,234.5`, `3/4`, `\\frac{3}{4}`, `12%`; None if there is none that is plain."""
    text = unicodedata.normalize("NFKC", text[-MAX_CHARACTERS:]).replace("−", "-")
    found = _NUMBER.findall(_FRACTION.sub(r" \1/\2 ", text).replace("$", " "))
    return _number(found[-1]) if found else None


def _number(text: str) -> Fraction | None:
    percent, text = text.endswith("%"), text.rstrip("%").replace(",", "").replace(" ", "")
    if sum(map(str.isdigit, text)) > MAX_DIGITS:
        return None
    try:
        over, _, under = text.partition("/")
        return Fraction(over) / Fraction(under or 1) / (100 if percent else 1)
    except (ValueError, ZeroDivisionError):
        return None


def calculate(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of `+ - * /` and brackets over whole numbers, and the numbers used; None for anything else."""
    text = unicodedata.normalize("NFKC", text[: MAX_EXPRESSION + 1])
    text = text.translate(str.maketrans("×·÷−[]", "**/-()"))
    if len(text) > MAX_EXPRESSION or re.sub(r"\d+|[-+*/()\s]", "", text, flags=re.ASCII):
        return None
    tokens = re.findall(r"\d+|[-+*/()]", text, re.ASCII)
    used = [int(token) for token in tokens if token.isdigit() and len(token) <= MAX_DIGITS]
    try:
        value = _sum(tokens, 0)
        return None if tokens else (value, used)
    except (IndexError, ValueError, ZeroDivisionError):
        return None


def _sum(tokens: list[str], depth: int) -> Fraction:
    """Recursive descent; takes what it reads from the front of `tokens`."""
    value = _product(tokens, depth)
    while tokens and tokens[0] in "+-":
        sign = tokens.pop(0)
        other = _product(tokens, depth)
        value = value + other if sign == "+" else value - other
    return value


def _product(tokens: list[str], depth: int) -> Fraction:
    value = _atom(tokens, depth)
    while tokens and tokens[0] in "*/":
        sign = tokens.pop(0)
        other = _atom(tokens, depth)
        value = value * other if sign == "*" else value / other
    return value


def _atom(tokens: list[str], depth: int) -> Fraction:
    token = tokens.pop(0)
    if token == "(":
        if depth >= MAX_DEPTH:
            raise ValueError("too deep")
        value = _sum(tokens, depth + 1)
        if tokens.pop(0) != ")":
            raise ValueError("bracket")
        return value
    if token == "-" and tokens[0] != "-":
        return -_atom(tokens, depth)
    if not token.isdigit() or len(token) > MAX_DIGITS:
        raise ValueError(token)
    return Fraction(int(token))


# ---- the built-in rules; each is made with its arguments and then called per completion


def exact() -> Reward:
    """1 if the final answer is `answer`, apart from case, width, spaces and a full stop."""

    def reward(prompt: str, completion: str, *, answer: str) -> float:
        return float(normalise(final_answer(completion)) == normalise(str(answer)))

    return reward


def numeric(tolerance: float = 0.0) -> Reward:
    """1 if the last number of the final answer is `answer`, within a relative `tolerance`."""

    def reward(prompt: str, completion: str, *, answer: Any) -> float | None:
        wanted, given = read_number(str(answer)), read_number(final_answer(completion))
        if wanted is None:
            raise ValueError(f"the example's answer {answer!r} is no number")
        if given is None:
            return 0.0
        return float(abs(given - wanted) <= Fraction(tolerance) * abs(wanted))

    return reward


def countdown(use_all: bool = True) -> Reward:
    """1 if the final answer is an expression worth `target` of `numbers`, each once (at most once: use_all = false)."""

    def reward(prompt: str, completion: str, *, numbers: Sequence[int], target: int) -> float:
        sides = final_answer(completion)[: 4 * MAX_EXPRESSION].strip("` .$\n").split("=")
        found = calculate(sides[0])
        if found is None or len(sides) > 2:
            return 0.0
        value, used = found
        left = Counter(numbers)
        left.subtract(used)
        fits = not any(left.values()) if use_all else min(left.values()) >= 0
        return float(fits and value == target)

    return reward


def puzzles() -> Reward:
    """1 if a puzzle of data/puzzles.py is solved: `countdown` where it has numbers and a target, else `exact`."""
    counted, same = countdown(), exact()

    def reward(
        prompt: str, completion: str, *, answer: str, numbers: Any = None, target: Any = None
    ) -> float | None:
        if numbers is None:
            return same(prompt, completion, answer=answer)
        return counted(prompt, completion, numbers=numbers, target=target)

    return reward


_RESULT = re.compile(r"\s*(-?\d{1,30})(?![\w.])", re.ASCII)


def equations() -> Reward:
    """Share of the thought's sums that are right, lines like `12 - 4 + 3 = 11`; 0 without any.

    A hint for the way, to be weighed below the reward for the end: an answer that went wrong at its last step is better
    than one that began wrong.
    """

    def reward(prompt: str, completion: str) -> float:
        right = []
        for line in completion[:MAX_CHARACTERS].partition("</think>")[0].splitlines():
            left, _, after = line.removeprefix("<think>").partition("=")
            said, worth = _RESULT.match(after), calculate(left)
            if said and worth and len(worth[1]) > 1:
                right.append(worth[0] == int(said[1]))
        return sum(right) / len(right) if right else 0.0

    return reward


def regex(pattern: str, where: str = "completion") -> Reward:
    """1 if `pattern` is found in the completion, or in the final answer (where = "answer")."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ShoalError(f"the pattern {pattern!r} is no regular expression: {error}") from error

    def reward(prompt: str, completion: str) -> float:
        text = completion[:MAX_CHARACTERS]
        return float(compiled.search(final_answer(text) if where == "answer" else text) is not None)

    return reward


def thought_format() -> Reward:
    """1 if the completion is one closed thought and then an answer: `<think>...</think>` and something behind it.

    The opening mark may be missing: some models get it with the prompt. Marks inside the thought or answer give 0.
    """

    def reward(prompt: str, completion: str) -> float:
        text = completion[:MAX_CHARACTERS].strip().removeprefix("<think>")
        thought, closed, answer = text.partition("</think>")
        stray = any(mark in thought or mark in answer for mark in ("<think>", "</think>"))
        return float(bool(closed and thought.strip() and answer.strip()) and not stray)

    return reward


def length(limit: int, buffer: int) -> Reward:
    """0 up to `limit - buffer` tokens, falling to -1 at `limit`: DAPO's soft overlong penalty (2503.14476, eq. 13)."""
    if not 0 < buffer <= limit:
        raise ShoalError(f"length: buffer {buffer} must lie in 1 .. limit {limit}")

    def reward(prompt: str, completion: str, *, completion_tokens: int) -> float:
        return max(-1.0, min(0.0, (limit - buffer - completion_tokens) / buffer))

    return reward


_WORDS = re.compile(
    r"(?P<latin>[A-Za-zÀ-ɏ]+)|(?P<kana>[\u3040-\u30ff\uff66-\uff9f])|(?P<han>[\u3400-\u9fff])|(?P<other>[^\W\d_])"
)


def language(language: str) -> Reward:
    """The share of words in the wanted language: en, ja or zh (DeepSeek-R1's language consistency reward).

    A Latin word, a kana and a Chinese character count one each. Chinese characters are Japanese where kana stand
    around them and Chinese where none do. A text without words is 1.
    """
    if language not in ("en", "ja", "zh"):
        raise ShoalError(f"language: {language!r} is not one of en, ja, zh")

    def reward(prompt: str, completion: str) -> float:
        text = re.sub(r"</?(?:think|answer)>", "", completion[:MAX_CHARACTERS])
        found = Counter(match.lastgroup for match in _WORDS.finditer(text))
        if not found:
            return 1.0
        japanese = found["kana"] * 20 > found["han"]
        right = {
            "en": found["latin"],
            "ja": found["kana"] + (found["han"] if japanese else 0),
            "zh": found["han"] if not found["kana"] else 0,
        }
        return right[language] / found.total()

    return reward


def unit_tests(seconds: float = 4.0, memory_bytes: int = 512 * 2**20, field: str = "tests") -> Reward:
    """The share of the example's `tests` (Python statements, a list) that pass after the completion's last code block.

    In a subprocess of its own with limits on time, memory, files and processes, in an empty folder, without this
    process's environment. Limits against accidents, not a prison: do not run it on a machine with secrets.
    """

    def reward(prompt: str, completion: str, **example: Any) -> float:
        tests = example[field]
        tests = [tests] if isinstance(tests, str) else list(tests)
        blocks = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)```", completion[:MAX_CHARACTERS], re.DOTALL)
        code = blocks[-1] if blocks else final_answer(completion)
        return _run_tests(code, tests, seconds, memory_bytes) / max(len(tests), 1)

    return reward


_HARNESS = r"""
import json, sys
code, tests, secret, seconds, memory = json.load(sys.stdin)
sys.stdin.close()
try:
    import resource
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_AS": memory, "RLIMIT_FSIZE": 1 << 20, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
except ImportError:
    pass
passed = 0
try:
    world = {"__name__": "answer"}
    exec(compile(code, "answer.py", "exec"), world)
    for test in tests:
        try:
            exec(compile(test, "test.py", "exec"), dict(world))
            passed += 1
        except BaseException:
            pass
except BaseException:
    pass
sys.__stdout__.write("\n%s %d\n" % (secret, passed))
"""


def _run_tests(code: str, tests: Sequence[str], seconds: float, memory_bytes: int) -> int:
    secret = secrets.token_hex(16)  # an answer that ends the process by itself has not passed
    task = json.dumps([code, list(tests), secret, max(1, math.ceil(seconds)), memory_bytes])
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _HARNESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(task.encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            output = b""
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
            process.kill()
            process.communicate()
    match = re.search(rf"^{secret} (\d+)$", output[-200:].decode(errors="replace"), re.MULTILINE)
    return int(match[1]) if match else 0


def microworld() -> Reward:
    """1 if the visible answer gives the microworld task's answer (data/microworld/answers.py)."""
    from shoal.data.microworld.answers import check

    def reward(prompt: str, completion: str, *, task: Any) -> float:
        return float(check(task, final_answer(completion)))

    return reward


def reasoning_gym() -> Reward:
    """The score that reasoning-gym gives to the final answer of one of its tasks, 0 to 1."""
    scorers: dict[str, Any] = {}

    def reward(prompt: str, completion: str, *, gym_entry: Mapping[str, Any]) -> float:
        name = gym_entry["metadata"]["source_dataset"]
        if name not in scorers:
            scorers[name] = require_gym().get_score_answer_fn(name)
        return float(scorers[name](final_answer(completion), gym_entry))

    return _in_time(reward)


def require_gym() -> Any:
    """The package reasoning_gym, or an error that says how to get it."""
    try:
        import reasoning_gym as gym
    except ImportError as error:
        raise ShoalError(
            f"reasoning-gym cannot be used: {error}", hint="pip install 'shoal[rl]' (it needs a C compiler)"
        ) from error
    return gym


BUILT_IN: dict[str, Callable[..., Reward]] = {
    "exact": exact,
    "numeric": numeric,
    "countdown": countdown,
    "puzzles": puzzles,
    "equations": equations,
    "regex": regex,
    "format": thought_format,
    "length": length,
    "language": language,
    "unit_tests": unit_tests,
    "microworld": microworld,
    "reasoning_gym": reasoning_gym,
}


# ---- from a recipe to one number per completion


@dataclass
class Part:
    """One reward of a recipe."""

    name: str
    weight: float
    reward: Reward
    wants: frozenset[str] | None
    """The fields of an example it takes; None: all of them."""


@dataclass
class Judgement:
    """What a completion got. `total` None: it cannot be judged, `failed` says by whom and why."""

    total: float | None
    parts: dict[str, float] = field(default_factory=dict)
    failed: str = ""


class Judge:
    """The weighted sum of a recipe's rewards. `failures` counts, per reward, completions it could not judge."""

    def __init__(self, table: Mapping[str, Any], *, folder: Path | None = None):
        """`table` is the recipe's [rewards]; files are looked for beside the recipe (`folder`). Raises ShoalError for
        whatever is wrong with it: nothing is left to find out when the run has begun."""
        faults: list[str] = []
        self.parts: list[Part] = []
        for name, value in table.items():
            try:
                self.parts.append(_part(name, value, folder or Path()))
            except ShoalError as error:
                faults.append(f"{name}: {error.message}")
        if not table:
            faults.append("there is none: nothing would be learnt")
        if faults:
            raise ShoalError(
                "\n  ".join(["[rewards] cannot be used:", *faults]),
                hint=f'Built in: {", ".join(BUILT_IN)}; or your own as "file.py:function".',
                exit_code=2,
            )
        self.failures: Counter[str] = Counter()

    def check(self, example: Mapping[str, Any]) -> None:
        """Raise ShoalError if a reward takes something that such an example does not have."""
        given = {*example, "completion_tokens", "finish_reason"}
        for part in self.parts:
            if missing := _required(part.reward) - given:
                raise ShoalError(
                    f"the reward {part.name} takes {', '.join(sorted(missing))}, but the examples have "
                    f"{', '.join(sorted(given))}",
                    hint="Rename the argument, or choose an environment that has it.",
                    exit_code=2,
                )

    def __call__(self, prompt: str, completion: str, example: Mapping[str, Any]) -> Judgement:
        values: dict[str, float] = {}
        for part in self.parts:
            known = example if part.wants is None else {k: v for k, v in example.items() if k in part.wants}
            try:
                value = part.reward(prompt, completion, **known)
                why = "returned None" if value is None else ""
                value = math.nan if value is None else float(value)
                if not why and not math.isfinite(value):
                    why = f"returned {value}"
            except Exception as error:
                why, value = f"{type(error).__name__}: {error}", math.nan
            if why:
                self.failures[part.name] += 1
                return Judgement(None, values, f"{part.name} {why}")
            values[part.name] = value
        return Judgement(sum(part.weight * values[part.name] for part in self.parts), values)


def _part(name: str, value: Any, folder: Path) -> Part:
    options = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ShoalError(f"the weight must be a number, not {weight!r}")
    if ".py:" in name:
        reward = load_function(folder, name)
        if options:
            raise ShoalError(
                f"a function of your own has no arguments besides weight, got {', '.join(options)}"
            )
    elif name in BUILT_IN:
        accepted = inspect.signature(BUILT_IN[name]).parameters
        if unknown := set(options) - set(accepted):
            raise ShoalError(
                f"no argument {', '.join(sorted(unknown))}; it takes weight, {', '.join(accepted)}"
            )
        try:
            reward = BUILT_IN[name](**options)
        except TypeError as error:
            raise ShoalError(str(error)) from error
    else:
        raise ShoalError("no such reward")
    return Part(name, float(weight), reward, _wanted(reward))


def load_function(folder: Path, name: str) -> Reward:
    """`file.py:function`, the file beside the recipe or by its own path.

    Raises ShoalError for a missing file, a syntax error (with its line), an error while it is imported, and a name
    that is no function of (prompt, completion, ...).
    """
    place, _, function_name = name.rpartition(":")
    path = folder / Path(place).expanduser()
    try:
        source = path.read_text(encoding="utf-8-sig")
        compile(source, str(path), "exec")
    except OSError as error:
        raise ShoalError(f"{path} cannot be read: {error.strerror}") from error
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise ShoalError(f"{path} is not Python: {error}") from error
    spec = importlib.util.spec_from_file_location(f"shoal_user_{secrets.token_hex(4)}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ShoalError(f"{path} fails when it is imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ShoalError(f"{path} has no function {function_name!r}")
    try:
        inspect.signature(function).bind_partial("", "")
    except (TypeError, ValueError) as error:
        raise ShoalError(f"{name} must take (prompt, completion, ...): {error}") from error
    return _in_time(function)


def _in_time(reward: Reward) -> Reward:
    """The same function, interrupted after TIME_LIMIT_SECONDS (where the system can: Unix, main thread)."""

    @contextlib.contextmanager
    def limit() -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
            yield
            return

        def stop(*_: object) -> None:
            raise TimeoutError(f"took longer than {TIME_LIMIT_SECONDS:g} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def timed(prompt: str, completion: str, **example: Any) -> float | None:
        with limit():
            return reward(prompt, completion, **example)

    timed.__wrapped__ = reward  # type: ignore[attr-defined]
    return timed


def _parameters(reward: Reward) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(reward).parameters.items())[2:])


def _wanted(reward: Reward) -> frozenset[str] | None:
    parameters = _parameters(reward)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return frozenset(parameters)


def _required(reward: Reward) -> set[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {n for n, p in _parameters(reward).items() if p.default is p.empty and p.kind not in kinds}
