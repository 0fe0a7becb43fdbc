"""The receipt: what one run cost, on what, and which receipts it builds on (`receipt.json` in every checkpoint)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import Any

from shoal.errors import ShoalError


@dataclass(frozen=True)
class Receipt:
    """One run's bill. Unknown figures are None, never zero.

    energy_source: "rapl" or "nvml" (measured, whole device) or "estimated" (stated watts times busy seconds).
    price_basis: "rent" (usd_per_hour of the device) or "electricity" (joules at usd_per_kwh; hardware not counted).
    parent: the receipt of the checkpoint that this run started from, whole, so that the chain travels with it.
    """

    kind: str
    started_at: str
    device: str
    seconds: float
    tokens: int
    flops: float
    threads: int = 0
    processes: int = 1
    dtype: str = ""
    peak_flops_per_second: float | None = None
    joules: float | None = None
    energy_source: str = "estimated"
    usd: float | None = None
    price_basis: str = ""
    price_date: str = ""
    price_note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    parent: Receipt | None = None

    @property
    def utilisation(self) -> float | None:
        """FLOPs done over FLOPs possible at the measured peak of all processes (MFU), None without a peak."""
        if not self.peak_flops_per_second or self.seconds <= 0:
            return None
        return self.flops / (self.seconds * self.peak_flops_per_second * max(self.processes, 1))

    def chain(self) -> list[Receipt]:
        """This receipt and those it builds on, newest first."""
        return [self, *(self.parent.chain() if self.parent else [])]

    @property
    def total_usd(self) -> float | None:
        """The whole chain's cost, None if any link is unknown."""
        parts = [r.usd for r in self.chain()]
        return None if any(p is None for p in parts) else sum(p for p in parts if p is not None)

    @property
    def total_joules(self) -> float | None:
        parts = [r.joules for r in self.chain()]
        return None if any(p is None for p in parts) else sum(p for p in parts if p is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the derived figures and an id (SHA-256 of all the rest)."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "parent"}
        plain["utilisation"] = self.utilisation
        plain["parent"] = self.parent.to_dict() if self.parent else None
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
        return {"id": hashlib.sha256(text.encode()).hexdigest(), **plain}

    @classmethod
    def from_dict(cls, data: Any) -> Receipt:
        """Read what `to_dict` wrote; keys of later versions are kept in `details`. Raises ShoalError on nonsense."""
        try:
            known = {f.name for f in fields(cls)}
            plain = {k: v for k, v in data.items() if k in known}
            plain["details"] = dict(plain.get("details") or {}) | {
                k: v for k, v in data.items() if k not in known and k not in ("id", "utilisation")
            }
            if plain.get("parent") is not None:
                plain["parent"] = cls.from_dict(plain["parent"])
            return cls(**plain)
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise ShoalError(
                f"this receipt cannot be read: {error}", hint="Delete receipt.json to go on without it."
            ) from error


def summary(receipt: Receipt) -> str:
    """One line for people: `2.1 h on NAME, 9.8M tokens, 0.31 PFLOP, 41% of peak, 0.02 kWh (estimated), $0.006`."""
    parts = [f"{_seconds(receipt.seconds)} on {receipt.device}", f"{_count(receipt.tokens)} tokens"]
    parts.append(f"{_count(receipt.flops)}FLOP")
    if receipt.utilisation is not None:
        doubt = ": the peak is out of date, run `shoal bench probe`" if receipt.utilisation > 1 else ""
        parts.append(f"{receipt.utilisation:.0%} of the measured peak{doubt}")
    if receipt.joules is not None:
        parts.append(f"{receipt.joules / 3.6e6:.3g} kWh ({receipt.energy_source})")
    parts.append("price unknown" if receipt.usd is None else f"${receipt.usd:.3g} ({receipt.price_basis})")
    return ", ".join(parts)


def _count(value: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "


def _seconds(value: float) -> str:
    return (
        f"{value:.1f} s"
        if value < 120
        else f"{value / 60:.1f} min"
        if value < 7200
        else f"{value / 3600:.2f} h"
    )
