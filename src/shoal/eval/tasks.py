"""Microworld tasks put to a model: held-out questions, greedy answers, accuracy with intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.data.microworld.answers import check
from shoal.data.microworld.generate import FAMILIES, VERSION, task_at
from shoal.data.microworld.world import Language, Split, Task
from shoal.data.types import Message
from shoal.errors import UsageError
from shoal.eval.askers import Answer, Asker, Prompt
from shoal.eval.scores import Mark, scores, summary

ALL = "microworld"
WRONG_SHOWN = 3  # wrong answers kept per family and language, so that people see how it fails


@dataclass(frozen=True, slots=True)
class Plan:
    """Which questions are asked. `count` is per family and language, spread evenly over its levels."""

    families: tuple[str, ...] = tuple(FAMILIES)
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    languages: tuple[Language, ...] = ("en", "ja")
    count: int = 200
    seed: int = 0
    split: Split = "test"


def families_of(names: Sequence[str]) -> tuple[str, ...]:
    """The families that task names mean; "microworld" or no name at all means every one."""
    for name in names:
        if name != ALL and name not in FAMILIES:
            raise UsageError(f"there is no task {name!r}", hint=f"Tasks: {ALL}, bpb, {', '.join(FAMILIES)}.")
    return tuple(FAMILIES) if not names or ALL in names else tuple(dict.fromkeys(names))


def questions(plan: Plan) -> Iterator[Task]:
    """The plan's tasks: a pure function of it. No question is asked twice while there are others."""
    for family in plan.families:
        levels = [level for level in FAMILIES[family][1] if level in plan.levels]
        for language in plan.languages:
            for place, level in enumerate(levels):
                wanted = plan.count // len(levels) + (place < plan.count % len(levels))
                yield from _distinct(plan, family, level, language, wanted)


def _distinct(plan: Plan, family: str, level: int, language: Language, wanted: int) -> Iterator[Task]:
    seen: set[str] = set()
    kept: list[Task] = []
    for index in range(4 * wanted):
        if len(kept) == wanted:
            break
        task = task_at(plan.seed, index, plan.split, language, family=family, level=level)
        asked = "\n".join([*(user for user, _ in task.turns), task.question])
        if asked not in seen:
            seen.add(asked)
            kept.append(task)
    yield from kept


def messages_of(task: Task) -> list[Message]:
    """The task as a conversation that ends with its question."""
    messages: list[Message] = []
    for user, assistant in task.turns:
        messages += [Message("user", user), Message("assistant", assistant)]
    return [*messages, Message("user", task.question)]


def evaluate(
    asker: Asker,
    plan: Plan,
    thinking: Sequence[bool] = (False,),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask everything in `plan` once per value of `thinking`. Returns a JSON-able result (docs/microworld.md).

    progress: called with (answers so far, answers in all).
    """
    started = time.monotonic()
    marks: list[Mark] = []
    wrong: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    tokens = unfinished = 0
    tasks = list(questions(plan))
    if not tasks:
        raise UsageError("no task has such a level", hint="Levels are 1 to 5; some families have fewer.")
    for thinks in thinking:
        mode = "on" if thinks else "off"
        prompts = (Prompt(messages_of(task), thinks) for task in tasks)
        for task, answer in zip(tasks, asker.ask(prompts), strict=True):
            right = check(task, answer.content)
            marks.append(Mark(task.family, task.level, task.language, mode, task.id, right))
            tokens += answer.tokens
            unfinished += answer.finish_reason != "stop"
            if not right:
                shown = wrong.setdefault((task.family, task.language, mode), [])
                if len(shown) < WRONG_SHOWN:
                    shown.append(_shown(task, answer, mode))
            if progress:
                progress(len(marks), len(tasks) * len(thinking))
    return {
        "model": asker.name,
        "microworld": VERSION,
        "split": plan.split,
        "seed": plan.seed,
        "levels": list(plan.levels),
        "greedy": True,
        "questions": len(tasks),
        "seconds": round(time.monotonic() - started, 2),
        "completion_tokens": tokens,
        "unfinished": unfinished,
        "summary": [score.to_dict() for score in summary(marks)],
        "scores": [score.to_dict() for score in scores(marks)],
        "wrong": [example for examples in wrong.values() for example in examples],
    }


def _shown(task: Task, answer: Answer, mode: str) -> dict[str, Any]:
    return {
        "family": task.family,
        "level": task.level,
        "language": task.language,
        "thinking": mode,
        "question": task.question,
        "expected": task.answer,
        "reasoning": answer.reasoning,
        "got": answer.content,
    }
