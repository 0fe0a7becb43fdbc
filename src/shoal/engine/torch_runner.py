"""The reference runner: the network itself, on any device that torch has. The only file of this room with torch.

Legend: T flat tokens of a step, B sequences that decode, L new and S cached tokens of a chunk, N heads, K key-value
heads, H head dim, V value head dim, C latent, P rope dim, X = C + P.

The cache is one tensor per layer with a row per position: keys and values for GQA, and for MLA exactly the latent and
the rotated key, C + P numbers per token. A chunk's rows are used where they lie when its blocks are neighbours
(`BlockPool` tries hard), else gathered. All decoding sequences attend in one padded call; chunks of prompts attend
one by one, MLA in whichever of its two forms costs less.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.engine.runner import Chunk, DraftChunk, RunnerOutput
from shoal.errors import ShoalError
from shoal.model.adapters import Adapter, adaptable, by_weight, from_arrays, targets
from shoal.model.checkpoint.load import inspect, load_network
from shoal.model.config import ModelConfig
from shoal.model.context import TokenContext
from shoal.model.counts import kv_numbers_per_token
from shoal.model.transformer import CausalLM
from shoal.ops.attention import attention, mla_absorbed_cached, mla_expanded
from shoal.ops.probe import probe

_COPIED_ROWS = 160
"""Cache rows of the longest decoding sequence up to which a CPU copies those of all into one padded call. Longer ones
attend each where its rows lie: reading twice costs more than calls do."""
_COPIED_ROWS_GPU = 2**18
"""An accelerator waits for calls, not for rows: up to this many in all are copied."""


class Cache:
    """Cache memory of all layers; untouched pages cost nothing (the memory is not initialised)."""

    def __init__(
        self,
        config: ModelConfig,
        positions: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        mtp: bool = False,
    ):
        layers = config.num_hidden_layers + mtp
        if config.uses_mla:
            assert config.kv_lora_rank is not None
            shapes: list[tuple[int, ...]] = [(positions, config.kv_lora_rank + config.qk_rope_head_dim)]
        else:
            heads = config.num_key_value_heads or config.num_attention_heads
            shapes = [(positions, heads, config.qk_head_dim)] * 2
        self.layers = [
            tuple(torch.empty(s, dtype=dtype, device=device) for s in shapes) for _ in range(layers)
        ]
        self.hidden = torch.empty(positions, config.hidden_size, dtype=dtype, device=device) if mtp else None
        """[positions, D] after the final norm: what an MTP module drafts from."""

    @property
    def bytes_per_token(self) -> int:
        return sum(t.element_size() * t[0].numel() for t in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Everything with a row per position."""
        return [t for layer in self.layers for t in layer] + ([] if self.hidden is None else [self.hidden])


@dataclass(frozen=True)
class _Rows:
    """Where the cached tokens of one or more sequences lie: a slice (one sequence, in a stretch) or indices."""

    place: slice | Tensor
    batch: int

    def of(self, cache: Tensor) -> Tensor:
        """[positions, ...] -> [batch, S, ...]."""
        if isinstance(self.place, slice):
            return cache[self.place].unsqueeze(0)
        return cache.index_select(0, self.place).unflatten(0, (self.batch, -1))


@dataclass(frozen=True)
class _Group:
    """Queries that attend together: tokens first .. first + B * L - 1 of the step, as B rows of L."""

    first: int
    batch: int
    length: int
    rows: _Rows
    cached: int
    """S: positions in the longest of them, new ones included."""
    mask: Tensor | None
    """Added to the scores, broadcast to [B, 1, L, S]; None: everything is seen (or plain causal)."""
    causal: bool

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + self.batch * self.length)


class PagedContext(TokenContext):
    """The chunks of one step over the cache."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        cache: Cache,
        *,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        keep_routing: bool = False,
    ):
        self._cache, self._dtype, self._device = cache, dtype, device
        self.routing: list[Tensor] | None = [] if keep_routing else None
        slots = [_slots(chunk, block_size) for chunk in chunks]
        positions = [np.arange(c.start, c.start + len(c.token_ids)) for c in chunks]
        self.position_ids_T = self._ids(np.concatenate(positions))
        new = np.concatenate([s[c.start :] for s, c in zip(slots, chunks, strict=True)])
        self.new: Tensor | slice = _as_slice(new) or self._ids(new)
        decodes = sum(len(chunk.token_ids) == 1 for chunk in chunks)  # they come first
        self._groups = self._decode_groups(slots[:decodes])
        first = decodes
        for chunk, places in zip(chunks[decodes:], slots[decodes:], strict=True):
            self._groups.append(self._prefill_group(first, chunk, places))
            first += len(chunk.token_ids)

    def _ids(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _rows(self, places: NDArray[np.int64]) -> _Rows:
        return _Rows(_as_slice(places) or self._ids(places), 1)

    def _decode_groups(self, slots: list[NDArray[np.int64]]) -> list[_Group]:
        """One padded group when that copies little; else a group for each sequence, on the spot."""
        longest = max((len(places) for places in slots), default=0)
        on_cpu = torch.device(self._device).type == "cpu"
        copied, most = (longest, _COPIED_ROWS) if on_cpu else (longest * len(slots), _COPIED_ROWS_GPU)
        if len(slots) == 1 or copied > most:
            return [
                _Group(i, 1, 1, self._rows(places), len(places), None, False)
                for i, places in enumerate(slots)
            ]
        if not slots:
            return []
        # Padding reads the sequence's own first position: memory nobody has written yet may hold nan.
        padded = np.stack([np.pad(p, (0, longest - len(p)), constant_values=p[0]) for p in slots])
        lengths = np.array([len(places) for places in slots])
        mask = np.where(np.arange(longest) < lengths[:, None], 0.0, -np.inf)[:, None, None]
        rows = _Rows(self._ids(padded.reshape(-1)), len(slots))
        return [_Group(0, len(slots), 1, rows, longest, self._mask(mask), False)]

    def _prefill_group(self, first: int, chunk: Chunk, places: NDArray[np.int64]) -> _Group:
        mask = None
        if chunk.start > 0:
            queries = np.arange(chunk.start, len(places))[:, None]
            mask = self._mask(np.where(np.arange(len(places)) <= queries, 0.0, -np.inf)[None, None])
        rows = self._rows(places)
        return _Group(first, 1, len(chunk.token_ids), rows, len(places), mask, mask is None)

    def _mask(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(device=self._device, dtype=self._dtype)

    def attend_gqa(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float) -> Tensor:
        keys, values = self._cache.layers[layer]
        self.write(keys, k_TKH)
        self.write(values, v_TKH)
        heads_per_kv = q_TNH.shape[1] // k_TKH.shape[1]
        outs = []
        for group in self._groups:
            k, v, q = group.rows.of(keys), group.rows.of(values), q_TNH[group.tokens]
            if (
                group.length == 1
            ):  # the heads of one key-value head are its queries: k and v are read once for all
                q_BGKH = q.unflatten(1, (-1, heads_per_kv)).transpose(1, 2)
                out = attention(q_BGKH, k, v, scale, mask=group.mask)
                outs.append(out.transpose(1, 2).flatten(1, 2))
            else:
                out = attention(q[None], k, v, scale, mask=group.mask, causal=group.causal)
                outs.append(out[0])
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def attend_mla(
        self,
        layer: int,
        q_nope_TNH: Tensor,
        q_rope_TNP: Tensor,
        latent_TC: Tensor,
        k_rope_TP: Tensor,
        kv_b_weight: Tensor,
        scale: float,
    ) -> Tensor:
        (cache,) = self._cache.layers[layer]
        self.write(cache, torch.cat([latent_TC, k_rope_TP], -1))
        latent, rope = latent_TC.shape[-1], k_rope_TP.shape[-1]
        heads, nope = q_nope_TNH.shape[1:]
        value = kv_b_weight.shape[0] // heads - nope
        outs = []
        for group in self._groups:
            rows = (group.batch, group.length)
            q_nope, q_rope = (q[group.tokens].unflatten(0, rows) for q in (q_nope_TNH, q_rope_TNP))
            cached = group.rows.of(cache)
            if absorbed_is_cheaper(
                group.length, group.cached, nope=nope, rope=rope, value=value, latent=latent
            ):
                out = mla_absorbed_cached(
                    q_nope, q_rope, cached, kv_b_weight, scale, mask=group.mask, causal=group.causal
                )
            else:
                latent_BSC, k_rope_BSP = cached.split([latent, rope], -1)
                out = mla_expanded(
                    q_nope,
                    q_rope,
                    latent_BSC,
                    k_rope_BSP,
                    kv_b_weight,
                    scale,
                    mask=group.mask,
                    causal=group.causal,
                )
            outs.append(out.flatten(0, 1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def routed(self, layer: int, expert_ids_TK: Tensor, scores_TE: Tensor) -> None:
        if self.routing is not None:
            self.routing.append(expert_ids_TK)

    def write(self, cache: Tensor, new: Tensor) -> None:
        """Store a row for each new token of the step."""
        if isinstance(self.new, slice):
            cache[self.new] = new
        else:
            cache.index_copy_(0, self.new, new)


class TorchRunner:
    """Runs a `CausalLM` for an engine; see `runner.Runner` for the contract.

    `cache_positions` is how many tokens the cache holds for all sequences together.
    """

    def __init__(
        self,
        network: CausalLM,
        *,
        cache_positions: int,
        block_size: int = 32,
        prefill_chunk: int | None = None,
    ):
        self.network = network.eval().requires_grad_(False)
        weight = network.model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.vocab_size = network.config.vocab_size
        self.max_positions = network.config.max_position_embeddings
        self.block_size = block_size
        self.cache_blocks = max(1, cache_positions // block_size)
        self.prefill_chunk = prefill_chunk or (256 if self.device.type == "cpu" else 2048)
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.has_mtp = network.mtp_modules > 0
        positions = self.cache_blocks * block_size
        self.cache = Cache(network.config, positions, dtype=self.dtype, device=self.device, mtp=self.has_mtp)
        self.block_bytes = self.cache.bytes_per_token * block_size
        self.adapters: dict[str, Adapter] = {}
        self._selection = adaptable(network)
        self.cache_layout = f"torch-1-{self.dtype}-{block_size}{'-mtp' * self.has_mtp}"

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> RunnerOutput:
        for chunk in chunks:
            if chunk.adapter is not None and chunk.adapter not in self.adapters:
                raise ShoalError(f"adapter {chunk.adapter!r} is unknown: nobody loaded it")
        asked = [chunk.adapter for chunk in chunks]
        alone = {name for name in set(asked) if name is not None and by_weight(self.adapters[name])}
        if alone and len(set(asked)) > 1:  # these change a matrix that all rows share: a pass for each
            return self._apart(chunks, alone)
        order = sorted(range(len(chunks)), key=lambda i: len(chunks[i].token_ids) > 1)  # decodes first
        ordered = [chunks[i] for i in order]
        context = self._context(ordered, keep_routing=any(chunk.routing for chunk in chunks))
        ids = np.concatenate([np.asarray(chunk.token_ids, dtype=np.int64) for chunk in ordered])
        with self._selection.use(self._parts(ordered)):
            return self._pass(chunks, ordered, order, ids, context)

    def _pass(
        self,
        chunks: Sequence[Chunk],
        ordered: Sequence[Chunk],
        order: list[int],
        ids: NDArray[np.int64],
        context: PagedContext,
    ) -> RunnerOutput:
        hidden_TD = self.network(torch.from_numpy(ids).to(self.device), context)
        if self.cache.hidden is not None:
            context.write(self.cache.hidden, hidden_TD)
        ends = np.cumsum([len(chunk.token_ids) for chunk in ordered])
        wanted = np.concatenate([np.arange(e - c.logits, e) for e, c in zip(ends, ordered, strict=True)])
        if len(wanted) != len(ids):
            hidden_TD = hidden_TD[torch.from_numpy(wanted).to(self.device)]
        logits = _to_numpy(self.network.logits(hidden_TD)) if len(wanted) else np.empty((0, self.vocab_size))
        output = RunnerOutput(logits=_split(logits, [chunk.logits for chunk in ordered], order))
        if any(chunk.hidden for chunk in chunks):
            parts = _split(_to_numpy(hidden_TD), [chunk.logits for chunk in ordered], order)
            output.hidden.extend(p if c.hidden else None for p, c in zip(parts, chunks, strict=True))
        if context.routing:
            routing = torch.stack(context.routing, 1).to("cpu", torch.int32).numpy()
            pieces = _split(routing, [len(chunk.token_ids) for chunk in ordered], order)
            output.routing.extend(p if c.routing else None for p, c in zip(pieces, chunks, strict=True))
        return output

    def _parts(self, ordered: Sequence[Chunk]) -> list[tuple[Adapter, Tensor | None]]:
        """Which tokens of the step go through which adapter."""
        places: dict[str, list[NDArray[np.int64]]] = {}
        start = 0
        for chunk in ordered:
            if chunk.adapter is not None:
                places.setdefault(chunk.adapter, []).append(np.arange(start, start + len(chunk.token_ids)))
            start += len(chunk.token_ids)
        parts = {name: np.concatenate(rows) for name, rows in places.items()}
        return [
            (self.adapters[name], None if len(rows) == start else torch.from_numpy(rows).to(self.device))
            for name, rows in parts.items()
        ]

    def _apart(self, chunks: Sequence[Chunk], alone: set[str]) -> RunnerOutput:
        """The chunks in several passes, their results in order."""
        groups: dict[str | None, list[int]] = {}
        for i, chunk in enumerate(chunks):
            groups.setdefault(chunk.adapter if chunk.adapter in alone else None, []).append(i)
        found: dict[int, tuple[Any, Any, Any]] = {}
        for members in groups.values():
            output = self.run([chunks[i] for i in members])
            nothing = [None] * len(members)
            parts = (output.logits, output.hidden or nothing, output.routing or nothing)
            found |= dict(zip(members, zip(*parts, strict=True), strict=True))
        logits, hidden, routing = zip(*(found[i] for i in range(len(chunks))), strict=True)
        return RunnerOutput(
            list(logits),
            list(hidden) if any(chunk.hidden for chunk in chunks) else [],
            list(routing) if any(chunk.routing for chunk in chunks) else [],
        )

    def load_adapter(self, name: str, factors: Mapping[str, tuple[Any, Any, float]]) -> None:
        adapter = from_arrays(factors)
        known = targets(self.network, ["all-linear", "lm_head"])
        for module, f in adapter.factors.items():
            shape = (*f.b.shape[:-1], f.a.shape[-1])
            if known.get(module) != shape:
                raise ShoalError(f"adapter {name!r} changes {module}, but not to the shape it has here")
            f.a, f.b = f.a.to(self.device), f.b.to(self.device)
        self.adapters[name] = adapter

    def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    @torch.inference_mode()
    def draft(self, chunks: Sequence[DraftChunk]) -> list[list[int]]:
        """The first MTP module over the positions given, then over its own output, one position at a time."""
        assert self.cache.hidden is not None
        drafts: list[list[int]] = [[] for _ in chunks]
        nexts: list[tuple[int, Sequence[int], int, Tensor | None]] = [
            (i, chunk.token_ids, chunk.start, None) for i, chunk in enumerate(chunks)
        ]
        while nexts:
            nexts.sort(key=lambda each: len(each[1]) > 1)
            rows = [Chunk(ids, start, chunks[i].block_table) for i, ids, start, _ in nexts]
            context = self._context(rows)
            hidden_TD = torch.cat(
                [
                    self.cache.hidden[self._places(row)] if h is None else h
                    for row, (*_, h) in zip(rows, nexts, strict=True)
                ]
            )
            ids = torch.tensor([token for row in rows for token in row.token_ids], device=self.device)
            out_TD = self.network.mtp_forward(0, hidden_TD, ids, context)
            lasts = np.cumsum([len(row.token_ids) for row in rows]) - 1
            best = self.network.logits(out_TD[torch.from_numpy(lasts).to(self.device)]).argmax(-1).tolist()
            after: list[tuple[int, Sequence[int], int, Tensor | None]] = []
            for (i, ids_, start, _), token, last in zip(nexts, best, lasts, strict=True):
                if len(drafts[i]) < chunks[i].count:
                    drafts[i].append(token)
                if len(drafts[i]) < chunks[i].count:
                    after.append((i, [token], start + len(ids_), out_TD[last : last + 1]))
            nexts = after
        return drafts

    def _context(self, chunks: Sequence[Chunk], *, keep_routing: bool = False) -> PagedContext:
        return PagedContext(
            chunks,
            self.cache,
            block_size=self.block_size,
            dtype=self.dtype,
            device=self.device,
            keep_routing=keep_routing,
        )

    def _places(self, chunk: Chunk) -> Tensor:
        """Cache rows of the chunk's own tokens."""
        return torch.from_numpy(_slots(chunk, self.block_size)[chunk.start :]).to(self.device)

    @torch.inference_mode()
    def read_block(self, block: int) -> NDArray[np.uint8]:
        rows = slice(block * self.block_size, (block + 1) * self.block_size)
        parts = [t[rows].contiguous().view(torch.uint8).flatten() for t in self.cache.tensors()]
        return torch.cat(parts).cpu().numpy()

    @torch.inference_mode()
    def write_block(self, block: int, contents: Any) -> None:
        rows = slice(block * self.block_size, (block + 1) * self.block_size)
        data, at = torch.frombuffer(bytearray(contents), dtype=torch.uint8), 0
        for tensor in self.cache.tensors():
            size = tensor[rows].numel() * tensor.element_size()
            tensor[rows] = data[at : at + size].view(tensor.dtype).view(tensor[rows].shape).to(self.device)
            at += size

    @torch.inference_mode()
    def copy_block(self, source: int, target: int) -> None:
        for tensor in self.cache.tensors():
            blocks = tensor.unflatten(0, (-1, self.block_size))
            blocks[target] = blocks[source]

    @torch.inference_mode()
    def refresh_weights(self, tensors: Mapping[str, Any]) -> None:
        own = self.network.state_dict()
        for name, value in tensors.items():
            if name not in own or own[name].shape != torch.as_tensor(value).shape:
                raise ShoalError(
                    f"no weight {name!r} of that shape in this model", hint="Is it the same model?"
                )
        for name, value in tensors.items():
            own[name].copy_(torch.as_tensor(value))

    def close(self) -> None:
        del self.cache, self.network


def load(
    path: Path,
    *,
    dtype: str,
    device: str,
    mtp: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CausalLM:
    """The network of a checkpoint, computed in `dtype` (a name: "float32", "bfloat16", "float16") on `device`;
    `mtp`: with its multi-token prediction modules, where the checkpoint has them."""
    mtp = mtp and inspect(path).has_mtp
    return load_network(path, dtype=getattr(torch, dtype), device=device, mtp=mtp, progress=progress)


def fastest_dtype(device: str) -> str:
    """float32 or bfloat16, by measurement (about a second, cached)."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if device == "cpu" and x86 and "AVX512" not in torch.backends.cpu.get_cpu_capability().upper():
        return "float32"  # no bf16 units without AVX-512: nothing to measure
    return probe(device).best_dtype


def free_bytes(device: str) -> int:
    """Memory that is free on a device now; a careful guess where the system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 4 * 2**30


def cache_token_bytes(config: ModelConfig, number_bytes: int, mtp: bool) -> int:
    """Of a cached position, all layers."""
    numbers = (config.num_hidden_layers + mtp) * kv_numbers_per_token(config) + mtp * config.hidden_size
    return number_bytes * numbers


def absorbed_is_cheaper(length: int, cached: int, *, nope: int, rope: int, value: int, latent: int) -> bool:
    """Compares the multiplications of a head: expanding S latents and attending over narrow heads, or absorbing
    L queries and attending over the latents themselves."""
    expanded = cached * latent * (nope + value) + length * cached * (nope + rope + value)
    absorbed = length * latent * (nope + value) + length * cached * (2 * latent + rope)
    return absorbed < expanded


def _slots(chunk: Chunk, block_size: int) -> NDArray[np.int64]:
    """Cache rows of positions 0 .. end of a chunk."""
    end = chunk.start + len(chunk.token_ids)
    table = np.asarray(chunk.block_table, dtype=np.int64)
    return (table[:, None] * block_size + np.arange(block_size)).reshape(-1)[:end]


def _as_slice(places: NDArray[np.int64]) -> slice | None:
    """The same places as a slice, where they are neighbours in order."""
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 == len(places) and (len(places) < 3 or bool((np.diff(places) == 1).all())):
        return slice(first, last + 1)
    return None


def _to_numpy(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def _split(values: NDArray[Any], lengths: list[int], order: list[int]) -> list[NDArray[Any]]:
    """Cut rows into parts of these lengths and put them back into the caller's order."""
    parts: list[NDArray[Any]] = [values[:0]] * len(order)
    for place, part in zip(order, np.split(values, np.cumsum(lengths)[:-1]), strict=True):
        parts[place] = part
    return parts
