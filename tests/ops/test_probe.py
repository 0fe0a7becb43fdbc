"""The probe measures something possible, and remembers it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shoal.ops import probe as probing


def test_probe_measures_and_caches(home: Path) -> None:
    first = probing.probe()
    assert 1e8 < first.gemm_flops_per_second["float32"] < 1e14
    assert 1e8 < first.read_bytes_per_second < 1e13
    assert probing.probe() == first  # from the cache: a second measurement would differ
    (home / "probe.json").write_text("{ damaged")
    assert probing.probe().device == first.device


def test_bfloat16_must_win_clearly() -> None:
    figures = probing.Probe("x", 1, {"float32": 100.0, "bfloat16": 110.0}, 1.0, "")
    assert figures.best_dtype == "float32"
    assert (
        replace(figures, gemm_flops_per_second={"float32": 100.0, "bfloat16": 200.0}).best_dtype == "bfloat16"
    )
    assert replace(figures, gemm_flops_per_second={"float32": 100.0, "bfloat16": 1.0}).best_dtype == "float32"
