"""The Responses protocol: the official client unchanged, the events, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

PATH = "/v1/responses"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Kobe", "大阪"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
PLAIN = {"reasoning": {"effort": "none"}, "temperature": 0, "max_output_tokens": 8}


@pytest.fixture
def official(live_server: str) -> Any:
    with openai.OpenAI(base_url=f"{live_server}/v1", api_key="none", max_retries=0) as client:
        yield client


def events(client: httpx.Client, **over: Any) -> list[dict[str, Any]]:
    body = PLAIN | {"input": "Who are you?", "stream": True} | over
    with client.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200
        text = "".join(response.iter_text())
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_the_same_text_as_in_a_chat(official: Any, client: httpx.Client) -> None:
    found = official.responses.create(model="tiny", input="Who are you?", instructions="Be brief.", **PLAIN)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    chat = client.post("/v1/chat/completions", json={
        "messages": turns, "max_tokens": 8, "temperature": 0, "reasoning_effort": "none"}).json()  # fmt: skip
    assert found.output_text == chat["choices"][0]["message"]["content"]
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        chat["usage"]["prompt_tokens"], chat["usage"]["completion_tokens"])  # fmt: skip
    cut = chat["choices"][0]["finish_reason"] == "length"
    assert found.status == ("incomplete" if cut else "completed")
    scored = official.responses.create(
        model="tiny", input="x", include=["message.output_text.logprobs"], top_logprobs=2, **PLAIN
    )
    rows = scored.output[0].content[0].logprobs
    assert rows and len(rows[0].top_logprobs) == 2


def test_events_and_their_order(client: httpx.Client) -> None:
    """Thoughts, then text: each item is added, its part is added, grows, and both are closed with the whole text."""
    reasoning = {"effort": "low", "max_tokens": 30}  # a random model may never end its thought by itself
    options = {"reasoning": reasoning, "temperature": 1, "max_output_tokens": 200, "top_logprobs": 1}
    for _ in range(30):  # or it may end its answer inside it
        found = events(client, **options)
        if len(found[-1]["response"]["output"]) == 2:
            break
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    whole = found[-1]["response"]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    for index, (item, name) in enumerate(
        zip(whole["output"], ("reasoning_text", "output_text"), strict=True)
    ):
        mine = [event for event in found if event.get("output_index") == index]
        expected = ["output_item.added", "content_part.added", f"{name}.delta", f"{name}.done", "content_part.done",
                    "output_item.done"]  # fmt: skip
        assert list(dict.fromkeys(event["type"].removeprefix("response.") for event in mine)) == expected
        text = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
        assert text == item["content"][0]["text"] == mine[-1]["item"]["content"][0]["text"]
        assert mine[0]["item"]["content"][0]["text"] == "" and mine[-1]["item"]["status"] != "in_progress"
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_the_official_stream_helper_and_calls(official: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "input": "Who are you?", "reasoning": {"effort": "none"},
                               "max_output_tokens": 300}  # fmt: skip
    with official.responses.stream(**options, tools=[TOOL], tool_choice="required") as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    (call,) = final.output
    assert (
        call.type == "function_call"
        and "".join(deltas) == call.arguments
        and json.loads(call.arguments)["city"]
    )
    named = {"type": "function", "name": "weather"}
    plain = official.responses.create(**options, tools=[TOOL], tool_choice=named).output[0]
    turns = [{"role": "user", "content": "hi"}, plain.model_dump(), {"type": "function_call_output",
             "call_id": plain.call_id, "output": "sunny"}]  # fmt: skip
    after = official.responses.create(**options | {"input": turns, "max_output_tokens": 4}, tools=[TOOL])
    assert after.usage.input_tokens > 20
    shaped = official.responses.create(
        **options, text={"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}}
    )
    assert set(json.loads(shaped.output_text)) == {"city"}


def test_history_becomes_a_chat(client: httpx.Client) -> None:
    """Items of an earlier response go back as they came; its thoughts cost nothing."""

    def size(*items: Any) -> int:
        found = client.post(PATH, json=PLAIN | {"input": items, "max_output_tokens": 1}).json()
        tokens: int = found["usage"]["input_tokens"]
        return tokens

    user = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]}
    thought = {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "so " * 30}],
    }
    assert size(user, thought, answer, user) == size(user, answer, user)
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "3"}]}
    assert size(user, call, call | {"call_id": "b"}, output, output | {"call_id": "b"}) > size(user)


@pytest.mark.parametrize("fields", [
    {"input": None}, {"input": []}, {"input": [{"type": "item_reference", "id": "x"}]}, {"input": 5},
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:9"}]}]},
    {"previous_response_id": "resp_1"}, {"conversation": "c"}, {"background": True}, {"prompt": {"id": "x"}},
    {"truncation": "auto"}, {"text": {"format": {"type": "xml"}}}, {"text": 5}, {"tools": [5]}, {"tools": 5},
    {"tools": [TOOL], "tool_choice": {"type": "function", "name": "no"}}, {"max_output_tokens": 0}, {"reasoning": 5},
    {"reasoning": {"effort": "wild"}}, {"temperature": 9}, {"top_logprobs": 99},
])  # fmt: skip
def test_refusals_name_this_protocols_fields(client: httpx.Client, fields: dict[str, Any]) -> None:
    response = client.post(PATH, json=PLAIN | {"input": "hi"} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert any(name in f"{error['param']} {error['message']}" for name in fields), error


def test_what_is_ignored_is_told(client: httpx.Client) -> None:
    more = {
        "store": True,
        "service_tier": "auto",
        "tools": [{"type": "web_search"}, TOOL],
        "tool_choice": "none",
    }
    response = client.post(PATH, json=PLAIN | {"input": "hi"} | more)
    assert response.status_code == 200 and response.json()["store"] is False
    assert response.headers["x-shoal-ignored"] == "service_tier, store, tools.web_search"
