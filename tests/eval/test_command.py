"""`shoal eval` on a real checkpoint and on a real server (wrong use: tests/cli/test_eval.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from shoal.cli.main import app


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments])


def test_a_tiny_model_end_to_end(tiny_model: Path, tmp_path: Path) -> None:
    out, card = tmp_path / "result.json", tmp_path / "card.md"
    outcome = run(
        str(tiny_model), "sum", "bpb", "--n", "2", "--level", "1", "--language", "en", "--thinking", "off",
        "--out", str(out), "--card", str(card), "--json",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert result == json.loads(out.read_text(encoding="utf-8"))
    assert result["scores"][0]["count"] == 2 and result["bits_per_byte"]["en"] > 0
    text = card.read_text(encoding="utf-8")
    assert (
        text.startswith("# tiny") and text.count("```text") == 3 and "active per token" not in outcome.stdout
    )


def test_a_server_is_asked_with_the_same_tasks(openai_server: Callable[..., str]) -> None:
    url = openai_server(lambda body: "blue")
    outcome = run("-", "colour", "--endpoint", url, "--n", "5", "--language", "en")
    assert outcome.exit_code == 0 and "remote: 5 held-out questions (test)" in outcome.stdout
    assert "colour  1" in outcome.stdout and "n=5" in outcome.stdout
