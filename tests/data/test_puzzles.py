"""Puzzles: solvable as they say, held out by question, the same for ever."""

from __future__ import annotations

import itertools
import re

import pytest

from shoal.data.puzzles import LEVELS, TASKS, puzzle_at
from shoal.errors import ShoalError


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("level", LEVELS)
def test_solutions_are_right(task: str, level: int) -> None:
    for index in range(30):
        puzzle = puzzle_at(task, level, "train", index)
        assert puzzle == puzzle_at(task, level, "train", index)
        for left, value in re.findall(r"([\d +-]+\d) = (-?\d+)", puzzle.thought):
            terms = [int(sign + number) for sign, number in re.findall(r"(-?) ?(\d+)", left.replace("+", ""))]
            assert sum(terms) == int(value), puzzle.thought
        if task == "sum":
            assert puzzle.thought.endswith(f"= {puzzle.answer}") and int(puzzle.answer) >= 0
        if task == "countdown":
            assert puzzle.thought.endswith(f"{puzzle.answer} = {puzzle.fields['target']}, yes")
            assert sorted(map(int, re.findall(r"\d+", puzzle.answer))) == sorted(puzzle.fields["numbers"])
            assert puzzle.thought.count("yes") == 1
        if task == "backwards":
            assert puzzle.question == f"Spell {puzzle.answer[::-1]} backwards."
        if task == "order":
            older = [(a, b) if way == "older" else (b, a) for a, way, b in
                     re.findall(r"(\w+) is (older|younger) than (\w+)", puzzle.question)]  # fmt: skip
            people = puzzle.thought.split(" > ")
            assert sorted(older) == sorted(itertools.pairwise(people))
            assert puzzle.answer == people[0 if "oldest" in puzzle.question else -1]


def test_no_question_is_in_two_splits_whatever_the_seed() -> None:
    for task in TASKS:
        asked: dict[str, set[object]] = {}
        for split in ("train", "validation", "test"):
            puzzles = [puzzle_at(task, 2, split, i, seed) for i in range(150) for seed in (0, 1)]  # type: ignore[arg-type]
            keys = {
                (tuple(sorted(p.fields["numbers"])), p.fields["target"])
                if task == "countdown"
                else p.question
                for p in puzzles
            }
            asked[split] = keys
            assert len(keys) > 15
        assert not asked["train"] & asked["test"] and not asked["train"] & asked["validation"]
        assert not asked["test"] & asked["validation"]


def test_what_there_is_not() -> None:
    with pytest.raises(ShoalError, match="no puzzle 'sums'"):
        puzzle_at("sums", 1, "train", 0)
    with pytest.raises(ShoalError, match="of level 6"):
        puzzle_at("sum", 6, "train", 0)
