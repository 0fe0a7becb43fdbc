"""Answering speed beside transformers' generate(), same weights, dtype and threads, in one run.

    python benchmarks/engine.py [--model smollm2] [--dtype float32] [--threads 2] [--rounds 3] [--json]

What is compared: reading a prompt of 512 random tokens, and greedy decoding of 32 tokens behind 64 for 1, 4 and 8
requests at once - ours through the whole engine (scheduler, sampling, detokenising, handles), theirs by `generate` on a
batch. Programs take turns and the best of the rounds counts, for a neighbour only ever takes time away. "of limit" is
the share of what this machine's measured peak of products and memory reads allows. Figures belong in
docs/lab-notes.md with machine, command and date. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import time
from typing import Any

import torch

from shoal.engine.measure import decode_limit, prefill_limit
from shoal.engine.open import OpenedModel, open_model
from shoal.engine.torch_runner import TorchRunner
from shoal.engine.types import Finished, Request, SamplingParams
from shoal.ops.probe import measure as measure_peak

PROMPT, BEHIND, NEW = 512, 64, 32
STREAMS = (1, 4, 8)


def prompts(opened: OpenedModel, count: int, length: int) -> list[list[int]]:
    generator = random.Random(1)
    return [[generator.randrange(opened.tokenizer.vocab_size) for _ in range(length)] for _ in range(count)]


def ours(opened: OpenedModel, rows: list[list[int]], new: int) -> float:
    """Seconds until the last of these requests is finished."""
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, speculate=False)
    salt = secrets.token_hex()  # nothing is cached from the round before
    begin = time.perf_counter()
    handles = [opened.engine.submit(Request(row, params, cache_salt=salt)) for row in rows]
    for handle in handles:
        end = list(handle)[-1]
        assert isinstance(end, Finished) and end.usage.completion_tokens == new, end
    return time.perf_counter() - begin


def peer(opened: OpenedModel) -> Any:
    """transformers' class over the very same tensors."""
    import transformers

    assert isinstance(opened.engine.runner, TorchRunner)
    network = opened.engine.runner.network
    config = transformers.AutoConfig.for_model(**network.config.to_dict())
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(network.state_dict(), assign=True)
    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config)  # its buffers are in no checkpoint
    return model.eval()


def theirs(model: Any, rows: list[list[int]], new: int) -> float:
    ids = torch.tensor(rows)
    begin = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="smollm2", help="a dense model (experts of the peer are laid out otherwise)"
    )
    parser.add_argument("--dtype", default=None, help="float32 or bfloat16; default: the faster one here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peak = measure_peak()
    with contextlib.closing(open_model(options.model, dtype=options.dtype, context=1024)) as opened:
        model = peer(opened)
        sides = {"shoal": lambda r, n: ours(opened, r, n), "transformers": lambda r, n: theirs(model, r, n)}
        best: dict[tuple[str, str], float] = {}

        def keep(side: str, what: str, rate: float) -> None:
            best[side, what] = max(best.get((side, what), 0.0), rate)

        for _ in range(options.rounds):
            for side, run in sides.items():
                keep(side, "prefill", PROMPT / run(prompts(opened, 1, PROMPT), 1))
                for count in STREAMS:
                    rows = prompts(opened, count, BEHIND)
                    first = run(rows, 1)
                    keep(side, f"decode {count}", count * (NEW - 1) / max(1e-9, run(rows, NEW) - first))
        limits = {"prefill": prefill_limit(opened, peak, PROMPT)}
        limits |= {f"decode {n}": decode_limit(opened, peak, n, BEHIND + NEW) for n in STREAMS}
        if options.json:
            figures = [
                {"side": side, "what": what, "tokens_per_second": rate, "limit": limits[what]}
                for (side, what), rate in best.items()
            ]
            print(
                json.dumps(
                    {
                        "machine": peak.device,
                        "threads": options.threads,
                        "dtype": opened.dtype,
                        "figures": figures,
                    }
                )
            )
            return
        print(f"{opened.name}, {opened.dtype}, {options.threads} threads, {peak.device}; tokens/s")
        print(f"{'':<14}{'shoal':>10}{'transformers':>14}{'ratio':>8}{'of limit':>10}")
        for what, limit in limits.items():
            a, b = best["shoal", what], best["transformers", what]
            print(f"{what:<14}{a:>10.1f}{b:>14.1f}{a / b:>8.2f}{a / limit:>10.0%}")


if __name__ == "__main__":
    main()
