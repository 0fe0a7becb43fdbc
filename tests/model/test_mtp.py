from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
    from transformers.modeling_layers import MtpLayer
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

SHAPE: dict[str, Any] = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
    moe_intermediate_size=16, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
    first_k_dense_replace=1, n_group=1, topk_group=1, max_position_embeddings=64,
)  # fmt: skip


def network_of(modules: int) -> CausalLM:
    config = ModelConfig.from_dict(SHAPE | {"model_type": "deepseek_v3", "num_nextn_predict_layers": modules})
    network = CausalLM(config, mtp=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


def ours_in_their_names(layer: torch.nn.Module) -> dict[str, Tensor]:
    state, names = layer.state_dict(), {}
    for name, tensor in state.items():
        if name == "shared_head.norm.weight":
            names["post_norm.weight"] = tensor
        elif name.split(".")[0] in ("enorm", "hnorm", "eh_proj"):
            names[name] = tensor
        elif name.endswith("experts.gate_proj"):
            fused = torch.cat([tensor, state[name.replace("gate_proj", "up_proj")]], 1)
            names["mtp_block." + name.replace("gate_proj", "gate_up_proj")] = fused
        elif not name.endswith("experts.up_proj"):
            names["mtp_block." + name] = tensor
    return names


@torch.no_grad()
def test_two_modules_against_transformers() -> None:
    """Embedding first, hidden states after the final norm, each module fed with the last one's normed output.

    Transformers numbers positions by the token that was embedded, one later: RoPE sees only differences.
    """
    network = network_of(2)
    theirs = DeepseekV3ForCausalLM(DeepseekV3Config(**SHAPE, attn_implementation="eager"))
    ids = torch.randint(0, 96, (14,))
    length = 12
    causal = torch.full((length, length), -torch.inf).triu(1)[None, None]
    context = RowsContext(1, length)
    hidden = network(ids[:length], context)
    expected = hidden[None]
    for k in range(2):
        layer = MtpLayer(theirs.config, DeepseekV3DecoderLayer, DeepseekV3RMSNorm, 2 + k)
        layer.load_state_dict(ours_in_their_names(network.model.layers[2 + k]), strict=True)
        next_ids = ids[k + 1 : k + 1 + length]
        positions = torch.arange(k + 1, k + 1 + length)[None]
        embedded = network.model.embed_tokens(next_ids)[None]
        rotary = theirs.model.rotary_emb(embedded, position_ids=positions)
        expected = layer.eval()(embedded, expected, rotary, causal, positions, None)
        hidden = network.mtp_forward(k, hidden, next_ids, context)
        assert (network.logits(hidden) - network.logits(expected[0])).abs().max() <= 1e-4


def test_names_are_those_of_the_released_checkpoint() -> None:
    names = {name for name in network_of(1).state_dict() if name.startswith("model.layers.2.")}
    for part in ("enorm", "hnorm", "eh_proj", "shared_head.norm", "self_attn.kv_b_proj", "mlp.gate"):
        assert f"model.layers.2.{part}.weight" in names
    assert not any("shared_head.head" in name or "embed_tokens" in name for name in names)


def test_the_trunk_does_not_change_with_mtp_modules() -> None:
    with_mtp = network_of(1)
    plain = CausalLM(with_mtp.config)
    plain.load_state_dict(
        {k: v for k, v in with_mtp.state_dict().items() if not k.startswith("model.layers.2.")}
    )
    ids = torch.randint(0, 96, (10,))
    assert torch.equal(plain(ids, RowsContext(1, 10)), with_mtp(ids, RowsContext(1, 10)))


def test_a_detached_trunk_gets_no_gradient() -> None:
    network = network_of(1)
    ids = torch.randint(0, 96, (11,))
    context = RowsContext(1, 10, count_experts=True)
    hidden = network(ids[:10], context)
    network.mtp_forward(0, hidden.detach(), ids[1:], context).sum().backward()
    assert set(context.expert_counts) == {1, 2}
    for name, parameter in network.named_parameters():
        trained = name.startswith("model.layers.2.") or name == "model.embed_tokens.weight"
        assert (parameter.grad is not None) == trained, name
