"""The measuring itself, on a tiny model: every figure there, limits by the formula."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.data.tokenizer import Tokenizer
from shoal.engine.measure import decode_limit, measure, prefill_limit
from shoal.engine.open import open_model
from shoal.model import counts
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.transformer import CausalLM
from shoal.ops.probe import Probe


def test_figures_and_limits(network: CausalLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "tiny", network, tokenizer_files=tokenizer.save)
    peak = Probe("a machine", 1, {"float32": 1e11}, 1e10, "2026-01-01T00:00:00Z")
    with contextlib.closing(open_model(tmp_path / "tiny", dtype="float32", max_num_seqs=2)) as opened:
        figures = measure(opened, peak, prompt_tokens=40, answer_tokens=6, streams=(1, 2, 4))
        assert [figure.what for figure in figures] == [
            "prefill, 40 tokens",
            "decode, 1 stream",
            "decode, 2 streams",
        ]
        assert all(figure.value > 0 and figure.limit for figure in figures)
        config = network.config
        assert prefill_limit(opened, peak, 40) == 1e11 / counts.flops_per_token(config, 40, training=False)
        step_bytes = 4 * (counts.matrices_active(config) + 100 * counts.kv_bytes_per_token(config, 1))
        assert decode_limit(opened, peak, 1, 100) == pytest.approx(1e10 / step_bytes, rel=0.01)
        assert decode_limit(opened, peak, 10**6, 100) <= 1e11 / counts.decode_flops(config, 100)


def test_only_the_torch_runner_imports_torch() -> None:
    """A server on a CPU must start in a second; other runners must not need torch."""
    code = (
        "import pkgutil, importlib, sys, shoal.engine as room\n"
        "names = [m.name for m in pkgutil.iter_modules(room.__path__) if m.name != 'torch_runner']\n"
        "[importlib.import_module('shoal.engine.' + name) for name in names]\n"
        "assert len(names) > 8 and 'torch' not in sys.modules, sorted(names)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
