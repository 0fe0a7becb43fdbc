"""`shoal models`: the table by its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.errors import ShoalError, UsageError
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM


def models(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["models", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ModelConfig(
        model_type="qwen2", vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    save_checkpoint(tmp_path / "tiny", CausalLM(config))
    return tmp_path / "tiny"


def test_import_list_show_remove(folder: Path, home: Path) -> None:
    assert json.loads(models("import", folder, "--json").stdout)["name"] == "tiny"
    listed = json.loads(models("list", "--json").stdout)["models"]
    mine = next(model for model in listed if model["name"] == "tiny")
    assert mine["path"] == str(home / "models" / "tiny") and mine["removable"] and mine["size_bytes"] > 0
    assert "tiny" in models("list").stdout and "context" in models("show", "tiny").stdout
    with pytest.raises(UsageError, match="--yes"):
        models("remove", "tiny")  # nobody there to be asked
    assert models("remove", "tiny", "--yes").exit_code == 0
    left = json.loads(models("list", "--json").stdout)["models"]
    assert "tiny" not in {model["name"] for model in left}


def test_refusals(folder: Path) -> None:
    with pytest.raises(ShoalError, match="no installed model 'nope'"):
        models("show", "nope")
    with pytest.raises(ShoalError, match="no installed model"):
        models("remove", "../tiny")
    with pytest.raises(UsageError, match="is no hub name"):
        models("pull", "just-a-name")
    with pytest.raises(ShoalError, match="from the hub"):
        models("pull", "nobody/nothing-here")
    models("import", folder)
    with pytest.raises(ShoalError, match="--force"):
        models("import", folder)
    assert models("import", folder, "--force").exit_code == 0


def test_a_linked_model_leaves_its_files_where_they_are(folder: Path, home: Path) -> None:
    entry = json.loads(models("import", folder, "--link", "--json").stdout)
    weights = home / "models" / "tiny" / "model.safetensors"
    assert weights.is_symlink() and entry["size_bytes"] >= weights.stat().st_size > 0
    assert models("remove", "tiny", "-y").exit_code == 0
    assert not weights.parent.exists() and (folder / "model.safetensors").is_file(), "only the links go"
