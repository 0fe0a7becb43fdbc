"""The network against transformers' own classes: random tiny models, weights carried over in both directions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import (
        DeepseekV2Config,
        DeepseekV2ForCausalLM,
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

TOLERANCE = 1e-4
SMALL: dict[str, Any] = dict(
    vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
)  # fmt: skip
MLA: dict[str, Any] = dict(
    SMALL, num_key_value_heads=4, kv_lora_rank=24, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8,
    v_head_dim=12, moe_intermediate_size=20, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3,
    first_k_dense_replace=1, routed_scaling_factor=2.5,
)  # fmt: skip
YARN_MLA = dict(
    rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.9,
    original_max_position_embeddings=16,
)  # fmt: skip
YARN_PLAIN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=50000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.0)

GROUPS = dict(n_group=4, topk_group=2)
Make = Callable[[], Any]
CASES: dict[str, Make] = {
    "v3": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**MLA, n_group=1, topk_group=1)),
    "v3-groups": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**MLA, **GROUPS)),
    "v3-q-lora": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**MLA | {"q_lora_rank": 20}, **GROUPS)),
    "v3-bias": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**MLA | {"q_lora_rank": 20}, **GROUPS, attention_bias=True)
    ),
    "v3-yarn": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**MLA, **GROUPS, rope_parameters=dict(YARN_MLA))
    ),
    "v3-yarn-plain": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**MLA, **GROUPS, rope_parameters=dict(YARN_PLAIN))
    ),
    "v3-half-split-rope": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**MLA, **GROUPS, rope_interleave=False)
    ),
    "v3-no-norm": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**MLA, **GROUPS, norm_topk_prob=False)),
    "v3-tied": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**MLA, **GROUPS, tie_word_embeddings=True)),
    "v3-eps": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**MLA, **GROUPS, rms_norm_eps=1e-2)),
    "v2": lambda: DeepseekV2ForCausalLM(DeepseekV2Config(**MLA)),
    "v2-q-lora-yarn": lambda: DeepseekV2ForCausalLM(
        DeepseekV2Config(**MLA | {"q_lora_rank": 20}, rope_parameters=dict(YARN_MLA))
    ),
    "v2-groups": lambda: DeepseekV2ForCausalLM(
        DeepseekV2Config(
            **MLA | {"routed_scaling_factor": 16.0}, **GROUPS, topk_method="group_limited_greedy"
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "llama-3": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, num_key_value_heads=1, head_dim=16, rope_parameters=dict(LLAMA3))
    ),
    "llama-bias-tied-linear": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, attention_bias=True, tie_word_embeddings=True, rope_parameters=dict(LINEAR))
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=2, rms_norm_eps=1e-5)),
    "qwen2-yarn": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, num_key_value_heads=2, rope_parameters=dict(YARN_PLAIN))
    ),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    ),
    "qwen3-bias": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=20, attention_bias=True)
    ),
}


def make(case: str, seed: int = 0) -> Any:
    """Transformers' model with every number random: norms, biases and the selection bias too."""
    torch.manual_seed(seed)
    theirs = CASES[case]().eval()
    with torch.no_grad():
        for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5)
            elif "e_score_correction_bias" in name:
                tensor.uniform_(-1.5, 0.5)  # a biased score below 0 tells -inf from 0 in the group mask
            elif "inv_freq" not in name:
                tensor.normal_(0, 0.5 / tensor.shape[-1] ** 0.5 if tensor.dim() > 1 else 0.2)
            if "embed" in name or "gate.weight" in name:
                tensor.mul_(4)
    return theirs


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transformers 5 fuses an expert's gate and up projections; ours are apart."""
    ours = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            ours[prefix + "gate_proj"], ours[prefix + "up_proj"] = (
                part.clone() for part in tensor.chunk(2, 1)
            )
        else:
            ours[name] = tensor.clone()
    return ours


def to_theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_proj"):
            up = state[name.replace("gate_proj", "up_proj")]
            theirs[name.replace("gate_proj", "gate_up_proj")] = torch.cat([tensor, up], 1)
        elif not name.endswith("experts.up_proj"):
            theirs[name] = tensor
    return theirs


def ours_like(theirs: Any) -> CausalLM:
    ours = CausalLM(ModelConfig.from_dict(theirs.config.to_dict()))
    ours.load_state_dict(to_ours(theirs.state_dict()), strict=True)
    return ours.eval()


def logits_of(ours: CausalLM, input_ids_BL: Tensor) -> Tensor:
    context = RowsContext(*input_ids_BL.shape)
    return ours.logits(ours(input_ids_BL.flatten(), context)).unflatten(0, input_ids_BL.shape)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal(case: str) -> None:
    theirs = make(case)
    input_ids_BL = torch.randint(0, 101, (2, 64))  # YaRN and llama3: four times the original context
    expected = theirs(input_ids_BL).logits
    assert expected.std() > 0.1
    difference = (logits_of(ours_like(theirs), input_ids_BL) - expected).abs().max()
    assert difference <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_our_weights_and_config_in_their_class(case: str) -> None:
    ours = ours_like(make(case))
    values = ours.config.to_dict()
    config = getattr(transformers, values["architectures"][0].removesuffix("ForCausalLM") + "Config")
    theirs = getattr(transformers, values["architectures"][0])(config.from_dict(values)).eval()
    theirs.load_state_dict(to_theirs(ours.state_dict()), strict=True)
    input_ids_BL = torch.randint(0, 101, (2, 64))
    assert (logits_of(ours, input_ids_BL) - theirs(input_ids_BL).logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("case", ["v3-groups", "v2-q-lora-yarn", "llama-3", "qwen2", "qwen3"])
@torch.no_grad()
def test_greedy_text_equal_over_64_tokens(case: str) -> None:
    theirs = make(case)
    ours = ours_like(theirs)
    prompt = torch.randint(2, 101, (1, 5))
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, min_new_tokens=64, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    row = prompt
    for _ in range(64):
        row = torch.cat([row, logits_of(ours, row)[:, -1:].argmax(-1)], 1)
    assert row.tolist() == expected.tolist()


@pytest.mark.parametrize("case", ["v3-groups", "v2-groups", "llama-3", "qwen3"])
def test_gradients_equal(case: str) -> None:
    theirs = make(case)
    ours = ours_like(theirs)
    input_ids_BL = torch.randint(0, 101, (2, 40))
    labels = input_ids_BL[:, 1:].flatten()
    theirs.train()(input_ids_BL, labels=input_ids_BL).loss.backward()
    logits = logits_of(ours.train(), input_ids_BL)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = to_ours({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=lambda m, n=name: n + m
        )


@torch.no_grad()
def test_c09_normalising_and_scaling_are_independent() -> None:
    """C09 (sgl-project/sglang-jax#1282): the scale was applied only where weights are normalised.

    Transformers' V2 class scales and never normalises; a hook on its router adds the normalising.
    """
    theirs = make("v2")
    input_ids_BL = torch.randint(0, 101, (2, 32))
    config = theirs.config.to_dict()

    def normalise(module: Any, args: Any, output: Any) -> Any:
        logits, weights, ids = output
        return logits, weights / weights.sum(-1, keepdim=True) * module.routed_scaling_factor, ids

    for norm in (False, True):
        if norm:
            for layer in theirs.model.layers[1:]:
                layer.mlp.gate.register_forward_hook(normalise)
        for scale in (1.0, 16.0):
            for layer in theirs.model.layers[1:]:
                layer.mlp.gate.routed_scaling_factor = scale
            ours = CausalLM(
                ModelConfig.from_dict(config | {"norm_topk_prob": norm, "routed_scaling_factor": scale})
            )
            ours.load_state_dict(to_ours(theirs.state_dict()))
            difference = (logits_of(ours, input_ids_BL) - theirs(input_ids_BL).logits).abs().max()
            assert difference <= TOLERANCE, (norm, scale)


@torch.no_grad()
def test_old_spelling_of_rope_gives_the_same_network() -> None:
    theirs = make("v3-yarn")
    values = theirs.config.to_dict()
    rope = dict(values.pop("rope_parameters"))
    old = values | {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": {**rope, "type": rope.pop("rope_type")},
    }
    ours = CausalLM(ModelConfig.from_dict(old))
    ours.load_state_dict(to_ours(theirs.state_dict()))
    input_ids_BL = torch.randint(0, 101, (1, 64))
    assert (logits_of(ours, input_ids_BL) - theirs(input_ids_BL).logits).abs().max() <= TOLERANCE


def test_bf16_keeps_the_selection_bias_in_fp32() -> None:
    ours = ours_like(make("v3-groups"))
    before = ours.model.layers[1].mlp.gate.e_score_correction_bias.clone()
    ours.to(torch.bfloat16)
    after = ours.model.layers[1].mlp.gate.e_score_correction_bias
    assert ours.model.layers[1].mlp.gate.weight.dtype == torch.bfloat16
    assert after.dtype == torch.float32 and torch.equal(before, after)
    hidden = ours(torch.arange(10), RowsContext(1, 10))
    assert hidden.dtype == torch.bfloat16
