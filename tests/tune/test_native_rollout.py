"""Rollouts by the native runner: near the trainer, weighed where they are not, and following every update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.tune.test_rollout import (
    ENDS,
    PROMPTS,
    SEEDS,
    adapter_for,
    live,
    plain,
    trainer_logprobs,
)
from torch import Tensor

from shoal.model.adapters import adaptable
from shoal.model.transformer import CausalLM
from shoal.ops import native

if not native.available:
    pytest.skip(native.missing_reason, allow_module_level=True)

from shoal.engine.native_runner import NativeRunner
from shoal.engine.runner import Chunk, RunnerOutput
from shoal.tune import grpo
from shoal.tune.grpo_batch import pack
from shoal.tune.grpo_recipe import GrpoStage
from shoal.tune.policy_runner import NetworkSource, pack_network
from shoal.tune.rollout import Group, Sampler


class Counting(NativeRunner):
    fed = 0

    def run(self, chunks: Sequence[Chunk]) -> RunnerOutput:
        self.fed += sum(len(chunk.token_ids) for chunk in chunks)
        return super().run(chunks)


def runner_of(network: CausalLM, quant: Any = "8") -> Counting:
    return Counting(pack_network(network, quant), cache_positions=2048, block_size=16, threads=1)


def sampler(runner: NativeRunner, **options: Any) -> Sampler:
    given = {"num_generations": 4, "max_completion_length": 12, "temperature": 1.0, "end_ids": ENDS}
    return Sampler(runner, **given | {"routing": True} | options)


def difference(network: CausalLM, groups: Sequence[Group]) -> Tensor:
    batch = pack(live(groups))
    return (trainer_logprobs(network, batch) - batch.sampled_logprobs_C).abs()


@pytest.mark.parametrize("adapted", [False, True])
def test_log_probabilities_are_near_the_trainer_s(network: CausalLM, adapted: bool) -> None:
    """Floats differ by the cache's fp16 and the order of sums, 8 bits by rounding of weights and activations. These
    networks' logits spread by 4 to 7, more than a trained one's: measured means 4e-4 to 2e-3, and 0.02 to 0.06."""
    selection, adapter = adaptable(network), adapter_for(network)
    means = []
    for quant in ("none", "8"):
        runner = runner_of(network, quant)
        if adapted:
            runner.load_adapter("policy", adapter.arrays())
        groups = sampler(runner, adapter="policy" if adapted else None).roll_out(PROMPTS, SEEDS)
        with selection.use([(adapter, None)] if adapted else []):
            means.append(difference(network, groups).mean().item())
    assert means[0] < 0.005 and means[0] < means[1] < 0.12, means


def test_a_prompt_is_computed_once_and_its_last_block_copied(network: CausalLM) -> None:
    runner = runner_of(network)
    prompts = [*PROMPTS, [*range(40, 73)], [*range(100, 132)]]  # inside a block, over three, on a border
    seeds = [(3, i) for i in range(len(prompts))]
    groups = sampler(runner).roll_out(prompts, seeds)
    assert difference(network, groups).mean() < 0.12, "every completion sees the whole prompt"
    answers = sum(len(c.token_ids) - 1 for g in groups for c in g.completions)
    assert runner.fed == sum(map(len, prompts)) + answers
    alone = [sampler(runner_of(network)).roll_out([p], [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert plain(alone) == plain(groups), "answers do not depend on what runs beside them"
    apart = [sampler(runner_of(network), num_generations=1).roll_out([p], [s])[0]
             for p, s in zip(prompts, seeds, strict=True)]  # fmt: skip
    firsts = [[c.logprobs for c in group.completions[:1]] for group in groups]
    assert [[c.logprobs for c in group.completions] for group in apart] == firsts


def test_it_follows_the_weights_and_the_adapter(network: CausalLM) -> None:
    runner, adapter = runner_of(network), adapter_for(network)
    runner.load_adapter("policy", adapter.arrays())
    first = sampler(runner, adapter="policy").roll_out(PROMPTS, SEEDS)
    with torch.no_grad():
        for factors in adapter.factors.values():
            factors.b.mul_(1.5)
    runner.load_adapter("policy", adapter.arrays())
    selection = adaptable(network)
    second = sampler(runner, adapter="policy").roll_out(PROMPTS, SEEDS)
    with selection.use([(adapter, None)]):
        assert difference(network, second).mean() < 0.12 < difference(network, first).mean()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.2)
    before = difference(network, sampler(runner).roll_out(PROMPTS, SEEDS)).mean()
    runner.refresh_weights(NetworkSource(network).tensors_of(runner.weights.plan.shapes))
    groups = sampler(runner).roll_out(PROMPTS, SEEDS)
    assert difference(network, groups).mean() < 0.15 < before
    assert plain(groups) == plain(sampler(runner_of(network)).roll_out(PROMPTS, SEEDS)), "as packed anew"


def test_the_native_runner_s_routing_is_replayed(make_network: Callable[[str], CausalLM]) -> None:
    """Rounding moves some tokens to other experts; the trainer goes where they went."""
    network = make_network("mla")
    groups = sampler(runner_of(network)).roll_out(PROMPTS, SEEDS)
    assert groups[0].routing is not None and groups[0].routing.shape == (8, 2, 3)
    batch = pack(live(groups))
    replayed = (trainer_logprobs(network, batch) - batch.sampled_logprobs_C).abs()
    batch.routing_TMK = None
    own = (trainer_logprobs(network, batch) - batch.sampled_logprobs_C).abs()
    assert replayed.max() < own.max()


def test_what_the_sampler_overdrew_counts_less(make_network: Callable[[str], CausalLM]) -> None:
    """The gradient is that of the trainer's own samples, each token weighed by min(pi / pi_sampler, cap)."""
    network = make_network("gqa").requires_grad_(True)
    weight = network.model.layers[0].self_attn.o_proj.weight

    def gradient(shift: float, cap: float) -> Tensor:
        objective = grpo.PolicyObjective(network, GrpoStage(importance_sampling_cap=cap))
        batch = pack(live(groups))
        batch.sampled_logprobs_C = trainer_logprobs(network, batch).detach() - shift
        return torch.autograd.grad(objective.terms(batch).sums["policy"], weight)[0]

    groups = sampler(runner_of(network)).roll_out(PROMPTS, SEEDS)
    plain_gradient = gradient(0.0, 2.0)
    assert plain_gradient.abs().max() > 1e-4
    for shift, cap, factor in ((-0.5, 2.0, 0.60653), (0.5, 2.0, 1.64872), (1.0, 2.0, 2.0), (1.0, 0.0, 1.0)):
        torch.testing.assert_close(gradient(shift, cap), plain_gradient * factor, rtol=1e-3, atol=1e-5)
