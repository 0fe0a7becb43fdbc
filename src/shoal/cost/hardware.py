"""The hardware catalogue: what a device computes, holds, draws and costs; `hardware.toml` and the user's own."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError, UsageError
from shoal.files import read_text, shoal_home

# Bits of the formats in `peak`, as the export rule and the byte counts need them.
BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4}
_TYPES = {
    "str": (str,),
    "float | None": (int, float),
    "bool": (bool,),
    "int": (int,),
    "dict[str, float]": (dict,),
}


@dataclass(frozen=True)
class Device:
    """One catalogue entry; units as `hardware.toml` says. None is unknown and stays unknown in every answer."""

    key: str
    match: str
    kind: str
    source: str
    name: str = ""
    peak: dict[str, float] = field(default_factory=dict)
    memory_gb: float | None = None
    memory_gb_per_second: float | None = None
    link_gb_per_second: float | None = None
    die_mm2: float | None = None
    datacenter: bool = True
    watts: float | None = None
    cores: int = 1
    usd_per_hour: float | None = None
    date: str = ""
    specs: str = ""

    @property
    def title(self) -> str:
        return self.name or self.key

    @property
    def dense_flops(self) -> float | None:
        """FLOP/s of dense 16-bit products (32-bit where it has no others): what utilisation is counted against."""
        for name in ("bf16", "fp16", "fp32"):
            if name in self.peak:
                return self.peak[name] * 1e12
        return None

    @property
    def power(self) -> float | None:
        """Watts of the whole device at work (a CPU's `watts` are per core)."""
        return None if self.watts is None else self.watts * self.cores

    @property
    def memory_bytes(self) -> float | None:
        return None if self.memory_gb is None else self.memory_gb * 1e9


@dataclass(frozen=True)
class Catalogue:
    devices: tuple[Device, ...]
    usd_per_kwh: float
    electricity_date: str
    electricity_source: str
    currencies: dict[str, float]
    """What one US dollar is worth; USD itself included."""
    currency_date: str
    currency_source: str

    def find(self, name: str, kind: str = "cpu") -> Device | None:
        """The entry whose `match` is the longest part of `name`; an unknown GPU gives None, never a guess."""
        found = [d for d in self.devices if d.kind == kind and d.match in name.lower()]
        return max(found, key=lambda d: len(d.match), default=None)

    def get(self, text: str) -> Device:
        """The device that a person means: its key or name, in any spelling. Raises UsageError with the nearest."""
        wanted = _plain(text)
        names = {_plain(n): d for d in self.devices for n in (d.key, d.title)}
        if wanted in names:
            return names[wanted]
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        keys = list(dict.fromkeys(names[n].key for n in near)) or [d.key for d in self.devices]
        raise UsageError(
            f"no device {text!r} in the catalogue",
            hint=f"Nearest: {', '.join(keys)}. Yours can be added in {shoal_home() / 'hardware.toml'}.",
        )

    def money(self, usd: float, currency: str) -> float:
        """A sum in another currency. Raises UsageError when there is no rate for it."""
        if currency not in self.currencies:
            raise UsageError(
                f"no rate for {currency!r}",
                hint=f"There are {', '.join(self.currencies)}; more go into [currency] of hardware.toml.",
            )
        return usd * self.currencies[currency]


def _plain(text: str) -> str:
    return "".join(ch for ch in text.lower() if ch.isalnum())


def _entries(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ShoalError(
            f"{where} is not valid TOML: {error}", hint="Mend the line or move the file away."
        ) from error


def _device(key: str, value: dict[str, Any], where: Path) -> Device:
    kinds = {f.name: _TYPES[str(f.type)] for f in dataclasses.fields(Device)}
    faults = [f"lacks {name}" for name in ("match", "kind", "source") if name not in value]
    faults += [f"has an unknown key {name}" for name in value if name not in kinds]
    faults += [
        f"has a {name} of the wrong type"
        for name, v in value.items()
        if type(v) not in kinds.get(name, (type(v),))
    ]
    if faults:
        raise ShoalError(
            f"{where}: [{key}] {faults[0]}",
            hint="The form of an entry is shown in Shoal's own hardware.toml.",
        )
    device = Device(key=key, **value)
    if unknown := [n for n, v in device.peak.items() if n not in BITS or type(v) not in (int, float)]:
        raise ShoalError(
            f"{where}: [{key}] has a peak that is no number or for no known format: {unknown[0]!r}",
            hint=f"Formats: {', '.join(BITS)}; in TFLOP/s.",
        )
    return device


def _is_price(key: str, value: dict[str, Any]) -> bool:
    return key == "currency" or "usd_per_hour" in value or "usd_per_kwh" in value


@functools.cache
def catalogue() -> Catalogue:
    """Read the catalogue that comes with Shoal, overlaid by `$SHOAL_HOME/hardware.toml` if there is one."""
    entries = _entries(
        (Path(__file__).with_name("hardware.toml")).read_text(encoding="utf-8"), "hardware.toml"
    )
    own = shoal_home() / "hardware.toml"
    if own.exists():
        for key, value in _entries(read_text(own), str(own)).items():
            if not isinstance(value, dict):
                raise ShoalError(
                    f"{own}: {key} stands outside of a [device]", hint="Write a [device] line above it."
                )
            if _is_price(key, value):  # it is not of the day and the place of the price below it
                if not value.get("date"):
                    raise ShoalError(
                        f"{own}: [{key}] has a price without a date",
                        hint='Add date = "YYYY-MM-DD": a price without its day says nothing.',
                    )
                value = {"source": f"your own {own.name}"} | value
            entries[key] = {**entries.get(key, {}), **value}
    power, rates = entries.pop("electricity"), entries.pop("currency")
    devices = tuple(_device(key, value, own) for key, value in entries.items())
    try:
        per_kwh, worth = float(power["usd_per_kwh"]), {k: float(v) for k, v in rates.items() if k.isupper()}
    except (TypeError, ValueError) as error:
        raise ShoalError(f"{own}: a rate is no number: {error}", hint="Write a plain number.") from error
    return Catalogue(devices, per_kwh, str(power["date"]), str(power["source"]), {"USD": 1.0} | worth,
                     str(rates["date"]), str(rates["source"]))  # fmt: skip


def device_entry(device: str) -> Device | None:
    """The catalogue's entry for a torch device of this machine ("cpu", "cuda:0", "mps")."""
    from shoal.ops.probe import device_name

    return catalogue().find(device_name(device), "gpu" if device.startswith("cuda") else "cpu")
