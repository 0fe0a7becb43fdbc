"""Hub names: taken from a cache where possible, a clear way out where there is no internet, never a pickle or code."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from shoal.errors import ShoalError
from shoal.model.checkpoint import hub
from shoal.model.checkpoint.load import resolve


@pytest.mark.parametrize("spec", ["deepseek-ai/DeepSeek-V2-Lite", "a/b", "Qwen/Qwen2.5-0.5B"])
def test_hub_names(spec: str) -> None:
    assert hub.is_hub_name(spec)


@pytest.mark.parametrize(
    "spec", ["a", "a/b/c", "../b", "a/..", "/a/b", "./b", "a/b.gguf", "a/x..y", "", "a/", "~/b"]
)
def test_what_is_no_hub_name(spec: str) -> None:
    assert not hub.is_hub_name(spec)


def cached(home: Path, name: str) -> Path:
    """A model in `$SHOAL_HOME/hub`, laid out as the library does."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_a_cached_model_needs_no_internet(home: Path) -> None:
    snapshot = cached(home, "someone/tiny")
    assert hub.download("someone/tiny").samefile(snapshot)
    assert resolve("someone/tiny").samefile(snapshot)


def test_a_configuration_fetched_for_a_plan_is_not_taken_for_the_model(home: Path) -> None:
    snapshot = cached(home, "someone/huge")
    (home / "hub").rename(home / "hub-configs")
    found = hub.download("someone/huge", config_only=True)
    assert found.samefile(home / "hub-configs" / snapshot.relative_to(home / "hub"))
    with pytest.raises(ShoalError, match="cannot get someone/huge"):
        hub.download("someone/huge")


def test_offline_the_error_says_what_to_do() -> None:
    with pytest.raises(ShoalError, match="cannot get nobody/nothing-here from the hub") as caught:
        resolve("nobody/nothing-here")
    assert "on a machine that has it" in caught.value.hint and "give the folder" in caught.value.hint
    assert caught.value.exit_code == 1


def test_an_existing_folder_of_that_form_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve("owner/model").samefile(folder)


def test_only_weights_and_texts_are_asked_for(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **arguments: Any) -> str:
        asked.append(arguments)
        if arguments.get("local_files_only"):
            raise FileNotFoundError
        return str(home)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    hub.download("a/b")
    patterns = asked[-1]["allow_patterns"]
    assert Path(asked[-1]["cache_dir"]) == home / "hub"

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    assert wanted("model-00001-of-00002.safetensors") and wanted("tokenizer_config.json")
    assert wanted("model.safetensors.index.json") and wanted("chat_template.jinja")
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "modeling_x.py",
        "training_args.bin",
        "optimizer.pkl",
        "x.ckpt",
    ):
        assert not wanted(name)
