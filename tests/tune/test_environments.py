"""Environments: every source gives questions that its own reward finds solvable, and nothing held out in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.errors import ShoalError
from shoal.tune.environments import Environment, open_task
from shoal.tune.rewards import Judge

OWN = {"puzzles:sum": "numeric", "puzzles:countdown": "countdown", "puzzles:backwards": "exact",
       "puzzles:order": "puzzles", "microworld:spell": "microworld", "microworld:story": "microworld"}  # fmt: skip


@pytest.mark.parametrize(("spec", "reward"), OWN.items())
def test_a_worked_answer_gets_the_full_reward(spec: str, reward: str) -> None:
    environment = Environment([spec])
    judge = Judge({reward: 1.0})
    for example in environment.held_out("validation", 12):
        judge.check(example.fields)
        assert example.solution is not None and example.solution.content is not None
        text = f"<think>\n{example.solution.reasoning_content}\n</think>\n{example.solution.content}"
        assert judge(example.question, text, example.fields).total == 1.0
        assert judge(example.question, "?", example.fields).total == 0.0


def test_examples_are_a_pure_function_and_levels_are_kept_in_range() -> None:
    environment = Environment(["puzzles:sum", "microworld:story"], suffix=" Think first.", system="Be brief.")
    first = environment.example("puzzles:sum", "train", 2, 7)
    assert first == environment.example("puzzles:sum", "train", 2, 7)
    assert first.id == "puzzles:sum/2/train/7" and first.question.endswith(". Think first.")
    assert [m.role for m in first.messages] == ["system", "user"]
    assert environment.example("puzzles:sum", "train", 9, 7).level == 5
    assert environment.example("microworld:story", "train", 1, 0).level == 3
    held = environment.held_out("test", 20)
    assert [x.task for x in held[:4]] == ["puzzles:sum", "microworld:story"] * 2
    assert sorted({x.level for x in held if x.task == "puzzles:sum"}) == [1, 2, 3, 4, 5]
    assert {x.level for x in environment.held_out("test", 8, level=3)} == {3}


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)]
    rows.append(
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "answer": "a"}
    )  # type: ignore[dict-item]
    (tmp_path / "own.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    environment = Environment(["own.jsonl"], folder=tmp_path)
    train = [environment.example("own.jsonl", "train", 1, i) for i in range(120)]
    held = {environment.example("own.jsonl", "test", 1, i).question for i in range(60)}
    size = len({x.question for x in train})
    assert size + 2 <= len(rows) and not {x.question for x in train} & held
    assert len({x.question for x in train[:size]}) == size, "each once before any comes again"
    assert [x.question for x in train[:size]] != [x.question for x in train[size : 2 * size]]
    assert train[0].fields["answer"]


def test_a_small_file_still_has_something_to_measure_on(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("".join(f'{{"prompt": "q{i}"}}\n' for i in range(5)))
    environment = Environment(["few.jsonl"], folder=tmp_path)
    train = {environment.example("few.jsonl", "train", 1, i).question for i in range(5)}
    assert train and environment.example("few.jsonl", "test", 1, 0).question not in train


BAD = [
    ("puzzles:sums", "no puzzle 'sums'"),
    ("microworld:nothing", "no family 'nothing'"),
    ("sum", "there is no task 'sum'"),
    ("gone.jsonl", "cannot read"),
    ("bad.jsonl", r"bad.jsonl:2 is no task: Expecting"),
    ("list.jsonl", r"list.jsonl:1 is no task: not an object"),
    ("none.jsonl", r"none.jsonl:1 is no task: no 'messages'"),
    ("last.jsonl", r"last.jsonl:1 is no task: the last message must be the user's"),
    ("one.jsonl", "too few rows"),
]


@pytest.mark.parametrize(("spec", "message"), BAD)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "none.jsonl").write_text('{"answer": "a"}\n')
    (tmp_path / "last.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n')
    (tmp_path / "one.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ShoalError, match=message):
        open_task(spec, folder=tmp_path)


def test_any_task_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    environment = Environment(["gym:chain_sum", "gym:syllogism", "gym:spell_backward"])
    judge = Judge({"reasoning_gym": 1.0})
    train = {environment.example("gym:spell_backward", "train", 1, i).question for i in range(60)}
    for example in environment.held_out("test", 9):
        assert judge("q", f"<think>x</think> {example.fields['answer']}", example.fields).total == 1.0
        assert example.question not in train
    easy, hard = (environment.example("gym:chain_sum", "test", level, 0).question for level in (1, 5))
    assert len(easy) < len(hard)
    with pytest.raises(ShoalError, match="reasoning-gym has no task 'chain_sums'"):
        open_task("gym:chain_sums")
