"""Real parts, tiny: a tokenizer, random networks of both attention kinds, one of them with experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CONFIGS, VOCAB
from tests.engine.conftest import make_network as engine_network

from shoal.data.tokenizer import Tokenizer, train_tokenizer
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.transformer import CausalLM

torch.set_num_threads(1)  # tiny matrices: two threads only wait for each other


def random_network(kind: str) -> CausalLM:
    """The engine tests' network, with logits that spread a little less."""
    network = engine_network(kind)
    with torch.no_grad():
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
