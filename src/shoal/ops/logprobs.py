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

_CHUNK_BYTES = 16 * 2**20  # of fp32 logits


def linear_logprobs_reference(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log p(label) [T], entropy [T] in nats without gradient) of softmax(hidden weight^T / temperature), fp32."""
    logprobs_TV = (F.linear(hidden_TD, weight_VD).float() / temperature).log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    return logprobs_TV.gather(-1, labels_T[:, None])[:, 0], entropy_T.detach()


def _chunk(vocabulary: int) -> int:
    return max(64, _CHUNK_BYTES // (4 * vocabulary))


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_TD.shape[0]
        logprobs, lse, entropy = (hidden_TD.new_empty(tokens, dtype=torch.float32) for _ in range(3))
        size = _chunk(weight_VD.shape[0])
        for start in range(0, tokens, size):
            part = slice(start, start + size)
            scores = F.linear(hidden_TD[part], weight_VD).float() / temperature
            lse[part] = scores.logsumexp(-1)
            logprobs[part] = scores.gather(1, labels_T[part, None])[:, 0] - lse[part]
            entropy[part] = lse[part] - ((scores - lse[part, None]).exp() * scores).sum(-1)
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
        size = _chunk(weight_VD.shape[0])
        for start in range(0, hidden_TD.shape[0], size):
            part = slice(start, start + size)
            hidden = hidden_TD[part]
            scores = F.linear(hidden, weight_VD).float() / ctx.temperature
            scores = scores.sub_(lse[part, None]).exp_().neg_()  # d log p / d score = 1[label] - p
            scores.scatter_add_(1, labels_T[part, None], torch.ones_like(scores[:, :1]))
            scores = scores.mul_(grads[0][part, None] / ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = scores @ weight_VD
            if grad_weight is not None:
                grad_weight += scores.t() @ hidden
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
