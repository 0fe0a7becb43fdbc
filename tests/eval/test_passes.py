"""pass@k by hand, and the same questions to a real engine and a real HTTP server."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.data.types import Message
from shoal.errors import ShoalError
from shoal.eval.askers import Answer, EndpointAsker, Prompt
from shoal.eval.passes import Question, bill, evaluate, pass_at_k, plot, table
from shoal.eval.scores import wilson
from shoal.tune.rewards import calculate

Server = Callable[[Callable[[dict[str, Any]], Any]], str]


def test_pass_at_k_by_hand_and_by_counting() -> None:
    assert pass_at_k(4, 0, 2) == 0.0 and pass_at_k(4, 1, 4) == 1.0 and pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)  # of 6 pairs one has no right answer
    for right, k in itertools.product(range(6), range(1, 6)):
        answers = [True] * right + [False] * (5 - right)
        chosen = list(itertools.combinations(answers, k))
        assert pass_at_k(5, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    with pytest.raises(ValueError, match="pass@3 of 2"):
        pass_at_k(2, 1, 3)


class Scripted:
    """Answers "yes" as often as the question's number says, of four."""

    name, thinks = "scripted", None

    def __init__(self) -> None:
        self.seen: list[Prompt] = []

    def ask(self, prompts: Iterable[Prompt]) -> Iterator[Answer]:
        count: dict[str, int] = {}
        for prompt in prompts:
            self.seen.append(prompt)
            text = str(prompt.messages[-1].content)
            count[text] = count.get(text, 0) + 1
            yield Answer("yes" if count[text] <= int(text) else "no", "", "stop", 5, 7)


def questions() -> list[Question]:
    return [
        Question(
            f"q{i}",
            "a" if i < 3 else "b",
            1 + i % 2,
            [Message("user", str(i % 5))],
            lambda text: text == "yes",
        )
        for i in range(5)
    ]


def test_every_question_weighs_the_same_and_intervals_are_over_questions() -> None:
    asker = Scripted()
    seen: list[tuple[int, int]] = []
    result = evaluate(asker, questions(), samples=4, temperature=1.0, cost=lambda i, o: (i + o) / 1e3,
                      progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    everything = result["passes"][-1]
    assert (everything["task"], everything["level"], everything["count"]) == ("all", "all", 5)
    assert everything["pass_at_1"]["share"] == pytest.approx((0 + 1 + 2 + 3 + 4) / 20)
    assert everything["pass_at_4"]["share"] == pytest.approx(4 / 5)
    assert (everything["pass_at_4"]["low"], everything["pass_at_4"]["high"]) == wilson(4, 5)
    assert [(s["task"], s["level"]) for s in result["passes"][:3]] == [("a", "1"), ("a", "2"), ("a", "all")]
    assert result["correct"] == 10 and result["completion_tokens"] == 100 and result["prompt_tokens"] == 140
    assert result["usd_per_correct"] == pytest.approx(0.24 / 10) and seen[-1] == (20, 20)
    assert len({prompt.seed for prompt in asker.seen}) == 20, "each answer has a seed of its own"
    assert [prompt.temperature for prompt in asker.seen] == [1.0] * 20
    assert len(result["wrong"]) == 3 + 1, "at most three per task"
    json.dumps(result)
    greedy = evaluate(Scripted(), questions())
    assert greedy["passes"][-1]["pass_at_1"]["share"] == 0.8 and greedy["usd_per_correct"] is None
    rows = table([result, greedy])
    assert rows[0] == ["model", "task", "level", "pass@1", "pass@4", "tokens", "USD per correct"]
    assert rows[-1][4] == "" and [row[-1] for row in rows if row[-1]][1:] == ["0.024"]
    assert "10 right of 20 answers" in bill(result) and "$0.024 per right answer" in bill(result)
    picture = plot([result, greedy])
    assert (
        picture.count("$0.024 a right answer") == 1
        and picture.count("<rect") == 2 * 3
        and picture.endswith("</svg>\n")
    )


def test_a_server_is_asked_with_the_sampling_that_was_wanted(openai_server: Server) -> None:
    bodies: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> str:
        bodies.append(body)
        return "yes"

    with contextlib.closing(EndpointAsker(openai_server(reply), parallel=1)) as asker:
        result = evaluate(asker, questions()[:2], samples=2, temperature=0.7, max_tokens=9)
    assert [(b["temperature"], b["seed"], b["max_tokens"]) for b in bodies] == [(0.7, i, 9) for i in range(4)]
    assert result["correct"] == 4


def test_a_busy_server_is_asked_again_and_a_particular_one_in_its_own_words(
    openai_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("shoal.eval.askers.time.sleep", waited.append)
    seen: list[set[str]] = []

    def reply(body: dict[str, Any]) -> Any:
        seen.append(set(body) - {"model", "messages"})
        if len(seen) <= 2:
            return 429, "slow down"
        if "max_tokens" in body:
            return 400, "Unsupported parameter: use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, "Unsupported value: 'temperature' must be 1."
        return "yes"

    with contextlib.closing(EndpointAsker(openai_server(reply), "m", parallel=1)) as asker:
        result = evaluate(asker, questions()[:2])
    assert waited == [1.0, 2.0] and result["correct"] == 2
    assert seen[2:] == [{"max_tokens", "temperature"}, {"max_completion_tokens", "temperature"},
                        {"max_completion_tokens"}, {"max_completion_tokens"}]  # fmt: skip
    assert "takes no temperature" in bill(result)

    with contextlib.closing(EndpointAsker(openai_server(lambda body: (400, "no such model")), "m")) as asker:
        with pytest.raises(ShoalError, match="answered 400: no such model"):
            evaluate(asker, questions()[:1])
    with contextlib.closing(EndpointAsker(openai_server(lambda body: (503, "down")), "m")) as asker:
        with pytest.raises(ShoalError, match="answered 503"):
            evaluate(asker, questions()[:1])


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a", "http://a/v1/"),
        ("http://a/v1/", "http://a/v1/"),
        ("https://a/v1beta/openai/", "https://a/v1beta/openai/"),
        ("http://a/api", "http://a/api/v1/"),
    ],
)
def test_addresses_with_a_version_stay_as_they_are(url: str, base: str) -> None:
    with contextlib.closing(EndpointAsker(url, "m")) as asker:
        assert str(asker._client.base_url) == base


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments])


def test_the_command_sets_models_side_by_side(
    tmp_path: Path, tiny_model: Path, openai_server: Server
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("".join(f'{{"prompt": "say {i}", "answer": "{i}"}}\n' for i in range(40)))
    mine = run(
        str(tiny_model), "puzzles:sum", "--n", "4", "--samples", "2", "--out", str(tmp_path / "mine.json")
    )
    assert mine.exit_code == 0, mine.output
    assert "pass@2" in mine.output and "per right answer" not in mine.output and "0 right of 8" in mine.output

    def oracle(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        found = calculate(text.removeprefix("Calculate ").rstrip("."))
        return str(found[0]) if found else text.split()[-1]

    told = ["--endpoint", openai_server(oracle), "--n", "4", "--usd-in", "1", "--usd-out", "1000"]
    files = ["--beside", str(tmp_path / "mine.json"), "--plot", str(tmp_path / "plot.svg")]
    theirs = run("-", "puzzles:sum", str(own), *told, *files)
    assert theirs.exit_code == 0, theirs.output
    assert (
        "remote: 8 right of 8 answers, 24 tokens" in theirs.output
        and "$0.003 per right answer" in theirs.output
    )
    assert "tiny" in theirs.output and (tmp_path / "plot.svg").read_text().count("<rect") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("puzzles:sum",), "which model"),
        (("-", "puzzles:sums", "--endpoint", "http://127.0.0.1:9"), "no puzzle 'sums'"),
        (("-", "puzzles:sum", "--reward", "exakt", "--endpoint", "http://127.0.0.1:9"), "no such reward"),
        (("-", "gone.jsonl", "--endpoint", "http://127.0.0.1:9"), "cannot read"),
        (("-", "puzzles:sum", "--level", "9", "--endpoint", "http://127.0.0.1:9"), "is no level"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], message: str) -> None:
    model, *rest = arguments if arguments[0] == "-" else ("-", *arguments)
    outcome = run(model, *rest)
    assert isinstance(outcome.exception, ShoalError) and message in str(outcome.exception)
