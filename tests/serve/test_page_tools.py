"""What people do with the page beyond asking: continue, compare, attach, keep, take out, bring in, look closely."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.serve.browser import HOSTILE, LINES, answer_text, ask, asked, finished
from tests.serve.test_page_api import pdf

from shoal.serve.store import Store

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


def choose(page: Any, menu: str, item: str) -> None:
    """An item of a menu by its words."""
    page.click(f"[aria-haspopup=menu][aria-label^='{menu}']")
    page.click(f"[role^=menuitem]:has-text('{item}')")


def settled(page: Any, path: str, action: Callable[[], Any]) -> None:
    """Do something and wait until the server has answered the call it makes."""
    with page.expect_response(lambda response: path in response.url):
        action()


def test_a_stopped_answer_is_continued_in_its_place(
    open_page: Open, page_server: str, page_store: Store
) -> None:
    """What follows is not compared here: a reciter does not know its own text by the tokens it is read in."""
    chat = page_store.create_chat("local", title="cut", model="tour")["id"]
    question = page_store.add_message("local", chat, parent_id=None, role="user", content="go on")
    assert question
    words = {"content": "What was written", "status": "stopped", "model": "tour"}
    page_store.add_message("local", chat, parent_id=question["id"], role="assistant", **words)
    page = open_page(f"/#{chat}")
    settled(page, "/continue", lambda: page.click(".ending .link"))
    page.wait_for_selector(".ending .link", state="detached")
    finished(page)
    (_, answer) = asked(page_server, page)
    assert answer["content"].startswith("What was written") and len(answer["content"]) > len(
        "What was written"
    )
    assert answer_text(page).startswith("What was written") and answer["usage"]["completion_tokens"] > 0


@pytest.mark.slow
def test_effort_is_chosen_and_sent(open_page: Open, page_server: str) -> None:
    page = open_page()
    choose(page, "How long to think", "Max")
    assert page.locator(".split .chip").first.inner_text() == "DeepThink: Max"
    ask(page, "think as long as you like")
    assert asked(page_server, page)[1]["params"]["thinking"] == "max"
    page.click(".split .chip >> nth=0")
    page.wait_for_selector(".split [aria-pressed=false]")
    page.reload()
    finished(page)
    page.click(".split .chip >> nth=0")  # comes back as it was
    page.wait_for_selector(".split.on")
    assert page.locator(".split .chip").first.inner_text() == "DeepThink: Max"


def test_files_and_long_pastes_go_with_the_question(
    open_page: Open, page_server: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_bytes("日本語のメモ".encode("shift_jis"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00\x00\x01")
    (tmp_path / "paper.pdf").write_bytes(base64.b64decode(pdf("From a paper")))
    page = open_page()
    with page.expect_file_chooser() as chooser:
        choose(page, "Add to the question", "Attach files")
    settled(
        page,
        "api/pdf",
        lambda: chooser.value.set_files([tmp_path / n for n in ("notes.txt", "picture.png", "paper.pdf")]),
    )
    page.wait_for_selector(".toast:has-text('picture.png: it is not a text')")  # it goes away by itself
    page.wait_for_selector(".composer .files li:has-text('paper.pdf')")
    paste = """(text) => { const data = new DataTransfer(); data.setData("text/plain", text);
        document.querySelector("#question").dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})); }"""
    page.evaluate(paste, HOSTILE + "x" * 3000)
    page.wait_for_selector(".composer .files li:has-text('pasted-1.txt')")
    page.click("[aria-label='Remove notes.txt']")
    page.click(".composer .files li:has-text('pasted') button >> nth=0")
    assert page.locator("dialog .sheet").inner_text().startswith("<img src=x")
    page.keyboard.press("Escape")
    ask(page, "what is in there")
    files = asked(page_server, page)[0]["files"]
    assert [file["name"] for file in files] == ["paper.pdf", "pasted-1.txt"] and files[0][
        "text"
    ] == "From a paper"
    assert page.locator(".question .files li").count() == 2 and page.locator(".composer .files").count() == 0
    drop = """() => { const data = new DataTransfer(); data.items.add(new File(["a,b"], "table.csv"));
        dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})); }"""
    page.evaluate(drop)
    page.wait_for_selector(".composer .files li:has-text('table.csv')")


@pytest.mark.slow
def test_persona_and_parameters_of_a_chat(open_page: Open, page_server: str) -> None:
    page = open_page()
    choose(page, "Add to the question", "Persona and parameters")
    page.fill("dialog textarea", "You are a pirate.")
    page.click("dialog button:has-text('Personas')")
    page.wait_for_selector("dialog .field")
    page.fill("dialog .field", "Pirate")
    page.fill("dialog textarea", "You are a pirate.")
    settled(page, "api/library", lambda: page.click("dialog .primary"))
    page.wait_for_selector("dialog .library:has-text('Pirate')")
    page.keyboard.press("Escape")
    choose(page, "Add to the question", "Persona and parameters")
    page.wait_for_selector("dialog option:has-text('Pirate')", state="attached")
    page.select_option("dialog select", label="Pirate")
    assert page.input_value("dialog textarea") == "You are a pirate."
    page.fill(".parameter:has-text('Seed') input[type=number]", "7")
    page.fill(".parameter:has-text('Longest') input[type=number]", "5")
    page.click("dialog .primary")
    assert page.locator(".chip.own").inner_text() == "Pirate"
    ask(page, "who are you")
    answer = asked(page_server, page)[1]
    settings = {"persona": "Pirate", "system": "You are a pirate.", "seed": 7, "max_tokens": 5}
    assert answer["params"] == settings | {"thinking": "off"} and answer["usage"]["completion_tokens"] == 5
    page.reload()
    page.click(".chip.own")
    page.click("dialog button:has-text('Reset')")
    settled(page, "api/chats/", lambda: page.click("dialog .primary"))
    page.wait_for_selector(".chip.own", state="detached")


@pytest.mark.slow
def test_prompts_come_after_a_slash(open_page: Open, page_server: str) -> None:
    page = open_page()
    entry = {"kind": "prompt", "name": "Translate", "text": "Translate to {{language}}: hello"}
    made = page.request.post(
        f"{page_server}/api/library", data=entry, headers={"sec-fetch-site": "same-origin"}
    )
    assert made.status == 201
    page.fill("#question", "/tra")
    page.wait_for_selector("#prompts [role=option]:has-text('Translate')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_selector("#prompts", state="detached")
    chosen = """() => new Promise((done) => { const node = document.querySelector("#question"); const look = () => {
        const text = node.value.slice(node.selectionStart, node.selectionEnd);
        if (text) done(text); else requestAnimationFrame(look); }; look(); })"""
    assert page.evaluate(chosen) == "{{language}}"
    page.keyboard.insert_text("Latin")
    assert page.input_value("#question") == "Translate to Latin: hello"
    page.fill("#question", "/usr/bin is a folder")  # no prompt: a path
    assert page.locator("#prompts").count() == 0


def test_a_temporary_chat_is_gone_when_it_is_left(open_page: Open, page_server: str) -> None:
    page = open_page()
    page.click("[aria-label='Temporary chat']")
    page.wait_for_selector(".empty:has-text('Nothing of this chat is stored')")
    ask(page, "my secret")
    assert page.locator(".chats li:has-text('my secret')").count() == 0
    address = f"{page_server}/api/chats/{page.evaluate('location.hash.slice(1)')}"
    assert page.request.get(address).status == 200
    settled(page, "api/chats/t", lambda: page.keyboard.press("Control+Shift+O"))
    assert page.request.get(address).status == 404
    assert "my secret" not in page.evaluate("JSON.stringify({...localStorage})")


def test_two_models_side_by_side_and_a_choice(open_page: Open, page_server: str) -> None:
    page = open_page()
    choose(page, "Add to the question", "Answer beside lines")
    page.fill("#question", "who is better?")
    page.press("#question", "Enter")
    page.wait_for_selector(".pair .answer[aria-busy=false] >> nth=1")
    assert page.locator(".pair > div > h2").all_inner_texts() == ["tour", "lines"]
    page.reload()
    page.wait_for_selector(".pair .better:enabled >> nth=1")
    settled(page, "/prefer", lambda: page.click(".pair .better >> nth=1"))
    page.wait_for_selector(".pair", state="detached")
    assert answer_text(page).startswith("Line 0 of a long answer.")
    assert [message["preference"] for message in asked(page_server, page)] == [0, -1, 1]
    assert page.locator(".answer .versions").inner_text().strip() == "2/2"


def test_two_tabs_on_one_chat_show_the_same(open_page: Open) -> None:
    page = open_page()
    ask(page, "from the first tab")
    other = page.context.new_page()
    other.set_default_timeout(60_000)
    other.goto(page.url)
    finished(other)
    ask(page, "and once more", wait=False)
    other.wait_for_selector(".bubble:has-text('and once more')")
    finished(other)
    finished(page)
    assert answer_text(other) == answer_text(page)


@pytest.mark.slow
def test_thumbs_down_asks_for_a_reason(open_page: Open, page_server: str) -> None:
    page = open_page()
    ask(page, "a bad one")
    settled(page, "/feedback", lambda: page.click(".turn.last [aria-label='Bad answer']"))
    page.click("dialog .chips button:has-text('Wrong facts')")
    page.fill("dialog .field", "it is 42")
    settled(page, "/feedback", lambda: page.click("dialog .primary"))
    answer = asked(page_server, page)[1]
    assert (answer["feedback"], answer["note"]) == (-1, "Wrong facts; it is 42")


def test_the_token_view_tells_probability_and_alternatives(open_page: Open) -> None:
    page = open_page(model="lines")
    choose(page, "Add to the question", "Persona and parameters")
    page.fill(".parameter:has-text('Longest') input[type=number]", "12")
    page.click("dialog .primary")
    page.wait_for_selector("dialog", state="detached")  # below an open one no key reaches the question
    ask(page, "look closely")
    page.click(".turn.last [aria-label='Look at the tokens']")
    page.wait_for_selector(".token >> nth=4")
    shown = "".join(page.locator(".token").all_text_contents()).replace("⏎\n", "\n")
    assert LINES.startswith(shown.replace("⏎", ""))
    page.focus(".token >> nth=0")
    page.keyboard.press("ArrowRight")
    assert page.locator(".alternatives caption").inner_text().startswith("Token 2:")
    assert page.locator(".alternatives tr").count() in (6, 7)
    assert page.locator(".alternatives tr.this").count() == 1


@pytest.mark.slow
def test_pins_stand_above_and_receipts_add_up(open_page: Open, page_server: str) -> None:
    page = open_page()
    ask(page, "the pinned chat")
    ask(page, "and more of it")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".empty")
    ask(page, "a later chat")
    row = page.locator(".chats li", has_text="the pinned chat")
    row.hover()
    row.locator("[aria-label^='Pin']").click()
    page.wait_for_selector(".chats h2:text-is('Pinned')")
    row.locator("a").click()
    page.wait_for_selector(".bubble:has-text('and more of it')")
    choose(page, "More about this chat", "Receipt of this chat")
    page.wait_for_selector("dialog dl")
    rows = {each.locator("dt").inner_text(): each.locator("dd").inner_text()
            for each in page.locator("dialog dl > div").all()}  # fmt: skip
    answers = [m for m in asked(page_server, page) if m["role"] == "assistant"]
    assert rows["Answers"] == "2"
    assert rows["Tokens written"].replace(",", "") == str(
        sum(m["usage"]["completion_tokens"] for m in answers)
    )
    page.keyboard.press("Escape")
    choose(page, "More about this chat", "Unpin")
    page.wait_for_selector(".chats h2:text-is('Pinned')", state="detached")


def test_what_is_exported_can_be_read_trained_on_and_imported(
    open_page: Open, page_server: str, page_store: Store, browser: Any, tmp_path: Path
) -> None:
    page = open_page()
    page.click(".chip[aria-pressed]")
    ask(page, HOSTILE)
    found: dict[str, str] = {}
    for form, name in (
        ("Markdown", "md"),
        ("Web page", "html"),
        ("Training", "jsonl"),
        ("Every branch", "json"),
    ):
        choose(page, "More about this chat", "Export")
        if name == "json":
            page.check("dialog .check input")
        with page.expect_download() as download:
            page.click(f"dialog .forms button:has-text('{form}')")
        assert download.value.suggested_filename.endswith(f".{name}")
        download.value.save_as(tmp_path / f"chat.{name}")
        found[name] = (tmp_path / f"chat.{name}").read_text(encoding="utf-8")
    question, answer = asked(page_server, page)
    assert f"## You\n\n{HOSTILE}" in found["md"] and answer["content"] in found["md"]
    (row,) = [json.loads(line) for line in found["jsonl"].splitlines()]
    assert [m["content"] for m in row["messages"]] == [question["content"], answer["content"]]

    context = browser.new_context()  # without our server: the file must stand alone
    alone = context.new_page()
    asked_for: list[str] = []
    alone.on("request", lambda request: asked_for.append(request.url))
    alone.goto((tmp_path / "chat.html").as_uri())
    assert (
        alone.locator("main h1").inner_text().startswith("<img src=x")
        and alone.evaluate("window.hacked") is None
    )
    assert alone.locator("main :is(img, script, iframe, button)").count() == 0
    assert alone.locator("figure code .hljs-keyword").count() > 0 and alone.locator("table td").count() > 0
    assert len(asked_for) == 1
    context.close()

    page.click(".foot button >> nth=0")
    page.set_input_files("dialog input[type=file]", tmp_path / "chat.json")
    page.wait_for_selector("dialog .notice:has-text('1 chat imported.')")
    page.keyboard.press("Escape")
    copies = [chat for chat in page_store.chats("local", limit=200) if chat["title"].startswith("<img src=x")]
    texts = [[m["content"] for m in page_store.messages("local", chat["id"])] for chat in copies]
    assert texts.count([question["content"], answer["content"]]) >= 2
    assert page_store.messages("local", copies[0]["id"])[1]["reasoning"] == answer["reasoning"]


CHATGPT = [{
    "title": "From elsewhere", "create_time": 1_700_000_000.0, "update_time": 1_700_000_100.0,
    "mapping": {
        "root": {"id": "root", "message": None, "parent": None, "children": ["sys"]},
        "sys": {"id": "sys", "parent": "root", "children": ["q"],
                "message": {"author": {"role": "system"}, "content": {"content_type": "text", "parts": [""]}}},
        "q": {"id": "q", "parent": "sys", "children": ["a1", "tool"],
              "message": {"author": {"role": "user"}, "content": {"parts": ["imported question"]}, "create_time": 1.0}},
        "a1": {"id": "a1", "parent": "q", "children": [],
               "message": {"author": {"role": "assistant"}, "content": {"parts": ["first"]},
                           "metadata": {"model_slug": "gpt-9"}}},
        "tool": {"id": "tool", "parent": "q", "children": ["a2"],
                 "message": {"author": {"role": "tool"}, "content": {"parts": ["{}"]}}},
        "a2": {"id": "a2", "parent": "tool", "children": [],
               "message": {"author": {"role": "assistant"}, "recipient": "all",
                           "content": {"parts": [{"image": 1}, "second"]}}},
    },
}]  # fmt: skip


def test_chatgpts_export_is_imported_with_its_branches(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "conversations.json").write_text(json.dumps(CHATGPT), encoding="utf-8")
    (tmp_path / "other.json").write_text('{"no": "chats"}', encoding="utf-8")
    page = open_page()
    page.click(".foot button >> nth=0")
    page.set_input_files("dialog input[type=file]", tmp_path / "other.json")
    page.wait_for_selector("dialog .notice.error:has-text('holds no chats')")
    page.set_input_files("dialog input[type=file]", tmp_path / "conversations.json")
    page.wait_for_selector("dialog .notice:has-text('1 chat imported.')")
    page.keyboard.press("Escape")
    page.fill("#search", "imported question")
    page.click(".chats li:has-text('From elsewhere'):has(mark) a")  # what was found, not the list before
    page.wait_for_selector(".bubble:has-text('imported question')")
    assert answer_text(page) == "second" and page.locator(".answer .versions").inner_text().strip() == "2/2"
    assert re.search("2023", page.locator(".chats h2").first.inner_text())


def test_formulas_are_set_and_bad_ones_stay_text(open_page: Open, page_store: Store) -> None:
    chat = page_store.create_chat("local", title="maths", model="tour")["id"]
    text = "so \\(a^2\\) and\n\n$$\\frac{1}{2}$$\n\nbut \\(\\href{javascript:hacked=1}{x}\\) and \\(\\nonsense{\\) end"
    question = page_store.add_message("local", chat, parent_id=None, role="user", content="maths")
    assert question
    page_store.add_message("local", chat, parent_id=question["id"], role="assistant", content=text)
    page = open_page(f"/#{chat}")
    page.wait_for_selector(".formula.display .katex-display")
    page.wait_for_selector(".formula .katex msup", state="attached")
    assert page.locator(".answer a").count() == 0
    assert page.locator(".formula").last.inner_text() == "\\nonsense{"
    fonts = """() => document.fonts.ready.then(() =>
        [...document.fonts].some((font) => font.family.includes("KaTeX_Main") && font.status === "loaded"))"""
    assert page.evaluate(fonts)


def test_reading_aloud_skips_marks_and_code(open_page: Open) -> None:
    page = open_page()
    spoken = page.evaluate(
        """async () => { const { spoken, sentences } = await import("/static/speak.js");
            const { lex } = await import("/static/markdown.js");
            const code = "```js\\nno()\\n```";
            const words = "# Title\\n\\n**bold** [link](https://e.org) and `x`.\\n\\n- one\\n- two\\n\\n";
            const text = spoken(lex(words + code));
            return [text, sentences("a. b! 終わり。次" + "x".repeat(500)).map((piece) => piece.length)]; }"""
    )
    assert spoken[0].replace("\n", "|") == "Title|bold link and x.|one. two|"
    assert max(spoken[1]) <= 220 and sum(spoken[1]) == len("a. b! 終わり。次") + 500
