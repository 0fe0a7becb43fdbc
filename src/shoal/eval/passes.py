"""Any checkable questions put to anybody who answers: pass@1 and pass@k with intervals, length, cost per right answer.

pass@k is the chance that at least one of k answers is right, estimated without bias from n >= k answers per question
(Chen et al. 2021, 2107.03374). Intervals are Wilson's over questions: answers to one question are no new evidence.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.data.types import Message
from shoal.eval.askers import Answer, Asker, Prompt
from shoal.eval.scores import wilson

WRONG_SHOWN = 3  # per task


@dataclass(frozen=True)
class Question:
    """`check` says whether an answer (its visible text) is right."""

    id: str
    task: str
    level: int
    messages: Sequence[Message]
    check: Callable[[str], bool]
    expected: str = ""


@dataclass
class Tally:
    """One question's answers."""

    question: Question
    right: int = 0
    answers: int = 0
    tokens: int = 0


def pass_at_k(answers: int, right: int, k: int) -> float:
    """1 - C(answers - right, k) / C(answers, k)."""
    if not 1 <= k <= answers:
        raise ValueError(f"pass@{k} of {answers} answers")
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def evaluate(
    asker: Asker,
    questions: Sequence[Question],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    thinking: bool = False,
    max_tokens: int | None = None,
    cost: Callable[[int, int], float | None] = lambda prompt_tokens, completion_tokens: None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask every question `samples` times; a JSON-able result.

    cost: USD of (prompt tokens, completion tokens) when all is answered; None where nobody knows.
    """
    started = time.monotonic()
    tallies = {question.id: Tally(question) for question in questions}
    order = [question for question in questions for _ in range(samples)]
    wrong: dict[str, list[dict[str, str]]] = {}
    prompt_tokens = completion_tokens = unfinished = 0

    def prompts() -> Iterator[Prompt]:
        for number, question in enumerate(order):
            yield Prompt(
                question.messages, thinking, max_tokens, temperature, number if temperature else None
            )

    for number, (question, answer) in enumerate(zip(order, asker.ask(prompts()), strict=True), 1):
        right = question.check(answer.content)
        tally = tallies[question.id]
        tally.answers, tally.right, tally.tokens = (
            tally.answers + 1,
            tally.right + right,
            tally.tokens + answer.tokens,
        )
        prompt_tokens += answer.prompt_tokens
        completion_tokens += answer.tokens
        unfinished += answer.finish_reason != "stop"
        shown = wrong.setdefault(question.task, [])
        if not right and len(shown) < WRONG_SHOWN:
            shown.append(_shown(question, answer))
        if progress:
            progress(number, len(order))
    usd = cost(prompt_tokens, completion_tokens)
    correct = sum(tally.right for tally in tallies.values())
    return {
        "model": asker.name,
        "samples": samples,
        "temperature": temperature,
        "thinking": thinking,
        "questions": len(tallies),
        "seconds": round(time.monotonic() - started, 2),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "unfinished": unfinished,
        "correct": correct,
        "usd": usd,
        "usd_per_correct": usd / correct if usd is not None and correct else None,
        "passes": _scores(list(tallies.values()), samples),
        "wrong": [example for examples in wrong.values() for example in examples],
        "notes": list(getattr(asker, "notes", ())),
    }


def _shown(question: Question, answer: Answer) -> dict[str, str]:
    asked = question.messages[-1].content or ""
    return {"id": question.id, "question": asked, "expected": question.expected, "got": answer.content}


def _scores(tallies: Sequence[Tally], samples: int) -> list[dict[str, Any]]:
    """Per task and level, per task, and over all; every question weighs the same."""
    groups: dict[tuple[str, str], list[Tally]] = {}
    for tally in tallies:
        task, level = tally.question.task, str(tally.question.level)
        for key in ((task, level), (task, "all"), ("all", "all")):
            groups.setdefault(key, []).append(tally)
    found = []
    for (task, level), group in sorted(groups.items(), key=lambda item: (item[0][0] == "all", item[0])):
        score: dict[str, Any] = {"task": task, "level": level, "count": len(group)}
        for k in sorted({1, samples}):
            share = sum(pass_at_k(t.answers, t.right, k) for t in group) / len(group)
            low, high = wilson(share * len(group), len(group))
            score[f"pass_at_{k}"] = {"share": share, "low": low, "high": high}
        score["mean_tokens"] = sum(t.tokens for t in group) / sum(t.answers for t in group)
        found.append(score)
    return found


def _pass(score: Mapping[str, Any], k: int) -> str:
    found = score.get(f"pass_at_{k}")
    if found is None:
        return ""
    return f"{found['share']:.1%} ({found['low'] * 100:.1f}-{found['high'] * 100:.1f}, n={score['count']})"


def table(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of cells, the header first: models one under the other, in the last row of each what a right answer cost."""
    ks = sorted({1, *(int(result["samples"]) for result in results)})
    rows = [["model", "task", "level", *(f"pass@{k}" for k in ks), "tokens", "USD per correct"]]
    for result in results:
        for score in result["passes"]:
            cells = [_pass(score, k) for k in ks]
            each = result["usd_per_correct"] if score["task"] == "all" else None
            told = [f"{score['mean_tokens']:.0f}", "" if each is None else f"{each:.3g}"]
            rows.append([result["model"], score["task"], score["level"], *cells, *told])
    return rows


def bill(result: Mapping[str, Any]) -> str:
    """One line: what the answers took."""
    usd, each = result["usd"], result["usd_per_correct"]
    price = "price unknown" if usd is None else f"${usd:.4g}"
    price += "" if each is None else f", ${each:.3g} per right answer"
    notes = "".join(f"\n  {note}" for note in result.get("notes", ()))
    return (
        f"{result['model']}: {result['correct']} right of {result['questions'] * result['samples']} answers, "
        f"{result['completion_tokens']:,} tokens, {result['seconds']} s, {price}{notes}"
    )


def plot(results: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of pass@1 with intervals: a bar for each task and model; under "all" what a right answer cost."""

    def titled(task: str, result: Mapping[str, Any]) -> str:
        each = result["usd_per_correct"] if task == "all" else None
        return f"{task}  {result['model']}" + ("" if each is None else f"  ${each:.2g} a right answer")

    rows = [
        (titled(score["task"], result), score["pass_at_1"], number)
        for task in dict.fromkeys(s["task"] for r in results for s in r["passes"] if s["level"] == "all")
        for number, result in enumerate(results)
        for score in result["passes"]
        if score["task"] == task and score["level"] == "all"
    ]
    colours = ("#2f7fc1", "#d9822b", "#3a9c6b", "#9b59b6")
    left, width, step = 340, 420, 22
    height = step * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">'
    ]
    for tenth in range(0, 11, 2):
        x = left + width * tenth / 10
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="8" y2="{height - 24}" stroke="#d6dde4"/>')
        parts.append(
            f'<text x="{x:.0f}" y="{height - 8}" text-anchor="middle" fill="#6b7785">{tenth * 10}%</text>'
        )
    for place, (name, found, number) in enumerate(rows):
        y = 12 + step * place
        low, high, x = (left + width * found[key] for key in ("low", "high", "share"))
        colour = colours[number % len(colours)]
        parts += [
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end" fill="#1d2733">{html.escape(name)}</text>',
            f'<rect x="{left}" y="{y}" width="{x - left:.1f}" height="{step - 8}" fill="{colour}" opacity="0.75"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 7}" y2="{y + 7}" stroke="#1d2733" stroke-width="2"/>',
        ]
    return "".join(parts) + "</svg>\n"
