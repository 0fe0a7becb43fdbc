"""For everybody, everywhere: no barriers (axe-core), keyboard only, small screens, a light page, a shell offline."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from tests.serve.browser import TOUR, ask, finished

from shoal.serve.app import create_app
from shoal.serve.listener import Server, bind
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
AXE = ("4.14.1", "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c")
DIALOGS = (
    "keys",
    "receipt",
    "chatReceipt",
    "improve",
    "reason",
    "settings",
    "library",
    "options",
    "export",
    "file",
    "models",
    "tokens",
)
MENUS = ("Add to the question", "Model:", "How long to think", "More about this chat")
OPEN_DIALOG = """async (kind) => { const { state, openDialog } = await import("/static/store.js");
    const message = [...state.chat.messages.values()].at(-1);
    openDialog(kind, { message, entry: "prompt", file: { name: "a.txt", text: "a text" } }); }"""
LIGHT_BYTES = 80 << 10


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """axe-core's source, from npm, checked; kept in pytest's cache."""
    version, digest = AXE
    folder = Path(pytestconfig.cache.mkdir("axe-core"))  # type: ignore[union-attr]
    script = folder / f"axe-{version}.min.js"
    if not script.exists():
        packed = folder / f"axe-core-{version}.tgz"
        if shutil.which("npm"):
            run(["npm", "pack", f"axe-core@{version}", "--silent", "--pack-destination", str(folder)], check=False,
                capture_output=True, timeout=120)  # fmt: skip
        if not packed.exists():
            if os.environ.get("CI") == "true":
                pytest.fail("CI must be able to fetch axe-core from npm")
            pytest.skip("axe-core could not be fetched from npm")
        with tarfile.open(packed) as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            script.write_bytes(member.read())
        packed.unlink()
    assert hashlib.sha256(script.read_bytes()).hexdigest() == digest
    return script.read_text(encoding="utf-8")


def barriers(page: Any, axe: str) -> list[str]:
    """What axe finds on the page as it is, light and dark; minor things too. It must have looked at something."""
    page.evaluate(axe)
    troubles = []
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        found = page.evaluate("() => axe.run(document)")
        assert len(found["passes"]) > 10
        troubles += [
            f"{theme}: {each['impact']} {each['id']} {node['target']}"
            for each in found["violations"]
            for node in each["nodes"]
        ]
    return troubles


@pytest.fixture
def tour(page_store: Store) -> str:
    """The address of a chat with all that an answer can hold, thoughts included."""
    chat = page_store.create_chat("local", title="A tour", model="tour")["id"]
    question = page_store.add_message("local", chat, parent_id=None, role="user", content="Show me",
                                      files=[{"name": "notes.txt", "text": "a text"}])  # fmt: skip
    assert question
    text = f"{TOUR}\n\nand \\(x^2\\) too\n\n- [x] done\n\n> quoted"
    answer = page_store.add_message(
        "local", chat, parent_id=question["id"], role="assistant", content=text, model="tour"
    )
    assert answer
    calls = [{"id": "1", "name": "weather", "arguments": '{"city": "Kobe"}'}]
    page_store.update_message("local", answer["id"], reasoning="I think.", thinking_seconds=3.0, reasoning_tokens=3,
                              tool_calls=calls,
                              usage={"prompt_tokens": 9, "completion_tokens": 99, "cached_tokens": 0})  # fmt: skip
    return f"/#{chat}"


def test_an_answer_has_no_barriers(open_page: Open, axe: str, tour: str) -> None:
    page = open_page(tour)
    page.wait_for_selector(".katex")
    page.wait_for_selector(".hljs-keyword")
    page.click(".thoughts > button")
    assert barriers(page, axe) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_no_view_has_barriers(open_page: Open, axe: str, tour: str, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    assert barriers(page, axe) == [], "empty"
    page.goto(page.url.partition("#")[0] + tour[1:])
    page.reload()
    finished(page)
    for menu in MENUS:
        page.click(f"[aria-haspopup=menu][aria-label^='{menu}']")
        page.wait_for_selector("[role=menu]")
        assert barriers(page, axe) == [], menu
        page.keyboard.press("Escape")
    for kind in DIALOGS:
        page.evaluate(OPEN_DIALOG, kind)
        page.wait_for_selector("dialog[open]")
        if kind == "tokens":
            page.wait_for_selector(".token")
        assert barriers(page, axe) == [], kind
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
    if width < 768:
        page.click("[aria-label='Show the chats']")
        page.wait_for_selector(".sidebar .open")
        assert barriers(page, axe) == [], "chats"
    page.fill("#search", "tour")
    page.wait_for_selector(".chats mark")
    assert barriers(page, axe) == [], "search"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_no_rare_view_has_barriers(
    open_page: Open, axe: str, page_server: str, page_store: Store, width: int
) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    page.click("[aria-label='Temporary chat']")
    assert barriers(page, axe) == [], "temporary"
    page.goto(f"{page_server}/{two_answers(page_store)}")
    page.wait_for_selector(".pair .better >> nth=1")
    assert barriers(page, axe) == [], "side by side, one of them broken off, one calling a tool"
    page.click("[aria-label='Edit the question']")
    page.evaluate("""async () => { const store = await import("/static/store.js");
        store.showToast("Chat deleted", "Undo"); store.setOnline(false);
        Object.assign(store.state, { failure: { message: "Not reached", hint: "Is it running?", retry: () => {} } });
        store.changed(); }""")
    page.wait_for_selector(".edit textarea:focus")
    page.wait_for_selector(".offline")
    assert barriers(page, axe) == [], "editing, offline, a failure and a toast"
    for place, shown in (("#model=nano", ".plot canvas >> nth=1"), ("#receipts=nano", ".chain li")):
        page.goto(f"{page_server}/cost{place}")
        page.reload()
        page.wait_for_selector(shown)
        assert barriers(page, axe) == [], place


def two_answers(store: Store) -> str:
    """The address of a chat where one of two answers side by side broke off and the other asks for a tool."""
    chat = store.create_chat("local", title="Two", model="tour")["id"]
    parent = store.add_message("local", chat, parent_id=None, role="user", content="Which?")
    assert parent
    sides: list[dict[str, Any]] = [
        {"status": "error", "error": "out of memory"},
        {"tool_calls": [{"id": "1", "name": "weather", "arguments": '{"city": "Kobe"}'}]},
    ]
    for model, fields in zip(("tour", "lines"), sides, strict=True):
        made = store.add_message("local", chat, parent_id=parent["id"], role="assistant", content=f"By {model}.",
                                 model=model, params={"beside": True})  # fmt: skip
        assert made
        store.update_message("local", made["id"], **fields)
    return f"#{chat}"


@pytest.mark.parametrize("size", [(320, 640), (640, 400)], ids=["320 px", "200%"])
def test_no_view_needs_sideways_scroll(open_page: Open, tour: str, size: tuple[int, int]) -> None:
    """320 px, and 1280 x 800 at 200%."""
    page = open_page(tour, viewport={"width": size[0], "height": size[1]})
    finished(page)
    sideways = """() => [document.documentElement, ...document.querySelectorAll(".scroll, dialog, .menu")]
        .filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.className || node.tagName)"""
    outside = """() => [...document.querySelectorAll(".menu, dialog")].map((node) => node.getBoundingClientRect())
        .filter(({left, right, top}) => left < 0 || top < 0 || right > innerWidth).length"""
    assert page.evaluate(sideways) == []
    for menu in MENUS:
        page.click(f"[aria-haspopup=menu][aria-label^='{menu}']")
        page.wait_for_selector("[role=menu]")
        assert (page.evaluate(sideways), page.evaluate(outside)) == ([], 0), menu
        page.keyboard.press("Escape")
    for kind in DIALOGS[:-1]:
        page.evaluate(OPEN_DIALOG, kind)
        page.wait_for_selector("dialog[open]")
        assert (page.evaluate(sideways), page.evaluate(outside)) == ([], 0), kind
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")


def test_everything_is_wide_enough_for_a_finger(open_page: Open, tour: str, page_server: str) -> None:
    """44 px on a phone, links within a text and the single tokens of the token view excepted."""
    small = """() => [...(document.querySelector("dialog[open]") ?? document)
        .querySelectorAll("button, a, input, select, summary")]
        .filter((node) => node.checkVisibility() && !node.matches(".markdown :is(a, input), .token, .veil, [inert] *"))
        .map((node) => [node, (node.matches("[type=checkbox], [type=search]") ? node.closest("label") : node)
            .getBoundingClientRect()])
        .filter(([, { width, height }]) => Math.min(width, height) < 43.5)
        .map(([node, { width, height }]) => `${node.outerHTML.slice(0, 120)}: ${width} x ${height}`)"""
    page = open_page(tour, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    finished(page)
    page.click(".thoughts > button")
    assert page.evaluate(small) == []
    for menu in MENUS:
        page.click(f"[aria-haspopup=menu][aria-label^='{menu}']")
        page.wait_for_selector("[role=menu]")
        assert page.evaluate(small) == [], menu
        page.keyboard.press("Escape")
    for kind in DIALOGS[:-1]:
        page.evaluate(OPEN_DIALOG, kind)
        page.wait_for_selector("dialog[open]")
        assert page.evaluate(small) == [], kind
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
    page.click("[aria-label='Show the chats']")
    page.wait_for_selector(".sidebar .open")
    assert page.evaluate(small) == []
    page.goto(f"{page_server}/cost#model=nano")
    page.wait_for_selector("table tbody tr")
    assert page.evaluate(small) == []


def test_everything_can_be_done_by_keyboard(open_page: Open) -> None:
    page = open_page()
    page.wait_for_selector("#question:focus")
    page.keyboard.type("no mouse here")
    page.keyboard.press("Enter")
    page.wait_for_selector(".bubble:has-text('no mouse here')")
    finished(page)
    named = "() => document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"

    def tab_to(name: str, key: str) -> None:
        for _ in range(60):
            if page.evaluate(named).startswith(name):
                return
            page.keyboard.press(key)
        raise AssertionError(f"{name} is not reached by {key}")

    tab_to("Good answer", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("[aria-label='Good answer'][aria-pressed=true]")
    tab_to("More about this chat", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=menuitem]:focus")
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")  # Export
    page.wait_for_selector("dialog .forms")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate(named) == "More about this chat"  # back to where it was
    tab_to("How long to think", "Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=menuitemradio]:focus")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".split.on")


def test_the_page_is_light_before_the_first_token(open_page: Open) -> None:
    """Bytes over the wire, gzip included, of all files that are loaded until an answer stands there."""
    page = open_page(model="lines")
    ask(page, "how heavy are you")
    sizes = page.evaluate("""() => [...performance.getEntriesByType("navigation"),
        ...performance.getEntriesByType("resource")].map((each) => [each.name, each.encodedBodySize])""")
    files = {name.partition("/static/")[2] or name: size for name, size in sizes if "/api/" not in name}
    assert {"app.js", "style.css", "i18n/en.json"} <= files.keys() and all(files.values())
    assert sum(files.values()) <= LIGHT_BYTES, files


def test_trusted_types_are_in_force(open_page: Open) -> None:
    page = open_page()
    refused = page.evaluate("""() => ["innerHTML", "script", "worker"].map((way) => { try {
        if (way === "innerHTML") document.createElement("p").innerHTML = "<b>x</b>";
        else if (way === "script") document.createElement("script").src = "/static/app.js";
        else new Worker("/static/app.js");
        return null; } catch (error) { return error.name; } })""")
    assert refused == ["TypeError"] * 3
    made = page.evaluate("""() => {
        try { trustedTypes.createPolicy("shoal", {}); } catch (error) { return error.name; } }""")
    assert made == "TypeError"  # the page's own policy exists once, and nobody makes another
    open_page.troubles.clear()  # type: ignore[attr-defined] # what was refused on purpose was reported too


def test_a_long_chat_is_drawn_near_the_reader_only(open_page: Open, page_store: Store) -> None:
    chat = page_store.create_chat("local", title="long", model="lines")["id"]
    parent = None
    for number in range(500):
        role = "assistant" if number % 2 else "user"
        text = f"Message **{number}**\n\n```python\nx = {number}\n```" if number % 2 else f"Message {number}"
        made = page_store.add_message("local", chat, parent_id=parent, role=role, content=text)
        assert made
        parent = made["id"]
    page = open_page(f"/#{chat}")
    page.wait_for_selector(".turn.last .hljs-number")
    page.wait_for_selector(".turn >> nth=249", state="attached")
    assert page.locator(".turn").count() == 250
    assert page.locator(".far").count() > 200
    page.evaluate("document.querySelector('.scroll').scrollTop = 0")
    page.wait_for_selector(".turn:first-child .hljs-number")
    assert page.locator(".turn:first-child strong").inner_text() == "1"
    assert page.locator(".far").count() > 180


@contextlib.contextmanager
def server_at(port: int, model: str) -> Iterator[tuple[str, int]]:
    """A server on this port (0: any) that ends with the block."""

    def never(spec: str, progress: Any) -> Any:
        raise NotImplementedError

    sock, ready = bind("127.0.0.1", port), threading.Event()
    app = create_app(
        ServerSettings(), ModelTable([ModelCard(model, "", error="not here")], never), Store(":memory:")
    )
    server = Server(app, on_ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    assert ready.wait(60)
    port = sock.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", port
    finally:
        server.should_exit = True
        thread.join(30)


def test_the_shell_stands_without_its_server_and_heals(browser: Any) -> None:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.set_default_timeout(60_000)
    with server_at(0, "first") as (url, port):
        page.goto(url)
        page.wait_for_selector(".picker")
        manifest = page.evaluate(
            "async () => (await fetch(document.querySelector('link[rel=manifest]').href)).json()"
        )
        assert manifest["start_url"] == "/" and {"192x192", "512x512"} <= {
            icon["sizes"] for icon in manifest["icons"]
        }
        page.evaluate("() => navigator.serviceWorker.ready.then(() => true)")
        page.reload()  # now through the worker, which keeps what comes
        page.wait_for_selector(".picker")
        kept = """async () => { const files = performance.getEntriesByType("resource").map(({ name }) => name)
            .filter((name) => name.includes("/static/"));
            const found = await Promise.all(files.map((name) => caches.match(name)));
            return files.length > 20 && found.every(Boolean); }"""
        page.wait_for_function(kept)
    page.reload()
    page.wait_for_selector(".notice.error:has-text('The server cannot be reached')")
    with server_at(port, "second"):
        page.wait_for_selector(".empty h1:has-text('second')")  # without a hand being moved
    context.close()
