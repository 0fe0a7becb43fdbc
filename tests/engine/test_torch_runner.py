"""The cache against the plain network: whatever way tokens come in, the logits are the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from shoal.engine.runner import Chunk
from shoal.engine.torch_runner import TorchRunner, absorbed_is_cheaper
from shoal.errors import ShoalError
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM

BLOCK = 4
VOCAB = 384  # of the networks in conftest


def make_runner(network: CausalLM, positions: int = 512) -> TorchRunner:
    """With a cache full of nan: what was never written must never count."""
    runner = TorchRunner(network, cache_positions=positions, block_size=BLOCK)
    for layer in runner.cache.layers:
        for tensor in layer:
            tensor.fill_(torch.nan)
    return runner


@torch.no_grad()
def plain_logits(network: CausalLM, ids: list[int]) -> np.ndarray:
    return network.logits(network(torch.tensor(ids), RowsContext(1, len(ids)))).numpy()


def random_ids(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCAB) for _ in range(count)]


def scattered(count: int, seed: int, of: int = 128) -> list[int]:
    return random.Random(seed).sample(range(of), count)


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [16, 16, 8], [7, 1, 1, 20, 2, 9]])
def test_any_chunking_gives_the_logits_of_one_pass(
    network: CausalLM, sizes: list[int], scatter: bool
) -> None:
    runner, ids, start = make_runner(network), random_ids(40, 1), 0
    table = scattered(10, 2) if scatter else list(range(20, 30))
    expected = plain_logits(network, ids)
    for size in sizes:
        end = start + size
        blocks = -(-end // BLOCK)
        output = runner.run([Chunk(ids[start:end], start, table[:blocks], logits=size)])
        np.testing.assert_allclose(output.logits[0], expected[start:end], atol=2e-4)
        start = end


def test_a_mixed_batch_in_any_order(network: CausalLM) -> None:
    """Decodes of different lengths, a fresh prompt and the later part of one, in one step."""
    runner = make_runner(network)
    prompts = [random_ids(n, n) for n in (9, 30, 17, 21, 12)]
    tables = np.array_split(scattered(60, 5), 5)
    done = [8, 29, 0, 10, 0]
    for prompt, table, count in zip(prompts, tables, done, strict=True):
        if count:
            runner.run([Chunk(prompt[:count], 0, table[: -(-count // BLOCK)])])
    order = [2, 0, 3, 1, 4]
    chunks = [
        Chunk(prompts[i][done[i] :], done[i], tables[i][: -(-len(prompts[i]) // BLOCK)], 1) for i in order
    ]
    output = runner.run(chunks)
    for i, logits in zip(order, output.logits, strict=True):
        assert logits.shape == (1, VOCAB) and logits.dtype == np.float32
        np.testing.assert_allclose(logits[0], plain_logits(network, prompts[i])[-1], atol=2e-4)


@pytest.mark.parametrize("copied_rows", [0, 10**9])
def test_many_decodes_padded_or_where_they_lie(
    network: CausalLM, copied_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.engine.torch_runner._COPIED_ROWS", copied_rows)
    runner = make_runner(network)
    prompts, tables = [random_ids(n, n) for n in (3, 20, 11)], np.array_split(np.arange(30), 3)
    for prompt, table in zip(prompts, tables, strict=True):
        runner.run([Chunk(prompt[:-1], 0, table)])
    output = runner.run([Chunk(p[-1:], len(p) - 1, t, 1) for p, t in zip(prompts, tables, strict=True)])
    for prompt, logits in zip(prompts, output.logits, strict=True):
        np.testing.assert_allclose(logits[0], plain_logits(network, prompt)[-1], atol=2e-4)


def test_rolling_back_is_an_earlier_start(network: CausalLM) -> None:
    runner, table = make_runner(network), list(range(10))
    ids, other = random_ids(30, 1), random_ids(6, 2)
    runner.run([Chunk(ids, 0, table)])
    output = runner.run([Chunk(other, 20, table, logits=6)])
    np.testing.assert_allclose(output.logits[0], plain_logits(network, ids[:20] + other)[20:], atol=2e-4)


def test_the_latent_cache_holds_exactly_latent_and_rope_numbers(network: CausalLM) -> None:
    config, runner = network.config, make_runner(network)
    numbers = runner.cache.bytes_per_token // 4
    if config.uses_mla:
        assert numbers == config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim)
        assert {tuple(tensor.shape) for layer in runner.cache.layers for tensor in layer} == {(512, 24 + 8)}
    else:
        assert numbers == config.num_hidden_layers * 2 * config.num_key_value_heads * config.qk_head_dim


def test_both_forms_of_mla_are_used_and_agree(network: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict(nope=128, rope=64, value=128, latent=512)  # DeepSeek-V3
    assert absorbed_is_cheaper(1, 2000, **sizes) and absorbed_is_cheaper(4, 2000, **sizes)
    assert not absorbed_is_cheaper(256, 256, **sizes) and not absorbed_is_cheaper(512, 4096, **sizes)
    ids, results = random_ids(24, 3), []
    for absorbed in (True, False):
        monkeypatch.setattr(
            "shoal.engine.torch_runner.absorbed_is_cheaper", lambda *a, absorbed=absorbed, **k: absorbed
        )
        runner = make_runner(network)
        runner.run([Chunk(ids[:20], 0, list(range(6)))])
        results.append(runner.run([Chunk(ids[20:], 20, list(range(6)), logits=4)]).logits[0])
    np.testing.assert_allclose(results[0], results[1], atol=2e-4)


def test_hidden_states_and_routing_on_request(network: CausalLM) -> None:
    runner, ids = make_runner(network), random_ids(10, 4)
    chunks = [
        Chunk(ids, 0, [0, 1, 2], logits=2, hidden=True, routing=True),
        Chunk(ids[:1], 0, [5], logits=1),
    ]
    output = runner.run(chunks)
    assert output.hidden[0] is not None and output.hidden[0].shape == (2, network.config.hidden_size)
    assert output.hidden[1] is None
    logits = network.logits(torch.from_numpy(output.hidden[0])).detach().numpy()
    np.testing.assert_allclose(logits, output.logits[0], atol=1e-5)
    if network.config.uses_mla:  # the network with experts: two of its three layers
        assert output.routing[0] is not None and output.routing[0].shape == (10, 2, 3)
        assert output.routing[1] is None and output.routing[0].max() < 8
    else:
        assert output.routing == []


def test_no_logits_are_made_where_none_are_wanted(network: CausalLM) -> None:
    output = make_runner(network).run([Chunk([1, 2, 3], 0, [0]), Chunk([4], 0, [1], logits=1)])
    assert [len(logits) for logits in output.logits] == [0, 1]


def test_an_unknown_adapter_is_an_error(network: CausalLM) -> None:
    with pytest.raises(ShoalError, match="adapter 'x' is unknown"):
        make_runner(network).run([Chunk([1], 0, [0], adapter="x")])


def test_weights_are_refreshed_in_place(gqa_network: CausalLM) -> None:
    other = CausalLM(gqa_network.config).eval()
    runner, ids = make_runner(other), random_ids(8, 5)
    runner.refresh_weights({name: value.numpy() for name, value in gqa_network.state_dict().items()})
    output = runner.run([Chunk(ids, 0, [0, 1], logits=1)])
    np.testing.assert_allclose(output.logits[0][0], plain_logits(gqa_network, ids)[-1], atol=2e-4)
    with pytest.raises(ShoalError, match="no weight 'nonsense'"):
        runner.refresh_weights({"nonsense": np.zeros(3, dtype=np.float32)})


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_other_devices(gqa_network: CausalLM, device: str) -> None:
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        pytest.skip(f"no {device} device here")
    ids = random_ids(20, 6)
    network = CausalLM(gqa_network.config).eval()
    network.load_state_dict(gqa_network.state_dict())
    runner = TorchRunner(network.to(device), cache_positions=64, block_size=BLOCK)
    runner.run([Chunk(ids[:12], 0, [0, 1, 2])])
    output = runner.run([Chunk(ids[12:], 12, [0, 1, 2, 7, 9], logits=8)])
    np.testing.assert_allclose(output.logits[0], plain_logits(gqa_network, ids)[12:], atol=5e-3)
