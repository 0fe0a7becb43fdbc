"""/openapi.json is true: schemathesis asks what it says (slow), and every API route is in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from shoal.serve.anthropic_api import MessagesRequest
from shoal.serve.openapi import document
from shoal.serve.responses_api import ResponsesRequest
from shoal.serve.schemas import ChatRequest, CompletionRequest


def test_every_route_and_field_is_in_it(client: httpx.Client) -> None:
    found = client.get("/openapi.json").json()
    assert found == document()
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8").split("## Fields")[0]
    routes = set(re.findall(r"^\| `\w+ (/[^`]*)`", page, re.MULTILINE))
    assert set(found["paths"]) == routes - {"/", "/cost", "/metrics", "/openapi.json"}
    for model in (ChatRequest, CompletionRequest, MessagesRequest, ResponsesRequest):
        properties = found["components"]["schemas"][model.__name__]["properties"]
        assert set(properties) == set(model.model_fields)
        assert not [
            name
            for name, schema in properties.items()
            if set(schema) <= {"title", "default"} and name != "include"
        ]
    assert "'ge'" not in str(found)


REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/tokenize": {"content": "Hi"},
}


@pytest.mark.parametrize("path", REQUESTS)
def test_answers_have_what_it_promises(path: str, client: httpx.Client) -> None:
    answers = document()["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    found = client.post(path, json=REQUESTS[path]).json()
    assert set(answers["required"]) <= set(found)
    for name in set(answers["properties"]) & set(found):
        if "const" in answers["properties"][name]:
            assert found[name] == answers["properties"][name]["const"]


@pytest.mark.slow
def test_schemathesis(live_server: str, tmp_path: Path) -> None:
    """Valid and invalid requests made from the document: no 5xx, no answer outside it, no invalid request accepted.

    That every valid one is accepted is not asked: fields that exclude each other cannot be said in a schema.
    """
    pytest.importorskip("schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{live_server}/openapi.json", "--seed", "7", "--max-examples",
        "25", "--exclude-checks", "positive_data_acceptance", "--request-timeout", "60", "--phases", "coverage,fuzzing",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"[1-9]\d* generated", done.stdout), done.stdout[-2000:]
