"""The native runner against a plain numpy pass over the same packed weights, with the same rounding of activations."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.engine.runner import Chunk, DraftChunk
from shoal.engine.torch_runner import TorchRunner
from shoal.engine.torch_runner import cache_token_bytes as torch_cache_token_bytes
from shoal.errors import ShoalError
from shoal.model.checkpoint.save import Weights, save_checkpoint, save_gguf
from shoal.model.checkpoint.source import open_source
from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.frequencies import inverse_frequencies, softmax_scale
from shoal.model.transformer import CausalLM
from shoal.ops import native

if not native.available:
    pytest.skip(native.missing_reason, allow_module_level=True)

from shoal.engine import native_weights
from shoal.engine.native_runner import NativeRunner, cache_token_bytes
from shoal.engine.native_weights import NativeWeights, load
from shoal.ops.native import core

Array = np.ndarray[Any, Any]
VOCAB = 203
BLOCK = 16
BASE: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=72, intermediate_size=104, num_hidden_layers=2, num_attention_heads=6,
    max_position_embeddings=512, rms_norm_eps=1e-5,
)  # fmt: skip
YARN = dict(type="yarn", factor=4, beta_fast=32, beta_slow=1, mscale=0.7, mscale_all_dim=0.7,
            original_max_position_embeddings=64)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)  # fmt: skip
MOE = dict(moe_intermediate_size=40, n_routed_experts=8, num_experts_per_tok=3, first_k_dense_replace=1)
MLA = dict(kv_lora_rank=24, qk_nope_head_dim=20, qk_rope_head_dim=8, v_head_dim=12)
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": dict(BASE, model_type="llama", num_key_value_heads=2, head_dim=12, rope_scaling=LLAMA3),
    "llama-tied": dict(BASE, model_type="llama", num_key_value_heads=6, tie_word_embeddings=True),
    "qwen2": dict(BASE, model_type="qwen2", num_key_value_heads=3),
    "qwen3": dict(BASE, model_type="qwen3", num_key_value_heads=2, head_dim=20),
    "v3": dict(BASE, model_type="deepseek_v3", q_lora_rank=28, n_shared_experts=1, n_group=4, topk_group=2,
               **MLA, **MOE),
    "v2": dict(BASE, model_type="deepseek_v2", n_shared_experts=2, routed_scaling_factor=1.5, rope_scaling=YARN,
               **MLA, **MOE),
    "v2-groups": dict(BASE, model_type="deepseek_v2", topk_method="group_limited_greedy", n_group=4, topk_group=2,
                      q_lora_rank=28, **MLA, **MOE),
}  # fmt: skip


def make_network(kind: str, seed: int = 7) -> CausalLM:
    mtp = kind.endswith("-mtp")
    values = CONFIGS[kind.removesuffix("-mtp")] | {"num_nextn_predict_layers": int(mtp)}
    network = CausalLM(ModelConfig.from_dict(values), mtp=mtp).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            wide = parameter.ndim > 1
            scale = 1.0 / math.sqrt(parameter.shape[-1]) if wide else 0.1
            parameter.normal_(0 if wide or "bias" in name else 1, scale, generator=generator)
        network.model.embed_tokens.weight.normal_(0, 1, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith("bias"):
                buffer.normal_(0, 0.1, generator=generator)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "model"
            save_checkpoint(made[kind], make_network(kind))
        return made[kind]

    return get


def make_runner(weights: NativeWeights, threads: int = 2, positions: int = 512) -> NativeRunner:
    """With a cache full of nan: what was never written must never count."""
    runner = NativeRunner(weights, cache_positions=positions, block_size=BLOCK, threads=threads)
    for block in range(runner.cache_blocks):
        runner.write_block(block, b"\xff" * runner.block_bytes)
    return runner


def random_ids(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCAB) for _ in range(count)]


# ---- the plain pass


class Plain:
    """All positions of one sequence at once, from the packed weights, in float64 but for what the runner rounds:
    activations of quantised products to int8 by groups of 32, keys and values to fp16."""

    def __init__(self, weights: NativeWeights):
        self.weights, self.config = weights, weights.plan.config
        self.turned = inverse_frequencies(self.config)

    def matrix(self, name: str, i: int = 0) -> tuple[Array, bool]:
        weight = self.weights.plan.weights[name]
        start = weight.start + i * weight.matrix_bytes
        data = self.weights.memory[start : start + weight.matrix_bytes]
        kind = core.Format[weight.format]
        return core.unpack(kind, weight.rows, weight.cols, native_weights.aligned(data)), weight.format[
            0
        ] == "Q"

    def product(self, x: Array, name: str, i: int = 0) -> Array:
        w, quantised = self.matrix(name, i)
        return (rounded(x) if quantised else x) @ w.astype(np.float64).T

    def vector(self, name: str) -> Array:
        return self.weights.vector(name).astype(np.float64)

    def rotate(self, x: Array) -> Array:  # [T, N, P]
        frequencies, factor = self.turned
        angles = (np.arange(len(x), dtype=np.float32)[:, None] * frequencies)[:, None]
        cos, sin = np.cos(angles).astype(np.float64) * factor, np.sin(angles).astype(np.float64) * factor
        if self.config.uses_mla and self.config.rope_interleave:
            a, b = x[..., 0::2], x[..., 1::2]
            return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def __call__(self, ids: list[int]) -> Array:
        config, eps = self.config, self.config.rms_norm_eps
        x = self.matrix("embedding")[0][ids].astype(np.float64)
        for layer in range(config.num_hidden_layers):
            at = f"{layer}."
            normed = norm(x, self.vector(f"{at}input_layernorm.weight"), eps)
            x = x + (self.mla if config.uses_mla else self.gqa)(at, normed)
            normed = norm(x, self.vector(f"{at}post_attention_layernorm.weight"), eps)
            x = x + (self.moe(at, normed) if config.is_moe_layer(layer) else self.mlp(f"{at}dense", normed))
        head = "embedding" if config.tie_word_embeddings else "head"
        return self.product(norm(x, self.vector("norm"), eps), head)

    def linear(self, at: str, name: str, x: Array, heads: int) -> Array:
        y = self.product(x, at + name)
        if f"{at}{name}.bias" in self.weights:
            y = y + self.vector(f"{at}{name}.bias")
        return y.reshape(len(x), heads, -1)

    def gqa(self, at: str, x: Array) -> Array:
        config = self.config
        heads, keys = config.num_attention_heads, config.num_key_value_heads or 1
        q, k = self.linear(at, "q_proj", x, heads), self.linear(at, "k_proj", x, keys)
        if config.model_type == "qwen3":
            q = norm(q, self.vector(f"{at}q_norm.weight"), config.rms_norm_eps)
            k = norm(k, self.vector(f"{at}k_norm.weight"), config.rms_norm_eps)
        k, v = half(self.rotate(k)), half(self.linear(at, "v_proj", x, keys))
        k, v = (np.repeat(y, heads // keys, 1) for y in (k, v))
        out = attend(self.rotate(q), k, v, softmax_scale(config)).reshape(len(x), -1)
        return self.linear(at, "o_proj", out, 1)[:, 0]

    def mla(self, at: str, x: Array) -> Array:
        config, heads = self.config, self.config.num_attention_heads
        nope, latent = config.qk_nope_head_dim, config.kv_lora_rank or 0
        if config.q_lora_rank:
            low = norm(self.product(x, f"{at}q_a_proj"), self.vector(f"{at}q_a_layernorm.weight"), 1e-6)
            q = self.product(low, f"{at}q_b_proj").reshape(len(x), heads, -1)
        else:
            q = self.product(x, f"{at}q_proj").reshape(len(x), heads, -1)
        entry = self.product(x, f"{at}kv_a_proj_with_mqa")
        c = norm(entry[:, :latent], self.vector(f"{at}kv_a_layernorm.weight"), 1e-6)
        entry = half(np.concatenate([c, self.rotate(entry[:, None, latent:])[:, 0]], 1))
        absorbed = [self.product(q[:, h, :nope], f"{at}k_up", h) for h in range(heads)]
        q = np.concatenate([np.stack(absorbed, 1), self.rotate(q[..., nope:])], -1)
        k = np.repeat(entry[:, None], heads, 1)
        out = attend(q, k, k[..., :latent], softmax_scale(config))
        values = [self.product(out[:, h], f"{at}v_up", h) for h in range(heads)]
        return self.product(np.concatenate(values, 1), f"{at}o_proj")

    def mlp(self, name: str, x: Array, i: int = 0) -> Array:
        blocks = self.product(x, f"{name}_gate_up", i).reshape(len(x), -1, 2, 16)
        gate, up = (blocks[:, :, turn].reshape(len(x), -1) for turn in (0, 1))
        width = self.weights.plan.weights[f"{name}_down"].cols
        return self.product((gate / (1 + np.exp(-gate)) * up)[:, :width], f"{name}_down", i)

    def moe(self, at: str, x: Array) -> Array:
        config = self.config
        scores = self.product(x, f"{at}router")
        if config.scoring_func == "sigmoid":
            scores = 1 / (1 + np.exp(-scores))
        else:
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
        choice = scores + (self.vector(f"{at}router_bias") if f"{at}router_bias" in self.weights else 0)
        if config.topk_method != "greedy":
            groups = np.sort(choice.reshape(len(x), config.n_group, -1), -1)
            best = groups[..., -2:].sum(-1) if config.topk_method == "noaux_tc" else groups[..., -1]
            dropped = np.argsort(-best, -1)[:, config.topk_group :]
            for row, groups_of_row in zip(choice.reshape(len(x), config.n_group, -1), dropped, strict=True):
                row[groups_of_row] = -np.inf
        out = self.mlp(f"{at}dense", x) if config.n_shared_experts else np.zeros_like(x)
        for t, ids in enumerate(np.argsort(-choice, -1)[:, : config.num_experts_per_tok]):
            weights = scores[t, ids]
            if config.norm_topk_prob:
                weights = weights / weights.sum()
            for expert, weight in zip(ids, weights, strict=True):
                out[t] += (
                    config.routed_scaling_factor * weight * self.mlp(f"{at}experts", x[t : t + 1], expert)[0]
                )
        return out


def norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def half(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float64)


def rounded(x: Array) -> Array:
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    scale = np.abs(groups).max(-1, keepdims=True) / 127
    back = np.round(groups / np.where(scale == 0, 1, scale)) * scale
    return back.reshape(len(x), -1)[:, : x.shape[1]]


def attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    scores = np.einsum("lnh,snh->nls", q, k) * scale
    scores = np.where(np.tri(len(q)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nls,snh->lnh", weights / weights.sum(-1, keepdims=True), v)


# ---- tests


@pytest.mark.parametrize("quant", ["none", "8", "4"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_equal_the_plain_pass(kind: str, quant: Any, folder: Callable[[str], Path]) -> None:
    weights = load(open_source(folder(kind)), quant)
    ids, table = random_ids(37, 1), [9, 2, 30]
    found = make_runner(weights).run([Chunk(ids, 0, table, logits=37)]).logits[0]
    difference = np.abs(found - Plain(weights)(ids)).max(-1)
    # A number within a rounding error of the border between two int8 steps may go the other way; that is rare, but the
    # positions behind it see it.
    assert np.median(difference) < 1e-3 and difference.max() < 0.1, difference


@pytest.mark.parametrize("kind", CONFIGS)
def test_unquantised_logits_equal_the_network(kind: str, folder: Callable[[str], Path]) -> None:
    """Up to fp16 keys and values; hidden states and the experts chosen too."""
    network, ids = make_network(kind), random_ids(37, 1)
    chunk = Chunk(ids, 0, [9, 2, 30], logits=37, hidden=True, routing=True)
    runner = make_runner(load(open_source(folder(kind)), "none"))
    assert runner.block_bytes == BLOCK * cache_token_bytes(network.config, mtp=False)
    output = runner.run([chunk])
    with torch.no_grad():
        hidden = network(torch.tensor(ids), RowsContext(1, len(ids)))
        expected = network.logits(hidden).numpy()
    np.testing.assert_allclose(output.logits[0], expected, atol=5e-3 * expected.std())
    assert output.hidden[0] is not None
    np.testing.assert_allclose(output.hidden[0], hidden.numpy(), atol=5e-3)
    if network.config.n_routed_experts:
        chosen = (
            TorchRunner(network, cache_positions=64).run([Chunk(ids, 0, [0, 1], routing=True)]).routing[0]
        )
        np.testing.assert_array_equal(output.routing[0], np.sort(chosen, -1))
    else:
        assert output.routing == []


@pytest.mark.parametrize("quant", ["none", "8"])
@pytest.mark.parametrize("kind", ["llama", "v3", "v2"])
def test_the_same_bits_alone_in_a_batch_in_any_chunks_and_on_any_threads(
    kind: str, quant: Any, folder: Callable[[str], Path]
) -> None:
    weights = load(open_source(folder(kind)), quant)
    prompts = [random_ids(n, n) for n in (33, 50, 21, 64)]
    tables = [[7, 3, 11], [1, 30, 4, 12], [20, 21], [0, 2, 9, 5]]
    alone = []
    for prompt, table in zip(prompts, tables, strict=True):
        chunk = Chunk(prompt, 0, table, logits=len(prompt))
        alone.append(make_runner(weights, threads=1).run([chunk]).logits[0])
    for threads in (1, 2, 3):
        runner = make_runner(weights, threads)
        sizes = [[33], [1, 5, 16, 17, 1, 10], [3] * 7, [1] * 64]
        done = [0, 0, 0, 0]
        for step in range(64):
            chunks, rows = [], []
            for i in np.roll(range(4), step):  # in another order each time
                if step < len(sizes[i]):
                    end = done[i] + sizes[i][step]
                    blocks = -(-end // BLOCK)
                    chunks.append(
                        Chunk(prompts[i][done[i] : end], done[i], tables[i][:blocks], sizes[i][step])
                    )
                    rows.append((i, slice(done[i], end)))
                    done[i] = end
            for (i, place), found in zip(rows, runner.run(chunks).logits, strict=True):
                np.testing.assert_array_equal(found, alone[i][place])


def test_rolling_back_and_blocks_kept_elsewhere(folder: Callable[[str], Path]) -> None:
    weights = load(open_source(folder("v3")))
    ids, other = random_ids(40, 1), random_ids(8, 2)
    fresh, runner = make_runner(weights), make_runner(weights)
    expected = fresh.run([Chunk(ids[:30] + other, 0, [1, 2, 3], logits=8)]).logits[0]
    runner.run([Chunk(ids, 0, [5, 6, 7])])
    np.testing.assert_array_equal(runner.run([Chunk(other, 30, [5, 6, 7], logits=8)]).logits[0], expected)
    kept = [bytes(runner.read_block(block)) for block in (5, 6, 7)]
    assert len(kept[0]) == runner.block_bytes
    again = make_runner(weights)
    for block, contents in zip((10, 4, 8), kept, strict=True):
        again.write_block(block, contents)
    np.testing.assert_array_equal(again.run([Chunk(other, 30, [10, 4, 8], logits=8)]).logits[0], expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_drafts_are_those_of_the_network_in_any_cutting_and_company(tmp_path: Path, threads: int) -> None:
    """The MTP module, unquantised, against `TorchRunner`; the layers' own results are the same with and without it."""
    network = make_network("v3-mtp")
    save_checkpoint(tmp_path / "model", network)
    source = open_source(tmp_path / "model")
    torch_runner = TorchRunner(network, cache_positions=512, block_size=BLOCK)
    runner = make_runner(load(source, "none", mtp=True), threads)
    plain = make_runner(load(source, "none"))
    assert runner.has_mtp and not plain.has_mtp
    assert runner.block_bytes == BLOCK * cache_token_bytes(network.config, mtp=True)
    assert torch_runner.block_bytes == BLOCK * torch_cache_token_bytes(network.config, 4, mtp=True)
    rows, tables = [random_ids(n, n) for n in (41, 9, 23, 60)], [[7, 3, 11], [1], [20, 21], [0, 2, 9, 5]]
    expected = []
    for ids, table in zip(rows, tables, strict=True):
        torch_runner.run([Chunk(ids[:-1], 0, table)])
        expected += torch_runner.draft([DraftChunk(ids[1:], 0, table, 4)])
    for ids, table in zip(rows, tables, strict=True):  # alone, in pieces
        cut = len(ids) // 3
        for begin, end in ((0, cut), (cut, len(ids) - 1)):
            found = runner.run([Chunk(ids[begin:end], begin, table, end - begin)]).logits[0]
            np.testing.assert_array_equal(
                found, plain.run([Chunk(ids[begin:end], begin, table, end - begin)]).logits[0]
            )
        assert runner.draft([DraftChunk(ids[1 : cut + 1], 0, table, 0)]) == [[]]
        alone = runner.draft([DraftChunk(ids[cut + 1 :], cut, table, 4)])
        assert alone == [expected[rows.index(ids)]]
    counts = [4, 0, 1, 3]  # together, again, of different lengths
    chunks = [
        DraftChunk(ids[-2:], len(ids) - 3, t, n) for ids, t, n in zip(rows, tables, counts, strict=True)
    ]
    assert runner.draft(chunks) == [all[:n] for all, n in zip(expected, counts, strict=True)]
    with pytest.raises(ValueError, match="no room"):
        runner.draft([DraftChunk([1], 14, [1], 2)])
    with pytest.raises(ValueError, match="no multi-token"):
        plain.draft([DraftChunk([1], 0, [1], 1)])


@pytest.mark.parametrize("chunk", [
    Chunk([VOCAB], 0, [0], 1), Chunk([-1], 0, [0], 1), Chunk([1] * 17, 0, [0], 1), Chunk([1], 0, [99], 1),
    Chunk([1], 0, [0], 2), Chunk([], 0, [0]), Chunk([1], 0, [0], 1, adapter="nobody"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused(chunk: Chunk, folder: Callable[[str], Path]) -> None:
    runner = make_runner(load(open_source(folder("llama"))))
    with pytest.raises((ValueError, ShoalError)):
        runner.run([chunk])


# ---- weights


def test_gguf_blocks_are_taken_over_without_loss(folder: Callable[[str], Path], tmp_path: Path) -> None:
    for kind in ("llama", "v3"):
        config = dict(CONFIGS[kind], hidden_size=64, intermediate_size=96, head_dim=32, rope_scaling=None)
        if kind == "v3":
            config |= dict(q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=32, v_head_dim=32)
            config |= dict(moe_intermediate_size=64)
        CONFIGS["gguf"] = config
        network = make_network("gguf")
        save_gguf(tmp_path / "m.gguf", Weights.of_network(network), dtype="q8_0")
        source = open_source(tmp_path / "m.gguf")
        weights = load(source)
        plain = Plain(weights)
        for weight in weights.plan.weights.values():
            if weight.format == "vector" or weight.form != "rows":
                continue
            for i in range(weight.count):
                expected = source.floats(weight.parameters[0], i if weight.count > 1 else None)
                np.testing.assert_array_equal(plain.matrix(weight.name, i)[0], expected, err_msg=weight.name)
        # The halves of kv_b and the alternating rows are seen by what they compute.
        ids = random_ids(20, 3)
        found = make_runner(weights).run([Chunk(ids, 0, [3, 1], logits=20)]).logits[0]
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if ".experts." in name or parameter.ndim == 2:
                    parameter.copy_(torch.from_numpy(np.array(source.floats(name))))
            expected = network.logits(network(torch.tensor(ids), RowsContext(1, 20))).numpy()
        assert (
            np.abs(found - expected).max() < 0.15
            and np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
        )


@pytest.mark.parametrize("kind", ["llama-tied", "v3"])
def test_half_precision_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    """Neither widened to twice the bytes nor rounded. (The file's router is F32, its matrices of MLA heads BF16.)"""
    save_gguf(tmp_path / "m.gguf", Weights.of_network(make_network(kind)), dtype="float16")
    source = open_source(tmp_path / "m.gguf")
    weights = load(source)
    matrices = [w for w in weights.plan.weights.values() if w.format != "vector"]
    rest = [w for w in matrices if not w.name.endswith(("router", "k_up", "v_up"))]
    assert {w.format for w in rest} == {"F16"}
    assert weights.plan.summary() == "float16"
    plain = Plain(weights)
    for weight in matrices:
        if weight.form == "rows" and weight.count == 1:
            np.testing.assert_array_equal(plain.matrix(weight.name)[0], source.floats(weight.parameters[0]))
    ids = random_ids(20, 3)
    found = make_runner(weights).run([Chunk(ids, 0, [3, 1], logits=20)]).logits[0]
    np.testing.assert_allclose(found, plain(ids), atol=1e-3)


@pytest.mark.parametrize("kind", ["q4_k", "q4_0", "q4_1", "q8_0"])
def test_coded_rows_decode_as_the_gguf_package_decodes_them(kind: str) -> None:
    import gguf.quants
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    code = GGMLQuantizationType[kind.upper()]
    per_block, size = GGML_QUANT_SIZES[code]
    blocks = np.random.default_rng(0).integers(0, 256, (5, 2 * size), dtype=np.uint8)
    scales = np.random.default_rng(1).uniform(0.001, 0.1, (5, 2, 2)).astype(np.float16)
    blocks.reshape(5, 2, size)[..., : 2 if kind in ("q4_0", "q8_0") else 4] = scales.view(np.uint8).reshape(
        5, 2, 4
    )[..., : 2 if kind in ("q4_0", "q8_0") else 4]
    expected = gguf.quants.dequantize(blocks, code)
    q, scale, minimum = native_weights.decode(kind.upper(), blocks)
    found = q.reshape(5, -1, 32).astype(np.float32) - (8 if kind == "q4_0" else 0)
    found = found * scale.view(np.float16).astype(np.float32)[..., None]
    if minimum is not None:
        found = found + minimum.view(np.float16).astype(np.float32)[..., None]
    tolerance = 2e-3 * np.abs(expected).max() if kind == "q4_k" else 0
    np.testing.assert_allclose(found.reshape(5, -1), expected, rtol=0, atol=tolerance)
    assert expected.shape == (5, 2 * per_block)


def test_packed_weights_are_kept_and_a_damaged_file_is_made_anew(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, packed = open_source(folder("v3")), []
    pack = native_weights.Plan.pack
    monkeypatch.setattr(
        native_weights.Plan, "pack", lambda self, *args: (packed.append(1), pack(self, *args))[1]
    )
    first = load(source)
    assert packed == [1] and load(source).memory.tobytes() == first.memory.tobytes() and packed == [1]
    (file,) = native_weights.cache_folder().glob("*.weights")
    whole = file.read_bytes()
    for damaged in (whole[:-5000], whole[:6000] + b"\1" + whole[6001:], b""):
        file.write_bytes(damaged)
        packed.clear()
        assert load(source).memory.tobytes() == first.memory.tobytes() and packed == [1]
        assert file.read_bytes() == whole
    assert "damaged" in caplog.text
    monkeypatch.setattr(native_weights, "_IN_MEMORY_BELOW", 0)  # large models are mapped
    packed.clear()
    assert load(source).memory.tobytes() == first.memory.tobytes() and packed == []
    load(source, "4")
    assert packed == [1] and len(list(native_weights.cache_folder().iterdir())) == 2
    monkeypatch.setattr(native_weights, "_CACHE_BYTES", 1)
    load(open_source(folder("llama")))
    assert len(list(native_weights.cache_folder().iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_no_hindrance(
    folder: Callable[[str], Path], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "cache").write_text("in the way")
    weights = load(open_source(folder("llama")))
    assert make_runner(weights).run([Chunk([1], 0, [0], 1)]).logits[0].shape == (1, VOCAB)
    assert "not kept" in caplog.text


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "v3"])
def test_refreshed_weights_are_the_new_model(
    kind: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    other, ids = make_network(kind, seed=8), random_ids(20, 1)
    save_checkpoint(tmp_path / "other", other)
    expected = (
        make_runner(load(open_source(tmp_path / "other"), "none")).run([Chunk(ids, 0, [1, 2], 20)]).logits[0]
    )
    runner = make_runner(load(open_source(folder(kind)), "none"))
    with pytest.raises(ShoalError, match="no weight 'nothing'"):
        runner.refresh_weights({"nothing": np.zeros(3)})
    state = dict(other.state_dict())
    for name in list(state):  # one at a time: the rest of a fused matrix stays as it is
        runner.refresh_weights({name: state.pop(name)})
    np.testing.assert_array_equal(runner.run([Chunk(ids, 0, [1, 2], 20)]).logits[0], expected)


# ---- adapters


@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_of_every_matrix_in_one_batch(kind: str, folder: Callable[[str], Path]) -> None:
    from shoal.model.adapters import merge, new_lora, targets

    network = make_network(kind)
    names = [name for name in targets(network) if not name.endswith(".gate")]
    runner, ids = make_runner(load(open_source(folder(kind)), "none")), random_ids(20, 1)
    expected = {}
    for seed, adapter_name in enumerate(["one", "two"]):
        adapter = new_lora(network, base="b", r=3, lora_alpha=6, target_modules=names, seed=seed)
        for f in adapter.factors.values():
            f.b.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))
        runner.load_adapter(adapter_name, adapter.arrays())
        unmerge = merge(network, adapter)
        with torch.no_grad():
            expected[adapter_name] = network.logits(network(torch.tensor(ids), RowsContext(1, 20))).numpy()
        unmerge()
    base = runner.run([Chunk(ids, 0, [9, 8], 20)]).logits[0]
    order = ["one", None, "two", "one"]
    output = runner.run([Chunk(ids, 0, [2 * i, 2 * i + 1], 20, adapter=name) for i, name in enumerate(order)])
    for name, logits in zip(order, output.logits, strict=True):
        if name is None:
            np.testing.assert_array_equal(logits, base)
        else:
            np.testing.assert_allclose(logits, expected[name], atol=1e-2 * expected[name].std())
            assert np.abs(logits - base).max() > 0.05 * base.std()
    runner.unload_adapter("one")
    with pytest.raises(ShoalError, match="unknown"):
        runner.run([Chunk(ids, 0, [0, 1], 1, adapter="one")])
    with pytest.raises(ShoalError, match="not to the shape"):
        runner.load_adapter(
            "bad", {"model.layers.0.self_attn.o_proj": (np.zeros((2, 9)), np.zeros((9, 2)), 1.0)}
        )


def test_an_adapter_folder_is_read_merged(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from shoal.model.adapters import new_lora

    network, ids = make_network("v3"), random_ids(20, 1)
    adapter = new_lora(
        network, base=str(folder("v3")), r=3, lora_alpha=6, target_modules=["up_proj", "kv_b_proj"], seed=1
    )
    for f in adapter.factors.values():
        f.b.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    adapter.save(tmp_path / "adapter", network.config, bfloat16=False)
    merged = (
        make_runner(load(open_source(tmp_path / "adapter"), "none"))
        .run([Chunk(ids, 0, [0, 1], 20)])
        .logits[0]
    )
    runner = make_runner(load(open_source(folder("v3")), "none"))
    runner.load_adapter("one", adapter.arrays())
    unmerged = runner.run([Chunk(ids, 0, [0, 1], 20, adapter="one")]).logits[0]
    np.testing.assert_allclose(merged, unmerged, atol=5e-3 * unmerged.std())
    assert np.abs(merged - runner.run([Chunk(ids, 0, [2, 3], 20)]).logits[0]).max() > 0.05 * unmerged.std()
