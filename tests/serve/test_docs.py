"""docs/api.md names the routes and the fields that there are, no more and no fewer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shoal.serve.app import create_app
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.schemas import ChatRequest, CompletionRequest
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def table(heading: str) -> list[str]:
    """First cells of the table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]


def test_endpoints() -> None:
    opener: Any = lambda spec, progress: None  # noqa: E731
    app: Any = create_app(ServerSettings(), ModelTable([ModelCard("m", "m")], opener), Store(":memory:")).app
    routes = {
        f"{method} {route.path.replace(':path', '')}"
        for route in app.routes
        for method in route.methods - {"HEAD"}
        if not route.path.startswith(("/api/", "/static/"))
    }
    short = {
        route
        for route in routes
        if "/v1/" not in route and route.split()[1] not in ("/", "/health", "/metrics")
    }
    assert {cell.strip(" `") for cell in table("Endpoints")} == routes - short
    v1 = {route.replace("/v1", "") for route in routes if "/v1/" in route}
    assert short == v1 | {route.replace(" /", " /beta/") for route in v1}


def test_fields() -> None:
    named = {name for cell in table("Fields of a chat request") for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(ChatRequest.model_fields)
    own = set(CompletionRequest.model_fields) - set(ChatRequest.model_fields)
    assert all(f"`{name}`" in PAGE for name in own)
