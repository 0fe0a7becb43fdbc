"""Pull and push with the real hub library, against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.model.local_hub import LocalHub, local_hub

from shoal.model.checkpoint.save import Weights, save_checkpoint, save_gguf
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM

CONFIG = ModelConfig(model_type="qwen2", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=2)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "tiny"
    network = CausalLM(CONFIG)
    save_checkpoint(path, network)
    save_gguf(path / "tiny.gguf", Weights.of_network(network))
    (path / "evil.bin").write_bytes(b"pickle")
    return path


@pytest.fixture
def hub(folder: Path) -> Iterator[LocalHub]:
    with local_hub() as server:
        server.files = {file.name: file.read_bytes() for file in folder.iterdir()}
        server.large = {"model.safetensors", "tiny.gguf"}
        yield server


def models(hub: LocalHub, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own: the library reads the hub's address when it is imported."""
    unset = (
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    )
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_TOKEN": "hf_token",
                    "HF_HUB_DISABLE_TELEMETRY": "1", "SHOAL_HOME": str(home)}  # fmt: skip
    command = [sys.executable, "-m", "shoal.cli.main", "models", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_pull_goes_on_where_it_was_cut(hub: LocalHub, home: Path, folder: Path) -> None:
    """Nothing has a name until all of it is there; then its files are the hub's, without code and pickles."""
    weights = len(hub.files["model.safetensors"])
    hub.files = {
        "model.safetensors": hub.files["model.safetensors"]
    } | hub.files  # first, so that the cut hits it
    hub.cut = weights // 2
    cut = models(hub, home, "pull", "me/tiny")
    assert cut.returncode == 1 and "cannot get me/tiny" in cut.stderr, cut.stderr
    assert not (home / "models").exists()
    hub.cut, hub.asked = None, []
    whole = models(hub, home, "pull", "me/tiny", "--json")
    assert whole.returncode == 0, whole.stderr
    ranges = {path.rpartition("/")[2]: asked for method, path, asked in hub.asked if "/resolve/" in path}
    assert ranges["model.safetensors"] == f"bytes={weights // 2}-", (
        "the half that was there is not fetched again"
    )
    assert "evil.bin" not in ranges and "tiny.gguf" not in ranges
    pulled = Path(json.loads(whole.stdout)["path"])
    assert pulled == home / "models" / "tiny"
    assert (pulled / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not list((home / "hub").glob("pull--*")), "nothing is left behind"


def test_what_comes_damaged_gets_no_name(hub: LocalHub, home: Path) -> None:
    hub.lies = {"model.safetensors"}
    result = models(hub, home, "pull", "me/tiny")
    assert (
        result.returncode == 1
        and "model.safetensors came damaged" in result.stderr
        and not (home / "models").exists()
    )
    hub.lies = set()
    assert models(hub, home, "pull", "me/tiny").returncode == 0, "the next try begins anew"


def test_one_gguf_of_a_repository(hub: LocalHub, home: Path) -> None:
    wrong = models(hub, home, "pull", "me/tiny", "--file", "other.gguf")
    assert wrong.returncode == 1 and "Its GGUF files: tiny.gguf" in wrong.stderr
    taken = models(hub, home, "pull", "me/tiny", "--file", "tiny.gguf", "--name", "small", "--json")
    assert taken.returncode == 0, taken.stderr
    assert Path(json.loads(taken.stdout)["path"]) == home / "models" / "small" / "tiny.gguf"
    del hub.files["model.safetensors"]
    none = models(hub, home, "pull", "me/tiny")
    assert none.returncode == 1 and "--file: tiny.gguf" in none.stderr and "evil" not in none.stderr


def test_a_push_needs_a_licence_and_brings_card_and_receipt(
    hub: LocalHub, home: Path, folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("config.json", "model.safetensors"):
        (mine / name).write_bytes((folder / name).read_bytes())
    (mine / "secret.env").write_text("x")
    refused = models(hub, home, "push", mine, "me/mine")
    assert refused.returncode == 1 and "licence" in refused.stderr and not hub.asked
    listed = models(hub, home, "push", mine, "me/mine", "--licence", "MIT", "--dry-run", "--json")
    assert (
        set(json.loads(listed.stdout)["files"]) == {"config.json", "model.safetensors", "README.md"}
        and not hub.asked
    )
    assert "no receipt.json" in listed.stderr
    receipt = {"id": "a" * 64, "kind": "pretrain", "started_at": "2026-11-26T00:00:00Z", "device": "a chip"}
    (mine / "receipt.json").write_text(
        json.dumps(receipt | {"seconds": 3600.0, "tokens": 1000, "flops": 1e9})
    )
    sent = models(hub, home, "push", mine, "me/mine", "--licence", "MIT")
    assert sent.returncode == 0 and "/commit/" in sent.stdout, sent.stderr
    (commit,) = hub.commits
    card = commit["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n") and "on a chip" in card and "secret.env" not in commit
    assert (
        commit["model.safetensors"] == (mine / "model.safetensors").read_bytes() and "receipt.json" in commit
    )
    assert hub.tokens == {"Bearer hf_token"} and "hf_token" not in sent.stdout + sent.stderr
    (mine / "README.md").write_text("---\nlicense: apache-2.0\n---\nMy words.\n")
    other = models(hub, home, "push", mine, "me/mine", "--licence", "MIT", "--dry-run")
    assert other.returncode == 1 and "contradicts" in other.stderr


def test_a_model_that_is_not_there(hub: LocalHub, home: Path) -> None:
    result = models(hub, home, "pull", "you/nothing")
    assert result.returncode == 1 and "no such model" in result.stderr and "Traceback" not in result.stderr
