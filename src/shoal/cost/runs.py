"""Published runs and what follows from them: utilisation classes by a written rule, and how far predictions are off."""

from __future__ import annotations

import functools
import statistics
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shoal.model.counts as counts
from shoal.cost.formulas import mean_context
from shoal.cost.hardware import catalogue
from shoal.errors import UsageError
from shoal.model.config import ModelConfig

RULE = """\
1. on one device, below 17 million active     -> one-device-tiny   (nearer to 4 than to 69 million)
2. on one device                              -> one-device
3. routed experts                             -> moe
4. 20 billion active weights and more         -> dense-large
5. below that, a tuned stack                  -> dense
6. a general library, 1 billion and more      -> generic
7. a general library, below 1 billion         -> generic-small
A CPU that was not calibrated                 -> cpu
FP8 is planned as 16-bit: no calibration row trained in it. A class is the mean of its calibration rows."""

WIDTH = 0.3
"""A plan's range: utilisation 30% below to 30% above its class. A stated width, not a fit to validation rows."""

# Where no published run lies: one dense transformer of 30M weights, PyTorch eager, fp32, timed beside ours.
CPU_UTILISATION = 0.33


@dataclass(frozen=True)
class Run:
    """One row of runs.toml; `hours` are device-hours."""

    key: str
    model: str
    tokens: float
    sequence: int
    device: str
    devices: int
    hours: float
    stack: str
    precision: str
    use: str
    evidence: str
    source: str
    window: int = 0
    window_share: float = 0.0
    moe: bool = False
    predecessor: str = ""
    reason: str = ""

    @property
    def config(self) -> ModelConfig:
        return known_model(self.model)

    @property
    def flops_per_token(self) -> float:
        context = mean_context(self.sequence, self.window, self.window_share)
        return counts.flops_per_token(self.config, context, training=True)

    @property
    def peak(self) -> float:
        peak = catalogue().get(self.device).dense_flops
        assert peak is not None, self.device
        return peak

    @property
    def utilisation(self) -> float:
        """FLOPs of the network over FLOPs possible in the published hours, pauses included."""
        return self.tokens * self.flops_per_token / (self.hours * 3600 * self.peak)

    def predicted_hours(self, utilisation: float) -> float:
        return self.tokens * self.flops_per_token / (self.peak * utilisation * 3600)


@dataclass(frozen=True)
class UtilisationClass:
    """Model FLOP utilisation to plan with. `rows` are the runs it is the mean of."""

    name: str
    value: float
    rows: tuple[str, ...]
    low: float = field(default=0.0)
    high: float = field(default=0.0)

    @staticmethod
    def of(name: str, value: float, rows: tuple[str, ...]) -> UtilisationClass:
        return UtilisationClass(name, value, rows, value * (1 - WIDTH), min(value * (1 + WIDTH), 1.0))


@functools.cache
def _models() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("runs.toml").read_text(encoding="utf-8"))


def model_names() -> list[str]:
    return list(_models())


@functools.cache
def known_model(name: str) -> ModelConfig:
    """A shape of models.toml. Raises UsageError for a name it does not have."""
    if name not in _models():
        raise UsageError(f"no known shape {name!r}", hint=f"There are {', '.join(_models())}.")
    return ModelConfig.from_dict(_models()[name]["config"])


@functools.cache
def runs() -> dict[str, Run]:
    return {key: Run(key=key, **row) for key, row in _data()["run"].items()}


def class_name(active: float, *, moe: bool, devices: int, stack: str) -> str:
    """The rule, on facts that are known before a run. devices 0: many, not said how many."""
    if devices == 1:
        return "one-device" if active >= 17e6 else "one-device-tiny"
    if moe:
        return "moe"
    if active >= 20e9:
        return "dense-large"
    if stack == "tuned":
        return "dense"
    return "generic" if active >= 1e9 else "generic-small"


def _class_of_run(run: Run) -> str:
    moe = run.moe or bool(run.config.n_routed_experts)
    active = counts.parameters_active(run.config)
    return class_name(active, moe=moe, devices=run.devices, stack=run.stack)


def classes(table: dict[str, Run] | None = None) -> dict[str, UtilisationClass]:
    """Every class, from calibration rows alone."""
    members: dict[str, list[Run]] = {}
    for run in (table or runs()).values():
        if run.use == "calibration":
            members.setdefault(_class_of_run(run), []).append(run)
    found = {
        name: UtilisationClass.of(
            name, statistics.fmean(r.utilisation for r in rows), tuple(r.key for r in rows)
        )
        for name, rows in members.items()
    }
    found["cpu"] = UtilisationClass.of(
        "cpu", CPU_UTILISATION, ("transformers, eager, 2 cores, measured here",)
    )
    return found


def validate() -> dict[str, Any]:
    """Predicted over published hours of every validation row, by its class and (if it has one) by its predecessor."""
    rows = []
    table, known = runs(), classes()
    for run in table.values():
        if run.use != "validation":
            continue
        chosen = known[_class_of_run(run)]
        ratio = run.predicted_hours(chosen.value) / run.hours
        row: dict[str, Any] = {
            "run": run.key,
            "class": chosen.name,
            "flops_per_token": run.flops_per_token,
            "published_hours": run.hours,
            "predicted_hours": run.predicted_hours(chosen.value),
            "ratio": ratio,
            "utilisation": run.utilisation,
            "evidence": run.evidence,
            "source": run.source,
            "reason": run.reason if abs(ratio - 1) > 0.3 else "",
            "inside_range": chosen.low <= run.utilisation <= chosen.high,
        }
        if run.predecessor:
            before = table[run.predecessor]
            row["predecessor"] = before.key
            row["predicted_hours_by_predecessor"] = run.predicted_hours(before.utilisation)
            row["ratio_by_predecessor"] = run.predicted_hours(before.utilisation) / run.hours
        rows.append(row)
    seen = [row for row in rows if row["evidence"] in "VS"]
    return {
        "rows": rows,
        "classes": {
            name: {"utilisation": c.value, "low": c.low, "high": c.high, "rows": list(c.rows)}
            for name, c in known.items()
        },
        "rule": RULE,
        "rows_with_a_source_seen": len(seen),
        "median_absolute_error": statistics.median(abs(row["ratio"] - 1) for row in seen),
        "inside_range": sum(row["inside_range"] for row in seen),
    }


def serving_day() -> dict[str, float]:
    """DeepSeek's published day taken apart: what its nodes reached and what a million tokens cost them.

    Calibration, not validation: `prefill` and `decode` are the shares of the 16-bit peak that its H800s reached, and
    the planner's serving times use them. Prefill counts the tokens that the cache did not answer.
    """
    day = _data()["serving"]["deepseek-2025-02"]
    c, device = known_model(day["model"]), catalogue().get(day["device"])
    peak = device.dense_flops
    assert peak is not None
    per_node, cost = day["devices_per_node"], day["devices_per_node"] * day["usd_per_hour"]
    fresh = 1 - day["tokens_in_cached"] / day["tokens_in"]
    context = day["mean_context"]
    out, read = day["node_tokens_out_per_second"], day["node_tokens_in_per_second"]
    decode = out / per_node * counts.decode_flops(c, context) / peak
    prefill = read / per_node * fresh * counts.flops_per_token(c, context, training=False) / peak
    nodes = day["tokens_out"] / (out * 86400) + day["tokens_in"] / (read * 86400)
    return {
        "usd_per_day": day["mean_nodes"] * cost * 24,
        "usd_per_million_out": cost / (out * 3600) * 1e6,
        "usd_per_million_in": cost / (read * 3600) * 1e6,
        "nodes_from_rates": nodes,
        "nodes_published": day["mean_nodes"],
        "decode": decode,
        "prefill": prefill,
    }
