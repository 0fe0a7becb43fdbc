"""The routed experts of a DeepSeekMoE layer: K of E small SwiGLU networks per token, no token dropped.

Legend: T tokens, D hidden, E experts, K experts per token, F expert width, R = T*K rows sorted by expert.
torch has no such layer; what it has (`grouped_mm`) needs sorted rows and a way back. Both moves are gathers in the
forward and in the backward pass here, where plain indexing would scatter-add in one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def experts_reference(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """sum_k weights[t, k] * down(silu(gate x_t) * up x_t) of expert ids[t, k] -> [T, D], one expert at a time."""
    out_TD = torch.zeros_like(x_TD)
    for expert in range(gate_EFD.shape[0]):
        tokens, slots = torch.where(ids_TK == expert)
        x = x_TD[tokens]
        h = F.silu(F.linear(x, gate_EFD[expert])) * F.linear(x, up_EFD[expert])
        y = F.linear(h, down_EDF[expert]) * weights_TK[tokens, slots, None].to(x.dtype)
        out_TD = out_TD.index_add(0, tokens, y)
    return out_TD


class _Dispatch(torch.autograd.Function):
    """x [T, D] -> rows [R, D], row r a copy of token token_of_row[r]; the backward pass gathers too."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_of_row: Tensor, row_of_pair: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(row_of_pair)
        ctx.k = k
        return x_TD.index_select(0, token_of_row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (row_of_pair,) = ctx.saved_tensors
        return _sum_of_pairs(grads[0], row_of_pair, ctx.k), None, None, None


class _Combine(torch.autograd.Function):
    """Rows [R, D] -> [T, D], the sum of each token's K rows; the transpose of `_Dispatch`."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, token_of_row: Tensor, row_of_pair: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(token_of_row)
        return _sum_of_pairs(rows_RD, row_of_pair, k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (token_of_row,) = ctx.saved_tensors
        return grads[0].index_select(0, token_of_row), None, None, None


def _sum_of_pairs(rows_RD: Tensor, row_of_pair: Tensor, k: int) -> Tensor:
    """The sum over a token's K rows, gathered slot by slot: [R, D] -> [T, D]."""
    slots = row_of_pair.view(-1, k)
    out = rows_RD.index_select(0, slots[:, 0])
    for slot in range(1, k):
        out += rows_RD.index_select(0, slots[:, slot])
    return out


def grouped_linear(rows_RD: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """rows [R, D], sorted by expert with counts [E] rows each -> [R, F], rows of expert e times weight[e]^T.

    `grouped_mm` where it applies (row lengths a multiple of 16 bytes, a device that has it), else one product per
    expert over splits. Under autocast both operands take its dtype, as in torch's own matrix products (which do not
    count `grouped_mm` among themselves).
    """
    kind = rows_RD.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        rows_RD, weight_EFD = rows_RD.to(dtype), weight_EFD.to(dtype)
    aligned = all(size * rows_RD.element_size() % 16 == 0 for size in weight_EFD.shape[1:])
    if aligned and kind in ("cpu", "cuda"):
        offsets = counts_E.cumsum(0, dtype=torch.int32)
        return F.grouped_mm(rows_RD, weight_EFD.transpose(1, 2), offs=offsets)
    parts = rows_RD.split(counts_E.tolist())
    return torch.cat(
        [F.linear(part, weight) for part, weight in zip(parts, weight_EFD.unbind(), strict=True)]
    )


@dataclass(frozen=True)
class Sorted:
    """The order of rows: sorted by expert, `counts_E` rows each; row r is of token `token_of_row[r]`."""

    counts_E: Tensor
    token_of_row: Tensor

    def of_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of some tokens (indices, in order) and how many of them each expert has."""
        rows = torch.isin(self.token_of_row, tokens).nonzero()[:, 0]
        ends = self.counts_E.cumsum(0)
        expert_of_row = torch.searchsorted(ends, rows, right=True)
        return rows, torch.zeros_like(self.counts_E).scatter_add_(0, expert_of_row, torch.ones_like(rows))


Product = Callable[[int, Tensor, Tensor, Sorted], Tensor]
"""(0 gate, 1 up, 2 down; rows; stack; their order) -> rows; a `grouped_linear` that may add something."""


def _plain(which: int, rows_RD: Tensor, weight_EFD: Tensor, order: Sorted) -> Tensor:
    return grouped_linear(rows_RD, weight_EFD, order.counts_E)


def experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    *,
    product: Product = _plain,
) -> Tensor:
    """`experts_reference` with all rows of an expert side by side and three grouped products.

    A row is weighted before the down projection, which is the same (the projection is linear) and narrower.
    """
    k = ids_TK.shape[1]
    pairs = ids_TK.reshape(-1)
    pair_of_row = pairs.argsort(stable=True)
    row_of_pair = torch.empty_like(pair_of_row)
    row_of_pair[pair_of_row] = torch.arange(pairs.shape[0], device=pairs.device)
    token_of_row = pair_of_row // k
    counts_E = torch.zeros(gate_EFD.shape[0], dtype=pairs.dtype, device=pairs.device)
    counts_E.scatter_add_(0, pairs, torch.ones_like(pairs))
    order = Sorted(counts_E, token_of_row)

    rows_RD = _Dispatch.apply(x_TD, token_of_row, row_of_pair, k)
    h_RF = F.silu(product(0, rows_RD, gate_EFD, order)) * product(1, rows_RD, up_EFD, order)
    h_RF = h_RF * weights_TK.reshape(-1).index_select(0, pair_of_row).to(h_RF.dtype)[:, None]
    return _Combine.apply(product(2, h_RF, down_EDF, order), token_of_row, row_of_pair, k)
