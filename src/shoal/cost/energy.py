"""Joules: read from the machine's own meters (RAPL, NVML) where they are readable, else estimated and marked so."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Protocol

_RAPL = Path("/sys/class/powercap")


class EnergyMeter(Protocol):
    """A running counter. `source` names it; `joules()` is its reading, of which differences count."""

    source: str

    def joules(self) -> float: ...


class Rapl:
    """Intel's and AMD's package counters (Linux powercap; usually readable by root only).

    They count the whole package, other processes included, and wrap at `max_energy_range_uj`.
    """

    source = "rapl"

    def __init__(self, folder: Path = _RAPL):
        self._zones = [p for p in sorted(folder.glob("intel-rapl:*")) if p.name.count(":") == 1]
        self._last = [self._read(zone / "energy_uj") for zone in self._zones]
        self._range = [self._read(zone / "max_energy_range_uj") for zone in self._zones]
        self._total = 0.0
        if not self._zones:
            raise OSError("no RAPL zone")

    @staticmethod
    def _read(path: Path) -> int:
        return int(path.read_text())

    def joules(self) -> float:
        for i, zone in enumerate(self._zones):
            now = self._read(zone / "energy_uj")
            self._total += ((now - self._last[i]) % (self._range[i] + 1)) * 1e-6
            self._last[i] = now
        return self._total


class Nvml:
    """NVIDIA's total energy counter of one GPU (millijoules since the driver was loaded; Volta and newer)."""

    source = "nvml"

    def __init__(self, index: int = 0):
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        if self._library.nvmlInit_v2() != 0:
            raise OSError("NVML does not start")
        if self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._handle)) != 0:
            raise OSError(f"NVML knows no GPU {index}")
        self.joules()

    def joules(self) -> float:
        value = ctypes.c_ulonglong()
        if self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value)) != 0:
            raise OSError("NVML gives no energy counter for this GPU")
        return value.value * 1e-3


class Estimate:
    """CPU seconds of this process times a stated power per busy core."""

    source = "estimated"

    def __init__(self, watts_per_core: float):
        self.watts_per_core = watts_per_core

    def joules(self) -> float:
        times = os.times()
        return (times.user + times.system) * self.watts_per_core


def energy_meter(device: str, watts_per_core: float) -> EnergyMeter:
    """The best meter for "cpu" or "cuda[:N]": a real one if it can be read, else an estimate."""
    with contextlib.suppress(OSError, ValueError):
        if device.startswith("cuda"):
            return Nvml(int(device.partition(":")[2] or 0))
        if device == "cpu":
            return Rapl()
    return Estimate(watts_per_core)
