"""FP8 (e4m3) weights with one scale per 128x128 block, as DeepSeek stores them. Idea and numbers: docs/fp8-blocks.md.

value = fp8 * scale_inv of its block (despite the name it multiplies). The last row and column of blocks may be ragged:
a 576 x 200 matrix has 5 x 2 scales. Letters: O rows (outputs), I columns (inputs).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = (128, 128)
E4M3_MAX = 448.0


def scale_shape(shape: Sequence[int], block: Sequence[int] = BLOCK) -> tuple[int, int]:
    """The scale grid of an [O, I] matrix: ceil(O / rows) x ceil(I / columns)."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def _over_blocks(scale: Tensor, shape: Sequence[int], block: Sequence[int]) -> Tensor:
    """Every block's scale repeated over its elements, cut to [O, I]."""
    rows = scale.repeat_interleave(block[0], 0)[: shape[0]]
    return rows.repeat_interleave(block[1], 1)[:, : shape[1]]


def quantize_blocks(
    weight_OI: Tensor, *, block: Sequence[int] = BLOCK, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """(e4m3 [O, I], fp32 scales [ceil(O/128), ceil(I/128)]).

    A block's largest magnitude becomes 448. With `power_of_two` the scale is rounded up to a power of two (ue8m0, from
    V3.1 on), so that multiplying by it is exact. A block of zeros gets the scale 1.
    """
    if weight_OI.dim() != 2:
        raise ValueError(f"FP8 blocks are for matrices, not for shape {tuple(weight_OI.shape)}")
    weight = weight_OI.detach().float()
    grid = scale_shape(weight.shape, block)
    padded = weight.new_zeros(grid[0] * block[0], grid[1] * block[1])
    padded[: weight.shape[0], : weight.shape[1]] = weight
    largest = padded.view(grid[0], block[0], grid[1], block[1]).abs().amax(dim=(1, 3))
    scale = torch.where(largest > 0, largest / E4M3_MAX, torch.ones_like(largest))
    if power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    scaled = weight / _over_blocks(scale, weight.shape, block)
    return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def dequantize_blocks(
    quantized_OI: Tensor, scale: Tensor, *, block: Sequence[int] = BLOCK, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[O, I] in `dtype`; `scale` may be fp32, bf16 or e8m0. Raises ValueError, with both shapes, for a wrong grid."""
    expected = scale_shape(quantized_OI.shape, block)
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"scales of shape {tuple(scale.shape)} for a matrix of shape {tuple(quantized_OI.shape)}; "
            f"with blocks of {block[0]}x{block[1]} it takes {expected}"
        )
    return (quantized_OI.float() * _over_blocks(scale.float(), quantized_OI.shape, block)).to(dtype)
