"""How fast each rotary pair turns, and the softmax scale that goes with it: numbers of a configuration, without torch.

Sources: RoFormer (2104.09864); YaRN (2309.00071) in the form of DeepSeek-V3's released inference code; `llama3` of
Llama 3.1's release.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shoal.model.config import ModelConfig


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's growth of the attention temperature: 0.1 * weight * ln(factor) + 1 (1 without extension)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def softmax_scale(config: ModelConfig) -> float:
    """1/sqrt(head width); MLA multiplies it by mscale^2 when `mscale_all_dim` is given (and not 0)."""
    scale = config.qk_head_dim**-0.5
    scaling = config.rope_scaling or {}
    if config.uses_mla and scaling.get("mscale_all_dim"):
        scale *= yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    return scale


def inverse_frequencies(config: ModelConfig) -> tuple[NDArray[np.float32], float]:
    """(radians per position of each pair [P/2] fp32, the factor on cos and sin)."""
    values, factor = _frequencies(config)
    return values.astype(np.float32), factor


def _frequencies(config: ModelConfig) -> tuple[NDArray[np.float64], float]:
    dim, theta, scaling = config.rope_dim, config.rope_theta, config.rope_scaling
    plain = float(theta) ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is None:
        return plain, 1.0
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return plain / factor, 1.0
    original = scaling["original_max_position_embeddings"]
    if scaling["rope_type"] == "llama3":
        # Slow pairs are divided by the factor, fast ones kept, those between blended by their wave length.
        low_factor, high_factor = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * plain / (2 * math.pi)  # within the original context
        blend = np.clip((turns - low_factor) / (high_factor - low_factor), 0, 1)
        return plain / factor * (1 - blend) + plain * blend, 1.0

    # YaRN: pairs that turn more than beta_fast times within the original context keep their frequency, those that
    # turn less than beta_slow times are slowed by the factor, a ramp lies between.
    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (
        pair_that_turns(scaling.get("beta_fast") or 32),
        pair_that_turns(scaling.get("beta_slow") or 1),
    )
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
    mixed = plain / factor * ramp + plain * (1 - ramp)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention_factor = yarn_mscale(factor)
        if mscale and mscale_all_dim:
            attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    return mixed, attention_factor
