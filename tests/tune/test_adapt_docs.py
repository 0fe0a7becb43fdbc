"""docs/adapt.md and its tutorial: the code runs, the tables are the recipes', the recipes load, the steps work."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.model import registry
from shoal.serve.store import Store
from shoal.tune.recipe import explain, load_tune_recipe

ROOT = Path(__file__).parents[2]
PAGE, TUTORIAL = ROOT / "docs" / "adapt.md", ROOT / "docs" / "tutorials" / "fine-tune-on-your-own-chats.md"


def test_the_tables_are_the_recipes() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(explain())


def test_the_page_s_code_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], str(PAGE), "exec"), {})


@pytest.mark.parametrize("method", ["sft", "distill", "dpo"])
def test_the_recipes_load(method: str) -> None:
    name = {"sft": "chats"}.get(method, method)
    recipe = load_tune_recipe(ROOT / "recipes" / f"tune-{name}.toml", method)
    assert recipe.run.name == f"tune-{name}" and recipe.model.base == "smollm2"


def test_the_tutorial_s_steps_in_small(
    base: Callable[[str], Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thumbs in the store, then every command of the page from `data from-chats` to `convert`, on a tiny base."""
    registry.import_model(base("gqa"), name="tiny")
    store = Store(home / "chats.sqlite")
    for i in range(12):
        chat = store.create_chat("local")["id"]
        asked = store.add_message("local", chat, parent_id=None, role="user", content=f"what is {i} + 1 ?")
        assert asked
        said = store.add_message("local", chat, parent_id=asked["id"], role="assistant", content="the fox")
        assert said
        store.update_message("local", said["id"], status="done")
        store.add_feedback("local", chat, said["id"], -1, edited=f"{i + 1}", note=None)
    store.close()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    small = ["--model.base", "tiny", "--run.dtype", "float32", "--run.threads", "1"]
    ran = []
    for line in re.findall(r"^    (shoal .*)$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE):
        words = shlex.split(line)[1:]
        if words[0] in ("serve", "chat"):
            continue
        if words[0] == "tune":
            words += [*small, f"--{words[1]}.row_length", "64"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output, result.exception)
        ran.append(words[:2])
    assert [" ".join(words) for words in ran] == ["data from-chats", "tune sft", "tune sft", "models import"]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    receipt = json.loads((tmp_path / "runs" / "mine" / "adapter" / "receipt.json").read_text())
    assert receipt["parent"]["kind"] == "train"
    entry: Any = registry.find("mine")
    assert entry is not None and entry.base == "tiny"
    for command in (
        "data from-chats pairs.jsonl --kind preference",
        "convert runs/mine/adapter mine.gguf --quant 8",
    ):
        assert f"`shoal {command}`" in TUTORIAL.read_text(encoding="utf-8")
        assert CliRunner().invoke(app, command.split()).exit_code == 0, command
