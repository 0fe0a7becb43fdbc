"""Tiny random networks of every family, for the checkpoint tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM

SMALL: dict[str, Any] = dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
)  # fmt: skip
MLA: dict[str, Any] = dict(
    SMALL, kv_lora_rank=32, q_lora_rank=48, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
    moe_intermediate_size=32, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3, first_k_dense_replace=1,
)  # fmt: skip
V3 = dict(
    MLA, model_type="deepseek_v3", n_group=4, topk_group=2, topk_method="noaux_tc", scoring_func="sigmoid",
    norm_topk_prob=True, routed_scaling_factor=2.5,
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32, beta_slow=1)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=256,
)
CONFIGS: dict[str, dict[str, Any]] = {
    "v3": V3,
    "v3-mtp": dict(V3, num_nextn_predict_layers=1),
    "v3-tied-no-shared": dict(V3, tie_word_embeddings=True, n_shared_experts=None, num_nextn_predict_layers=2),
    "v3-yarn": dict(V3, rope_scaling=dict(YARN, mscale=1.0, mscale_all_dim=1.0)),
    "v3-bias": dict(V3, attention_bias=True),
    "v3-dense": dict(V3, first_k_dense_replace=2),
    "v2": dict(MLA, model_type="deepseek_v2", q_lora_rank=None, routed_scaling_factor=16.0),
    "v2-groups": dict(
        MLA, model_type="deepseek_v2", n_group=4, topk_group=2, topk_method="group_limited_greedy",
        rope_scaling=dict(YARN, mscale=0.707, mscale_all_dim=0.707),
    ),
    "llama": dict(SMALL, model_type="llama", num_key_value_heads=2),
    "llama-3": dict(SMALL, model_type="llama", num_key_value_heads=1, rope_theta=50000.0, rope_scaling=LLAMA3),
    "llama-bias-tied": dict(
        SMALL, model_type="llama", attention_bias=True, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="linear", factor=2.0),
    ),
    "qwen2": dict(SMALL, model_type="qwen2", num_key_value_heads=2, rms_norm_eps=1e-5),
    "qwen2-yarn": dict(SMALL, model_type="qwen2", num_key_value_heads=2, rope_scaling=YARN),
    "qwen3": dict(SMALL, model_type="qwen3", num_key_value_heads=2, head_dim=32, tie_word_embeddings=True),
}  # fmt: skip
IDS = torch.tensor([3, 17, 95, 4, 4, 0, 61, 8, 2, 50, 33, 7] * 5)


@pytest.fixture(params=CONFIGS)
def case(request: pytest.FixtureRequest) -> str:
    """The name of every tiny configuration in turn."""
    return str(request.param)


@pytest.fixture
def make_network() -> Callable[..., CausalLM]:
    """make_network(case, mtp=None, seed=0): every number random, the selection bias and the norms too."""

    def make(case: str, *, mtp: bool | None = None, seed: int = 0) -> CausalLM:
        config = ModelConfig(**CONFIGS[case])
        network = CausalLM(config, mtp=config.num_nextn_predict_layers > 0 if mtp is None else mtp)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith("norm.weight"):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                else:
                    tensor.normal_(
                        0, tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.2, generator=generator
                    )
        return network.eval()

    return make


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    """logits(network, ids=...) -> [T, V] fp32, one row."""

    def run(network: CausalLM, ids: Tensor = IDS) -> Tensor:
        with torch.no_grad():
            return network.logits(network(ids, RowsContext(1, len(ids)))).float()

    return run


@pytest.fixture
def their_logits() -> Callable[..., Tensor]:
    """their_logits(folder_or_model) -> [T, V] by transformers' own class."""

    def run(model: Any, **arguments: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import AutoModelForCausalLM

            if not hasattr(model, "forward"):
                model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **arguments)
        with torch.no_grad():
            return torch.as_tensor(model.eval()(IDS[None]).logits[0])

    return run
