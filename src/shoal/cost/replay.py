"""A finished run's receipts beside what the planner says of the same work, part by part."""

from __future__ import annotations

from typing import Any

from shoal.cost.calibration import load_calibration
from shoal.cost.hardware import catalogue
from shoal.cost.receipt import Receipt
from shoal.cost.runs import classes
from shoal.model import counts
from shoal.model.config import ModelConfig

STAGES = ("train", "sft", "mtp")


def beside_receipts(receipt: Receipt, config: ModelConfig, sequence: int = 512) -> list[dict[str, Any]]:
    """One row per link of the chain: part -> (receipt's figure, planned figure or None).

    FLOPs are planned from the tokens over rows of `sequence`; seconds from the FLOPs of the receipt at the peak it was
    held against and the utilisation of this machine's calibration (on its device) or the class; energy and money from
    the planned seconds.
    """
    rows = []
    here = load_calibration()
    for link in receipt.chain():
        flops = None
        if link.kind in STAGES and link.kind != "mtp":
            flops = link.tokens * counts.flops_per_token(config, sequence, training=True)
        utilisation, basis = classes()["cpu"].value, "class cpu"
        if here is not None and here.device == link.device and here.training is not None:
            utilisation, basis = here.utilisation(config, sequence), f"calibration of {here.measured_at}"
        seconds = None
        if link.peak_flops_per_second:
            seconds = link.flops / (link.peak_flops_per_second * utilisation * max(link.processes, 1))
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
                "basis": f"FLOPs over rows of {sequence} tokens; seconds at {utilisation:.1%} of the peak ({basis})",
            }
        )
    return rows
