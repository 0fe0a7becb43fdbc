"""An answer that calls a tool: the page shows the call, a person gives the result, the model goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.serve.browser import answer_text, ask, asked, finished
from tests.serve.test_page_tools import choose, settled

from shoal.serve.feedback_rows import rows
from shoal.serve.store import Store

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_a_call_is_shown_and_its_result_goes_back(
    open_page: Open, page_server: str, page_store: Store, tmp_path: Path
) -> None:
    page = open_page(model="caller")
    choose(page, "Add to the question", "Persona and parameters")
    page.click("dialog summary:has-text('Tools')")
    page.fill("dialog .source", "[{")
    page.wait_for_selector("dialog [role=alert]")
    assert page.locator("dialog .primary").is_disabled()
    page.fill("dialog .source", json.dumps([WEATHER]))
    page.click("dialog .primary")
    page.wait_for_selector("dialog", state="detached")
    ask(page, "How is the weather in Kobe?")
    card = page.locator(".turn.last .calls li")
    assert card.locator("b").inner_text() == "weather"
    assert card.locator("pre").inner_text() == json.dumps({"city": "Kobe"}, indent=2)
    page.fill(".calls textarea", " ")
    assert page.locator(".calls .primary").is_disabled()  # without a result there is nothing to send
    page.fill(".calls textarea", "<b>sunny</b>, 21 degrees")
    settled(page, "/results", lambda: page.click(".calls .primary"))
    page.wait_for_selector(".turn.last .answer .markdown:has-text('It is sunny in Kobe.')")
    finished(page)
    page.reload()
    page.wait_for_selector(".calls:has-text('<b>sunny</b>, 21 degrees')")
    assert page.locator(".calls textarea").count() == page.locator(".scroll pre b").count() == 0
    assert answer_text(page) == "It is sunny in Kobe."
    question, called, answer = asked(page_server, page)
    (call,) = called["tool_calls"]
    assert (call["name"], call["result"]) == ("weather", "<b>sunny</b>, 21 degrees")
    assert [called["parent_id"], answer["parent_id"]] == [question["id"], called["id"]]
    chat = page.evaluate("location.hash.slice(1)")
    again = page.request.post(
        f"{page_server}/api/chats/{chat}/messages/{called['id']}/results",
        data={"results": [{"id": call["id"], "result": "rain"}]},
        headers={"sec-fetch-site": "same-origin"},
    )
    assert again.status == 409

    settled(
        page, "/feedback", lambda: page.click(".turn.last .answer >> nth=-1 >> [aria-label='Good answer']")
    )
    (row,) = [
        row
        for row in rows(page_store, "local", "sft")
        if row["messages"][-1]["content"] == "It is sunny in Kobe."
    ]
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    choose(page, "More about this chat", "Export")
    with page.expect_download() as download:
        page.click("dialog .forms button:has-text('Training')")
    download.value.save_as(tmp_path / "chat.jsonl")
    (exported,) = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text("utf-8").splitlines()]
    names = ("role", "content", "tool_calls", "tool_call_id")
    shown = [
        [{k: turn[k] for k in names if k in turn} for turn in each["messages"]]
        for each in (json.loads(json.dumps(row)), exported)
    ]
    assert shown[0] == shown[1]


def test_a_call_can_be_left_without_a_result(open_page: Open, page_server: str) -> None:
    page = open_page(model="caller")
    choose(page, "Add to the question", "Persona and parameters")
    page.click("dialog summary:has-text('Tools')")
    page.fill("dialog .source", json.dumps([{"type": "function", "function": WEATHER}]))
    page.click("dialog .primary")
    page.wait_for_selector("dialog", state="detached")
    ask(page, "first")
    page.wait_for_selector(".turn.last .calls textarea")
    ask(page, "never mind")
    page.wait_for_selector(".turn.last .calls textarea")  # the reciter calls again
    statuses = [message["status"] for message in asked(page_server, page)]
    assert statuses == ["done"] * 4
