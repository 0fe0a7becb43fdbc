"""Accuracy with its uncertainty, and the tables that show it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Z_95 = 1.959963984540054


def wilson(correct: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927), 95% by default; (0, 1) when nothing was counted.

    It stays inside 0..1 and is honest near them: 0 of 10 right is 0 to 28%, not 0 to 0.
    """
    if count == 0:
        return 0.0, 1.0
    share, weight = correct / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers of one group of questions. `distinct` counts canonical questions: phrasings are no new evidence."""

    family: str
    level: str
    language: str
    thinking: str
    count: int
    distinct: int
    correct: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.count)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return asdict(self) | {"accuracy": self.accuracy, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Mark:
    """One answered question: where it belongs and whether it was right."""

    family: str
    level: int
    language: str
    thinking: str
    question_id: str
    right: bool


def scores(marks: Iterable[Mark]) -> list[Score]:
    """One score per family, level, language and thinking, in the order of first appearance."""
    groups: dict[tuple[str, int, str, str], list[Mark]] = {}
    for mark in marks:
        groups.setdefault((mark.family, mark.level, mark.language, mark.thinking), []).append(mark)
    return [_score(str(key[0]), str(key[1]), key[2], key[3], group) for key, group in groups.items()]


def summary(marks: Sequence[Mark]) -> list[Score]:
    """Levels 1-2 and 3-5 over all families, per language and thinking. Every question weighs the same."""
    found: list[Score] = []
    for levels in ((1, 2), (3, 4, 5)):
        for language, thinking in dict.fromkeys((m.language, m.thinking) for m in marks):
            group = [
                m for m in marks if m.level in levels and (m.language, m.thinking) == (language, thinking)
            ]
            if group:
                found.append(_score("all", f"{levels[0]}-{levels[-1]}", language, thinking, group))
    return found


def _score(family: str, level: str, language: str, thinking: str, group: Sequence[Mark]) -> Score:
    return Score(
        family,
        level,
        language,
        thinking,
        len(group),
        len({m.question_id for m in group}),
        sum(m.right for m in group),
    )


def cell(score: Score | None) -> str:
    """ "97.5% (94.3-98.9, n=200)", or "-"."""
    if score is None or not score.count:
        return "-"
    low, high = score.interval
    return f"{score.accuracy:.1%} ({low * 100:.1f}-{high * 100:.1f}, n={score.count})"


def table(found: Sequence[Score]) -> list[list[str]]:
    """Rows of cells, the header first: a row per family and level, a column per language and thinking."""
    columns = list(dict.fromkeys((s.language, s.thinking) for s in found))
    by_key = {(s.family, s.level, s.language, s.thinking): s for s in found}
    header = ["family", "level", *(f"{language}, thinking {thinking}" for language, thinking in columns)]
    rows = [header]
    for family, level in dict.fromkeys((s.family, s.level) for s in found):
        rows.append([family, level, *(cell(by_key.get((family, level, *column))) for column in columns)])
    return rows


def plain(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a model card."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
