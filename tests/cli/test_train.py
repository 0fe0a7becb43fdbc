"""`shoal train` as people and scripts call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.errors import ShoalError, UsageError

RECIPE = str(Path(__file__).parents[2] / "recipes" / "tiny-test.toml")


def test_json_is_one_object_on_stdout_and_progress_goes_to_stderr(tmp_path: Path):
    words = ["--run", str(tmp_path / "run"), "--sft.tokens", "0", "--mtp.tokens=0", "--run.eval_tokens", "0"]
    outcome = CliRunner().invoke(app, ["train", RECIPE, *words, "--json", "--train.tokens", "1000"])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert result["finished"] and Path(result["checkpoint"], "config.json").exists()
    assert result["receipt"]["tokens"] >= 1000
    assert "tokens/s" in outcome.stderr and "report" in outcome.stderr


def test_a_report_that_cannot_be_written_costs_an_exit_code_and_no_checkpoint(tmp_path: Path):
    # C77
    (tmp_path / "report.html").mkdir()
    words = ["--run", str(tmp_path), "--sft.tokens", "0", "--mtp.tokens=0", "--run.eval_tokens", "0"]
    outcome = CliRunner().invoke(app, ["train", RECIPE, *words, "--json", "--train.tokens", "1000"])
    error = outcome.exception
    assert isinstance(error, ShoalError) and error.exit_code == 1
    assert "train: the report failed (cannot write" in error.message and "is whole" in error.hint
    result = json.loads(outcome.stdout)
    assert result["finished"] and len(result["failures"]) == 1
    assert Path(result["checkpoint"], "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([RECIPE, "--train.lrr", "1"], "mean lr?"),
        ([RECIPE, "--train.lr"], "has no value"),
        ([RECIPE, "oops"], "cannot use 'oops'"),
        ([RECIPE, "--seconds", "-3"], "--seconds"),
        ([], "no recipe given"),
        (["--resume"], "no recipe given"),
        (["--train.lr", "1"], "no recipe given"),
        (["nowhere.toml"], "nowhere.toml"),
        ([RECIPE, "--run.device", "tpu"], "no device 'tpu'"),
    ],
)
def test_wrong_use_is_told_and_makes_nothing(words: list[str], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["train", *words])
    error = outcome.exception
    assert isinstance(error, ShoalError) and message in str(error)
    if "nowhere" not in str(words) and "device" not in str(words):
        assert isinstance(error, UsageError) or error.exit_code == 2
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("command", [["train"], ["tune", "sft"]], ids=" ".join)
def test_a_resumed_run_takes_overrides_without_its_recipe_named(command: list[str], tmp_path: Path):
    (tmp_path / "recipe.toml").write_text('[model]\nbase = "nano"\n' if "tune" in command else "")
    words = ["--resume", "--run", str(tmp_path), "--run.threds", "1", "--run.seed=2"]
    error = CliRunner().invoke(app, [*command, *words]).exception
    assert isinstance(error, ShoalError) and "mean threads?" in str(error), error


def test_help_shows_how():
    text = CliRunner().invoke(app, ["train", "--help"]).output
    assert "shoal train recipes/nano.toml" in text and "--resume" in text
