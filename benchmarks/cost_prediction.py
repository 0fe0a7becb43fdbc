"""How well `shoal cost calibrate` predicts this machine: pairs of a calibration and the real thing, in turns.

    python benchmarks/cost_prediction.py --pairs 5

Real are steps of the trainer on nano's shape (recipes/nano.toml, 8 rows of 512) and answers of the engine to one reader
by nano, SmolLM2 and a random dense network of 36M weights; none of them is a reference network of the calibration. Each
figure is the best of its repeats. Run it on a quiet machine; results and their spread: docs/cost.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from shoal.cli.calibrate import DENSE, calibrate, reference
from shoal.engine.open import OpenedModel, open_model
from shoal.engine.types import Delta, Request, SamplingParams
from shoal.model.config import ModelConfig
from shoal.train.speed import trainer

ROWS, LENGTH = 8, 512
THIRD = DENSE | {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 1408,
}
NANO = Path(__file__).resolve().parents[1] / "recipes" / "nano.toml"


def step_seconds(one: Any, seconds: float = 4.0) -> float:
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        began = time.perf_counter()
        one.train_step()
        best = min(best, time.perf_counter() - began)
    return best


def token_seconds(opened: OpenedModel, tokens: int = 48, repeats: int = 4) -> float:
    best, generator = float("inf"), random.Random(1)
    for _ in range(repeats):
        ids = [generator.randrange(opened.tokenizer.vocab_size) for _ in range(16)]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        end: Any = [e for e in opened.engine.submit(Request(ids, params)) if not isinstance(e, Delta)][-1]
        best = min(best, end.timings.decode_seconds / (end.usage.completion_tokens - 1))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    shape = tomllib.loads(NANO.read_text(encoding="utf-8"))["model"] | {"num_nextn_predict_layers": 0}
    folder = reference(Path(tempfile.mkdtemp()) / "third", THIRD)
    models = {"nano": ("nano", 8), "smollm2": ("smollm2", 4), "random, 36M": (str(folder), 8)}
    opened = {name: open_model(spec, context=256, speculate="off") for name, (spec, _) in models.items()}
    one, ratios = None, {}
    for pair in range(pairs):
        found = calibrate("cpu", 20.0, lambda text: None)
        if one is None:
            one = trainer("muon", found.training_dtype, shape=shape, rows=ROWS, length=LENGTH)
            one.train_step()
        real = step_seconds(one)
        planned = found.step_seconds(ModelConfig.from_dict(shape), LENGTH, ROWS * LENGTH)
        row = {f"step of nano, {found.training_dtype}, s": (planned, real)}
        for name, (_, bits) in models.items():
            seconds = found.one_reader_seconds(opened[name].config, bits)
            assert seconds is not None
            row[f"{name}, tokens/s"] = (1 / seconds, 1 / token_seconds(opened[name]))
        for name, (planned, real) in row.items():
            ratios.setdefault(name, []).append(planned / real)
            print(
                f"{pair} {name:<28} planned {planned:9.4g}  real {real:9.4g}  {planned / real:.2f}",
                flush=True,
            )
    for name, values in ratios.items():
        print(f"median {name:<28} {statistics.median(values):.2f}  ({min(values):.2f} to {max(values):.2f})")
    for model in opened.values():
        model.close()


if __name__ == "__main__":
    main()
