"""`shoal convert` both ways, with tokenizer, template and receipt; what is there is never replaced unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from shoal.errors import ShoalError, UsageError
from shoal.model.adapters import new_lora
from shoal.model.checkpoint.gguf import read_file
from shoal.model.checkpoint.load import inspect, load_network, read_side_files
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def convert(*arguments: object) -> Any:
    """Run the command in this process; its errors come out as they are."""
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the sea is wide and the sky is high. 海は広い。"] * 20, vocab_size=420)


@pytest.fixture
def source(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    config = ModelConfig(
        model_type="deepseek_v3", vocab_size=tokenizer.vocab_size + 4, hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=32,
        v_head_dim=32, moe_intermediate_size=32, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_ids[0], num_nextn_predict_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "source",
        CausalLM(config, mtp=True),
        tokenizer_files=tokenizer.save,
        chat_template=TEMPLATE,
        receipt={"kind": "train", "tokens": 5},
    )
    return tmp_path / "source"


def state(path: Path, *, mtp: bool = False) -> dict[str, Tensor]:
    return dict(load_network(path, mtp=mtp).state_dict())


def test_there_and_back_loses_nothing(tmp_path: Path, source: Path, tokenizer: Tokenizer) -> None:
    result = convert(source, tmp_path / "x.gguf")
    assert result.exit_code == 0 and "float32" in result.stdout
    assert "multi-token prediction layers are left out" in result.stderr
    side = read_side_files(tmp_path / "x.gguf")
    assert side.chat_template == TEMPLATE and side.receipt == {"kind": "train", "tokens": 5}
    assert len((side.gguf_metadata or {})["tokenizer.ggml.tokens"]) == tokenizer.vocab_size + 4

    assert convert(tmp_path / "x.gguf", tmp_path / "back").exit_code == 0
    before, after = state(source), state(tmp_path / "back")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((tmp_path / "back" / "receipt.json").read_text())["tokens"] == 5
    text = "the sky, 123 and 海"
    assert load_tokenizer(tmp_path / "back").encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("quant", "target", "dtype"),
    [
        ("8", "x.gguf", "q8_0"),
        ("8", "x", "fp8"),
        ("fp8", "x", "fp8"),
        ("none", "x", "float32"),
        ("4", "x.gguf", "q4_0"),
        ("q4_0", "x.gguf", "q4_0"),
        ("f16", "x.gguf", "float16"),
        ("bf16", "x", "bfloat16"),
    ],
)
def test_quant_is_short_for_a_format(
    tmp_path: Path, source: Path, quant: str, target: str, dtype: str
) -> None:
    result = convert(source, tmp_path / target, "--quant", quant, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["dtype"] == dtype


def test_four_bits_leave_embedding_and_head_eight(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "x.gguf", "--quant", "q4_0")
    types = {name: tensor.type for name, tensor in read_file(tmp_path / "x.gguf").tensors.items()}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.1.ffn_up_exps.weight"] == types["blk.0.attn_q.weight"] == "Q4_0"
    assert types["blk.1.ffn_gate_inp.weight"] == types["output_norm.weight"] == "F32"
    before, after = state(source), state(tmp_path / "x.gguf")
    for name, weight in before.items():
        error = (after[name].float() - weight.float()).norm() / weight.float().norm().clamp(min=1e-9)
        assert error < 0.12, name  # a uniform step of a sixteenth


def test_quant_nonsense(tmp_path: Path, source: Path) -> None:
    for options in (
        ("--quant", "3"),
        ("--quant", "8", "--dtype", "fp8"),
        ("--quant", "q8_0"),
        ("--quant", "4"),
    ):
        with pytest.raises(UsageError):
            convert(source, tmp_path / "x", *options)


def test_fp8_and_back_keeps_the_draft_layers(tmp_path: Path, source: Path) -> None:
    assert convert(source, tmp_path / "fp8", "--dtype", "fp8").exit_code == 0
    dtypes = {name: dtype for name, (dtype, _, _) in inspect(tmp_path / "fp8").tensors.items()}
    assert dtypes["model.layers.2.self_attn.o_proj.weight"] == "F8_E4M3"
    assert convert(tmp_path / "fp8", tmp_path / "wide", "--dtype", "float32").exit_code == 0
    fp8, wide = state(tmp_path / "fp8", mtp=True), state(tmp_path / "wide", mtp=True)
    assert all(torch.equal(fp8[name], wide[name]) for name in fp8)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "wide" / name).read_bytes() == (source / name).read_bytes()


def test_by_default_the_format_stays(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "b", "--dtype", "bfloat16")
    assert json.loads(convert(tmp_path / "b", tmp_path / "b.gguf", "--json").stdout)["dtype"] == "bfloat16"
    assert read_file(tmp_path / "b.gguf").tensors["blk.1.ffn_up_exps.weight"].type == "BF16"
    result = json.loads(convert(source, tmp_path / "q.gguf", "--dtype", "q8_0", "--json").stdout)
    assert result["size_bytes"] == (tmp_path / "q.gguf").stat().st_size
    assert json.loads(convert(tmp_path / "q.gguf", tmp_path / "q", "--json").stdout)["dtype"] == "float32"


def test_nothing_is_replaced_unasked(tmp_path: Path, source: Path) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(ShoalError, match="exists"):
        convert(source, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == "mine"
    assert convert(source, tmp_path / "x.gguf", "--force").exit_code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years")
    with pytest.raises(ShoalError, match="holds other things"):
        convert(source, tmp_path / "other", "--force")
    with pytest.raises(UsageError, match="the same place"):
        convert(source, source, "--force")
    assert (tmp_path / "other" / "thesis.txt").is_file() and (source / "config.json").is_file()


@pytest.mark.parametrize(("target", "dtype"), [("x.gguf", "fp8"), ("folder", "q8_0"), ("folder", "int3")])
def test_formats_that_do_not_go_there(tmp_path: Path, source: Path, target: str, dtype: str) -> None:
    with pytest.raises(UsageError, match=f"--dtype {dtype} is not possible"):
        convert(source, tmp_path / target, "--dtype", dtype)


def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path, source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(ShoalError, match="fetch it again"):
        convert(source, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    tmp_path: Path, source: Path, tokenizer: Tokenizer
) -> None:
    network = load_network(source)
    small = ModelConfig(**vars(network.config) | {"vocab_size": 100, "num_nextn_predict_layers": 0})
    save_checkpoint(tmp_path / "small", CausalLM(small), tokenizer_files=tokenizer.save)
    with pytest.raises(ShoalError, match="the embedding only 100 rows"):
        convert(tmp_path / "small", tmp_path / "x.gguf")


def test_refused_by_the_tokenizer_means_no_file(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Tokenizer) -> dict[str, Any]:
        raise ShoalError("no name for this tokenizer")

    monkeypatch.setattr(Tokenizer, "to_gguf", refuse)
    with pytest.raises(ShoalError, match="no name for this"):
        convert(source, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("target", "dtype"), [("merged", "float32"), ("merged.gguf", "q8_0"), ("merged", "fp8")]
)
def test_an_adapter_is_merged_and_what_rounding_costs_is_said(
    target: str, dtype: str, tmp_path: Path, source: Path
) -> None:
    """CASES C89: a small update on a coarse format."""
    network = load_network(source)
    adapter = new_lora(network, base="../source", r=2, lora_alpha=2, target_modules=["all-linear"])
    for f in adapter.factors.values():
        f.b.data.normal_(0, 0.001, generator=torch.Generator().manual_seed(1))
    adapter.save(tmp_path / "a", network.config, bfloat16=False)
    result = convert(tmp_path / "a", tmp_path / target, "--dtype", dtype, "--json")
    assert result.exit_code == 0, result.output
    (notice,) = [n for n in json.loads(result.stdout)["notices"] if n.startswith("merged")]
    assert ("rounds much of that away" in notice) == (dtype != "float32"), notice
    if target == "merged":
        assert (tmp_path / "merged" / "tokenizer.json").is_file()
