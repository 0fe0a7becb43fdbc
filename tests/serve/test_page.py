"""The chat page in a real browser against the real server and engine (tests/serve/browser.py)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.serve.browser import HOSTILE, LINES, TOUR, answer_text, ask, asked, at_rest, finished
from tests.serve.held import held

from shoal.serve.store import Store

pytestmark = pytest.mark.browser


def test_a_question_is_answered_in_a_stream(open_page: Any, page_server: str) -> None:
    page = open_page(model="lines")
    with held(40):
        page.click(".empty li button")
        page.wait_for_selector("text=Line 3 of a long answer.")
        early = page.locator(".turn.last .markdown > p").count()
        first = page.locator(".turn.last .markdown > p").first.element_handle()
    assert early < 200
    finished(page)
    assert page.locator(".turn.last .markdown > p").all_inner_texts() == LINES.split("\n\n")
    assert first.evaluate("node => node.isConnected")  # finished blocks are left alone
    numbers = page.locator(".turn.last .numbers").inner_text()
    assert re.fullmatch(r"[\d.,]+ tok/s · [\d,]+ tokens · [\d.]+ s to first · (< )?\$[\d.]+", numbers)
    page.click(".turn.last button.numbers")
    page.wait_for_selector("dialog:has-text('Tokens written')")
    page.keyboard.press("Escape")
    assert page.title() == "Show me around · Shoal"
    page.reload()
    finished(page)
    assert page.locator(".turn.last .markdown > p").count() == 200


def test_stop_keeps_the_text_and_the_next_question_works(open_page: Any, page_server: str) -> None:
    page = open_page(model="endless")
    with held(0):
        ask(page, "stop at once", wait=False)
        with page.expect_response("**/stop"):
            page.click(".round.stop")  # before the first token
    finished(page)
    with held(40):
        ask(page, "and stop later", wait=False)
        page.wait_for_selector(".turn.last .answer:has-text('Line 5 of a long answer.')")
        with page.expect_response("**/stop"):
            page.keyboard.press("Escape")
    finished(page)
    assert "Stopped" in page.locator(".turn.last .ending").inner_text()
    assert [m["status"] for m in asked(page_server, page) if m["role"] == "assistant"] == [
        "stopped",
        "stopped",
    ]
    page.reload()
    finished(page)
    assert answer_text(page).startswith("Line 0 of a long answer.")


def test_reload_in_mid_answer_loses_nothing(open_page: Any) -> None:
    page = open_page(model="lines")
    with held(40):
        ask(page, "a long one please", wait=False)
        for _ in range(2):
            page.wait_for_selector(".turn.last .answer[aria-busy=true]:has-text('Line 4 of a long answer.')")
            page.reload()  # in mid-answer, twice
        page.wait_for_selector(".turn.last .answer[aria-busy=true]:has-text('Line 4 of a long answer.')")
    finished(page)
    assert page.locator(".turn.last .markdown > p").all_inner_texts() == LINES.split("\n\n")


def test_regenerate_and_edit_make_a_tree(open_page: Any, page_server: str) -> None:
    page = open_page()
    ask(page, "first wording")
    page.click(".turn.last [aria-label='Answer again']")
    page.wait_for_selector(".answer .versions:has-text('2/2')")
    finished(page)
    page.hover(".question")
    page.click("[aria-label='Edit the question']")
    page.fill(".edit textarea", "second wording")
    page.press(".edit textarea", "Enter")
    page.wait_for_selector(".question .versions:has-text('2/2')")
    finished(page)
    assert page.locator(".bubble").all_inner_texts() == ["second wording"]
    page.click(".question [aria-label='Previous version']")
    page.wait_for_selector(".bubble:has-text('first wording')")
    assert page.locator(".bubble").all_inner_texts() == ["first wording"]
    page.wait_for_selector(".answer .versions:has-text('2/2')")
    page.click(".answer [aria-label='Previous version']")
    page.wait_for_selector(".answer .versions:has-text('1/2')")
    messages = asked(page_server, page)
    questions = [m for m in messages if m["role"] == "user"]
    assert [m["parent_id"] for m in questions] == [None, None]
    answers = [m["parent_id"] for m in messages if m["role"] == "assistant"]
    assert answers == [questions[0]["id"], questions[0]["id"], questions[1]["id"]]
    page.fill("#question", "")
    page.press("#question", "ArrowUp")
    assert page.input_value(".edit textarea") == "first wording"
    page.press(".edit textarea", "Escape")


def test_enter_that_confirms_a_conversion_does_not_send(open_page: Any, page_server: str) -> None:
    page = open_page(locale="ja-JP")
    page.fill("#question", "東京の人口")
    press = """(options) => document.querySelector("#question").dispatchEvent(new KeyboardEvent("keydown",
        {key: "Enter", bubbles: true, cancelable: true, ...options}))"""
    page.evaluate(press, {"isComposing": True})
    page.evaluate(press, {"keyCode": 229})
    ended = """() => document.querySelector("#question").dispatchEvent(
        new CompositionEvent("compositionend", {bubbles: true}))"""
    page.evaluate(
        f"() => {{ ({ended})(); ({press})({{}}); }}"
    )  # Safari's order: the composition has just ended
    page.press("#question", "Shift+Enter")
    page.wait_for_timeout(100)
    assert page.locator(".bubble").count() == 0
    assert page.input_value("#question") == "東京の人口\n"
    page.press("#question", "Enter")
    finished(page)
    assert [m["content"].strip() for m in asked(page_server, page) if m["role"] == "user"] == ["東京の人口"]
    assert page.locator(".bubble").get_attribute("lang") == "ja"


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_sideways_scroll(open_page: Any, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)
    page.fill("#question", "W" * 80)
    page.press("#question", "Enter")  # a phone's Enter breaks the line
    assert page.locator(".bubble").count() == 0
    page.click(".round")
    finished(page)
    sideways = """() => [document.documentElement, document.querySelector(".scroll")]
        .map(node => node.scrollWidth - node.clientWidth)"""
    assert page.evaluate(sideways) == [0, 0]
    page.click("[aria-label='Show the chats']")
    page.wait_for_selector(".sidebar .open")
    assert page.evaluate(sideways) == [0, 0]
    small = """() => [...document.querySelectorAll("button")].filter(node => node.checkVisibility()
        && node.getBoundingClientRect().height < 30).map(node => node.ariaLabel ?? node.textContent)"""
    assert page.evaluate(small) == []


def test_text_is_text_everywhere(open_page: Any, page_server: str) -> None:
    page = open_page()
    page.click(".chip[aria-pressed]")  # DeepThink
    ask(page, HOSTILE)
    page.click(".thoughts > button")
    page.wait_for_selector(".thoughts.full")
    for place in (
        ".bubble",
        ".thoughts .inside",
        ".turn.last .answer > .markdown",
        ".chats li.open",
        ".head h1",
    ):
        assert "<img src=x" in page.locator(place).inner_text()
    assert page.locator(".scroll :is(img, iframe, script, object)").count() == 0
    hrefs = page.locator(".scroll a").evaluate_all(
        "nodes => nodes.map(node => [node.href, node.rel, node.target])"
    )
    assert hrefs == [
        ["https://tracker.example/pixel.png", "noopener noreferrer", "_blank"],
        ["https://example.org/docs", "noopener noreferrer", "_blank"],
    ]
    page.dblclick(".chats li.open a")
    page.fill(".rename", HOSTILE + "!")
    page.press(".rename", "Enter")
    page.wait_for_selector(".head h1:has-text('script>!')")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".empty")


def test_thoughts_open_while_thinking_and_fold_when_the_answer_begins(open_page: Any) -> None:
    page = open_page(model="ponder")
    page.click(".chip[aria-pressed]")
    seen = """() => { window.views = []; new MutationObserver(() => { const node = document.querySelector(".thoughts");
        if (node && window.views.at(-1) !== node.className) window.views.push(node.className); })
        .observe(document.body, {subtree: true, childList: true, attributes: true}); }"""
    page.evaluate(seen)
    with held(400):  # it would think to the end of what it may before anybody had looked
        ask(page, "think first", wait=False)
        page.wait_for_selector(".thoughts.peek:has-text('Then I weigh word 7.')")
        with page.expect_response(lambda response: "/answer-now" in response.url):
            page.click("button:has-text('Answer now')")
    finished(page)
    assert answer_text(page) == "At last: 42."
    assert page.evaluate("window.views") == ["thoughts peek", "thoughts folded"]
    assert re.search(r"Thought for .*\d+ tokens", page.locator(".thoughts > button").inner_text())
    page.set_viewport_size({"width": 1200, "height": 500})
    at_rest(page)  # the new size has been laid out: what moves from here on is the panel's doing
    page.evaluate("document.querySelector('.scroll').scrollTop = 40")
    top = at_rest(page)
    page.click(".thoughts > button")
    page.wait_for_selector(".thoughts.full")
    assert abs(page.evaluate("document.querySelector('.scroll').scrollTop") - top) <= 5
    page.reload()
    finished(page)
    assert page.locator(".thoughts").get_attribute("class") == "thoughts full"
    page.click("[aria-label^='Model:']")
    page.click("[role=menuitemradio]:has-text('lines')")
    page.wait_for_selector(".split", state="detached")  # a model without thinking has no switch


def test_a_reader_who_scrolled_up_is_left_in_peace(open_page: Any) -> None:
    page = open_page(model="lines")
    ask(page, "many lines", wait=False)
    page.wait_for_selector("text=Line 20 of a long answer.")
    page.mouse.move(700, 300)
    page.mouse.wheel(0, -300)
    page.wait_for_selector(".jump")
    top = at_rest(page)  # the wheel has a motion of its own
    finished(page)
    assert abs(page.evaluate("document.querySelector('.scroll').scrollTop") - top) <= 5
    page.click(".jump")
    page.wait_for_selector(".jump", state="detached")
    distance = (
        "(node => node.scrollHeight - node.clientHeight - node.scrollTop)(document.querySelector('.scroll'))"
    )
    assert page.evaluate(distance) <= 1
    with held(0):  # the question moves near the top, and the answer has room below
        ask(page, "the next question", wait=False)
        near = "document.querySelector('.turn.last .bubble').getBoundingClientRect().top"
        page.wait_for_function(f"() => 48 <= {near} && {near} <= 200")
    finished(page)


def test_history_finds_two_japanese_characters(open_page: Any) -> None:
    page = open_page(locale="ja-JP")
    ask(page, "世界の人口を教えて")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".empty")
    ask(page, "ほかの話")
    page.keyboard.press("Control+k")
    page.wait_for_selector("#search:focus")
    page.keyboard.insert_text("人口")
    page.wait_for_selector(".chats li mark:has-text('人口')")
    titles = page.locator(".chats li a > span").all_inner_texts()
    assert "世界の人口を教えて" in titles
    assert "ほかの話" not in titles
    page.fill("#search", "")
    page.wait_for_selector(".chats li:has-text('ほかの話')")
    row = page.locator(".chats li", has_text="ほかの話")
    row.hover()
    row.locator("[aria-label^='「ほかの話」を削除']").click()
    page.wait_for_selector(".chats li:has-text('ほかの話')", state="detached")
    page.wait_for_selector(".empty")
    page.click(".toast button")
    page.wait_for_selector(".chats li.open:has-text('ほかの話')")


def test_what_went_wrong_stands_in_the_thread(open_page: Any, page_server: str) -> None:
    page = open_page(model="small")
    ask(page, "a question that is much too long for so small a context " * 4)
    notice = page.locator(".turn.last .notice.error")
    assert "120" in notice.inner_text()  # the server's own words, with its numbers
    notice.locator("button").click()
    page.wait_for_selector(".answer .versions:has-text('2/2')")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".empty")
    ask(page, "short")
    assert "ran out of room" in page.locator(".turn.last .notice").inner_text()
    assert page.locator(".ring.full").count() == 1
    page.route("**/messages", lambda route: route.abort())
    page.fill("#question", "lost on the way")
    page.press("#question", "Enter")
    page.wait_for_selector(".notice.error:has-text('cannot be reached')")
    assert page.input_value("#question") == "lost on the way"
    page.unroute("**/messages")


def test_every_ending_is_told(open_page: Any, page_store: Store) -> None:
    """What a fast reciter cannot show: endings in mid-thought, and a server whose words are hostile."""
    chat = page_store.create_chat("local", title="endings", model="tour")["id"]
    parent = None
    endings: list[dict[str, Any]] = [
        {"status": "length", "reasoning": "Let me think.", "thinking_seconds": 1.2},
        {"status": "stopped", "reasoning": "I was about to", "thinking_seconds": 3.0},
        {"status": "error", "error": HOSTILE},
        {"status": "done", "content": "x = \\(a\\) costs $5 &amp; $10", "reasoning_tokens": 410, "reasoning": "Hm.",
         "thinking_seconds": 12.34},
    ]  # fmt: skip
    for number, fields in enumerate(endings):
        question = page_store.add_message(
            "local", chat, parent_id=parent, role="user", content=f"question {number}"
        )
        assert question
        answer = page_store.add_message(
            "local", chat, parent_id=question["id"], role="assistant", status="queued", model="tour"
        )
        assert answer and page_store.update_message("local", answer["id"], **fields)
        parent = answer["id"]
    page = open_page(f"/#{chat}")
    page.wait_for_selector(".bubble:has-text('question 3')")
    page.wait_for_selector(".turn >> nth=3")  # the end is drawn first
    page.wait_for_selector(".far", state="detached")
    answers = page.locator(".answer")
    assert "ran out of room while thinking" in answers.nth(0).inner_text()
    assert answers.nth(0).locator(".notice button").inner_text() == "Continue"
    assert "Stopped while thinking" in answers.nth(1).inner_text()
    assert answers.nth(1).locator(".thoughts.folded").count() == 1
    assert "<img src=x" in answers.nth(2).locator(".notice.error").inner_text()
    assert "Thought for 12 s · 410 tokens" in answers.nth(3).inner_text()
    answers.nth(3).locator("> .markdown .katex").wait_for()
    assert "costs $5 & $10" in answers.nth(3).locator("> .markdown").inner_text()


def test_drafts_feedback_and_a_better_answer_are_kept(open_page: Any, page_server: str) -> None:
    page = open_page()
    ask(page, "feedback")
    page.fill("#question", "half a thought")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".empty")
    assert page.input_value("#question") == ""
    page.click(".chats li a")
    finished(page)
    assert page.input_value("#question") == "half a thought"
    with page.expect_response("**/feedback"):
        page.click(".turn.last [aria-label='Good answer']")
    page.click(".turn.last [aria-label='Write a better answer']")
    page.fill("dialog textarea", "my own words")
    with page.expect_response("**/feedback"):
        page.click("dialog .primary")
    page.wait_for_selector(".turn.last [aria-label='Write a better answer'][aria-pressed=true]")
    answer = asked(page_server, page)[-1]
    assert (answer["feedback"], answer["edited"]) == (1, "my own words")


def test_three_languages_and_names_for_everything(open_page: Any) -> None:
    page = open_page(locale="zh-CN")
    assert page.locator("#question").get_attribute("placeholder") == "想问什么都可以"
    page.click(".foot button")
    page.select_option("dialog .choice select >> nth=0", "ja")
    page.wait_for_selector("html[lang=ja]")
    page.wait_for_selector("dialog h2:has-text('設定')")
    page.keyboard.press("Escape")
    page.wait_for_selector("[placeholder='何でも聞いてください']")
    assert page.locator(".empty p").inner_text() == "潜在注意についての文章を暗唱します。"
    page.keyboard.press("Control+/")
    page.wait_for_selector("dialog[open] kbd")
    nameless = """() => [...document.querySelectorAll("button, input, textarea, select")].filter(node =>
        !(node.ariaLabel || node.textContent.trim() || node.labels?.[0]?.textContent.trim()))
        .map(node => node.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Control+b")
    page.wait_for_selector(".app:not(.with-sidebar)")
    ask(page, "status")
    assert page.locator("[aria-live=polite]").inner_text().startswith("回答が終わりました。")


CJK = ["**文。**続き", "含**「重点」**内容", "**年，**年", "**注意：**正文", "**真（括号）**她", "* **具体：**与",
       "*調、*です", "~~削除。~~続", "は**重要**です"]  # fmt: skip
CONTROLS = ["`**文。**`", "\\**文。**続", "* a\n* b", "2*3*4", "***both***", "** 文。 **", "a * b * c",
            "**a *b* c** and ~~d~~", "```\n**文。**続\n```"]  # fmt: skip
MONEY = ["It costs $5, later $10", "$148+ -> $19", "`$HOME` and $HOME/$USER", "only $5"]
FORMULAS = {
    r"\(x^2\)": "x^2",
    r"so \[a+b\] is": "a+b",
    "$$\na\n$$": "a",
    "$x^2$ is": "x^2",
    r"a half-open \(x": "x",
}


def test_markdown_of_all_scripts_whole_and_in_pieces(open_page: Any) -> None:
    page = open_page()
    shapes = page.evaluate(
        """async ([cjk, controls, money, formulas, text]) => {
            const { lex, heal, BlockReader } = await import("/static/markdown.js");
            const { Marked } = await import("/static/lib.js");
            const items = (each) => (each.items ?? []).flatMap((item) => kinds(item.tokens));
            const inside = (each) => [...kinds(each.tokens), ...items(each)];
            const kinds = (tokens) => (tokens ?? []).flatMap((each) => [each.type, ...inside(each)]);
            const plain = new Marked({ gfm: true });
            const formula = (tokens) => (tokens ?? []).flatMap(
                (each) => each.type === "formula" ? [each.text] : formula(each.tokens));
            const whole = kinds(lex(text));
            const splits = [1, 7, 64].map((step) => {
                const reader = new BlockReader();
                for (let end = step; end < text.length; end += step) reader.read(text.slice(0, end), false);
                return JSON.stringify(kinds(reader.read(text, false))) === JSON.stringify(whole);
            });
            return {
                cjk: cjk.map((source) => kinds(lex(source)).some((kind) => ["strong", "em", "del"].includes(kind))),
                controls: controls.map((source) => JSON.stringify(lex(source)) === JSON.stringify(plain.lexer(source))),
                money: money.map((source) => formula(lex(source)).length),
                formulas: formulas.map((source) => formula(lex(heal(source)))),
                healed: ["a **bo", "a `co", "see [x](http", "a **", "**a *b"].map(heal),
                splits,
            };
        }""",
        [CJK, CONTROLS, MONEY, list(FORMULAS), TOUR],
    )
    assert shapes["cjk"] == [True] * 9
    assert shapes["controls"] == [True] * len(CONTROLS)
    assert shapes["money"] == [0] * len(MONEY)
    assert shapes["formulas"] == [[text] for text in FORMULAS.values()]
    assert shapes["healed"] == ["a **bo**", "a `co`", "see x", "a ", "**a *b***"]
    assert shapes["splits"] == [True] * 3
