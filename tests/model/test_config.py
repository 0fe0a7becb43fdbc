from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ShoalError
from shoal.model.config import ModelConfig

TINY: dict[str, Any] = dict(
    model_type="deepseek_v3", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1,
)  # fmt: skip
LLAMA: dict[str, Any] = dict(
    model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
YARN = {"factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}


@pytest.mark.parametrize(
    "values",
    [
        TINY,
        TINY | {"rope_scaling": {"type": "yarn", **YARN, "original_max_position_embeddings": 4096}},
        TINY | {"num_nextn_predict_layers": 1, "eos_token_id": [1, 2]},
        TINY | {"model_type": "deepseek_v2", "q_lora_rank": 12},
        LLAMA,
        LLAMA | {"model_type": "qwen2"},
        LLAMA | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    ],
)
def test_written_and_read_again(values: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    config = ModelConfig.from_dict(values)
    with caplog.at_level(logging.WARNING):
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert not caplog.records


def test_both_spellings_of_rope() -> None:
    old = ModelConfig.from_dict(TINY | {"rope_theta": 5000.0, "rope_scaling": {"type": "yarn", **YARN}})
    new = ModelConfig.from_dict(
        TINY | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, **YARN}, "rope_scaling": None}
    )
    assert old == new
    assert old.rope_scaling is not None and old.rope_scaling["rope_type"] == "yarn"
    assert old.rope_scaling["original_max_position_embeddings"] == old.max_position_embeddings
    written = old.to_dict()
    assert written["rope_scaling"]["type"] == written["rope_scaling"]["rope_type"] == "yarn"
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 5000.0


def test_default_rope_in_the_new_spelling() -> None:
    config = ModelConfig.from_dict(LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})
    assert (config.rope_theta, config.rope_scaling) == (1e6, None)


def test_both_spellings_of_mtp() -> None:
    assert ModelConfig.from_dict(TINY | {"num_mtp_layers": 1}).num_nextn_predict_layers == 1
    written = ModelConfig.from_dict(TINY | {"num_nextn_predict_layers": 2}).to_dict()
    assert written["num_nextn_predict_layers"] == written["num_mtp_layers"] == 2


def test_deepseek_always_says_how_it_routes() -> None:
    """Engines branch on these two keys (FACTS: some files lack them)."""
    v3, v2 = (
        ModelConfig.from_dict(TINY).to_dict(),
        ModelConfig.from_dict(TINY | {"model_type": "deepseek_v2"}).to_dict(),
    )
    assert (v3["scoring_func"], v3["topk_method"]) == ("sigmoid", "noaux_tc")
    assert (v2["scoring_func"], v2["topk_method"]) == ("softmax", "greedy")


def test_c10_optional_parts_may_be_null() -> None:
    """C10 (vllm-project/vllm#11578): topk_method noaux_tc with rope_scaling null crashed."""
    optional = ("rope_scaling", "rope_parameters", "q_lora_rank", "n_shared_experts", "n_group", "topk_group",
                "num_nextn_predict_layers", "num_mtp_layers", "quantization_config", "pad_token_id", "eos_token_id",
                "norm_topk_prob", "scoring_func", "rope_interleave")  # fmt: skip
    config = ModelConfig.from_dict(TINY | {"topk_method": "noaux_tc"} | dict.fromkeys(optional))
    assert config.rope_scaling is None and config.n_group == 1
    dense = ModelConfig.from_dict(TINY | dict.fromkeys(("n_routed_experts", "num_experts_per_tok")))
    assert not any(dense.is_moe_layer(layer) for layer in range(3))


def test_unknown_keys_warn_and_harmless_keys_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ModelConfig.from_dict(
            TINY | {"torch_dtype": "bfloat16", "use_cache": True, "ep_size": 1, "seq_aux": True}
        )
        assert not caplog.records
        ModelConfig.from_dict(TINY | {"rope_thetaa": 3.0})
    assert "rope_thetaa" in caplog.text and "did you mean rope_theta?" in caplog.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"index_topk": 2048}, "index_topk"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_keys_that_change_the_arithmetic_are_errors(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ShoalError, match=named):
        ModelConfig.from_dict(LLAMA | change)


def test_all_faults_in_one_message() -> None:
    wrong = TINY | {
        "hidden_size": 0, "n_group": 3, "topk_method": "best", "rms_norm_eps": "small", "qk_rope_head_dim": 3,
    }  # fmt: skip
    with pytest.raises(ShoalError, match="rms_norm_eps must be of type float"):
        ModelConfig.from_dict(wrong)
    with pytest.raises(ShoalError) as error:
        ModelConfig.from_dict(wrong | {"rms_norm_eps": 1e-6})
    text = str(error.value)
    for part in (
        "hidden_size",
        "n_group 3",
        "'best'",
        "greedy, group_limited_greedy, noaux_tc",
        "must be even",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 exceeds the 8"),
        ({"num_experts_per_tok": 3, "n_group": 4, "topk_group": 1}, "exceeds the 2"),
        ({"n_group": 8, "topk_group": 4}, "at least 2 experts per group"),
        ({"n_group": 2, "topk_group": 3}, "topk_group 3"),
        ({"kv_lora_rank": None}, "kv_lora_rank"),
        ({"vocab_size": True}, "vocab_size must be of type int"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"model_type": "mixtral"}, "deepseek_v3, deepseek_v2, llama, qwen2, qwen3"),
    ],
)
def test_contradictions(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ShoalError, match=named):
        ModelConfig.from_dict(TINY | change)


def test_missing_sizes_are_named() -> None:
    with pytest.raises(ShoalError, match="vocab_size, hidden_size"):
        ModelConfig.from_dict({"model_type": "llama"})


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match=r"no config\.json"):
        ModelConfig.from_folder(tmp_path)
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ShoalError, match="JSON"):
            ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert ModelConfig.from_folder(tmp_path) == ModelConfig.from_dict(LLAMA)


def test_eos_ids() -> None:
    assert ModelConfig.from_dict(LLAMA).eos_token_ids == ()
    assert ModelConfig.from_dict(LLAMA | {"eos_token_id": 5}).eos_token_ids == (5,)
    assert ModelConfig.from_dict(LLAMA | {"eos_token_id": [5, 6]}).eos_token_ids == (5, 6)


def test_no_torch() -> None:
    code = "import sys, shoal.model.config, shoal.model.counts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
