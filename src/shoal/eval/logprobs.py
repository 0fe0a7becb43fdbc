"""Log-probabilities that an opened model gives to tokens it did not choose: through its engine, many texts at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.engine.handle import Handle
from shoal.engine.open import OpenedModel
from shoal.engine.types import Finished, PromptLogprobs, Request, SamplingParams
from shoal.errors import ShoalError

AHEAD = 32  # requests in the engine at once: more than run together, so that none of its places is empty


@dataclass(frozen=True, slots=True)
class Scored:
    """For tokens 1 .. n - 1 of a sequence of n, given those before them."""

    logprobs: NDArray[np.float64]
    """[n - 1], natural logarithms."""
    likeliest: NDArray[np.bool_]
    """[n - 1]: whether it is the token that greedy decoding takes; all False unless asked for."""


def score(
    opened: OpenedModel, sequences: Iterable[Sequence[int]], *, likeliest: bool = False
) -> Iterator[Scored]:
    """One result for each sequence of token ids, in order. Each must have a token and fit into the context.

    Raises ContextLengthExceeded or InvalidRequest for one that does not, ShoalError where the engine fails.
    """
    params = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=int(likeliest))
    waiting: deque[tuple[Handle, Sequence[int]]] = deque()
    try:
        for ids in sequences:
            waiting.append((opened.engine.submit(Request(ids, params, adapter=opened.adapter)), ids))
            if len(waiting) >= AHEAD:
                yield _read(*waiting.popleft())
        while waiting:
            yield _read(*waiting.popleft())
    finally:
        for handle, _ in waiting:
            handle.cancel()


def _read(handle: Handle, ids: Sequence[int]) -> Scored:
    told: PromptLogprobs | None = None
    for event in handle:
        if isinstance(event, PromptLogprobs):
            told = event
        elif isinstance(event, Finished) and event.reason == "error":
            raise ShoalError(f"the engine failed while it read a text: {event.error}")
    if told is None or len(told.logprobs) != len(ids):
        raise ShoalError("the engine ended a text without its log-probabilities")
    best = [bool(top) and top[0][0] == token for top, token in zip(told.top[1:], ids[1:], strict=True)]
    return Scored(np.array(told.logprobs[1:], dtype=np.float64), np.array(best, dtype=np.bool_))


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first) of the stretches in which a sequence is read: tokens start .. end - 1 together, of which
    first .. end - 1 count. Each token but number 0 counts once; behind the first window each has at least
    `window - stride` tokens before it. stride is 1 .. window - 1."""
    end = min(tokens, window)
    yield 0, end, 1
    while end < tokens:
        first, end = end, min(tokens, end + stride)
        yield end - window, end, first
