"""The losses on numbers worked out by hand.

Two samples: tokens 0-1 (advantage 1) and token 2 (advantage -2). Ratios pi / pi_old: 1.5, 0.5, 1.5.
"""

from __future__ import annotations

import math

import pytest
import torch

from shoal.tune.grpo_losses import (
    LOSSES,
    Completions,
    clipped_sequences,
    clipped_tokens,
    divisor,
    group_advantages,
    importance_weights,
    k3,
    stale_negatives,
    unbiased_kl,
    weights_over,
)

LOG = math.log


def completions(ratios: tuple[float, ...] = (1.5, 0.5, 1.5)) -> Completions:
    old = torch.tensor([-1.0, -2.0, -0.5])
    logprobs = (old + torch.tensor(ratios).log()).requires_grad_()
    return Completions(logprobs, old, torch.tensor([1.0, -2.0]), torch.tensor([0, 0, 1]))


def gradient(name: str, c: Completions) -> list[float]:
    loss = LOSSES[name]
    total = (loss.per_token(c, *loss.epsilon) * weights_over(loss.over, c)).sum()
    return torch.autograd.grad(total, c.logprobs)[0].tolist()


# name -> (per token, sum with weights, divisor with a longest length of 10, d sum / d log pi)
BY_HAND = {
    # min(1.5, 1.2) = 1.2; min(0.5, 0.8) = 0.5; min(1.5 * -2, 1.2 * -2) = -3
    "grpo": ([-1.2, -0.5, 3.0], -0.6 - 0.25 + 3.0, 2, [0.0, -0.25, 3.0]),
    "dr_grpo": ([-1.2, -0.5, 3.0], 1.3, 20, [0.0, -0.5, 3.0]),
    "dapo": ([-1.28, -0.5, 3.0], 1.22, 3, [0.0, -0.5, 3.0]),
    # s_0 = sqrt(1.5 * 0.5) = 0.866 (below 1 - 3e-4, A > 0: not clipped), s_1 = 1.5 (A < 0: not clipped)
    "gspo": ([-math.sqrt(0.75)] * 2 + [3.0], 3 - math.sqrt(0.75), 2, [-math.sqrt(0.75) / 2] * 2 + [3.0]),
    # -r A log pi, log pi = -1 + log 1.5, -2 + log 0.5, -0.5 + log 1.5; d = -r A
    "cispo": (
        [-1.5 * (LOG(1.5) - 1), -0.5 * (LOG(0.5) - 2), 3 * (LOG(1.5) - 0.5)],
        -1.5 * (LOG(1.5) - 1) - 0.5 * (LOG(0.5) - 2) + 3 * (LOG(1.5) - 0.5),
        3,
        [-1.5, -0.5, 3.0],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_by_hand(name: str) -> None:
    per_token, total, count, slope = BY_HAND[name]
    loss, c = LOSSES[name], completions()
    values = loss.per_token(c, *loss.epsilon)
    assert values.tolist() == pytest.approx(per_token)
    assert (values * weights_over(loss.over, c)).sum().item() == pytest.approx(total)
    assert divisor(loss.over, [2, 1], 10) == count
    assert gradient(name, c) == pytest.approx(slope, abs=1e-6)


def test_every_loss_is_tested_by_hand() -> None:
    assert set(BY_HAND) == set(LOSSES)


def test_clipping_holds_where_it_should() -> None:
    c = completions((1.5, 0.5, 0.5))
    assert clipped_tokens(c, 0.2, 0.2).tolist() == pytest.approx([-1.2, -0.5, 1.6])  # max(-1, -0.8 * 2)
    high = completions((2.0, 2.0, 0.9))
    assert clipped_sequences(high, 0.2, 0.2).tolist() == pytest.approx([-1.2, -1.2, 1.8])
    far = completions((9.0, 1.0, 1.0))
    slope = torch.autograd.grad(LOSSES["cispo"].per_token(far, 1.0, 4.0).sum(), far.logprobs)[0]
    assert slope.tolist() == pytest.approx([-5.0, -1.0, 2.0])


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_the_gradient_is_reinforce(name: str) -> None:
    """At r = 1 every loss has the gradient -A d log pi, over its own average (huggingface/open-r1#239: its value is
    about 0 then, and that is right)."""
    c = completions((1.0, 1.0, 1.0))
    weights = [0.5, 0.5, 1.0] if LOSSES[name].over == "sample" else [1.0, 1.0, 1.0]
    expected = [-w * a for w, a in zip(weights, [1.0, 1.0, -2.0], strict=True)]
    assert gradient(name, c) == pytest.approx(expected)


def test_advantages_by_hand() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages([1.0, None, 0.0]) == [0.5, None, -0.5]
    scaled = group_advantages([3.0, 1.0, 2.0], "group")
    assert scaled == pytest.approx([1.0, -1.0, 0.0])  # standard deviation with n - 1: 1


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.1] * 8, [None, 1.0], [None, None], []])
def test_a_group_without_a_difference_is_dead(rewards: list[float | None]) -> None:
    for scale in ("group", "none"):
        assert group_advantages(rewards, scale) == [None] * len(rewards)  # type: ignore[arg-type]


def test_kl_terms_by_hand() -> None:
    policy, old, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([0.8]).log()
    assert float(k3(policy, reference)) == pytest.approx(1.6 - LOG(1.6) - 1)
    assert float(unbiased_kl(policy, old, reference)) == pytest.approx(2 * (1.6 - LOG(1.6) - 1))
    assert float(k3(policy, policy)) == 0.0


def test_the_unbiased_kl_is_unbiased() -> None:
    """Summed over what pi_old samples, value and gradient are those of KL(pi, pi_ref); k3's are not."""
    logits = torch.tensor([0.3, -1.0, 2.0], requires_grad=True)
    policy = logits.log_softmax(0)
    old = torch.tensor([1.0, 0.5, 0.0]).log_softmax(0)
    reference = torch.tensor([-1.0, 0.2, 0.4]).log_softmax(0)
    true = (policy.exp() * (policy - reference)).sum()
    estimate = (old.exp() * unbiased_kl(policy, old, reference)).sum()
    assert estimate.item() == pytest.approx(true.item(), rel=1e-5)
    slopes = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (true, estimate)]
    torch.testing.assert_close(*slopes)
    biased = torch.autograd.grad((policy.exp().detach() * k3(policy, reference)).sum(), logits)[0]
    assert not torch.allclose(biased, slopes[0], atol=1e-2)


def test_stale_negatives_are_found() -> None:
    # sample 1 (A < 0): log pi_old - log pi = log 2 = 0.69; sample 0 has drifted too, but is wanted
    c = completions((0.1, 0.1, 0.5))
    assert stale_negatives(c, 0.5).tolist() == [False, True]
    assert stale_negatives(c, 0.7).tolist() == [False, False]


def test_tokens_of_another_sampler_are_weighed_and_the_weight_is_cut() -> None:
    old, sampled = torch.tensor([0.5, 0.3, 0.9]).log(), torch.tensor([0.25, 0.6, 0.1]).log()
    weights = importance_weights(old, sampled, 3.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.5, 3.0]))
    assert importance_weights(old, sampled, 0.0).tolist() == [1.0, 1.0, 1.0]
    assert importance_weights(old, old, 2.0).tolist() == [1.0, 1.0, 1.0], (
        "bit by bit: nothing changes with torch"
    )
