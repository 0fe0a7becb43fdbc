"""The name and shape of every parameter that a configuration implies, without torch and without building anything.

Files are checked against this before a single byte of the network is allocated; `shoal info` needs nothing more.
A test holds it equal to `CausalLM.state_dict()`.
"""

from __future__ import annotations

from shoal.model.checkpoint.names import EMBEDDING, HEAD
from shoal.model.config import ModelConfig

Shape = tuple[int, ...]


def parameter_shapes(config: ModelConfig, *, mtp: bool = False) -> dict[str, Shape]:
    """Parameter name (as in memory, experts stacked [E, out, in]) -> shape; the head only where it is not tied."""
    width = config.hidden_size
    shapes: dict[str, Shape] = {EMBEDDING: (config.vocab_size, width), "model.norm.weight": (width,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, width)
    layers = config.num_layers_with_mtp if mtp else config.num_hidden_layers
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        if layer >= config.num_hidden_layers:
            shapes |= {f"{prefix}.{norm}.weight": (width,) for norm in ("enorm", "hnorm", "shared_head.norm")}
            shapes[f"{prefix}.eh_proj.weight"] = (width, 2 * width)
        shapes[f"{prefix}.input_layernorm.weight"] = (width,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (width,)
        attention = _mla(config) if config.uses_mla else _gqa(config)
        shapes |= {f"{prefix}.self_attn.{name}": shape for name, shape in attention.items()}
        feed_forward = (
            _moe(config) if config.is_moe_layer(layer) else _gated("", config.intermediate_size, width)
        )
        shapes |= {f"{prefix}.mlp.{name}": shape for name, shape in feed_forward.items()}
    return shapes


def _mla(config: ModelConfig) -> dict[str, Shape]:
    width, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank or 0
    shapes: dict[str, Shape] = {
        "kv_a_proj_with_mqa.weight": (latent + config.qk_rope_head_dim, width),
        "kv_a_layernorm.weight": (latent,),
        "kv_b_proj.weight": (heads * (config.qk_nope_head_dim + config.v_head_dim), latent),
        "o_proj.weight": (width, heads * config.v_head_dim),
    }
    biased = ["kv_a_proj_with_mqa", "o_proj"]
    if config.q_lora_rank is None:
        shapes["q_proj.weight"] = (heads * config.qk_head_dim, width)
    else:
        shapes["q_a_proj.weight"] = (config.q_lora_rank, width)
        shapes["q_a_layernorm.weight"] = (config.q_lora_rank,)
        shapes["q_b_proj.weight"] = (heads * config.qk_head_dim, config.q_lora_rank)
        biased.append("q_a_proj")
    if config.attention_bias:
        shapes |= {f"{name}.bias": (shapes[f"{name}.weight"][0],) for name in biased}
    return shapes


def _gqa(config: ModelConfig) -> dict[str, Shape]:
    width, head = config.hidden_size, config.head_dim or 0
    queries, keys = config.num_attention_heads * head, (config.num_key_value_heads or 0) * head
    shapes: dict[str, Shape] = {
        "q_proj.weight": (queries, width),
        "k_proj.weight": (keys, width),
        "v_proj.weight": (keys, width),
        "o_proj.weight": (width, queries),
    }
    if config.attention_bias:
        biased = ("q_proj", "k_proj", "v_proj") + (() if config.model_type == "qwen2" else ("o_proj",))
        shapes |= {f"{name}.bias": (shapes[f"{name}.weight"][0],) for name in biased}
    if config.model_type == "qwen3":
        shapes |= {"q_norm.weight": (head,), "k_norm.weight": (head,)}
    return shapes


def _gated(prefix: str, inner: int, width: int) -> dict[str, Shape]:
    return {
        f"{prefix}gate_proj.weight": (inner, width),
        f"{prefix}up_proj.weight": (inner, width),
        f"{prefix}down_proj.weight": (width, inner),
    }


def _moe(config: ModelConfig) -> dict[str, Shape]:
    width, inner, experts = (
        config.hidden_size,
        config.moe_intermediate_size or 0,
        config.n_routed_experts or 0,
    )
    shapes: dict[str, Shape] = {
        "gate.weight": (experts, width),
        "experts.gate_proj": (experts, inner, width),
        "experts.up_proj": (experts, inner, width),
        "experts.down_proj": (experts, width, inner),
    }
    if config.topk_method == "noaux_tc":
        shapes["gate.e_score_correction_bias"] = (experts,)
    if config.n_shared_experts:
        shapes |= _gated("shared_experts.", inner * config.n_shared_experts, width)
    return shapes
