"""Head and cross-entropy in one, in chunks of tokens: the [T, V] logits never stand in memory at once.

Legend: T tokens, D hidden, V vocabulary. torch computes the head and the loss apart, so that logits, their softmax and
its gradient (3 x 67 MB at 4096 x 4096 in fp32) are written and read from memory. Here the gradients of a chunk are
made while its logits are still in the cache; the backward pass only scales them. A chunk costs the same three matrix
products, nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.ops.logit_chunks import cached_rows, logit_chunks

IGNORED = -100


def linear_cross_entropy_reference(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, *, z_loss: float = 0.0
) -> tuple[Tensor, int]:
    """(sum over valid tokens of -log p(label) + z_loss * logsumexp^2, number of valid tokens); label -100 = ignored."""
    logits_TV = F.linear(hidden_TD, weight_VD).float()
    loss = F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED, reduction="sum")
    valid = labels_T != IGNORED
    if z_loss:
        loss = loss + z_loss * (logits_TV.logsumexp(-1) ** 2 * valid).sum()
    return loss, int(valid.sum())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, z_loss: float) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        tokens = hidden_TD.shape[0]
        grad_hidden = torch.empty_like(hidden_TD) if need_hidden else None
        grad_weight = (
            torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device)
            if need_weight
            else None
        )
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        needed = grad_hidden is not None or grad_weight is not None
        inverse_T1 = hidden_TD.new_empty(tokens, 1)
        for chunk, logits in logit_chunks(hidden_TD, weight_VD):
            for part, rows in cached_rows(chunk, logits):
                labels = labels_T[part, None]
                scores = rows.float()
                highest = scores.amax(-1, keepdim=True)
                scores.sub_(highest)
                label_scores = scores.gather(1, labels)
                total = scores.exp_().sum(-1, keepdim=True)
                log_total = total.log()
                loss += (log_total - label_scores).sum()
                if z_loss:
                    lse = log_total + highest
                    loss += z_loss * (lse * lse).sum()
                    scores.mul_(1 + 2 * z_loss * lse)
                if needed:
                    # d loss / d logits = scores / total, minus 1 at the label. The division waits: it is cheaper on
                    # D numbers.
                    rows.copy_(scores.scatter_add_(1, labels, -total))
                    inverse_T1[part] = 1 / total
            if grad_hidden is not None:
                torch.mul(logits @ weight_VD, inverse_T1[chunk], out=grad_hidden[chunk])
            if grad_weight is not None:
                scaled = hidden_TD[chunk] * inverse_T1[chunk]
                if grad_weight.dtype == scaled.dtype:
                    grad_weight.addmm_(logits.t(), scaled)
                else:
                    grad_weight += logits.t() @ scaled
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grads[0].to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grads[0]).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None


def linear_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, *, z_loss: float = 0.0
) -> tuple[Tensor, int]:
    """`linear_cross_entropy_reference` in chunks; ignored tokens are dropped before the head and cost nothing."""
    kept = (labels_T != IGNORED).nonzero()[:, 0]
    count = kept.shape[0]
    if count < labels_T.shape[0]:
        hidden_TD, labels_T = hidden_TD.index_select(0, kept), labels_T.index_select(0, kept)
    return _LinearCrossEntropy.apply(hidden_TD, weight_VD, labels_T, z_loss), count
