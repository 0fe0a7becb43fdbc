"""Rotary position embedding: which angles a position turns by, and the turning itself.

Legend: T tokens, P rotated numbers of a head (pairs j = 0 .. P/2-1).
Sources: RoFormer (2104.09864); YaRN (2309.00071) in the form of DeepSeek-V3's released inference code; `llama3` of
Llama 3.1's release. All angles are computed in fp32, once per forward pass, and shared by the layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.model.config import ModelConfig


class Rotation(NamedTuple):
    """cos and sin [T, 1, P/2] of every pair's angle (times the attention factor), and how pairs are laid out.

    Adjacent pairs are turned as complex numbers (one pass instead of seven) where `turn`, cos + i sin, is given.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool
    turn: Tensor | None = None


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


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """(radians per position of each pair [P/2] fp32, the factor on cos and sin)."""
    dim, theta, scaling = config.rope_dim, config.rope_theta, config.rope_scaling
    plain = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if scaling is None:
        return plain, 1.0
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return plain / factor, 1.0
    original = scaling["original_max_position_embeddings"]
    if scaling["rope_type"] == "llama3":
        return _llama3(plain, factor, scaling["low_freq_factor"], scaling["high_freq_factor"], original), 1.0

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
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(
        0, 1
    )
    mixed = plain / factor * ramp + plain * (1 - ramp)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention_factor = yarn_mscale(factor)
        if mscale and mscale_all_dim:
            attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    return mixed, attention_factor


def _llama3(plain: Tensor, factor: float, low_factor: float, high_factor: float, original: float) -> Tensor:
    """Slow pairs are divided by the factor, fast ones kept, and those between are blended by their wave length."""
    turns = original * plain / (2 * math.pi)  # within the original context
    blend = ((turns - low_factor) / (high_factor - low_factor)).clamp(0, 1)
    return plain / factor * (1 - blend) + plain * blend


class RotaryEmbedding:
    """position_ids -> Rotation. Holds no tensor that a checkpoint or a device move would have to know of."""

    def __init__(self, config: ModelConfig):
        self._frequencies, self._factor = inverse_frequencies(config)
        self._interleaved = config.uses_mla and config.rope_interleave

    def __call__(self, position_ids_T: Tensor) -> Rotation:
        if self._frequencies.device != position_ids_T.device:
            self._frequencies = self._frequencies.to(position_ids_T.device)
        angles = (position_ids_T[:, None].float() * self._frequencies)[:, None]
        cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
        as_complex = self._interleaved and angles.device.type in ("cpu", "cuda")
        return Rotation(cos, sin, self._interleaved, torch.complex(cos, sin) if as_complex else None)


def rotate(x_TNP: Tensor, rotation: Rotation) -> Tensor:
    """Turn every pair of every head. The result keeps the layout and the dtype of `x`; the sums are fp32."""
    cos, sin, interleaved, turn = rotation
    if turn is not None:
        pairs = torch.view_as_complex(x_TNP.float().contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x_TNP.dtype)
    if interleaved:
        a, b = x_TNP.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x_TNP.dtype)
    a, b = x_TNP.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x_TNP.dtype)
