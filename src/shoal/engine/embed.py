"""A vector for a text: the mean of the last hidden states (after the final norm), of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.engine.engine import Engine
from shoal.engine.runner import Chunk
from shoal.engine.types import ContextLengthExceeded, InvalidRequest, QueueFull
from shoal.errors import ShoalError

_CHUNK = 64
"""Tokens at a time: running answers go on between two chunks, and each position's logits are made as well."""


def embed(engine: Engine, token_ids: Sequence[int], adapter: str | None = None) -> NDArray[np.float32]:
    """The vector [D] of a text's tokens. Slow: call it off the event loop.

    A language model was not trained for this: the vectors tell texts of different matter apart, no more.
    Raises ContextLengthExceeded, InvalidRequest, QueueFull (no room in the cache at the moment).
    """
    ids = [int(i) for i in token_ids]
    if not ids:
        raise InvalidRequest("input", "an empty text has no vector")
    if min(ids) < 0 or max(ids) >= engine.runner.vocab_size:
        raise InvalidRequest("input", f"token ids must lie in 0 .. {engine.runner.vocab_size - 1}")
    if len(ids) > engine.max_model_len:
        raise ContextLengthExceeded(len(ids), engine.max_model_len)
    for _ in range(2):  # once more when the engine began anew in between
        total = _summed(engine, ids, adapter)
        if total is not None:
            mean = total / len(ids)
            return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), dtype=np.float32)
    raise ShoalError("the engine is not steady enough for this")


def _summed(engine: Engine, ids: Sequence[int], adapter: str | None) -> NDArray[np.float64] | None:
    """The sum of the hidden states [D]; None when the cache it was in is gone."""
    pool, table, total = engine._scheduler.pool, [], None  # type: ignore[var-annotated]
    same = True

    def allocate() -> None:
        blocks = pool.blocks_for(len(ids))
        if not pool.can_allocate(blocks):
            raise QueueFull(len(engine._scheduler.running))
        pool.allocate(table, blocks)

    def run(start: int) -> None:
        nonlocal total, same
        same = same and engine._scheduler.pool is pool
        if same:
            chunk = ids[start : start + _CHUNK]
            blocks = table[: pool.blocks_for(start + len(chunk))]
            work = Chunk(chunk, start, blocks, logits=len(chunk), adapter=adapter, hidden=True)
            hidden: Any = engine.runner.run([work]).hidden
            if not hidden or hidden[0] is None:
                raise ShoalError("this model's runner gives no hidden states")
            rows = hidden[0].astype(np.float64).sum(axis=0)
            total = rows if total is None else total + rows

    def release() -> None:
        if engine._scheduler.pool is pool:
            pool.release(table)

    engine._between_steps(allocate)
    try:
        for start in range(0, len(ids), _CHUNK):
            engine._between_steps(lambda start=start: run(start))  # type: ignore[misc]
    finally:
        engine._between_steps(release)
    return total if same else None
