"""`report.html`: what a run did and what it cost, in one file without a script or a foreign address."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.cost.receipt import Receipt, summary
from shoal.files import atomic_write_text, read_text
from shoal.train.events import duration, read_log

PLOTS = (
    ("loss", "Loss, nats per token", False),
    ("bits_per_byte", "Bits per byte of training text", False),
    ("tokens_per_second", "Tokens per second", True),
    ("max_violation", "MaxVio: busiest expert's load / mean load - 1", True),
    ("lr_scale", "Learning rates, share of their full value", True),
    ("grad_norm", "Norm of the gradient", True),
    ("reward", "Reward", False),
    ("pass_at_1", "pass@1 of the training questions", True),
    ("level", "Level, mean of the tasks", True),
    ("completion_length", "Length of an answer, tokens", True),
    ("truncated_share", "Share of answers cut at the longest", True),
    ("entropy", "Entropy, nats per token", True),
    ("kl", "KL to the model before, nats per token", True),
    ("skipped_share", "Share of groups that taught nothing", True),
    ("logprob_difference", "Mean |log-probability difference| of sampler and trainer", True),
    ("rollout_tokens_per_second", "Tokens per second, rollouts", True),
    ("update_tokens_per_second", "Tokens per second, updates", True),
)
STAGE_NAMES = {
    "train": "pre-training",
    "sft": "fine-tuning",
    "distill": "distillation",
    "dpo": "preference tuning",
    "grpo": "reinforcement learning",
    "mtp": "draft module",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #6b7785; --line: #d6dde4; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #93a0ad; --line: #37424e; --back: #14191f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; } tr { border-bottom: 1px solid var(--line); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
figure { margin: 0; } figcaption { color: var(--soft); } pre { overflow-x: auto; font-size: 12px; }
"""


def line_plot(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    width: int = 460,
    height: int = 220,
    from_zero: bool = False,
) -> str:
    """An SVG of lines `(name, xs, ys)` over shared axes; points that are not finite are left out.

    Names become titles (shown on hover) and a legend when there are several.
    """
    colours = ("#2f7fc1", "#d9822b", "#3a9c6b", "#9b59b6")
    good = [
        (name, [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)])
        for name, xs, ys in series
    ]
    points = [point for _, line in good for point in line]
    if not points:
        return f'<svg viewBox="0 0 {width} {height}"><text x="10" y="20">no data</text></svg>'
    left, right, top, bottom = 52, 8, 18, 24
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    if from_zero:
        low_y = min(low_y, 0.0)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or abs(high_y) or 1.0

    def place(x: float, y: float) -> str:
        across = left + (x - low_x) / span_x * (width - left - right)
        down = top + (1 - (y - low_y) / span_y) * (height - top - bottom)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for step in range(5):
        value = low_y + span_y * step / 4
        down = top + (1 - step / 4) * (height - top - bottom)
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{down:.1f}" y2="{down:.1f}" stroke="var(--line)"/>'
            f'<text x="{left - 6}" y="{down + 4:.1f}" text-anchor="end">{short(value)}</text>'
        )
    for anchor, x, value in (("start", left, low_x), ("end", width - right, high_x)):
        parts.append(f'<text x="{x}" y="{height - 8}" text-anchor="{anchor}">{short(value)}</text>')
    for number, (name, line) in enumerate(good):
        colour = colours[number % len(colours)]
        path = " ".join(place(x, y) for x, y in line)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{path}">'
            f"<title>{html.escape(name)}</title></polyline>"
        )
        if len(good) > 1:
            across = left + number * 110
            parts.append(f'<text x="{across}" y="12" style="fill:{colour}">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"


def short(value: float) -> str:
    """`1.23M`, `45K`, `0.031`: a number for an axis."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Make `report.html` of a run folder from its log, recipe and the receipt of its output (default: `checkpoint/`);
    returns its place."""
    lines = read_log(folder / "log.jsonl")
    steps = [line for line in lines if "loss" in line]
    measured = {line["stage"]: line for line in lines if line.get("event") == "measured"}
    failed = [line for line in lines if line.get("event") == "failed"]
    receipt_file = (output or folder / "checkpoint") / "receipt.json"
    receipt = Receipt.from_dict(json.loads(read_text(receipt_file))) if receipt_file.exists() else None
    stages = [stage for stage in STAGE_NAMES if any(line["stage"] == stage for line in steps)]
    body = [f"<h1>{html.escape(_name(receipt, folder))}</h1>"]
    if receipt:
        body.append("<h2>What it cost</h2>" + _bill(receipt))
    if measured:
        body.append("<h2>Held-out measures</h2>" + _measures(measured))
    if failed:
        body.append("<h2>What failed</h2>" + _failures(failed))
    links = {link.kind: link.details for link in receipt.chain()} if receipt else {}
    for stage in stages:
        own = [line for line in steps if line["stage"] == stage]
        body.append(
            f"<h2>{STAGE_NAMES[stage].capitalize()}</h2><p>{_sentence(own, links.get(stage, {}))}</p>{plots(own)}"
        )
    body.append(f"<h2>Recipe</h2><pre>{html.escape(read_text(folder / 'recipe.toml'))}</pre>")
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(_name(receipt, folder))}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )
    atomic_write_text(folder / "report.html", page)
    return folder / "report.html"


def _name(receipt: Receipt | None, folder: Path) -> str:
    return str(receipt.details.get("recipe", folder.name)) if receipt else folder.name


def plots(lines: list[dict[str, Any]]) -> str:
    figures = []
    for key, title, from_zero in PLOTS:
        points = [(line["tokens"], line[key]) for line in lines if line.get(key) is not None]
        if points and any(y for _, y in points):
            xs, ys = zip(*points, strict=True)
            plot = line_plot([(title, xs, ys)], from_zero=from_zero)
            figures.append(f"<figure><figcaption>{html.escape(title)}</figcaption>{plot}</figure>")
    return f'<div class="plots">{"".join(figures)}</div>'


def _sentence(lines: list[dict[str, Any]], details: Mapping[str, Any]) -> str:
    """`details`: of the stage's receipt, {} without one."""
    last = lines[-1]
    speed = last["tokens"] / max(last["seconds"], 1e-9)
    skipped = f", {last['skipped']} steps skipped as not finite" if last.get("skipped") else ""
    if last.get("unlabelled"):
        skipped += f", {last['unlabelled']} micro-batches without anything to learn"
    padding = (
        f"; {details['padding_share']:.1%} of the positions were padding"
        if "padding_share" in details
        else ""
    )
    apart = [
        f"{key.removesuffix('_seconds')} took {duration(details[key])} more"
        for key in ("saving_seconds", "measuring_seconds")
        if key in details
    ]
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    loss = f" Loss {losses[0]:.3f} to {losses[-1]:.3f}." if losses else ""
    return (
        f"{last['step']} steps, {short(last['tokens'])} tokens in {duration(last['seconds'])} of training "
        f"({speed:.0f} real tokens per second{padding}){skipped}. {', '.join(apart).capitalize()}"
        f"{'.' if apart else ''}{loss} Horizontal axes count tokens."
    )


def _failures(lines: list[dict[str, Any]]) -> str:
    cells = [
        f"<tr><th>{html.escape(STAGE_NAMES[line['stage']])}</th><td>{html.escape(line['what'])}</td>"
        f"<td>{html.escape(line['error'])}</td></tr>"
        for line in lines
    ]
    return f"<table>{''.join(cells)}</table>"


def _bill(receipt: Receipt) -> str:
    rows = [
        f"<tr><th>{html.escape(STAGE_NAMES.get(link.kind, link.kind))}</th><td>{html.escape(summary(link))}</td></tr>"
        for link in reversed(receipt.chain())
    ]
    total = receipt.total_usd
    note = html.escape(f"{receipt.price_note}; prices of {receipt.price_date}") if receipt.price_date else ""
    price = "unknown" if total is None else f"${total:.4g}"
    return (
        f"<table>{''.join(rows)}<tr><th>together</th><td>{price}</td></tr></table><p>{note}. "
        f"Energy is {html.escape(receipt.energy_source)}.</p>"
    )


def _measures(measured: dict[str, dict[str, Any]]) -> str:
    rows = []
    for stage, line in measured.items():
        for key, value in line.items():
            if key not in ("stage", "event") and value is not None:
                cells = f"<th>{html.escape(STAGE_NAMES[stage])}</th><td>{html.escape(key)}</td><td>{value:.4g}</td>"
                rows.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"
