"""The pages about reinforcement learning say what the code does, and the tutorial is run, in small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.train.recipe import explain_sections
from shoal.tune.grpo_losses import LOSSES
from shoal.tune.grpo_recipe import GrpoStage
from shoal.tune.rewards import BUILT_IN

DOCS = Path(__file__).parents[2] / "docs"


def test_every_key_loss_and_reward_is_on_the_page() -> None:
    page = (DOCS / "reinforcement-learning.md").read_text(encoding="utf-8")
    table = explain_sections(("[grpo]", GrpoStage)).split("\n", 2)[2].strip()
    assert page.rstrip().endswith(table), "write the table anew: shoal.train.recipe.explain_sections"
    for name in (*LOSSES, *BUILT_IN):
        assert f"| `{name}`" in page, name
    for loss in LOSSES.values():
        assert f"{loss.epsilon[1]:.10g}".rstrip("0") in page


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.name)
def test_links_of_tutorials_hold(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_tutorial_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "tutorials" / "teach-it-your-own-task.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, re.DOTALL))
    assert set(files) == {"brief.py", "brief.toml"} and len(files["brief.py"].splitlines()) <= 15
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["tune", "grpo", "brief.toml", "--dry-run"])
    assert shown.exit_code == 0 and "microworld:opposite/1/train/0" in shown.output, shown.output
    small = (
        "--run.threads 1 --run.dtype float32 --grpo.steps 3 --grpo.prompts_per_step 3 --grpo.eval_examples 6"
    )
    done = CliRunner().invoke(
        app,
        ["tune", "grpo", "brief.toml", "--run", "runs/brief", "--json", *small.split(), "--grpo.lr", "1e-3"],
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["finished"] and result["measures"]["grpo"]["questions"] == 6
    lines = [json.loads(line) for line in Path("runs/brief/log.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert len(rewards) == 3 and 0 < min(rewards) and max(rewards) < 1, "shades to learn from"
    assert "skipped_share" in lines[0] and "Newest samples" in Path("runs/brief/board.html").read_text()
    answer = CliRunner().invoke(
        app, ["chat", "runs/brief/adapter", "--think", "off", "-p", "What is the opposite of big?"]
    )
    assert answer.exit_code == 0 and answer.stdout.strip(), answer.output
    broken = files["brief.py"].replace("def brief(prompt", "def brief((prompt")
    (tmp_path / "brief.py").write_text(broken)
    refused = CliRunner().invoke(app, ["tune", "grpo", "brief.toml", "--run", "runs/other"])
    assert refused.exit_code != 0 and "brief.py is not Python" in str(refused.exception)
    assert not Path("runs/other/adapter").exists()
