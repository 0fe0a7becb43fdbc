"""docs/api.md names the routes and the fields that there are, no more and no fewer, and what it says of each is so."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai.resources.responses import Responses

from shoal.serve.anthropic_api import MessagesRequest
from shoal.serve.app import create_app
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.responses_api import UNSUPPORTED as NOT_IN_RESPONSES
from shoal.serve.responses_api import ResponsesRequest
from shoal.serve.schemas import UNSUPPORTED, ChatRequest, CompletionRequest
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [re.split(r" \| ", row.strip("| ")) for row in section.splitlines() if row.startswith("| `")]


def test_endpoints() -> None:
    opener: Any = lambda spec, progress: None  # noqa: E731
    app: Any = create_app(ServerSettings(), ModelTable([ModelCard("m", "m")], opener), Store(":memory:")).app
    routes = {
        f"{method} {route.path.replace(':path', '')}"
        for route in app.routes
        for method in route.methods - {"HEAD"}
        if not route.path.startswith(("/api/", "/static/"))
    }
    named = {row[0].strip(" `") for row in rows("Endpoints")}
    assert named <= routes
    shown = [row[0].strip(" `") for row in rows("Endpoints")][:6]  # "the first six rows"
    assert routes - named == {route.replace("/v1", prefix) for route in shown for prefix in ("", "/beta")}


def official(function: Any) -> set[str]:
    """The fields of the official client's call."""
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    return set(inspect.signature(function).parameters) - own


TABLES: dict[str, tuple[str, dict[str, Any], set[str], set[str]]] = {
    "Fields of a chat request": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "thinking": {"type": "disabled"}},
        set(ChatRequest.model_fields) | set(UNSUPPORTED),
        official(openai.resources.chat.completions.Completions.create),
    ),
    "Fields of a completion request": (
        "/v1/completions",
        {"prompt": "Hi", "max_tokens": 2},
        set(CompletionRequest.model_fields) - set(ChatRequest.model_fields) | {"logprobs"},
        set(),
    ),
    "OpenAI's Responses": (
        "/v1/responses",
        {"input": "Hi", "max_output_tokens": 2, "reasoning": {"effort": "none"}},
        set(ResponsesRequest.model_fields) | set(NOT_IN_RESPONSES) | {"truncation"},
        official(Responses.create),
    ),
    "Anthropic's Messages": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        set(MessagesRequest.model_fields) | {"mcp_servers", "container"},
        official(anthropic.resources.messages.Messages.create),
    ),
}


@pytest.mark.parametrize("heading", TABLES)
def test_fields(heading: str, client: httpx.Client) -> None:
    """Every field that we or the official client know has a row, and its example does what the row says."""
    path, base, ours, theirs = TABLES[heading]
    found = {row[0].strip("` "): (row[1].strip(), row[2].strip("` ")) for row in rows(heading)}
    assert ours <= set(found), ours - set(found)
    assert theirs <= set(found), theirs - set(found)
    known = ours | theirs
    assert {name for name, (verdict, _) in found.items() if verdict != "ignored"} <= known
    for name, (verdict, example) in found.items():
        fields = json.loads(example)
        assert name in fields, name
        response = client.post(path, json=base | fields)
        told = response.headers.get("x-shoal-ignored", "").split(", ")
        if verdict == "refused":
            assert response.status_code == 400 and name in error_text(response), (name, response.text)
        else:
            assert response.status_code == 200, (name, response.text)
            assert (name in told) == (verdict == "ignored"), name


def error_text(response: httpx.Response) -> str:
    error: dict[str, Any] = response.json()["error"]
    return f"{error.get('param')} {error['message']}"
