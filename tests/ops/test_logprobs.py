"""Log-probabilities in chunks equal the plain ones, values and gradients."""

from __future__ import annotations

import pytest
import torch

from shoal.ops import logit_chunks
from shoal.ops.logprobs import linear_logprobs, linear_logprobs_reference


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("tokens", [1, 200])
def test_equal_to_the_reference(tokens: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_chunks, "_CACHED_BYTES", 4 * 37 * 9)  # 9 tokens at a time
    monkeypatch.setattr(
        logit_chunks, "_CHUNK_BYTES", 4 * 37 * 70
    )  # 70 tokens a chunk: the last one is not full
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 19, generator=generator, requires_grad=True)
    weight = torch.randn(37, 19, generator=generator, requires_grad=True)
    labels = torch.randint(37, (tokens,), generator=generator)
    weights = torch.randn(tokens, generator=generator)
    found = []
    for function in (linear_logprobs_reference, linear_logprobs):
        values, entropy = function(hidden, weight, labels, temperature)
        assert not entropy.requires_grad
        gradients = torch.autograd.grad((values * weights).sum(), (hidden, weight))
        found.append((values, entropy, *gradients))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_head_gets_no_gradient_and_autocast_is_followed() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(11, 8)
    labels = torch.arange(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, _ = linear_logprobs(hidden, weight, labels)
    values.sum().backward()
    assert values.dtype == torch.float32 and hidden.grad is not None and hidden.grad.dtype == torch.float32
    expected, _ = linear_logprobs_reference(hidden.bfloat16(), weight.bfloat16(), labels)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
