"""Sampling: the values that broke others, and the meaning of each parameter on numbers worked out by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine.sampling import Sampler, filtered, log_softmax, pick, top_logprobs
from shoal.engine.types import SamplingParams
from shoal.errors import ShoalError
from shoal.ops import native

LOGITS = np.array([1.0, 3.0, 3.0, -np.inf, 2.0], dtype=np.float32)


def draw(logits: np.ndarray, count: int = 1, prompt: list[int] | None = None, **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(**params), prompt_ids=prompt or [0], vocab_size=len(logits))
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(sampler.sample(logits, chosen).token_id)
    return chosen


@pytest.mark.parametrize("temperature", [0, 1e-9, 1e-38, -1, 5e-324])
def test_tiny_temperatures_are_greedy_and_the_lowest_of_equal_ids_wins(temperature: float) -> None:
    assert draw(LOGITS, 20, temperature=temperature) == [1] * 20


def test_huge_temperature_is_uniform_but_never_takes_the_impossible() -> None:
    counts = Counter(draw(LOGITS, 4000, temperature=1e9, seed=1))
    assert set(counts) == {0, 1, 2, 4}
    assert all(abs(count - 1000) < 130 for count in counts.values())


def test_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))
    counts = Counter(draw(logits, 8000, temperature=1, seed=2))
    np.testing.assert_allclose([counts[i] / 8000 for i in range(4)], [0.5, 0.25, 0.15, 0.1], atol=0.02)
    counts = Counter(draw(logits, 8000, temperature=2, seed=2))
    root = np.sqrt([0.5, 0.25, 0.15, 0.1])
    np.testing.assert_allclose([counts[i] / 8000 for i in range(4)], root / root.sum(), atol=0.02)


def kept(probabilities: list[float], **limits: Any) -> list[int]:
    ids, weights = filtered(np.log(np.array(probabilities)), temperature=1.0, **limits)
    assert weights.sum() == pytest.approx(1)
    return ids.tolist()


def test_top_p_keeps_the_token_that_reaches_the_sum() -> None:
    assert kept([0.1, 0.4, 0.3, 0.2], top_p=0.4) == [1]
    assert kept([0.1, 0.4, 0.3, 0.2], top_p=0.41) == [1, 2]
    assert kept([0.1, 0.4, 0.3, 0.2], top_p=0.95) == [0, 1, 2, 3]
    for none in (0.0, 1e-9, -1.0):
        assert kept([0.1, 0.4, 0.3, 0.2], top_p=none) == [1]
    assert kept([0.25] * 4, top_p=0.5) == [0, 1]


def test_top_p_beyond_the_preselected_tokens_is_exact() -> None:
    generator = np.random.default_rng(0)
    weights = generator.random(5000) + 0.5  # nearly flat: 1,024 tokens are not enough
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")
    count = int(np.searchsorted(np.cumsum(probabilities[order]), 0.7)) + 1
    assert kept(probabilities.tolist(), top_p=0.7) == sorted(order[:count].tolist())


def test_top_k_and_min_p() -> None:
    assert kept([0.1, 0.4, 0.3, 0.2], top_k=2) == [1, 2]
    assert kept([0.25] * 4, top_k=3) == [0, 1, 2]
    for everything in (0, -1, 4, 10**9):
        assert kept([0.1, 0.4, 0.3, 0.2], top_k=everything) == [0, 1, 2, 3]
    assert kept([0.1, 0.4, 0.3, 0.2], min_p=0.5) == [1, 2, 3]
    assert kept([0.1, 0.4, 0.3, 0.2], min_p=1.0) == [1]
    assert kept([0.1, 0.4, 0.3, 0.2], min_p=7.0) == [1]
    assert kept([0.1, 0.4, 0.3, 0.2], top_k=3, top_p=0.7, min_p=0.9) == [1]


def test_the_same_seed_gives_the_same_tokens_and_another_does_not() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    assert draw(logits, 20, seed=5) == draw(logits, 20, seed=5) != draw(logits, 20, seed=6)
    assert draw(logits, 5, seed=-1) == draw(logits, 5, seed=2**64 - 1)
    assert draw(logits, 20) != draw(logits, 20)


def test_penalties() -> None:
    logits = np.array([2.0, 1.9, -1.0], dtype=np.float32)
    assert draw(logits, 3, temperature=0, presence_penalty=0.5) == [0, 1, 0]
    assert draw(logits, 5, temperature=0, frequency_penalty=0.06) == [0, 0, 1, 0, 1]
    # In the prompt already: 2.0 / 1.2 < 1.9; a negative logit moves down too.
    assert draw(logits, 1, prompt=[0], temperature=0, repetition_penalty=1.2) == [1]
    low = np.array([-1.0, -1.1], dtype=np.float32)
    assert draw(low, 1, prompt=[0], temperature=0, repetition_penalty=1.2) == [1]
    assert draw(logits, 1, temperature=0, logit_bias={2: 100.0}) == [2]
    assert draw(logits, 1, temperature=0, logit_bias={0: -100.0, 999: 100.0, -1: 100.0}) == [1]


def test_logprobs_are_the_models_own() -> None:
    sampler = Sampler(
        SamplingParams(temperature=0.3, logprobs=2, logit_bias={0: 50.0}),
        prompt_ids=[0],
        vocab_size=len(LOGITS),
    )
    sampled = sampler.sample(LOGITS)
    expected = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS[LOGITS > -9]).sum())
    assert sampled.token_id == 0 and sampled.logprob == pytest.approx(expected[0])
    assert [i for i, _ in sampled.top] == [1, 2]
    assert sampled.top[0][1] == pytest.approx(expected[1])
    assert top_logprobs(log_softmax(LOGITS), 99)[-1] == (3, -np.inf)


def test_the_hook_forbids_and_the_end_waits_for_min_tokens() -> None:
    params = SamplingParams(temperature=0, min_tokens=2)
    sampler = Sampler(params, prompt_ids=[0], vocab_size=5, end_ids=[1])

    def hook(answer: Any, logits: np.ndarray) -> None:
        logits[2] = -np.inf

    assert [sampler.sample(LOGITS, [4] * n, hook).token_id for n in range(3)] == [4, 4, 1]
    assert LOGITS[2] == 3  # the runner's own array is untouched


def test_broken_logits() -> None:
    assert draw(np.array([np.nan, 1, np.inf, np.inf], dtype=np.float32), 3, temperature=0) == [2, 2, 2]
    assert set(draw(np.array([np.nan, 1, np.inf, np.inf], dtype=np.float32), 50, temperature=1)) == {2, 3}
    for hopeless in (np.nan, -np.inf):
        for temperature in (0, 1):
            with pytest.raises(ShoalError, match="no token can follow"):
                draw(np.full(4, hopeless, dtype=np.float32), 1, temperature=temperature)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300, deadline=None)
@given(
    temperature=numbers, top_p=numbers, min_p=numbers, top_k=st.integers(), seed=st.integers(),
    bias=st.dictionaries(st.integers(-3, 9), st.floats(-1e308, 1e308), max_size=3),
)  # fmt: skip
def test_no_value_breaks_it(
    temperature: float, top_p: float, min_p: float, top_k: int, seed: int, bias: dict[int, float]
) -> None:
    params = dict(temperature=temperature, top_p=top_p, min_p=min_p, top_k=top_k, seed=seed, logit_bias=bias)
    assert draw(LOGITS, 2, **params)[0] in range(5)


@pytest.mark.skipif(not native.available, reason=native.missing_reason)
def test_native_choice_is_the_plain_one() -> None:
    """For the same random number; exponentials in float may move a border between two tokens by a hair."""
    random = np.random.default_rng(5)
    others = 0
    for round_ in range(400):
        scores = (random.standard_normal(700) * random.uniform(0.5, 6)).astype(np.float32)
        scores[random.integers(0, 700, 300)] = random.choice([1.5, -np.inf, np.nan, 3])
        chosen_by = dict(
            temperature=float(random.choice([0.1, 0.7, 1.0, 3.0])),
            top_k=int(random.choice([0, 0, 1, 5, 300, 699])),
            top_p=float(random.choice([1.0, 0.0, 0.5, 0.95, 0.999])),
            min_p=float(random.choice([0.0, 0.0, 0.02, 1.0])),
        )
        number = float(random.random())
        kind = np.float32 if round_ % 2 else np.float64
        with np.errstate(over="ignore"):
            ids, probabilities = filtered(np.nan_to_num(scores.astype(np.float64), nan=-np.inf), **chosen_by)
        found = native.core.choose(scores.astype(kind), **chosen_by, number=number)
        assert found in ids
        others += found != pick(ids, probabilities, number)
        logprobs = log_softmax(scores)
        best = top_logprobs(logprobs, 1)[0][0]
        whole = native.core.log_sum_exp(scores)
        assert whole == pytest.approx(float(scores[best] - logprobs[best]), abs=1e-5)
        assert native.core.likeliest(scores, 9) == [i for i, _ in top_logprobs(logprobs, 9)]
    assert others <= 1
    assert native.core.choose(np.full(9, np.nan), 1.0, 0, 1.0, 0.0, 0.5) == -1
