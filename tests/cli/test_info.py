"""`shoal info` as people run it: a page or JSON on stdout, errors without a traceback, exit codes, little memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.model.adapters import new_lora
from shoal.model.checkpoint.load import load_network
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM


def shoal(*arguments: object, most_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; with `most_bytes` it cannot get more memory than that, and would end in a MemoryError."""
    code = "from shoal.cli.main import run; run()"
    if most_bytes is not None:
        code = (
            f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({most_bytes}, {most_bytes})); {code}"
        )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each of its threads reserves memory
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(
        model_type="deepseek_v3", vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        moe_intermediate_size=32, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, topk_method="noaux_tc", scoring_func="sigmoid", num_nextn_predict_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "c"
    parent = {
        "kind": "pretrain",
        "started_at": "2026-01-01",
        "device": "CPU",
        "seconds": 60.0,
        "tokens": 5,
        "flops": 1e9,
    }
    receipt = {**parent, "kind": "sft", "parent": parent}
    save_checkpoint(folder, CausalLM(config, mtp=True), receipt=receipt)
    return folder


def test_a_page(checkpoint: Path) -> None:
    result = shoal("info", checkpoint)
    assert result.returncode == 0 and result.stderr == ""
    for text in (
        "deepseek_v3, 2 layers",
        "MLA, 4 heads, latent 32 + rope 8",
        "2 of 8 + 1 shared",
        "160 bytes per token",
    ):
        assert text in result.stdout
    assert "every tensor is there" in result.stdout and result.stdout.count("60.0 s on CPU") == 2


def test_json(checkpoint: Path) -> None:
    facts = json.loads(shoal("info", checkpoint, "--json", "--context", 100).stdout)
    assert facts["problems"] == [] and facts["kv_bytes_per_token"] == 160 and facts["context_tokens"] == 100
    assert facts["parameters_active"] < facts["parameters_total"] and facts["mtp_layers"] == 1
    assert facts["receipt"]["parent"]["kind"] == "pretrain"
    network = CausalLM(ModelConfig.from_folder(checkpoint), mtp=True)
    assert facts["parameters_total"] == sum(parameter.numel() for parameter in network.parameters())


def damaged(folder: Path, checkpoint: Path, data: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", ["claims 2^40 bytes", "cut in half", "pickle"])
def test_bad_files_fail_fast_small_and_without_a_traceback(
    tmp_path: Path, checkpoint: Path, kind: str
) -> None:
    marker = tmp_path / "marker"

    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    whole = (checkpoint / "model.safetensors").read_bytes()
    data = {
        "claims 2^40 bytes": struct.pack("<Q", 2**40) + b"{}",
        "cut in half": whole[: len(whole) // 2],
        "pickle": pickle.dumps(Trap()),
    }[kind]
    folder = damaged(tmp_path / "c", checkpoint, data)
    start = time.perf_counter()
    result = shoal("info", folder, most_bytes=500_000_000)
    seconds = time.perf_counter() - start
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "model.safetensors" in result.stderr
    assert ("pickle" if kind == "pickle" else "incomplete or damaged: fetch it again") in result.stderr
    assert not marker.exists()
    assert seconds < 20  # 0.3 s on an idle machine


def test_a_folder_whose_files_do_not_fit_shows_the_page_and_fails(tmp_path: Path, checkpoint: Path) -> None:
    folder = damaged(tmp_path / "c", checkpoint, (checkpoint / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    result = shoal("info", folder, "--json")
    assert result.returncode == 1 and "cannot be used" in result.stderr
    assert "tensors are missing" in json.loads(result.stdout)["problems"][0]


def test_an_unknown_model() -> None:
    result = shoal("info", "nowhere")
    assert result.returncode == 1 and result.stderr.startswith("error: no model 'nowhere'")
    assert shoal("info").returncode == 2


def test_an_adapter_shows_itself_and_its_base(tmp_path: Path) -> None:
    config = ModelConfig(
        model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    save_checkpoint(tmp_path / "base", CausalLM(config))
    network = load_network(tmp_path / "base")
    new_lora(network, base="../base", r=3, lora_alpha=6, target_modules=["q_proj", "o_proj"]).save(
        tmp_path / "a", config
    )
    result = CliRunner().invoke(app, ["info", str(tmp_path / "a")])
    assert result.exit_code == 0 and "lora of rank 3 on ../base, 384 parameters" in result.output
    facts = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "a"), "--json"]).stdout)
    assert facts["adapter"]["parameters"] == 2 * 3 * (32 + 32) and facts["layers"] == 1
