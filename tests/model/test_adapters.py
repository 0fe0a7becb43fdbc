"""Adapters: PEFT reads ours, we read PEFT's, a batch may mix them, merging loses nothing, wrong bases are named."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.errors import ShoalError
from shoal.model import adapters, registry
from shoal.model.adapters import Adapter, adaptable, load_adapter, merge, new_esft, new_lora
from shoal.model.checkpoint import adapter_files
from shoal.model.checkpoint.load import inspect, load_network, resolve
from shoal.model.checkpoint.save import Weights, save_checkpoint, save_folder
from shoal.model.checkpoint.source import open_source
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM

Make = Callable[..., CausalLM]
Logits = Callable[..., Tensor]
PEFT_MOE = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "experts.gate_proj",
            "experts.up_proj", "experts.down_proj"]  # fmt: skip
"""What PEFT 0.21 can adapt of a DeepSeek network: it takes `gate_proj` for the experts' and loses the dense ones."""


def trained(
    network: CausalLM, target_modules: Any = ("all-linear",), seed: int = 3, base: str = "b"
) -> Adapter:
    """A LoRA adapter whose B is not zero any more."""
    adapter = new_lora(network, base=base, r=4, lora_alpha=8, target_modules=target_modules, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for f in adapter.factors.values():
        f.b.data.normal_(0, 0.3, generator=generator)
    return adapter


def with_adapter(network: CausalLM, adapter: Adapter, logits: Logits) -> Tensor:
    with adaptable(network).use([(adapter, None)]):
        return logits(network)


@pytest.mark.parametrize("case", ["v3", "v3-tied-no-shared", "v2", "llama-bias-tied", "qwen2", "qwen3"])
def test_base_is_untouched_and_merging_is_the_same_and_reversible(
    case: str, make_network: Make, logits: Logits
) -> None:
    network = make_network(case)
    before, names = logits(network), list(network.state_dict())
    adapter = trained(network)
    adapted = with_adapter(network, adapter, logits)
    assert (adapted - before).abs().max() > 0.1
    assert torch.equal(logits(network), before)
    assert list(network.state_dict()) == names
    unmerge = merge(network, adapter)
    assert (logits(network) - adapted).abs().max() < 2e-4
    unmerge()
    assert torch.equal(logits(network), before)


def test_new_adapter_changes_nothing_and_only_factors_learn(make_network: Make, logits: Logits) -> None:
    network = make_network("v3").requires_grad_(False)
    before = logits(network)
    adapter = new_lora(network, base="b", r=4, lora_alpha=8, target_modules=["all-linear"])
    assert torch.equal(with_adapter(network, adapter, logits), before)
    ids = torch.arange(20)
    with adaptable(network).use([(adapter, None)]):
        network.logits(network(ids, RowsContext(1, 20))).square().mean().backward()
    assert all(p.grad is None for p in network.parameters())
    gradients = {name: p.grad for name, p in adapter.named_parameters().items()}
    assert all(g is not None for g in gradients.values())
    assert all(bool(g.any()) == name.endswith("lora_B") for name, g in gradients.items() if g is not None)


def test_factors_learn_what_autograd_of_the_merged_weights_says(make_network: Make) -> None:
    """dB = scale dW A^T and dA = scale B^T dW, experts included."""
    network = make_network("v3")
    adapter = trained(network)
    ids = torch.arange(20)
    with adaptable(network.requires_grad_(False)).use([(adapter, None)]):
        network.logits(network(ids, RowsContext(1, 20))).square().mean().backward()
    merge(network, adapter)
    network.requires_grad_(True)
    network.logits(network(ids, RowsContext(1, 20))).square().mean().backward()
    full = dict(network.named_parameters())
    for module, f in adapter.factors.items():
        weight = full.get(f"{module}.weight", full.get(module))
        assert (
            weight is not None and weight.grad is not None and f.a.grad is not None and f.b.grad is not None
        )
        torch.testing.assert_close(f.b.grad, f.scale * weight.grad @ f.a.mT, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(f.a.grad, f.scale * f.b.mT @ weight.grad, atol=2e-5, rtol=1e-3)


def test_rows_of_one_batch_go_through_different_adapters(make_network: Make) -> None:
    network = make_network("v3")
    plain = adapters.targets(network, ["q_a_proj", "q_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    one, two = (trained(network, plain, seed) for seed in (5, 6))
    ids, selection = torch.arange(12).repeat(3), adaptable(network)
    with torch.no_grad():
        with selection.use([(one, torch.arange(12)), (two, torch.arange(24, 36))]):
            mixed = network(ids, RowsContext(3, 12))
        for row, adapter in ((0, one), (1, None), (2, two)):
            with selection.use([(adapter, None)] if adapter else []):
                alone = network(ids[:12], RowsContext(1, 12))
            assert (mixed[row * 12 : row * 12 + 12] - alone).abs().max() < 1e-5, row


def test_files_round_trip(tmp_path: Path, make_network: Make, logits: Logits) -> None:
    network = make_network("v3")
    adapter = trained(network, base="smollm2")
    adapter.save(tmp_path / "a", network.config, bfloat16=False)
    again = load_adapter(tmp_path / "a", network.config)
    assert again.config.base == "smollm2"
    assert torch.equal(with_adapter(network, again, logits), with_adapter(network, adapter, logits))
    arrays = adapter_files.read_factors(tmp_path / "a", network.config)
    a, b, scale = arrays["model.layers.1.mlp.experts.up_proj"]
    assert a.shape == (8, 4, 64) and b.shape == (8, 32, 4) and scale == 2.0
    adapter.save(tmp_path / "half", network.config)
    half = (tmp_path / "half" / adapter_files.WEIGHTS).stat().st_size
    assert half < 0.75 * (tmp_path / "a" / adapter_files.WEIGHTS).stat().st_size
    rounded = with_adapter(network, load_adapter(tmp_path / "half", network.config), logits)
    assert 0 < (rounded - with_adapter(network, adapter, logits)).abs().max() < 0.1


def peft_logits(base: Path, adapter: Path, their_logits: Logits) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return their_logits(peft.PeftModel.from_pretrained(model, str(adapter)))


@pytest.mark.parametrize(("case", "modules"), [("llama", ["all-linear"]), ("qwen2", ["all-linear"]),
                                               ("qwen3", ["q_proj", "down_proj"]), ("v3", PEFT_MOE)])  # fmt: skip
def test_peft_loads_ours(
    case: str, modules: list[str], tmp_path: Path, make_network: Make, logits: Logits, their_logits: Logits
) -> None:
    network = make_network(case)
    save_checkpoint(tmp_path / "base", network)
    adapter = trained(network, modules)
    adapter.save(tmp_path / "a", network.config, bfloat16=False)
    theirs = peft_logits(tmp_path / "base", tmp_path / "a", their_logits)
    assert (theirs - with_adapter(network, adapter, logits)).abs().max() < 2e-4


@pytest.mark.parametrize("options", [
    {"target_modules": "all-linear", "r": 4, "lora_alpha": 6, "use_rslora": True},
    {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 6,
     "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 20}},
])  # fmt: skip
def test_we_load_pefts(
    options: dict[str, Any], tmp_path: Path, make_network: Make, logits: Logits, their_logits: Logits
) -> None:
    network = make_network("llama")
    theirs = peft_made(tmp_path, network, options, their_logits)
    ours = with_adapter(network, load_adapter(tmp_path / "theirs", network.config), logits)
    assert (ours - theirs).abs().max() < 2e-4
    assert (ours - logits(network)).abs().max() > 0.1


def test_we_load_pefts_experts(
    tmp_path: Path, make_network: Make, logits: Logits, their_logits: Logits
) -> None:
    network = make_network("v3")
    options = {"target_modules": ["o_proj"], "r": 4, "lora_alpha": 6,
               "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}  # fmt: skip
    theirs = peft_made(tmp_path, network, options, their_logits)
    ours = with_adapter(network, load_adapter(tmp_path / "theirs", network.config), logits)
    assert (ours - theirs).abs().max() < 2e-4


def peft_made(tmp_path: Path, network: CausalLM, options: dict[str, Any], their_logits: Logits) -> Tensor:
    """An adapter that PEFT made, at tmp_path/theirs, and the logits it gives there."""
    save_checkpoint(tmp_path / "base", network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.3)
        model.save_pretrained(str(tmp_path / "theirs"))
        return their_logits(model)


# ---- ESFT


def test_two_adapters_of_one_shape_are_averaged(tmp_path: Path, make_network: Make) -> None:
    network = make_network("v3")
    pair = [trained(network, seed=seed) for seed in (1, 2)]
    for name, adapter in zip("ab", pair, strict=True):
        adapter.save(tmp_path / name, network.config, bfloat16=False, files={"receipt.json": f'"{name}"'})
    result = CliRunner().invoke(
        app,
        [
            "tune",
            "average",
            *(str(tmp_path / x) for x in "ab"),
            "--out",
            str(tmp_path / "c"),
            "--weight",
            "0.25",
        ],
    )
    assert result.exit_code == 0, result.output
    mean = adapter_files.read_factors(tmp_path / "c", network.config)
    first, second = (adapter.arrays() for adapter in pair)
    assert mean.keys() == first.keys()
    for module, found in mean.items():
        for half in ("a", "b"):
            wanted = 0.75 * getattr(first[module], half) + 0.25 * getattr(second[module], half)
            np.testing.assert_allclose(getattr(found, half), wanted, rtol=1e-6, atol=1e-7)
        assert found.scale == second[module].scale
    assert (tmp_path / "c" / "receipt.json").read_text() == '"b"'
    again = CliRunner().invoke(
        app, ["tune", "average", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    )
    assert isinstance(again.exception, ShoalError) and "there already" in str(again.exception)
    trained(network, ["o_proj"]).save(tmp_path / "d", network.config)
    with pytest.raises(ShoalError, match="differ in"):
        adapter_files.average(tmp_path / "a", tmp_path / "d", tmp_path / "e", 0.5)
    assert not (tmp_path / "e").exists()


def test_esft_trains_the_chosen_experts_only(tmp_path: Path, make_network: Make, logits: Logits) -> None:
    network = make_network("v3").requires_grad_(False)
    before = logits(network)
    adapter = new_esft(network, {1: [0, 3, 7]}, base="b")
    assert (with_adapter(network, adapter, logits) - before).abs().max() < 1e-5
    ids = torch.arange(40)
    with adaptable(network).use([(adapter, None)]):
        network.logits(network(ids, RowsContext(1, 40))).square().mean().backward()
    gradients = {name: p.grad for name, p in adapter.named_parameters().items()}
    merged = make_network("v3")
    merged.logits(merged(ids, RowsContext(1, 40))).square().mean().backward()
    for name, gradient in gradients.items():
        full = merged.get_parameter(name.removesuffix(".own")).grad
        assert gradient is not None and full is not None
        torch.testing.assert_close(gradient, full[[0, 3, 7]], atol=1e-6, rtol=1e-4)
    for p in adapter.named_parameters().values():
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    adapted = with_adapter(network, adapter, logits)
    adapter.save(tmp_path / "e", network.config, bfloat16=False)
    assert torch.equal(with_adapter(network, load_adapter(tmp_path / "e", network.config), logits), adapted)
    merge(network, adapter)
    assert (logits(network) - adapted).abs().max() < 1e-4


def test_experts_are_chosen_by_the_share_of_the_task() -> None:
    shares = {1: torch.tensor([5.0, 1.0, 3.0, 1.0]), 2: torch.tensor([1.0, 1.0, 1.0, 1.0])}
    assert adapters.choose_experts(shares, 0.2) == {1: [0], 2: [0]}
    assert adapters.choose_experts(shares, 0.75) == {1: [0, 2], 2: [0, 1, 2]}


# ---- wrong bases and broken files


def test_adapter_on_the_wrong_base_is_refused_by_name(tmp_path: Path, make_network: Make) -> None:
    network, other = make_network("llama"), make_network("llama", seed=5)
    for name, net in (("base", network), ("other", other)):
        save_checkpoint(tmp_path / name, net)
    mark = adapter_files.fingerprint(open_source(tmp_path / "base"))
    adapter = new_lora(
        network, base="the-base", r=2, lora_alpha=2, target_modules=["q_proj"], fingerprint=mark
    )
    adapter.save(tmp_path / "a", network.config)
    adapter_files.check_base(tmp_path / "a", tmp_path / "base")
    save_checkpoint(tmp_path / "bf16", network, dtype="bfloat16")
    adapter_files.check_base(tmp_path / "a", tmp_path / "bf16")
    with pytest.raises(ShoalError, match=r"a does not fit this base.*other is another model") as caught:
        adapter_files.check_base(tmp_path / "a", tmp_path / "other")
    assert "the-base" in caught.value.hint
    with pytest.raises(ShoalError, match=r"no linear layer model.layers.0.self_attn.q_proj"):
        load_adapter(tmp_path / "a", make_network("v3").config)
    with pytest.raises(ShoalError, match=r"q_proj is 128 x 64 there, the adapter is made for 64 x 64"):
        load_adapter(tmp_path / "a", make_network("qwen3").config)


@pytest.mark.parametrize(("change", "message"), [
    ({"use_dora": True}, "uses use_dora"), ({"peft_type": "IA3"}, "kind 'ia3'"), ({"bias": "all"}, "trains biases"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"r": "many"}, "not an adapter's configuration"),
])  # fmt: skip
def test_options_that_would_change_the_arithmetic_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path, make_network: Make
) -> None:
    network = make_network("llama")
    trained(network).save(tmp_path / "a", network.config)
    path = tmp_path / "a" / adapter_files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ShoalError, match=message):
        load_adapter(tmp_path / "a", network.config)


def test_unknown_target_names_what_there_is(make_network: Make) -> None:
    with pytest.raises(ShoalError, match="no linear layer 'q_proj'") as caught:
        new_lora(make_network("v3"), base="b", r=2, lora_alpha=2, target_modules=["q_proj"])
    assert "q_a_proj" in caught.value.hint


# ---- a folder as a model


@pytest.mark.parametrize("kind", ["lora", "esft"])
def test_adapter_folder_reads_as_the_merged_model(
    kind: str, tmp_path: Path, make_network: Make, logits: Logits
) -> None:
    network = make_network("v3")
    save_checkpoint(tmp_path / "base", network)
    adapter = trained(network, base="../base")
    if kind == "esft":
        adapter = new_esft(network, {1: [2, 5]}, base=str(tmp_path / "base"))
        next(iter(adapter.experts.values())).weight.data.mul_(1.5)
    adapter.save(tmp_path / "a", network.config, bfloat16=False)
    assert resolve(tmp_path / "a") == tmp_path / "a"
    assert inspect(tmp_path / "a").problems == []
    adapted = with_adapter(network, adapter, logits)
    assert (logits(load_network(tmp_path / "a")) - adapted).abs().max() < 1e-4
    save_folder(
        tmp_path / "merged", Weights.of_source(open_source(tmp_path / "a"), mtp=False), dtype="float32"
    )
    assert (logits(load_network(tmp_path / "merged")) - adapted).abs().max() < 1e-4


def test_merging_into_a_coarse_base_keeps_a_tiny_update(
    tmp_path: Path, make_network: Make, logits: Logits
) -> None:
    """CASES C89: the sum is made in fp32 from the dequantised base that was trained on."""
    save_checkpoint(tmp_path / "base", make_network("v3"), dtype="fp8")
    network = load_network(tmp_path / "base")
    adapter = trained(network, base=str(tmp_path / "base"))
    for f in adapter.factors.values():
        f.b.data.mul_(1e-3)
    adapter.save(tmp_path / "a", network.config, bfloat16=False)
    adapted, plain = with_adapter(network, adapter, logits), logits(network)
    merged = logits(load_network(tmp_path / "a"))
    assert (merged - adapted).abs().max() < 2e-5 < (adapted - plain).abs().max() / 10


def test_base_that_is_gone_is_named(tmp_path: Path, make_network: Make) -> None:
    network = make_network("llama")
    trained(network, base="no-such-model").save(tmp_path / "a", network.config)
    with pytest.raises(ShoalError, match=r"a needs its base model no-such-model"):
        open_source(tmp_path / "a")
    trained(network, base="").save(tmp_path / "b", network.config)
    with pytest.raises(ShoalError, match=r"base model \(not named\)"):
        open_source(tmp_path / "b")


def test_installed_adapters_are_listed_on_their_base(tmp_path: Path, home: Path, make_network: Make) -> None:
    network = make_network("llama")
    save_checkpoint(tmp_path / "base", network)
    registry.import_model(tmp_path / "base", name="tiny")
    trained(network, base="tiny").save(tmp_path / "mine", network.config)
    assert registry.import_model(tmp_path / "mine").base == "tiny"
    assert [(e.name, e.base) for e in registry.list_models() if e.removable] == [
        ("tiny", ""),
        ("mine", "tiny"),
    ]
    assert load_network(resolve("mine")).config == network.config
