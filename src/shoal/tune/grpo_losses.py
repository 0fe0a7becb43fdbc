"""Group-relative policy optimisation: advantages, five losses and the KL terms, as pure functions.

Legend: S samples (completions), T tokens of all samples together, flat; `sample_T` says whose a token is. pi is the
policy, pi_old the policy before its updates from these samples, r = pi / pi_old, A the advantage, eps the clip range.
Where the sampler is not quite the policy (quantised weights), pi_sampler is a third one: `importance_weights`. A loss
is given per token; `Loss.over` says how tokens are averaged:

| name | per token | over | source |
|---|---|---|---|
| grpo | -min(r A, clip(r, 1 - eps, 1 + eps) A) | tokens of a sample, then samples | DeepSeekMath 2402.03300; R1 |
| dr_grpo | the same | the longest length allowed: no bonus for long wrong answers | 2503.20783 |
| dapo | the same, upper eps wider | all tokens of the batch | DAPO 2503.14476 |
| gspo | the same with s = exp(mean log r of the sample) for r | tokens of a sample, then samples | GSPO 2507.18071 |
| cispo | -stop_gradient(min(r, 1 + eps_high)) A log pi | all tokens of the batch | MiniMax-M1 2506.13585 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Over = Literal["sample", "length", "token"]


@dataclass(frozen=True)
class Completions:
    """What a loss sees. `logprobs` and `old_logprobs` [T] are of softmax(logits / temperature), as was sampled."""

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    """[S]"""
    sample: Tensor
    """[T], which sample a token belongs to."""

    @property
    def lengths(self) -> Tensor:
        """[S], tokens of each sample."""
        return torch.bincount(self.sample, minlength=self.advantages.shape[0])

    def mean_of_samples(self, values_T: Tensor) -> Tensor:
        """[S], the mean of each sample's tokens; 0 without any."""
        sums = torch.zeros_like(self.advantages).index_add(0, self.sample, values_T)
        return sums / self.lengths.clamp_min(1)

    @property
    def log_ratio(self) -> Tensor:
        return self.logprobs - self.old_logprobs


def group_advantages(
    rewards: Sequence[float | None], scale: Literal["group", "none"] = "none"
) -> list[float | None]:
    """A_i = R_i - mean R of the group, over its standard deviation where scale = "group" (n - 1, as TRL divides).

    None stays None and takes no part. The group is dead (all None) where fewer than two can be judged or all are alike.
    """
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2 or max(known) - min(known) < 1e-9:
        return [None] * len(rewards)
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in known) / (len(known) - 1)) if scale == "group" else 1.0
    return [None if reward is None else (reward - mean) / deviation for reward in rewards]


def _clipped(ratio_T: Tensor, advantages_T: Tensor, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio_T * advantages_T, ratio_T.clamp(1 - low, 1 + high) * advantages_T)


def clipped_tokens(c: Completions, low: float, high: float) -> Tensor:
    """[T], the clipped surrogate with a ratio of its own for every token."""
    return _clipped(c.log_ratio.exp(), c.advantages[c.sample], low, high)


def clipped_sequences(c: Completions, low: float, high: float) -> Tensor:
    """[T], the same with one ratio per sample: the geometric mean of its tokens' ratios."""
    ratio_S = c.mean_of_samples(c.log_ratio).exp()
    return _clipped(ratio_S, c.advantages, low, high)[c.sample]


def weighted_tokens(c: Completions, low: float, high: float) -> Tensor:
    """[T], REINFORCE with a clipped importance weight: no token loses its gradient. `low` is not used."""
    weight_T = c.log_ratio.exp().clamp_max(1 + high).detach()
    return -weight_T * c.advantages[c.sample] * c.logprobs


@dataclass(frozen=True)
class Loss:
    per_token: Callable[[Completions, float, float], Tensor]
    over: Over
    epsilon: tuple[float, float]
    """What its authors clip at, below and above."""


LOSSES: dict[str, Loss] = {
    "grpo": Loss(clipped_tokens, "sample", (0.2, 0.2)),
    "dr_grpo": Loss(clipped_tokens, "length", (0.2, 0.2)),
    "dapo": Loss(clipped_tokens, "token", (0.2, 0.28)),
    "gspo": Loss(clipped_sequences, "sample", (3e-4, 4e-4)),
    "cispo": Loss(weighted_tokens, "token", (1.0, 4.0)),
}


def importance_weights(old_logprobs_T: Tensor, sampled_logprobs_T: Tensor, cap: float) -> Tensor:
    """[T], min(pi_old / pi_sampler, cap), without gradient: truncated importance sampling for tokens that another
    function than the trainer's drew (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"; TRL and verl alike). Exactly 1 where both are the same numbers; cap 0: 1 everywhere."""
    if not cap:
        return torch.ones_like(old_logprobs_T)
    return (old_logprobs_T - sampled_logprobs_T).exp().clamp_max(cap)


def k3(logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """[T], Schulman's k3 estimate of KL(pi, pi_ref): pi_ref/pi - log(pi_ref/pi) - 1. Its gradient explodes where
    pi << pi_ref."""
    difference = ref_logprobs_T - logprobs_T
    return difference.exp() - difference - 1


def unbiased_kl(logprobs_T: Tensor, old_logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """[T], k3 times pi / pi_old: an unbiased estimate, of value and gradient (DeepSeek-V3.2, 2512.02556, eq. 7)."""
    return k3(logprobs_T, ref_logprobs_T) * (logprobs_T - old_logprobs_T).exp()


def stale_negatives(c: Completions, threshold: float) -> Tensor:
    """[S] bool: samples with A < 0 that the policy has moved away from, mean(log pi_old - log pi) > threshold
    (DeepSeek-V3.2, eq. 9; its pi_old is the sampler's). They are dropped from the sum and stay in the divisor."""
    drift_S = c.mean_of_samples(-c.log_ratio.detach())
    return (c.advantages < 0) & (drift_S > threshold)


def weights_over(over: Over, c: Completions) -> Tensor:
    """[T], what each token's loss is multiplied with before the sum; the sum's divisor is `divisor`."""
    if over == "sample":
        return (1.0 / c.lengths.clamp_min(1))[c.sample]
    return torch.ones_like(c.logprobs)


def divisor(over: Over, lengths: Sequence[int], longest: int) -> float:
    """What the sum over these samples is divided by."""
    return {"sample": len(lengths), "length": len(lengths) * longest, "token": sum(lengths)}[over]
