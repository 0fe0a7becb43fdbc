"""One decoder layer: attention, then feed-forward, each behind a norm and added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from shoal.model.attention import build_attention
from shoal.model.config import ModelConfig
from shoal.model.context import TokenContext
from shoal.model.moe import build_mlp
from shoal.model.norm import RMSNorm
from shoal.model.rope import Rotation


class DecoderLayer(nn.Module):
    """Pre-norm residual layer, [T, D] -> [T, D]; dense or MoE by the configuration and the layer's number."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.self_attn = build_attention(config, layer)
        self.mlp = build_mlp(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x_TD: Tensor, rotation: Rotation, context: TokenContext) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rotation, context)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD), context)
