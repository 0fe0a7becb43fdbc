"""Runs as people start them: to the end, killed and resumed, changed, on a broken state, over two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.errors import ShoalError
from shoal.train.recipe import Recipe, load_recipe
from shoal.train.run import train
from shoal.train.state import State, load_state, save_state

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-test.toml"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = train(load_recipe(RECIPE), folder)
    assert outcome.finished and set(outcome.measures) == {"train", "sft", "mtp"}
    return folder


def test_a_run_leaves_a_checkpoint_with_its_bill(whole: Path):
    from shoal.data.tokenizer import load_tokenizer
    from shoal.model.checkpoint.load import load_network

    checkpoint = whole / "checkpoint"
    network = load_network(checkpoint, mtp=True)
    assert network.config.eos_token_ids == load_tokenizer(checkpoint).eos_ids
    receipt = json.loads((checkpoint / "receipt.json").read_text())
    kinds = []
    while receipt:
        kinds.append(receipt["kind"])
        assert receipt["tokens"] > 0 and receipt["flops"] > 0 and receipt["seconds"] > 0
        assert receipt["utilisation"] is None or 0 < receipt["utilisation"] < 1  # C95
        receipt = receipt["parent"]
    assert kinds == ["mtp", "sft", "train"]
    assert load_recipe(whole / "recipe.toml") == load_recipe(RECIPE)


def test_the_log_tells_loss_speed_load_and_cost(whole: Path):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert {line["stage"] for line in steps} == {"train", "sft", "mtp"}
    for key in ("bits_per_byte", "tokens_per_second", "max_violation", "seconds", "usd", "seconds_left"):
        assert all(key in line for line in steps), key
    first = [line for line in steps if line["stage"] == "train"]
    assert first[-1]["loss"] < first[0]["loss"]


def test_killed_at_random_and_resumed_gives_the_same_weights(whole: Path, tmp_path: Path):
    # kill -9 at random moments, more than once; same thread count
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [
        sys.executable,
        "-m",
        "shoal.cli.main",
        "train",
        str(RECIPE),
        "--run",
        str(tmp_path),
        "--resume",
    ]
    command += ["--run.save_seconds", "0.05"]
    chance = random.Random()
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        states = tmp_path / "state"
        before = sorted(states.glob("step-*")) if states.exists() else []
        deadline = time.monotonic() + 300
        while kills < 3 and process.poll() is None and time.monotonic() < deadline:
            if states.exists() and sorted(states.glob("step-*")) != before:
                time.sleep(chance.random() * 0.3)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        errors = process.communicate()[1].decode()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
    assert kills >= 2
    assert same(weights(whole), weights(tmp_path))
    steps = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    resumed = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [s.get("loss") for s in steps] == [s.get("loss") for s in resumed]


def test_stopping_and_going_on_in_one_process_gives_the_same_weights(whole: Path, tmp_path: Path):
    recipe = load_recipe(RECIPE)
    assert not train(recipe, tmp_path, stop_after=5).finished
    assert not train(recipe, tmp_path, resume=True, stop_after=9).finished
    assert train(recipe, tmp_path, resume=True).finished
    assert same(weights(whole), weights(tmp_path))


def test_a_resume_with_another_recipe_is_refused_and_says_what_differs(tmp_path: Path):
    # C74: a resume that silently changes data or shape
    train(load_recipe(RECIPE), tmp_path, stop_after=2)
    with pytest.raises(ShoalError, match=r"model.hidden_size: 32 -> 64[\s\S]*train.lr"):
        train(load_recipe(RECIPE, ["--model.hidden_size", "64", "--train.lr", "0.1"]), tmp_path, resume=True)
    with pytest.raises(ShoalError, match="--resume"):
        train(load_recipe(RECIPE), tmp_path)
    # what may change: how long, and how it is run
    shorter = load_recipe(RECIPE, ["--train.tokens", "3000", "--run.save_seconds", "9"])
    assert train(shorter, tmp_path, resume=True).finished


def test_a_kill_inside_a_save_leaves_the_state_before(tmp_path: Path):
    # C76: half a state picked as the newest, or the old one deleted too early
    place = tmp_path / "state"
    save_state(place, 1, State({"network": {"w": torch.ones(3)}}, {"n": 1}))
    code = (
        "import os, safetensors.torch, shoal.train.state as s, torch, pathlib\n"
        "def half(tensors, path): pathlib.Path(path).write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
        "s.save_file = half\n"
        f"s.save_state(pathlib.Path({str(place)!r}), 2, s.State({{'network': {{'w': torch.zeros(3)}}}}, {{'n': 2}}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    state = load_state(place)
    assert state and state.values == {"n": 1} and torch.equal(state.tensors["network"]["w"], torch.ones(3))
    save_state(place, 3, State({"network": {"w": torch.zeros(3)}}, {"n": 3}))
    assert sorted(p.name for p in place.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_broken_newest_state_falls_back_and_no_readable_one_is_an_error(tmp_path: Path, caplog):
    for step in (1, 2, 3):
        save_state(tmp_path, step, State({"network": {"w": torch.full((3,), float(step))}}, {"n": step}))
    (tmp_path / "step-00000003" / "network.safetensors").write_bytes(b"broken")
    state = load_state(tmp_path)
    assert state and state.values["n"] == 2 and "cannot be read" in caplog.text
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    with pytest.raises(ShoalError, match="no state"):
        load_state(tmp_path)
    assert load_state(tmp_path / "nothing") is None


def test_a_failing_measurement_loses_nothing(whole: Path, tmp_path: Path, monkeypatch):
    # C77: evaluation ran out of memory before the final save
    recipe = load_recipe(RECIPE, ["--sft.tokens", "0", "--mtp.tokens", "0"])

    def out_of_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr("shoal.train.stage.heldout_bits_per_byte", out_of_memory)
    with pytest.raises(MemoryError):
        train(recipe, tmp_path)
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()
    monkeypatch.undo()
    outcome = train(recipe, tmp_path, resume=True)
    assert outcome.finished and outcome.measures["train"]["bits_per_byte"] > 0


def test_a_full_disk_is_told_and_leaves_the_state_before(tmp_path: Path, monkeypatch):
    recipe: Recipe = load_recipe(RECIPE)
    train(recipe, tmp_path, stop_after=3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoal.train.state.save_file", full)
    with pytest.raises(ShoalError, match="No space left"):
        train(recipe, tmp_path, resume=True, stop_after=3)
    monkeypatch.undo()
    state = load_state(tmp_path / "state")
    assert state and state.values["steps"] == 3


def test_an_interrupt_saves_first_and_the_folder_admits_one_run(whole: Path, tmp_path: Path):
    command = [sys.executable, "-m", "shoal.cli.main", "train", str(RECIPE), "--run", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = ["--run.save_seconds", "1000", "--resume"]
    process = subprocess.Popen([*command, *words], env=environment, stderr=subprocess.PIPE, text=True)
    while "step 4" not in process.stderr.readline():
        assert process.poll() is None
    with pytest.raises(ShoalError, match="another process"):
        train(load_recipe(RECIPE), tmp_path)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130 and "stopped after step" in errors and "Traceback" not in errors
    state = load_state(tmp_path / "state")
    assert state and state.values["steps"] >= 4
    assert train(load_recipe(RECIPE), tmp_path, resume=True).finished
    assert same(weights(whole), weights(tmp_path))
