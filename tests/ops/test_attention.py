from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.ops.attention import (
    attention,
    attention_reference,
    mla_absorbed,
    mla_absorbed_reference,
    mla_expanded,
    mla_expanded_reference,
)

DTYPES = [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)]


def causal_or_mask(kind: str, rows: int, queries: int, keys: int) -> dict:
    if kind == "causal":
        return {"causal": True}
    if kind == "all":
        return {}
    seen = torch.rand(rows, 1, queries, keys, generator=torch.Generator().manual_seed(5)) < 0.5
    seen[..., 0] = True  # a query that sees nothing has no answer
    if kind == "bool":
        return {"mask": seen}
    return {"mask": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)}


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", ["causal", "all", "bool", "float"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("width", "value_width"), [(24, 24), (24, 16), (8, 24)])
def test_attention(
    width: int, value_width: int, heads: int, kv_heads: int, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    queries, keys = (17, 17) if kind == "causal" else (5, 17)
    torch.manual_seed(0)
    q, k = torch.randn(2, queries, heads, width), torch.randn(2, keys, kv_heads, width)
    v = torch.randn(2, keys, kv_heads, value_width)
    options = causal_or_mask(kind, 2, queries, keys)
    expected = attention_reference(q, k, v, 0.3, **options)
    if kind == "float":
        options["mask"] = options["mask"].to(dtype)
    found = attention(q.to(dtype), k.to(dtype), v.to(dtype), 0.3, **options)
    assert found.shape == (2, queries, heads, value_width) and found.dtype == dtype
    assert (found.float() - expected).abs().max() < tolerance


def latent_example(queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """q_nope, q_rope, latent, k_rope, kv_b_weight at odd sizes: 3 heads, nope 10, rope 6, values 7, latent 12."""
    torch.manual_seed(0)
    shapes = [(2, queries, 3, 10), (2, queries, 3, 6), (2, keys, 12), (2, keys, 6), (3 * (10 + 7), 12)]
    return [(torch.randn(shape) / (3 if len(shape) == 2 else 1)).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", ["causal", "all", "bool"])
@pytest.mark.parametrize("form", [mla_expanded, mla_absorbed, mla_absorbed_reference])
def test_all_forms_of_mla_are_one_function(form, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    queries, keys = (13, 13) if kind == "causal" else (1, 13)
    options = causal_or_mask(kind, 2, queries, keys)
    parts = latent_example(queries, keys, dtype)
    expected = mla_expanded_reference(*(part.float() for part in parts), 0.25, **options)
    found = form(*parts, 0.25, **options)
    assert found.shape == (2, queries, 3, 7) and found.dtype == dtype
    assert (found.float() - expected).abs().max() < tolerance


def test_gradients_of_the_forms_agree() -> None:
    gradients = []
    for form in (mla_expanded_reference, mla_expanded, mla_absorbed):
        parts = [part.requires_grad_() for part in latent_example(13, 13, torch.float32)]
        form(*parts, 0.25, causal=True).square().sum().backward()
        gradients.append([part.grad for part in parts])
    for other in gradients[1:]:
        for found, expected in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
