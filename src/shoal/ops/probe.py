"""What this machine reaches: matrix products per dtype and memory reads, measured once and cached.

Every choice of dtype, every utilisation and every "share of the limit" in Shoal rests on these two numbers
(a roofline: FLOP/s and bytes/s), because data sheets do not say what two shared cores give today.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.files import atomic_write_text, shoal_home

if TYPE_CHECKING:
    import torch

_SHAPE = (1024, 1024, 1024)  # rows, inner, columns of the product that is timed
_SHAPE_GPU = (4096, 4096, 4096)  # a smaller one measures the launch, not the product
_READ_BYTES = 256 * 2**20  # far above any cache of a small machine
_SECONDS = 0.25  # spent on each figure
_OWN_SHARE = 0.85  # of the processor's time; with less, others were at work too


@dataclass(frozen=True)
class Probe:
    """Measured peaks of one device.

    gemm_flops_per_second: dtype name ("float32", "bfloat16") -> FLOP/s of a 1024-cubed product.
    read_bytes_per_second: bytes/s of summing a large fp32 array.
    busy: other programs held the processor meanwhile, so that the figures are too low.
    """

    device: str
    threads: int
    gemm_flops_per_second: dict[str, float]
    read_bytes_per_second: float
    measured_at: str
    busy: bool = False

    @property
    def best_dtype(self) -> str:
        """The faster of float32 and bfloat16; bfloat16 must win clearly (1.2 times) to be worth its precision."""
        fp32 = self.gemm_flops_per_second["float32"]
        return "bfloat16" if self.gemm_flops_per_second.get("bfloat16", 0.0) > 1.2 * fp32 else "float32"


def cpu_name() -> str:
    """The processor's own name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def device_name(device: str = "cpu") -> str:
    """A name for receipts: the processor's, or the accelerator's for "cuda" (with or without index) and "mps"."""
    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{cpu_name()} ({device})"


def _best_seconds(device: torch.device, work: object, seconds: float) -> float:
    """The shortest of the repeats that fit in the time: other processes only ever add."""
    import torch

    def run() -> float:
        start = time.perf_counter()
        work()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start

    run()  # first touch, thread start, library choice
    best, stop = run(), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        best = min(best, run())
    return best


def measure(device: str = "cpu", seconds: float = _SECONDS) -> Probe:
    """Measure now, `seconds` for each of three figures. Uses the threads that torch has."""
    import torch

    target = torch.device(device)
    began, worked = time.perf_counter(), time.process_time()
    rows, inner, columns = _SHAPE if target.type == "cpu" else _SHAPE_GPU
    gemm: dict[str, float] = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            # A machine without bf16 units is 100 times slower at it: a thin slice tells that without the wait.
            trial = torch.ones(16, inner, dtype=dtype, device=target)
            right = torch.ones(inner, columns, dtype=dtype, device=target)
            thin, enough = 0.0, gemm.get("float32", 0.0) / 20
            # The first of a kind also chooses and builds its kernel, and on a busy machine any may have to wait.
            for number in range(20):
                start = time.perf_counter()
                trial @ right
                thin = max(thin, 2 * 16 * inner * columns / (time.perf_counter() - start))
                if number and thin >= enough:
                    break
            name = str(dtype).removeprefix("torch.")
            if target.type == "cpu" and thin < enough:
                gemm[name] = thin
                continue
            left = torch.ones(rows, inner, dtype=dtype, device=target)
            best = _best_seconds(target, lambda left=left, right=right: left @ right, seconds)
            gemm[name] = 2 * rows * inner * columns / best
        numbers = torch.ones(_READ_BYTES // 4, device=target)
        read = _READ_BYTES / _best_seconds(target, numbers.sum, seconds)
    cores = torch.get_num_threads() if target.type == "cpu" else 1
    had = (time.process_time() - worked) / ((time.perf_counter() - began) * min(cores, os.cpu_count() or 1))
    return Probe(
        device=device_name(device),
        threads=torch.get_num_threads() if target.type == "cpu" else 0,
        gemm_flops_per_second=gemm,
        read_bytes_per_second=read,
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        busy=target.type == "cpu" and had < _OWN_SHARE,
    )


def _better(old: Probe, new: Probe) -> Probe:
    """The new measurement if it was a quiet one, else the best of both: other programs only ever take away."""
    if not new.busy:
        return new
    gemm = {
        name: max(rate, old.gemm_flops_per_second.get(name, 0.0))
        for name, rate in new.gemm_flops_per_second.items()
    }
    read = max(old.read_bytes_per_second, new.read_bytes_per_second)
    return replace(new, gemm_flops_per_second=gemm, read_bytes_per_second=read, busy=old.busy)


def _cache() -> dict[str, Any]:
    """What earlier probes left in `$SHOAL_HOME/probe.json`; empty if it is absent or damaged."""
    try:
        cache = json.loads((shoal_home() / "probe.json").read_text())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def cached_peak(device: str = "cpu") -> float | None:
    """The best product rate (FLOP/s) that an earlier probe of this device left in the cache; None if none did.

    Never measures, so that an answer's receipt costs nothing.
    """
    try:
        rates = [
            max(entry["gemm_flops_per_second"].values())
            for key, entry in _cache().items()
            if key.startswith(f"{device_name(device)} | ")
        ]
        return max(rates, default=None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def probe(device: str = "cpu", *, fresh: bool = False, seconds: float = _SECONDS) -> Probe:
    """The cached measurement of this device, thread count and torch version (in `$SHOAL_HOME/probe.json`).

    `fresh` measures again, and so does a cached figure that was taken on a busy machine; what is kept is the best
    until a quiet moment. A cache that cannot be read or written is no error: the figures are then measured.
    """
    import torch

    threads = torch.get_num_threads() if device == "cpu" else 0
    key = f"{device_name(device)} | {threads} threads of {os.cpu_count()} | torch {torch.__version__}"
    cache = _cache()
    old: Probe | None = None
    try:
        old = Probe(**{"busy": True, **cache[key]})  # an entry that does not say so may have been
    except (KeyError, TypeError):
        pass  # not measured yet, or not in a form we know
    if old is not None and not (fresh or old.busy):
        return old
    new = measure(device, seconds)
    result = _better(old, new) if old is not None else new
    try:
        atomic_write_text(shoal_home() / "probe.json", json.dumps({**cache, key: asdict(result)}, indent=1))
    except Exception:  # a read-only home must not stop a run
        pass
    return result
