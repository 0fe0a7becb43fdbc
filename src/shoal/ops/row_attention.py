"""Causal attention over packed rows, forward and backward, for training on a CPU.

Legend: B rows, L positions, N heads, H query/key head dim, V value head dim. torch's fused CPU kernel makes the
scores a second time in its backward pass, computes what a mask hides, and wants values as wide as keys. Training
rows are short: the weights of one row stay in the cache and are worth keeping. A row is cut into blocks of queries,
and a block meets only the keys between its first document's start and its own end. At 16 rows x 4 heads x 256 with
heads of 48 and 32 (one Zen 4 core) forward and backward take 36 ms without documents, 49 ms by torch's kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

QUERY_BLOCK = 64
_LONGEST = 512
"""Longer rows would keep too many weights (they grow with the square) and gain less."""


def suits(q_BLNH: Tensor, k_BLKH: Tensor) -> bool:
    """Whether `row_attention` is the faster way: training, fp32, on a CPU, short rows, a key head per query head."""
    return (
        torch.is_grad_enabled()
        and q_BLNH.requires_grad
        and q_BLNH.device.type == "cpu"
        and q_BLNH.dtype == torch.float32
        and q_BLNH.shape[1] <= _LONGEST
        and q_BLNH.shape[2] == k_BLKH.shape[2]
    )


def first_keys(seen_BLL: Tensor) -> list[list[int]]:
    """For every row and block of queries the first key that one of them sees; from the mask (True = seen)."""
    blocks = [block.any(1).int().argmax(-1) for block in seen_BLL.split(QUERY_BLOCK, dim=1)]
    return torch.stack(blocks, 1).tolist()


class _RowAttention(torch.autograd.Function):
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
        q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNV))
        (rows, heads, length), out = q.shape[:3], torch.empty(v.shape, dtype=v.dtype)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), -torch.inf).triu(1)
        weights = []
        for row in range(rows):
            for block, start in enumerate(range(0, length, QUERY_BLOCK)):
                end, first = min(start + QUERY_BLOCK, length), firsts[row][block] if firsts else 0
                w = q.new_empty(heads, end - start, end - first)
                torch.baddbmm(w, q[row, :, start:end], k[row, :, first:end].mT, beta=0, alpha=scale, out=w)
                if mask_BLL is None:
                    w[..., start - first :] += future[: end - start, : end - start]
                else:
                    w += mask_BLL[row, start:end, first:end]
                torch.softmax(w, -1, out=w)
                torch.bmm(w, v[row, :, first:end], out=out[row, :, start:end])
                weights.append(w)
        ctx.save_for_backward(q, k, v, out, *weights)
        ctx.scale, ctx.firsts = scale, firsts
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *weights = ctx.saved_tensors
        scale, firsts, g = ctx.scale, ctx.firsts, grads[0].transpose(1, 2)
        length = q.shape[2]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (g * out).sum(-1, keepdim=True)  # of a query's gradients over its keys, by its weights
        blocks = iter(weights)
        for row in range(q.shape[0]):
            for block, start in enumerate(range(0, length, QUERY_BLOCK)):
                end, first = min(start + QUERY_BLOCK, length), firsts[row][block] if firsts else 0
                w, g_block, dq_block = next(blocks), g[row, :, start:end], dq[row, :, start:end]
                dv[row, :, first:end].baddbmm_(w.mT, g_block)
                dw = torch.bmm(g_block, v[row, :, first:end].mT).sub_(mean[row, :, start:end]).mul_(w)
                torch.baddbmm(dq_block, dw, k[row, :, first:end], beta=0, alpha=scale, out=dq_block)
                dk[row, :, first:end].baddbmm_(dw.mT, q[row, :, start:end], alpha=scale)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None, None


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
