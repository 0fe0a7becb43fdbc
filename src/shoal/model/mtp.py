"""Multi-token prediction (DeepSeek-V3, section 2.2): a small module per extra token that the network predicts.

Module k takes a hidden state of position i and the token k+1 places on, and predicts the token after that. Weights
are laid out as released: the projection reads [normed embedding ; normed hidden state], embedding first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoal.model.config import ModelConfig
from shoal.model.context import TokenContext
from shoal.model.layer import DecoderLayer
from shoal.model.norm import RMSNorm
from shoal.model.rope import Rotation


class SharedHead(nn.Module):
    """The norm in front of the main head (the head itself is the network's)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class MTPLayer(DecoderLayer):
    """A decoder layer behind a projection that joins what the network thinks with what came next."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.enorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def predict(
        self, embedding_TD: Tensor, hidden_TD: Tensor, rotation: Rotation, context: TokenContext
    ) -> Tensor:
        """-> hidden [T, D] for the main head, after `shared_head.norm`."""
        joined = self.eh_proj(torch.cat([self.enorm(embedding_TD), self.hnorm(hidden_TD)], -1))
        return self.shared_head.norm(self(joined, rotation, context))
