from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.ops import logit_chunks
from shoal.ops.loss import linear_cross_entropy, linear_cross_entropy_reference


def gradients(function, hidden: Tensor, weight: Tensor, labels: Tensor, **options) -> tuple:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, count = function(hidden, weight, labels, **options)
    (loss / max(count, 1) * 3).backward()
    return loss.detach(), count, hidden.grad, weight.grad


def example(tokens: int, vocabulary: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, hidden_size, generator=generator)
    weight = torch.randn(vocabulary, hidden_size, generator=generator)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, weight, labels


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("tokens", [1, 64, 203])
def test_equals_reference(tokens: int, ignored: str, z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_chunks, "_CHUNK_BYTES", 1)  # chunks of 64 tokens, the last one ragged
    monkeypatch.setattr(logit_chunks, "_CACHED_BYTES", 4 * 97 * 9)  # 9 tokens at a time
    hidden, weight, labels = example(tokens, 97, 24)
    labels[{"none": slice(0, 0), "some": slice(0, None, 3), "all": slice(0, None)}[ignored]] = -100
    expected = gradients(linear_cross_entropy_reference, hidden, weight, labels, z_loss=z_loss)
    found = gradients(linear_cross_entropy, hidden, weight, labels, z_loss=z_loss)
    assert found[1] == expected[1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = example(10, 50, 16)
    found = gradients(linear_cross_entropy, hidden * 100, weight, labels)
    expected = gradients(linear_cross_entropy_reference, hidden * 100, weight, labels)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bf16_stays_near_fp32_and_gives_bf16_gradients() -> None:
    hidden, weight, labels = example(128, 200, 32)
    weight = weight / 4
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    loss, _, grad_hidden, grad_weight = gradients(linear_cross_entropy, hidden, weight, labels)
    exact = gradients(linear_cross_entropy_reference, hidden.float(), weight.float(), labels)
    assert abs(loss / exact[0] - 1) < 5e-3
    assert grad_hidden.dtype == grad_weight.dtype == torch.bfloat16
    for ours, theirs in ((grad_hidden, exact[2]), (grad_weight, exact[3])):
        assert (ours.float() - theirs).norm() / theirs.norm() < 2e-2


def test_frozen_parts_get_no_gradient() -> None:
    hidden, weight, labels = example(20, 30, 8)
    with torch.no_grad():
        loss, count = linear_cross_entropy(hidden, weight, labels)
    assert count == 20 and not loss.requires_grad
    hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, labels)[0].backward()
    assert hidden.grad is not None and weight.grad is None


def test_logits_never_stand_whole_in_memory() -> None:
    """The largest tensor made on the way is a chunk of 512 tokens, a quarter of all logits."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.numel() * out.element_size())
            return out

    hidden, weight, labels = example(2048, 8192, 8)
    with Watch():
        gradients(linear_cross_entropy, hidden, weight, labels)
    assert max(sizes) == 512 * 8192 * 4
