"""The runner for CPUs: packed weights, one call of native code for a step. See `runner.Runner` for the contract.

Describes the model to `ops/native`'s step (numbers and weights, no names), lays out what adapters add, and nothing
else: the arithmetic stands in step.cpp. No torch here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.engine.native_threads import ThreadChoice
from shoal.engine.native_weights import ROWS, Bytes, Floats, NativeWeights
from shoal.engine.runner import Chunk, DraftChunk, RunnerOutput
from shoal.errors import ShoalError
from shoal.model.checkpoint.shapes import parameter_shapes
from shoal.model.config import ModelConfig
from shoal.model.counts import kv_numbers_per_token
from shoal.model.frequencies import inverse_frequencies, softmax_scale
from shoal.ops.native import core

BLOCK_SIZE = 32
PREFILL_CHUNK = 256
# Products of a layer, as step.h numbers them.
_IN, _Q_B, _OUT, _GATE_UP, _DOWN, _EXPERT_GATE_UP, _EXPERT_DOWN, _K_UP, _V_UP, _HEAD = range(10)


class NativeRunner:
    """Runs packed weights. `cache_positions` is how many tokens the cache holds for all sequences together;
    `threads` bounds the cores it uses (default: those this process may use); how many a step takes is measured."""

    def __init__(
        self,
        weights: NativeWeights,
        *,
        cache_positions: int,
        block_size: int = BLOCK_SIZE,
        prefill_chunk: int = PREFILL_CHUNK,
        threads: int | None = None,
    ):
        config = weights.plan.config
        self.weights, self.config = weights, config
        self.vocab_size, self.max_positions = config.vocab_size, config.max_position_embeddings
        self.block_size, self.prefill_chunk = block_size, prefill_chunk
        self.cache_blocks = max(1, cache_positions // block_size)
        self.threads = threads or available_threads()
        self.has_mtp = weights.plan.mtp
        shape = _shape(config) | {"mtp": int(self.has_mtp)}
        self._step = core.Step(shape, self.cache_blocks, block_size, self.threads)
        self._in = _describe(self._step, weights)
        self.block_bytes = self._step.cache_block_bytes
        self.cache_layout = f"native-{core.LAYOUT}-f16-{block_size}{'-mtp' * self.has_mtp}"
        self.token_bytes = weights.plan.token_bytes()
        self._adapters: dict[str, int] = {}
        self._next_adapter = 0

    @property
    def threads(self) -> int:
        """The most threads of a step; may be set to fewer."""
        return self._choice.most

    @threads.setter
    def threads(self, most: int) -> None:
        self._choice, self._draft_choice = ThreadChoice(most), ThreadChoice(most)

    def run(self, chunks: Sequence[Chunk]) -> RunnerOutput:
        adapters = [-1 if chunk.adapter is None else self._adapter(chunk.adapter) for chunk in chunks]
        counts = [chunk.logits for chunk in chunks]
        hidden_wanted = any(chunk.hidden for chunk in chunks)
        routing_wanted = any(chunk.routing for chunk in chunks)
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        threads, began = self._choice.threads(tokens), time.perf_counter()
        logits, hidden, routing = self._step.run(
            [chunk.token_ids for chunk in chunks],
            [chunk.start for chunk in chunks],
            [chunk.block_table for chunk in chunks],
            counts,
            adapters,
            hidden_wanted,
            routing_wanted,
            self.block_size,
            threads,
        )
        self._choice.took(tokens, time.perf_counter() - began)
        output = RunnerOutput(_split(logits, counts))
        if hidden is not None:
            parts = _split(hidden, counts)
            output.hidden.extend(p if c.hidden else None for p, c in zip(parts, chunks, strict=True))
        if routing is not None:
            parts = _split(routing, [len(chunk.token_ids) for chunk in chunks])
            output.routing.extend(p if c.routing else None for p, c in zip(parts, chunks, strict=True))
        return output

    def draft(self, chunks: Sequence[DraftChunk]) -> list[list[int]]:
        tokens = sum(len(chunk.token_ids) + max(0, chunk.count - 1) for chunk in chunks)
        threads, began = self._draft_choice.threads(tokens), time.perf_counter()
        drafts: list[list[int]] = self._step.draft(
            [chunk.token_ids for chunk in chunks],
            [chunk.start for chunk in chunks],
            [chunk.block_table for chunk in chunks],
            [chunk.count for chunk in chunks],
            self.block_size,
            threads,
        )
        self._draft_choice.took(tokens, time.perf_counter() - began)
        return drafts

    def read_block(self, block: int) -> Bytes:
        return self._step.cache_block(block).copy()

    def write_block(self, block: int, contents: Any) -> None:
        self._step.cache_block(block)[:] = np.frombuffer(contents, np.uint8)

    def copy_block(self, source: int, target: int) -> None:
        self._step.cache_block(target)[:] = self._step.cache_block(source)

    # ---- adapters

    def _adapter(self, name: str) -> int:
        if name not in self._adapters:
            raise ShoalError(f"adapter {name!r} is unknown: nobody loaded it")
        return self._adapters[name]

    def load_adapter(self, name: str, factors: Mapping[str, tuple[Any, Any, float]]) -> None:
        low = {
            module: (_to_numpy(a), _to_numpy(b) * np.float32(scale))
            for module, (a, b, scale) in factors.items()
        }
        shapes = self.weights.plan.shapes
        for module, (a, b) in low.items():
            shape = shapes.get(f"{module}.weight") or shapes.get(module)
            if module == "lm_head":
                shape = (self.vocab_size, self.config.hidden_size)
            if (
                shape is None
                or (*a.shape[:-2], b.shape[-2], a.shape[-1]) != shape
                or a.shape[-2] != b.shape[-1]
            ):
                raise ShoalError(f"adapter {name!r} changes {module}, but not to the shape it has here")
        number = self._next_adapter
        self._next_adapter += 1
        updates = list(_updates(self.config, self._in, low))
        packed = _packed([matrix for *_, a, b in updates for matrix in (a, b)])
        for (layer, product, index, *_), low_a, low_b in zip(
            updates, packed[0::2], packed[1::2], strict=True
        ):
            self._step.add_update(number, layer, product, index, low_a, low_b)
        unused = [m for m in low if m.endswith((".mlp.gate", "embed_tokens"))]
        if unused:
            self._step.remove_adapter(number)
            raise ShoalError(
                f"adapter {name!r} changes {unused[0]}, which this runner cannot adapt",
                hint="Use --runner torch, or merge the adapter into its base (shoal convert).",
            )
        if name in self._adapters:
            self._step.remove_adapter(self._adapters[name])
        self._adapters[name] = number

    def unload_adapter(self, name: str) -> None:
        self._step.remove_adapter(self._adapters.pop(name))

    # ---- weights

    def refresh_weights(self, tensors: Mapping[str, Any]) -> None:
        shapes, given = self.weights.plan.shapes, {}
        for name, value in tensors.items():
            array = _to_numpy(value)
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            if shapes.get(name) != array.shape:
                raise ShoalError(
                    f"no weight {name!r} of that shape in this model", hint="Is it the same model?"
                )
            given[name] = array
        self.weights.refresh(given)

    def close(self) -> None:
        del self._step, self.weights


def cache_token_bytes(config: ModelConfig, mtp: bool) -> int:
    """Of a cached position, all layers, in fp16. MLA's latent stands there twice, once turned for the scores."""
    twice = config.kv_lora_rank or 0 if config.uses_mla else 0
    numbers = (config.num_hidden_layers + mtp) * (kv_numbers_per_token(config) + twice)
    return 2 * (numbers + mtp * config.hidden_size)


def available_threads() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _to_numpy(value: Any) -> Floats:
    if hasattr(value, "detach"):  # a torch tensor, which may need a gradient or be bf16
        value = value.detach().float().cpu()
    return np.asarray(value if isinstance(value, np.ndarray) else np.from_dlpack(value), np.float32)


def _split(values: NDArray[Any], counts: Sequence[int]) -> list[NDArray[Any]]:
    ends = np.cumsum(counts)
    return [values[end - count : end] for end, count in zip(ends.tolist(), counts, strict=True)]


# ---- the model as the step sees it


def _shape(config: ModelConfig) -> dict[str, Any]:
    frequencies, factor = inverse_frequencies(config)
    return dict(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=0 if config.uses_mla else config.qk_head_dim,
        vocab=config.vocab_size,
        layers=config.num_hidden_layers,
        latent=config.kv_lora_rank or 0,
        rope=config.rope_dim,
        nope=config.qk_nope_head_dim,
        value=config.v_head_dim,
        q_rank=config.q_lora_rank or 0,
        experts=config.n_routed_experts or 0,
        experts_per_token=config.num_experts_per_tok or 0 if config.n_routed_experts else 0,
        groups=config.n_group,
        kept_groups=config.n_group if config.topk_method == "greedy" else config.topk_group,
        interleaved=config.uses_mla and config.rope_interleave,
        sigmoid=config.scoring_func == "sigmoid",
        normalise=config.norm_topk_prob,
        two_best=config.topk_method == "noaux_tc",
        eps=config.rms_norm_eps,
        scale=softmax_scale(config),
        rope_factor=factor,
        routed_scale=config.routed_scaling_factor,
        frequencies=frequencies.tolist(),
    )


def _describe(step: Any, weights: NativeWeights) -> list[list[tuple[str, ...]]]:
    """Give a step its weights; returns, for every layer, how the parts of its input product are grouped."""
    config = weights.plan.config

    def linear(names: Sequence[str], values: dict[str, Any], key: str) -> list[tuple[str, ...]]:
        groups = weights.fused(*names)
        values[key] = [weights.packed(*group) for group in groups]
        biases = [f"{name}.bias" for name in names]
        if any(bias in weights for bias in biases):
            rows = [weights.plan.weights[name].rows for name in names]
            parts = [
                weights.vector(bias) if bias in weights else np.zeros(count, np.float32)
                for bias, count in zip(biases, rows, strict=True)
            ]
            values[f"{key}_bias"] = np.concatenate(parts)
        return groups

    ends: dict[str, Any] = {"embedding": weights.packed("embedding"), "norm": weights.vector("norm")}
    ends["head"] = [weights.packed("head" if "head" in weights else "embedding")]
    step.set_ends(ends)
    grouped = []
    for layer in range(config.num_hidden_layers + weights.plan.mtp):
        at = f"{layer}."
        values: dict[str, Any] = {
            "input_norm": weights.vector(f"{at}input_layernorm.weight"),
            "post_norm": weights.vector(f"{at}post_attention_layernorm.weight"),
        }
        optional = {
            "q_norm": "q_norm.weight",
            "k_norm": "k_norm.weight",
            "q_a_norm": "q_a_layernorm.weight",
            "latent_norm": "kv_a_layernorm.weight",
            "router_bias": "router_bias",
            "embedding_norm": "enorm",
            "hidden_norm": "hnorm",
            "output_norm": "shared_head.norm",
        }
        values |= {key: weights.vector(at + name) for key, name in optional.items() if at + name in weights}
        inner = ("q_proj", "q_a_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa")
        names = [at + name for name in inner if at + name in weights]
        grouped.append(linear(names, values, "in"))
        linear([f"{at}o_proj"], values, "out")
        if f"{at}q_b_proj" in weights:
            linear([f"{at}q_b_proj"], values, "q_b")
        for name in (
            "k_up",
            "v_up",
            "router",
            "dense_gate_up",
            "dense_down",
            "experts_gate_up",
            "experts_down",
        ):
            if at + name in weights:
                values[name] = weights.packed(at + name)
        if f"{at}eh_proj" in weights:
            values["join"] = weights.packed(f"{at}eh_proj")
        step.set_layer(layer, values)
    return grouped


# ---- what adapters add

_Low = Mapping[str, tuple[Floats, Floats]]


def _packed(matrices: Sequence[Floats]) -> list[tuple[Any, int, int, Bytes]]:
    """In one stretch of memory: it comes in huge pages, and a page for each of hundreds of factors would be much."""
    blocks = [core.pack(core.Format.F32, np.ascontiguousarray(m, np.float32)).reshape(-1) for m in matrices]
    starts = np.cumsum([0, *(-(-len(b) // 64) * 64 for b in blocks)]).tolist()
    memory = core.Memory(starts[-1]).array()
    parts = [memory[start:][: len(b)] for start, b in zip(starts, blocks, strict=False)]
    for part, block in zip(parts, blocks, strict=True):
        part[:] = block
    return [(core.Format.F32, *m.shape, part) for m, part in zip(matrices, parts, strict=True)]


def _updates(config: ModelConfig, inputs: list[list[tuple[str, ...]]], low: _Low) -> Any:
    """(layer, product, index, A, B) of every product that changes. Matrices that the step multiplies with as one get
    one pair: the As stacked, the Bs along a diagonal, each in its own rows."""
    shapes = parameter_shapes(config)
    if (pair := low.get("lm_head")) is not None:
        yield config.num_hidden_layers, _HEAD, 0, *pair
    for layer in range(config.num_hidden_layers):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for index, group in enumerate(inputs[layer]):
            names = [attention + name.partition(".")[2] for name in group]
            sizes = [shapes[f"{name}.weight"][0] for name in names]
            starts = np.cumsum([0, *sizes]).tolist()
            places = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]
            if pair := _together(low, names, places, starts[-1]):
                yield layer, _IN, index, *pair
        for name, product in (("q_b_proj", _Q_B), ("o_proj", _OUT)):
            if attention + name in low:
                yield layer, product, 0, *low[attention + name]
        if f"{attention}kv_b_proj" in low:
            yield from _latent_updates(config, layer, *low[f"{attention}kv_b_proj"])
        dense = f"{mlp}shared_experts." if config.is_moe_layer(layer) else mlp
        yield from _gated_updates(low, layer, dense, (_GATE_UP, _DOWN), None)
        for expert in range(config.n_routed_experts or 0):
            yield from _gated_updates(low, layer, f"{mlp}experts.", (_EXPERT_GATE_UP, _EXPERT_DOWN), expert)


def _gated_updates(low: _Low, layer: int, prefix: str, products: tuple[int, int], expert: int | None) -> Any:
    """Of a SwiGLU network, the dense one or an expert of a stack; its gate and up alternate by blocks of rows."""
    gate, up, down = (f"{prefix}{which}_proj" for which in ("gate", "up", "down"))
    own = {
        name: (low[name] if expert is None else (low[name][0][expert], low[name][1][expert]))
        for name in (gate, up, down)
        if name in low
    }
    if gate in own or up in own:
        row = np.arange(len(own[gate if gate in own else up][1]))
        places = [row // ROWS * 2 * ROWS + turn * ROWS + row % ROWS for turn in (0, 1)]
        if pair := _together(own, (gate, up), places, 2 * -(-len(row) // ROWS) * ROWS):
            yield layer, products[0], expert or 0, *pair
    if down in own:
        yield layer, products[1], expert or 0, *own[down]


def _together(
    low: _Low, names: Sequence[str], places: Sequence[Any], rows: int
) -> tuple[Floats, Floats] | None:
    """One pair for several matrices; `places[i]`: the rows of the whole that are matrix i's."""
    present = [(low[name], place) for name, place in zip(names, places, strict=True) if name in low]
    if not present:
        return None
    a = np.concatenate([pair[0] for pair, _ in present])
    b, at = np.zeros((rows, len(a)), np.float32), 0
    for (_, up), place in present:
        b[place, at : at + up.shape[1]] = up
        at += up.shape[1]
    return a, b


def _latent_updates(config: ModelConfig, layer: int, a: Floats, b: Floats) -> Any:
    """kv_b_proj's update [N (nope + V), C] in each head's two absorbed factors; the key half is used transposed."""
    nope = config.qk_nope_head_dim
    for head, both in enumerate(b.reshape(config.num_attention_heads, -1, b.shape[1])):
        yield layer, _K_UP, head, both[:nope].T, a.T
        yield layer, _V_UP, head, a, both[nope:]
