"""`shoal cost`: what a model costs on which hardware, how good such figures are, what this machine does."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.cost.hardware import Device
    from shoal.cost.planner import Job, Plan
    from shoal.model.config import ModelConfig

app = typer.Typer(
    help="Plan what training or serving a model costs, compare hardware, check the planner, measure here.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MODEL = typer.Argument(
    None, metavar="[MODEL]", help="A known shape (deepseek-v3, ...), installed model, path or hub name."
)
SET = typer.Option(
    [], "--set", metavar="KEY=VALUE", help="A key of config.json, over MODEL's or for a shape of its own."
)
KIND = typer.Option("pretrain", help="pretrain, extend (context), sft, lora, grpo, distill or serve.")
TOKENS = typer.Option(None, metavar="N", help="Tokens to train on: 14.8T, 300G, 2e9.")
BUDGET = typer.Option(None, metavar="SUM", help="Money instead of tokens: 100USD, 15000JPY, 700CNY.")
HOURS = typer.Option(None, help="Wall-clock hours instead of tokens.")
FLOPS = typer.Option(None, metavar="N", help="FLOPs instead of tokens: 1e21.")
SEQUENCE = typer.Option(4096, help="Tokens of a row.")
COUNT = typer.Option(1, help="How many devices.")
STACK = typer.Option(
    "generic", help="tuned: fused kernels and overlap made for such runs; generic: a general library."
)
UTILISATION = typer.Option(None, help="Share of the 16-bit peak, instead of the class's.")
LIKE = typer.Option("", metavar="RUN", help="Take the utilisation of this published run.")
LAYOUT = typer.Option(
    "", metavar="tp1,pp16,ep64,zero1", help="Tensor, pipeline, expert parallel; none, zero1, fsdp or hybrid."
)
RECOMPUTE = typer.Option("none", help="Activations done again: none, selective (as DeepSeek-V3) or full.")
STATES = typer.Option("mixed", help="Bytes per weight: mixed, mixed-bf16-moments, fp32 or fp32-muon.")
STEP = typer.Option(None, metavar="N", help="Tokens of one step, over all devices.")
MICRO = typer.Option(None, metavar="N", help="Tokens of one micro-batch on one device; default one row.")
MTP = typer.Option(False, "--mtp", help="Count the multi-token prediction modules too.")
MUON = typer.Option(False, "--muon", help="Count Muon's products too.")
RANK = typer.Option(16, "--lora-rank", help="Rank of the adapters.")
DILOCO = typer.Option(
    0, "--diloco", help="Exchange weights once in so many steps (DiLoCo) instead of gradients."
)
NETWORK = typer.Option(0.0, metavar="GB/S", help="Link of a device to other nodes; default 50, desks 1.25.")
PRICE = typer.Option(None, metavar="USD", help="Rent of a device-hour; needs --price-date.")
PRICE_DATE = typer.Option("", metavar="YYYY-MM-DD", help="The day of that price.")
TEACHER = typer.Option(None, metavar="MODEL", help="distill: the teacher.")
PROMPTS = typer.Option(0, help="grpo: in all; serve: a day.")
SAMPLES = typer.Option(8, help="grpo: answers per prompt.")
PROMPT_TOKENS = typer.Option(512, help="grpo, serve: tokens of a prompt.")
ANSWER_TOKENS = typer.Option(512, help="grpo, serve: tokens of an answer.")
CACHED = typer.Option(0.0, help="serve: share of the prompt that the prefix cache answers.")
SPEED = typer.Option(10.0, help="serve: tokens per second that each reader is to get.")
BITS = typer.Option(16.0, help="serve, teacher: bits per weight.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON object on stdout.")

_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15}


def number(text: str, what: str) -> float:
    """`14.8T`, `300G`, `2e9` as a number."""
    found = re.fullmatch(r"\s*(-?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kmgbtpKMGBTP]?)\s*", text)
    try:
        return float(found[1]) * _SIZES[found[2].lower()] if found else float("x")
    except ValueError:
        raise UsageError(f"{what}: {text!r} is no number", hint="Write 14.8T, 300G, 2e9 or 1000.") from None


def at_least_one(text: str | None, what: str) -> float:
    """The number, 0 where nothing was asked."""
    value = number(text, what) if text else 0.0
    if text and value < 1:
        raise UsageError(f"{what} must be at least 1, it is {text}", hint="Leave it out for the default.")
    return value


def dollars(text: str) -> float:
    """`100USD`, `15000 JPY`, `700CNY` (plain: dollars) in dollars, at the catalogue's dated rate."""
    from shoal.cost.hardware import catalogue

    found = re.fullmatch(r"\s*([0-9.eEkKmMbBtTgG+-]+?)\s*([A-Za-z]{3})?\s*", text)
    if not found:
        raise UsageError(f"--budget: {text!r} is no sum of money", hint="Write 100USD, 15000JPY or 5.576M.")
    return number(found[1], "--budget") / catalogue().money(1.0, (found[2] or "USD").upper())


def read_config(model: str | None, changes: list[str]) -> tuple[str, ModelConfig]:
    """The shape meant: a known one, a model's own configuration, or keys alone. Weights are never fetched."""
    from shoal.cost.runs import known_model, model_names
    from shoal.model.config import ModelConfig

    values: dict[str, Any] = {}
    if model in model_names():
        config = known_model(str(model))
    elif model:
        config = _config_of(model)
    elif not changes:
        raise UsageError(
            "no model given",
            hint=f"Name one ({', '.join(model_names()[:4])}, ...), a path, or a shape: --set hidden_size=768 ...",
        )
    if model:
        values = config.to_dict()
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UsageError(f"--set {change!r} has no value", hint="Write --set num_hidden_layers=12.")
        known = [entry.name for entry in fields(ModelConfig)]
        if key.strip() not in known:
            near = difflib.get_close_matches(key.strip(), known, n=3)
            raise UsageError(
                f"--set: {key!r} is no key of config.json that Shoal reads",
                hint=f"Nearest: {', '.join(near or known)}.",
            )
        try:
            values[key.strip()] = json.loads(text)
        except ValueError:
            values[key.strip()] = text.strip()
    if not changes:
        return str(model), config
    values.setdefault("model_type", "deepseek_v3" if "kv_lora_rank" in values else "llama")
    values.setdefault("max_position_embeddings", 4096)
    return model or "own shape", ModelConfig.from_dict(values)


def _config_of(model: str) -> ModelConfig:
    from shoal.cost.runs import model_names
    from shoal.model import registry
    from shoal.model.checkpoint import hub, load
    from shoal.model.config import ModelConfig

    path, names = Path(model).expanduser(), model_names()
    if path.is_file() and path.suffix == ".json":
        return ModelConfig.from_file(path)
    if not path.exists() and registry.find(model) is None:
        if hub.is_hub_name(model):  # the configuration alone: planning needs no weights
            return ModelConfig.from_folder(hub.download(model, config_only=True))
        raise UsageError(
            f"no model {model!r}: neither a known shape nor an installed model nor a path",
            hint=f"Nearest: {', '.join(difflib.get_close_matches(model, names, cutoff=0.5) or names)}.",
        )
    return load.read_config(load.resolve(model))


def _layout(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in filter(None, re.split(r"[,\s]+", text)):
        found = re.fullmatch(r"(tp|pp|ep)(\d+)", word)
        if found:
            values[found[1]] = int(found[2])
        elif word in ("none", "zero1", "fsdp", "hybrid"):
            values["sharding"] = word
        else:
            raise UsageError(f"--layout: cannot use {word!r}", hint="For example --layout pp16,ep64,zero1.")
    return values


def make_job(options: dict[str, Any], device: Device) -> Job:
    """A job from the command's options, checked for what the planner itself cannot see."""
    from shoal.cost.planner import Job

    teacher = options["teacher"]
    name, config = read_config(options["model"], options["changes"])
    values: dict[str, Any] = {
        "config": config,
        "device": device,
        "model": name,
        "tokens": number(options["tokens"], "--tokens") if options["tokens"] else None,
        "budget_usd": dollars(options["budget"]) if options["budget"] else None,
        "budget_flops": number(options["flops"], "--flops") if options["flops"] else None,
        "tokens_per_step": at_least_one(options["step"], "--step"),
        "micro_tokens": int(at_least_one(options["micro"], "--micro")),
        "teacher": read_config(teacher, [])[1] if teacher else None,
        **_layout(options["layout"]),
    }
    same = (
        "kind count sequence stack utilisation like recompute states mtp muon lora_rank diloco_steps budget_hours "
        "network_gb_per_second usd_per_hour price_date prompts samples prompt_tokens answer_tokens cached_share "
        "tokens_per_second weight_bits"
    )
    return Job(**values, **{key: options[key] for key in same.split()})


@app.command("plan")
def plan_command(
    model: str | None = MODEL,
    changes: list[str] = SET,
    device: str = typer.Option("h100", help="A device of the catalogue (shoal cost compare lists them)."),
    kind: str = KIND,
    tokens: str | None = TOKENS,
    budget: str | None = BUDGET,
    hours: float | None = HOURS,
    flops: str | None = FLOPS,
    sequence: int = SEQUENCE,
    count: int = COUNT,
    stack: str = STACK,
    utilisation: float | None = UTILISATION,
    like: str = LIKE,
    layout: str = LAYOUT,
    recompute: str = RECOMPUTE,
    states: str = STATES,
    step: str | None = STEP,
    micro: str | None = MICRO,
    mtp: bool = MTP,
    muon: bool = MUON,
    lora_rank: int = RANK,
    diloco: int = DILOCO,
    network: float = NETWORK,
    price: float | None = PRICE,
    price_date: str = PRICE_DATE,
    teacher: str | None = TEACHER,
    prompts: int = PROMPTS,
    samples: int = SAMPLES,
    prompt_tokens: int = PROMPT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    cached: float = CACHED,
    speed: float = SPEED,
    bits: float = BITS,
    explain: bool = typer.Option(False, "--explain", help="Print the working, step by step."),
    as_json: bool = AS_JSON,
) -> None:
    """Plan a job: FLOPs, memory, traffic, time with a range, energy and money with their dates, and what limits it.

    One of --tokens, --budget, --hours and --flops is given (grpo and serve take --prompts); the rest follows. Every
    figure is of the final run only. docs/cost.md says how each is made.

    Examples:

      shoal cost plan deepseek-v3 --tokens 14.8T --device h800 --count 2048 --stack tuned --explain

      shoal cost plan llama-3.1-8b --kind lora --tokens 10M

      shoal cost plan smollm2-135m --set num_hidden_layers=12 --budget 15000JPY --device rtx5090

      shoal cost plan nano --tokens 8.5M --sequence 512 --device here

      shoal cost plan deepseek-v3 --kind serve --prompts 1000000 --count 144 --device h800 --bits 8 --json
    """
    from shoal.cost.planner import plan

    options = dict(locals())
    options |= {
        "budget_hours": hours,
        "diloco_steps": diloco,
        "network_gb_per_second": network,
        "usd_per_hour": price,
        "cached_share": cached,
        "tokens_per_second": speed,
        "weight_bits": bits,
    }
    job = make_job(options, _device(device))
    if device == "here":
        job = at_home(job)
    made = plan(job)
    typer.echo(json.dumps(made.to_dict(), ensure_ascii=False) if as_json else page(made, explain))


def _device(name: str) -> Device:
    from shoal.cost.calibration import here
    from shoal.cost.hardware import catalogue

    return here().device_row() if name == "here" else catalogue().get(name)


def at_home(job: Job) -> Job:
    """The job with this machine's measured utilisation, where none was asked for."""
    from dataclasses import replace

    from shoal.cost.calibration import here

    found = here()
    if job.kind == "serve":
        return replace(job, one_reader_seconds=found.one_reader_seconds(job.config, job.weight_bits))
    if job.utilisation is not None or job.like or not found.training:
        return job
    share = found.utilisation(job.config, job.sequence)
    return replace(
        job, utilisation=share, measured=f"this machine, measured {found.measured_at}", states="fp32-muon"
    )


# ---- for people


def si(value: float | None, unit: str = "") -> str:
    """`2.66 M`, `250 G`: three digits; unknown is said."""
    if value is None:
        return "unknown"
    for size, name in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(value) >= size:
            return f"{value / size:.4g} {name}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} s"
    if hours < 2:
        return f"{hours * 60:.3g} min"
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:.3g} days"


def page(p: Plan, explain: bool = False) -> str:
    """The plan as people read it."""
    values = p.to_dict()
    rows: list[tuple[str, str]] = [
        ("model", f"{p.model}: {si(p.parameters)} weights, {si(p.parameters_active)} active"),
        (
            "job",
            f"{p.kind} on {p.count} x {p.device}, {si(p.tokens)} tokens" + (" a day" if p.serving else ""),
        ),
        ("FLOPs", f"{si(p.flops, 'FLOP')}; per token {_parts(p.flops_per_token, 'FLOP')}"),
    ]
    if p.utilisation:
        u = p.utilisation
        rows.append(("peak share", f"{u['value']:.1%} ({u['low']:.1%} to {u['high']:.1%}): {u['class']}, from "
                     f"{', '.join(u['rows'])}"))  # fmt: skip
    rows.append(("memory", f"{si(p.memory_total, 'B')} per device: {_parts(p.memory, 'B')}"))
    if p.activations:
        rows.append(("activations", f"done again {_parts(p.activations, 'B')}"))
    if p.memory_device is not None:
        rows.append(("fits", f"{'yes' if p.fits else 'NO'}, a device has {si(p.memory_device, 'B')}"))
    if p.communication:
        link = f"; {p.communication_seconds:.3g} s beside {p.step_seconds:.3g} s of work in a step"
        link += f"; pipeline bubble {p.bubble:.1%}" if p.bubble else ""
        rows.append(("traffic", f"{_parts(p.communication, 'B')} per device and step{link}"))
    if p.serving:
        s = p.serving
        rows.append(("one reader", f"{s['one_reader_tokens_per_second']:.4g} tokens/s"))
        speed = f"{s['tokens_per_second']:,.0f} tokens/s; first token after {s['first_token_seconds']:.2g} s"
        rows.append(
            ("service", f"{s['machines']:.0f} machine(s), each {s['readers']:.0f} readers at once, {speed}")
        )
    else:
        span = f"{duration(p.hours_low)} to {duration(p.hours_high)}"
        rows.append(("time", f"{duration(p.hours)} ({span}), {p.device_hours:,.4g} device-hours"))
    rows.append(("energy", "unknown" if p.kwh is None else f"{p.kwh:,.4g} kWh at the boards, no cooling"))
    if p.usd is None:
        rows.append(("money", "unknown: no rent and no power of this device are known"))
    else:
        sums = ", ".join(f"{amount:,.4g} {code}" for code, amount in values["money"].items())
        span = "" if p.serving else f" ({p.usd_low:,.4g} to {p.usd_high:,.4g} USD)"
        rows += [
            ("money", f"{sums}{span}" + (" a day" if p.serving else "")),
            ("price", f"{p.price['usd_per_hour']:.4g} USD per device-hour, {p.price['basis']}, {p.price['date']}: "
             f"{p.price['source']}; currencies of {values['currency_date']}"),
        ]  # fmt: skip
        if p.serving:
            rows.append(("per token", f"{p.serving['usd_per_million_out']:.3g} USD per million tokens out, "
                         f"{p.serving['usd_per_million_in']:.3g} in, while busy"))  # fmt: skip
    rows.append(("limit", p.limit))
    if p.smallest:
        least = ", ".join(f"{m['count']} x {m['name']}" for m in p.smallest[:3])
        rows.append(("smallest", f"{least} would hold it"))
    for s in p.suggestions:
        rows.append(("for these FLOPs", f"{s['tokens_per_weight']:.0f} tokens per weight: {si(s['weights'])} weights, "
                     f"{si(s['tokens'])} tokens"))  # fmt: skip
    rows += [("note", note) for note in p.notes]
    rows.append(("not in it", p.left_out))
    lines = [f"{name:<16}{text}" for name, text in rows]
    if explain:
        lines += ["", "the working", *(f"  {i}. {step}" for i, step in enumerate(p.steps, 1))]
    return "\n".join(lines)


def _parts(parts: dict[str, float], unit: str) -> str:
    return ", ".join(f"{name} {si(value, unit)}" for name, value in parts.items())


@app.command("compare")
def compare_command(
    model: str | None = MODEL,
    changes: list[str] = SET,
    devices: str = typer.Option("", help="Catalogue keys with commas; default all that have a peak."),
    kind: str = KIND,
    tokens: str | None = TOKENS,
    budget: str | None = BUDGET,
    hours: float | None = HOURS,
    flops: str | None = FLOPS,
    sequence: int = SEQUENCE,
    count: int = COUNT,
    stack: str = STACK,
    utilisation: float | None = UTILISATION,
    like: str = LIKE,
    layout: str = LAYOUT,
    recompute: str = RECOMPUTE,
    states: str = STATES,
    step: str | None = STEP,
    micro: str | None = MICRO,
    mtp: bool = MTP,
    network: float = NETWORK,
    teacher: str | None = TEACHER,
    prompts: int = PROMPTS,
    prompt_tokens: int = PROMPT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    speed: float = SPEED,
    bits: float = BITS,
    rule: str = typer.Option("2026-01", help="Export rule: 2022-10, 2023-10 or 2026-01."),
    as_json: bool = AS_JSON,
) -> None:
    """Put the same job on many devices: time, money, energy, memory, link - and what the export rules say of each.

    Without a model: the catalogue with the rule's figures. The export class is computed from performance, die area and
    link by the rule's text; it is not legal advice.

    Examples:

      shoal cost compare

      shoal cost compare deepseek-v3 --tokens 14.8T --count 2048 --stack tuned --devices h100,h800,h20,a100,ascend910c

      shoal cost compare smollm2-135m --tokens 2.7G --rule 2022-10 --json
    """
    from shoal.cost.export_rule import classify
    from shoal.cost.hardware import catalogue
    from shoal.cost.planner import compare

    options = dict(locals())
    options |= {
        "budget_hours": hours, "diloco_steps": 0, "network_gb_per_second": network, "usd_per_hour": None,
        "price_date": "", "cached_share": 0.0, "tokens_per_second": speed, "weight_bits": bits, "muon": False,
        "lora_rank": 16, "samples": 8,
    }  # fmt: skip
    keys = [key.strip() for key in devices.split(",") if key.strip()]
    chosen = [catalogue().get(key) for key in keys] or [d for d in catalogue().devices if d.dense_flops]
    exports = {device.key: classify(device, rule).to_dict() for device in chosen}
    rows: list[dict[str, Any]] = [{"device": d.key, "name": d.title} for d in chosen]
    if model or changes:
        rows = compare(make_job(options, chosen[0]), chosen)
    for row in rows:
        row["export"] = exports[row["device"]]
    if as_json:
        typer.echo(json.dumps({"rule": rule, "rows": rows, "not_legal_advice": True}, ensure_ascii=False))
        return
    typer.echo(
        _catalogue_page(chosen, exports) if not (model or changes) else _comparison(rows, kind == "serve")
    )
    typer.echo(
        f"export class by the rule of {rule}, computed from TPP, PD (performance density) and link; not legal advice"
    )


def _catalogue_page(devices: list[Device], exports: dict[str, dict[str, Any]]) -> str:
    heads = f"{'16-bit TF':>10}{'GB':>6}{'GB/s':>7}{'link':>6}{'W':>6}{'USD/h':>7} {'of':<11}{'TPP':>8}{'PD':>6}  class"
    lines = [f"{'key':<12}{'name':<32}{heads}"]
    for d in devices:
        e, flops = exports[d.key], d.dense_flops
        figures = ((flops and flops / 1e12, 10), (d.memory_gb, 6), (d.memory_gb_per_second, 7),
                   (d.link_gb_per_second, 6), (d.power, 6))  # fmt: skip
        cells = "".join(_cell(value, width) for value, width in figures)
        rule = f"{_cell(e['tpp'], 8)}{_cell(e['performance_density'], 6, 1)}  {e['class']}"
        lines.append(f"{d.key:<12}{d.title[:31]:<32}{cells}{_cell(d.usd_per_hour, 7, 2)} {d.date:<11}{rule}")
    return "\n".join(lines)


def _cell(value: float | None, width: int, digits: int = 0) -> str:
    return f"{'?' if value is None else f'{value:,.{digits}f}':>{width}}"


def _comparison(rows: list[dict[str, Any]], serving: bool) -> str:
    """A table, the quickest (serving: the cheapest) first, with a bar that is cut at 24 times the first."""

    def measure(row: dict[str, Any]) -> float:
        return float("inf") if "problem" in row else (row["device_hours"] if serving else row["hours"])

    rows = sorted(rows, key=measure)
    first = measure(rows[0]) if rows else 1.0
    title = "machines" if serving else "time"
    lines = [
        f"{'device':<32}{title:>12}{'money':>12} {'price':<12}{'energy':>10} {'memory':<13}{'link':<6}{'class':<11}"
    ]
    for row in rows:
        if "problem" in row:
            lines.append(f"{row['name'][:31]:<32}{row['problem']}")
            continue
        fit = {True: "fits", False: "does not fit", None: "unknown"}[row["fits"]]
        link = {True: "bound", False: "ok", None: "-"}[row["link_bound"]]
        what = f"{row['serving']['machines']:.0f}" if serving else duration(row["hours"])
        bar = measure(row) / first
        usd = "?" if row["usd"] is None else f"${si(row['usd'])}"
        kwh = "?" if row["kwh"] is None else f"{si(row['kwh'] * 1e3)}Wh"
        lines.append(
            f"{row['name'][:31]:<32}{what:>12}{usd:>12} {row['price']['basis']:<12}{kwh:>10} {fit:<13}{link:<6}"
            f"{row['export']['class']:<11}{'#' * min(24, round(bar))}{'>' if bar > 24 else ''}"
        )
    return "\n".join(lines)


@app.command("validate")
def validate_command(
    run: str | None = typer.Argument(
        None,
        metavar="[RUN]",
        help="A run folder or checkpoint: its receipts beside what is planned for them.",
    ),
    as_json: bool = AS_JSON,
) -> None:
    """Hold the planner against published runs, misses and their reasons included, or against a finished run's receipts.

    Classes of utilisation come from calibration rows alone, by a written rule; validation rows are only compared.

    Examples:

      shoal cost validate

      shoal cost validate runs/nano --json
    """
    if run is not None:
        _validate_receipts(run, as_json)
        return
    from shoal.cost import runs

    found = runs.validate()
    day = runs.serving_day()
    if as_json:
        typer.echo(json.dumps({**found, "serving_day": day}, ensure_ascii=False))
        return
    typer.echo(found["rule"] + "\n")
    for name, c in found["classes"].items():
        typer.echo(f"{name:<15}{c['utilisation']:6.1%}  {', '.join(c['rows'])}")
    typer.echo(
        f"\n{'run':<17}{'class':<13}{'GFLOP/token':>12}{'published h':>13}{'predicted h':>13}{'off':>7}  source"
    )
    for row in found["rows"]:
        typer.echo(
            f"{row['run']:<17}{row['class']:<13}{row['flops_per_token'] / 1e9:12.4g}{row['published_hours']:13,.5g}"
            f"{row['predicted_hours']:13,.5g}{row['ratio'] - 1:+7.0%}  [{row['evidence']}] {row['source']}"
        )
        if "predecessor" in row:
            hours, off = row["predicted_hours_by_predecessor"], row["ratio_by_predecessor"] - 1
            typer.echo(f"{'':<17}as {row['predecessor']}{hours:>34,.5g}{off:+7.1%}")
        if row["reason"]:
            typer.echo(f"{'':<17}why: {row['reason']}")
    typer.echo(
        f"\nmedian |error| of {found['rows_with_a_source_seen']} rows whose source was seen (V, S): "
        f"{found['median_absolute_error']:.0%}; {found['inside_range']} of them lie inside the range a plan gives"
    )
    typer.echo(
        f"serving, DeepSeek's own day (calibration): {day['usd_per_million_out']:.3f} USD per million tokens out, "
        f"{day['usd_per_million_in']:.3f} in; {day['nodes_from_rates']:.1f} nodes follow from its rates, it says "
        f"{day['nodes_published']}; {day['decode']:.1%} and {day['prefill']:.1%} of the 16-bit peak"
    )


def _validate_receipts(run: str, as_json: bool) -> None:
    from shoal.cost.receipt import Receipt
    from shoal.cost.replay import beside_receipts
    from shoal.model.checkpoint import load

    path = Path(run)
    if (path / "checkpoint" / "config.json").is_file():
        path = path / "checkpoint"
    path = load.resolve(run) if not path.exists() else path
    receipt = load.read_side_files(path).receipt
    if receipt is None:
        raise ShoalError(
            f"{path} has no receipt.json", hint="Only what `shoal train` or `shoal tune` made has one."
        )
    rows = beside_receipts(Receipt.from_dict(receipt), load.read_config(path))
    if as_json:
        typer.echo(json.dumps({"rows": rows}, ensure_ascii=False))
        return
    typer.echo(f"{'stage':<12}{'part':<10}{'receipt':>14}{'planned':>14}{'off':>8}")
    for row in rows:
        for part, (real, planned) in row["parts"].items():
            off = f"{planned / real - 1:+.1%}" if real and planned else "?"
            typer.echo(f"{row['kind']:<12}{part:<10}{si(real):>14}{si(planned):>14}{off:>8}")
        typer.echo(f"{'':<12}{row['basis']}")


@app.command("calibrate")
def calibrate_command(
    device: str = typer.Option("auto", help="cpu, cuda, mps; auto: the first there is of cuda, mps, cpu."),
    seconds: float = typer.Option(20.0, min=3.0, help="Time to spend."),
    as_json: bool = AS_JSON,
) -> None:
    """Measure this machine for 20 seconds: peak by dtype, memory reads and, on CPUs, the trainer and the engine.

    The result is this machine's row of the catalogue: `--device here` plans with it. Do it on a quiet machine.

    Examples:

      shoal cost calibrate

      shoal cost calibrate --device cuda --json
    """
    import sys
    from dataclasses import asdict

    from shoal.cli.calibrate import calibrate
    from shoal.train.machine import choose_device

    found = calibrate(choose_device(device), seconds, lambda text: print(text, file=sys.stderr))
    found.save()
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"{found.device}, {found.threads} threads, {found.memory_bytes / 1e9:.3g} GB")
    for name, rate in found.peak.items():
        typer.echo(f"  {f'matrix product, {name}':<34}{rate / 1e9:10.1f} GFLOP/s")
    typer.echo(f"  {'memory, reading':<34}{found.read_bytes_per_second / 1e9:10.1f} GB/s")
    for kind, points in (found.training or {}).items():
        for width, share in points:
            typer.echo(
                f"  {f'training, {kind}, width {width:.0f}':<34}{share:10.1%} of the {found.training_dtype} peak"
            )
    for d in found.decoding:
        for kind, (layer, weight) in (("dense", d.dense), ("mixture", d.moe)):
            costs = f"{layer * 1e6:10.1f} us a layer, {weight * 1e12:.0f} us a million weights"
            typer.echo(f"  {f'answering, {d.dtype}, {kind}':<34}{costs}")
    if found.busy:
        typer.echo("other programs were at work: these figures are too low; measure again on a quiet machine")
