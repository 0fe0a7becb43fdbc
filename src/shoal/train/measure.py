"""What is measured on held-out rows after a stage: bits per byte, and how often the draft module is right."""

from __future__ import annotations

import contextlib

import torch

from shoal.model.transformer import CausalLM
from shoal.ops.loss import IGNORED
from shoal.train.bpb import bits_per_byte
from shoal.train.loop import Batch
from shoal.train.objective import after_next, rows_context
from shoal.train.rows import PackedRows


def heldout_batches(rows: PackedRows, tokens: int, device: torch.device) -> list[Batch]:
    """The first `tokens` tokens (padding not counted) of a held-out source, in rows of the stage's last length."""
    batches: list[Batch] = []
    while sum(batch.tokens for batch in batches) < tokens:
        batches += [batch.to(device) for batch in rows.next_step(1.0)]
    return batches


def heldout_bits_per_byte(
    network: CausalLM, rows: PackedRows, tokens: int, *, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """`{"bits_per_byte": ..., "tokens": ...}` of held-out text."""
    device = network.lm_head.weight.device
    batches = heldout_batches(rows, tokens, device)
    with _precision(device, autocast):
        value = bits_per_byte(network, batches, rows.bytes_of_id)
    return {"bits_per_byte": value, "tokens": sum(batch.tokens for batch in batches)}


@torch.no_grad()
def draft_acceptance(
    network: CausalLM, rows: PackedRows, tokens: int, *, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """How often the module's best guess for the token after the next is the network's own best guess there.

    That is the acceptance rate of greedy decoding, on the assistant's words of held-out chats: at position i the
    network gives token i + 1, the module then drafts token i + 2, and the network at i + 1 says what it would be.
    Counted where the text's own token i + 1 is the network's choice (elsewhere greedy decoding would not be).
    """
    device = network.lm_head.weight.device
    accepted = drafted = 0
    batches = heldout_batches(rows, tokens, device)
    for batch in batches:
        with _precision(device, autocast):
            hidden_TD = network(batch.input_ids_BL.flatten(), rows_context(batch, train=False))
            next_ids_BL, labels_BL = after_next(batch)
            draft_TD = network.mtp_forward(
                0, hidden_TD, next_ids_BL.flatten(), rows_context(batch, train=False)
            )
            own_BL = network.logits(hidden_TD).argmax(-1).view_as(labels_BL)
            draft_BL = network.logits(draft_TD).argmax(-1).view_as(labels_BL)
        counted = (labels_BL != IGNORED) & (own_BL == next_ids_BL)
        counted[:, -1] = False
        drafted += int(counted.sum())
        accepted += int((counted[:, :-1] & (draft_BL[:, :-1] == own_BL[:, 1:])).sum())
    return {"acceptance": accepted / max(drafted, 1), "drafted": drafted}


def _precision(
    device: torch.device, autocast: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext()
