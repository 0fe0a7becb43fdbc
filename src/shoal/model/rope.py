"""Rotary position embedding: the turning itself; how fast each pair turns stands in frequencies.py.

Legend: T tokens, P rotated numbers of a head (pairs j = 0 .. P/2-1).
All angles are computed in fp32, once per forward pass, and shared by the layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.model.config import ModelConfig
from shoal.model.frequencies import inverse_frequencies


class Rotation(NamedTuple):
    """cos and sin [T, 1, P/2] of every pair's angle (times the attention factor), and how pairs are laid out.

    Adjacent pairs are turned as complex numbers (one pass instead of seven) where `turn`, cos + i sin, is given.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool
    turn: Tensor | None = None


class RotaryEmbedding:
    """position_ids -> Rotation. Holds no tensor that a checkpoint or a device move would have to know of."""

    def __init__(self, config: ModelConfig):
        frequencies, self._factor = inverse_frequencies(config)
        self._frequencies = torch.from_numpy(frequencies)
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
