"""The board of a reinforcement-learning run: `samples.jsonl` and `board.html`, readable while it runs; at the end the
same page is the report, with answers before and after. No script, no foreign address.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.eval.scores import wilson
from shoal.files import atomic_write_text
from shoal.train.events import Log, duration, read_log
from shoal.train.report import STYLE, plots
from shoal.tune.environments import Example
from shoal.tune.rewards import Judgement
from shoal.tune.rollout import Group

SECONDS_BETWEEN = 3.0  # writings of the page
SHOWN_GROUPS, SHOWN_ANSWERS = 4, 12


@dataclass
class Answered:
    """A question with its completions, judged."""

    example: Example
    group: Group
    texts: list[str]
    judgements: list[Judgement]
    advantages: list[float | None]

    @property
    def right(self) -> list[bool]:
        """Which got the first reward of the recipe in full: what pass@1 counts."""
        return [next(iter(j.parts.values()), 0.0) >= 1.0 - 1e-9 for j in self.judgements]

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {
            "id": self.example.id,
            "task": self.example.task,
            "level": self.example.level,
            "question": self.example.question,
            "answer": str(self.example.fields.get("answer", "")),
            "completions": [
                {
                    "text": text,
                    "tokens": len(completion.token_ids),
                    "truncated": completion.truncated,
                    "right": right,
                    "reward": judgement.total,
                    "parts": judgement.parts,
                    "failed": judgement.failed,
                    "advantage": advantage,
                }
                for text, completion, right, judgement, advantage in zip(
                    self.texts,
                    self.group.completions,
                    self.right,
                    self.judgements,
                    self.advantages,
                    strict=True,
                )
            ],
        }


class Board:
    """The page of a run folder. `kept`: lines of samples.jsonl that belong to the resumed state (None: all)."""

    def __init__(self, folder: Path, log: Log, *, kept: int | None = None):
        self.folder, self.log = folder, log
        path = folder / "samples.jsonl"
        self.samples = read_log(path)[:kept] if path.is_file() else []
        atomic_write_text(path, _jsonl(self.samples))  # without lines of the future, or half of one
        self._written = 0.0

    def note(self, step: int, answered: Answered) -> None:
        """Keep a group for reading."""
        self.samples.append({"step": step, **answered.to_dict()})
        with open(self.folder / "samples.jsonl", "a", encoding="utf-8") as file:
            file.write(_jsonl(self.samples[-1:]))
        if time.monotonic() - self._written > SECONDS_BETWEEN:
            self.write(running=True)

    def keep_answers(self, when: str, answered: Sequence[Answered]) -> None:
        """Keep the held-out answers of "before" or "after"."""
        atomic_write_text(self.folder / f"{when}.jsonl", _jsonl([a.to_dict() for a in answered]))

    def answers(self, when: str) -> list[dict[str, Any]]:
        """What `keep_answers` kept; empty if nothing."""
        path = self.folder / f"{when}.jsonl"
        return read_log(path) if path.is_file() else []

    def accuracies(self) -> dict[str, float]:
        """Held-out pass@1 before and after, and on how many questions."""
        found: dict[str, float] = {}
        for when in ("before", "after"):
            if answers := self.answers(when):
                found[f"pass_at_1_{when}"] = sum(_right(a) for a in answers) / len(answers)
                found["questions"] = len(answers)
        return found

    def write(self, *, running: bool) -> Path:
        """Make `board.html`; a full disk costs the page, not the run."""
        self._written = time.monotonic()
        lines = [line for line in self.log.lines if "reward" in line]
        body = ["<h1>Reinforcement learning</h1>"]
        if running:
            body.append("<p>This page renews itself while the run goes on.</p>")
        if lines:
            body.append(_newest(lines[-1]))
            body.append(plots(lines))
            body.append(
                "<p>The loss is about 0 as long as the completions are the policy's own; that is right, and its "
                "value says nothing. Watch the reward, and the share of groups that taught nothing.</p>"
            )
        if before := self.answers("before"):
            body.append(_comparison(before, self.answers("after")))
        if self.samples:
            body.append(
                "<h2>Newest samples</h2>" + "".join(map(_group, self.samples[: -SHOWN_GROUPS - 1 : -1]))
            )
        refresh = '<meta http-equiv="refresh" content="5">' if running else ""
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"{refresh}<title>Reinforcement learning</title><style>{STYLE}</style>{''.join(body)}</html>\n"
        )
        path = self.folder / "board.html"
        try:
            atomic_write_text(path, page)
        except ShoalError:
            if not running:
                raise
        return path


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_NEWEST = (
    ("step", "step", "{:.0f}"),
    ("reward", "reward", "{:.3f}"),
    ("pass_at_1", "pass@1 of the training questions", "{:.1%}"),
    ("level", "level, mean of the tasks", "{:.2f}"),
    ("completion_length", "tokens of an answer", "{:.1f}"),
    ("truncated_share", "answers cut at the longest", "{:.1%}"),
    ("entropy", "entropy, nats per token", "{:.3f}"),
    ("kl", "KL to the model before, nats per token", "{:.4f}"),
    ("skipped_share", "groups that taught nothing", "{:.0%}"),
    ("unjudged_share", "answers no reward could judge", "{:.1%}"),
    ("logprob_difference", "mean |log-probability difference|, sampler and trainer", "{:.2g}"),
    ("rollout_tokens_per_second", "tokens per second, rollouts", "{:.0f}"),
    ("update_tokens_per_second", "tokens per second, updates", "{:.0f}"),
    ("usd", "cost so far, USD", "{:.5f}"),
)


def _newest(line: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><th>{html.escape(name)}</th><td>{text.format(line[key])}</td></tr>"
        for key, name, text in _NEWEST
        if line.get(key) is not None
    ]
    return f"<table>{''.join(rows)}<tr><th>time so far</th><td>{duration(line['seconds'])}</td></tr></table>"


def _right(answered: Mapping[str, Any]) -> bool:
    return bool(answered["completions"][0]["right"])


def _comparison(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy per task with intervals, then the answers side by side."""
    rows = ["<tr><th>task</th><th>before</th><th>after</th></tr>"]
    for task in dict.fromkeys(a["task"] for a in before):
        cells = "".join(
            f"<td>{_share([a for a in part if a['task'] == task])}</td>" for part in (before, after)
        )
        rows.append(f"<tr><th>{html.escape(task)}</th>{cells}</tr>")
    later = {a["id"]: a for a in after}
    said = ["<tr><th>question</th><th>right answer</th><th>before</th><th>after</th></tr>"]
    for answered in before[:SHOWN_ANSWERS]:
        then = _said(answered), _said(later[answered["id"]]) if answered["id"] in later else ""
        said.append(
            f"<tr><td>{html.escape(answered['question'])}</td><td>{html.escape(answered['answer'])}</td>"
            f"<td>{then[0]}</td><td>{then[1]}</td></tr>"
        )
    return (
        "<h2>Held-out questions, greedy</h2><p>pass@1 with its 95% interval (Wilson).</p>"
        f"<table>{''.join(rows)}</table><table>{''.join(said)}</table>"
    )


def _share(answered: Sequence[Mapping[str, Any]]) -> str:
    if not answered:
        return ""
    right = sum(map(_right, answered))
    low, high = wilson(right, len(answered))
    return f"{right / len(answered):.1%} ({low:.0%}-{high:.0%}, n={len(answered)})"


def _said(answered: Mapping[str, Any]) -> str:
    completion = answered["completions"][0]
    mark = "right" if completion["right"] else "wrong"
    return f"<b>{mark}</b><pre>{html.escape(completion['text'])}</pre>"


def _group(line: Mapping[str, Any]) -> str:
    rows = []
    for completion in line["completions"]:
        reward = "?" if completion["reward"] is None else f"{completion['reward']:.2f}"
        advantage = completion["advantage"]
        worth = completion["failed"] or ("-" if advantage is None else f"{advantage:+.2f}")
        cut = " (cut)" if completion["truncated"] else ""
        rows.append(
            f"<tr><td>{reward}</td><td>{html.escape(worth)}</td><td>{completion['tokens']}{cut}</td>"
            f"<td><pre>{html.escape(completion['text'])}</pre></td></tr>"
        )
    head = "<tr><th>reward</th><th>advantage</th><th>tokens</th><th>completion</th></tr>"
    title = f"Step {line['step']}, {line['task']}, level {line['level']}: {line['question']}"
    answer = f" (answer: {line['answer']})" if line["answer"] else ""
    return f"<h3>{html.escape(title + answer)}</h3><table>{head}{''.join(rows)}</table>"
