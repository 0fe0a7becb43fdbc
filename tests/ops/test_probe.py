"""The probe measures something possible, and remembers it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from shoal.ops import probe as probing


def test_probe_measures_and_caches(home: Path) -> None:
    first = probing.probe()
    assert 1e8 < first.gemm_flops_per_second["float32"] < 1e14
    assert 1e8 < first.read_bytes_per_second < 1e13
    again = probing.probe()
    if first.busy:  # other programs were at work: it is measured again, and the best is kept
        assert again.read_bytes_per_second >= first.read_bytes_per_second or not again.busy
    else:
        assert again == first  # from the cache: a second measurement would differ
    (home / "probe.json").write_text("{ damaged")
    assert probing.probe().device == first.device


def test_an_entry_of_an_older_form_is_measured_again(home: Path) -> None:
    """Before `busy` was written down, a loaded moment's bf16 stayed for good."""
    probing.probe(seconds=0.01)
    ((key, entry),) = json.loads((home / "probe.json").read_text()).items()
    del entry["busy"]
    entry["gemm_flops_per_second"]["float32"] = 1.0
    (home / "probe.json").write_text(json.dumps({key: entry}))
    assert probing.probe(seconds=0.01).gemm_flops_per_second["float32"] > 1e8


def test_bfloat16_must_win_clearly() -> None:
    figures = probing.Probe("x", 1, {"float32": 100.0, "bfloat16": 110.0}, 1.0, "")
    assert figures.best_dtype == "float32"
    assert (
        replace(figures, gemm_flops_per_second={"float32": 100.0, "bfloat16": 200.0}).best_dtype == "bfloat16"
    )
    assert replace(figures, gemm_flops_per_second={"float32": 100.0, "bfloat16": 1.0}).best_dtype == "float32"


def test_a_peak_taken_under_load_is_only_ever_raised() -> None:
    """Once 5 GFLOP/s of bf16 stood in the cache for good, taken under load; a quiet moment gives 1,130."""
    quiet = probing.Probe("x", 1, {"float32": 100.0, "bfloat16": 900.0}, 10.0, "old")
    loaded = replace(quiet, gemm_flops_per_second={"float32": 120.0, "bfloat16": 5.0}, busy=True)
    kept = probing._better(quiet, loaded)
    assert kept.gemm_flops_per_second == {"float32": 120.0, "bfloat16": 900.0} and not kept.busy
    assert probing._better(loaded, loaded).busy  # still to be measured in peace
    assert probing._better(loaded, quiet) == quiet  # a quiet moment has the last word, also downwards
