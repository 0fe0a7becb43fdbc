"""The planner's arithmetic: FLOPs by part, bytes by part, traffic by part. Pure functions of a configuration.

Counts are those of `model/counts.py`; here they are split into parts and given the terms that only a plan needs.
Names in the formulas: d hidden size, L layers, T tokens of a row, p weights, N devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import shoal.model.counts as counts
from shoal.errors import UsageError
from shoal.model.config import ModelConfig

Parts = dict[str, float]
NODE = 8  # devices that share the fast link


@dataclass(frozen=True)
class Layout:
    """How a job is spread: `devices` = tensor x pipeline x data parallel; experts are spread inside data parallel.

    sharding: "none" (every data-parallel rank holds all), "zero1" (optimiser state shared out), "fsdp" (weights and
    gradients too), "hybrid" (fsdp inside a node of 8, gradients averaged between nodes).
    """

    devices: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    sharding: str = "fsdp"

    @property
    def dp(self) -> int:
        return self.devices // (self.tp * self.pp)

    @property
    def shards(self) -> int:
        """How many ranks share what is shared out."""
        return min(self.dp, NODE) if self.sharding == "hybrid" else self.dp

    def check(self, c: ModelConfig) -> None:
        """Raises UsageError, with what would work, when these numbers cannot be a layout of this network."""
        if min(self.devices, self.tp, self.pp, self.ep) < 1:
            raise UsageError(
                "a layout needs at least one device of each kind", hint="Give numbers of 1 and more."
            )
        if self.sharding not in ("none", "zero1", "fsdp", "hybrid"):
            raise UsageError(f"unknown sharding {self.sharding!r}", hint="One of none, zero1, fsdp, hybrid.")
        if self.devices % (self.tp * self.pp):
            raise UsageError(
                f"{self.devices} devices cannot be cut into {self.tp} x {self.pp} (tensor x pipeline)",
                hint=f"Take a multiple of {self.tp * self.pp} devices.",
            )
        if self.tp > c.num_attention_heads or c.num_attention_heads % self.tp:
            raise UsageError(
                f"tp {self.tp} does not divide the {c.num_attention_heads} heads",
                hint=f"Divisors: {_divisors(c.num_attention_heads)}.",
            )
        if self.pp > c.num_layers_with_mtp:
            raise UsageError(
                f"pp {self.pp} is more than the {c.num_layers_with_mtp} layers", hint="Take fewer stages."
            )
        experts = c.n_routed_experts or 1
        if self.ep > 1 and (experts % self.ep or self.dp % self.ep):
            both = [n for n in range(1, self.dp + 1) if experts % n == 0 and self.dp % n == 0]
            raise UsageError(
                f"ep {self.ep} must divide the {experts} experts and the {self.dp} data-parallel ranks",
                hint=f"These do: {', '.join(map(str, both))}.",
            )


def _divisors(n: int) -> str:
    return ", ".join(str(i) for i in range(1, n + 1) if n % i == 0)


# ---- FLOPs


def mean_context(sequence: int, window: int = 0, window_share: float = 0.0) -> float:
    """The row length that, halved, is the mean number of keys of a causal query; some layers may see a window only.

    A window of w in a row of T sees on average w (1 - w / 2T) keys (counted by hand: w T - w^2/2 pairs).
    """
    if not window or window >= sequence:
        return float(sequence)
    windowed = 2 * window * (1 - window / (2 * sequence))
    return window_share * windowed + (1 - window_share) * sequence


def forward_parts(c: ModelConfig, context: float, *, mtp: bool = False) -> Parts:
    """FLOPs of one token's forward pass by part; they add up to `counts.flops_per_token(..., training=False)`."""
    layers = range(c.num_layers_with_mtp if mtp else c.num_hidden_layers)
    moe = sum(c.is_moe_layer(i) for i in layers)
    expert = 3 * c.hidden_size * (c.moe_intermediate_size or 0)
    drafts = c.num_nextn_predict_layers if mtp else 0
    head = c.vocab_size * c.hidden_size
    parts = {
        "attention matrices": 2.0 * len(layers) * counts.attention_matrices(c),
        "attention scores": counts.flops_per_token(c, context, False, mtp=mtp)
        - counts.flops_per_token(c, 0, False, mtp=mtp),
        "feed-forward": 2.0 * (len(layers) - moe) * 3 * c.hidden_size * c.intermediate_size,
        "routed experts": 2.0 * moe * (c.num_experts_per_tok or 0) * expert,
        "shared experts": 2.0 * moe * (c.n_shared_experts or 0) * expert,
        "gates": 2.0 * moe * c.hidden_size * (c.n_routed_experts or 0),
        "head": 2.0 * head * (1 + drafts),
        "MTP joining": 2.0 * drafts * 2 * c.hidden_size**2,
    }
    return {name: value for name, value in parts.items() if value}


def training_parts(
    c: ModelConfig, context: float, *, mtp: bool = False, lora_rank: int = 0, recompute: str = "none"
) -> Parts:
    """FLOPs of one trained token by part. Backward is twice forward (a product for each of its two inputs).

    lora_rank: frozen weights need no gradient of their own, so their products cost 4p instead of 6p; the adapters, on
    every matrix of the layers, cost 6p of their own. recompute "full": one more forward; "selective": what DeepSeek-V3
    does again (MLA's up-projections: 2 c H (n + v) per layer).
    """
    forward = forward_parts(c, context, mtp=mtp)
    parts = {}
    for name, value in forward.items():
        frozen = lora_rank and name != "attention scores"
        parts[name] = value * (2 if frozen else 3)
    if lora_rank:
        parts["adapters"] = 6.0 * adapter_weights(c, lora_rank, active=True)
    if recompute == "full":
        parts["recomputation"] = sum(forward.values())
    elif recompute == "selective" and c.uses_mla:
        up = (c.kv_lora_rank or 0) * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
        parts["recomputation"] = 2.0 * up * c.num_hidden_layers
    return parts


def adapter_weights(c: ModelConfig, rank: int, *, active: bool = False) -> int:
    """Weights of LoRA adapters of `rank` on every matrix of attention and feed-forward: rank (rows + columns) each."""
    d, heads = c.hidden_size, c.num_attention_heads
    if c.uses_mla:
        latent, wide = c.kv_lora_rank or 0, heads * (c.qk_nope_head_dim + c.v_head_dim)
        q = heads * c.qk_head_dim
        query = (d + c.q_lora_rank) + (c.q_lora_rank + q) if c.q_lora_rank else d + q
        attention = query + (d + latent + c.qk_rope_head_dim) + (latent + wide) + (heads * c.v_head_dim + d)
    else:
        kv = (c.num_key_value_heads or heads) * c.qk_head_dim
        attention = 2 * (d + heads * c.qk_head_dim) + 2 * (d + kv)
    total = 0
    for layer in range(c.num_hidden_layers):
        total += attention
        if c.is_moe_layer(layer):
            used = (c.num_experts_per_tok if active else c.n_routed_experts) or 0
            total += (used + (c.n_shared_experts or 0)) * 3 * (d + (c.moe_intermediate_size or 0))
        else:
            total += 3 * (d + c.intermediate_size)
    return total * rank


def muon_flops_per_step(c: ModelConfig, steps: int = 5) -> float:
    """Muon's orthogonalisation of every matrix once: steps x (4 m^2 n + 2 m^3), m the shorter side (Jordan 2024)."""
    d, heads, total = c.hidden_size, c.num_attention_heads, 0.0

    def matrix(rows: int, columns: int, count: int = 1) -> float:
        m, n = sorted((rows, columns))
        return count * (4.0 * m * m * n + 2.0 * m**3)

    for layer in range(c.num_layers_with_mtp):
        if c.uses_mla:
            rank, latent = c.q_lora_rank, c.kv_lora_rank or 0
            q = heads * c.qk_head_dim
            total += matrix(d, rank) + matrix(rank, q) if rank else matrix(d, q)
            total += matrix(d, latent + c.qk_rope_head_dim)
            total += matrix(latent, heads * (c.qk_nope_head_dim + c.v_head_dim)) + matrix(
                heads * c.v_head_dim, d
            )
        else:
            total += matrix(d, heads * c.qk_head_dim, 2)
            total += matrix(d, (c.num_key_value_heads or heads) * c.qk_head_dim, 2)
        if c.is_moe_layer(layer):
            count = (c.n_routed_experts or 0) + (c.n_shared_experts or 0)
            total += matrix(d, c.moe_intermediate_size or 0, 3 * count)
        else:
            total += matrix(d, c.intermediate_size, 3)
    return steps * total


# ---- memory

# Bytes per trained weight: weight, gradient, optimiser (master copy and moments).
STATES = {
    "mixed": (2.0, 4.0, 12.0),  # bf16 weights, fp32 gradients, fp32 master and AdamW's two fp32 moments
    "mixed-bf16-moments": (2.0, 4.0, 8.0),  # DeepSeek-V3, section 3.3: moments in bf16
    "fp32": (4.0, 4.0, 8.0),  # everything fp32, AdamW (our own trainer)
    "fp32-muon": (4.0, 4.0, 4.0),  # everything fp32, one momentum
}


def expert_weights(c: ModelConfig, *, mtp: bool = False) -> int:
    """Weights of all routed experts: the part that expert parallelism spreads."""
    layers = range(c.num_layers_with_mtp if mtp else c.num_hidden_layers)
    per_layer = (c.n_routed_experts or 0) * 3 * c.hidden_size * (c.moe_intermediate_size or 0)
    return sum(c.is_moe_layer(i) for i in layers) * per_layer


def activation_bytes(c: ModelConfig, micro_tokens: int, recompute: str = "none") -> float:
    """Bytes that a layer's forward pass over `micro_tokens` keeps for backward, 16-bit, on average of layers.

    Without recomputation: both norms' inputs and outputs (4d), q, k, v and the attention's output, and three widths of
    the feed-forward network per expert used (Korthikanti et al. 2022 count 34 d bytes for GPT; the same tally gives
    32 d). "selective": layer inputs, MLA's latents and the attention's output, and the experts' two inner widths in FP8
    (DeepSeek-V3, section 3.2.3). "full": the layer's input alone.
    """
    d, heads = c.hidden_size, c.num_attention_heads
    moe = sum(c.is_moe_layer(i) for i in range(c.num_hidden_layers)) / c.num_hidden_layers
    used = (c.num_experts_per_tok or 0) + (c.n_shared_experts or 0)
    widths = moe * used * (c.moe_intermediate_size or 0) + (1 - moe) * c.intermediate_size
    out = heads * (c.v_head_dim if c.uses_mla else c.qk_head_dim)
    if recompute == "full":
        numbers = 2.0 * d
    elif recompute == "selective" and c.uses_mla:
        latents = (c.kv_lora_rank or 0) + c.qk_rope_head_dim + (c.q_lora_rank or 0)
        numbers = 2.0 * (d + latents + out) + 2.0 * widths
    else:
        if c.uses_mla:
            latents = (c.kv_lora_rank or 0) + c.qk_rope_head_dim + (c.q_lora_rank or 0)
            qkv = 2 * heads * c.qk_head_dim + out + latents
        else:
            qkv = out + 2 * (c.num_key_value_heads or heads) * c.qk_head_dim
        numbers = 2.0 * (4 * d + qkv + out + 3 * widths)
    return micro_tokens * numbers


def training_memory(
    c: ModelConfig,
    layout: Layout,
    micro_tokens: int,
    *,
    states: str = "mixed",
    recompute: str = "none",
    mtp: bool = False,
    lora_rank: int = 0,
    in_flight: int | None = None,
) -> Parts:
    """Bytes on the fullest device by part. `in_flight`: micro-batches that wait for their backward pass (PP)."""
    weight_bytes, gradient_bytes, optimiser_bytes = STATES[states]
    experts = expert_weights(c, mtp=mtp)
    shared = counts.parameters_total(c, mtp=mtp) - experts
    cut = layout.tp * layout.pp
    local_shared, local_experts = shared / cut, experts / cut / layout.ep
    spread_shared = local_shared / layout.shards
    spread_experts = local_experts / max(layout.shards / layout.ep, 1)
    spread = spread_shared + spread_experts
    local = local_shared + local_experts
    shared_out = layout.sharding in ("fsdp", "hybrid")
    held = spread if shared_out else local
    trained, trained_held, trained_spread = 1.0, held, spread
    if lora_rank:
        trained = adapter_weights(c, lora_rank) / (shared + experts)
        trained_held, trained_spread = held * trained, spread * trained
    per_layer = activation_bytes(c, micro_tokens, recompute) / layout.tp
    waiting = in_flight or layout.pp
    kept = per_layer * (c.num_hidden_layers / layout.pp) * waiting
    if recompute == "full":
        kept += activation_bytes(c, micro_tokens) / layout.tp  # the layer being done again
    parts = {
        "weights": held * weight_bytes + (trained_held * weight_bytes if lora_rank else 0),
        "gradients": trained_held * gradient_bytes,
        "optimiser": (trained_spread if layout.sharding != "none" else trained_held) * optimiser_bytes,
        "activations": kept,
        "logits": micro_tokens * c.vocab_size * 6.0 / layout.tp,  # 16-bit logits and their fp32 softmax
    }
    if shared_out and layout.dp > 1:
        parts["gathered layer"] = 2 * local / max(c.num_hidden_layers / layout.pp, 1) * weight_bytes
    return parts


def serving_memory(
    c: ModelConfig, devices: int, sequences: int, context: int, weight_bits: float, cache_bits: float = 16
) -> Parts:
    """Bytes per device by part: weights and cache spread over `devices`, work space for one step."""
    return {
        "weights": counts.parameters_total(c) * weight_bits / 8 / devices,
        "cache": sequences * context * counts.kv_bytes_per_token(c, cache_bits / 8) / devices,
        "work space": sequences * (c.vocab_size * 4.0 + 16.0 * c.hidden_size) / devices,
    }


# ---- communication, bytes that one device sends per step


def communication(
    c: ModelConfig,
    layout: Layout,
    tokens_per_step: float,
    *,
    micro_steps: int = 1,
    nodes_per_token: int = 4,
    diloco_steps: int = 0,
    mtp: bool = False,
) -> Parts:
    """Bytes per device and step by part.

    DP: a ring passes 2 (N - 1) / N of the 16-bit gradients. FSDP gathers weights twice and scatters gradients once, per
    micro-step; hybrid does that inside a node and averages an eighth of the gradients between nodes. EP: per token, MoE
    layer and direction the token goes to at most `nodes_per_token` other nodes, out in FP8 and back in bf16
    (DeepSeek-V3, 3.2.2: 1 + 2 bytes); backward the same. PP: the layer boundary, both ways. TP: two all-reduces of the
    layer's output forward and backward. DiLoCo: 16-bit weights once in `diloco_steps` steps (Douillard 2023).
    """
    experts = expert_weights(c, mtp=mtp)
    cut = layout.tp * layout.pp
    shared = (counts.parameters_total(c, mtp=mtp) - experts) / cut
    tokens = tokens_per_step / layout.dp  # of one data-parallel rank
    parts: Parts = {}
    expert_dp = max(layout.dp // layout.ep, 1)
    if layout.dp > 1:
        ring = (layout.dp - 1) / layout.dp * shared
        ring += (expert_dp - 1) / expert_dp * experts / cut / layout.ep
        if diloco_steps:
            parts["DiLoCo"] = 2 * 2 * ring / diloco_steps
        elif layout.sharding == "hybrid" and layout.dp > NODE:
            parts["FSDP"] = 3 * 2 * (NODE - 1) / NODE * shared * micro_steps
            parts["DP"] = 2 * 2 * (shared / NODE + experts / cut / layout.ep * (expert_dp > 1))
        elif layout.sharding in ("fsdp", "hybrid"):
            parts["FSDP"] = 3 * 2 * ring * micro_steps
        else:
            parts["DP"] = 2 * 2 * ring
    if layout.ep > 1:
        moe = sum(c.is_moe_layer(i) for i in range(c.num_hidden_layers)) / layout.pp
        places = min(nodes_per_token, layout.ep, c.num_experts_per_tok or 1)
        parts["EP all-to-all"] = tokens * moe * 2 * places * c.hidden_size * (1 + 2)
    if layout.pp > 1:
        parts["PP"] = tokens * 2 * 2 * c.hidden_size
    if layout.tp > 1:
        layers = c.num_hidden_layers / layout.pp
        parts["TP"] = tokens * layers * 4 * 2 * (layout.tp - 1) / layout.tp * 2 * c.hidden_size
    return parts


def pipeline_bubble(pp: int, micro_batches: int, schedule: str = "1f1b") -> float:
    """Share of a step in which a stage waits. 1F1B: (PP-1) / (m + PP-1) (Narayanan et al. 2021).

    "dualpipe": (PP/2 - 1)(F&B + B - 3W) of m (F + B) work (DeepSeek-V3, table 2), with B = 2F, W = F and F&B = F + B.
    """
    if pp <= 1:
        return 0.0
    if schedule == "dualpipe":
        idle = (pp / 2 - 1) * (3 + 2 - 3)
        return idle / (3 * micro_batches + idle)
    return (pp - 1) / (micro_batches + pp - 1)


# ---- sizes


def compute_optimal(flops: float, tokens_per_weight: float = 20.0) -> tuple[float, float]:
    """(weights, tokens) of a dense network that spend `flops` = 6 N D at D = 20 N (Hoffmann et al. 2022)."""
    weights = (flops / (6 * tokens_per_weight)) ** 0.5
    return weights, tokens_per_weight * weights
