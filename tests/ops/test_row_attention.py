from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.ops import row_attention as row_attention_module
from shoal.ops.attention import attention_reference
from shoal.ops.row_attention import first_keys, row_attention, suits


def example(length: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, length, 3, width).requires_grad_() for width in (12, 12, 8)]


def value_and_gradients(out: Tensor, parts: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), parts)]


@pytest.mark.parametrize("piece", [1, 2**19], ids=["row by row", "together"])
@pytest.mark.parametrize("length", [1, 64, 65, 150])
def test_causal_equals_reference(length: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention_module, "_PIECE_NUMBERS", piece)
    parts = example(length)
    expected = value_and_gradients(attention_reference(*parts, 0.3, causal=True), parts)
    for found, wanted in zip(value_and_gradients(row_attention(*parts, 0.3), parts), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("piece", [1, 2**19], ids=["row by row", "together"])
@pytest.mark.parametrize("order", ["contiguous", "woven"])
def test_documents_equal_reference(order: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention_module, "_PIECE_NUMBERS", piece)
    parts = example(150)
    position = torch.arange(150)
    documents = torch.stack([position // 40, position // 90])
    if order == "woven":  # tokens of two documents take turns
        documents = documents * 2 + position % 2
    seen = (documents[:, :, None] == documents[:, None, :]).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    expected = value_and_gradients(attention_reference(*parts, 0.3, mask=seen[:, None]), parts)
    firsts = first_keys(seen)
    if order == "contiguous":
        assert firsts == [[0, 40, 120], [0, 0, 90]]
    for options in ({}, {"firsts": firsts}):
        found = value_and_gradients(row_attention(*parts, 0.3, mask_BLS=mask, **options), parts)
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_bf16_operands_lose_little_on_the_way() -> None:
    """The value is that of fp32 arithmetic on the same bf16 numbers, rounded once; for the gradients the weights of
    the values and the value itself were rounded too."""
    parts = [part.detach().bfloat16().requires_grad_() for part in example(70)]
    exact = [part.detach().float().requires_grad_() for part in parts]
    expected = value_and_gradients(attention_reference(*exact, 0.3, causal=True), exact)
    found = value_and_gradients(row_attention(*parts, 0.3), parts)
    assert all(ours.dtype == torch.bfloat16 for ours in found)
    torch.testing.assert_close(found[0], expected[0].bfloat16(), rtol=2e-2, atol=1e-3)
    for ours, wanted in zip(found[1:], expected[1:], strict=True):
        assert (ours.float() - wanted).norm() < 0.004 * wanted.norm()


@pytest.mark.parametrize("piece", [1, 2**19], ids=["row by row", "together"])
@pytest.mark.parametrize(("length", "before"), [(1, 5), (64, 1), (65, 40), (130, 0), (130, 70)])
def test_shared_key_heads_and_keys_before(
    length: int, before: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_attention_module, "_PIECE_NUMBERS", piece)
    torch.manual_seed(0)
    shapes = ((length, 6, 12), (before + length, 2, 12), (before + length, 2, 8))
    parts = [torch.randn(3, *shape).requires_grad_() for shape in shapes]
    seen = torch.ones(length, before + length, dtype=torch.bool).tril(before)
    expected = value_and_gradients(attention_reference(*parts, 0.3, mask=seen), parts)
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf).expand(3, -1, -1)
    for given in (None, mask):
        found = value_and_gradients(row_attention(*parts, 0.3, mask_BLS=given), parts)
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_suits_short_rows_in_training_only() -> None:
    q, k, _ = example(128)
    assert suits(q, k)
    assert not suits(q.detach(), k)
    assert suits(q, k[:, :, :1])
    assert not suits(*example(16)[:2])
    assert suits(*(x.bfloat16() for x in example(16)[:2]))
    assert suits(q.bfloat16(), k.bfloat16())
    assert not suits(q.double(), k.double())
    assert not suits(*example(513)[:2])
    with torch.no_grad():
        assert not suits(q, k)
