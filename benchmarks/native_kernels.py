"""Each native kernel as a share of what this machine can do: bytes / bandwidth, multiply-adds / peak.

    python benchmarks/native_kernels.py [--threads 1,2] [--kernels amx,avx2] [--seconds 0.4] [--out FILE.json]

The limits are measured beside every figure, in turns, because other processes and the host change them within
minutes: reading a large stretch of memory, and the multiply-adds that the instruction set is made for (AMX tiles of one
scale group; dot products of bytes; float multiply-adds) on registers alone. A product of few tokens is held against the
bandwidth (its weights do not fit the caches), one of many tokens against the integer or float peak. The best of the
repeats counts. Time is processor time over threads, so that a busy machine still gives usable figures: what other
processes take away in caches and bandwidth stays in them, on both sides of the share.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from shoal.ops.native import core
from shoal.ops.probe import cpu_name

WEIGHT_BYTES = (
    96 << 20
)  # worked through by the kernels that memory limits: far above the caches of a small machine


def best(work: Callable[[], float], seconds: float, threads: int) -> float:
    """The best rate (work per second of all threads) of the repeats that fit in this processor time."""
    work()
    rate, stop = 0.0, time.process_time() + seconds * threads
    while (begin := time.process_time()) < stop:
        done = work()
        rate = max(rate, done * threads / (time.process_time() - begin))
    return rate


class Bench:
    def __init__(self, threads: int, seconds: float):
        self.threads, self.seconds = threads, seconds
        self.pool = core.Pool(threads)
        self.memory = core.Memory(WEIGHT_BYTES).array()
        # Bytes whose halves and floats are all of ordinary size: subnormal numbers would be slow.
        self.memory[:] = np.random.default_rng(0).integers(0x20, 0x3F, WEIGHT_BYTES, np.uint8)

    def limits(self) -> dict[str, float]:
        threads, third = self.threads, self.seconds / 3
        return {
            "read": best(
                lambda: core.peak("read", WEIGHT_BYTES, self.pool, threads, self.memory), third, threads
            ),
            "integer": best(lambda: core.peak("integer", 5e7, self.pool, threads), third, threads),
            "float": best(lambda: core.peak("float", 1e7, self.pool, threads), third, threads),
        }

    def product(self, kind: str, cols: int, tokens: int) -> tuple[float, float]:
        """(bytes, multiply-adds) a second of one matrix of `cols` columns: large for few tokens, of a layer's size for
        many."""
        form = core.Format[kind]
        block = core.block_bytes(form, cols)
        blocks = WEIGHT_BYTES // block if tokens <= 16 else 3072 // 16
        x = np.random.default_rng(1).standard_normal((tokens, cols)).astype(np.float32)
        repeat = 1 if tokens <= 16 else 4
        data = self.memory[: blocks * block]

        def work() -> float:
            core.matmul(form, 16 * blocks, cols, data, x, self.pool, self.threads, repeat)
            return repeat

        rate = best(work, self.seconds, self.threads)
        return rate * blocks * block, rate * 16 * blocks * cols * tokens


def measure(kernels: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    core.use_kernels(kernels)
    bench, rows = Bench(threads, seconds), []
    for kind in ("Q4", "Q4M", "Q8", "BF16", "F32"):
        for tokens in (1, 4, 8, 16, 256):
            limits = bench.limits()
            read, ops = bench.product(kind, 576, tokens)
            peak = limits["integer" if kind.startswith("Q") else "float"]
            rows.append(
                {
                    "kernels": kernels,
                    "threads": threads,
                    "format": kind,
                    "tokens": tokens,
                    "gigabytes_per_second": round(read / 1e9, 1),
                    "of_bandwidth": round(read / limits["read"], 2),
                    "giga_multiply_adds_per_second": round(ops / 1e9, 1),
                    "of_peak": round(ops / peak, 2),
                }
            )
            print(*rows[-1].values(), sep="\t", flush=True)
    print("limits", {name: f"{rate / 1e9:.0f} G/s" for name, rate in bench.limits().items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--kernels", default=",".join(core.available_kernels()), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each figure")
    parser.add_argument("--out", help="write the figures here, as JSON")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("kernels threads format tokens GB/s of-bandwidth Gmul-add/s of-peak".replace(" ", "\t"))
    for kernels in options.kernels.split(","):
        for threads in map(int, options.threads.split(",")):
            rows += measure(kernels, threads, options.seconds)
    if options.out:
        about = {"cpu": cpu_name(), "system": platform.platform(), "date": time.strftime("%Y-%m-%d")}
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({**about, "figures": rows}, file, indent=1)


if __name__ == "__main__":
    main()
