from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.init import init_weights
from shoal.model.transformer import CausalLM

MOE = ModelConfig.from_dict(
    dict(
        model_type="deepseek_v3", vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
        moe_intermediate_size=16, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1,
    )
)  # fmt: skip
DENSE = ModelConfig.from_dict(
    dict(
        model_type="qwen3", vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    )
)  # fmt: skip


def network_of(config: ModelConfig) -> CausalLM:
    network = CausalLM(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


@pytest.mark.parametrize("config", [MOE, DENSE], ids=["mla-moe", "gqa"])
@torch.no_grad()
def test_c69_packed_documents_do_not_see_each_other(config: ModelConfig) -> None:
    """C69 (huggingface/trl#1230 and others): packed rows saw each other; batch > 1 skipped the mask."""
    network = network_of(config)
    lengths = [[5, 11], [9, 7]]
    rows = torch.randint(0, 96, (2, 16))
    document_ids = torch.stack(
        [torch.repeat_interleave(torch.arange(2), torch.tensor(row)) for row in lengths]
    )
    packed = network(rows.flatten(), RowsContext(2, 16, document_ids=document_ids)).unflatten(0, (2, 16))
    mixed = network(rows.flatten(), RowsContext(2, 16)).unflatten(0, (2, 16))
    for row, (first, second) in enumerate(lengths):
        for part in (slice(0, first), slice(first, first + second)):
            alone = network(rows[row, part], RowsContext(1, part.stop - part.start))
            torch.testing.assert_close(packed[row, part], alone, rtol=1e-4, atol=1e-4)
        assert (mixed[row, first:] - packed[row, first:]).abs().max() > 1e-2  # the mask is what isolates


@torch.no_grad()
def test_document_ids_that_never_change_need_no_mask() -> None:
    network = network_of(DENSE)
    tokens = torch.randint(0, 96, (32,))
    context = RowsContext(2, 16, document_ids=torch.tensor([[3], [4]]).expand(2, 16))
    assert context._mask(torch.float32) is None
    assert torch.equal(network(tokens, context), network(tokens, RowsContext(2, 16)))


@torch.no_grad()
def test_rows_are_independent_and_causal() -> None:
    network = network_of(MOE)
    rows = torch.randint(0, 96, (3, 12))
    together = network(rows.flatten(), RowsContext(3, 12)).unflatten(0, (3, 12))
    for row in range(3):
        torch.testing.assert_close(
            together[row], network(rows[row], RowsContext(1, 12)), rtol=1e-4, atol=1e-4
        )
        half = network(rows[row, :6], RowsContext(1, 6))
        torch.testing.assert_close(together[row, :6], half, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_position_ids_only_shift() -> None:
    network = network_of(MOE)
    tokens = torch.randint(0, 96, (12,))
    shifted = RowsContext(1, 12, position_ids=torch.arange(7, 19)[None])
    torch.testing.assert_close(
        network(tokens, shifted), network(tokens, RowsContext(1, 12)), rtol=1e-4, atol=1e-4
    )
    scattered = RowsContext(1, 12, position_ids=torch.arange(12).flip(0)[None])
    assert (network(tokens, scattered) - network(tokens, RowsContext(1, 12))).abs().max() > 1e-2


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="document_ids has shape"):
        RowsContext(2, 8, document_ids=torch.zeros(8, 2))


@pytest.mark.parametrize("recompute", [False, True])
def test_c72_counts_every_choice_once(recompute: bool) -> None:
    """C72 (pytorch/torchtitan#1304): recomputation counted tokens twice."""
    network = network_of(MOE)
    tokens = torch.randint(0, 96, (40,))
    context = RowsContext(2, 20, count_experts=True, with_balance_loss=True)
    if recompute:
        rotation = network.rotary(context.position_ids_T)
        x = network.model.embed_tokens(tokens)
        for layer in network.model.layers:
            x = checkpoint(layer, x, rotation, context, use_reentrant=False)
    else:
        x = network(tokens, context)
    loss = context.balance_loss
    assert loss is not None
    (x.sum() + loss).backward()
    assert context.balance_loss is not None and torch.equal(context.balance_loss, loss)
    assert set(context.expert_counts) == {1, 2}  # layer 0 is dense
    assert all(counts.sum() == 40 * 2 and counts.shape == (8,) for counts in context.expert_counts.values())


def test_nothing_is_collected_unless_asked() -> None:
    context = RowsContext(2, 20)
    network_of(MOE)(torch.randint(0, 96, (40,)), context)
    assert not context.expert_counts and context.balance_loss is None


def balance_by_hand(scores_LE: Tensor, k: int) -> Tensor:
    """DeepSeek-V3, equations 17 to 20, one sequence, spelled out."""
    length, experts = scores_LE.shape
    total = torch.zeros(())
    for i in range(experts):
        hits = sum(int(i in scores_LE[t].topk(k).indices) for t in range(length))
        f_i = experts / (k * length) * hits
        p_i = sum(scores_LE[t, i] / scores_LE[t].sum() for t in range(length)) / length
        total = total + f_i * p_i
    return total


def test_balance_loss_by_hand() -> None:
    scores = torch.rand(2 * 6, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()
    biased_choice = torch.randint(0, 8, (12, 2))  # the loss looks at the scores, not at the biased choice
    context = RowsContext(2, 6, with_balance_loss=True)
    context.routed(1, biased_choice, scores)
    context.routed(2, biased_choice, scores)
    expected = (balance_by_hand(scores[:6], 2) + balance_by_hand(scores[6:], 2)) / 2
    assert context.balance_loss is not None
    torch.testing.assert_close(context.balance_loss, 2 * expected)
    context.balance_loss.backward()
    assert scores.grad is not None and scores.grad.abs().sum() > 0


def test_balance_loss_is_one_per_layer_when_even() -> None:
    even = torch.eye(8).repeat(2, 1) + 1e-6  # every expert first choice of one token in each row
    context = RowsContext(2, 8, with_balance_loss=True)
    context.routed(1, torch.zeros(16, 1, dtype=torch.long), even)
    assert context.balance_loss is not None
    assert abs(context.balance_loss.item() - 1) < 1e-3


def test_init_is_the_same_for_the_same_seed_and_starts_as_the_identity() -> None:
    first, second = CausalLM(MOE), CausalLM(MOE)
    init_weights(first, 7)
    init_weights(second, 7)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    tokens = torch.randint(0, 96, (16,))
    embedded = first.model.norm(first.model.embed_tokens(tokens))
    torch.testing.assert_close(first(tokens, RowsContext(1, 16)), embedded)
    init_weights(second, 8)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
