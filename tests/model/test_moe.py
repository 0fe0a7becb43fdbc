from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.moe import MixtureOfExperts, Router

SHAPE: dict[str, Any] = dict(
    model_type="deepseek_v3", vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
    moe_intermediate_size=16, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3,
    first_k_dense_replace=1,
)  # fmt: skip


def router(**change: Any) -> Router:
    torch.manual_seed(0)
    gate = Router(ModelConfig.from_dict(SHAPE | change))
    with torch.no_grad():
        gate.weight.normal_(0, 0.5)
        if gate.e_score_correction_bias is not None:
            gate.e_score_correction_bias.uniform_(-2, 0.5)
    return gate


def route_by_hand(x_D: Tensor, gate: Router, config: ModelConfig) -> dict[int, float]:
    """One token, in words: FACTS of DeepSeek-V3's released inference code, in Python numbers."""
    logits = [float(weight @ x_D) for weight in gate.weight.detach()]
    values = torch.tensor(logits)
    scores = (values.sigmoid() if config.scoring_func == "sigmoid" else values.softmax(0)).tolist()
    bias = [0.0] * len(scores)
    if gate.e_score_correction_bias is not None:
        bias = gate.e_score_correction_bias.tolist()
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    allowed = set(range(len(scores)))
    if config.topk_method != "greedy":
        size = len(scores) // config.n_group
        groups = [list(range(g * size, (g + 1) * size)) for g in range(config.n_group)]
        best = 2 if config.topk_method == "noaux_tc" else 1
        ranked = sorted(
            groups, key=lambda g: sum(sorted((choice[e] for e in g), reverse=True)[:best]), reverse=True
        )
        allowed = {e for group in ranked[: config.topk_group] for e in group}
    chosen = sorted(allowed, key=lambda e: choice[e], reverse=True)[: config.num_experts_per_tok]
    weights = {e: scores[e] for e in chosen}
    if config.norm_topk_prob:
        total = sum(weights.values())
        weights = {e: w / total for e, w in weights.items()}
    return {e: w * config.routed_scaling_factor for e, w in weights.items()}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(
    "method",
    [
        dict(scoring_func="sigmoid", topk_method="noaux_tc"),
        dict(scoring_func="sigmoid", topk_method="noaux_tc", n_group=4, topk_group=2),
        dict(scoring_func="sigmoid", topk_method="noaux_tc", n_group=3, topk_group=1),
        dict(scoring_func="softmax", topk_method="greedy"),
        dict(scoring_func="softmax", topk_method="group_limited_greedy", n_group=4, topk_group=2),
    ],
)
def test_router_by_hand(method: dict[str, Any], scale: float, norm: bool) -> None:
    change = method | {"routed_scaling_factor": scale, "norm_topk_prob": norm}
    config, gate = ModelConfig.from_dict(SHAPE | change), router(**change)
    x_TD = torch.randn(50, 32)
    ids, weights, scores = gate(x_TD)
    assert scores.dtype == weights.dtype == torch.float32
    for token in range(50):
        expected = route_by_hand(x_TD[token], gate, config)
        found = dict(zip(ids[token].tolist(), weights[token].tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-4)


def test_c07_the_bias_selects_and_does_not_weigh() -> None:
    """C07 (vllm-project/vllm#12002): weights were taken from score + bias; the output still looked fluent."""
    gate = router(norm_topk_prob=False, routed_scaling_factor=1.0)
    assert gate.e_score_correction_bias is not None
    x_TD = torch.randn(20, 32)
    gate.e_score_correction_bias.zero_()
    gate.e_score_correction_bias[5] = 100.0
    ids, weights, scores = gate(x_TD)
    assert (ids == 5).any(-1).all()
    torch.testing.assert_close(weights, scores.gather(-1, ids))
    assert weights.max() <= 1.0


def test_experts_outside_the_groups_lose_even_to_negative_choices() -> None:
    """Old remote code masked with 0, which wins once every biased score is negative."""
    gate = router(n_group=4, topk_group=1)
    assert gate.e_score_correction_bias is not None
    gate.e_score_correction_bias.fill_(-3.0)
    ids, _, _ = gate(torch.randn(30, 32))
    groups = ids // 3
    assert (groups == groups[:, :1]).all()


def test_the_bias_gets_no_gradient_and_the_gate_does() -> None:
    gate = router()
    _, weights, _ = gate(torch.randn(10, 32))
    (weights * torch.randn(10, 3)).sum().backward()
    assert gate.weight.grad is not None and gate.weight.grad.abs().sum() > 0
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    assert "e_score_correction_bias" in gate.state_dict()
    greedy = router(scoring_func="softmax", topk_method="greedy")
    assert "e_score_correction_bias" not in greedy.state_dict()


def test_router_sums_in_fp32_under_bf16() -> None:
    gate = router()
    x_TD = torch.randn(40, 32).bfloat16()
    gate.to(torch.bfloat16)
    ids, _, scores = gate(x_TD)
    exact = (x_TD.double() @ gate.weight.double().t()).sigmoid()
    assert (scores - exact).abs().max() < 1e-5
    assert ids.dtype == torch.int64


def test_shared_experts_are_added_for_every_token() -> None:
    config = ModelConfig.from_dict(SHAPE)
    torch.manual_seed(0)
    layer = MixtureOfExperts(config, 1)
    x_TD, context = torch.randn(12, 32), RowsContext(1, 12)
    assert layer.shared_experts is not None
    assert layer.shared_experts.up_proj.weight.shape == (2 * 16, 32)
    whole = layer(x_TD, context)
    with torch.no_grad():
        for stack in layer.experts.parameters():
            stack.zero_()
    torch.testing.assert_close(layer(x_TD, context), layer.shared_experts(x_TD, context))
    assert (whole - layer(x_TD, context)).abs().max() > 0


def test_given_experts_are_used_with_their_own_scores() -> None:
    """What a trainer replays: the sampler's choice, weighed by the scores of now, with their gradient."""
    gate = router()
    x_TD = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    chosen, weights, scores = gate(x_TD)
    again, same, _ = gate(x_TD, chosen)
    assert again is chosen and torch.equal(same, weights)
    other = (chosen + 1) % 12
    ids, moved, _ = gate(x_TD, other)
    raw = scores.gather(-1, other)
    torch.testing.assert_close(moved, raw / raw.sum(-1, keepdim=True) * gate.scaling_factor)
    assert torch.equal(ids, other) and moved.requires_grad

    class Replay(RowsContext):
        def replayed(self, layer: int) -> Tensor | None:
            assert layer == 1
            return other

    layer = MixtureOfExperts(ModelConfig.from_dict(SHAPE), 1)
    free, replay = (kind(1, 5, count_experts=True) for kind in (RowsContext, Replay))
    assert not torch.equal(layer(x_TD, free), layer(x_TD, replay))
    assert replay.expert_counts[1].sum() == 15 and not torch.equal(
        free.expert_counts[1], replay.expert_counts[1]
    )
