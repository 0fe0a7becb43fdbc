"""Causal attention over packed rows, forward and backward, for training on a CPU.

Legend: B rows, L queries, S keys (the queries are the last L of S positions), K key heads, r query heads of each, N =
K r, H query/key head dim, V value head dim. torch's fused CPU kernel makes the scores a second time in its backward
pass, computes what a mask hides, and wants values as wide as keys. Training rows are short: the weights of one row
stay in the cache and are worth keeping. A row is cut into blocks of queries, and a block meets only the keys between
its first document's start and its own end. MLA at 16 rows x 4 heads x 256 with heads of 48 and 32, forward and
backward (one Zen 4 core, busy): 55 ms causal, 51 ms with documents of 100 tokens; torch's kernel 74 and 73 ms. bf16
operands are widened to fp32 here: even on a core with bf16 tiles torch's kernel takes about twice as long as that,
and the scores lose nothing. Answers of a group behind their question (8 x 64 queries, 130 keys, 9 heads on 3; one
Sapphire Rapids core, busy): 11 ms in bf16, torch's kernel 25.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

QUERY_BLOCK = 64
_PIECE_NUMBERS = 2**19
"""Weights made at once: 2 MB of fp32, near a core's second-level cache."""
_LONGEST = 512
"""Longer rows would keep too many weights (they grow with the square) and gain less."""


_FP32_LEAST = 128
"""Queries; below, torch's fp32 kernel is as fast."""


def suits(q_BLNH: Tensor, k_BSKH: Tensor) -> bool:
    """Whether `row_attention` is the faster way: training on a CPU, short rows; very short ones only in bf16."""
    return (
        torch.is_grad_enabled()
        and q_BLNH.requires_grad
        and q_BLNH.device.type == "cpu"
        and (
            q_BLNH.dtype == torch.bfloat16
            or (q_BLNH.dtype == torch.float32 and q_BLNH.shape[1] >= _FP32_LEAST)
        )
        and q_BLNH.shape[1] * k_BSKH.shape[1] <= _LONGEST**2
    )


def first_keys(seen_BLL: Tensor) -> list[list[int]]:
    """For every row and block of queries the first key that one of them sees; from the mask (True = seen)."""
    blocks = [block.any(1).int().argmax(-1) for block in seen_BLL.split(QUERY_BLOCK, dim=1)]
    return torch.stack(blocks, 1).tolist()


def _pieces(
    rows: int, heads: int, length: int, before: int, firsts: Sequence[Sequence[int]] | None
) -> Iterator[tuple[slice, slice, slice]]:
    """(rows, queries, keys) of every step: as many rows at once as keep the weights in the cache.

    `before`: keys in front of the first query's own.
    """
    together = max(1, _PIECE_NUMBERS // (heads * min(QUERY_BLOCK, length) * (before + length)))
    for row in range(0, rows, together):
        group = slice(row, min(row + together, rows))
        for block, start in enumerate(range(0, length, QUERY_BLOCK)):
            end = min(start + QUERY_BLOCK, length)
            first = min(firsts[r][block] for r in range(group.start, group.stop)) if firsts else 0
            yield group, slice(start, end), slice(first, before + end)


def _heads_first(x_BLNH: Tensor) -> Tensor:
    """fp32 [B*N, L, H], so that a product over a few rows is one call."""
    return x_BLNH.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


class _RowAttention(torch.autograd.Function):
    """Queries as fp32 [B*K, r, L, width], keys and values as [B*K, S, width]: the query heads of a key head are more
    rows of the same products. What the backward pass needs is kept in the operands' dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BLNH: Tensor,
        k_BSKH: Tensor,
        v_BSKV: Tensor,
        scale: float,
        mask_BLS: Tensor | None,
        firsts: Sequence[Sequence[int]] | None,
    ) -> Tensor:
        rows, length, heads, _ = q_BLNH.shape
        kv_heads = k_BSKH.shape[2]
        sizes = rows, heads, length, k_BSKH.shape[1] - length, firsts
        q, k, v = (_heads_first(x) for x in (q_BLNH, k_BSKH, v_BSKV))
        q = q.unflatten(0, (rows * kv_heads, -1))
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), -torch.inf).triu(1)
        weights = []
        for group, queries, keys in _pieces(*sizes):
            some = slice(group.start * kv_heads, group.stop * kv_heads)
            few = q[some, :, queries].flatten(1, 2)
            w = few.new_empty(*few.shape[:2], keys.stop - keys.start)
            torch.baddbmm(w, few, k[some, keys].mT, beta=0, alpha=scale, out=w)
            by_query = w.view(group.stop - group.start, -1, queries.stop - queries.start, w.shape[-1])
            if mask_BLS is None:
                size = by_query.shape[2]
                by_query[..., -size:] += future[:size, :size]
            else:
                by_query += mask_BLS[group, None, queries, keys]
            torch.softmax(w, -1, out=w)
            out[some, :, queries] = torch.bmm(w, v[some, keys]).unflatten(1, (q.shape[1], -1))
            weights.append(w.to(q_BLNH.dtype))
        out_BLNV = out.view(rows, heads, length, -1).transpose(1, 2).to(q_BLNH.dtype)
        ctx.save_for_backward(q_BLNH, k_BSKH, v_BSKV, out_BLNV, *weights)
        ctx.scale, ctx.sizes = scale, sizes
        return out_BLNV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BLNH, k_BSKH, v_BSKV, out_BLNV, *weights = ctx.saved_tensors
        rows, heads, length = ctx.sizes[:3]
        kv_heads = k_BSKH.shape[2]
        q, k, v, g, out = (_heads_first(x) for x in (q_BLNH, k_BSKH, v_BSKV, grads[0], out_BLNV))
        q, g, out = (x.unflatten(0, (rows * kv_heads, -1)) for x in (q, g, out))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (g * out).sum(-1, keepdim=True)  # of a query's gradients over its keys, by its weights
        for w, (group, queries, keys) in zip(weights, _pieces(*ctx.sizes), strict=True):
            some, w = slice(group.start * kv_heads, group.stop * kv_heads), w.float()
            g_some, q_some, mean_some = (x[some, :, queries].flatten(1, 2) for x in (g, q, mean))
            dv[some, keys] += torch.bmm(w.mT, g_some)
            dw = torch.bmm(g_some, v[some, keys].mT).sub_(mean_some).mul_(w).mul_(ctx.scale)
            dq[some, :, queries] = torch.bmm(dw, k[some, keys]).unflatten(1, (q.shape[1], -1))
            dk[some, keys] += torch.bmm(dw.mT, q_some)
        dq = dq.view(rows, heads, length, -1)
        dk, dv = (x.unflatten(0, (rows, -1)) for x in (dk, dv))
        return *(x.transpose(1, 2).to(q_BLNH.dtype) for x in (dq, dk, dv)), None, None, None


def row_attention(
    q_BLNH: Tensor,
    k_BSKH: Tensor,
    v_BSKV: Tensor,
    scale: float,
    *,
    mask_BLS: Tensor | None = None,
    firsts: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """`attention.attention_reference` with a causal mask, or with one of its own -> [B, L, N, V].

    The queries are the last L of the S positions; query heads share key heads in order (N a multiple of K).
    mask_BLS: added to the scores; it must hide the future itself. firsts: `first_keys` of the same mask.
    """
    return _RowAttention.apply(q_BLNH, k_BSKH, v_BSKV, scale, mask_BLS, firsts)
