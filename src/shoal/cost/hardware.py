"""The hardware catalogue: power and price of a device, from `hardware.toml` and the user's own."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.files import read_text, shoal_home


@dataclass(frozen=True)
class Device:
    """One catalogue entry. `watts` is per busy core for kind "cpu", for the whole board for "gpu"."""

    key: str
    match: str
    kind: str
    watts: float
    source: str
    usd_per_hour: float | None = None
    date: str = ""


@dataclass(frozen=True)
class Catalogue:
    devices: tuple[Device, ...]
    usd_per_kwh: float
    electricity_date: str
    electricity_source: str

    def find(self, name: str, kind: str = "cpu") -> Device | None:
        """The entry whose `match` is the longest part of `name`; an unknown GPU gives None, never a guess."""
        found = [d for d in self.devices if d.kind == kind and d.match in name.lower()]
        return max(found, key=lambda d: len(d.match), default=None)


def _entries(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ShoalError(
            f"{where} is not valid TOML: {error}", hint="Mend the line or move the file away."
        ) from error


@functools.cache
def catalogue() -> Catalogue:
    """Read the catalogue that comes with Shoal, overlaid by `$SHOAL_HOME/hardware.toml` if there is one."""
    entries = _entries(
        (Path(__file__).with_name("hardware.toml")).read_text(encoding="utf-8"), "hardware.toml"
    )
    own = shoal_home() / "hardware.toml"
    if own.exists():
        for key, value in _entries(read_text(own), str(own)).items():
            entries[key] = {**entries.get(key, {}), **value}
    power = entries.pop("electricity")
    try:
        devices = tuple(Device(key=key, **value) for key, value in entries.items())
    except TypeError as error:
        raise ShoalError(
            f"{own}: {error}", hint="The form of an entry is shown in Shoal's own hardware.toml."
        ) from error
    return Catalogue(devices, float(power["usd_per_kwh"]), str(power["date"]), str(power["source"]))
