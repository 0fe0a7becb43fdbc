"""The card: prompts fixed by the seed, text that cannot become markup, verdicts that follow from the figures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from shoal.data.types import Message
from shoal.eval.askers import Answer, EndpointAsker, Prompt
from shoal.eval.card import card, transcripts
from shoal.eval.scores import Mark, scores, summary


class Echo:
    """Answers with the number of messages it was shown."""

    name, thinks = "echo", True

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    def ask(self, prompts: Iterable[Prompt]) -> Iterator[Answer]:
        for prompt in prompts:
            self.prompts.append(prompt)
            yield Answer(f"seen {len(prompt.messages)}", "hm" if prompt.thinking else "", "stop", 2)


def test_transcripts_are_the_first_held_out_chats() -> None:
    one, two = Echo(), Echo()
    first, second = transcripts(one, "en", 8), transcripts(two, "en", 8)
    assert first == second and len(first) == 8 and one.prompts == two.prompts
    assert any(prompt.thinking for prompt in one.prompts) and any(len(chat) > 2 for chat in first)
    for chat in first:
        spoken = [m for m in chat if m.role != "system"]
        assert [m.role for m in spoken] == ["user", "assistant"] * (len(spoken) // 2)
        for place, message in enumerate(chat):
            if message.role == "assistant":
                assert message.content == f"seen {place}"  # each answer saw all that stands before it


def test_transcripts_over_http(openai_server: Callable[..., str]) -> None:
    with contextlib.closing(EndpointAsker(openai_server(lambda body: "はい。"))) as asker:
        chats = transcripts(asker, "ja", 4)
    assert all(chat[-1].content == "はい。" for chat in chats)


def result() -> dict[str, Any]:
    marks = [
        *(Mark("sum", 1, "en", "off", str(i), True) for i in range(20)),
        *(Mark("order", 4, "en", "off", str(i), i < 5) for i in range(20)),
    ]
    return {
        "microworld": "1", "split": "test", "seed": 0, "bits_per_byte": {"en": 0.5},
        "scores": [s.to_dict() for s in scores(marks)], "summary": [s.to_dict() for s in summary(marks)],
    }  # fmt: skip


def test_the_card_says_what_it_cannot_do() -> None:
    pretrain = {
        "kind": "pretrain",
        "tokens": 9000,
        "seconds": 600.0,
        "device": "cpu",
        "joules": 5000.0,
        "usd": None,
    }
    receipt = {"kind": "sft", "tokens": 1000, "seconds": 60.0, "device": "cpu", "joules": None, "usd": 0.01}
    pretrain["details"] = {"bits_per_byte": 0.61234, "tokens": 100}
    receipt["parent"] = pretrain
    receipt["details"] = {"acceptance": 0.7311, "drafted": 4000}
    chat = [Message("user", "hi"), Message("assistant", "```\n# heading", reasoning_content="A greeting.")]
    text = card("tiny", ["Two layers."], result(), {"en": [chat]}, receipt)
    assert "at least 90% right: sum (level 1-2)." in text
    assert "under 70% right: order (level 3-5, 25%)." in text
    assert "| en | 0.500 |" not in text and "| English | 0.500 |" in text
    assert "| sft |  | 73.1% of 4,000 |" in text and "| pretrain | 0.612 |  |" in text
    assert "Measured while" not in card("tiny", [], result(), {}, {"kind": "sft", "details": {}})
    assert "100.0% (83.9-100.0, n=20)" in text
    assert "| pretrain | 9,000 | 600 | cpu | 5 () | unknown |" in text and "| sft | 1,000 |" in text
    assert "````text\nuser: hi\n(A greeting.)\nassistant: ```\n# heading\n````" in text
