"""Loading: exact against transformers, whole or an error that lists what is wrong; no pickle is ever opened."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.model.checkpoint.load import inspect, load_network, read_config, read_side_files, resolve
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM
from shoal.ops.fp8 import quantize_blocks

Make = Callable[..., CausalLM]
Logits = Callable[..., Tensor]


def theirs_like(config: ModelConfig, seed: int = 0) -> Any:
    """Transformers' own class for a configuration, all numbers random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoConfig, AutoModelForCausalLM

        values = {
            key: value for key, value in config.to_dict().items() if key not in ("rope_scaling", "rope_theta")
        }
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5)
            elif "inv_freq" not in name:
                tensor.normal_(0, tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.2)
    return model


def save_theirs(model: Any, folder: Path, **arguments: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **arguments)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a single-file checkpoint."""
    tensors = {k: v.clone() for k, v in safetensors.torch.load_file(folder / "model.safetensors").items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "v3",
        "v3-yarn",
        "v2",
        "v2-groups",
        "llama",
        "llama-3",
        "llama-bias-tied",
        "qwen2",
        "qwen2-yarn",
        "qwen3",
    ],
)
def test_what_transformers_saves_gives_its_logits(
    name: str, tmp_path: Path, make_network: Make, logits: Logits, their_logits: Logits
) -> None:
    theirs = theirs_like(make_network(name, mtp=False).config)
    save_theirs(theirs, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ours = load_network(tmp_path)
    assert (logits(ours) - their_logits(theirs)).abs().max() <= 1e-4
    info = inspect(tmp_path)
    assert not info.problems and not info.extra


def test_loads_in_another_dtype_but_keeps_the_selection_bias_in_fp32(
    tmp_path: Path, make_network: Make
) -> None:
    save_checkpoint(tmp_path / "c", make_network("v3"))
    network = load_network(tmp_path / "c", dtype=torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in network.buffers()} == {torch.float32}


def test_progress_counts_the_bytes_of_the_file(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(tmp_path / "c", make_network("v3"))
    seen: list[tuple[int, int]] = []
    load_network(tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    size = inspect(tmp_path / "c").size_bytes
    assert seen[-1] == (size, size) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_tied_head_stays_tied_for_training(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(tmp_path / "c", make_network("qwen3"))
    network = load_network(tmp_path / "c")
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_missing_tensors_are_listed_with_a_hint(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(tmp_path / "c", make_network("v3"))

    def lose(tensors: dict[str, Tensor]) -> None:
        del tensors["lm_head.weight"], tensors["model.layers.1.mlp.experts.3.up_proj.weight"]

    edit(tmp_path / "c", lose)
    with pytest.raises(ShoalError, match="2 tensors are missing") as caught:
        load_network(tmp_path / "c")
    assert "lm_head.weight, model.layers.1.mlp.experts.3.up_proj.weight" in str(caught.value)
    assert "set tie_word_embeddings to true" in str(caught.value)


def test_extra_tensors_are_listed_and_not_fatal(tmp_path: Path, make_network: Make, logits: Logits) -> None:
    network = make_network("v3")
    save_checkpoint(tmp_path / "c", network)
    edit(tmp_path / "c", lambda tensors: tensors.update({"vision.patch": torch.ones(3)}))
    assert inspect(tmp_path / "c").extra == ["vision.patch"]
    assert torch.equal(logits(load_network(tmp_path / "c")), logits(network))


def test_shapes_are_checked_against_the_config_before_allocating(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(tmp_path / "c", make_network("v3"))
    values = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps(values | {"vocab_size": 10**12}))
    with pytest.raises(ShoalError, match=r"model\.embed_tokens\.weight has shape \(96, 64\)"):
        load_network(tmp_path / "c")  # 256 TB if it were tried


def test_mtp_layers_load_when_asked_for(tmp_path: Path, make_network: Make) -> None:
    network = make_network("v3-mtp")
    save_checkpoint(tmp_path / "c", network)
    assert not inspect(tmp_path / "c").extra
    loaded = load_network(tmp_path / "c", mtp=True)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    assert "model.layers.2.eh_proj.weight" not in load_network(tmp_path / "c").state_dict()


def test_asking_for_mtp_layers_that_are_not_there(tmp_path: Path, make_network: Make) -> None:
    theirs = theirs_like(make_network("v3").config)
    theirs.config.num_nextn_predict_layers = 1
    save_theirs(theirs, tmp_path)
    load_network(tmp_path)
    with pytest.raises(ShoalError, match="load the model without them"):
        load_network(tmp_path, mtp=True)


# ---- FP8


def fp8_checkpoint(folder: Path, network: CausalLM, **quantization: Any) -> Tensor:
    """One 576 x 200 projection in FP8 by hand, the rest fp32; returns the original matrix."""
    save_checkpoint(folder, network)
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    original: list[Tensor] = []

    def quantise(tensors: dict[str, Tensor]) -> None:
        original.append(tensors[name])
        tensors[name], tensors[f"{name}_scale_inv"] = quantize_blocks(tensors[name], power_of_two=True)

    edit(folder, quantise)
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    } | quantization
    (folder / "config.json").write_text(json.dumps(values))
    return original[0]


@pytest.fixture
def ragged() -> CausalLM:
    """kv_a_proj is 576 x 200: 4.5 x 1.56 blocks, as DeepSeek-V3's is 576 rows."""
    config = ModelConfig(
        model_type="deepseek_v2", vocab_size=32, hidden_size=200, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=2, kv_lora_rank=512, qk_nope_head_dim=16, qk_rope_head_dim=64, v_head_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    return CausalLM(config)


def test_fp8_with_ragged_edges_loads_scaled(tmp_path: Path, ragged: CausalLM) -> None:
    original = fp8_checkpoint(tmp_path / "c", ragged, scale_fmt="ue8m0")
    info = inspect(tmp_path / "c")
    assert info.tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"][1] == (5, 2)
    assert not info.problems and not info.extra
    loaded = load_network(tmp_path / "c").state_dict()["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]
    error = (loaded - original).abs()
    normal = original.abs() > original.abs().max() * 2**-13  # below, e4m3 has no more digits
    assert (error[normal] <= original.abs()[normal] / 16).all()
    assert error.max() <= original.abs().max() / 16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t, n: t.update({f"{n}_scale_inv": t[f"{n}_scale_inv"][:4].clone()}),
            r"\(4, 2\).*\(576, 200\).*\(5, 2\)",
        ),
        (lambda t, n: t.pop(f"{n}_scale_inv"), "is FP8 but has no"),
    ],
)
def test_fp8_scales_that_do_not_fit(
    tmp_path: Path, ragged: CausalLM, change: Callable[..., None], says: str
) -> None:
    fp8_checkpoint(tmp_path / "c", ragged)
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    edit(tmp_path / "c", lambda tensors: change(tensors, name))
    with pytest.raises(ShoalError, match=says):
        load_network(tmp_path / "c")


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "gptq"}, {"fmt": "e5m2"}, {"weight_block_size": [0, 128]}]
)
def test_other_quantisations_are_refused(
    tmp_path: Path, ragged: CausalLM, quantization: dict[str, Any]
) -> None:
    fp8_checkpoint(tmp_path / "c", ragged, **quantization)
    with pytest.raises(ShoalError, match=r"is not read|is not a pair"):
        load_network(tmp_path / "c")


# ---- what is no model


class Trap:
    """A pickle that would make a file if it were loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["pickle", "zip"])
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.pkl", "model.safetensors", "model.gguf"]
)
def test_no_pickle_is_opened_whatever_its_name(
    tmp_path: Path, make_network: Make, name: str, kind: str
) -> None:
    folder, marker = tmp_path / "c", tmp_path / "marker"
    save_checkpoint(folder, make_network("llama"))
    (folder / "model.safetensors").unlink()
    data = pickle.dumps(Trap(marker), protocol=2 if kind == "zip" else 4)
    if kind == "zip":
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    else:
        (folder / name).write_bytes(data)
    for path in (folder, folder / name):
        with pytest.raises(ShoalError, match=r"pickle|no weights|no model|neither") as caught:
            load_network(resolve(path))
        assert caught.value.hint
    if name.endswith((".bin", ".pt", ".pkl")):
        assert "save_pretrained" in str(caught.value), "the way out is named"
    assert not marker.exists()


def test_the_message_for_an_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(ShoalError, match="no model 'nowhere'") as caught:
        resolve("nowhere")
    assert "Installed:" in caught.value.hint


def test_an_empty_folder_and_a_stray_file(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="no weights in"):
        resolve(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(ShoalError, match=r"no config\.json in"):
        resolve(tmp_path)
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ShoalError, match="is no model"):
        resolve(tmp_path / "readme.txt")


def test_header_reading_needs_no_torch(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(tmp_path / "c", make_network("v3"))
    code = (
        "import sys; from shoal.model.checkpoint.load import inspect, read_config, read_side_files, resolve\n"
        f"path = resolve({str(tmp_path / 'c')!r}); inspect(path); read_config(path); read_side_files(path)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_memory_stays_near_one_copy(tmp_path: Path) -> None:
    """120 MB of weights: well under two copies above the start."""
    config = ModelConfig(
        model_type="llama", vocab_size=8192, hidden_size=1024, intermediate_size=2048, num_hidden_layers=1,
        num_attention_heads=16,
    )  # fmt: skip
    network = CausalLM(config)
    save_checkpoint(tmp_path / "c", network)
    size = (tmp_path / "c" / "model.safetensors").stat().st_size
    assert size > 100e6
    code = (
        "import resource, torch, sys; from shoal.model.checkpoint.load import load_network\n"
        "from shoal.model.transformer import CausalLM\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        f"before = peak(); load_network({str(tmp_path / 'c')!r}); print(peak() - before)"
    )
    grown = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True).stdout
    )
    assert grown < 1.4 * size


# ---- side files


def test_side_files(tmp_path: Path, make_network: Make) -> None:
    save_checkpoint(
        tmp_path / "c",
        make_network("llama"),
        generation_config={"temperature": 0.6},
        chat_template="{{ x }}",
        receipt={"kind": "train"},
    )
    side = read_side_files(tmp_path / "c")
    assert (
        side.chat_template == "{{ x }}" and side.receipt == {"kind": "train"} and side.gguf_metadata is None
    )
    assert side.generation_config == {"bos_token_id": 0, "eos_token_id": 1, "temperature": 0.6}
    (tmp_path / "c" / "chat_template.jinja").unlink()
    assert read_side_files(tmp_path / "c").chat_template == "{{ x }}", "from tokenizer_config.json"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "c" / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_side_files(tmp_path / "c").chat_template == "d"
    (tmp_path / "c" / "generation_config.json").write_text("{")
    with pytest.raises(ShoalError, match=r"generation_config\.json is not JSON"):
        read_side_files(tmp_path / "c")


def test_config_of_a_folder(tmp_path: Path, make_network: Make) -> None:
    network = make_network("v3-mtp")
    save_checkpoint(tmp_path / "c", network)
    assert read_config(tmp_path / "c") == network.config
