"""The fused divergence equals the plain one, value and gradients, in both directions, at any temperature."""

from __future__ import annotations

import pytest
import torch

from shoal.ops import logit_chunks
from shoal.ops.distill_loss import Direction, linear_kl, linear_kl_reference


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_the_reference(
    direction: Direction, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_chunks, "_CHUNK_BYTES", 1)  # several chunks, the last one ragged
    torch.manual_seed(1)
    hidden, weight = torch.randn(150, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    teacher = (torch.randn(150, 12), torch.randn(40, 12))
    found = []
    for function in (linear_kl, linear_kl_reference):
        loss = function(hidden, weight, *teacher, direction, temperature)
        found.append((loss, *torch.autograd.grad(loss * 0.5, [hidden, weight])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_teacher_that_agrees_costs_nothing() -> None:
    hidden, weight = torch.randn(5, 8), torch.randn(40, 8)
    for direction in ("forward", "reverse"):
        assert float(linear_kl(hidden, weight, hidden, weight, direction)) == pytest.approx(0, abs=1e-4)
