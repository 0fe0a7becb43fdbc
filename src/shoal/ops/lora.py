"""A frozen linear layer with a low-rank update (LoRA, 2106.09685) as one operation.

Legend: T tokens, D in, F out, r rank. torch computes x W^T, (x A^T) B^T, scale and sum apart and keeps what each
needs; here both products add up where they lie, forwards and backwards, and the frozen weight never has a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_linear_reference(
    x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None, a_rD: Tensor, b_Fr: Tensor, scale: float
) -> Tensor:
    """x W^T + bias + scale * (x A^T) B^T -> [T, F]."""
    return F.linear(x_TD, weight_FD, bias_F) + F.linear(F.linear(x_TD, a_rD), b_Fr) * scale


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_FD: Tensor,
        bias_F: Tensor | None,
        a_rD: Tensor,
        b_Fr: Tensor,
        scale: float,
    ) -> Tensor:
        a, b = a_rD.to(x_TD.dtype), b_Fr.to(x_TD.dtype)
        low_Tr = x_TD @ a.t()
        ctx.save_for_backward(x_TD, weight_FD, a, b, low_Tr)
        ctx.scale, ctx.dtypes = scale, (a_rD.dtype, b_Fr.dtype)
        return F.linear(x_TD, weight_FD, bias_F).addmm_(low_Tr, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_TD, weight_FD, a, b, low_Tr = ctx.saved_tensors
        grad_TF = grads[0]
        grad_low = (grad_TF @ b).mul_(ctx.scale)
        grad_x = (grad_TF @ weight_FD).addmm_(grad_low, a) if ctx.needs_input_grad[0] else None
        grad_a = (grad_low.t() @ x_TD).to(ctx.dtypes[0])
        grad_b = (grad_TF.t() @ low_Tr).mul_(ctx.scale).to(ctx.dtypes[1])
        return grad_x, None, None, grad_a, grad_b, None


def lora_linear(
    x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None, a_rD: Tensor, b_Fr: Tensor, scale: float
) -> Tensor:
    """`lora_linear_reference` for a frozen weight, under autocast in its dtype."""
    kind = x_TD.device.type
    if not torch.is_autocast_enabled(kind):
        return _LoraLinear.apply(x_TD, weight_FD, bias_F, a_rD, b_Fr, scale)
    dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        bias = None if bias_F is None else bias_F.to(dtype)
        return _LoraLinear.apply(x_TD.to(dtype), weight_FD.to(dtype), bias, a_rD, b_Fr, scale)
