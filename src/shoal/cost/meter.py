"""The meter around a run or an answer: seconds, tokens, FLOPs, energy, price -> a receipt."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import Any

from shoal.cost.energy import EnergyMeter, energy_meter
from shoal.cost.hardware import Device, catalogue, device_entry
from shoal.cost.receipt import Receipt


@dataclass(frozen=True)
class Price:
    usd: float | None
    basis: str
    date: str
    note: str


def price_of(entry: Device | None, seconds: float, joules: float | None, *, devices: int = 1) -> Price:
    """Rent where the catalogue has a rate for the device, else the electricity."""
    book = catalogue()
    if entry is not None and entry.usd_per_hour is not None:
        return Price(entry.usd_per_hour * devices * seconds / 3600, "rent", entry.date, entry.source)
    if joules is None:
        return Price(None, "", "", "unknown device: add it to hardware.toml")
    note = f"electricity at {book.usd_per_kwh} USD/kWh, hardware not counted ({book.electricity_source})"
    return Price(joules / 3.6e6 * book.usd_per_kwh, "electricity", book.electricity_date, note)


@dataclass
class Meter:
    """Counts from `start` to `stop`; may be stopped and started again (evaluation and saving can be left out).

    `device` is torch's name ("cpu", "cuda:0", "mps"). `seconds_before`, `joules_before`, `tokens` and `flops` let a
    resumed run go on from what its state says.
    """

    kind: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    processes: int = 1
    tokens: int = 0
    flops: float = 0.0
    seconds_before: float = 0.0
    joules_before: float = 0.0
    started_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def __post_init__(self) -> None:
        from shoal.ops.probe import device_name

        self.device_name = device_name(self.device)
        self._entry = device_entry(self.device)
        watts = self._entry.watts if self._entry else None
        self._energy: EnergyMeter = energy_meter(self.device, watts or 0.0)
        self._running_since: float | None = None
        self._joules_at_start = 0.0

    def __enter__(self) -> Meter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        if self._running_since is None:
            self._running_since, self._joules_at_start = time.monotonic(), self._energy.joules()

    def stop(self) -> None:
        if self._running_since is not None:
            self.seconds_before, self.joules_before = self.seconds, self._joules()
            self._running_since = None

    def add(self, *, tokens: int = 0, flops: float = 0.0) -> None:
        self.tokens += tokens
        self.flops += flops

    @property
    def seconds(self) -> float:
        """Wall-clock seconds while running, all stretches together."""
        running = 0.0 if self._running_since is None else time.monotonic() - self._running_since
        return self.seconds_before + running

    def _joules(self) -> float:
        running = 0.0 if self._running_since is None else self._energy.joules() - self._joules_at_start
        return self.joules_before + running

    @property
    def joules(self) -> float | None:
        """Energy so far; None on a device that has neither a meter nor a stated power."""
        if self._energy.source == "estimated":
            if self._entry is None or self._entry.watts is None:
                return None
            if self._entry.kind == "gpu":  # no counter to read: the boards' power for the whole time
                return self._entry.watts * self.seconds * self.processes
            return self._joules() * self.processes  # this rank's busy seconds stand for those of its like
        return self._joules() * (
            self.processes if self._energy.source == "nvml" else 1
        )  # RAPL sees the package

    @property
    def usd(self) -> float | None:
        return price_of(self._entry, self.seconds, self.joules, devices=self.processes).usd

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: pass it to `Meter(**state)`."""
        return {
            "kind": self.kind,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds_before": self.seconds,
            "joules_before": self._joules(),
            "started_at": self.started_at,
        }

    def receipt(
        self,
        *,
        parent: Receipt | None = None,
        peak_flops_per_second: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> Receipt:
        """The bill so far."""
        joules = self.joules
        price = price_of(self._entry, self.seconds, joules, devices=self.processes)
        return Receipt(
            kind=self.kind,
            started_at=self.started_at,
            device=self.device_name,
            seconds=self.seconds,
            tokens=self.tokens,
            flops=self.flops,
            threads=self.threads,
            processes=self.processes,
            dtype=self.dtype,
            peak_flops_per_second=peak_flops_per_second,
            joules=joules,
            energy_source=self._energy.source,
            usd=price.usd,
            price_basis=price.basis,
            price_date=price.date,
            price_note=price.note,
            details=details or {},
            parent=parent,
        )


def answer_cost(
    seconds: float, flops: float, tokens: int, *, device: str = "cpu", cores: float = 1.0
) -> dict[str, Any]:
    """The bill of one answer among others in a shared batch: its own busy seconds at the device's stated power.

    `seconds` is the answer's share of the engine's working time, `cores` how many cores it kept busy. Always
    an estimate (a meter of the whole package cannot be split between requests), and marked so.
    """
    from shoal.ops import probe

    entry = _known_entry(device)
    joules = None
    if entry is not None and entry.watts is not None:
        joules = entry.watts * seconds * (cores if entry.kind == "cpu" else 1.0)
    price = price_of(entry, seconds, joules)
    peak = probe.cached_peak(device)
    return {
        "device": probe.device_name(device),
        "seconds": seconds,
        "tokens": tokens,
        "flops": flops,
        "utilisation": flops / (seconds * peak) if peak and seconds > 0 else None,
        "joules": joules,
        "energy_source": "estimated",
        "usd": price.usd,
        "price_basis": price.basis,
        "price_date": price.date,
        "currency": "USD",
    }


_known_entry = functools.cache(device_entry)  # asked once per answer; the name of a CPU is read from a file
