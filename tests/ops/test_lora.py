"""The fused low-rank update equals the plain one, value and gradients."""

from __future__ import annotations

import pytest
import torch

from shoal.ops.lora import lora_linear, lora_linear_reference


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_equals_the_reference(biased: bool, first: bool) -> None:
    """`first`: the layer's input wants no gradient."""
    torch.manual_seed(1)
    x, weight = torch.randn(30, 16, requires_grad=not first), torch.randn(24, 16)
    bias = torch.randn(24) if biased else None
    a, b = torch.randn(4, 16, requires_grad=True), torch.randn(24, 4, requires_grad=True)
    found = []
    for function in (lora_linear, lora_linear_reference):
        y = function(x, weight, bias, a, b, 0.7)
        wanted = [a, b] if first else [x, a, b]
        found.append((y, *torch.autograd.grad(y.square().sum(), wanted)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_under_autocast_it_computes_in_its_dtype_and_gives_full_gradients() -> None:
    x, a, b = (
        torch.randn(8, 16),
        torch.randn(4, 16, requires_grad=True),
        torch.randn(24, 4, requires_grad=True),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lora_linear(x, torch.randn(24, 16), None, a, b, 1.0)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and a.grad is not None and a.grad.dtype == torch.float32
