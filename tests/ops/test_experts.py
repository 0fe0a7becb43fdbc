from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.ops.experts import experts, experts_reference, grouped_linear


def example(tokens: int, hidden: int, width: int, count: int, k: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden)
    ids = torch.rand(tokens, count).topk(k, -1).indices
    weights = torch.rand(tokens, k)
    stacks = [torch.randn(count, *shape) / 4 for shape in ((width, hidden), (width, hidden), (hidden, width))]
    return [ids if part is ids else part.to(dtype) for part in (x, ids, weights, *stacks)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (37, 2), (64, 5)])
@pytest.mark.parametrize(("hidden", "width"), [(16, 24), (10, 7)])  # 10 and 7: rows that grouped_mm refuses
def test_equals_reference(
    hidden: int, width: int, tokens: int, k: int, dtype: torch.dtype, tolerance: float
) -> None:
    parts = example(tokens, hidden, width, 6, k, dtype)
    expected = experts_reference(*(part.float() if part.is_floating_point() else part for part in parts))
    found = experts(*parts)
    assert found.dtype == dtype
    assert (found.float() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(("hidden", "width"), [(16, 24), (10, 7)])
def test_gradients_equal_reference(hidden: int, width: int) -> None:
    gradients = []
    for function in (experts_reference, experts):
        parts = example(37, hidden, width, 6, 2, torch.float32)
        for part in parts:
            part.requires_grad_(part.is_floating_point())
        function(*parts).square().sum().backward()
        gradients.append([part.grad for part in parts if part.is_floating_point()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_token_is_dropped_when_all_choose_one_expert() -> None:
    parts = example(50, 16, 24, 6, 2, torch.float32)
    parts[1] = torch.tensor([3, 5]).expand(50, 2)
    torch.testing.assert_close(experts(*parts), experts_reference(*parts), rtol=1e-4, atol=1e-5)


def test_no_tokens_at_all() -> None:
    parts = example(4, 16, 24, 6, 2, torch.float32)
    parts[0], parts[1], parts[2] = parts[0][:0], parts[1][:0], parts[2][:0]
    assert experts(*parts).shape == (0, 16)


def test_grouped_linear_with_empty_groups() -> None:
    weight = torch.randn(4, 8, 12)
    rows, counts = torch.randn(7, 12), torch.tensor([0, 5, 0, 2])
    expected = torch.cat([rows[:5] @ weight[1].t(), rows[5:] @ weight[3].t()])
    torch.testing.assert_close(grouped_linear(rows, weight, counts), expected)
