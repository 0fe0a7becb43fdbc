"""`shoal bench`: what this machine reaches, beside what it could."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any

import typer

from shoal.errors import UsageError

PARTS = ("probe", "engine", "train")


def command(
    what: list[str] = typer.Argument(
        None, metavar="[probe|engine|train]...", help="Which figures; default: all."
    ),
    model: str = typer.Option("smollm2", help="The model for `engine`; `nano` if smollm2 is not installed."),
    runner: str = typer.Option(
        "auto", help="native (quantised, CPUs), torch, or auto: native where it is built and can be used."
    ),
    quant: str | None = typer.Option(
        None, metavar="8|4|none", help="Bits of native weights; default: a GGUF file's own, else 8."
    ),
    dtype: str | None = typer.Option(
        None, help="For `engine` with torch: float32 or bfloat16; default: the faster one here."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Measure this machine: its peak (probe), answering (engine) and training (train), each beside its limit.

    A limit is what the measured peak of matrix products and memory reads would allow. Takes about a minute on a quiet
    machine; other programs make every figure smaller.

    Examples:

      shoal bench

      shoal bench engine --model nano

      shoal bench probe train --json
    """
    wanted = what or list(PARTS)
    if unknown := [part for part in wanted if part not in PARTS]:
        raise UsageError(
            f"nothing to measure is called {unknown[0]!r}", hint=f"There are {', '.join(PARTS)}."
        )
    from shoal.ops.probe import probe

    peak = probe(fresh="probe" in wanted)
    rows: list[dict[str, Any]] = []
    if "engine" in wanted:
        rows += _engine(model, {"runner": runner, "quant": quant, "dtype": dtype}, peak)
    if "train" in wanted:
        from shoal.train.speed import measure as measure_training

        print("training ...", file=sys.stderr)
        rows += measure_training()
    if as_json:
        typer.echo(json.dumps({"machine": asdict(peak), "figures": rows}))
        return
    print(f"{peak.device}, {peak.threads} threads, {peak.measured_at}")
    for name, flops in peak.gemm_flops_per_second.items():
        print(f"  {f'matrix product, {name}':<34}{flops / 1e9:10.1f} GFLOP/s")
    print(f"  {'memory, reading':<34}{peak.read_bytes_per_second / 1e9:10.1f} GB/s")
    for row in rows:
        share = f"  {row['value'] / row['limit']:6.1%} of {row['limit']:.0f}" if row.get("limit") else ""
        print(f"  {row['what']:<34}{row['value']:10.1f} {row['unit']}{share}")


def _engine(model: str, options: dict[str, Any], peak: Any) -> list[dict[str, Any]]:
    from shoal.cli.progress import bytes_bar
    from shoal.engine.measure import measure
    from shoal.engine.open import open_model
    from shoal.model.registry import find

    if model == "smollm2" and find(model) is None:
        model = "nano"
    with bytes_bar(f"loading {model}") as progress:
        opened = open_model(model, context=1024, progress=progress, **options)
    with contextlib.closing(opened):
        print(f"answering with {opened.name} in {opened.dtype} ...", file=sys.stderr)
        return [
            {**asdict(figure), "what": f"{opened.name} {figure.what}"} for figure in measure(opened, peak)
        ]
