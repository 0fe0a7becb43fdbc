"""A frozen base in 8 or 4 bits (QLoRA): small, and the gradients are those of the network that it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tune.test_grpo import OWN
from tests.tune.test_rollout import adapter_for
from torch import Tensor

from shoal.errors import ShoalError
from shoal.model.adapters import Adapter, adaptable, freeze_base, held_bytes, twin
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM
from shoal.ops.frozen import GROUP, NF4, Bits, Frozen, freeze
from shoal.tune.recipe import load_tune_recipe
from shoal.tune.run import tune

BITS: list[Any] = [8, 4]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_come_back_as_near_as_the_codes_allow(bits: Bits, dtype: torch.dtype) -> None:
    weight = (torch.randn(5, 37, generator=torch.Generator().manual_seed(1)) * 0.02).to(
        dtype
    )  # not whole groups
    weight[0, :3] = torch.tensor([0.0, 1e-20, -3.0])
    frozen = freeze(weight, bits)
    dense = frozen.dense()
    assert dense.shape == weight.shape and dense.dtype == dtype
    flat = torch.nn.functional.pad(weight.float().flatten(), (0, -weight.numel() % GROUP)).view(-1, GROUP)
    largest = flat.abs().amax(1, keepdim=True)
    gap = 2 / 254 if bits == 8 else max(b - a for a, b in pairwise(NF4))
    room = largest * (gap / 2 * 1.01 + (0.01 if dtype == torch.bfloat16 else 0.0005))
    error = (dense.float() - weight.float()).abs().flatten()
    assert (error <= room.expand(-1, GROUP).flatten()[: error.numel()]).all()
    if bits == 8 and dtype == torch.float32:
        assert torch.equal(freeze(dense, 8).dense(), dense), "what fits the codes stays as it is"
    assert frozen.nbytes == -(-weight.numel() // GROUP) * (GROUP * bits // 8 + 2)
    zero = freeze(torch.zeros(70), bits).dense()
    assert torch.equal(zero, torch.zeros(70))


def gradients(network: CausalLM, adapter: Adapter) -> tuple[Tensor, list[Tensor]]:
    """(logits, gradients of the factors) of one pass over two rows."""
    ids = torch.arange(3, 43)
    with adaptable(network).use([(adapter, None)]):
        logits = network.logits(network(ids, RowsContext(2, 20)))
    loss = logits.log_softmax(-1)[torch.arange(39), ids[1:]].sum()
    return logits.detach(), list(torch.autograd.grad(loss, list(adapter.named_parameters().values())))


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_dense_network(
    network: CausalLM, bits: Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.requires_grad_(False)
    adapter = adapter_for(network)
    dense = twin(network)
    before, exact = held_bytes(network), gradients(network, adapter)[0]
    freeze_base(network, bits)
    small = {name: module for name, module in network.named_modules() if hasattr(module, "frozen")}
    state, numbers = {}, 0
    for name, module in small.items():
        parts = module.frozen if isinstance(module.frozen, dict) else {"weight": module.frozen}
        state |= {f"{name}.{part}": frozen.dense() for part, frozen in parts.items()}
        numbers += sum(frozen.codes.shape[0] * GROUP for frozen in parts.values())
    assert numbers > 0.6 * sum(p.numel() for n, p in dense.named_parameters() if ".layers." in n)
    dense.load_state_dict(dense.state_dict() | state, assign=True)
    dense.requires_grad_(False)
    made: list[int] = []
    multiply = Frozen.dense
    monkeypatch.setattr(Frozen, "dense", lambda self: (made.append(1), multiply(self))[1])
    logits, found = gradients(network, adapter)
    products = len(state)
    assert products < len(made) <= 2 * products, (
        "made again for the backward pass, once, and not kept until then"
    )
    wanted_logits, wanted = gradients(dense, adapter)
    torch.testing.assert_close(logits, wanted_logits)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert (logits - exact).abs().max() > 1e-3, "it is not the network that it was"
    assert not any(name in network.state_dict() for name in state)
    # fp32 before: 4 bytes a number; now one or a half, and two for the scale of 64
    assert before - held_bytes(network) == numbers * 4 - numbers * bits // 8 - numbers // GROUP * 2
    ids = torch.arange(3, 23)
    with torch.no_grad():
        both = [n.logits(n(ids, RowsContext(1, 20))) for n in (network, twin(network))]
    assert torch.equal(*both)


@pytest.mark.parametrize("kind", ["none", "esft"])
def test_weights_that_move_are_not_rounded(tmp_path: Path, kind: str) -> None:
    (tmp_path / "r.toml").write_text('[sft]\nsource = "x.jsonl"\n')
    with pytest.raises(ShoalError, match=f"base_quant goes with kind lora: {kind} trains weights"):
        load_tune_recipe(tmp_path / "r.toml", "sft", ["--adapter.kind", kind, "--adapter.base_quant", '"4"'])


def test_a_run_in_four_bits_learns_and_its_rollouts_stand_on_the_same_base(
    tmp_path: Path, base: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "r.toml").write_text(
        f'[run]\ndtype = "float32"\nthreads = 1\nlog_steps = 1\n[model]\nbase = "{base("mla")}"\n'
        '[adapter]\nr = 4\nbase_quant = "4"\n[grpo]\nsteps = 2\neval_examples = 0\nprompts_per_step = 2\n'
        "max_prompt_length = 200\nmax_completion_length = 8\nnum_generations = 4\n"
        '[grpo.rewards]\n"own.py:letters" = 1.0\n'
    )
    outcome = tune(load_tune_recipe(tmp_path / "r.toml", "grpo"), "grpo", tmp_path / "run", shown=True)
    assert outcome.finished and (outcome.checkpoint / "adapter_model.safetensors").is_file()
    assert "the frozen base is kept in 4 bits" in capsys.readouterr().err
    lines = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    differences = [line["logprob_difference"] for line in lines if "logprob_difference" in line]
    assert differences and max(differences) < 0.1, "of the unrounded base it would be 0.3 and more"
