"""The planner: a network, a job and a machine in; FLOPs, bytes, hours, energy and money out, with the working.

Every figure is of the final run only (`LEFT_OUT` says what is not in it). Time rests on a utilisation class
(`runs.py`): published runs of the same kind, or this machine's own calibration.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from dataclasses import dataclass, field
from typing import Any

import shoal.model.counts as counts
from shoal.cost import formulas, runs
from shoal.cost.formulas import NODE, Layout, Parts
from shoal.cost.hardware import Device, catalogue
from shoal.cost.runs import UtilisationClass
from shoal.errors import UsageError
from shoal.model.config import ModelConfig

KINDS = ("pretrain", "extend", "sft", "lora", "grpo", "distill", "serve")
LEFT_OUT = (
    "final run only: no failed and earlier runs, no experiments that chose the recipe, no data, no staff, no "
    "evaluation; machines rented by the hour, not bought (storage and traffic often add 30 to 50%)"
)
FULL = 0.95  # of a device's memory can be used
MEMORY_SHARE = (
    0.7  # of the data sheet's bandwidth that decoding reads at: an assumption, stated in every plan
)
DAY_SHARE = 0.8  # mean over peak load of a service (DeepSeek's day: 226.75 of 278 nodes)


@dataclass(frozen=True)
class Job:
    """What is to be done. Of tokens and the three budgets one is given; the others follow.

    budget_usd in US dollars, budget_hours of wall-clock time. `utilisation` replaces the class; `like` takes that of a
    published run. Rates in GB/s per device and direction.
    """

    config: ModelConfig
    device: Device
    model: str = "model"
    kind: str = "pretrain"
    count: int = 1
    tokens: float | None = None
    budget_usd: float | None = None
    budget_hours: float | None = None
    budget_flops: float | None = None
    sequence: int = 4096
    stack: str = "generic"
    utilisation: float | None = None
    like: str = ""
    measured: str = ""
    """Says where `utilisation` was measured, for the plan's words."""
    tp: int = 1
    pp: int = 1
    ep: int = 0
    """0: as many as the experts and the devices have in common."""
    sharding: str = "auto"
    """auto: hybrid where that fits into memory, else fsdp."""
    micro_tokens: int = 0
    tokens_per_step: float = 0
    recompute: str = "none"
    states: str = "mixed"
    mtp: bool = False
    muon: bool = False
    lora_rank: int = 16
    diloco_steps: int = 0
    network_gb_per_second: float = 0
    usd_per_hour: float | None = None
    price_date: str = ""
    teacher: ModelConfig | None = None
    # GRPO and serving
    prompts: int = 0
    samples: int = 8
    prompt_tokens: int = 512
    answer_tokens: int = 512
    cached_share: float = 0.0
    tokens_per_second: float = 10.0
    """Wanted by each reader of a service."""
    weight_bits: float = 16
    one_reader_seconds: float | None = None
    """Serving: a measured decoding step of one reader (this machine's calibration), instead of the data sheet's."""

    @property
    def row(self) -> int:
        """Tokens of a trained row."""
        return self.prompt_tokens + self.answer_tokens if self.kind == "grpo" else self.sequence

    @property
    def layout(self) -> Layout:
        sharding = "hybrid" if self.sharding == "auto" else self.sharding
        plain = Layout(self.count, self.tp, self.pp, 1, sharding)
        return dataclasses.replace(plain, ep=self.ep or math.gcd(plain.dp, self.config.n_routed_experts or 1))


@dataclass
class Plan:
    """The answer. Bytes, seconds, FLOPs and dollars are plain numbers; None is unknown, never zero."""

    model: str
    kind: str
    device: str
    count: int
    parameters: int = 0
    parameters_active: int = 0
    tokens: float = 0
    flops_per_token: Parts = field(default_factory=dict)
    flops: float = 0
    utilisation: dict[str, Any] = field(default_factory=dict)
    memory: Parts = field(default_factory=dict)
    activations: Parts = field(default_factory=dict)
    """Bytes per device by what is done again: none, selective, full; `memory` holds the chosen one."""
    memory_total: float = 0
    memory_device: float | None = None
    fits: bool | None = None
    communication: Parts = field(default_factory=dict)
    communication_seconds: float | None = None
    step_seconds: float = 0
    bubble: float = 0
    device_hours: float = 0
    hours: float = 0
    hours_low: float = 0
    hours_high: float = 0
    kwh: float | None = None
    usd: float | None = None
    usd_low: float | None = None
    usd_high: float | None = None
    price: dict[str, Any] = field(default_factory=dict)
    limited_by: str = ""
    """products, link, memory (it does not fit) or reads (of memory, while serving)."""
    limit: str = ""
    smallest: list[dict[str, Any]] = field(default_factory=list)
    suggestions: list[dict[str, float]] = field(default_factory=list)
    serving: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    left_out: str = LEFT_OUT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, sums of money in every currency of the catalogue."""
        values = dataclasses.asdict(self)
        if self.usd is not None:
            values["money"] = {code: catalogue().money(self.usd, code) for code in catalogue().currencies}
            values["currency_date"] = catalogue().currency_date
        return values


_ABOVE_ZERO = {  # field of a job -> the option that a person knows it by
    "tokens": "tokens", "budget_usd": "budget", "budget_hours": "hours", "budget_flops": "flops",
    "usd_per_hour": "price", "utilisation": "utilisation", "sequence": "sequence", "count": "count",
    "samples": "samples", "prompt_tokens": "prompt-tokens", "answer_tokens": "answer-tokens",
    "tokens_per_second": "speed", "weight_bits": "bits",
}  # fmt: skip
_NOT_BELOW_ZERO = {
    "prompts": "prompts", "tokens_per_step": "step", "micro_tokens": "micro", "diloco_steps": "diloco",
    "network_gb_per_second": "network",
}  # fmt: skip


def plan(job: Job) -> Plan:
    """Work the job out. Raises UsageError, with what would work, for what cannot be."""
    _check(job)
    if job.kind == "serve":
        return _Planner(job).serve()
    if job.kind == "grpo" and not job.prompts:
        return _grpo_within_budget(job)
    return _Planner(job).train()


def _grpo_within_budget(job: Job) -> Plan:
    """As many prompts as the budget pays for: every figure of a GRPO run is proportional to them."""
    free = dataclasses.replace(job, tokens=None, budget_usd=None, budget_hours=None, budget_flops=None)
    one = plan(dataclasses.replace(free, prompts=1))
    given = ((job.tokens, one.tokens), (job.budget_usd, one.usd), (job.budget_hours, one.hours),
             (job.budget_flops, one.flops))  # fmt: skip
    budget, each = next(pair for pair in given if pair[0] is not None)
    assert budget is not None
    if not each:
        raise _no_price(job.device)
    prompts = int(budget / each * (1 + 1e-9))
    if not prompts:
        raise UsageError(f"one prompt takes {each:.4g}, the budget is {budget:.4g}", hint="Give more of it.")
    made = plan(dataclasses.replace(free, prompts=prompts))
    made.steps.insert(0, f"prompts = {budget:.4g} / {each:.4g} of each prompt = {prompts:,}")
    return made


def _no_price(device: Device) -> UsageError:
    return UsageError(
        f"no price of {device.title} is known, so a sum of money buys an unknown time",
        hint="Give one: --price 2.50 --price-date 2026-11-26.",
    )


def _is_date(text: str) -> bool:
    try:
        return bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _check(job: Job) -> None:
    def refuse(condition: object, text: str, hint: str) -> None:
        if condition:
            raise UsageError(text, hint=hint)

    if job.kind not in KINDS:
        raise UsageError(f"unknown kind of job {job.kind!r}", hint=f"One of {', '.join(KINDS)}.")
    for name, option in (_ABOVE_ZERO | _NOT_BELOW_ZERO).items():
        value = getattr(job, name)
        if value is not None and not (0 < value < 1e40 or (value == 0 and name in _NOT_BELOW_ZERO)):
            least = "above 0" if name in _ABOVE_ZERO else "0 or more"
            refuse(True, f"{option} must be {least}, it is {value:g}", "Give a positive number.")
    refuse(
        job.utilisation is not None and job.utilisation > 1,
        f"a utilisation of {job.utilisation} is more than a device can do",
        "Give a share of the peak, for example 0.4.",
    )
    refuse(
        job.usd_per_hour is not None and not _is_date(job.price_date),
        "a price without a date says nothing a year later",
        "Give its day too, as --price-date 2026-11-26.",
    )
    refuse(job.stack not in ("tuned", "generic"), f"unknown stack {job.stack!r}", "tuned or generic.")
    refuse(
        job.recompute not in ("none", "selective", "full"),
        f"unknown recomputation {job.recompute!r}",
        "none, selective or full.",
    )
    refuse(
        job.states not in formulas.STATES,
        f"unknown optimiser states {job.states!r}",
        f"One of {', '.join(formulas.STATES)}.",
    )
    refuse(job.kind == "lora" and job.lora_rank < 1, "LoRA needs a rank of 1 or more", "--lora-rank 16")
    refuse(
        job.kind == "distill" and job.teacher is None,
        "distillation needs a teacher",
        "Name its shape: --teacher deepseek-v3.",
    )
    refuse(not 0 <= job.cached_share < 1, "the cached share must be from 0 to below 1", "--cached 0.5")
    given = [x for x in (job.tokens, job.budget_usd, job.budget_hours, job.budget_flops) if x is not None]
    if job.kind == "serve":
        refuse(not job.prompts, "serve needs a number of prompts a day", "For example --prompts 1000000.")
        refuse(
            given,
            "a service is planned for its prompts a day, not for tokens or a budget",
            "Give --prompts alone.",
        )
    else:
        refuse(
            len(given) + (job.kind == "grpo" and job.prompts > 0) != 1,
            "one of tokens and the budgets (money, hours, FLOPs) must be given, and only one"
            + (", or the prompts" if job.kind == "grpo" else ""),
            "For example --tokens 15T, or --budget 100USD"
            + (", or --prompts 8000." if job.kind == "grpo" else "."),
        )
    job.layout.check(job.config)


class _Planner:
    def __init__(self, job: Job):
        self.job, self.c, self.device = job, job.config, job.device
        peak = job.device.dense_flops
        if peak is None:
            raise UsageError(
                f"the peak of {job.device.title} is not known, so no time can be planned",
                hint="Measure it there with `shoal cost calibrate`, or add `peak` in hardware.toml.",
            )
        self.peak = peak
        self.plan = Plan(job.model, job.kind, job.device.title, job.count)
        self.plan.parameters = counts.parameters_total(self.c, mtp=job.mtp)
        self.plan.parameters_active = counts.parameters_active(self.c)
        self.say = self.plan.steps.append

    # ---- training

    def train(self) -> Plan:
        self._choose_sharding()
        job, p = self.job, self.plan
        chosen = self._utilisation()
        p.flops_per_token = self._flops_per_token()
        for name, value in p.flops_per_token.items():
            self.say(f"FLOPs per token, {name}: {value:.4g}")
        useful = sum(v for k, v in p.flops_per_token.items() if k != "recomputation")
        again = 1 + p.flops_per_token.get("recomputation", 0.0) / useful if job.recompute == "full" else 1.0
        rows = f"rows of {job.row:,}, causal, active experts only"
        self.say(f"FLOPs per trained token without recomputation: {useful:.5g} ({rows})")
        rate = self.peak * chosen.value / again
        self._communicate(useful, rate)
        slow = 1.0
        if p.communication_seconds and p.communication_seconds > p.step_seconds:
            slow = p.communication_seconds / p.step_seconds
            p.limited_by = "link"
            p.limit = (
                "the link: its traffic takes longer than the products, so it cannot be hidden behind them"
            )
        rollout = self._rollouts() if job.kind == "grpo" else 0.0
        price = self._price()
        p.tokens = self._tokens(useful, rate, slow, price)
        p.flops = p.tokens * sum(p.flops_per_token.values())
        p.device_hours = p.tokens * useful / rate / 3600 * slow + rollout
        if job.tokens is not None or job.kind == "grpo":
            self.say(
                f"device-hours = {p.tokens:.4g} tokens x {useful:.5g} FLOPs / ({self.peak:.4g} FLOP/s x "
                f"{chosen.value:.3f} / {again:.3g} x 3600) x {slow:.3g} for the link"
                f"{f' + {rollout:.4g} of rollouts' if rollout else ''} = {p.device_hours:.5g}"
            )
        self._bill(chosen, price)
        self._memory()
        self._suggest()
        if not p.limit:
            p.limited_by = "products"
            p.limit = "the products: more devices or a higher utilisation make it shorter"
        p.notes.append(f"rule of the class: {chosen.name} = mean of {', '.join(chosen.rows)}")
        return p

    def _choose_sharding(self) -> None:
        if self.job.sharding == "auto":
            needed = sum(self._memory_of(self.job.layout, self.job.recompute).values())
            whole = needed > (self.device.memory_bytes or math.inf) * FULL
            self.job = dataclasses.replace(self.job, sharding="fsdp" if whole else "hybrid")

    def _utilisation(self) -> UtilisationClass:
        job = self.job
        table = runs.classes()
        if job.utilisation is not None:
            where = job.measured or "given"
            chosen = UtilisationClass.of(where, job.utilisation, (where,))
            if job.measured:
                chosen = dataclasses.replace(
                    chosen, low=job.utilisation * 0.8, high=min(job.utilisation * 1.2, 1)
                )
        elif job.like:
            if job.like not in runs.runs() or not runs.runs()[job.like].hours:
                known = [k for k, r in runs.runs().items() if r.hours and r.tokens]
                raise UsageError(
                    f"no published run {job.like!r} with hours", hint=f"There are {', '.join(known)}."
                )
            chosen = UtilisationClass.of(f"as {job.like}", runs.runs()[job.like].utilisation, (job.like,))
        elif self.device.kind == "cpu":
            chosen = table["cpu"]
        else:
            moe = bool(self.c.n_routed_experts)
            name = runs.class_name(self.plan.parameters_active, moe=moe, devices=job.count, stack=job.stack)
            chosen = table[name]
        self.plan.utilisation = {
            "class": chosen.name,
            "value": chosen.value,
            "low": chosen.low,
            "high": chosen.high,
            "rows": list(chosen.rows),
            "rule": runs.RULE,
        }
        self.say(
            f"utilisation: class {chosen.name}, {chosen.value:.1%} of the 16-bit peak ({chosen.low:.1%} to "
            f"{chosen.high:.1%}), the mean of {', '.join(chosen.rows)}"
        )
        return chosen

    def _flops_per_token(self) -> Parts:
        job = self.job
        parts = formulas.training_parts(
            self.c,
            job.row,
            mtp=job.mtp,
            lora_rank=job.lora_rank if job.kind == "lora" else 0,
            recompute=job.recompute,
        )
        if job.kind == "distill" and job.teacher is not None:
            parts["teacher, forward"] = counts.flops_per_token(job.teacher, job.sequence, training=False)
        if job.muon:
            parts["Muon"] = formulas.muon_flops_per_step(self.c) / self._tokens_per_step()
        return parts

    def _micro_tokens(self) -> int:
        return self.job.micro_tokens or self.job.row

    def _tokens_per_step(self) -> float:
        """What was asked, else half a million or what one row per data-parallel rank needs."""
        job = self.job
        if job.tokens_per_step:
            return job.tokens_per_step
        return float(
            max(job.layout.dp * self._micro_tokens(), 2**19 if job.count > 1 else self._micro_tokens())
        )

    def _communicate(self, useful: float, rate: float) -> None:
        job, p, layout = self.job, self.plan, self.job.layout
        step = self._tokens_per_step()
        micro_steps = max(1, round(step / (layout.dp * self._micro_tokens())))
        p.step_seconds = step * useful / (job.count * rate)
        p.bubble = formulas.pipeline_bubble(job.pp, micro_steps)
        if job.count == 1:
            return
        parts = formulas.communication(
            self.c, layout, step, micro_steps=micro_steps, diloco_steps=job.diloco_steps, mtp=job.mtp
        )
        p.communication = parts
        link = self.device.link_gb_per_second
        inside = link / 2 if link else None  # data sheets add both directions
        outside = job.network_gb_per_second or (50.0 if self.device.datacenter else 1.25)
        total = 0.0
        for name, amount in parts.items():
            stays = job.count <= NODE or name == "TP" or (name == "FSDP" and job.sharding == "hybrid")
            speed = job.network_gb_per_second or inside if stays else outside
            if speed is None:
                p.notes.append(f"the link of {self.device.title} is not known: {name} is not timed")
                continue
            seconds = amount / (speed * 1e9)
            total += seconds
            self.say(
                f"traffic, {name}: {amount / 1e9:.4g} GB per device and step over {speed:.4g} GB/s "
                f"({'inside a node' if stays else 'between nodes'}) = {seconds:.4g} s"
            )
        p.communication_seconds = total
        self.say(
            f"a step of {step:,.0f} tokens: {p.step_seconds:.4g} s of work, {total:.4g} s of traffic beside it"
            + (f", pipeline bubble {p.bubble:.1%} (1F1B)" if job.pp > 1 else "")
        )

    def _rollouts(self) -> float:
        """Device-hours of GRPO's sampling: the prompt is read once, its samples are decoded together."""
        job, p = self.job, self.plan
        context = job.prompt_tokens + job.answer_tokens / 2
        batch = job.samples * 8
        step = decode_seconds(self.c, self.device, 1, batch, context, 16)
        seconds = job.prompts * job.samples * job.answer_tokens * step / batch
        day = runs.serving_day()
        read = counts.flops_per_token(self.c, job.prompt_tokens, training=False)
        seconds += job.prompts * job.prompt_tokens * read / (self.peak * day["prefill"])
        per_token = counts.decode_flops(self.c, context)
        trained = job.prompt_tokens + job.answer_tokens
        p.flops_per_token["rollouts"] = per_token * job.answer_tokens / trained
        self.say(
            f"rollouts: {job.prompts:,} prompts x {job.samples} samples x {job.answer_tokens} tokens at "
            f"{batch / step:,.0f} tokens/s per device = {seconds / 3600:.4g} device-hours"
        )
        return seconds / 3600

    def _price(self) -> dict[str, Any]:
        """What a device-hour costs: the price given, else the catalogue's rent, else electricity."""
        job, book = self.job, catalogue()
        watts = self.device.power
        device = self.device
        price: dict[str, Any] = {"usd_per_hour": None, "basis": "", "date": "", "source": device.source}
        if job.usd_per_hour is not None:
            price |= {
                "usd_per_hour": job.usd_per_hour,
                "basis": "given",
                "date": job.price_date,
                "source": "given",
            }
        elif device.usd_per_hour is not None:
            price |= {"usd_per_hour": device.usd_per_hour, "basis": "rent", "date": device.date}
        elif watts is not None:
            rate = f"{watts:.0f} W at {book.usd_per_kwh} USD/kWh, hardware not counted"
            price |= {"usd_per_hour": watts / 1000 * book.usd_per_kwh, "basis": "electricity"}
            price |= {"date": book.electricity_date, "source": f"{rate} ({book.electricity_source})"}
        else:
            self.plan.notes.append(f"neither rent nor power of {device.title} is known: no price")
        price["watts"] = watts
        self.plan.price = price
        return price

    def _tokens(self, useful: float, rate: float, slow: float, price: dict[str, Any]) -> float:
        """The tokens asked for, or those that the budget buys."""
        job = self.job
        if job.kind == "grpo":
            return float(job.prompts * job.samples * job.row)
        if job.tokens is not None:
            return job.tokens
        if job.budget_flops is not None:
            tokens = job.budget_flops / useful
            self.say(f"tokens = {job.budget_flops:.4g} FLOPs / {useful:.5g} = {tokens:.4g}")
            return tokens
        if job.budget_usd is not None:
            if not price["usd_per_hour"]:
                raise _no_price(self.device)
            hours = job.budget_usd / price["usd_per_hour"]
            self.say(f"device-hours = {job.budget_usd:.4g} USD / {price['usd_per_hour']:.4g} = {hours:.5g}")
        else:
            assert job.budget_hours is not None
            hours = job.budget_hours * job.count
            self.say(f"device-hours = {job.budget_hours:.4g} h x {job.count} = {hours:.5g}")
        tokens = hours * 3600 * rate / useful / slow
        self.say(
            f"tokens = {hours:.5g} h x 3600 x {rate:.4g} FLOP/s / {useful:.5g} / {slow:.3g} = {tokens:.4g}"
        )
        return tokens

    def _bill(self, chosen: UtilisationClass, price: dict[str, Any]) -> None:
        p, job = self.plan, self.job
        p.hours = p.device_hours / job.count
        p.hours_low, p.hours_high = (p.hours * chosen.value / u for u in (chosen.high, chosen.low))
        self.say(
            f"hours = {p.device_hours:.5g} / {job.count} devices = {p.hours:.4g} "
            f"({p.hours_low:.4g} to {p.hours_high:.4g})"
        )
        if price["watts"] is not None:
            p.kwh = p.device_hours * price["watts"] / 1000
            self.say(
                f"energy = {p.device_hours:.5g} h x {price['watts']:.0f} W = {p.kwh:.4g} kWh (no cooling)"
            )
        if price["usd_per_hour"] is not None:
            rate = price["usd_per_hour"]
            p.usd = p.device_hours * rate
            p.usd_low, p.usd_high = (h * job.count * rate for h in (p.hours_low, p.hours_high))
            self.say(
                f"money = {p.device_hours:.5g} h x {rate:.4g} USD ({price['basis']}, {price['date']}) = {p.usd:.4g} USD"
            )

    def _memory_of(self, layout: Layout, recompute: str) -> Parts:
        job = self.job
        return formulas.training_memory(
            self.c,
            layout,
            self._micro_tokens(),
            states=job.states,
            recompute=recompute,
            mtp=job.mtp,
            lora_rank=job.lora_rank if job.kind == "lora" else 0,
        )

    def _memory(self) -> None:
        p, job = self.plan, self.job
        p.memory = self._memory_of(job.layout, job.recompute)
        again = ("none", "selective", "full") if self.c.uses_mla else ("none", "full")
        p.activations = {how: self._memory_of(job.layout, how)["activations"] for how in again}
        if job.teacher is not None:
            p.memory["teacher"] = counts.parameters_total(job.teacher) * job.weight_bits / 8 / job.count
        experts = self.c.n_routed_experts or 1
        self._fit(lambda n: sum(self._memory_of(Layout(n, ep=math.gcd(n, experts)), "full").values()))

    def _fit(self, need: Any) -> None:
        """Total, fit, and the smallest machines that would do; `need(n)`: bytes per device of n that share all."""
        p, job = self.plan, self.job
        p.memory_total = sum(p.memory.values())
        p.memory_device = self.device.memory_bytes
        for name, amount in p.memory.items():
            self.say(f"memory per device, {name}: {amount / 1e9:.4g} GB")
        p.smallest = smallest_machines(need)
        mine = next((m for m in p.smallest if m["device"] == self.device.key), None)
        enough = (
            f"{mine['count']} x {self.device.title} sharing everything, recomputing, would hold it"
            if mine
            else f"no number of {self.device.title} that share everything holds it"
        )
        if p.memory_device is None:
            p.notes.append(f"the memory of {self.device.title} is not known: fit not checked")
            return
        room = p.memory_device * FULL
        p.fits = p.memory_total <= room
        self.say(
            f"memory per device: {p.memory_total / 1e9:.4g} GB of {room / 1e9:.4g} GB usable: "
            + ("fits" if p.fits else f"does NOT fit; {enough}")
        )
        if p.memory["weights"] > room:
            other = next((m for m in p.smallest if m["count"] <= job.count), None)
            more = f"; {other['count']} x {other['name']} would hold it" if other else ""
            raise UsageError(
                f"{job.count} x {self.device.title} cannot hold the weights: {p.memory['weights'] / 1e9:.4g} GB per "
                f"device, {room / 1e9:.4g} GB are usable",
                hint=f"{enough[0].upper()}{enough[1:]}{more}.",
            )
        if not p.fits:
            least = min(p.activations, key=lambda how: p.activations[how], default="")
            lean = p.memory_total - p.memory.get("activations", 0) + p.activations.get(least, 0)
            if least and lean <= room:
                enough = f"with --recompute {least} it would take {lean / 1e9:.4g} GB and fit"
            p.limited_by = "memory"
            p.limit = f"memory: {p.memory_total / 1e9:.4g} GB per device do not fit; {enough}"

    def _suggest(self) -> None:
        """Sizes that this many FLOPs would train: compute-optimal and over-trained (cheaper to serve)."""
        p = self.plan
        if p.kind not in ("pretrain", "distill"):
            return
        for ratio in (20.0, 100.0, 500.0):
            weights, tokens = formulas.compute_optimal(p.flops, ratio)
            p.suggestions.append({"tokens_per_weight": ratio, "weights": weights, "tokens": tokens})
        ratio = p.tokens / p.parameters_active
        p.notes.append(
            f"{ratio:.3g} tokens per active weight (about 20 is compute-optimal for a dense network, Hoffmann et al. "
            "2022; more is over-training, which serving pays back)"
        )

    # ---- serving

    def serve(self) -> Plan:
        job, p = self.job, self.plan
        day = runs.serving_day()
        context = job.prompt_tokens + job.answer_tokens
        mean = job.prompt_tokens + job.answer_tokens / 2

        def need(n: int, sequences: int = 1) -> float:
            return sum(formulas.serving_memory(self.c, n, sequences, context, job.weight_bits).values())

        room = (self.device.memory_bytes or math.inf) * FULL
        wanted = 1 / job.tokens_per_second

        def sheet(sequences: int) -> float:
            return decode_seconds(self.c, self.device, job.count, sequences, mean, job.weight_bits)

        def seconds(sequences: int) -> float:
            """Measured for one reader, and what more of them add by the data sheet; else the data sheet's alone."""
            if job.one_reader_seconds is None:
                return sheet(sequences)
            return job.one_reader_seconds + sheet(sequences) - sheet(1)

        def possible(sequences: int) -> bool:
            return seconds(sequences) <= wanted and need(job.count, sequences) <= room

        batch, step_up = 1, 2**17
        while step_up:  # the most readers at once that still get their speed and their memory
            if possible(batch + step_up):
                batch += step_up
            step_up //= 2
        step = seconds(batch)
        p.memory = formulas.serving_memory(self.c, job.count, batch, context, job.weight_bits)
        self._fit(need)
        if step > wanted:
            p.notes.append(
                f"{job.tokens_per_second:g} tokens/s cannot be reached even for one reader: {1 / step:.3g} tokens/s"
            )
        rate = batch / step
        decode = job.prompts * job.answer_tokens / rate
        fresh = job.prompts * job.prompt_tokens * (1 - job.cached_share)
        read = counts.flops_per_token(self.c, job.prompt_tokens, training=False)
        prefill_rate = job.count * self.peak * day["prefill"] / read
        prefill = fresh / prefill_rate
        machines = max(1, math.ceil((decode + prefill) / 86400 / DAY_SHARE))
        self.say(
            f"decoding: {batch} readers at once, {step * 1e3:.4g} ms a step (bytes read at {MEMORY_SHARE:.0%} of the "
            f"data sheet, products at {day['decode']:.1%} of the peak: DeepSeek's day) = {rate:,.0f} tokens/s"
        )
        self.say(
            f"reading prompts: {read:.4g} FLOPs per token at {day['prefill']:.1%} of the peak = "
            f"{prefill_rate:,.0f} tokens/s"
        )
        self.say(
            f"busy seconds a day: {decode:,.0f} decoding + {prefill:,.0f} reading; one machine gives 86,400 x "
            f"{DAY_SHARE} -> {machines} machine(s) of {job.count} device(s)"
        )
        price = self._price()
        p.tokens = float(job.prompts * (job.prompt_tokens + job.answer_tokens))
        per_new = counts.decode_flops(self.c, mean)
        p.flops_per_token = {"prompt": read, "answer": per_new}
        p.flops = fresh * read + job.prompts * job.answer_tokens * per_new
        p.device_hours = machines * job.count * 24.0
        p.hours = p.hours_low = p.hours_high = 24.0
        p.serving = {
            "readers": batch,
            "step_seconds": step,
            "one_reader_tokens_per_second": 1 / seconds(1),
            "tokens_per_second": rate,
            "prefill_tokens_per_second": prefill_rate,
            "first_token_seconds": job.prompt_tokens * (1 - job.cached_share) / prefill_rate,
            "machines": machines,
            "busy_share": (decode + prefill) / 86400 / machines,
        }
        if price["watts"] is not None:
            p.kwh = p.device_hours * price["watts"] / 1000
        if price["usd_per_hour"] is not None:
            second = job.count * price["usd_per_hour"] / 3600
            p.usd = p.usd_low = p.usd_high = p.device_hours * price["usd_per_hour"]
            p.serving["usd_per_million_out"] = second / rate * 1e6
            p.serving["usd_per_million_in"] = second / prefill_rate * (1 - job.cached_share) * 1e6
            self.say(
                f"money = {p.device_hours:.5g} device-hours a day x {price['usd_per_hour']:.4g} USD = {p.usd:.4g} USD "
                f"a day; {p.serving['usd_per_million_out']:.3g} USD per million tokens out, "
                f"{p.serving['usd_per_million_in']:.3g} in, while busy"
            )
        compute = batch * per_new / (self.peak * day["decode"] * job.count)
        if not p.limit:
            p.limited_by = "products" if compute >= step * 0.99 else "reads"
            more = "memory reads: more readers at once cost little more"
            p.limit = "the products" if p.limited_by == "products" else more
        return p


def decode_seconds(
    c: ModelConfig, device: Device, devices: int, batch: float, context: float, weight_bits: float
) -> float:
    """One decoding step of `batch` sequences: the longer of its reads and its products, perfectly spread.

    Reads: all weights that some sequence needs (of E experts, E (1 - (1 - k/E)^batch)) and every sequence's cache.
    """
    day = runs.serving_day()
    peak = device.dense_flops
    assert peak is not None
    products = batch * counts.decode_flops(c, context) / (peak * day["decode"])
    if device.memory_gb_per_second is None:
        return products / devices
    experts = formulas.expert_weights(c)
    touched = 0.0
    if experts:
        share = (c.num_experts_per_tok or 0) / (c.n_routed_experts or 1)
        touched = experts * (1 - (1 - share) ** batch)
    embedding = 0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size
    weights = counts.parameters_total(c) - experts - embedding + touched
    reads = weights * weight_bits / 8 + batch * context * counts.kv_bytes_per_token(c)
    return max(products, reads / (device.memory_gb_per_second * 1e9 * MEMORY_SHARE)) / devices


def smallest_machines(need: Any) -> list[dict[str, Any]]:
    """Per device the fewest (powers of two, to 65,536) that hold `need(n)` bytes each; the least memory first."""
    found = []
    for device in catalogue().devices:
        if device.memory_bytes is None:
            continue
        for power in range(17):
            count = 2**power
            if need(count) <= device.memory_bytes * FULL:
                total = count * device.memory_bytes
                found.append(
                    {"device": device.key, "name": device.title, "count": count, "memory_bytes": total}
                )
                break
    return sorted(found, key=lambda m: (m["memory_bytes"], m["count"]))


def compare(job: Job, devices: list[Device]) -> list[dict[str, Any]]:
    """The same job on other devices: time, money, energy, fit, link. One that cannot hold it says so in `problem`."""
    _check(job)  # what no device could mend is said once
    rows = []
    for device in devices:
        row: dict[str, Any] = {"device": device.key, "name": device.title}
        try:
            p = plan(dataclasses.replace(job, device=device))
        except UsageError as error:
            row["problem"] = str(error).splitlines()[0]
        else:
            waits = p.communication_seconds is not None and p.communication_seconds > p.step_seconds > 0
            row |= {
                "hours": p.hours,
                "hours_low": p.hours_low,
                "hours_high": p.hours_high,
                "device_hours": p.device_hours,
                "usd": p.usd,
                "price": p.price,
                "kwh": p.kwh,
                "memory_total": p.memory_total,
                "memory_device": p.memory_device,
                "fits": p.fits,
                "link_bound": waits if job.kind != "serve" else None,
                "limited_by": p.limited_by,
                "serving": p.serving,
                "smallest": next((m["count"] for m in p.smallest if m["device"] == device.key), None),
            }
        rows.append(row)
    return rows
