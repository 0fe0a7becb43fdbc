"""Signing in, one's own account and the admin's views, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serve.conftest import running
from tests.serve.test_page_access import axe, barriers

from shoal.errors import ShoalError
from shoal.serve import accounts as accounts_module
from shoal.serve.accounts import Accounts
from shoal.serve.app import create_app
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

pytestmark = pytest.mark.browser
__all__ = ["axe"]
PASSWORD = "four odd words here"


def no_model(spec: str, progress: Any) -> Any:
    raise ShoalError("there is no model")  # none is needed to sign in


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(accounts_module, "_SCRYPT", (4, 8, 1))
    accounts = Accounts(tmp_path / "chats.sqlite")
    ann = accounts.add_user("ann", PASSWORD, admin=True)
    bill = {"seconds": 12.5, "joules": 100.0, "usd": 0.0002}
    accounts.add_usage(ann.id, "", "nano", 1200, 300, bill)
    accounts.set_limits(ann.id, {"tokens_a_day": 10_000})
    accounts.close()
    store = Store(tmp_path / "chats.sqlite")
    store.create_chat(ann.id, title="Boats of the bay")
    table = ModelTable([ModelCard("none", "none")], no_model)
    with running(create_app(ServerSettings(), table, store)) as url:
        yield url


def seen_by_a_member(browser: Any, server: str, name: str, password: str) -> None:
    """Who is no admin is offered nothing that only admins may do."""
    context = browser.new_context(service_workers="block", locale="en-US")
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(server)
    page.fill("[name=name]", name)
    page.fill("[name=password]", password)
    page.press("[name=password]", "Enter")
    page.click("[aria-haspopup=menu][aria-label^='Model']")
    page.wait_for_selector(".menu [role^=menuitem]")
    assert page.locator(".menu .link").count() == 0
    page.keyboard.press("Escape")
    page.click(f".foot [aria-label='{name}']")
    page.wait_for_selector("dialog >> text=Sign out")
    assert page.locator("dialog >> text=People").count() == 0
    context.close()


def test_from_the_sign_in_to_the_way_out(server: str, browser: Any, axe: str) -> None:
    context = browser.new_context(
        service_workers="block", locale="en-US", viewport={"width": 1200, "height": 900}
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda line: troubles.append(line.text)
            if line.type == "error" and "Failed to load resource" not in line.text else None)  # fmt: skip

    page.goto(server)
    page.wait_for_selector("form.key input[name=password]")
    assert barriers(page, axe) == []
    assert "Boats" not in page.inner_text("body")
    page.fill("[name=name]", "Ann")
    page.fill("[name=password]", "not the password")
    page.press("[name=password]", "Enter")
    assert "wrong" in page.wait_for_selector("form.key [role=alert]").inner_text()
    page.fill("[name=password]", PASSWORD)
    page.press("[name=password]", "Enter")
    page.wait_for_selector(".chats >> text=Boats of the bay")

    page.click(".foot [aria-label=ann]")
    page.wait_for_selector("dialog >> text=nano")
    page.wait_for_selector("dialog >> text=of 10,000 tokens today")
    assert "1.2K" in page.inner_text("dialog .figures") and "$0.0002" in page.inner_text("dialog .figures")
    page.fill("dialog [name=name]", "a script")
    page.fill("dialog [name=tokens]", "1000")
    page.click("dialog >> text=Make a key")
    key = page.wait_for_selector("dialog .secret code").inner_text()
    assert key.startswith("sk-shoal-")
    assert "0 of 1,000 tokens today" in page.inner_text("dialog .library")
    assert barriers(page, axe) == []
    page.click("dialog [aria-label='Revoke “a script”']")
    page.wait_for_selector("dialog .library li", state="detached")
    page.fill("dialog [name=old]", PASSWORD)
    page.fill("dialog [name=new]", "four other odd words")
    page.press("dialog [name=new]", "Enter")
    page.wait_for_selector("dialog >> text=signed out everywhere else")

    page.click("dialog >> text=People")
    page.wait_for_selector("dialog .people >> text=ann")
    page.fill("dialog [name=name]", "田中")
    page.click("dialog button >> text=Add")
    page.wait_for_selector("dialog .people >> text=田中")
    secret = page.inner_text("dialog .secret code")
    assert barriers(page, axe) == []
    page.click("dialog [aria-label='Limits: 田中']")
    page.fill("dialog .people [name=tokens]", "200000")
    page.fill("dialog .people [name=parallel]", "2")
    page.press("dialog .people [name=parallel]", "Enter")
    page.wait_for_selector("dialog .people >> text=never signed in · 0 of 200,000 tokens today · 2 at once")
    page.wait_for_selector("dialog .people form", state="detached")
    page.click("dialog [aria-label='Limits: 田中']")
    assert page.input_value("dialog .people [name=tokens]") == "200000"
    page.fill("dialog .people [name=tokens]", "")
    page.click("dialog .people button >> text=Save")
    page.wait_for_selector("dialog .people >> text=never signed in · 2 at once")
    page.click("dialog [aria-label='Limits: 田中']")
    assert barriers(page, axe) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert barriers(page, axe) == []
    assert page.evaluate(
        "document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth"
    )
    page.set_viewport_size({"width": 1200, "height": 900})
    seen_by_a_member(browser, server, "田中", secret)
    page.click("dialog [aria-label='Remove: 田中']")
    page.click("dialog [aria-label='Delete with all chats: 田中']")
    page.wait_for_selector("dialog .people >> text=田中", state="detached")
    assert "Signed in" in page.inner_text("dialog .figures >> nth=-1")
    assert secret not in page.inner_text("body")
    page.keyboard.press("Escape")

    page.fill("#question", "a draft that is nobody else's")
    page.click(".foot [aria-label=ann]")
    page.click("dialog >> text=Sign out")
    page.wait_for_selector("form.key input[name=password]")
    assert "Boats" not in page.inner_text("body")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('draft:'))") == []
    context.close()
    assert troubles == []
