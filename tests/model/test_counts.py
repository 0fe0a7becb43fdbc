from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shoal.model import counts
from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM

V3 = ModelConfig.from_dict(
    dict(
        model_type="deepseek_v3", vocab_size=129280, hidden_size=7168, intermediate_size=18432,
        moe_intermediate_size=2048, num_hidden_layers=61, num_attention_heads=128, n_shared_experts=1,
        n_routed_experts=256, kv_lora_rank=512, q_lora_rank=1536, qk_rope_head_dim=64, v_head_dim=128,
        qk_nope_head_dim=128, n_group=8, topk_group=4, num_experts_per_tok=8, first_k_dense_replace=3,
        num_nextn_predict_layers=1,
    )
)  # fmt: skip
V2_LITE = ModelConfig.from_dict(
    dict(
        model_type="deepseek_v2", vocab_size=102400, hidden_size=2048, intermediate_size=10944,
        moe_intermediate_size=1408, num_hidden_layers=27, num_attention_heads=16, n_shared_experts=2,
        n_routed_experts=64, kv_lora_rank=512, qk_rope_head_dim=64, v_head_dim=128, qk_nope_head_dim=128,
        num_experts_per_tok=6, first_k_dense_replace=1,
    )
)  # fmt: skip
SMALL: dict[str, Any] = dict(
    vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4
)
MLA: dict[str, Any] = dict(
    SMALL, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=24, moe_intermediate_size=20,
    n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, first_k_dense_replace=1,
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "v3": dict(MLA, model_type="deepseek_v3", num_nextn_predict_layers=2),
    "v3-q-lora-bias": dict(MLA, model_type="deepseek_v3", q_lora_rank=20, attention_bias=True),
    "v3-dense": dict(MLA, model_type="deepseek_v3", n_routed_experts=None),
    "v2-no-shared": dict(MLA, model_type="deepseek_v2", n_shared_experts=None),
    "llama": dict(SMALL, model_type="llama", num_key_value_heads=2),
    "llama-bias-tied": dict(SMALL, model_type="llama", attention_bias=True, tie_word_embeddings=True),
    "qwen2": dict(SMALL, model_type="qwen2", num_key_value_heads=2),
    "qwen3": dict(SMALL, model_type="qwen3", num_key_value_heads=1, head_dim=24),
}


def test_deepseek_v3() -> None:
    """671B parameters, 37B active, DeepSeek's own 250 GFLOP per training token, 70,272 B of bf16 cache per token."""
    assert round(counts.parameters_total(V3) / 1e9) == 671
    assert round(counts.parameters_total(V3, mtp=True) / 1e9, 1) == 682.6  # the hub's 685B holds two copies
    assert round(counts.parameters_active(V3) / 1e9) == 37
    assert round(counts.flops_per_token(V3, 4096, training=True) / 1e9, 1) == 250.4
    assert round(counts.flops_per_token(V3, 4096, training=True, mtp=True) / 1e9, 1) == 260.6
    assert counts.kv_numbers_per_token(V3) == 576
    assert counts.kv_bytes_per_token(V3) == 70272


def test_deepseek_v2_lite() -> None:
    assert round(counts.parameters_total(V2_LITE) / 1e9, 1) == 15.7
    assert round(counts.parameters_active(V2_LITE) / 1e9, 1) == 2.5


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_equal_the_built_network(family: str) -> None:
    config = ModelConfig.from_dict(FAMILIES[family])
    for mtp in (False, True):
        network = CausalLM(config, mtp=mtp)
        assert counts.parameters_total(config, mtp=mtp) == sum(p.numel() for p in network.parameters())


def test_active_parameters_are_those_of_the_chosen_experts() -> None:
    config = ModelConfig.from_dict(FAMILIES["v3"])
    idle_experts = config.n_routed_experts - config.num_experts_per_tok
    idle = idle_experts * 3 * config.hidden_size * config.moe_intermediate_size * 2  # two MoE layers
    embedding = config.vocab_size * config.hidden_size
    expected = counts.parameters_total(config) - idle - embedding + config.hidden_size
    assert counts.parameters_active(config) == expected


def grouped_mm_flops(a: tuple[int, ...], b: tuple[int, ...], *rest: Any, **options: Any) -> int:
    """torch's counter lacks it: [R, D] x [E, D, F] forward, [D, R] x [R, F] for the weights' gradient."""
    return 2 * a[0] * a[1] * b[-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_c93_flops_within_two_percent_of_torchs_counter(family: str, training: bool) -> None:
    """C93 (pytorch/torchtitan#4300 and others): FLOPs counted all experts, or no expert at all.

    Attention is computed by plain products here, which know no causal half: the formula gets twice the context.
    """
    config = ModelConfig.from_dict(FAMILIES[family])
    network = CausalLM(config, mtp=True)
    rows, length = 2, 64
    input_ids = torch.randint(0, config.vocab_size, (rows * length,))
    grouped = {torch.ops.aten._grouped_mm: grouped_mm_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=grouped) as counter:
        context = RowsContext(rows, length)
        hidden = network(input_ids, context)
        outputs = [hidden]
        for k in range(network.mtp_modules):
            outputs.append(network.mtp_forward(k, outputs[-1], input_ids, context))
        total = sum(network.logits(output).sum() for output in outputs)
        if training:
            assert isinstance(total, torch.Tensor)
            total.backward()
    expected = counts.flops_per_token(config, 2 * length, training, mtp=True) * rows * length
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_decode_flops_grow_with_the_cache_of_the_absorbed_form() -> None:
    per_position = counts.decode_flops(V3, 1001) - counts.decode_flops(V3, 1000)
    assert per_position == 61 * 2 * 128 * (512 + 64 + 512)
    llama = ModelConfig.from_dict(FAMILIES["llama"])
    assert counts.decode_flops(llama, 1) - counts.decode_flops(llama, 0) == 3 * 2 * 4 * 2 * 16
    assert counts.decode_flops(llama, 0) == 2 * counts.matrices_active(llama)


def test_cache_of_grouped_queries() -> None:
    qwen3 = ModelConfig.from_dict(FAMILIES["qwen3"])
    assert counts.kv_bytes_per_token(qwen3, 4) == 3 * 2 * 1 * 24 * 4
