"""Conversations through the engine: reasoning apart from content, budgets, the real model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.apart import run_apart

from shoal.data.tokenizer import Tokenizer
from shoal.engine.chat import ChatEvent, stream_chat, thinking_of
from shoal.engine.open import OpenedModel, open_model
from shoal.engine.types import Finished, SamplingParams, Usage
from shoal.errors import ShoalError, UsageError
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.transformer import CausalLM

HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture
def opened(gqa_network: CausalLM, tokenizer: Tokenizer, tmp_path: Path) -> Iterator[OpenedModel]:
    """A random model with DeepSeek's marks, from disk."""
    save_checkpoint(
        tmp_path / "tiny",
        gqa_network,
        tokenizer_files=tokenizer.save,
        generation_config={"temperature": 0.5, "top_k": 9},
    )
    with contextlib.closing(open_model(tmp_path / "tiny", dtype="float32", max_num_seqs=2)) as model:
        yield model


def scripted(opened: OpenedModel, text: str) -> Callable[[Any, np.ndarray], None]:
    """A hook that makes the model say `text` (marks included), then end."""
    ids = [*opened.tokenizer.encode(text, special=True), opened.protocol.stop_ids[0]]

    def force(answer_ids: Any, logits: np.ndarray) -> None:
        logits[:] = -np.inf
        logits[ids[min(len(answer_ids), len(ids) - 1)]] = 0

    return force


def talk(opened: OpenedModel, text: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[ChatEvent]:
    submit = opened.engine.submit
    hook = scripted(opened, text)

    def with_script(request: Any) -> Any:
        import dataclasses

        budget = request.logits_hook

        def both(answer_ids: Any, logits: np.ndarray) -> None:
            hook(answer_ids, logits)
            if budget is not None:
                budget(answer_ids, logits)

        return submit(dataclasses.replace(request, logits_hook=both))

    monkeypatch.setattr(opened.engine, "submit", with_script)
    return list(stream_chat(opened, HELLO, SamplingParams(temperature=0, max_tokens=100), **options))


def texts(events: list[ChatEvent]) -> dict[str, str]:
    return {
        kind: "".join(event.text for event in events if event.kind == kind)
        for kind in ("reasoning", "content")
    }


def usage(events: list[ChatEvent]) -> Usage:
    assert events[-1].kind == "finished" and events[-1].finished is not None
    return events[-1].finished.usage


def test_what_the_makers_recommend_is_the_default(opened: OpenedModel, gqa_network: CausalLM) -> None:
    assert (opened.defaults.temperature, opened.defaults.top_k, opened.defaults.top_p) == (0.5, 9, 1.0)
    assert opened.parameters == sum(p.numel() for p in gqa_network.parameters())
    assert (opened.name, opened.dtype) == ("tiny", "float32")


def test_reasoning_and_content_are_told_apart(opened: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened.protocol.thinking == "native"
    thought, said = "the fox", "hello there 日本語"
    events = talk(opened, f"{thought}</think>{said}", monkeypatch, thinking=True)
    assert texts(events) == {"reasoning": thought, "content": said}
    encode = opened.tokenizer.encode
    assert usage(events).reasoning_tokens == len(encode(thought))
    assert usage(events).completion_tokens == len(encode(thought)) + len(encode(said)) + 2  # the two marks
    tokens = [piece.token_id for event in events for piece in event.pieces]
    assert len(tokens) == usage(events).completion_tokens  # every token is with exactly one event
    assert events[-1].finished is not None and events[-1].finished.reason == "stop"


def test_without_thinking_all_is_content(opened: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    events = talk(opened, "the fox", monkeypatch)
    assert texts(events) == {"reasoning": "", "content": "the fox"} and usage(events).reasoning_tokens == 0


def test_a_thinking_budget_closes_the_thoughts_and_the_answer_comes(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the quick brown fox " * 10
    for budget in (5, 0):
        events = talk(opened, text, monkeypatch, thinking=True, thinking_budget=budget)
        assert usage(events).reasoning_tokens == budget
        assert texts(events)["content"] != ""
        monkeypatch.undo()


def test_all_tokens_spent_on_thoughts_is_length_and_no_content(opened: OpenedModel) -> None:
    close = opened.tokenizer.id_of("</think>")
    assert close is not None
    params = SamplingParams(temperature=0, max_tokens=20, logit_bias={close: -100.0})
    events = list(stream_chat(opened, HELLO, params, thinking=True))
    assert texts(events)["content"] == "" and usage(events).reasoning_tokens == 20
    assert isinstance(events[-1].finished, Finished) and events[-1].finished.reason == "length"


def test_efforts() -> None:
    assert thinking_of("off") == (False, None) and thinking_of("max") == (True, None)
    low, high = thinking_of("low")[1], thinking_of("high")[1]
    assert low is not None and high is not None and 0 < low < high
    with pytest.raises(UsageError, match="'hard'"):
        thinking_of("hard")


def test_asyncio_gives_the_same_events(opened: OpenedModel) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)

    async def read() -> dict[str, str]:
        return texts([event async for event in stream_chat(opened, HELLO, params)])

    assert run_apart(read()) == texts(list(stream_chat(opened, HELLO, params)))


def test_wrong_options_are_named(tmp_path: Path, gqa_network: CausalLM, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="'int7'"):
        open_model(tmp_path, dtype="int7")
    with pytest.raises(ShoalError, match="nowhere"):
        open_model(tmp_path / "nowhere")
    save_checkpoint(tmp_path / "tiny", gqa_network, tokenizer_files=tokenizer.save)
    with pytest.raises(ShoalError, match="no memory for the cache"):
        open_model(tmp_path / "tiny", dtype="float32", cache_bytes=100)
    with contextlib.closing(open_model(tmp_path / "tiny", dtype="float32", cache_bytes=100_000)) as small:
        assert small.engine.max_model_len < 256


# ---- the real model


def test_smollm2_answers(smollm2: OpenedModel) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    events = list(stream_chat(smollm2, messages, SamplingParams(temperature=0, max_tokens=30)))
    assert "Paris" in texts(events)["content"]
    assert events[-1].finished is not None and events[-1].finished.reason == "stop"
    assert smollm2.protocol.thinking == "adapter" and usage(events).reasoning_tokens == 0


def test_smollm2_says_the_same_alone_and_in_company(smollm2: OpenedModel) -> None:
    questions = ["Name three colors.", "What is 2 + 2?", "Say hello."]
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=2)

    def ask(question: str) -> Any:
        return stream_chat(smollm2, [{"role": "user", "content": question}], params)

    alone = [list(ask(question)) for question in questions]
    together = [list(stream) for stream in [ask(question) for question in questions]]
    for one, many in zip(alone, together, strict=True):
        pieces = [piece for event in one for piece in event.pieces]
        other = [piece for event in many for piece in event.pieces]
        for mine, theirs in zip(pieces, other, strict=False):
            if mine.top[0][1] - mine.top[1][1] < 1e-3:
                break  # too close to call
            assert mine.token_id == theirs.token_id
