"""An answer that stays in work for as long as a test needs it to, however fast the machine is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from shoal.engine.sampling import Sampled, Sampler


@contextlib.contextmanager
def held(tokens: int) -> Iterator[None]:
    """Within the block every answer of this process waits for its next token once it has `tokens` of them.

    The engine's thread waits with it: a cancelled answer ends when the block is left.
    """
    sample, go_on = Sampler.sample, threading.Event()

    def patient(sampler: Sampler, logits: Any, answer_ids: Sequence[int] = (), hook: Any = None) -> Sampled:
        if len(answer_ids) >= tokens:
            go_on.wait()
        return sample(sampler, logits, answer_ids, hook)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "sample", patient)
        try:
            yield
        finally:
            go_on.set()
