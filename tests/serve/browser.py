"""A real Chromium, a real server, and models that recite: what the page's tests share.

A reciter is a real network whose weights are built so that each token leads to one next token. So what a model "writes"
is known to the letter, hostile markup included, and everything between the weights and the pixels is real.
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


def build_reciter(
    folder: Path,
    content: str,
    thoughts: str = "",
    *,
    endless: bool = False,
    call: tuple[str, str] | None = None,
) -> Path:
    """A Qwen3 checkpoint that says `content` whatever the question is; after `thoughts`, if it has any and is asked.

    `call` (name, arguments): without thinking it calls this tool first, and says `content` once it has the result.

    `endless`: it begins again at its end (that of the thoughts, if it has any), until it is stopped or hurried.

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
    named, arguments = (pieces(text) for text in call or ("", ""))
    parts = ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end", "output▁begin", "output▁end")
    specials += [f"<｜tool▁{part}｜>" for part in parts] if call else []
    bos, eos, _, assistant, *marks = range(len(vocab), len(vocab) + len(specials))
    before = [marks[0], *thinking, marks[1]] if thoughts else [assistant]
    chain = [*before, *answer, eos]
    size, width = len(vocab) + len(specials), 128
    embedding = np.random.default_rng(0).normal(size=(size, width)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    follows = dict(itertools.pairwise(chain))
    if call:
        begin, one, sep, end, ends, _, given = marks[2:]
        called = [marks[1], begin, one, *named, sep, *arguments, end, ends, eos]
        follows |= dict(itertools.pairwise(called)) | {given: answer[0]}
    if endless:
        loop = thinking or answer
        follows[loop[-1]] = loop[0]
    head = np.zeros((size, width), np.float32)
    for token, after in follows.items():
        head[after] += 4 * embedding[token]

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


@pytest.fixture(scope="session")
def page_store() -> Store:
    return Store(":memory:")


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory, page_store: Store) -> Iterator[str]:
    """The address of a running server with reciters: `tour` (thinks), `lines` (long), `small` (tiny context), `caller`
    (calls a tool), and two that never end by themselves: `endless` writes, `ponder` thinks."""
    from shoal.engine.open import open_model

    folder = tmp_path_factory.mktemp("page")
    texts = {"tour": (TOUR, THOUGHTS), "lines": (LINES,), "small": (LINES,), "endless": (LINES,),
             "ponder": ("At last: 42.", THOUGHTS), "caller": ("It is sunny in Kobe.", "Hm.")}  # fmt: skip
    about = {"en": "Recites a text about latent attention.", "ja": "潜在注意についての文章を暗唱します。"}
    examples = {"en": ["Show me around"], "ja": ["案内してください"]}
    cards = []
    for name, text in texts.items():
        call = ("weather", '{"city": "Kobe"}') if name == "caller" else None
        spec = str(build_reciter(folder / name, *text, endless=name in ("endless", "ponder"), call=call))
        thinking: Any = "native" if len(text) > 1 else "none"
        cards.append(ModelCard(name, spec, description=about, examples=examples, context=8192, thinking=thinking,
                               size_bytes=1_500_000, parameters=400_000))  # fmt: skip

    def opener(spec: str, progress: Callable[[int, int], None]) -> Any:
        return open_model(
            spec, progress=progress, cache_bytes=1 << 26, context=120 if spec.endswith("small") else None
        )

    table = ModelTable(cards, opener)
    socket, ready = bind("127.0.0.1", 0), threading.Event()
    running = Server(create_app(ServerSettings(), table, page_store), on_ready=ready.set)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
    thread.start()
    assert ready.wait(60)
    yield url_of(socket)
    running.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
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
def open_page(page_server: str, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a profile of its own. At the end: no script error, no CSP report, no foreign address asked."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def new(path: str = "/", *, model: str = "tour", **options: Any) -> Any:
        context = browser.new_context(
            **(
                {"service_workers": "block", "locale": "en-US", "viewport": {"width": 1200, "height": 800}}
                | options
            )
        )
        contexts.append(context)
        context.add_init_script(f"localStorage.setItem('model', localStorage.getItem('model') ?? '{model}')")
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on(
            "console",
            lambda line: (
                troubles.append(line.text)
                if line.type in ("error", "warning")
                and not re.search("net::ERR_FAILED|blocked by Playwright", line.text)
                else None
            ),
        )  # what a test itself cuts off
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: request.url.startswith((page_server, "data:", "blob:"))
                or troubles.append(f"asked {request.url}"))  # fmt: skip
        page.goto(page_server + path)
        page.wait_for_selector(".picker")
        return page

    new.troubles = troubles  # type: ignore[attr-defined]
    yield new
    hacked = [context.pages[0].evaluate("window.hacked") for context in contexts]
    for context in contexts:
        context.close()
    assert troubles == []
    assert hacked == [None] * len(hacked)


def ask(page: Any, text: str, *, wait: bool = True) -> None:
    """Send a question whose words the turn before it does not have, so that its own turn can be told from that one."""
    bubble = f".turn.last .bubble:has-text({json.dumps(text.splitlines()[0][:40], ensure_ascii=False)})"
    assert page.locator(bubble).count() == 0
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.wait_for_selector(bubble)
    if wait:
        finished(page)


def finished(page: Any) -> None:
    """The last answer is at its end. Whoever began, reopened or reloaded it waits first for a sign that this shows."""
    page.wait_for_selector(".turn.last .answer[aria-busy=false]")


def at_rest(page: Any) -> float:
    """Where the thread is scrolled to, once it has not moved for twenty frames."""
    top: float = page.evaluate("""() => new Promise((done) => {
        const box = document.querySelector(".scroll");
        let [last, still] = [box.scrollTop, 0];
        const look = () => {
            still = box.scrollTop === last ? still + 1 : 0;
            last = box.scrollTop;
            if (still >= 20) done(last); else requestAnimationFrame(look);
        };
        look();
    })""")
    return top


def answer_text(page: Any) -> str:
    return page.locator(".turn.last .answer > .markdown").inner_text()


def asked(server: str, page: Any) -> list[dict[str, Any]]:
    """The messages of the open chat as the server has them."""
    chat = page.evaluate("location.hash.slice(1)")
    return page.request.get(f"{server}/api/chats/{chat}").json()["messages"]
