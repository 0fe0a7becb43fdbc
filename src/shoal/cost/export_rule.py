"""The US export rule for computing chips (ECCN 3A090), computed from a device's figures. Not legal advice.

TPP = TOPS x bit length of the operation, dense, the largest over formats; performance density = TPP / mm2 of die.
Texts: 87 FR 62186 (October 2022), 88 FR 73458 (October 2023), 91 FR 1684 (15 January 2026).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from shoal.cost.hardware import BITS, Device
from shoal.errors import UsageError

VERSIONS = ("2022-10", "2023-10", "2026-01")
ADVICE = "computed from the figures shown; not legal advice"


@dataclass(frozen=True)
class ExportClass:
    """`name` is "3A090.a", "3A090.b", "not 3A090" or "unknown"; `why` names the test that decided."""

    version: str
    name: str
    tpp: float | None
    tpp_format: str
    performance_density: float | None
    why: str
    review: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"class": self.name, **dataclasses.asdict(self), "note": ADVICE}


def total_processing_performance(device: Device) -> tuple[float | None, str]:
    """(TPP, the format that gives it). The rule counts 8-bit integers and fp8 alike."""
    found = {name: tera * BITS[name] for name, tera in device.peak.items()}
    best = max(found, key=lambda name: found[name], default="")
    return (found[best] if best else None), best


def classify(device: Device, version: str = VERSIONS[-1]) -> ExportClass:
    """The class under one version of the rule. What depends on a figure that is not known is "unknown"."""
    if version not in VERSIONS:
        raise UsageError(f"no export rule of {version!r}", hint=f"There are {', '.join(VERSIONS)}.")
    tpp, fmt = total_processing_performance(device)
    density = None if tpp is None or device.die_mm2 is None else tpp / device.die_mm2

    def result(name: str, why: str, review: str = "") -> ExportClass:
        return ExportClass(version, name, tpp, fmt, density, why, review)

    if tpp is None:
        return result("unknown", "its peak is not known")
    if version == "2022-10":
        return result(*_of_2022(device, tpp))
    name, why = _of_2023(device, tpp, density)
    review = ""
    if version == "2026-01" and name == "3A090.a":
        bandwidth = device.memory_gb_per_second
        if bandwidth is None:
            review = "review: memory bandwidth not known"
        elif tpp < 21000 and bandwidth < 6500:
            review = "case-by-case review (TPP < 21,000 and memory < 6,500 GB/s; other conditions apply)"
        else:
            review = "presumption of denial for China and Macau"
    return result(name, why, review)


def _of_2022(device: Device, tpp: float) -> tuple[str, str]:
    """Both at once: TPP of 4,800 and 600 GB/s to other chips; the second is why A800 and H800 were made."""
    link = device.link_gb_per_second
    if tpp < 4800:
        return "not 3A090", f"TPP {tpp:,.0f} < 4,800"
    if link is None:
        return "unknown", f"TPP {tpp:,.0f} >= 4,800; its link is not known"
    if link < 600:
        return "not 3A090", f"link {link:,.0f} GB/s < 600"
    return "3A090.a", f"TPP {tpp:,.0f} >= 4,800 and link {link:,.0f} GB/s >= 600"


def _of_2023(device: Device, tpp: float, density: float | None) -> tuple[str, str]:
    """The link no longer counts; small dense dies do. Chips not for data centres are in it from TPP 4,800 only."""
    if tpp >= 4800:
        return "3A090.a", f"TPP {tpp:,.0f} >= 4,800"
    if tpp < 1600:
        return "not 3A090", f"TPP {tpp:,.0f} < 1,600"
    if not device.datacenter:
        return "not 3A090", f"not sold for data centres and TPP {tpp:,.0f} < 4,800"
    if density is None:
        return "unknown", f"TPP {tpp:,.0f} is between 1,600 and 4,800; its die area is not known"
    if density >= 5.92:
        return "3A090.a", f"TPP {tpp:,.0f} >= 1,600 and density {density:.2f} >= 5.92"
    if density >= 3.2:
        return "3A090.b", f"TPP {tpp:,.0f} >= 1,600 and 3.2 <= density {density:.2f} < 5.92"
    if tpp >= 2400 and density >= 1.6:
        return "3A090.b", f"2,400 <= TPP {tpp:,.0f} < 4,800 and 1.6 <= density {density:.2f} < 5.92"
    return "not 3A090", f"TPP {tpp:,.0f}, density {density:.2f}: below both tests of 3A090.b"
