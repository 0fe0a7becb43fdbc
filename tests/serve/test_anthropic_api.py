"""Anthropic's protocol: the official client unchanged, and the bytes of its events."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

PATH = "/v1/messages"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Kobe", "大阪"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"name": "weather", "description": "x", "input_schema": SCHEMA},
    {"name": "bell", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]
USER = {"role": "user", "content": "Who are you?"}


def body(**over: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 8, "messages": [USER], "temperature": 0} | over


def ask(client: httpx.Client, **over: Any) -> dict[str, Any]:
    response = client.post(PATH, json=body(**over))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def events(client: httpx.Client, **over: Any) -> list[dict[str, Any]]:
    """Data of the events; each has a line with its name, as the official client demands."""
    with client.stream("POST", PATH, json=body(**over) | {"stream": True}) as response:
        assert response.status_code == 200
        text = "".join(response.iter_text())
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


@pytest.fixture
def official(live_server: str) -> Any:
    with anthropic.Anthropic(base_url=live_server, api_key="none", max_retries=0) as client:
        yield client


def test_the_shape_of_a_message(client: httpx.Client) -> None:
    found = ask(
        client, system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    )
    assert found["id"].startswith("msg_") and (found["type"], found["role"], found["model"]) == (
        "message",
        "assistant",
        "tiny",
    )
    assert [block["type"] for block in found["content"]] == ["text"] and found["stop_reason"] in (
        "max_tokens",
        "end_turn",
    )
    usage = found["usage"]
    chat = client.post("/v1/chat/completions", json={
        "messages": [{"role": "system", "content": "Be brief."}, USER], "max_tokens": 8, "temperature": 0,
        "thinking": {"type": "disabled"}}).json()  # fmt: skip
    assert found["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]


def test_the_events_and_their_order(client: httpx.Client) -> None:
    """Thoughts, then text: each block is opened, grows and is closed; usage stands at both ends."""
    fields = {
        "thinking": {"type": "enabled", "budget_tokens": 9},
        "max_tokens": 40,
        "temperature": 1,
        "top_k": 50,
    }
    for _ in range(30):  # a random model may end its answer inside its thought
        found = events(client, **fields)
        if sum(event["type"] == "content_block_start" for event in found) == 2:
            break
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["message_start", "ping"] and kinds[-2:] == ["message_delta", "message_stop"]
    message = found[0]["message"]
    assert (
        message["content"] == [] and message["stop_reason"] is None and message["usage"]["input_tokens"] > 0
    )
    blocks: list[str] = []
    for event in found[2:-2]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"]["type"])
        elif event["type"] == "content_block_delta":
            allowed = {"thinking": ("thinking_delta", "signature_delta"), "text": ("text_delta",)}
            assert event["index"] == len(blocks) - 1 and event["delta"]["type"] in allowed[blocks[-1]]
        else:
            assert event["type"] == "content_block_stop" and event["index"] == len(blocks) - 1
    assert blocks == ["thinking", "text"] and kinds.count("content_block_stop") == 2
    assert (
        found[-2]["delta"]["stop_reason"] in ("max_tokens", "end_turn")
        and found[-2]["usage"]["output_tokens"] > 9
    )
    thought = [e["delta"]["thinking"] for e in found if e.get("delta", {}).get("type") == "thinking_delta"]
    assert thought and len("".join(thought)) > 0


def test_the_official_client(official: Any) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 8,
        "messages": [USER],
        "extra_body": {"temperature": 0},
    }
    plain = official.messages.create(**options)
    with official.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == plain.content[0].text
        assert stream.get_final_message().usage.output_tokens == plain.usage.output_tokens
    counted = official.messages.count_tokens(model="tiny", messages=[USER]).input_tokens
    assert counted == plain.usage.input_tokens + plain.usage.cache_read_input_tokens
    assert [model.id for model in official.models.list()] == ["tiny"]
    stopped = official.messages.create(**options | {"stop_sequences": [plain.content[0].text[2:5]]})
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", plain.content[0].text[2:5])
    with pytest.raises(anthropic.NotFoundError) as missing:
        official.messages.create(**options | {"model": "claude-none"})
    assert missing.value.body["type"] == "error" and missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        official.messages.create(**options | {"extra_body": {"temperature": -1}})


def test_tools_through_the_official_client(official: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 300, "tools": TOOLS}
    called = official.messages.create(
        **options, messages=[USER], tool_choice={"type": "tool", "name": "weather"}
    )
    assert called.stop_reason == "tool_use"
    (use,) = [block for block in called.content if block.type == "tool_use"]
    assert use.name == "weather" and use.input["city"] in ("Kobe", "大阪")
    with official.messages.stream(**options, messages=[USER], tool_choice={"type": "any"}) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use" and json.loads("".join(pieces) or "{}") == final.content[-1].input
    turns = [USER, {"role": "assistant", "content": called.content},
             {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text",
              "text": "sunny"}]}, {"type": "text", "text": "So?"}]}]  # fmt: skip
    after = official.messages.create(
        **options | {"max_tokens": 4, "messages": turns, "tool_choice": {"type": "none"}}
    )
    assert after.usage.output_tokens > 0
    shaped = official.messages.create(**options | {"tools": []}, messages=[USER],
                                      output_config={"format": {"type": "json_schema", "schema": SCHEMA}})  # fmt: skip
    assert set(json.loads(shaped.content[0].text)) == {"city"}


def test_a_last_answer_is_continued_and_old_thoughts_are_dropped(client: httpx.Client) -> None:
    def size(*messages: Any, **over: Any) -> int:
        usage = ask(client, messages=messages, max_tokens=1, **over)["usage"]
        return int(usage["input_tokens"] + usage["cache_read_input_tokens"])

    begun = {"role": "assistant", "content": "The sea is blue because"}
    ids = client.post("/tokenize", json={"content": begun["content"]}).json()["tokens"]
    assert size(USER, begun) == size(USER) + len(ids)
    thought = {"type": "thinking", "thinking": "I must weigh every wave. " * 9, "signature": "x"}
    text = {"type": "text", "text": "yes"}
    old = {"role": "assistant", "content": [thought, text]}
    assert size(USER, old, USER) == size(USER, {"role": "assistant", "content": "yes"}, USER)
    billing = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=abc;"},
        {"type": "text", "text": "Be brief."},
    ]
    assert size(USER, system=billing) == size(USER, system="Be brief.")


@pytest.mark.parametrize("fields", [
    {"max_tokens": None}, {"max_tokens": 0}, {"messages": []}, {"messages": [{"role": "bot", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, {"system": 5}, {"thinking": 5},
    {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]},
    {"thinking": {"type": "maybe"}}, {"thinking": {}},
    {"thinking": {"type": "enabled", "budget_tokens": 99}, "max_tokens": 9},
    {"stop_sequences": ["x"] * 17}, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, {"tools": 5},
    {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "no"}}, {"tool_choice": {"type": "always"}},
    {"mcp_servers": [{"url": "http://127.0.0.1:9"}]}, {"output_config": {"format": {"type": "xml"}}},
    {"output_config": {"effort": "wild"}, "thinking": {"type": "adaptive"}}, {"temperature": "hot"}, {"metadata": 5},
])  # fmt: skip
def test_refusals_have_this_protocols_shape(client: httpx.Client, fields: dict[str, Any]) -> None:
    response = client.post(PATH, json=body(**fields))
    assert response.status_code == 400, response.text
    found = response.json()
    assert set(found) == {"type", "error", "request_id"} and found["error"]["type"] == "invalid_request_error"
    assert found["request_id"] == response.headers["request-id"] and found["error"]["message"]
    assert any(name in found["error"]["message"] for name in (*fields, "role", "budget"))


def test_faults_before_any_route_have_it_too(client: httpx.Client) -> None:
    for response, status in (
        (client.post(PATH, content=b"{", headers={"content-type": "application/json"}), 400),
        (client.post(PATH, content=b"{}", headers={"content-type": "text/plain"}), 415),
        (client.get(PATH), 405),
    ):
        assert response.status_code == status and response.json()["type"] == "error"
    ignored = client.post(PATH, json=body(service_tier="auto", context_management={"edits": []}))
    assert ignored.headers["x-shoal-ignored"] == "context_management, service_tier"
