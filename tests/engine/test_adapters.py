"""Adapters in the engine: unmerged, several in one batch, each answer as its merged model would give it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import make_network

from shoal.data.tokenizer import Tokenizer, load_tokenizer
from shoal.engine.chat import stream_chat
from shoal.engine.engine import Engine
from shoal.engine.open import OpenedModel, on_base, open_model
from shoal.engine.runner import Chunk
from shoal.engine.torch_runner import TorchRunner
from shoal.engine.types import Delta, Finished, InvalidRequest, Request, SamplingParams
from shoal.errors import ShoalError
from shoal.model.adapters import Adapter, merge, new_lora, targets
from shoal.model.checkpoint import adapter_files
from shoal.model.checkpoint.save import Weights, save_checkpoint, save_folder
from shoal.model.checkpoint.source import open_source
from shoal.model.transformer import CausalLM

Greedy = Callable[..., tuple[list[int], list[float]]]
PROMPT = [5, 9, 33, 12, 70, 8, 8, 41, 3, 200, 17, 17, 90, 4, 61, 8, 33, 12, 7]  # two cache blocks and more


@pytest.fixture
def runner_kind(either_runner: str) -> str:
    return either_runner


def adapter_for(network: CausalLM, seed: int, *, shared: bool) -> Adapter:
    """`shared`: also of the matrices that all rows share (MLA's kv_b_proj)."""
    names = [n for n in targets(network) if shared or not n.endswith("kv_b_proj")]
    adapter = new_lora(network, base="b", r=4, lora_alpha=8, target_modules=names, seed=seed)
    for f in adapter.factors.values():
        f.b.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return adapter


def merged_greedy(network: CausalLM, adapter: Adapter, greedy: Greedy, count: int) -> list[int]:
    unmerge = merge(network, adapter)
    try:
        return greedy(network, PROMPT, count)[0]
    finally:
        unmerge()


@pytest.mark.parametrize("shared", [False, True])
def test_two_adapters_and_the_base_answer_in_the_same_batch(
    shared: bool, network: CausalLM, new_engine: Callable[..., Engine], greedy: Greedy
) -> None:
    one, two = (adapter_for(network, seed, shared=shared) for seed in (1, 2))
    expected = {
        None: greedy(network, PROMPT, 12)[0],
        "one": merged_greedy(network, one, greedy, 12),
        "two": merged_greedy(network, two, greedy, 12),
    }
    assert len({tuple(ids) for ids in expected.values()}) == 3
    engine = new_engine(network)
    engine.load_adapter("one", one.arrays())
    engine.load_adapter("two", {m: (f.a, f.b, f.scale) for m, f in two.factors.items()})
    params = SamplingParams(temperature=0, max_tokens=12)
    handles = {name: engine.submit(Request(PROMPT, params, adapter=name)) for name in expected}
    for name, handle in handles.items():
        pieces = [p for event in handle if isinstance(event, Delta) for p in event.pieces]
        assert [p.token_id for p in pieces] == expected[name], name


def test_one_step_with_mixed_rows_equals_steps_alone(gqa_network: CausalLM) -> None:
    runner = TorchRunner(gqa_network, cache_positions=512, block_size=8)
    runner.load_adapter("one", adapter_for(gqa_network, 1, shared=False).arrays())

    def chunk(adapter: str | None, block: int) -> Chunk:
        return Chunk(PROMPT[:8], 0, [block], logits=2, adapter=adapter)

    mixed = runner.run([chunk("one", 0), chunk(None, 1), chunk("one", 2)]).logits
    alone = [runner.run([chunk(name, 3)]).logits[0] for name in ("one", None)]
    for got, expected in zip(mixed, (alone[0], alone[1], alone[0]), strict=True):
        assert abs(got - expected).max() < 1e-4
    assert abs(alone[0] - alone[1]).max() > 0.1


def test_unknown_adapter_is_refused_and_a_new_one_of_the_name_takes_its_place(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], greedy: Greedy, answer: Callable[..., Any]
) -> None:
    engine = new_engine(gqa_network)
    with pytest.raises(InvalidRequest, match="'one' is not loaded; there are: none"):
        engine.submit(Request(PROMPT, adapter="one"))
    params = SamplingParams(temperature=0, max_tokens=6)
    for seed in (1, 2):  # the second time the cache holds what the first made of the prompt
        adapter = adapter_for(gqa_network, seed, shared=False)
        engine.load_adapter("one", adapter.arrays())
        pieces, _ = answer(engine, engine.submit(Request(PROMPT, params, adapter="one")))
        assert [p.token_id for p in pieces] == merged_greedy(gqa_network, adapter, greedy, 6)
    running = engine.submit(Request(PROMPT, SamplingParams(temperature=0, ignore_eos=True), adapter="one"))
    next(iter(running))
    engine.unload_adapter("one")
    last = [event for event in running if isinstance(event, Finished)][-1]
    assert last.reason == "error" and "taken away" in str(last.error)
    with pytest.raises(InvalidRequest):
        engine.submit(Request(PROMPT, adapter="one"))
    adapter = adapter_for(gqa_network, 3, shared=False)
    engine.load_adapter("one", adapter.arrays())
    pieces, end = answer(engine, engine.submit(Request(PROMPT, params, adapter="one")))
    assert [p.token_id for p in pieces] == merged_greedy(gqa_network, adapter, greedy, 6)
    assert end.usage.cached_tokens == 0


def test_factors_of_another_shape_are_refused(
    gqa_network: CausalLM, new_engine: Callable[..., Engine]
) -> None:
    factors = adapter_for(gqa_network, 1, shared=False).arrays()
    module = "model.layers.0.self_attn.q_proj"
    with pytest.raises(ShoalError, match=f"changes {module}"):
        new_engine(gqa_network).load_adapter("x", {module: factors["model.layers.0.mlp.up_proj"]})


# ---- folders


@pytest.fixture
def folders(tmp_path: Path, gqa_network: CausalLM, tokenizer: Tokenizer) -> Path:
    """tmp_path/base, a model; tmp_path/one and two, adapters on it."""
    save_checkpoint(tmp_path / "base", gqa_network, tokenizer_files=tokenizer.save)
    mark = adapter_files.fingerprint(open_source(tmp_path / "base"))
    for seed, name in enumerate(("one", "two"), 1):
        adapter = adapter_for(gqa_network, seed, shared=False)
        adapter.config = replace(adapter.config, base="../base", fingerprint=mark)
        adapter.save(tmp_path / name, gqa_network.config, bfloat16=False)
    return tmp_path


def say(opened: OpenedModel) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=8)
    with stream_chat(opened, [{"role": "user", "content": "hello"}], params=params) as stream:
        return [piece.token_id for event in stream for piece in event.pieces]


def test_adapter_folder_opens_on_its_base_and_shares_its_engine(folders: Path) -> None:
    with contextlib.closing(open_model(folders / "one", dtype="float32", max_num_seqs=2)) as one:
        assert one.name == "one" and one.path == folders / "one" and one.adapter
        two = on_base(one, folders / "two", name="two")
        assert two.engine is one.engine
        answers = [say(one), say(two), say(replace(one, adapter=None))]
    assert len({tuple(ids) for ids in answers}) == 3
    for name, expected in zip(("one", "two", "base"), answers, strict=True):
        merged = folders / f"merged-{name}"
        weights = Weights.of_source(open_source(folders / name), mtp=False)
        save_folder(merged, weights, dtype="float32", tokenizer_files=load_tokenizer(folders / "base").save)
        with contextlib.closing(open_model(merged, dtype="float32", max_num_seqs=1)) as model:
            assert say(model) == expected


def test_wrong_base_is_refused_before_it_is_loaded(folders: Path, tokenizer: Tokenizer) -> None:
    save_checkpoint(folders / "base", make_network("mla"), tokenizer_files=tokenizer.save)
    with pytest.raises(ShoalError, match="one does not fit this base"):
        open_model(folders / "one", dtype="float32")
