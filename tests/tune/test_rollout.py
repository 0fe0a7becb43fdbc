"""The sampler's log-probabilities are the trainer's; a group's prompt is computed once; nobody's answer depends on
who is sampled beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.engine.runner import Chunk, RunnerOutput
from shoal.engine.torch_runner import TorchRunner
from shoal.errors import ShoalError
from shoal.model.adapters import Adapter, adaptable, new_lora
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM
from shoal.ops.logprobs import linear_logprobs
from shoal.tune.grpo_batch import GroupBatch, GroupsContext, Learnt, LiveGroup, micro_batches, pack
from shoal.tune.rollout import Completion, Group, Sampler, sample

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]]
SEEDS = [(3, i) for i in range(len(PROMPTS))]
ENDS = range(300, 384)  # so that answers have different lengths


def sampler(
    network: CausalLM,
    *,
    block_size: int = 1,
    positions: int = 2048,
    adapter: Adapter | None = None,
    **options: Any,
) -> Sampler:
    runner = TorchRunner(network, cache_positions=positions, block_size=block_size)
    if adapter:
        runner.load_adapter("policy", {m: (f.a, f.b, f.scale) for m, f in adapter.factors.items()})
        options["adapter"] = "policy"
    given = {"num_generations": 4, "max_completion_length": 12, "temperature": 1.0, "end_ids": ENDS}
    return Sampler(runner, **given | options)


def live(groups: Sequence[Group]) -> list[LiveGroup]:
    return [
        LiveGroup(g.prompt_ids, [Learnt(c, float(i)) for i, c in enumerate(g.completions)], g.routing)
        for g in groups
    ]


def moe_layers(network: CausalLM) -> list[int]:
    return [i for i in range(network.config.num_hidden_layers) if network.config.is_moe_layer(i)]


def trainer_logprobs(network: CausalLM, batch: GroupBatch, temperature: float = 1.0) -> Tensor:
    context = GroupsContext(batch, moe_layers(network))
    hidden = network(batch.input_ids_BL.flatten(), context)[batch.source_C]
    return linear_logprobs(hidden, network.lm_head.weight, batch.target_C, temperature)[0]


def adapter_for(network: CausalLM) -> Adapter:
    adapter = new_lora(network, base="tiny", r=4, lora_alpha=8, target_modules=["all-linear"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters().items():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.2, generator=generator)
    return adapter


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("block_size", [1, 8])
def test_the_first_ratio_is_one_at_any_temperature(
    network: CausalLM, temperature: float, block_size: int
) -> None:
    """huggingface/trl#4159: sampled at 0.6, scored at 1, the first ratio was 2. Mean |difference| here: about 1e-7."""
    groups = sampler(network, block_size=block_size, temperature=temperature, routing=True).roll_out(
        PROMPTS, SEEDS
    )
    batch = pack(live(groups))
    ratio = (trainer_logprobs(network, batch, temperature) - batch.sampled_logprobs_C).exp()
    assert (ratio - 1).abs().max() < 1e-4
    assert (ratio - 1).abs().mean() < 1e-5
    lengths = {len(c.token_ids) for g in groups for c in g.completions}
    assert len(lengths) > 2 and batch.lengths == [len(c.token_ids) for g in groups for c in g.completions]


def test_an_unmerged_adapter_is_sampled_and_trained_alike(network: CausalLM) -> None:
    selection, adapter = adaptable(network), adapter_for(network)
    groups = sampler(network, adapter=adapter, routing=True).roll_out(PROMPTS, SEEDS)
    batch = pack(live(groups))
    with selection.use([(adapter, None)]):
        difference = trainer_logprobs(network, batch) - batch.sampled_logprobs_C
    assert difference.abs().max() < 1e-4
    assert (trainer_logprobs(network, batch) - batch.sampled_logprobs_C).abs().mean() > 0.05, (
        "without it they differ"
    )
    with torch.no_grad():  # the runner holds the same tensors: nothing is copied after an update
        next(iter(adapter.factors.values())).b.add_(0.5)
    again = sampler(network, adapter=adapter).roll_out(PROMPTS[:1], SEEDS)
    assert again[0].completions[0].logprobs != groups[0].completions[0].logprobs


def test_groups_in_one_pass_equal_rows_of_their_own(network: CausalLM) -> None:
    network.requires_grad_(True)
    parts = live(sampler(network).roll_out(PROMPTS, SEEDS))
    network.requires_grad_(True)
    batch = pack(parts)
    together = trainer_logprobs(network, batch)
    apart = []
    for group in parts:
        for learnt in group.learnt:
            ids, tokens = group.prompt_ids, learnt.completion.token_ids
            hidden = network(torch.tensor([*ids, *tokens[:-1]]), RowsContext(1, len(ids) + len(tokens) - 1))
            scores = network.logits(hidden[len(ids) - 1 :]).log_softmax(-1)
            apart.append(scores.gather(1, torch.tensor(tokens)[:, None])[:, 0])
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)
    weight = network.model.layers[0].self_attn.o_proj.weight
    gradients = [torch.autograd.grad(x.sum(), weight)[0] for x in (together, torch.cat(apart))]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_the_samplers_routing_is_replayed(make_network: Callable[[str], CausalLM]) -> None:
    """DeepSeek-V3.2 keeps the sampler's expert choices in the trainer; without, a moved bias changes the function."""
    network = make_network("mla")
    groups = sampler(network, routing=True).roll_out(PROMPTS, SEEDS)
    assert groups[0].routing is not None and groups[0].routing.shape == (8, 2, 3)
    completion = groups[0].completions[0]
    assert completion.routing is not None and completion.routing.shape == (
        len(completion.token_ids) - 1,
        2,
        3,
    )
    batch = pack(live(groups))
    for name, buffer in network.named_buffers():
        if name.endswith("e_score_correction_bias"):  # moves the choice, not the weights
            buffer.add_(torch.linspace(-1, 1, 8))
    assert (trainer_logprobs(network, batch) - batch.sampled_logprobs_C).abs().max() < 1e-4
    batch.routing_TMK = None
    assert (trainer_logprobs(network, batch) - batch.sampled_logprobs_C).abs().mean() > 0.05


def plain(groups: Sequence[Group]) -> list[list[list[int]]]:
    return [[c.token_ids for c in g.completions] for g in groups]


def test_answers_do_not_depend_on_their_neighbours(network: CausalLM) -> None:
    together = plain(sampler(network).roll_out(PROMPTS, SEEDS))
    alone = [plain(sampler(network).roll_out([p], [s]))[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert together == alone
    tight = sampler(network, block_size=8, positions=112)  # room for one group at a time
    assert len(list(tight._waves(PROMPTS))) > 1 and plain(tight.roll_out(PROMPTS, SEEDS)) == together
    assert all(len({tuple(c) for c in group}) > 1 for group in together), "distinct samples in a group"
    assert plain(sampler(network).roll_out(PROMPTS, [(4, i) for i in range(3)])) != together


class Counting(TorchRunner):
    fed = 0

    def run(self, chunks: Sequence[Chunk]) -> RunnerOutput:
        self.fed += sum(len(chunk.token_ids) for chunk in chunks)
        return super().run(chunks)


def test_a_prompt_is_computed_once_for_its_group(network: CausalLM) -> None:
    runner = Counting(network, cache_positions=1024, block_size=1)
    groups = Sampler(
        runner, num_generations=6, max_completion_length=5, temperature=1.0, end_ids=ENDS
    ).roll_out(PROMPTS, SEEDS)
    answers = sum(len(c.token_ids) - 1 for g in groups for c in g.completions)
    assert runner.fed == sum(map(len, PROMPTS)) + answers


def test_ends_and_cuts_are_told_apart(network: CausalLM) -> None:
    for group in sampler(network).roll_out(PROMPTS, SEEDS):
        for c in group.completions:
            assert len(c.logprobs) == len(c.token_ids) <= 12
            assert c.truncated == (c.token_ids[-1] not in ENDS) and (
                len(c.token_ids) == 12 or not c.truncated
            )
            assert not any(token in ENDS for token in c.token_ids[:-1])


def test_greedy_takes_the_likeliest(network: CausalLM) -> None:
    (group,) = sampler(network, temperature=0.0, num_generations=2).roll_out(PROMPTS[:1], SEEDS)
    first, second = group.completions
    assert first.token_ids == second.token_ids
    hidden = network(torch.tensor(PROMPTS[0]), RowsContext(1, 8))
    assert first.token_ids[0] == int(network.logits(hidden[-1:]).argmax())


@pytest.mark.parametrize("vocabulary", [1, 7, 64, 130, 1000])
def test_samples_follow_the_distribution(vocabulary: int) -> None:
    """A fine grid of uniform numbers gives every token its share, to a grid step or two."""
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    logits[0] = -torch.inf if vocabulary > 1 else 0.0
    grid = (torch.arange(20_000) + 0.5) / 20_000
    ids, logprobs = sample(logits.repeat(20_000, 1), 0.7, grid)
    expected = (logits / 0.7).log_softmax(-1)
    counts = torch.bincount(ids, minlength=vocabulary) / 20_000
    assert (counts - expected.exp()).abs().max() < 2e-4
    torch.testing.assert_close(logprobs, expected[ids], rtol=1e-5, atol=1e-5)
    for edge in (0.0, 1.0 - 1e-12):
        (last,), (logprob,) = sample(logits[None].clone(), 0.7, torch.tensor([edge], dtype=torch.float64))
        assert logprob > -torch.inf and int(last) < vocabulary


def test_what_does_not_fit_is_told(network: CausalLM) -> None:
    with pytest.raises(ShoalError, match="max_completion_length"):
        sampler(network, max_completion_length=250).roll_out(PROMPTS, SEEDS)
    with pytest.raises(ShoalError, match="a group needs"):
        sampler(network, positions=32).roll_out(PROMPTS, SEEDS)


def completion(tokens: int) -> Learnt:
    return Learnt(Completion(list(range(tokens)), [0.0] * tokens), 1.0)


def test_passes_keep_to_their_size() -> None:
    groups = [LiveGroup([1] * 10, [completion(n) for n in (5, 5, 5)]), LiveGroup([2] * 4, [completion(3)])]
    passes = micro_batches(groups, 20)
    assert [[len(g.learnt) for g in p] for p in passes] == [[2], [1, 1]]
    assert all(pack(p).tokens <= 20 for p in passes)
    assert [len(p) for p in micro_batches(groups, 1000)] == [2]
    assert [[len(g.learnt) for g in p] for p in micro_batches(groups, 1)] == [[1], [1], [1], [1]]


def test_an_answer_of_one_token_is_predicted_by_the_prompt(network: CausalLM) -> None:
    batch = pack([LiveGroup(PROMPTS[1], [completion(1)])])
    hidden = network(torch.tensor(PROMPTS[1]), RowsContext(1, 3))
    expected = network.logits(hidden[-1:]).log_softmax(-1)[0, 0]
    assert trainer_logprobs(network, batch).tolist() == pytest.approx([expected.item()], abs=1e-5)
    assert np.array_equal(batch.source_C.numpy(), [2])
