"""/api/cost: the planner behind the page at /cost. Figures are those of `shoal cost`; the page works nothing out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import shoal.model.counts as counts
import shoal.model.registry as registry
from shoal.cost import hardware, planner, runs
from shoal.cost.calibration import Calibration, load_calibration
from shoal.cost.export_rule import VERSIONS, classify
from shoal.cost.hardware import Device
from shoal.cost.planner import Job
from shoal.cost.receipt import Receipt
from shoal.errors import ShoalError
from shoal.files import read_text
from shoal.model.config import ModelConfig
from shoal.serve.body import parse_object, read_body, validated
from shoal.serve.errors import ApiError

SCAN = tuple(2**i for i in range(0, 13))  # device counts of the plot


class CostRequest(BaseModel):
    """One plan. Of tokens and the budgets one is given, as on the command line."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field(max_length=100)
    device: str = Field(max_length=100)
    kind: Literal["pretrain", "extend", "sft", "lora", "grpo", "distill", "serve"] = "pretrain"
    count: int = Field(1, ge=1, le=2**20)
    tokens: float | None = Field(None, gt=0, le=1e18)
    budget: float | None = Field(None, gt=0, le=1e15)
    currency: str = Field("USD", max_length=3)
    hours: float | None = Field(None, gt=0, le=1e9)
    flops: float | None = Field(None, gt=0, le=1e36)
    sequence: int = Field(4096, ge=1, le=2**24)
    stack: Literal["tuned", "generic"] = "generic"
    like: str = Field("", max_length=100)
    recompute: Literal["none", "selective", "full"] = "none"
    teacher: str = Field("", max_length=100)
    prompts: int = Field(0, ge=0, le=10**15)
    samples: int = Field(8, ge=1, le=10**4)
    prompt_tokens: int = Field(512, ge=1, le=2**24)
    answer_tokens: int = Field(512, ge=1, le=2**24)
    cached: float = Field(0.0, ge=0, lt=1)
    speed: float = Field(10.0, gt=0, le=1e6)
    bits: float = Field(16, ge=1, le=32)
    rule: str = Field(VERSIONS[-1], max_length=10)


class CostApi:
    """Starlette functions; every one of them only reads."""

    def routes(self) -> list[Route]:
        return [
            Route("/api/cost/options", self.options),
            Route("/api/cost/plan", self._answer(_plan), methods=["POST"]),
            Route("/api/cost/compare", self._answer(_compare), methods=["POST"]),
            Route("/api/cost/scan", self._answer(_scan), methods=["POST"]),
            Route("/api/cost/receipts/{model:path}", self.receipts),
        ]

    async def options(self, request: Request) -> Response:
        return _json(await asyncio.to_thread(_options))

    async def receipts(self, request: Request) -> Response:
        return _json(await asyncio.to_thread(_receipts, request.path_params["model"]))

    def _answer(self, work: Callable[[CostRequest], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = validated(CostRequest, parse_object(await read_body(request.receive)))
            try:
                return _json(await asyncio.to_thread(work, body))
            except ShoalError as error:
                raise ApiError(
                    400, f"{error.message}\n{error.hint}" if error.hint else error.message
                ) from None

        return endpoint


def _json(value: Any) -> JSONResponse:
    return JSONResponse(value, headers={"cache-control": "no-store"})


def _here() -> Calibration | None:
    try:
        return load_calibration()
    except ShoalError:
        return None


def _options() -> dict[str, Any]:
    """What can be chosen, each with what is known of it."""
    book, here = hardware.catalogue(), _here()
    devices = [here.device_row()] if here else []
    devices += [d for d in book.devices if d.dense_flops]
    names = runs.model_names()
    installed = [e.name for e in registry.list_models() if _folder_config(e) and e.name not in names]
    return {
        "models": [_model(name) for name in [*names, *installed]],
        "devices": [
            {
                **dataclasses.asdict(d),
                "title": d.title,
                "export": {version: classify(d, version).to_dict() for version in VERSIONS},
            }
            for d in devices
        ],
        "runs": [key for key, run in runs.runs().items() if run.hours and run.tokens],
        "receipts": [e.name for e in registry.list_models()],
        "currencies": {"rates": book.currencies, "date": book.currency_date, "source": book.currency_source},
        "rules": VERSIONS,
    }


def _model(name: str) -> dict[str, Any]:
    c = _config(name)
    return {
        "name": name,
        "parameters": counts.parameters_total(c),
        "parameters_active": counts.parameters_active(c),
        "moe": bool(c.n_routed_experts),
    }


def _folder_config(entry: registry.ModelEntry) -> ModelConfig | None:
    try:
        return ModelConfig.from_folder(entry.path) if (entry.path / "config.json").is_file() else None
    except ShoalError:
        return None


def _config(name: str) -> ModelConfig:
    """A known shape, or an installed model's own: names are keys of tables, never paths."""
    entry = None if name in runs.model_names() else registry.find(name)
    config = _folder_config(entry) if entry else None
    return config or runs.known_model(name)


def _device(key: str) -> Device:
    here = _here()
    return here.device_row() if key == "here" and here else hardware.catalogue().get(key)


def _job(body: CostRequest) -> Job:
    budget = body.budget
    job = Job(
        config=_config(body.model),
        device=_device(body.device),
        model=body.model,
        budget_usd=None if budget is None else budget / hardware.catalogue().money(1.0, body.currency),
        budget_hours=body.hours,
        budget_flops=body.flops,
        teacher=_config(body.teacher) if body.teacher else None,
        cached_share=body.cached,
        tokens_per_second=body.speed,
        weight_bits=body.bits,
        **{
            name: getattr(body, name)
            for name in (
                "kind count tokens sequence stack like recompute prompts samples prompt_tokens answer_tokens"
            ).split()
        },
    )
    here = _here()
    if body.device == "here" and here and body.kind == "serve":
        return dataclasses.replace(job, one_reader_seconds=here.one_reader_seconds(job.config, body.bits))
    if body.device == "here" and here and here.training and not body.like:
        share = here.utilisation(job.config, job.sequence)
        job = dataclasses.replace(
            job, utilisation=share, measured=f"this machine, {here.measured_at}", states="fp32-muon"
        )
    return job


def _plan(body: CostRequest) -> dict[str, Any]:
    return planner.plan(_job(body)).to_dict()


def _compare(body: CostRequest) -> dict[str, Any]:
    devices = [d for d in hardware.catalogue().devices if d.dense_flops]
    rows = planner.compare(_job(body), devices)
    for row, device in zip(rows, devices, strict=True):
        row["export"] = classify(device, body.rule).to_dict()
    return {"rows": rows}


def _scan(body: CostRequest) -> dict[str, Any]:
    """Hours and dollars over the number of devices, for a plot; counts that cannot be are left out."""
    points = []
    for count in sorted({*SCAN, body.count}):
        try:
            p = planner.plan(dataclasses.replace(_job(body), count=count))
        except ShoalError:
            continue
        points.append({"count": count, "hours": p.hours, "hours_low": p.hours_low, "hours_high": p.hours_high,
                       "usd": p.usd, "limited_by": p.limited_by, "fits": p.fits})  # fmt: skip
    return {"points": points}


def _receipts(name: str) -> dict[str, Any]:
    """A model's chain, newest first: its own receipts, then what its makers published of the network below them."""
    entry = registry.find(name)
    if entry is None:
        raise ApiError(404, "there is no such model")
    links: list[dict[str, Any]] = []
    file = (entry.thinking_adapter or entry.path) / "receipt.json"
    if file.is_file():
        for receipt in Receipt.from_dict(json.loads(read_text(file))).chain():
            values = receipt.to_dict() | {"parent": None}
            values["energy_basis"] = "estimated" if receipt.energy_source == "estimated" else "measured"
            links.append(values)
    below = _PUBLISHED.get(entry.base or entry.name)
    published = None
    if below:
        run = runs.runs()[below]
        device = hardware.catalogue().get(run.device)
        published = {
            "run": below, "device": device.title, "hours": run.hours, "tokens": run.tokens, "source": run.source,
            "flops": run.tokens * run.flops_per_token, "price": device.usd_per_hour, "price_date": device.date,
            "usd": None if device.usd_per_hour is None else run.hours * device.usd_per_hour,
            "kwh": None if device.power is None else run.hours * device.power / 1000,
        }  # fmt: skip
    total = sum(link["usd"] for link in links if link["usd"] is not None) if links else None
    return {"model": entry.name, "links": links, "published": published, "total_usd": total,
            "complete": bool(links) and all(link["usd"] is not None for link in links)}  # fmt: skip


_PUBLISHED = {"smollm2": "smollm2-135m"}  # installed models whose makers published the cost of the final run
