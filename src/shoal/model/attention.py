"""The attention kinds: multi-head latent attention (DeepSeek-V2, section 2.1) and grouped-query attention.

Legend: T tokens, D hidden, N heads, K key-value heads, H head dim, C latent, P rope dim. A new kind is a class here
with the same `forward`, chosen in `build_attention`.
"""

from __future__ import annotations

from torch import Tensor, nn

from shoal.model.config import ModelConfig
from shoal.model.context import TokenContext
from shoal.model.frequencies import softmax_scale
from shoal.model.norm import RMSNorm
from shoal.model.rope import Rotation, rotate

LATENT_NORM_EPS = 1e-6
"""Of q_a_layernorm and kv_a_layernorm: a constant in the released models, whatever rms_norm_eps says."""


class MultiHeadLatentAttention(nn.Module):
    """Queries by way of an optional low rank; keys and values by way of a latent of `kv_lora_rank` numbers per token,
    beside one rotated key of `qk_rope_head_dim` numbers that all heads share."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        assert config.kv_lora_rank is not None
        self.layer, self.heads, self.scale = layer, heads, softmax_scale(config)
        self.q_parts = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.kv_parts = [config.kv_lora_rank, config.qk_rope_head_dim]
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps=LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, sum(self.kv_parts), bias=bias)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, eps=LATENT_NORM_EPS)
        kv_b_width = heads * (config.qk_nope_head_dim + config.v_head_dim)
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, kv_b_width, bias=False)
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=bias)
        self.project_query = self._full_query if config.q_lora_rank is None else self._low_rank_query

    def _full_query(self, x_TD: Tensor) -> Tensor:
        return self.q_proj(x_TD)

    def _low_rank_query(self, x_TD: Tensor) -> Tensor:
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD)))

    def forward(self, x_TD: Tensor, rotation: Rotation, context: TokenContext) -> Tensor:
        q_nope, q_rope = self.project_query(x_TD).unflatten(-1, (self.heads, -1)).split(self.q_parts, -1)
        latent_TC, k_rope_TP = self.kv_a_proj_with_mqa(x_TD).split(self.kv_parts, -1)
        out_TNV = context.attend_mla(
            self.layer,
            q_nope,
            rotate(q_rope, rotation),
            self.kv_a_layernorm(latent_TC),
            rotate(k_rope_TP[:, None], rotation)[:, 0],
            self.kv_b_proj.weight,
            self.scale,
        )
        return self.o_proj(out_TNV.flatten(1))


class GroupedQueryAttention(nn.Module):
    """Llama's attention; Qwen2 with biases on q, k, v; Qwen3 with an RMSNorm on every query and key head."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        hidden, head_dim, bias = config.hidden_size, config.qk_head_dim, config.attention_bias
        kv_heads = config.num_key_value_heads or config.num_attention_heads
        self.layer, self.head_dim, self.scale = layer, head_dim, softmax_scale(config)
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(
            config.num_attention_heads * head_dim, hidden, bias=bias and config.model_type != "qwen2"
        )
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm(head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(head_dim, eps=config.rms_norm_eps)

    def forward(self, x_TD: Tensor, rotation: Rotation, context: TokenContext) -> Tensor:
        heads = (-1, self.head_dim)
        q_TNH = rotate(self.q_norm(self.q_proj(x_TD).unflatten(-1, heads)), rotation)
        k_TKH = rotate(self.k_norm(self.k_proj(x_TD).unflatten(-1, heads)), rotation)
        v_TKH = self.v_proj(x_TD).unflatten(-1, heads)
        return self.o_proj(context.attend_gqa(self.layer, q_TNH, k_TKH, v_TKH, self.scale).flatten(1))


def build_attention(config: ModelConfig, layer: int) -> nn.Module:
    """The attention of this configuration; `forward(x_TD, rotation, context) -> [T, D]`."""
    return (MultiHeadLatentAttention if config.uses_mla else GroupedQueryAttention)(config, layer)
