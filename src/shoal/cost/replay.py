"""A finished run's receipts beside what the planner says of the same work, part by part."""

from __future__ import annotations

from typing import Any

import shoal.model.counts as counts
from shoal.cost.calibration import load_calibration
from shoal.cost.hardware import catalogue
from shoal.cost.receipt import Receipt
from shoal.cost.runs import class_name, classes
from shoal.model.config import ModelConfig


def _rate(link: Receipt, config: ModelConfig, sequence: int) -> tuple[float, float | None, str]:
    """(utilisation, peak in FLOP/s or None, what they are) for one link: this machine's calibration if the run was on
    it, else the class of its device, held against the data sheet (a GPU) or the receipt's measured peak (a CPU)."""
    here = load_calibration()
    if here is not None and here.device == link.device and here.training is not None:
        return (
            here.utilisation(config, sequence),
            here.training_peak(),
            f"the peak, calibration of {here.measured_at}",
        )
    gpu = catalogue().find(link.device, "gpu")
    if gpu is None:
        return classes()["cpu"].value, link.peak_flops_per_second, "the measured peak, class cpu"
    moe = bool(config.n_routed_experts)
    name = class_name(counts.parameters_active(config), moe=moe, devices=link.processes, stack="generic")
    rows = ", ".join(classes()[name].rows)
    return classes()[name].value, gpu.dense_flops, f"the data sheet's peak, class {name} (from {rows})"


def beside_receipts(receipt: Receipt, config: ModelConfig, sequence: int = 512) -> list[dict[str, Any]]:
    """One row per link of the chain: part -> (receipt's figure, planned figure or None).

    FLOPs are planned from the tokens over rows of `sequence`; seconds from the receipt's FLOPs at the rate of `_rate`,
    whose rows `basis` names: where the run is itself one of them, they prove nothing; energy and money from the planned
    seconds.
    """
    rows = []
    for link in receipt.chain():
        flops = None
        if link.kind == "mtp":
            flops = link.tokens * counts.draft_training_flops(config, sequence)
        elif link.kind in ("train", "sft"):
            flops = link.tokens * counts.flops_per_token(config, sequence, training=True)
        share, peak, basis = _rate(link, config, sequence)
        seconds = None if not peak else link.flops / (peak * share * max(link.processes, 1))
        scale = None if seconds is None or link.seconds <= 0 else seconds / link.seconds
        joules = None if scale is None or link.joules is None else link.joules * scale
        usd = None
        if scale is not None and link.usd is not None:
            rent = link.price_basis == "rent"
            usd = link.usd * scale if rent or joules is None else joules / 3.6e6 * catalogue().usd_per_kwh
        rows.append(
            {
                "kind": link.kind,
                "parts": {
                    "FLOPs": (link.flops, flops),
                    "seconds": (link.seconds, seconds),
                    "joules": (link.joules, joules),
                    "USD": (link.usd, usd),
                },
                "basis": f"FLOPs over rows of {sequence} tokens; seconds at {share:.1%} of {basis}",
            }
        )
    return rows
