"""The page over an upstream, and its dialog for models, in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.serve.browser import ask
from tests.serve.conftest import running
from tests.serve.faulty import faulty_server

from shoal.cli.serve import Opener, card_of
from shoal.serve.app import create_app
from shoal.serve.models import ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store
from shoal.serve.upstream import Upstreams
from shoal.serve.upstream_file import Price, ServedModel, UpstreamConfig

pytestmark = pytest.mark.browser


def test_an_upstream_and_an_import(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    price = Price(100.0, 200.0, "2026-11-15")
    models = (ServedModel("good", "good", price=price), ServedModel("dies", "dies"))
    shutil.copytree(tiny_model, tmp_path / "imports" / "mine")
    with faulty_server() as server:
        upstreams = Upstreams([UpstreamConfig("far", f"{server.url}/v1", models=models)])
        table = ModelTable([], Opener(), upstreams=upstreams, describe=lambda e: card_of(e.name, e.path, e))
        app = create_app(
            ServerSettings(import_folder=tmp_path / "imports"), table, Store(tmp_path / "c.sqlite")
        )
        with running(app) as url:
            context = browser.new_context(locale="en-US", service_workers="block")
            page = context.new_page()
            troubles: list[str] = []
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.set_default_timeout(60_000)
            page.goto(url)
            ask(page, "hello")
            answer = page.locator("article.answer").last
            answer.locator("footer .numbers").wait_for()
            assert "half an answer" in answer.inner_text() and "$0.0013" in answer.inner_text()
            assert answer.locator("[aria-label*='token' i]").count() == 0, (
                "no token view of a model elsewhere"
            )
            answer.locator("footer .numbers").click()
            page.wait_for_selector("dialog dt:has-text('Energy') + dd:has-text('not known')")
            page.keyboard.press("Escape")

            page.click("[aria-haspopup=menu][aria-label^='Model']")
            menu = page.locator(".menu")
            assert "answered by far" in menu.inner_text() and "$100 in, $200 out" in menu.inner_text()
            page.click("[role^=menuitem]:has-text('dies')")
            ask(page, "again", wait=False)
            page.wait_for_selector(".notice.error:has-text('far ended before its answer was complete')")
            assert "half an answer" in page.locator("article.answer").last.inner_text()

            page.click("[aria-haspopup=menu][aria-label^='Model']")
            page.click(".menu .link")
            page.click("dialog .choice:has-text('mine') button")
            page.wait_for_selector("dialog li:has-text('installed')")
            page.fill("dialog form input", "me/nothing")
            page.click("dialog form .primary")
            page.wait_for_selector("dialog .notice.error:has-text('cannot get me/nothing')")
            page.click("dialog [aria-label='Delete “mine”']")
            page.click("dialog .danger")
            page.wait_for_selector("dialog [aria-label='Delete “mine”']", state="detached")
            assert "mine" not in table.slots and not troubles
            context.close()
