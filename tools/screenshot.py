"""Take docs/screenshot.png again: a real conversation with the model a running server offers first.

    shoal serve smollm2 --port 8765 &
    python tools/screenshot.py http://127.0.0.1:8765

Do it on an idle machine: the speed under each answer is in the picture. Needs playwright and Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

QUESTIONS = (
    "Explain photosynthesis in two sentences.",
    "Why is the sky blue? Answer in two sentences.",
    "Write a Python function that adds two numbers.",
)
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "screenshot.png"
WAIT_MS = 300_000


def main(address: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_context(
            viewport={"width": 1180, "height": 740}, device_scale_factor=2, locale="en-US"
        ).new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(address)
        page.wait_for_selector(".picker")
        for question in QUESTIONS:
            page.fill("#question", question)
            page.press("#question", "Enter")
            page.wait_for_selector(".turn.last .answer[aria-busy=true]")
            page.wait_for_selector(".turn.last .answer[aria-busy=false]")
            if question == QUESTIONS[0]:  # a chat of its own, so that the list shows two
                page.keyboard.press("Control+Shift+O")
                page.wait_for_selector(".empty")
        page.reload()
        page.wait_for_selector(".turn.last .answer[aria-busy=false]")
        page.wait_for_timeout(1_500)  # the colours of the code
        page.screenshot(path=PICTURE)
        browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size >> 10} KB")


if __name__ == "__main__":
    main(sys.argv[1])
