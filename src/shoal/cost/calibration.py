"""What this machine was measured to do: its own row of the catalogue, and rules that carry it to other networks.

`shoal cost calibrate` writes it (`$SHOAL_HOME/calibration.json`): the peak of products by dtype and of memory reads
(ops/probe.py), steps of the real trainer on three reference networks, answers of the real engine on four. None of
them is a network that people plan for, so that a plan for those is a prediction.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass, field
from typing import Any

import shoal.model.counts as counts
from shoal.cost.hardware import Device, device_entry
from shoal.errors import ShoalError
from shoal.files import atomic_write_text, shoal_home
from shoal.model.config import ModelConfig

_BITS = {"int4": 4, "int8": 8, "bfloat16": 16, "float16": 16, "float32": 32}
_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Decoding:
    """A decoding step of one stream: (seconds per layer, seconds per active weight), of dense networks and mixtures."""

    dtype: str
    dense: tuple[float, float]
    moe: tuple[float, float]
    widest: float = 0.0
    """Active weights of the widest reference network."""

    def step_seconds(self, c: ModelConfig, least: float = 0.0) -> float:
        """`least`: what reading the weights takes in any case; counts beyond the widest reference, which may lie in a
        cache that a wider network does not fit into."""
        per_layer, per_weight = self.moe if c.n_routed_experts else self.dense
        weights = counts.matrices_active(c)
        return per_layer * c.num_hidden_layers + max(
            per_weight * weights, least if weights > self.widest else 0.0
        )


@dataclass(frozen=True)
class Calibration:
    """training: kind ("moe", "dense") -> [(hidden size, share of the peak), ...], with the dtype it was in.

    busy: other programs were at work, so that every figure is too low.
    """

    device: str
    threads: int
    measured_at: str
    peak: dict[str, float]
    read_bytes_per_second: float
    memory_bytes: float
    busy: bool = False
    torch_device: str = "cpu"
    training_dtype: str = ""
    training: dict[str, list[tuple[float, float]]] | None = None
    decoding: list[Decoding] = field(default_factory=list)
    reads: list[tuple[float, float]] = field(default_factory=list)
    """(bytes, bytes/s) of reading arrays of growing size again and again: caches end somewhere between them."""

    def utilisation(self, c: ModelConfig, sequence: int) -> float:
        """Share of the peak in training: between the reference widths a power law, outside the nearest of them."""
        if not self.training:
            raise ShoalError("training was not calibrated", hint="Run `shoal cost calibrate`.")
        points = self.training["moe" if c.n_routed_experts else "dense"]
        if len(points) == 1 or c.hidden_size <= points[0][0]:
            return points[0][1]
        for (low, a), (high, b) in itertools.pairwise(points):
            if c.hidden_size <= high:
                part = math.log(c.hidden_size / low) / math.log(high / low)
                return a * (b / a) ** part
        return points[-1][1]

    def one_reader_seconds(self, c: ModelConfig, weight_bits: float) -> float | None:
        """Predicted seconds of a decoding step of one reader, with weights of the nearest measured width."""
        if not self.decoding:
            return None
        found = min(self.decoding, key=lambda d: abs(_BITS.get(d.dtype, 32) - weight_bits))
        size = counts.matrices_active(c) * weight_bits / 8 * (1.125 if weight_bits <= 8 else 1)  # with scales
        rate = next((rate for most, rate in self.reads if size <= most), self.read_bytes_per_second)
        return found.step_seconds(c, least=size / rate)

    def training_peak(self) -> float:
        """FLOP/s that `utilisation` is a share of."""
        return self.peak[self.training_dtype or max(self.peak, key=lambda name: self.peak[name])]

    def step_seconds(self, c: ModelConfig, sequence: int, tokens: float) -> float:
        """Predicted seconds of one training step."""
        work = tokens * counts.flops_per_token(c, sequence, training=True)
        return work / (self.training_peak() * self.utilisation(c, sequence))

    def device_row(self) -> Device:
        """This machine as a device of the catalogue; its 16-bit peak is the dtype that training was calibrated in."""
        entry = device_entry(self.torch_device)
        peak = {_NAMES[name]: rate / 1e12 for name, rate in self.peak.items() if name in _NAMES}
        if self.training_dtype == "float32":  # faster here than its 16-bit products are: count against it
            peak = {"fp32": peak["fp32"]}
        base = entry or Device(key="here", match="", kind="gpu", source="not in the catalogue")
        return dataclasses.replace(
            base,
            key="here",
            name=f"this machine ({self.device})",
            peak=peak,
            memory_gb=self.memory_bytes / 1e9,
            memory_gb_per_second=self.read_bytes_per_second / 1e9,
            link_gb_per_second=None,
            cores=max(self.threads, 1) if base.kind == "cpu" else 1,
            specs=f"measured {self.measured_at}"
            + (", on a busy machine: figures are too low" if self.busy else ""),
        )

    def save(self) -> None:
        path = shoal_home() / "calibration.json"
        atomic_write_text(path, json.dumps(dataclasses.asdict(self), indent=1))


def load_calibration() -> Calibration | None:
    """The saved calibration; None if there is none. Raises ShoalError when the file is damaged."""
    path = shoal_home() / "calibration.json"
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values["decoding"] = [
            Decoding(**row | {"dense": tuple(row["dense"]), "moe": tuple(row["moe"])})
            for row in values.get("decoding", [])
        ]
        values["reads"] = [tuple(point) for point in values.get("reads", [])]
        if values.get("training"):
            values["training"] = {k: [tuple(p) for p in v] for k, v in values["training"].items()}
        return Calibration(**values)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ShoalError(f"{path} is damaged: {error}", hint="Run `shoal cost calibrate` again.") from error


def here() -> Calibration:
    """The calibration, or an error that says how to make one."""
    found = load_calibration()
    if found is None:
        raise ShoalError("this machine was not measured yet", hint="Run `shoal cost calibrate` (20 seconds).")
    return found


def two_costs(small: tuple[float, float, float], wide: tuple[float, float, float]) -> tuple[float, float]:
    """(seconds per layer, seconds per weight) from two networks' (layers, weights, seconds).

    A negative cost, which noise can give, becomes 0 and the other carries the wider network's time.
    """
    (a, b, s), (c, d, t) = small, wide
    whole = a * d - b * c
    if abs(whole) < 1e-9 * abs(a * d):
        raise ShoalError("the reference networks are too alike to tell their costs apart")
    per_layer, per_weight = (s * d - b * t) / whole, (a * t - s * c) / whole
    if per_layer < 0:
        return 0.0, t / d
    if per_weight < 0:
        return t / c, 0.0
    return per_layer, per_weight
