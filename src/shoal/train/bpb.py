"""Bits per byte of held-out text: comparable across tokenizers, and special tokens do not flatter it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal.model.transformer import CausalLM
from shoal.ops.loss import IGNORED
from shoal.train.loop import Batch
from shoal.train.objective import rows_context

LOGIT_ROWS = 1024


@torch.no_grad()
def token_losses(network: CausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """(-log p of each valid label in nats, the labels), fp32, flat."""
    hidden_TD = network(batch.input_ids_BL.flatten(), rows_context(batch, train=False))
    labels_T = batch.labels_BL.flatten()
    kept = (labels_T != IGNORED).nonzero().squeeze(1)
    hidden_TD, labels_T = hidden_TD[kept], labels_T[kept]
    losses = []
    for start in range(0, len(kept), LOGIT_ROWS):
        logits = network.logits(hidden_TD[start : start + LOGIT_ROWS]).float()
        rows = labels_T[start : start + LOGIT_ROWS]
        losses.append(logits.logsumexp(-1) - logits.gather(-1, rows[:, None]).squeeze(1))
    return torch.cat(losses) if losses else torch.zeros(0), labels_T


@torch.no_grad()
def bits_per_byte(network: CausalLM, batches: list[Batch], bytes_of_id: Tensor) -> float:
    """Bits per UTF-8 byte over the labels that spell text; `bytes_of_id` [vocabulary] is 0 for special tokens.

    NaN without any text.
    """
    nats, size = 0.0, 0
    for batch in batches:
        losses, labels = token_losses(network, batch)
        lengths = bytes_of_id.to(labels.device)[labels]
        nats += float(losses[lengths > 0].cpu().double().sum())  # mps has no float64
        size += int(lengths.sum())
    return nats / math.log(2) / size if size else math.nan
