"""How smoothly the chat page runs: the longest task of Chromium's main thread (target: < 50 ms).

    shoal serve nano --port 8765 &
    python benchmarks/page.py http://127.0.0.1:8765

Three things are traced: opening a chat of 500 messages, scrolling through all of it, and an answer growing to 19,000
characters. Told is the longest task in milliseconds of the main thread's own CPU time, as Chromium's trace has it: what
others do on the machine meanwhile does not count. The chat is imported as "benchmark" and deleted at the end.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

from playwright.sync_api import sync_playwright

MESSAGES = 500
CODE = "\n\n```python\ndef add(a, b):\n    return a + b\n```\n\n"
ANSWER = (
    f"Answer with **bold** words, `code` and a list:\n\n- one\n- two\n- three{CODE}and an end. "
    + "Some more words. " * 30
)
SCROLL = """() => new Promise((done) => { const box = document.querySelector(".scroll");
    const step = () => { const before = box.scrollTop; box.scrollTop -= 240;
        if (box.scrollTop < before) requestAnimationFrame(step); else done(); };
    requestAnimationFrame(step); })"""
STREAM = """async (text) => { const { html, render } = await import("/static/lib.js");
    const { Blocks } = await import("/static/blocks.js");
    const box = document.createElement("div"); document.querySelector(".column").append(box);
    for (let end = 40; end < text.length; end += 40) {
        render(html`<${Blocks} text=${text.slice(0, end)} finished=${false} />`, box);
        box.getBoundingClientRect();
        await new Promise((next) => setTimeout(next)); }
    box.remove(); }"""


def chat() -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for number in range(MESSAGES):
        role, content = ("assistant", ANSWER) if number % 2 else ("user", f"Question {number}?")
        parent = rows[-1]["id"] if rows else None
        rows.append({"id": str(number), "parent_id": parent, "role": role, "content": content})
    return {"title": "benchmark", "messages": rows}


def longest(trace: bytes) -> str:
    """The longest tasks of the page's main thread in a trace."""
    events = json.loads(trace)["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    tasks = [e["tdur"] / 1000 for e in events if e.get("ph") == "X" and e["name"].endswith("RunTask") and "tdur" in e
             and names.get((e["pid"], e["tid"])) == "CrRendererMain"]  # fmt: skip
    tasks.sort()
    return f"{len(tasks)} tasks, 99.9% {tasks[int(0.999 * len(tasks))]:.1f} ms, longest {tasks[-1]:.1f} ms"


def main(address: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
        page.set_default_timeout(300_000)
        same = {"sec-fetch-site": "same-origin", "content-type": "application/json"}
        made = page.request.post(f"{address}/api/imports", data=json.dumps(chat()), headers=same).json()["id"]

        def traced(name: str, work: Callable[[], Any]) -> None:
            browser.start_tracing(page=page, categories=["toplevel"])
            work()
            print(f"{name}: {longest(browser.stop_tracing())}")

        def opened() -> None:
            page.goto(f"{address}/#{made}")
            page.wait_for_selector(".turn.last .hljs-keyword")
            page.wait_for_timeout(1_000)

        try:
            traced(f"opening {MESSAGES} messages", opened)
            traced("scrolling to its top", lambda: page.evaluate(SCROLL))
            traced(
                f"an answer growing to {len(ANSWER * 30)} characters",
                lambda: page.evaluate(STREAM, ANSWER * 30),
            )
        finally:
            page.request.delete(f"{address}/api/chats/{made}", headers=same)
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
