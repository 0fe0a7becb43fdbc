"""FP8 blocks: the value is fp8 times its block's scale, ragged edges included."""

from __future__ import annotations

import pytest
import torch

from shoal.ops.fp8 import dequantize_blocks, quantize_blocks, scale_shape


def spread(rows: int, columns: int) -> torch.Tensor:
    """Blocks of very different size, all magnitudes within a block near each other: no underflow of e4m3."""
    torch.manual_seed(0)
    matrix = torch.rand(rows, columns) + 0.5
    matrix *= torch.where(torch.rand(rows, columns) > 0.5, 1.0, -1.0)
    for row in range(0, rows, 128):
        for column in range(0, columns, 128):
            matrix[row : row + 128, column : column + 128] *= 10.0 ** ((row + column) // 128 - 3)
    return matrix


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("shape", "grid"), [((576, 200), (5, 2)), ((1, 1), (1, 1)), ((128, 128), (1, 1))])
def test_every_element_within_a_sixteenth(
    shape: tuple[int, int], grid: tuple[int, int], power_of_two: bool
) -> None:
    matrix = spread(*shape)
    quantized, scale = quantize_blocks(matrix, power_of_two=power_of_two)
    assert (quantized.dtype, quantized.shape, tuple(scale.shape)) == (torch.float8_e4m3fn, matrix.shape, grid)
    assert scale_shape(shape) == grid
    back = dequantize_blocks(quantized, scale)
    assert ((back - matrix).abs() <= matrix.abs() / 16).all()
    if power_of_two:
        assert torch.equal(torch.exp2(torch.log2(scale).round()), scale)


def test_a_block_is_multiplied_by_its_own_scale_by_hand() -> None:
    quantized = torch.full((130, 129), 2.0).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    back = dequantize_blocks(quantized, scale)
    assert (back[0, 0], back[127, 128], back[128, 127], back[129, 128]) == (2.0, 20.0, 200.0, 2000.0)


def test_scales_may_be_e8m0() -> None:
    matrix = spread(130, 140)
    quantized, scale = quantize_blocks(matrix, power_of_two=True)
    assert torch.equal(
        dequantize_blocks(quantized, scale.to(torch.float8_e8m0fnu)), dequantize_blocks(quantized, scale)
    )


def test_zeros_stay_zero_and_the_largest_is_exact() -> None:
    quantized, scale = quantize_blocks(torch.zeros(3, 5))
    assert torch.equal(dequantize_blocks(quantized, scale), torch.zeros(3, 5))
    matrix = torch.tensor([[448.0, -1.0]])
    quantized, scale = quantize_blocks(matrix)
    assert scale.item() == 1 and torch.equal(dequantize_blocks(quantized, scale), matrix)


def test_a_wrong_grid_names_both_shapes() -> None:
    quantized, scale = quantize_blocks(torch.ones(576, 200))
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(576, 200\).*\(5, 2\)"):
        dequantize_blocks(quantized, scale[:4])
