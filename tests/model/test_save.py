"""Saving: others load it, nothing is lost, and a failure leaves the old checkpoint as it was."""

from __future__ import annotations

import contextlib
import json
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.model.checkpoint.load import inspect, load_network
from shoal.model.checkpoint.save import Weights, is_fp8, save_checkpoint, save_gguf
from shoal.model.transformer import CausalLM

Make = Callable[..., CausalLM]
Logits = Callable[..., Tensor]


def test_transformers_loads_what_we_save(
    case: str, tmp_path: Path, make_network: Make, logits: Logits, their_logits: Logits
) -> None:
    network = make_network(case)
    if case == "v3-tied-no-shared":
        pytest.skip("transformers' DeepseekV3 has no form without shared experts")
    save_checkpoint(tmp_path / "c", network, max_shard_bytes=100_000)
    assert (their_logits(tmp_path / "c") - logits(network)).abs().max() <= 1e-4


def test_every_number_survives(case: str, tmp_path: Path, make_network: Make) -> None:
    network = make_network(case)
    save_checkpoint(tmp_path / "c", network)
    loaded = load_network(tmp_path / "c", mtp=network.mtp_modules > 0)
    assert loaded.config == network.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision(tmp_path: Path, make_network: Make, dtype: str, most: float) -> None:
    network = make_network("v3")
    save_checkpoint(tmp_path / "c", network, dtype=dtype)  # type: ignore[arg-type]
    stored = inspect(tmp_path / "c").tensors
    assert stored["model.layers.1.mlp.gate.e_score_correction_bias"][0] == "F32"
    assert stored["model.norm.weight"][0] == {"bfloat16": "BF16", "float16": "F16"}[dtype]
    loaded = load_network(tmp_path / "c").state_dict()
    for name, value in network.state_dict().items():
        assert ((loaded[name] - value).abs() <= value.abs() * most + 1e-7).all(), name


def test_fp8_stores_projections_in_blocks_and_the_rest_wide(tmp_path: Path, make_network: Make) -> None:
    network = make_network("v3-mtp")
    save_checkpoint(tmp_path / "c", network, dtype="fp8")
    tensors = safetensors.torch.load_file(tmp_path / "c" / "model.safetensors")
    fp8 = {name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn}
    assert "model.layers.1.mlp.experts.7.down_proj.weight" in fp8
    assert "model.layers.2.self_attn.kv_a_proj_with_mqa.weight" in fp8
    for wide in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"):
        assert tensors[wide].dtype == torch.bfloat16
    assert tensors["model.layers.2.eh_proj.weight"].dtype == torch.bfloat16
    assert {f"{name}_scale_inv" for name in fp8} == {name for name in tensors if name.endswith("_scale_inv")}
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    loaded = load_network(tmp_path / "c", mtp=True)
    for name, value in network.state_dict().items():
        error = (loaded.state_dict()[name] - value).abs().max()
        assert error <= value.abs().max() / 16, name


def test_what_is_fp8() -> None:
    yes = (
        "self_attn.q_a_proj",
        "self_attn.kv_a_proj_with_mqa",
        "mlp.experts.0.up_proj",
        "mlp.shared_experts.up_proj",
    )
    no = (
        "mlp.gate",
        "eh_proj",
        "input_layernorm",
        "self_attn.kv_a_layernorm",
        "embed_tokens",
        "shared_head.head",
    )
    assert all(is_fp8(f"model.layers.3.{name}.weight") for name in yes)
    assert not any(is_fp8(f"model.layers.3.{name}.weight") for name in no)
    assert not is_fp8("lm_head.weight") and not is_fp8("model.layers.3.self_attn.q_proj.bias")


def test_both_spellings_and_no_promise_that_is_not_kept(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(tmp_path / "c", make_network("v3-mtp"))
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == config["num_mtp_layers"] == 1
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"]
    save_checkpoint(tmp_path / "c", make_network("v3-mtp", mtp=False))
    assert json.loads((tmp_path / "c" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_tokenizer_files_go_in_and_the_template_stands_in_both_places(
    tmp_path: Path, make_network: Make
) -> None:
    def tokenizer_files(folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')

    save_checkpoint(
        tmp_path / "c", make_network("llama"), tokenizer_files=tokenizer_files, chat_template="日本 {{x}}"
    )
    assert (tmp_path / "c" / "chat_template.jinja").read_text(encoding="utf-8") == "日本 {{x}}"
    config = json.loads((tmp_path / "c" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config == {"bos_token": "<s>", "chat_template": "日本 {{x}}"}


def test_a_failure_leaves_the_old_checkpoint(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(tmp_path / "c", make_network("llama"), receipt={"n": 1})
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}

    def fails(folder: Path) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        save_checkpoint(tmp_path / "c", make_network("llama", seed=1), tokenizer_files=fails)
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"], "nothing is left beside it"


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes; writes then fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path, make_network: Make) -> None:
    """A write fails in the middle of the weights."""
    network = make_network("v3")
    save_checkpoint(tmp_path / "c", network)
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    for save in (
        lambda: save_checkpoint(tmp_path / "c", network),
        lambda: save_gguf(tmp_path / "c.gguf", Weights.of_network(network)),
    ):
        with small_files(100_000), pytest.raises(ShoalError, match="cannot write") as caught:
            save()
        assert "Free some space" in str(caught.value)
        assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path, make_network: Make) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ShoalError, match="holds other things than a checkpoint"):
        save_checkpoint(tmp_path, make_network("llama"))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ShoalError, match="is a file"):
        save_checkpoint(tmp_path / "thesis.txt", make_network("llama"))


def test_transformers_finds_the_same_numbers_in_our_fp8_files(tmp_path: Path, make_network: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM, FineGrainedFP8Config

        save_checkpoint(tmp_path / "c", make_network("v3"), dtype="fp8")
        wide = FineGrainedFP8Config(dequantize=True)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "c", quantization_config=wide).state_dict()
    ours = load_network(tmp_path / "c", dtype=torch.bfloat16).state_dict()
    for name, value in theirs.items():
        if "experts.gate_up_proj" in name:
            gate, up = (ours[name.replace("gate_up_proj", part)] for part in ("gate_proj", "up_proj"))
            assert torch.equal(value, torch.cat([gate, up], dim=1).to(value.dtype)), name
        else:
            assert torch.equal(value, ours[name].to(value.dtype)), name
