"""How fast a loaded model answers on this machine, beside what the machine could do."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.engine.runners import NUMBER_BYTES
from shoal.engine.types import Delta, Finished, Request, SamplingParams
from shoal.errors import ShoalError
from shoal.model import counts
from shoal.ops.probe import Probe

if TYPE_CHECKING:
    from shoal.engine.handle import Handle
    from shoal.engine.open import OpenedModel


@dataclass(frozen=True)
class Figure:
    """One measured rate. `limit` is what the machine's measured peak allows (a roofline: FLOP/s and bytes/s)."""

    what: str
    value: float
    limit: float | None = None
    unit: str = "tokens/s"


def measure(
    opened: OpenedModel,
    probe: Probe,
    *,
    prompt_tokens: int = 512,
    answer_tokens: int = 48,
    streams: tuple[int, ...] = (1, 4, 8),
) -> list[Figure]:
    """Prefill of one long prompt, then decoding with some streams at once, all through the engine.

    `streams` above the engine's max_num_seqs are left out. Each figure is the best of two runs: other processes only
    ever take time away.
    """
    engine = opened.engine
    prompt_tokens = min(prompt_tokens, engine.max_model_len - 1)
    answer_tokens = max(2, min(answer_tokens, engine.max_model_len - 16))
    figures = [
        Figure(
            f"prefill, {prompt_tokens} tokens",
            max(_prefill(opened, prompt_tokens, seed) for seed in range(2)),
            prefill_limit(opened, probe, prompt_tokens),
        )
    ]
    for count in streams:
        if count > engine.max_num_seqs:
            continue
        rate = max(_decode(opened, count, answer_tokens, seed) for seed in range(2))
        figures.append(
            Figure(
                f"decode, {count} stream{'s' * (count > 1)}",
                rate,
                decode_limit(opened, probe, count, 16 + answer_tokens),
            )
        )
    return figures


def prefill_limit(opened: OpenedModel, probe: Probe, prompt_tokens: int) -> float | None:
    """Tokens/s if every multiplication ran at the speed of a large matrix product; None where that is not measured
    (products of integers)."""
    peak = probe.gemm_flops_per_second.get(opened.dtype)
    return peak and peak / counts.flops_per_token(opened.config, prompt_tokens, training=False)


def decode_limit(opened: OpenedModel, probe: Probe, streams: int, context: int) -> float:
    """Tokens/s of all streams together if memory were read, or products made, without a pause: the smaller of both.

    A step reads the active matrices once (with more streams a mixture of experts reads more, so that the limit is
    generous) and every stream's cache.
    """
    config, runner = opened.config, opened.engine.runner
    number_bytes = NUMBER_BYTES.get(opened.dtype, 2)  # native caches are fp16
    step_bytes = getattr(runner, "token_bytes", None) or counts.matrices_active(config) * number_bytes
    step_bytes += streams * int(counts.kv_bytes_per_token(config, number_bytes)) * context
    memory = streams * probe.read_bytes_per_second / step_bytes
    peak = probe.gemm_flops_per_second.get(opened.dtype)
    return min(memory, peak / counts.decode_flops(config, context)) if peak else memory


def _submit(opened: OpenedModel, prompt_tokens: int, answer_tokens: int, seed: int) -> Handle:
    generator = random.Random(seed)
    ids = [generator.randrange(opened.tokenizer.vocab_size) for _ in range(prompt_tokens)]
    params = SamplingParams(temperature=0, max_tokens=answer_tokens, ignore_eos=True, speculate=False)
    salt = secrets.token_hex()  # nothing is cached from the run before
    return opened.engine.submit(Request(ids, params, adapter=opened.adapter, cache_salt=salt))


def _finish(handle: Handle) -> Finished:
    finished = [event for event in handle if not isinstance(event, Delta)][-1]
    assert isinstance(finished, Finished)
    if finished.error is not None:
        raise ShoalError(f"the measurement failed: {finished.error}")
    return finished


def _prefill(opened: OpenedModel, prompt_tokens: int, seed: int) -> float:
    return prompt_tokens / _finish(_submit(opened, prompt_tokens, 1, seed)).timings.prompt_seconds


def _decode(opened: OpenedModel, streams: int, answer_tokens: int, seed: int) -> float:
    handles = [_submit(opened, 16, answer_tokens, seed * 100 + i) for i in range(streams)]
    done = [_finish(handle) for handle in handles]
    return sum((end.usage.completion_tokens - 1) / end.timings.decode_seconds for end in done)
