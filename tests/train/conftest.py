"""A real network, two layers small, that trains in a blink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shoal.model.config import ModelConfig
from shoal.model.init import init_weights
from shoal.model.transformer import CausalLM
from shoal.train.loop import Batch, Trainer
from shoal.train.objective import NextToken
from shoal.train.optim import Optimizer
from shoal.train.recipe import StageRecipe
from shoal.train.router import RouterBalance

TINY = {
    "model_type": "deepseek_v3",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "routed_scaling_factor": 1.414,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 64,
}


class RandomRows:
    """Rows of counting sequences; the position is the seed. Some labels are masked, as in fine-tuning."""

    def __init__(
        self, rows: int = 8, length: int = 16, micro_rows: int = 8, masked: float = 0.3, padded: int = 0
    ):
        self.rows, self.length, self.micro_rows, self.masked, self.step = rows, length, micro_rows, masked, 0
        self.padded = padded
        """The last positions of every row, without tokens."""

    def next_step(self, progress: float) -> list[Batch]:
        generator = torch.Generator().manual_seed(self.step)
        self.step += 1
        start = torch.randint(0, 64, (self.rows, 1), generator=generator)
        ids = (start + torch.arange(self.length + 1)) % 64
        labels = ids[:, 1:].clone()
        labels[torch.rand(labels.shape, generator=generator) < self.masked] = -100
        documents = (torch.arange(self.length) // 7).expand(self.rows, -1).clone()
        if self.padded:
            labels[:, -self.padded :] = -100
            documents[:, -self.padded :] = -1
        return [
            Batch(
                ids[i : i + self.micro_rows, :-1],
                labels[i : i + self.micro_rows],
                documents[i : i + self.micro_rows],
                tokens=(self.length - self.padded) * len(ids[i : i + self.micro_rows]),
                text_bytes=2 * self.length,
            )
            for i in range(0, self.rows, self.micro_rows)
        ]


@pytest.fixture
def make_network() -> Callable[[], CausalLM]:
    def make() -> CausalLM:
        network = CausalLM(ModelConfig.from_dict(TINY), mtp=True)
        init_weights(network, seed=1)
        return network

    return make


@pytest.fixture
def make_trainer(make_network: Callable[[], CausalLM]) -> Callable[..., Trainer]:
    def make(
        rows: RandomRows | None = None, *, objective: type = NextToken, device: str = "cpu", **recipe: Any
    ) -> Trainer:
        network = make_network().to(device)
        stage = StageRecipe(**{"tokens": 10_000, "warmup_steps": 2, "balance_weight": 0.01} | recipe)
        if objective is NextToken:
            names = {n: p for n, p in network.named_parameters() if ".layers.2." not in n}
        else:
            names = {n: p for n, p in network.named_parameters() if ".layers.2." in n}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in names)
        layers = {1} if objective is NextToken else {2}
        return Trainer(
            stage,
            objective(network, stage),
            rows or RandomRows(),
            Optimizer(names.items(), stage),
            router=RouterBalance(network, layers),
            device=torch.device(device),
        )

    return make


@pytest.fixture
def random_rows() -> type[RandomRows]:
    return RandomRows
