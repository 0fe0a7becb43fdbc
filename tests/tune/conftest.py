"""Real parts, tiny: a tokenizer, random networks of both attention kinds, one of them with experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.data.tokenizer import Tokenizer, train_tokenizer
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM

torch.set_num_threads(1)  # tiny matrices: two threads only wait for each other
VOCAB = 384
SMALL: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gqa": dict(SMALL, model_type="llama", num_key_value_heads=2),
    "mla": dict(
        SMALL, model_type="deepseek_v3", kv_lora_rank=24, q_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=12, moe_intermediate_size=32, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
        first_k_dense_replace=1, n_group=4, topk_group=2,
    ),
}  # fmt: skip


def random_network(kind: str) -> CausalLM:
    """Random weights with logits that spread a little."""
    network = CausalLM(ModelConfig.from_dict(CONFIGS[kind])).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / math.sqrt(parameter.shape[-1]), generator=generator)
        network.model.embed_tokens.weight.normal_(0, 1, generator=generator)
        network.lm_head.weight.mul_(0.7)
    return network


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = ["the quick brown fox jumps over the lazy dog", "日本語の文 です", "what is 12 + 5 = 17 ?"] * 5
    return train_tokenizer(texts, vocab_size=VOCAB)


@pytest.fixture(params=CONFIGS)
def network(request: pytest.FixtureRequest) -> CausalLM:
    """A GQA network and an MLA network with experts, in turn."""
    return random_network(request.param)


@pytest.fixture
def make_network() -> Callable[[str], CausalLM]:
    return random_network


@pytest.fixture
def base(
    tmp_path: Path, make_network: Callable[[str], CausalLM], tokenizer: Tokenizer
) -> Callable[[str], Path]:
    """base(kind): a model folder with a receipt."""

    def make(kind: str) -> Path:
        folder = tmp_path / kind
        receipt = {
            "kind": "train",
            "started_at": "",
            "device": "d",
            "seconds": 1.0,
            "tokens": 5,
            "flops": 1.0,
        }
        save_checkpoint(folder, make_network(kind), tokenizer_files=tokenizer.save, receipt=receipt)
        return folder

    return make
