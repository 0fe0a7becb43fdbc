"""Head and log-probabilities in one, in chunks of tokens: the [T, V] logits never stand in memory at once.

Legend: T tokens, D hidden, V vocabulary. A policy's loss needs the log-probability of each sampled token before it
knows that token's weight, so the gradient cannot be made in the forward pass as in loss.py: the backward pass makes
the logits of a chunk again (one matrix product more) instead of keeping T x V numbers three times.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.ops.logit_chunks import cached_rows, logit_chunks


def linear_logprobs_reference(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log p(label) [T], entropy [T] in nats without gradient) of softmax(hidden weight^T / temperature), fp32."""
    logprobs_TV = (F.linear(hidden_TD, weight_VD).float() / temperature).log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    return logprobs_TV.gather(-1, labels_T[:, None])[:, 0], entropy_T.detach()


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprobs, lse, entropy = (
            hidden_TD.new_empty(hidden_TD.shape[0], dtype=torch.float32) for _ in range(3)
        )
        for chunk, logits in logit_chunks(hidden_TD, weight_VD):
            for part, rows in cached_rows(chunk, logits):
                scores = rows.float()
                if temperature != 1:
                    scores.div_(temperature)
                highest = scores.amax(-1, keepdim=True)
                own = scores.gather(1, labels_T[part, None])[:, 0]
                weights = scores.sub_(highest).exp()
                total = weights.sum(-1)
                entropy[part] = total.log() - torch.linalg.vecdot(weights, scores) / total
                lse[part] = total.log() + highest[:, 0]
                logprobs[part] = own - lse[part]
        ctx.save_for_backward(hidden_TD, weight_VD, labels_T, lse)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_TD, weight_VD, labels_T, lse = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_TD) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        grad_T1 = (grads[0] / ctx.temperature)[:, None]
        for chunk, logits in logit_chunks(hidden_TD, weight_VD):
            for part, rows in cached_rows(chunk, logits):
                scores = rows.float()
                if ctx.temperature != 1:
                    scores.div_(ctx.temperature)
                # d log p(label) / d score = 1[label] - p
                scores.sub_(lse[part, None]).exp_().mul_(-grad_T1[part])
                rows.copy_(scores.scatter_add_(1, labels_T[part, None], grad_T1[part]))
            if grad_hidden is not None:
                grad_hidden[chunk] = logits @ weight_VD
            if grad_weight is not None:
                grad_weight += logits.t() @ hidden_TD[chunk]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None, None


def linear_logprobs(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`linear_logprobs_reference` in chunks, under autocast in its dtype."""
    if torch.is_autocast_enabled(hidden_TD.device.type):
        dtype = torch.get_autocast_dtype(hidden_TD.device.type)
        hidden_TD, weight_VD = hidden_TD.to(dtype), weight_VD.to(dtype)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            return _LinearLogprobs.apply(hidden_TD, weight_VD, labels_T, temperature)
    return _LinearLogprobs.apply(hidden_TD, weight_VD, labels_T, temperature)
