"""/metrics in Prometheus' text form: a handful of lines, so that no library with global state is needed."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> list[str]:
        out, running = [f"# TYPE {name} histogram"], 0
        for bound, count in zip([*_SECONDS, "+Inf"], self.counts, strict=True):
            running += count
            out.append(f'{name}_bucket{{le="{bound}"}} {running}')
        return [*out, f"{name}_sum {self.sum:.6f}", f"{name}_count {running}"]


class Metrics:
    """What the server itself has seen; the engines' own counts are read when asked."""

    def __init__(self) -> None:
        self.first_token = Histogram()
        self.token_gap = Histogram()
        self.joules = 0.0
        self.finished: dict[str, int] = {}

    def answer(
        self, reason: str, first_token_seconds: float, decode_seconds: float, tokens: int, joules: float
    ) -> None:
        self.first_token.observe(first_token_seconds)
        if tokens > 1:
            self.token_gap.observe(decode_seconds / (tokens - 1))
        self.finished[reason] = self.finished.get(reason, 0) + 1
        self.joules += joules

    def text(self, engines: Mapping[str, float]) -> str:
        lines = []
        for name, kind, value in (
            ("shoal_requests_running", "gauge", engines["running"]),
            ("shoal_requests_waiting", "gauge", engines["waiting"]),
            ("shoal_prompt_tokens_total", "counter", engines["prompt_tokens"]),
            ("shoal_cached_tokens_total", "counter", engines["cached_tokens"]),
            ("shoal_generated_tokens_total", "counter", engines["completion_tokens"]),
            ("shoal_draft_tokens_total", "counter", engines["draft_tokens"]),
            ("shoal_draft_accepted_tokens_total", "counter", engines["accepted_tokens"]),
            ("shoal_kv_bytes", "gauge", engines["kv_bytes"]),
            ("shoal_cache_blocks", "gauge", engines["cache_blocks"]),
            ("shoal_cache_blocks_free", "gauge", engines["cache_blocks_free"]),
            ("shoal_preemptions_total", "counter", engines["preemptions"]),
            ("shoal_engine_restarts_total", "counter", engines["restarts"]),
            ("shoal_joules_estimated_total", "counter", self.joules),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name} {value:g}"]
        lines.append("# TYPE shoal_answers_total counter")
        lines += [f'shoal_answers_total{{finish_reason="{r}"}} {n}' for r, n in sorted(self.finished.items())]
        lines += self.first_token.lines("shoal_time_to_first_token_seconds")
        lines += self.token_gap.lines("shoal_time_per_output_token_seconds")
        return "\n".join(lines) + "\n"
