"""Answering on a plain CPU beside llama.cpp: same files, same threads, in turns, in one run.

    python benchmarks/native.py --peer-python OTHER/bin/python [--threads 2] [--rounds 3] [--text FILE] [--out FILE]

OTHER has llama-cpp-python (`pip install llama-cpp-python` builds llama.cpp for this machine; LLAMA_CPP_LIB_PATH names
another build). Both programs run behind a pipe and take turns; the median of the rounds counts and the ratio is that of
the medians. What is compared, as issue-sized rows: reading 512 tokens; decoding 128 tokens after 16 with 1, 8 and 16
streams, greedy; for SmolLM2-135M-Instruct as Q4_0 (requantised from the shipped file by llama.cpp itself), as Q8_0 and
as shipped (Q4_1); held-out bits per byte of the 4-bit files; time to the first token over HTTP; start of the process;
peak memory; decoding beside a busy process; and two mixtures of experts (llama.cpp's deepseek2): nano in 8 bits, and
random weights in the shape of eight layers of DeepSeek-V2-Lite (4.6B parameters) in 4 bits. Ours runs through the
whole engine, llama.cpp through its C interface. The share of the limit is bytes read per token / measured bandwidth
for decoding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipe import Side, answer_asks, peak_bytes

HERE = Path(__file__).parent
DECODE = (16, 128)
PREFILL = 512
HTTP_PROMPT = 400


# ---- our side of the pipe


class Ours:
    """The same asks as `llama_cpp_peer.Peer`, answered by Shoal's engine."""

    def __init__(self) -> None:
        self.opened: Any = None

    def system(self) -> dict[str, Any]:
        from shoal.ops import native
        from shoal.ops.native import core

        return {"available": native.available, "kernels": core.kernels() if native.available else None}

    def load(self, path: str, threads: int, streams: int = 1, quant: str | None = None) -> dict[str, Any]:
        from shoal.engine.open import open_model

        if self.opened:
            self.opened.close()
        begin = time.perf_counter()
        self.opened = open_model(path, quant=quant, max_num_seqs=streams, speculate="off", context=1024)
        self.opened.engine.runner.threads = threads
        return {"seconds": time.perf_counter() - begin, "token_bytes": self.opened.engine.runner.token_bytes}

    def _submit(self, ids: list[int], new: int) -> Any:
        from shoal.engine.types import Request, SamplingParams

        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        return self.opened.engine.submit(Request(ids, params))

    def _tokens(self, count: int, seed: int) -> list[int]:
        generator = random.Random(seed)
        return [generator.randrange(self.opened.tokenizer.vocab_size) for _ in range(count)]

    def prefill(self, tokens: int, seed: int = 0) -> dict[str, Any]:
        end = list(self._submit(self._tokens(tokens, seed), 1))[-1]
        return {"tokens_per_second": tokens / end.timings.prompt_seconds}

    def decode(self, streams: int, prompt: int, tokens: int, seed: int = 0) -> dict[str, Any]:
        handles = [self._submit(self._tokens(prompt, seed * 100 + s), tokens) for s in range(streams)]
        ends = [list(handle)[-1] for handle in handles]
        seconds = max(end.timings.decode_seconds for end in ends)
        return {"tokens_per_second": sum(end.usage.completion_tokens - 1 for end in ends) / seconds}

    def bits(self, ids: list[int], window: int, text_bytes: int) -> dict[str, Any]:
        import numpy as np

        from shoal.engine.runner import Chunk

        runner, nats = self.opened.engine.runner, 0.0
        blocks = list(range(-(-window // runner.block_size)))
        for start in range(0, len(ids) - 1, window):
            part = ids[start : start + window + 1]
            rows = (
                runner.run([Chunk(part[:-1], 0, blocks, logits=len(part) - 1)]).logits[0].astype(np.float64)
            )
            top = rows.max(-1)
            total = top + np.log(np.exp(rows - top[:, None]).sum(-1))
            nats += float((total - rows[np.arange(len(rows)), part[1:]]).sum())
        return {"bits_per_byte": nats / np.log(2) / text_bytes}

    def encode(self, text: str) -> dict[str, Any]:
        return {"ids": self.opened.tokenizer.encode(text)}

    def memory(self) -> dict[str, Any]:
        return {"peak_bytes": peak_bytes()}


# ---- the mixtures of experts

V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "num_hidden_layers": 8,
    "first_k_dense_replace": 1, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_attention_heads": 16,
    "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip


def export(target: Path, config: Any, weights: Any, dtype: Any) -> None:
    """Write a GGUF file with nano's tokenizer."""
    from shoal.data.tokenizer import load_tokenizer
    from shoal.model.checkpoint.load import resolve
    from shoal.model.checkpoint.save import save_gguf

    save_gguf(target, weights, dtype=dtype, tokenizer=load_tokenizer(resolve("nano")).to_gguf())


def write_nano(target: Path) -> None:
    from shoal.model.checkpoint.load import resolve
    from shoal.model.checkpoint.save import Weights
    from shoal.model.checkpoint.source import open_source

    source = open_source(resolve("nano"))
    export(target, source.config, Weights.of_source(source, mtp=False), "q8_0")


def write_v2_lite(target: Path) -> None:
    """Random weights; every tensor is another piece of one long row of random numbers."""
    import torch

    from shoal.model.checkpoint.save import Weights
    from shoal.model.checkpoint.shapes import parameter_shapes
    from shoal.model.config import ModelConfig

    config = ModelConfig.from_dict(V2_LITE)
    shapes = parameter_shapes(config)
    numbers = torch.randn(2**28, generator=torch.Generator().manual_seed(1)) * 0.02
    begin = 0

    def read(parameter: str, expert: int | None) -> Any:
        nonlocal begin
        shape = shapes[parameter] if expert is None else shapes[parameter][1:]
        if len(shape) == 1:
            return torch.ones(shape)
        size = torch.Size(shape).numel()
        begin = (begin + 999_983) % (len(numbers) - size)
        return numbers[begin : begin + size].view(shape)

    export(target, config, Weights(config, False, read), "q4_0")


# ---- what is compared


def pair(ours: Side, peer: Side, rounds: int, do: str, **values: Any) -> tuple[float, float]:
    """The medians of both sides, asked in turns after one warm-up each."""
    found: dict[str, list[float]] = {ours.name: [], peer.name: []}
    for turn in range(rounds + 1):
        for side in (ours, peer) if turn % 2 else (peer, ours):
            rate = side.ask(do, **values, seed=turn)["tokens_per_second"]
            if turn:
                found[side.name].append(rate)
    return statistics.median(found[ours.name]), statistics.median(found[peer.name])


def busy(stop: Any) -> None:
    while not stop.is_set():
        sum(i * i for i in range(20_000))


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    stop = multiprocessing.Event()
    process = multiprocessing.Process(target=busy, args=(stop,), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()


def first_tokens(model: str, prompt: str) -> dict[str, float]:
    """Milliseconds to the first token over HTTP, cold and seen before, and the server's peak memory."""
    import httpx

    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "shoal.cli.main", "serve", model, "--port", "8799"],
            stdout=log,
            stderr=log,
        )
        try:
            base = "http://127.0.0.1:8799"
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{base}/health").status_code == 200:
                        break
                time.sleep(0.1)
            client = httpx.Client(timeout=60)  # making one loads certificates: no part of an answer
            name = client.get(f"{base}/v1/models").json()["data"][0]["id"]
            cold: list[float] = []
            seen: list[float] = []
            for turn in range(5):
                for found in (cold, seen):
                    body = {
                        "model": name,
                        "prompt": f"{turn} {prompt}",
                        "stream": True,
                        "max_tokens": 2,
                        "temperature": 0,
                    }
                    begin = time.perf_counter()
                    with client.stream("POST", f"{base}/v1/completions", json=body) as answer:
                        for line in answer.iter_lines():
                            if line.startswith("data:") and '"text"' in line:
                                found.append((time.perf_counter() - begin) * 1000)
                                break
            return {
                "cold_ms": statistics.median(cold[1:]),
                "seen_ms": statistics.median(seen[1:]),
                "peak_bytes": peak_bytes(server.pid),
            }
        finally:
            server.terminate()
            server.wait()


def start_seconds(model: str) -> float:
    """From the start of the process to the first byte of the answer; the median of three after one."""
    found = []
    for _ in range(4):
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal.cli.main", "chat", model, "-p", "Say hello."],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout
        process.stdout.read(1)
        found.append(time.perf_counter() - begin)
        process.kill()
        process.wait()
    return statistics.median(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", help="the Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--files", type=Path, help="where requantised files are kept (default: a temporary folder)"
    )
    parser.add_argument(
        "--text", type=Path, help="UTF-8 text for bits per byte (its first 60,000 characters)"
    )
    parser.add_argument(
        "--only", default="", help="comma-separated: speed,bits,server,busy,experts (default: all)"
    )
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    if options.worker:
        return answer_asks(Ours(), sys.stdout)
    if not options.peer_python:
        parser.error("--peer-python is needed (a Python with llama-cpp-python)")
    parts = set(options.only.split(",")) if options.only else {"speed", "bits", "server", "busy", "experts"}

    from shoal.model.checkpoint.load import resolve
    from shoal.ops.probe import cpu_name, measure

    shipped = resolve("smollm2")
    folder = options.files or Path(tempfile.mkdtemp())
    ours = Side("shoal", [sys.executable, __file__, "--worker"])
    peer = Side("llama.cpp", [options.peer_python, str(HERE / "llama_cpp_peer.py")])
    peak = measure()
    result: dict[str, Any] = {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "date": time.strftime("%Y-%m-%d"),
        "read_bytes_per_second": peak.read_bytes_per_second,
        "shoal": ours.ask("system"),
        "llama.cpp": peer.ask("system"),
        "rows": [],
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1))

    def row(what: str, mine: float, theirs: float | None, unit: str, limit: float | None = None) -> None:
        ratio = mine / theirs if theirs else None
        result["rows"].append(
            {"what": what, "shoal": mine, "llama.cpp": theirs, "unit": unit, "ratio": ratio, "limit": limit}
        )
        told = f"{theirs:10.3f} {ratio:7.2f}" if theirs and ratio else " " * 18
        share = f"{mine / limit:6.0%} of the limit" if limit else ""
        print(f"{what:58}{mine:10.3f} {told} {unit} {share}", flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")

    files = {"q4_1": shipped}
    for kind in ("q4_0", "q8_0", "bf16"):
        files[kind] = folder / f"smollm2-{kind}.gguf"
        if not files[kind].exists():
            peer.ask("quantise", source=str(shipped), target=str(files[kind]), kind=kind)
    if "speed" in parts:
        for kind, opponents in (("q4_0", ("q4_0", "bf16")), ("q8_0", ("q8_0",)), ("q4_1", ("q4_1",))):
            for streams in (1, 8, 16):
                token_bytes = ours.ask(
                    "load", path=str(files[kind]), threads=options.threads, streams=streams
                )["token_bytes"]
                peer.ask("load", path=str(files[kind]), threads=options.threads, streams=streams)
                mine, theirs = pair(
                    ours, peer, options.rounds, "decode", streams=streams, prompt=DECODE[0], tokens=DECODE[1]
                )
                limit = streams * peak.read_bytes_per_second / token_bytes if streams == 1 else None
                row(f"{kind}: decode, {streams} streams", mine, theirs, "tokens/s", limit)
            for opponent in opponents:
                ours.ask("load", path=str(files[kind]), threads=options.threads)
                peer.ask("load", path=str(files[opponent]), threads=options.threads)
                mine, theirs = pair(ours, peer, options.rounds, "prefill", tokens=PREFILL)
                row(f"{kind}: prefill {PREFILL} (peer: {opponent})", mine, theirs, "tokens/s")
    if "bits" in parts and options.text:
        text = options.text.read_text(encoding="utf-8")[:60_000]
        for kind in ("q4_0", "q4_1", "q8_0"):
            ours.ask("load", path=str(files[kind]), threads=options.threads)
            peer.ask("load", path=str(files[kind]), threads=options.threads)
            ids = ours.ask("encode", text=text)["ids"]
            ask = {"ids": ids, "window": 512, "text_bytes": len(text.encode())}
            row(
                f"{kind}: bits per byte, held-out text",
                ours.ask("bits", **ask)["bits_per_byte"],
                peer.ask("bits", **ask)["bits_per_byte"],
                "bits/byte",
            )
    if "busy" in parts:
        ours.ask("load", path=str(files["q4_0"]), threads=1)
        alone = statistics.median(
            ours.ask("decode", streams=1, prompt=DECODE[0], tokens=DECODE[1], seed=i)["tokens_per_second"]
            for i in range(3)
        )
        ours.ask("load", path=str(files["q4_0"]), threads=options.threads)
        peer.ask("load", path=str(files["q4_0"]), threads=options.threads)
        with busy_process():
            mine, theirs = pair(
                ours, peer, options.rounds, "decode", streams=1, prompt=DECODE[0], tokens=DECODE[1]
            )
        row("q4_0: decode beside a busy process", mine, theirs, "tokens/s")
        row("  the same against itself on 1 idle thread", mine / alone, None, "ratio")
    if "server" in parts:
        prompt = " ".join(["The river runs past the old mill and the"] * 44)
        peer.ask("load", path=str(files["q4_0"]), threads=options.threads)
        peer.ask("prefill", tokens=HTTP_PROMPT)
        theirs = [
            HTTP_PROMPT / peer.ask("prefill", tokens=HTTP_PROMPT)["tokens_per_second"] for _ in range(3)
        ]
        found = first_tokens(str(files["q4_0"]), prompt)
        row("q4_0: first token over HTTP, cold (peer: no HTTP)", found["cold_ms"], 1e3 * min(theirs), "ms")
        row("q4_0: first token over HTTP, seen before", found["seen_ms"], None, "ms")
        fresh = Side("llama.cpp", [options.peer_python, str(HERE / "llama_cpp_peer.py")])
        fresh.ask("load", path=str(files["q4_0"]), threads=options.threads)
        fresh.ask("prefill", tokens=HTTP_PROMPT)
        theirs_peak = fresh.ask("memory")["peak_bytes"]
        fresh.close()
        row("q4_0: peak memory of the server", found["peak_bytes"] / 1e6, theirs_peak / 1e6, "MB")
        row("q4_0: process start to first token", start_seconds(str(files["q4_0"])), None, "s")
    ours.close()
    peer.close()
    for name, write in (("nano-q8_0", write_nano), ("v2-lite-8-layers-q4_0", write_v2_lite)):
        if "experts" not in parts:
            break
        file = folder / f"{name}.gguf"
        if not file.exists():
            write(file)
        starts: dict[str, list[float]] = {"shoal": [], "llama.cpp": []}
        for _ in range(2):  # the first start of ours packs the weights and keeps them
            ours = Side("shoal", [sys.executable, __file__, "--worker"])
            peer = Side("llama.cpp", [options.peer_python, str(HERE / "llama_cpp_peer.py")])
            for side in (ours, peer):
                begin = time.perf_counter()
                side.ask("load", path=str(file), threads=options.threads)
                side.ask("prefill", tokens=16)
                starts[side.name].append(time.perf_counter() - begin)
            if len(starts["shoal"]) == 1:
                ours.close()
                peer.close()
        row(f"{name}: load and first token, first time", starts["shoal"][0], starts["llama.cpp"][0], "s")
        row(f"{name}: load and first token, later", starts["shoal"][1], starts["llama.cpp"][1], "s")
        token_bytes = ours.ask("load", path=str(file), threads=options.threads)["token_bytes"]
        mine, theirs = pair(
            ours, peer, options.rounds, "decode", streams=1, prompt=DECODE[0], tokens=DECODE[1]
        )
        row(f"{name}: decode, 1 stream", mine, theirs, "tokens/s", peak.read_bytes_per_second / token_bytes)
        mine, theirs = pair(ours, peer, options.rounds, "prefill", tokens=PREFILL)
        row(f"{name}: prefill {PREFILL}", mine, theirs, "tokens/s")
        sizes = [side.ask("memory")["peak_bytes"] / 1e6 for side in (ours, peer)]
        row(f"{name}: peak memory of the process", sizes[0], sizes[1], "MB")
        ours.close()
        peer.close()


if __name__ == "__main__":
    main()
