"""Real questions to a real engine and to a real HTTP server: order, marks, and what is refused."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.data.microworld.world import bucket, pair_split
from shoal.data.types import Message
from shoal.engine.open import open_model
from shoal.errors import ShoalError, UsageError
from shoal.eval.askers import KEY_VARIABLE, EndpointAsker, EngineAsker, Prompt
from shoal.eval.bpb import microworld_bits_per_byte
from shoal.eval.tasks import Plan, evaluate, families_of, messages_of, questions

Server = Callable[[Callable[[dict[str, Any]], Any]], str]
PLAN = Plan(("sum", "memory", "story"), (1, 2, 3), ("en", "ja"), 6)


def test_questions_are_held_out_distinct_and_always_the_same() -> None:
    tasks = list(questions(PLAN))
    assert tasks == list(questions(PLAN)) and len(tasks) == 36
    assert tasks != list(questions(Plan(PLAN.families, PLAN.levels, PLAN.languages, 6, seed=1)))
    assert len({(t.turns, t.question) for t in tasks}) == len(tasks)
    for task in tasks:
        if task.pairs:
            assert "test" in {pair_split(*pair) for pair in task.pairs}
        elif not task.names:
            assert bucket(task.id) == "test"


def test_count_is_spread_over_levels() -> None:
    levels = [task.level for task in questions(Plan(("sum",), (1, 2, 3, 4, 5), ("en",), 12))]
    assert [levels.count(n) for n in (1, 2, 3, 4, 5)] == [3, 3, 2, 2, 2]


def test_earlier_turns_come_before_the_question() -> None:
    task = next(t for t in questions(PLAN) if t.turns)
    messages = messages_of(task)
    assert [m.role for m in messages] == ["user", "assistant"] * len(task.turns) + ["user"]
    assert messages[-1].content == task.question


def test_a_server_that_knows_everything_and_one_that_knows_nothing(openai_server: Server) -> None:
    known = {json.dumps([m.content for m in messages_of(t)]): t.reply for t in questions(PLAN)}

    def oracle(body: dict[str, Any]) -> str:
        assert body["temperature"] == 0 and body["model"] == "remote"
        return known[json.dumps([m["content"] for m in body["messages"]])]

    with contextlib.closing(EndpointAsker(openai_server(oracle))) as asker:
        seen: list[tuple[int, int]] = []
        result = evaluate(asker, PLAN, progress=lambda done, total: seen.append((done, total)))
    assert all(score["accuracy"] == 1.0 for score in result["scores"]) and not result["wrong"]
    assert seen[-1] == (36, 36) and result["completion_tokens"] == 108
    json.dumps(result)

    with contextlib.closing(EndpointAsker(openai_server(lambda body: "I do not know.") + "/v1")) as asker:
        result = evaluate(asker, PLAN)
    assert all(score["correct"] == 0 for score in result["scores"])
    assert result["wrong"][0]["got"] == "I do not know." and len(result["wrong"]) == 3 * 6


def test_answers_keep_the_order_however_long_each_takes(openai_server: Server) -> None:
    def slow_at_first(body: dict[str, Any]) -> tuple[str, str | None]:
        text = body["messages"][0]["content"]
        threading.Event().wait(0.2 if text == "0" else 0)
        return text, "thought" if body.get("thinking") == {"type": "enabled"} else None

    with contextlib.closing(EndpointAsker(openai_server(slow_at_first), parallel=4)) as asker:
        answers = list(asker.ask(Prompt([Message("user", str(i))], thinking=i % 2 == 1) for i in range(20)))
    assert [a.content for a in answers] == [str(i) for i in range(20)]
    assert [a.reasoning for a in answers[:4]] == ["", "thought", "", "thought"]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, "out of order"), "answered 500: out of order"),
        ((200, "no json"), "cannot be asked"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, {"choices": [{"message": None}]}), "no chat completion"),
    ],
)
def test_a_bad_server_is_an_error_for_people(
    openai_server: Server, reply: tuple[int, Any], message: str
) -> None:
    with (
        contextlib.closing(EndpointAsker(openai_server(lambda body: reply))) as asker,
        pytest.raises(ShoalError, match=message),
    ):
        evaluate(asker, PLAN)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ShoalError, match="cannot be asked"):
        EndpointAsker("http://127.0.0.1:9")


def test_the_key_goes_into_the_header_only(openai_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    url = openai_server(lambda body: (401, "no"))
    with contextlib.closing(EndpointAsker(url)) as asker:
        assert asker._client.headers["authorization"] == "Bearer sesame"
        with pytest.raises(ShoalError) as caught:
            evaluate(asker, PLAN)
    assert "sesame" not in str(caught.value)


def test_a_real_engine_answers_everything_alike_twice(tiny_model: Path) -> None:
    plan = Plan(("sum", "memory"), (1,), ("en", "ja"), 3)
    with contextlib.closing(open_model(tiny_model, dtype="float32", max_num_seqs=4)) as opened:
        asker = EngineAsker(opened, ahead=5)
        assert asker.thinks is True
        first = evaluate(asker, plan, (False, True))
        second = evaluate(asker, plan, (False, True))
        stats = opened.engine.stats()
    assert stats.running == stats.waiting == 0
    assert [s["thinking"] for s in first["scores"]] == ["off"] * 4 + ["on"] * 4
    assert {k: v for k, v in first.items() if k != "seconds"} == {
        k: v for k, v in second.items() if k != "seconds"
    }
    assert first["completion_tokens"] > 0


def test_leaving_early_cancels_what_waits(tiny_model: Path) -> None:
    with contextlib.closing(open_model(tiny_model, dtype="float32", max_num_seqs=2)) as opened:
        answers = EngineAsker(opened, ahead=4).ask(
            Prompt([Message("user", f"{i}?")], max_tokens=400) for i in range(9)
        )
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        for _ in range(100):
            if opened.engine.stats().running == 0:
                break
            threading.Event().wait(0.05)
        assert opened.engine.stats().running == opened.engine.stats().waiting == 0


def test_a_prompt_beyond_the_context_has_no_answer(tiny_model: Path) -> None:
    with contextlib.closing(open_model(tiny_model, dtype="float32", max_num_seqs=2)) as opened:
        prompts = [Prompt([Message("user", "word " * 2000)]), Prompt([Message("user", "hi")])]
        long, short = EngineAsker(opened).ask(prompts)
    assert (long.content, long.finish_reason) == ("", "length") and short.tokens > 0


def test_bits_per_byte_of_a_random_model_is_that_of_guessing(tiny_model: Path) -> None:
    measured = microworld_bits_per_byte(tiny_model, tokens=1500)
    english, japanese = measured["bits_per_byte"]["en"], measured["bits_per_byte"]["ja"]
    assert 2.5 < english < 8 and 1.5 < japanese < 8  # log2(700) bits a token, over the bytes of a token
    assert (
        microworld_bits_per_byte(tiny_model, tokens=1500, languages=("en",))["bits_per_byte"]["en"] == english
    )


def test_names_of_tasks() -> None:
    assert families_of(["sum", "sum", "story"]) == ("sum", "story")
    assert families_of([]) == families_of(["microworld", "sum"])
    with pytest.raises(UsageError, match="there is no task 'sums'"):
        families_of(["sums"])
    with pytest.raises(UsageError, match="no task has such a level"):
        evaluate(EndpointAsker.__new__(EndpointAsker), Plan(("colour",), (5,)))
