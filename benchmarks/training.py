"""Training speed beside transformers' DeepseekV3, on the same shape, dtype, malloc settings and optimizer, in one run.

    python benchmarks/training.py [--seconds 20] [--rounds 3] [--threads 2] [--compile] [--json]

What is compared: one optimizer step (forward, backward, AdamW on all parameters, fused) over 16 rows of 256 random
tokens with a vocabulary of 8192. Programs take turns, and the median step of each is reported, so that a noisy
neighbour hits all alike.
Muon's extra time is reported apart. "of limit" is the share of what the measured peak of matrix products allows.
Figures belong in docs/lab-notes.md with machine, command and date. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from shoal.model import counts
from shoal.model.config import ModelConfig
from shoal.ops.malloc import keep_freed_memory
from shoal.ops.probe import measure
from shoal.train.speed import LENGTH, ROWS, SHAPE, trainer


def ours(matrices: str, dtype: str) -> Callable[[], None]:
    """One step of the trainer."""
    one = trainer(matrices, dtype)
    return lambda: (one.train_step(), None)[1]


def transformers_step(dtype: str, compiled: bool) -> Callable[[], None]:
    """One step of transformers' own class (its default experts, SDPA attention), as its documentation trains it."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    values = {key: value for key, value in SHAPE.items() if key != "model_type"}
    torch.manual_seed(1)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**values, q_lora_rank=None, norm_topk_prob=True))
    model.config.use_cache = False
    model.train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.95), fused=True)
    generator = torch.Generator().manual_seed(1)

    def step() -> None:
        ids = torch.randint(0, SHAPE["vocab_size"], (ROWS, LENGTH), generator=generator)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20, help="time for each program, over all rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one here")
    parser.add_argument(
        "--compile", action="store_true", help="also transformers under torch.compile (a minute)"
    )
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    keep_freed_memory()
    if words.threads:
        torch.set_num_threads(words.threads)
    peak = measure()
    dtype = words.dtype or peak.best_dtype
    flops = counts.flops_per_token(ModelConfig.from_dict(SHAPE), LENGTH, training=True)
    limit = peak.gemm_flops_per_second[dtype] / flops
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "shoal, adamw": lambda: ours("adamw", dtype),
        "shoal, muon": lambda: ours("muon", dtype),
        "transformers, eager": lambda: transformers_step(dtype, False),
    }
    if words.compile:
        makers["transformers, compiled"] = lambda: transformers_step(dtype, True)
    programs, first_step, times = {}, {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        programs[name] = make()
        programs[name]()
        first_step[name] = time.perf_counter() - start
        programs[name]()
        times[name] = []
    for _ in range(words.rounds):
        for name, step in programs.items():
            stop = time.perf_counter() + words.seconds / words.rounds
            while not times[name] or time.perf_counter() < stop:
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
    rows = []
    for name, taken in times.items():
        speed = ROWS * LENGTH / statistics.median(taken)
        rows.append(
            {
                "what": name,
                "tokens_per_second": speed,
                "of_limit": speed / limit,
                "steps": len(taken),
                "first_step_seconds": first_step[name],
            }
        )
    if words.json:
        print(json.dumps({"machine": vars(peak) | {"dtype": dtype, "limit": limit}, "figures": rows}))
        return
    gflops = peak.gemm_flops_per_second[dtype] / 1e9
    print(f"{peak.device}, {peak.threads} threads, {dtype}: {gflops:.0f} GFLOP/s, ", end="")
    print(f"{flops / 1e6:.1f} MFLOP per token, limit {limit:.0f} tokens/s")
    print(f"{'program':<26}{'tokens/s':>10}{'of limit':>10}{'steps':>7}{'first step':>12}")
    for row in rows:
        print(
            f"{row['what']:<26}{row['tokens_per_second']:>10.0f}{row['of_limit']:>10.0%}{row['steps']:>7}"
            f"{row['first_step_seconds']:>10.1f} s"
        )
    peers = [row["tokens_per_second"] for row in rows if row["what"].startswith("transformers")]
    print(
        f"shoal with AdamW is {rows[0]['tokens_per_second'] / max(peers):.2f} times the best of transformers"
    )


if __name__ == "__main__":
    main()
