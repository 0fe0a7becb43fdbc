"""Reinforcement learning end to end on tiny real models: it learns, resumes exactly, and says what went wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.data.tokenizer import Tokenizer
from shoal.errors import ShoalError
from shoal.model.checkpoint import load
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.transformer import CausalLM
from shoal.ops import native
from shoal.train.run import Outcome
from shoal.train.state import load_state
from shoal.tune import grpo
from shoal.tune.grpo_batch import Learnt, LiveGroup, pack
from shoal.tune.grpo_recipe import GrpoStage
from shoal.tune.recipe import load_tune_recipe
from shoal.tune.rollout import Completion
from shoal.tune.run import tune

OWN = '''
def letters(prompt, completion):
    """The share of the letter e."""
    return completion.count("e") / max(len(completion), 1)

def mood(prompt, completion, answer):
    if "o" in completion:
        raise RuntimeError("no o, please")
    return float(len(completion) % 2)

def constant(prompt, completion):
    return 1.0
'''
Base = Callable[[str], Path]


@pytest.fixture
def base(tmp_path: Path, make_network: Callable[[str], CausalLM], tokenizer: Tokenizer) -> Base:
    """base(kind): a model folder."""

    def make(kind: str) -> Path:
        folder = tmp_path / kind
        if not folder.exists():
            receipt = {
                "kind": "train",
                "started_at": "",
                "device": "d",
                "seconds": 1.0,
                "tokens": 5,
                "flops": 1.0,
            }
            save_checkpoint(folder, make_network(kind), tokenizer_files=tokenizer.save, receipt=receipt)
        return folder

    return make


def recipe_file(folder: Path, base: Path, rewards: Mapping[str, Any] | None = None, **keys: Any) -> Path:
    (folder / "own.py").write_text(OWN)
    adapter = keys.pop("adapter", {"r": 4, "lora_alpha": 8})
    stage = {
        "steps": 4, "tasks": ["puzzles:sum", "puzzles:order"], "prompts_per_step": 2,
        "max_prompt_length": 200, "num_generations": 4,
        "max_completion_length": 8, "eval_examples": 4, "lr": 0.01, "micro_batch_tokens": 256, "warmup_steps": 1,
    } | keys  # fmt: skip
    run = {
        "dtype": "float32",
        "threads": 1,
        "save_seconds": 1e9,
        "log_steps": 1,
        "checkpoint_dtype": "float32",
    }
    parts = {"run": run, "model": {"base": str(base)}, "adapter": adapter, "grpo": stage}
    text = ""
    for name, values in [*parts.items(), ("grpo.rewards", rewards or {"own.py:letters": 1.0})]:
        text += f"[{name}]\n" + "".join(f"{json.dumps(k)} = {_toml(v)}\n" for k, v in values.items())
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def run(path: Path, folder: Path, **options: Any) -> Outcome:
    return tune(load_tune_recipe(path, "grpo"), "grpo", folder, **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "reward" in line
    ]


def weights(outcome: Outcome) -> dict[str, Tensor]:
    (file,) = outcome.checkpoint.glob("*.safetensors")
    return load_file(file)


needs_native = pytest.mark.skipif(not native.available, reason=native.missing_reason)
NATIVE = pytest.param("native", marks=needs_native)


@pytest.mark.parametrize("rollout", ["torch", NATIVE])
@pytest.mark.parametrize(("kind", "adapter"), [("gqa", "lora"), ("mla", "lora"), ("mla", "none")])
def test_rewards_rise_and_everything_is_there_to_read(
    tmp_path: Path, base: Base, kind: str, adapter: str, rollout: str
) -> None:
    path = recipe_file(tmp_path, base(kind), steps=50, lr=0.02 if adapter == "lora" else 0.003, num_generations=8,
                       adapter={"kind": adapter, "r": 4, "lora_alpha": 8}, loss_type="dr_grpo",
                       rollout=rollout)  # fmt: skip
    outcome = run(path, tmp_path / "run")
    assert outcome.finished and not outcome.failures
    log = lines(tmp_path / "run")
    rewards = [line["reward"] for line in log]
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5 + 0.02, rewards
    for name in ("pass_at_1", "completion_length", "entropy", "skipped_share", "usd", "level"):
        assert all(name in line for line in log if line["skipped_share"] < 1)
    assert all(line["rollout_tokens_per_second"] > 0 for line in log)
    difference = max(line["logprob_difference"] for line in log if "logprob_difference" in line)
    assert difference < 1e-5 if rollout == "torch" else 1e-4 < difference < 0.1
    samples = [json.loads(text) for text in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == list(range(1, 51)) and len(samples[0]["completions"]) == 8
    page = (tmp_path / "run" / "board.html").read_text()
    assert "Held-out questions" in page and "refresh" not in page and "<svg" in page
    assert outcome.measures["grpo"]["questions"] == 4
    assert outcome.receipt is not None and outcome.receipt.parent is not None
    assert outcome.receipt.kind == "grpo" and outcome.receipt.flops > 0 and outcome.receipt.details["levels"]
    assert outcome.receipt.details["rollout"] == ("torch" if rollout == "torch" else "native, 8 bits")
    assert (outcome.checkpoint / "receipt.json").is_file()


@pytest.mark.parametrize("rollout", ["torch", NATIVE])
@pytest.mark.parametrize("iterations", [1, 2])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, base: Base, iterations: int, rollout: str) -> None:
    path = recipe_file(tmp_path, base("mla"), steps=6, num_iterations=iterations, beta=0.05, raise_after=2,
                       raise_at=0.0, off_policy_mask_threshold=0.5, rollout=rollout)  # fmt: skip
    whole = run(path, tmp_path / "whole")
    for stop in (1, 2):  # with two iterations: in the middle of a rollout's updates
        assert not run(path, tmp_path / "parts", resume=stop > 1, stop_after=stop).finished
    with (tmp_path / "parts" / "samples.jsonl").open("a") as file:
        file.write('{"step": 99}\n{"half')  # written after the state
    parts = run(path, tmp_path / "parts", resume=True)
    assert parts.finished
    expected, got = weights(whole), weights(parts)
    assert all(torch.equal(expected[name], got[name]) for name in expected) and set(expected) == set(got)
    clock = re.compile("second|usd|joules|live")
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert {k: v for k, v in one.items() if not clock.search(k)} == {
            k: v for k, v in other.items() if not clock.search(k)
        }
    for name in ("samples.jsonl", "before.jsonl", "after.jsonl"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    if iterations == 2:
        assert len((tmp_path / "whole" / "samples.jsonl").read_text().splitlines()) == 3, (
            "a rollout for two updates"
        )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path, base: Base) -> None:
    """SIGKILL thrice, in the middle of steps; two updates from each rollout, rollouts by whatever auto takes."""
    path = recipe_file(tmp_path, base("gqa"), steps=7, num_iterations=2, eval_examples=0, prompts_per_step=3)
    whole = run(path, tmp_path / "whole")
    program = Path(__file__).with_name("kill_grpo.py")
    done = subprocess.run(
        [sys.executable, str(program), str(path), str(tmp_path / "killed"), "3", "5"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = done.stdout.split()
    assert len(steps) == 3 and steps == sorted(set(steps)), "each got further and none to the end"
    expected, got = weights(whole), load_file(tmp_path / "killed" / "adapter" / "adapter_model.safetensors")
    assert set(expected) == set(got) and all(torch.equal(expected[name], got[name]) for name in expected)
    assert any(tensor.abs().max() > 0 for name, tensor in got.items() if "lora_B" in name), (
        "something was learnt"
    )
    assert [line["reward"] for line in lines(tmp_path / "whole")] == [
        line["reward"] for line in lines(tmp_path / "killed")
    ]


def test_groups_that_score_alike_teach_nothing_whatever_beta_is(
    tmp_path: Path, base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    """huggingface/trl#5640: the KL term moved the model all the same."""
    path = recipe_file(tmp_path, base("gqa"), {"own.py:constant": 1.0}, beta=0.1, steps=30, level=5)
    before = None
    stopped = run(path, tmp_path / "run", stop_after=1, shown=True)
    before = load_state(tmp_path / "run" / "state")
    outcome = run(path, tmp_path / "run", resume=True, shown=True)
    assert not stopped.finished and outcome.finished and before is not None
    after = load_state(tmp_path / "run" / "state")
    assert after is not None and all(
        torch.equal(tensor, after.tensors["network"][name])
        for name, tensor in before.tensors["network"].items()
    )
    log = lines(tmp_path / "run")
    assert len(log) == grpo.DEAD_STEPS and {line["skipped_share"] for line in log} == {1.0}
    said = capsys.readouterr().err
    assert "nothing to learn from" in said and "The run ends here" in said and "solved" in said


def test_the_level_rises_at_seventy_percent(
    tmp_path: Path, base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path, base("gqa"), {"own.py:constant": 1.0}, raise_after=2, tasks=["puzzles:sum"])
    run(path, tmp_path / "run", shown=True)
    levels = [line["level"] for line in lines(tmp_path / "run")]
    assert levels[0] == 2 and levels == sorted(levels) and levels[-1] >= 3, (
        "a quarter of the questions are easier ones"
    )
    assert "puzzles:sum goes up to level 2 (100%)" in capsys.readouterr().err
    path = recipe_file(tmp_path, base("gqa"), {"exact": 1.0}, raise_after=2, tasks=["puzzles:sum"])
    run(path, tmp_path / "other")
    assert {line["level"] for line in lines(tmp_path / "other")} == {1}


def test_level_0_asks_all_levels_in_turn(tmp_path: Path, base: Base) -> None:
    tasks = ["puzzles:sum", "puzzles:backwards"]
    path = recipe_file(
        tmp_path,
        base("gqa"),
        {"own.py:constant": 1.0},
        level=0,
        raise_after=1,
        steps=10,
        prompts_per_step=2,
        tasks=tasks,
    )
    run(path, tmp_path / "run")
    state = load_state(tmp_path / "run" / "state")
    assert state is not None
    drawn = state.values["rows"]["drawn"]
    assert drawn == {f"{task}/{level}": 2 for task in tasks for level in range(1, 6)}
    assert not any("level" in line for line in lines(tmp_path / "run"))


def test_a_reward_that_fails_costs_its_sample_and_is_named(
    tmp_path: Path, base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(
        tmp_path, base("gqa"), {"own.py:mood": 1.0}, tasks=["puzzles:sum"], max_completion_length=16
    )
    outcome = run(path, tmp_path / "run", shown=True)
    (name,) = outcome.receipt.details["unjudged"] if outcome.receipt else ()
    assert name.endswith("own.py:mood") and "RuntimeError: no o, please" in capsys.readouterr().err
    assert any(0 < line["unjudged_share"] < 1 for line in lines(tmp_path / "run"))
    samples = [json.loads(text) for text in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    failed = [c for s in samples for c in s["completions"] if c["failed"]]
    assert failed and all(c["reward"] is None and c["advantage"] is None for c in failed)


def completion(tokens: list[int], truncated: bool) -> Completion:
    return Completion(tokens, [-1.0] * len(tokens), truncated)


def test_one_mask_for_the_sum_and_its_divisor(make_network: Callable[[str], CausalLM]) -> None:
    """huggingface/trl#6439: of four answers three are truncated: the loss is that of the remaining one alone."""
    network = make_network("gqa")
    answers = [
        completion([5, 6, 7], True),
        completion([8, 1], False),
        completion([9, 9], True),
        completion([4], True),
    ]
    for loss_type in ("grpo", "dr_grpo", "dapo", "gspo", "cispo"):
        objective = grpo.PolicyObjective(network, GrpoStage(loss_type=loss_type))
        kept = [Learnt(c, 1.0) for c in answers if not c.truncated]
        batch, alone = pack([LiveGroup([3, 4], kept)]), pack([LiveGroup([3, 4], [Learnt(answers[1], 1.0)])])
        for one, other in ((objective.terms(batch).sums, objective.terms(alone).sums),):
            assert one["policy"].item() == other["policy"].item() != 0
        assert objective.counts(batch) == objective.counts(alone)


def test_truncated_answers_are_masked_but_counted(tmp_path: Path, base: Base) -> None:
    keys = {"max_completion_length": 3, "tasks": ["puzzles:sum"], "eval_examples": 0}
    masked = run(recipe_file(tmp_path, base("gqa"), truncated="mask", **keys), tmp_path / "masked")
    run(recipe_file(tmp_path, base("gqa"), truncated="keep", **keys), tmp_path / "kept")
    first, second = (lines(tmp_path / name)[0] for name in ("masked", "kept"))
    assert first["truncated_share"] == second["truncated_share"] > 0.5
    assert first["completion_length"] == second["completion_length"]
    assert first["skipped_share"] >= second["skipped_share"]
    assert masked.finished and not masked.measures


def test_the_reference_is_the_model_before_the_run(tmp_path: Path, base: Base) -> None:
    first = run(recipe_file(tmp_path, base("gqa"), beta=0.01, kl="k3"), tmp_path / "first")
    assert lines(tmp_path / "first")[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert lines(tmp_path / "first")[-1]["kl"] > 1e-5
    start = {"r": 4, "lora_alpha": 8, "start": str(first.checkpoint)}
    run(recipe_file(tmp_path, base("gqa"), beta=0.01, adapter=start), tmp_path / "second")
    assert lines(tmp_path / "second")[0]["kl"] == pytest.approx(0.0, abs=1e-6), "not the bare base"
    run(recipe_file(tmp_path, base("gqa"), beta=0.01, adapter={"kind": "none"}, lr=0.001), tmp_path / "all")
    log = lines(tmp_path / "all")
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-6) and log[-1]["kl"] > 1e-6


def test_bfloat16_samples_and_learns_alike(tmp_path: Path, base: Base) -> None:
    path = recipe_file(tmp_path, base("mla"), rollout="torch")
    path.write_text(path.read_text().replace('"float32"', '"bfloat16"', 1))
    assert run(path, tmp_path / "run").finished
    differences = [
        line["logprob_difference"] for line in lines(tmp_path / "run") if "logprob_difference" in line
    ]
    assert differences and max(differences) < 0.03, differences


BAD = [
    ({"num_generations": 1}, {}, "a group of one has nothing to be compared with"),
    ({"temperature": 0.0}, {}, "temperature must be above 0"),
    ({"importance_sampling_cap": 0.5}, {}, "importance_sampling_cap must be 0 or at least 1"),
    ({"adapter": {"kind": "esft"}, "rollout": "native"}, {}, "it cannot replace single experts"),
    ({"loss_type": "ppo"}, {}, "must be one of grpo"),
    ({"tasks": []}, {}, "grpo.tasks is empty"),
    ({"tasks": ["puzzles:sums"]}, {}, "no puzzle 'sums'"),
    ({}, {"exakt": 1.0}, "exakt: no such reward"),
    ({}, {"broken.py:f": 1.0}, "broken.py is not Python: .*line 1"),
    ({}, {"countdown": 1.0}, "the reward countdown takes numbers, target, but the examples have answer"),
    ({"max_prompt_length": 250}, {}, "up to 258 tokens are beyond the model's 256 positions"),
    ({"step": 3}, {}, r"grpo.step is not a key \(did you mean steps\?\)"),
]


@pytest.mark.parametrize(("keys", "rewards", "message"), BAD, ids=lambda value: str(value)[:25])
def test_what_is_wrong_shows_before_a_weight_is_read(
    tmp_path: Path, base: Base, keys: dict[str, Any], rewards: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the weights were read")

    folder = base("gqa")
    monkeypatch.setattr(load, "load_network", never)
    (tmp_path / "broken.py").write_text("def f(:\n")
    path = recipe_file(tmp_path, folder, rewards or None, **{"tasks": ["puzzles:sum"]} | keys)
    with pytest.raises(ShoalError, match=message):
        run(path, tmp_path / "run")


@needs_native
def test_a_run_of_before_there_was_a_choice_goes_on_with_torch(tmp_path: Path, base: Base) -> None:
    path = recipe_file(tmp_path, base("gqa"), steps=2)
    assert not run(path, tmp_path / "run", stop_after=1).finished
    (place,) = (tmp_path / "run" / "state").glob("step-*/*.json")
    values = json.loads(place.read_text())
    assert values["rows"].pop("rollout") == {"runner": "native", "quant": "8"}
    for key in ("rollout", "rollout_quant", "importance_sampling_cap"):
        del values["recipe"]["grpo"][key]
    place.write_text(json.dumps(values))
    outcome = run(path, tmp_path / "run", resume=True)
    assert outcome.receipt and outcome.receipt.details["rollout"] == "torch"


def test_the_command_shows_questions_and_writes_traces(tmp_path: Path, base: Base) -> None:
    path = recipe_file(tmp_path, base("gqa"), {"puzzles": 1.0}, tasks=["puzzles:sum", "puzzles:order"])
    shown = CliRunner().invoke(app, ["tune", "grpo", str(path), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "puzzles:order/1/train/0" in shown.output and shown.output.count(": 1 {'puzzles': 1.0}") == 2
    out = tmp_path / "traces.jsonl"
    made = CliRunner().invoke(
        app, ["tune", "traces", str(path), "--n", "12", "--level", "1-2", "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert len(rows) == 12 and rows[0]["messages"][-1]["reasoning_content"]
    done = CliRunner().invoke(
        app, ["tune", "grpo", str(path), "--run", str(tmp_path / "run"), "--grpo.steps", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["finished"] is True
