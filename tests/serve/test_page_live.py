"""Two devices on one chat, and a server that dies in mid-answer: what a page shows without a hand being moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.serve.browser import answer_text, ask, asked, finished
from tests.serve.held import held

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


def test_two_devices_on_one_chat_see_the_same(open_page: Open, page_server: str) -> None:
    """Two profiles: nothing but the server connects them."""
    first = open_page(model="lines")
    second = open_page(model="lines")
    with held(40):
        ask(first, "asked on the first device", wait=False)
        second.click(".chats li:has-text('asked on the first device') a")  # it came into the list by itself
        for page in (first, second):
            page.wait_for_selector(".turn.last .answer[aria-busy=true]:has-text('Line 3 of a long answer.')")
    for page in (first, second):
        finished(page)
    assert answer_text(first) == answer_text(second)

    with held(40):
        ask(second, "and now on the second", wait=False)
        first.wait_for_selector(".bubble:has-text('and now on the second')")
        first.wait_for_selector(".turn.last .answer[aria-busy=true]:has-text('Line 3 of a long answer.')")
        with first.expect_response("**/stop"):
            first.click(".round.stop")
    for page in (first, second):
        page.wait_for_selector(".turn.last .ending:has-text('Stopped')")

    with held(40):
        first.click(".turn.last [aria-label='Answer again']")
        second.wait_for_selector(".turn.last .answer[aria-busy=true]")  # the version that is being written
    for page in (first, second):
        page.wait_for_selector(".turn.last .versions:has-text('2/2')")
        finished(page)

    first.click(".turn.last [aria-label='Good answer']")
    second.wait_for_selector(".turn.last [aria-label='Good answer'][aria-pressed=true]")
    second.dblclick(".chats li.open a")
    second.fill(".rename", "renamed on the second")
    second.press(".rename", "Enter")
    first.wait_for_selector(".head h1:has-text('renamed on the second')")
    first.wait_for_selector(".chats li.open:has-text('renamed on the second')")
    assert len(asked(page_server, first)) == 5
    row = first.locator(".chats li.open")
    row.hover()
    row.locator("[aria-label^='Delete']").click()
    second.wait_for_selector(".empty")
    second.wait_for_selector(".toast:has-text('Chat deleted')")
    troubles = open_page.troubles  # type: ignore[attr-defined]
    assert len(troubles) == 1 and "404" in troubles.pop()  # the browser's own note that the chat is gone


def test_a_tab_that_was_away_catches_up(open_page: Open) -> None:
    first = open_page(model="lines")
    ask(first, "before the pause")
    second = open_page(f"/{first.evaluate('location.hash')}", model="lines")
    finished(second)
    hide = """(hidden) => { Object.defineProperty(document, "hidden", {get: () => hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange")); }"""
    with second.expect_event("requestfailed", lambda request: "api/changes" in request.url):
        second.evaluate(hide, True)  # a tab in the background lets its connection go
    ask(first, "during the pause")
    assert second.locator(".bubble:has-text('during the pause')").count() == 0
    second.evaluate(hide, False)
    second.wait_for_selector(".bubble:has-text('during the pause')")
    finished(second)
    assert answer_text(first) == answer_text(second)


def test_what_is_asked_of_an_answer_outlives_a_change_from_elsewhere(
    open_page: Open, page_server: str
) -> None:
    """The server does not tell that an answer was hurried or is being stopped: the page keeps that by itself."""
    live = """async () => { const { state } = await import("/static/store.js");
        const [{ hurried, stopping, thinkingSince }] = state.live.values();
        return [hurried ?? false, stopping ?? false, thinkingSince ?? 0]; }"""

    def renamed(page: Any, title: str) -> None:
        chat = page.evaluate("location.hash.slice(1)")
        page.request.patch(f"{page_server}/api/chats/{chat}", data={"title": title},
                           headers={"sec-fetch-site": "same-origin"})  # fmt: skip
        page.wait_for_selector(f".head h1:has-text('{title}')")

    page = open_page(model="ponder")
    page.click(".split .chip >> nth=0")
    page.wait_for_selector(".split.on")
    with held(40):
        ask(page, "think of a number", wait=False)
        page.wait_for_selector(".thoughts:has-text('First I look')")
        page.click(".hurry")
        before = page.evaluate(live)
        renamed(page, "hurried")
        assert page.evaluate(live) == before and before[0] and before[2] > 0
        assert page.locator(".hurry").is_disabled()
    finished(page)
    assert answer_text(page) == "At last: 42."

    page = open_page(model="endless")
    with held(40):
        ask(page, "write for ever", wait=False)
        page.wait_for_selector(".turn.last .answer[aria-busy=true]:has-text('Line 3 of a long answer.')")
        page.click(".round.stop")
        page.wait_for_selector(".waiting:has-text('Stopping')")
        renamed(page, "stopped")
        assert page.evaluate(live) == [False, True, 0]
        assert page.locator(".waiting:has-text('Stopping')").count() == 1
    page.wait_for_selector(".turn.last .ending:has-text('Stopped')")
