"""Causal attention over packed rows, forward and backward, for training on a CPU.

Legend: B rows, L positions, N heads, H query/key head dim, V value head dim. torch's fused CPU kernel makes the
scores a second time in its backward pass, computes what a mask hides, and wants values as wide as keys. Training
rows are short: the weights of one row stay in the cache and are worth keeping. A row is cut into blocks of queries,
and a block meets only the keys between its first document's start and its own end. MLA at 16 rows x 4 heads x 256 with
heads of 48 and 32, forward and backward (one Zen 4 core, busy): 55 ms causal, 51 ms with documents of 100 tokens;
torch's kernel 74 and 73 ms. bf16 operands are widened to fp32 here: even on a core with bf16 tiles torch's kernel takes
about twice as long as that, and the scores lose nothing.
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


def suits(q_BLNH: Tensor, k_BLKH: Tensor) -> bool:
    """Whether `row_attention` is the faster way: training in fp32 or bf16 on a CPU, short rows, a key head per query
    head."""
    return (
        torch.is_grad_enabled()
        and q_BLNH.requires_grad
        and q_BLNH.device.type == "cpu"
        and q_BLNH.dtype in (torch.float32, torch.bfloat16)
        and q_BLNH.shape[1] <= _LONGEST
        and q_BLNH.shape[2] == k_BLKH.shape[2]
    )


def first_keys(seen_BLL: Tensor) -> list[list[int]]:
    """For every row and block of queries the first key that one of them sees; from the mask (True = seen)."""
    blocks = [block.any(1).int().argmax(-1) for block in seen_BLL.split(QUERY_BLOCK, dim=1)]
    return torch.stack(blocks, 1).tolist()


def _pieces(
    rows: int, heads: int, length: int, firsts: Sequence[Sequence[int]] | None
) -> Iterator[tuple[slice, slice, slice]]:
    """(rows, queries, keys) of every step: as many rows at once as keep the weights in the cache."""
    together = max(1, _PIECE_NUMBERS // (heads * QUERY_BLOCK * length))
    for row in range(0, rows, together):
        group = slice(row, min(row + together, rows))
        for block, start in enumerate(range(0, length, QUERY_BLOCK)):
            end = min(start + QUERY_BLOCK, length)
            first = min(firsts[r][block] for r in range(group.start, group.stop)) if firsts else 0
            yield group, slice(start, end), slice(first, end)


def _heads_first(x_BLNH: Tensor) -> Tensor:
    """fp32 [B*N, L, H], so that a product over a few rows is one call."""
    return x_BLNH.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


class _RowAttention(torch.autograd.Function):
    """All operands as fp32 [B*N, L, width]."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BLNH: Tensor,
        k_BLNH: Tensor,
        v_BLNV: Tensor,
        scale: float,
        mask_BLL: Tensor | None,
        firsts: Sequence[Sequence[int]] | None,
    ) -> Tensor:
        rows, length, heads, _ = q_BLNH.shape
        q, k, v = (_heads_first(x) for x in (q_BLNH, k_BLNH, v_BLNV))
        out = torch.empty_like(v)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), -torch.inf).triu(1)
        weights = []
        for group, queries, keys in _pieces(rows, heads, length, firsts):
            some = slice(group.start * heads, group.stop * heads)
            w = q.new_empty(some.stop - some.start, queries.stop - queries.start, keys.stop - keys.start)
            torch.baddbmm(w, q[some, queries], k[some, keys].mT, beta=0, alpha=scale, out=w)
            if mask_BLL is None:
                size = w.shape[1]
                w[..., -size:] += future[:size, :size]
            else:
                w.unflatten(0, (-1, heads)).add_(mask_BLL[group, None, queries, keys])
            torch.softmax(w, -1, out=w)
            out[some, queries] = torch.bmm(w, v[some, keys])
            weights.append(w)
        ctx.save_for_backward(q, k, v, out, *weights)
        ctx.scale, ctx.firsts, ctx.heads, ctx.dtype = scale, firsts, heads, q_BLNH.dtype
        return out.unflatten(0, (rows, heads)).transpose(1, 2).to(q_BLNH.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *weights = ctx.saved_tensors
        scale, heads, rows, length = ctx.scale, ctx.heads, q.shape[0] // ctx.heads, q.shape[1]
        g = _heads_first(grads[0])
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (g * out).sum(-1, keepdim=True)  # of a query's gradients over its keys, by its weights
        pieces = _pieces(rows, heads, length, ctx.firsts)
        for w, (group, queries, keys) in zip(weights, pieces, strict=True):
            some = slice(group.start * heads, group.stop * heads)
            g_some = g[some, queries]
            dv[some, keys] += torch.bmm(w.mT, g_some)
            dw = torch.bmm(g_some, v[some, keys].mT).sub_(mean[some, queries]).mul_(w).mul_(scale)
            dq[some, queries] = torch.bmm(dw, k[some, keys])
            dk[some, keys] += torch.bmm(dw.mT, q[some, queries])
        dq, dk, dv = (x.unflatten(0, (rows, heads)).transpose(1, 2).to(ctx.dtype) for x in (dq, dk, dv))
        return dq, dk, dv, None, None, None


def row_attention(
    q_BLNH: Tensor,
    k_BLNH: Tensor,
    v_BLNV: Tensor,
    scale: float,
    *,
    mask_BLL: Tensor | None = None,
    firsts: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """`attention.attention_reference` with `causal` or with a mask -> [B, L, N, V].

    mask_BLL: added to the scores; it must hide the future itself. firsts: `first_keys` of the same mask.
    """
    return _RowAttention.apply(q_BLNH, k_BLNH, v_BLNV, scale, mask_BLL, firsts)
