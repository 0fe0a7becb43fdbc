"""Rewards on answers that people and models really give, and on what should break them."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from shoal.data.microworld.generate import task_at
from shoal.errors import ShoalError
from shoal.tune import rewards
from shoal.tune.rewards import BUILT_IN, Judge, calculate, final_answer, read_number

SERIES = list(range(1, 4))
ANSWERS = [
    ("exact", {}, {"answer": "Paris"}, "<think>London? no</think> paris.", 1.0),
    ("exact", {}, {"answer": "Paris"}, "It is Paris", 0.0),
    ("exact", {}, {"answer": "42"}, "x <answer>41</answer> no <answer> ４２ </answer>", 1.0),
    ("exact", {}, {"answer": "{1}"}, "so \\boxed{{1}}.", 1.0),
    ("numeric", {}, {"answer": "12"}, "5 + 7 = 12", 1.0),
    ("numeric", {}, {"answer": 12}, "<think>12</think>The answer is 13", 0.0),
    ("numeric", {}, {"answer": "1234.5"}, "It costs $1,234.50.", 1.0),
    ("numeric", {}, {"answer": "0.75"}, "\\frac{3}{4}", 1.0),
    ("numeric", {}, {"answer": "0.75"}, "3/4", 1.0),
    ("numeric", {}, {"answer": "-3"}, "−3", 1.0),
    ("numeric", {}, {"answer": "12"}, "no number", 0.0),
    ("numeric", {"tolerance": 0.01}, {"answer": "3.14159"}, "about 3.14", 1.0),
    ("numeric", {}, {"answer": "3.14159"}, "about 3.14", 0.0),
    ("countdown", {}, {"numbers": [3, 5, 2], "target": 13}, "<think>3*5=15</think>3 * 5 - 2 = 13", 1.0),
    ("countdown", {}, {"numbers": [3, 5, 2], "target": 13}, "(3 × 5) − 2", 1.0),
    ("countdown", {}, {"numbers": [3, 5, 2], "target": 15}, "3 * 5", 0.0),
    ("countdown", {"use_all": False}, {"numbers": [3, 5, 2], "target": 15}, "3 * 5", 1.0),
    ("countdown", {"use_all": False}, {"numbers": [3, 5, 2], "target": 9}, "3 * 3", 0.0),
    ("countdown", {}, {"numbers": [3, 3, 2], "target": 8}, "3 + 3 + 2", 1.0),
    ("countdown", {}, {"numbers": [3, 5, 2], "target": 13}, "3 + 5 + 2", 0.0),
    ("countdown", {}, {"numbers": [3, 5, 2], "target": 13}, "13", 0.0),
    ("countdown", {}, {"numbers": [4, 2], "target": 2}, "4 / 2", 1.0),
    ("countdown", {}, {"numbers": [4, 2], "target": 16}, "4 ** 2", 0.0),
    ("puzzles", {}, {"numbers": [3, 5, 2], "target": 13, "answer": "3 * 5 - 2"}, "5 * 3 - 2", 1.0),
    ("puzzles", {}, {"numbers": [3, 5, 2], "target": 13, "answer": "3 * 5 - 2"}, "13", 0.0),
    ("puzzles", {}, {"answer": "Ann"}, "<think>Ben</think>Ann", 1.0),
    ("regex", {"pattern": "^A"}, {}, "Apples", 1.0),
    ("regex", {"pattern": "A", "where": "answer"}, {}, "<think>A</think>b", 0.0),
    ("equations", {}, {}, "<think>\n3 + 4 = 7\n7 - 2 = 5\n</think>\n5", 1.0),
    ("equations", {}, {}, "7 + 4 - 3 = 8, no\n7 - 4 + 3 = 5, yes\n</think>\n7 - 4 + 3", 0.5),
    ("equations", {}, {}, "12 = 12\nx = 3\n2 + 2 = 4.5\n1 / 0 = 3\n</think>1 + 1 = 2", 0.0),
    ("equations", {}, {}, "", 0.0),
    ("format", {}, {}, "<think>\nwell\n</think>\n4", 1.0),
    ("format", {}, {}, "well</think>4", 1.0),
    ("format", {}, {}, "<think></think>4", 0.0),
    ("format", {}, {}, "<think>well</think>", 0.0),
    ("format", {}, {}, "<think>a</think>b</think>c", 0.0),
    ("format", {}, {}, "4", 0.0),
    ("length", {"limit": 100, "buffer": 20}, {"completion_tokens": 80}, "", 0.0),
    ("length", {"limit": 100, "buffer": 20}, {"completion_tokens": 90}, "", -0.5),
    ("length", {"limit": 100, "buffer": 20}, {"completion_tokens": 300}, "", -1.0),
    ("language", {"language": "en"}, {}, "<think>two words</think> 12", 1.0),
    ("language", {"language": "en"}, {}, "two はい", 1 / 3),
    ("language", {"language": "ja"}, {}, "東京は大きい", 1.0),
    ("language", {"language": "ja"}, {}, "东京很大", 0.0),
    ("language", {"language": "zh"}, {}, "东京很大 ok", 0.8),
    ("language", {"language": "zh"}, {}, "東京は大きい", 0.0),
    ("language", {"language": "en"}, {}, "12 + 3 = 15", 1.0),
]


@pytest.mark.parametrize(("name", "options", "example", "completion", "value"), ANSWERS)
def test_what_an_answer_is_worth(
    name: str, options: dict[str, Any], example: dict[str, Any], completion: str, value: float
) -> None:
    assert BUILT_IN[name](**options)("q", completion, **example) == pytest.approx(value)


NASTY = [
    "9**9**9", "2003^{2002^{2001}}", "1/0", "__import__('os')", "(" * 100_000, "1" * 1_000_000, "１２３",
    "\\frac{" * 500 + "1" + "}{2}" * 500, "=" * 100_000, "1-" * 50_000 + "1", "- " * 140 + "1", "1/0 + 1", "\ud800",
    "<answer>" * 20_000, "\\boxed{" * 10_000, "1e999999999", "nan", "½" * 100, "٣", "1,234," * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=lambda text: repr(text[:20]))
def test_no_answer_hangs_or_breaks_a_rule(text: str) -> None:
    """Answers that made other checkers evaluate a tower of powers, and their kind (hkust-nlp/simpleRL-reason#95)."""
    judge = Judge(
        {"exact": 1, "numeric": 1, "countdown": 1, "format": 1, "language": {"language": "en"},
         "regex": {"pattern": "x"}, "microworld": 1}
    )  # fmt: skip
    example = {
        "answer": "7",
        "numbers": [1, 2],
        "target": 3,
        "task": task_at(0, 0, "train", "en", family="sum"),
    }
    started = time.process_time()
    judgement = judge("q", text, example)
    assert judgement.total is not None and not judgement.failed
    assert time.process_time() - started < 0.35  # seven rules, 50 ms each
    assert judgement.parts["countdown"] == 0 and judgement.parts["exact"] == 0


def test_the_calculator_is_exact_and_bounded() -> None:
    assert calculate("1/3 + 1/6") == (Fraction(1, 2), [1, 3, 1, 6])
    assert calculate("-(2 - 5) * 4") == (12, [2, 5, 4])
    assert calculate("2 * (3 + 4") is None and calculate("2 3") is None and calculate("") is None
    assert calculate("(" * 21 + "1" + ")" * 21) is None
    assert calculate("9" * 31) is None
    assert read_number("\\frac{1}{0}") is None


def test_only_what_follows_the_thought_is_the_answer() -> None:
    assert final_answer("<think>\\boxed{3}</think> \\boxed{4} end") == "4"
    assert final_answer("<think>never closed 5") == "<think>never closed 5"


def test_code_is_run_with_limits(tmp_path: Path) -> None:
    reward = BUILT_IN["unit_tests"](seconds=20.0)
    tests = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
    good = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\n"
    assert reward("q", good, tests=tests) == 1.0
    assert reward("q", good.replace("a + b", "a * b"), tests=tests) == 0.5
    stolen = tmp_path / "stolen"
    reward = BUILT_IN["unit_tests"](seconds=1.0)
    for bad in (
        "import os; os._exit(0)",
        "while True: pass",
        "x = 'a' * 10**12",
        "def add(a, b: return",
        "raise SystemExit",
        f"def add(a, b): return a + b\nopen({str(stolen)!r}, 'w').write('x' * 2**22)",
        "import os\nassert 'SHOAL_HOME' not in os.environ and os.listdir('.') == []\nraise ValueError",
    ):
        assert reward("q", f"```python\n{bad}\n```", tests=tests) == 0.0, bad


def test_a_reward_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def short(prompt, completion):\n    return 1.0 if len(completion) < 5 else 0.0\n"
        "def sometimes(prompt, completion, answer):\n"
        "    return {'n': None, 'x': float('nan'), 'e': 1 / (answer - 7)}.get(completion, 1)\n"
        "def everything(prompt, completion, **example):\n    return float(len(example))\n"
    )
    judge = Judge({"mine.py:short": 2.0, "mine.py:everything": {"weight": 0.5}}, folder=tmp_path)
    judgement = judge("q", "yes", {"a": 1, "b": 2})
    assert judgement.total == 3.0 and judgement.parts == {"mine.py:short": 1.0, "mine.py:everything": 2.0}

    judge = Judge({"exact": 1.0, "mine.py:sometimes": 1.0}, folder=tmp_path)
    for completion in ("n", "x"):
        judgement = judge("q", completion, {"answer": 3})
        assert judgement.total is None and "mine.py:sometimes returned" in judgement.failed
    assert "ZeroDivisionError" in judge("q", "e", {"answer": 7}).failed
    assert judge.failures == {"mine.py:sometimes": 3}
    judge.check({"answer": 3})
    judge = Judge({"mine.py:sometimes": 1.0}, folder=tmp_path)
    with pytest.raises(ShoalError, match=r"sometimes takes answer, but the examples have .*numbers"):
        judge.check({"numbers": 3})


def test_a_reward_that_hangs_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "TIME_LIMIT_SECONDS", 0.05)
    (tmp_path / "slow.py").write_text("def slow(prompt, completion):\n    while True: pass\n")
    judge = Judge({"slow.py:slow": 1.0}, folder=tmp_path)
    assert "longer than" in judge("q", "a", {}).failed


BAD = [
    ({"exakt": 1.0}, "exakt: no such reward"),
    ({}, "there is none"),
    ({"exact": "much"}, "the weight must be a number"),
    ({"exact": math.nan}, "the weight must be a number"),
    ({"regex": {}}, "missing 1 required positional argument: 'pattern'"),
    ({"regex": {"pattern": "("}}, "is no regular expression"),
    ({"language": {"language": "fr"}}, "'fr' is not one of en, ja, zh"),
    ({"length": {"limit": 3, "buffer": 4}}, "buffer 4 must lie in"),
    ({"exact": {"tolerence": 1}}, "no argument tolerence; it takes weight"),
    ({"gone.py:f": 1.0}, "gone.py cannot be read"),
    ({"broken.py:f": 1.0}, r"broken.py is not Python: .*line 2"),
    ({"raises.py:f": 1.0}, "raises.py fails when it is imported: ZeroDivisionError"),
    ({"fine.py:g": 1.0}, "has no function 'g'"),
    ({"fine.py:one": 1.0}, r"must take \(prompt, completion"),
    ({"fine.py:f": {"limit": 1}}, "has no arguments besides weight"),
]


@pytest.mark.parametrize(("table", "message"), BAD, ids=lambda value: str(value)[:30])
def test_what_is_wrong_shows_before_work_starts(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    (tmp_path / "broken.py").write_text("def f(prompt, completion):\n    return 1 +\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "fine.py").write_text("def f(prompt, completion): return 1\ndef one(x): return 1\n")
    with pytest.raises(ShoalError, match=message):
        Judge(table, folder=tmp_path)


def test_all_faults_of_a_table_come_together() -> None:
    with pytest.raises(ShoalError, match=r"(?s)exakt: no such.*regex: .*missing"):
        Judge({"exakt": 1.0, "regex": {}})


def test_any_task_of_reasoning_gym() -> None:
    gym = pytest.importorskip("reasoning_gym")
    reward = BUILT_IN["reasoning_gym"]()
    for name in ("chain_sum", "spell_backward", "propositional_logic"):
        entry = gym.create_dataset(name, size=1, seed=3)[0]
        if entry["answer"] is not None:
            assert reward("q", f"<think>hm</think><answer>{entry['answer']}</answer>", gym_entry=entry) == 1.0
        assert reward("q", "certainly not this", gym_entry=entry) < 0.5
