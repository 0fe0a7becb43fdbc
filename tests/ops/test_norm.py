from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.ops.norm import rms_norm, rms_norm_reference


def results(function, x: Tensor, weight: Tensor, eps: float) -> list[Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = function(x, weight, eps)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), x.grad, weight.grad]


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
@pytest.mark.parametrize("shape", [(1, 8), (37, 12), (5, 3, 16)])
def test_value_and_gradients_equal_reference(shape: tuple[int, ...], eps: float) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape) * 3, torch.rand(shape[-1]) + 0.5
    for found, expected in zip(
        results(rms_norm, x, weight, eps), results(rms_norm_reference, x, weight, eps), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_gradients_and_in_bf16() -> None:
    x, weight = torch.randn(7, 16), torch.rand(16)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 1e-6), rms_norm_reference(x, weight, 1e-6))
    found = rms_norm(x.bfloat16(), weight.bfloat16(), 1e-6)
    assert found.dtype == torch.bfloat16
    assert (found.float() - rms_norm_reference(x, weight, 1e-6)).abs().max() < 5e-2


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bf16_trains_with_the_gradients_of_fp32(weight_dtype: torch.dtype) -> None:
    """Sums are fp32; a frozen weight gets no gradient."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 16).bfloat16(), (torch.rand(16) + 0.5).to(weight_dtype)
    expected = results(rms_norm_reference, x.float(), weight.float(), 1e-6)
    for found, wanted in zip(results(rms_norm, x, weight, 1e-6), expected, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=2e-2)
    x.requires_grad_()
    out = rms_norm(x, weight, 1e-6)
    assert out.dtype == weight_dtype
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.dtype == torch.bfloat16 and weight.grad is None
