"""llama.cpp behind a pipe, asked by benchmarks/native.py in lines of JSON. Run by the Python that has llama-cpp-python.

Everything is called through the C interface (llama_decode, the C greedy sampler), so that Python's share is small. The
asks are `Peer`'s methods.
"""

from __future__ import annotations

import ctypes
import math
import random
import sys
import time
from typing import Any

import llama_cpp as llama  # type: ignore[import-not-found]
import numpy as np
from pipe import answer_asks, peak_bytes

CONTEXT = 4096
TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "f16": 1, "bf16": 32}  # llama.h: enum llama_ftype


@llama.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    pass


class Peer:
    def __init__(self) -> None:
        llama.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self.models: dict[str, Any] = {}
        self.context: Any = None
        self.batch = llama.llama_batch_init(CONTEXT, 0, 1)
        self.greedy = llama.llama_sampler_init_greedy()

    def system(self) -> dict[str, Any]:
        return {"version": llama.__version__, "features": llama.llama_print_system_info().decode()}

    def quantise(self, source: str, target: str, kind: str) -> dict[str, Any]:
        """Requantise a GGUF file as `llama-quantize --allow-requantize` does."""
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = TYPES[kind], True, 2
        failed = llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
        return {"failed": int(failed)}

    def load(self, path: str, threads: int, streams: int = 1) -> dict[str, Any]:
        if self.context is not None:
            llama.llama_free(self.context)
        begin = time.perf_counter()
        if path not in self.models:
            self.models[path] = llama.llama_model_load_from_file(
                path.encode(), llama.llama_model_default_params()
            )
        self.model = self.models[path]
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, CONTEXT, 512
        params.n_seq_max, params.kv_unified = streams, True
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        return {"seconds": time.perf_counter() - begin}

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """entries: (token, position, sequence, logits wanted)."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if llama.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def _clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def _tokens(self, count: int, seed: int) -> list[int]:
        generator = random.Random(seed)
        return [generator.randrange(self.vocabulary) for _ in range(count)]

    def prefill(self, tokens: int, seed: int = 0) -> dict[str, Any]:
        """Seconds until the first token after `tokens` of prompt is known."""
        self._clear()
        prompt = self._tokens(tokens, seed)
        begin = time.perf_counter()
        self._decode([(token, i, 0, i == tokens - 1) for i, token in enumerate(prompt)])
        llama.llama_sampler_sample(self.greedy, self.context, -1)
        return {"tokens_per_second": tokens / (time.perf_counter() - begin)}

    def decode(self, streams: int, prompt: int, tokens: int, seed: int = 0) -> dict[str, Any]:
        """Total tokens/s of `streams` greedy answers of `tokens`, each after its own prompt."""
        self._clear()
        rows = [self._tokens(prompt, seed * 100 + s) for s in range(streams)]
        self._decode([(t, i, s, i == prompt - 1) for s, row in enumerate(rows) for i, t in enumerate(row)])
        last = [
            llama.llama_sampler_sample(self.greedy, self.context, (s + 1) * prompt - 1)
            for s in range(streams)
        ]
        begin = time.perf_counter()
        for step in range(tokens - 1):
            self._decode([(token, prompt + step, s, True) for s, token in enumerate(last)])
            last = [llama.llama_sampler_sample(self.greedy, self.context, s) for s in range(streams)]
        return {"tokens_per_second": streams * (tokens - 1) / (time.perf_counter() - begin)}

    def bits(self, ids: list[int], window: int, text_bytes: int) -> dict[str, Any]:
        """Bits per byte of a text given as token ids, in windows of their own."""
        nats = 0.0
        for start in range(0, len(ids) - 1, window):
            part = ids[start : start + window + 1]
            self._clear()
            self._decode([(token, i, 0, True) for i, token in enumerate(part[:-1])])
            for i, label in enumerate(part[1:]):
                row = np.ctypeslib.as_array(
                    llama.llama_get_logits_ith(self.context, i), (self.vocabulary,)
                ).astype(np.float64)
                top = row.max()
                nats += top + math.log(np.exp(row - top).sum()) - row[label]
        return {"bits_per_byte": nats / math.log(2) / text_bytes}

    def memory(self) -> dict[str, Any]:
        """Peak resident bytes of this process."""
        return {"peak_bytes": peak_bytes()}


def main() -> None:
    answer_asks(Peer(), sys.stdout)


if __name__ == "__main__":
    main()
