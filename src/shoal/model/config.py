"""What a network is: the sizes and rules of a Hugging Face `config.json`, read strictly, written both ways.

Field names are Hugging Face's (`DeepseekV3Config`, `LlamaConfig`, ...). No torch here: counts, planner and
receipts read configs on machines that never run the network. A foreign file may use old or new spellings;
`from_dict` accepts both, `to_dict` writes both, because engines branch on either.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.files import read_text

log = logging.getLogger(__name__)

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
SCORING_FUNCS = ("softmax", "sigmoid")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# What Hugging Face's class of a family assumes when the file does not say it.
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "n_shared_experts": 1,
    },
    "deepseek_v2": {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
    "llama": {},
    "qwen2": {"attention_bias": True},
    "qwen3": {"head_dim": 128},
}

# Keys of foreign files that do not change the arithmetic of inference (or repeat what other keys say).
_HARMLESS = frozenset(
    """_attn_implementation _name_or_path architectures attention_dropout attn_implementation auto_map
    aux_loss_alpha chunk_size_feed_forward dtype ep_size id2label is_encoder_decoder is_llama_config
    label2id max_window_layers model_type num_local_experts output_attentions output_hidden_states
    output_router_logits pretraining_tp problem_type qk_head_dim return_dict router_aux_loss_coef
    seq_aux sliding_window tokenizer_class torch_dtype transformers.js_config transformers_version
    unsloth_fixed unsloth_version use_cache use_return_dict""".split()
)
# Keys that would change the arithmetic, with the value under which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "embedding_multiplier": (1, 1.0, None),
    "residual_multiplier": (1, 1.0, None),
    "attention_multiplier": (None,),
    "logits_scaling": (1, 1.0, None),
    "logit_scale": (1, 1.0, None),
    "mtp_hidden_states_first": (False, None),
    "index_topk": (None,),
    "attn_output_gate": (False, None),
    "clip_qkv": (None,),
    "use_qk_norm": (False, None),
    "scale_emb": (1, 1.0, None),
    "scale_depth": (None,),
    "is_decoder": (True, False, None),
    "add_cross_attention": (False, None),
    "lm_head_bias": (False, None),
}


@dataclass
class ModelConfig:
    """The shape of one network. Raises ShoalError, all faults in one message, when the fields contradict."""

    model_type: str
    """deepseek_v3, deepseek_v2, llama, qwen2 or qwen3."""
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    """Without MTP modules."""
    num_attention_heads: int
    intermediate_size: int
    """Width of a dense feed-forward layer."""
    num_key_value_heads: int | None = None
    """None: as many as attention heads."""
    head_dim: int | None = None
    """GQA families only; None: hidden_size / num_attention_heads."""
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Llama and Qwen3: on q, k, v and o; Qwen2: always on q, k and v; MLA: on q_a, kv_a and o."""
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """None, or a dict with `rope_type` (linear, llama3, yarn) and its parameters."""
    rope_interleave: bool = True
    """MLA: pairs are adjacent numbers (True) or half a vector apart (False). GQA: always half apart."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    # MLA
    q_lora_rank: int | None = None
    """None: one full-rank q_proj."""
    kv_lora_rank: int | None = None
    """Width of the latent; set exactly for the deepseek families."""
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    # mixture of experts
    n_routed_experts: int | None = None
    """None: every layer is dense."""
    n_shared_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    n_group: int = 1
    topk_group: int = 1
    topk_method: str = "greedy"
    scoring_func: str = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    # multi-token prediction
    num_nextn_predict_layers: int = 0
    quantization_config: dict[str, Any] | None = field(default=None, repr=False)
    """How the files store the weights; says nothing about the network and is not written by `to_dict`."""

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.n_group, self.topk_group = self.n_group or 1, self.topk_group or 1
        if self.model_type == "qwen2":
            self.attention_bias = True
        faults = self._type_faults() or self._faults()
        if faults:
            raise ShoalError(
                "this model configuration cannot work:\n" + "\n".join(f"- {fault}" for fault in faults),
                hint="Correct these keys in config.json (names as in Hugging Face's configurations).",
            )
        if self.head_dim is None and not self.uses_mla:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_scaling is not None:
            self.rope_scaling = self._normalised_rope(self.rope_scaling)

    # ---- reading and writing

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read the contents of a `config.json`.

        Old and new spellings are accepted, harmless keys pass, unknown ones are logged as warnings; a key
        that changes the arithmetic and is not supported raises ShoalError.
        """
        model_type = values.get("model_type")
        if model_type not in ARCHITECTURES:
            raise ShoalError(
                f"model_type {model_type!r} is not supported",
                hint=f"Supported: {', '.join(ARCHITECTURES)}.",
            )
        given = {key: value for key, value in values.items() if value is not None}
        faults = [
            f"{key} = {given[key]!r} changes the arithmetic and is not supported"
            for key, neutral in _NEUTRAL.items()
            if key in given and given[key] not in neutral
        ]
        foreign_layers = set(given.get("layer_types") or ()) - {"full_attention"}
        if foreign_layers:
            faults.append(
                f"layer_types holds {', '.join(sorted(map(str, foreign_layers)))}: only full_attention"
            )
        if given.get("sliding_window") and model_type in ("llama", "deepseek_v2", "deepseek_v3"):
            faults.append(f"sliding_window = {given['sliding_window']!r} is not supported")
        if faults:
            raise ShoalError(
                f"this {model_type} model is of a kind that Shoal does not compute:\n"
                + "\n".join(f"- {fault}" for fault in faults),
                hint="Use another model, or convert it without these features.",
            )
        names = {entry.name for entry in fields(cls)}
        arguments = dict(_FAMILY_DEFAULTS[model_type])
        arguments |= {key: value for key, value in given.items() if key in names}
        if "n_shared_experts" in values and values["n_shared_experts"] is None:
            # DeepSeek's own code reads null as "none", not as the default.
            arguments["n_shared_experts"] = None
        if "num_nextn_predict_layers" not in given and "num_mtp_layers" in given:
            arguments["num_nextn_predict_layers"] = given["num_mtp_layers"]
        arguments["rope_theta"], arguments["rope_scaling"] = _read_rope(given)
        if model_type in ("deepseek_v2", "deepseek_v3"):
            arguments.pop("head_dim", None)  # transformers writes the rope dimension there
        else:
            for key in ("q_lora_rank", "kv_lora_rank", "n_routed_experts"):
                arguments.pop(key, None)
        missing = [
            key
            for key in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
            )
            if key not in arguments
        ]
        if missing:
            raise ShoalError(
                f"config.json lacks {', '.join(missing)}",
                hint="Take the config.json that belongs to the weights.",
            )
        known = (
            names
            | _HARMLESS
            | set(_NEUTRAL)
            | {"num_mtp_layers", "rope_parameters", "layer_types", "mlp_bias"}
        )
        for key in given.keys() - known:
            near = difflib.get_close_matches(key, names, n=1)
            log.warning(
                "unknown key %s in config.json is ignored%s",
                key,
                f" (did you mean {near[0]}?)" if near else "",
            )
        return cls(**arguments)

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `config.json` of a checkpoint folder. Raises ShoalError when it is missing or not JSON."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ShoalError(
                f"no config.json in {folder}", hint="Give the folder of a Hugging Face checkpoint."
            )
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a `config.json` of any name. Raises ShoalError when it is not a JSON object in UTF-8."""
        try:
            values = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise ShoalError(
                f"{path} is not JSON: {error}", hint="Download or convert the model again."
            ) from error
        if not isinstance(values, dict):
            raise ShoalError(f"{path} holds no JSON object", hint="Download or convert the model again.")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The contents of `config.json`, in the old and the new spelling of every key that was renamed."""
        rope = dict(self.rope_scaling or {"rope_type": "default"})
        values: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "hidden_act": self.hidden_act,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "use_cache": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_scaling is None else {"type": rope["rope_type"], **rope},
            "rope_parameters": {"rope_theta": self.rope_theta, **rope},
        }
        if not self.uses_mla:
            values["head_dim"] = self.head_dim
            if self.model_type in ("qwen2", "qwen3"):
                values["use_sliding_window"] = False
            return values
        values |= {
            "q_lora_rank": self.q_lora_rank,
            "kv_lora_rank": self.kv_lora_rank,
            "qk_nope_head_dim": self.qk_nope_head_dim,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "v_head_dim": self.v_head_dim,
            "n_routed_experts": self.n_routed_experts,
            "n_shared_experts": self.n_shared_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "moe_intermediate_size": self.moe_intermediate_size,
            "first_k_dense_replace": self.first_k_dense_replace,
            "moe_layer_freq": self.moe_layer_freq,
            "n_group": self.n_group,
            "topk_group": self.topk_group,
            "topk_method": self.topk_method,
            "scoring_func": self.scoring_func,
            "norm_topk_prob": self.norm_topk_prob,
            "routed_scaling_factor": self.routed_scaling_factor,
            "ep_size": 1,
        }
        if self.model_type == "deepseek_v3":
            values["rope_interleave"] = self.rope_interleave
            values["num_nextn_predict_layers"] = self.num_nextn_predict_layers
            values["num_mtp_layers"] = self.num_nextn_predict_layers
        return values

    # ---- what follows from the fields

    @property
    def uses_mla(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head, in numbers (MLA: nope part + rope part)."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.uses_mla else self.head_dim or 0

    @property
    def rope_dim(self) -> int:
        """How many numbers of a head are rotated."""
        return self.qk_rope_head_dim if self.uses_mla else self.head_dim or 0

    @property
    def num_layers_with_mtp(self) -> int:
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` (MTP modules count on from num_hidden_layers) has routed experts."""
        return (
            self.n_routed_experts is not None
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    # ---- checks

    def _type_faults(self) -> list[str]:
        kinds: dict[str, tuple[type, ...]] = {
            "int": (int,),
            "float": (int, float),
            "bool": (bool,),
            "str": (str,),
        }
        faults = []
        for entry in fields(self):
            value, kind = getattr(self, entry.name), str(entry.type).removesuffix(" | None")
            allowed = kinds.get(kind)
            if allowed is None or (value is None and str(entry.type).endswith("None")):
                continue
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool"):
                faults.append(f"{entry.name} must be of type {kind}, it is {value!r}")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, Mapping):
            faults.append(f"rope_scaling must be null or an object, it is {self.rope_scaling!r}")
        eos = self.eos_token_id
        if not (
            eos is None
            or isinstance(eos, int)
            or (isinstance(eos, list) and all(type(i) is int for i in eos))
        ):
            faults.append(f"eos_token_id must be null, a number or a list of numbers, it is {eos!r}")
        return faults

    def _faults(self) -> list[str]:
        faults: list[str] = []
        mla = self.model_type in ("deepseek_v2", "deepseek_v3")

        def require(condition: object, text: str) -> None:
            if not condition:
                faults.append(text)

        def positive(*names: str) -> bool:
            wrong = [name for name in names if (getattr(self, name) or 0) <= 0]
            faults.extend(f"{name} must be at least 1, it is {getattr(self, name)}" for name in wrong)
            return not wrong

        require(
            self.model_type in ARCHITECTURES,
            f"model_type {self.model_type!r} is unknown (known: {', '.join(ARCHITECTURES)})",
        )
        require(
            self.hidden_act == "silu", f"hidden_act {self.hidden_act!r} is not supported (supported: silu)"
        )
        require(self.rms_norm_eps > 0, f"rms_norm_eps must be above 0, it is {self.rms_norm_eps}")
        require(self.rope_theta > 1, f"rope_theta must be above 1, it is {self.rope_theta}")
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        well_sized = positive(*sizes, "num_key_value_heads", "max_position_embeddings", "moe_layer_freq")
        if mla:
            if positive("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
                require(
                    self.qk_rope_head_dim % 2 == 0, f"qk_rope_head_dim {self.qk_rope_head_dim} must be even"
                )
            require(
                self.q_lora_rank is None or self.q_lora_rank > 0, "q_lora_rank must be null or at least 1"
            )
        else:
            require(self.kv_lora_rank is None, f"kv_lora_rank does not belong to a {self.model_type} model")
            require(
                self.n_routed_experts is None,
                f"n_routed_experts does not belong to a {self.model_type} model",
            )
            if well_sized:
                kv_heads = self.num_key_value_heads or 1
                require(
                    self.num_attention_heads % kv_heads == 0,
                    f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                    f"num_key_value_heads {kv_heads}",
                )
                require(
                    self.head_dim is not None or self.hidden_size % self.num_attention_heads == 0,
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}, so head_dim must be given",
                )
                head_dim = (
                    self.head_dim
                    if self.head_dim is not None
                    else self.hidden_size // self.num_attention_heads
                )
                require(head_dim > 0 and head_dim % 2 == 0, f"head_dim {head_dim} must be even and above 0")
        if self.n_routed_experts is not None:
            faults.extend(
                self._expert_faults(
                    positive("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
                )
            )
        require(self.num_nextn_predict_layers >= 0, "num_nextn_predict_layers must not be negative")
        require(
            self.num_nextn_predict_layers == 0 or self.model_type == "deepseek_v3",
            f"num_nextn_predict_layers {self.num_nextn_predict_layers}: only deepseek_v3 has MTP modules",
        )
        faults.extend(self._rope_faults())
        return faults

    def _expert_faults(self, well_sized: bool) -> list[str]:
        faults = []
        if self.topk_method not in TOPK_METHODS:
            faults.append(f"topk_method {self.topk_method!r} is unknown (known: {', '.join(TOPK_METHODS)})")
        if self.scoring_func not in SCORING_FUNCS:
            faults.append(
                f"scoring_func {self.scoring_func!r} is unknown (known: {', '.join(SCORING_FUNCS)})"
            )
        experts, groups, kept = self.n_routed_experts or 0, self.n_group, self.topk_group
        if not well_sized:
            return faults
        if groups < 1 or kept < 1 or kept > groups:
            faults.append(f"topk_group {kept} must lie between 1 and n_group {groups}")
        elif experts % groups:
            faults.append(f"n_routed_experts {experts} must be a multiple of n_group {groups}")
        else:
            reachable = experts if self.topk_method == "greedy" else kept * (experts // groups)
            if (self.num_experts_per_tok or 0) > reachable:
                faults.append(
                    f"num_experts_per_tok {self.num_experts_per_tok} exceeds the {reachable} experts in reach"
                )
            if self.topk_method == "noaux_tc" and experts // groups < 2:
                faults.append(
                    f"noaux_tc needs at least 2 experts per group, {experts} in {groups} groups has fewer"
                )
        if self.first_k_dense_replace < 0:
            faults.append("first_k_dense_replace must not be negative")
        return faults

    def _rope_faults(self) -> list[str]:
        if self.rope_scaling is None:
            return []
        scaling = self._normalised_rope(self.rope_scaling)
        kind = scaling["rope_type"]
        if kind not in ROPE_TYPES:
            return [f"rope type {kind!r} is not supported (supported: {', '.join(ROPE_TYPES)})"]
        needed = {
            "default": (),
            "linear": ("factor",),
            "yarn": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        }[kind]
        faults = [
            f"rope_scaling.{key} must be a number above 0, it is {scaling.get(key)!r}"
            for key in needed
            if not isinstance(scaling.get(key), int | float) or not scaling[key] > 0
        ]
        if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
            faults.append("rope_scaling.partial_rotary_factor is not supported")
        return faults

    def _normalised_rope(self, scaling: Mapping[str, Any]) -> dict[str, Any]:
        """`rope_type` instead of `type`, no theta inside, the original context said where it matters."""
        values = {
            key: value
            for key, value in scaling.items()
            if key not in ("type", "rope_theta") and value is not None
        }
        values["rope_type"] = scaling.get("rope_type") or scaling.get("type") or "default"
        if values["rope_type"] in ("yarn", "llama3"):
            values.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        return values


def _read_rope(given: Mapping[str, Any]) -> tuple[Any, Any]:
    """(rope_theta, rope_scaling or None) from either spelling; `rope_scaling` wins, as in transformers."""
    parameters = given.get("rope_parameters") or {}
    scaling = given.get("rope_scaling") or parameters
    if not isinstance(scaling, Mapping) or not isinstance(parameters, Mapping):
        return given.get("rope_theta", 10000.0), scaling
    theta = scaling.get("rope_theta") or given.get("rope_theta") or parameters.get("rope_theta") or 10000.0
    if (scaling.get("rope_type") or scaling.get("type") or "default") == "default":
        return theta, None
    return theta, scaling
