"""How fast training is here: real steps of the real loop on random tokens, beside what the matrix products allow.

The shape is a small DeepSeek-V3 (6.37M active of 14.4M parameters, 41.2 MFLOP per token), 16 rows of 256 tokens a step:
benchmarks/training.py times other programs on the same shape in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from shoal.model import counts
from shoal.model.config import ModelConfig
from shoal.model.init import init_weights
from shoal.model.transformer import CausalLM
from shoal.ops.malloc import keep_freed_memory
from shoal.ops.probe import probe
from shoal.train.loop import Batch, Trainer
from shoal.train.objective import NextToken
from shoal.train.optim import Optimizer
from shoal.train.recipe import StageRecipe
from shoal.train.router import RouterBalance

ROWS, LENGTH = 16, 256
SHAPE: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "first_k_dense_replace": 1,
    "intermediate_size": 640,
    "num_attention_heads": 8,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "routed_scaling_factor": 2.0,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 2048,
}


class RandomTokens:
    """An endless source of random rows."""

    def __init__(self, vocab_size: int, rows: int = ROWS, length: int = LENGTH):
        self.vocab_size, self.rows, self.length = vocab_size, rows, length
        self.generator = torch.Generator().manual_seed(1)

    def next_step(self, progress: float) -> list[Batch]:
        """One micro-batch of rows x length tokens."""
        ids = torch.randint(0, self.vocab_size, (self.rows, self.length + 1), generator=self.generator)
        return [Batch(ids[:, :-1], ids[:, 1:].clone(), tokens=self.rows * self.length)]


def trainer(
    matrices: str,
    dtype: str,
    *,
    shape: Mapping[str, Any] = SHAPE,
    rows: int = ROWS,
    length: int = LENGTH,
) -> Trainer:
    """A trainer of the benchmark's shape, or another; `matrices` is adamw or muon."""
    config = ModelConfig.from_dict(shape)
    network = CausalLM(config)
    init_weights(network, seed=1)
    recipe = StageRecipe(tokens=10**12, matrices=matrices, lr=1e-3)
    return Trainer(
        recipe,
        NextToken(network, recipe),
        RandomTokens(config.vocab_size, rows, length),
        Optimizer(network.named_parameters(), recipe),
        router=RouterBalance(network),
        autocast=torch.bfloat16 if dtype == "bfloat16" else None,
    )


def step_seconds(one: Trainer, seconds: float) -> float:
    """Median time of a step, after two to warm up."""
    one.train_step()
    one.train_step()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        one.train_step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(seconds: float = 20.0) -> list[dict[str, Any]]:
    """Tokens per second with AdamW and with Muon; `limit` is what the measured peak of matrix products would give."""
    keep_freed_memory()
    peak = probe()
    dtype = peak.best_dtype
    flops = counts.flops_per_token(ModelConfig.from_dict(SHAPE), LENGTH, training=True)
    limit = peak.gemm_flops_per_second[dtype] / flops
    rows = []
    for matrices in ("adamw", "muon"):
        speed = ROWS * LENGTH / step_seconds(trainer(matrices, dtype), seconds / 2)
        rows.append(
            {"what": f"training, {dtype}, {matrices}", "value": speed, "unit": "tokens/s", "limit": limit}
        )
    return rows
