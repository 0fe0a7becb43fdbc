"""Choosing the next token of one request, in numpy. Never fails on a finite distribution, whatever the parameters.

Where the native extension is built it does the same sums in one pass over the vocabulary (ops/native/sample.cpp).
Everything random comes from the request's own generator, one number per token, so that the same seed gives the same
text alone or in a batch, and after a preemption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.engine.types import LogitsHook, SamplingParams
from shoal.errors import ShoalError
from shoal.ops import native

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: what they would do, without the noise of dividing by nearly nothing."""

_PRESELECT = 1024  # top_p needs no full sort of a vocabulary when the likeliest few already reach it


@dataclass(frozen=True)
class Sampled:
    """A chosen token; `logprob` and `top` as in `Piece`."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities of logits [V] in float64; a nan counts as -inf."""
    scores = _finite_scores(logits)
    scores = scores - scores.max()
    return scores - np.log(np.exp(scores).sum())


def top_logprobs(logprobs: NDArray[np.float64], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest (token id, log-probability), best first, equal ones by id."""
    ids = _best(logprobs, min(count, len(logprobs)))
    order = np.lexsort((ids, -logprobs[ids]))
    return tuple((int(i), float(logprobs[i])) for i in ids[order])


def filtered(
    scores: NDArray[np.float64], *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The token ids that may be chosen, ascending, and their probabilities.

    `scores` [V] are logits without nan or +inf; temperature is at least GREEDY_BELOW.
    """
    ids = _best(scores, top_k) if 0 < top_k < len(scores) else np.arange(len(scores))
    weights = np.exp((scores[ids] - scores.max()) / temperature)
    weights /= weights.sum()
    if top_p < 1:
        keep = _nucleus(weights, top_p)
        ids, weights = ids[keep], weights[keep]
    if min_p > 0:
        keep = np.flatnonzero(weights >= min(min_p, 1.0) * weights.max())
        ids, weights = ids[keep], weights[keep]
    return ids, weights / weights.sum()


class Sampler:
    """The sampling state of one request: its generator and what the penalties remember."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_ids: Sequence[int],
        vocab_size: int,
        end_ids: Sequence[int] = (),
    ):
        self.params = params
        self._end_ids = [i for i in end_ids if i < vocab_size]
        seed = None if params.seed is None else params.seed % 2**64  # numpy refuses negative seeds
        self._random = np.random.default_rng(seed)
        self._bias_ids = np.array([i for i in params.logit_bias if 0 <= i < vocab_size], dtype=np.int64)
        self._bias = np.array([params.logit_bias[int(i)] for i in self._bias_ids], dtype=np.float64)
        self._seen: NDArray[np.bool_] | None = None
        self._counts: NDArray[np.int64] | None = None
        if params.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, dtype=np.bool_)
            self._seen[np.asarray(prompt_ids, dtype=np.int64)] = True
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            self._counts = np.zeros(vocab_size, dtype=np.int64)

    def sample(
        self, logits: NDArray[np.float32], answer_ids: Sequence[int] = (), hook: LogitsHook | None = None
    ) -> Sampled:
        """Choose a token from logits [V] (not changed). `answer_ids` are the tokens chosen before."""
        with np.errstate(all="ignore"):  # a bias of 1e308 may overflow: it then counts as very large
            token_id = self._choose(self._adjusted(logits, answer_ids, hook))
        if self._seen is not None:
            self._seen[token_id] = True
        if self._counts is not None:
            self._counts[token_id] += 1
        if self.params.logprobs is None:
            return Sampled(token_id)
        return Sampled(token_id, *_logprobs(logits, token_id, self.params.logprobs))

    def _adjusted(
        self, logits: NDArray[np.float32], answer_ids: Sequence[int], hook: LogitsHook | None
    ) -> NDArray[Any]:
        """Penalties, bias, the request's hook, and no end before min_tokens. A copy only where something changes."""
        params = self.params
        if hook is not None and not getattr(hook, "wants", _always)(answer_ids):
            hook = None
        ends_forbidden = len(answer_ids) < params.min_tokens and bool(self._end_ids)
        if (
            self._seen is None
            and self._counts is None
            and not len(self._bias)
            and not hook
            and not ends_forbidden
        ):
            return logits
        scores = logits.astype(np.float64)
        if self._seen is not None:
            ids = np.flatnonzero(self._seen)
            seen, penalty = scores[ids], params.repetition_penalty
            scores[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts is not None:
            ids = np.flatnonzero(self._counts)
            scores[ids] -= params.frequency_penalty * self._counts[ids]
            scores[ids] -= params.presence_penalty
        scores[self._bias_ids] += self._bias
        if hook is not None:
            hook(answer_ids, scores)
        if ends_forbidden:
            scores[self._end_ids] = -np.inf
        return scores

    def _choose(self, scores: NDArray[Any]) -> int:
        params = self.params
        if not params.temperature >= GREEDY_BELOW:  # nan too
            best = int(np.argmax(scores))  # the first of equal ones: the lowest id
            if np.isfinite(scores[best]):
                return best
            return int(np.argmax(_finite_scores(scores)))
        number, temperature = self._random.random(), min(params.temperature, 1e30)
        if native.available:
            top_k = max(0, min(params.top_k, len(scores)))
            chosen = native.core.choose(scores, temperature, top_k, params.top_p, params.min_p, number)
            return chosen if chosen >= 0 else int(np.argmax(_finite_scores(scores)))  # which raises
        ids, probabilities = filtered(
            _finite_scores(scores),
            temperature=temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
        )
        return pick(ids, probabilities, number)


def pick(ids: NDArray[np.int64], probabilities: NDArray[np.float64], number: float) -> int:
    """The one of `ids` that a uniform number in [0, 1) falls on."""
    cumulative = np.cumsum(probabilities)
    place = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def _logprobs(
    logits: NDArray[np.float32], token_id: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token, and the `count` likeliest."""
    if not native.available:
        logprobs = log_softmax(logits)
        return float(logprobs[token_id]), top_logprobs(logprobs, count)
    whole = native.core.log_sum_exp(logits)
    best = native.core.likeliest(logits, count)
    values = np.nan_to_num(logits[[token_id, *best]].astype(np.float64), nan=-np.inf, posinf=1e300) - whole
    return float(values[0]), tuple(zip(best, values[1:].tolist(), strict=True))


def _always(answer_ids: Sequence[int]) -> bool:
    return True


def _finite_scores(logits: NDArray[Any]) -> NDArray[np.float64]:
    """float64 with nan as -inf and +inf as a very large number. Raises ShoalError when no token is left."""
    scores = np.nan_to_num(logits.astype(np.float64), nan=-np.inf, posinf=1e300, neginf=-np.inf)
    if not np.isfinite(scores.max()):
        raise ShoalError(
            "no token can follow: every logit is -inf or nan", hint="Are the model's files intact?"
        )
    return scores


def _best(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ids of the `count` highest scores, ascending; of equal ones at the edge the lowest ids."""
    if count >= len(scores):
        return np.arange(len(scores))
    if count <= 0:
        return np.arange(0)
    edge = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > edge)
    level = np.flatnonzero(scores == edge)[: count - len(above)]
    return np.sort(np.concatenate([above, level]))


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the likeliest whose sum first reaches top_p; at least one."""
    chosen = _best(probabilities, _PRESELECT)
    if probabilities[chosen].sum() < top_p:
        chosen = np.arange(len(probabilities))
    order = chosen[np.lexsort((chosen, -probabilities[chosen]))]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    count = max(1, int(np.count_nonzero(before < top_p)))
    return np.sort(order[:count])
