"""What GGUF's keys and tensor names mean for our networks, both ways. Conventions are llama.cpp's converter's.

Where the two differ in more than names: llama's query and key rows are stored with adjacent rope pairs (ours are half
a head apart); MLA's kv_b may be stored whole or split (`attn_k_b`, transposed, and `attn_v_b`); experts are stacked in
both; llama3's rope scaling is a tensor of divisors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.errors import ShoalError
from shoal.model.checkpoint.gguf import GgufFile, GgufTensor
from shoal.model.checkpoint.names import EMBEDDING, HEAD
from shoal.model.config import ModelConfig

Array = np.ndarray[Any, Any]
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
_GLOBAL = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "eh_proj": "nextn.eh_proj",
    "shared_head.norm": "nextn.shared_head_norm",
}
_WHOLE = {
    "mlp.experts.gate_proj": "ffn_gate_exps.weight",
    "mlp.experts.up_proj": "ffn_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(parameter: str) -> str:
    """The GGUF name of a parameter (names as in memory)."""
    if parameter in _GLOBAL:
        return _GLOBAL[parameter]
    match = _LAYER.fullmatch(parameter)
    assert match, parameter
    layer, rest = match.groups()
    if rest in _WHOLE:
        return f"blk.{layer}.{_WHOLE[rest]}"
    stem, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_IN_LAYER[stem]}.{kind}"


# ---- tensors


def _is_rotated(parameter: str, config: ModelConfig) -> bool:
    return config.model_type == "llama" and re.search(r"self_attn\.[qk]_proj\.", parameter) is not None


def _heads(parameter: str, config: ModelConfig) -> int:
    return config.num_attention_heads if ".q_proj." in parameter else config.num_key_value_heads or 1


def to_adjacent(rows: Array, heads: int) -> Array:
    """Rope pairs half a head apart -> adjacent, along the first axis (llama's query and key rows in GGUF)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_halves(rows: Array, heads: int) -> Array:
    """The inverse of `to_adjacent`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@dataclass(frozen=True)
class Stored:
    """How a parameter lies in a GGUF file: its tensors, its shape, and how to read rows begin..end of it as fp32."""

    tensors: tuple[GgufTensor, ...]
    shape: tuple[int, ...]
    read: Callable[[int, int], Array]
    by_rows: bool
    """False: it can only be read whole."""
    order: Array | None = None
    """Which row of the tensor each row of the parameter is, where they are stored in another order."""


def stored_parameters(
    file: GgufFile, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Stored]:
    """Every parameter of `shapes` that the file has; the caller compares shapes and names what is missing."""
    found: dict[str, Stored] = {}
    for parameter, shape in shapes.items():
        name = gguf_name(parameter)
        if tensor := file.tensors.get(name):
            found[parameter] = _one(tensor, parameter, config)
        elif ".kv_b_proj." in parameter and len(shape) == 2:
            k_b, v_b = (file.tensors.get(name.replace("kv_b", part)) for part in ("k_b", "v_b"))
            if k_b and v_b:
                found[parameter] = _split_kv_b(k_b, v_b, config)
    return found


def _one(tensor: GgufTensor, parameter: str, config: ModelConfig) -> Stored:
    if _is_rotated(parameter, config):
        heads = _heads(parameter, config)
        if tensor.shape[0] % (2 * heads):
            return Stored(
                (tensor,), tensor.shape, lambda a, b: tensor.read(), False
            )  # refused later, by its shape
        order = to_halves(np.arange(tensor.shape[0]), heads)
        return Stored((tensor,), tensor.shape, lambda a, b: tensor.read()[order], False, order)
    return Stored((tensor,), tensor.shape, tensor.read, len(tensor.shape) > 1)


def _split_kv_b(k_b: GgufTensor, v_b: GgufTensor, config: ModelConfig) -> Stored:
    """k_b [N, C, nope] (transposed) and v_b [N, v, C] -> [N * (nope + v), C]; also when the heads are folded in."""
    heads, latent = config.num_attention_heads, config.kv_lora_rank or 1
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    sizes = (math.prod(k_b.shape), math.prod(v_b.shape))
    if sizes != (heads * latent * nope, heads * latent * value):
        raise ShoalError(
            f"{k_b.path}: {k_b.name} {k_b.shape} and {v_b.name} {v_b.shape} do not fit {heads} heads, latent {latent}, "
            f"key part {nope}, value {value}",
            hint="The metadata and the tensors belong to different models: fetch the file again.",
        )

    def read(begin: int, end: int) -> Array:
        keys = k_b.read().reshape(heads, latent, nope).swapaxes(1, 2)
        values = v_b.read().reshape(heads, value, latent)
        return np.concatenate([keys, values], axis=1).reshape(heads * (nope + value), latent)

    return Stored((k_b, v_b), (heads * (nope + value), latent), read, False)


def to_gguf(parameter: str, data: Array, config: ModelConfig) -> list[tuple[str, Array]]:
    """(name, fp32 array) pairs to write for a parameter: rows permuted for llama, kv_b split as new files have it."""
    name = gguf_name(parameter)
    if _is_rotated(parameter, config):
        return [(name, to_adjacent(data, _heads(parameter, config)))]
    if parameter.endswith("kv_b_proj.weight"):
        per_head = data.reshape(config.num_attention_heads, -1, data.shape[-1])
        keys, values = per_head[:, : config.qk_nope_head_dim], per_head[:, config.qk_nope_head_dim :]
        return [(name.replace("kv_b", "k_b"), keys.swapaxes(1, 2)), (name.replace("kv_b", "v_b"), values)]
    return [(name, data)]


# ---- metadata -> config


class _Keys:
    """Typed look-ups in the metadata, the architecture's prefix left away."""

    def __init__(self, file: GgufFile):
        self.file, self.metadata = file, file.metadata
        self.architecture = file.metadata.get("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):  # one value per layer
            if not value or any(item != value[0] for item in value):
                raise self.refuse(f"{key} differs from layer to layer")
            value = value[0]
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(f"the metadata key {self.architecture}.{key} is {value!r}, a number is needed")
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self.number(key, default))

    def refuse(self, what: str) -> ShoalError:
        return ShoalError(
            f"{self.file.path}: {what}", hint="Take another conversion of the model, or its safetensors."
        )


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """The configuration that a GGUF file describes. Raises ShoalError for what Shoal does not compute."""
    keys = _Keys(file)
    if keys.architecture not in ARCHITECTURES.values():
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise keys.refuse(f"architecture {keys.architecture!r} is not supported (supported: {known})")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise keys.refuse("no token_embd.weight matrix")
    drafts = keys.integer("nextn_predict_layers", 0)
    layers = keys.integer("block_count") - drafts
    values: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": keys.integer("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": keys.integer("attention.head_count"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys),
        **_token_ids(file.metadata),
    }
    if f"blk.{layers}.nextn.eh_proj.weight" in file.tensors:  # the trunk may be stored without them
        values["num_nextn_predict_layers"] = drafts
    values |= _mla_values(keys, layers) if keys.architecture == "deepseek2" else _gqa_values(keys, values)
    return ModelConfig(**values)


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def token(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return (
            value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None
        )

    ends = list(dict.fromkeys(i for i in (token("eos"), token("eot"), token("eom")) if i is not None))
    return {
        "bos_token_id": token("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": token("padding"),
    }


def _gqa_values(keys: _Keys, values: Mapping[str, Any]) -> dict[str, Any]:
    heads = values["num_attention_heads"]
    head_dim = keys.integer("attention.key_length", values["hidden_size"] // max(heads, 1))
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise keys.refuse("keys and values of different width")
    if keys.integer("rope.dimension_count", head_dim) != head_dim:
        raise keys.refuse("only a part of each head is rotated")
    if keys.integer("expert_count", 0):
        raise keys.refuse(f"experts in a {keys.architecture} network")
    return {
        "model_type": keys.architecture,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "attention_bias": "blk.0.attn_q.bias" in keys.file.tensors,
    }


def _mla_values(keys: _Keys, layers: int) -> dict[str, Any]:
    rope = keys.integer("rope.dimension_count")
    experts = keys.integer("expert_count", 0)
    sigmoid = keys.integer("expert_gating_func", 1) == 2
    groups = keys.integer("expert_group_count", 1) or 1
    dense = keys.integer("leading_dense_block_count", 0 if experts else layers)
    biased = any(name.endswith(".exp_probs_b.bias") for name in keys.file.tensors) or (
        sigmoid and dense >= layers
    )
    return {
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        "num_key_value_heads": keys.integer("attention.head_count"),
        "q_lora_rank": keys.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": keys.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": keys.integer("attention.key_length_mla", keys.integer("attention.key_length"))
        - rope,
        "v_head_dim": keys.integer("attention.value_length_mla", keys.integer("attention.value_length")),
        "n_routed_experts": experts or None,
        "n_shared_experts": keys.integer("expert_shared_count", 0) or None,
        "num_experts_per_tok": keys.integer("expert_used_count", 0) or None,
        "moe_intermediate_size": keys.integer("expert_feed_forward_length", 0) or None,
        "first_k_dense_replace": dense,
        "n_group": groups,
        "topk_group": keys.integer("expert_group_used_count", 1) or 1,
        "topk_method": "noaux_tc" if biased else "group_limited_greedy" if groups > 1 else "greedy",
        "scoring_func": "sigmoid" if sigmoid else "softmax",
        "norm_topk_prob": bool(keys.get("expert_weights_norm", False)),
        "routed_scaling_factor": float(keys.number("expert_weights_scale", 1.0)) or 1.0,
    }


def _rope_scaling(keys: _Keys) -> dict[str, Any] | None:
    divisors = keys.file.tensors.get("rope_freqs.weight")
    if divisors is not None:
        return _llama3(keys, divisors.read())
    kind = keys.get("rope.scaling.type", "none")
    if kind in ("none", None) or keys.number("rope.scaling.factor", 1.0) in (0, 1):
        return None
    factor = float(keys.number("rope.scaling.factor"))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise keys.refuse(f"rope scaling of type {kind!r} is not supported")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", keys.integer("context_length")
        ),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    if (
        keys.architecture == "deepseek2"
    ):  # llama.cpp keeps 0.1 * mscale_all_dim, and takes mscale to be the same
        mscale = round(keys.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1, 6)
        if mscale:
            scaling |= {"mscale": mscale, "mscale_all_dim": mscale}
        else:
            scaling["attention_factor"] = 1.0
    elif (attention := keys.get("rope.scaling.yarn_attn_factor")) is not None:
        scaling["attention_factor"] = float(attention)
    return scaling


def llama3_divisors(config: ModelConfig) -> Array:
    """What llama3's rope scaling divides each of the head_dim / 2 frequencies by (fp32)."""
    scaling = config.rope_scaling or {}
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = scaling["original_max_position_embeddings"]
    dims = config.head_dim or 0
    wavelength = 2 * math.pi * config.rope_theta ** (np.arange(0, dims, 2, dtype=np.float64) / dims)
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _llama3(keys: _Keys, divisors: Array) -> dict[str, Any] | None:
    """The llama3 scaling that makes these divisors: GGUF keeps only the result."""
    if np.all(divisors == 1):
        return None
    probe: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 1,
        "hidden_size": 2 * divisors.size,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 1,
        "head_dim": 2 * divisors.size,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
    }
    for exponent in range(8, 21):
        scaling = {
            "rope_type": "llama3",
            "factor": float(divisors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1 << exponent,
        }
        if np.allclose(llama3_divisors(ModelConfig(**probe, rope_scaling=scaling)), divisors, rtol=1e-3):
            return scaling
    raise keys.refuse("rope_freqs.weight is of a kind that Shoal does not know")


# ---- config -> metadata


def metadata_from_config(config: ModelConfig, *, name: str, file_type: int) -> dict[str, Any]:
    """The metadata that describes a network (without its tokenizer). Raises ShoalError for what GGUF cannot express."""
    architecture = ARCHITECTURES[config.model_type]
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1 if config.uses_mla else config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.rope_dim,
        "vocab_size": config.vocab_size,
        **_rope_values(config),
        **(_mla_metadata(config) if config.uses_mla else {}),
    }
    if not config.uses_mla:
        values |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    general = {
        "general.architecture": architecture,
        "general.name": name,
        "general.file_type": file_type,
        "general.quantization_version": 2,
    }
    return general | {f"{architecture}.{key}": value for key, value in values.items()}


def _mla_metadata(config: ModelConfig) -> dict[str, Any]:
    if not config.rope_interleave:
        raise _inexpressible("rope_interleave false")
    if config.attention_bias:
        raise _inexpressible("biases in latent attention")
    latent = config.kv_lora_rank or 0
    values: dict[str, Any] = {
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + config.qk_rope_head_dim,
        "attention.value_length": latent,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "leading_dense_block_count": min(config.first_k_dense_replace, config.num_hidden_layers),
        "expert_feed_forward_length": config.moe_intermediate_size or config.intermediate_size,
        "expert_shared_count": config.n_shared_experts or 0,
    }
    values["attention.q_lora_rank"] = config.q_lora_rank or 0  # llama.cpp insists on the key; 0: one q_proj
    if config.n_routed_experts is None:
        return values | {"leading_dense_block_count": config.num_hidden_layers}
    if config.moe_layer_freq != 1:
        raise _inexpressible(f"moe_layer_freq {config.moe_layer_freq}")
    return values | {
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": 2 if config.scoring_func == "sigmoid" else 1,
    }


def _rope_values(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None or scaling["rope_type"] == "llama3":  # the divisors are a tensor
        return {}
    values: dict[str, Any] = {"type": scaling["rope_type"], "factor": float(scaling["factor"])}
    if scaling["rope_type"] == "yarn":
        values["original_context_length"] = scaling["original_max_position_embeddings"]
        values["yarn_beta_fast"] = float(scaling.get("beta_fast", 32.0))
        values["yarn_beta_slow"] = float(scaling.get("beta_slow", 1.0))
        mscale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = scaling.get("attention_factor")
        if config.uses_mla:
            if not all_dims and attention == 1.0:
                pass
            elif all_dims and mscale == all_dims and attention in (None, 1.0):
                values["yarn_log_multiplier"] = 0.1 * float(all_dims)
            else:
                raise _inexpressible(f"YaRN with mscale {mscale} and mscale_all_dim {all_dims}")
        elif attention is not None:
            values["yarn_attn_factor"] = float(attention)
    return {f"rope.scaling.{key}": value for key, value in values.items()}


def _inexpressible(what: str) -> ShoalError:
    return ShoalError(f"GGUF cannot express {what}", hint="Keep this model as safetensors.")
