"""Quantised products, attention and the rest of a layer in plain numpy: what `ops/native` computes, to be read first.

R rows (outputs), D columns (inner size), T tokens, N heads, P positions, H head size. Weights are groups of 32 along a
row with one fp16 scale each (`Q8`: -128..127, `Q4`: -8..7, `Q4M`: 0..15 plus an fp16 minimum); activations are int8
groups of 32 with an fp32 scale. A product is an exact integer sum per group, times the two scales, added up in fp32.
Packed bytes are the native kernels' layout: blocks of 16 rows, interleaved (docs/native-kernels.md draws it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ROWS, GROUP, CHUNK = 16, 32, 64
Floats = NDArray[np.float32]
Format = Literal["F32", "BF16", "Q8", "Q4", "Q4M"]


@dataclass(frozen=True)
class Groups:
    """Quantised rows: q [R, D'] (signed, or 0..15 for Q4M), scale [R, D'/32], minimum alike or zero. D' is D padded."""

    q: NDArray[np.int32]
    scale: Floats
    minimum: Floats

    def floats(self) -> Floats:
        """[R, D']."""
        rows, width = self.q.shape
        q = self.q.reshape(rows, -1, GROUP).astype(np.float32)
        return (q * self.scale[..., None] + self.minimum[..., None]).reshape(rows, width)


def padded(cols: int) -> int:
    """D': the inner size that kernels work on."""
    return -(-cols // CHUNK) * CHUNK


def read_packed(kind: Format, data: NDArray[np.uint8], rows: int, cols: int) -> Groups:
    """Groups of packed bytes. A block of 16 rows is chunks of 64 columns; a chunk is, for 4 bits, 8 lines of 64 bytes
    (4 columns of 16 rows; the low halves are columns 0-31, the high halves columns 32-63), for 8 bits 16 lines
    (value + 128), and then the scales of both groups by row, and for Q4M the minima."""
    weights = 1024 if kind == "Q8" else 512
    chunks = data.reshape(-(-rows // ROWS), padded(cols) // CHUNK, -1)
    lines = chunks[..., :weights].reshape(*chunks.shape[:2], -1, 8, ROWS, 4).astype(np.int32)
    if kind == "Q8":
        q = lines - 128
    else:
        q = np.concatenate([lines & 15, lines >> 4], 2) - (8 if kind == "Q4" else 0)
    # [block, chunk, group, line, row, 4] -> [block, row, chunk, group, line, 4]
    q = q.transpose(0, 4, 1, 2, 3, 5).reshape(-1, padded(cols))[:rows]
    halves = np.ascontiguousarray(chunks[..., weights:]).view(np.float16).astype(np.float32)
    halves = halves.reshape(*chunks.shape[:2], -1, 2, ROWS).transpose(2, 0, 4, 1, 3)
    scale, *minimum = halves.reshape(halves.shape[0], -1, padded(cols) // GROUP)[:, :rows]
    return Groups(q, scale, minimum[0] if minimum else np.zeros_like(scale))


def quantise(x: Floats) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]:
    """Activations [T, D] -> int8 [T, D'], scales [T, D'/32] (largest magnitude / 127), sums of the integers."""
    tokens, cols = x.shape
    wide = np.zeros((tokens, padded(cols)), np.float32)
    wide[:, :cols] = x
    groups = wide.reshape(tokens, -1, GROUP)
    top = np.abs(groups).max(-1, keepdims=True)
    live = top > 1e-30
    inverse = np.where(live, np.float32(127) / np.where(live, top, 1), 0).astype(np.float32)
    q = np.rint(groups * inverse).astype(np.int8)
    scale = np.where(live, top / np.float32(127), 0).astype(np.float32)[..., 0]
    return q.reshape(tokens, -1), scale, q.sum(-1, dtype=np.int32)


def matmul(weights: Groups, x: Floats) -> Floats:
    """[T, R]: x [T, D] quantised, times the rows; integer sums per group, groups added in ascending order."""
    q, scale, sums = quantise(x)
    tokens, rows = len(q), len(weights.q)
    dots = np.einsum(
        "tgi,rgi->gtr",
        q.reshape(tokens, -1, GROUP).astype(np.int64),
        weights.q.reshape(rows, -1, GROUP).astype(np.int64),
    )
    total = np.zeros((tokens, rows), np.float32)
    for g, dot in enumerate(dots):
        # A fused multiply-add rounds once: float64 holds the product exactly.
        both = (weights.scale[:, g][None] * scale[:, g][:, None]).astype(np.float64)
        total = (dot * both + total).astype(np.float32)
        bias = (scale[:, g] * sums[:, g].astype(np.float32)).astype(np.float64)
        if weights.minimum.any():
            total = (weights.minimum[:, g][None] * bias[:, None] + total).astype(np.float32)
    return total


def attention(k: Floats, v: Floats, q: Floats, scale: float) -> Floats:
    """[Q, N, V] in float64: the last Q positions of a sequence look back over k [P, N_kv, H] and v [P, N_kv, V], which
    are rounded to fp16 as the cache does."""
    positions, queries = len(k), len(q)
    group = q.shape[1] // k.shape[1]
    limit = np.finfo(np.float16).max
    keys, values = (
        np.repeat(np.clip(x, -limit, limit).astype(np.float16).astype(np.float64), group, 1) for x in (k, v)
    )
    scores: NDArray[Any] = np.einsum("qnh,pnh->qnp", q.astype(np.float64), keys) * scale
    seen = np.arange(positions)[None] <= np.arange(positions - queries, positions)[:, None]
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("qnp,pnv->qnv", weights / weights.sum(-1, keepdims=True), values).astype(np.float32)


def rmsnorm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x [T, D] over its root mean square, times the weight [D]."""
    wide = x.astype(np.float64)
    return (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * weight).astype(np.float32)


def rope(x: Floats, cos: Floats, sin: Floats, interleaved: bool) -> Floats:
    """Heads [N, H] with their first 2 len(cos) numbers rotated: pairs (i, i + half), or neighbours."""
    out, dim = x.astype(np.float64), 2 * len(cos)
    first, second = (
        (out[:, 0:dim:2], out[:, 1:dim:2]) if interleaved else (out[:, : dim // 2], out[:, dim // 2 : dim])
    )
    first[:], second[:] = first * cos - second * sin, second * cos + first * sin
    return out.astype(np.float32)


def silu_mul(gate: Floats, up: Floats) -> Floats:
    """gate sigmoid(gate) up."""
    wide = gate.astype(np.float64)
    return (wide / (1 + np.exp(-np.maximum(wide, -700))) * up).astype(np.float32)
