"""The losses of the three stages, as sums with their counts. Legend: loop.py; T = B * L flat tokens, D hidden."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM
from shoal.ops.loss import IGNORED, linear_cross_entropy
from shoal.train.loop import Batch, Terms
from shoal.train.recipe import StageRecipe


def rows_context(batch: Batch, *, train: bool) -> RowsContext:
    """The context of packed rows: documents apart, experts counted and balanced where training wants it."""
    rows, length = batch.input_ids_BL.shape
    return RowsContext(
        rows,
        length,
        document_ids=batch.document_ids_BL,
        position_ids=batch.position_ids_BL,
        count_experts=train,
        with_balance_loss=train,
        device=batch.input_ids_BL.device,
    )


class NextToken:
    """Pre-training and fine-tuning: cross-entropy of the labels, and the sequence-wise balance loss of MoE layers."""

    def __init__(self, network: CausalLM, recipe: StageRecipe):
        self.network, self.recipe = network, recipe
        self.weights: Mapping[str, float] = {"main": 1.0, "balance": recipe.balance_weight}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Labels that count, and rows."""
        valid = int((batch.labels_BL != IGNORED).sum())
        return {"main": valid, "balance": batch.input_ids_BL.shape[0]}

    def terms(self, batch: Batch) -> Terms:
        """One forward pass over the rows."""
        context = rows_context(batch, train=True)
        hidden_TD = self.network(batch.input_ids_BL.flatten(), context)
        sums = {"main": label_loss(self.network, hidden_TD, batch.labels_BL, self.recipe.z_loss_weight)}
        if context.balance_loss is not None:
            sums["balance"] = context.balance_loss * context.rows
        return Terms(sums, context.expert_counts)


class DraftObjective:
    """The MTP module on a frozen network: cross-entropy of the token after the next (DeepSeek-V3 report 2.2)."""

    def __init__(self, network: CausalLM, recipe: StageRecipe):
        self.network, self.recipe = network, recipe
        self.weights: Mapping[str, float] = {"main": 1.0, "balance": recipe.balance_weight}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Labels of the tokens after the next, and rows."""
        valid = int((after_next(batch)[1] != IGNORED).sum())
        return {"main": valid, "balance": batch.input_ids_BL.shape[0]}

    def terms(self, batch: Batch) -> Terms:
        """The network without gradients, then the module with them."""
        with torch.no_grad():
            hidden_TD = self.network(batch.input_ids_BL.flatten(), rows_context(batch, train=False))
        next_ids_BL, labels_BL = after_next(batch)
        context = rows_context(batch, train=True)
        draft_TD = self.network.mtp_forward(0, hidden_TD, next_ids_BL.flatten(), context)
        sums = {"main": label_loss(self.network, draft_TD, labels_BL, self.recipe.z_loss_weight)}
        if context.balance_loss is not None:
            sums["balance"] = context.balance_loss * context.rows
        return Terms(sums, context.expert_counts)


def after_next(batch: Batch) -> tuple[Tensor, Tensor]:
    """(the token after each position, the label after that one) [B, L]; ignored across documents and row ends."""
    ids, labels = batch.input_ids_BL, batch.labels_BL
    next_ids = torch.cat([ids[:, 1:], ids[:, -1:]], 1)
    shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)
    if (documents := batch.document_ids_BL) is not None:
        same = torch.cat(
            [documents[:, 1:] == documents[:, :-1], torch.zeros_like(documents[:, :1], dtype=torch.bool)], 1
        )
        shifted = shifted.masked_fill(~same, IGNORED)
    return next_ids, shifted


def label_loss(network: CausalLM, hidden_TD: Tensor, labels_BL: Tensor, z_loss: float = 0.0) -> Tensor:
    """Sum of the cross-entropy (nats) over valid labels; the head runs on those positions only."""
    return linear_cross_entropy(hidden_TD, network.lm_head.weight, labels_BL.flatten(), z_loss=z_loss)[0]
