"""`shoal eval` as people and scripts call it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.errors import UsageError

WRONG_USE = [
    (["nano", "sums"], "there is no task 'sums'"),
    (["nano", "--level", "2-9"], "--level '2-9'"),
    (["nano", "--level", "x"], "--level 'x'"),
    (["nano", "--language", "fr"], "does not speak 'fr'"),
    (["nano", "--split", "train"], "'train' is no held-out split"),
    (["nano", "--thinking", "maybe"], "unknown --thinking"),
    (["nano", "bpb", "--card", "card.md"], "a card needs task results"),
    (["-", "bpb", "--endpoint", "http://127.0.0.1:9"], "need the weights"),
    (["-", "lm:arc_easy", "--endpoint", "http://127.0.0.1:9"], "need the weights"),
    (["nano", "lm:arc_easy", "sum"], "lm: tasks are measured by themselves"),
    (["-"], "which model"),
    ([], "which model"),
]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG_USE, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_wrong_use_is_told_before_a_model_is_loaded(arguments: list[str], message: str) -> None:
    outcome = run(*arguments)
    assert isinstance(outcome.exception, UsageError) and message in str(outcome.exception)
