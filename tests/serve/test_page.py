"""The chat page in a real browser against the real server and engine.

The models recite: real networks whose weights are built so that each token leads to one next token. So what a model
"writes" is known to the letter, hostile markup included, and everything between the weights and the pixels is real.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.serve.app import create_app
from shoal.serve.listener import Server, bind, url_of
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

pytestmark = pytest.mark.browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = (
    "<img src=x onerror=\"window.hacked=1\"> <svg/onload='window.hacked=2'>"
    " <iframe srcdoc='<script>parent.hacked=3</script>'> [go](javascript:window.hacked=4)"
    " <script>window.hacked=5</script>"
)
THOUGHTS = (
    "First I look at the question. "
    + HOSTILE
    + "\n\n"
    + " ".join(f"Then I weigh word {i}." for i in range(90))
)
TOUR = f"""# A short tour

Latent attention keeps **one small vector** per token. It costs $5, later $10. 含**「重点」**内容。

- first
- second

```python
def attend(query):
    return query  # {"x" * 90}
```

| model | bytes per token and layer, cache included |
|---|--:|
| dense | 114688 |

{HOSTILE}

![remote](https://tracker.example/pixel.png) and [a page](https://example.org/docs). The end of the tour."""
LINES = "\n\n".join(f"Line {i} of a long answer." for i in range(200))


def build_reciter(folder: Path, content: str, thoughts: str = "") -> Path:
    """A Qwen3 checkpoint that says `content` whatever the question is; after `thoughts`, if it has any and is asked.

    Attention and MLP write zeros, so a token's hidden state is its own random direction, and the head maps it to the
    next token of the text. No token occurs twice: pieces grow from eight bytes until they are new.
    """
    from safetensors.numpy import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocab = {letters[byte]: byte for byte in range(256)}

    def spelt(data: bytes) -> str:
        return "".join(letters[byte] for byte in data)

    def pieces(text: str) -> list[int]:
        data, start, cuts = text.encode(), 0, [0]
        while start < len(data):
            end = min(start + 8, len(data))
            while spelt(data[start:end]) in vocab and end < len(data):
                end += 1
            if spelt(data[start:end]) in vocab:  # the rest is no news: it joins the piece before
                del cuts[-1]
                start = cuts[-1]
            vocab.setdefault(spelt(data[start:end]), len(vocab))
            start = end
            cuts.append(start)
        return [vocab[spelt(data[a:b])] for a, b in itertools.pairwise(cuts)]

    thinking, answer = pieces(thoughts), pieces(content)
    specials = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    specials += ["<think>", "</think>"] if thoughts else []
    bos, eos, _, assistant, *marks = range(len(vocab), len(vocab) + len(specials))
    before = [marks[0], *thinking, marks[1]] if thoughts else [assistant]
    chain = [*before, *answer, eos]
    size, width = len(vocab) + len(specials), 128
    embedding = np.random.default_rng(0).normal(size=(size, width)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    head = np.zeros((size, width), np.float32)
    head[chain[1:]] = 4 * embedding[chain[:-1]]

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": specials[0], "eos_token": specials[1], "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    config = {
        "model_type": "qwen3", "vocab_size": size, "hidden_size": width, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 64, "num_key_value_heads": 2,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "bos_token_id": bos, "eos_token_id": eos,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    layer, ones = "model.layers.0.", np.ones(width, np.float32)
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (64, width), "mlp.up_proj": (64, width), "mlp.down_proj": (width, 64)}
    tensors = {f"{layer}{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors |= {f"{layer}{name}.weight": ones for name in ("input_layernorm", "post_attention_layernorm")}
    tensors |= {f"{layer}self_attn.{name}_norm.weight": np.ones(64, np.float32) for name in "qk"}
    tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": ones}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def store() -> Store:
    return Store(":memory:")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[str]:
    """The address of a running server with three reciters: `tour` (thinks), `lines` (long), `small` (tiny context)."""
    from shoal.engine.open import open_model

    folder = tmp_path_factory.mktemp("page")
    texts = {"tour": (TOUR, THOUGHTS), "lines": (LINES,), "small": (LINES,)}
    about = {"en": "Recites a text about latent attention.", "ja": "潜在注意についての文章を暗唱します。"}
    examples = {"en": ["Show me around"], "ja": ["案内してください"]}
    cards = [
        ModelCard(name, str(build_reciter(folder / name, *text)), description=about, examples=examples, context=8192,
                  thinking="native" if name == "tour" else "none", size_bytes=1_500_000, parameters=400_000)
        for name, text in texts.items()
    ]  # fmt: skip

    def opener(spec: str, progress: Callable[[int, int], None]) -> Any:
        return open_model(
            spec, progress=progress, cache_bytes=1 << 26, context=120 if spec.endswith("small") else None
        )

    table = ModelTable(cards, opener)
    socket, ready = bind("127.0.0.1", 0), threading.Event()
    running = Server(create_app(ServerSettings(), table, store), on_ready=ready.set)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
    thread.start()
    assert ready.wait(60)
    yield url_of(socket)
    running.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have a Chromium: install Debian's `chromium`")
        pytest.skip("no Chromium was found on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def open_page(server: str, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a profile of its own. At the end: no script error, no CSP report, no foreign address asked."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def new(path: str = "/", *, model: str = "tour", **options: Any) -> Any:
        context = browser.new_context(
            **({"locale": "en-US", "viewport": {"width": 1200, "height": 800}} | options)
        )
        contexts.append(context)
        context.add_init_script(f"localStorage.setItem('model', localStorage.getItem('model') ?? '{model}')")
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on(
            "console",
            lambda line: (
                troubles.append(line.text)
                if line.type in ("error", "warning") and "net::ERR_FAILED" not in line.text
                else None
            ),
        )  # what a test itself cuts off
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: request.url.startswith((server, "data:", "blob:"))
                or troubles.append(f"asked {request.url}"))  # fmt: skip
        page.goto(server + path)
        page.wait_for_selector(".picker")
        return page

    yield new
    hacked = [context.pages[0].evaluate("window.hacked") for context in contexts]
    for context in contexts:
        context.close()
    assert troubles == []
    assert hacked == [None] * len(hacked)


def ask(page: Any, text: str, *, wait: bool = True) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.wait_for_selector(f".bubble:has-text({json.dumps(text.splitlines()[0][:40], ensure_ascii=False)})")
    if wait:
        finished(page)


def finished(page: Any) -> None:
    page.wait_for_selector(".turn.last .answer[aria-busy=false]")


def answer_text(page: Any) -> str:
    return page.locator(".turn.last .answer > .markdown").inner_text()


def asked(server: str, page: Any) -> list[dict[str, Any]]:
    """The messages of the open chat as the server has them."""
    chat = page.evaluate("location.hash.slice(1)")
    return page.request.get(f"{server}/api/chats/{chat}").json()["messages"]


def test_a_question_is_answered_in_a_stream(open_page: Any, server: str) -> None:
    page = open_page(model="lines")
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


def test_stop_keeps_the_text_and_the_next_question_works(open_page: Any, server: str) -> None:
    page = open_page(model="lines")
    ask(page, "stop at once", wait=False)
    page.click(".round.stop")  # perhaps before the first token
    finished(page)
    ask(page, "and stop later", wait=False)
    # The last answer's fifth line: the first answer may have come as far before it was stopped.
    page.wait_for_selector(".turn.last .answer:has-text('Line 5 of a long answer.')")
    page.keyboard.press("Escape")
    finished(page)
    assert "Stopped" in page.locator(".turn.last .ending").inner_text()
    assert [m["status"] for m in asked(server, page) if m["role"] == "assistant"] == ["stopped", "stopped"]
    page.reload()
    finished(page)
    assert answer_text(page).startswith("Line 0 of a long answer.")
    assert len(answer_text(page)) < len(LINES)


def test_reload_in_mid_answer_loses_nothing(open_page: Any) -> None:
    page = open_page(model="lines")
    ask(page, "a long one please", wait=False)
    page.wait_for_selector(".turn.last .answer[aria-busy=true]:has-text('Line 4 of a long answer.')")
    page.reload()  # in mid-answer; a quick machine may be done before the page is back
    finished(page)
    assert page.locator(".turn.last .markdown > p").all_inner_texts() == LINES.split("\n\n")


def test_regenerate_and_edit_make_a_tree(open_page: Any, server: str) -> None:
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
    messages = asked(server, page)
    questions = [m for m in messages if m["role"] == "user"]
    assert [m["parent_id"] for m in questions] == [None, None]
    answers = [m["parent_id"] for m in messages if m["role"] == "assistant"]
    assert answers == [questions[0]["id"], questions[0]["id"], questions[1]["id"]]
    page.fill("#question", "")
    page.press("#question", "ArrowUp")
    assert page.input_value(".edit textarea") == "first wording"
    page.press(".edit textarea", "Escape")


def test_enter_that_confirms_a_conversion_does_not_send(open_page: Any, server: str) -> None:
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
    assert [m["content"].strip() for m in asked(server, page) if m["role"] == "user"] == ["東京の人口"]
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


def test_text_is_text_everywhere(open_page: Any, server: str) -> None:
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
    page = open_page()
    page.click(".chip[aria-pressed]")
    seen = """() => { window.views = []; new MutationObserver(() => { const node = document.querySelector(".thoughts");
        if (node && window.views.at(-1) !== node.className) window.views.push(node.className); })
        .observe(document.body, {subtree: true, childList: true, attributes: true}); }"""
    page.evaluate(seen)
    ask(page, "think first")
    assert page.evaluate("window.views") == ["thoughts peek", "thoughts folded"]
    assert re.search(r"Thought for .*\d+ tokens", page.locator(".thoughts > button").inner_text())
    page.set_viewport_size({"width": 1200, "height": 500})
    settle = "() => new Promise(done => setTimeout(() => requestAnimationFrame(done), 300))"
    page.evaluate(settle)  # the new size has been laid out: what moves from here on is the panel's doing
    page.evaluate("document.querySelector('.scroll').scrollTop = 40")
    page.evaluate(settle)
    top = page.evaluate("document.querySelector('.scroll').scrollTop")
    page.click(".thoughts > button")
    page.wait_for_selector(".thoughts.full")
    assert abs(page.evaluate("document.querySelector('.scroll').scrollTop") - top) <= 5
    page.reload()
    finished(page)
    assert page.locator(".thoughts").get_attribute("class") == "thoughts full"
    page.click(".picker > .chip")
    page.click("[role=menuitemradio]:has-text('lines')")
    page.wait_for_selector(".chip[aria-pressed]", state="detached")  # a model without thinking has no switch


def test_a_reader_who_scrolled_up_is_left_in_peace(open_page: Any) -> None:
    page = open_page(model="lines")
    ask(page, "many lines", wait=False)
    page.wait_for_selector("text=Line 20 of a long answer.")
    page.mouse.move(700, 300)
    page.mouse.wheel(0, -300)
    page.wait_for_selector(".jump")
    page.wait_for_timeout(300)  # the wheel's own motion
    top = page.evaluate("document.querySelector('.scroll').scrollTop")
    finished(page)
    assert abs(page.evaluate("document.querySelector('.scroll').scrollTop") - top) <= 5
    page.click(".jump")
    page.wait_for_selector(".jump", state="detached")
    distance = (
        "(node => node.scrollHeight - node.clientHeight - node.scrollTop)(document.querySelector('.scroll'))"
    )
    assert page.evaluate(distance) <= 1
    ask(page, "the next question", wait=False)
    box = page.locator(".turn.last .bubble").bounding_box()
    page.wait_for_timeout(150)
    assert 48 <= box["y"] <= 200  # the question moves near the top, and the answer has room below


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


def test_what_went_wrong_stands_in_the_thread(open_page: Any, server: str) -> None:
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


def test_every_ending_is_told(open_page: Any, store: Store) -> None:
    """What a fast reciter cannot show: endings in mid-thought, and a server whose words are hostile."""
    chat = store.create_chat("local", title="endings", model="tour")["id"]
    parent = None
    endings: list[dict[str, Any]] = [
        {"status": "length", "reasoning": "Let me think.", "thinking_seconds": 1.2},
        {"status": "stopped", "reasoning": "I was about to", "thinking_seconds": 3.0},
        {"status": "error", "error": HOSTILE},
        {"status": "done", "content": "x = \\(a\\) costs $5 &amp; $10", "reasoning_tokens": 410, "reasoning": "Hm.",
         "thinking_seconds": 12.34},
    ]  # fmt: skip
    for number, fields in enumerate(endings):
        question = store.add_message(
            "local", chat, parent_id=parent, role="user", content=f"question {number}"
        )
        assert question
        answer = store.add_message(
            "local", chat, parent_id=question["id"], role="assistant", status="queued", model="tour"
        )
        assert answer and store.update_message("local", answer["id"], **fields)
        parent = answer["id"]
    page = open_page(f"/#{chat}")
    page.wait_for_selector(".bubble:has-text('question 3')")
    answers = page.locator(".answer")
    assert "ran out of room while thinking" in answers.nth(0).inner_text()
    assert answers.nth(0).locator(".notice button").inner_text() == "Continue"
    assert "Stopped while thinking" in answers.nth(1).inner_text()
    assert answers.nth(1).locator(".thoughts.folded").count() == 1
    assert "<img src=x" in answers.nth(2).locator(".notice.error").inner_text()
    assert "Thought for 12 s · 410 tokens" in answers.nth(3).inner_text()
    assert answers.nth(3).locator("> .markdown").inner_text() == "x = a costs $5 & $10"


def test_drafts_feedback_and_a_better_answer_are_kept(open_page: Any, server: str) -> None:
    page = open_page()
    ask(page, "feedback")
    page.fill("#question", "half a thought")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".empty")
    assert page.input_value("#question") == ""
    page.click(".chats li a")
    finished(page)
    assert page.input_value("#question") == "half a thought"
    page.click(".turn.last [aria-label='Good answer']")
    page.click(".turn.last [aria-label='Write a better answer']")
    page.fill("dialog textarea", "my own words")
    page.click("dialog .primary")
    page.wait_for_selector(".turn.last [aria-label='Write a better answer'][aria-pressed=true]")
    page.wait_for_timeout(100)
    answer = asked(server, page)[-1]
    assert (answer["feedback"], answer["edited"]) == (1, "my own words")


def test_three_languages_and_names_for_everything(open_page: Any) -> None:
    page = open_page(locale="zh-CN")
    assert page.locator("#question").get_attribute("placeholder") == "想问什么都可以"
    page.select_option(".foot select", "ja")
    page.wait_for_selector("html[lang=ja]")
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
