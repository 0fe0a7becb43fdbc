"""C44: a thought that runs is ended from outside, and the answer begins."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
from tests.serve.held import held


def test_answer_now(client: httpx.Client) -> None:
    """The tiny model would think until its limit: told to answer, it writes content, all in one message."""
    chat = client.post("/api/chats", json={}).json()["id"]
    params = {"max_tokens": 1500, "temperature": 0.7, "seed": 5}
    request = {"parent_id": None, "content": "Who are you?", "thinking": "max", "params": params}
    thinking = contextlib.ExitStack()
    thinking.enter_context(held(20))  # until it is asked to answer
    made = client.post(f"/api/chats/{chat}/messages", json=request).json()
    path = f"/api/chats/{chat}/messages/{made['assistant']['id']}/answer-now"
    told: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    with thinking, client.stream("GET", f"/api/chats/{chat}/events") as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            events.append(json.loads(line[6:]))
            if events[-1]["type"] == "reasoning" and not told:
                response = client.post(path, json={})
                told.append(response.json())
                assert response.status_code == 202
                thinking.close()
            if events[-1]["type"] == "content":
                client.post(path.replace("answer-now", "stop"), json={})
    assert told == [{"answering": True}]
    message = events[-1]["message"]
    assert message["content"] and message["reasoning"] and message["thinking_seconds"] > 0
    kinds = [event["type"] for event in events if event["type"] in ("reasoning", "content")]
    assert kinds == sorted(kinds, reverse=True)  # thoughts, then the answer
    late = client.post(path, json={})
    assert (late.status_code, late.json()) == (200, {"answering": False})
