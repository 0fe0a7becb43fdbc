"""Small puzzles with one right answer and a worked solution: what a tiny model can learn to think about.

Puzzle `index` of a task, level and split is a pure function of these and the seed. Held out is by question: its hash
decides the split, whatever the seed, so that nothing asked in a test was ever trained on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoal.data.microworld.world import Split, bucket
from shoal.errors import ShoalError

LEVELS = range(1, 6)


@dataclass(frozen=True, slots=True)
class Puzzle:
    """`fields` is what a checker needs: `answer`, or `numbers` and `target`. `thought` leads to `answer`."""

    task: str
    level: int
    question: str
    answer: str
    thought: str
    fields: dict[str, Any]


def _sum(rng: random.Random, level: int) -> Puzzle:
    """Terms one after the other; results never fall below zero."""
    terms, highest = {1: (2, 19), 2: (3, 9), 3: (3, 30), 4: (4, 50), 5: (5, 99)}[level]
    value = rng.randint(1, highest)
    text, lines = str(value), []
    for _ in range(terms - 1):
        number = rng.randint(1, highest)
        sign = "-" if number <= value and rng.random() < 0.5 else "+"
        after = value + number if sign == "+" else value - number
        text += f" {sign} {number}"
        lines.append(f"{value} {sign} {number} = {after}")
        value = after
    return Puzzle("sum", level, f"Calculate {text}.", str(value), "\n".join(lines), {"answer": str(value)})


def _countdown(rng: random.Random, level: int) -> Puzzle:
    """The largest number first, then plus or minus the others: every way is tried in one order until it fits."""
    count, highest = {1: (2, 20), 2: (3, 12), 3: (3, 20), 4: (4, 12), 5: (4, 20)}[level]
    numbers = sorted(rng.sample(range(1, highest + 1), count), reverse=True)
    signs = [rng.choice((1, -1)) for _ in numbers[1:]]
    target = numbers[0] + sum(s * n for s, n in zip(signs, numbers[1:], strict=True))
    lines: list[str] = []
    expression = ""
    for tried in itertools.product((1, -1), repeat=count - 1):
        value = numbers[0]
        expression = str(numbers[0])
        for s, n in zip(tried, numbers[1:], strict=True):
            value += s * n
            expression += f" {'+' if s > 0 else '-'} {n}"
        lines.append(f"{expression} = {value}" + (", yes" if value == target else ", no"))
        if value == target:
            break
    shown = numbers[:]
    rng.shuffle(shown)
    listed = ", ".join(map(str, shown[:-1])) + f" and {shown[-1]}"
    question = f"Use {listed} once each, with + and -, to make {target}."
    fields = {"numbers": shown, "target": target, "answer": expression}
    return Puzzle("countdown", level, question, expression, "\n".join(lines), fields)


_STARTS = "b c d f g h j k l m n p r s t v w".split()


def _backwards(rng: random.Random, level: int) -> Puzzle:
    """Invented words, so that letters are read and not a word remembered."""
    letters = ""
    while len(letters) < level + 2:
        letters += rng.choice(_STARTS) + rng.choice("aeiou")
    word = letters[: level + 2]
    back = word[::-1]
    thought = f"{' '.join(word)}\n{' '.join(back)}"
    return Puzzle("backwards", level, f"Spell {word} backwards.", back, thought, {"answer": back})


_NAMES = "Ann Ben Cid Dan Eva Fay Gus Ida Jim Kim Leo Mia Ned Pam Ron Sue Tom Una Vic Zoe".split()


def _order(rng: random.Random, level: int) -> Puzzle:
    """Who is the oldest, or the youngest: neighbours are compared, in any order."""
    people = rng.sample(_NAMES, level + 2)  # oldest first
    pairs = list(itertools.pairwise(people))
    rng.shuffle(pairs)
    said = [
        f"{a} is older than {b}." if rng.random() < 0.5 else f"{b} is younger than {a}." for a, b in pairs
    ]
    oldest = rng.random() < 0.5
    answer = people[0] if oldest else people[-1]
    question = f"{' '.join(said)} Who is the {'oldest' if oldest else 'youngest'}?"
    return Puzzle("order", level, question, answer, " > ".join(people), {"answer": answer})


TASKS: dict[str, Callable[[random.Random, int], Puzzle]] = {
    "sum": _sum,
    "countdown": _countdown,
    "backwards": _backwards,
    "order": _order,
}
_ATTEMPTS = 5_000


def puzzle_at(task: str, level: int, split: Split, index: int, seed: int = 0) -> Puzzle:
    """Puzzle number `index`. Raises ShoalError for a task or level there is not."""
    if task not in TASKS or level not in LEVELS:
        raise ShoalError(
            f"there is no puzzle {task!r} of level {level}", hint=f"{', '.join(TASKS)}, levels 1 to 5."
        )
    rng = random.Random(f"puzzle/1/{seed}/{task}/{level}/{split}/{index}")
    for _ in range(_ATTEMPTS):
        puzzle = TASKS[task](rng, level)
        # Numbers in another order, or names in another, are the same question.
        same = sorted(puzzle.fields.get("numbers", ())), puzzle.fields.get("target")
        if bucket(f"puzzle:{same if puzzle.task == 'countdown' else puzzle.question}") == split:
            return puzzle
    raise ShoalError(
        f"no puzzle {task} of level {level} is held out for {split!r}", hint="Take another level."
    )
