"""Counts that follow from a configuration alone: parameters, FLOPs, bytes of cache. Pure functions, no torch.

FLOP = one multiplication or one addition; a matrix product with p weights costs 2p per token forward, 6p with the
backward pass. Causal attention sees on average half of the context. Of a MoE layer only the chosen and the shared
experts and the gate count as active (counting all experts, or none, is the usual mistake). Embedding look-ups cost
nothing, the head does. The formulas give DeepSeek-V3 250.4 GFLOP per training token at a context of 4096, where its
authors say 250.
"""

from __future__ import annotations

from shoal.model.config import ModelConfig


def attention_matrices(c: ModelConfig) -> int:
    """Weights in the matrices of one attention layer."""
    hidden, heads = c.hidden_size, c.num_attention_heads
    if not c.uses_mla:
        kv_heads = c.num_key_value_heads or heads
        return 2 * hidden * heads * c.qk_head_dim + 2 * hidden * kv_heads * c.qk_head_dim
    latent = c.kv_lora_rank or 0
    query = heads * c.qk_head_dim * hidden
    if c.q_lora_rank is not None:
        query = c.q_lora_rank * (hidden + heads * c.qk_head_dim)
    key_value = hidden * (latent + c.qk_rope_head_dim) + latent * heads * (c.qk_nope_head_dim + c.v_head_dim)
    return query + key_value + heads * c.v_head_dim * hidden


def _attention_vectors(c: ModelConfig) -> int:
    """Norms and biases of one attention layer."""
    if c.uses_mla:
        q_rank, latent = c.q_lora_rank or 0, c.kv_lora_rank or 0
        biases = q_rank + latent + c.qk_rope_head_dim + c.hidden_size if c.attention_bias else 0
        return q_rank + latent + biases
    norms = 2 * c.qk_head_dim if c.model_type == "qwen3" else 0
    biases = 0
    if c.attention_bias:
        biases = (c.num_attention_heads + 2 * (c.num_key_value_heads or 0)) * c.qk_head_dim
        biases += 0 if c.model_type == "qwen2" else c.hidden_size
    return norms + biases


def mlp_matrices(c: ModelConfig, layer: int, *, active: bool) -> int:
    """Weights in the feed-forward matrices of a layer; `active`: only those that one token uses."""
    if not c.is_moe_layer(layer):
        return 3 * c.hidden_size * c.intermediate_size
    experts, width = c.n_routed_experts or 0, c.moe_intermediate_size or 0
    used = (c.num_experts_per_tok or 0) if active else experts
    return 3 * c.hidden_size * width * (used + (c.n_shared_experts or 0)) + c.hidden_size * experts


def _layer_vectors(c: ModelConfig) -> int:
    return _attention_vectors(c) + 2 * c.hidden_size


def _layers(c: ModelConfig, mtp: bool) -> range:
    return range(c.num_layers_with_mtp if mtp else c.num_hidden_layers)


def parameters_total(c: ModelConfig, mtp: bool = False) -> int:
    """Trainable parameters; the shared embedding and head of MTP modules and tied heads count once."""
    total = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2) + c.hidden_size
    for layer in _layers(c, mtp):
        total += attention_matrices(c) + mlp_matrices(c, layer, active=False)
        total += _layer_vectors(c)
        if layer >= c.num_hidden_layers:
            total += 2 * c.hidden_size * c.hidden_size + 3 * c.hidden_size
    return total


def parameters_active(c: ModelConfig) -> int:
    """Parameters that one token is computed with: head included, of the embedding one row (V3: 36.6B, "37B")."""
    total = c.vocab_size * c.hidden_size + c.hidden_size * (1 if c.tie_word_embeddings else 2)
    for layer in _layers(c, False):
        total += attention_matrices(c) + mlp_matrices(c, layer, active=True) + _layer_vectors(c)
    return total


def matrices_active(c: ModelConfig, mtp: bool = False) -> int:
    """Weights of the matrices that one token is multiplied with: active layers, gates and head (per use)."""
    total = c.vocab_size * c.hidden_size
    for layer in _layers(c, mtp):
        total += attention_matrices(c) + mlp_matrices(c, layer, active=True)
        if layer >= c.num_hidden_layers:
            total += 2 * c.hidden_size * c.hidden_size + c.vocab_size * c.hidden_size
    return total


def _attention_width(c: ModelConfig) -> int:
    """Numbers per head that a query meets at each key and value, expanded form."""
    return c.qk_head_dim + (c.v_head_dim if c.uses_mla else c.qk_head_dim)


def flops_per_token(c: ModelConfig, context: float, training: bool, *, mtp: bool = False) -> float:
    """FLOPs per token over rows of `context` tokens, causal; `training`: forward and backward (3 times)."""
    layers = len(_layers(c, mtp))
    attention = layers * 2 * c.num_attention_heads * _attention_width(c) * context / 2
    forward = 2 * matrices_active(c, mtp) + attention
    return 3 * forward if training else forward


def draft_training_flops(c: ModelConfig, context: float) -> float:
    """FLOPs per token of training the MTP modules alone: the trunk runs forwards only."""
    trunk = flops_per_token(c, context, training=False)
    return trunk + 3 * (flops_per_token(c, context, training=False, mtp=True) - trunk)


def decode_flops(c: ModelConfig, context: float) -> float:
    """FLOPs of one new token behind `context` cached ones (MLA absorbed: all heads read the latent)."""
    width = _attention_width(c)
    if c.uses_mla:
        width = 2 * (c.kv_lora_rank or 0) + c.qk_rope_head_dim
    return 2 * matrices_active(c) + c.num_hidden_layers * 2 * c.num_attention_heads * width * context


def answer_flops(
    c: ModelConfig, prompt_tokens: int, cached_tokens: int, new_tokens: int, computed_tokens: int = 0
) -> float:
    """FLOPs of an answer: what of the prompt was not cached, then the new tokens one by one. `computed_tokens`, where
    it is known: how many positions were really run, rejected drafts and second readings among them."""
    read = (prompt_tokens - cached_tokens) * decode_flops(c, (cached_tokens + prompt_tokens) / 2)
    flops = read + new_tokens * decode_flops(c, prompt_tokens + new_tokens / 2)
    positions = prompt_tokens - cached_tokens + new_tokens
    return flops * computed_tokens / positions if computed_tokens and positions else flops


def kv_numbers_per_token(c: ModelConfig) -> int:
    """Cached numbers per token and layer: latent and rotated key (MLA), or keys and values."""
    if c.uses_mla:
        return (c.kv_lora_rank or 0) + c.qk_rope_head_dim
    return 2 * (c.num_key_value_heads or 0) * c.qk_head_dim


def kv_bytes_per_token(c: ModelConfig, bytes_per_number: float = 2) -> float:
    """Bytes of cache per token, all layers (V3 in bf16: 70,272)."""
    return c.num_hidden_layers * kv_numbers_per_token(c) * bytes_per_number
