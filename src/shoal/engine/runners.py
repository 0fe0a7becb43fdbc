"""Which runner a model gets on this machine, and with which numbers: native kernels on CPUs, torch elsewhere.

A CPU server with native kernels never imports torch; that is why TorchRunner is imported here only when it is chosen.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.engine.runner import Runner
from shoal.errors import UsageError
from shoal.model.checkpoint.source import open_source
from shoal.ops import native

log = logging.getLogger(__name__)

RUNNERS = ("auto", "native", "torch")
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes a model can be computed in by torch, and the bytes of a number."""


@dataclass(frozen=True)
class RunnerChoice:
    """What was asked for. `resolved` says what that means on this machine."""

    runner: str = "auto"
    """auto, native or torch."""
    quant: Any = None
    """Native: bits of the weights, "8", "4" or "none"; None: a GGUF file's own, else 8."""
    dtype: str | None = None
    """torch: what the weights are computed in; None: what this device computes fastest, by measurement."""
    device: str = "cpu"

    def resolved(self) -> RunnerChoice:
        """The same with "native" or "torch" for "auto". Raises UsageError for what does not go together."""
        for name, value, known in (
            ("runner", self.runner, RUNNERS),
            ("quant", self.quant, (None, "8", "4", "none")),
            ("dtype", self.dtype, (None, *NUMBER_BYTES)),
        ):
            if value not in known:
                listed = ", ".join(str(k) for k in known if k is not None)
                raise UsageError(f"unknown {name} {value!r}", hint=f"One of {listed}.")
        runner = self.runner
        if runner == "auto":
            on_cpu = self.device == "cpu" and self.dtype is None
            if on_cpu and not native.available:
                _say_what_is_lost()
            runner = "native" if on_cpu and native.available else "torch"
        elif runner == "native" and (self.device != "cpu" or self.dtype is not None):
            raise UsageError(
                "the native runner is for CPUs and has its own formats", hint="Leave --dtype away."
            )
        elif runner == "native" and not native.available:
            raise UsageError(
                native.missing_reason, hint="Leave --runner away, or install with a C++ compiler."
            )
        if runner == "torch" and self.quant is not None:
            raise UsageError("--quant is for the native runner", hint="With torch, choose --dtype.")
        return RunnerChoice(runner, self.quant, self.dtype, self.device)

    def open(
        self,
        path: Path,
        cache_positions: Callable[[int, int], int],
        *,
        mtp: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Runner, str]:
        """(the runner of the model at `path`, what it computes in).

        `cache_positions(free bytes, bytes of a cached token)` is asked once the weights are loaded. `mtp`: with the
        model's drafting module where it has one and the runner can.
        """
        choice = self.resolved()
        if choice.runner == "native":
            from shoal.engine import native_runner, native_weights

            weights = native_weights.load(open_source(path), choice.quant, progress, mtp=mtp)
            token_bytes = native_runner.cache_token_bytes(weights.plan.config, weights.plan.mtp)
            positions = cache_positions(free_bytes(), token_bytes)
            return native_runner.NativeRunner(weights, cache_positions=positions), weights.plan.summary()
        from shoal.engine import torch_runner

        dtype = choice.dtype or torch_runner.fastest_dtype(choice.device)
        network = torch_runner.load(path, dtype=dtype, device=choice.device, mtp=mtp, progress=progress)
        free = torch_runner.free_bytes(choice.device) if choice.device.startswith("cuda") else free_bytes()
        token_bytes = torch_runner.cache_token_bytes(
            network.config, NUMBER_BYTES[dtype], network.mtp_modules > 0
        )
        positions = cache_positions(free, token_bytes)
        return torch_runner.TorchRunner(network, cache_positions=positions), dtype


_said = False


def _say_what_is_lost() -> None:
    global _said
    if not _said:
        log.warning(native.missing_reason)
    _said = True


def free_bytes() -> int:
    """Memory that is free now; a careful guess where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 4 * 2**30
