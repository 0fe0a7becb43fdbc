from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.model.config import ModelConfig
from shoal.model.frequencies import inverse_frequencies, softmax_scale, yarn_mscale
from shoal.model.rope import RotaryEmbedding, rotate

MLA: dict[str, Any] = dict(
    model_type="deepseek_v3", vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, kv_lora_rank=16, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=8,
    first_k_dense_replace=1, max_position_embeddings=163840,
)  # fmt: skip
YARN: dict[str, Any] = dict(
    type="yarn", factor=40, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0,
    original_max_position_embeddings=4096,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_and_real_arithmetic_turn_alike(dtype: torch.dtype) -> None:
    rotation = RotaryEmbedding(ModelConfig.from_dict(MLA))(torch.arange(11) * 7)
    assert rotation.turn is not None
    wide = torch.randn(11, 3, 65).to(dtype)
    part = wide[..., 1:]  # neither aligned nor contiguous
    found, expected = rotate(part, rotation), rotate(part, rotation._replace(turn=None))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)


def test_both_layouts_turn_the_same_pairs() -> None:
    rotation = RotaryEmbedding(ModelConfig.from_dict(MLA))(torch.arange(5))
    x = torch.randn(5, 2, 64)
    half_apart = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
    turned = rotate(half_apart, rotation._replace(interleaved=False, turn=None))
    expected = rotate(x, rotation)
    torch.testing.assert_close(turned, torch.cat([expected[..., 0::2], expected[..., 1::2]], -1))


def test_scores_depend_on_the_distance_only() -> None:
    rotary = RotaryEmbedding(ModelConfig.from_dict(MLA))
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)

    def score(at: int, of: int) -> float:
        return float((rotate(q, rotary(torch.tensor([at]))) * rotate(k, rotary(torch.tensor([of])))).sum())

    assert score(9, 4) == pytest.approx(score(109, 104), abs=1e-3)
    assert score(9, 4) != pytest.approx(score(9, 8), abs=1e-2)


def test_yarn_of_deepseek_v3() -> None:
    """mscale 1.3689, squared into the softmax scale; cos and sin keep their size (mscale = mscale_all_dim)."""
    config = ModelConfig.from_dict(MLA | {"rope_scaling": YARN})
    assert yarn_mscale(40) == pytest.approx(1.3689, abs=1e-4)
    assert softmax_scale(config) == pytest.approx(192**-0.5 * 1.3689**2, rel=1e-4)
    frequencies, factor = inverse_frequencies(config)
    plain, _ = inverse_frequencies(ModelConfig.from_dict(MLA))
    assert factor == 1.0
    torch.testing.assert_close(frequencies[:10], plain[:10])  # fast pairs keep their frequency
    torch.testing.assert_close(frequencies[-8:], plain[-8:] / 40)  # slow ones are slowed by the factor
    assert (frequencies[10:-8] <= plain[10:-8]).all()


def test_without_mscale_all_dim_the_scale_stays() -> None:
    """Transformers multiplies only if the key is there and not 0."""
    for rope in ({**YARN, "mscale_all_dim": None}, {**YARN, "mscale_all_dim": 0}):
        config = ModelConfig.from_dict(MLA | {"rope_scaling": rope})
        assert softmax_scale(config) == pytest.approx(192**-0.5)
        assert inverse_frequencies(config)[1] == pytest.approx(yarn_mscale(40))


def test_device_move_and_positions_far_out() -> None:
    rotation = RotaryEmbedding(ModelConfig.from_dict(MLA))(torch.tensor([0, 163839]))
    assert rotation.cos.shape == (2, 1, 32) and rotation.cos.dtype == torch.float32
    torch.testing.assert_close(rotation.cos**2 + rotation.sin**2, torch.ones(2, 1, 32))
